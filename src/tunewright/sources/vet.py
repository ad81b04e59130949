"""Look at a model folder before any library opens it: does it run code, is it whole, can its
headers be believed?

Everything here reads bytes and plain JSON; nothing is loaded, imported or allocated by what a file
claims. The rules come from attacks that happened: `auto_map` (code in a repository;
`remote_code.py` says when it may run), CVE-2026-4372 (`_attn_implementation_internal` names a
kernel to fetch and run), CVE-2026-5241 (a nested `trust_remote_code`), pickled weights, and headers
whose sizes exceed the file. A key nobody knows is refused, not ignored.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, Literal

from tunewright.core.errors import Problem, problem
from tunewright.sources import remote_code

CONFIG_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "adapter_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "quantize_config.json",
    "hf_quant_config.json",
    "tunewright_method.json",
)
OWN_METHOD = "tunewright_method.json"
"""Describes the weights of a method that PEFT does not know; they lie beside it in
`method.safetensors`."""
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".mdl", ".joblib")
MAX_CONFIG_BYTES = 16 << 20
MAX_HEADER_BYTES = 100 << 20
"""The limit of the safetensors format itself."""
MAX_DEPTH = 64

PLAIN_UNDERSCORE_KEYS = {
    "_name_or_path",
    "_model_name_or_path",
    "_commit_hash",
    "_from_model_config",
    "_attn_implementation_autoset",
    "_sliding_window_pattern",
    "_from_auto",
    "_num_labels",
    "_diffusers_version",
    "_valid_kwargs_names",
    "_processor_class",
}
"""Keys that Transformers itself writes and that only hold names, numbers and flags."""
ATTENTION_KEYS = {
    "_attn_implementation",
    "attn_implementation",
    "_experts_implementation",
    "experts_implementation",
}
ATTENTION_NAMES = {
    "eager",
    "sdpa",
    "flex_attention",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
    "flash_attention_5",
    "grouped_mm",
    "batched_mm",
}
KERNEL_KEYS = {"use_kernels", "kernel_config", "kernels"}
DTYPE_BITS = {
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "C64": 64,
    "F32": 32,
    "I32": 32,
    "U32": 32,
    "F16": 16,
    "BF16": 16,
    "I16": 16,
    "U16": 16,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
"""Bits of one element of each type a safetensors header may name."""
SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")


def problems_of(
    folder: Path,
    *,
    kind: Literal["model", "adapter"] = "model",
    weights: bool = True,
    code: bool = True,
) -> list[Problem]:
    """Everything that speaks against opening `folder`, or an empty list.

    `kind` says what the folder should hold: a whole model, or an adapter in PEFT's layout. With
    `weights=False` only the configuration is judged, as a dry run needs; with `code=False` a model
    that needs its own code passes, for whoever copies files and builds nothing. Never raises for
    what a file contains; nothing in the folder is executed or loaded.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return [problem("E-MODEL-01", spec=str(folder))]
    found: list[Problem] = []
    configs: dict[str, dict[str, Any]] = {}
    for name in CONFIG_FILES:
        if (folder / name).is_file():
            config, trouble = read_config(folder / name)
            found += trouble
            configs[name] = config
            found += _key_problems(folder / name, config)
    own_code = remote_code.needing(configs)
    if not own_code:
        found += [
            p
            for name, config in configs.items()
            for p in _nested_code_problems(folder / name, config)
        ]
    needed = "config.json" if kind == "model" else "adapter_config.json"
    if kind == "adapter" and needed not in configs and OWN_METHOD in configs:
        needed = OWN_METHOD
    if needed not in configs:
        if kind == "model" and "adapter_config.json" in configs:
            base = str(configs["adapter_config.json"].get("base_model_name_or_path"))
            return [*found, problem("E-MODEL-12", str(folder), folder=str(folder), base=base)]
        return [*found, problem("E-MODEL-02", str(folder), file=needed)]
    if kind == "model" and "adapter_config.json" in configs:
        # Transformers would put the adapter on the model without a word.
        found.append(problem("E-MODEL-34", str(folder), folder=str(folder)))
    if code:
        found += remote_code.problems(folder, configs)
    if kind == "model" and not found and "config.json" not in own_code:
        found += _model_type_problems(folder / "config.json", configs["config.json"])
    if kind == "adapter" and needed != OWN_METHOD:
        found += _adapter_problems(folder / "adapter_config.json", configs["adapter_config.json"])
    return found + (weight_problems(folder, kind) if weights else [])


