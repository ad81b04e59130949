"""A GGUF file is the run: read back by gguf, run by llama.cpp and by Transformers, proven; and where
it is not, it does not exist."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import building, exported, story
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunewright.core.errors import TunewrightError, UsageError
from tunewright.core.telling import Quiet
from tunewright.export import gguf, gguf_adapter, gguf_file, gguf_words, llamacpp, ollama, tuned
from tunewright.export.folder import ExportError

RUNS = llamacpp.library() is not None
needs_llamacpp = pytest.mark.skipif(not RUNS, reason="xllamacpp is not installed")
IDS = [5, 17, 200, 9, 33, 120, 64, 7, 250, 11, 300, 2]
END = "<|stop|>"
"""A stop token whose text llama.cpp does not know."""


def code_of(error: pytest.ExceptionInfo[TunewrightError]) -> str:
    return error.value.problems[0].code


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def tuned_logits(run: Path, base: Path) -> torch.Tensor:
    """The oracle: PEFT's adapter on the base, nothing of ours."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(run / "adapter")
    )
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([IDS])).logits[0]


def run_in_llamacpp(path: Path, place: Path, adapter: Path | None = None) -> torch.Tensor:
    said = llamacpp.run(path, place, adapter=adapter, rows=[IDS])
    found = np.fromfile(place / "0.f32", dtype=np.float32).reshape(-1, said.rows)
    return torch.from_numpy(found)


def far(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = exported.tokenizer_of("smollm", building.CHATML.replace("<|im_end|>", END), END)
    place = tmp_path_factory.mktemp("base") / "private-name"
    return exported.folder_of(place, "llama", tokenizer, vocab_size=len(tokenizer) + 3)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    place = tmp_path_factory.mktemp("run")
    return exported.run_of(place, base, story.rows_file(place / "rows.json"))


@pytest.fixture
def without_llamacpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp, "library", lambda: None)


# ---- families


FAST = ("qwen2", "qwen3", "gemma3_text")


@pytest.mark.wide("qwen3", rest="slow")
@needs_llamacpp
@pytest.mark.parametrize(
    "family",
    [f if f in FAST else pytest.param(f, marks=pytest.mark.slow) for f in exported.FAMILIES],
)
def test_llama_cpp_computes_the_run_from_the_file(tmp_path, family):
    base = exported.folder_of(tmp_path / "base", family)
    run = exported.run_of(tmp_path / "run", base)
    record = gguf.export_gguf(run, tmp_path / "m.gguf", type="f32", tell=Quiet())
    expected = tuned_logits(run, base)
    found = run_in_llamacpp(tmp_path / "m.gguf", tmp_path / "o")
    assert far(found, expected) < 5e-3 < 1e-2 < far(run_of_base(base), expected)
    assert record["run_by"]["name"] == "llama.cpp" and record["top1_agreement"] >= 0.97


