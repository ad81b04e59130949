"""A run on a hub: exactly what is listed, once, with a card whose figures are the run's."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import story, stub_modelscope
from helpers.stub_hub import Hub
from helpers.stub_modelscope import ModelScope

import tunewright
from tunewright.commands import pushing
from tunewright.core.errors import ModelError, TunewrightError, UsageError
from tunewright.core.telling import Quiet


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    story.model_folder(place / "model")
    story.rows_file(place / "rows.json", 16)
    return tunewright.train(
        model=str(place / "model"),
        data={"train": str(place / "rows.json"), "held_out": 4},
        engine={"steps": 2, "batch_size": 4, "dtype": "float32", "threads": 1},
        out=str(place / "run"),
        probes=2,
        tell=Quiet(),
    ).folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    found = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", found.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)  # it does not speak Xet
    monkeypatch.setenv("HF_TOKEN", "hf_stub")
    monkeypatch.setattr(pushing, "WAIT_SECONDS", 0.01)
    yield found
    found.close()


def push(run: Path, name: str = "me/tuned", **more: Any) -> dict[str, Any]:
    return pushing.push(run, name, tell=Quiet(), base="owner/base", **more)


def test_the_hub_gets_exactly_the_listed_files_once(run: Path, hub: Hub) -> None:
    listed = push(run, dry_run=True)
    assert not hub.asked and listed["sent"] is False
    sent = push(run)
    assert sent["files"] == listed["files"] and sent["card"] == listed["card"]
    repo = hub.repos["me/tuned"]
    assert repo["private"] is True and repo["commits"] == 1
    sums = {path: hashlib.sha256(data).hexdigest() for path, data in repo["files"].items()}
    assert sums == {one["path"]: one["sha256"] for one in listed["files"]}
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= set(sums)
    assert set(hub.uploads.values()) == {1}
    push(run)
    assert set(hub.uploads.values()) == {1} and repo["commits"] == 1


def test_only_an_adapter_needs_a_base_that_has_a_name(run: Path, tmp_path: Path) -> None:
    from tunewright.export import merge

    said: list[str] = []

    class Heard(Quiet):
        def line(self, text: str) -> None:
            said.append(text)

    pushing.push(run, "me/tuned", dry_run=True, tell=Heard())
    assert [line for line in said if "--base OWNER/MODEL" in line]
    merge.merge_run(run, tmp_path / "merged", tell=Quiet())
    said.clear()
    pushing.push(tmp_path / "merged", "me/tuned", dry_run=True, tell=Heard())
    assert said == ["not sent: merge.json"]


def test_nothing_of_the_data_or_of_this_machine_is_sent(run: Path, hub: Hub) -> None:
    push(run)
    files = hub.repos["me/tuned"]["files"]
    text = b"\n".join(data for path, data in files.items() if not path.endswith("tensors"))
    assert str(run.parent).encode() not in text and b"of 2026" not in text
    config = json.loads(files["adapter_config.json"])
    assert config["base_model_name_or_path"] == "owner/base"


def test_the_card_says_what_it_is_with_the_figures_of_the_run(run: Path) -> None:
    card = push(run, dry_run=True)["card"]
    _, head, body = card.split("---\n", 2)
    about = yaml.safe_load(head)
    assert about["base_model"] == "owner/base" and about["base_model_relation"] == "adapter"
    assert about["library_name"] == "peft" and about["license"]
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    rows = re.findall(r"^\| (.+?) \| (.*?) \| (.*?) \|$", body, re.M)
    found = {name: (before, after) for name, before, after in rows}
    assert found["loss on held-out rows (nats per token)"] == (
        repr(summary["held_out_loss_before"]),
        repr(summary["held_out_loss"]),
    )
    assert found["training loss, first and last"] == (
        repr(summary["first_loss"]),
        repr(summary["final_loss"]),
    )
    for score in summary["evaluation"]["scores"]:
        (before, after) = found[f"{score['metric']} on {score['kind']} questions"]
        for told, side in ((before, "before"), (after, "after")):
            low, high = score[side]["interval_95"]
            assert told == f"{score[side]['value']!r} [{low!r}, {high!r}]"
    for words in ('PeftModel.from_pretrained(base, "me/tuned")', "rows held out: 4", "owner/base"):
        assert words in body
    assert not re.search(r"\{\w+\}|card\.", body)


def test_a_connection_that_breaks_is_taken_up_again(run: Path, hub: Hub) -> None:
    hub.broken = 2
    push(run)
    assert set(hub.uploads.values()) == {1} and hub.repos["me/tuned"]["commits"] == 1


def test_what_was_sent_before_a_push_failed_is_not_sent_again(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(hub, "_commit", lambda *words: 1 / 0)
        with pytest.raises(TunewrightError, match="E-PUSH-06"):
            push(run)
    assert hub.repos["me/tuned"]["files"] == {} and set(hub.uploads.values()) == {1}
    push(run)
    assert set(hub.uploads.values()) == {1} and hub.repos["me/tuned"]["commits"] == 1


def test_a_public_place_is_not_used_unasked(run: Path, hub: Hub) -> None:
    push(run, public=True)
    assert hub.repos["me/tuned"]["private"] is not True
    with pytest.raises(UsageError, match="E-PUSH-08"):
        push(run)
    push(run, public=True)


def test_a_folder_of_weights_with_a_card_can_be_published(
    run: Path, hub: Hub, tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "rows.jsonl").write_text("{}")
    with pytest.raises(UsageError, match="E-PUSH-05"):
        push(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    found = push(folder, "tuned")
    assert set(hub.repos["me/tuned"]["files"]) == {"README.md", "model.safetensors"}
    assert found["left_out"] == ["pytorch_model.bin", "rows.jsonl"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("me/x", "--to", "gitlab"), "E-PUSH-01"),
        (("a/b/c",), "E-PUSH-02"),
        (("me/../x",), "E-PUSH-02"),
        (("-x",), ""),
        (("me/x", "--base", "/work/model"), "E-PUSH-03"),
    ],
)
def test_wrong_pushes_are_refused(run: Path, hub: Hub, words: tuple[str, ...], code: str) -> None:
    told = story.tunewright("push", str(run), *words)
    assert told.returncode == 2 and code in told.stderr
    assert not hub.asked


def test_nothing_to_publish_and_nobody_logged_in_are_said(
    run: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(UsageError, match="E-PUSH-04"):
            push(folder)
    with pytest.raises(ModelError, match="E-MODEL-01.*missing: no such folder"):
        push(tmp_path / "missing")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UsageError, match="E-PUSH-07"):
        push(run)


def test_modelscope_without_its_client_names_the_extra(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"E-PUSH-09[\s\S]*tunewright\[hub\]"):
        push(run, to="modelscope")


@pytest.fixture(scope="module")
def modelscope_hub() -> Iterator[ModelScope]:
    # One for the module: the client keeps the first address that it reads.
    pytest.importorskip("modelscope.hub.api")
    found = ModelScope()
    yield found
    found.close()


@pytest.fixture
def modelscope(
    modelscope_hub: ModelScope, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> ModelScope:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", modelscope_hub.address)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-stub")
    for name in ("MODELSCOPE_HOME", "MODELSCOPE_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    modelscope_hub.repos.clear()
    modelscope_hub.objects.clear()
    modelscope_hub.uploads.clear()
    return modelscope_hub


@pytest.mark.peer
def test_modelscope_gets_the_same_files_once(run: Path, modelscope: ModelScope) -> None:
    modelscope.broken = 1
    found = push(run, to="modelscope")
    repo = modelscope.repos["me/tuned"]
    assert repo["visibility"] == stub_modelscope.PRIVATE and repo["commits"] == 1
    sums = {path: hashlib.sha256(data).hexdigest() for path, data in repo["files"].items()}
    assert sums == {one["path"]: one["sha256"] for one in found["files"]}
    assert set(modelscope.uploads.values()) == {1}
    assert found["address"] == f"{modelscope.address}/models/me/tuned"
    push(run, to="modelscope")
    assert set(modelscope.uploads.values()) == {1}


@pytest.mark.peer
def test_a_public_place_on_modelscope_is_not_used_unasked(
    run: Path, modelscope: ModelScope
) -> None:
    push(run, to="modelscope", public=True)
    assert modelscope.repos["me/tuned"]["visibility"] == stub_modelscope.PUBLIC
    with pytest.raises(UsageError, match="E-PUSH-08"):
        push(run, to="modelscope")
