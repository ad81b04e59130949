"""Everything about the data before anything is trained: what was read, kept, dropped and why, and
which tokens will be learnt.

`inspect` is the only door of this room for a run. It refuses data from which nothing would be
learnt: no usable row, no learnt token, or no answer whose stop token is learnt (a model trained so
never stops). What is merely odd becomes a warning in the report.

The rows go through `store/gathering` into a store of columns, kept between runs where the set is
large (`store/cache`); `reporting` makes the report of it.
"""

from __future__ import annotations

import functools
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tunewright.core.config import DataConfig
from tunewright.core.errors import DataError, problem, raise_all
from tunewright.core.registry import formats
from tunewright.core.types import Row, Sample
from tunewright.core.version import __version__
from tunewright.data import reporting
from tunewright.data.catalogue import names as catalogue
from tunewright.data.checks import Finding, stops
from tunewright.data.files.source import RawRow, RawStream
from tunewright.data.formats.ledger import Ledger
from tunewright.data.formats.naming import columns_of, require_columns, require_read
from tunewright.data.formats.shaping import LOOKED_AT, Shaper
from tunewright.data.store import cache, mixing
from tunewright.data.store.columns import Rows, Samples, Store, Writer
from tunewright.data.store.documents import Packed
from tunewright.data.store.gathering import Features, Gathered, Source, gather
from tunewright.data.store.preparing import Recipe
from tunewright.data.store.splitting import joined, split_groups, wanted_rows
from tunewright.data.store.workers import Workers, worker_count
from tunewright.text.proof import prove
from tunewright.text.renderer import Renderer
from tunewright.text.tokenizer import Light

COUNTED = {"nothing_learnt", "no_stop", "empty", "too_long", "dropped"}
"""Findings that are counts of what happened. A stop among them ends a run; one that is a guess from
the wording of rows (exchanged roles) is a warning there, because nobody could overrule it."""
ENTRY_KEYS = {"file", "format", "columns", "weight", *mixing.KEYS}


@dataclass
class DataSet:
    """What a run trains on and measures with. `train[i]` was made from `train_rows[i]`; without
    tokens the sample lists are empty. Documents that are put together (`inspect(..., pack=...)`)
    are fewer samples than rows.

    The sequences are read from a store whenever they are asked: `len`, an index, a slice and a loop
    cost what they touch.
    """

    train: Sequence[Sample]
    held_out: Sequence[Sample]
    train_rows: Sequence[Row]
    held_out_rows: Sequence[Row]
    report: dict[str, Any]


@dataclass
class _Entry:
    """An entry of `data.train`, or the held-out file, with its files found."""

    found: list[catalogue.ResolvedEntry]
    given: dict[str, Any]
    number: int
    held: bool


def inspect(
    config: DataConfig,
    renderer: Renderer | None,
    context_length: int | None = None,
    seed: int = 0,
    needs_tokens: bool = True,
    *,
    to_train: bool = True,
    workers: int | str | None = None,
    refuse: bool = True,
    check: bool = True,
    pack: int | None = None,
    wants: Sequence[str] = (),
    questions_only: bool = False,
) -> DataSet:
    """Read, shape, encode, check and split the data of a run, and report on it (keys in
    `docs/data.md`).

    `context_length` is the model's, in tokens; `config.max_tokens` may only lower it. Without
    tokens (`needs_tokens` False, or no renderer) nothing is encoded and the token counts of the
    report are None. `workers` is `engine.threads`: how many processes a large set may use. Raises
    DataError for everything that would make the run worthless; with `refuse` False only for files
    that cannot be read. `check` False leaves out the checks of the rows; `to_train` False reads
    what folders have for measuring. `pack` says that rows of running text are documents
    (`data.documents`), and how many tokens of short ones make a sample. `wants` are the kinds of
    rows that the objective learns from, the best first: they decide where columns could be read as
    two formats. `questions_only`: the model writes the answers itself, so that of every row
    only the question becomes tokens.
    """
    started = time.perf_counter()
    if renderer is not None:
        renderer.thinking = replace(renderer.thinking, mode=config.thinking)
    shown = renderer if needs_tokens else None
    entries = _entries(config, to_train)
    light = Light.of(shown.tokenizer) if shown is not None else None
    limits = [n for n in (config.max_tokens, context_length) if n is not None]
    most = min(limits, default=None)
    recipe = _recipe(config, shown, light, most, check, pack is not None, questions_only)
    run = _Run(config, shown, recipe, entries, seed, wants)
    # Whether the tokenizer can be told to workers and named in a key.
    can_share = light is not None or shown is None
    run.workers = worker_count(run.size, workers) if can_share else 0
    if run.size >= cache.SMALLEST_BYTES and can_share and _is_ours():
        key = cache.key_of(_key_facts(run, light), [*run.files, *_registries(config, entries)])
        store, was_kept = cache.kept(key, run.build)
    else:
        store, was_kept = run.build(None), False
    report, findings = reporting.report_of(store, shown)
    report["parts"] = [*_parts_said(entries, to_train), *report["parts"]]
    report["rendering"] = prove(shown).as_dict() if shown is not None else None
    report["preparation"] = {
        "seconds": round(time.perf_counter() - started, 3),
        "from_cache": was_kept,
        "workers": 0 if was_kept else run.workers,
    }
    if refuse:
        _refuse_worthless(report, findings, config.accept, questions_only)
    return _data_set(store, report, shown is not None, pack)