def run_of_base(base: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(base)(input_ids=torch.tensor([IDS])).logits[0]


@pytest.mark.parametrize(
    "family", ["qwen2", pytest.param("gemma3_text", marks=pytest.mark.thorough)]
)
def test_transformers_reads_the_file_and_says_that_it_did(tmp_path, family, without_llamacpp):
    # The loader takes Gemma's heads to be as wide as those of the published models.
    wide = {"head_dim": 256, "query_pre_attn_scalar": 256} if family == "gemma3_text" else {}
    base = exported.folder_of(tmp_path / "base", family, **wide)
    run = exported.run_of(tmp_path / "run", base)
    record = gguf.export_gguf(run, tmp_path / "m.gguf", type="q8_0", tell=Quiet())
    assert record["run_by"]["name"] == "transformers"
    assert record["against_rounded_weights"]["largest_logit_difference"] < 1e-3
    assert 0.8 < record["top1_agreement"] <= 1 and all(gguf.lines(record))


def test_a_family_that_nobody_here_can_run_is_not_written(tmp_path, without_llamacpp):
    base = exported.folder_of(tmp_path / "base", "smollm3")
    with pytest.raises(ExportError) as error:
        gguf.export_gguf(base, tmp_path / "m.gguf", tell=Quiet())
    assert code_of(error) == "E-EXPORT-39" and left_in(tmp_path) == ["base"]


# ---- words


@pytest.mark.wide("smollm", "qwen2", "gemma")
@needs_llamacpp
@pytest.mark.parametrize("kind", exported.TOKENIZERS)
def test_llama_cpp_cuts_500_mixed_texts_into_the_same_tokens(tmp_path, kind):
    tokenizer = exported.tokenizer_of(kind)
    family = "gemma3_text" if kind == "gemma" else "llama"
    base = exported.folder_of(tmp_path / "b", family, tokenizer, vocab_size=len(tokenizer) + 3)
    gguf.export_gguf(base, tmp_path / "m.gguf", type="f32", tell=Quiet())
    texts = exported.mixed_texts()
    said = llamacpp.run(tmp_path / "m.gguf", tmp_path / "o", texts=[(t, False) for t in texts])
    assert said.ids == [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    assert len({i for ids in said.ids for i in ids}) > 100


def test_a_tokenizer_that_llama_cpp_cannot_have_is_refused(tmp_path):
    from tokenizers import pre_tokenizers

    tokenizer = exported.tokenizer_of("gpt-2")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    base = exported.folder_of(tmp_path / "b", "llama", tokenizer, vocab_size=len(tokenizer))
    with pytest.raises(UsageError) as error:
        gguf.export_gguf(base, tmp_path / "m.gguf", tell=Quiet())
    assert code_of(error) == "E-EXPORT-24" and left_in(tmp_path) == ["b"]


@pytest.mark.parametrize("think", [None, False])
def test_the_template_in_the_file_asks_as_the_run_was_asked(think):
    from helpers import families

    from tunewright.core.types import Message
    from tunewright.engine.naming import renderer_of
    from tunewright.export.gguf_proof import prompt_text
    from tunewright.text.template import compiled
    from tunewright.text.thinking import Thinking

    asked = [Message("user", "Hi 你好"), Message("assistant", "Yes."), Message("user", "2+2?")]
    different = []
    for table in (families.FAMILIES, families.THINKING):
        for name in table:
            tokenizer = families.tokenizer_of(name, table)
            renderer = renderer_of(tokenizer, thinking=Thinking(asked=think))
            source = gguf_words._template(tokenizer, renderer)["chat_template"]
            found = compiled(source).render(
                messages=[{"role": m.role, "content": m.content} for m in asked],
                add_generation_prompt=True,
                **{"eos_token": renderer.end_text, **tokenizer.special_tokens_map},
            )
            if found != prompt_text(renderer, asked):
                different.append(name)
    assert not different


# ---- the file


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, run: Path) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("out") / "deep" / "model.gguf"
    return out, gguf.export_gguf(run, out, type="q8_0", tell=Quiet())


def test_the_proof_lies_beside_the_file_and_tells_what_was_compared(written):
    out, record = written
    assert left_in(out.parent) == ["model.gguf", "model.md", "model.proof.json"]
    stored = json.loads((out.parent / "model.proof.json").read_text(encoding="utf-8"))
    assert stored == {k: v for k, v in record.items() if k not in ("file", "proof", "card")}
    assert stored["prompts_from"] == "data" and stored["positions"] > 100
    assert 0 < stored["divergence_nats"] < stored["against_base"]["divergence_nats"]
    assert stored["loss"]["run"] > 0 and stored["answers"]["asked"] == 8
    assert stored["file_bytes"] == out.stat().st_size and len(stored["sha256"]) == 64


def test_nothing_in_file_or_proof_names_a_place_of_this_machine(written, run, base):
    out, _ = written
    head = out.read_bytes()[:200_000]
    for place in (str(base), str(run), base.name, str(Path.home())):
        assert place.encode() not in head
        for beside in ("model.proof.json", "model.md"):
            assert place not in (out.parent / beside).read_text(encoding="utf-8")


def test_a_model_card_lies_beside_the_file_in_the_form_that_hubs_read(written):
    import yaml

    out, record = written
    assert Path(record["card"]) == out.with_name("model.md")
    head, _, text = out.with_name("model.md").read_text(encoding="utf-8")[4:].partition("---\n")
    stated = yaml.safe_load(head)
    assert stated["library_name"] == "gguf" and {"gguf", "q8_0"} <= set(stated["tags"])
    assert "llama-cli -m model.gguf" in text and 'gguf_file="model.gguf"' in text
    assert f"{record['loss']['exported']:.4f}" in text


def test_a_card_of_somebody_is_kept_and_one_that_an_export_left_is_replaced(written, tmp_path):
    from tunewright.export.folder import card_of, record_of, require_free_file

    out = tmp_path / "m.gguf"
    card_of(out).write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError) as error:
        require_free_file(out, ".gguf")
    assert code_of(error) == "E-EXPORT-01" and "m.md" in str(error.value)
    for of in (card_of, record_of):
        shutil.copy(of(written[0]), of(out))
    require_free_file(out, ".gguf")
    card_of(out).write_text(card_of(out).read_text(encoding="utf-8") + "Better.", encoding="utf-8")
    with pytest.raises(UsageError):
        require_free_file(out, ".gguf")


