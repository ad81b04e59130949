"""What is asked, and how an answer ends: the run's system prompt, the base's own tokenizer, every
stop of the folder, the end of the context."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import story
from transformers import AutoModelForCausalLM, AutoTokenizer

import tunewright
from tunewright.core.errors import CompatError, ModelError
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.core.types import Message
from tunewright.engine.decoding.answers import answer, answering
from tunewright.evaluate.scoring import evaluate_target
from tunewright.serve.answering import Answerer, open_target

QUESTION = "what is the capital"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return story.model_folder(
        tmp_path_factory.mktemp("base"), initializer_range=0.2, tie_word_embeddings=False
    )


def at_once(model: Any, max_new_tokens: int) -> list[Any]:
    """What the model says to the question as `evaluate` asks it, many at once."""
    prompt = model.answering.renderer.prompt([Message("user", QUESTION)])
    return answer(model.answering, [prompt], max_new_tokens=max_new_tokens)


def opened(target: Path, **more: Any) -> Answerer:
    return open_target(str(target), Quiet(), dtype="float32", device="cpu", **more)


def written(
    folder: Path, count: int, messages: list[dict[str, str]] | None = None, **settings: Any
) -> list[int]:
    """The oracle: token ids that plain Transformers writes."""
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder).eval(),
    )
    asked = messages or [{"role": "user", "content": QUESTION}]
    ids = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**ids, max_new_tokens=count, do_sample=False, pad_token_id=0, **settings)
    found: list[int] = out[0, ids["input_ids"].shape[1] :].tolist()
    return found


def run_in(place: Path, base: Path, **data: Any) -> Path:
    """A run folder with a LoRA that moves every answer."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base)
    wrapped = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=4,
            target_modules=["q_proj", "down_proj"],
            init_lora_weights=False,
        ),
    )
    wrapped.save_pretrained(str(place / "adapter"), save_embedding_layers=False)
    AutoTokenizer.from_pretrained(base).save_pretrained(str(place / "adapter"))
    said = "".join(
        f"  {key}: {json.dumps(value)}\n" for key, value in {"train": "gone.json", **data}.items()
    )
    (place / "run.yaml").write_text(
        f"model: {base}\ndata:\n{said}engine:\n  dtype: float32\n", encoding="utf-8"
    )
    return place


# ---- the system prompt


