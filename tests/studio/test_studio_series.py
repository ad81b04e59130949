"""The curves are `events.jsonl`, point for point, however they are read."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.studio_world import client_of, step_event, workspace, write_run
from hypothesis import given
from hypothesis import strategies as st

from tunewright.studio import series
from tunewright.studio.series import Curves, thin


def by_hand(events: Path) -> dict[str, list[list[float]]]:
    """What the file says, read as plainly as can be; of a step that came again the last."""
    found: dict[str, dict[int, float]] = {}
    for line in events.read_text(encoding="utf-8").split("\n"):
        event = json.loads(line) if line.strip() else {}
        if event.get("event") == "step":
            rows = {n: event[n] for n in series.PLAIN if n in event}
            rows |= {f"terms.{n}": v for n, v in event.get("terms", {}).items()}
            rows |= event.get("figures", {})
        elif event.get("event") == "evaluation":
            rows = {"held_out_loss": event["held_out_loss"]}
            rows |= {f"held_out.{n}": v for n, v in event.get("figures", {}).items()}
        else:
            continue
        for name, value in rows.items():
            found.setdefault(name, {})[event["step"]] = value
    return {name: [[n, rows[n]] for n in sorted(rows)] for name, rows in found.items()}


def test_a_small_run_point_for_point(tmp_path: Path) -> None:
    events = write_run(tmp_path / "run", 200) / "events.jsonl"
    found = Curves().all(events)
    assert found["keys"] == by_hand(events)
    assert (found["last_offset"], found["thinned"]) == (events.stat().st_size, False)


def rich(n: int) -> dict[str, Any]:
    """A step of a run that learns from rewards."""
    figures = {"reward": n / 3, "kl": n / 7e5, "groups_without_difference": (n % 4) / 4}
    if n % 10 == 0:
        figures["late"] = n * 1.1
    return {**step_event(n), "figures": figures, "terms": {"policy": 0.1 / n, "kl": 1e-9 * n}}


def write(path: Path, events: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    return path


def large(path: Path, steps: int = 3000) -> Path:
    lines: list[dict[str, Any]] = [{"event": "started", "step": 0, "total_steps": steps}]
    for n in range(1, steps + 1):
        lines.append(rich(n))
        if n % 500 == 0:
            held = {"reward": n / 11}
            lines.append(
                {"event": "evaluation", "step": n, "held_out_loss": -n / 3, "figures": held}
            )
            lines.append(
                {"event": "answers", "step": n, "answers": [{"question": "q\u2028", "reward": 1}]}
            )
    return write(path, lines)


def test_a_large_run_read_by_columns_point_for_point(tmp_path: Path) -> None:
    events = large(tmp_path / "events.jsonl")
    assert events.stat().st_size > 64 * 1024  # else it is read line by line
    assert Curves().all(events)["keys"] == by_hand(events)
    for key in ("loss", "kl", "terms.kl", "held_out_loss", "held_out.reward", "late", "nothing"):
        assert Curves().one(events, key) == by_hand(events).get(key, []), key


def test_columns_and_lines_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = large(tmp_path / "events.jsonl")
    columns = Curves().all(events)
    keys = ["loss", "learning_rate", "gradient_norm", "seconds", "tokens_per_second"]
    keys += ["held_out_loss", "memory_bytes"]
    by_pattern = {key: Curves().one(events, key) for key in keys}
    assert all(by_pattern.values())
    monkeypatch.setattr(series, "_by_pattern", lambda data, key: None)
    assert {key: Curves().one(events, key) for key in keys} == by_pattern
    monkeypatch.setattr(series, "_by_arrow", lambda data, key: None)
    assert {key: Curves().one(events, key) for key in keys} == by_pattern
    assert Curves().all(events) == columns


def test_only_what_is_new_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events, curves = large(tmp_path / "events.jsonl"), Curves()
    first = curves.all(events)
    taken: list[int] = []
    whole = series._take
    monkeypatch.setattr(
        series, "_take", lambda data, kept, key: (taken.append(len(data)), whole(data, kept, key))
    )
    assert curves.all(events) == first
    line = json.dumps(rich(3001)) + "\n"
    with open(events, "a") as handle:
        handle.write(line + '{"event": "step", "st')  # the next line is half written
    assert curves.all(events)["keys"]["loss"][-1] == [3001, rich(3001)["loss"]]
    with open(events, "a") as handle:
        handle.write('ep": 3002, "loss": 0.5}\n')
    assert curves.all(events)["keys"]["loss"][-1] == [3002, 0.5]
    assert taken == [len(line), len('{"event": "step", "step": 3002, "loss": 0.5}\n')]


def test_what_took_long_is_kept_for_the_next_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, kept = large(tmp_path / "events.jsonl", 4000), tmp_path / "curves"
    monkeypatch.setattr(series, "KEPT_BYTES", 1000)
    first = Curves(kept).all(events), Curves(kept).one(events, "kl")
    assert len(list(kept.iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr(series, "_take", None)  # nothing is read again
        assert (Curves(kept).all(events), Curves(kept).one(events, "kl")) == first
    with open(events, "a") as handle:
        handle.write(json.dumps(rich(4001)) + "\n")
    assert Curves(kept).one(events, "kl") == Curves().one(events, "kl")
    assert Curves(kept).one(events, "kl")[-1] == [4001, rich(4001)["figures"]["kl"]]
    # Another file in the same place is told apart by what stands in it.
    events.write_text("".join(json.dumps(step_event(n)) + "\n" for n in range(1, 4500)))
    assert Curves(kept).all(events) == Curves().all(events)
    for path in kept.iterdir():
        path.write_bytes(b"PK\x03\x04 damaged")
    assert Curves(kept).all(events) == Curves().all(events)


def test_a_file_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    events, curves = write_run(tmp_path / "run", 50) / "events.jsonl", Curves()
    curves.all(events)
    write(events, [step_event(1)])
    assert curves.all(events)["keys"]["loss"] == [[1, step_event(1)["loss"]]]
    events.unlink()
    assert curves.all(events)["keys"] == {}


def test_steps_that_came_again_after_a_resume_count_once(tmp_path: Path) -> None:
    again = [{**step_event(n), "loss": 100.0 + n} for n in (3, 4, 5, 6)]
    events = write(tmp_path / "events.jsonl", [*(step_event(n) for n in range(1, 6)), *again])
    found = Curves().all(events)["keys"]["loss"]
    assert found == by_hand(events)["loss"]
    assert [step for step, _ in found] == [1, 2, 3, 4, 5, 6]
    assert found[2] == [3, 103.0]


def test_what_is_not_finite_is_a_gap(tmp_path: Path) -> None:
    lines = [step_event(n) for n in range(1, 2001)]
    for n, word in ((10, "NaN"), (1000, "Infinity"), (1999, "-Infinity")):
        lines[n - 1] = {**lines[n - 1], "loss": word}
    events = write(tmp_path / "events.jsonl", lines)
    found = dict(map(tuple, Curves().all(events)["keys"]["loss"]))  # type: ignore[arg-type]
    assert len(found) == 2000
    assert [n for n, value in found.items() if value is None] == [10, 1000, 1999]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe",
        b"[1, 2]",
        b'{"event": "step"}',
        b'{"event": "step", "step": "x", "loss": 1}',
        b'{"event": "step", "step": 1, "loss": {"a": 1}}',
        b'{"event": "step", "step": 1, "loss": true}',
        b'{"event": "step", "step": 1, "terms": 5, "figures": [1]}',
        b'{"event": 5, "step": 1, "loss": 1}',
        b"[" * 5000,
    ],
)
def test_a_strange_line_is_passed_over(tmp_path: Path, line: bytes) -> None:
    good = [step_event(n) for n in range(2, 500)]
    events = write(tmp_path / "events.jsonl", good)
    wanted = by_hand(events)["loss"]
    data = events.read_bytes()
    middle = data.index(b"\n", len(data) // 2) + 1
    events.write_bytes(data[:middle] + line + b"\n" + data[middle:])
    assert Curves().all(events)["keys"]["loss"] == wanted
    assert Curves().one(events, "loss") == wanted


@given(
    st.lists(st.floats(-1e9, 1e9, allow_subnormal=False), min_size=1, max_size=400),
    st.integers(2, 50),
)
def test_thinning_keeps_both_ends_and_every_extreme(values: list[float], points: int) -> None:
    steps = np.arange(len(values))
    shown = thin(steps, np.array(values), points)
    assert len(shown) <= max(len(values) if len(values) <= points else points + 2, 4)
    assert (shown[0], shown[-1]) == ([0, values[0]], [len(values) - 1, values[-1]])
    assert {min(values), max(values)} <= {value for _, value in shown}
    assert [step for step, _ in shown] == sorted({step for step, _ in shown})
    assert all(values[int(step)] == value for step, value in shown if step is not None)


def test_the_route_gives_the_same(tmp_path: Path) -> None:
    studio = workspace(tmp_path)
    events = write_run(tmp_path / "runs" / "one", 5000) / "events.jsonl"
    client = client_of(studio)
    run = client.get("/api/runs").json()[0]["id"]
    found = client.get(f"/api/runs/{run}/series").json()
    assert found["thinned"] is True
    assert found["total"] == 5000
    whole = by_hand(events)["loss"]
    thinned = found["keys"]["loss"]
    assert 2000 < len(thinned) <= 4002
    assert all(point in whole for point in thinned[::50])
    few = client.get(f"/api/compare-curves?ids={run}&key=loss&points=100").json()
    assert few["runs"][0]["name"] == "one"
    assert len(few["runs"][0]["points"]) <= 102
    assert client.get("/api/compare-curves?ids=0123456789abcdef&key=loss").status_code == 404
    assert math.isclose(min(v for _, v in thinned), min(v for _, v in whole))


@pytest.mark.slow
def test_two_hundred_runs_of_fifty_thousand_points(tmp_path: Path) -> None:
    studio = workspace(tmp_path)
    one = write_run(tmp_path / "runs" / "run-000", 50_000) / "events.jsonl"
    for n in range(1, 200):
        folder = write_run(tmp_path / "runs" / f"run-{n:03}", 1, began=str(1_790_000_000 + n))
        (folder / "events.jsonl").unlink()
        # Ten files of their own for the overlay; the others share one on the disk.
        if n < 10:
            (folder / "events.jsonl").write_bytes(one.read_bytes())
        else:
            (folder / "events.jsonl").hardlink_to(one)
    client = client_of(studio)
    told: dict[str, float] = {}

    def timed(name: str, address: str) -> Any:
        began = time.perf_counter()
        found = client.get(address)
        told[name] = round(time.perf_counter() - began, 3)
        return found.json()

    heads = timed("list, no index", "/api/runs")
    assert len(heads) == len(timed("list", "/api/runs")) == 200
    assert {head["steps"] for head in heads} == {50_000}
    chosen = ",".join(head["id"] for head in heads if int(head["name"][4:]) < 10)
    address = f"/api/compare-curves?ids={chosen}&key=loss&points=1000"
    for name in ("overlay, first time", "overlay, next server", "overlay"):
        if name == "overlay, next server":
            client = client_of(workspace(tmp_path))
            timed("list, next server", "/api/runs")
        found = timed(name, address)
        assert [len(run["points"]) >= 900 for run in found["runs"]] == [True] * 10
    print(told)
