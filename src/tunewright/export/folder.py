"""Where an export goes: a folder that is free before, and whole or not there afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tunewright.core import publish
from tunewright.core.errors import TunewrightError, UsageError


class ExportError(TunewrightError):
    """An export that failed; nothing was left behind."""


def require_free(out: Path) -> None:
    """Raise UsageError unless `out` is free: nothing there, or an empty folder."""
    out = Path(out)
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UsageError.of("E-EXPORT-01", str(out))


@contextlib.contextmanager
def appearing(out: Path, word: str) -> Iterator[Path]:
    """A folder to fill, which becomes `out` at the end of the block. `word` says in its hidden name
    what is going on. Raises UsageError when somebody took `out` meanwhile."""
    with publish.folder(out, word) as temporary:
        yield temporary
        _let_be_read(temporary)
        require_free(out)


def _let_be_read(folder: Path) -> None:
    """Give every file the rights that a new file gets here: safetensors writes weights for the
    owner alone, and a server runs as somebody else."""
    probe = folder / ".rights"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
