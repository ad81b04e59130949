"""A person's own reward function, from a Python file given on the command line and nowhere else.

A run file may name the function and the SHA-256 of the file it expects, and can never make a file
run: the consent is held in a context that only `--reward-code FILE.py` opens, for one command. The
bytes that were hashed are the bytes that run.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import sys
import types
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from tunewright.core.config import Section
from tunewright.core.errors import ConfigError, Interrupted, UsageError, problem
from tunewright.core.registry import rewards
from tunewright.core.types import Answer
from tunewright.rewards.base import RewardFunction, short


class PythonConfig(Section):
    """A function of your own, from the file given with `--reward-code FILE.py`."""

    function: str
    """Its name in the file. It takes a list of answers and gives one number, or None, for each."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """The SHA-256 of the file. Written into run.yaml by the program; if given, no other file is
    accepted."""
    file: str | None = None
    """Where the file was; for information only, written by the program. It never makes code run."""


@dataclass(frozen=True)
class UserCode:
    """A file that may run in this command."""

    path: Path
    text: bytes

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of exactly these bytes."""
        return hashlib.sha256(self.text).hexdigest()


_allowed: ContextVar[UserCode | None] = ContextVar("tunewright_reward_code", default=None)


@contextlib.contextmanager
def allowing(path: Path | None) -> Iterator[None]:
    """Inside, functions of this file may be used as rewards. Only the command line calls this.
    Raises UsageError for a file that cannot be read."""
    if path is None:
        yield
        return
    try:
        code = UserCode(path, path.read_bytes())
    except OSError as e:
        raise UsageError(problem("E-REWARD-10", "--reward-code", file=path, cause=e)) from e
    token = _allowed.set(code)
    try:
        yield
    finally:
        _allowed.reset(token)


def allowed() -> UserCode | None:
    """The file that may run in this command, if there is one."""
    return _allowed.get()


def _namespace(code: UserCode) -> dict[str, Any]:
    """Run the file once, as a module of its own name. Raises ConfigError with the line where it
    fails."""
    name = f"tunewright_reward_{code.sha256[:12]}"
    known = sys.modules.get(name)
    if known is not None:
        return vars(known)
    module = types.ModuleType(name)
    module.__file__ = str(code.path)
    sys.modules[name] = module  # dataclasses and typing look their module up
    try:
        with contextlib.redirect_stdout(sys.stderr):
            exec(compile(code.text, str(code.path), "exec"), vars(module))  # noqa: S102 - the person at the command line gave this file
    except (Interrupted, KeyboardInterrupt):
        del sys.modules[name]
        raise
    except BaseException as e:  # SystemExit as well: a file must not end the program with success
        del sys.modules[name]
        cause = f"{type(e).__name__}: {short(str(e))}"
        line = (
            e.lineno
            if isinstance(e, SyntaxError)
            else next((n for n in reversed(_lines_of(e, code.path))), None)
        )
        place = f"{code.path}:{line}" if line else str(code.path)
        raise ConfigError(problem("E-REWARD-10", place, file=code.path, cause=cause)) from e
    return vars(module)


def _lines_of(error: BaseException, path: Path) -> list[int]:
    """Lines of the file in a traceback, outermost first."""
    found, here = [], error.__traceback__
    while here:
        if here.tb_frame.f_code.co_filename == str(path):
            found.append(here.tb_lineno)
        here = here.tb_next
    return found


@rewards.register("python", PythonConfig)
def python(config: PythonConfig) -> RewardFunction:
    """The function of the file. Raises ConfigError when no file was given, another file was, or it
    has no such function."""
    code = allowed()
    if code is None:
        raise ConfigError(
            problem(
                "E-REWARD-07", "function", function=config.function, file=config.file or "FILE.py"
            )
        )
    if config.sha256 is not None and config.sha256 != code.sha256:
        raise ConfigError(
            problem(
                "E-REWARD-08", "sha256", file=code.path, expected=config.sha256, found=code.sha256
            )
        )
    names = _namespace(code)
    function = names.get(config.function)
    if not callable(function):
        known = (
            ", ".join(
                sorted(
                    n
                    for n, v in names.items()
                    if isinstance(v, types.FunctionType) and not n.startswith("_")
                )
            )
            or "-"
        )
        raise ConfigError(
            problem(
                "E-REWARD-09", "function", function=config.function, file=code.path, known=known
            )
        )

    def judge(answers: list[Answer]) -> Any:
        # What it prints must not land among our own results, and what it changes must not reach the
        # functions after it.
        with contextlib.redirect_stdout(sys.stderr):
            return function(copy.deepcopy(answers))

    return judge
