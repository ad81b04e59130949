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
KEPT = (
    "class",
    "layout",
    "reason",
    "proof",
    "cache",
    "merge",
    "peft",
    "guessed",
    "experts",
    "gguf",
)
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
        "few": """## Checkpoints that are quantised already

`config.json` and the names, dtypes and shapes of the stored tensors say how a checkpoint is quantised; nothing is guessed from its name. A run can hold it in three ways:

- **As it is stored** (the default): the frozen matrices stay in few bits, and each is made wide while it is used, on any device. Methods that add something beside the base train on it: LoRA and its kin, learnt prompts, bottleneck adapters. `plan` and `--dry-run` count the stored bytes.
- **Wide** (`base.dequantise: true`): every matrix is decoded when it is read, one at a time, into the dtype of the run. Every method can train it.
- **Quantised anew** (`base.dequantise: true` with `base.bits: 4`): decoded and put into nf4, int4 or int8, one matrix at a time, so that the wide model is never held.

| stored as | from | as it is stored | wide |
|---|---|---|---|
| GPTQ, 2 to 8 bits, both forms of zero points, `desc_act` | AutoGPTQ, GPTQModel, AutoRound (`auto_round:auto_gptq`) | yes | yes |
| AWQ, 4 bits, `gemm` | AutoAWQ | yes | yes |
| bitsandbytes nf4, fp4, int8 | Transformers, `export quantize` | yes | yes |
| FP8, a scale for a block, a row or the matrix | DeepSeek, Qwen3, FBGEMM, compressed-tensors | yes | yes |
| compressed-tensors `pack-quantized`, `int-quantized` | llm-compressor, `export quantize` | yes | yes |
| experts in MXFP4 | gpt-oss | no: E-MODEL-94 | yes |
| experts in FP8 or packed integers | DeepSeek, Qwen3 MoE | no: E-MODEL-94 | yes |
| anything else: AQLM, HQQ, NVFP4, torchao, ... | | E-MODEL-91 | E-MODEL-91 |

Where a server would round activations as well (FP8, int8), training does not. `chat` and `evaluate` of the checkpoint itself make it wide; a run is asked as it was trained. `export merge` adds the update to the wide numbers and writes plain weights, and says so. Two matrices of one layer that the model has fused and the checkpoint has not, or the other way round, need `base.dequantise: true`.""",
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
        "few": """## 已经量化的检查点

检查点怎样量化，由 `config.json` 以及所存张量的名称、dtype 和形状得知，不从名字去猜。训练时有三种放法：

- **保持存储的样子**（默认）：冻结的矩阵保持低位数，用到哪个才还原哪个，任何设备都行。在基座旁边增加东西的方法都能在上面训练：LoRA 及其同类、学到的提示、瓶颈 adapter。`plan` 和 `--dry-run` 按存储的字节数计算。
- **还原成宽的**（`base.dequantise: true`）：读取时逐个矩阵解码成训练的 dtype。所有方法都能训练。
- **重新量化**（`base.dequantise: true` 加 `base.bits: 4`）：逐个矩阵解码后放进 nf4、int4 或 int8，内存里从不出现完整的宽模型。

| 存储方式 | 来自 | 保持存储的样子 | 还原 |
|---|---|---|---|
| GPTQ，2 到 8 位，两种零点形式，`desc_act` | AutoGPTQ、GPTQModel、AutoRound（`auto_round:auto_gptq`） | 是 | 是 |
| AWQ，4 位，`gemm` | AutoAWQ | 是 | 是 |
| bitsandbytes nf4、fp4、int8 | Transformers、`export quantize` | 是 | 是 |
| FP8，每块、每行或整个矩阵一个缩放 | DeepSeek、Qwen3、FBGEMM、compressed-tensors | 是 | 是 |
| compressed-tensors `pack-quantized`、`int-quantized` | llm-compressor、`export quantize` | 是 | 是 |
| MXFP4 的专家 | gpt-oss | 否：E-MODEL-94 | 是 |
| FP8 或打包整数的专家 | DeepSeek、Qwen3 MoE | 否：E-MODEL-94 | 是 |
| 其他：AQLM、HQQ、NVFP4、torchao 等 | | E-MODEL-91 | E-MODEL-91 |

服务时会连激活也舍入的（FP8、int8），训练时不舍入。对检查点本身 `chat` 和 `evaluate` 时还原成宽的；训练结果按训练时的放法来问。`export merge` 把更新加到宽的数值上，写出普通权重，并说明这一点。模型里合在一起、检查点里分开（或相反）的矩阵，需要 `base.dequantise: true`。""",
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
    lines += ["", words["few"]]
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
