"""Checkpoints: after a failure at any instant the old or the new one loads, and a damaged one never
does."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.story import digest

from tunewright.core import files
from tunewright.core.errors import CheckpointError
from tunewright.record import checkpoint
from tunewright.record.checkpoint import load_latest, load_step, prune, save, steps_in


def tensors(step: int) -> dict[str, dict[str, Any]]:
    return {
        "model": {"w": torch.full((40, 3), float(step)), "b": torch.arange(5)},
        "optimizer": {"w/step": torch.tensor(float(step))},
    }


def state(step: int) -> dict[str, Any]:
    return {"progress": {"step": step, "note": "ünï"}}


def put(root: Path, *steps: int, protect: int | None = None) -> None:
    for step in steps:
        save(root, step, tensors(step), state(step), protect=protect)


def whole(found: checkpoint.Checkpoint | None, step: int) -> bool:
    """Whether a loaded checkpoint is exactly that of `step`."""
    assert found is not None
    return found.step == step and found.state["progress"] == state(step)["progress"] and all(
        torch.equal(a, b) for name in ("model", "optimizer") for a, b in zip(found.tensors(name).values(), dict(sorted(tensors(step)[name].items())).values(), strict=True)
    )  # fmt: skip


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    put(tmp_path / "c", 5)
    assert whole(load_latest(tmp_path / "c"), 5)
    assert whole(load_step(tmp_path / "c", 5), 5)
    assert load_step(tmp_path / "c", 6) is None
    assert (tmp_path / "c" / "LATEST").read_text(encoding="utf-8") == "step-000005\n"
    assert not list((tmp_path / "c").glob("*.tmp-*"))


def test_there_is_no_pickle_in_it(tmp_path: Path) -> None:
    put(tmp_path, 1)
    assert {p.suffix for p in (tmp_path / "step-000001").iterdir()} == {".json", ".safetensors"}


def test_no_checkpoint_is_none_and_an_empty_folder_too(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "none") is None
    assert load_latest(tmp_path) is None


def test_the_last_two_and_the_protected_one_stay(tmp_path: Path) -> None:
    put(tmp_path, 1, 2, 3, 4, 5, protect=2)
    assert steps_in(tmp_path) == [2, 4, 5]
    put(tmp_path, 6, protect=5)
    assert steps_in(tmp_path) == [4, 5, 6]
    assert not list(tmp_path.glob(".trash*"))


def test_only_verified_ones_count_as_kept(tmp_path: Path) -> None:
    put(tmp_path, 1, 2)
    (tmp_path / "step-000002" / "MANIFEST.json").unlink()
    put(tmp_path, 3)
    assert whole(load_step(tmp_path, 1), 1)
    prune(tmp_path)
    assert steps_in(tmp_path) == [1, 2, 3]


def test_saving_the_same_step_again_keeps_the_one_that_stands(tmp_path: Path) -> None:
    put(tmp_path, 4)
    before = {p.name: digest(p) for p in (tmp_path / "step-000004").iterdir()}
    put(tmp_path, 4)
    assert {p.name: digest(p) for p in (tmp_path / "step-000004").iterdir()} == before


def test_saving_the_same_step_over_a_damaged_one_replaces_it(tmp_path: Path) -> None:
    put(tmp_path, 4)
    (tmp_path / "step-000004" / "model.safetensors").write_bytes(b"x")
    put(tmp_path, 4)
    assert whole(load_latest(tmp_path), 4)


def test_leftovers_of_a_killed_process_are_not_checkpoints(tmp_path: Path) -> None:
    put(tmp_path, 1)
    shutil.copytree(tmp_path / "step-000001", tmp_path / "step-000002.tmp-123-abcd")
    (tmp_path / "step-000003").write_text("a file", encoding="utf-8")
    assert whole(load_latest(tmp_path), 1)
    assert not (tmp_path / "step-000002.tmp-123-abcd").exists()


# Damage.


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << (offset % 8)
    path.write_bytes(bytes(data))


def falls_back(root: Path) -> str:
    """The newest is damaged: the one before is loaded, the damaged one lies in quarantine. Returns
    the reason given."""
    found = load_latest(root)
    assert whole(found, 1)
    assert found is not None
    assert [name for name, _ in found.quarantined] == ["step-000002"]
    assert [p.name[:11] for p in (root / "quarantine").iterdir()] == ["step-000002"]
    assert steps_in(root) == [1]
    return found.quarantined[0][1]


@pytest.fixture
def two(tmp_path: Path) -> Path:
    put(tmp_path, 1, 2)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"]
)
def test_a_flipped_bit_anywhere_is_seen(two: Path, name: str) -> None:
    path = two / "step-000002" / name
    original = path.read_bytes()
    # Every offset of small files, a spread of the large ones.
    for offset in range(0, len(original), max(1, len(original) // 120)):
        flip(path, offset)
        flaw = checkpoint._flaw(two / "step-000002")
        same_meaning = False
        if name == "MANIFEST.json":
            # White space between the values carries no meaning, so a flip from one blank to another
            # may pass.
            try:
                same_meaning = json.loads(path.read_bytes()) == json.loads(original)
            except ValueError:
                same_meaning = False
        assert flaw is not None or same_meaning, offset
        path.write_bytes(original)
    flip(path, len(original) // 2)
    falls_back(two)


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "MANIFEST.json"])
@pytest.mark.parametrize("keep", [0, 1, -2])
def test_a_cut_file_is_seen(two: Path, name: str, keep: int) -> None:
    path = two / "step-000002" / name
    path.write_bytes(path.read_bytes()[:keep])
    assert falls_back(two)


@pytest.mark.parametrize(
    ("name", "word"),
    [("MANIFEST.json", "no manifest"), ("model.safetensors", "missing"), ("state.json", "missing")],
)
def test_a_deleted_file_is_seen_and_named(two: Path, name: str, word: str) -> None:
    (two / "step-000002" / name).unlink()
    assert word in falls_back(two)


def test_files_of_another_checkpoint_do_not_fit(two: Path) -> None:
    for name in ("model.safetensors",):
        shutil.copy(two / "step-000001" / name, two / "step-000002" / name)
    assert "SHA-256" in falls_back(two)


def test_a_whole_folder_under_another_name_does_not_count(two: Path) -> None:
    shutil.rmtree(two / "step-000002")
    shutil.copytree(two / "step-000001", two / "step-000002")
    assert "manifest does not describe" in falls_back(two)


@pytest.mark.parametrize(
    "manifest",
    [
        "[]",
        "{}",
        '{"format": 1, "step": "x", "files": {}}',
        '{"format": 99, "step": 2, "files": {"state.json": {}}}',
        "null",
        "7",
    ],
)
def test_a_strange_manifest_is_a_flaw_not_a_crash(two: Path, manifest: str) -> None:
    (two / "step-000002" / "MANIFEST.json").write_text(manifest, encoding="utf-8")
    falls_back(two)


def test_a_manifest_cannot_point_out_of_its_folder(two: Path) -> None:
    path = two / "step-000002" / "MANIFEST.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["files"]["../step-000001/state.json"] = content["files"]["state.json"]
    path.write_text(json.dumps(content), encoding="utf-8")
    falls_back(two)


def test_when_none_verifies_a_run_never_starts_over_in_silence(two: Path) -> None:
    for step in (1, 2):
        flip(two / f"step-{step:06d}" / "model.safetensors", 100)
    for _ in range(2):  # the second time they lie in quarantine already
        with pytest.raises(CheckpointError) as caught:
            load_latest(two)
        assert [p.code for p in caught.value.problems] == ["E-CKPT-03"]


def test_a_disk_that_cannot_be_written_any_more_still_gives_the_good_one(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(two / "step-000002" / "model.safetensors", 100)

    def refuse(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "rename", refuse)
    assert whole(load_latest(two), 1)


# A failure of the N-th operation.


shutil_rmtree = shutil.rmtree


class Failing:
    """Counts the operations of a save and lets the N-th fail; from then on everything fails where
    `for_good` is set (a dead disk)."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        number: int,
        for_good: bool,
        error: Callable[[], BaseException],
    ):
        import builtins

        self.number, self.count, self.for_good, self.error = number, 0, for_good, error
        import safetensors.torch

        for owner, name in (
            (builtins, "open"),
            (os, "fsync"),
            (os, "rename"),
            (os, "replace"),
            (safetensors.torch, "save_file"),
            (os, "mkdir"),
            (shutil, "rmtree"),
        ):
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            # Only a file of the checkpoint counts; pytest and torch open files, too.
            if real is not os.fsync and not any(
                "step-" in str(a) or "LATEST" in str(a) for a in args
            ):
                return real(*args, **kwargs)
            self.count += 1
            if self.count == self.number or (self.for_good and self.count > self.number):
                failure = self.error()
                if (
                    real is shutil_rmtree
                    and kwargs.get("ignore_errors")
                    and isinstance(failure, OSError)
                ):
                    return None
                raise failure
            return real(*args, **kwargs)

        return call


