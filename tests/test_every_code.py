"""Every error code is met by a test: those below are met here by what a person would do, or by the
failure that they exist for; all others by the tests of their rooms."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import story, tiny
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tunewright import cli
from tunewright.core.config import DataConfig
from tunewright.core.errors import TunewrightError
from tunewright.core.registry import methods
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.core.words import error_codes
from tunewright.data import inspect
from tunewright.models import anatomy
from tunewright.story import resume_run, train

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    story.model_folder(folder / "model")
    story.rows_file(folder / "rows.json")
    pairs = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(12)]
    (folder / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    return train(parse_run(keys(place, place / "run"), {}), tell=Quiet()).folder


def keys(place: Path, out: Path, **more: Any) -> dict[str, Any]:
    return {
        "model": str(place / "model"),
        "data.train": str(place / "rows.json"),
        "data.held_out": 0,
        "out": str(out),
        "probes": 1,
        "forgetting": "off",
        "engine.dtype": "float32",
        "engine.threads": 1,
        "engine.steps": 2,
        "engine.batch_size": 4,
        **more,
    }


def codes_of(action: Any, *args: Any, **kwargs: Any) -> list[str]:
    """The codes of the error that the action must end in."""
    with pytest.raises(TunewrightError) as caught:
        action(*args, **kwargs)
    return [p.code for p in caught.value.problems]


def command(*words: str) -> list[str]:
    """The codes in what a command says when it fails."""
    done = CliRunner().invoke(cli.app, list(words))
    assert done.exit_code in (1, 2), (done.exception, done.output)
    return re.findall(r"E-[A-Z]+-\d\d", done.output)


def test_every_code_is_named_by_a_test() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("*.py"))
    named = set(re.findall(r"E-[A-Z]+-\d\d", text))
    assert sorted(set(error_codes()) - named) == []


# ---- run files


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("template", "E-CONFIG-10"),
        ("gradient_checkpointing", "E-CONFIG-11"),
        ("packing", "E-CONFIG-12"),
        ("sample_packing", "E-CONFIG-12"),
        ("train_on_inputs", "E-CONFIG-13"),
        ("trust_remote_code", "E-CONFIG-14"),
    ],
)
def test_a_key_that_is_missing_on_purpose_has_a_message_of_its_own(key: str, code: str) -> None:
    given = {"model": "m", "data.train": "d.json", key: True}
    assert code in codes_of(parse_run, given, dict.fromkeys(given, "run.yaml"))


THEIRS = """
model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct
stage: sft
do_train: true
finetuning_type: lora
lora_rank: {rank}
dataset: mine
template: qwen
output_dir: out
"""


def test_an_import_replaces_no_file(tmp_path: Path) -> None:
    source, out = tmp_path / "theirs.yaml", tmp_path / "run.yaml"
    source.write_text(THEIRS.format(rank=8), encoding="utf-8")
    out.write_text("mine", encoding="utf-8")
    assert command("import", str(source), str(out)) == ["E-CONFIG-43"]
    assert out.read_text(encoding="utf-8") == "mine"


def test_an_import_that_would_not_start_is_not_written(tmp_path: Path) -> None:
    source, out = tmp_path / "theirs.yaml", tmp_path / "run.yaml"
    source.write_text(THEIRS.format(rank=-3), encoding="utf-8")
    assert "E-CONFIG-44" in command("import", str(source), str(out))
    assert not out.exists()


# ---- the command line


def test_the_demo_has_two_languages() -> None:
    assert command("demo", "--lang", "fr") == ["E-RUN-10"]


def test_chat_compares_or_leaves_the_adapter_out(place: Path) -> None:
    words = ["chat", str(place / "model"), "-q", "hi", "--base", "--compare"]
    assert command(*words) == ["E-RUN-11"]


def test_a_bare_model_has_nothing_to_compare(place: Path) -> None:
    assert command("chat", str(place / "model"), "-q", "hi", "--compare") == ["E-RUN-12"]


def test_bench_fails_where_the_gradients_are_wrong(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The family's attention is broken where the engine computes it, and nowhere else."""
    import tunewright.models.kernels.tree_attention as kernel

    real = kernel.tree_attention

    def wrong(*args: Any, **kwargs: Any) -> Any:
        out = real(*args, **kwargs)
        return (out[0] * 1.001, *out[1:]) if isinstance(out, tuple) else out * 1.001

    monkeypatch.setattr(kernel, "tree_attention", wrong)
    words = [
        "bench", "--model", str(place / "model"), "--data", str(place / "rows.json"),
        "engine.dtype=float32", "engine.threads=1", "engine.layout=tree", "--steps", "1",
    ]  # fmt: skip
    assert command(*words) == ["E-TRAIN-05"]


