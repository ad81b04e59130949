"""The model card of an export: README.md in the form that hubs read.

A YAML head (base, licence, languages, tags), then what it is, how it was made, the data in numbers,
the figures of the proof with their intervals, the limits, and how it is loaded. It may be
published, so it names no path of this machine, no file of the data, and no sentence of it: numbers
and names of methods only. Written in the reader's language.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tunewright.core.files import readable_size, write_text
from tunewright.core.words import language, say
from tunewright.export import gguf_about, prompts
from tunewright.export.tuned import Tuned
from tunewright.record import folder as run_folder

FILE = "README.md"
CJK = ("\u4e00", "\u9fff")
SOME = 0.05
"""Share of letters from which on a script counts as a language of the model."""


def write(folder: Path, tuned: Tuned, record: dict[str, Any]) -> None:
    """Write the card of what `record` proves into `folder`."""
    write_text(folder / FILE, text(tuned, record))


def text(tuned: Tuned, record: dict[str, Any], file: str = "") -> str:
    """The card of an export of `tuned`, whose proof is `record`. `file`: its name, where it is a
    single one."""
    known = gguf_about.published(tuned)
    title = known.rpartition("/")[2] if known else say("card.a_model")
    kind = say(f"card.kind.{record['exported'].replace(' ', '_')}", **_shown(record))
    parts = [
        head(tuned, record, known),
        f"# {title}: {kind}",
        say("card.intro" if not tuned.is_plain else "card.intro_plain", base=known or title),
        *section("made", made(tuned, record)),
        *section("data", data(tuned)),
        *section("figures", _figures(record)),
        *section("limits", _limits(record)),
        *section("loading", _loading_file(record, file) if file else _loading(record)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def section(name: str, lines: list[str]) -> list[str]:
    return [f"## {say(f'card.{name}')}", "\n".join(lines)] if lines else []


def head(tuned: Tuned, record: dict[str, Any], known: str | None) -> str:
    """What a hub reads by machine."""
    is_hub = known is not None and gguf_about.HUB_ID.fullmatch(known) is not None
    licence = gguf_about.licence_of(tuned.base)
    settings = tuned.target.settings
    tags = ["tunewright", settings.get("method.kind"), settings.get("objective.kind")]
    tags += [record["exported"], record.get("type")]
    lines = ["---"]
    if is_hub:
        lines.append(f"base_model: {known}")
        if record["exported"] == "gguf adapter":
            lines.append("base_model_relation: adapter")
        elif _is_rounded(record):
            lines.append("base_model_relation: quantized")
        elif not tuned.is_plain:
            lines.append("base_model_relation: finetune")
    lines.append(f"license: {licence or 'other'}")
    if not licence:
        lines.append("license_name: unknown")
    lines += ["language:", *(f"- {one}" for one in languages(tuned))]
    is_gguf = record["exported"].startswith("gguf")
    lines.append(f"library_name: {'gguf' if is_gguf else 'transformers'}")
    lines.append("pipeline_tag: text-generation")
    lines += ["tags:", *(f"- {tag}" for tag in dict.fromkeys(filter(None, tags)))]
    return "\n".join([*lines, "---"])


def languages(tuned: Tuned) -> list[str]:
    """English, Chinese or both, by the letters of the questions that the run was asked."""
    asked = prompts.choose(tuned.target, tuned.renderer, 1024)
    said = "".join(tuned.renderer.decode(ids) for ids in asked.prompts.ids)
    letters = [c for c in said if c.isalpha()]
    chinese = sum(CJK[0] <= c <= CJK[1] for c in letters) / max(1, len(letters))
    found = [name for name, share in (("en", 1 - chinese), ("zh", chinese)) if share >= SOME]
    return found or [language()]


def made(tuned: Tuned, record: dict[str, Any]) -> list[str]:
    settings = tuned.target.settings
    lines = []
    if tuned.target.run is not None:
        summary = run_folder.read_summary(tuned.target.run)
        facts = {
            "method": settings.get("method.kind"),
            "objective": settings.get("objective.kind"),
            "rank": settings.get("method.rank"),
            "learning_rate": summary.get("learning_rate"),
            "steps": summary.get("steps"),
            "samples": summary.get("samples"),
            "trainable_parameters": summary.get("trainable_parameters"),
            "seed": settings.get("engine.seed"),
        }
        lines += [
            f"- {say(f'card.fact.{k}')}: {_plain(v)}" for k, v in facts.items() if v is not None
        ]
    for key in ("type", "bits_per_weight", "group", "way", "share", "blocks_removed", "dtype"):
        value = record.get(key)
        if value is not None and not isinstance(value, dict):
            lines.append(f"- {say(f'card.fact.{key}')}: {_plain(value)}")
    calibrated = record.get("calibrated_on") or {}
    if calibrated.get("rows"):
        key = "card.calibrated_given" if calibrated.get("given") else "card.calibrated"
        lines.append("- " + say(key, **calibrated))
    tools = {"tunewright", "torch", "transformers", "peft", record.get("package")}
    versions = {k: v for k, v in (record.get("versions") or {}).items() if k in tools}
    if versions:
        named = ", ".join(f"{name} {version}" for name, version in versions.items())
        lines.append(f"- {say('card.fact.versions')}: {named}")
    return lines


def data(tuned: Tuned) -> list[str]:
    """The data report in numbers; names of files and rows stay where they are."""
    if tuned.target.run is None:
        return []
    report = run_folder.read_data_report(tuned.target.run)
    keys = ("rows_read", "rows_kept", "train", "held_out", "tokens_total", "learnt_tokens")
    found = [(key, report.get(key)) for key in (*keys, "duplicates", "format")]
    return [f"- {say(f'card.data.{k}')}: {_plain(v)}" for k, v in found if v is not None]


def _figures(record: dict[str, Any]) -> list[str]:
    rows: list[tuple[str, str]] = []
    loss = record.get("loss")
    if loss:
        which = "held_out" if loss.get("held_out_prompts") else "learnt"
        for key in ("base", "run", "exported"):
            if loss.get(key) is not None:
                rows.append((say(f"card.loss.{which}.{key}"), f"{loss[key]:.4f}"))
    positions = record.get("positions")
    if positions and "top1_agreement" in record:
        rows.append((say("card.agreement"), _share(record["top1_agreement"], positions)))
    if "divergence_nats" in record:
        rows.append((say("card.divergence"), f"{record['divergence_nats']:.2g} nats"))
    answers = record.get("answers")
    if answers and answers.get("with_expectation"):
        count = answers["with_expectation"]
        rows.append((say("card.right"), _share(answers["right"] / count, count)))
    if answers and answers.get("asked"):
        count = answers["asked"]
        rows.append((say("card.stopped"), _share(answers["stopped"] / count, count)))
    for key in ("weight_bytes", "file_bytes"):
        if record.get(key):
            rows.append((say("card.size"), readable_size(record[key])))
    memory = (record.get("memory") or {}).get("exported")
    if memory:
        rows.append((say("card.memory"), readable_size(memory["answering_bytes"])))
        rows.append((say("card.speed"), f"{memory['tokens_per_second']} tokens/s"))
    if not rows:
        return []
    head = f"| {say('card.figure')} | {say('card.value')} |\n|---|---|"
    return [head, *(f"| {name} | {value} |" for name, value in rows), "", say("card.intervals")]


def _share(share: float, count: int) -> str:
    low, high = interval(share, count)
    return f"{100 * share:.1f} % ({100 * low:.1f}-{100 * high:.1f}, n = {count:,})"


def interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` (Wilson 1927)."""
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)


