"""Names of a dataset_info.json: how data that was registered for LLaMA-Factory is found and read
here.

`resolve` turns one entry of `data.train` (a path, a name, several with commas between them, or a
mapping with `file`) into the files to read, each with the function that converts its rows; a plain
path comes back without one and is read by our own formats. The registry is
`data.dir`/dataset_info.json; without `data.dir` it is looked for in ./data and then here. A name in
a given `data.dir` goes before a path, a path goes before a name in a registry that was only found.

Every key of an entry is honoured or refused with the reason. One rule surprises people and is kept:
a `columns` (or `tags`) block replaces all its defaults, so `{"columns": {"prompt": "text"}}` names
no answer column, and the rows are running text. Source: LLaMA-Factory 0.9.5, data/parser.py.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunewright.core.errors import DataError, problem, raise_all
from tunewright.core.registry import formats
from tunewright.core.seeds import stream_seed
from tunewright.core.types import Origin, Row
from tunewright.core.words import say
from tunewright.data.catalogue.rows import COLUMNS, FORMS, TAGS, Attributes, converter
from tunewright.data.files import hub, remote
from tunewright.data.files.encodings import find_encoding
from tunewright.data.files.folders import Parts
from tunewright.data.files.reading import HELD, MEASURED, TRAINED, find_parts, parts_inside, stream
from tunewright.data.files.source import RawRow, RawStream, find
from tunewright.data.formats.common import Columns, Unusable

REGISTRY = "dataset_info.json"
DEFAULT_PLACES = ("data", ".")
HUBS = {"hf_hub_url": "hf:", "ms_hub_url": "modelscope:"}
"""Key of an entry -> how `data.train` names a set of that hub."""
REFUSED = {"om_hub_url": "openmind", "script_url": "script", "cloud_file_name": "cloud"}
OF_A_HUB = ("subset", "folder")
"""Keys that choose a part of a hub set; LLaMA-Factory passes over them for files."""
KNOWN = {
    *HUBS,
    *REFUSED,
    *OF_A_HUB,
    "file_name",
    "file_sha1",
    "formatting",
    "ranking",
    "split",
    "num_samples",
    "columns",
    "tags",
}
MEDIA = ("images", "videos", "audios")
KINDS = {"auto": "auto", "text": "text", "prompt": "prompt", "prompts": "prompt"}
"""What `format` may say beside a name: LLaMA-Factory tells the same rows apart by its stage (pt,
ppo)."""


@dataclass
class ResolvedEntry:
    """Files to read alike, and how. Without `convert` the rows are read by our own formats, with
    `format` and `columns`."""

    files: list[Path]
    format: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    """Our column names to the file's; for a catalogue entry the roles that its `columns` block
    names."""
    convert: Callable[[Any, Origin], Row | Unusable] | None = None
    limit: int | None = None
    """`num_samples`: take this many rows, drawn at random, some twice where the files have fewer
    (`chosen_rows`)."""
    weight: float = 1.0
    name: str = ""
    """The name in the registry; empty for a path."""
    notes: Columns = field(default_factory=Columns)
    """`notes.notes` counts what the converter did on the way; keys of `data.note.*`."""
    parts: Parts = field(default_factory=lambda: Parts([]))
    """All files that the place names; `files` are those of them that are read."""
    read_parts: tuple[str, ...] = TRAINED
    """Which part is read of a file that has several."""

    def stream(self, path: Path) -> RawStream:
        """The rows of one of the files, while it is read. Text files hold one row each where the
        format says so; those of the catalogue a row a line, empty ones too, as LLaMA-Factory reads
        them."""
        entry = formats.get(self.format) if self.convert is None else None
        whole = entry is not None and entry.facts.get("whole_file", False)
        opened = stream(path, whole=whole, parts=self.read_parts)
        if self.convert is not None and path.suffix.lower() == ".txt":
            opened.rows = _lines(path)
        return opened

    def check_columns(self, found: set[str]) -> None:
        """Raise DataError for a column that the entry names and no row has. `found` are the names
        of all columns of all rows."""
        named = self.columns.items() if self.convert is not None else ()
        told = {"found": ", ".join(sorted(found)[:20]) or "-"}
        problems = [
            problem("E-DATA-46", f"{self.name}: columns.{role}", column=column, **told)
            for role, column in named
            if column not in found
        ]
        raise_all(problems, DataError)


def resolve(
    entry: str | dict[str, Any], data_dir: str | None = None, *, to_train: bool = True
) -> list[ResolvedEntry]:
    """What an entry of `data.train` stands for, in its order; without `to_train` what is measured
    of it.

    Raises DataError for what is not there or cannot be used, with what was looked up.
    """
    known = {"file": entry} if isinstance(entry, str) else entry
    place, weight = str(known["file"]), float(known.get("weight", 1.0))
    kind = str(known.get("format", "auto"))
    columns: Any = known.get("columns") or {}
    parts = (
        [part.strip() for part in place.split(",")]
        if "," in place and not _is_path(place, data_dir)
        else [place]
    )
    found = []
    for part in parts:
        registry = _registry_with(part, data_dir)
        if registry is not None and (data_dir is not None or not _is_path(part, data_dir)):
            one = _catalogued(part, *registry, kind, dict(columns), weight, to_train)
        else:
            if not _is_path(part, data_dir):
                _refuse_unknown(part, data_dir)
            one = ResolvedEntry(
                [],
                kind,
                dict(columns),
                weight=weight,
                parts=find_parts(part, data_dir, to_train=to_train),
            )
        one.files, one.read_parts = (
            (one.parts.train, TRAINED) if to_train else (one.parts.measured, MEASURED)
        )
        found.append(one)
    return found


def held_part(one: ResolvedEntry) -> ResolvedEntry | None:
    """What is measured beside an entry that is trained on: the files, or the part of its one file,
    that are named for it. None where there is nothing."""
    if one.parts.valid:
        return replace(one, files=one.parts.valid, limit=None)
    inside = [path for path in one.files if path.is_file() and "valid" in parts_inside(path)]
    return replace(one, files=inside, limit=None, read_parts=HELD) if inside else None


def chosen_rows(total: int, wanted: int | None, name: str = "") -> list[int]:
    """Indices of the rows that `num_samples` takes, in file order: all of them, a random part, or
    all and some again.

    LLaMA-Factory draws them anew in every run; here the draw depends on the entry's name and the
    numbers alone, so that runs can be repeated.
    """
    if wanted is None or not total:
        return list(range(total))
    draw = random.Random(stream_seed(0, f"num_samples:{name}:{total}:{wanted}"))
    once = draw.sample(range(total), min(wanted, total))
    return sorted(once + [draw.randrange(total) for _ in range(max(0, wanted - total))])


def _lines(path: Path) -> Iterator[RawRow]:
    source = find(path)
    source.encoding = find_encoding(source.bytes, source.name)
    with source.text() as text:
        for number, line in enumerate(text, start=1):
            yield RawRow({"text": line.removesuffix("\n")}, Origin(source.name, number, number))


# ---- finding the registry


def _is_path(place: str, data_dir: str | None) -> bool:
    if hub.is_named(place) or remote.is_named(place):
        return True
    try:
        return Path(place).expanduser().exists() or (
            data_dir is not None and (Path(data_dir).expanduser() / place).exists()
        )
    except (OSError, ValueError, RuntimeError):
        return True  # a name that no system can open: the reader of paths says so


def registries(data_dir: str | None) -> list[Path]:
    """The files in which names are looked up, in order."""
    folders = [data_dir] if data_dir is not None else list(DEFAULT_PLACES)
    return [Path(folder).expanduser() / REGISTRY for folder in folders]


def _registry_with(name: str, data_dir: str | None) -> tuple[Path, dict[str, Any]] | None:
    """The first registry that has the name, and its content."""
    if data_dir is not None and (data_dir == "ONLINE" or data_dir.startswith("REMOTE:")):
        told = {"key": f"dataset_dir: {data_dir}", "reason": say("catalogue.why.online")}
        raise DataError.of("E-DATA-42", "data.dir", name=name, **told)
    for path in registries(data_dir):
        if path.is_file() and name in (content := _content(path)):
            return path, content
    return None


def _content(path: Path) -> dict[str, Any]:
    try:
        # LLaMA-Factory opens it in the machine's own encoding; the file is UTF-8 whoever reads it.
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError.of("E-DATA-41", str(path), file=str(path), cause=error) from error
    values = content.values() if isinstance(content, dict) else [None]
    if not all(isinstance(entry, dict) for entry in values):
        cause = say("catalogue.why.no_object")
        raise DataError.of("E-DATA-41", str(path), file=str(path), cause=cause)
    return content


def _refuse_unknown(name: str, data_dir: str | None) -> None:
    """Raise E-DATA-40 for something that can only be a name; a missing path is for the reader of
    paths."""
    there = [path for path in registries(data_dir) if path.is_file()]
    names = list(dict.fromkeys(known for path in there for known in _content(path)))
    if not there or "/" in name or "\\" in name or Path(name).suffix:
        return
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.5) or names[:10]
    looked = ", ".join(map(str, there))
    raise DataError.of("E-DATA-40", name, name=name, looked=looked, close=", ".join(close) or "-")


# ---- one entry


def _catalogued(
    name: str,
    path: Path,
    content: dict[str, Any],
    kind: str,
    columns: dict[str, str],
    weight: float,
    to_train: bool,
) -> ResolvedEntry:
    """The entry `name` of the registry at `path`. Raises DataError with everything that stands
    against using it."""
    entry = content[name]
    where = f"{path}: {name}"
    problems = [*_unknown_keys(entry, where), *_refused(entry, name, where)]
    if columns or kind not in KINDS:
        key = "columns" if columns else f"format: {kind}"
        told = {"key": key, "reason": say("catalogue.why.entry_decides")}
        problems.append(problem("E-DATA-42", where, name=name, **told))
    if not problems:
        problems += _missing_roles(entry, where)
    raise_all(problems, DataError)
    parts = _files(entry, path.parent, name, where, to_train)
    files = parts.train
    block = {role: str(column) for role, column in (entry.get("columns") or {}).items() if column}
    named = Columns(block)
    if not _hub_of(entry):
        named.notes["entry_key_without_effect"] += sum(
            entry.get(key) is not None for key in OF_A_HUB
        )
        named.notes["file_changed"] += (
            bool(entry.get("file_sha1"))
            and len(files) == 1
            and not _same_file(files[0], str(entry["file_sha1"]))
        )
    made = converter(_attributes(entry), named, KINDS[kind])
    shown, limit = f"{name} ({_attributes(entry).form})", entry.get("num_samples")
    return ResolvedEntry(files, shown, block, made, limit, weight, name, named, parts)


def _attributes(entry: dict[str, Any]) -> Attributes:
    """Column roles and role words, LLaMA-Factory's unless a block replaces them as a whole."""
    columns = {role: entry.get("columns", COLUMNS).get(role) for role in COLUMNS}
    tags = {tag: entry.get("tags", TAGS).get(tag) for tag in TAGS}
    form = entry.get("formatting", FORMS[0])
    return Attributes(form, bool(entry.get("ranking", False)), columns, tags)


