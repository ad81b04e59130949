"""The data report: counts over a store, kept without sentences, and the sentences put to them in
the reader's language."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tunewright.core.compat import kinds_text
from tunewright.core.types import Origin, Sample
from tunewright.core.words import say
from tunewright.data.checks import Check, Finding, conclude, score
from tunewright.data.describing import note
from tunewright.data.formats.ledger import OF_TURNS, Ledger
from tunewright.data.store.columns import KINDS, Store, Writer
from tunewright.data.store.documents import PIECES
from tunewright.data.store.good_answers import LEFT_OUT
from tunewright.data.store.workers import LISTED, Gathered

if TYPE_CHECKING:
    import numpy as np

    from tunewright.text.renderer import Renderer

EXAMPLE_TOKENS = 600
MOST_COLUMNS = 1000
SHOWN_FILES = 5
"""Files that are named for each kind of rows."""
BLOCK = 16
"""Tokens of every sequence that are looked at together when common beginnings are counted."""
BLOCK_TOKENS = 1 << 22
"""Tokens that are looked at together at most."""
TOKEN_KEYS = (
    "tokens_total",
    "learnt_tokens",
    "learnt_share",
    "answers",
    "stop_learnt_share",
    "length_percentiles",
    "shared_prefix",
    "example",
    "template",
)


# ---- counts


def facts_of(
    gathered: Gathered,
    writer: Writer,
    renderer: Renderer | None,
    files: Sequence[str],
    formats: Sequence[str],
    encodings: Sequence[str],
) -> dict[str, Any]:
    """The report without sentences. Everything in it is JSON."""
    import numpy as np

    tally = gathered.train
    train, held = writer.column("train"), writer.column("held_out")
    different = np.unique(train)
    whole, asked = gathered.keys[:, 2], gathered.keys[:, 0]
    both = np.concatenate([whole[different], whole[held]])
    thinking = _thinking_facts(gathered.train.notes, renderer)
    facts: dict[str, Any] = {
        "rows_read": tally.read,
        "rows_kept": gathered.num_train - gathered.train.notes[PIECES],
        "rows_dropped": tally.dropped,
        "reasons": tally.reasons,
        "dropped": [text for _, _, text in sorted(tally.listed, key=lambda one: one[:2])[:LISTED]],
        "format": ", ".join(dict.fromkeys(formats)),
        "files": list(dict.fromkeys(files)),
        "encoding": ", ".join(dict.fromkeys(encodings)),
        "duplicates": len(both) - len(np.unique(both)),
        "held_out_overlap": int(np.isin(asked[held], asked[different]).sum()),
        "train": len(train),
        "held_out": len(held),
        "held_out_dropped": gathered.held.dropped,
        "held_out_reasons": gathered.held.reasons,
        "kinds": _kinds(writer, np.union1d(different, held), files),
        "columns": columns_of(gathered),
        "thinking": thinking,
        "notes": {key: count for key, count in sorted((gathered.train.notes).items()) if count},
    }
    return facts | (
        _token_facts(writer, train, renderer) if renderer is not None else dict.fromkeys(TOKEN_KEYS)
    )


def columns_of(gathered: Gathered) -> dict[str, Any]:
    """The column ledger of everything that was read: how many columns there are, which were used,
    and which were left."""
    whole = Ledger()
    for tally in (gathered.train, gathered.held):
        whole.merge(tally.ledger.plain())
    used, unused = whole.used(), whole.unused()
    found = len({*used, *(one["name"] for one in unused if not one["name"].startswith(OF_TURNS))})
    return {"found": found, "used": used[:MOST_COLUMNS], "unused": unused[:MOST_COLUMNS]}


def _thinking_facts(notes: Counter[str], renderer: Renderer | None) -> dict[str, Any] | None:
    """What was done with thoughts, taken out of the notes; None without tokens."""
    names = {
        "rows_thinking": "rows_with_thoughts",
        "rows_not_thinking": "rows_without",
        "thought_tokens": "tokens_learnt",
        "empty_thought": "empty_not_learnt",
    }
    found = {ours: notes.pop(note, 0) for note, ours in names.items()}
    notes.pop("thoughts_left_out", None)
    if renderer is None:
        return None
    thinking = renderer.thinking
    habit = thinking.habit
    if thinking.mode != "auto":
        habit = thinking.mode != "off"
    elif thinking.by_rows and (found["rows_with_thoughts"] or found["rows_without"]):
        habit = found["rows_with_thoughts"] > 0
    kind = "switch" if renderer.has_switch else "shape" if renderer.thinks else "none"
    return {
        "mode": thinking.mode,
        "template": kind,
        "asked": habit,
        "by_rows": thinking.by_rows,
        **found,
    }


def _kinds(writer: Writer, used: np.ndarray, files: Sequence[str]) -> dict[str, Any]:
    """Kind of rows -> how many of the rows `used` are of it, and in which files: for each the
    number of its first such row."""
    import numpy as np

    kind, file, number = (writer.column(name) for name in ("kind", "file", "number"))
    found: dict[str, Any] = {}
    for code in np.unique(kind[used]):
        mine = used[kind[used] == code]
        _, first, counts = np.unique(file[mine], return_index=True, return_counts=True)
        places = [
            {"file": files[file[mine[at]]], "rows": int(n), "first_row": int(number[mine[at]])}
            for at, n in zip(first, counts, strict=True)
        ]
        found[KINDS[code]] = {
            "rows": len(mine),
            "files": sorted(places, key=lambda place: -place["rows"])[:SHOWN_FILES],
        }
    return dict(sorted(found.items()))


def _token_facts(writer: Writer, train: np.ndarray, renderer: Renderer) -> dict[str, Any]:
    """The keys of TOKEN_KEYS, over the rows that are trained on."""
    import numpy as np

    store = Store(
        {
            name: writer.column(name)
            for name in (
                "token_end",
                "span",
                "span_end",
                "branch_end",
                "answers",
                "stops",
                "tokens",
                "kind",
            )
        },
        {},
    )
    c = store.columns
    which = store.branches_of(train)
    starts = np.concatenate([[0], c["token_end"][:-1]])[which] if len(which) else np.empty(0, "<i8")
    lengths = c["token_end"][which] - starts if len(which) else starts
    learnt = _learnt(c["span"], c["span_end"], which) if len(which) else 0
    total, answers, stops = (
        int(lengths.sum()),
        int(c["answers"][train].sum()),
        int(c["stops"][train].sum()),
    )
    return {
        "tokens_total": total,
        "learnt_tokens": learnt,
        "learnt_share": learnt / total if total else 0.0,
        "answers": answers,
        "stop_learnt_share": stops / answers if answers else 0.0,
        "length_percentiles": percentiles(lengths),
        "shared_prefix": _shared(c["tokens"], starts, lengths),
        "example": None,
        "template": renderer.template_name,
    }


def _learnt(span: np.ndarray, span_end: np.ndarray, which: np.ndarray) -> int:
    """Learnt tokens of the chosen branches."""
    import numpy as np

    summed = np.concatenate(
        [[0], np.cumsum(np.diff(span.reshape(-1, 2), axis=1)[:, 0], dtype="<i8")]
    )
    return int(
        (summed[span_end[which]] - summed[np.concatenate([[0], span_end[:-1]])[which]]).sum()
    )


def percentiles(lengths: np.ndarray) -> dict[str, int]:
    """Nearest-rank percentiles of lengths in tokens."""
    import numpy as np

    ordered = np.sort(lengths) if len(lengths) else np.zeros(1, "<i8")
    ranks = {
        name: int(ordered[max(0, -int(-share * len(ordered) // 1) - 1)])
        for name, share in (("50", 0.5), ("90", 0.9), ("99", 0.99))
    }
    return {"min": int(ordered[0]), **ranks, "max": int(ordered[-1])}


def shared_prefix(sequences: Sequence[Sequence[int]]) -> dict[str, float | int]:
    """Token rows of all sequences, and how many are left when every common beginning is computed
    once (the size of their trie)."""
    import numpy as np

    lengths = np.array([len(s) for s in sequences], "<i8")
    tokens = np.array([t for s in sequences for t in s], "<i4")
    return _shared(tokens, np.cumsum(lengths) - lengths, lengths)


def _shared(tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> dict[str, float | int]:
    """`shared_prefix` of sequences in one column, level by level: sequences with the same beginning
    have one class, and one alone needs no more looks."""
    import numpy as np

    logical = int(lengths.sum())
    here = np.flatnonzero(lengths > 0)
    group = np.zeros(len(here), "<i8")
    nodes = depth = 0
    while len(here):
        # Few levels at a time of many sequences: a block of two million rows and 16 levels, and its
        # copies, took 400 MB.
        width = min(BLOCK, max(1, BLOCK_TOKENS // len(here)), int((lengths[here] - depth).max()))
        block = _block(
            tokens, starts[here] + depth, np.minimum(lengths[here] - depth, width), width
        )
        for column in range(width):
            token = block[:, column]
            # Most levels of a shared beginning agree everywhere; only the others need sorting.
            first = np.zeros(int(group.max()) + 1, "<i8")
            first[group[::-1]] = np.arange(len(group))[::-1]
            if not (token == token[first[group]]).all():
                group = np.unique(group << 32 | token.astype("<i8"), return_inverse=True)[1]
            sizes = np.bincount(group)
            nodes += int((sizes > 0).sum())
            depth += 1
            alone = sizes[group] == 1
            nodes += int((lengths[here[alone]] - depth).sum())
            stays = ~alone & (lengths[here] > depth)
            if not stays.all():
                here, block, group = (
                    here[stays],
                    block[stays],
                    np.unique(group[stays], return_inverse=True)[1],
                )
            if not len(here):
                break
        _forget(tokens)
    return {
        "rows_logical": logical,
        "rows_physical_estimate": nodes,
        "share": (logical - nodes) / logical if logical else 0.0,
    }


def _block(
    tokens: np.ndarray, starts: np.ndarray, sizes: np.ndarray, width: int, rows: int = 1 << 16
) -> np.ndarray:
    """`width` tokens from each start on, -1 behind a sequence's end; a mapped column's pages are
    let go on the way."""
    import numpy as np

    out = np.full((len(starts), width), -1, "<i4")
    steps = np.arange(width)
    for at in range(0, len(starts), rows):
        begin, size = starts[at : at + rows], sizes[at : at + rows]
        inside = steps[None, :] < size[:, None]
        place = np.where(inside, begin[:, None] + steps[None, :], 0)
        out[at : at + rows] = np.where(inside, tokens[place], -1)
        _forget(tokens)
    return out


def _forget(column: np.ndarray) -> None:
    """Tell the system that the pages of a mapped column are not needed now: they would count as
    this program's memory."""
    import mmap

    mapped = getattr(column, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        with contextlib.suppress(OSError, ValueError):
            mapped.madvise(mmap.MADV_DONTNEED)


# ---- checks


def checked(
    features: Iterable[Sequence[Any]], writer: Writer, checks: list[Check], files: Sequence[str]
) -> list[dict[str, Any]]:
    """Give the checks every row's feature in order, and what they found, as plain values. Rows that
    a mixture leaves out are not looked at.

    `checks` is emptied: what one kept of every row is let go before the next one makes its
    findings.
    """
    import numpy as np

    if not checks:
        return []
    names = ("file", "line", "number")
    file, line, number = (writer.column(name) for name in names)
    sides = np.zeros(len(line), "u1")
    sides[writer.column("train")] = 1
    sides[writer.column("held_out")] = 2
    at = [0, 0, 0]
    adds = [check.add for check in checks]
    for row, of_row in enumerate(features):
        side = int(sides[row])
        if side:
            origin = Origin(files[file[row]], int(line[row]), int(number[row]))
            for add, feature in zip(adds, of_row, strict=True):
                add("train" if side == 1 else "held_out", at[side], origin, feature)
            at[side] += 1
    found = []
    adds.clear()
    while checks:
        for one in checks.pop(0).findings():
            found.append(
                {
                    "key": one.key,
                    "severity": one.severity,
                    "count": one.count,
                    "total": one.total,
                    "places": one.places,
                    "fields": one.fields,
                }
            )
    return found


class _Found:
    """Findings of an earlier walk, in the place of the check that made them."""

    name = "found"

    def __init__(self, findings: Sequence[dict[str, Any]]):
        self._findings = [Finding(**one) for one in findings]

    def feature(self, row: Any, sample: Any) -> Any:
        """Nothing is looked at again."""

    def add(self, side: str, index: int, origin: Origin, feature: Any) -> None:
        """Nothing is looked at again."""

    def findings(self) -> list[Finding]:
        """What was found."""
        return self._findings


# ---- sentences


def report_of(store: Store, renderer: Renderer | None) -> tuple[dict[str, Any], list[Finding]]:
    """The whole report in the reader's language, and its findings."""
    facts = dict(store.meta["facts"])
    kept = facts.pop("checked")
    report = {
        key: value
        for key, value in facts.items()
        if key not in ("held_out_short", "mixing", "under")
    }
    reasons = {reason: {**e, "what": reason_text(reason)} for reason, e in facts["reasons"].items()}
    report["reasons"] = dict(sorted(reasons.items(), key=lambda item: (-item[1]["count"], item[0])))
    report["held_out_reasons"] = {
        reason: {**e, "what": reason_text(reason)}
        for reason, e in facts["held_out_reasons"].items()
    }
    report["parts"] = [under_key(one) for one in facts["under"]]
    report["dropped"] = {"total": facts["rows_dropped"], "rows": facts["dropped"]}
    train = store.columns["train"]
    if renderer is not None and len(train):
        report["example"] = _example(store.sample(int(train[0]), 0), renderer)
    report |= {"mixing": facts["mixing"]} if "mixing" in facts else {}
    warnings = (
        [
            say(
                "data.warning.held_out_short",
                wanted=facts["held_out_short"][0],
                found=facts["held_out_short"][1],
            )
        ]
        if "held_out_short" in facts
        else []
    )
    report["warnings"] = warnings + _warnings(report)
    findings = conclude([_Found(kept)], report)
    report["findings"] = [one.as_dict() for one in findings]
    report["score"] = score(findings, report)
    return report, findings


def under_key(one: dict[str, Any]) -> str:
    """Where the rows of a JSON file stand, and which lists beside them are left alone."""
    key = "data.parts.key_measured" if one["part"] != "train" else "data.parts.key_trained"
    said = say(key, file=one["file"], key=one["key"])
    return said + (
        say("data.parts.key_others", others=", ".join(one["others"])) if one["others"] else ""
    )


def reason_text(reason: str) -> str:
    """The sentence of a reason; the key itself for one that an outside format brought."""
    key = f"data.reason.{reason}"
    found = say(key)
    return reason if found == key else found


def _example(sample: Sample, renderer: Renderer) -> dict[str, Any]:
    """One sample decoded, cut into runs of learnt and not learnt tokens."""
    branch = sample.branches[0]
    learnt = set(branch.learnt)
    runs: list[tuple[bool, list[int]]] = []
    for index, token in enumerate(branch.tokens[:EXAMPLE_TOKENS]):
        if not runs or runs[-1][0] != (index in learnt):
            runs.append((index in learnt, []))
        runs[-1][1].append(token)
    pieces = [{"text": renderer.decode(ids), "learnt": is_learnt} for is_learnt, ids in runs]
    return {
        "origin": str(sample.origin),
        "pieces": pieces,
        "cut": len(branch.tokens) > EXAMPLE_TOKENS,
    }


def _warnings(report: dict[str, Any]) -> list[str]:
    """Sentences for what is odd but can be trained."""
    wanted = report["reasons"].get(LEFT_OUT, {"count": 0})[
        "count"
    ]  # left out because the run asked for it
    lost = report["rows_dropped"] - wanted
    found = [say("data.warning.dropped", count=lost, rows=report["rows_read"])] if lost else []
    if len(report["kinds"]) > 1 and set(report["kinds"]) != {"conversation", "text"}:
        found.append(say("data.warning.kinds", found=kinds_text(report["kinds"])))
    for key in ("duplicates", "held_out_overlap"):
        if report[key]:
            found.append(say(f"data.warning.{key}", count=report[key]))
    if (
        report["stop_learnt_share"] is not None
        and report["stop_learnt_share"] < 1
        and report["answers"]
    ):
        found.append(say("data.warning.stop_share", share=f"{report['stop_learnt_share']:.0%}"))
    if report["template"] == "plain":
        found.append(say("data.warning.plain_template"))
    return (
        found
        + _thinking_lines(report.get("thinking"))
        + [note(key, count) for key, count in report["notes"].items()]
    )


def _thinking_lines(thinking: dict[str, Any] | None) -> list[str]:
    """What was done with thoughts, in sentences; none where neither the rows nor the template have
    any and nothing was asked for."""
    if thinking is None:
        return []
    mode, rows, without = thinking["mode"], thinking["rows_with_thoughts"], thinking["rows_without"]
    found = []
    if rows:
        done = {"off": "left_out", "keep": "kept"}.get(mode, "learnt")
        found.append(
            say(f"data.thinking.{done}", rows=rows, tokens=f"{thinking['tokens_learnt']:,}")
        )
    if without:
        found.append(
            say(
                "data.thinking.answer_only"
                if thinking["template"] == "switch"
                else "data.thinking.answer_only_shape",
                rows=without,
            )
        )
    if thinking["empty_not_learnt"]:
        found.append(say("data.thinking.empty", count=thinking["empty_not_learnt"]))
    if mode in ("off", "keep") and thinking["template"] != "switch":
        found.append(
            say(
                "data.thinking.no_switch"
                if rows or thinking["template"] == "shape"
                else "data.thinking.no_effect",
                mode=mode,
            )
        )
    return found
