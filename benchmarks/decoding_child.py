"""One engine in one process: answers of a fixed length to prompts given as token ids, greedy.

    python decoding_child.py ENGINE SETTINGS.json

Run by `decoding.py`, in the environment that has the engine; nothing here needs Tunewright but
`ours`. For each number of answers at once it prints a JSON line: seconds and processor seconds for
one token of every answer (`first`: the prefill) and for all of them (`full`), and the tokens.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import generator

Write = Callable[[list[list[int]], int], list[list[int]]]
"""(prompts, tokens of each answer) -> the tokens."""


def ours(given: dict[str, Any]) -> Write:
    """Tunewright's generator, on what `chat` and `evaluate` open."""
    import torch

    from tunewright.core.telling import Quiet
    from tunewright.engine.opening import open_target

    answer, answering = generator()
    opened = open_target(given["folder"], Quiet(), dtype="bfloat16", device="cpu")
    torch.set_num_threads(given["threads"])  # opening chooses a number of its own
    print(json.dumps({"reading": reading(opened.causal)}), flush=True)
    tokenizer = opened.renderer.tokenizer
    renderer = SimpleNamespace(
        tokenizer=tokenizer,
        stop_ids=(),
        reads_marks=False,
        read=lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True),
    )
    model = answering(opened.causal, opened.attached, renderer)

    def write(prompts: list[list[int]], count: int) -> list[list[int]]:
        found = answer(model, prompts, max_new_tokens=count)
        # A version that does not say the tokens says at least that the answer was cut there.
        return [
            list(getattr(one, "tokens", None) or ([-1] * count if one.end == "limit" else []))
            for one in found
        ]

    return write


def reading(model: Any) -> dict[str, float]:
    """Bytes of the weights that every token needs, and the seconds of the best simple reading of
    them: sums over one buffer as wide numbers, largest numbers, a product with a vector."""
    import torch

    weights = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        table = model.get_input_embeddings().weight
        weights.pop(table.data_ptr())
    count = sum(weights.values()) // 8192 * 8192
    buffer = torch.ones(count // 4, dtype=torch.float32)
    vector = torch.ones(2048)
    ways: list[Callable[[], Any]] = [
        buffer.sum,
        buffer.view(torch.int64).sum,
        buffer.view(torch.int32).max,
        lambda: buffer.view(-1, 2048) @ vector,
    ]
    best = min(_seconds(way) for way in ways for _ in range(5))
    return {"bytes": float(count), "seconds": best, "gigabytes_per_second": count / best / 1e9}


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def transformers(given: dict[str, Any]) -> Write:
    """Transformers' `generate`, one prompt at a time."""
    write = transformers_batch(given)
    return lambda prompts, count: [write([prompt], count)[0] for prompt in prompts]


def transformers_batch(given: dict[str, Any]) -> Write:
    """Transformers' `generate` on one static batch; prompts are of one length."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(given["threads"])
    model = AutoModelForCausalLM.from_pretrained(given["folder"], dtype=torch.bfloat16).eval()

    def write(prompts: list[list[int]], count: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=count,
                eos_token_id=None,
                pad_token_id=0,
            )
        return [row[ids.shape[1] :].tolist() for row in out]

    return write


def llama_cpp(given: dict[str, Any]) -> Write:
    """llama.cpp's server, in this process, with as many slots as answers at once."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = given["gguf"]
    params.port = 0
    params.n_parallel = max(given["answers"])
    params.n_ctx = params.n_parallel * given["context"]
    params.cpuparams.n_threads = given["threads"]
    params.cpuparams_batch.n_threads = given["threads"]
    params.warmup = False
    params.verbosity = 0
    server = xllamacpp.Server(params)
    settings = {"temperature": 0, "ignore_eos": True, "cache_prompt": False, "return_tokens": True}

    def write(prompts: list[list[int]], count: int) -> list[list[int]]:
        asked = {**settings, "prompt": prompts, "n_predict": count}
        connection = http.client.HTTPConnection(server.listening_address.split("//")[1])
        connection.request("POST", "/completion", json.dumps(asked))
        found = json.loads(connection.getresponse().read())
        found = found if isinstance(found, list) else [found]
        return [one["tokens"] for one in sorted(found, key=lambda one: one["index"])]

    return write


def openvino(given: dict[str, Any]) -> Write:
    """OpenVINO GenAI's continuous batching on the same GGUF file, in bfloat16; in float32 with one
    thread, where 2026.4.1 divides by zero in bfloat16 (seen on a Xeon with AMX)."""
    import numpy
    import openvino as ov
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False
    scheduler.cache_size = 2
    pipeline = genai.ContinuousBatchingPipeline(
        given["gguf"],
        scheduler,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": given["threads"],
            "INFERENCE_PRECISION_HINT": "bf16" if given["threads"] > 1 else "f32",
        },
    )

    def write(prompts: list[list[int]], count: int) -> list[list[int]]:
        settings = genai.GenerationConfig()
        settings.max_new_tokens = count
        settings.ignore_eos = True
        settings.do_sample = False
        ids = [ov.Tensor(numpy.array([prompt], dtype=numpy.int64)) for prompt in prompts]
        found = pipeline.generate(ids, [settings] * len(ids))
        return [list(one.m_generation_ids[0]) for one in found]

    return write


ENGINES: dict[str, Callable[[dict[str, Any]], Write]] = {
    "ours": ours,
    "before": ours,
    "transformers": transformers,
    "transformers_batch": transformers_batch,
    "llama_cpp": llama_cpp,
    "openvino": openvino,
}


def timed(write: Write, prompts: list[list[int]], count: int) -> tuple[float, float, list[Any]]:
    """(seconds, processor seconds, tokens) of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = write(prompts, count)
    return time.perf_counter() - wall, time.process_time() - cpu, tokens


def main() -> None:
    """Write with the engine `ENGINE SETTINGS.json` names: a JSON line a number of answers, with the
    seconds and processor seconds of the first token (`first`) and of all (`full`)."""
    name, given = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    write = ENGINES[name](given)
    for count in given["answers"]:
        write(given["warm"][:count], 4)
        first, first_cpu, _ = timed(write, given["short"][:count], 1)
        full, full_cpu, tokens = timed(write, given["long"][:count], given["tokens"])
        line = {
            "answers": count, "first": first, "first_cpu": first_cpu, "full": full, "full_cpu": full_cpu, "tokens": tokens,
        }  # fmt: skip
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
