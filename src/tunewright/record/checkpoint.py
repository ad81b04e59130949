"""Checkpoints that survive a crash at any instant.

Everything is written into a temporary folder, flushed and synced; a manifest with the SHA-256 of
every file comes last; then the folder is renamed. A folder without a manifest that verifies does
not count as a checkpoint, whatever its name says. Loading takes the newest one that verifies and
moves the others into quarantine with the reason. Nothing is pickled: tensors are safetensors, the
rest is JSON.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.core import publish
from tunewright.core.errors import CheckpointError
from tunewright.core.files import readable_size, sha256_of, with_retry, write_json, write_text

FORMAT = 1
MANIFEST, STATE = "MANIFEST.json", "state.json"
SHARD = "shard-*.safetensors"
"""Files of a checkpoint that several processes wrote: parts of its tensors (`engine.shards`)."""
NAME = re.compile(r"^step-(\d{6,})$")
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
HEADROOM = 1.3
"""Free bytes asked for before a save, as a multiple of the last checkpoint's size."""


@dataclass
class Checkpoint:
    """A checkpoint that was verified: its folder, step and `state` (plain JSON). Tensors are read
    by `tensors`."""

    folder: Path
    step: int
    state: dict[str, Any]
    quarantined: list[tuple[str, str]] = field(default_factory=list)
    """(folder name, reason) of newer ones that could not be trusted."""

    def tensors(self, name: str) -> Mapping[str, Any]:
        """The tensors of one of its files, or of that part of what several processes wrote."""
        from safetensors.torch import load_file

        path = self.folder / f"{name}.safetensors"
        if path.exists() or not self.in_shards:
            return load_file(path)
        return Joined(self.folder, f"{name}/")

    @property
    def in_shards(self) -> bool:
        """Whether several processes wrote it."""
        return any(self.folder.glob(SHARD))


class Joined(Mapping[str, Any]):
    """The whole tensors whose names begin with `prefix`, by the rest of their names, of a
    checkpoint that several processes wrote. Each file says in its head at which place of the whole
    its part of a tensor begins. A tensor is read when it is asked for, so that memory holds one at
    a time."""

    def __init__(self, folder: Path, prefix: str):
        from safetensors import safe_open

        self._parts: dict[str, list[tuple[Path, str, list[int], list[int]]]] = {}
        for path in sorted(folder.glob(SHARD)):
            with safe_open(path, framework="pt") as file:
                where = json.loads(file.metadata()["DCP_SHARDING_INFO"])
                for name in file.keys():  # noqa: SIM118 - it is no dictionary
                    if name.startswith(prefix):
                        at = list(where[name]["saved_offsets"])
                        part = (path, name, at, file.get_slice(name).get_shape())
                        self._parts.setdefault(name.removeprefix(prefix), []).append(part)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, name: str) -> Any:
        import torch
        from safetensors import safe_open

        whole: Any = None
        parts = self._parts[name]
        ends = [[a + n for a, n in zip(at, shape, strict=True)] for _, _, at, shape in parts]
        for path, stored, at, shape in parts:
            with safe_open(path, framework="pt") as file:
                piece = file.get_tensor(stored)
            if whole is None:
                whole = torch.empty(
                    [max(end) for end in zip(*ends, strict=True)], dtype=piece.dtype
                )
            whole[tuple(slice(a, a + n) for a, n in zip(at, shape, strict=True))] = piece
        return whole


def steps_in(root: Path) -> list[int]:
    """Steps of all published folders, verified or not, ascending."""
    if not root.is_dir():
        return []
    return sorted(
        int(m.group(1)) for p in root.iterdir() if (m := NAME.match(p.name)) and p.is_dir()
    )


