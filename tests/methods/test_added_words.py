"""Words that are added to a vocabulary, through every command: with rows to spare and without, tied
and untied, alone and beside a LoRA, ours and plain PEFT's.

The oracle is PEFT's AutoPeftModelForCausalLM on the folder as it lies, and plain Transformers on
what was merged.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import story
from pydantic import ValidationError

from tunewright.core.errors import TunewrightError
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.engine import opening
from tunewright.export import merge
from tunewright.story import resume_run, train
from tunewright.text.tokenizer import load_tokenizer

WORDS = ["<plan>", "</plan>"]
TEXT = "<plan>a small model 3</plan> what is it?"
METHODS: dict[str, dict[str, Any]] = {
    "new_tokens": {"method.kind": "new_tokens", "method.tokens": WORDS},
    "lora": {"method.kind": "lora", "method.rank": 4, "method.new_tokens": WORDS},
    "whole": {
        "method.kind": "lora",
        "method.rank": 4,
        "method.new_tokens": WORDS,
        "method.modules_to_save": ["embedding"],
    },
}
BASES = {
    "tied": {"tie_word_embeddings": True}, "untied": {"tie_word_embeddings": False},
    "tied, padded": {"tie_word_embeddings": True, "vocab_size": 352}, "untied, padded": {"tie_word_embeddings": False, "vocab_size": 352},
}  # fmt: skip
ADVICE = "ignore:Model has `tie_word_embeddings=True`"  # PEFT's to whoever opens a folder
pytestmark = [
    pytest.mark.filterwarnings(ADVICE),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
    pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied"),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models: as many rows as tokens, or more of them, which no token has."""
    size, made = len(load_tokenizer(story.model_folder(tmp_path_factory.mktemp("size")))), {}
    for number, (name, changes) in enumerate(BASES.items()):
        place = tmp_path_factory.mktemp(f"base{number}")
        made[name] = story.model_folder(
            place, initializer_range=0.1, **{"vocab_size": size, **changes}
        )
    return made


def rows_file(place: Path, pairs: bool = False) -> Path:
    rows: list[dict[str, Any]] = [
        {"instruction": f"what is it {i}?", "output": f"<plan>a small model {i}</plan>"}
        for i in range(12)
    ]
    if pairs:
        rows = [
            {
                "prompt": f"what is it {i}?",
                "chosen": f"<plan>a small {i}</plan>",
                "rejected": f"it is <plan> {i}",
            }
            for i in range(12)
        ]
    file = place / ("pairs.json" if pairs else "rows.json")
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


def run(model: Path, place: Path, **more: Any) -> Path:
    place.mkdir(exist_ok=True, parents=True)
    pairs = more.get("objective.kind") == "dpo"
    given = {
        "model": str(model), "data.train": str(rows_file(place, pairs)), "data.held_out": 0, "out": str(place / "run"), "probes": 1, "forgetting": "off", "engine.threads": 1,
        "engine.dtype": "float32", "engine.steps": 6, "engine.batch_size": 6, "engine.learning_rate": 2e-2, "engine.save_every": 2, **more,
    }  # fmt: skip
    train(parse_run(given, dict.fromkeys(given, "test")), tell=Quiet())
    return place / "run"


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    return [
        e
        for e in map(json.loads, (folder / "events.jsonl").read_text().splitlines())
        if e["event"] == name
    ]


def ids_of(folder: Path) -> list[int]:
    from transformers import AutoTokenizer

    return list(AutoTokenizer.from_pretrained(folder)(TEXT, add_special_tokens=False)["input_ids"])


def auto_peft(folder: Path, dtype: Any = torch.float32) -> Any:
    from peft import AutoPeftModelForCausalLM

    torch.manual_seed(0)
    return AutoPeftModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max() / other.abs().max())


def plain(folder: Path, dtype: Any = "auto") -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


# ---- runs of our own


