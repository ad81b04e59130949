"""Every method under every command that opens a run: what each says agrees with what the run itself wrote down, or with another way of getting it.

One run a method: a tiny random model is taught two short answers. Then
- `evaluate --generate`, `chat` and the Python API give the run's own answers of after the reload; asked as the base, those of a fresh load of the base;
- `evaluate` gives the loss of the last rows that the run itself measured, and the base's own with `--base`;
- `export merge` gives a plain model with the run's logits, or refuses with a code;
- a run that was killed after its first checkpoint and taken up again ends with the same bytes;
- a run that goes on from this one begins at this one's loss;
- `bench` computes as many rows as the run did.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import parts
import pytest
import story
import torch

from tunewright.api import Run
from tunewright.bench import bench
from tunewright.core.errors import TunewrightError
from tunewright.core.registry import methods
from tunewright.core.telling import Quiet
from tunewright.engine import opening
from tunewright.evaluate.scoring import evaluate_target
from tunewright.export.merge import merge_run
from tunewright.story import resume_run

COMMANDS = ("generate", "chat", "compare", "loss", "merge", "resume", "adapter", "bench")
ROWS = [{"instruction": "what is a small model?", "output": "it is 5"}, {"instruction": "what is the capital?", "output": "it is 4"}]
PROMPT = {"num_tokens": 4}
SETTINGS: dict[str, dict[str, Any]] = {
    "adalora": {"rank": 4}, "boft": {"block_size": 4}, "oft": {"block_size": 8}, "freeze": {"blocks": 1}, "lisa": {"blocks": 1}, "llama_pro": {"blocks": 1},
    "loftq": {"rank": 4, "base.bits": 4}, "lokr": {"rank": 2}, "new_tokens": {"tokens": ["<plan>", "small"]}, "peft": {"type": "HRA", "options": {"r": 4}},
    **dict.fromkeys(("prompt_tuning", "p_tuning", "prefix_tuning", "p_tuning_v2"), PROMPT),
    **{kind: {"rank": 4, "refresh": 2} for kind in ("galore", "apollo")}, "apollo_mini": {"refresh": 2}, "diff_pruning": {"target": 0.2},
    **{kind: {"rank": 4} for kind in ("lora", "rslora", "dora", "lora_plus", "pissa", "olora", "eva", "loha")},
}  # fmt: skip
RATES = {**dict.fromkeys(("prompt_tuning", "p_tuning_v2"), 0.5), **dict.fromkeys(("p_tuning", "prefix_tuning"), 0.05), "vera": 0.1, "lora_plus": 5e-3}
STEPS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A context of 64 tokens keeps the answers of an untaught model short. Qwen2's shape has biases, so every method has something to train."""
    return story.model_folder(tmp_path_factory.mktemp("model"), "qwen2", max_position_embeddings=64, initializer_range=0.2)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parts.write(tmp_path_factory.mktemp("rows") / "rows.jsonl", ROWS)


def settings_of(kind: str) -> dict[str, Any]:
    own = SETTINGS.get(kind, {})
    found = {"method.kind": kind, **{key if "." in key else f"method.{key}": value for key, value in own.items()}}
    return found | {"engine.steps": STEPS, "engine.batch_size": 2, "engine.learning_rate": RATES.get(kind, 0.03), "engine.save_every": 3, "probes": 2}


def answers_of(target: str, rows: Path, **options: Any) -> list[str]:
    """The answers of `evaluate --generate`, in the order of the rows: those that are not listed as mistakes are the expected ones."""
    found = evaluate_target(target, str(rows), generate=True, options=[], dtype="float32", threads=1, tell=Quiet(), max_new_tokens=48, **options)
    wrong = {entry["origin"]: entry["answer"] for entry in found["exact_match"]["mistakes"]}
    return [wrong.get(f"{rows}:{i + 1}", row["output"]) for i, row in enumerate(ROWS)]


def losses_agree(one: float, other: float) -> bool:
    return one == pytest.approx(other, rel=2e-4)


def plain_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """A folder as plain Transformers loads it."""
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(input_ids=ids).logits