class Killed(BaseException):
    """The process dies here: nothing of ours may catch it and go on."""


@pytest.mark.wide("error-False", "killed-True")
@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize(
    "error", [lambda: OSError(errno.EIO, "Input/output error"), Killed], ids=["error", "killed"]
)
def test_after_a_failure_of_any_operation_the_old_or_the_new_one_loads(
    tmp_path: Path, error: Callable[[], BaseException], for_good: bool
) -> None:
    number, finished = 0, False
    while not finished:
        number += 1
        root = tmp_path / str(number)
        put(root, 1, 2)
        with pytest.MonkeyPatch.context() as patch:
            watcher = Failing(patch, number, for_good, error)
            try:
                save(root, 3, tensors(3), state(3))
                saved = True
            except (CheckpointError, Killed):
                saved = False
            finished = watcher.count < number
        found = load_latest(root)
        assert found is not None
        assert whole(found, found.step)
        # A save that returned is a promise; one that failed may still have got as far as
        # publishing.
        assert found.step == 3 or (not saved and found.step == 2)
        assert not found.quarantined
        assert load_step(root, 2) is not None
        assert not list(root.glob("*.tmp-*"))
    assert number > 10


def test_the_very_first_save_may_fail_and_leaves_nothing(tmp_path: Path) -> None:
    for number in range(1, 12):
        with pytest.MonkeyPatch.context() as patch:
            Failing(patch, number, True, lambda: OSError(errno.EIO, "Input/output error"))
            with pytest.raises(CheckpointError) as caught:
                put(tmp_path / str(number), 1)
        assert [p.code for p in caught.value.problems] == ["E-CKPT-02"]
        assert load_latest(tmp_path / str(number)) is None


