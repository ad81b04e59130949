"""The data report: counts over a store, kept without sentences; the sentences put to them in the
reader's language; and the whole for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tunewright.core.compat import kinds_text
from tunewright.core.types import Origin, Sample
from tunewright.core.words import say
from tunewright.data.checks import Check, Finding, conclude, score
from tunewright.data.checks.dropped import NOTED
from tunewright.data.formats.ledger import OF_TURNS, Ledger
from tunewright.data.store.columns import Store, Writer
from tunewright.data.store.counting import TOKEN_KEYS, kinds_of, token_facts
from tunewright.data.store.documents import PIECES
from tunewright.data.store.gathering import LISTED, Gathered
from tunewright.data.store.good_answers import LEFT_OUT
from tunewright.text.renderer import Renderer

EXAMPLE_TOKENS = 600
MOST_COLUMNS = 1000
TOLD_BY_COUNTS = {"empty", "too_long", "dropped", "duplicates", "held_out_overlap", *NOTED}
SHOWN_DETAIL = 100
GREEN, PLAIN = "\x1b[32m", "\x1b[0m"
OPEN, CLOSE = "\u27e6", "\u27e7"
_SHOWN = {code: f"\\x{code:02x}" for code in [*range(32), *range(127, 160)] if code not in (9, 10)}


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
        "kinds": kinds_of(writer, np.union1d(different, held), files),
        "columns": columns_of(gathered),
        "thinking": thinking,
        "notes": {key: count for key, count in sorted((gathered.train.notes).items()) if count},
    }
    return facts | (
        token_facts(writer, train, renderer.template_name)
        if renderer is not None
        else dict.fromkeys(TOKEN_KEYS)
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
    with_thoughts = {"off": "left_out", "keep": "kept"}.get(thinking.mode, "learnt")
    chosen = {
        with_thoughts: found["rows_with_thoughts"],
        "answer_form": found["rows_without"] if renderer.thinks else 0,
    }
    arguments = {"template_arguments": thinking.arguments} if thinking.arguments else {}
    return {
        "mode": thinking.mode,
        "template": kind,
        "asked": habit,
        "by_rows": thinking.by_rows,
        **found,
        "chosen": {name: count for name, count in chosen.items() if count},
        **arguments,
    }


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
    file, line, number = (writer.column(name) for name in ("file", "line", "number"))
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
    found: list[dict[str, Any]] = []
    adds.clear()
    while checks:
        found += map(vars, checks.pop(0).findings())
    return found


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
    for key in ("reasons", "held_out_reasons"):
        report[key] = {name: {**e, "what": reason_text(name)} for name, e in facts[key].items()}
    frequent = sorted(report["reasons"].items(), key=lambda item: (-item[1]["count"], item[0]))
    report["reasons"] = dict(frequent)
    report["parts"] = [under_key(one) for one in facts["under"]]
    report["dropped"] = {"total": facts["rows_dropped"], "rows": facts["dropped"]}
    train = store.columns["train"]
    if renderer is not None and len(train):
        report["example"] = _example(store.sample(int(train[0]), 0), renderer)
    report |= {"mixing": facts["mixing"]} if "mixing" in facts else {}
    report["warnings"] = _warnings(report)
    if "held_out_short" in facts:
        wanted, there = facts["held_out_short"]
        short = say("data.warning.held_out_short", wanted=wanted, found=there)
        report["warnings"].insert(0, short)
    findings = conclude((Finding(**one) for one in kept), report)
    report["findings"] = [one.as_dict() for one in findings]
    report["score"] = score(findings, report)
    return report, findings


def under_key(one: dict[str, Any]) -> str:
    """Where the rows of a JSON file stand, and which lists beside them are left alone."""
    key = "data.parts.key_measured" if one["part"] != "train" else "data.parts.key_trained"
    others = ", ".join(one["others"])
    rest = say("data.parts.key_others", others=others) if others else ""
    return say(key, file=one["file"], key=one["key"]) + rest


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
    # What the run asked to be left out is not lost.
    lost = report["rows_dropped"] - report["reasons"].get(LEFT_OUT, {"count": 0})["count"]
    found = [say("data.warning.dropped", count=lost, rows=report["rows_read"])] if lost else []
    if len(report["kinds"]) > 1 and set(report["kinds"]) != {"conversation", "text"}:
        found.append(say("data.warning.kinds", found=kinds_text(report["kinds"])))
    for key in ("duplicates", "held_out_overlap"):
        if report[key]:
            found.append(say(f"data.warning.{key}", count=report[key]))
    stops = report["stop_learnt_share"]
    if stops is not None and stops < 1 and report["answers"]:
        found.append(say("data.warning.stop_share", share=f"{stops:.0%}"))
    if report["template"] == "plain":
        found.append(say("data.warning.plain_template"))
    found += _thinking_lines(report.get("thinking"))
    return found + [note(key, count) for key, count in report["notes"].items()]


def _thinking_lines(thinking: dict[str, Any] | None) -> list[str]:
    """What was done with thoughts, in sentences; none where neither the rows nor the template have
    any and nothing was asked for."""
    if thinking is None:
        return []
    mode, rows, without = thinking["mode"], thinking["rows_with_thoughts"], thinking["rows_without"]
    found = []
    if rows:
        done = {"off": "left_out", "keep": "kept"}.get(mode, "learnt")
        tokens = f"{thinking['tokens_learnt']:,}"
        found.append(say(f"data.thinking.{done}", rows=rows, tokens=tokens))
    if without:
        shape = "" if thinking["template"] == "switch" else "_shape"
        found.append(say(f"data.thinking.answer_only{shape}", rows=without))
        found.append(say("data.thinking.risk" if not rows else "data.thinking.mixed"))
    if thinking["empty_not_learnt"]:
        found.append(say("data.thinking.empty", count=thinking["empty_not_learnt"]))
    if arguments := thinking.get("template_arguments"):
        told = ", ".join(f"{name}={value}" for name, value in arguments.items())
        found.append(say("data.thinking.arguments", arguments=told))
    if mode in ("off", "keep") and thinking["template"] != "switch":
        why = "no_switch" if rows or thinking["template"] == "shape" else "no_effect"
        found.append(say(f"data.thinking.{why}", mode=mode))
    return found


# ---- for a terminal


def describe(report: dict[str, Any], colour: bool = False) -> str:
    """The report in the reader's language. Learnt tokens are green, or stand between double
    brackets without colour."""
    rows = {key: report[f"rows_{key}"] for key in ("read", "kept", "dropped")}
    lines = [say("data.say.rows", **rows), *_reason_lines("reason", report["reasons"])]
    facts = {key: report[key] for key in ("train", "held_out", "format", "encoding")}
    lines.append(say("data.say.split", **facts))
    lines += _reason_lines("held_out_reason", report.get("held_out_reasons", {}))
    findings = report.get("findings", ())
    lines += report.get("parts", [])
    lines += [one["what"] for one in findings if one["key"] == "passed_over"]
    if report["tokens_total"] is not None and report["train"]:
        lines += _token_lines(report)
    for number, one in enumerate(report.get("mixing", ()), start=1):
        lines.append(say("data.say.mixing", entry=number, **one))
    lines += [f"! {warning}" for warning in report["warnings"]]
    for one in findings:
        if one["severity"] != "info" and one["key"] not in TOLD_BY_COUNTS:
            lines.append(f"! {one['what']}")
    if report["example"]:
        asks = report["tokens_total"] is not None and not _is_learnt(report)
        head = "data.say.example_question" if asks else "data.say.example"
        origin = report["example"]["origin"]
        lines += ["", say(head, origin=origin), _marked(report["example"], colour)]
    return "\n".join(lines)


def _reason_lines(kind: str, reasons: dict[str, Any]) -> list[str]:
    return [
        "  "
        + say(f"data.say.{kind}", count=e["count"], what=e["what"], examples=", ".join(places(e)))
        for e in reasons.values()
    ]


def _is_learnt(report: dict[str, Any]) -> bool:
    """Whether the rows have something to learn, and do not only ask."""
    return bool(report["answers"] or report["learnt_tokens"])


def places(entry: dict[str, Any]) -> list[str]:
    """Where rows with one reason stand (file:line), with what was found there."""
    details = entry.get("details") or [""] * len(entry["examples"])
    return [
        f"{place} {detail[:SHOWN_DETAIL]}".rstrip()
        for place, detail in zip(entry["examples"], details, strict=True)
    ]


def note(key: str, count: int) -> str:
    """The sentence of a note; what stands behind a colon is a name in it."""
    name, _, about = key.partition(":")
    return say(f"data.note.{name}", count=count, name=about)


def _token_lines(report: dict[str, Any]) -> list[str]:
    lengths, shared, template = (
        report[key] for key in ("length_percentiles", "shared_prefix", "template")
    )
    total, learnt = (f"{report[key]:,}" for key in ("tokens_total", "learnt_tokens"))
    lines = [
        say("data.say.tokens", total=total, learnt=learnt, share=f"{report['learnt_share']:.0%}")
    ]
    if _is_learnt(report):
        stops = f"{report['stop_learnt_share']:.0%}"
        answers = report["answers"]
        lines.append(
            say("data.say.answers", answers=answers, share=stops, template=_template(template))
        )
    else:
        lines.append(say("data.say.asks", template=_template(template)))
    named = {f"p{key}" if key.isdigit() else key: value for key, value in lengths.items()}
    rows = f"{shared['rows_physical_estimate']:,}"
    lines.append(say("data.say.lengths", **named))
    lines.append(say("data.say.shared", share=f"{shared['share']:.0%}", rows=rows))
    return lines + ([rendering_line(report["rendering"])] if report.get("rendering") else [])


TEMPLATES = {"model's own": "data.say.template_own", "plain": "data.say.template_plain"}


def _template(name: str) -> str:
    """How a template is called in the person's language; a name of its own stays."""
    return say(TEMPLATES[name]) if name in TEMPLATES else name


