"""`docs/models.md` and `docs/models.zh-CN.md`: what every family of models gets, and the data from
which they and `tunewright list models` are made (`assets/models/families.json`).

`python tools/families_page.py docs` writes the pages from the data; with `--try` every causal class
of the installed Transformers is tried first (about ten minutes), as the test of all families does.
`--try NAME ...` tries these alone and keeps the rest.
"""

from __future__ import annotations

import datetime
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tunewright.core.errors import first_line
from tunewright.core.files import write_text
from tunewright.core.words import ASSETS
from tunewright.models.proven import WAYS

DATA = ASSETS / "models" / "families.json"
NAMES = {"en": "models.md", "zh": "models.zh-CN.md"}
KEPT = ("class", "layout", "reason", "proof", "cache", "merge", "peft", "guessed", "experts", "gguf")
FRAME: dict[str, Any] = {
    "en": {
        "title": "# Every family of models",
        "other": "[中文](models.zh-CN.md)",
        "intro": """Every causal class that Transformers {transformers} has, {count} in all, was tried with a tiny random model of it on {date}: opened from a saved folder, its parts named, LoRA put on every linear layer, the gradients compared with those of stock Transformers (one sample at a time), saved, reopened here and in plain PEFT {peft}, merged, and asked for answers, which were compared with Transformers' own. `tunewright list models` prints this table.

- **training**: `tree` computes what samples share once; `padded` gives every sample a row of its own, for the reason named. Both give the gradients of stock Transformers: in float32 within 1e-5 of each tensor's length, or within twice the error that Transformers' own gradient has against float64. Where rounding alone is larger ({float64}) they are compared in float64, where each has to be within 1e-9, and then in float32 within ten times Transformers' own error. The rule is the same for every family.
- **answers**: how tokens are written. `tree` keeps keys and values of its own, prompts share beginnings; `cache` uses the model's own cache, answers of any lengths side by side; `cache*` the same for questions of one length at a time; `text` reads the whole text for every token, because the class keeps no cache.
- **experts**: `targets: [linear, experts]` trains them.
- **GGUF**: `tunewright export gguf` writes it.

A family that is not here works too, when Transformers has it: what is true of it is found out when it is opened, and said.""",
        "columns": "| family | class | training | answers | merge | experts | GGUF |",
        "open": "## What is not proven yet",
        "open_intro": "{count} of the {all} classes failed at a step of the trial. A run on one of them says so before its first step.",
        "open_columns": "| family | step | what was found |",
        "cannot": "## What cannot be trained",
        "cannot_intro": "{count} of the {all} classes; opening one says why.",
        "cannot_columns": "| family | reason |",
        "yes": "yes",
        "same": "",
    },
    "zh": {
        "title": "# 所有模型系列",
        "other": "[English](models.md)",
        "intro": """Transformers {transformers} 里的每一个因果语言模型类（共 {count} 个）都在 {date} 用一个随机的小模型试过：从保存的文件夹打开，识别各部分，在每个线性层上放 LoRA，把梯度与原版 Transformers（每次一个样本）对比，保存，在这里和原版 PEFT {peft} 里重新打开，合并，并让它回答，回答与 Transformers 自己的对比。`tunewright list models` 显示这张表。

- **训练**：`tree` 让样本共有的部分只算一次；`padded` 让每个样本单独占一行，原因写在后面。两者的梯度都与原版 Transformers 相同：float32 下每个张量的相对差不超过 1e-5，或不超过 Transformers 自己的梯度相对 float64 的误差的两倍。光是舍入就超过这个界限的（{float64}），先在 float64 下比较，差不得超过 1e-9，再在 float32 下不得超过 Transformers 自己误差的十倍。这条规则对每个系列都一样。
- **回答**：词元怎样写出。`tree` 自己保存键和值，提示共享开头；`cache` 用模型自己的缓存，不同长度的回答并排进行；`cache*` 同上，但每次只处理一种长度的问题；`text` 每个词元都重读全文，因为这个类没有缓存。
- **专家**：`targets: [linear, experts]` 会训练它们。
- **GGUF**：`tunewright export gguf` 能写出。

没有列出的系列，只要 Transformers 支持，也能用：打开时会查明情况并说明。""",
        "columns": "| 系列 | 类 | 训练 | 回答 | 合并 | 专家 | GGUF |",
        "open": "## 尚未证实的",
        "open_intro": "{all} 个类中有 {count} 个在试验的某一步没有通过。用它们训练时，第一步之前会说明这一点。",
        "open_columns": "| 系列 | 步骤 | 发现 |",
        "cannot": "## 不能训练的",
        "cannot_intro": "{all} 个类中的 {count} 个；打开时会说明原因。",
        "cannot_columns": "| 系列 | 原因（英文） |",
        "yes": "是",
        "same": "",
    },
}

