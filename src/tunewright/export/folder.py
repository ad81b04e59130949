"""Where an export goes: a folder that is free before, and whole or not there afterwards."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from tunewright.core import publish
from tunewright.core.errors import TunewrightError, UsageError
from tunewright.core.files import sha256_of


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


def require_free_file(out: Path, ending: str) -> None:
    """Raise UsageError unless `out` is a file name with this ending that is free."""
    if out.suffix.lower() != ending or out.is_dir():
        example = out / f"model{ending}" if out.is_dir() else out.with_name(out.name + ending)
        raise UsageError.of("E-EXPORT-20", str(out), example=example)
    if out.exists() or out.is_symlink():
        raise UsageError.of("E-EXPORT-01", str(out))
    record = record_of(out)
    if record.exists() and not _is_record(record):
        raise UsageError.of("E-EXPORT-01", str(record))
    card = card_of(out)
    if card.exists() and not _is_untouched(card, record):
        raise UsageError.of("E-EXPORT-01", str(card))


def record_of(out: Path) -> Path:
    """Where the proof of a single file lies: beside it."""
    return out.with_name(f"{out.stem}.proof.json")


def card_of(out: Path) -> Path:
    """Where the model card of a single file lies: beside it."""
    return out.with_name(f"{out.stem}.md")


def _is_untouched(card: Path, record: Path) -> bool:
    """Whether a card is as an export that was killed, or whose file was deleted, has left it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        known = json.loads(record.read_text(encoding="utf-8")).get("card_sha256")
        return sha256_of(card) == known
    return False


def _is_record(path: Path) -> bool:
    """Whether this is a proof, left by an export that was killed before its file had a name."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return isinstance(found, dict) and "exported" in found
    return False


@contextlib.contextmanager
def appearing_file(out: Path, word: str) -> Iterator[Path]:
    """A hidden folder beside `out` to fill; at the end of the block the file of the name `out` in
    it, the proof and the card beside get their names, the proof first: a file that is there is
    proven."""
    with publish.scratch(out, word) as temporary:
        yield temporary
        _let_be_read(temporary)
        require_free_file(out, out.suffix.lower())
        for name in (record_of(out).name, card_of(out).name, out.name):
            publish.move_file(temporary / name, out.with_name(name))


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
