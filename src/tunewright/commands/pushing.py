"""`tunewright push`: a run or an export on a hub, with a card, private unless asked otherwise.

Only what somebody needs to load it goes: weights, configuration, tokenizer, the card. Rows of the
data, answers, events and checkpoints stay. The hubs' own clients send it; what lies there already
is not sent again, so that a push that broke goes on where it was.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.core import faults
from tunewright.core.errors import ModelError, TunewrightError, UsageError, problem, raise_all
from tunewright.core.files import readable_size, sha256_of
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.export import card, run_card
from tunewright.export.gguf_about import HUB_ID, published
from tunewright.export.tuned import Tuned

HUBS = ("huggingface", "modelscope")
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?")
WEIGHTS = (".safetensors", ".gguf")
NEEDED = (*WEIGHTS, ".json", ".jinja", ".model", ".txt", ".tiktoken")
NAMED = ("Modelfile", "LICENSE", "LICENSE.txt", "NOTICE")
RECORDS = ("trainer_state.json", "summary.json", "merge.json")
MESSAGE = "Upload with Tunewright"
ATTEMPTS, WAIT_SECONDS = 4, 1.0
"""How often a broken connection is tried again, and the first pause, which doubles."""


@dataclass
class Package:
    """What is sent: path on the hub -> a file, or bytes made here."""

    name: str
    base: str | None
    files: dict[str, Path | bytes] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def size(self, path: str) -> int:
        """Bytes of one file."""
        content = self.files[path]
        return len(content) if isinstance(content, bytes) else content.stat().st_size

    @property
    def card(self) -> str:
        """The text of its card."""
        content = self.files[card.FILE]
        text = content if isinstance(content, bytes) else content.read_bytes()
        return text.decode("utf-8")

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        files = [
            {"path": path, "bytes": self.size(path), "sha256": _sum(self.files[path])}
            for path in sorted(self.files)
        ]
        return {"name": self.name, "base": self.base, "files": files, "left_out": self.left_out}


def push(
    source: Path,
    name: str,
    *,
    to: str = "huggingface",
    public: bool = False,
    dry_run: bool = False,
    base: str | None = None,
    message: str = "",
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Send the run or export `source` to the repository `name`. Returns what was sent and where it
    lies. Raises UsageError before anything is sent; TunewrightError when the hub refuses or cannot
    be reached."""
    tell = tell or Tell()
    raise_all(_wrong(name, to, base))
    package = pack(source, name, base, tell)
    found = {**package.as_dict(), "to": to, "private": not public, "card": package.card}
    for path in package.left_out:
        tell.line(say("push.left_out", path=path))
    if package.base is None and "adapter_config.json" in package.files:
        tell.line(say("push.no_base"))
    if dry_run:
        return {**found, "sent": False}
    total = readable_size(sum(map(package.size, package.files)))
    tell.line(say("push.sending", files=len(package.files), size=total, name=name, to=to))
    send = _to_huggingface if to == "huggingface" else _to_modelscope
    message = message or MESSAGE
    address = _trying(lambda: send(package, public, message, tell), to, name, tell)
    tell.line(say("push.done", address=address))
    return {**found, "sent": True, "address": address}


def _wrong(name: str, to: str, base: str | None) -> list[Any]:
    found = []
    if to not in HUBS:
        found.append(problem("E-PUSH-01", "--to", to=to, known=", ".join(HUBS)))
    if not NAME.fullmatch(name) or ".." in name or "--" in name:
        found.append(problem("E-PUSH-02", "NAME", name=name))
    if base is not None and not HUB_ID.fullmatch(base):
        found.append(problem("E-PUSH-03", "--base", name=base))
    return found


def pack(source: Path, name: str, base: str | None, tell: Tell) -> Package:
    """What of a run or an export is sent. Raises UsageError, and ModelError for a folder that is
    not there."""
    if (source / "run.yaml").is_file():
        return _pack_run(source, name, base, tell)
    if not source.exists():
        raise ModelError.of("E-MODEL-01", spec=str(source))
    if not source.is_dir():
        raise UsageError.of("E-PUSH-04", str(source), folder=source)
    package = Package(name, base)
    _take(package, source)
    if card.FILE not in package.files:
        raise UsageError.of("E-PUSH-05", str(source), folder=source)
    return package


def _pack_run(run: Path, name: str, base: str | None, tell: Tell) -> Package:
    tuned = Tuned.find(run, tell)
    base = base or published(tuned)
    base = base if base and HUB_ID.fullmatch(base) else None
    package = Package(name, base)
    _take(package, tuned.trained)
    package.files[card.FILE] = run_card.text(tuned, name, base).encode("utf-8")
    config = package.files.get("adapter_config.json")
    if isinstance(config, Path):
        package.files["adapter_config.json"] = _without_path(config, base)
    return package