def _unknown_keys(entry: dict[str, Any], where: str) -> list[Any]:
    """Keys that LLaMA-Factory would pass over in silence; a misspelt one changes which rows are
    trained on."""
    found = []
    for block, keys, known in (
        ("", entry, KNOWN),
        ("columns.", entry.get("columns"), COLUMNS),
        ("tags.", entry.get("tags"), TAGS),
    ):
        for key in keys if isinstance(keys, dict) else ():
            if key not in known:
                close = difflib.get_close_matches(str(key), sorted(known), n=1, cutoff=0.6) or ["-"]
                told = {"key": f"{block}{key}", "guess": close[0]}
                found.append(problem("E-DATA-44", where, known=", ".join(sorted(known)), **told))
    return found


def _refused(entry: dict[str, Any], name: str, where: str) -> list[Any]:
    """Keys and values that cannot be honoured, each with its reason."""
    reasons: list[tuple[str, str]] = []
    remote = _hub_of(entry)
    for key, why in REFUSED.items():
        # An OpenMind id beside another hub's is never asked for, as there; a script or a bucket
        # gives way to any hub.
        if key in entry and not remote:
            reasons.append((f"{key}: {entry[key]}", say(f"catalogue.why.{why}")))
    if not remote and not reasons and not isinstance(entry.get("file_name"), str):
        reasons.append(("file_name", say("catalogue.why.no_file_name")))
    if remote and entry.get("folder"):
        reasons.append((f"folder: {entry['folder']}", say("catalogue.why.folder")))
    for block in ("columns", "tags"):
        values = entry.get(block, {})
        if not isinstance(values, dict) or not all(
            value is None or isinstance(value, str) for value in values.values()
        ):
            reasons.append((block, say("catalogue.why.block")))
        else:
            media = [role for role in MEDIA if block == "columns" and values.get(role)]
            reasons += [(f"columns.{role}", say("catalogue.why.media")) for role in media]
    samples = entry.get("num_samples", 1)
    is_count = samples is None or (isinstance(samples, int) and not isinstance(samples, bool))
    if not is_count or (samples is not None and samples < 1):
        reasons.append((f"num_samples: {samples!r}", say("catalogue.why.count")))
    if not isinstance(entry.get("ranking", False), bool):
        reasons.append((f"ranking: {entry['ranking']!r}", say("catalogue.why.truth")))
    if (form := entry.get("formatting", FORMS[0])) not in FORMS:
        why = say("catalogue.why.form", known=", ".join(FORMS))
        reasons.append((f"formatting: {form!r}", why))
    split = entry.get("split", "train")
    if split != "train" and not (remote and isinstance(split, str) and split.isidentifier()):
        reasons.append((f"split: {split!r}", say("catalogue.why.split")))
    return [
        problem("E-DATA-42", where, name=name, key=key, reason=reason) for key, reason in reasons
    ]


