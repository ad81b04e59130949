"""The figures of a proof beside PyTorch's own, and faults of a merged folder that are no weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import building, exported, story

from tunewright.core.errors import TunewrightError
from tunewright.core.telling import Quiet
from tunewright.export import merge, proof
from tunewright.export.prompts import Prompts, Question
from tunewright.export.proof import InFile, Logits, Replies


def logits(seed: int, place: Path | None = None) -> Logits:
    """Of two prompts with 5 and 3 tokens over 11 words, in memory or in files."""
    torch.manual_seed(seed)
    parts = [torch.randn(5, 11) * 3, torch.randn(3, 11) * 3]
    if place is None:
        return Logits.gathered(list(parts))
    place.mkdir()
    files = [place / "0.f32", place / "1.f32"]
    for path, part in zip(files, parts, strict=True):
        part.numpy().tofile(path)
    return Logits.gathered([InFile(path, 11) for path in files])


def test_differences_are_pytorchs(tmp_path):
    run, other = logits(0), logits(1)
    a, b = run.values, other.values
    found = proof.differences(run, other)
    scale = a.abs().max()
    kl = torch.nn.functional.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="batchmean")  # fmt: skip
    assert found["divergence_nats"] == pytest.approx(float(kl), rel=1e-5)
    assert found["largest_logit_difference"] == pytest.approx(float((a - b).abs().max() / scale))
    assert found["mean_logit_difference"] == pytest.approx(float((a - b).abs().mean() / scale))
    assert found["top1_agreement"] == float((a.argmax(-1) == b.argmax(-1)).double().mean())
    in_files = proof.differences(logits(0, tmp_path / "a"), logits(1, tmp_path / "b"))
    assert in_files == found and proof.differences(run, run)["divergence_nats"] == 0


def test_the_loss_counts_what_is_learnt_only():
    said = logits(3)
    prompts = Prompts([[1, 4, 2, 9, 3], [5, 5, 7]], "data", [[0, 0, 1, 0.5, 0], [0, 0, 0]])
    first = next(iter(said))
    nats = [torch.nn.functional.cross_entropy(first[i], torch.tensor(t)) for i, t in ((1, 2), (2, 9))]  # fmt: skip
    assert proof.loss_of(said, prompts) == pytest.approx(float(nats[0] + 0.5 * nats[1]) / 1.5)
    assert proof.loss_of(said, Prompts(prompts.ids, "built-in")) is None


def test_answers_are_counted_by_text_expectation_and_end():
    asked = [Question([], "Paris"), Question([], ""), Question([], "4")]
    run = Replies(["It is Paris.", "hm", "5"], [True, False, True])
    other = Replies(["it is  PARIS.", "ha", "4!"], [True, True, False])
    found = proof.score_of(asked, run, other)
    assert found == {
        "asked": 3, "same": 1, "with_expectation": 2, "right_in_run": 1, "right": 2, "stopped_in_run": 2, "stopped": 2,
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("merged")
    template = building.CHATML.replace("<|im_end|>", "<|stop|>")
    tokenizer = exported.tokenizer_of("smollm", template, "<|stop|>")
    base = exported.folder_of(place / "base", "llama", tokenizer, vocab_size=len(tokenizer))
    return exported.run_of(place / "run", base, story.rows_file(place / "rows.json"))


@pytest.mark.parametrize(("fault", "code"), [("stop", "E-EXPORT-34"), ("template", "E-EXPORT-33")])
def test_a_merged_folder_that_stops_or_asks_otherwise_is_refused(
    tmp_path, run, monkeypatch, fault, code
):
    own = merge.Merge._write

    def write(self, fold, folder):
        own(self, fold, folder)
        template = folder / "chat_template.jinja"
        text = template.read_text(encoding="utf-8")
        if fault == "template":
            template.write_text(text.replace("\n", " ", 1), encoding="utf-8")
            return
        for name, keys in (
            ("generation_config.json", ["eos_token_id"]),
            ("config.json", ["eos_token_id"]),
            ("tokenizer_config.json", ["eos_token"]),
        ):
            stated = json.loads((folder / name).read_text())
            other = "<|endoftext|>" if name.startswith("tokenizer") else 0
            stated |= dict.fromkeys(keys, other)
            (folder / name).write_text(json.dumps(stated))
        template.write_text(text.replace("<|stop|>", "<|endoftext|>"), encoding="utf-8")

    monkeypatch.setattr(merge.Merge, "_write", write)
    with pytest.raises(TunewrightError) as error:
        merge.merge_run(run, tmp_path / "m", dtype="float32", tell=Quiet())
    assert error.value.problems[0].code == code and not list(tmp_path.iterdir())


def test_a_merge_leaves_the_general_record_too(tmp_path, run):
    verdict = merge.merge_run(run, tmp_path / "m", dtype="bfloat16", tell=Quiet())
    record = json.loads((tmp_path / "m/proof.json").read_text(encoding="utf-8"))
    assert record["exported"] == "merge" and record["run_by"]["name"] == "transformers"
    assert record["computed_in"] == "float32" and record["loss"]["run"] > 0
    assert record["top1_agreement"] == verdict["top1_agreement"] >= 0.97
