"""Models that are not safe to open: what they try never happens, and the safe ways on lead to the
same weights. Every attack plants a canary file."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import story
from helpers.building import codes
from test_vet import Canary, adapter, plant
from typer.testing import CliRunner

import tunewright
from tunewright.cli import app
from tunewright.core import runfile
from tunewright.core.errors import ModelError, UsageError
from tunewright.models import load
from tunewright.sources import pickle_child, pickled, remote_code, vet
from tunewright.sources.find import resolve
from tunewright.text.tokenizer import load_tokenizer

Edit = Callable[..., Path]
SOURCE = Path(tunewright.__file__).parent


def silent(text: str) -> None:
    """Nobody listens."""


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a successful attack makes."""
    path = tmp_path / "canary"
    monkeypatch.setenv("TUNEWRIGHT_TEST_CANARY", str(path))
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return story.rows_file(tmp_path / "rows.json", 4)


def left_in(place: Path, *known: str) -> set[str]:
    """What lies in `place` beside the names a test knows of; caches of libraries do not count."""
    return {p.name for p in place.iterdir()} - {"cache", "hf", "rows.json", "tiny-llama", *known}


# ---- conversion


@pytest.fixture
def state(folder: Path) -> dict[str, torch.Tensor]:
    """The tiny model's tensors as an old checkpoint stores them: the tied head under a name of its
    own, sharing its numbers."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}


@pytest.fixture
def old(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    """The tiny model with a pickled checkpoint in place of safetensors."""
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Equal names, types, shapes and bytes; NaN equals NaN."""
    return set(one) == set(other) and all(
        a.dtype == other[n].dtype
        and a.shape == other[n].shape
        and a.reshape(-1).view(torch.uint8).equal(other[n].reshape(-1).view(torch.uint8))
        for n, a in one.items()
    )


def test_a_benign_checkpoint_is_converted_bit_for_bit_then_answers_and_trains(
    old: Path, state: dict[str, torch.Tensor], tmp_path: Path, rows: Path, canary: Path
) -> None:
    plant(old, canary)
    torch.save(state, old / "pytorch_model.bin")
    out = tmp_path / "safe"
    told = CliRunner().invoke(app, ["chat", str(old), "-q", "hi"])
    assert (
        told.exit_code == 2
        and "E-MODEL-10  " in told.stderr
        and f"tunewright export safetensors {old} {old}-safetensors" in told.stderr
    )
    done = story.tunewright(
        "export", "safetensors", str(old), str(out), "--json", HF_TOKEN="hf_secretsecret"
    )
    assert done.returncode == 0, done.stderr
    marker = json.loads(done.stdout)
    assert same_bits(stored(out), state)
    assert marker["sha256"] == {
        "pytorch_model.bin": hashlib.sha256((old / "pytorch_model.bin").read_bytes()).hexdigest()
    }
    kept = {p.name for p in old.iterdir() if p.suffix in (".json", ".jinja")}
    assert {p.name for p in out.iterdir()} == kept | {"model.safetensors", "tunewright.json"}
    assert all((out / name).read_bytes() == (old / name).read_bytes() for name in kept)
    assert left_in(tmp_path, "safe") == set()
    with torch.no_grad():
        ids = torch.tensor([[1, 5, 9, 2]])
        got = load.load_model(out, dtype="float32")(input_ids=ids).logits
        stock = load.load_model(out, dtype="float32")
        stock.load_state_dict(state)
        assert torch.equal(got, stock(input_ids=ids).logits)
    ran = CliRunner().invoke(
        app, story.words(out, rows, tmp_path / "run", "engine.steps=1", "probes=0")
    )
    assert ran.exit_code == 0, ran.output
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 1
    assert not canary.exists()