def _data_set(store: Store, report: dict[str, Any], has_tokens: bool, pack: int | None) -> DataSet:
    """The rows of a store and their samples; short documents together up to `pack` tokens."""
    train, held = store.columns["train"], store.columns["held_out"]
    learnt, measured = (
        Samples(store, which if has_tokens else which[:0]) for which in (train, held)
    )
    lists: tuple[Sequence[Sample], Sequence[Sample]] = (learnt, measured)
    if pack is not None and has_tokens:
        lists = (Packed(learnt, pack), Packed(measured, pack))
        report["packed"] = {"train": len(lists[0]), "held_out": len(lists[1]), "tokens": pack}
    return DataSet(*lists, Rows(store, train), Rows(store, held), report)


# ---- what is to be read


def _entries(config: DataConfig, to_train: bool) -> list[_Entry]:
    """The entries of `config.train` and what is held out beside them, resolved."""
    listed = config.train if isinstance(config.train, list) else [config.train]
    if not listed:
        raise DataError.of("E-DATA-01", "data.train", file="data.train", here=str(Path.cwd()))
    found = []
    for number, entry in enumerate(listed):
        known = {"file": entry} if isinstance(entry, str) else entry
        _require_sensible(known, f"data.train[{number}]")
        found.append(_resolved(known, config, number, held=False, to_train=to_train))
    place = config.held_out
    if isinstance(place, str) and _number(place) is None:
        return [*found, _resolved({"file": place}, config, len(listed), held=True, to_train=False)]
    if place is not None:
        return found
    read = [one for entry in found for one in entry.found]
    parts = [part for one in read if (part := catalogue.held_part(one)) is not None]
    return [*found, *([_Entry(parts, {}, len(listed), held=True)] if parts else [])]


def _require_sensible(known: dict[str, Any], where: str) -> None:
    """Raise DataError for an entry with a key that is not known, or a number that is none."""
    if not isinstance(known.get("file"), str) or set(known) - ENTRY_KEYS:
        keys, every = ", ".join(map(str, known)), ", ".join(sorted(ENTRY_KEYS))
        raise DataError.of("E-DATA-19", where, keys=keys, known=every)
    weight = known.get("weight", 1.0)
    is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not is_number or not math.isfinite(weight) or weight < 0:
        raise DataError.of("E-DATA-20", str(known["file"]), weight=weight)
    mixing.require_sensible(known, where)


def _resolved(
    known: dict[str, Any], config: DataConfig, number: int, held: bool, to_train: bool
) -> _Entry:
    asked = {
        "file": known["file"],
        "weight": known.get("weight", 1.0),
        "format": known.get("format", config.format),
        "columns": known.get("columns", config.columns),
    }
    return _Entry(catalogue.resolve(asked, config.dir, to_train=to_train), known, number, held)


def _parts_said(entries: list[_Entry], to_train: bool) -> list[str]:
    """What becomes of the parts of folders, in sentences."""
    measured: list[Path] = []
    for entry in entries:
        if entry.held or not to_train:
            measured += (path for one in entry.found for path in one.files)
    # Entries without `given` are parts of entries that are trained on.
    said = [
        one.parts.said(measured, trains=to_train and not entry.held)
        for entry in entries
        if entry.given
        for one in entry.found
    ]
    return list(dict.fromkeys(filter(None, said)))


def _number(value: float | str | None) -> float | None:
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return None


def _recipe(
    config: DataConfig,
    renderer: Renderer | None,
    light: Light | None,
    max_tokens: int | None,
    check: bool,
    documents: bool,
    questions_only: bool,
) -> Recipe:
    recipe = Recipe(
        tokenizer=light.state() if light is not None else None,
        max_tokens=max_tokens,
        oversize=config.oversize,
        system=config.system,
        wording=config.wording,
        labels=config.labels,
        check=check,
        documents=documents,
        questions_only=questions_only,
        good_only=config.good_only,
        turns=config.turns,
    )
    if renderer is None:
        return recipe
    added = {str(one.content) for one in renderer.tokenizer.added_tokens_decoder.values()}
    return replace(
        recipe,
        stop_ids=renderer.extra_stop_ids,
        control=sorted(renderer.control),
        words=sorted(added.difference(renderer.control)),
        thinking=asdict(renderer.thinking),
    )


