"""Start the processes of a run on this machine, with the launcher of torchrun.

The agent is PyTorch's own: it gives every process its place, sees when one ends and, with
`engine.max_restarts`, starts all of them again from the last checkpoint. The run goes to them as a
file of plain values; what goes wrong comes back as one, so that the caller gets the error as if the
run had been done here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunewright import rewards
from tunewright.core import compat, errors, launched
from tunewright.core.callbacks import Callback
from tunewright.core.errors import (
    CompatError,
    Interrupted,
    TrainingError,
    TunewrightError,
    problem,
    problem_of,
    raise_all,
)
from tunewright.core.runfile import ParsedRun, parse_run
from tunewright.engine import placement
from tunewright.engine.rank_watch import RankError
from tunewright.record import folder as run_folder
from tunewright.run.evidence import Finished
from tunewright.run.questions import Probe
from tunewright.sources import remote_code

ENTRY = "tunewright.commands.one_rank"
"""The module that each process runs."""
SHUTDOWN_SECONDS = 10
"""What the other processes get to end by themselves when one of them failed."""


def count(parsed: ParsedRun) -> int:
    """Processes to start for a run: 1 where it is done here, or where a launcher did it already."""
    if launched.here() is not None:
        return 1
    asked = parsed.config.engine.processes
    if asked != "auto":
        return asked
    device = parsed.config.engine.device
    if device not in ("auto", "cuda") or not placement.may_have_cuda():
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def launch(
    parsed: ParsedRun,
    number: int,
    probes: Sequence[Probe] = (),
    resume: Path | None = None,
    on: Iterable[Callback] = (),
) -> Finished:
    """Do the run in `number` processes. Raises what the run raises, and CompatError for callbacks,
    which cannot go into other processes."""
    names = ", ".join(type(one).__name__ for one in on)
    if names:
        raise CompatError(problem("E-DIST-10", "on", names=names))
    if resume is None:
        raise_all(compat.problems(parsed.config), CompatError)
    _require_devices(parsed, number)
    out = resume or run_folder.out_of(parsed.config)
    if resume is None:
        run_folder.require_free(out)
    given = {**parsed.given, "out": str(out), "engine.processes": number}
    folder = Path(tempfile.mkdtemp(prefix="tunewright-ranks-"))
    try:
        job = {
            "given": parse_run(dict(given), dict(parsed.where)).given,
            "where": parsed.where,
            "resume": None if resume is None else str(resume),
            "probes": [asdict(probe) for probe in probes],
            "reward_code": _reward_code(),
            "trust_code": sorted(remote_code.trusted()),
        }
        (folder / "job.json").write_text(json.dumps(job, default=str), encoding="utf-8")
        _run(folder, number, parsed.config.engine.max_restarts, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Finished(out, run_folder.read_summary(out))


def _reward_code() -> str | None:
    code = rewards.user_code.allowed()
    return None if code is None else str(code.path.resolve())


def _require_devices(parsed: ParsedRun, number: int) -> None:
    """Raise CompatError where there are fewer GPUs than processes."""
    device, _ = placement.resolve_device(parsed.config.engine.device)
    if device == "cpu":
        return
    import torch

    have = torch.cuda.device_count() if device.startswith("cuda") else 1
    if have < number:
        raise CompatError(problem("E-DIST-09", "engine.processes", asked=number, have=have))


def _run(folder: Path, number: int, restarts: int, out: Path) -> None:
    """Start the processes and wait for them. Raises the error of the run."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    with _environment(folder), _signals() as got:
        try:
            elastic_launch(_config(folder, number, restarts), sys.executable)(
                "-m", ENTRY, str(folder / "job.json")
            )
        except ChildFailedError as e:
            codes = {rank: failure.exitcode for rank, failure in e.failures.items()}
            raise _error(folder, codes, out) from None
        except SignalException as e:
            name = signal.Signals(e.sigval).name
            raise Interrupted(e.sigval, problem("E-RUN-06", "", signal=name)) from None
        except (RuntimeError, OSError) as e:
            cause = errors.first_line(e)
            raise TrainingError(problem("E-DIST-07", "", cause=cause)) from e
    del got


def _config(folder: Path, number: int, restarts: int) -> Any:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_SECONDS))
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=number,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=restarts,
        monitor_interval=0.2,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "elastic")),
    )


@contextlib.contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """Inside, processes that are started know where to leave word."""
    before = {name: os.environ.get(name) for name in (launched.FOLDER, "TORCHELASTIC_ERROR_FILE")}
    os.environ[launched.FOLDER] = str(folder)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """The agent's own messages are for whoever mends the agent."""
    import logging

    quiet = [logging.getLogger(name) for name in ("torch.distributed", "torch.distributed.elastic")]
    levels = [one.level for one in quiet]
    for one in quiet:
        one.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for one, level in zip(quiet, levels, strict=True):
            one.setLevel(level)


def _error(folder: Path, codes: dict[int, int], out: Path) -> TunewrightError:
    """What ended the run: what the ranks left word of, or what the agent saw."""
    told = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.error.json"))]
    # A rank that failed by itself knows more than those who were told of it.
    told.sort(key=lambda one: (one["kind"] == "RankError", one["rank"]))
    if told:
        error = _as_it_was(told[0])
    else:
        rank = min(codes)
        code = codes[rank]
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        fields = {"rank": rank, "host": "localhost", "cause": cause}
        error = RankError(problem("E-DIST-03", f"rank {rank}", **fields))
    if (out / "run.yaml").is_file() and run_folder.read_summary(out).get("status") is None:
        with contextlib.suppress(OSError):
            run_folder.note_end(out, "failed", str(error))
    return error


def _as_it_was(told: dict[str, Any]) -> TunewrightError:
    problems = [problem_of(one) for one in told["problems"]]
    if told["exit_code"] > 128:
        return Interrupted(told["exit_code"] - 128, problems)
    if told["kind"] == "RankError":
        return RankError(problems, told["exit_code"], told["log"])
    kind = getattr(errors, told["kind"], TrainingError)
    found: TunewrightError = kind(problems)
    return found