def combinations() -> list[tuple[str, str]]:
    return [(kind, command) for kind in methods.names() for command in COMMANDS]


@pytest.mark.parametrize("kind", methods.names())
def test_every_command_sees_what_the_run_trained(kind: str, model: Path, rows: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks about its own settings are looked at where methods are tested
        out = tmp_path / "run"
        made = parts.run(model, str(rows), out, **settings_of(kind))
        written = [json.loads(line) for line in (out / "before_after.jsonl").read_text(encoding="utf-8").splitlines()]
        order = [next(row for row in written if row["question"] == one["instruction"]) for one in ROWS]
        after = [row["after_reload"] for row in order]
        before = [row["before"] for row in order]
        assert after != before and after == [row["after"] for row in order]
        _answering(kind, out, rows, after, before)
        _measuring(out, rows, model, made.summary)
        _merging(out, model, tmp_path / "merged")
        _taking_up(kind, model, rows, out, tmp_path)
        _benching(kind, model, rows, out)


def _answering(kind: str, out: Path, rows: Path, after: list[str], before: list[str]) -> None:
    assert answers_of(str(out), rows) == after
    assert answers_of(str(out), rows, base=True) == before
    run = Run(out)
    assert [run.chat(row["instruction"], max_new_tokens=48) for row in ROWS] == after
    opened = opening.open_target(str(out), Quiet(), dtype="float32")
    if opened.attached is not None and opened.attached.disabled is not None:
        assert [run.chat(row["instruction"], max_new_tokens=48, base=True) for row in ROWS] == before
    else:
        with pytest.raises(TunewrightError) as caught:
            run.chat(ROWS[0]["instruction"], base=True)
        assert caught.value.problems[0].code in ("E-RUN-15", "E-RUN-12")


def _measuring(out: Path, rows: Path, model: Path, summary: dict[str, Any]) -> None:
    own, base, fresh = (
        evaluate_target(target, str(rows), generate=False, options=[], dtype="float32", threads=1, tell=Quiet(), base=untaught)["loss"]["token_mean"]
        for target, untaught in ((str(out), False), (str(out), True), (str(model), False))
    )
    assert losses_agree(base, fresh) and not losses_agree(own, base)
    assert own < summary["first_loss"]


def _merging(out: Path, model: Path, folder: Path) -> None:
    try:
        merge_run(out, folder)
    except TunewrightError as refused:
        assert refused.problems[0].code.startswith(("E-EXPORT", "E-METHOD")) and not folder.exists(), refused
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


def _taking_up(kind: str, model: Path, rows: Path, out: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    shutil.copytree(out, killed)
    last = sorted((killed / "checkpoints").iterdir())[-1]
    shutil.rmtree(last)
    (killed / "summary.json").unlink()
    saved = "model" if (out / "model").is_dir() else "adapter"
    shutil.rmtree(killed / saved)
    resume_run(killed, tell=Quiet())
    for file in (out / saved).glob("*.safetensors"):
        assert story.digest(file) == story.digest(killed / saved / file.name), file.name
    more = {"engine.steps": 1, "engine.batch_size": 2, "engine.learning_rate": 1e-12}
    begin = {"model": str(out / "model"), "method.kind": "full"} if saved == "model" else {"adapter": str(out / "adapter")}
    base = {key: value for key, value in settings_of(kind).items() if key.startswith("base.")}
    on = parts.run(model, str(rows), tmp_path / "on", **{**more, **base, **begin})
    own = evaluate_target(str(out), str(rows), generate=False, options=[], dtype="float32", threads=1, tell=Quiet())["loss"]["token_mean"]
    assert losses_agree(on.summary["first_loss"], own)


def _benching(kind: str, model: Path, rows: Path, out: Path) -> None:
    found = bench(parts.parsed(model, str(rows), **settings_of(kind)), steps=2, certificate=False, tell=Quiet())
    steps = parts.events(out, "step")[:2]
    for figure in ("physical_rows", "label_tokens"):
        assert found[figure] == sum(step[figure] for step in steps), figure
