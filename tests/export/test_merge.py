"""A merged folder is the run, for everybody who loads it; and where it is not, it does not exist."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from helpers.story import model_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunewright.core.errors import ModelError, TunewrightError, UsageError
from tunewright.core.telling import Quiet
from tunewright.export import merge, proof

IDS = torch.tensor([[5, 17, 200, 9, 33, 120, 64, 7, 250, 11, 300, 2]])


def code_of(error: pytest.ExceptionInfo[TunewrightError]) -> str:
    return error.value.problems[0].code


def adapter_logits(base: Path, run: Path) -> torch.Tensor:
    """The oracle: PEFT's adapter on the base as PEFT and Transformers load them, nothing of ours."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(run / "adapter")
    ).eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits[0]


def plain_logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=IDS).logits[0].float()


@pytest.fixture(scope="session")
def merged(tmp_path_factory, run):
    out = tmp_path_factory.mktemp("out") / "deep" / "merged"
    return out, merge.merge_run(run, out, dtype="float32", tell=Quiet())


def test_the_folder_equals_the_adapter_in_plain_transformers(merged, base, run):
    out, verdict = merged
    expected = adapter_logits(base, run)
    assert (plain_logits(out) - expected).abs().max() <= 1e-4 * expected.abs().max()
    # The adapter matters here: the base is far away.
    assert (plain_logits(base) - expected).abs().max() > 1e-2 * expected.abs().max()
    assert (
        verdict["verdict"] == "equal"
        and verdict["largest_logit_difference"] <= 1e-5 < verdict["adapter_moves_logits"]
    )
    assert verdict["prompts_from"] == "data" and verdict["positions"] > 100


def test_the_verdict_lies_in_the_folder_with_its_evidence(merged, run):
    from tunewright.core.files import sha256_of

    out, verdict = merged
    stored = json.loads((out / "merge.json").read_text(encoding="utf-8"))
    assert stored == {k: v for k, v in verdict.items() if k != "folder"}
    assert stored["adapter_sha256"] == sha256_of(run / "adapter" / "adapter_model.safetensors")
    assert {"torch", "transformers", "peft", "tunewright"} <= set(stored["versions"])
    assert 0 < stored["tensors_changed"] < stored["tensors"] and stored["top1_agreement"] == 1
    assert all(merge.lines(verdict))


def test_it_loads_without_warnings_and_holds_what_a_model_needs(merged, base, caplog):
    out, _ = merged
    transformers_log = logging.getLogger("transformers")
    propagate, transformers_log.propagate = transformers_log.propagate, True
    try:
        with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
            warnings.simplefilter("error")
            model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    finally:
        transformers_log.propagate = propagate
    assert not caplog.records
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert (
        model.config.tie_word_embeddings
        and model.get_input_embeddings().weight is model.get_output_embeddings().weight
    )
    tokenizer, own = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(base)
    assert tokenizer.chat_template == own.chat_template and tokenizer.get_vocab() == own.get_vocab()
    # Generation stops where the template ends an answer, not only where the base stopped.
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id
    assert not [p for p in out.rglob("*") if p.suffix in (".bin", ".py") or "adapter" in p.name]


def test_tunewright_opens_the_merged_folder_with_the_same_rendering(merged, run):
    from tunewright.core.types import Message
    from tunewright.engine.opening import open_target

    question = [Message("user", "what is it")]
    ours, theirs = (
        open_target(str(place), Quiet(), dtype="float32", device="cpu", threads=1)
        for place in (merged[0], run)
    )
    assert ours.renderer.prompt(question) == theirs.renderer.prompt(question)
    assert ours.renderer.stop_ids == theirs.renderer.stop_ids


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_agrees_and_says_how_far(tmp_path, run, dtype):
    verdict = merge.merge_run(run, tmp_path / "m", dtype=dtype, tell=Quiet())
    assert (
        0.95 <= verdict["top1_agreement"] <= 1 and 1e-5 < verdict["largest_logit_difference"] < 0.1
    )
    assert bool(verdict["warnings"]) == (verdict["top1_agreement"] < 0.99)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert str(model.dtype) == f"torch.{dtype}" and merge.lines(verdict)


def test_without_dtype_the_base_decides_and_qwen2_is_untied_as_it_was(tmp_path, make_run):
    base = model_folder(
        tmp_path / "qwen",
        "qwen2",
        initializer_range=0.1,
        tie_word_embeddings=False,
        attention_dropout=0.1,
    )
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    verdict = merge.merge_run(make_run(base), tmp_path / "m", tell=Quiet())
    assert verdict["dtype"] == "bfloat16" and verdict["prompts_from"] == "built-in"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight
    # Dropouts are 0 while we train; what the base's author wrote is passed on.
    assert model.config.attention_dropout == 0.1


