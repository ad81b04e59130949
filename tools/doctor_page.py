"""`docs/doctor.md` and `docs/doctor.zh-CN.md`: how the doctor is asked, and one entry for each code,
made from the texts in `assets/locales`.

Run `python tools/doctor_page.py docs` after changing a text; a test compares the committed pages
with what this makes.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tunewright.advise.doctor.judging import RULES
from tunewright.core.files import write_text
from tunewright.core.words import LANGUAGES, catalogue

NAMES = {"en": "doctor.md", "zh": "doctor.zh-CN.md"}
NOTE = "<!-- Made by `python tools/doctor_page.py docs`. Change the texts there and in assets/locales/*/doctor.json. -->"
INTRO = {
    "en": """\
# Why did it not learn, or learn too much?

{note}
[中文](doctor.zh-CN.md)

```bash
tunewright doctor runs/mine                                        # a run of ours
tunewright doctor runs/mine --data rows.json                       # and let both models read rows
tunewright doctor their-adapter --model BASE --data rows.json      # a PEFT adapter of another tool
tunewright doctor their-model --model BASE --data rows.json        # a whole fine-tuned model
```

`--json` prints everything for machines, `--strict` ends with exit code 1 if a finding is bad, `--rows N` says how many rows both models read (32).
Without `--strict` the exit code is 0 whatever is found; 2 means that a folder or the rows could not be read. Nothing is written.

Every run is examined at its end as well, from figures that it has anyway: all findings stand in `doctor.json` of the run folder and in its report,
the worst one in the last lines on the terminal.

**What is looked at.** Of a run: its steps, its held-out loss, its rows, the answers before and after, the adapter's values and the decoding settings
of its model. Of a folder of another tool: its files, its training log (`trainer_state.json`, `trainer_log.jsonl`, or any small JSON, JSON lines or CSV file with a
`loss`), and, with `--data`, what the base and the trained model say of the same rows. Give rows that were trained on: whether something was learnt shows there.
What the figures are missing for is listed as not checked.

**How a probe sees a fault.** A training leaves its mark where its labels stood: what was to be predicted there has become likelier than it is for the base. So the
probe compares, token by token, the next token with the ones around it (labels that are shifted), the answers with the questions (a mask that is misplaced), the
stop token with padding, and the chat's form with other forms of asking. Of 32 short rows that is one pass through each model; the trained one also writes eight answers.

**Severity.** `bad`: the training is worthless, or its answers are, until this is changed. `warn`: it works less well than it could. Causes hide their effects: where
labels are shifted, nobody needs to be told that the stop token was not learnt.

**In `doctor.json`.** `version`; `findings`, the worst first, each with `code`, `name` (two or three words), `severity`, `evidence` (the figures), `what`, `cause` and `remedy`; `checked` and `unchecked`, the codes
that could and could not be looked for.

**What it cannot see.** Padding that is the same token as the stop token: a model that learnt to stop goes on stopping by itself, so this is named only beside
shifted labels (it does no harm to the answers). What tokens another tool's labels covered, if the training has not moved the model and its log does not say what loss it began at.

## Findings

Words in braces are filled in with what was found.""",
    "zh": """\
# 为什么没学到，或学过了头？

{note}
[English](doctor.md)

```bash
tunewright doctor runs/mine                                        # 本工具的运行
tunewright doctor runs/mine --data rows.json                       # 并让两个模型读取数据
tunewright doctor their-adapter --model BASE --data rows.json      # 其他工具的 PEFT 适配器
tunewright doctor their-model --model BASE --data rows.json        # 完整的微调模型
```

`--json` 输出供程序读取的全部内容；`--strict` 在有严重发现时以退出码 1 结束；`--rows N` 指定两个模型读取的行数（32）。
不加 `--strict` 时无论发现什么退出码都是 0；2 表示文件夹或数据无法读取。不会写入任何文件。

每次运行结束时也会自动诊断，只用运行已有的数值：全部发现写入运行文件夹的 `doctor.json` 和报告，最严重的一项显示在终端的最后几行。

**检查什么。** 对于运行：训练步骤、留出损失、数据行、训练前后的回答、适配器的数值以及模型的解码设置。对于其他工具的文件夹：其文件、训练日志
（`trainer_state.json`、`trainer_log.jsonl`，或任何含 `loss` 的小型 JSON、JSON Lines、CSV 文件），以及在给出 `--data` 时基座与训练后的模型对同样数据行的判断。
请给出训练过的数据行：是否学到了东西只有在那里才看得出来。缺少数值的项目会列为未检查。

**探测如何看出故障。** 训练会在标签所在之处留下痕迹：那里要预测的内容变得比基座更可能。因此探测逐个 token 比较：下一个 token 与它周围的 token（标签移位）、
回答与问题（掩码错位）、结束标记与填充、对话模板与其他提问形式。对 32 行短数据来说，每个模型只需读一遍；训练后的模型另外写出八个回答。

**严重程度。** `bad`（严重）：在改正之前，这次训练或其回答毫无价值。`warn`（警告）：效果不如应有的好。原因会隐去它的后果：标签移位时，无需再说没有学到结束标记。

**`doctor.json` 的内容。** `version`；`findings`，最严重的在前，每项含 `code`、`name`（两三个词）、`severity`、`evidence`（数值）、`what`、`cause` 和 `remedy`；`checked` 与 `unchecked`，即检查过与未能检查的代码。

**看不出什么。** 与结束标记相同的填充：学会停止的模型会自行继续停止，因此只有在标签移位时才会提到它（它不影响回答）。若训练没有改变模型，日志也没有记录最初的损失，则看不出其他工具的标签覆盖了哪些 token。

## 发现的问题

花括号里的词会换成实际情况。""",
}
LABELS = {"en": ("Seen:", "Why:", "What to do:"), "zh": ("现象：", "原因：", "怎么办：")}
FIELD = re.compile(r"\{(\w+)(?:![rs])?(?::[^{}]*)?\}")


def page(lang: str) -> str:
    """The page of one language as Markdown, the codes in the order of the table of rules."""
    seen, why, do = LABELS[lang]
    texts = catalogue(lang)
    lines = [INTRO[lang].format(note=NOTE)]
    for rule in RULES:
        for code in rule.codes:
            text = {
                part: FIELD.sub(r"{\1}", texts[f"doctor.{code}.{part}"]).replace("<", "&lt;")
                for part in ("name", "what", "cause", "do")
            }
            lines += ["", f"### {code}", "", f"**{text['name']}**", "", f"> {seen} {text['what']}"]
            lines += ["", f"{why} {text['cause']}", "", f"**{do}** {text['do']}"]
    return "\n".join(lines) + "\n"


def main(words: list[str]) -> int:
    """Write both pages into the folder that is named."""
    folder = Path(words[0] if words else "docs")
    for lang in LANGUAGES:
        path = folder / NAMES[lang]
        write_text(path, page(lang))
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
