"""Other engines behind `tunewright serve`: vLLM's own server, and llama.cpp's from its wheel.

Each is given what it can do, and what it cannot is refused before it starts: nothing is dropped in
silence. vLLM takes over this process; llama.cpp runs in it until a signal comes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.core.errors import Problem, UsageError, problem, raise_all
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.engine.naming import Target, find
from tunewright.serve.pool import default_name

BACKENDS = ("tunewright", "vllm", "llamacpp")
MODULES = {"llamacpp": "xllamacpp"}
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM's --max-lora-rank takes."""
CONTEXT = 4096
"""Tokens of a question and its answer for each slot of llama.cpp."""


@dataclass(frozen=True)
class Wanted:
    """What a person asked of the server."""

    targets: Sequence[str]
    names: Sequence[str]
    host: str
    port: int
    key: str | None
    at_once: int
    dtype: str | None
    given: frozenset[str]
    """Flags of our own server that were given besides: no other engine knows them."""


def require(backend: str, wanted: Wanted) -> None:
    """Raise UsageError for an engine that is unknown or missing, and for what it cannot do."""
    if backend not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise UsageError(problem("E-SERVE-08", "--backend", backend=backend, known=known))
    wrong = [_cannot(backend, flag, "serve.backend.own_flag") for flag in sorted(wanted.given)]
    if backend in MODULES:
        module = MODULES[backend]
        if importlib.util.find_spec(module) is None:
            missing = {"module": module, "extra": backend}
            wrong.append(problem("E-SERVE-02", f"--backend {backend}", **missing))
        if wanted.dtype is not None and backend == "llamacpp":
            wrong.append(_cannot(backend, "--dtype", "serve.backend.gguf_dtype"))
        if len(wanted.targets) != 1:
            wrong.append(_cannot(backend, " ".join(wanted.targets), "serve.backend.one_model"))
        elif not _is_gguf(wanted.targets[0]):
            wrong.append(_cannot(backend, wanted.targets[0], "serve.backend.needs_gguf"))
    raise_all(wrong, UsageError)


def _cannot(backend: str, what: str, why: str) -> Problem:
    return problem("E-SERVE-09", what, backend=backend, reason=say(why))


def _is_gguf(target: str) -> bool:
    path = Path(target)
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


# ---- vLLM


def vllm_command(wanted: Wanted, tell: Tell) -> list[str]:
    """The command line of vLLM that serves the targets: one base with its LoRA adapters by name, or
    one whole model. Raises UsageError for what vLLM cannot serve so."""
    found = [find(target, tell) for target in wanted.targets]
    names = [
        wanted.names[i] if i < len(wanted.names) else default_name(one)
        for i, one in enumerate(found)
    ]
    bases = {str(one.source.folder.resolve()) for one in found}
    wrong: list[Problem] = []
    if len(bases) > 1:
        wrong.append(_cannot("vllm", " ".join(wanted.targets), "serve.backend.one_base"))
    ranks = [8]
    for one in found:
        if one.adapter is not None:
            reason, rank = _lora(one.adapter)
            ranks.append(rank)
            if reason:
                wrong.append(problem("E-SERVE-09", one.name, backend="vllm", reason=say(reason)))
            elif rank > LORA_RANKS[-1]:
                wrong.append(_cannot("vllm", one.name, "serve.backend.rank"))
        if one.settings.get("base.bits") is not None:
            wrong.append(_cannot("vllm", one.name, "serve.backend.bits"))
        if one.settings.get("base.rotary") is not None:
            wrong.append(_cannot("vllm", one.name, "serve.backend.rotary"))
    raise_all(wrong, UsageError)
    return _vllm_words(wanted, found, names, max(ranks))


def _vllm_words(
    wanted: Wanted, found: Sequence[Target], names: Sequence[str], rank: int
) -> list[str]:
    base = [n for n, one in zip(names, found, strict=True) if one.adapter is None]
    words = ["vllm", "serve", str(found[0].source.folder.resolve())]
    # vLLM calls the base by its folder where nobody names it.
    words += ["--served-model-name", *(base or [Path(found[0].source.folder).name])]
    words += ["--host", wanted.host, "--port", str(wanted.port)]
    words += ["--max-num-seqs", str(wanted.at_once), "--dtype", wanted.dtype or "auto"]
    tokenizers = {str(one.tokenizer_folder.resolve()) for one in found}
    if len(tokenizers) == 1:
        words += ["--tokenizer", tokenizers.pop()]
    adapters = [(n, one.adapter) for n, one in zip(names, found, strict=True) if one.adapter]
    if adapters:
        rank = next(r for r in LORA_RANKS if r >= rank)
        words += ["--enable-lora", "--max-loras", str(len(adapters)), "--max-lora-rank", str(rank)]
        words += ["--lora-modules"]
        words += [
            json.dumps({"name": name, "path": str(folder.resolve())}) for name, folder in adapters
        ]
    return words


def _lora(adapter: Path) -> tuple[str, int]:
    """(why vLLM cannot serve an adapter, or "", its largest rank)."""
    described = adapter / "adapter_config.json"
    if not described.is_file():
        return "serve.backend.no_lora", 0
    config = json.loads(described.read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA":
        return "serve.backend.no_lora", 0
    if config.get("use_dora") or config.get("bias", "none") not in ("none", None):
        return "serve.backend.no_dora", 0
    if config.get("modules_to_save") or config.get("trainable_token_indices"):
        return "serve.backend.no_dora", 0
    ranks = [config.get("r", 8), *(config.get("rank_pattern") or {}).values()]
    return "", int(max(ranks))


def run_vllm(wanted: Wanted, tell: Tell) -> int | None:
    """Become vLLM's server. Where vLLM is missing, raises UsageError with the command for a machine
    that has it."""
    words = vllm_command(wanted, tell)
    program = shutil.which("vllm")
    shown = " ".join(_quoted(word) for word in words)
    if program is None:
        raise UsageError(problem("E-SERVE-10", "--backend vllm", command=shown))
    tell.line(say("serve.backend.starts", command=shown))
    env = dict(os.environ)
    if wanted.key is not None:
        env["VLLM_API_KEY"] = wanted.key  # not in the list of processes
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(program, words, env)  # noqa: S606  # words, no shell


def _quoted(word: str) -> str:
    return shlex.quote(word)


# ---- llama.cpp


def run_llamacpp(wanted: Wanted, tell: Tell) -> int:
    """llama.cpp's own server on a GGUF file, until a signal comes."""
    import xllamacpp

    path = Path(wanted.targets[0])
    name = wanted.names[0] if wanted.names else path.stem
    params: Any = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = {name}
    params.hostnames, params.port = [wanted.host], wanted.port
    params.api_keys = [wanted.key] if wanted.key is not None else []
    params.n_parallel, params.n_ctx = wanted.at_once, CONTEXT * wanted.at_once
    params.endpoint_metrics, params.ui, params.offline = True, False, True
    stopped, number = threading.Event(), signal.SIGTERM

    def stop(got: int, _: Any) -> None:
        nonlocal number
        number = signal.Signals(got)
        stopped.set()

    before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        server = xllamacpp.Server(params)
        tell.line(say("serve.ready", address=f"{server.listening_address}/v1"))
        while not stopped.wait(0.5):
            pass
        del server
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    return int(number)