SHOWN = [
    ("tied", "lora"),
    ("untied", "new_tokens"),
    ("tied, padded", "new_tokens"),
    ("untied, padded", "lora"),
    ("tied", "whole"),
    ("untied", "whole"),
]


@pytest.mark.wide("tied-lora", "untied, padded-new_tokens")
@pytest.mark.parametrize(
    ("base", "method"),
    [
        pytest.param(base, method, marks=() if (base, method) in SHOWN else pytest.mark.thorough)
        for base in BASES
        for method in METHODS
    ],
)
def test_a_run_is_opened_by_plain_peft_and_merges_with_its_words(
    bases: dict[str, Path], tmp_path: Path, base: str, method: str
) -> None:
    """`thorough`: the other pairs of a base and a method, each of which stands here once."""
    size = len(load_tokenizer(bases[base]))
    done = run(bases[base], tmp_path, **METHODS[method])
    ids = ids_of(done / "adapter")
    assert {size, size + 1} <= set(ids)
    wanted = logits(auto_peft(done / "adapter"), ids)
    opened = opening.open_target(str(done), Quiet())
    assert gap(logits(opened.model, ids), wanted) < 1e-5
    with opened.untouched():
        assert gap(logits(opened.model, ids), wanted) > 1e-3

    verdict = merge.merge_run(done, tmp_path / "merged", tell=Quiet())
    assert ids_of(tmp_path / "merged") == ids
    whole = plain(tmp_path / "merged")
    assert gap(logits(whole, ids), wanted) < 1e-5
    assert (whole.get_output_embeddings().weight is whole.get_input_embeddings().weight) == BASES[
        base
    ]["tie_word_embeddings"]
    rows = BASES[base].get("vocab_size", size + 2)
    assert whole.get_input_embeddings().weight.shape[0] == whole.config.vocab_size == rows
    assert verdict["new_words"] == {"<plan>": size, "</plan>": size + 1}
    assert (verdict["vocabulary_rows_of_base"], verdict["vocabulary_rows"]) == (
        BASES[base].get("vocab_size", size),
        rows,
    )
    assert any("<plan>, </plan>" in line for line in merge.lines(verdict))
    assert (
        json.loads((tmp_path / "merged" / "merge.json").read_text())["new_words"]
        == verdict["new_words"]
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_merge_in_half_precision_holds_the_rows_rounded_once(
    bases: dict[str, Path], tmp_path: Path, method: str
) -> None:
    done = run(bases["untied"], tmp_path, **METHODS[method])
    verdict = merge.merge_run(done, tmp_path / "merged", dtype="bfloat16", tell=Quiet())
    assert verdict["verdict"] == "agrees" and verdict["new_words"]
    theirs = auto_peft(done / "adapter").merge_and_unload()
    for name, p in plain(tmp_path / "merged").named_parameters():
        assert p.dtype == torch.bfloat16 and torch.equal(
            p, dict(theirs.named_parameters())[name].to(torch.bfloat16)
        ), name


def test_the_proof_of_a_merge_sees_the_new_rows_even_without_data(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(bases["untied"], tmp_path, **METHODS["new_tokens"])
    shutil.copytree(done / "adapter", tmp_path / "bare")
    own = merge.load_plain

    def with_a_wrong_row(folder: Path, dtype: str) -> Any:
        model = own(folder, dtype)
        with torch.no_grad():
            model.get_input_embeddings().weight[ids_of(folder)[0]] += 0.01
        return model

    monkeypatch.setattr(merge, "load_plain", with_a_wrong_row)
    with pytest.raises(merge.ExportError, match="E-EXPORT-07"):
        merge.merge_run(tmp_path / "bare", tmp_path / "merged", tell=Quiet())
    monkeypatch.undo()
    assert (
        merge.merge_run(tmp_path / "bare", tmp_path / "merged", tell=Quiet())["prompts_from"]
        == "built-in"
    )


def test_a_merged_tokenizer_that_lost_a_word_is_refused(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(bases["tied"], tmp_path, **METHODS["new_tokens"])
    own = merge.Merge._write

    def without_the_words(self: Any, fold: Any, folder: Path) -> None:
        own(self, fold, folder)
        load_tokenizer(bases["tied"]).save_pretrained(str(folder))

    monkeypatch.setattr(merge.Merge, "_write", without_the_words)
    with pytest.raises(merge.ExportError, match="E-EXPORT-15"):
        merge.merge_run(done, tmp_path / "merged", tell=Quiet())
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("start", ["pieces", "mean"])
@pytest.mark.parametrize("base", BASES)
def test_a_new_word_starts_at_rows_that_tokens_have(
    bases: dict[str, Path], base: str, start: str
) -> None:
    from tunewright.core.registry import methods
    from tunewright.models import anatomy
    from tunewright.models.load import load_model

    tokenizer, model, entry = (
        load_tokenizer(bases[base]),
        load_model(bases[base], dtype="float32"),
        methods.get("new_tokens"),
    )
    assert entry is not None
    tables = [
        m.weight.detach().clone()
        for m in (model.get_input_embeddings(), model.get_output_embeddings())
    ]
    before = tables[0][len(tokenizer) :].clone()
    reserved = len(tokenizer) - 1
    made = entry.function(
        entry.config(tokens=[*WORDS, reserved, "a"], start=start),
        model,
        anatomy.of(model),
        str(bases[base]),
    )
    found = {name: p for name, p in made.model.named_parameters() if name in made.parameters}
    assert len(found) == (1 if BASES[base]["tie_word_embeddings"] else 2)
    for name, p in found.items():
        table = tables["lm_head" in name]
        for place, word in enumerate(WORDS):
            rows = (
                tokenizer(word, add_special_tokens=False)["input_ids"]
                if start == "pieces"
                else range(len(tokenizer))
            )
            assert torch.allclose(p[place], table[list(rows)].mean(0), atol=1e-7), (name, word)
        # Tokens that are there keep their rows, whatever `start` says.
        assert torch.equal(p[2], table[reserved]) and torch.equal(
            p[3], table[tokenizer.convert_tokens_to_ids("a")]
        )
    assert torch.equal(
        model.get_input_embeddings().get_base_layer().weight[len(tokenizer) :][: len(before)],
        before,
    )


TWO = [
    ("tied", "lora"),
    ("untied, padded", "new_tokens"),
    pytest.param("tied", "new_tokens", marks=pytest.mark.thorough),
    pytest.param("untied, padded", "lora", marks=pytest.mark.thorough),
]
"""Each base and each method once; `thorough`: the other pairs."""


@pytest.mark.wide("tied-lora")
@pytest.mark.parametrize(("base", "method"), TWO)
def test_a_run_that_goes_on_reads_its_rows_with_the_adapters_words_and_saves_them(
    bases: dict[str, Path], tmp_path: Path, base: str, method: str
) -> None:
    first = run(bases[base], tmp_path / "first", **METHODS[method])
    second = run(
        bases[base],
        tmp_path / "second",
        adapter=str(first / "adapter"),
        **{"engine.steps": 1, "engine.learning_rate": 1e-12},
    )
    reports = [json.loads((folder / "data_report.json").read_text()) for folder in (first, second)]
    assert reports[0]["tokens_total"] == reports[1]["tokens_total"]
    ids = ids_of(first / "adapter")
    assert ids_of(second / "adapter") == ids
    assert (
        gap(logits(auto_peft(second / "adapter"), ids), logits(auto_peft(first / "adapter"), ids))
        < 1e-5
    )
    third = run(bases[base], tmp_path / "third", adapter=str(first / "adapter"))
    assert (
        gap(logits(auto_peft(third / "adapter"), ids), logits(auto_peft(first / "adapter"), ids))
        > 1e-3
    )
    assert merge.merge_run(third, tmp_path / "merged", tell=Quiet())["new_words"]


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_ends_with_the_same_rows(
    bases: dict[str, Path], tmp_path: Path, method: str
) -> None:
    whole = run(bases["tied"], tmp_path, **METHODS[method])
    half = tmp_path / "half"
    shutil.copytree(whole, half)
    shutil.rmtree(half / "adapter")
    (half / "summary.json").write_text(json.dumps({"status": "stopped"}))
    for folder in (half / "checkpoints").iterdir():
        if "6" in folder.name:
            shutil.rmtree(folder)
    resume_run(half, tell=Quiet())
    assert events(half, "resumed")[-1]["step"] in (2, 4)
    assert story.digest(half / "adapter" / "adapter_model.safetensors") == story.digest(
        whole / "adapter" / "adapter_model.safetensors"
    )


@pytest.mark.wide("tied-lora")
@pytest.mark.parametrize(("base", "method"), TWO)
def test_measuring_gives_what_plain_peft_gives_and_the_base_is_measured_with_its_own_words(
    bases: dict[str, Path], tmp_path: Path, base: str, method: str
) -> None:
    from tunewright.evaluate.scoring import evaluate_target

    done = run(bases[base], tmp_path, **METHODS[method])
    asked = rows_file(tmp_path)
    found = evaluate_target(
        str(done), str(asked), dtype="float32", generate=True, max_new_tokens=6, tell=Quiet()
    )
    model, sums, count = auto_peft(done / "adapter"), 0.0, 0
    opened = opening.open_target(str(done), Quiet())
    for row in json.loads(asked.read_text()):
        from tunewright.core.types import Message

        turn = [Message("user", row["instruction"])]
        prompt, whole = (
            opened.renderer.prompt(turn),
            opened.renderer.render([*turn, Message("assistant", row["output"])]).ids,
        )
        logprobs = logits(model, whole)[:-1].log_softmax(-1)
        learnt = range(
            len(prompt),
            len(prompt)
            + len(opened.tokenizer(row["output"], add_special_tokens=False)["input_ids"])
            + 1,
        )  # and its end
        sums += sum(float(logprobs[i - 1, whole[i]]) for i in learnt)
        count += len(learnt)
    assert found["loss"]["tokens"] == count
    assert abs(found["loss"]["token_mean"] + sums / count) < 1e-4
    untouched = evaluate_target(str(done), str(asked), dtype="float32", base=True, tell=Quiet())
    plainly = evaluate_target(str(bases[base]), str(asked), dtype="float32", tell=Quiet())
    assert untouched["loss"]["token_mean"] == pytest.approx(plainly["loss"]["token_mean"], abs=1e-6)


@pytest.mark.parametrize(("base", "method"), TWO)
def test_preferences_start_where_chosen_and_rejected_are_even(
    bases: dict[str, Path], tmp_path: Path, base: str, method: str
) -> None:
    done = run(
        bases[base],
        tmp_path,
        **METHODS[method],
        **{"objective.kind": "dpo", "engine.learning_rate": 1e-3},
    )
    assert json.loads((done / "summary.json").read_text())["first_loss"] == pytest.approx(
        0.6931, abs=1e-4
    )
    assert merge.merge_run(done, tmp_path / "merged", tell=Quiet())["new_words"]


def test_a_pipeline_hands_the_words_on(bases: dict[str, Path], tmp_path: Path) -> None:
    from tunewright.commands import pipeline, pipeline_plan

    keys = {
        "model": str(bases["tied"]), "probes": 0, "method": {"kind": "lora", "rank": 4, "new_tokens": WORDS}, "data": {"held_out": 0},
        "engine": {"dtype": "float32", "threads": 1, "steps": 2, "batch_size": 6, "learning_rate": 1e-2},
        "stages": [
            {"name": "sft", "data": {"train": str(rows_file(tmp_path))}},
            {"name": "dpo", "adapter": "stage:sft", "data": {"train": str(rows_file(tmp_path, pairs=True))}, "objective": {"kind": "dpo"}},
        ],
    }  # fmt: skip
    (tmp_path / "p.yaml").write_text(json.dumps(keys))
    pipeline.run_pipeline(
        pipeline_plan.load_pipeline(tmp_path / "p.yaml", flags={"out": str(tmp_path / "out")}),
        tell=Quiet(),
    )
    sft, dpo = tmp_path / "out" / "01-sft", tmp_path / "out" / "02-dpo"
    assert ids_of(sft / "adapter") == ids_of(dpo / "adapter") != ids_of(bases["tied"])
    assert merge.merge_run(dpo, tmp_path / "merged", tell=Quiet())["new_words"]


@pytest.mark.wide("dora")
@pytest.mark.parametrize("kind", ["rslora", "dora", "lora_plus", "pissa", "olora"])
def test_every_kind_of_lora_trains_the_rows_beside_its_own_and_saves_them(
    bases: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    done = run(
        bases["tied"],
        tmp_path,
        **{"method.kind": kind, "method.rank": 4, "method.new_tokens": WORDS, "engine.steps": 2},
    )
    ids = ids_of(done / "adapter")
    opened = opening.open_target(str(done), Quiet())
    assert gap(logits(opened.model, ids), logits(auto_peft(done / "adapter"), ids)) < 1e-4
    assert merge.merge_run(done, tmp_path / "merged", tell=Quiet())["new_words"]


def test_eva_takes_no_words() -> None:
    from tunewright.methods.lora import EvaConfig, LoraConfig

    for make in (
        lambda: EvaConfig(new_tokens=WORDS),
        lambda: LoraConfig(eva=True, new_tokens=WORDS),
    ):  # type: ignore[arg-type]
        with pytest.raises(ValidationError, match="do not go with eva"):
            make()


def test_a_lora_with_words_trains_its_matrices_and_the_rows_and_counts_them(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    from tunewright.advise import fit
    from tunewright.models import shape

    for base in ("tied", "untied"):
        plainly = run(
            bases[base],
            tmp_path / f"{base} plain",
            **{"method.kind": "lora", "method.rank": 4, "engine.steps": 1},
        )
        done = run(bases[base], tmp_path / base, **METHODS["lora"], **{"engine.steps": 1})
        counts = [
            json.loads((folder / "summary.json").read_text())["trainable_parameters"]
            for folder in (plainly, done)
        ]
        assert counts[1] - counts[0] == 2 * 64 * (1 if base == "tied" else 2)
        keys = {"model": str(bases[base]), "data.train": "-", **METHODS["lora"]}
        method = parse_run(keys, dict.fromkeys(keys, "test")).config.method
        assert shape.trainable_parameters(fit.shape_of(bases[base]), method) == counts[1]


def test_a_lora_on_the_embedding_itself_leaves_no_room_for_single_rows(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(TunewrightError, match="E-METHOD-80"):
        run(bases["untied"], tmp_path, **METHODS["lora"], **{"method.targets": ["linear", "head"]})


def test_what_reads_the_runs_tokens_must_know_its_words(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    from tunewright.engine.oracles import reward_model

    with pytest.raises(TunewrightError, match="E-OBJ-02"):
        run(
            bases["tied"],
            tmp_path,
            **METHODS["lora"],
            **{"objective.kind": "distill", "objective.teacher": str(bases["tied"])},
        )
    known = load_tokenizer(bases["tied"]).get_vocab()
    reward_model.require_same_words(tmp_path, bases["tied"], bases["tied"], known)
    with pytest.raises(TunewrightError, match="E-OBJ-35"):
        reward_model.require_same_words(
            tmp_path, bases["tied"], bases["tied"], {**known, "<plan>": len(known)}
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("rows", "trainable_token_indices"),
        ("grown", "embedding"),
        ("reserved", "trainable_token_indices"),
    ],
)
def test_rows_of_words_are_not_left_out_of_a_sum_in_silence(
    bases: dict[str, Path], tmp_path: Path, kind: str, said: str
) -> None:
    from tunewright.export.composition import obstacles

    made_with_peft(bases["untied"], tmp_path / "theirs", kind)
    [found] = obstacles({"part0": tmp_path / "theirs"})
    assert found.code == "E-METHOD-30" and found.fields["type"] == said


# ---- folders of plain PEFT


def made_with_peft(base: Path, place: Path, kind: str) -> torch.Tensor:
    """A folder as PEFT's own users make it; returns the logits of the model in memory."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(base), plain(base, torch.float32)
    torch.manual_seed(1)
    if kind != "reserved":
        tokenizer.add_tokens(WORDS)
        model.resize_token_embeddings(
            len(tokenizer) + (14 if kind == "padded to a multiple" else 0), mean_resizing=False
        )
    ids = [len(tokenizer) - 2, len(tokenizer) - 1]
    more: dict[str, dict[str, Any]] = {
        "embedding": {"modules_to_save": ["embed_tokens"]}, "both": {"modules_to_save": ["embed_tokens", "lm_head"]},
        "rows": {"trainable_token_indices": {"embed_tokens": ids}}, "list of rows": {"trainable_token_indices": ids},
        "rows of both": {"trainable_token_indices": {"embed_tokens": ids, "lm_head": ids}}, "on the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
        "reserved": {"trainable_token_indices": {"embed_tokens": [5, 9]}},
    }  # fmt: skip
    wrapped = get_peft_model(
        model,
        LoraConfig(
            **{"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"], **more.get(kind, {})}
        ),
    )
    with torch.no_grad():
        for p in wrapped.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.05)
    wrapped.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return logits(wrapped.eval(), ids_of(place))


KINDS = [
    "grown",
    "padded to a multiple",
    "embedding",
    "both",
    "rows",
    "list of rows",
    "rows of both",
    "on the embedding",
    "reserved",
]


ON_TIED = ("grown", "both", "rows", "on the embedding")
"""Folders that say something else about one matrix than about two. `thorough`: the others."""


@pytest.mark.wide("grown-tied", "rows-untied", "both-tied", "embedding-untied")
@pytest.mark.filterwarnings("ignore")  # what PEFT says while it makes such folders
@pytest.mark.parametrize(
    ("kind", "base"),
    [
        *((kind, "untied") for kind in KINDS),
        *(
            pytest.param(kind, "tied", marks=() if kind in ON_TIED else pytest.mark.thorough)
            for kind in KINDS
        ),
    ],
)
def test_folders_of_plain_peft_open_go_on_and_merge(
    bases: dict[str, Path], tmp_path: Path, base: str, kind: str
) -> None:
    folder = tmp_path / "theirs"
    wanted, ids = made_with_peft(bases[base], folder, kind), ids_of(folder)
    near = 1e-5
    if kind == "on the embedding" and base == "untied":
        # PEFT leaves the new rows of the head out of this folder. Whoever opens it has them at the
        # mean; Transformers adds noise of 3e-5 to that.
        wanted, near = logits(auto_peft(folder), ids), 1e-4
    opened = opening.open_target(str(folder), Quiet(), dtype="float32")
    assert gap(logits(opened.model, ids), wanted) < near
    if kind != "padded to a multiple":  # that one PEFT itself does not open
        assert gap(logits(auto_peft(folder), ids), wanted) < near

    done = run(
        bases[base],
        tmp_path / "next",
        adapter=str(folder),
        **{"engine.steps": 1, "engine.learning_rate": 1e-12},
    )
    again = opening.open_target(str(done), Quiet())
    assert gap(logits(again.model, ids), wanted) < near
    if kind != "padded to a multiple":
        assert gap(logits(auto_peft(done / "adapter"), ids), wanted) < near

    if (
        kind == "on the embedding" and base == "tied"
    ):  # one matrix cannot hold a change of the embedding that the head has not
        with pytest.raises(merge.ExportError, match="E-EXPORT-09"):
            merge.merge_run(folder, tmp_path / "merged", tell=Quiet())
        return
    merge.merge_run(folder, tmp_path / "merged", tell=Quiet())
    assert gap(logits(plain(tmp_path / "merged"), ids), wanted) < near


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["grown", "both", "rows"])
def test_folders_of_plain_peft_train_on_in_half_precision(
    bases: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "theirs"
    made_with_peft(bases["untied"], folder, kind)
    ids = ids_of(folder)
    ours = logits(opening.open_target(str(folder), Quiet(), dtype="bfloat16").model, ids)
    assert (
        gap(ours, logits(auto_peft(folder, torch.bfloat16), ids)) < 2e-2
    )  # LoRA itself is held in other number types
    done = run(
        bases["untied"],
        tmp_path / "next",
        adapter=str(folder),
        **{"engine.dtype": "bfloat16", "engine.learning_rate": 1e-2, "engine.steps": 8},
    )
    summary = json.loads((done / "summary.json").read_text())
    assert summary["final_loss"] < summary["first_loss"]


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_a_model_whose_spare_rows_were_cut_off_opens(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    folder, base = tmp_path / "theirs", bases["untied, padded"]
    wanted = made_with_peft(
        base, folder, "both"
    )  # resizing to the tokenizer's size, a habit, cuts rows off here
    opened = opening.open_target(str(folder), Quiet(), dtype="float32")
    assert opened.causal.config.vocab_size == len(opened.tokenizer) < 352
    assert gap(logits(opened.model, ids_of(folder)), wanted) < 1e-5
    merge.merge_run(folder, tmp_path / "merged", tell=Quiet())
    assert gap(logits(plain(tmp_path / "merged"), ids_of(folder)), wanted) < 1e-5


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_replaces_rows_of_the_base_cannot_be_switched_off(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "theirs"
    made_with_peft(bases["untied"], folder, "grown")
    opened = opening.open_target(str(folder), Quiet(), dtype="float32")
    with opened.untouched():
        assert (
            gap(
                logits(opened.model, [5, 9, 17])[:, :300],
                logits(plain(bases["untied"]), [5, 9, 17])[:, :300],
            )
            < 1e-6
        )
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.model.embed_tokens.weight"][7] += 1
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    changed = opening.open_target(str(folder), Quiet(), dtype="float32")
    with pytest.raises(TunewrightError, match="E-RUN-15"), changed.untouched():
        pass


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_another_model_is_refused_with_the_cause_and_its_base(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    from tunewright.models.adapters import load_adapter

    folder = tmp_path / "theirs"
    made_with_peft(bases["untied"], folder, "rows")
    wide = plain(story.model_folder(tmp_path / "wide", hidden_size=96))
    with pytest.raises(TunewrightError) as caught:
        load_adapter(wide, folder)
    [said] = caught.value.problems
    assert said.code == "E-MODEL-40" and str(bases["untied"]) in str(caught.value)
    assert "size mismatch for" in said.fields["cause"] and "96" in said.fields["cause"]

    tensors = load_file(folder / "adapter_model.safetensors")
    lost = next(name for name in tensors if "lora_B" in name)
    tensors[lost.replace("q_proj", "other_proj")] = tensors.pop(lost)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TunewrightError) as caught:
        load_adapter(plain(bases["untied"]), folder)
    [said] = caught.value.problems
    assert (
        said.code == "E-MODEL-41"
        and (said.fields["lost"], said.fields["missing"]) == (1, 1)
        and "other_proj" in str(caught.value)
    )
