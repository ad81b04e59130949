"""The process that matches patterns. Started by `patterns.py` as `python -I -S -B`, never imported
there: one JSON question a line, one answer a line."""

from __future__ import annotations

import json
import re
import signal
import sys


def _alarm(seconds: float) -> None:
    """End this process after `seconds`, 0: never. If our parent was killed in the middle of a
    match, nobody else would."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds)


def main() -> None:
    """Answer until the parent closes the pipe."""
    out = sys.stdout.buffer
    out.write(b'"ready"\n')
    out.flush()
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        _alarm(2 * asked["seconds"] + 5)
        try:
            found = getattr(re.compile(asked["pattern"], asked["flags"]), asked["mode"])(
                asked["text"]
            )
            answer: dict[str, object] = {"matches": found is not None}
        except (re.error, RecursionError, OverflowError) as e:
            answer = {"error": str(e) or type(e).__name__}
        _alarm(0)
        out.write(json.dumps(answer).encode() + b"\n")
        out.flush()


if __name__ == "__main__":
    main()