def _without_path(config: Path, base: str | None) -> bytes:
    """An adapter's description that names its base as the hub does, and no folder of this
    machine."""
    found = json.loads(config.read_text(encoding="utf-8"))
    found["base_model_name_or_path"] = base or ""
    return (json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")


def _take(package: Package, folder: Path) -> None:
    """The files of a folder that are needed. Raises UsageError where no weights are among them."""
    for path in sorted(folder.iterdir()):
        wanted = path.suffix in NEEDED or path.name in (*NAMED, card.FILE)
        if path.is_symlink() or not path.is_file() or path.name in RECORDS or not wanted:
            package.left_out.append(path.name + ("/" if path.is_dir() else ""))
        else:
            package.files[path.name] = path
    if not any(path.endswith(WEIGHTS) for path in package.files):
        raise UsageError.of("E-PUSH-04", str(folder), folder=folder)


def _sum(content: Path | bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256_of(content)


def _trying(send: Callable[[], str], to: str, name: str, tell: Tell) -> str:
    """Send, and again where the connection broke."""
    for attempt in range(ATTEMPTS):
        try:
            return send()
        except TunewrightError:
            raise
        except faults.UNFORESEEN as error:
            cause = faults.cause_of(error.__cause__ or error)
            if attempt == ATTEMPTS - 1 or not _is_broken(error):
                found = TunewrightError.of("E-PUSH-06", name, to=to, cause=cause)
                raise found from error
            tell.line(say("push.again", cause=cause))
            time.sleep(WAIT_SECONDS * 2**attempt)
    raise AssertionError("unreachable")


def _is_broken(error: BaseException | None) -> bool:
    """Whether a connection broke, which another attempt may mend; a refusal stays one."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return int(status) >= 500 or int(status) in (408, 429)
        name = type(error).__name__
        if isinstance(error, ConnectionError | TimeoutError) or re.search(
            "Connect|Timeout|Protocol|ReadError|WriteError|SSL", name
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def _to_huggingface(package: Package, public: bool, message: str, tell: Tell) -> str:
    """Through `huggingface_hub`: large files one by one, then a commit that names all."""
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import disable_progress_bars

    if not get_token():
        raise UsageError.of("E-PUSH-07", "huggingface")
    disable_progress_bars()
    api = HfApi(library_name="tunewright")
    try:
        name = api.create_repo(package.name, private=not public, exist_ok=False).repo_id
    except HfHubHTTPError as error:
        if getattr(error.response, "status_code", None) != 409:
            raise
        owned = "/" in package.name
        there = api.repo_info(package.name if owned else f"{api.whoami()['name']}/{package.name}")
        name = str(there.id)
        if not public and not there.private:
            raise UsageError.of("E-PUSH-08", package.name, name=package.name) from error
    adds = [
        CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
        for path, content in sorted(package.files.items())
    ]
    for one in adds:
        if one.path_in_repo.endswith(WEIGHTS):
            _upload(api, name, one)
            size = readable_size(package.size(one.path_in_repo))
            tell.line(say("push.file", path=one.path_in_repo, size=size))
    return str(api.create_commit(name, operations=adds, commit_message=message).repo_url)


def _upload(api: Any, name: str, one: Any) -> None:
    """Send one large file; by LFS where the hub does not know the newer way (mirrors, own hubs)."""
    from huggingface_hub import constants

    try:
        api.preupload_lfs_files(name, additions=[one])
    except Exception as error:
        if constants.HF_HUB_DISABLE_XET or "xet-write-token" not in str(error):
            raise
        constants.HF_HUB_DISABLE_XET = True
        api.preupload_lfs_files(name, additions=[one])


def _to_modelscope(package: Package, public: bool, message: str, tell: Tell) -> str:
    """Through `modelscope`, from a folder that holds exactly what is sent."""
    import importlib.util
    import os
    import shutil
    import tempfile

    if importlib.util.find_spec("modelscope") is None:
        raise UsageError.of("E-PUSH-09", "modelscope")
    from modelscope.hub.api import HubApi

    token = os.environ.get("MODELSCOPE_API_TOKEN")
    api = HubApi(token=token) if token else HubApi()
    if not api.repo_exists(package.name, repo_type="model"):
        visibility = "public" if public else "private"
        api.create_repo(package.name, repo_type="model", visibility=visibility)
    elif not public and _is_public(api, package.name):
        raise UsageError.of("E-PUSH-08", package.name, name=package.name)
    with tempfile.TemporaryDirectory(prefix="tunewright-push-") as place:
        for path, content in package.files.items():
            if isinstance(content, bytes):
                (Path(place) / path).write_bytes(content)
            else:
                _link(content, Path(place) / path, shutil.copyfile)
        api.upload_folder(
            repo_id=package.name, folder_path=place, commit_message=message, repo_type="model"
        )
    return f"{api.endpoint}/models/{package.name}"


def _is_public(api: Any, name: str) -> bool:
    """Whether everybody can read a repository of ModelScope, as far as its client can tell."""
    there = api.get_repo(name, "model") if hasattr(api, "get_repo") else None
    shown = str(getattr(there, "visibility", ""))
    return getattr(there, "private", None) is False or shown.lower().endswith(("5", "public"))


def _link(source: Path, target: Path, copy: Callable[[Path, Path], Any]) -> None:
    import os

    try:
        os.link(source.resolve(), target)
    except OSError:
        copy(source, target)


def lines(found: dict[str, Any]) -> list[str]:
    """What a dry run shows, or what was sent."""
    shown = [f"{readable_size(one['bytes']):>12}  {one['path']}" for one in found["files"]]
    return [*shown, "", found["card"]] if not found["sent"] else [found["address"]]
