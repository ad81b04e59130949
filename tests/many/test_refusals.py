"""What a run of several processes refuses, and the error that each refusal is."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tunewright.advise import devices
from tunewright.commands import planning
from tunewright.core import compat
from tunewright.core.callbacks import Callback
from tunewright.core.errors import CompatError, TunewrightError, UsageError
from tunewright.core.launched import Place
from tunewright.core.runfile import ParsedRun, parse_run
from tunewright.engine import ranks
from tunewright.engine.loaded import read_on
from tunewright.engine.placement import World
from tunewright.engine.rank_watch import Verdict, Watch
from tunewright.run import joining, launching


def run(**keys: Any) -> ParsedRun:
    given = {"model": "m", "data.train": "rows.json"}
    return parse_run(given | {key.replace("__", "."): value for key, value in keys.items()}, {})


def refused(parsed: ParsedRun) -> list[tuple[str, str]]:
    return [(p.code, p.where) for p in compat.problems(parsed.config)]


@pytest.fixture
def by_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", 0), ("WORLD_SIZE", 2), ("MASTER_PORT", 1)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")


@pytest.mark.parametrize(
    ("key", "value"),
    [("parallel", "fsdp"), ("hybrid", True), ("rank_timeout", 5), ("max_restarts", 2)],
)
def test_keys_of_several_processes_are_refused_for_one(key: str, value: Any) -> None:
    assert refused(run(**{f"engine__{key}": value})) == [("E-COMPAT-12", f"engine.{key}")]


def test_the_same_keys_are_taken_where_a_launcher_started_the_processes(by_torchrun: None) -> None:
    assert refused(run(engine__parallel="fsdp", engine__rank_timeout=5)) == []


def test_shares_need_fsdp() -> None:
    parsed = run(engine__processes=2, engine__offload_shares=True)
    assert refused(parsed) == [("E-COMPAT-12", "engine.offload_shares")]


@pytest.mark.parametrize(
    ("keys", "where"),
    [
        ({"engine__optimizer": "muon"}, "engine.optimizer"),
        ({"base__bits": 4}, "base.bits"),
        ({"method__kind": "mixture_of_depths"}, "method.kind"),
        ({"method__kind": "galore"}, "method.kind"),
        ({"method__kind": "adalora"}, "method.kind"),
    ],
)
def test_what_cannot_lie_in_shares_is_refused(keys: dict[str, Any], where: str) -> None:
    parsed = run(engine__processes=2, engine__parallel="fsdp", **keys)
    assert ("E-DIST-08", where) in refused(parsed)


@pytest.mark.parametrize(
    ("keys", "parallel"),
    [
        ({}, "fsdp"),
        ({"base__bits": 4}, "ddp"),
        ({"engine__optimizer": "lion"}, "ddp"),
        ({"method__kind": "galore"}, "ddp"),
        ({"method__kind": "adalora"}, "ddp"),
    ],
)
def test_auto_never_chooses_shares_that_are_refused(keys: dict[str, Any], parallel: str) -> None:
    """70 billion weights on eight devices of 40 GB, of which none holds all."""
    given = {"model": "any", "data.train": "made up"}
    given |= {key.replace("__", "."): value for key, value in keys.items()}
    shape, device = planning.shape_of_size("70B"), devices.named("A100 40GB")
    wish = planning.Wish(device=device, rows=100, tokens=256, shape=shape, devices=8)
    found = planning.plan(parse_run(given, {}), wish).figures
    assert found["parallel"] == parallel
    assert found["fits"] == (parallel == "fsdp")


def test_what_will_lie_in_shares_is_read_in_the_memory_of_the_machine() -> None:
    """No GPU holds it before."""
    worlds = [World("cuda:1", "bfloat16", 1, 64, processes=2, parallel=p) for p in ("ddp", "fsdp")]
    assert [read_on(world) for world in worlds] == ["cuda:1", "cpu"]


def test_a_method_that_sums_over_passes_runs_in_one_process() -> None:
    parsed = run(engine__processes=2, method__kind="mixture_of_depths")
    assert ("E-DIST-08", "method.kind") in refused(parsed)


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching.placement, "resolve_device", lambda wanted: ("cuda:0", ""))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(CompatError) as caught:
        launching.launch(run(engine__processes=2), 2)
    assert [p.code for p in caught.value.problems] == ["E-DIST-09"]


def test_callbacks_cannot_go_into_other_processes() -> None:
    with pytest.raises(CompatError) as caught:
        launching.launch(run(engine__processes=2), 2, on=[Callback()])
    assert [p.code for p in caught.value.problems] == ["E-DIST-10"]


def test_a_pipeline_is_not_started_by_every_process(by_torchrun: None) -> None:
    with pytest.raises(CompatError) as caught:
        joining.require_alone("pipeline.yaml")
    assert [p.code for p in caught.value.problems] == ["E-DIST-06"]


def test_a_rank_that_does_not_see_the_run_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    team = SimpleNamespace(
        is_many=True, host="b", gather=lambda told: [("a", True), told], watch=None, log=None
    )
    monkeypatch.setattr(ranks, "_current", team)
    with pytest.raises(UsageError) as caught:
        joining.require_folder(tmp_path)
    found = caught.value.problems[0]
    assert (found.code, found.fields["rank"], found.fields["host"]) == ("E-DIST-05", 1, "b")


def test_an_exchange_that_breaks_while_all_live_says_why() -> None:
    watch = Watch.__new__(Watch)
    watch.place = Place(0, 2, 0, 2, "127.0.0.1", 1, "torchrun")
    watch.timeout, watch.verdict, watch._broken_since = -2.9, None, 0.0
    watch._known = threading.Event()
    error = watch.lost(RuntimeError("no route to host"))
    assert [p.code for p in error.problems] == ["E-DIST-07"]
    assert "no route to host" in error.text()


@pytest.mark.parametrize(
    ("kind", "code"), [("gone", "E-DIST-01"), ("silent", "E-DIST-02"), ("error", "E-DIST-03")]
)
def test_a_verdict_survives_the_store_and_shows_the_end_of_the_log(
    tmp_path: Path, kind: str, code: str
) -> None:
    log = tmp_path / "rank-1.log"
    log.write_text("\n".join(f"line {i}" for i in range(40)), encoding="utf-8")
    said = UsageError.of("E-RUN-02", "/out").problems[0].as_dict()
    verdict = Verdict(1, "gpu7", kind, 21.0, "sum", 2, (said,), log=str(log))
    error: TunewrightError = Verdict.of(verdict.text()).error()
    assert [p.code for p in error.problems] == [code]
    assert "rank 1" in error.text() and "gpu7" in error.text()
    assert "line 39" in error.text() and "line 3\n" not in error.text()
    assert error.exit_code == (2 if kind == "error" else 1)
