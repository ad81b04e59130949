"""Keys that people bring, each in a whole run: what is learnt, saved and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import story
from safetensors.torch import load_file

from tunewright.core.errors import CompatError, ConfigError
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.engine import opening
from tunewright.story import resume_run, train
from tunewright.text import own_template
from tunewright.text.tokenizer import load_tokenizer

TEMPLATE = (
    "{%- for m in messages -%}{{ '<' + m.role + '>' + m.content }}"
    "{%- if m.role == 'assistant' -%}{{ eos_token }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<assistant>' }}{%- endif -%}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return story.model_folder(tmp_path_factory.mktemp("model"), initializer_range=0.1)


def talk(path: Path) -> Path:
    """Dialogues of two rounds, the last with a call of a tool's kind: two answers in a row."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"first {i}?"},
                {"role": "assistant", "content": f"early {i}"},
                {"role": "user", "content": f"second {i}?"},
                {"role": "assistant", "content": f"late {i}"},
            ]
        }
        for i in range(8)
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def pairs(path: Path) -> Path:
    rows = [
        {"prompt": f"what {i}?", "chosen": f"good {i}", "rejected": f"bad answer {i}"}
        for i in range(8)
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def run(model: Path, rows: Path, out: Path, **more: Any) -> Path:
    given = {
        "model": str(model), "data.train": str(rows), "data.held_out": 2, "out": str(out),
        "probes": 0, "forgetting": "off", "engine.threads": 1, "engine.dtype": "float32",
        "engine.steps": 6, "engine.batch_size": 3, "engine.save_every": 2,
        "engine.evaluate_every": 2, "method.kind": "lora", "method.rank": 4, **more,
    }  # fmt: skip
    return train(parse_run(given, dict.fromkeys(given, "test")), tell=Quiet()).folder


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [e for e in map(json.loads, lines) if e["event"] == name]


def halved(folder: Path, place: Path) -> Path:
    """A copy of a finished run as it was when it was killed after its first checkpoints."""
    half = shutil.copytree(folder, place)
    steps = sorted((half / "checkpoints").iterdir())
    for later in steps[1:]:
        shutil.rmtree(later)
    for left in ("adapter", "model"):
        shutil.rmtree(half / left, ignore_errors=True)
    (half / "summary.json").unlink(missing_ok=True)
    return half


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


RESUMED: dict[str, tuple[Any, dict[str, Any]]] = {
    "schedule_free": (talk, {"engine.optimizer": "adamw_schedule_free"}),
    "adam_mini": (talk, {"engine.optimizer": "adam_mini"}),
    "lion": (talk, {"engine.optimizer": "lion", "engine.rates": {"lora_b": 4.0}}),
    "bco": (pairs, {"objective.kind": "bco"}),
    "bco_pair": (
        pairs,
        {
            "objective.kind": "dpo",
            "objective.loss": ["sigmoid", "bco_pair"],
            "objective.wpo": True,
            "objective.bco_shift": True,
        },
    ),
    "online_dpo": (
        pairs,
        {
            "objective.kind": "online_dpo",
            "objective.max_new_tokens": 4,
            "objective.reward": {"kind": "length", "unit": "characters", "min": 30, "slope": 30},
        },
    ),
    "whole": (
        talk,
        {
            "method.modules_to_save": ["embedding"],
            "method.rank_pattern": {"mlp": 2},
            "engine.rates": {"embedding": 0.1},
            "objective.loss": "eaft",
        },
    ),
}


@pytest.mark.wide("schedule_free", "online_dpo")
@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_ends_with_the_same_bits(name: str, model: Path, tmp_path: Path) -> None:
    rows, more = RESUMED[name]
    settings = {"engine.keep_best": False, **more}
    whole = run(model, rows(tmp_path / "rows.json"), tmp_path / "whole", **settings)
    half = halved(whole, tmp_path / "half")
    before = len(list((half / "checkpoints").iterdir()))
    again = resume_run(half, tell=Quiet()).folder
    assert before == 1 and same(whole, again)


def test_what_schedule_free_hands_out_is_what_was_measured(model: Path, tmp_path: Path) -> None:
    """The mean of the steps: the held-out loss that was written is that of the saved files."""
    from tunewright.core.runfile import objective_of
    from tunewright.engine.step import held_out_loss
    from tunewright.run.prepare import prepare

    more = {"engine.optimizer": "adamw_schedule_free", "engine.learning_rate": 3e-2}
    done = run(model, talk(tmp_path / "rows.json"), tmp_path / "run", **more)
    summary = json.loads((done / "summary.json").read_text(encoding="utf-8"))
    opened = opening.open_target(str(done), Quiet())
    given = {"model": str(model), "data.train": str(tmp_path / "rows.json"), "data.held_out": 2}
    plan = prepare(parse_run({**given, "engine.threads": 1}, {}), Quiet(), out_matters=False)
    loss = held_out_loss(
        opened.policy("padded"), objective_of(plan.config), plan.data.held_out, 256
    )
    assert loss == pytest.approx(summary["held_out_loss"], rel=1e-4)
    text = (done / "run.yaml").read_text(encoding="utf-8")
    assert "schedule: constant" in text


@pytest.mark.parametrize(("turns", "count"), [("all", 2), ("last", 1), ("last_round", 1)])
def test_only_the_asked_turns_are_learnt(
    turns: str, count: int, model: Path, tmp_path: Path
) -> None:
    rows = talk(tmp_path / "rows.json")
    done = run(model, rows, tmp_path / "run", **{"data.turns": turns, "engine.steps": 1})
    report = json.loads((done / "data_report.json").read_text(encoding="utf-8"))
    assert report["answers"] == count * 6  # of the rows that are trained on
    assert report["notes"].get("turns_unlearnt", 0) == (0 if turns == "all" else 8)


def test_turns_after_the_last_question_are_one_round() -> None:
    from tunewright.core.types import Conversation, Message, Origin
    from tunewright.data.store.learnt_turns import with_turns

    spoken = [("user", 1), ("assistant", 1), ("user", 1), ("assistant", 1), ("tool", 1)]
    messages = [Message(role, role, weight) for role, weight in [*spoken, ("assistant", 1)]]
    row = Conversation(messages, Origin("f", 1, 1))

    def learnt(turns: str) -> list[int]:
        made: Any = with_turns(row, turns)[0]
        return [i for i, m in enumerate(made.messages) if m.role == "assistant" and m.weight > 0]

    assert learnt("last") == [5] and learnt("last_round") == [3, 5]
    muted = [*messages[:-1], Message("assistant", "x", 0.0)]
    assert with_turns(Conversation(muted, Origin("f", 1, 1)), "last")[1] == 2


def test_turns_do_nothing_where_answers_are_compared(model: Path, tmp_path: Path) -> None:
    for kind in ("dpo", "grpo"):
        with pytest.raises(CompatError) as caught:
            run(
                model,
                pairs(tmp_path / "rows.json"),
                tmp_path / kind,
                **{"objective.kind": kind, "data.turns": "last", "method.rank": 2},
            )
        assert [p.code for p in caught.value.problems] == ["E-COMPAT-12"]


def test_a_template_of_ones_own_goes_with_the_result(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(TEMPLATE, encoding="utf-8")
    rows = talk(tmp_path / "rows.json")
    done = run(model, rows, tmp_path / "run", **{"data.template": str(file)})
    assert (done / own_template.FILE).read_text(encoding="utf-8") == TEMPLATE
    assert load_tokenizer(done / "adapter").chat_template == TEMPLATE
    from transformers import AutoTokenizer

    asked = [{"role": "user", "content": "first 1?"}]
    theirs = AutoTokenizer.from_pretrained(done / "adapter").apply_chat_template(
        asked, tokenize=False, add_generation_prompt=True
    )
    assert theirs == "<user>first 1?<assistant>"
    opened = opening.open_target(str(done), Quiet())
    assert opened.renderer.template.tokenizer.chat_template == TEMPLATE
    # The file changes; a run that is taken up again reads its own copy.
    half = halved(done, tmp_path / "half")
    file.write_text(TEMPLATE.replace("<assistant>", "<other>"), encoding="utf-8")
    again = resume_run(half, tell=Quiet()).folder
    assert same(done, again) and load_tokenizer(again / "adapter").chat_template == TEMPLATE


@pytest.mark.parametrize(
    ("text", "code"),
    [(None, "E-KEY-08"), ("{% for m in messages %}", "E-KEY-09"), ("hello", "E-KEY-09")],
)
def test_a_template_that_is_none_is_refused(
    text: str | None, code: str, model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.jinja"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        rows = talk(tmp_path / "rows.json")
        run(model, rows, tmp_path / "run", **{"data.template": str(file)})
    assert caught.value.problems[0].code == code and not (tmp_path / "run").exists()


def test_online_dpo_makes_the_better_of_two_answers_likelier(model: Path, tmp_path: Path) -> None:
    """A reward for long answers: they grow."""
    reward = {"kind": "length", "unit": "characters", "min": 60, "slope": 60}
    more = {
        "objective.kind": "online_dpo", "objective.reward": reward, "objective.max_new_tokens": 12,
        "objective.beta": 0.05, "engine.steps": 30, "engine.batch_size": 8, "data.held_out": 0,
        "engine.learning_rate": 3e-2, "method.rank": 8,
    }  # fmt: skip
    done = run(model, pairs(tmp_path / "rows.json"), tmp_path / "run", **more)
    rewards = [e["figures"]["reward"] for e in events(done, "step")]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.05
    assert events(done, "step")[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
