"""The process that runs a GGUF file in llama.cpp. Started by `llamacpp.py`, never imported there:
llama.cpp ends its process when a file surprises it.

It calls the C functions that the wheel `xllamacpp` exports. Their structures change between builds,
so they stay blocks of bytes here: what is set in them lies at the front, and is set only where the
defaults that llama.cpp has had for years are found at those places. Job: one JSON object on stdin.
Answer: one JSON object as the last line of stdout. Source: llama.h of build 11549.
"""

from __future__ import annotations

import ctypes as c
import json
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

UNKNOWN_LAYOUT = "unknown layout"
"""Begins the message when a structure is not as it was: another build is needed."""
BATCH_TOKENS, UBATCH_TOKENS = 2048, 512


class Block(c.Structure):
    """A structure of llama.cpp that is handed on as it is; larger than any of them."""

    _fields_ = [("bytes", c.c_byte * 1024)]

    def int_at(self, offset: int) -> c.c_int32:
        """The 32-bit number at a byte offset."""
        return c.c_int32.from_buffer(self, offset)


class Batch(c.Structure):
    """`llama_batch`: tokens to compute, with their places and whether logits are wanted."""

    _fields_ = [
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.c_void_p),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    ]


# name -> (what is returned, arguments)
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_model_default_params": (Block, []),
    "llama_context_default_params": (Block, []),
    "llama_model_load_from_file": (c.c_void_p, [c.c_char_p, Block]),
    "llama_model_get_vocab": (c.c_void_p, [c.c_void_p]),
    "llama_vocab_n_tokens": (c.c_int32, [c.c_void_p]),
    "llama_vocab_is_eog": (c.c_bool, [c.c_void_p, c.c_int32]),
    "llama_vocab_get_add_bos": (c.c_bool, [c.c_void_p]),
    "llama_tokenize": (
        c.c_int32,
        [c.c_void_p, c.c_char_p, c.c_int32, c.POINTER(c.c_int32), c.c_int32, c.c_bool, c.c_bool],
    ),
    "llama_init_from_model": (c.c_void_p, [c.c_void_p, Block]),
    "llama_adapter_lora_init": (c.c_void_p, [c.c_void_p, c.c_char_p]),
    "llama_set_adapters_lora": (
        c.c_int32,
        [c.c_void_p, c.POINTER(c.c_void_p), c.c_size_t, c.POINTER(c.c_float)],
    ),
    "llama_batch_init": (Batch, [c.c_int32, c.c_int32, c.c_int32]),
    "llama_decode": (c.c_int32, [c.c_void_p, Batch]),
    "llama_get_logits_ith": (c.POINTER(c.c_float), [c.c_void_p, c.c_int32]),
    "llama_get_memory": (c.c_void_p, [c.c_void_p]),
    "llama_memory_clear": (None, [c.c_void_p, c.c_bool]),
}


