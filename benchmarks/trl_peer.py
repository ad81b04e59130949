"""TRL's side of the benchmarks, as a script of its own: what a person writes from TRL's
documentation, from the imports to the saved adapter.

    python trl_peer.py sft|dpo|reward|grpo SETTINGS.json

Runs in an environment that has TRL; nothing of Tunewright is imported. `SETTINGS.json` holds
`folder`, `rows`, `out`, `threads`, `dtype`, `batch` (rows a device batch) and `accumulate`; `limit`
(sft); `steps`, `generations`, `max_new_tokens`, `pattern` (grpo). The last line it prints is JSON:
`train_seconds`, `losses`, and for GRPO `seconds_per_step`.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
from pathlib import Path
from typing import Any


def common(given: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Settings that every trainer here shares."""
    return {
        "output_dir": given["out"],
        "per_device_train_batch_size": given["batch"],
        "gradient_accumulation_steps": given["accumulate"],
        "num_train_epochs": 1,
        "bf16": given["dtype"] == "bfloat16",
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        **more,
    }


def lora(rank: int = 8, task: str = "CAUSAL_LM", targets: Any = None, **more: Any) -> Any:
    """A LoRA whose alpha is twice its rank, as Tunewright's default."""
    from peft import LoraConfig

    return LoraConfig(
        task_type=task,
        r=rank,
        lora_alpha=2 * rank,
        target_modules=targets or ["q_proj", "v_proj"],
        **more,
    )


def causal(given: dict[str, Any]) -> Any:
    """The base, in the wanted dtype."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, given["dtype"])
    return AutoModelForCausalLM.from_pretrained(given["folder"], dtype=dtype)


def sft(given: dict[str, Any], tokenizer: Any) -> Any:
    """Loss on the completion only, as for rows with a prompt."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    def row(r: dict[str, Any]) -> dict[str, Any]:
        text = r["instruction"] + ("\n" + r["input"] if r.get("input") else "")
        return {
            "prompt": [{"role": "user", "content": text}],
            "completion": [{"role": "assistant", "content": r["output"]}],
        }

    rows = json.loads(Path(given["rows"]).read_text(encoding="utf-8"))[: given["limit"]]
    return SFTTrainer(
        model=causal(given),
        train_dataset=Dataset.from_list([row(r) for r in rows]),
        processing_class=tokenizer,
        peft_config=lora(),
        args=SFTConfig(**common(given, learning_rate=5e-4, max_length=None)),
    )


def dpo(given: dict[str, Any], tokenizer: Any) -> Any:
    """A DPOTrainer on pairs."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer(
        model=causal(given),
        train_dataset=Dataset.from_list(json.loads(Path(given["rows"]).read_text())),
        processing_class=tokenizer,
        peft_config=lora(),
        args=DPOConfig(**common(given, learning_rate=5e-5, max_length=None)),
    )


def reward(given: dict[str, Any], tokenizer: Any) -> Any:
    """A RewardTrainer on pairs."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    model = AutoModelForSequenceClassification.from_pretrained(
        given["folder"], num_labels=1, dtype=getattr(torch, given["dtype"])
    )
    return RewardTrainer(
        model=model,
        train_dataset=Dataset.from_list(json.loads(Path(given["rows"]).read_text())),
        processing_class=tokenizer,
        peft_config=lora(task="SEQ_CLS", modules_to_save=["score"]),
        args=RewardConfig(**common(given, learning_rate=5e-5, max_length=None)),
    )


def grpo(given: dict[str, Any], tokenizer: Any) -> Any:
    """Prompts in JSON lines; the reward is whether the whole answer matches a pattern."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    lines = Path(given["rows"]).read_text(encoding="utf-8").splitlines()
    asked = [json.loads(line)["prompt"] for line in lines if line.strip()]
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in asked]

    def in_form(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
        said = [one[0]["content"].strip() for one in completions]
        return [float(re.fullmatch(given["pattern"], text) is not None) for text in said]

    settings = common(
        given,
        learning_rate=5e-4,
        max_steps=given["steps"],
        num_generations=given["generations"],
        max_completion_length=given["max_new_tokens"],
        temperature=1.0,
        beta=0.0,
    )
    return GRPOTrainer(
        model=causal(given),
        reward_funcs=in_form,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora(rank=16, targets="all-linear"),
        args=GRPOConfig(**settings),
    )


def main() -> None:
    """Train as `KIND SETTINGS.json` say and print what it took."""
    import torch
    from transformers import AutoTokenizer, TrainerCallback

    kind, given = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    torch.set_num_threads(given["threads"])
    tokenizer = AutoTokenizer.from_pretrained(given["folder"])
    trainer = {"sft": sft, "dpo": dpo, "reward": reward, "grpo": grpo}[kind](given, tokenizer)
    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    trainer.add_callback(Clock())
    result = trainer.train()
    trainer.save_model(given["out"])
    history = trainer.state.log_history
    line = {
        "train_seconds": result.metrics["train_runtime"],
        "seconds_per_step": [b - a for a, b in itertools.pairwise(ends)],
        "losses": [entry["loss"] for entry in history if "loss" in entry],
        "rewards": [entry["reward"] for entry in history if "reward" in entry],
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
