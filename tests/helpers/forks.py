"""Programs that start at once, and `kill -9` at chosen moments.

`python -m tunewright ...` needs seconds until torch is imported. Here one process an hour of tests
imports everything and is forked for every program: a process of its own with its own streams,
signals, environment and exit code, without those seconds. Where the start itself is what is tested,
`story.process` starts the interpreter.

A `moment` is [module, attribute, n]: the program kills itself with SIGKILL just before the n-th
call of that function.

The server is this file as a program: it reads one JSON object a line and answers {"pid"} and, when
that process has ended, {"status"}: the exit code, or minus the number of the signal. An object with
"told" starts one of several programs at a time; its end is written into that file.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import pkgutil
import runpy
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOMS = (
    "cli",
    "commands",
    "engine",
    "export",
    "methods",
    "models",
    "objectives",
    "record",
    "report",
    "rewards",
    "run",
)
"""Rooms of the package whose modules a run imports sooner or later."""


# ---- for tests


class Fork:
    """A program that was started."""

    def __init__(self, server: subprocess.Popen[bytes], pid: int, out: Path, err: Path) -> None:
        self.server, self.pid, self.out, self.err = server, pid, out, err
        self.status: int | None = None

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit code, or minus the number of the signal; None where it is not over by then."""
        if self.status is None:
            assert self.server.stdout is not None
            if not select.select([self.server.stdout], [], [], seconds)[0]:
                return None
            self.status = int(_answer(self.server)["status"])
        return self.status

    def poll(self) -> int | None:
        return self.wait(0)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def start(
    *words: str, cwd: Path | None = None, moment: list[Any] | None = None, **environment: str
) -> Fork:
    """Start `tunewright WORDS`. One at a time."""
    place = Path(tempfile.mkdtemp(prefix="fork"))
    server = _server()
    assert server.stdin is not None
    asked = {
        "words": words,
        "cwd": str(cwd or Path.cwd()),
        "moment": moment,
        "out": str(place / "out"),
        "err": str(place / "err"),
        "env": {**os.environ, "TUNEWRIGHT_LANG": "en", "HF_HUB_OFFLINE": "1", **environment},
    }
    server.stdin.write(json.dumps(asked).encode() + b"\n")
    server.stdin.flush()
    return Fork(server, int(_answer(server)["pid"]), place / "out", place / "err")


def run(
    *words: str, cwd: Path | None = None, moment: list[Any] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `tunewright WORDS` to its end."""
    fork = start(*words, cwd=cwd, moment=moment, **environment)
    status = fork.wait()
    assert status is not None
    out, err = (file.read_text(encoding="utf-8", errors="replace") for file in (fork.out, fork.err))
    return subprocess.CompletedProcess(words, status, out, err)


def play(words: list[str], folder: Path, moments: list[list[Any]]) -> list[dict[str, Any]]:
    """Run `words`, which make the run folder `folder`, with a kill at each of the moments, then
    without; once the folder is there, it is resumed. Returns {"moment", "status", "said"} of each
    attempt."""
    attempts = []
    for moment in [*moments, None]:
        now = ["train", str(folder), "--resume"] if folder.exists() else words
        done = run(*now, moment=moment)
        said = (done.stdout + done.stderr)[-2000:] if done.returncode > 0 else ""
        attempts.append({"moment": moment, "status": done.returncode, "said": said})
    return attempts


@functools.cache
def _server() -> subprocess.Popen[bytes]:
    """One for each process of tests; it ends when its input does."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TUNEWRIGHT_LANG": "en"}
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=env,
        bufsize=0,
    )