def folder_of(root: Path, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return root / f"step-{step:06d}"


def bytes_needed(tensors: dict[str, dict[str, Any]]) -> int:
    """Bytes of a checkpoint with these tensors, a little over."""
    return (
        sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
        + 65536
    )


def save(
    root: Path,
    step: int,
    tensors: dict[str, dict[str, Any]],
    state: dict[str, Any],
    *,
    protect: int | None = None,
) -> Path:
    """Publish the checkpoint of `step` and prune older ones: the last two and `protect` (the best)
    stay.

    `tensors` maps a file name to named tensors. Raises CheckpointError with the bytes needed when
    the disk is full or not writable; the checkpoints published before are then untouched.
    """
    target = folder_of(root, step)
    with filling(root, step, bytes_needed(tensors)) as temporary:
        if temporary is not None:
            for name, group in tensors.items():
                _write_tensors(group, temporary / f"{name}.safetensors")
            seal(temporary, step, state, facts_of(temporary))
    prune(root, protect)
    return target


@contextlib.contextmanager
def filling(root: Path, step: int, needed: int) -> Iterator[Path | None]:
    """A hidden folder to fill with `needed` bytes and to `seal`, which becomes the checkpoint of
    `step` at the end of the block. None where it stands already: a resumed run came to the same
    step again, and the same bytes stand there. Raises as `save`."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free
        if free < HEADROOM * needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        target = folder_of(root, step)
        if target.exists():
            if _flaw(target) is None:
                yield None
                return
            _quarantine(target)
        with publish.folder(target) as temporary:
            yield temporary
        with contextlib.suppress(OSError):  # a hint for people; loading never reads it
            write_text(root / "LATEST", target.name + "\n")
    except OSError as e:
        raise blamed(root, needed, e) from e


def blamed(root: Path, needed: int, cause: OSError) -> CheckpointError:
    """The error of a checkpoint of `needed` bytes that could not be written."""
    last = [str(folder_of(root, s)) for s in steps_in(root)]
    return CheckpointError.of(
        "E-CKPT-01" if cause.errno in FULL else "E-CKPT-02",
        str(root),
        needed=readable_size(HEADROOM * needed),
        cause=cause,
        last=last[-1] if last else "-",
    )


def facts_of(folder: Path, pattern: str = "*") -> dict[str, Any]:
    """Size and SHA-256 of the files of a folder whose names match, by name."""
    return {
        p.name: {"size": p.stat().st_size, "sha256": sha256_of(p)}
        for p in sorted(folder.glob(pattern))
    }


def seal(folder: Path, step: int, state: dict[str, Any], files: dict[str, Any]) -> None:
    """Write the plain values and, last, the manifest of a folder with `files` (`facts_of`)."""
    write_json(folder / STATE, {"step": step, **state})
    files = dict(sorted({**files, **facts_of(folder, STATE)}.items()))
    write_json(folder / MANIFEST, {"format": FORMAT, "step": step, "files": files})


def _write_tensors(group: dict[str, Any], path: Path) -> None:
    """safetensors' `save_file`, whose I/O errors are no OSErrors: they come back as what they are,
    so that a full disk is known as one."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({k: t.detach().cpu().contiguous() for k, t in group.items()}, path)
    except SafetensorError as e:
        number = re.search(r"os error (\d+)", str(e))
        code = int(number.group(1)) if number else errno.EIO
        raise OSError(code, os.strerror(code) if os.name != "nt" and number else str(e)) from e


def prune(root: Path, protect: int | None = None, keep: int = 2) -> None:
    """Remove all but the newest `keep` verified checkpoints and `protect`. A folder that cannot be
    removed is left, not an error."""
    kept = 0
    for step in reversed(steps_in(root)):
        folder = folder_of(root, step)
        if step == protect:
            continue
        if kept < keep:
            # Only verified ones count, so that two good ones stay whatever the others are;
            # unverified ones are left for the next load to judge.
            kept += _flaw(folder, hashes=False) is None
            continue
        trash = root / f".trash-{folder.name}-{secrets.token_hex(4)}"
        with contextlib.suppress(OSError):
            os.rename(folder, trash)
            shutil.rmtree(trash, ignore_errors=True)
    for leftover in root.glob(".trash-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _flaw(folder: Path, hashes: bool = True) -> str | None:
    """Why a folder is not a valid checkpoint, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        if (
            manifest["format"] != FORMAT
            or folder.name != f"step-{manifest['step']:06d}"
            or not {"state.json"} <= set(files)
        ):
            return "manifest does not describe this folder"
        for name, facts in files.items():
            path = folder / name
            if Path(name).name != name or not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != facts["size"]:
                return f"{name} has {path.stat().st_size} bytes, not {facts['size']}"
            if hashes and sha256_of(path) != facts["sha256"]:
                return f"{name} was changed after it was written (SHA-256 differs)"
    except FileNotFoundError:
        return "no manifest: the save did not finish"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        return f"manifest cannot be read ({type(e).__name__})"
    return None


def _quarantine(folder: Path) -> None:
    home = folder.parent / "quarantine"
    home.mkdir(exist_ok=True)
    with_retry(lambda: os.rename(folder, home / f"{folder.name}-{secrets.token_hex(4)}"))


def load_latest(root: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies; newer ones that do not go to quarantine. None if none
    was ever published.

    Raises CheckpointError if checkpoints exist and none verifies: a run never starts over in
    silence.
    """
    if root.is_dir():
        # Of processes that died (the second were written so before they were hidden); a pid may
        # live again, but nobody else writes here.
        for pattern in (".step-*.tmp-*", "step-*.tmp-*"):
            for leftover in root.glob(pattern):
                shutil.rmtree(leftover, ignore_errors=True)
    bad: list[tuple[str, str]] = []
    for step in reversed(steps_in(root)):
        folder = folder_of(root, step)
        flaw = _flaw(folder)
        if flaw is None:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            return Checkpoint(folder, step, state, bad)
        bad.append((folder.name, flaw))
        with contextlib.suppress(
            OSError
        ):  # a disk that is read-only now; the folder is judged again next time
            _quarantine(folder)
    if bad or (root / "quarantine").is_dir():
        found = "; ".join(f"{name}: {why}" for name, why in bad) or "quarantine"
        raise CheckpointError.of("E-CKPT-03", str(root), found=found)
    return None


def load_step(root: Path, step: int) -> Checkpoint | None:
    """The checkpoint of one step if it verifies."""
    folder = folder_of(root, step)
    if not folder.is_dir() or _flaw(folder) is not None:
        return None
    return Checkpoint(folder, step, json.loads((folder / "state.json").read_text(encoding="utf-8")))