def _limits(record: dict[str, Any]) -> list[str]:
    found = [say("card.limit.measured")]
    found += [say("card.limit.rounded")] if _is_rounded(record) else []
    found += [say("card.limit.pruned")] if record["exported"] in ("prune", "shrink") else []
    return [f"- {one}" for one in [*found, *record.get("notes", []), *record.get("warnings", [])]]


def _is_rounded(record: dict[str, Any]) -> bool:
    if record["exported"] == "gguf":
        return record.get("type") not in ("f32", "f16", "bf16")
    return record["exported"] in ("quantize", "shrink", "ollama")


def _loading_file(record: dict[str, Any], file: str) -> list[str]:
    """Of a GGUF file, or of an adapter beside its base as GGUF."""
    if record["exported"] == "gguf adapter":
        return ["```", f"llama-cli -m BASE.gguf --lora {file}", "```", "", say("card.load.lora")]
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained(".", gguf_file="{file}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained(".", gguf_file="{file}")'
    )
    lines = ["```", f"llama-cli -m {file}", f"tunewright chat {file}", "```"]
    lines += ["", f"```python\n{code}\n```", ""]
    return [*lines, "- Ollama: " + say("card.load.ollama")]


def _loading(record: dict[str, Any]) -> list[str]:
    name = "THIS_FOLDER"
    if record["exported"] == "ollama":
        return ["```", "ollama create NAME -f Modelfile && ollama run NAME", "```"]
    package = record.get("package")
    install = f"pip install transformers {package}\n" if package else ""
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
        'asked = [{"role": "user", "content": "Hello"}]\n'
        "ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, "
        'return_tensors="pt", return_dict=True)\n'
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=64)[0]))"
    )
    lines = [f"```\n{install}```\n"] if install else []
    lines += [f"```python\n{code}\n```", "", say("card.load.own"), ""]
    return [*lines, "- PEFT: " + say("card.load.peft"), "- Ollama: " + say("card.load.ollama")]


def _plain(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    return {"type": record.get("type", ""), "share": record.get("share", "")}
