"""`report.html`: one file that says what a run did, question by question, and what to do next.

Opens from the disk without network, script or any other file; the page forbids them itself. It
reads the run folder and nothing else, so it can be made again at any time, in another language too.
Whatever is missing in the folder is named in the page.
"""

from __future__ import annotations

import re
from pathlib import Path

from tunewright.core.files import write_text
from tunewright.core.words import language
from tunewright.record import diagnosis
from tunewright.report import answers, curves, damage, doctor, evaluation, facts, figures, gate, own
from tunewright.report.markup import Child, Html, document, el, join, words
from tunewright.report.page import Page, size, whole
from tunewright.report.record import finite, mapping, read_record
from tunewright.report.verdict import (
    advice,
    count_of,
    headline,
    is_rewarded,
    losses_of,
    show,
    status_of,
    warnings_of,
)

SECTIONS = ("answers", "loss", "doctor", "data", "sizes", "speed", "settings", "next")


def write_report(run: Path, lang: str | None = None) -> Path:
    """Write `run/report.html` from what is in the run folder, in `lang` or the reader's language,
    and say where it is."""
    target = Path(run) / "report.html"
    write_text(target, render(Path(run), lang))
    return target


def render(run: Path, lang: str | None = None) -> str:
    """The page as text."""
    page = Page(read_record(run), lang or language())
    title = page.text("title", name=_name(page))
    main = el("main", *_sections(page))
    return document(page.lang, title, _top(page, title), main, _foot(page))


def _name(page: Page) -> str:
    return page.record.run.resolve().name or "run"


def _names(page: Page) -> list[str]:
    """The sections of this page, in order. Of a run that learnt from rewards the loss says nothing;
    what it watched takes its place."""
    drawn, rewarded = bool(figures.names_of(page.record)), is_rewarded(page.record)
    measured = ["evaluation"] if evaluation.has_one(page) else []
    measured += ["damage"] if mapping(page.record.summary.get("damage")) else []
    measured += ["gate"] if gate.has_one(page) else []
    examined = diagnosis.read(page.record.run) is not None
    added = own.section(page) is not None
    choices = (("loss", not rewarded), ("figures", drawn), ("own", added), ("doctor", examined))
    middle = [name for name, there in choices if there]
    return [*measured, SECTIONS[0], *middle, *SECTIONS[3:]]


def _sections(page: Page) -> list[Html]:
    names = _names(page)
    measured = [evaluation.section(page), damage.section(page), gate.section(page)]
    return [
        *(one for one in measured if one is not None),
        answers.section(page),
        *([curves.section(page)] if "loss" in names else []),
        *(
            one
            for one in [figures.section(page), own.section(page), doctor.section(page)]
            if one is not None
        ),
        facts.data_section(page),
        facts.sizes_section(page),
        facts.speed_section(page),
        _settings(page),
        page.section(
            "next",
            el("p", page.say("next.intro")),
            el("ul", *(page.finding(f) for f in advice(page.record)), class_="findings advice"),
        ),
    ]


def _top(page: Page, title: str) -> Html:
    found = warnings_of(page.record)
    links = [el("a", page.say(f"{name}.title"), href=f"#{name}") for name in _names(page)]
    return el(
        "header",
        el("h1", title),
        el("p", _sentence(page), class_="verdict " + headline(page.record).tone),
        el("ul", *(page.finding(f) for f in found), class_="findings") if found else None,
        el("pre", str(page.record.summary["reason"]))
        if page.record.summary.get("reason")
        else None,
        _tiles(page),
        _faults(page),
        el("nav", *links, aria_label=page.text("contents")),
    )


