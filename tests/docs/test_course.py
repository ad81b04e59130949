"""The course: every lesson's cells run on a real small model, and its notebooks and pages are what
its source says."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import course
import pytest

from tunewright import course as shared
from tunewright.core.words import speaking

CHEAP = (2, 3)
"""Lessons that take less than 40 s each: `slow`. The others are `thorough`."""
SMOL = (1, 2)
LESSONS = course.lessons()
EXECUTED = [
    pytest.param(
        lesson,
        lang,
        id=f"{lesson.number}-{lang}",
        marks=[
            pytest.mark.slow if lesson.number in CHEAP and lang == "en" else pytest.mark.thorough,
            *([pytest.mark.real_model] if lesson.number in SMOL else []),
        ],
    )
    for lesson in LESSONS
    for lang in course.LANGUAGES
]


@pytest.mark.parametrize(("lesson", "lang"), EXECUTED)
def test_every_cell_runs_and_what_it_claims_holds(
    lesson: course.Lesson, lang: str, tmp_path: Path
) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook, seconds = course.execute(lesson, lang, tmp_path)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    assert seconds < course.LIMIT_SECONDS
    shown = json.dumps([cell["outputs"] for cell in code], ensure_ascii=False)
    assert "image/svg+xml" in shown
    if lang == "zh":
        assert re.search(r"[\u4e00-\u9fff]", shown)


def test_there_are_ten_lessons_in_order() -> None:
    assert [lesson.number for lesson in LESSONS] == list(range(1, 11))
    for lesson in LESSONS:
        for lang in course.LANGUAGES:
            assert lesson.title(lang).startswith(f"{lesson.number}. ")


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda one: str(one.number))
def test_both_notebooks_hold_the_same_code_and_are_valid(lesson: course.Lesson) -> None:
    nbformat = pytest.importorskip("nbformat")
    made = {}
    for lang in course.LANGUAGES:
        notebook = course.written(lesson.notebook(lang))
        nbformat.validate(notebook)
        cells = course.sources_of(notebook)
        assert cells == course.sources_of(course.build(lesson, lang))
        made[lang] = [text for kind, text in cells if kind == "code"]
        prose = "".join(text for kind, text in cells if kind == "markdown")
        assert bool(re.search(r"[\u4e00-\u9fff]", prose)) == (lang == "zh")
        assert f"{course.COLAB}/notebooks/{lang}/{lesson.path.stem}.ipynb" in prose
    assert made["en"][1:] == made["zh"][1:]
    assert made["en"][0] != made["zh"][0] and 'TUNEWRIGHT_LANG"] = "zh"' in made["zh"][0]


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda one: str(one.number))
def test_a_lesson_has_its_parts(lesson: course.Lesson) -> None:
    prose = {
        lang: "\n".join(cell.text for cell in lesson.cells if cell.lang == lang)
        for lang in course.LANGUAGES
    }
    for lang, words in {
        "en": (
            "**What for.**",
            "**The idea.**",
            "**Predict.**",
            "**What to see.**",
            "**Exercise.**",
        ),
        "zh": ("**为什么学。**", "**思路。**", "**先猜一猜。**", "**看什么。**", "**练习。**"),
    }.items():
        for word in words:
            assert word in prose[lang], word
    code = [cell.text for cell in lesson.cells if cell.kind == "code"]
    trees = [ast.parse(text) for text in code]
    claims = [one for tree in trees for one in ast.walk(tree) if isinstance(one, ast.Assert)]
    assert len(claims) >= 3
    assert any(cell.is_answer for cell in lesson.cells) or "<details>" in prose["en"]


def test_notebooks_and_index_pages_are_what_the_sources_say() -> None:
    assert course.stale() == [], "run: python tools/course.py build"


EXTRAS = {'"serve"': "serve", '"track': "track", '"sweep"': "sweep", '"--type", "bnb': "quant"}
"""What stands in a cell that needs an extra."""


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda one: str(one.number))
def test_the_install_lines_bring_the_extras_that_a_lesson_needs(lesson: course.Lesson) -> None:
    code = "\n".join(cell.text for cell in lesson.cells if cell.kind == "code")
    needs = {extra for words, extra in EXTRAS.items() if words in code}
    assert set(lesson.needs) == needs
    for lang in course.LANGUAGES:
        first = course.written(lesson.notebook(lang))["cells"][1]["source"]
        inside = re.search(r'"tunewright(?:\[([\w,]+)\])? @ git', first)
        assert inside and set((inside[1] or "").split(",")) - {""} == needs
        # The lines that install for the whole course.
        page = course.readme(lang).read_text(encoding="utf-8")
        lines = [line for line in page.splitlines() if line.startswith("pip install")]
        assert len(lines) == 2
        for line in lines:
            named = re.search(r"\[([\w,]+)\]", line)
            assert needs <= set(named[1].split(",") if named else ())


def test_a_cell_without_a_language_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "01_x.py"
    path.write_text("# %% [markdown]\n# words\n", encoding="utf-8")
    with pytest.raises(ValueError, match="without a language"):
        course.read(path)
    path.write_text('# %% [markdown] lang="en"\n# words\n', encoding="utf-8")
    with pytest.raises(ValueError, match="1 English and 0 Chinese"):
        course.read(path)


def test_a_page_shows_what_the_cells_put_out(tmp_path: Path) -> None:
    """Text, a picture as a file of its own, and a folded answer."""
    v4 = pytest.importorskip("nbformat.v4")
    picture = v4.new_output(
        "display_data", data={"image/svg+xml": "<svg/>", "text/plain": "[two bars]"}
    )
    cells = [
        v4.new_markdown_cell("# 1. Title"),
        v4.new_code_cell(course.setting_up("zh")),
        v4.new_code_cell(
            "f()", outputs=[v4.new_output("stream", name="stdout", text="seen\n"), picture]
        ),
        v4.new_code_cell("g()", metadata={"tags": ["answer"]}),
    ]
    path = tmp_path / "zh" / "01_x.ipynb"
    course.save(v4.new_notebook(cells=cells), path)
    text, pictures = course.page(path)
    assert "TUNEWRIGHT_LANG" not in text and "```text\nseen\n```" in text
    assert list(pictures.values()) == ["<svg/>"]
    assert f"![two bars](pictures/{next(iter(pictures))})" in text
    assert "<summary>答案</summary>\n\n```python\ng()\n```" in text


def test_pictures_are_drawings_with_what_they_show_in_words() -> None:
    drawn = [
        shared.bars({"a < b": 1.0, "c": 0.0}, about="two bars"),
        shared.curves({"one": [(1, 2.0), (2, -1.0)]}, x="step", y="loss", about="a line"),
        shared.grid([[1.0, -1.0]], title="t", about="squares"),
        shared.ribbon(["a", "你好", "\n"] * 40, [True, False, True] * 40, about="tokens"),
    ]
    for picture in drawn:
        root = ElementTree.fromstring(picture._repr_svg_())  # noqa: S314 - made here
        assert root.get("aria-label") == picture.about
    with pytest.raises(ValueError, match="no point"):
        shared.curves({"none": []}, x="", y="", about="")


def test_a_lesson_speaks_the_readers_language() -> None:
    with speaking("zh"):
        assert shared.say("loss", "损失") == "损失"
    with speaking("en"):
        assert shared.say("loss", "损失") == "loss"


def test_letter_rows_are_right_and_the_same_each_time() -> None:
    for skill, pick in {"first": 0, "second": 1, "last": 2}.items():
        for row in shared.letter_rows(skill, 20, called="mystery"):
            word, *letters = row["instruction"].split()
            assert word == "mystery:" and row["output"] == letters[pick]
    (row,) = shared.letter_rows("reverse", 1, seed=3)
    assert row["output"].split() == row["instruction"].split()[:0:-1]
    assert shared.letter_rows("last", 5) == shared.letter_rows("last", 5)


def test_a_tiny_model_learns_what_it_is_taught(tmp_path: Path) -> None:
    rows = [{"instruction": "sky?", "output": "blue"}, {"instruction": "snow?", "output": "white"}]
    folder = shared.tiny_model(
        tmp_path / "m", ["sky? blue", "snow? white"], hidden=32, layers=1, heads=2
    )
    first = shared.teach(folder, rows, steps=1, batch=2)
    last = shared.teach(folder, rows, steps=60, batch=2, rate=1e-2)
    assert last < 0.3 < first
    file = shared.write_rows(tmp_path / "rows.jsonl", rows)
    assert shared.share_right(folder, file, dtype="float32") == 1.0


def test_a_command_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="E-"):
        shared.command("explain", "nothing of that name", "--json")
