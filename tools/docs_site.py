"""The documentation site: the pages of docs/ in both languages, the README in front, and the API
reference made from docstrings.

    python tools/docs_site.py build [OUT]     # strict: a dead link or a missing page ends it with 1
    python tools/docs_site.py pages FOLDER    # only the pages that it is built from, in FOLDER/en, /zh

docs/ stays readable where it lies, on a code host and in an editor; here its links are made those
of a site. Each language is a site of its own with its own search, the Chinese one below `zh/`.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import course

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
HOST = "https://github.com/tunewright/tunewright"
ADDRESS = "https://tunewright.github.io/tunewright/"
PICTURES = (".svg", ".png", ".gif")
"""What goes along with the pages; other files are linked to on the code host."""
LANGUAGES = ("en", "zh")
CHINESE = ".zh-CN.md"
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^()\s]+)\)")
OTHER_LANGUAGE = re.compile(r"^\[(?:中文|English)\]\([^)]*\)\n?", re.MULTILINE)
FENCE = re.compile(r"(^```.*?^```\n?)", re.DOTALL | re.MULTILINE)
NAV: list[tuple[str, str, list[str]]] = [
    ("Start", "开始", ["index", "overview", "data", "engine", "faq"]),
    ("Course", "课程", ["course/*"]),
    ("Before training", "训练之前", ["data-check", "advise", "plan", "fit", "migrating"]),
    ("Training", "训练", ["pipelines", "rewards", "thinking", "callbacks", "sweep", "track"]),
    ("Many devices", "多个设备", ["one-gpu", "many-gpus", "cluster"]),
    ("After training", "训练之后", [
        *("evaluate", "damage", "compare", "exams", "judge", "numbers", "gate", "doctor"),
        *("export", "smaller", "push"),
    ]),
    ("Use", "使用", ["studio", "serve", "chat", "batch", "agents", "models", "models-safety"]),
    ("Methods", "方法", ["methods/*"]),
    ("Objectives", "目标", ["objectives/*"]),
    ("Reference", "参考", ["reference", "errors", "glossary", "design-opinions", "LOG"]),
]  # fmt: skip
CALLBACKS = (
    *("Callback", "Running", "RunStarted", "StepTaken", "HeldOutMeasured", "CheckpointSaved"),
    *("QuestionsAnswered", "Answer", "RunFinished"),
)


def pages(lang: str) -> dict[str, Path]:
    """Page of the site (`methods/lora.md`) -> its file, for one language. What is not translated
    stands in English on both."""
    found: dict[str, Path] = {}
    for path in sorted(DOCS.rglob("*.md")):
        name = path.relative_to(DOCS).as_posix()
        if name.endswith(CHINESE):
            if lang == "zh":
                found[name.removesuffix(CHINESE) + ".md"] = path
        elif lang == "en" or not path.with_name(path.stem + CHINESE).exists():
            found[name] = path
    for lesson in course.lessons():
        found[f"course/{lesson.path.stem}.md"] = lesson.notebook(lang)
    readme = "README.zh-CN.md" if lang == "zh" else "README.md"
    found["overview.md"] = found.pop("README.md")
    return {"index.md": ROOT / readme, **found}


def assemble(folder: Path, lang: str) -> None:
    """Write the pages of a language into `folder`, links made those of the site."""
    shown = pages(lang)
    where = {path.resolve(): (name, True) for name, path in shown.items()}
    # A link to a page in the other language leads to its twin, whose headings are others.
    for name, path in shown.items():
        twin = path.with_name(path.name.removesuffix(CHINESE) + ".md")
        for other in (twin, path.with_name(f"{path.stem}{CHINESE}")):
            where.setdefault(other.resolve(), (name, False))
    for name, path in shown.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_page(path, name, where), encoding="utf-8")
        for drawn, svg in pictures_of(path).items():
            (target.parent / "pictures").mkdir(exist_ok=True)
            (target.parent / "pictures" / drawn).write_text(svg, encoding="utf-8")
    for picture in (p for p in DOCS.rglob("*") if p.suffix in PICTURES):
        place = folder / picture.relative_to(DOCS)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, place)
    (folder / "reference.md").write_text(reference(lang), encoding="utf-8")
    (folder / "llms.txt").write_text(llms(lang), encoding="utf-8")


def text_of(path: Path) -> str:
    """The Markdown of a page, or that of a lesson's notebook."""
    if path.suffix == ".ipynb":
        return course.page(path)[0]
    return path.read_text(encoding="utf-8")


def pictures_of(path: Path) -> dict[str, str]:
    """The pictures that a lesson's cells drew, by the names that its page gives them."""
    return course.page(path)[1] if path.suffix == ".ipynb" else {}


def _page(path: Path, name: str, where: dict[Path, tuple[str, bool]]) -> str:
    text = text_of(path)
    parts = FENCE.split(text)
    for number in range(0, len(parts), 2):
        plain = OTHER_LANGUAGE.sub("", parts[number])
        parts[number] = LINK.sub(lambda m: f"{m[1]}({_link(m[2], path, name, where)})", plain)
    return "".join(parts)