def _sentence(page: Page) -> Html:
    """What was trained, on how much, for how long, and whether it learnt: one sentence made of
    three clauses."""
    record, s = page.record, page.record.summary
    first = headline(record)
    train = (
        record.data.get("train")
        if finite(record.data.get("train")) is not None
        else record.data.get("rows_kept")
    )
    steps = finite(s.get("steps"))
    clauses = [
        page.say(
            f"verdict.{status_of(record)}",
            model=_short_model(record.setting("model")) or page.text("verdict.a_model"),
            method=_method(page),
            rows=whole(train),
            steps=whole(steps if steps is not None else len(record.steps)),
            time=page.seconds(s.get("train_seconds")),
        ),
        words(first.key, page.lang, **first.fields),
    ]
    losses = losses_of(record)
    if is_rewarded(record):
        pass
    elif losses.held_before is not None and losses.held_after is not None:
        clauses.append(
            page.say(
                "verdict.held_out", before=show(losses.held_before), after=show(losses.held_after)
            )
        )
    elif losses.held_after is not None:
        clauses.append(page.say("verdict.held_out_after", after=show(losses.held_after)))
    glue = page.say("verdict.glue")
    return join(
        [part if i == 0 else join([glue, part]) for i, part in enumerate(clauses)]
        + [page.say("verdict.end")]
    )


def _short_model(spec: str) -> str:
    """The last part of a path; a hub id stays whole."""
    return spec.rstrip("/").rsplit("/", 1)[-1] if re.match(r"[./~]|[A-Za-z]:[\\/]", spec) else spec


def _method(page: Page) -> str:
    kind, rank = page.record.setting("method.kind"), page.record.setting("method.rank")
    name = {"lora": "LoRA"}.get(kind, kind) or page.text("verdict.fine_tuning")
    return page.text("verdict.method_rank", name=name, rank=rank) if rank else name


def _tiles(page: Page) -> Html:
    losses, s = losses_of(page.record), page.record.summary
    tiles: list[Child] = []

    def tile(key: str, value: str, note: str = "") -> None:
        if value and value != "–":
            tiles.append(
                el(
                    "div",
                    el("b", value),
                    el("span", page.say(f"tile.{key}")),
                    el("small", note) if note else None,
                    class_="tile",
                )
            )

    held = mapping(s.get("held_out_figures"))
    if is_rewarded(page.record):
        after, change = finite(held.get("reward")), finite(held.get("reward_change"))
        if after is not None and change is not None:
            tile("reward", f"{show(after - change)} → {show(after)}")
    elif losses.first is not None or losses.final is not None:
        tile("loss", f"{show(losses.first)} → {show(losses.final)}")
    if losses.held_after is not None and not is_rewarded(page.record):
        tile("held_out", f"{show(losses.held_before)} → {show(losses.held_after)}")
    if finite(held.get("accuracy")) is not None:
        tile("ranked", f"{100 * float(held['accuracy']):.0f} %")
    for kind in ("train", "held_out", "probe"):
        count = count_of(page.record, kind)
        if count:
            tile(f"right_{kind}", f"{count.right_before} → {count.right_after} / {count.asked}")
    general = count_of(page.record, "general")
    if general:
        tile("kept", f"{general.right_before - general.forgotten} / {general.right_before}")
    tile("adapter", size(s.get("adapter_bytes")))
    return el("div", *tiles, class_="tiles") if tiles else Html("")


def _faults(page: Page) -> Html | None:
    if not page.record.faults:
        return None
    items = [
        el("li", page.say(f"fault.{what}", file=name, count=count))
        for name, what, count in page.record.faults
    ]
    return el("div", el("b", page.say("fault.title")), el("ul", *items), class_="faults")


def _settings(page: Page) -> Html:
    text = page.record.settings_text
    if not text:
        return page.section("settings", el("p", page.say("settings.none"), class_="muted"))
    lines: list[Child] = []
    for line in text.split("\n"):
        value, hash_, comment = line.partition("  # ")
        lines += [value, el("span", f"  # {comment}", class_="comment") if hash_ else None, "\n"]
    return page.section(
        "settings",
        el("p", page.say("settings.explained")),
        page.fold(page.say("settings.open"), el("pre", *lines, class_="code settings")),
    )


def _foot(page: Page) -> Html:
    s = page.record.summary
    versions = mapping(s.get("versions"))
    shown = [f"{name} {value}" for name, value in versions.items()]
    known = [
        f"{page.text(f'foot.{key}')} {s[key]}"
        for key in ("device", "dtype", "layout")
        if s.get(key)
    ]
    lines = [el("p", " · ".join(part)) for part in (known, shown) if part]
    return el("footer", *lines, el("p", page.say("foot.made")))
