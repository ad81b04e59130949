"""Run the command line again and again in forked children that kill themselves with SIGKILL at
chosen moments.

    python killer.py PLAN.json

The plan holds `words` (the first command), `run` (its folder) and `moments`: [module, attribute,
n], meaning just before the n-th call of that function in the child. Torch is imported once, then
every attempt is a fork: a real process with a real kill, without seconds of start-up. Prints one
JSON line per attempt: {"moment", "status"} with the negative signal number or the exit code, and a
last one for the attempt that nobody killed.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


def _arm(module: str, attribute: str, wanted: int) -> None:
    owner: Any = importlib.import_module(module)
    *path, name = attribute.split(".")
    for part in path:
        owner = getattr(owner, part)
    real, count = getattr(owner, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == wanted:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(owner, name, counted)
    # Who imported the function by name calls it by that name.
    ours = [module for key, module in sys.modules.items() if key.startswith("tunewright")]
    for other in ours:
        if vars(other).get(name) is real:
            setattr(other, name, counted)


def attempt(words: list[str], moment: list[Any] | None, log: Path) -> int:
    """Exit code of one attempt, or minus the number of the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            if moment:
                _arm(moment[0], moment[1], moment[2])
            from tunewright.cli import app

            app(words, standalone_mode=True)
            code = 0
        except SystemExit as e:
            code = int(e.code or 0)
        finally:
            sys.stdout.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def main(plan: dict[str, Any]) -> None:
    """All attempts of a plan."""
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import tunewright.story  # noqa: F401

    torch.set_num_threads(1)
    run = Path(plan["run"])
    for moment in [*plan["moments"], None]:
        words = ["train", str(run), "--resume"] if run.exists() else plan["words"]
        status = attempt(words, moment, Path(plan["log"]))
        print(
            json.dumps(
                {
                    "moment": moment,
                    "status": status,
                    "resumed": run.exists() and words[0] == "train" and "--resume" in words,
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
