"""What `evaluate --out` leaves beside the table of answers: `evaluation.json` with all figures, and
`evaluation.html`, a page that shows them: every figure with its interval, the reliability picture,
the curve of abstention, the confusion matrix, and rows that went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.core.errors import UsageError, problem
from tunewright.core.files import write_json, write_text
from tunewright.core.words import language, say
from tunewright.data.checks.private import count_in, hidden
from tunewright.report.chart import NARROW, WIDE, Series, chart
from tunewright.report.markup import Child, Html, document, el, words

MATRIX = 12
"""Options up to which the confusion matrix is drawn."""
STYLE = """
.figure { display: grid; grid-template-columns: 15rem 1fr; gap: .2rem 1rem; align-items: center;
  margin: .7rem 0; }
.figure svg { width: 100%; height: 1.5rem; }
.figure .value { font-variant-numeric: tabular-nums; color: var(--soft); }
.range { stroke: var(--accent); stroke-width: 6; stroke-linecap: round; opacity: .4; }
.point { stroke: var(--accent); stroke-width: 5; }
.base { stroke: var(--line); stroke-width: 2; }
.chart polyline.faint { stroke: var(--dot); stroke-width: 1.4; stroke-dasharray: 4 4; }
.chart polyline.ends { stroke: var(--dot); stroke-width: 2; }
td.hit { font-weight: 700; }
@media (max-width: 40rem) { .figure { grid-template-columns: 1fr; } }
"""


def write(result: dict[str, Any], folder: Path, lang: str | None = None) -> Path:
    """Write both files of what `evaluate_target` gave into `folder`, and say where the page is.
    Raises UsageError where that cannot be (E-EVAL-22)."""
    target = folder / "evaluation.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "evaluation.json", result)
        write_text(target, render(result, lang or language()))
    except OSError as e:
        raise UsageError(problem("E-EVAL-22", str(folder), cause=e)) from e
    return target


def render(result: dict[str, Any], lang: str) -> str:
    """The page as text."""
    title = say("evalpage.title", lang=lang, target=result["target"])
    report = result["data_report"]
    fields = {"data": result["data"], "kept": report["rows_kept"], "read": report["rows_read"]}
    top = el(
        "header",
        el("h1", title),
        el("p", words("evalpage.about", lang, **fields)),
        el("ul", *(el("li", one) for one in result.get("warnings", [])), class_="findings")
        if result.get("warnings")
        else None,
    )
    sections = [
        _section(
            "figures", lang, el("p", words("evalpage.interval", lang)), *_figures(result, lang)
        ),
        *_numbers(result.get("numbers"), lang),
        *_classes(result.get("options"), lang),
        *_calibration(result.get("options"), lang),
        *_abstention(result.get("options"), lang),
        *_wrong(result, lang),
        _how(result, lang),
    ]
    return document(lang, title, top, el("main", *sections), style=STYLE)


def _section(name: str, lang: str, *children: Child) -> Html:
    return el("section", el("h2", words(f"evalpage.{name}", lang)), *children, id=name)


# ---- figures


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _plain(value: float) -> str:
    return f"{value:,.4g}"


def _figures(result: dict[str, Any], lang: str) -> list[Html]:
    """Every figure as a point on its interval."""
    out = []
    loss = result.get("loss")
    if loss:
        out.append(_one("loss", loss["token_mean"], loss["interval_95"], None, _plain))
        if loss["perplexity"] is not None:
            name = say("evalpage.perplexity", lang=lang)
            out.append(_one(name, loss["perplexity"], loss["perplexity_interval_95"], None, _plain))
    options = result.get("options")
    if options:
        name = say("evalpage.accuracy", lang=lang)
        out.append(_one(name, options["accuracy"], options["interval_95"], 1, _percent))
        interval = options["macro_f1_interval_95"]
        out.append(_one("macro F1", options["macro_f1"], interval, 1, _percent))
    for name, figure in result.get("metrics", {}).items():
        if figure["value"] is not None:
            show = _percent if figure["scale"] == 1 else _plain
            out.append(_one(name, figure["value"], figure["interval_95"], figure["scale"], show))
    for name, figure in result.get("rewards", {}).items():
        if figure["n"]:
            label = say("evalpage.passes", lang=lang, name=name)
            interval = figure["pass_interval_95"]
            out.append(_one(label, figure["pass_rate"], interval, 1, _percent))
    for kind in ("ranking", "steps"):
        found = result.get(kind)
        if found and "accuracy" in found and "interval_95" in found:
            name = say("evalpage.accuracy", lang=lang)
            out.append(_one(name, found["accuracy"], found["interval_95"], 1, _percent))
    return out


def _one(name: str, value: float, interval: Any, scale: float | None, show: Any) -> Html:
    """A figure: its name, its value with the interval, and where both lie from 0 to `scale`."""
    known = interval is not None and None not in interval
    low, high = interval if known else (value, value)
    text = f"{show(value)}" + (f"  [{show(low)} – {show(high)}]" if known else "")
    drawn: Child = None
    if scale:
        x, x_low, x_high = (f"{4 + 592 * at / scale:.1f}" for at in (value, low, high))
        drawn = el(
            "svg",
            el("line", class_="base", x1=4, x2=596, y1=12, y2=12),
            el("line", class_="range", x1=x_low, x2=x_high, y1=12, y2=12),
            el("line", class_="point", x1=x, x2=x, y1=3, y2=21),
            viewBox="0 0 600 24",
            preserveAspectRatio="none",
            role="img",
            aria_label=f"{name}: {text}",
        )
    label = el("div", el("strong", name), el("br"), el("span", text, class_="value"))
    return el("div", label, el("div", drawn), class_="figure")


# ---- numbers


def _numbers(found: dict[str, Any] | None, lang: str) -> list[Html]:
    """Errors of the model, of one constant and of what needs no language model, on one scale."""
    if found is None:
        return []
    simple = found["simple"]
    kind = say(f"numbers.kind.{simple['kind']}", lang=lang)
    named = {
        say("numbers.page.model", lang=lang): found,
        say("numbers.page.constant", lang=lang, value=f"{found['constant']['value']:g}"): found[
            "constant"
        ],
        say("numbers.page.simple", lang=lang, kind=kind): simple,
    }
    intervals = [one["mean_absolute_error_interval_95"] for one in named.values()]
    most = max(high for _, high in intervals) or 1.0
    bars = [
        _one(name, one["mean_absolute_error"], interval, most, _plain)
        for (name, one), interval in zip(named.items(), intervals, strict=True)
    ]
    said = [say(f"numbers.verdict.{found['verdict']}", lang=lang, kind=kind)]
    if simple["suffices"] == "formula":
        said.append(say("numbers.formula", lang=lang, formula=simple["formula"]))
    return [_section("numbers", lang, *bars, *(el("p", one.strip()) for one in said))]


# ---- classes


def _classes(options: dict[str, Any] | None, lang: str) -> list[Html]:
    if options is None:
        return []
    heads = ("answer", "rows", "chosen", "precision", "recall", "f1")
    body = []
    for entry in options["classes"]:
        cells: list[Child] = [entry["answer"], entry["rows"], entry["chosen"]]
        for key in heads[3:]:
            value, interval = entry[key], entry[f"{key}_interval_95"]
            ends = (
                "" if interval is None else f" [{_percent(interval[0])} – {_percent(interval[1])}]"
            )
            cells.append("-" if value is None else _percent(value) + ends)
        body.append(el("tr", *(el("td", cell) for cell in cells)))
    parts: list[Child] = [_table([words(f"evalpage.head.{name}", lang) for name in heads], body)]
    if len(options["options"]) <= MATRIX:
        parts += [el("h3", words("evalpage.confusion", lang)), _confusion(options, lang)]
    return [_section("classes", lang, *parts)]


def _confusion(options: dict[str, Any], lang: str) -> Html:
    names = options["options"]
    body = []
    for right in names:
        row = options["confusion"][right]
        cells = [
            el("td", row[chosen], class_="hit" if chosen == right else None) for chosen in names
        ]
        body.append(el("tr", el("th", right, scope="row"), *cells))
    return _table([words("evalpage.head.confusion", lang), *names], body)


def _table(heads: list[Any], body: list[Html]) -> Html:
    head = el("tr", *(el("th", name, scope="col") for name in heads))
    table = el("table", el("thead", head), el("tbody", *body), class_="numbers tight")
    return el("div", table, class_="scroll")


# ---- confidence


def _calibration(options: dict[str, Any] | None, lang: str) -> list[Html]:
    if options is None:
        return []
    found = options["calibration"]
    ece = {"ece": _percent(found["ece"]), "chance": _percent(found["by_chance_95"])}
    ece |= {"confidence": _percent(found["mean_confidence"])}
    ece |= {"accuracy": _percent(found["accuracy"])}
    points = [(one["confidence"], one["accuracy"]) for one in found["bins"]]
    titles = [
        say(
            "evalpage.bin",
            lang=lang,
            rows=one["rows"],
            confidence=_percent(one["confidence"]),
            accuracy=_percent(one["accuracy"]),
            low=_percent(one["interval_95"][0]),
            high=_percent(one["interval_95"][1]),
        )
        for one in found["bins"]
    ]
    ends = [
        Series("", [(one["confidence"], end) for end in one["interval_95"]], "ends")
        for one in found["bins"]
    ]
    perfect = Series("", [(0.0, 0.0), (1.0, 1.0)], "faint")
    series = [perfect, *ends, Series("", points, "held", dots=True, line=False, titles=titles)]
    drawn = _drawn(series, "confidence", "accuracy", "calibration", lang)
    key = "off" if found["ece"] > found["by_chance_95"] else "fits"
    heads = [words(f"evalpage.head.{one}", lang) for one in ("bin", "rows", "confidence", "right")]
    body = [
        el(
            "tr",
            el("td", f"{one['from']:.2f} – {one['to']:.2f}"),
            el("td", one["rows"]),
            el("td", _percent(one["confidence"])),
            el(
                "td",
                f"{_percent(one['accuracy'])} [{_percent(one['interval_95'][0])} – "
                f"{_percent(one['interval_95'][1])}]",
            ),
        )
        for one in found["bins"]
    ]
    return [
        _section(
            "calibration",
            lang,
            el("p", words(f"evalpage.calibration_{key}", lang, **ece)),
            drawn,
            el("p", words("evalpage.reliability", lang), class_="muted"),
            _table(heads, body),
        )
    ]


def _drawn(series: list[Series], x: str, y: str, label: str, lang: str) -> Html:
    return chart(
        series,
        (WIDE, NARROW),
        say(f"evalpage.axis.{x}", lang=lang),
        say(f"evalpage.axis.{y}", lang=lang),
        say(f"evalpage.{label}", lang=lang),
        lambda value: f"{100 * value:.0f} %",
    )


def _abstention(options: dict[str, Any] | None, lang: str) -> list[Html]:
    found = (options or {}).get("abstention")
    if found is None:
        return []
    parts: list[Child] = []
    target = _percent(found["target_error"])
    there = found.get("measured_on")
    if there is None:
        key = "few" if "too_few" in found else "none"
        parts.append(el("p", words(f"evalpage.abstention_{key}", lang, target=target)))
    else:
        ends = there["error_interval_95"]
        fields = {
            "target": target,
            "threshold": f"{found['threshold']:.4f}",
            "rows": there["rows"],
            "share": _percent(there["share_answered"]),
            "error": "-" if there["error"] is None else _percent(there["error"]),
            "low": _percent(ends[0]),
            "high": _percent(ends[1]),
        }
        verdict = {True: "holds", False: "broken", None: "unsure"}[found["holds"]]
        parts.append(el("p", words("evaluate.abstention", lang, **fields)))
        parts.append(el("p", words(f"evaluate.abstention_{verdict}", lang)))
    curve = [(share, error) for share, error in found["curve"]]
    goal = Series("", [(0.0, found["target_error"]), (1.0, found["target_error"])], "faint")
    parts.append(
        _drawn([goal, Series("", curve, "curve")], "answered", "error", "abstention", lang)
    )
    parts.append(el("p", words("evalpage.curve", lang), class_="muted"))
    return [_section("abstention", lang, *parts)]


# ---- rows


def _wrong(result: dict[str, Any], lang: str) -> list[Html]:
    """Some decisions and answers that are wrong, for a reader to judge."""
    parts: list[Child] = []
    options = result.get("options")
    if options and options["mistakes"]:
        heads = [words(f"evalpage.head.{one}", lang) for one in ("row", "expected", "chosen")]
        parts += _mistakes(heads, options["mistakes"], ("answer", "chosen"), lang)
    match = result.get("exact_match")
    if match and match["mistakes"]:
        heads = [words(f"evalpage.head.{one}", lang) for one in ("row", "expected", "given")]
        parts += _mistakes(heads, match["mistakes"], ("expected", "answer"), lang)
    return [_section("wrong", lang, *parts)] if parts else []


def _mistakes(
    heads: list[Any], mistakes: list[dict[str, Any]], keys: Sequence[str], lang: str
) -> list[Child]:
    """A table of wrong rows, their private values masked."""
    body = [
        el("tr", el("td", one["origin"]), *(el("td", hidden(str(one[key]))) for key in keys))
        for one in mistakes
    ]
    parts: list[Child] = []
    if masked := count_in(str(one[key]) for one in mistakes for key in keys):
        parts.append(el("p", words("report.masked_answers", lang, count=masked), class_="muted"))
    return [*parts, _table(heads, body)]


def _how(result: dict[str, Any], lang: str) -> Html:
    shown = {
        key: result.get(key)
        for key in ("target", "model", "adapter", "data", "dtype", "device", "layout")
    }
    spent = result.get("seconds", {})
    shown["seconds"] = " · ".join(f"{key} {value:.1f}" for key, value in spent.items())
    shown |= result.get("versions", {})
    rows = [el("tr", el("td", key), el("td", str(value))) for key, value in shown.items() if value]
    files = el("p", words("evalpage.files", lang))
    return _section("how", lang, files, _table([], rows))
