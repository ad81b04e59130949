"""Seconds of a drawn token of hybrid and recurrent models: our rollouts, and the model's own
`generate` on the same prompts as one batch. A random model in the shape of a small one of each
family, float32; every answer has the same number of tokens. Growing texts, which are computed anew
for every token, would make the second half of an answer slower than the first: both are told."""

from __future__ import annotations

import argparse
import random
import time
import warnings
from typing import Any

from common import in_turns, middle, ratio, say, threads

SHARED = {
    "vocab_size": 8192, "hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 8,
    "num_key_value_heads": 4, "max_position_embeddings": 2048, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
DELTA = {
    "num_hidden_layers": 8, "head_dim": 32,
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 2,
    "linear_num_value_heads": 8, "linear_num_key_heads": 4, "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_5_text": DELTA,
    "lfm2": {"num_hidden_layers": 8, "layer_types": (["conv"] * 3 + ["full_attention"]) * 2},
    "jamba": {
        "num_hidden_layers": 8, "attn_layer_period": 4, "attn_layer_offset": 3, "num_experts": 2,
        "num_experts_per_tok": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
    },
    "mamba2": {
        "num_hidden_layers": 8, "num_heads": 8, "head_dim": 64, "state_size": 32, "n_groups": 1,
        "chunk_size": 64, "expand": 2,
    },
}  # fmt: skip


def built(family: str) -> Any:
    """A random model without a stop token, so that no answer ends early."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **{**SHARED, **FAMILIES[family]})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    return model.requires_grad_(False)


def own(model: Any, prompts: list[list[int]], tokens: int) -> float:
    """Seconds of Transformers' `generate` for one batch of prompts of one length."""
    import torch

    ids = torch.tensor(prompts)
    began = time.perf_counter()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, top_p=1.0,
            max_new_tokens=tokens, min_new_tokens=tokens, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    assert out.shape[1] == ids.shape[1] + tokens
    return time.perf_counter() - began


def ours(model: Any, prompts: list[list[int]], tokens: int) -> float:
    """Seconds of the draws of a round."""
    from tunewright.engine.policy import Policy
    from tunewright.engine.rollouts.sampling import How, Sampler

    sampler = Sampler(Policy(model, model, "padded"), frozenset())
    began = time.perf_counter()
    drawn = sampler.draw(prompts, How(1, tokens), 3)
    seconds = time.perf_counter() - began
    assert all(len(group[0].tokens) == tokens for group in drawn)
    return seconds


def main() -> None:
    """Print one JSON line a run, then medians and the ratio of each family."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    draw = random.Random(1)
    for family in args.families:
        model = built(family)
        prompts = [
            [draw.randrange(3, SHARED["vocab_size"]) for _ in range(args.prompt)]
            for _ in range(args.answers)
        ]
        drawn, half = args.answers * args.tokens, args.tokens // 2

        def measured(way: Any) -> dict[str, Any]:
            first = way(model, prompts, half)  # noqa: B023 - called before the loop goes on
            whole = way(model, prompts, args.tokens)  # noqa: B023
            return {
                "milliseconds_per_token": 1000 * whole / drawn,  # noqa: B023
                "second_half_by_first": (whole - first) / first,
            }

        ours(model, prompts, 4), own(model, prompts, 4)
        ways = {"ours": lambda: measured(ours), "generate": lambda: measured(own)}
        found = in_turns(args.runs, ways)
        say(
            {
                "family": family,
                "threads": threads(),
                "median": {name: middle(runs) for name, runs in found.items()},
                "ours_by_generate": ratio(
                    found["ours"], found["generate"], "milliseconds_per_token"
                ),
            }
        )


if __name__ == "__main__":
    main()