def _link(target: str, path: Path, name: str, where: dict[Path, tuple[str, bool]]) -> str:
    """A link of a file as a link of its page: to another page, or to the file on the code host."""
    if re.match(r"[a-z]+:|#", target):
        return target
    if path.suffix == ".ipynb" and target.startswith("pictures/"):
        return target
    file, mark, anchor = target.partition("#")
    found = (path.parent / file).resolve()
    found = found / "README.md" if found.is_dir() and (found / "README.md").exists() else found
    if found in where:
        page, same = where[found]
        link = posixpath.relpath(page, posixpath.dirname(name) or ".")
        return link + (mark + anchor if same else "")
    if found.is_relative_to(DOCS) and found.suffix in PICTURES:
        inside = found.relative_to(DOCS).as_posix()
        return posixpath.relpath(inside, posixpath.dirname(name) or ".")
    if not found.exists():
        raise SystemExit(f"{path}: the link {target} leads nowhere")
    kind = "tree" if found.is_dir() else "blob"
    return f"{HOST}/{kind}/main/{found.relative_to(ROOT).as_posix()}{mark}{anchor}"


def reference(lang: str) -> str:
    """The page of the API reference: what `tunewright` and `tunewright.api` offer."""
    title, intro = {
        "en": ("Python reference", "What `import tunewright` offers, from its docstrings."),
        "zh": ("Python 参考", "`import tunewright` 提供的内容，取自文档字符串（英文）。"),
    }[lang]
    lines = [f"# {title}", "", intro, "", "| | |", "|---|---|"]
    for name in public_names():
        place = f"core.callbacks.{name}" if name in CALLBACKS else f"api.{name}"
        lines.append(f"| `tunewright.{name}` | [{name}][tunewright.{place}] |")
    lines += ["", "::: tunewright.api", "", "::: tunewright.core.callbacks"]
    lines += ["    options:", "      members:", *(f"        - {name}" for name in CALLBACKS)]
    return "\n".join(lines) + "\n"


def public_names() -> list[str]:
    """What `tunewright` offers, but for its version."""
    import tunewright

    return [name for name in tunewright.__all__ if not name.startswith("_")]


def llms(lang: str) -> str:
    """`llms.txt` (llmstxt.org): what this is, and every page with its first sentence."""
    shown, below = pages(lang), "zh/" if lang == "zh" else ""
    lines = ["# Tunewright", "", f"> {_about(shown['index.md'])}", ""]
    for english, chinese, names in NAV:
        lines += [f"## {chinese if lang == 'zh' else english}", ""]
        for name in _named(names, shown):
            if name not in shown:
                continue
            title, first = title_of(shown[name]), _about(shown[name])
            url = f"{ADDRESS}{below}{_address(name)}"
            lines.append(f"- [{title}]({url}): {first}")
        lines.append("")
    return "\n".join(lines)


def _address(name: str) -> str:
    stem = name.removesuffix(".md").removesuffix("README").removesuffix("index")
    return stem if stem.endswith("/") or not stem else f"{stem}/"


def _named(names: list[str], shown: dict[str, Path]) -> Iterator[str]:
    for name in names:
        if name.endswith("/*"):
            inside = [page for page in shown if page.startswith(name[:-1])]
            yield from sorted(inside, key=lambda page: (not page.endswith("README.md"), page))
        else:
            yield f"{name}.md"


def title_of(path: Path) -> str:
    """The first heading of a page."""
    found = re.search(r"^# (.+)$", FENCE.sub("", text_of(path)), re.MULTILINE)
    return found[1].strip() if found else path.stem


def _about(path: Path) -> str:
    """The first paragraph of a page, in one line without links."""
    text = OTHER_LANGUAGE.sub("", FENCE.sub("", text_of(path)))
    for part in re.split(r"\n\s*\n", text):
        plain = " ".join(LINK.sub(r"\1", part).split())
        if plain and plain[0] not in "#|<![-" and "Made by" not in plain:
            first = re.match(r".+?[.。](?=\s|$|[^\w])", plain)
            return (first[0] if first else plain).replace("[", "").replace("]", "")[:300]
    return title_of(path)


def nav(lang: str) -> list[dict[str, Any]]:
    """The navigation of a language."""
    shown = {**pages(lang), "reference.md": ROOT}
    found: list[dict[str, Any]] = []
    for english, chinese, names in NAV:
        inside = [name for name in _named(names, shown) if name in shown]
        found.append({chinese if lang == "zh" else english: inside})
    listed = {page for part in found for inside in part.values() for page in inside}
    left = sorted(set(shown) - listed)
    if left:
        raise SystemExit(f"pages without a place in the navigation: {', '.join(left)}")
    return found


def build(out: Path) -> None:
    """Build both languages into `out`, strictly. Raises what MkDocs raises."""
    from mkdocs.commands.build import build as make
    from mkdocs.config import load_config

    for lang in LANGUAGES:
        with tempfile.TemporaryDirectory(prefix="tunewright-site-") as place:
            assemble(Path(place), lang)
            config = load_config(
                str(ROOT / "mkdocs.yml"),
                docs_dir=place,
                site_dir=str(out if lang == "en" else out / "zh"),
                site_url=ADDRESS if lang == "en" else f"{ADDRESS}zh/",
                nav=nav(lang),
                strict=True,
            )
            config["theme"]["language"] = lang
            config["extra"]["alternate"] = [
                {"name": "English", "link": "./" if lang == "en" else "../", "lang": "en"},
                {"name": "中文", "link": "./zh/" if lang == "en" else "./", "lang": "zh"},
            ]
            config.plugins.on_startup(command="build", dirty=False)
            make(config)
            config.plugins.on_shutdown()


def main(argv: list[str]) -> int:
    """The command."""
    what, place = (argv + ["build", "site"][len(argv) :])[:2] if argv else ("build", "site")
    if what == "pages":
        for lang in LANGUAGES:
            assemble(Path(place) / lang, lang)
        return 0
    build(Path(place).resolve())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
