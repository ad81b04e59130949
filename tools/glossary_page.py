"""`docs/glossary.md` and `docs/glossary.zh-CN.md`, made from `assets/glossary`: every term, what to
write here for it, and its page.

Run `python tools/glossary_page.py docs` after changing an entry; a test compares the committed
pages with what this makes.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from tunewright.advise.glossary import PLACE, Term, terms
from tunewright.core.files import write_text
from tunewright.core.registry import AXES

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


def key_help(docs: Path, lang: str) -> dict[str, dict[str, str]]:
    """What the tables of a language's pages say of each key: in English it stands beside the field,
    in the code; elsewhere only the pages say it."""
    found: dict[str, dict[str, str]] = {}
    ending = "" if lang == "en" else ".zh-CN"
    pages = [docs / f"{name}{ending}.md" for name in ("data", "engine", "methods/quantised-base")]
    pages += sorted(
        p
        for room in ("methods", "objectives")
        for p in (docs / room).glob(f"*{ending}.md")
        if p.name != f"README{ending}.md"
    )
    for path in pages:
        kind = path.name.removesuffix(f"{ending}.md") if path.parent != docs else ""
        for key, text in re.findall(
            r"^\| `((?:data|engine|base|method|objective)\.[a-z_0-9]+)` \|[^|]*\| (.+?) \|$",
            path.read_text(encoding="utf-8"),
            re.MULTILINE,
        ):
            of_kind = kind if key.startswith(("method.", "objective.")) else ""
            found.setdefault(key, {}).setdefault(
                of_kind, re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)
            )
    _inherit(found)
    return dict(sorted(found.items()))


def _inherit(found: dict[str, dict[str, str]]) -> None:
    """A key that one kind's page leaves to another page has that page's sentence, where the two
    fields are described alike in the code."""
    for axis, registry in AXES.items():
        fields = [
            (f"{axis}.{name}", entry.name, info.description)
            for entry in registry
            for name, info in entry.config.model_fields.items()
            if entry.is_ours
        ]
        said = {
            (key, described): found[key][kind]
            for key, kind, described in fields
            if kind in found.get(key, {})
        }
        for key, kind, described in fields:
            if (key, described) in said:
                found[key].setdefault(kind, said[key, described])


def main(argv: list[str]) -> int:
    """Write both pages into the folder named by the first argument, and the help of keys that its
    Chinese pages give beside the entries."""
    folder = Path(argv[0] if argv else "docs")
    if (folder / "methods").is_dir():
        write_text(
            PLACE / "keys.zh.json",
            json.dumps(key_help(folder, "zh"), ensure_ascii=False, indent=1) + "\n",
        )
    for lang, name in NAMES.items():
        write_text(folder / name, page(lang))
        print(folder / name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