# ---- data


def read(rows: list[dict[str, Any]], path: Path, renderer: Any = None, **config: Any) -> Any:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return inspect(DataConfig(train=str(path), held_out=0, **config), renderer, None)


def test_a_misspelt_format_is_guessed(tmp_path: Path) -> None:
    rows = [{"instruction": "q", "output": "a"}] * 4
    assert codes_of(read, rows, tmp_path / "r.json", format="alpaka") == ["E-DATA-10"]


def renderer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    from tunewright.text.renderer import Renderer

    return Renderer(AutoTokenizer.from_pretrained(folder))


def test_a_check_that_stops_names_the_key_that_accepts_it(place: Path, tmp_path: Path) -> None:
    """Half of the rows have no answer."""
    rows: list[dict[str, Any]] = [
        {"instruction": f"what is {i}?", "output": f"it is {i}" if i % 3 == 0 else ""}
        for i in range(30)
    ]
    with pytest.raises(TunewrightError) as caught:
        read(rows, tmp_path / "r.json", renderer_of(place / "model"))
    assert {p.code for p in caught.value.problems} == {"E-DATA-61"}
    assert "data.accept=[" in str(caught.value)


def test_a_probe_without_a_question_cannot_be_asked(place: Path, tmp_path: Path) -> None:
    asked = keys(place, tmp_path / "run", probes=[{"text": "only running text"}])
    assert codes_of(train, parse_run(asked, {}), tell=Quiet()) == ["E-DATA-21"]


# ---- evaluation


