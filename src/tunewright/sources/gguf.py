"""Turn a GGUF file into a Hugging Face folder: check every size it claims, unpack the weights,
rebuild the tokenizer, publish plain files.

The weights are unpacked by Transformers. The tokenizer of a byte-level vocabulary is rebuilt here
from the file's own tables, because what Transformers makes of it differs between versions (5.17
gives SmolLM2 the wrong end-of-turn token, 5.17 to 5.23 forget that its digits are split one by one:
"2026" becomes other tokens than the model was trained on). Source: the GGUF specification,
llama.cpp's llama-vocab.cpp.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tunewright.core.errors import ModelError, first_line, problem
from tunewright.core.files import write_json
from tunewright.core.words import ASSETS, say
from tunewright.sources.gguf_header import Header, read_header

CONVERTER = 2
"""Goes up when a conversion would give another folder; older cached folders are then not used."""
FLOAT32_LIMIT_BYTES = 4_000_000_000
GEMMAS = {"gemma2": (2, 46), "gemma3": (6, 62)}
"""Architectures whose blocks see a window in turns: every how many blocks one sees everything
unless the file says otherwise, and how many blocks the largest model has, which scales its queries
by another number. Source: llama.cpp's src/models/gemma2.cpp and gemma3.cpp."""
CONTROL, USER_DEFINED = 3, 4
"""Kinds of tokens in `tokenizer.ggml.token_type`."""


def convert(gguf: Path, target: Path, report: Callable[[str], None] | None = None) -> None:
    """Write the model and tokenizer of `gguf` into the folder `target` (created if needed) in
    Hugging Face layout.

    float32 while that is under 4 GB, else bfloat16; `report` is told which, and whatever else was
    decided. Reads no network. Raises ModelError for a file that is damaged, dishonest, of an
    architecture Transformers cannot unpack, or whose weights do not all find a place.
    """
    said: list[str] = []
    try:
        import gguf as _installed  # noqa: F401  (Transformers needs it to unpack the weights)
    except ImportError as e:
        raise ModelError(problem("E-MODEL-17", str(gguf))) from e
    header = read_header(gguf)
    if header.metadata.get("split.count", 1) not in (0, 1):
        raise ModelError(
            problem("E-MODEL-15", str(gguf), file=gguf.name, cause="one part of a split file")
        )
    target.mkdir(parents=True, exist_ok=True)
    with _quiet(), _alone(gguf) as file:
        try:
            tokenizer = build_tokenizer(file, header, said.append)
            model = _unpack(file, header, said.append)
            _align(model, tokenizer, header)
            model.save_pretrained(target, max_shard_size="5GB")
            tokenizer.save_pretrained(target)
        except Exception as e:
            # Whatever a library raises over somebody's file is a fact about the file, not a crash
            # of ours.
            raise ModelError(
                problem(
                    "E-MODEL-16",
                    str(gguf),
                    file=gguf.name,
                    architecture=header.architecture,
                    cause=first_line(e),
                )
            ) from e
    _tidy(target)
    # Only now: inside `_quiet` a report to stderr would be lost.
    for text in said:
        if report:
            report(text)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Transformers' progress bars and load reports go nowhere; errors still come as exceptions."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)


@contextlib.contextmanager
def _alone(gguf: Path) -> Iterator[Path]:
    """The file in a folder of its own: Transformers reads configurations lying beside it, and
    follows an adapter's to another model."""
    with tempfile.TemporaryDirectory(prefix="tunewright-") as place:
        link = Path(place) / "model.gguf"
        for way in (os.symlink, os.link, shutil.copyfile):
            # Windows allows links only to some users, and hard links not across drives.
            with contextlib.suppress(OSError):
                way(gguf.resolve(), link)
                break
        yield link


def _unpack(gguf: Path, header: Header, tell: Callable[[str], None]) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

    place: dict[str, Any] = {
        "pretrained_model_name_or_path": str(gguf.parent),
        "gguf_file": gguf.name,
        "local_files_only": True,
        "trust_remote_code": False,
    }
    config = AutoConfig.from_pretrained(**place)
    if getattr(config, "head_dim", None):
        config.head_dim = header.number("attention.key_length") or config.head_dim
    if header.architecture in GEMMAS:
        _restore_gemma(config, header)
    else:
        _restore_rope(config, gguf, header)
    small = header.num_values * 4 < FLOAT32_LIMIT_BYTES
    tell(
        say(
            "models.stored_as",
            dtype="float32" if small else "bfloat16",
            count=f"{header.num_values:,}",
        )
    )
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        **place,
        config=config,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
        dtype=torch.float32 if small else torch.bfloat16,
    )
    model, info = loaded
    tied = (
        model.get_output_embeddings() is not None
        and model.get_input_embeddings().weight is model.get_output_embeddings().weight
    )
    missing = sorted(k for k in info["missing_keys"] if not (tied and k.endswith("lm_head.weight")))
    if missing:
        raise ValueError(f"no weights in the file for {missing[:3]}")
    head = model.get_output_embeddings()
    if (
        head is not None
        and not tied
        and torch.equal(head.weight, model.get_input_embeddings().weight)
    ):
        # Some files store the shared matrix twice. Kept apart, training would pull the two copies
        # away from each other.
        model.config.tie_word_embeddings = True
        model.tie_weights()
        tell(say("models.tied_again"))
    return model