class Llama:
    """A GGUF file in llama.cpp, with an adapter on it if there is one. Raises ValueError for what
    llama.cpp does not take."""

    def __init__(self, library: str, model: str, adapter: str | None, room: int, threads: int):
        self.lib = c.CDLL(library)
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(self.lib, name)
            function.restype, function.argtypes = result, arguments
        self.lib.llama_backend_init()
        wanted = self.lib.llama_model_default_params()
        _set(wanted, {16: (-1, 0)})  # layers on a GPU: none
        self.model = self.lib.llama_model_load_from_file(model.encode(), wanted)
        if not self.model:
            raise ValueError("the model cannot be loaded")
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.rows = int(self.lib.llama_vocab_n_tokens(self.vocab))
        wanted = self.lib.llama_context_default_params()
        room = max(room, 8)
        places = {0: (512, room), 4: (2048, min(room, BATCH_TOKENS)), 8: (512, UBATCH_TOKENS)}
        # Spinning threads of two programs slow each other down tenfold: one thread by default.
        _set(wanted, {**places, 28: (4, threads), 32: (4, threads)})
        self.context = self.lib.llama_init_from_model(self.model, wanted)
        if not self.context:
            raise ValueError("no context can be made for the model")
        self.batch = self.lib.llama_batch_init(min(room, BATCH_TOKENS), 0, 1)
        given = self.batch
        if given.n_tokens or given.embd or not (given.token and given.pos and given.logits):
            raise ValueError(f"{UNKNOWN_LAYOUT} of llama_batch")
        if adapter is not None:
            self._put(adapter)

    def _put(self, adapter: str) -> None:
        loaded = self.lib.llama_adapter_lora_init(self.model, adapter.encode())
        if not loaded:
            raise ValueError("the adapter cannot be loaded")
        adapters, scales = (c.c_void_p * 1)(loaded), (c.c_float * 1)(1.0)
        if self.lib.llama_set_adapters_lora(self.context, adapters, 1, scales):
            raise ValueError("the adapter cannot be put on the model")

    def tokens(self, text: str, special: bool) -> list[int]:
        """Ids of a text; `special`: control tokens in it are meant."""
        raw = text.encode("utf-8")
        count = len(raw) + 16
        found = (c.c_int32 * count)()
        done = self.lib.llama_tokenize(self.vocab, raw, len(raw), found, count, False, special)
        if done < 0:
            raise ValueError("a text cannot be tokenised")
        return list(found[:done])

    def forget(self) -> None:
        """Empty the context."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def decode(self, ids: list[int], first: int, every: bool) -> None:
        """Compute `ids` at the places from `first` on; logits of every one, or of the last."""
        batch = self.batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, first + i, 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = every or i == len(ids) - 1
        code = self.lib.llama_decode(self.context, batch)
        if code:
            raise ValueError(f"llama_decode ends with {code}")

    def logits(self, place: int) -> Any:
        """The logits after the token at `place` of the last batch, as C floats."""
        found = self.lib.llama_get_logits_ith(self.context, place)
        if not found:
            raise ValueError("no logits")
        return (c.c_float * self.rows).from_address(c.addressof(found.contents))

    def write_logits(self, ids: list[int], path: Path) -> None:
        """Logits at every place of `ids` as raw float32, row after row."""
        self.forget()
        with open(path, "wb") as handle:
            for start in range(0, len(ids), BATCH_TOKENS):
                piece = ids[start : start + BATCH_TOKENS]
                self.decode(piece, start, True)
                for i in range(len(piece)):
                    handle.write(bytes(self.logits(i)))

    def answer(self, ids: list[int], most: int) -> tuple[list[int], str]:
        """The likeliest answer to a question, and whether llama.cpp itself stopped."""
        import numpy as np

        self.forget()
        for start in range(0, len(ids), BATCH_TOKENS):
            self.decode(ids[start : start + BATCH_TOKENS], start, False)
        said: list[int] = []
        place = (len(ids) - 1) % BATCH_TOKENS
        while len(said) < most:
            token = int(np.frombuffer(self.logits(place), dtype=np.float32).argmax())
            if self.lib.llama_vocab_is_eog(self.vocab, token):
                return said, "stop"
            said.append(token)
            if len(said) < most:
                self.decode([token], len(ids) + len(said) - 1, False)
                place = 0
        return said, "limit"


def _set(block: Block, places: dict[int, tuple[int, int]]) -> None:
    """Offset -> (default that must stand there, new value)."""
    for offset, (default, value) in places.items():
        found = block.int_at(offset)
        if found.value != default:
            raise ValueError(f"{UNKNOWN_LAYOUT}: {found.value} at {offset}, not {default}")
        found.value = value


def rendered(model: str, dialogues: list[Any]) -> list[str]:
    """What llama.cpp's server makes of dialogues with the template in the file. It listens on this
    machine alone and under a key of its own."""
    import secrets

    import xllamacpp

    key, given = secrets.token_hex(16), xllamacpp.CommonParams()
    given.model.path, given.hostnames, given.port, given.api_keys = model, ["127.0.0.1"], 0, [key]
    given.n_ctx, given.n_parallel, given.warmup, given.use_jinja = 64, 1, False, True
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(given)  # it ends with its last name
    address = str(server.listening_address).rstrip("/")
    found = []
    for dialogue in dialogues:
        request = urllib.request.Request(  # noqa: S310  # the server of this process
            f"{address}/apply-template",
            data=json.dumps(dialogue).encode(),
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            found.append(json.load(answer)["prompt"])
    return found


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Do what the job asks for."""
    if "dialogues" in job:
        return {"rendered": rendered(job["model"], job["dialogues"])}
    rows, asks = job["rows"], job["asks"]
    room = max([len(row) for row in rows] + [len(ids) + most for ids, most in asks] + [8]) + 8
    llama = Llama(job["library"], job["model"], job.get("adapter"), room, job["threads"])
    found: dict[str, Any] = {
        "rows": llama.rows,
        "ids": [llama.tokens(text, special) for text, special in job["texts"]],
        "stops": [bool(llama.lib.llama_vocab_is_eog(llama.vocab, i)) for i in job["stop_ids"]],
        "adds_bos": bool(llama.lib.llama_vocab_get_add_bos(llama.vocab)),
    }
    start = time.perf_counter()
    for number, row in enumerate(rows):
        llama.write_logits(row, Path(job["out"]) / f"{number}.f32")
    read, start = time.perf_counter() - start, time.perf_counter()
    found["answers"] = [llama.answer(ids, most) for ids, most in asks]
    found["seconds"] = {"reading": read, "writing": time.perf_counter() - start}
    return found


def main() -> int:
    """Read the job, do it, print the answer."""
    job = json.load(sys.stdin)
    try:
        answer = work(job)
    except (ValueError, OSError, AttributeError, ImportError, RuntimeError) as error:
        answer = {"error": str(error) or type(error).__name__}
    print("\n" + json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