def test_a_bare_adapter_folder_is_merged_too(tmp_path, run):
    verdict = merge.merge_run(run / "adapter", tmp_path / "m", dtype="float32", tell=Quiet())
    assert verdict["run"] == "" and verdict["prompts_from"] == "built-in"


def test_the_questions_of_the_run_serve_where_its_data_is_gone(tmp_path, base, make_run):
    run = make_run(base)
    row = {"question": "what is it", "after": "the answer is 3", "before": "", "kind": "probe"}
    (run / "before_after.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert (
        merge.merge_run(run, tmp_path / "m", dtype="float32", tell=Quiet())["prompts_from"]
        == "questions"
    )


# ---- refusals: nothing is left, ever


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_untrained_adapter_is_refused(tmp_path, base, make_run):
    run = make_run(base, spread=0)
    with pytest.raises(merge.ExportError) as error:
        merge.merge_run(run, tmp_path / "m", tell=Quiet())
    assert code_of(error) == "E-EXPORT-06" and left_in(tmp_path) == ["run"]


def test_a_change_that_rounding_swallows_is_said_or_refused(tmp_path, base, make_run, monkeypatch):
    run = make_run(base, spread=1e-5)
    verdict = merge.merge_run(run, tmp_path / "m", dtype="bfloat16", tell=Quiet())
    assert (
        verdict["warnings"]
        and verdict["largest_logit_difference"] > verdict["adapter_moves_logits"]
    )
    own = proof.changed_tensors
    monkeypatch.setattr(
        proof, "changed_tensors", lambda base, merged, dtype: own(base, base, "float32")
    )
    with pytest.raises(merge.ExportError) as error:
        merge.merge_run(run, tmp_path / "n", dtype="bfloat16", tell=Quiet())
    assert (
        code_of(error) == "E-EXPORT-06"
        and "bfloat16" in str(error.value)
        and left_in(tmp_path) == ["m", "run"]
    )


def test_what_is_there_already_is_never_touched(tmp_path, run):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("full", "file"):
        with pytest.raises(UsageError) as error:
            merge.merge_run(run, tmp_path / name, tell=Quiet())
        assert code_of(error) == "E-EXPORT-01"
    assert left_in(tmp_path / "full") == ["mine.txt"] and left_in(tmp_path) == ["file", "full"]
    (tmp_path / "empty").mkdir()
    assert (
        merge.merge_run(run, tmp_path / "empty", dtype="float32", tell=Quiet())["verdict"]
        == "equal"
    )


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("unfinished", "E-RUN-05"),
        ("model", "E-EXPORT-02"),
        ("nothing", "E-MODEL-01"),
        ("dtype", "E-EXPORT-03"),
    ],
)
def test_what_cannot_be_merged_is_said_before_anything_is_written(tmp_path, run, base, kind, code):
    place, dtype = tmp_path / "given", "int8" if kind == "dtype" else None
    if kind == "unfinished":
        place.mkdir()
        shutil.copy(run / "run.yaml", place)
    elif kind != "nothing":
        shutil.copytree(base if kind == "model" else run, place)
    before = left_in(tmp_path)
    with pytest.raises((UsageError, ModelError)) as error:
        merge.merge_run(place, tmp_path / "m", dtype=dtype, tell=Quiet())
    assert code_of(error) == code and left_in(tmp_path) == before


def test_a_pickled_adapter_is_not_opened(tmp_path, run):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/adapter/adapter_model.safetensors").rename(
        tmp_path / "run/adapter/adapter_model.bin"
    )
    with pytest.raises(ModelError) as error:
        merge.merge_run(tmp_path / "run", tmp_path / "m", tell=Quiet())
    assert code_of(error) == "E-MODEL-10" and left_in(tmp_path) == ["run"]


def test_an_adapter_on_a_tied_head_is_refused(tmp_path, base, make_run):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of just this
        run = make_run(base, targets=["lm_head"])
        with pytest.raises(merge.ExportError) as error:
            merge.merge_run(run, tmp_path / "m", tell=Quiet())
    assert code_of(error) == "E-EXPORT-09" and left_in(tmp_path) == ["run"]