def test_a_run_is_asked_under_its_own_system_prompt_unless_another_is_given(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tunewright.serve.chatting import reply

    run = run_in(tmp_path / "run", base, system="You are a small model.")
    model, tokenizer = opened(run), AutoTokenizer.from_pretrained(base)

    def rendered(system: str | None) -> list[int]:
        turns = [{"role": "system", "content": system}] if system is not None else []
        ids = tokenizer.apply_chat_template(
            [*turns, {"role": "user", "content": QUESTION}],
            add_generation_prompt=True,
            return_dict=False,
        )
        return list(ids)

    for given, used in ((None, "You are a small model."), ("Who learns?", "Who learns?"), ("", "")):
        assert model.renderer.prompt([*model.start(given), Message("user", QUESTION)]) == rendered(
            used
        )
        assert used in (model.about_system(given) or "")
    bare = opened(base)
    assert bare.start() == [] and bare.about_system() is None
    # What Python says is what the terminal says, and not what stands without the system prompt.
    asked = [*model.start(), Message("user", QUESTION)]
    said = reply(model, asked, compare=False, max_new_tokens=12)
    assert (
        capsys.readouterr().out.strip()
        == said
        == tunewright.Run(run).chat(QUESTION, max_new_tokens=12)
    )
    assert said != tunewright.Run(run).chat(QUESTION, system="", max_new_tokens=12)


def test_chat_says_which_system_prompt_it_used_in_every_form(base: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", base, system="You are a small model.")
    one = story.tunewright(
        "chat", str(run), "-q", QUESTION, "--compare", "--json", "--max-new-tokens", "8"
    )
    found = json.loads(one.stdout)
    assert found["system"] == "You are a small model." and "You are a small model." in one.stderr
    plain = [
        {"role": "system", "content": "You are a small model."},
        {"role": "user", "content": QUESTION},
    ]
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert (
        found["base"] == tokenizer.decode(written(base, 8, plain), skip_special_tokens=True).strip()
    )
    empty = json.loads(
        story.tunewright(
            "chat", str(run), "-q", QUESTION, "--system", "", "--json", "--max-new-tokens", "8"
        ).stdout
    )
    assert empty["system"] == "" and empty["answer"] != found["answer"]


def test_questions_of_ones_own_are_asked_under_the_system_prompt_of_the_run() -> None:
    from tunewright.run.questions import Probe, under

    bare, own = (
        Probe("a", [Message("user", "a")]),
        Probe("b", [Message("system", "mine"), Message("user", "b")]),
    )
    assert [[m.content for m in probe.messages] for probe in under("the run's", [bare, own])] == [
        ["the run's", "a"],
        ["mine", "b"],
    ]
    assert under(None, [Probe("a", [Message("user", "a")])])[0].messages == [Message("user", "a")]


# ---- the base


def test_the_base_is_asked_as_if_nothing_had_been_added_to_it(base: Path, tmp_path: Path) -> None:
    """`--base`, `--compare` and the answers before training: the base's own tokenizer reads the
    question, and no added word is answered."""
    rows = tmp_path / "rows.json"
    rows.write_text(
        json.dumps(
            [
                {"instruction": f"what is <plan> {i}", "output": "<plan> a small <plan>"}
                for i in range(4)
            ]
        )
    )
    run = tunewright.train(
        model=str(base), data={"train": str(rows), "held_out": 0}, method={"kind": "new_tokens", "tokens": ["<plan>", "</plan>"]},
        engine={"steps": 3, "learning_rate": 0.5, "dtype": "float32", "threads": 1}, probes=["what is <plan>"], out=str(tmp_path / "run"), tell=Quiet(),
    )  # fmt: skip
    asked = [Message("user", "what is <plan>")]
    tokenizer = AutoTokenizer.from_pretrained(base)
    wanted = tokenizer.decode(
        written(base, 96, [{"role": "user", "content": "what is <plan>"}]), skip_special_tokens=True
    ).strip()
    model = opened(run.folder)
    assert model.renderer.prompt(asked) != model.base_renderer.prompt(asked)
    assert run.before_after[0]["before"] == wanted
    assert (
        model.ask(asked, base=True, max_new_tokens=96).text
        == opened(run.folder, base=True).ask(asked, max_new_tokens=96).text
        == wanted
    )
    other = tmp_path / "other.json"
    other.write_text(
        json.dumps(
            [
                {"instruction": "what is <plan>", "output": "none of that"},
                {"instruction": "who", "output": "nor that"},
            ]
        )
    )
    found = evaluate_target(
        str(run.folder),
        str(other),
        base=True,
        generate=True,
        max_new_tokens=96,
        dtype="float32",
        tell=Quiet(),
    )
    assert found["exact_match"]["mistakes"][0]["answer"] == wanted


# ---- stops


@pytest.mark.parametrize("as_list", [True, False])
def test_an_answer_ends_at_a_stop_that_only_the_generation_config_names(
    base: Path, tmp_path: Path, as_list: bool
) -> None:
    stop = next(token for i, token in enumerate(written(base, 12)) if i >= 2 and token > 2)
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    path = folder / "generation_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "eos_token_id": [2, stop] if as_list else stop})
    )
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == 2
    theirs = written(folder, 12)
    assert theirs[-1] == stop and len(theirs) < 12
    text = AutoTokenizer.from_pretrained(base).decode(theirs[:-1], skip_special_tokens=True).strip()
    model = opened(folder)
    pieces: list[str] = []
    found = model.ask([Message("user", QUESTION)], max_new_tokens=12, on_piece=pieces.append)
    assert found.end == "stop" and found.text == text == "".join(pieces).strip()
    assert [one.text for one in at_once(model, 12)] == [text]
    # A run of an adapter on it, one that saved the whole model, and what is exported, all have the
    # same list.
    adapted = run_in(tmp_path / "run", folder)
    assert (
        stop in opened(adapted).renderer.stop_ids
        and stop in opened(adapted / "adapter").renderer.stop_ids
    )
    assert stop in opened(adapted).base_renderer.stop_ids
    rows = story.rows_file(tmp_path / "rows.json", 4)
    engine = {"steps": 1, "dtype": "float32", "threads": 1}
    whole = tunewright.train(
        model=str(folder),
        data=str(rows),
        method="full",
        engine=engine,
        probes=0,
        out=str(tmp_path / "whole"),
        tell=Quiet(),
    )
    assert stop in opened(whole.folder).renderer.stop_ids
    merged = tunewright.Run(adapted).merge(tmp_path / "merged")
    stated = json.loads((merged / "generation_config.json").read_text())["eos_token_id"]
    assert (
        sorted(stated)
        == sorted(opened(adapted).renderer.stop_ids)
        == sorted(opened(merged).renderer.stop_ids)
    )


def test_answers_that_are_drawn_stop_there_too(base: Path, tmp_path: Path) -> None:
    from tunewright.engine.rollouts.questions import asking
    from tunewright.run.prepare import prepare

    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 77]}))
    rows = story.rows_file(tmp_path / "rows.json", 4)
    given = {
        "model": str(folder),
        "data.train": str(rows),
        "data.held_out": 0,
        "out": str(tmp_path / "run"),
        "objective.kind": "grpo",
    }
    prepared = prepare(
        parse_run({**given, "objective.reward": "finished", "objective.max_new_tokens": 16}, {}),
        Quiet(),
    )
    assert 77 in asking(prepared.renderer, prepared.renderer.tokenizer).stop_ids