# A full disk.


def test_a_full_disk_is_known_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=60000))
    with pytest.raises(CheckpointError) as caught:
        put(tmp_path, 2)
    (found,) = caught.value.problems
    assert found.code == "E-CKPT-01"
    assert "KiB" in str(found.fields["needed"])
    assert found.fields["last"].endswith("step-000001")
    assert whole(load_latest(tmp_path), 1)


@pytest.mark.skipif(os.name == "nt", reason="limits of a process")
def test_a_disk_that_fills_up_inside_of_safetensors_is_a_full_disk(tmp_path: Path) -> None:
    """safetensors' errors are no OSErrors; the limit of a file's size stands in for the disk."""
    import resource

    put(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, hard))
    try:
        with pytest.raises(CheckpointError) as caught:
            save(tmp_path, 2, {"model": {"w": torch.zeros(100000)}}, state(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.code for p in caught.value.problems] == ["E-CKPT-01"]
    assert whole(load_latest(tmp_path), 1)
    assert not list(tmp_path.glob("*.tmp-*"))


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "E-CKPT-01"), (errno.EDQUOT, "E-CKPT-01"), (errno.EACCES, "E-CKPT-02")],
)
def test_the_code_says_whether_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    put(tmp_path, 1)

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError) as caught:
        put(tmp_path, 2)
    assert [p.code for p in caught.value.problems] == [code]
    monkeypatch.undo()
    assert whole(load_latest(tmp_path), 1)


# Windows, by simulation: a directory cannot be opened, and a virus scanner holds files for a
# moment.


class WindowsError32(OSError):
    def __init__(self, code: int):
        super().__init__(errno.EACCES, f"winerror {code}")
        self.winerror = code


@pytest.mark.parametrize(
    ("code", "times", "works"),
    [(5, 1, True), (32, 3, True), (33, 6, True), (32, 7, False), (1224, 1, False), (183, 1, False)],
)
def test_a_rename_is_tried_again_only_while_another_program_holds_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, times: int, works: bool
) -> None:
    put(tmp_path, 1)
    slept: list[float] = []
    monkeypatch.setattr(files.time, "sleep", slept.append)
    real, left = os.rename, [times]

    def busy(source: Any, target: Any) -> None:
        if ".tmp-" in str(source) and left[0]:
            left[0] -= 1
            raise WindowsError32(code)
        real(source, target)

    monkeypatch.setattr(os, "rename", busy)
    if works:
        put(tmp_path, 2)
        assert slept == [0.05 * 2**i for i in range(times)]
    else:
        with pytest.raises(CheckpointError):
            put(tmp_path, 2)
        assert len(slept) == (times - 1 if code == 32 else 0)
    assert whole(load_latest(tmp_path), 2 if works else 1)


def test_a_directory_is_never_opened_on_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(files.os, "open", lambda path, *a: opened.append(str(path)))
    monkeypatch.setattr(files, "os", type("Windows", (), {**vars(os), "name": "nt"}))
    files.fsync_directory(tmp_path)
    assert opened == []
