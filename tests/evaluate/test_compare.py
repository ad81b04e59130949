"""Models side by side: the same questions to all, differences that are those of the rows, a base
column that is the base."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers import story
from helpers.building import codes, make_model, make_tokenizer, write_gguf
from helpers.stub_server import chat, serving

from tunewright.core.errors import TunewrightError
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.evaluate.compare import compare
from tunewright.evaluate.scoring import evaluate_target
from tunewright.report.comparison import lines, table, write_page
from tunewright.story import train


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    story.model_folder(folder / "model", initializer_range=0.3, tie_word_embeddings=False)
    story.rows_file(folder / "rows.json")
    for name, more in (("run", {}), ("whole", {"method.kind": "full"})):
        keys = {
            "model": str(folder / "model"), "data.train": str(folder / "rows.json"),
            "data.held_out": 0, "out": str(folder / name), "probes": 0, "forgetting": "off", "engine.steps": 12,
            "engine.dtype": "float32", "engine.threads": 1, "engine.learning_rate": 0.01, **more,
        }  # fmt: skip
        train(parse_run(keys, {}), tell=Quiet())
    return folder


def beside(place: Path, *names: str, **how: Any) -> dict[str, Any]:
    targets = [name if "://" in name else str(place / name) for name in names]
    settings = {"max_new_tokens": 12, "dtype": "float32", "tell": Quiet(), **how}
    return compare(targets, str(place / "rows.json"), **settings)


@pytest.fixture(scope="module")
def with_base(place: Path) -> dict[str, Any]:
    """The run and its base, which `--base` puts first."""
    return beside(place, "run", base=True, limit=8)


@pytest.fixture(scope="module")
def three(place: Path) -> dict[str, Any]:
    return beside(place, "model", "run", "whole", wanted=["f1", "chrf"])


def test_a_model_with_itself_shows_no_difference_and_says_so(place: Path) -> None:
    found = beside(place, "run", "run")
    (pair,) = found["pairs"]
    assert pair["no_difference"] and pair["same_answers"] == found["n"] == 12
    assert pair["largest_loss_difference"] == 0.0
    for one in (*pair["differences"].values(), pair["loss"]):
        assert (one["difference"], one["low"], one["high"]) == (0, 0, 0)
        assert (one["wins"], one["losses"], one["ties"]) == (0, 0, 12)
    assert len({subject["name"] for subject in found["subjects"]}) == 2
    assert "No difference" in "\n".join(lines(found))


def test_the_base_column_is_the_base_loaded_afresh(
    place: Path, with_base: dict[str, Any], three: dict[str, Any]
) -> None:
    whole = beside(place, "whole", base=True, limit=4, loss=False)
    for found in (with_base, three, whole):
        assert found["base_check"]["largest_logit_difference"] == 0.0
        assert found["base_check"]["rows"] == 4 and found["base_check"]["places"] > 20
    assert [s["is_base"] for s in with_base["subjects"]] == [True, False]
    assert "base" in with_base["base_check"]["column"]
    by_origin = {row["origin"]: row["answers"] for row in three["rows"]}
    assert all(row["answers"] == by_origin[row["origin"]][:2] for row in with_base["rows"])
    assert any(not row["same"] for row in with_base["rows"])  # the run is not the base
    assert "fresh" in "\n".join(lines(with_base))


def test_a_base_that_changes_between_loads_is_said(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunewright.evaluate import subjects

    real, calls = subjects.LocalSubject.logits, [0]

    def other(self: Any, questions: Any, most: int = 512) -> Any:
        calls[0] += 1
        return [one + 0.5 * (calls[0] == 3) for one in real(self, questions, most)]

    monkeypatch.setattr(subjects.LocalSubject, "logits", other)
    found = beside(place, "run", base=True, limit=4, loss=False)
    assert found["base_check"]["largest_logit_difference"] == pytest.approx(0.5, abs=1e-4)
    assert "not equal" in "\n".join(lines(found))


def test_figures_are_those_of_evaluate(place: Path, three: dict[str, Any]) -> None:
    for subject, base in zip(three["subjects"], (True, False), strict=False):
        alone = evaluate_target(
            str(place / "run"), str(place / "rows.json"), base=base, dtype="float32",
            generate=False, options=[], tell=Quiet(),
        )  # fmt: skip
        assert subject["loss"]["token_mean"] == pytest.approx(alone["loss"]["token_mean"])


def test_differences_are_those_of_the_rows(three: dict[str, Any]) -> None:
    assert [(Path(p["a"]).name, Path(p["b"]).name) for p in three["pairs"]] == [
        ("model", "run"), ("model", "whole"), ("run", "whole")
    ]  # fmt: skip
    for pair, (a, b) in zip(three["pairs"], [(0, 1), (0, 2), (1, 2)], strict=True):
        changes = [row["scores"]["f1"][b] - row["scores"]["f1"][a] for row in three["rows"]]
        one = pair["differences"]["f1"]
        assert one["difference"] == pytest.approx(sum(changes) / len(changes))
        assert one["wins"] == sum(c > 0 for c in changes)
        assert one["low"] <= one["difference"] <= one["high"]
    worst = [sum(s[1] - s[0] for s in row["scores"].values()) for row in three["rows"]]
    assert worst == sorted(worst)


def test_the_run_learnt_and_the_loss_shows_it(with_base: dict[str, Any]) -> None:
    (pair,) = with_base["pairs"]
    assert pair["loss"]["high"] < 0 and pair["loss"]["wins"] == 8


def test_gguf_and_addresses_stand_beside_folders(place: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", make_model(), make_tokenizer())
    with serving(lambda path, body: chat("the answer is 7 of 2026")) as stub:
        found = beside(place, "model", str(file), stub.url + "#tiny")
    assert [s["kind"] for s in found["subjects"]] == ["model", "gguf", "address"]
    address = found["subjects"][2]
    assert address["figures"]["exact"]["value"] > 0 and address["loss"] is None
    assert found["pairs"][1].get("loss") is None and found["pairs"][0]["loss"]
    assert len(stub.asked) == 12


def test_drawn_answers_are_the_same_for_the_same_model_and_seed(place: Path) -> None:
    how: dict[str, Any] = {"temperature": 1.2, "loss": False, "limit": 5}
    one = beside(place, "model", "model", seed=3, **how)
    assert one["pairs"][0]["no_difference"]  # with one seed both have the same luck
    said_so = "\n".join(lines(one))
    assert "No difference" in said_so and "log-prob" not in said_so  # which nobody looked at
    other = beside(place, "model", "run", seed=4, **how)
    said = {row["origin"]: row["answers"][0] for row in one["rows"]}
    again = {row["origin"]: row["answers"][0] for row in other["rows"]}
    shared = said.keys() & again.keys()
    assert shared and any(said[origin] != again[origin] for origin in shared)


def test_some_questions_are_drawn_and_rows_seen_in_training_are_named(
    with_base: dict[str, Any],
) -> None:
    assert with_base["n"] == 8 and with_base["rows_read"] == 12
    assert any("8 of 12" in warning for warning in with_base["warnings"])
    # Of the run alone: the base beside it learnt nothing of the rows.
    assert sum("was trained on" in warning for warning in with_base["warnings"]) == 1


def test_rows_without_an_answer_are_shown_and_not_scored(place: Path, tmp_path: Path) -> None:
    rows = [{"prompt": question} for question in story.QUESTIONS]
    (tmp_path / "p.json").write_text(json.dumps(rows), encoding="utf-8")
    found = compare(
        [str(place / "model"), str(place / "run")], str(tmp_path / "p.json"),
        data_format="prompts", max_new_tokens=8, limit=3, tell=Quiet(),
    )  # fmt: skip
    assert found["metrics"] == [] and found["pairs"][0]["differences"] == {}
    assert any("not scored" in warning for warning in found["warnings"])
    assert lines(found) and table(found)[0][0] == "model"


def test_the_system_prompt_of_a_run_is_given_to_all(place: Path, tmp_path: Path) -> None:
    keys = {
        "model": str(place / "model"), "data.train": str(place / "rows.json"), "probes": 0, "forgetting": "off",
        "data.system": "a small model", "data.held_out": 0, "out": str(tmp_path / "run"),
        "engine.steps": 1, "engine.threads": 1,
    }  # fmt: skip
    train(parse_run(keys, {}), tell=Quiet())
    seen: list[Any] = []

    def answer(path: str, body: Any) -> Any:
        seen.append(body["messages"])
        return chat("x")

    with serving(answer) as stub:
        beside(place, str(tmp_path / "run"), stub.url + "#m", limit=3, loss=False)
    assert all(m[0] == {"role": "system", "content": "a small model"} for m in seen)


def test_the_page_shows_every_answer_and_runs_nothing(
    three: dict[str, Any], tmp_path: Path
) -> None:
    found = json.loads(json.dumps(three))
    found["rows"][0]["answers"][1] = "<script>alert(1)</script>"
    for lang in ("en", "zh"):
        page = write_page(tmp_path / f"{lang}.html", found, lang).read_text(encoding="utf-8")
        assert page.count("<details") == 12 and "<script>" not in page
        assert "&lt;script&gt;" in page
        assert not re.search(r"\{[a-z_]+\}", page)  # every field of a sentence is filled in
        assert 'src="http' not in page and 'href="http' not in page


@pytest.mark.parametrize(
    ("names", "how", "code"),
    [
        (["model"], {}, "E-EVAL-41"),
        (["model"] * 9, {}, "E-EVAL-41"),
        (["model", "model"], {"base": True}, "E-EVAL-43"),
        (["run", "model"], {"limit": 0}, "E-EVAL-05"),
        (["run", "model"], {"temperature": -1.0}, "E-EVAL-42"),
        (["run", "model"], {"temperature": float("nan")}, "E-EVAL-42"),
        (["run", "model"], {"wanted": ["blue"]}, "E-EVAL-20"),
        (["run", "nothing"], {}, "E-MODEL-01"),
        (["run", "http://"], {}, "E-ADDR-01"),
    ],
)
def test_wrong_input_is_said_before_anything_is_opened(
    place: Path, names: list[str], how: dict[str, Any], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunewright.engine import opening

    monkeypatch.setattr(opening, "to_answer", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(TunewrightError) as e:
        beside(place, *names, **how)
    assert codes(e.value) == [code]


def test_running_text_asks_nothing(place: Path, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps([{"text": "once upon"}] * 3), encoding="utf-8")
    with pytest.raises(TunewrightError) as e:
        compare([str(place / "run")], str(tmp_path / "t.json"), base=True, tell=Quiet())
    assert codes(e.value) == ["E-EVAL-40"]


def test_the_command_prints_figures_and_leaves_a_page(place: Path, tmp_path: Path) -> None:
    words = ["compare", str(place / "run"), "--base", "--data", str(place / "rows.json")]
    words += ["--max-new-tokens", "8", "--limit", "4", "--out", str(tmp_path / "out")]
    done = story.tunewright(*words, "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["base_check"]["largest_logit_difference"] == 0
    assert json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))["n"] == 4
    assert (tmp_path / "out" / "compare.html").is_file()
    (tmp_path / "file").write_text("x", encoding="utf-8")
    words[-1] = str(tmp_path / "file" / "out")
    assert "E-EVAL-44" in story.tunewright(*words).stderr
