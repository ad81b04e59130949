"""The sections of figures: the data, the sizes, speed and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunewright.core.stopwatch import OTHER, PARTS
from tunewright.core.words import catalogue, say
from tunewright.report.chart import COLOURS, bar
from tunewright.report.markup import Child, Html, el
from tunewright.report.page import Page, ratio, share, size, strings, whole
from tunewright.report.record import finite, mapping

FOLDER = (
    "adapter",
    "model",
    "checkpoints",
    "run.yaml",
    "data_report.json",
    "events.jsonl",
    "before_after.jsonl",
    "forgetting.jsonl",
    "reasoning.jsonl",
    "memorised.jsonl",
    "summary.json",
    "doctor.json",
)
"""Files of a run folder in the order in which a reader needs them; each has a sentence under
`report.sizes.file.*`."""
TEMPLATES = {"model's own": "data.template_own", "plain": "data.template_plain"}
PHASES = ("load", "train", "evaluate", "checkpoint", "answer")
"""What summaries without `seconds` tell apart."""


def data_section(page: Page) -> Html:
    """Rows, what was dropped and why, which tokens are learnt, and one example."""
    d = page.record.data
    if not d:
        return page.section("data", el("p", page.say("data.none"), class_="muted"))
    template = str(d.get("template"))
    known = page.say(TEMPLATES[template]) if template in TEMPLATES else d.get("template")
    rows: list[tuple[Child, Child]] = [
        _row(page, "rows", read="rows_read", kept="rows_kept", dropped="rows_dropped"),
        _row(page, "split", train="train", held_out="held_out"),
        (page.say("data.files"), ", ".join(strings(d.get("files")))),
        (page.say("data.format"), d.get("format")),
        (page.say("data.template"), known),
    ]
    if finite(d.get("tokens_total")) is not None:
        rows += _token_rows(page, d)
    if finite(d.get("duplicates")) or finite(d.get("held_out_overlap")):
        rows.append(_row(page, "repeats", duplicates="duplicates", overlap="held_out_overlap"))
    warnings = [el("li", text, class_="warn") for text in strings(d.get("warnings"))]
    return page.section(
        "data",
        page.table(rows),
        el("ul", *warnings, class_="findings") if warnings else None,
        _dropped(page),
        _example(page),
    )


def _row(page: Page, name: str, **counts: str) -> tuple[Child, Child]:
    """A name and a sentence with counts of the data report: field of the sentence -> key of the
    report."""
    told = {field: whole(page.record.data.get(key)) for field, key in counts.items()}
    return page.say(f"data.{name}"), page.say(f"data.{name}_value", **told)


def _token_rows(page: Page, d: dict[str, Any]) -> list[tuple[Child, Child]]:
    """What is said of tokens, where the rows were tokenised."""
    lengths, prefix = mapping(d.get("length_percentiles")), mapping(d.get("shared_prefix"))
    percentiles = {"min": "min", "p50": "50", "p90": "90", "p99": "99", "max": "max"}
    values = {
        "learnt": {
            "learnt": whole(d.get("learnt_tokens")),
            "total": whole(d.get("tokens_total")),
            "share": share(d.get("learnt_share")),
        },
        "stop": {"share": share(d.get("stop_learnt_share")), "answers": whole(d.get("answers"))},
        "lengths": {field: whole(lengths.get(key)) for field, key in percentiles.items()},
        "shared": {
            "share": share(prefix.get("share")),
            "rows": whole(prefix.get("rows_physical_estimate")),
        },
    }
    return [
        (page.say(f"data.{name}"), page.say(f"data.{name}_value", **fields))
        for name, fields in values.items()
    ]


def _dropped(page: Page) -> Html | None:
    reasons = mapping(page.record.data.get("reasons"))
    items = []
    for key, entry in reasons.items():
        known = f"data.reason.{key}"
        what = (
            say(known, lang=page.lang)
            if known in catalogue("en")
            else str(mapping(entry).get("what") or key)
        )
        places = ", ".join(strings(mapping(entry).get("examples")))
        items.append(
            el(
                "li",
                page.say("data.reason_line", count=whole(mapping(entry).get("count")), what=what),
                " ",
                el("span", places, class_="muted"),
            )
        )
    return (
        page.fold(
            page.say("data.dropped_title", count=whole(page.record.data.get("rows_dropped"))),
            el("ul", *items),
            open_=True,
        )
        if items
        else None
    )


def _example(page: Page) -> Html | None:
    example = mapping(page.record.data.get("example"))
    pieces = example.get("pieces")
    if not isinstance(pieces, list):
        return None
    shown = [
        el("mark" if mapping(p).get("learnt") else "span", str(mapping(p).get("text", "")))
        for p in pieces
    ]
    return page.fold(
        page.say("data.example", origin=str(example.get("origin", ""))),
        el("pre", *shown, " …" if example.get("cut") else None, class_="example", dir="auto"),
        open_=True,
    )


def sizes_section(page: Page) -> Html:
    """How much trained, why the file is small, what is in the folder and how to use it."""
    s = page.record.summary
    trained, total = finite(s.get("trainable_parameters")), finite(s.get("total_parameters"))
    parts: list[Child] = []
    if trained is not None and total:
        parts.append(
            el(
                "p",
                page.say(
                    "sizes.share",
                    trained=whole(trained),
                    total=whole(total),
                    share=share(trained / total, 2 if trained / total < 0.1 else 0),
                ),
            )
        )
    parts += _experts(page, mapping(s.get("experts")))
    kind = page.record.setting("method.kind") or "lora"
    adapter = (page.record.run / "adapter").is_dir() or not (page.record.run / "model").is_dir()
    if adapter:
        fields = {
            "adapter": size(s.get("adapter_bytes")),
            "base": size(s.get("base_bytes")),
            "model": page.record.setting("model") or "–",
            "kind": kind,
        }
        known = finite(s.get("adapter_bytes")) and finite(s.get("base_bytes"))
        parts += [
            el("p", page.say("sizes.why" if known else "sizes.why_short", **fields)),
            el("p", page.say("sizes.unchanged", **fields)),
        ]
    parts += [_files(page), el("h3", page.say("sizes.use")), _use(page, adapter)]
    return page.section("sizes", *parts)


def _experts(page: Page, found: dict[str, Any]) -> list[Child]:
    """Which experts of a mixture the training tokens visited, the others by name."""
    if not found:
        return []
    unseen = mapping(found.get("unseen"))
    told = {
        "count": whole(found.get("experts")),
        "layers": whole(found.get("layers")),
        "share": share(found.get("largest_share")),
        "unseen": whole(sum(len(experts) for experts in unseen.values())),
    }
    if not unseen:
        return [el("p", page.say("sizes.experts_all", **told))]
    rows = [(el("code", name), ", ".join(map(str, experts))) for name, experts in unseen.items()]
    return [el("p", page.say("sizes.experts_unseen", **told)), page.table(rows)]


def _files(page: Page) -> Html:
    rows: list[tuple[Child, Child]] = []
    for name in FOLDER:
        path = page.record.run / name
        if not path.exists():
            continue
        shown = name + "/" if path.is_dir() else name
        rows.append(
            (
                el("code", shown),
                el(
                    "span",
                    page.say(f"sizes.file.{name.split('.')[0]}"),
                    " ",
                    el("span", _bytes_of(path), class_="muted"),
                ),
            )
        )
    rows.append((el("code", "report.html"), page.say("sizes.file.report")))
    return page.fold(page.say("sizes.files"), page.table(rows, "facts files"), open_=True)


def _bytes_of(path: Path) -> str:
    try:
        files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
        return size(sum(p.stat().st_size for p in files))
    except OSError:
        return ""


def _use(page: Page, adapter: bool) -> Html:
    run = page.record.run.as_posix()
    quoted = f'"{run}"' if any(c.isspace() for c in run) else run
    chat = el("pre", f"tunewright chat {quoted}\ntunewright chat {quoted} --compare", class_="code")
    if adapter:
        python = (
            "from peft import AutoPeftModelForCausalLM\n"
            "from transformers import AutoTokenizer\n"
            f"model = AutoPeftModelForCausalLM.from_pretrained({run + '/adapter'!r})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({run + '/adapter'!r})"
        )
    else:
        python = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            f"model = AutoModelForCausalLM.from_pretrained({run + '/model'!r})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({run + '/model'!r})"
        )
    return el("div", chat, el("p", page.say("sizes.use_plain")), el("pre", python, class_="code"))


def speed_section(page: Page) -> Html:
    """Samples a second, what sharing saved, where the time went, the largest memory."""
    s = page.record.summary
    if not s:
        return page.section("speed", el("p", page.say("speed.none"), class_="muted"))
    samples, tokens = (
        ratio(s.get("samples"), s.get("train_seconds")),
        ratio(s.get("logical_tokens"), s.get("train_seconds")),
    )
    computed = ratio(s.get("physical_rows"), s.get("logical_tokens"))
    saved = None
    if computed is not None:
        key = "speed.padded_value" if s.get("layout") == "padded" else "speed.saved_value"
        saved = page.say(
            key,
            logical=whole(s.get("logical_tokens")),
            physical=whole(s.get("physical_rows")),
            share=share(1 - computed),
        )
    rows: list[tuple[Child, Child]] = [
        (page.say("speed.samples"), f"{samples:.2f}" if samples is not None else None),
        (page.say("speed.tokens"), whole(tokens) if tokens is not None else None),
        (page.say("speed.saved"), saved),
        (page.say("speed.labels"), whole(s.get("label_tokens"))),
        (
            page.say("speed.steps"),
            page.say(
                "speed.steps_value", steps=whole(s.get("steps")), samples=whole(s.get("samples"))
            )
            if finite(s.get("steps"))
            else None,
        ),
        (page.say("speed.memory"), _memory(page, s)),
    ]
    return page.section("speed", page.table(rows), _phases(page, s))


def _memory(page: Page, s: dict[str, Any]) -> Child:
    """Peak memory, beside what was estimated before the run began."""
    peak, estimated = size(s.get("peak_memory_bytes")), s.get("estimated_peak_memory_bytes")
    if finite(estimated) is None:
        return peak
    told = page.say("speed.estimated", time=size(estimated))
    return el("span", peak, " (", told, ")")


def _phases(page: Page, s: dict[str, Any]) -> Html | None:
    """Where the time went, beside what was estimated; runs of earlier versions say less."""
    known, wall = mapping(s.get("seconds")), finite(s.get("wall_seconds"))
    if known:
        told = [(part, finite(known.get(part)) or 0.0) for part in (*PARTS, OTHER)]
    else:
        told = [(key, finite(s.get(f"{key}_seconds")) or 0.0) for key in PHASES]
        if wall is not None:
            told.append((OTHER, max(0.0, wall - sum(v for _, v in told))))
    told = [(key, value) for key, value in told if value > 0]
    if not told:
        return None
    drawing = bar(
        [
            (f"{page.text(f'speed.phase.{key}')}: {page.seconds(value)}", value)
            for key, value in told
        ],
        page.text("speed.phases"),
    )
    legend = [
        el(
            "span",
            el("i", class_=f"key p{i % COLOURS}"),
            page.say(f"speed.phase.{key}"),
            " ",
            el("b", page.seconds(value)),
            _estimated(page, s, key),
            class_="legend",
        )
        for i, (key, value) in enumerate(told)
    ]
    total = (
        el("span", page.say("speed.wall", time=page.seconds(wall)), class_="legend")
        if wall is not None
        else None
    )
    return el(
        "figure",
        el("figcaption", page.say("speed.phases")),
        drawing,
        el("p", *legend, total, class_="legends"),
    )


def _estimated(page: Page, s: dict[str, Any], part: str) -> Html | None:
    """What was estimated for a part of the run before it began, where it was."""
    seconds = finite(mapping(s.get("estimated_seconds")).get(part))
    if seconds is None:
        return None
    told = page.say("speed.estimated", time=page.seconds(seconds))
    return el("span", " (", told, ")", class_="muted")
