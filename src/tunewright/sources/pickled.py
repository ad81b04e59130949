"""From a pickled checkpoint (`pytorch_model.bin`, its parts, or a bare `adapter_model.bin`) to a
folder with safetensors, without opening the pickle here.

A closed child process (`pickle_child.py`) reads it: no network, no environment, no writing outside
one folder, bounded memory and time. This side trusts nothing that comes back: file names, headers
and configurations are judged like those of any unknown model before the folder gets its name.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunewright.core.errors import ModelError, first_line, problem, raise_all
from tunewright.core.files import readable_size, sha256_of, write_json
from tunewright.core.publish import publish
from tunewright.core.words import say
from tunewright.sources import headers, vet

CONVERTER = 1
CHILD = Path(__file__).with_name("pickle_child.py")
PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.bin")
COPIED_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".md")
COPIED_NAMES = ("LICENSE", "NOTICE", "USE_POLICY")
LEFT_OUT = re.compile(r"\.index\.json$|^tunewright\.json$")
"""Tables of the old parts, and another folder's marker."""
ROOM_BYTES = 64 << 20
MEMORY_BYTES, MEMORY_TIMES = 16 << 30, 4
"""Address space of the child: PyTorch's libraries, and the largest part several times over."""
GROWTH = 4
"""`LARGEST_GROWTH` of the child: what one part may become when shared numbers are stored apart."""
SECONDS, BYTES_PER_SECOND = 300, 5_000_000
KEPT_ENVIRONMENT = ("SYSTEMROOT", "WINDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""What a system may need to find its own libraries. Nothing else of the environment, tokens least
of all, reaches the child."""


@dataclass(frozen=True)
class Plan:
    """What will be converted: (pickled file, name of the file made from it). `promised` are the
    tensors that a table of parts names."""

    kind: Literal["model", "adapter"]
    files: list[tuple[Path, str]]
    promised: frozenset[str] = frozenset()

    @property
    def num_bytes(self) -> int:
        """Bytes of all pickled files."""
        return sum(path.stat().st_size for path, _ in self.files)


def plan_of(folder: Path) -> Plan:
    """What Transformers or PEFT would read from `folder`. Raises ModelError when that is no pickle,
    or parts are missing."""
    kind: Literal["model", "adapter"] = (
        "model"
        if (folder / "config.json").is_file() or not (folder / "adapter_config.json").is_file()
        else "adapter"
    )
    stem = "adapter_model" if kind == "adapter" else "pytorch_model"
    single, index = folder / f"{stem}.bin", folder / f"{stem}.bin.index.json"

    def nothing_to_do(reason: str) -> ModelError:
        return ModelError(problem("E-MODEL-46", str(folder), folder=str(folder), reason=reason))

    ready, _ = headers.weight_files(folder, kind)
    if ready:
        raise nothing_to_do(say("models.already_safe", names=ready[0].name))
    if single.is_file():
        name = "adapter_model.safetensors" if kind == "adapter" else "model.safetensors"
        return Plan(kind, [(single, name)])
    if kind == "adapter" or not index.is_file():
        raise nothing_to_do(say("models.no_checkpoint", names=single.name))
    table, trouble = headers.read_index(index, PART)
    raise_all(trouble, ModelError)
    parts = sorted(set(table.values()))
    names = [f"model-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)]
    return Plan(
        kind, [(folder / p, n) for p, n in zip(parts, names, strict=True)], frozenset(table)
    )


def convert(folder: Path, out: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Write the model or adapter of `folder` into the new folder `out` with its weights as
    safetensors; returns the marker that lies there.

    Configurations and tokenizer files are judged, then copied; Python files and other pickles are
    not. Raises ModelError, with nothing left behind, when OUT is taken, a configuration is not
    safe, the pickle asks for anything but tensors, or what came back is not what was promised.
    """
    folder, out = Path(folder), Path(out)
    if not folder.is_dir():
        raise ModelError(problem("E-MODEL-01", spec=str(folder)))
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise ModelError(problem("E-MODEL-47", str(out)))
    plan = plan_of(folder)
    raise_all(vet.problems_of(folder, kind=plan.kind, weights=False, code=False), ModelError)
    _require_room(out, plan)
    missing = [place for place in out.absolute().parents if not place.exists()]
    done = False
    try:
        with contextlib.suppress(OSError):
            out.rmdir()  # empty, as seen above
        marker = publish(out, lambda place: _build(folder, place, plan, report))
        done = True
    finally:
        with contextlib.suppress(OSError):
            (out.parent / f".{out.name}.lock").unlink(missing_ok=True)
        for place in missing if not done else []:
            with contextlib.suppress(OSError):
                place.rmdir()
    return {"folder": str(out), **marker}


def _require_room(out: Path, plan: Plan) -> None:
    there = next(place for place in [out, *out.absolute().parents] if place.is_dir())
    free, needed = shutil.disk_usage(there).free, plan.num_bytes + ROOM_BYTES
    if free < needed:
        raise ModelError(
            problem("E-MODEL-49", str(out), needed=readable_size(needed), free=readable_size(free))
        )


def _build(folder: Path, place: Path, plan: Plan, report: Callable[[str], None]) -> dict[str, Any]:
    """Fill `place`; the facts for its marker."""
    report(say("models.unpickling", count=len(plan.files), size=readable_size(plan.num_bytes)))
    digests = {path.name: sha256_of(path) for path, _ in plan.files}
    before = [_state(path) for path, _ in plan.files]
    walls = _run_child(place, plan)
    if before != [_state(path) for path, _ in plan.files]:
        raise ModelError(
            problem(
                "E-MODEL-45",
                str(folder),
                file=plan.files[0][0].name,
                cause=say("models.changed_meanwhile"),
            )
        )
    facts = _checked(folder, place, plan)
    left_out = _copy_descriptions(folder, place)
    raise_all(vet.problems_of(place, kind=plan.kind, code=False), ModelError)
    mode = 0o644 & ~_umask()
    for path in place.glob("*.safetensors"):
        path.chmod(mode)  # the library writes weights for the owner alone
    return {
        "spec": str(folder),
        "name": folder.resolve().name,
        "sha256": digests,
        "converter": CONVERTER,
        "walls": walls,
        "left_out": left_out,
        **facts,
    }


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _state(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _job(place: Path, plan: Plan) -> tuple[dict[str, Any], int]:
    """What the child is told, and the seconds it may take."""
    largest = max(path.stat().st_size for path, _ in plan.files)
    seconds = SECONDS + plan.num_bytes // BYTES_PER_SECOND
    specs = [importlib.util.find_spec(name) for name in ("torch", "safetensors")]
    origins = [Path(spec.origin) for spec in specs if spec and spec.origin]
    owned = not hasattr(os, "getuid") or all(
        path.stat().st_uid == os.getuid() for path, _ in plan.files
    )
    return {
        "files": [(str(path.resolve()), name) for path, name in plan.files],
        "out": str(place.resolve()),
        "seconds": seconds,
        "memory_bytes": MEMORY_BYTES + MEMORY_TIMES * largest,
        "file_bytes": ROOM_BYTES + GROWTH * largest,
        # In a user namespace nobody is root, who may otherwise read the files of others.
        "user_namespace": owned,
        "paths": list(dict.fromkeys(str(origin.parents[1]) for origin in origins)),
    }, seconds


def _run_child(place: Path, plan: Plan) -> list[str]:
    """The child's work; returns the walls it says it stood behind. Raises ModelError for what it
    refused, and when it ended without an answer."""
    job, seconds = _job(place, plan)
    environment = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
    environment |= {
        "HOME": str(place),
        "TMPDIR": str(place),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    argv = [sys.executable, "-I", "-B", "-X", "utf8", str(CHILD)]
    try:
        done = subprocess.run(
            argv,
            input=json.dumps(job),
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            cwd=place,
            timeout=2 * seconds,
            check=False,
        )
        answer = (
            json.loads((done.stdout.strip().splitlines() or [""])[-1])
            if done.returncode == 0
            else {}
        )
        cause = (
            f"exit {done.returncode}: {first_line((done.stderr.strip().splitlines() or ['-'])[-1])}"
        )
    except (subprocess.TimeoutExpired, ValueError) as e:
        answer, cause = {}, first_line(e)
    if not isinstance(answer, dict) or not answer:
        raise ModelError(problem("E-MODEL-48", str(plan.files[0][0].parent), cause=cause))
    if "refused" in answer:
        code = {"global": "E-MODEL-43", "content": "E-MODEL-44"}.get(
            str(answer["refused"]), "E-MODEL-45"
        )
        fields = {
            key: _plain(answer.get(key, "-")) for key in ("file", "name", "key", "kind", "cause")
        }
        raise ModelError(problem(code, str(plan.files[0][0].parent), **fields))
    walls = answer.get("walls")
    return [_plain(wall)[:20] for wall in walls[:8]] if isinstance(walls, list) else []


def _plain(value: object) -> str:
    """Text of the child's, without characters that a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in str(value))[:300]


def _checked(folder: Path, place: Path, plan: Plan) -> dict[str, Any]:
    """Judge what the child wrote, from names and headers, and write the table of parts. Raises
    ModelError where it is not what was asked for."""

    def wrong(cause: str) -> ModelError:
        return ModelError(
            problem("E-MODEL-45", str(folder), file=plan.files[0][0].name, cause=cause)
        )

    expected = {name for _, name in plan.files}
    written = list(place.iterdir())
    if {p.name for p in written} != expected or any(
        p.is_symlink() or not p.is_file() for p in written
    ):
        raise wrong(f"{len(written)} files instead of {len(expected)}")
    table: dict[str, str] = {}
    total = 0
    for name in sorted(expected):
        try:
            header = headers.read_safetensors_header(place / name)
        except ValueError as e:
            raise wrong(str(e)) from e
        twice = next((t for t in header if t in table), None)
        if twice is not None:
            raise wrong(f"{twice[:80]!r} is in two parts")
        table |= dict.fromkeys(header, name)
        total += sum(num_bytes for _, _, num_bytes in header.values())
    lost = sorted(plan.promised - set(table))
    if lost:
        raise wrong(f"{len(lost)} tensors of the table are in no part ({lost[0][:80]!r})")
    if len(expected) > 1:
        write_json(
            place / "model.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": table},
        )
    return {"tensors": len(table), "weight_bytes": total}


def _copy_descriptions(folder: Path, place: Path) -> list[str]:
    """Copy configuration, tokenizer and licence files; returns the names of what stays behind. The
    files were judged before."""
    left_out = []
    extra = folder / "additional_chat_templates"
    for path in sorted([*folder.iterdir(), *(extra.glob("*.jinja") if extra.is_dir() else ())]):
        relative = path.relative_to(folder)
        if not path.is_file() or LEFT_OUT.search(path.name):
            continue
        if path.suffix.lower() in COPIED_SUFFIXES or path.name.startswith(COPIED_NAMES):
            (place / relative).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, place / relative)
        else:
            left_out.append(relative.as_posix())
    return left_out


def lines(marker: dict[str, Any]) -> list[str]:
    """The result for a terminal."""
    shown = {
        **marker,
        "size": readable_size(marker["weight_bytes"]),
        "walls": ", ".join(say(f"models.wall.{wall}") for wall in marker["walls"]),
    }
    said = [say("models.unpickled", **shown), say("models.walls", **shown)]
    taken = set(marker["sha256"])
    rest = [name for name in marker["left_out"] if name not in taken]
    return [
        *said,
        *([say("models.left_out", names=", ".join(rest[:8]), count=len(rest))] if rest else []),
    ]