def test_keys_say_what_readers_need(written, base):
    import gguf as library

    out, _ = written
    reader = library.GGUFReader(str(out))
    keys = {name: field.contents() for name, field in reader.fields.items()}
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert keys["tokenizer.ggml.eos_token_id"] == tokenizer.convert_tokens_to_ids(END)
    assert keys["tokenizer.chat_template"] == tokenizer.chat_template
    assert keys["tokenizer.ggml.pre"] == "smollm" and keys["tokenizer.ggml.add_bos_token"] is False
    assert keys["tokenizer.ggml.tokens"][-1].startswith("[PAD") and keys["general.type"] == "model"
    types = {t.name: t.tensor_type.name for t in reader.tensors}
    assert types["blk.0.attn_q.weight"] == "Q8_0" and types["blk.0.attn_norm.weight"] == "F32"
    assert "output.weight" not in types  # shared with the embedding: its absence says so


@pytest.mark.parametrize("type", ["f16", pytest.param("bf16", marks=pytest.mark.slow), "q4_0"])
def test_other_types_are_what_plain_rounding_gives(tmp_path, run, type):
    record = gguf.export_gguf(run, tmp_path / "m.gguf", type=type, tell=Quiet())
    assert record["against_rounded_weights"]["top1_agreement"] >= (0.85 if type == "q4_0" else 0.97)
    assert bool(record["warnings"]) or type != "q4_0"
    assert all(gguf.lines(record))


@needs_llamacpp
def test_k_types_are_written_by_llama_cpps_own_quantiser(tmp_path):
    tokenizer = exported.tokenizer_of("qwen2")
    base = exported.folder_of(
        tmp_path / "b", "qwen2", tokenizer, vocab_size=len(tokenizer), hidden_size=256
    )
    record = gguf.export_gguf(base, tmp_path / "m.gguf", type="q4_k_m", tell=Quiet())
    import gguf as library

    types = {
        t.name: t.tensor_type.name for t in library.GGUFReader(str(tmp_path / "m.gguf")).tensors
    }
    assert types["blk.0.attn_q.weight"] == "Q4_K" and types["token_embd.weight"] == "Q6_K"
    # 96 columns are no multiple of 256: said, and stored otherwise.
    assert types["blk.0.ffn_down.weight"] == "Q5_0" and "multiple of 256" in record["notes"][0]


def test_k_types_without_a_quantiser_are_refused(tmp_path, run, without_llamacpp):
    with pytest.raises(UsageError) as error:
        gguf.export_gguf(run, tmp_path / "m.gguf", type="q4_k_m", tell=Quiet())
    assert code_of(error) == "E-EXPORT-25" and left_in(tmp_path) == []


# ---- planted faults: the proof fails, with the right reason, and nothing is left


def _stop_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    own = gguf_words._special

    def special(*given: Any) -> Any:
        keys, lost = own(*given)
        return {
            k: v for k, v in keys.items() if not k.endswith(("eos_token_id", "eot_token_id"))
        }, lost

    monkeypatch.setattr(gguf_words, "_special", special)