@pytest.mark.parametrize(("room", "code"), [("disk", "E-EXPORT-04"), ("memory", "E-EXPORT-10")])
def test_too_little_room_is_said_with_the_bytes_needed(tmp_path, run, monkeypatch, room, code):
    if room == "disk":
        monkeypatch.setattr(
            merge.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 10, 1000)
        )
    else:
        monkeypatch.setattr(merge.machine, "total_memory", lambda: 1000)
    with pytest.raises(UsageError) as error:
        merge.merge_run(run, tmp_path / "a" / "m", tell=Quiet())
    assert code_of(error) == code and "iB" in str(error.value) and left_in(tmp_path) == []


def _fail_save(monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError
    from transformers import PreTrainedModel

    def save(self: object, folder: str, **kwargs: object) -> None:
        Path(folder, "model.safetensors").write_bytes(b"half of it")
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)


def _fail_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "LARGEST_GAP", 1e-12)


def _wrong_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files hold something else than the run: a third of one matrix is lost on the way."""
    own = merge.load_plain

    def load(folder: Path, dtype: str) -> object:
        model = own(folder, dtype)
        model.model.layers[0].mlp.down_proj.weight.data[:20] = 0
        return model

    monkeypatch.setattr(merge, "load_plain", load)


def _overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    own = merge.load_plain

    def load(folder: Path, dtype: str) -> object:
        model = own(folder, dtype)
        model.model.layers[0].mlp.down_proj.weight.data[0, 0] = float("inf")
        return model

    monkeypatch.setattr(merge, "load_plain", load)


def _fail_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(*names: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.rename", rename)


def _stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM while the folder is being proven."""
    import os
    import signal

    monkeypatch.setattr(merge, "load_plain", lambda *a: os.kill(os.getpid(), signal.SIGTERM))


@pytest.mark.parametrize(
    ("trouble", "code"),
    [(_fail_save, "E-EXPORT-05"), (_fail_compare, "E-EXPORT-07"), (_wrong_weights, "E-EXPORT-07"), (_overflow, "E-EXPORT-08"), (_fail_rename, "E-EXPORT-05"), (_stop, "E-RUN-06")],
)  # fmt: skip
def test_after_any_failure_nothing_is_left(tmp_path, run, monkeypatch, trouble, code):
    trouble(monkeypatch)
    with pytest.raises(TunewrightError) as error:
        merge.merge_run(run, tmp_path / "deep" / "m", dtype="float32", tell=Quiet())
    assert code_of(error) == code and left_in(tmp_path) == []


def test_a_killed_merge_leaves_a_hidden_folder_that_a_later_one_removes(tmp_path, run):
    import os

    left = tmp_path / ".m.merging-1-aa"
    left.mkdir()
    os.utime(left, (0, 0))
    merge.merge_run(run, tmp_path / "m", dtype="float32", tell=Quiet())
    assert left_in(tmp_path) == ["m"]


def test_sampling_settings_that_greedy_decoding_ignores_are_dropped(tmp_path, base):
    from tunewright.engine.naming import renderer_of

    (tmp_path / "generation_config.json").write_text(
        json.dumps({"temperature": 0.7, "eos_token_id": [9, 2], "max_length": 99})
    )
    renderer = renderer_of(AutoTokenizer.from_pretrained(base), tmp_path)
    found = merge.generation_settings(tmp_path, renderer)
    assert (
        found == {"eos_token_id": [2, 9], "max_length": 99, "pad_token_id": 0}
        and "temperature" not in found
    )
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"temperature": 0.7, "do_sample": True})
    )
    assert merge.generation_settings(tmp_path, renderer)["temperature"] == 0.7


# ---- methods that PEFT does not know, and whole models


