"""A folder as a data set: which of its files are trained on, which are measured with, which are
left alone.

The name of a file or subfolder says its part (`part_of`): what is named as a part to measure with
or to test with is never trained on. Texts beside data files (README, LICENSE, notes) are about the
set; what libraries write beside data is none. A folder that `save_to_disk` of the datasets library
wrote holds the files that its state lists, and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from tunewright.core.errors import DataError
from tunewright.core.words import say
from tunewright.data.files.source import READERS, ending_of, endings

PART_NAMES = {
    word: part
    for part, words in {
        "train": "train training 训练",
        "valid": "valid validation val dev development eval evaluation 验证 校验 开发 评估",
        "test": "test testing heldout holdout 测试",
    }.items()
    for word in words.split()
}
"""Words in the names of files and folders, and the part they mean."""
DATA_FOLDER = "data"
"""The subfolder in which sets of the hubs keep their files."""
OF_LIBRARIES = frozenset(
    """
    dataset_info.json dataset_infos.json dataset_dict.json state.json config.json
    generation_config.json tokenizer.json tokenizer_config.json special_tokens_map.json
    added_tokens.json vocab.json vocab.txt merges.txt adapter_config.json
    preprocessor_config.json trainer_state.json model.safetensors.index.json
    """.split()
)
"""Files that libraries write beside data and models; in a folder they are not data."""
ABOUT = tuple("readme license licence copying notice changelog citation contributing".split())
SHOWN_NAMES = 6
_cache = re.compile(
    r"(?:cache|indices)-.*\.arrow$"
)  # what the datasets library's map and filter leave behind
_held_out = re.compile(r"(?:held|hold)[-_ .]?out")
_between_words = re.compile(r"[\W\d_]+")
_after_part = re.compile(r"(?:sets?|data|split|集|数据集?)$")


@dataclass(frozen=True)
class Parts:
    """The files that a place names, by what they are for. A file and a hub set are all `train`."""

    train: list[Path]
    valid: list[Path] = field(default_factory=list)
    test: list[Path] = field(default_factory=list)
    beside: dict[str, list[Path]] = field(default_factory=dict)
    """What lies in a folder and is not read, by reason: keys of `data.parts.beside.*`."""
    folder: Path | None = None

    @property
    def measured(self) -> list[Path]:
        """What a place stands for where rows are only measured: its validation part, else its test
        part, else all that it has."""
        return self.valid or self.test or self.train

    def require_train(self) -> None:
        """Raise DataError for a folder whose files are all named as something to measure or to test
        with."""
        if not self.train:
            named = [*self.valid, *self.test]
            told = {"files": self._names(named), "first": str(named[0])}
            raise DataError.of("E-DATA-95", str(self.folder), folder=str(self.folder), **told)

    def said(self, measured: Sequence[Path], trains: bool = True) -> str:
        """What becomes of a folder whose files are not all trained on; empty where there is nothing
        to say. `measured` are the files held out.

        Without `trains` the folder was named to measure with, and a `train` part beside another is
        left alone.
        """
        held = {path.resolve() for path in measured}
        done = []
        for part, files in (("train", self.train), ("valid", self.valid), ("test", self.test)):
            fate = "beside.train" if part == "train" and not trains else part
            if {path.resolve() for path in files} <= held:
                fate = "measured"
            done.append((fate, files))
        done += [(f"beside.{why}", files) for why, files in self.beside.items()]
        said = [
            say(f"data.parts.{fate}", files=self._names(files)) for fate, files in done if files
        ]
        if len(said) < 2:
            return ""
        return say("data.parts.say", folder=self.folder, parts=" · ".join(said))

    def _names(self, files: Sequence[Path]) -> str:
        names = []
        for path in files:
            is_inside = self.folder is not None and path.is_relative_to(self.folder)
            names.append(str(path.relative_to(str(self.folder))) if is_inside else path.name)
        more = len(names) - SHOWN_NAMES
        rest = [say("data.parts.more", count=more)] if more > 0 else []
        return ", ".join([*names[:SHOWN_NAMES], *rest])


def part_of(name: str) -> str | None:
    """`train`, `valid` or `test` where the first or the last word of a name says so; None
    elsewhere. The last word goes first.

    Endings, numbers and single letters are no words: `train-00000-of-00003.parquet`,
    `alpaca_train.json`, `test_sft-1.jsonl`, `valid`.
    """
    path = Path(name)
    bare = name
    if ending_of(path)[0] in READERS:
        bare = path.with_suffix("").stem if ending_of(path)[1] else path.stem
    joined = _held_out.sub("heldout", bare.lower())
    every = _between_words.split(joined)
    words = [word for word in every if (len(word) > 1 and word != "of") or word in PART_NAMES]
    for word in words[-1:] + words[:1]:
        if (found := PART_NAMES.get(_after_part.sub("", word), PART_NAMES.get(word))) is not None:
            return found
    return None


def parts_of_folder(folder: Path) -> Parts:
    """The files of a folder and of its subfolders that are parts. Raises DataError where there is
    nothing to read."""
    if (saved := _saved(folder)) is not None:
        return Parts(saved, folder=folder)
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    folders = [path for path in inside if path.is_dir()]
    files = [path for path in inside if _is_data(path)]
    rows = [path for path in files if not _is_text(path)]
    parts: dict[str | None, list[Path]] = {"train": [], "valid": [], "test": [], None: []}
    named = [path for path in folders if part_of(path.name) is not None]
    for path in named:
        parts[part_of(path.name)] += _below(path)
    whole = folder / DATA_FOLDER
    if whole in folders and not rows and not any(parts.values()) and _is_kept_in(whole, files):
        found = parts_of_folder(whole)
        beside = {**found.beside, "text": [*files, *found.beside.get("text", [])]}
        return Parts(found.train, found.valid, found.test, beside, folder)
    others = [path for path in folders if path not in named and _below(path)]
    texts = [path for path in files if _is_text(path)] if rows or any(parts.values()) else []
    for path in files:
        if path not in texts:
            parts[part_of(path.name)].append(path)
    if not any(parts.values()) or (others and all(map(_is_about, files)) and not named):
        _refuse_folder(folder, others)
    # As the datasets library does: where one file is named as a part to train on, files without
    # such a name are something else.
    train, unnamed = (parts["train"], parts[None]) if parts["train"] else (parts[None], [])
    beside = {"text": texts, "folder": others, "unnamed": unnamed}
    return Parts(train, parts["valid"], parts["test"], beside, folder)


def _is_kept_in(whole: Path, texts: Sequence[Path]) -> bool:
    """Whether the subfolder is the set, and the texts beside it are about it."""
    inside = _below(whole)
    return bool(inside) and (all(map(_is_about, texts)) or not all(map(_is_text, inside)))


def _refuse_folder(folder: Path, others: Sequence[Path]) -> NoReturn:
    """Raise DataError for a folder without data, naming the subfolders that have some."""
    if others:
        told = {"folders": ", ".join(p.name for p in others[:10]), "first": str(others[0])}
        raise DataError.of("E-DATA-96", str(folder), folder=str(folder), **told)
    raise DataError.of("E-DATA-07", str(folder), folder=str(folder), endings=endings())


def _below(folder: Path) -> list[Path]:
    """The data files of a part's folder at any depth; texts only where there is nothing else."""
    if (saved := _saved(folder)) is not None:
        return saved
    inside = sorted(
        p
        for p in folder.rglob("*")
        if _is_data(p) and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )
    return [path for path in inside if not _is_text(path)] or inside


def _saved(folder: Path) -> list[Path] | None:
    """The files of a set that `save_to_disk` of the datasets library wrote, as its state lists
    them; None for any other folder."""
    try:
        listed = json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]
        names = [str(entry["filename"]) for entry in listed]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # A name never leads out of the folder.
    return [folder / Path(name).name for name in names] or None


def _is_text(path: Path) -> bool:
    return READERS[ending_of(path)[0]].name == "text"


def _is_about(path: Path) -> bool:
    """Whether a text is about a set and not of it: a README, a LICENSE."""
    return _is_text(path) and path.stem.lower() in ABOUT


def _is_data(path: Path) -> bool:
    known = path.name in OF_LIBRARIES or _cache.match(path.name)
    return (
        ending_of(path)[0] in READERS
        and not path.name.startswith(".")
        and not known
        and not path.is_dir()
    )