def test_parts_are_converted_one_by_one_with_a_new_table(
    old: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    names = sorted(state)
    parts = {
        "pytorch_model-00001-of-00002.bin": names[:9],
        "pytorch_model-00002-of-00002.bin": names[9:],
    }
    for file, inside in parts.items():
        torch.save(OrderedDict((n, state[n]) for n in inside), old / file)
    (old / "pytorch_model.bin").unlink()
    table = {
        "metadata": {},
        "weight_map": {n: file for file, inside in parts.items() for n in inside},
    }
    (old / "pytorch_model.bin.index.json").write_text(json.dumps(table))
    marker = pickled.convert(old, tmp_path / "deep" / "safe", silent)
    out = tmp_path / "deep" / "safe"
    assert same_bits(stored(out), state) and set(marker["sha256"]) == set(parts)
    assert {p.name for p in out.glob("*safetensors*")} == {
        f"model-0000{i}-of-00002.safetensors" for i in (1, 2)
    } | {"model.safetensors.index.json"}
    assert vet.problems_of(out) == [] and not list(out.glob("pytorch*"))
    load.load_model(out, dtype="float32")
    table["weight_map"]["promised.weight"] = "pytorch_model-00002-of-00002.bin"
    (old / "pytorch_model.bin.index.json").write_text(json.dumps(table))
    with pytest.raises(ModelError, match=r"promised\.weight") as caught:
        pickled.convert(old, tmp_path / "other" / "safe", silent)
    assert codes(caught.value) == ["E-MODEL-45"] and not (tmp_path / "other").exists()


def test_a_bare_adapter_is_converted_and_can_be_put_on(tmp_path: Path, folder: Path) -> None:
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    from tunewright.models.adapters import load_adapter

    wrapped = get_peft_model(
        load.load_model(folder, dtype="float32"),
        LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    torch.manual_seed(1)
    for name, q in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(q)
    wrapped.save_pretrained(tmp_path / "lora")
    tensors = get_peft_model_state_dict(wrapped)
    (tmp_path / "lora" / "adapter_model.safetensors").unlink()
    torch.save(tensors, tmp_path / "lora" / "adapter_model.bin")
    (found,) = vet.problems_of(tmp_path / "lora", kind="adapter")
    assert (
        found.code == "E-MODEL-10"
        and f"tunewright export safetensors {tmp_path / 'lora'} " in found.remedy()
    )
    pickled.convert(tmp_path / "lora", tmp_path / "safe", silent)
    assert same_bits(stored(tmp_path / "safe"), {n: t.detach() for n, t in tensors.items()})
    load_adapter(load.load_model(folder, dtype="float32"), tmp_path / "safe")


def test_both_layouts_of_torch_save_shared_numbers_views_and_odd_values_come_out_bit_for_bit(
    tmp_path: Path,
) -> None:
    base = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45] * 6).reshape(4, 6)
    tensors: Any = OrderedDict(a=base, tied=base, view=base[1:3], turned=base.t(), wide=base[0].expand(2, 6), half=base.half(), brain=base.bfloat16(),
                               flags=base > 0, whole=torch.arange(3), bytes=torch.arange(3, dtype=torch.uint8), none=torch.zeros(0, 4), one=torch.tensor(2.0),
                               trained=torch.nn.Parameter(base.clone()))  # fmt: skip
    tensors._metadata = OrderedDict(version=1)
    for new in (True, False):
        torch.save(tensors, tmp_path / "x.bin", _use_new_zipfile_serialization=new)
        assert pickle_child.convert(
            str(tmp_path / "x.bin"), str(tmp_path / f"{new}.safetensors")
        ) == len(tensors)
        from safetensors.torch import load_file

        assert same_bits(
            load_file(tmp_path / f"{new}.safetensors"), {n: t.detach() for n, t in tensors.items()}
        )


class Call:
    """A pickle that calls `function(*arguments)` when it is opened."""

    def __init__(self, function: Any, *arguments: Any):
        self.what = function, arguments

    def __reduce__(self) -> Any:
        return self.what


class Own(torch.nn.Linear):
    """A class of somebody's own, as in a whole saved model."""


def _zip(
    path: Path, data: bytes, compress: int = zipfile.ZIP_STORED, name: str = "archive/data.pkl"
) -> None:
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr(name, data)
        archive.writestr("archive/version", "3\n")


def _bomb(path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(1 << 20, 1 << 20)}, path)