def own_run(
    place: Path,
    base: Path,
    kind: str,
    *,
    dtype: str = "float32",
    move: float = 0.02,
    **settings: object,
) -> Path:
    """A run folder as `train` leaves it after a method that trains weights of the base, moved by
    noise."""
    from helpers import tiny

    from tunewright.core.registry import methods
    from tunewright.models import anatomy
    from tunewright.models.load import load_model

    model = load_model(base, dtype=dtype)
    entry = methods.get(kind)
    assert entry is not None
    attached = entry.function(entry.config(**settings), model, anatomy.of(model), str(base))
    tiny.randomise(attached, 1, move)
    folder = place / ("model" if attached.saves_model else "adapter")
    attached.save(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(str(folder))
    (place / "run.yaml").write_text(
        f"model: {base}\ndata:\n  train: gone.json\nengine:\n  dtype: {dtype}\nmethod:\n  kind: {kind}\n",
        encoding="utf-8",
    )
    return place


def own_logits(base: Path, run: Path) -> torch.Tensor:
    """The oracle: the saved tensors written into the base by hand, or the whole model in plain
    Transformers."""
    from safetensors.torch import load_file

    if (run / "model").is_dir():
        return plain_logits(run / "model")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    missing = model.load_state_dict(load_file(run / "adapter/method.safetensors"), strict=False)
    assert not missing.unexpected_keys
    with torch.no_grad():
        return model(input_ids=IDS).logits[0]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("full", {}),
        ("galore", {"rank": 4}),
        ("freeze", {"blocks": 1}),
        ("norms", {}),
        ("embeddings", {}),
    ],
)
def test_a_method_that_peft_does_not_know_is_merged_and_proven_too(tmp_path, base, kind, settings):
    run = own_run(tmp_path / "run", base, kind, **settings)
    verdict = merge.merge_run(run, tmp_path / "m", dtype="float32", tell=Quiet())
    expected = own_logits(base, run)
    assert (plain_logits(tmp_path / "m") - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (plain_logits(base) - expected).abs().max() > 1e-3 * expected.abs().max()
    assert (
        verdict["verdict"] == "equal"
        and 0 < verdict["tensors_changed"] <= verdict["tensors"]
        and verdict["run"] == str(run)
    )
    assert (verdict["tensors_changed"] == verdict["tensors"]) == (kind in ("full", "galore"))
    assert verdict["base_folder"] == str(base) and len(verdict["adapter_sha256"]) == 64
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_a_whole_model_of_a_half_precision_run_is_written_in_any_type(tmp_path, base):
    run = own_run(tmp_path / "run", base, "full", dtype="bfloat16")
    exact = merge.merge_run(run, tmp_path / "a", dtype="float32", tell=Quiet())
    assert exact["largest_logit_difference"] <= 1e-6
    half = merge.merge_run(run, tmp_path / "b", dtype="bfloat16", tell=Quiet())
    assert half["weight_bytes"] < 0.6 * exact["weight_bytes"]
    stored = AutoModelForCausalLM.from_pretrained(run / "model").state_dict()
    assert all(
        torch.equal(stored[name], value)
        for name, value in AutoModelForCausalLM.from_pretrained(tmp_path / "b").state_dict().items()
    )


def test_a_bare_folder_of_such_a_method_is_merged_and_its_base_found(tmp_path, base):
    run = own_run(tmp_path / "run", base, "freeze", blocks=1)
    verdict = merge.merge_run(run / "adapter", tmp_path / "m", dtype="float32", tell=Quiet())
    assert verdict["run"] == "" and verdict["base_folder"] == str(base)


@pytest.mark.parametrize(("kind", "settings"), [("full", {}), ("freeze", {"blocks": 1})])
def test_an_untrained_run_of_such_a_method_is_refused(tmp_path, base, kind, settings):
    run = own_run(tmp_path / "run", base, kind, move=0.0, **settings)
    with pytest.raises(merge.ExportError) as error:
        merge.merge_run(run, tmp_path / "m", dtype="float32", tell=Quiet())
    assert code_of(error) == "E-EXPORT-06" and left_in(tmp_path) == ["run"]


def test_what_cannot_be_folded_is_refused_with_the_methods_reason(tmp_path, base):
    run = own_run(tmp_path / "run", base, "adapter")
    with pytest.raises(merge.ExportError) as error:
        merge.merge_run(run, tmp_path / "m", tell=Quiet())
    assert (
        code_of(error) == "E-METHOD-10"
        and "non-linear" in str(error.value)
        and left_in(tmp_path) == ["run"]
    )


@pytest.mark.parametrize(("kind", "settings"), [("full", {}), ("freeze", {"blocks": 1})])
def test_such_a_run_opens_for_chat_and_evaluation_with_and_without_its_training(
    tmp_path, base, kind, settings
):
    from tunewright.core.types import Message
    from tunewright.engine.opening import open_target

    run = own_run(tmp_path / "run", base, kind, **settings)
    opened = open_target(str(run), Quiet(), device="cpu", threads=1)
    assert opened.renderer.prompt([Message("user", "what is it")])
    with torch.no_grad():
        tuned = opened.model(input_ids=IDS).logits[0]
        assert torch.equal(tuned, own_logits(base, run))
        if kind == "freeze":
            with opened.untouched():
                assert torch.equal(opened.model(input_ids=IDS).logits[0], plain_logits(base))
        untrained = open_target(str(run), Quiet(), base=True, device="cpu", threads=1)
        assert torch.equal(untrained.model(input_ids=IDS).logits[0], plain_logits(base))