def _missing_roles(entry: dict[str, Any], where: str) -> list[Any]:
    """Roles without which no row can be read, lost because a block replaces all its defaults."""
    about = _attributes(entry)
    needed: list[tuple[str, str]] = []
    roles = ["chosen", "rejected"] if about.ranking else []
    tags = ("role_tag", "content_tag", "user_tag", "assistant_tag")
    if about.has_turns:
        roles.insert(0, "messages")
        needed += [("tags", tag) for tag in tags if not about.tags[tag]]
    elif not about.columns["query"]:
        roles.insert(0, "prompt")
    needed += [("columns", role) for role in roles if not about.columns[role]]
    defaults = {**COLUMNS, **TAGS}
    return [
        problem("E-DATA-45", where, block=block, role=role, default=defaults[role] or role)
        for block, role in needed
    ]


def _hub_of(entry: dict[str, Any]) -> str | None:
    """The hub key that is followed. Any of them hides the keys of files; ModelScope goes first
    where USE_MODELSCOPE_HUB says so."""
    found = [key for key in HUBS if key in entry]
    if len(found) == 2 and os.environ.get("USE_MODELSCOPE_HUB", "0").lower() in ("true", "y", "1"):
        return "ms_hub_url"
    return found[0] if found else None


def _files(entry: dict[str, Any], folder: Path, name: str, where: str, to_train: bool) -> Parts:
    """The file, or all data files of the folder, that `file_name` names below the registry's
    folder; or those of the hub set, fetched."""
    if remote := _hub_of(entry):
        subset = f"/{entry['subset']}" if entry.get("subset") else ""
        place = f"{HUBS[remote]}{entry[remote]}{subset}"
        return find_parts(f"{place}#{entry.get('split', 'train')}")
    path = folder / str(entry["file_name"])
    if not path.exists():
        raise DataError.of("E-DATA-43", where, name=name, file=str(path))
    return find_parts(str(path), to_train=to_train)


def _same_file(path: Path, sha1: str) -> bool:
    found = hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
    return found == sha1.strip().lower()
