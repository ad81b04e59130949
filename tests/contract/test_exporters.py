"""What every exporter promises: what is there already is never touched, a failure leaves nothing,
what it writes opens, and a tensor that got wrong on the way to the disk is noticed.

To add an exporter: one `Exporter` in EXPORTERS.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers import story, tiny

import tunewright
from tunewright.core.errors import TunewrightError
from tunewright.core.registry import methods
from tunewright.core.telling import Quiet
from tunewright.engine.opening import open_target
from tunewright.export.combine import combine
from tunewright.export.diff import export_difference
from tunewright.export.merge import merge_run
from tunewright.export.shrink import shrink
from tunewright.models import anatomy
from tunewright.models.load import load_model
from tunewright.sources.pickled import convert

IDS = torch.tensor([[5, 9, 17, 33, 4, 8, 90, 120, 7, 7, 3]])
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 3},
    "rslora": {"rank": 5},
    "dora": {"rank": 2},
    "bitfit": {},
    "diff_pruning": {"target": 0.2},
    "full": {},
}
"""Adapters of PEFT and of ours, and a run that trained every weight."""


@dataclass
class Places:
    """What is exported from: a base, an adapter of every kind on it, a run of a judge, a model in a
    pickle."""

    base: Path
    saved: dict[str, Path]
    judge: Path
    pickled: Path

    def run_of(self, kind: str) -> Path:
        """A run folder as `train` leaves it, around what was saved."""
        return self.saved[kind].parent


@dataclass(frozen=True)
class Exporter:
    """One way out."""

    write: Callable[[Places, Path], object]
    proves: str = ""
    """Code of the error for a tensor that is wrong in the files."""
    same_as: str = ""
    """Kind of adapter whose model the exported one must be."""


def merging(kind: str) -> Exporter:
    return Exporter(
        lambda at, out: merge_run(at.run_of(kind), out, dtype="float32", tell=Quiet()),
        proves="E-EXPORT-07",
        same_as=kind,
    )


def combining(way: str, *kinds: str, weights: list[float], same_as: str = "") -> Exporter:
    return Exporter(
        lambda at, out: combine(
            [str(at.saved[kind]) for kind in kinds], out, weights=weights, way=way, tell=Quiet()
        ),
        proves="E-EXPORT-13",
        same_as=same_as,
    )


EXPORTERS: dict[str, Exporter] = {
    **{f"merge {kind}": merging(kind) for kind in KINDS},
    "merge judge": Exporter(
        lambda at, out: merge_run(at.judge, out, dtype="float32", tell=Quiet()), "E-EXPORT-12"
    ),
    "combine": combining("cat", "lora", "rslora", weights=[1.0, 0.0], same_as="lora"),
    "combine svd": combining("svd", "lora", "rslora", weights=[0.7, -0.5]),
    "diff": Exporter(
        lambda at, out: export_difference(at.run_of("full"), out, share=0.3, tell=Quiet()),
        "E-EXPORT-16",
    ),
    "shrink": Exporter(lambda at, out: shrink(str(at.base), out, blocks="1"), "E-OBJ-07"),
    "safetensors": Exporter(lambda at, out: convert(at.pickled, out, lambda line: None)),
}
every_name = pytest.mark.parametrize("name", list(EXPORTERS))
each_way = pytest.mark.parametrize(
    "name", ["merge lora", *(n for n in EXPORTERS if n.removeprefix("merge ") not in KINDS)]
)
"""Of adapters one kind, where it makes no difference which."""


def save(base: Path, folder: Path, kind: str) -> Path:
    """An adapter (or a whole model) whose training moved it, in a run folder."""
    model: Any = load_model(base, dtype="float32")
    entry = methods.get(kind)
    assert entry is not None
    torch.manual_seed(2)
    attached = entry.function(entry.config(**KINDS[kind]), model, anatomy.of(model), str(base))
    tiny.randomise(attached, 2, spread=0.1)
    place = folder / ("model" if attached.saves_model else "adapter")
    attached.save(place)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (place / name).write_bytes((base / name).read_bytes())
    (folder / "run.yaml").write_text(
        f"model: {base}\ndata:\n  train: gone.json\nengine:\n  dtype: float32\n"
        f"method:\n  kind: {kind}\n",
        encoding="utf-8",
    )
    return place


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Places:
    place = tmp_path_factory.mktemp("export")
    base = story.model_folder(
        place / "base", "qwen2", initializer_range=0.1, tie_word_embeddings=False
    )
    saved = {kind: save(base, place / kind, kind) for kind in KINDS}
    pairs = [
        {"prompt": q, "chosen": "good", "rejected": f"bad {i}"}
        for i, q in enumerate(story.QUESTIONS)
    ]
    judge = tunewright.train(
        model=str(base),
        data={"train": pairs_file(place / "pairs.json", pairs), "held_out": 0},
        engine={"dtype": "float32", "threads": 1, "steps": 2, "learning_rate": 0.01},
        objective={"kind": "reward"},
        probes=0,
        out=str(place / "judge"),
        tell=Quiet(),
    )
    pickled = place / "pickled"
    pickled.mkdir()
    for file in base.iterdir():
        if file.suffix == ".json":
            (pickled / file.name).write_bytes(file.read_bytes())
    torch.save(load_model(base, dtype="float32").state_dict(), pickled / "pytorch_model.bin")
    return Places(base, saved, judge.folder, pickled)


def pairs_file(path: Path, rows: list[dict[str, Any]]) -> str:
    import json

    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def left_in(place: Path) -> list[str]:
    return sorted(p.name for p in place.rglob("*"))


def logits(target: Path) -> torch.Tensor:
    opened = open_target(str(target), Quiet(), dtype="float32")
    with torch.no_grad():
        found: torch.Tensor = opened.model(input_ids=IDS, use_cache=False).logits
    return found


@each_way
def test_what_is_there_already_is_never_touched(name: str, at: Places, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(TunewrightError):
        EXPORTERS[name].write(at, out)
    assert left_in(tmp_path) == ["mine.txt", "out"]
    assert (out / "mine.txt").read_text(encoding="utf-8") == "keep"


@every_name
def test_what_it_writes_opens_and_is_what_was_asked_for(
    name: str, at: Places, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "out"
    EXPORTERS[name].write(at, out)
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert not [p for p in out.rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]
    if name == "merge judge":  # it gives numbers, no words
        assert (out / "model.safetensors").is_file()
        return
    found = logits(out)
    assert bool(torch.isfinite(found).all())
    same_as = EXPORTERS[name].same_as
    if same_as:
        wanted = logits(at.run_of(same_as))
        assert float((found - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())
        assert float((wanted - logits(at.base)).abs().max()) > 1e-3, "nothing was learnt"


class Failing:
    """Stands for the function that writes tensors: `trouble` decides what goes wrong."""

    def __init__(self, trouble: str):
        self.trouble, self.own, self.calls = trouble, safetensors.torch.save_file, 0

    def __call__(self, tensors: dict[str, Any], filename: Any, *given: Any, **named: Any) -> None:
        self.calls += 1
        if self.trouble == "disk":
            Path(filename).write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        wrong = {key: t.clone() for key, t in tensors.items()}
        floats = [key for key in wrong if wrong[key].is_floating_point()]
        largest = max(floats, key=lambda key: wrong[key].numel())
        wrong[largest] = wrong[largest].flip(0)
        self.own(wrong, filename, *given, **named)


def put(failing: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    import peft.peft_model
    import transformers.modeling_utils

    monkeypatch.setattr(safetensors.torch, "save_file", failing)
    for module in (peft.peft_model, transformers.modeling_utils):
        monkeypatch.setattr(module, "safe_save_file", failing, raising=False)
        monkeypatch.setattr(module, "save_file", failing, raising=False)


@each_way
def test_a_failure_leaves_nothing(
    name: str, at: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing("disk")
    put(failing, monkeypatch)
    if name == "safetensors":  # a process of its own writes the tensors
        monkeypatch.setattr("tunewright.sources.pickled._run_child", full_disk)
    with pytest.raises((TunewrightError, OSError)):
        EXPORTERS[name].write(at, tmp_path / "deep" / "out")
    assert failing.calls or name == "safetensors"
    assert left_in(tmp_path) == []


def full_disk(place: Path, plan: Any) -> list[str]:
    (place / "model.safetensors").write_bytes(b"half of it")
    raise OSError(28, "No space left on device")


@each_way
def test_a_folder_that_cannot_get_its_name_leaves_nothing(
    name: str, at: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = os.rename

    def rename(source: Any, target: Any, **named: Any) -> None:
        if Path(target).name == "out":
            raise OSError(30, "Read-only file system")
        own(source, target, **named)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises((TunewrightError, OSError)):
        EXPORTERS[name].write(at, tmp_path / "deep" / "out")
    assert left_in(tmp_path) == []


@each_way
def test_a_tensor_that_is_wrong_in_the_files_is_noticed(
    name: str, at: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = EXPORTERS[name].proves
    if not code:
        assert name == "safetensors"  # the process that reads the pickle says what it wrote
        return
    failing = Failing("wrong")
    put(failing, monkeypatch)
    with pytest.raises(TunewrightError) as caught:
        EXPORTERS[name].write(at, tmp_path / "deep" / "out")
    assert [p.code for p in caught.value.problems] == [code] and failing.calls
    assert left_in(tmp_path) == []