def read_config(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """The JSON object of a configuration file, and what is wrong with it. A broken file gives an
    empty object and one problem."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        return {}, [problem("E-MODEL-03", str(path), file=path.name, cause=first_line(e))]
    if not isinstance(config, dict):
        return {}, [problem("E-MODEL-03", str(path), file=path.name, cause=type(config).__name__)]
    return config, []


def first_line(cause: object, limit: int = 300) -> str:
    """The first line of an error's text, with passwords in addresses and hub tokens blotted out, so
    that no secret reaches a log.

    A first line that only announces the next (it ends with a colon, as PyTorch's about weights that
    do not fit) is said together with it.
    """
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [
        type(cause).__name__
    ]
    said = next((n for n, line in enumerate(lines, 1) if not line.endswith(":")), len(lines))
    text = " ".join(lines[:said])[:limit].rstrip(" .:")
    return re.sub(r"\bhf_[A-Za-z0-9]{8,}", "***", re.sub(r"//[^/@\s]+@", "//***@", text))


def _walk(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, str, Any]]:
    """(dotted path, key, value) of every key at any nesting. Nesting beyond MAX_DEPTH is reported
    as a key of its own."""
    if depth > MAX_DEPTH:
        yield path, "<nesting>", None
    elif isinstance(value, dict):
        for key, inner in value.items():
            here = f"{path}.{key}" if path else str(key)
            yield here, str(key), inner
            yield from _walk(inner, here, depth + 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _walk(inner, f"{path}[{index}]", depth + 1)


def _key_problems(path: Path, config: dict[str, Any]) -> list[Problem]:
    """Keys that make a library run code, fetch code, or that nobody knows."""
    found = []
    # Keys of these two tables of the tokenizer are tokens, not settings.
    config = {k: v for k, v in config.items() if k not in ("added_tokens_decoder", "chat_template")}
    for where, key, value in _walk(config):
        if key.lower() == "trust_remote_code" and value is not False:
            # A plain `false` asks for nothing; anything else asks for code.
            found.append(problem("E-MODEL-06", str(path), key=where, file=path.name))
        elif key in ATTENTION_KEYS:
            names = value.values() if isinstance(value, dict) else [value]
            wrong = [n for n in names if n is not None and n not in ATTENTION_NAMES]
            found += [
                problem("E-MODEL-07", str(path), key=where, file=path.name, value=str(n)[:80])
                for n in wrong[:1]
            ]
        elif key in KERNEL_KEYS and value:
            found.append(
                problem("E-MODEL-07", str(path), key=where, file=path.name, value=str(value)[:80])
            )
        elif key == "<nesting>":
            found.append(
                problem(
                    "E-MODEL-03",
                    str(path),
                    file=path.name,
                    cause=f"nested more than {MAX_DEPTH} deep",
                )
            )
        elif key.startswith("_") and key not in PLAIN_UNDERSCORE_KEYS:
            found.append(problem("E-MODEL-08", str(path), key=where, file=path.name))
    return found


def _nested_code_problems(path: Path, config: dict[str, Any]) -> list[Problem]:
    """`auto_map` below the top of a model that needs no code: Transformers may ask, on the
    terminal, whether to follow it."""
    found = [
        where for where, key, value in _walk(config) if key == "auto_map" and value and where != key
    ]
    if not found:
        return []
    code = "E-MODEL-05" if remote_code.knows(config.get("model_type")) else "E-MODEL-04"
    shown = {"file": path.name, "model_type": str(config.get("model_type"))}
    return [problem(code, str(path), key=where, **shown) for where in found]


def _model_type_problems(path: Path, config: dict[str, Any]) -> list[Problem]:
    """A model type that only its own code, or a newer Transformers, could build."""
    import transformers

    if remote_code.knows(config.get("model_type")):
        return []
    return [
        problem(
            "E-MODEL-09",
            str(path),
            model_type=str(config.get("model_type")),
            version=transformers.__version__,
        )
    ]


def _adapter_problems(path: Path, config: dict[str, Any]) -> list[Problem]:
    """PEFT imports the module that `auto_mapping` names; only Transformers' own modules may stand
    there. The base path stays a string."""
    found = []
    mapping = config.get("auto_mapping")
    library = str(mapping.get("parent_library")) if isinstance(mapping, dict) else "transformers"
    if mapping and library.split(".")[0] != "transformers":
        found.append(
            problem(
                "E-MODEL-04",
                str(path),
                key="auto_mapping.parent_library",
                file=path.name,
                model_type=library,
            )
        )
    if not isinstance(config.get("peft_type"), str):
        found.append(problem("E-MODEL-03", str(path), file=path.name, cause="no peft_type"))
    return found


def weight_files(
    folder: Path, kind: Literal["model", "adapter"] = "model"
) -> tuple[list[Path], list[Problem]]:
    """The safetensors files that Transformers (or PEFT) would read from `folder`, and what is wrong
    with the list."""
    if kind == "adapter":
        own = (folder / OWN_METHOD).is_file() and not (folder / "adapter_config.json").is_file()
        single = folder / ("method.safetensors" if own else "adapter_model.safetensors")
        return ([single], []) if single.is_file() else ([], [])
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"], []
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [], []
    content, trouble = read_config(index)
    names = content.get("weight_map")
    if trouble or not isinstance(names, dict) or not names:
        return [], trouble or [
            problem("E-MODEL-03", str(index), file=index.name, cause="no weight_map")
        ]
    shards = sorted({str(name) for name in names.values()})
    unsafe = [s for s in shards if not SHARD_NAME.fullmatch(s)]
    if unsafe:
        return [], [
            problem("E-MODEL-03", str(index), file=index.name, cause=f"shard name {unsafe[0]!r}")
        ]
    missing = [s for s in shards if not (folder / s).is_file()]
    if missing:
        return [], [
            problem(
                "E-MODEL-13",
                str(folder),
                count=len(missing),
                total=len(shards),
                names=", ".join(missing[:3]),
            )
        ]
    return [folder / s for s in shards], []


def weight_problems(folder: Path, kind: Literal["model", "adapter"] = "model") -> list[Problem]:
    """Weights that are missing, pickled, or whose headers disagree with the file. Reads headers
    only."""
    files, found = weight_files(folder, kind)
    if not files and not found:
        pickled = sorted(
            p.name for p in folder.iterdir() if p.suffix.lower() in PICKLE_SUFFIXES and p.is_file()
        )
        if pickled:
            from tunewright.sources.pickled import command_for

            return [
                problem(
                    "E-MODEL-10",
                    str(folder),
                    names=", ".join(pickled[:3]),
                    command=command_for(str(folder)),
                )
            ]
        return [
            problem(
                "E-MODEL-11",
                str(folder),
                expected="adapter_model.safetensors" if kind == "adapter" else "model.safetensors",
            )
        ]
    for path in files:
        try:
            read_safetensors_header(path)
        except ValueError as e:
            found.append(problem("E-MODEL-14", str(path), file=path.name, cause=str(e)))
    return found


def read_safetensors_header(path: Path) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Name -> (type, shape, bytes) of every tensor, from the header alone.

    Raises ValueError when the header is unreadable, names an unknown type, or its offsets do not
    fill the file exactly (a truncated download, or a header that lies). Reads at most the header,
    which must be smaller than the file. Source: the safetensors format.
    """
    size = path.stat().st_size
    with open(path, "rb") as handle:
        start = handle.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(f"header length {length}, file size {size}")
        try:
            header = json.loads(handle.read(length))
        except (ValueError, RecursionError) as e:
            raise ValueError(f"header is not JSON ({first_line(e)})") from e
    if not isinstance(header, dict):
        raise ValueError("header is not an object")
    tensors: dict[str, tuple[str, tuple[int, ...], int]] = {}
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, begin, end = _tensor_entry(name, entry)
        spans.append((begin, end))
        tensors[name] = (dtype, shape, end - begin)
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise ValueError(f"hole or overlap at byte {begin}")
        position = end
    if position != size - 8 - length:
        raise ValueError(
            f"header promises {position} bytes of weights, the file holds {size - 8 - length}"
        )
    return tensors


def _tensor_entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        bits = DTYPE_BITS[dtype]
        whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(f"entry of {name[:80]!r} is malformed") from e
    if not whole or len(shape) > 16 or (end - begin) * 8 != prod(shape) * bits:
        raise ValueError(f"size of {name[:80]!r} does not fit its shape")
    return dtype, shape, begin, end
