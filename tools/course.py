"""The lessons of docs/course: from one source each to a notebook in either language, and a page.

    python tools/course.py build              # write the notebooks; outputs stay where code did
    python tools/course.py run 3 5 [--lang L] # execute lessons and keep what their cells put out
    python tools/course.py check              # 1 where a notebook is not what its source says

A source is a Python file in Jupytext's percent format. Its code stands there once; a Markdown cell
says for which language it is: `# %% [markdown] lang="en"`. A cell with `tags=["answer"]` is the
answer to an exercise, folded away until the reader asks for it. `# needs: serve` above the first
cell names the extras of Tunewright without which the lesson stops.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COURSE = ROOT / "docs" / "course"
NOTEBOOKS = COURSE / "notebooks"
LANGUAGES = ("en", "zh")
HOST = "https://github.com/tunewright/tunewright"
COLAB = "https://colab.research.google.com/github/tunewright/tunewright/blob/main/docs/course"
MARK = re.compile(r"^# %%(?P<markdown> \[markdown\])?(?P<rest>.*)$")
LIMIT_SECONDS = 600
"""Of one lesson."""
HEADS = {
    "en": "| | lesson | notebook | launch |\n|---|---|---|---|",
    "zh": "| | 课 | notebook | 启动 |\n|---|---|---|---|",
}
WORDS = {
    "en": {
        "answer": "Answer",
        "open": "Open in Colab",
        "source": "Source of this lesson",
        "all": "All lessons",
        "first": "In Colab or a ModelScope notebook, take the # off the next line first.",
    },
    "zh": {
        "answer": "答案",
        "open": "在 Colab 中打开",
        "source": "本课的源文件",
        "all": "全部课程",
        "first": "在 Colab 或魔搭（ModelScope）notebook 中，请先去掉下一行开头的 #。",
    },
}


@dataclass(frozen=True)
class Cell:
    """A cell of a source. `lang` is None for code, which both languages share."""

    kind: str
    text: str
    lang: str | None = None
    is_answer: bool = False


@dataclass(frozen=True)
class Lesson:
    """A source, its cells, and the extras that it needs."""

    path: Path
    cells: tuple[Cell, ...]
    needs: tuple[str, ...] = ()

    @property
    def number(self) -> int:
        """Its place in the course, from 1."""
        return int(self.path.stem[:2])

    def notebook(self, lang: str) -> Path:
        """Where the notebook of a language lies."""
        return NOTEBOOKS / lang / f"{self.path.stem}.ipynb"

    def title(self, lang: str) -> str:
        """The first heading."""
        first = next(cell.text for cell in self.cells if cell.lang == lang)
        return first.splitlines()[0].removeprefix("# ")


def lessons(wanted: list[int] | None = None) -> list[Lesson]:
    """All lessons, or those of the numbers `wanted`, in order."""
    found = [read(path) for path in sorted(COURSE.glob("[0-9][0-9]_*.py"))]
    return [one for one in found if not wanted or one.number in wanted]


def read(path: Path) -> Lesson:
    """The lesson of a source. Raises ValueError for a Markdown cell without a language, and for a
    lesson that does not have as many in one language as in the other."""
    cells: list[Cell] = []
    needs: tuple[str, ...] = ()
    for block in re.split(r"^(?=# %%)", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
        head, _, body = block.partition("\n")
        if not (mark := MARK.match(head)):
            # What stands above the first cell.
            found = re.search(r"^# needs: (.+)$", block, flags=re.MULTILINE)
            needs = tuple(found[1].split(", ")) if found else ()
            continue
        given = dict(re.findall(r"(\w+)=(\"[^\"]*\"|\[[^\]]*\])", mark["rest"]))
        lang = json.loads(given.get("lang", "null"))
        if mark["markdown"]:
            if lang not in LANGUAGES:
                raise ValueError(f"{path.name}: a Markdown cell without a language: {head}")
            text = re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE)
            cells.append(Cell("markdown", text.strip(), lang))
        else:
            answer = "answer" in json.loads(given.get("tags", "[]"))
            cells.append(Cell("code", body.strip(), None, answer))
    counts = [sum(cell.lang == lang for cell in cells) for lang in LANGUAGES]
    if counts[0] != counts[1]:
        raise ValueError(f"{path.name}: {counts[0]} English and {counts[1]} Chinese cells")
    return Lesson(path, tuple(cells), needs)


def setting_up(lang: str, needs: tuple[str, ...] = ()) -> str:
    """The first code cell of every notebook: the one cell that the languages do not share."""
    extras = f"[{','.join(needs)}]" if needs else ""
    return (
        f"# {WORDS[lang]['first']}\n"
        f'# %pip install -q "tunewright{extras} @ git+{HOST}"\n'
        "import os\n\n"
        f'os.environ["TUNEWRIGHT_LANG"] = "{lang}"\n'
        'os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")'
    )


def launch_line(lesson: Lesson, lang: str) -> str:
    """Links below the title."""
    words, name = WORDS[lang], lesson.path.name
    index = "README.md" if lang == "en" else "README.zh-CN.md"
    return (
        f"[{words['open']}]({COLAB}/notebooks/{lang}/{lesson.path.stem}.ipynb)"
        f" · [{words['source']}](../../{name}) · [{words['all']}](../../{index})"
    )


def build(lesson: Lesson, lang: str) -> Any:
    """The notebook of a lesson in one language, without outputs."""
    import nbformat.v4 as v4

    cells = []
    for cell in lesson.cells:
        if cell.kind == "markdown" and cell.lang == lang:
            text = cell.text
            if not cells:
                title, _, rest = text.partition("\n")
                text = f"{title}\n\n{launch_line(lesson, lang)}\n{rest}"
            cells.append(v4.new_markdown_cell(text))
            if len(cells) == 1:
                cells.append(v4.new_code_cell(setting_up(lang, lesson.needs)))
        elif cell.kind == "code":
            more: dict[str, Any] = {}
            if cell.is_answer:
                hidden = {"source_hidden": True, "outputs_hidden": True}
                more = {"metadata": {"tags": ["answer"], "jupyter": hidden, "cellView": "form"}}
            cells.append(v4.new_code_cell(cell.text, **more))
    for number, one in enumerate(cells):
        one["id"] = f"{lesson.number:02}-{number:02}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def sources_of(notebook: Any) -> list[tuple[str, str]]:
    """Kind and text of every cell."""
    return [(cell["cell_type"], cell["source"]) for cell in notebook["cells"]]


def written(path: Path) -> Any:
    """The notebook that lies at `path`; None where there is none."""
    import nbformat

    return nbformat.read(path, as_version=4) if path.is_file() else None


def execute(lesson: Lesson, lang: str, folder: Path) -> tuple[Any, float]:
    """Execute a lesson in `folder`; (notebook with its outputs, seconds). Raises nbclient's
    CellExecutionError where a cell raises."""
    from nbclient import NotebookClient

    notebook = build(lesson, lang)
    client = NotebookClient(
        notebook,
        timeout=LIMIT_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    began = time.monotonic()
    client.execute()
    seconds = time.monotonic() - began
    for cell in notebook["cells"]:
        cell["metadata"].pop("execution", None)
        if cell["cell_type"] == "code":
            cell["outputs"] = [kept(one) for one in _joined(cell["outputs"]) if _is_shown(one)]
            for one in cell["outputs"]:
                if one.get("text"):
                    one["text"] = one["text"].replace(str(folder.resolve()), ".")
    notebook["metadata"].pop("language_info", None)
    return notebook, seconds


def _is_shown(output: Any) -> bool:
    return output["output_type"] != "stream" or output["name"] == "stdout"


def _joined(outputs: list[Any]) -> list[Any]:
    """Neighbouring pieces of stdout as one."""
    found: list[Any] = []
    for one in outputs:
        if one["output_type"] == "stream" and found and found[-1].get("name") == one["name"]:
            found[-1]["text"] += one["text"]
        else:
            found.append(one)
    return found


def kept(output: Any) -> Any:
    """An output without what changes from machine to machine."""
    if output["output_type"] in ("display_data", "execute_result"):
        output["metadata"] = {}
    return output


def save(notebook: Any, path: Path) -> None:
    """Write a notebook. Raises nbformat's ValidationError where it is none."""
    import nbformat

    nbformat.validate(notebook)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def page(path: Path) -> tuple[str, dict[str, str]]:
    """A notebook as a page of the site: (Markdown, pictures by name). Links are those of a file
    that lies where the notebook does."""
    lang, notebook = path.parent.name, json.loads(path.read_text(encoding="utf-8"))
    parts: list[str] = []
    pictures: dict[str, str] = {}
    for number, cell in enumerate(notebook["cells"]):
        text = _text(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text.replace("<details>", '<details markdown="1">'))
            continue
        if text.startswith(f"# {WORDS[lang]['first']}\n"):
            continue
        block = f"```python\n{text}\n```"
        for count, output in enumerate(cell["outputs"]):
            data = output.get("data", {})
            if "image/svg+xml" in data:
                name = f"{path.stem}-{lang}-{number}-{count}.svg"
                pictures[name] = _text(data["image/svg+xml"])
                about = re.sub(r"[\[\]]", "", _text(data.get("text/plain", "")))
                block += f"\n\n![{about}](pictures/{name})"
            else:
                shown = _text(data.get("text/plain", output.get("text", ""))).rstrip()
                block += f"\n\n```text\n{shown}\n```"
        if "answer" in cell["metadata"].get("tags", []):
            summary = f"<summary>{WORDS[lang]['answer']}</summary>"
            block = f'<details markdown="1">{summary}\n\n{block}\n\n</details>'
        parts.append(block)
    return "\n\n".join(parts) + "\n", pictures


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def index(lang: str) -> str:
    """The table of the lessons, for the README of a language."""
    lines = []
    for lesson in lessons():
        place = f"notebooks/{lang}/{lesson.path.stem}.ipynb"
        number, _, title = lesson.title(lang).partition(". ")
        lines.append(
            f"| {number} | {title} | [{lesson.path.stem}]({place}) | [Colab]({COLAB}/{place}) |"
        )
    return "\n".join(lines)


