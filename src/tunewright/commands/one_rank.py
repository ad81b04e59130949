"""One process of a run that `run.launching` started: `python -m tunewright.commands.one_rank
JOB.json`. It does the run and leaves word of what went wrong."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from tunewright import rewards
from tunewright.core import faults, launched
from tunewright.core.errors import TunewrightError, UnexpectedError
from tunewright.core.pace import sleep_when_idle
from tunewright.core.publish import cache_root
from tunewright.core.runfile import parse_run
from tunewright.core.types import Message
from tunewright.engine.rank_watch import write_error
from tunewright.run.questions import Probe
from tunewright.sources.remote_code import trusting
from tunewright.story import train


def main(path: Path) -> int:
    """Do the job of a file; gives the exit code."""
    job = json.loads(path.read_text(encoding="utf-8"))
    place = launched.here()
    assert place is not None
    try:
        try:
            _do(job)
        except TunewrightError:
            raise
        except Exception as e:
            where = faults.keep(e, cache_root() / "tracebacks")
            code = "E-RUN-17" if faults.is_memory(e) else "E-RUN-16"
            raise UnexpectedError.of(code, where, cause=faults.cause_of(e)) from e
    except TunewrightError as e:
        write_error(place, e)
        return e.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _do(job: dict[str, Any]) -> None:
    code = Path(job["reward_code"]) if job["reward_code"] else None
    resume = Path(job["resume"]) if job["resume"] else None
    trusted = trusting(job["trust_code"]) if job["trust_code"] else contextlib.nullcontext()
    with rewards.allowing(code), trusted:
        parsed = parse_run(job["given"], job["where"])
        train(parsed, extra_probes=[_probe(one) for one in job["probes"]], resume=resume)


def _probe(given: dict[str, Any]) -> Probe:
    return Probe(**{**given, "messages": [Message(**one) for one in given["messages"]]})


if __name__ == "__main__":
    sleep_when_idle()
    sys.exit(main(Path(sys.argv[1])))