def _restore_gemma(config: Any, header: Header) -> None:
    """Bring back what a Gemma file states, or llama.cpp has built in, and Transformers replaces by
    the defaults of one size: the scale of the queries, caps, windows and rotary settings. Raises
    ValueError for rotary scaling that no config can express."""
    data, name = header.metadata, header.architecture
    period, largest = GEMMAS[name]
    blocks = int(config.num_hidden_layers)
    whole = int(config.hidden_size) // int(config.num_attention_heads)
    config.query_pre_attn_scalar = whole if blocks == largest else int(config.head_dim)
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if data.get(f"{name}.{cap}") is not None:
            setattr(config, cap, float(data[f"{name}.{cap}"]))
    stated = data.get(f"{name}.attention.sliding_window_pattern", period)
    if not data.get(f"{name}.attention.sliding_window"):
        looks = [False] * blocks
    elif isinstance(stated, list):
        looks = [bool(one) for one in stated[:blocks]]
    else:
        looks = [bool(stated) and (i + 1) % int(stated) != 0 for i in range(blocks)]
    config.layer_types = ["sliding_attention" if one else "full_attention" for one in looks]
    kind = data.get(f"{name}.rope.scaling.type", "none")
    if kind not in ("none", "linear") or any(n.startswith("rope_f") for n in header.tensors):
        raise ValueError(f"rotary scaling {kind!r}")
    rope: dict[str, Any] = {"rope_type": "default"}
    rope["rope_theta"] = float(data.get(f"{name}.rope.freq_base", 10000.0))
    if kind == "linear":
        factor = float(data.get(f"{name}.rope.scaling.factor", 1.0))
        rope |= {"rope_type": "linear", "factor": factor}
    if name == "gemma3":
        near = float(data.get(f"{name}.rope.freq_base_swa", 10000.0))
        inside = {"rope_type": "default", "rope_theta": near}
        config.rope_parameters = {"full_attention": rope, "sliding_attention": inside}
    else:
        config.rope_parameters = rope


def _restore_rope(config: Any, gguf: Path, header: Header) -> None:
    """Bring back rotary scaling that the file states and Transformers drops. Raises ValueError for
    one that no config can express."""
    import numpy as np

    rope = dict(getattr(config, "rope_parameters", None) or {})
    kind = header.metadata.get(f"{header.architecture}.rope.scaling.type", "none")
    if rope.get("rope_type", "default") != "default" or any(
        isinstance(v, dict) for v in rope.values()
    ):
        return
    if kind in ("linear", "yarn"):
        original = header.number("rope.scaling.original_context_length")
        factor = float(header.metadata.get(f"{header.architecture}.rope.scaling.factor", 1.0))
        rope |= {"rope_type": kind, "factor": factor} | (
            {"original_max_position_embeddings": original} if kind == "yarn" and original else {}
        )
    elif kind != "none" or any(name.startswith("rope_factors") for name in header.tensors):
        raise ValueError(f"rotary scaling {kind!r} with factors")
    if "rope_freqs.weight" in header.tensors:
        from gguf import GGUFReader

        table = next(
            np.asarray(t.data, dtype=np.float64).ravel()
            for t in GGUFReader(str(gguf)).tensors
            if t.name == "rope_freqs.weight"
        )
        found = _llama3_rope(table, float(rope.get("rope_theta", 10000.0)))
        if found is None:
            raise ValueError("rotary factors that are not Llama 3's")
        rope |= found
    config.rope_parameters = rope


