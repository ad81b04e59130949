"""The model card of a run that is published as it is: an adapter, or a whole model.

As `card.py` for exports: numbers and names of methods only, no path of this machine, no file and no
sentence of the data. Its figures are those of `summary.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunewright.core.words import say
from tunewright.export import card, gguf_about
from tunewright.export.tuned import Tuned
from tunewright.record import folder as run_folder


def text(tuned: Tuned, name: str, base: str | None) -> str:
    """The card of a run. `name` is where it will lie on the hub, `base` what its base is called
    there."""
    assert tuned.target.run is not None
    summary = run_folder.read_summary(tuned.target.run)
    kind = "model" if tuned.whole else "adapter"
    title = name.rpartition("/")[2]
    shown = base or say("card.a_model")
    parts = [
        _head(tuned, base, kind),
        f"# {title}",
        say(f"push.card.{kind}", base=shown, method=tuned.target.settings.get("method.kind")),
        *card.section("made", card.made(tuned, {"versions": summary.get("versions")})),
        *card.section("data", card.data(tuned)),
        *card.section("figures", _figures(summary)),
        *card.section("limits", _limits(summary, base)),
        *card.section("loading", _loading(tuned, name, base)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(tuned: Tuned, base: str | None, kind: str) -> str:
    settings = tuned.target.settings
    licence = gguf_about.licence_of(tuned.base)
    tags = ["tunewright", settings.get("method.kind"), settings.get("objective.kind")]
    lines = ["---"]
    if base and gguf_about.HUB_ID.fullmatch(base):
        relation = "adapter" if kind == "adapter" else "finetune"
        lines += [f"base_model: {base}", f"base_model_relation: {relation}"]
    lines.append(f"license: {licence or 'other'}")
    lines += [] if licence else ["license_name: unknown"]
    lines += ["language:", *(f"- {one}" for one in card.languages(tuned))]
    lines.append(f"library_name: {'peft' if kind == 'adapter' else 'transformers'}")
    lines.append("pipeline_tag: text-generation")
    lines += ["tags:", *(f"- {tag}" for tag in dict.fromkeys(filter(None, tags)))]
    return "\n".join([*lines, "---"])


def _figures(summary: dict[str, Any]) -> list[str]:
    rows = [*_losses(summary), *_scores(summary), *_forgetting(summary)]
    if not rows:
        return []
    head = f"| {say('card.figure')} | {say('push.card.before')} | {say('push.card.after')} |"
    lines = [f"| {name} | {before} | {after} |" for name, before, after in rows]
    told = ["", say("push.card.intervals")] if any("[" in line for line in lines) else []
    return [f"{head}\n|---|---|---|", *lines, *told]


def _losses(summary: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    before, after = summary.get("held_out_loss_before"), summary.get("held_out_loss")
    if isinstance(after, float):
        yield say("push.card.held_out"), _number(before), _number(after)
    for name, value in (summary.get("held_out_figures") or {}).items():
        if isinstance(value, int | float):
            yield say("push.card.held_out_figure", name=name), "", _number(value)
    if isinstance(summary.get("final_loss"), float):
        yield (
            say("push.card.loss"),
            _number(summary.get("first_loss")),
            _number(summary["final_loss"]),
        )


def _scores(summary: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for one in (summary.get("evaluation") or {}).get("scores") or []:
        name = say("push.card.score", kind=one.get("kind"), metric=one.get("metric"))
        yield name, _with_interval(one.get("before")), _with_interval(one.get("after"))


def _forgetting(summary: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    score = (summary.get("forgetting") or {}).get("score")
    if isinstance(score, dict):
        low, high = score["interval_95"]
        change = f"{_number(score['difference'])} [{_number(low)}, {_number(high)}]"
        yield say("push.card.forgetting"), "", change


def _with_interval(found: Any) -> str:
    if isinstance(found, dict):
        ends = found.get("interval_95")
        value = found.get("value")
        between = f" [{_number(ends[0])}, {_number(ends[1])}]" if ends else ""
        return f"{_number(value)}{between}"
    return _number(found)


def _number(value: Any) -> str:
    """Every digit that summary.json has."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    return repr(value)


def _limits(summary: dict[str, Any], base: str | None) -> list[str]:
    found = [say("card.limit.measured"), say("push.card.limit.own")]
    found += [] if base else [say("push.card.limit.base")]
    broken = (summary.get("damage") or {}).get("findings") or []
    found += [say("push.card.limit.damage", count=len(broken))] if broken else []
    return [f"- {one}" for one in found]


def _loading(tuned: Tuned, name: str, base: str | None) -> list[str]:
    if tuned.whole:
        code = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")'
        )
    else:
        code = (
            "from peft import PeftModel\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'base = AutoModelForCausalLM.from_pretrained("{base or "BASE"}", dtype="auto")\n'
            f'model = PeftModel.from_pretrained(base, "{name}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")'
        )
    ollama = f"tunewright export ollama RUN {name.rpartition('/')[2]}"
    return [f"```python\n{code}\n```", "", "- Ollama: " + say("push.card.ollama", command=ollama)]
