"""Look at a model folder before any library opens it: does it run code, is it whole, can its
headers be believed?

Everything here reads bytes and plain JSON; nothing is loaded, imported or allocated by what a file
claims. The rules come from attacks that happened: `auto_map` (code in a repository;
`remote_code.py` says when it may run), CVE-2026-4372 (`_attn_implementation_internal` names a
kernel to fetch and run), CVE-2026-5241 (a nested `trust_remote_code`), pickled weights, and headers
whose sizes exceed the file. A key nobody knows is refused, not ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from tunewright.core.errors import Problem, problem
from tunewright.sources import remote_code
from tunewright.sources.headers import (
    CONFIG_FILES,
    OWN_METHOD,
    PICKLE_SUFFIXES,
    command_for,
    read_config,
    read_safetensors_header,
    weight_files,
)

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
    "_frame_rate",
    "_remove_final_layer_norm",
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
        elif (
            key.startswith("_") and key not in PLAIN_UNDERSCORE_KEYS and not _is_number(key, value)
        ):
            found.append(problem("E-MODEL-08", str(path), key=where, file=path.name))
    return found


def _is_number(key: str, value: Any) -> bool:
    """How Transformers writes a number that JSON has not: `{"__float__": "Infinity"}`, as in the
    time steps of Mamba 2, Granite 4 and Falcon-H1."""
    return key == "__float__" and value in ("Infinity", "-Infinity", "NaN")


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
    if remote_code.knows(config.get("model_type")):
        return []
    return [
        problem(
            "E-MODEL-09",
            str(path),
            model_type=str(config.get("model_type")),
            version=version("transformers"),
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


def weight_problems(folder: Path, kind: Literal["model", "adapter"] = "model") -> list[Problem]:
    """Weights that are missing, pickled, or whose headers disagree with the file. Reads headers
    only."""
    files, found = weight_files(folder, kind)
    if not files and not found:
        pickled = sorted(
            p.name for p in folder.iterdir() if p.suffix.lower() in PICKLE_SUFFIXES and p.is_file()
        )
        if pickled:
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
