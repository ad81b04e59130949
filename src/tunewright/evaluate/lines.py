"""The figures of an evaluation for a terminal, in the reader's language."""

from __future__ import annotations

from typing import Any

from tunewright.core.telling import duration
from tunewright.core.words import say
from tunewright.evaluate import quantities, ranking, step_judging


def percent(value: float | None) -> str:
    """A share as people read it."""
    return "-" if value is None else f"{100 * value:.1f} %"


def _probability(value: float) -> str:
    """A share that may be far below a tenth of a per cent."""
    return percent(value) if value >= 5e-4 else "0 %" if value == 0 else f"{100 * value:.0e} %"


def lines(result: dict[str, Any]) -> list[str]:
    """The figures for a terminal, in the reader's language."""
    report = result["data_report"]
    out = [
        say(
            "evaluate.rows",
            target=result["target"],
            data=result["data"],
            kept=report["rows_kept"],
            read=report["rows_read"],
        ),
        *report.get("parts", []),
    ]
    if "steps" in result:
        return [*out, *step_judging.lines(result["steps"])]
    if "ranking" in result:
        return [*out, *ranking.lines(result["ranking"])]
    out += _count_lines(result["counts"])
    out += _loss_lines(result["loss"])
    if "options" in result:
        out += _option_lines(result["options"])
        out += _calibration_lines(result["options"]["calibration"])
    if "abstention" in result.get("options", {}):
        out += _abstention_lines(result["options"]["abstention"])
    if "exact_match" in result:
        out += _match_lines(result["exact_match"])
    out += _metric_lines(result.get("metrics", {}))
    out += quantities.lines(result["numbers"]) if "numbers" in result else []
    out += _reward_lines(result.get("rewards", {}))
    if "answers" in result:
        out += _answer_lines(result["answers"])
    if "page" in result:
        out.append(say("evaluate.page", file=result["page"]))
    out += result["warnings"]
    spent, where = duration(result["seconds"]["total"]), f"{result['device']} {result['dtype']}"
    return [
        *out,
        say(
            "evaluate.seconds",
            time=spent,
            load=f"{result['seconds']['load']:.0f}",
            where=where,
            layout=result["layout"],
        ),
    ]


def _loss_lines(loss: dict[str, Any] | None) -> list[str]:
    if loss is None:
        return []
    out = [say("evaluate.loss", loss=f"{loss['token_mean']:.4f}", tokens=f"{loss['tokens']:,}")]
    low, high = (_number(value) for value in loss["perplexity_interval_95"])
    value = _number(loss["perplexity"])
    if loss["rows"] < 2:
        out.append(say("evaluate.perplexity_of_one", perplexity=value))
    elif loss["perplexity"] is not None:
        out.append(say("evaluate.perplexity", perplexity=value, low=low, high=high))
    return out


def _option_lines(found: dict[str, Any]) -> list[str]:
    low, high = found["interval_95"]
    out = [
        say(
            "evaluate.detected" if found["detected"] else "evaluate.given",
            options=" · ".join(found["options"]),
        )
    ]
    out.append(
        say(
            "evaluate.accuracy",
            accuracy=percent(found["accuracy"]),
            right=found["right"],
            n=found["n"],
            low=percent(low),
            high=percent(high),
        )
    )
    low, high = found["macro_f1_interval_95"]
    shown = {"value": percent(found["macro_f1"]), "low": percent(low), "high": percent(high)}
    out.append(say("evaluate.macro_f1", **shown))
    key = "evaluate.beats" if found["beats_majority"] else "evaluate.no_better"
    out.append(
        say(key, answer=found["majority"]["answer"], share=percent(found["majority"]["share"]))
    )
    likely = {key: _probability(found["probability"][key]) for key in ("mean", "least")}
    out.append(say("evaluate.probability", **likely))
    out.append(
        say(
            "evaluate.margin",
            margin=f"{found['mean_margin']:+.2f}",
            ties=found["ties"],
            stops=found["stop_token_decides"],
        )
    )
    for entry in found["classes"]:
        shown = {key: percent(entry[key]) for key in ("precision", "recall", "f1")}
        out.append(
            say(
                "evaluate.class",
                answer=entry["answer"],
                rows=entry["rows"],
                chosen=entry["chosen"],
                **shown,
            )
        )
    for given, row in found["confusion"].items():
        out.append(
            say(
                "evaluate.confusion",
                answer=given,
                counts=" · ".join(f"{name} {count}" for name, count in row.items()),
            )
        )
    return out