def _dialogue(name: str) -> str:
    """What a dialogue of the rendering proof is, in the person's language."""
    count, _, rest = name.partition(" turns")
    if count.isdigit():
        return say("data.say.dialogue.turns_system" if rest else "data.say.dialogue.turns", n=count)
    return say("data.say.dialogue." + name.replace(",", "").replace(" ", "_"))


def rendering_line(proof: dict[str, Any]) -> str:
    """The rendering proof in one line."""
    differences, checked = proof["differences"], proof["checked"]
    if differences:
        name, shown = next(iter(differences.items()))
        name = _dialogue(name)
        told = {"count": len(differences), "checked": checked, "name": name, "shown": safe(shown)}
        return "! " + say("data.say.rendering_differs", **told)
    said = say("data.say.rendering", equal=proof["equal"], checked=checked)
    if proof["completed"]:
        said += say("data.say.rendering_completed", count=proof["completed"])
    if proof["refused"]:
        said += say(
            "data.say.rendering_refused",
            names=say("data.say.between").join(map(_dialogue, proof["refused"])),
        )
    return said


def safe(text: str) -> str:
    """Text from a file must not move the cursor or recolour the screen."""
    return text.translate(_SHOWN)


def _marked(example: dict[str, Any], colour: bool) -> str:
    begin, end = (GREEN, PLAIN) if colour else (OPEN, CLOSE)
    pieces = ((safe(piece["text"]), piece["learnt"]) for piece in example["pieces"])
    text = "".join(f"{begin}{text}{end}" if learnt else text for text, learnt in pieces)
    return text + (" ..." if example["cut"] else "")
