"""Worker processes, this process and the cache give the same data set; what is damaged, stale or
killed is noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.families import tokenizer_of

from tunewright.core import machine
from tunewright.core.config import DataConfig
from tunewright.core.errors import DataError
from tunewright.data import describe, inspect
from tunewright.data.store import cache, preparing, workers
from tunewright.text.renderer import Renderer
from tunewright.text.tokenizer import Light


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def cached(monkeypatch):
    monkeypatch.setattr(cache, "SMALLEST_BYTES", 0)


@pytest.fixture
def many(write):
    rows = [
        {
            "instruction": f"what is {i % 300} and {i}?",
            "output": f"it is the number {i}, as everybody knows.",
        }
        for i in range(600)
    ]
    rows[5], rows[77], rows[400] = (
        {"instruction": "x"},
        3,
        {"instruction": "<|im_end|>", "output": "\uf8a0 odd <|im_start|> one"},
    )
    return write("many.jsonl", rows)


def look(file, renderer=None, **more):
    settings = {
        key: more.pop(key)
        for key in ("held_out", "max_tokens", "limit", "system", "oversize", "columns", "format")
        if key in more
    }
    return inspect(
        DataConfig(train=file, **settings),
        renderer or Renderer(tokenizer_of("chatml")),
        None,
        more.pop("seed", 0),
        **more,
    )


def content(data):
    report = {key: value for key, value in data.report.items() if key != "preparation"}
    return (
        list(data.train),
        list(data.held_out),
        list(data.train_rows),
        list(data.held_out_rows),
        json.dumps(report, sort_keys=True),
    )


def test_workers_and_this_process_give_the_same(many, monkeypatch):
    here = look(many)
    monkeypatch.setattr(workers, "BYTES_PER_WORKER", 1)
    there = look(many, workers=2)
    assert (
        here.report["preparation"]["workers"] == 0 and there.report["preparation"]["workers"] == 2
    )
    assert (
        content(here) == content(there)
        and here.report["rows_dropped"] == 2
        and here.report["notes"]["neutralised"] == 2
    )


SPELT = [
    "0.00001",
    "3.10",
    "true",
    "1E5",
    "10000000000000000.0",
    "3.14159265358979323846",
    "-0",
    "7",
    "2.50",
]


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv"])
def test_numbers_are_learnt_as_the_file_writes_them_here_and_in_workers(write, monkeypatch, ending):
    lines = [f'{{"question": "q{i}", "answer": {text}}}' for i, text in enumerate(SPELT * 60)]
    file = write(f"a.{ending}", "\n".join(lines) if ending == "jsonl" else f"[{','.join(lines)}]")
    if ending == "csv":
        file = write(
            "a.csv",
            "question,answer\n" + "\n".join(f"q{i},{text}" for i, text in enumerate(SPELT * 60)),
        )
    here = look(file, held_out=0)
    assert [row.answer() for row in here.train_rows] == SPELT * 60
    told = here.report["notes"].get("number_as_text", 0)
    assert told == (0 if ending == "csv" else len(lines))
    monkeypatch.setattr(workers, "BYTES_PER_WORKER", 1)
    here_again = preparing.Preparer.do

    def never(self, job):
        raise AssertionError("worked on by the parent")

    monkeypatch.setattr(preparing.Preparer, "do", never)
    there = look(file, held_out=0, workers=2)
    monkeypatch.setattr(preparing.Preparer, "do", here_again)
    assert content(here) == content(there)


def test_labels_contents_and_facts_keep_their_spelling_and_numbers_in_calls_are_told(write):
    rows = ['{"text": "a", "label": true}', '{"text": "b", "label": 2.50}']
    assert [row.answer() for row in look(write("l.jsonl", "\n".join(rows))).train_rows] == [
        "true",
        "2.50",
    ]
    turns = '[{"role": "user", "content": 1E5}, {"role": "assistant", "content": %s}]'
    assert [
        m.content
        for m in look(write("m.jsonl", '{"messages": ' + turns % "0.00001" + "}"))
        .train_rows[0]
        .messages
    ] == ["1E5", "0.00001"]
    (asked,) = look(
        write("p.jsonl", '{"prompt": "q", "ground_truth": 3.10, "answer": false}'), format="prompts"
    ).train_rows
    assert (
        str(asked.facts["ground_truth"]) == "3.10"
        and asked.facts["ground_truth"] == 3.1
        and asked.answer() == "false"
    )
    call = '{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 3.10, "y": 0.5}}}]}'
    data = look(
        write("c.jsonl", '{"messages": [{"role": "user", "content": "q"}, ' + call + "]}"),
        Renderer(tokenizer_of("hermes")),
    )
    assert (
        data.report["notes"]["numbers_respelt"] == 1
        and "3.10 becomes 3.1" in " ".join(data.report["warnings"])
        and data.report["score"] < 100
    )


ASKED = [{"role": "user", "content": "q"}]
KINDS = [
    {"messages": [*ASKED, {"role": "assistant", "content": "a"}]},
    {"prompt": ASKED, "chosen": "a", "rejected": "b"},
    {"prompt": "q", "completion": "a", "label": True},
    {"prompt": "q"},
    {"prompt": "q", "completions": ["a"], "labels": [True]},
]


@pytest.mark.parametrize(
    "row", KINDS, ids=["conversation", "preference", "judged", "prompt", "stepwise"]
)
@pytest.mark.parametrize("system", ["be brief", "", None])
def test_the_system_prompt_of_the_run_stands_before_every_kind_of_row(write, row, system):
    renderer = Renderer(tokenizer_of("chatml"))
    text = "You are helpful." if system is None else system
    for given, expected in (
        (row, text),
        (row | {"system": "own"}, "own"),
        (row | {"system": None}, text),
    ):
        data = look(write("a.jsonl", [given]), renderer, system=system)
        for branch in data.train[0].branches:
            assert renderer.decode(branch.tokens).startswith(
                f"<|im_start|>system\n{expected}<|im_end|>\n<|im_start|>user\nq<|im_end|>"
            )
        asks = data.train_rows[0].question()
        assert [m.content for m in asks if m.role == "system"] == (
            [] if system is None and expected == text else [expected]
        )


def test_running_text_has_no_system_prompt(write):
    assert (
        look(write("a.jsonl", [{"text": "only this"}]), system="be brief").train_rows[0].text
        == "only this"
    )


def test_what_stands_in_a_dropped_row_is_told_with_its_place(write):
    rows = [
        {"messages": [*ASKED, {"role": "bing", "content": "a"}]},
        {
            "messages": [
                *ASKED,
                {"role": "tool", "content": "r"},
                {"role": "assistant", "content": "a"},
            ]
        },
        {"messages": [*ASKED, {"role": "assistant", "content": "a"}]},
    ]
    file = write("a.jsonl", rows)
    shown = describe(look(file, refuse=False).report)
    assert f"{file}:1 'bing'" in shown and f"{file}:2 tool after user" in shown
    with pytest.raises(DataError, match=r"a.jsonl:1 'bing'"):
        look(write("b_a.jsonl", rows[:1]))


def test_tools_that_the_template_does_not_write_lower_the_score_for_every_kind_of_row(write):
    tool = {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
    }
    for row in KINDS:
        for family, count in (("chatml", 1), ("hermes", 0)):
            report = look(
                write("a.jsonl", [row | {"tools": [tool]}]), Renderer(tokenizer_of(family))
            ).report
            assert report["notes"].get("tools_unwritten", 0) == count
            assert any(one["key"] == "tools_unwritten" for one in report["findings"]) == bool(count)
            assert report["score"] < 100 or not count


def test_a_second_look_comes_from_the_cache_and_is_the_same(many, cached):
    first, again = look(many), look(many)
    assert (
        not first.report["preparation"]["from_cache"] and again.report["preparation"]["from_cache"]
    )
    assert content(first) == content(again)
    assert content(look(many, Renderer(Light.of(tokenizer_of("chatml"))))) == content(first)
    assert len(list(cache.data_cache().glob("[!.]*"))) == 1


@pytest.mark.wide("file", "template", "seed")
@pytest.mark.parametrize(
    "change", ["file", "template", "held_out", "seed", "max_tokens", "system", "stop ids", "tokens"]
)
def test_whatever_changes_the_result_makes_another_set(many, cached, change):
    look(many)
    more = {
        "held_out": {"held_out": 7},
        "seed": {"seed": 1},
        "max_tokens": {"max_tokens": 200},
        "system": {"system": "s"},
        "tokens": {"needs_tokens": False},
    }
    renderer = Renderer(
        tokenizer_of("chatml_eos_differs" if change == "template" else "chatml"),
        [0] if change == "stop ids" else [],
    )
    if change == "file":
        with open(many, "a") as handle:
            handle.write("\n" + json.dumps({"instruction": "new", "output": "row"}))
    changed = look(many, renderer, **more.get(change, {}))
    assert not changed.report["preparation"]["from_cache"]
    fresh = look(many, renderer, **more.get(change, {}))
    assert fresh.report["preparation"]["from_cache"] and content(fresh) == content(changed)


@pytest.mark.wide("changed", "cut")
@pytest.mark.parametrize("harm", ["cut", "changed", "marker", "file gone"])
def test_a_damaged_cache_is_built_again(many, cached, harm):
    first = content(look(many))
    (folder,) = cache.data_cache().glob("[!.]*")
    tokens = folder / "tokens.bin"
    data = bytearray(tokens.read_bytes())
    if harm == "cut":
        tokens.write_bytes(data[:-8])
    elif harm == "changed":
        data[100] ^= 1
        tokens.write_bytes(data)
    else:
        (folder / ("tunewright.json" if harm == "marker" else "text.bin")).unlink()
    again = look(many)
    assert not again.report["preparation"]["from_cache"] and content(again) == first
    assert look(many).report["preparation"]["from_cache"]


def test_what_fails_while_it_is_built_leaves_nothing(write, cached):
    with pytest.raises(DataError, match="E-DATA-03"):
        look(write("bad.jsonl", '{"instruction": "q", "output": "a"}\n{broken\n'))
    assert [p for p in cache.data_cache().iterdir() if p.is_dir()] == []


def test_old_sets_and_those_beyond_the_bound_are_removed_and_the_newest_stays(
    many, cached, monkeypatch
):
    look(many)
    (old,) = cache.data_cache().glob("[!.]*")
    os.utime(old / "tunewright.json", (1, time.time() - (cache.MOST_DAYS + 1) * 86400))
    look(many, seed=1)
    assert not old.exists()
    monkeypatch.setattr(cache, "MOST_BYTES", 1)
    look(many, seed=2)
    (left,) = cache.data_cache().glob("[!.]*")
    assert look(many, seed=2).report["preparation"]["from_cache"] and left.exists()


def test_a_worker_that_is_killed_is_an_error_with_its_code(many, monkeypatch):
    monkeypatch.setattr(workers, "BYTES_PER_WORKER", 1)
    start = workers._Process.start

    def start_and_kill(self):
        start(self)
        self.kill()

    monkeypatch.setattr(workers._Process, "start", start_and_kill)
    with pytest.raises(DataError, match="E-DATA-60.*-9"):
        look(many, workers=2)


def test_handles_that_a_dead_worker_left_are_the_same_error(many, monkeypatch):
    """The pool closes its handles while it starts another worker, whose start then fails."""
    monkeypatch.setattr(workers, "BYTES_PER_WORKER", 1)
    start = workers._Process.start

    def start_once(self):
        if workers.started:
            workers.started[0].join(30)
            raise ValueError("bad value(s) in fds_to_keep")
        start(self)
        self.kill()

    monkeypatch.setattr(workers._Process, "start", start_once)
    with pytest.raises(DataError, match="E-DATA-60.*-9"):
        look(many, workers=2)


def test_a_fault_in_a_worker_is_told_with_its_place(many, monkeypatch):
    recipe = preparing.Recipe()
    with (
        workers.Workers(recipe, None, 1) as staff,
        pytest.raises(RuntimeError, match="no_such_format"),
    ):
        list(staff.results([preparing.Job("f", "no_such_format", {}, 1.0, [({}, 1, 1)])]))


def test_values_that_are_no_json_reach_a_worker():
    import datetime

    row = {"instruction": "q", "output": "a", "when": datetime.date(2026, 1, 1)}
    with workers.Workers(preparing.Recipe(), None, 1) as staff:
        ((_, done),) = staff.results([preparing.Job("f", "alpaca", {}, 1.0, [(row, 1, 1)])])
    assert done.kept == 1


def test_a_script_without_a_main_guard_may_use_workers(many, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; from tunewright.core.config import DataConfig; from tunewright.data import inspect; from tunewright.data.store import workers; workers.BYTES_PER_WORKER = 1;"
        f"print(len(inspect(DataConfig(train={many!r}), None, None, 0, workers=2).train_rows), sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "538 []"


KILLED = """
import os
from tunewright.data.store import preparing, workers
staff = workers.Workers(preparing.Recipe(check=False), None, 2)
row = ({"instruction": "q", "output": "a"}, 1, 1)
list(staff.results(preparing.Job("f", "alpaca", {}, 1.0, [row]) for _ in range(8)))
print(*(worker.pid for worker in workers.started), flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals and process ids of POSIX")
def test_workers_end_with_a_parent_that_is_killed():
    done = subprocess.run(
        [sys.executable, "-c", KILLED], capture_output=True, text=True, check=False
    )
    left = {int(pid) for pid in done.stdout.split()}
    assert done.returncode == -9 and left
    ends = time.monotonic() + 30
    while left and time.monotonic() < ends:
        left = {pid for pid in left if _runs(pid)}
        time.sleep(0.05)
    assert not left


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_workers_are_as_many_as_told_or_as_the_processors_shared_by_the_ranks(monkeypatch):
    monkeypatch.setattr(machine, "available_processors", lambda: 8)
    assert machine.processors(3) == 3 and machine.processors("auto") == 8 == machine.processors()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert machine.processors() == 2
    assert workers.worker_count(1 << 30, 5) == 5 and workers.worker_count(5 << 20) == 0


def test_a_column_that_appears_late_is_found_and_one_that_never_does_is_named(write):
    rows = [{"instruction": f"q{i}", "output": "a"} for i in range(300)] + [
        {"q": "late", "output": "a"}
    ]
    # Rows that have our own name keep it.
    assert (
        look(
            write("late.jsonl", rows), columns={"instruction": "q"}, format="alpaca", refuse=False
        ).report["rows_kept"]
        == 301
    )
    with pytest.raises(DataError, match="E-DATA-11.*nowhere"):
        look(write("late.jsonl", rows), columns={"instruction": "nowhere"}, format="alpaca")


def test_without_refusing_the_whole_report_is_shown(write):
    report = look(write("a.json", [{"instruction": "x"}] * 3), refuse=False, format="alpaca").report
    assert (
        report["rows_kept"] == 0
        and report["reasons"]["no_answer"]["count"] == 3
        and report["score"] == 0
    )


def test_the_rendering_proof_stands_in_the_report(many):
    from tunewright.data import describe

    found = look(many)
    assert found.report["rendering"]["holds"] and "byte for byte" in describe(found.report)
    assert Path(many).exists()