def _match_lines(found: dict[str, Any]) -> list[str]:
    exact, loose = found["exact"], found["normalised"]
    low, high = (percent(v) for v in exact["interval_95"])
    out = [
        say(
            "evaluate.exact",
            share=percent(exact["share"]),
            right=exact["right"],
            n=found["n"],
            low=low,
            high=high,
        )
    ]
    out.append(
        say(
            "evaluate.normalised", share=percent(loose["share"]), right=loose["right"], n=found["n"]
        )
    )
    if "none_of_the_options" in found:
        out.append(say("evaluate.none_of", count=found["none_of_the_options"], n=found["n"]))
    return out


def _number(value: float | None) -> str:
    """A figure with four digits that count."""
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _count_lines(counts: dict[str, Any]) -> list[str]:
    """Only what a reader would not expect."""
    out = []
    if counts["many_turns"]:
        out.append(say("evaluate.many_turns", count=counts["many_turns"], n=counts["rows"]))
    if counts["system_of_run"] is not None:
        shown = counts["system_of_run"].replace("\n", " ")[:60]
        out.append(say("evaluate.system_of_run", system=shown))
    return out


def _calibration_lines(found: dict[str, Any]) -> list[str]:
    key = "off" if found["ece"] > found["by_chance_95"] else "fits"
    low, high = found["ece_interval_95"]
    return [
        say(
            f"evaluate.calibration_{key}",
            ece=percent(found["ece"]),
            low=percent(low),
            high=percent(high),
            confidence=percent(found["mean_confidence"]),
            accuracy=percent(found["accuracy"]),
            chance=percent(found["by_chance_95"]),
        )
    ]


def _abstention_lines(found: dict[str, Any]) -> list[str]:
    target = percent(found["target_error"])
    if "too_few" in found:
        values = {"target": target, "rows": found["rows"], "least": found["too_few"]}
        return [say("evaluate.abstention_few", **values)]
    if found["threshold"] is None:
        return [say("evaluate.abstention_none", target=target)]
    there = found["measured_on"]
    low, high = there["error_interval_95"]
    values = {
        "target": target,
        "threshold": f"{found['threshold']:.4f}",
        "share": percent(there["share_answered"]),
        "error": percent(there["error"]),
        "low": percent(low),
        "high": percent(high),
        "rows": there["rows"],
    }
    verdict = {True: "holds", False: "broken", None: "unsure"}[found["holds"]]
    return [say("evaluate.abstention", **values), say(f"evaluate.abstention_{verdict}")]


def _metric_lines(found: dict[str, Any]) -> list[str]:
    out = []
    for name, figure in found.items():
        if name in ("exact", "normalised"):
            continue  # they have lines of their own
        if figure["value"] is None:
            out.append(say("evaluate.metric_none", name=name, count=figure["left_out"]))
            continue
        shares = figure["scale"] == 1
        shown = percent if shares else _number
        low, high = figure["interval_95"]
        values = {"name": name, "value": shown(figure["value"]), "n": figure["n"]}
        values |= {"low": shown(low), "high": shown(high), "how": figure.get("how", "")}
        line = say("evaluate.metric", **values)
        out.append(line + (f" · {figure['how']}" if "how" in figure else ""))
        if figure["left_out"]:
            out[-1] += " · " + say("evaluate.metric_left_out", count=figure["left_out"])
    return out


def _reward_lines(found: dict[str, Any]) -> list[str]:
    out = []
    for name, figure in found.items():
        if not figure["n"]:
            out.append(say("evaluate.reward_none", name=name))
            continue
        low, high = figure["pass_interval_95"]
        values = {"name": name, "share": percent(figure["pass_rate"]), "n": figure["n"]}
        values |= {"low": percent(low), "high": percent(high), "passed": figure["passed"]}
        out.append(say("evaluate.reward", **values, mean=_number(figure["mean"])))
    return out


def _answer_lines(found: dict[str, Any]) -> list[str]:
    ends = " · ".join(f"{say(f'evaluate.end.{k}')} {n}" for k, n in found["ends"].items())
    out = [say("evaluate.ends", ends=ends)]
    if "table" in found:
        out.append(say("evaluate.table", file=found["table"]))
    return out
