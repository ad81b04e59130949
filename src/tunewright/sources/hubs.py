"""A model of a hub, Hugging Face or ModelScope: configuration and tokenizer first, and weights
only of a model that will not be refused."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from tunewright.core.errors import ModelError, Problem, first_line, problem, raise_all
from tunewright.core.words import say
from tunewright.sources import headers, vet
from tunewright.sources.headers import command_for
from tunewright.sources.source import CONFIG_PATTERNS, Report, Source, identity_of

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


def from_hub(spec: str, report: Report, weights: bool) -> Source:
    """The model of `OWNER/NAME` or `OWNER/NAME@REVISION`. Raises ModelError."""
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
    except Exception:  # the list is only for a better message; what is missing is said without it
        return []
    pickled = [n for n in names if n.endswith(headers.PICKLE_SUFFIXES)]
    place = f"./{name.rpartition('/')[2]}"
    command = f"hf download {name} --local-dir {place} && {command_for(place)}"
    return (
        [problem("E-MODEL-10", name, names=", ".join(pickled[:3]), command=command)]
        if pickled
        else []
    )


def from_modelscope(spec: str, report: Report, weights: bool) -> Source:
    """The model of `modelscope:OWNER/NAME`. Raises ModelError."""
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