def _script(path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


PICKLES: dict[str, tuple[Callable[[Path, Path], Any], str, str]] = {
    "a bare pickle": (lambda p, c: p.write_bytes(pickle.dumps(Canary(c))), "global", "io.open"),
    "its oldest layout": (lambda p, c: p.write_bytes(pickle.dumps(Call(os.system, f"touch {c}"), protocol=0)), "global", ".system"),
    "its newest layout": (lambda p, c: p.write_bytes(pickle.dumps(Call(eval, f"open({str(c)!r}, 'w')"), protocol=4)), "global", "builtins.eval"),
    "hand-written": (lambda p, c: p.write_bytes(f"(S'touch {c}'\nios\nsystem\n.".encode()), "global", "os.system"),
    "inside a real checkpoint": (lambda p, c: torch.save({"w": torch.ones(2), "x": Call(os.system, f"touch {c}")}, p), "global", ".system"),
    "inside an old checkpoint": (
        lambda p, c: torch.save({"x": Call(os.system, f"touch {c}")}, p, _use_new_zipfile_serialization=False), "global", ".system",
    ),
    "in front of a checkpoint": (lambda p, c: _zip(p, pickle.dumps(Call(exec, f"open({str(c)!r}, 'w')"), protocol=2)), "global", "exec"),
    "getattr": (lambda p, c: torch.save({"x": Call(getattr, "text", "upper")}, p), "global", "getattr"),
    "numpy": (lambda p, c: torch.save({"x": torch.ones(2).numpy()}, p), "global", "numpy"),
    "a whole model": (lambda p, c: torch.save(Own(2, 2), p), "global", "Own"),
    "a sparse tensor, which PyTorch would take": (lambda p, c: torch.save({"x": torch.eye(2).to_sparse()}, p), "global", "_rebuild_sparse_tensor"),
    "a program": (lambda p, c: _script(p), "damaged", "compressed members"),
    "two pickles": (lambda p, c: _zip(p, b"", name="archive/other.pkl"), "damaged", "pickles inside"),
    "a compressed bomb": (lambda p, c: _zip(p, b"\0" * 9_000_000, zipfile.ZIP_DEFLATED), "damaged", "compressed"),
    "a tensor of 4 TiB": (lambda p, c: _bomb(p), "damaged", "4398046511104 bytes"),
    "a number": (lambda p, c: torch.save({"w": torch.ones(2), "epoch": 3}, p), "content", "epoch"),
    "a table in a table": (lambda p, c: torch.save({"model": {"w": torch.ones(2)}}, p), "content", "model"),
    "a list": (lambda p, c: torch.save([torch.ones(2)], p), "content", "list"),
    "nothing": (lambda p, c: torch.save({}, p), "content", "0"),
    "half a file": (lambda p, c: p.write_bytes(_saved({"w": torch.ones(99)})[:-200]), "damaged", ""),
    "no pickle": (lambda p, c: p.write_bytes(b"\xff\xd8\xff" * 50), "damaged", ""),
    "an empty file": (lambda p, c: p.write_bytes(b""), "damaged", ""),
}  # fmt: skip


def _saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_that_holds_anything_but_tensors_is_refused_by_name_and_nothing_of_it_runs(
    name: str, tmp_path: Path, canary: Path
) -> None:
    make, reason, word = PICKLES[name]
    make(tmp_path / "pytorch_model.bin", canary)
    with pytest.raises(pickle_child.RefusedError) as caught:
        pickle_child.convert(str(tmp_path / "pytorch_model.bin"), str(tmp_path / "out.safetensors"))
    assert caught.value.fields["refused"] == reason
    assert word in " ".join(map(str, caught.value.fields.values()))
    assert not canary.exists() and not (tmp_path / "out.safetensors").exists()


def test_the_planted_pickles_would_have_run(tmp_path: Path, canary: Path) -> None:
    """The attacks of the table are real: the full unpickler runs them."""
    for name in ("its oldest layout", "hand-written", "a bare pickle"):
        PICKLES[name][0](tmp_path / "x", canary)
        with open(tmp_path / "x", "rb") as handle:
            opened = pickle.load(handle)  # noqa: S301
        if hasattr(opened, "close"):
            opened.close()
        assert canary.exists(), name
        canary.unlink()


# ---- the closed process

ACTS = """
import os, socket, subprocess, sys
sys.path.insert(0, {room!r})
import pickle_child, ctypes
libc = ctypes.CDLL(None)
out, elsewhere, port = {out!r}, {elsewhere!r}, {port}
walls = []
if {kernel}:
    walls = pickle_child.close_kernel_doors(out, True, 1 << 40, 1 << 20, 60)
else:
    sys.addaudithook(pickle_child.guard(out))
def tries(act):
    try:
        act()
    except OSError as e:
        return f"refused {{type(e).__name__}}"
    except Exception as e:
        return f"other {{type(e).__name__}}"
    return "done"
def write(path):
    with open(path, "w") as handle:
        handle.write("x")
found = {{
    "network": tries(lambda: socket.create_connection(("127.0.0.1", port), 3).close()),
    "program": tries(lambda: subprocess.run([sys.executable, "-c", f"open({{elsewhere + '/program'!r}}, 'w')"], check=True)),
    "replaced": tries(lambda: os.execv("/nowhere/at/all", ["x"])),
    "written elsewhere": tries(lambda: write(elsewhere + "/written")),
    "removed elsewhere": tries(lambda: os.remove(elsewhere + "/there")),
    "renamed away": tries(lambda: os.rename(elsewhere + "/there", out + "/there")),
    "linked": tries(lambda: os.symlink("x", elsewhere + "/link")),
    "written inside": tries(lambda: write(out + "/inside")),
    "library": tries(lambda: ctypes.CDLL("libm.so.6")),
}}
if not {kernel}:
    import pickle
    found["unpickled"] = tries(lambda: pickle.loads(b"cos" + b"\\nsystem\\n."))
print(walls, found)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the acts are those of POSIX")
@pytest.mark.parametrize("kernel", [True, False])
def test_the_closed_process_can_neither_reach_out_nor_start_programs_nor_write_elsewhere(
    kernel: bool, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "there").write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        shown = {
            "room": str(SOURCE / "sources"),
            "out": str(tmp_path / "out"),
            "elsewhere": str(tmp_path / "elsewhere"),
            "kernel": kernel,
        }
        code = ACTS.format(port=server.getsockname()[1], **shown)
        done = subprocess.run(
            [sys.executable, "-I", "-B", "-c", code],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    walls, found = ast.literal_eval(done.stdout.strip().replace("] {", "], {"))
    if kernel and not {"landlock", "namespace"} <= set(walls):
        pytest.skip(f"this kernel does not allow both walls: {walls}")
    expected = {name: "refused PermissionError" for name in found} | {"written inside": "done"}
    if kernel:
        expected |= {"library": "done", "replaced": found["replaced"]}
        assert found["network"].startswith("refused") and found["replaced"] in (
            "refused FileNotFoundError",
            "refused PermissionError",
        )
        expected["network"] = found["network"]
        expected["renamed away"] = found["renamed away"]
        assert found["renamed away"].startswith("refused")
        assert "limits" in walls
    assert found == expected
    assert {p.name for p in (tmp_path / "elsewhere").iterdir()} == {"there"}


CHILDREN = {
    "tells its environment": ("print(json.dumps({'refused': 'damaged', 'file': 'x', 'cause': ' '.join(sorted(os.environ))}))", "E-MODEL-45"),
    "writes another file": ("open(job['out'] + '/model.safetensors', 'wb'); open(job['out'] + '/sitecustomize.py', 'w'); print('{\"tensors\": 1}')", "E-MODEL-45"),
    "writes a link": ("os.symlink('/etc/passwd', job['out'] + '/model.safetensors'); print('{\"tensors\": 1}')", "E-MODEL-45"),
    "writes no weights": ("open(job['out'] + '/model.safetensors', 'wb').write(b'x' * 99); print('{\"tensors\": 1}')", "E-MODEL-45"),
    "writes nothing": ("print('{\"tensors\": 1}')", "E-MODEL-45"),
    "dies": ("os.kill(os.getpid(), 9)", "E-MODEL-48"),
    "talks nonsense": ("print('[1, 2')", "E-MODEL-48"),
    "talks to the terminal": ("print(json.dumps({'refused': 'global', 'file': 'x', 'name': '\\x1b[2Jok'}))", "E-MODEL-43"),
}  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="links and signals of POSIX")
@pytest.mark.parametrize("name", CHILDREN)
def test_what_comes_back_from_the_closed_process_is_not_believed(
    name: str, old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, code = CHILDREN[name]
    (tmp_path / "child.py").write_text(
        f"import json, os, sys\njob = json.load(sys.stdin)\n{text}\n"
    )
    monkeypatch.setattr(pickled, "CHILD", tmp_path / "child.py")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ModelError) as caught:
        pickled.convert(old, tmp_path / "deep" / "er" / "safe", silent)
    assert codes(caught.value) == [code]
    assert left_in(tmp_path, "child.py") == set()
    assert "\x1b" not in str(caught.value)
    if name == "tells its environment":
        told = set(str(caught.value).split(": ", 1)[1].split(".  (")[0].split())
        assert "OMP_NUM_THREADS" in told
        assert told <= {
            *pickled.KEPT_ENVIRONMENT,
            "HOME",
            "TMPDIR",
            "OMP_NUM_THREADS",
            "OPENBLAS_NUM_THREADS",
            "LC_CTYPE",
        }


def test_a_taken_place_other_pickles_and_ready_weights_are_refused(
    old: Path, tmp_path: Path
) -> None:
    def refused(folder: Path, out: Path) -> list[str]:
        with pytest.raises(ModelError) as caught:
            pickled.convert(folder, out, silent)
        return codes(caught.value)

    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("x")
    assert (
        refused(old, tmp_path / "taken") == ["E-MODEL-47"]
        and (tmp_path / "taken" / "mine").read_text() == "x"
    )
    assert refused(tmp_path / "nowhere", tmp_path / "safe") == ["E-MODEL-01"]
    (old / "pytorch_model.bin").rename(old / "optimizer.bin")
    assert refused(old, tmp_path / "safe") == ["E-MODEL-46"]
    (old / "model.safetensors").write_bytes(b"x")
    assert refused(old, tmp_path / "safe") == ["E-MODEL-46"]
    (old / "model.safetensors").unlink()
    (old / "pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": {"a": "../../secret.bin"}})
    )
    assert refused(old, tmp_path / "safe") == ["E-MODEL-03"]
    (old / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "gone.bin"}}))
    assert refused(old, tmp_path / "safe") == ["E-MODEL-13"]
    assert left_in(tmp_path, "taken") == set()


# ---- attacks, command by command

EVIL = """import os
with open(os.environ["TUNEWRIGHT_TEST_CANARY"], "a") as handle:
    handle.write("ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from .helper import VALUE
class TinyConfig(LlamaConfig):
    model_type = "tiny_own"
class TinyForCausalLM(LlamaForCausalLM):
    config_class = TinyConfig
class TinyTokenizer(PreTrainedTokenizerFast):
    pass
"""
OWN = {
    "model_type": "tiny_own",
    "auto_map": {
        "AutoConfig": "modeling_own.TinyConfig",
        "AutoModelForCausalLM": "modeling_own.TinyForCausalLM",
    },
}
ATTACKS: dict[str, tuple[str, dict[str, Any], str]] = {
    "code for the model": ("config.json", OWN, "E-MODEL-50"),
    "code for the tokenizer": ("tokenizer_config.json", {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "modeling_own.TinyTokenizer"]}}, "E-MODEL-50"),
    "code of another repository": ("config.json", {**OWN, "auto_map": {"AutoConfig": "evil/repo--modeling_own.TinyConfig"}}, "E-MODEL-53"),
    "code outside the folder": ("config.json", {**OWN, "auto_map": {"AutoConfig": "../modeling_own.TinyConfig"}}, "E-MODEL-55"),
    "code deep inside": ("config.json", {"text_config": {"auto_map": {"AutoConfig": "modeling_own.TinyConfig"}}}, "E-MODEL-05"),
    "code for a processor": ("processor_config.json", {"auto_map": {"AutoProcessor": "modeling_own.TinyConfig"}}, "E-MODEL-50"),
    "CVE-2026-4372": ("config.json", {"_attn_implementation_internal": "evil/kernel"}, "E-MODEL-08"),
    "CVE-2026-5241": ("config.json", {"keypoint_detector_config": {"trust_remote_code": True, "auto_map": {"AutoConfig": "evil/repo--x.Y"}}}, "E-MODEL-06"),
    "a kernel": ("config.json", {"_attn_implementation": "kernels-community/flash-attn2:run"}, "E-MODEL-07"),
    "a kernel table": ("config.json", {"kernel_config": {"kernel_mapping": {"RMSNorm": "evil/kernel:X"}}}, "E-MODEL-07"),
}  # fmt: skip


def evil(folder: Path, canary: Path, attack: str) -> Path:
    """A model with everything planted and one of the attacks."""
    plant(folder, canary)
    for name in (
        "tokenizer.pkl",
        "vocab.bin",
        "vocab.pt",
        "tokenizer.model.bin",
        "optimizer.bin",
        "scheduler.pt",
        "adapter_model.bin",
    ):
        (folder / name).write_bytes(pickle.dumps(Canary(canary)))
    (folder / "modeling_own.py").write_text(EVIL)
    (folder / "helper.py").write_text("VALUE = 1\n")
    file, keys, _ = ATTACKS[attack]
    content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps({**content, **keys}))
    return folder


def commands(model: Path, rows: Path, place: Path) -> dict[str, list[str]]:
    """Every command that opens a model by its name. A merge starts from an adapter that names the
    model as its base."""
    lora = adapter(place / "lora", base_model_name_or_path=str(model))
    train = ["train", "--model", str(model), "--data", str(rows), "--out", str(place / "run")]
    return {
        "train": train, "train --dry-run": [*train, "--dry-run"], "chat": ["chat", str(model), "-q", "hi"],
        "evaluate": ["evaluate", str(model), "--data", str(rows)], "export merge": ["export", "merge", str(lora), str(place / "merged")],
        "export safetensors": ["export", "safetensors", str(model), str(place / "safe")],
    }  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_ends_every_command_with_its_code_and_nothing_else(
    attack: str, folder: Path, tmp_path: Path, rows: Path, canary: Path
) -> None:
    evil(folder, canary, attack)
    for name, words in commands(folder, rows, tmp_path).items():
        result = CliRunner().invoke(app, words)
        # Ready weights leave nothing to convert; what the configuration says does not matter then.
        code = "E-MODEL-46" if name == "export safetensors" else ATTACKS[attack][2]
        assert (result.exit_code, code in result.stderr) == (2, True), (name, result.stderr)
        assert result.stderr.count("tunewright: ") == 1 and "Traceback" not in result.stderr
        assert not canary.exists() and left_in(tmp_path, "lora") == set(), name


@pytest.mark.parametrize(
    "command",
    ["train", "train --dry-run", "chat", "evaluate", "export merge", "export safetensors"],
)
def test_a_folder_of_pickles_ends_every_command_in_a_process_of_its_own(
    command: str, old: Path, tmp_path: Path, rows: Path, canary: Path
) -> None:
    evil(old, canary, "CVE-2026-4372")
    evil(old, canary, "code for the model")
    for name in ("pytorch_model.bin", "optimizer.pt", "rng_state.pth"):
        (old / name).write_bytes(pickle.dumps(Call(os.system, f"touch {canary}")))
    config = json.loads((old / "config.json").read_text())
    if command == "export safetensors":
        # Nothing but the pickle speaks against this one; code is not run by a conversion and not
        # copied.
        config.pop("_attn_implementation_internal")
    (old / "config.json").write_text(json.dumps(config))
    result = story.tunewright(
        *commands(old, rows, tmp_path)[command], TUNEWRIGHT_TEST_CANARY=str(canary), PYTHONPATH=""
    )
    wanted = {"E-MODEL-43"} if command == "export safetensors" else {"E-MODEL-08", "E-MODEL-50"}
    assert result.returncode == 2 and all(code in result.stderr for code in wanted), result.stderr
    assert ("posix.system" in result.stderr or "nt.system" in result.stderr) == (
        command == "export safetensors"
    )
    assert "Traceback" not in result.stderr and not canary.exists()
    assert left_in(tmp_path, "lora") == set()


@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler.__init__.__globals__.os.system('touch ' ~ CANARY) }}",
        "{% for c in ''.__class__.__mro__[1].__subclasses__() %}{{ c('touch ' ~ CANARY, shell=True) }}{% endfor %}",
        "{{ messages.__init__.__func__.__globals__['__builtins__'].open(CANARY, 'w') }}",
        "{{ raise_exception.__globals__['sys'].modules['os'].system('touch ' ~ CANARY) }}",
        "{% set _ = messages.append({'role': 'user', 'content': 'x'}) %}",
    ],
)
def test_a_chat_template_cannot_leave_its_sandbox(
    template: str, folder: Path, tmp_path: Path, rows: Path, canary: Path
) -> None:
    (folder / "chat_template.jinja").write_text(template.replace("CANARY", repr(str(canary))))
    for name, words in commands(folder, rows, tmp_path).items():
        if name in ("train", "train --dry-run", "chat", "evaluate"):
            result = CliRunner().invoke(app, words)
            assert (result.exit_code, "E-DATA-18" in result.stderr) == (2, True), (
                name,
                result.output,
                result.stderr,
                result.exception,
            )
            assert not canary.exists() and left_in(tmp_path, "lora") == set()


# ---- code that was allowed


@pytest.fixture
def own(folder: Path, canary: Path) -> Path:
    """The tiny model under a type that only its own code knows; the code leaves the canary when it
    runs."""
    (folder / "modeling_own.py").write_text(EVIL)
    # Python runs a module once a process; another test's code must be another module.
    (folder / "helper.py").write_text(f"VALUE = 1  # {canary.parent.name}\n")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **OWN}))
    return folder


def test_the_hash_is_over_sorted_paths_lengths_and_contents(own: Path) -> None:
    (own / "more").mkdir()
    (own / "more" / "a.py").write_bytes(b"")
    (own / ".git").mkdir()
    (own / ".git" / "hook.py").write_text("hidden")
    digest = hashlib.sha256()
    for name in ("helper.py", "modeling_own.py", "more/a.py"):
        content = (own / name).read_bytes()
        digest.update(name.encode() + b"\0" + len(content).to_bytes(8, "big") + content)
    assert remote_code.digest_of(remote_code.read_code(own)) == f"sha256:{digest.hexdigest()}"


def test_the_refusal_shows_the_code_and_the_flag_and_the_flag_lets_it_run(
    own: Path, tmp_path: Path, rows: Path, canary: Path
) -> None:
    digest = remote_code.digest_of(remote_code.read_code(own))
    variables = dict.fromkeys(
        ("TUNEWRIGHT_TRUST_CODE", "TRUST_CODE", "TUNEWRIGHT_CHAT_TRUST_CODE"), digest
    )
    refused = CliRunner().invoke(
        app, ["chat", str(own), "-q", "hi"], env={**variables, "TRUST_REMOTE_CODE": "1"}
    )
    assert refused.exit_code == 2 and f"--trust-code {digest}\n" in refused.stderr
    for shown in (
        "modeling_own.py",
        "helper.py",
        f"{len(EVIL)} bytes",
        "| import os",
        "| VALUE = 1",
        "os (line 1), open (line 2)",
        str(own),
    ):
        assert shown in refused.stderr, shown
    assert not canary.exists()
    ran = story.tunewright(
        "chat",
        str(own),
        "-q",
        "hi",
        "--max-new-tokens",
        "2",
        "--trust-code",
        digest,
        TUNEWRIGHT_TEST_CANARY=str(canary),
    )
    assert ran.returncode == 0, ran.stderr
    assert canary.read_text() == "ran"
    wrong = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    canary.unlink()
    every = [
        words
        for words in commands(own, rows, tmp_path).values()
        if words[:2] != ["export", "safetensors"]
    ]
    for given, code, asked in (
        (wrong, "E-MODEL-51", every),
        ("yes", "E-MODEL-52", every[:1]),
        (digest.upper(), "E-MODEL-52", every[:1]),
    ):
        for words in asked:
            result = CliRunner().invoke(app, [*words, "--trust-code", given])
            assert (result.exit_code, code in result.stderr) == (2, True), (given, result.stderr)
    assert not canary.exists() and left_in(tmp_path, "lora") == set()


def test_allowed_code_trains_measures_merges_and_dry_runs(
    own: Path, tmp_path: Path, rows: Path, canary: Path
) -> None:
    trust = ["--trust-code", remote_code.digest_of(remote_code.read_code(own))]
    run, merged = tmp_path / "run", tmp_path / "merged"
    train = story.words(
        own, rows, run, "engine.steps=2", "engine.epochs=1", "engine.learning_rate=0.01", "probes=0"
    )
    for words in (
        [*train, "--dry-run"], train, ["evaluate", str(run), "--data", str(rows), "--no-generate"], ["export", "merge", str(run), str(merged)],
        ["chat", str(merged), "-q", "hi", "--max-new-tokens", "2"],
    ):  # fmt: skip
        canary.unlink(missing_ok=True)
        result = CliRunner().invoke(app, [*words, *trust])
        assert result.exit_code == 0, (words, result.stderr, result.exception)
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == str(own)
    result = CliRunner().invoke(app, ["chat", str(run), "-q", "hi"])
    assert result.exit_code == 2 and "E-MODEL-50" in result.stderr


def test_code_runs_from_a_private_copy_that_later_changes_do_not_reach(
    own: Path, canary: Path
) -> None:
    digest = remote_code.digest_of(remote_code.read_code(own))
    with remote_code.trusting([digest]):
        place = remote_code.place_of(own)
        assert place.folder != own and {p.suffix for p in place.folder.iterdir()} <= {
            ".py",
            ".json",
            ".jinja",
            ".safetensors",
        }
        (own / "helper.py").write_text("raise SystemExit('changed')\n")
        model = load.load_model(own, dtype="float32")
        module = sys.modules[type(model).__module__]
        assert Path(str(module.__file__)).is_relative_to(remote_code._private_root())
        if os.name == "posix":
            assert remote_code._private_root().stat().st_mode & 0o077 == 0
    assert canary.read_text() == "ran" and model.name_or_path == str(own)
    for consent in ([digest], []):
        with remote_code.trusting(consent), pytest.raises(ModelError) as caught:
            load.load_model(own, dtype="float32")
        assert codes(caught.value) == ["E-MODEL-51"]
    with pytest.raises(ModelError) as caught:
        load.load_model(own, dtype="float32")
    assert codes(caught.value) == ["E-MODEL-50"]


def test_more_code_than_was_allowed_is_refused_though_each_old_file_was_allowed(
    own: Path, tmp_path: Path
) -> None:
    with remote_code.trusting([remote_code.digest_of(remote_code.read_code(own))]):
        load.load_config(own)
        copy = Path(shutil.copytree(own, tmp_path / "copy"))
        assert vet.problems_of(copy) == []
        (copy / "extra.py").write_text("1\n")
        assert codes(vet.problems_of(copy)) == ["E-MODEL-51"]


def test_consent_cannot_come_from_a_run_file(
    own: Path, tmp_path: Path, rows: Path, canary: Path
) -> None:
    digest = remote_code.digest_of(remote_code.read_code(own))
    for line in (
        f"trust_code: {digest}",
        f"engine: {{trust_code: {digest}}}",
        "trust_remote_code: true",
    ):
        (tmp_path / "run.yaml").write_text(f"model: {own}\ndata: {rows}\n{line}\n")
        result = CliRunner().invoke(
            app, ["train", str(tmp_path / "run.yaml"), f"out={tmp_path / 'run'}"]
        )
        assert result.exit_code == 2 and "E-CONFIG-" in result.stderr
    for words in (["trust_code=" + digest], ["model.trust_code=" + digest]):
        result = CliRunner().invoke(
            app,
            [
                "train",
                "--model",
                str(own),
                "--data",
                str(rows),
                "--out",
                str(tmp_path / "run"),
                *words,
            ],
        )
        assert result.exit_code == 2 and "E-CONFIG-" in result.stderr
    assert not canary.exists() and left_in(tmp_path, "run.yaml") == set()


def test_a_type_that_transformers_knows_is_opened_without_its_code(
    folder: Path, edit: Edit, canary: Path
) -> None:
    (folder / "modeling_own.py").write_text(EVIL)
    edit(
        auto_map={
            "AutoConfig": "modeling_own.TinyConfig",
            "AutoModelForCausalLM": "evil/repo--modeling_own.X",
        }
    )
    edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling_own.TinyTokenizer", None]})
    said: list[str] = []
    with remote_code.trusting(["sha256:" + "0" * 64]):
        resolve(str(folder), said.append)
        model = load.load_model(folder, dtype="float32")
        load_tokenizer(folder)
    assert type(model).__module__.startswith("transformers.models.llama") and not canary.exists()
    assert sum("opened natively" in line for line in said) == 2 and any(
        "no effect" in line for line in said
    )
    assert not hasattr(model.config, "auto_map")


def test_code_that_nobody_could_read_is_refused(own: Path) -> None:
    with pytest.raises(UsageError):
        remote_code.trusting(["sha256:abc"]).__enter__()
    (own / "a\x1b[2J.py").write_text("1")
    (found,) = vet.problems_of(own)
    assert found.code == "E-MODEL-56" and "\x1b" not in found.line()
    (own / "a\x1b[2J.py").unlink()
    (own / "helper.py").write_text("\x1b[2J # \u202e hidden\n")
    assert not {"\x1b", "\u202e"} & set(vet.problems_of(own)[0].line())
    (own / "helper.py").write_bytes(b"x" * (9 << 20))
    assert codes(vet.problems_of(own)) == ["E-MODEL-56"]


# ---- the source


def forbidden(tree: ast.AST) -> list[str]:
    """What the source may not do: unpickle, evaluate text, trust code, start a shell."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
            )
            found += [
                f"import {n}"
                for n in names
                if n.split(".")[0] in ("pickle", "dill", "cloudpickle", "joblib", "shelve")
            ]
        if isinstance(node, ast.Call):
            keywords = {k.arg: k.value for k in node.keywords}
            name = ast.unparse(node.func)
            if name in (
                "eval",
                "exec",
                "os.system",
                "os.popen",
                "torch.jit.load",
                "yaml.unsafe_load",
            ):
                found.append(name)
            if name == "yaml.load" and ast.unparse(keywords.get("Loader", node)) not in (
                "Loader",
                "QuickLoader",
            ):
                found.append(name)
            if name == "torch.load":
                safe = (
                    isinstance(keywords.get("weights_only"), ast.Constant)
                    and ast.unparse(keywords["weights_only"]) == "True"
                )
                found.append("torch.load(weights_only=True)" if safe else "torch.load")
            found += [
                f"{k}=True"
                for k in ("shell", "trust_remote_code")
                if k in keywords and ast.unparse(keywords[k]) == "True"
            ]
    return found


def test_only_the_closed_process_opens_pickles_and_nothing_trusts_code_outright() -> None:
    found = {
        p.relative_to(SOURCE).as_posix(): forbidden(ast.parse(p.read_text(encoding="utf-8")))
        for p in SOURCE.rglob("*.py")
    }
    # A person's own reward functions run only where the file was named on the command line
    # (tests/rewards/).
    allowed = {
        "sources/pickle_child.py": ["torch.load(weights_only=True)"],
        "rewards/user_code.py": ["exec"],
    }
    assert {name: what for name, what in found.items() if what} == allowed
    assert issubclass(runfile.Loader, yaml.SafeLoader)
    assert issubclass(runfile.QuickLoader, yaml.SafeLoader | yaml.CSafeLoader)
    planted = "import pickle\ntorch.load(x)\nyaml.load(x)\neval(y)\nf(shell=True, trust_remote_code=True)\nmodel.eval()"
    assert forbidden(ast.parse(planted)) == [
        "import pickle",
        "torch.load",
        "yaml.load",
        "eval",
        "shell=True",
        "trust_remote_code=True",
    ]