def _is_ours() -> bool:
    """Whether every format is a module of this package: of others' functions nobody knows when they
    change."""
    formats.load()
    return all(entry.function.__module__.startswith("tunewright.") for entry in formats)


def _registries(config: DataConfig, entries: list[_Entry]) -> list[Path]:
    """The dataset_info.json files that names were looked up in."""
    if not any(one.name for entry in entries for one in entry.found):
        return []
    return [path for path in catalogue.registries(config.dir) if path.is_file()]


def _key_facts(run: _Run, light: Light | None) -> dict[str, Any]:
    """Everything besides the files that decides what is in the store."""
    config, recipe, renderer = run.config, run.recipe, run.renderer
    told = {
        **asdict(recipe),
        "tokenizer": light.fingerprint(recipe.tokenizer) if light else None,
        "stop_ids": sorted(renderer.stop_ids) if renderer else [],
    }
    dated = light is not None and "strftime_now" in str(light.chat_template)
    return {
        "config": config.model_dump(mode="json", exclude={"accept"}),
        "recipe": told,
        "seed": run.seed,
        "template": renderer.template_name if renderer else None,
        "version": __version__,
        "today": time.strftime("%Y-%m-%d") if dated else "",
        "folder": str(Path.cwd()),
        "wants": [*run.wants],
    }


# ---- the work


class _Run:
    """One set being built."""

    def __init__(
        self,
        config: DataConfig,
        renderer: Renderer | None,
        recipe: Recipe,
        entries: list[_Entry],
        seed: int,
        wants: Sequence[str],
    ):
        self.config, self.renderer, self.recipe = config, renderer, recipe
        self.entries, self.seed, self.wants = entries, seed, wants
        read = [one for entry in entries for one in entry.found]
        self.files = list(dict.fromkeys(path for one in read for path in one.files))
        self.size = sum(path.stat().st_size for path in self.files if path.is_file())
        """Bytes of all files."""
        self.workers = 0
        self.formats: list[str] = []
        self.encodings: list[str] = []
        self.left = config.limit
        self._opened: list[tuple[RawStream, bool]] = []

    def build(self, folder: Path | None) -> Store:
        """Read everything, split it and describe it, into a folder or in memory."""
        files: list[str] = []
        with Writer(folder) as writer:
            with Features() as features:
                # The workers are gone before the checks gather what they keep of every row:
                # together they took more than a gigabyte at two million rows.
                with Workers(self.recipe, self.renderer, self.workers) as workers:
                    gathered = gather(self._sources(), workers, writer, features, files)
                warned = self._split(gathered, writer)
                found = reporting.checked(features, writer, workers.here.checks, files)
            for opened, is_held in self._opened:
                gathered.train.notes.update({} if is_held else opened.notes)
            for entry in self.entries:
                tally = gathered.held if entry.held else gathered.train
                for one in entry.found:
                    gathered.train.notes.update({} if entry.held else one.notes.notes)
                    tally.ledger.merge(one.notes.ledger.plain())
            facts = reporting.facts_of(
                gathered, writer, self.renderer, files, self.formats, self.encodings
            )
            facts |= {"checked": found, **warned}
            facts["under"] = [one for opened, _ in self._opened for one in opened.under]
            return writer.finish({"files": files, "facts": facts})

    def _sources(self) -> Iterator[Source]:
        for entry in self.entries:
            for one in entry.found:
                yield from self._files_of(entry, one)

    def _files_of(self, entry: _Entry, one: catalogue.ResolvedEntry) -> Iterator[Source]:
        drawn = Counter(self._drawn(one)) if one.limit is not None else None
        offset = [0]
        seen: set[str] = set()
        for place, path in enumerate(one.files):
            if self.left == 0 and not entry.held:
                return
            opened = one.stream(path)
            self._opened.append((opened, entry.held))
            rows = iter(opened.rows) if drawn is None else _picked(iter(opened.rows), drawn, offset)
            name, there = None, list[str]()
            if one.convert is None:
                name, rows, there = self._format_of(one, rows)
            if not entry.held:
                self.formats.append(name or one.format)
                self.encodings.append(opened.encoding)
                rows = self._limited(rows)
            is_last = place == len(one.files) - 1
            yield Source(
                str(path),
                rows,
                name,
                dict(one.columns),
                one.weight,
                entry.number,
                entry.held,
                one.convert,
                functools.partial(_after, one, name, there, seen, is_last),
            )

    def _limited(self, rows: Iterator[RawRow]) -> Iterator[RawRow]:
        for row in rows:
            if self.left == 0:
                return
            if self.left is not None:
                self.left -= 1
            yield row

    def _format_of(
        self, one: catalogue.ResolvedEntry, rows: Iterator[RawRow]
    ) -> tuple[str, Iterator[RawRow], list[str]]:
        """The format's name, all rows again and the first rows' columns. It is told from the file's
        first rows, not from the few that a limit leaves."""
        first = list(islice(rows, LOOKED_AT))
        there = columns_of(first)
        config = self.config
        try:
            shaper = Shaper(
                first,
                one.format,
                one.columns,
                wording=config.wording,
                labels=config.labels,
                wants=self.wants,
            )
            if one.columns:
                for row in first:
                    shaper.row(row)
                require_read(shaper.format, one.columns, shaper.ledger)
        except DataError:
            # A column that was named and does not exist is the cause, not the format.
            require_columns(one.columns, set(columns_of(chain(first, rows))), there)
            raise
        return shaper.format, chain(first, rows), there

    def _drawn(self, one: catalogue.ResolvedEntry) -> list[int]:
        """Which of an entry's rows its `num_samples` takes."""
        total = sum(1 for path in one.files for _ in one.stream(path).rows)
        return catalogue.chosen_rows(total, one.limit, one.name)

    def _split(self, gathered: Gathered, writer: Writer) -> dict[str, Any]:
        """Write which rows are trained on and which held out. Returns what was asked for and cannot
        be had."""
        import numpy as np

        number, count = _number(self.config.held_out), gathered.num_train
        rows = np.arange(len(gathered.keys), dtype="<i8")
        short: dict[str, Any] = {}
        held = rows[count:]
        if not any(entry.held for entry in self.entries) and count:
            groups = joined(gathered.keys[:, 1], gathered.keys[:, 3])
            held = split_groups(groups, number, self.seed)
            wanted = wanted_rows(number, count)
            short = {"held_out_short": [wanted, len(held)]} if len(held) < wanted else {}
        is_held = np.zeros(len(rows), bool)
        is_held[held] = True
        train = rows[:count][~is_held[:count]]
        given = [e.given for e in self.entries if not e.held]
        mixed, said = mixing.mixed(train, writer.column("source"), given, self.config, self.seed)
        writer.put("train", mixed.astype("<i8").tobytes())
        writer.put("held_out", held.astype("<i8").tobytes())
        return short | ({"mixing": said} if said else {})


