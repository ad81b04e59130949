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

from tunewright.core.errors import DataError
from tunewright.core.words import say
from tunewright.data.files.kinds import READERS, ending_of, endings

PART_NAMES = {
    **dict.fromkeys(("train", "training", "训练"), "train"),
    **dict.fromkeys(
        (
            "valid",
            "validation",
            "val",
            "dev",
            "development",
            "eval",
            "evaluation",
            "验证",
            "校验",
            "开发",
            "评估",
        ),
        "valid",
    ),
    **dict.fromkeys(("test", "testing", "heldout", "holdout", "测试"), "test"),
}
"""Words in the names of files and folders, and the part they mean."""
DATA_FOLDER = "data"
"""The subfolder in which sets of the hubs keep their files."""
OF_LIBRARIES = frozenset(
    {
        "dataset_info.json",
        "dataset_infos.json",
        "dataset_dict.json",
        "state.json",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "adapter_config.json",
        "preprocessor_config.json",
        "trainer_state.json",
        "model.safetensors.index.json",
    }
)
"""Files that libraries write beside data and models; in a folder they are not data."""
ABOUT = (
    "readme",
    "license",
    "licence",
    "copying",
    "notice",
    "changelog",
    "citation",
    "contributing",
)
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
            raise DataError.of(
                "E-DATA-95",
                str(self.folder),
                folder=str(self.folder),
                files=self._names(named),
                first=str(named[0]),
            )

    def said(self, measured: Sequence[Path], trains: bool = True) -> str:
        """What becomes of a folder whose files are not all trained on; empty where there is nothing
        to say. `measured` are the files held out.

        Without `trains` the folder was named to measure with, and a `train` part beside another is
        left alone.
        """
        held = {path.resolve() for path in measured}
        done = []
        for part, files in (("train", self.train), ("valid", self.valid), ("test", self.test)):
            is_held = {path.resolve() for path in files} <= held
            if files:
                fate = (
                    "measured"
                    if is_held
                    else "beside.train"
                    if part == "train" and not trains
                    else part
                )
                done.append(say(f"data.parts.{fate}", files=self._names(files)))
        done += [
            say(f"data.parts.beside.{why}", files=self._names(files))
            for why, files in self.beside.items()
            if files
        ]
        return (
            say("data.parts.say", folder=self.folder, parts=" · ".join(done))
            if len(done) > 1
            else ""
        )

    def _names(self, files: Sequence[Path]) -> str:
        names = [
            str(path.relative_to(self.folder))
            if self.folder and path.is_relative_to(self.folder)
            else path.name
            for path in files
        ]
        return ", ".join(
            [
                *names[:SHOWN_NAMES],
                *(
                    [say("data.parts.more", count=len(names) - SHOWN_NAMES)]
                    if len(names) > SHOWN_NAMES
                    else []
                ),
            ]
        )


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
    words = [
        word
        for word in _between_words.split(joined)
        if (len(word) > 1 and word != "of") or word in PART_NAMES
    ]
    for word in (words[-1:] + words[:1]) if words else []:
        if (found := PART_NAMES.get(_after_part.sub("", word), PART_NAMES.get(word))) is not None:
            return found
    return None


def parts_of_folder(folder: Path) -> Parts:
    """The files of a folder and of its subfolders that are parts. Raises DataError where there is
    nothing to read."""
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    folders = [path for path in inside if path.is_dir()]
    if (saved := _saved(folder)) is not None:
        return Parts(saved, folder=folder)
    files = [path for path in inside if _is_data(path)]
    rows = [path for path in files if not _is_text(path)]
    parts: dict[str | None, list[Path]] = {"train": [], "valid": [], "test": [], None: []}
    for path in folders:
        if (part := part_of(path.name)) is not None:
            parts[part] += _below(path)
    whole = folder / DATA_FOLDER
    kept_in_it = _below(whole) if whole in folders and not rows and not any(parts.values()) else []
    if kept_in_it and (all(map(_is_about, files)) or not all(map(_is_text, kept_in_it))):
        found = parts_of_folder(whole)
        return Parts(
            found.train, found.valid, found.test, _merged({"text": files}, found.beside), folder
        )
    gone_into = [path for path in folders if part_of(path.name) is not None]
    others = [path for path in folders if path not in gone_into and _below(path)]
    beside = {
        "text": [path for path in files if _is_text(path)] if rows or any(parts.values()) else [],
        "folder": others,
    }
    for path in files:
        if path not in beside["text"]:
            parts[part_of(path.name)].append(path)
    if not any(parts.values()) or (
        others and all(_is_about(path) for path in files) and not gone_into
    ):
        if others:
            raise DataError.of(
                "E-DATA-96",
                str(folder),
                folder=str(folder),
                folders=", ".join(p.name for p in others[:10]),
                first=str(others[0]),
            )
        raise DataError.of("E-DATA-07", str(folder), folder=str(folder), endings=endings())
    # As the datasets library does: where one file is named as a part to train on, files without
    # such a name are something else.
    train = parts["train"] or parts[None]
    beside["unnamed"] = parts[None] if parts["train"] else []
    return Parts(train, parts["valid"], parts["test"], beside, folder)


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


def _merged(first: dict[str, list[Path]], second: dict[str, list[Path]]) -> dict[str, list[Path]]:
    return {
        why: [*first.get(why, []), *second.get(why, [])] for why in dict.fromkeys([*first, *second])
    }


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