def _template_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    own = gguf_words._template

    def template(*given: Any) -> Any:
        found = own(*given)
        return found | {"chat_template": found["chat_template"].replace("\n", " ", 1)}

    monkeypatch.setattr(gguf_words, "_template", template)


def _base_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunewright.models import load

    own = tuned.Tuned.ask

    def ask(self: tuned.Tuned, *given: Any, **named: Any) -> Any:
        asked, _ = own(self, *given, **named)
        return asked, lambda: load.load_model(self.base, dtype="float32")

    monkeypatch.setattr(tuned.Tuned, "ask", ask)


def _alpha_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The update is folded in without its scale of 2."""
    from peft.tuners.lora import Linear

    own = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, name: own(self, name) / 2)


def _not_permuted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "in_pairs", lambda numbers, heads: numbers)


def _tensor_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    own = gguf_file.weights_of
    monkeypatch.setattr(
        gguf_file, "weights_of", lambda m: ((n, t) for n, t in own(m) if "layers.1.mlp.up" not in n)
    )


def _other_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    own = gguf_words._byte_level
    monkeypatch.setattr(
        gguf_words, "_byte_level", lambda *given: {**own(*given), "ggml.pre": "llama-bpe"}
    )


def _rotary_base(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunewright.export import gguf_families

    own = gguf_families.metadata
    monkeypatch.setattr(
        gguf_families, "metadata", lambda *given: own(*given) | {"rope.freq_base": 3.0}
    )


FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str, str]] = {
    "stop": (_stop_dropped, "E-EXPORT-34", END),
    "template": (_template_changed, "E-EXPORT-33", "<|im_start|>user"),
    "base": (_base_exported, "E-EXPORT-36", "untuned base"),
    "alpha": (_alpha_forgotten, "E-EXPORT-07", "differs from the run"),
    "order": (_not_permuted, "E-EXPORT-30", "another order of rows"),
    "tensor": (_tensor_lost, "E-EXPORT-37", "blk.1.ffn_up"),
    "tokens": (_other_tokens, "E-EXPORT-32", "other tokens"),
    "rope": (_rotary_base, "E-EXPORT-35", "something else"),
}


@pytest.mark.wide("stop", "base", "order", "alpha", rest="slow")
@needs_llamacpp
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_named(tmp_path, run, monkeypatch, fault):
    plant, code, words = FAULTS[fault]
    plant(monkeypatch)
    with pytest.raises(ExportError) as error:
        gguf.export_gguf(run, tmp_path / "deep" / "m.gguf", type="q8_0", tell=Quiet())
    assert code_of(error) == code and words in str(error.value), str(error.value)
    assert left_in(tmp_path) == []


@pytest.mark.wide("base", rest="slow")
@pytest.mark.parametrize("fault", ["template", "base", "order"])
def test_transformers_finds_the_faults_too(tmp_path, run, monkeypatch, fault, without_llamacpp):
    plant, code, words = FAULTS[fault]
    plant(monkeypatch)
    with pytest.raises(ExportError) as error:
        gguf.export_gguf(run, tmp_path / "m.gguf", type="q8_0", tell=Quiet())
    assert code_of(error) == code and words in str(error.value) and left_in(tmp_path) == []


@needs_llamacpp
def test_a_stop_token_that_is_written_and_passed_over_is_no_stop(tmp_path, run, monkeypatch):
    own = llamacpp.run

    def runs_on(*given: Any, **named: Any) -> llamacpp.Said:
        said = own(*given, **named)
        stop = named["stop_ids"][0]
        said.answers = [([*ids, stop, 5], "limit") for ids, _ in said.answers]
        return said

    monkeypatch.setattr(llamacpp, "run", runs_on)
    with pytest.raises(ExportError) as error:
        gguf.export_gguf(run, tmp_path / "m.gguf", tell=Quiet())
    assert code_of(error) == "E-EXPORT-38" and left_in(tmp_path) == []


# ---- adapters


@pytest.mark.wide("llama-lora0", rest="slow")
@needs_llamacpp
@pytest.mark.parametrize(
    ("family", "lora"),
    [
        ("llama", {}),
        ("qwen2", {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 40}}),
        pytest.param("phi3", {}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_the_adapter_on_the_base_gives_the_merged_files_answers(tmp_path, family, lora):
    base = exported.folder_of(tmp_path / "base", family)
    run = exported.run_of(tmp_path / "run", base, **lora)
    record = gguf_adapter.export_adapter(run, tmp_path / "a.gguf", tell=Quiet())
    card = (tmp_path / "a.md").read_text(encoding="utf-8")
    assert "library_name: gguf" in card and "--lora a.gguf" in card
    gguf.export_gguf(base, tmp_path / "base.gguf", type="f32", tell=Quiet())
    gguf.export_gguf(run, tmp_path / "m.gguf", type="f32", tell=Quiet())
    on_base = run_in_llamacpp(tmp_path / "base.gguf", tmp_path / "o", tmp_path / "a.gguf")
    merged = run_in_llamacpp(tmp_path / "m.gguf", tmp_path / "p")
    assert far(on_base, merged) < 5e-3
    assert far(on_base, tuned_logits(run, base)) < 5e-3 < far(run_of_base(base), merged)
    assert record["exported"] == "gguf adapter" and all(gguf_adapter.lines(record))


def _key_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    own = gguf_adapter._write

    def write(path: Path, plan: Any, pairs: Any, *more: Any) -> None:
        name, a, b = pairs[0]
        own(path, plan, [(name.replace("blk.0", "blk.00"), a, b), *pairs[1:]], *more)

    monkeypatch.setattr(gguf_adapter, "_write", write)


def _alpha_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    own = gguf_file.add
    monkeypatch.setattr(
        gguf_file, "add", lambda w, key, value: None if "alpha" in key else own(w, key, value)
    )


@pytest.mark.parametrize(
    ("plant", "code", "words"),
    [
        (_key_renamed, "E-EXPORT-31", "blk.00"),
        (_alpha_lost, "E-EXPORT-41", "scale is 4 times"),
        (_not_permuted, "E-EXPORT-35", "something else"),
    ],
)
def test_faults_of_an_adapter_are_found_and_named(tmp_path, run, monkeypatch, plant, code, words):
    plant(monkeypatch)
    with pytest.raises(ExportError) as error:
        gguf_adapter.export_adapter(run, tmp_path / "a.gguf", tell=Quiet())
    assert code_of(error) == code and words in str(error.value), str(error.value)
    assert left_in(tmp_path) == []


def test_an_adapter_is_proven_in_transformers_where_llama_cpp_is_not(
    tmp_path, run, without_llamacpp
):
    record = gguf_adapter.export_adapter(run, tmp_path / "a.gguf", type="f16", tell=Quiet())
    assert record["run_by"]["name"] == "transformers" and record["top1_agreement"] >= 0.97
    assert record["divergence_nats"] < 1e-3


@pytest.mark.parametrize(
    ("lora", "words"),
    [({"use_dora": True}, "DoRA"), ({"bias": "lora_only"}, "bias"), (None, "every weight")],
)
def test_what_is_more_than_lora_is_refused_as_an_adapter(tmp_path, base, lora, words):
    target = base if lora is None else exported.run_of(tmp_path / "run", base, **lora)
    with pytest.raises(UsageError) as error:
        gguf_adapter.export_adapter(target, tmp_path / "a.gguf", tell=Quiet())
    assert code_of(error) == "E-EXPORT-40" and words in str(error.value)
    assert not (tmp_path / "a.gguf").exists()


# ---- wrong inputs


def test_wrong_names_and_types_are_said_before_anything_is_read(tmp_path, run):
    (tmp_path / "there.gguf").write_text("mine")
    (tmp_path / "m.proof.json").write_text("[]")
    before = left_in(tmp_path)
    for out, type, code in (
        ("model", "q8_0", "E-EXPORT-20"),
        (".", "q8_0", "E-EXPORT-20"),
        ("there.gguf", "q8_0", "E-EXPORT-01"),
        ("m.gguf", "q8_0", "E-EXPORT-01"),
        ("n.gguf", "q9", "E-EXPORT-21"),
    ):
        with pytest.raises(UsageError) as error:
            gguf.export_gguf(run, tmp_path / out, type=type, tell=Quiet())
        assert code_of(error) == code
    assert left_in(tmp_path) == before and (tmp_path / "there.gguf").read_text() == "mine"


def test_a_family_without_a_row_is_refused_with_the_list(tmp_path):
    from helpers import tiny

    tiny.make_model("gpt2").save_pretrained(tmp_path / "b")
    building.make_tokenizer().save_pretrained(tmp_path / "b")
    with pytest.raises(UsageError) as error:
        gguf.export_gguf(tmp_path / "b", tmp_path / "m.gguf", tell=Quiet())
    assert code_of(error) == "E-EXPORT-22" and "qwen3, smollm3" in str(error.value)


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("llama", {"hidden_act": "gelu"}, "activation gelu"),
        ("gemma2", {"query_pre_attn_scalar": 24}, "query_pre_attn_scalar"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}, "no_rope_layers"),
        ("qwen2", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic"),
    ],
)  # fmt: skip
def test_what_llama_cpp_has_built_in_otherwise_is_refused(tmp_path, family, changes, words):
    base = exported.folder_of(tmp_path / "b", family, **changes)
    with pytest.raises(UsageError) as error:
        gguf.export_gguf(base, tmp_path / "m.gguf", tell=Quiet())
    assert code_of(error) == "E-EXPORT-23" and words in str(error.value)
    assert left_in(tmp_path) == ["b"]


@pytest.mark.parametrize(("room", "code"), [("disk", "E-EXPORT-26"), ("memory", "E-EXPORT-10")])
def test_too_little_room_is_said_first(tmp_path, run, monkeypatch, room, code):
    if room == "disk":
        small = shutil._ntuple_diskusage(10, 10, 1000)
        monkeypatch.setattr(gguf.shutil, "disk_usage", lambda place: small)
    else:
        monkeypatch.setattr(gguf.machine, "total_memory", lambda: 1000)
    with pytest.raises(UsageError) as error:
        gguf.export_gguf(run, tmp_path / "a" / "m.gguf", tell=Quiet())
    assert code_of(error) == code and left_in(tmp_path) == []


def test_a_disk_that_fills_up_leaves_nothing(tmp_path, run, monkeypatch):
    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_file, "_state", full)
    with pytest.raises(ExportError) as error:
        gguf.export_gguf(run, tmp_path / "m.gguf", tell=Quiet())
    assert code_of(error) == "E-EXPORT-27" and left_in(tmp_path) == []


def test_a_run_that_gives_numbers_and_one_that_cannot_be_folded_are_refused(tmp_path, run, base):
    shutil.copytree(run, tmp_path / "judge")
    text = (run / "run.yaml").read_text(encoding="utf-8")
    (tmp_path / "judge/run.yaml").write_text(text + "objective:\n  kind: reward\n")
    with pytest.raises(TunewrightError) as error:
        gguf.export_gguf(tmp_path / "judge", tmp_path / "m.gguf", tell=Quiet())
    assert code_of(error) == "E-EXPORT-43"
    soft = exported.prompt_run_of(tmp_path / "soft", base)
    with pytest.raises(TunewrightError) as error:
        gguf.export_gguf(soft, tmp_path / "m.gguf", tell=Quiet())
    assert code_of(error) == "E-METHOD-10" and left_in(tmp_path) == ["judge", "soft"]
    assert "`serve`" in str(error.value) and "PeftModel.from_pretrained" in str(error.value)


@needs_llamacpp
def test_an_end_of_the_child_is_an_error_with_its_words(tmp_path, written):
    (tmp_path / "broken.gguf").write_bytes(written[0].read_bytes()[:5000])
    with pytest.raises(llamacpp.CannotRun):
        llamacpp.run(tmp_path / "broken.gguf", tmp_path / "o", rows=[[1, 2]])


# ---- stop tokens


@pytest.mark.parametrize(("extra", "lost"), [(2, 0), (4, 2)])
def test_stop_tokens_take_the_three_places_and_the_rest_is_told(tmp_path, extra, lost):
    from tokenizers import AddedToken

    from tunewright.engine.naming import renderer_of

    tokenizer = exported.tokenizer_of("gpt-2")
    names = [f"<stop{i}>" for i in range(extra)]
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(n) for n in names]})
    stops = [tokenizer.convert_tokens_to_ids(n) for n in names]
    renderer = renderer_of(tokenizer, {"eos_token_id": stops})
    words = gguf_words.words_of(tokenizer, renderer, len(tokenizer), "x")
    assert len(words.lost_stops) == lost
    places = {words.keys.get(f"ggml.{slot}_token_id") for slot in ("eos", "eot", "eom")}
    assert renderer.stop_id in places and len(places) == 3


# ---- Ollama


def test_ollama_gets_a_folder_whose_modelfile_asks_and_stops_as_the_run(tmp_path, run):
    record = ollama.export_ollama(run, tmp_path / "Out", num_ctx=256, tell=Quiet())
    assert left_in(tmp_path / "Out") == ["Modelfile", "README.md", "model.gguf", "proof.json"]
    text = (tmp_path / "Out/Modelfile").read_text(encoding="utf-8")
    assert text.startswith("FROM ./model.gguf\n") and f'PARAMETER stop "{END}"' in text
    assert "PARAMETER num_ctx 256\n" in text and "PARAMETER temperature 0\n" in text
    assert "ADAPTER" not in text and record["template_compared"] > 5
    assert ollama.lines(record)[-1].startswith("ollama create out ")


def test_a_modelfile_that_asks_otherwise_or_lost_a_stop_is_refused(tmp_path, run, monkeypatch):
    own = ollama.write_text
    for old, new, code in (("im_start|>user", "im_start|>User", "E-EXPORT-33"), ('stop "<|stop', 'stop "<|stip', "E-EXPORT-34")):  # fmt: skip
        monkeypatch.setattr(
            ollama, "write_text", lambda path, text, o=old, n=new: own(path, text.replace(o, n))
        )
        with pytest.raises(ExportError) as error:
            ollama.export_ollama(run, tmp_path / "out", tell=Quiet())
        assert code_of(error) == code and left_in(tmp_path) == []


def test_ollama_refuses_a_context_that_the_model_has_not(tmp_path, run):
    with pytest.raises(UsageError) as error:
        ollama.export_ollama(run, tmp_path / "out", num_ctx=100_000, tell=Quiet())
    assert code_of(error) == "E-EXPORT-45"


def test_text_that_a_modelfile_cannot_hold_is_refused():
    from tunewright.export import modelfile

    for system in ('He said """no"""', 'ends with "'):
        with pytest.raises(UsageError) as error:
            modelfile.Modelfile("x", [], {}, system).text()
        assert code_of(error) == "E-EXPORT-44"


def test_every_family_of_templates_is_written_for_ollama_and_gives_the_same_text():
    from helpers import families

    from tunewright.core.types import Message
    from tunewright.engine.naming import renderer_of
    from tunewright.export import modelfile
    from tunewright.export.gguf_proof import dialogues, prompt_text

    every = [*dialogues([]), *([Message("system", "S."), *one] for one in dialogues([]))]
    for table in (families.FAMILIES, families.THINKING):
        for name in table:
            renderer = renderer_of(families.tokenizer_of(name, table))
            source = modelfile.go_template(modelfile.pieces_of(renderer, None))
            for messages in every:
                found = modelfile.run_template(source, messages)
                assert found == prompt_text(renderer, messages), name


def test_the_licence_of_the_base_goes_along(tmp_path, base):
    shutil.copytree(base, tmp_path / "b")
    (tmp_path / "b/README.md").write_text("---\nlicense: apache-2.0\n---\n# B\n")
    (tmp_path / "b/LICENSE").write_text("Apache License\nVersion 2.0")
    ollama.export_ollama(tmp_path / "b", tmp_path / "out", tell=Quiet())
    import gguf as library

    reader = library.GGUFReader(str(tmp_path / "out/model.gguf"))
    assert reader.fields["general.license"].contents() == "apache-2.0"
    assert 'LICENSE """Apache License' in (tmp_path / "out/Modelfile").read_text(encoding="utf-8")