def test_options_that_are_one_to_the_tokenizer_are_refused(place: Path, tmp_path: Path) -> None:
    """A tokenizer that lowers case cannot tell Yes from yes."""
    from tokenizers import normalizers
    from transformers import AutoTokenizer

    model = Path(shutil.copytree(place / "model", tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save_pretrained(model)
    rows = [{"instruction": f"q{i}", "output": ["Yes", "yes"][i % 2]} for i in range(6)]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    words = ["evaluate", str(model), "--data", str(tmp_path / "rows.json"), "--options", "Yes,yes"]
    assert command(*words) == ["E-EVAL-03"]


def test_a_log_probability_that_is_no_number_ends_an_evaluation(
    place: Path, tmp_path: Path
) -> None:
    """One token of the answers has an embedding that is no number; the layout's probe has it not."""
    from transformers import AutoTokenizer

    from tunewright.engine.layout import probe_samples

    model = story.model_folder(tmp_path / "model", tie_word_embeddings=False)
    tried = {token for s in probe_samples(320) for b in s.branches for token in b.tokens}
    tokenizer = AutoTokenizer.from_pretrained(model)
    token = min({*tokenizer("the answer is", add_special_tokens=False)["input_ids"]} - tried)
    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    words = ["evaluate", str(model), "--data", str(place / "rows.json"), "--dtype", "float32"]
    assert command(*words) == ["E-EVAL-04"]


# ---- methods


def attach(kind: str, model: Any, **settings: Any) -> Any:
    entry = methods.get(kind)
    assert entry is not None
    return entry.function(entry.config(**settings), model, anatomy.of(model), "tiny")


def test_norms_need_norms_with_weights() -> None:
    model = tiny.make_model("llama")
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            del module.weight
    assert codes_of(attach, "norms", model) == ["E-METHOD-06"]


def test_rotations_in_a_row_need_the_kernel() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the kernel")
    found = codes_of(attach, "boft", tiny.make_model("llama"), factors=2, block_size=4)
    assert found == ["E-METHOD-64"]


def test_blocks_must_divide_the_inputs() -> None:
    found = codes_of(attach, "boft", tiny.make_model("llama"), block_size=7)
    assert found == ["E-METHOD-65"]


def test_a_model_that_takes_no_embeddings_takes_no_learnt_prompt() -> None:
    model = tiny.make_model("llama")
    real = model.forward

    def forward(input_ids: Any = None, inputs_embeds: Any = None, **rest: Any) -> Any:
        if inputs_embeds is not None:
            raise ValueError("inputs_embeds are not for this model")
        return real(input_ids=input_ids, **rest)

    model.forward = forward
    assert codes_of(attach, "prompt_tuning", model, num_tokens=4) == ["E-METHOD-76"]


def test_a_start_from_matrices_does_not_stand_on_experts() -> None:
    """DeepSeek-V3 holds all experts of a block in one tensor."""
    model = tiny.make_model(
        "deepseek_v3", num_hidden_layers=2, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=16, first_k_dense_replace=1, n_routed_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=32, n_group=1, topk_group=1,
        num_key_value_heads=4,
    )  # fmt: skip
    asked = {"rank": 2, "targets": ["linear", "experts"]}
    assert codes_of(attach, "pissa", model, **asked) == ["E-METHOD-77"]


# ---- models


def test_a_model_without_blocks_has_no_anatomy() -> None:
    from transformers import PretrainedConfig

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = PretrainedConfig()
            self.only = torch.nn.Linear(4, 4)

    assert codes_of(anatomy.of, Flat()) == ["E-MODEL-38"]


def test_reading_gguf_names_the_package_that_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunewright.sources import gguf

    monkeypatch.setitem(sys.modules, "gguf", None)
    assert codes_of(gguf.convert, tmp_path / "m.gguf", tmp_path / "out") == ["E-MODEL-17"]


def test_a_folder_of_an_unknown_method_names_the_known_ones(place: Path, tmp_path: Path) -> None:
    out = train(
        parse_run(keys(place, tmp_path / "run", **{"method.kind": "houlsby"}), {}), tell=Quiet()
    ).folder
    described = out / "adapter" / "tunewright_method.json"
    own = json.loads(described.read_text(encoding="utf-8"))
    described.write_text(json.dumps({**own, "kind": "of_another_package"}), encoding="utf-8")
    assert command("chat", str(out), "-q", "hi") == ["E-MODEL-42"]


def pickled(place: Path, folder: Path, state: Any) -> Path:
    shutil.copytree(place / "model", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def test_a_pickle_of_other_things_than_tensors_is_refused(place: Path, tmp_path: Path) -> None:
    folder = pickled(place, tmp_path / "m", {"model.norm.weight": torch.ones(4), "epoch": 3})
    found = command("export", "safetensors", str(folder), str(tmp_path / "out"))
    assert found == ["E-MODEL-44"]


def test_a_conversion_looks_for_room_first(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pickled(place, tmp_path / "m", load_file(place / "model" / "model.safetensors"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    found = command("export", "safetensors", str(folder), str(tmp_path / "out"))
    assert found == ["E-MODEL-49"]
    assert not (tmp_path / "out").exists()


# ---- judges


def judge(place: Path, out: Path, **more: Any) -> Path:
    asked = keys(
        place, out, **{"data.train": str(place / "pairs.json"), "objective.kind": "reward", **more}
    )
    return train(parse_run(asked, {}), tell=Quiet()).folder


def test_a_judge_without_its_head_is_no_judge(place: Path, tmp_path: Path) -> None:
    adapter = judge(place, tmp_path / "run") / "adapter"
    file = adapter / "adapter_model.safetensors"
    weights = {n: t for n, t in load_file(file).items() if "score" not in n}
    save_file(weights, file, metadata={"format": "pt"})
    for other in adapter.glob("*score*"):
        other.unlink()
    words = ["evaluate", str(adapter), "--data", str(place / "pairs.json")]
    assert command(*words) == ["E-OBJ-32"]


def test_a_whole_judge_needs_a_classifier_of_its_family(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    known = AutoModelForSequenceClassification._model_mapping

    class Without(dict):  # type: ignore[type-arg]
        def __contains__(self, key: object) -> bool:
            return key is not LlamaConfig and key in known

    monkeypatch.setattr(AutoModelForSequenceClassification, "_model_mapping", Without())
    found = codes_of(judge, place, tmp_path / "run", **{"method.kind": "full"})
    assert found == ["E-OBJ-31"]


# ---- rewards


def test_a_schema_with_an_unknown_keyword_is_refused(place: Path, tmp_path: Path) -> None:
    prompts = [{"prompt": f"q{i}"} for i in range(8)]
    (tmp_path / "p.json").write_text(json.dumps(prompts), encoding="utf-8")
    asked = keys(
        place,
        tmp_path / "run",
        **{
            "data.train": str(tmp_path / "p.json"),
            "data.format": "prompts",
            "objective.kind": "grpo",
            "objective.reward": {"kind": "json_schema", "schema": {"$dynamicRef": "#x"}},
        },
    )
    assert codes_of(train, parse_run(asked, {}), tell=Quiet()) == ["E-REWARD-12"]


# ---- run folders


def test_a_folder_of_somebody_else_is_left_alone(place: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine", encoding="utf-8")
    assert codes_of(train, parse_run(keys(place, tmp_path / "run"), {}), tell=Quiet()) == [
        "E-RUN-02"
    ]


def test_a_file_given_as_the_run_folder_is_not_told_to_be_emptied(
    place: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.json").write_text("[]", encoding="utf-8")
    asked = keys(place, tmp_path / "rows.json")
    assert codes_of(train, parse_run(asked, {}), tell=Quiet()) == ["E-RUN-21"]
    assert (tmp_path / "rows.json").read_text(encoding="utf-8") == "[]"


def test_a_run_folder_that_cannot_be_made_is_said_with_the_cause(
    place: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    asked = keys(place, tmp_path / "file" / "run")
    assert codes_of(train, parse_run(asked, {}), tell=Quiet()) == ["E-RUN-03"]


def preferring(place: Path, out: Path) -> Path:
    """A DPO run that was stopped after its second of four steps, as a kill leaves it."""
    asked = keys(
        place, out,
        **{
            "data.train": str(place / "pairs.json"), "objective.kind": "dpo",
            "engine.steps": 4, "engine.save_every": 2,
        },
    )  # fmt: skip
    real, calls = torch.optim.AdamW.step, [0]
    with pytest.MonkeyPatch.context() as patch:

        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == 3:
                raise KeyboardInterrupt
            return real(self, *args, **kwargs)

        patch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(KeyboardInterrupt):
            train(parse_run(asked, {}), tell=Quiet())
    return out


def test_reference_values_that_are_lost_or_spoilt_end_a_resumed_run(
    place: Path, tmp_path: Path
) -> None:
    out = preferring(place, tmp_path / "run")
    (kept,) = out.glob("reference*")
    good = kept.read_bytes()
    kept.write_bytes(good[: len(good) // 2])
    assert codes_of(resume_run, out, tell=Quiet()) == ["E-CKPT-05"]
    kept.unlink()
    assert codes_of(resume_run, out, tell=Quiet()) == ["E-CKPT-05"]
    kept.write_bytes(good)
    model = place / "model" / "model.safetensors"
    before = model.read_bytes()
    weights = load_file(model)
    save_file({n: t + 0.25 for n, t in weights.items()}, model, metadata={"format": "pt"})
    try:
        assert codes_of(resume_run, out, tell=Quiet()) == ["E-CKPT-06"]
    finally:
        model.write_bytes(before)
    assert resume_run(out, tell=Quiet()).summary["status"] == "done"


def test_a_stage_that_left_no_weights_does_not_count_as_finished(
    place: Path, tmp_path: Path
) -> None:
    file = tmp_path / "pipeline.yaml"
    shared = "engine: {steps: 1, batch_size: 4, dtype: float32, threads: 1}\nprobes: 0\n"
    file.write_text(
        f"model: {place / 'model'}\ndata: {{train: {place / 'rows.json'}, held_out: 0}}\n{shared}"
        f"out: {tmp_path / 'out'}\nstages:\n  - {{name: first}}\n  - {{name: second}}\n",
        encoding="utf-8",
    )
    # The weights go after the run has proved them, as a cleaning program may do.
    from tunewright.report import html

    write = html.write_report

    def gone(folder: Path, *args: Any, **kwargs: Any) -> Path:
        page = write(folder, *args, **kwargs)
        for weights in folder.glob("adapter/*.safetensors"):
            weights.unlink()
        return page

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "write_report", gone)
        assert command("train", str(file)) == ["E-PIPE-16"]


def test_a_merge_that_transformers_reads_otherwise_is_not_published(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor that finds no place in the architecture, as a library's bug would write it."""
    import transformers

    real = transformers.PreTrainedModel.save_pretrained

    def save(self: Any, folder: str, *args: Any, **kwargs: Any) -> None:
        real(self, folder, *args, **kwargs)
        file = Path(folder) / "model.safetensors"
        extra = {**load_file(file), "model.layers.0.stray": torch.ones(2)}
        save_file(extra, file, metadata={"format": "pt"})

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", save)
    out = tmp_path / "merged"
    assert "E-EXPORT-11" in command("export", "merge", str(finished), str(out))
    assert not out.exists()
