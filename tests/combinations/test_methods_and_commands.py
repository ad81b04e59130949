"""Every method under every command that opens a run: what each says agrees with what the run itself
wrote down, or with another way of getting it.

One run a method: a tiny random model is taught two short answers. Then
- `evaluate --generate`, `chat` and the Python API give the run's own answers of after the reload;
  asked as the base, those of a fresh load of the base;
- `evaluate` gives the loss of the last rows that the run itself measured, and the base's own with
  `--base`;
- `export merge` gives a plain model with the run's logits, or refuses with a code;
- a run that was killed after its first checkpoint and taken up again ends with the same bytes;
- a run that goes on from this one begins at this one's loss;
- `bench` computes as many rows as the run did.
"""

from __future__ import annotations

import functools
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import parts
import pytest
import torch
from helpers import story

from tunewright.api import Run
from tunewright.bench.speed import bench
from tunewright.core.errors import TunewrightError
from tunewright.core.registry import methods
from tunewright.core.telling import Quiet
from tunewright.engine import opening
from tunewright.evaluate.scoring import evaluate_target
from tunewright.export.merge import merge_run
from tunewright.story import resume_run

COMMANDS = (
    "evaluate",
    "evaluate --base",
    "chat",
    "chat --base",
    "merge",
    "resume",
    "adapter",
    "bench",
)
ROWS = [
    {"instruction": "what is a small model?", "output": "it is 5"},
    {"instruction": "what is the capital?", "output": "it is 4"},
]
PROMPT = {"num_tokens": 4}
SETTINGS: dict[str, dict[str, Any]] = {
    "adalora": {"rank": 4}, "boft": {"block_size": 4}, "oft": {"block_size": 8}, "freeze": {"blocks": 1}, "lisa": {"blocks": 1}, "llama_pro": {"blocks": 1},
    "loftq": {"rank": 4, "base.bits": 4}, "lokr": {"rank": 2}, "new_tokens": {"tokens": ["<plan>", "small"]}, "peft": {"type": "HRA", "options": {"r": 4}},
    **dict.fromkeys(("prompt_tuning", "p_tuning", "prefix_tuning", "p_tuning_v2"), PROMPT),
    **{kind: {"rank": 4, "refresh": 2} for kind in ("galore", "apollo")}, "apollo_mini": {"refresh": 2}, "diff_pruning": {"target": 0.2},
    **{kind: {"rank": 4} for kind in ("lora", "rslora", "dora", "lora_plus", "pissa", "olora", "eva", "loha")},
}  # fmt: skip
RATES = {
    **dict.fromkeys(("prompt_tuning", "p_tuning_v2"), 0.5),
    **dict.fromkeys(("p_tuning", "prefix_tuning"), 0.05),
    "vera": 0.1,
    "lora_plus": 5e-3,
}
STEPS = 4
SHOWN = (
    "lora", "loftq", "prompt_tuning", "houlsby", "full", "llama_pro", "new_tokens", "mixture_of_depths",
)  # fmt: skip
"""One of each way in which a method stands on a model, is saved, merged and taken up again. `thorough`:
the others, which differ from one of these in how they are computed."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A context of 40 tokens keeps the answers of an untaught model short. Qwen2's shape has
    biases, so every method has something to train."""
    return story.model_folder(
        tmp_path_factory.mktemp("model"), "qwen2", max_position_embeddings=40, initializer_range=0.2
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parts.write(tmp_path_factory.mktemp("rows") / "rows.jsonl", ROWS)


def settings_of(kind: str) -> dict[str, Any]:
    own = SETTINGS.get(kind, {})
    found = {
        "method.kind": kind,
        **{key if "." in key else f"method.{key}": value for key, value in own.items()},
    }
    return found | {
        "engine.steps": STEPS,
        "engine.batch_size": 2,
        "engine.learning_rate": RATES.get(kind, 0.03),
        "engine.save_every": 2,
        "probes": 2,
        "forgetting": "auto",
    }


def measured(target: Path, rows: Path, **options: Any) -> tuple[list[str], float]:
    """`evaluate --generate`: the answers, in the order of the rows (those that are not listed as
    mistakes are the expected ones), and the loss."""
    found = evaluate_target(
        str(target),
        str(rows),
        generate=True,
        options=[],
        dtype="float32",
        threads=1,
        tell=Quiet(),
        max_new_tokens=48,
        **options,
    )
    wrong = {entry["origin"]: entry["answer"] for entry in found["exact_match"]["mistakes"]}
    return [wrong.get(f"{rows}:{i + 1}", row["output"]) for i, row in enumerate(ROWS)], found[
        "loss"
    ]["token_mean"]


def agree(one: float, other: float, rel: float = 2e-4) -> bool:
    return one == pytest.approx(other, rel=rel)


def plain_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """A folder as plain Transformers loads it."""
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(
            input_ids=ids
        ).logits


def combinations() -> list[tuple[str, str]]:
    return [(kind, command) for kind in methods.names() for command in COMMANDS]


@pytest.mark.wide("full", "lora", "llama_pro", "prompt_tuning")
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind in SHOWN else pytest.mark.thorough)
        for kind in methods.names()
    ],
)
def test_every_command_sees_what_the_run_trained(
    kind: str, model: Path, rows: Path, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # PEFT's remarks about its own settings are looked at where methods are tested
        out = tmp_path / "run"
        made = parts.run(model, str(rows), out, **settings_of(kind))
        written = [
            json.loads(line)
            for line in (out / "before_after.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        order = [
            next(row for row in written if row["question"] == one["instruction"]) for one in ROWS
        ]
        after = [row["after_reload"] for row in order]
        before = [row["before"] for row in order]
        assert after != before and after == [row["after"] for row in order]
        loss = _measuring(kind, model, out, rows, after, before)
        assert loss < made.summary["first_loss"]
        _chatting(out, after, before)
        _merging(out, model, tmp_path / "merged")
        _taking_up(model, rows, out, tmp_path)
        _going_on(kind, model, rows, out, loss, tmp_path)
        _benching(kind, model, rows, out)


def _measuring(
    kind: str, model: Path, out: Path, rows: Path, after: list[str], before: list[str]
) -> float:
    answers, loss = measured(out, rows)
    assert answers == after
    answers, base = measured(out, rows, base=True)
    assert answers == before and not agree(loss, base)
    # A quantised base is measured as the run held it.
    assert agree(base, _untaught(model, rows)) != ("base.bits" in settings_of(kind))
    return loss


@functools.cache
def _untaught(model: Path, rows: Path) -> float:
    return measured(model, rows)[1]


def _chatting(out: Path, after: list[str], before: list[str]) -> None:
    run = Run(out)
    assert run.chat(ROWS[0]["instruction"], max_new_tokens=48) == after[0]
    assert run.chat(ROWS[0]["instruction"], max_new_tokens=48, base=True) == before[0]


def _merging(out: Path, model: Path, folder: Path) -> None:
    try:
        merge_run(out, folder)
    except TunewrightError as refused:
        assert (
            refused.problems[0].code.startswith(("E-EXPORT", "E-METHOD")) and not folder.exists()
        ), refused
        return
    opened = opening.open_target(str(out), Quiet(), dtype="float32")
    ids = torch.tensor([opened.renderer.prompt([_user(ROWS[0]["instruction"])])])
    opened.causal.set_attn_implementation("sdpa")
    with torch.no_grad():
        ours = opened.model(input_ids=ids, use_cache=False).logits
    assert float((plain_logits(folder, ids) - ours).abs().max()) < 1e-3 * float(ours.abs().max())
    assert not torch.allclose(ours[..., :300], plain_logits(model, ids)[..., :300], atol=1e-3)


def _user(text: str) -> Any:
    from tunewright.core.types import Message

    return Message("user", text)


def _taking_up(model: Path, rows: Path, out: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    shutil.copytree(out, killed)
    shutil.rmtree(sorted((killed / "checkpoints").iterdir())[-1])
    (killed / "summary.json").unlink()
    saved = _saved(out)
    shutil.rmtree(killed / saved)
    resume_run(killed, tell=Quiet())
    for file in (out / saved).glob("*.safetensors"):
        assert story.digest(file) == story.digest(killed / saved / file.name), file.name


def _saved(out: Path) -> str:
    return "model" if (out / "model").is_dir() else "adapter"


def _going_on(kind: str, model: Path, rows: Path, out: Path, loss: float, tmp_path: Path) -> None:
    more = {"engine.steps": 1, "engine.batch_size": 2, "engine.learning_rate": 1e-12}
    more |= {key: value for key, value in settings_of(kind).items() if key.startswith("base.")}
    more |= {"method.kind": "full"} if _saved(out) == "model" else {"adapter": str(out / "adapter")}
    on = parts.run(
        out / "model" if _saved(out) == "model" else model, str(rows), tmp_path / "on", **more
    )
    # Mixture of depths begins every run by sending the heaviest rows through its blocks, and
    # measures by what its predictor picks.
    assert agree(on.summary["first_loss"], loss, 5e-3 if kind == "mixture_of_depths" else 2e-4)


def _benching(kind: str, model: Path, rows: Path, out: Path) -> None:
    found = bench(
        parts.parsed(model, str(rows), **settings_of(kind)),
        steps=1,
        certificate=False,
        tell=Quiet(),
    )
    steps = parts.events(out, "step")[:1]
    for figure in ("physical_rows", "label_tokens"):
        assert found[figure] * len(steps) == sum(step[figure] for step in steps) * found["steps"], (
            figure
        )
