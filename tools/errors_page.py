"""`docs/errors.md` and `docs/errors.zh-CN.md`, made from the texts in `assets/locales`: what each
code says, what to do, and why it exists.

Run `python tools/errors_page.py docs` after changing a text; a test compares the committed pages
with what this makes.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tunewright.core.files import write_text
from tunewright.core.words import LANGUAGES, error_codes, error_text

NAMES = {"en": "errors.md", "zh": "errors.zh-CN.md"}
# (heading, introduction, "what to do", link to the other language)
FRAME = {
    "en": (
        "# Error codes",
        "Every message of Tunewright that stops a command carries one of these codes. `tunewright explain CODE` prints the same text. "
        "Words in braces are filled in with what was found. Exit codes: 2 wrong usage or input (nothing was created or changed), 1 the run failed, "
        "128 + n stopped by signal n.",
        "**What to do:**",
        "[中文](errors.zh-CN.md)",
    ),
    "zh": (
        "# 错误代码",
        "Tunewright 每条使命令停下的消息都带有下面的一个代码；`tunewright explain 代码` 会显示同样的内容。花括号里的词会换成实际情况。"
        "退出码：2 表示用法或输入有误（没有创建或改动任何东西），1 表示运行失败，128 + n 表示被信号 n 中止。",
        "**怎么办：**",
        "[English](errors.md)",
    ),
}
GROUPS = {
    "CONFIG": ("Run file and command line", "运行文件与命令行"),
    "COMPAT": ("Parts that do not go together", "不能搭配的部分"),
    "DATA": ("Data", "数据"),
    "MODEL": ("Models", "模型"),
    "METHOD": ("Methods", "训练方法"),
    "RUN": ("Run folders", "运行文件夹"),
    "TRAIN": ("Training", "训练"),
    "CKPT": ("Checkpoints", "检查点"),
    "KEY": ("Settings of a run that do not fit", "不合适的运行设置"),
    "FIT": ("Memory and time", "内存与时间"),
    "INIT": ("Starting a run file", "新建运行文件"),
    "EXPORT": ("Export", "导出"),
    "SERVE": ("Serving", "提供服务"),
    "CHAT": ("Chat", "聊天"),
    "BATCH": ("Batches of prompts", "批量提问"),
    "EVAL": ("Evaluation", "评测"),
    "EXAM": ("Exams", "考试"),
    "JUDGE": ("Judges", "评判者"),
    "ADVISE": ("Advice", "建议"),
    "ADDR": ("Addresses of chat models", "对话模型的地址"),
    "DOCTOR": ("Doctor", "诊断"),
    "REWARD": ("Rewards", "奖励"),
    "PIPE": ("Pipelines", "流水线"),
    "THINK": ("Thinking", "思考"),
    "CALL": ("Callbacks", "回调"),
    "TRACK": ("Trackers", "跟踪器"),
    "SWEEP": ("Sweeps", "搜索"),
    "MCP": ("Agents", "智能体"),
    "PUSH": ("Hubs", "模型中心"),
}
CODE = re.compile(r"E-[A-Z]+-\d\d")


def page(lang: str) -> str:
    """The page of one language as Markdown, codes grouped by their middle word."""
    heading, intro, do, other = FRAME[lang]
    lines = [
        heading,
        "",
        f"<!-- Made by `python tools/errors_page.py docs` from the locale files. Change the texts there. -->\n{other}",
        "",
        intro,
    ]
    area = ""
    for code in sorted(error_codes(), key=_order):
        if code.split("-")[1] != area:
            area = code.split("-")[1]
            lines += ["", f"## {GROUPS.get(area, (area, area))[LANGUAGES.index(lang)]}"]
        text = {key: _markdown(value) for key, value in error_text(code, lang).items()}
        lines += ["", f"### {code}", "", f"> {text['what']}"]
        lines += ["", f"{do} {text['do']}"] if text["do"] else []
        lines += ["", text["page"]] if text["page"] else []
    return "\n".join(lines) + "\n"


def _order(code: str) -> tuple[int, str]:
    area = code.split("-")[1]
    return (list(GROUPS).index(area) if area in GROUPS else len(GROUPS)), code


def _markdown(text: str) -> str:
    """A message template as Markdown: doubled braces are single ones, `!r` is for programmers, and
    nothing is taken for HTML."""
    return re.sub(r"\{(\w+)!r\}", r"{\1}", text.replace("{{", "{").replace("}}", "}")).replace(
        "<", "&lt;"
    )


def codes_in(source: Path) -> set[str]:
    """Every code that stands in the Python files under `source`."""
    return {
        code
        for path in source.rglob("*.py")
        for code in CODE.findall(path.read_text(encoding="utf-8"))
    }


def main(argv: list[str]) -> int:
    """Write both pages into the folder named by the first argument."""
    folder = Path(argv[0] if argv else "docs")
    for lang, name in NAMES.items():
        write_text(folder / name, page(lang))
        print(folder / name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