def _picked(rows: Iterator[RawRow], wanted: Counter[int], offset: list[int]) -> Iterator[RawRow]:
    """Row i as often as `wanted` says. `offset[0]` counts rows over the files of an entry."""
    for row in rows:
        yield from [row] * wanted[offset[0]]
        offset[0] += 1


def _after(
    one: catalogue.ResolvedEntry,
    name: str | None,
    there: list[str],
    seen: set[str],
    last: bool,
    found: set[str],
    ledger: Ledger,
) -> None:
    """After a file: every column that was named has been seen, and read."""
    seen |= found
    if one.convert is None:
        require_columns(one.columns, found, there)
        require_read(name or "", one.columns, ledger)
    elif last:
        one.check_columns(seen)


def _refuse_worthless(
    report: dict[str, Any],
    findings: Sequence[Finding],
    accepted: Sequence[str],
    questions_only: bool,
) -> None:
    """Raise DataError for data from which a run could not learn. Rows that only ask, or are only
    asked (`questions_only`), have nothing to learn from by themselves: the model will answer."""
    place = report["files"][0] if report["files"] else "data.train"
    if not report["rows_kept"]:
        reasons = ", ".join(
            f"{entry['count']} {entry['what']} ({reporting.places(entry)[0]})"
            for entry in report["reasons"].values()
        )
        raise DataError.of("E-DATA-12", place, rows=report["rows_read"], reasons=reasons or "-")
    learns = (
        not questions_only
        and report["tokens_total"] is not None
        and [*report["kinds"]] != ["prompt"]
    )
    if learns and not report["stop_learnt_share"]:
        raise DataError.of("E-DATA-14", place, answers=report["answers"])
    stopping = [f for f in stops(findings) if f.key in COUNTED and f.key not in accepted]
    raise_all(
        (problem("E-DATA-61", place, what=f.what(), do=f.remedy(), name=f.key) for f in stopping),
        DataError,
    )