def tried(names: list[str]) -> dict[str, Any]:
    """The data of the table, of these families alone or of all. One that fails at a step stands
    under `open`, with the step and what went wrong."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import peft
    import transformers
    from helpers import causal
    from helpers.family_check import Check

    from tunewright.export.gguf_families import FAMILIES

    before = json.loads(DATA.read_text("utf-8")) if names and DATA.is_file() else {}
    found, failed = dict(before.get("families", {})), dict(before.get("open", {}))
    for model_type in causal.CANNOT:
        found.pop(model_type, None)
        failed.pop(model_type, None)
    for model_type in names or [t for t in causal.types() if t not in causal.CANNOT]:
        with tempfile.TemporaryDirectory() as folder:
            check = Check(model_type, Path(folder))
            wrong = {step: first_line(e) for step, e in check.run() if e is not None}
        if wrong:
            failed[model_type] = wrong
            found.pop(model_type, None)
            print(model_type, wrong, flush=True)
            continue
        failed.pop(model_type, None)
        row = check.row | {
            "experts": any(r.startswith("experts.") for r in check.row.get("roles", [])),
            "gguf": model_type in FAMILIES,
        }
        found[model_type] = {name: row[name] for name in KEPT if name in row}
        print(model_type, found[model_type], flush=True)
    return {
        "date": datetime.date.today().isoformat(),
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "families": dict(sorted(found.items())),
        "open": dict(sorted(failed.items())),
        "cannot": dict(causal.CANNOT),
    }


def page(data: dict[str, Any], lang: str) -> str:
    """The page of one language as Markdown."""
    words = FRAME[lang]
    families, failed, cannot = data["families"], data["open"], data["cannot"]
    other = [f"`{name}`" for name, row in families.items() if row.get("proof") == "float64"]
    numbers = {
        "float64": ", ".join(other) or "-",
        "transformers": data["transformers"],
        "peft": data["peft"],
        "date": data["date"],
        "count": len(families) + len(failed) + len(cannot),
    }
    lines = [
        words["title"],
        "",
        f"<!-- Made by `python tools/families_page.py docs` from assets/models/families.json. -->\n"
        f"{words['other']}",
        "",
        words["intro"].format(**numbers),
        "",
        words["columns"],
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in families.items():
        layout = row["layout"] + (f": {row['reason']}" if row.get("reason") else "")
        cells = [
            f"`{name}`",
            row["class"],
            layout.replace("|", "\\|"),
            WAYS[row["cache"]],
            *(words["yes"] if row[key] else "" for key in ("merge", "experts", "gguf")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if failed:
        intro = words["open_intro"].format(count=len(failed), all=numbers["count"])
        lines += ["", words["open"], "", intro, "", words["open_columns"], "|---|---|---|"]
    for name, steps in failed.items():
        told = "; ".join(steps.values()).replace("|", "\\|")
        lines.append(f"| `{name}` | {', '.join(steps)} | {told} |")
    intro = words["cannot_intro"].format(count=len(cannot), all=numbers["count"])
    lines += ["", words["cannot"], "", intro, "", words["cannot_columns"], "|---|---|"]
    lines += [f"| `{name}` | {why} |" for name, why in cannot.items()]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Write data (with `--try`) and pages into the folder that is named."""
    folder = Path(arguments[0])
    if "--try" in arguments:
        names = arguments[arguments.index("--try") + 1 :]
        write_text(DATA, json.dumps(tried(names), ensure_ascii=False, indent=1) + "\n")
    data = json.loads(DATA.read_text("utf-8"))
    for lang, name in NAMES.items():
        write_text(folder / name, page(data, lang))


if __name__ == "__main__":
    main(sys.argv[1:])