def test_settings_of_the_folder_that_change_greedy_answers_are_left_out(
    base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    path = folder / "generation_config.json"
    path.write_text(
        json.dumps(
            {
                **json.loads(path.read_text()),
                "repetition_penalty": 5.0,
                "max_length": 40,
                "temperature": 0.3,
            }
        )
    )
    assert written(folder, 12) != written(base, 12)
    ours = [
        opened(place).ask([Message("user", QUESTION)], max_new_tokens=12).text
        for place in (folder, base)
    ]
    assert (
        ours[0]
        == ours[1]
        == AutoTokenizer.from_pretrained(base)
        .decode(written(base, 12), skip_special_tokens=True)
        .strip()
    )


def test_nothing_of_a_library_is_printed_while_it_answers(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    path = folder / "generation_config.json"
    path.write_text(
        json.dumps(
            {**json.loads(path.read_text()), "max_length": 40, "temperature": 0.3, "top_p": 0.5}
        )
    )
    model = opened(folder)
    capfd.readouterr()
    model.ask([Message("user", QUESTION)], max_new_tokens=4)
    at_once(model, 4)
    assert capfd.readouterr() == ("", "")


# ---- the end of the context


def short(place: Path, family: str, context: int = 64) -> Path:
    """A model with learnt positions, which falls over past its context, or a rotary one, which goes
    on in silence."""
    from transformers import GPT2Config, GPT2LMHeadModel

    if family == "llama":
        return story.model_folder(
            place, max_position_embeddings=context, initializer_range=0.2, tie_word_embeddings=False
        )
    story.model_folder(place)
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 320,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": context,
        "initializer_range": 0.2,
    }
    GPT2LMHeadModel(
        GPT2Config(**sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    ).save_pretrained(place)
    return place


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_answer_ends_at_the_end_of_the_context_and_says_so(family: str, tmp_path: Path) -> None:
    folder = short(tmp_path / "model", family)
    model, tokenizer = opened(folder), AutoTokenizer.from_pretrained(folder)
    asked = len(model.renderer.prompt([Message("user", QUESTION)]))
    found = model.ask([Message("user", QUESTION)], max_new_tokens=512)
    theirs = written(folder, 64 - asked, eos_token_id=list(model.renderer.stop_ids))
    assert len(theirs) == 64 - asked and found.end == "context"
    assert found.text == tokenizer.decode(theirs, skip_special_tokens=True).strip()
    assert model.ask([Message("user", QUESTION)], max_new_tokens=64 - asked).end == "limit"
    with pytest.raises(ModelError, match="E-MODEL-57"):
        model.ask([Message("user", QUESTION * 40)])
    with pytest.raises(ModelError, match="E-MODEL-57"):
        model.ask([Message("user", QUESTION * 40)], complete=True)
    # Together with others, each has the room of its own length.
    questions = [QUESTION, "who", f"{QUESTION} and who learns", QUESTION * 40]
    prompts = [model.renderer.prompt([Message("user", q)]) for q in questions]
    many = answer(model.answering, prompts, max_new_tokens=512)
    assert [one.end for one in many] == ["context"] * 3 + ["no_room"]
    assert [one.text for one in many[:3]] == [
        model.ask([Message("user", q)], max_new_tokens=512).text for q in questions[:3]
    ]


@pytest.mark.parametrize("kind", ["prompt_tuning", "prefix_tuning"])
def test_a_learnt_prompt_takes_its_room_of_the_context_and_gives_it_back_when_it_is_off(
    kind: str, tmp_path: Path
) -> None:
    from tunewright.core.registry import methods
    from tunewright.models import anatomy
    from tunewright.models.load import load_model
    from tunewright.text.renderer import Renderer
    from tunewright.text.tokenizer import load_tokenizer

    folder = short(tmp_path / "model", "gpt2")
    causal, entry = load_model(folder, dtype="float32"), methods.get(kind)
    assert entry is not None
    attached = entry.function(entry.config(num_tokens=10), causal, anatomy.of(causal), str(folder))
    model = answering(causal, attached, Renderer(load_tokenizer(folder)))
    assert model.room(20) == 34 and model.room(60) == 0
    prompt = model.renderer.prompt([Message("user", QUESTION)])
    assert answer(model, [prompt], max_new_tokens=512)[0].end in ("context", "stop")
    assert attached.disabled is not None
    with attached.disabled():
        assert model.room(20) == 44


def test_a_run_near_the_end_of_the_context_asks_with_the_room_there_is(tmp_path: Path) -> None:
    """Training, its answers before and after, and `evaluate`; with a question of one's own that
    fills the context."""
    folder, lines = short(tmp_path / "model", "gpt2"), []
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = next(n for n in range(40, 0, -1) if len(tokenizer.apply_chat_template(
        [{"role": "user", "content": "is " * n + "9?"}], add_generation_prompt=True, return_dict=False)) <= 55)  # fmt: skip
    rows = tmp_path / "rows.json"
    rows.write_text(
        json.dumps([{"instruction": "is " * words + f"{i}?", "output": "a"} for i in range(6)])
    )

    class Lines(Quiet):
        def line(self, text: str) -> None:
            lines.append(text)

    run = tunewright.train(
        model=str(folder), data={"train": str(rows), "held_out": 0}, engine={"steps": 1, "dtype": "float32", "threads": 1},
        probes=["is " * words + "1?", "is " * 200], out=str(tmp_path / "run"), tell=Lines(),
    )  # fmt: skip
    assert run.summary["status"] == "done" and [row["question"] for row in run.before_after] == [
        "is " * words + "1?"
    ]
    assert any("questions are skipped" in line and "64" in line for line in lines)
    found = evaluate_target(
        str(run.folder), str(rows), generate=True, max_new_tokens=200, dtype="float32", tell=Quiet()
    )
    full = found["exact_match"]["context_full"]
    assert found["exact_match"]["no_room"] == 0 and bool(full) == any(
        "end of the model's context" in line for line in found["warnings"]
    )
    assert any("context was full" in line for line in lines) == bool(full) and full > 0


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("grpo", {"objective.reward": "finished", "objective.generations": 2}),
        ("gkd", {"objective.on_policy": 1.0}),
    ],
)
def test_answers_that_cannot_fit_are_refused_before_the_first_step(
    kind: str, more: dict[str, Any], tmp_path: Path
) -> None:
    folder, rows = short(tmp_path / "model", "gpt2"), story.rows_file(tmp_path / "rows.json", 6)
    teacher = {"objective.teacher": str(folder)} if kind == "gkd" else {}
    given = {
        "model": str(folder), "data.train": str(rows), "data.held_out": 0, "engine.steps": 1, "engine.dtype": "float32", "engine.threads": 1, "probes": 0, "forgetting": "off",
        "out": str(tmp_path / "run"), "objective.kind": kind, **more, **teacher,
    }  # fmt: skip
    from tunewright.run.prepare import prepare
    from tunewright.story import train

    with pytest.raises(CompatError, match="E-MODEL-58") as error:
        train(parse_run({**given, "objective.max_new_tokens": 60}, {}), tell=Quiet())
    assert not (tmp_path / "run").exists()
    # The room that the message names is enough, and one token more is not.
    room = int(error.value.problems[0].fields["room"])
    assert (
        train(parse_run({**given, "objective.max_new_tokens": room}, {}), tell=Quiet()).summary[
            "status"
        ]
        == "done"
    )
    with pytest.raises(CompatError, match="E-MODEL-58"):
        prepare(
            parse_run(
                {**given, "objective.max_new_tokens": room + 1, "out": str(tmp_path / "two")}, {}
            ),
            Quiet(),
        )


# ---- many at once


def test_each_question_has_its_own_limit_and_progress_counts_what_is_written(base: Path) -> None:
    model = opened(base).answering
    asked = [[Message("user", text)] for text in (QUESTION, "a small model", "who learns quickly")]
    prompts = [model.renderer.prompt(one) for one in asked]
    limits = [3, 0, 9]
    told: list[tuple[int, int, int]] = []
    found = answer(model, prompts, max_new_tokens=limits, progress=lambda *now: told.append(now))
    alone = [
        answer(model, [prompt], max_new_tokens=most)[0]
        for prompt, most in zip(prompts, limits, strict=True)
    ]
    assert found == alone
    assert [len(one.tokens) for one in found] == [3, 0, 9]  # the oracle below: none meets a stop
    assert found[0].tokens == written(base, 3)
    assert len(told) >= 9 and told[-1] == (3, 12, 12)
    assert all(0 < now[1] <= 12 for now in told)
