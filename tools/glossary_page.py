"""`docs/glossary.md` and `docs/glossary.zh-CN.md`, made from `assets/glossary`: every term, what to
write here for it, and its page.

Run `python tools/glossary_page.py docs` after changing an entry; a test compares the committed
pages with what this makes.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tunewright.advise.glossary import Term, terms
from tunewright.core.files import write_text

NAMES = {"en": "glossary.md", "zh": "glossary.zh-CN.md"}
# (heading, introduction, "also called", "here", "page", "see also", link to the other language)
FRAME = {
    "en": (
        "# Glossary",
        "Words that courses, papers and other tools use, what they mean, and what to write here for each. `tunewright explain WORD` prints an entry; it "
        "takes every name on this page, in both languages, and keys of a run file such as `method.rank`.",
        "Also",
        "Here",
        "Page",
        "See",
        "[中文](glossary.zh-CN.md)",
    ),
    "zh": (
        "# 术语表",
        "课程、论文和其他工具所用的词，它们的意思，以及在这里该怎么写。`tunewright explain 词` 会显示一个词条；本页上的所有名称（中英文都可以）"
        "以及 `method.rank` 这样的配置键它都认得。",
        "又称",
        "写法",
        "文档",
        "参见",
        "[English](glossary.md)",
    ),
}


def page(lang: str) -> str:
    """The page of one language as Markdown, in the parts of the data file."""
    heading, intro, *_, other = FRAME[lang]
    lines = [
        heading,
        "",
        f"<!-- Made by `python tools/glossary_page.py docs` from assets/glossary. Change the texts there. -->\n{other}",
        "",
        intro,
    ]
    group = ""
    for term in terms(lang).values():
        if term.group != group:
            group = term.group
            lines += ["", f"## {group}"]
        lines += ["", *_entry(term, lang)]
    return "\n".join(lines) + "\n"


def _entry(term: Term, lang: str) -> list[str]:
    _, _, also, here, at, see, _ = FRAME[lang]
    stop, comma = ("。", "、") if lang == "zh" else (". ", ", ")
    colon = "：" if lang == "zh" else ": "
    names = [*term.aliases, *([terms("en")[term.key].name] if lang == "zh" else [])]
    parts = [
        f"{also}{colon}{comma.join(name for name in dict.fromkeys(names) if name != term.name)}"
    ]
    parts += [f"{here}{colon}`{term.ours}`"] if term.ours else []
    parts += [f"{at}{colon}[{term.page}]({term.page})"] if term.page else []
    others = [terms(lang)[key].name for key in term.see]
    parts += (
        [f"{see}{colon}{comma.join(f'[{name}](#{anchor(name)})' for name in others)}"]
        if others
        else []
    )
    return [f"### {term.name}", "", term.text, "", f"{stop.join(parts)}{stop.strip()}"]


def anchor(heading: str) -> str:
    """The anchor of a heading, as the usual hosts make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def main(argv: list[str]) -> int:
    """Write both pages into the folder named by the first argument."""
    folder = Path(argv[0] if argv else "docs")
    for lang, name in NAMES.items():
        write_text(folder / name, page(lang))
        print(folder / name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