def _llama3_rope(table: Any, theta: float) -> dict[str, Any] | None:
    """The parameters of Llama 3.1's scaling whose factors are `table`, or None. llama.cpp stores
    only the resulting factors."""
    import numpy as np

    if not (np.isfinite(table).all() and (table > 0.99).all()):
        return None
    factor, low, high, original = float(table.max()), 1.0, 4.0, 8192
    wavelength = 2 * np.pi * theta ** (np.arange(len(table)) / len(table))
    smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if not np.allclose(table, expected, rtol=1e-3):
        return None
    given = {
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    return {"rope_type": "llama3", "factor": factor} | given


@cache
def known() -> dict[str, Any]:
    """The tables of `assets/models/known.json`: wheels with their checksums, pre-tokenizers by
    llama.cpp's names."""
    table: dict[str, Any] = json.loads(
        (ASSETS / "models" / "known.json").read_text(encoding="utf-8")
    )
    return table


def build_tokenizer(gguf: Path, header: Header, tell: Callable[[str], None]) -> Any:
    """The tokenizer that the file describes, with the special tokens that it names and a padding
    token that is not the end of a turn."""
    data = header.metadata
    tokens: list[str] = data.get("tokenizer.ggml.tokens") or []
    if data.get("tokenizer.ggml.model") == "gpt2":
        tokenizer = _byte_level(header, tell)
    else:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, local_files_only=True, trust_remote_code=False
        )
    for name, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
        number = data.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(number, int) and 0 <= number < len(tokens):
            setattr(tokenizer, f"{name}_token", tokens[number])
    if isinstance(data.get("tokenizer.chat_template"), str):
        tokenizer.chat_template = data["tokenizer.chat_template"]
    if context := header.number("context_length"):
        tokenizer.model_max_length = context
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        pad = _free_token(tokenizer, tokens, data.get("tokenizer.ggml.token_type") or [])
        if pad is not None:
            tokenizer.pad_token = pad
            tell(say("models.pad_token", pad=pad, eos=tokenizer.eos_token))
    return tokenizer


def _free_token(tokenizer: Any, tokens: list[str], kinds: list[int]) -> str | None:
    """A control token that can only ever mean padding: named so, else reserved, else the end of a
    document (never part of a turn).

    Where padding equals the end of a turn, any library that leaves padding out of the loss also
    leaves out the one token that teaches the model to stop. For SmolLM2 the choice is
    `<|endoftext|>`, as in Qwen2.5: a byte-level vocabulary never needs it as the unknown token.
    """
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    free = [
        t
        for t, kind in zip(tokens, kinds, strict=False)
        if kind == CONTROL and t not in taken and t not in template
    ]
    for wanted in (
        ("pad",),
        ("reserved", "unused"),
        ("endoftext", "end_of_text", "end▁of▁sentence"),
    ):
        for token in free:
            if any(word in token.lower() for word in wanted):
                return token
    return None


def _byte_level(header: Header, tell: Callable[[str], None]) -> Any:
    """Byte-level BPE with the pre-tokenizer that `tokenizer.ggml.pre` names. An unknown name gets
    GPT-2's, and is reported."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )
    from transformers import PreTrainedTokenizerFast

    data, pre = header.metadata, str(header.metadata.get("tokenizer.ggml.pre", "default"))
    tokens, kinds = data["tokenizer.ggml.tokens"], data.get("tokenizer.ggml.token_type") or []
    merges = [tuple(merge.split(" ", 1)) for merge in data["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in known()["ignore_merges"])
    )
    kind = next(
        (entry for entry in known()["pre_tokenizers"].values() if pre in entry["names"]), None
    )
    if kind is None:
        tell(say("models.pre_unknown", pre=pre))
    kind = kind or {}
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if kind.get("digits") else []
    steps += (
        [pre_tokenizers.Split(Regex(kind["split"]), behavior="isolated")] if "split" in kind else []
    )
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex="split" not in kind))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if pre in known()["nfc"]:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    bos = data.get("tokenizer.ggml.bos_token_id")
    if data.get("tokenizer.ggml.add_bos_token") and isinstance(bos, int) and bos < len(tokens):
        pieces = {"single": f"{tokens[bos]}:0 $A:0", "pair": f"{tokens[bos]}:0 $A:0 $B:1"}
        backend.post_processor = processors.TemplateProcessing(
            **pieces, special_tokens=[(tokens[bos], bos)]
        )
    pairs = list(zip(tokens, kinds, strict=False))
    backend.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t, k in pairs if k == CONTROL]
    )
    backend.add_tokens(
        [AddedToken(t, normalized=False, special=False) for t, k in pairs if k == USER_DEFINED]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)


def _align(model: Any, tokenizer: Any, header: Header) -> None:
    """Config and generation config name the tokenizer's special tokens, and every token that ends a
    turn."""
    from transformers import GenerationConfig

    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ValueError(f"{len(tokenizer)} tokens for an embedding of {rows} rows")
    ends = [
        tokenizer.eos_token_id,
        *(header.metadata.get(f"tokenizer.ggml.{k}_token_id") for k in ("eot", "eom")),
    ]
    stops = list(dict.fromkeys(e for e in ends if isinstance(e, int) and 0 <= e < len(tokenizer)))
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": stops[0] if len(stops) == 1 else stops or None,
    }
    ids["pad_token_id"] = tokenizer.pad_token_id
    for name, value in ids.items():
        setattr(model.config, name, value)
    model.generation_config = GenerationConfig(**ids)


def _tidy(target: Path) -> None:
    """Remove what only described the GGUF file from config.json, and let others of the machine read
    the weights as they read the config."""
    path = target / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("_name_or_path", "_model_name_or_path", "quantization_config"):
        config.pop(key, None)
    write_json(path, config)
    mode = path.stat().st_mode & 0o644
    for weights in target.glob("*.safetensors"):
        weights.chmod(mode)
