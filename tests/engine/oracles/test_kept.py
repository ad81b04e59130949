"""Values of branches that are kept on disk."""

from __future__ import annotations

import gc
import json
import os
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tunewright.core.types import Branch, Sample
from tunewright.engine.oracles.kept import KeptValues, about_of, key_of

COLUMNS = {"tokens": ("<i4", 3), "logprobs": ("<f4", 4)}


def sample(i: int) -> Sample:
    return Sample(
        [Branch([1, 2, i, i + 1, 7], [3, 4], [1.0, 1.0]), Branch([1, 2, i, 9], [3], [1.0])], i
    )


def lines(i: int, count: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng([i, count])
    return {
        "tokens": draw.integers(0, 99, (count, 3), "<i4"),
        "logprobs": draw.random((count, 4), "<f4"),
    }


def filled(folder: Path | None, which: Any) -> KeptValues:
    kept = KeptValues(COLUMNS, folder)
    for i in which:
        for branch in sample(i).branches:
            kept.add(branch, **lines(i, len(branch.learnt)))
    return kept


def expect(kept: KeptValues, order: list[int]) -> None:
    found = kept.get([sample(i) for i in order])
    for name in COLUMNS:
        wanted = np.concatenate([lines(i, count)[name] for i in order for count in (2, 1)])
        assert np.array_equal(found[name], wanted) and found[name].dtype == wanted.dtype


def test_what_was_added_is_found_before_a_save_after_it_and_after_loading(tmp_path: Path) -> None:
    kept = filled(tmp_path, range(5))
    expect(kept, [3, 0, 4, 3])
    kept.save(tmp_path / "v.safetensors", {"model": "a"})
    expect(kept, [1, 2])
    again = KeptValues.load(tmp_path / "v.safetensors", COLUMNS)
    expect(again, [4, 0])
    assert about_of(tmp_path / "v.safetensors") == {"model": "a"} and len(again) == 10
    for branch in sample(9).branches:  # values that come after loading stand beside the loaded ones
        again.add(branch, **lines(9, len(branch.learnt)))
    expect(again, [9, 2])
    again.save(tmp_path / "v.safetensors", {"model": "a"})
    expect(KeptValues.load(tmp_path / "v.safetensors", COLUMNS), [9, 4, 1])
    assert not [path for path in tmp_path.iterdir() if path.name != "v.safetensors"]


def test_the_file_is_one_that_safetensors_reads(tmp_path: Path) -> None:
    filled(tmp_path, range(3)).save(tmp_path / "v.safetensors", {})
    found = load_file(tmp_path / "v.safetensors")
    assert found["keys"].tobytes() == b"".join(
        key_of(b) for i in range(3) for b in sample(i).branches
    )
    assert found["ends"].tolist() == [2, 3, 5, 6, 8, 9]
    assert np.array_equal(found["tokens"][3:5], lines(1, 2)["tokens"])


def test_files_of_the_version_before_are_read(tmp_path: Path) -> None:
    """They had one value a branch and no column of ends."""
    keys = np.frombuffer(b"".join(key_of(b) for b in sample(4).branches), np.uint8).reshape(-1, 16)
    save_file(
        {"keys": keys, "values": np.array([-1.5, -2.5])},
        tmp_path / "v.safetensors",
        {"about": json.dumps({"x": 1})},
    )
    kept = KeptValues.load(tmp_path / "v.safetensors", {"values": ("<f8", 0)})
    assert kept.get([sample(4)])["values"].tolist() == [-1.5, -2.5]


def test_a_later_value_takes_the_place_of_an_earlier_one_and_a_missing_one_is_an_error(
    tmp_path: Path,
) -> None:
    kept = KeptValues({"values": ("<f8", 0)})
    branch = sample(0).branches[0]
    kept.add(branch, values=np.array([1.0]))
    kept.add(branch, values=np.array([2.0]))
    assert kept.get([Sample([branch], 0)])["values"].tolist() == [2.0]
    kept.save(tmp_path / "v.safetensors", {})
    assert KeptValues.load(tmp_path / "v.safetensors", {"values": ("<f8", 0)}).get(
        [Sample([branch], 0)]
    )["values"].tolist() == [2.0]
    with pytest.raises(KeyError):
        kept.get([sample(1)])


@pytest.mark.parametrize("damage", ["short", "head", "type", "width", "ends"])
def test_a_file_that_does_not_hold_just_that_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "v.safetensors"
    filled(tmp_path, range(3)).save(path, {})
    columns = {
        **COLUMNS,
        **(
            {"tokens": ("<f4", 3)}
            if damage == "type"
            else {"tokens": ("<i4", 2)}
            if damage == "width"
            else {}
        ),
    }
    data = path.read_bytes()
    if damage == "short":
        path.write_bytes(data[:-40])
    if damage == "head":
        path.write_bytes(b"x" * 40)
    if damage == "ends":
        found = load_file(path)
        save_file({**found, "ends": found["ends"][:-1]}, path)
    with pytest.raises((ValueError, OSError, KeyError)):
        KeptValues.load(path, columns)


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """A dictionary of 40,000 branches and their values takes about 40 MB here; the index takes 24
    bytes a branch and a bounded number that wait."""
    values = {"tokens": np.zeros((20, 3), "<i4"), "logprobs": np.zeros((20, 4), "<f4")}
    kept = KeptValues(COLUMNS, tmp_path)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for i in range(40_000):
        kept.add(Branch([i, i + 1], [1], [1.0]), **values)
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert held < 6 << 20
    assert kept.get([Sample([Branch([7, 8], [1], [1.0])], 0)])["tokens"].shape == (20, 3)


def test_files_are_closed_when_a_cycle_is_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The collector ends the objects of a cycle in an order of its own: it may come to a file
    # before it comes to what would close it.
    said: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", said.append)
    opened: list[int] = []
    for younger in (False, True) * 3:
        around: dict[str, Any] = {"kept": KeptValues(COLUMNS, tmp_path)}
        around["itself"] = around
        if younger:
            gc.collect(0)  # the files below are of a later generation
        for branch in sample(1).branches:
            around["kept"].add(branch, **lines(1, len(branch.learnt)))
        around["kept"].get([sample(1)])
        opened = [file.fileno() for file in around["kept"]._written.values()]
        del around
        with warnings.catch_warnings():
            warnings.simplefilter("error", ResourceWarning)
            gc.collect()
        for number in opened:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(number)
    assert len(opened) == 3 and not said