def _answer(server: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert server.stdout is not None
    line = server.stdout.readline()
    assert line, "the process that is forked has ended"
    found: dict[str, Any] = json.loads(line)
    return found


class Apart:
    """A program that was started beside others, with the part of `subprocess.Popen` that tests of
    several ranks use."""

    def __init__(self, words: list[str], env: dict[str, str], cwd: Path | None, out: str) -> None:
        """`words` as after `python`: a script and its arguments, or `-m tunewright ...`."""
        self.place = Path(tempfile.mkdtemp(prefix="apart"))
        self.returncode: int | None = None
        self._told, server = self.place / "status", _server()
        asked = {"words": words, "cwd": str(cwd or Path.cwd()), "out": out, "err": out, "env": env}
        asked |= {"moment": None, "told": str(self._told)}
        assert server.stdin is not None
        server.stdin.write(json.dumps(asked).encode() + b"\n")
        server.stdin.flush()
        self.pid = int(_answer(server)["pid"])

    def poll(self) -> int | None:
        """The exit code, or minus the number of the signal; None while it runs."""
        if self.returncode is None and self._told.exists():
            self.returncode = int(self._told.read_text())
            shutil.rmtree(self.place, ignore_errors=True)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """As of `Popen`."""
        end = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if end is not None and time.monotonic() > end:
                assert timeout is not None
                raise subprocess.TimeoutExpired("a forked program", timeout)
            time.sleep(0.02)
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        """As of `Popen`."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


# ---- the server


def _import_everything() -> None:
    import gc

    gc.disable()  # next to nothing is dropped while the libraries are read in
    import peft  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401
    import typer.main

    import tunewright
    import tunewright.cli
    import tunewright.story

    with contextlib.suppress(ImportError):
        importlib.import_module("torch.distributed.fsdp")
        importlib.import_module("torch.distributed.checkpoint.hf_storage")
    for found in pkgutil.walk_packages(tunewright.__path__, "tunewright."):
        if found.name.split(".")[1] in ROOMS:
            with contextlib.suppress(ImportError):  # of libraries that are not installed
                importlib.import_module(found.name)
    command = typer.main.get_command(tunewright.cli.app)
    typer.main.get_command = lambda _: command
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # a child must neither look at all this nor copy its pages
    gc.enable()


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


def _become(asked: dict[str, Any]) -> None:
    """In the child: the program, to its end."""
    code = 1
    try:
        # A shell's background job ignores SIGINT, and so would all that it starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, file, flags in (
            (0, os.devnull, os.O_RDONLY),
            (1, asked["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            (2, asked["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        ):
            os.dup2(1 if number == 2 and file == asked["out"] else os.open(file, flags), number)
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["env"])
        if asked["moment"]:
            _arm(*asked["moment"])
        if "told" in asked and asked["words"][0] != "-m":
            sys.argv = asked["words"]
            sys.path.insert(0, str(Path(sys.argv[0]).parent))
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            words = asked["words"][2:] if "told" in asked else asked["words"]
            sys.argv = ["tunewright", *words]
            from tunewright.cli import main

            main()
        code = 0
    except SystemExit as e:
        code = int(e.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _apart(asked: dict[str, Any]) -> None:
    """Start a program whose end nobody waits for here: the process between writes it down."""
    ours, theirs = os.pipe()
    between = os.fork()
    if between == 0:
        child = os.fork()
        if child == 0:
            _become(asked)
        os.write(theirs, str(child).encode())
        os.close(theirs)
        _, status = os.waitpid(child, 0)
        ended = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        told = Path(asked["told"])
        told.with_suffix(".part").write_text(str(ended))
        told.with_suffix(".part").rename(told)
        os._exit(0)
    os.close(theirs)
    print(json.dumps({"pid": int(os.read(ours, 20))}), flush=True)
    os.close(ours)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _serve() -> None:
    _import_everything()
    for line in sys.stdin.buffer:
        _reap()
        if "told" in json.loads(line):
            _apart(json.loads(line))
            continue
        child = os.fork()
        if child == 0:
            _become(json.loads(line))
        print(json.dumps({"pid": child}), flush=True)
        _, status = os.waitpid(child, 0)
        ended = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        print(json.dumps({"status": ended}), flush=True)


if __name__ == "__main__":
    _serve()