def readme(lang: str) -> Path:
    """The index page of a language."""
    return COURSE / ("README.md" if lang == "en" else "README.zh-CN.md")


def indexed(text: str, lang: str) -> str:
    """A README with the table put between its marks."""
    head, rest = text.split("<!-- table -->\n", 1)
    _, tail = rest.split("<!-- /table -->", 1)
    return f"{head}<!-- table -->\n\n{HEADS[lang]}\n{index(lang)}\n\n<!-- /table -->{tail}"


def stale() -> list[str]:
    """Notebooks and index pages that are not what the sources say."""
    found = []
    for lang in LANGUAGES:
        text = readme(lang).read_text(encoding="utf-8")
        if text != indexed(text, lang):
            found.append(str(readme(lang).relative_to(ROOT)))
    for lesson in lessons():
        for lang in LANGUAGES:
            old = written(lesson.notebook(lang))
            if old is None or sources_of(old) != sources_of(build(lesson, lang)):
                found.append(str(lesson.notebook(lang).relative_to(ROOT)))
    return found


def write_all(chosen: list[Lesson]) -> None:
    """Write the notebooks; one whose code did not change keeps its outputs."""
    for lesson in chosen:
        for lang in LANGUAGES:
            new, old = build(lesson, lang), written(lesson.notebook(lang))
            code = [text for kind, text in sources_of(new) if kind == "code"]
            if old is not None and code == [t for kind, t in sources_of(old) if kind == "code"]:
                done = iter([cell for cell in old["cells"] if cell["cell_type"] == "code"])
                for cell in new["cells"]:
                    if cell["cell_type"] == "code":
                        before = next(done)
                        cell["outputs"] = before["outputs"]
                        cell["execution_count"] = before["execution_count"]
            save(new, lesson.notebook(lang))
    for lang in LANGUAGES:
        text = readme(lang).read_text(encoding="utf-8")
        readme(lang).write_text(indexed(text, lang), encoding="utf-8")


def main(argv: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["build", "run", "check"])
    parser.add_argument("numbers", nargs="*", type=int)
    parser.add_argument("--lang", choices=LANGUAGES)
    args = parser.parse_args(argv)
    if args.what == "check":
        found = stale()
        print("\n".join(found) or "every notebook is what its source says")
        return 1 if found else 0
    chosen = lessons(args.numbers)
    write_all(chosen)
    if args.what == "run":
        for lesson in chosen:
            for lang in [args.lang] if args.lang else LANGUAGES:
                with tempfile.TemporaryDirectory(prefix="tunewright-lesson-") as place:
                    notebook, seconds = execute(lesson, lang, Path(place))
                save(notebook, lesson.notebook(lang))
                print(f"{lesson.path.stem} {lang}: {seconds:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
