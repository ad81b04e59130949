"""Divergences and distillation against slow references written from the papers, one token of the
vocabulary at a time."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny

from tunewright.core.config import EngineConfig
from tunewright.core.errors import CheckpointError, CompatError
from tunewright.core.registry import objectives
from tunewright.core.telling import Quiet
from tunewright.core.types import Sample, Teaching
from tunewright.engine.loaded import use_layout
from tunewright.engine.oracles.named import teacher_of
from tunewright.engine.oracles.teacher import Teacher
from tunewright.engine.placement import World
from tunewright.engine.policy import Policy
from tunewright.models.kernels.divergence import FLOOR, bucketed, divergence, kept

KINDS = [
    ("forward", 0.5),
    ("reverse", 0.5),
    ("jensen_shannon", 0.5),
    ("jensen_shannon", 0.1),
    ("jensen_shannon", 0.9),
]
VARIANTS: list[dict[str, Any]] = [
    {}, {"divergence": "reverse", "alpha": 0.0}, {"divergence": "jensen_shannon", "beta": 0.3, "alpha": 0.2, "temperature": 2.0},
    {"temperature": 0.7}, {"top_k": 5, "temperature": 1.5}, {"top_k": 500, "divergence": "jensen_shannon"}, {"top_k": 3, "divergence": "reverse", "alpha": 0.0},
]  # fmt: skip


def slow_divergence(t: list[float], s: list[float], kind: str, beta: float) -> float:
    """Of two lists of probabilities."""
    if kind == "forward":
        return sum(p * math.log(p / q) for p, q in zip(t, s, strict=True) if p)
    if kind == "reverse":
        return sum(q * math.log(q / p) for p, q in zip(t, s, strict=True) if q)
    m = [beta * p + (1 - beta) * q for p, q in zip(t, s, strict=True)]
    return beta * slow_divergence(t, m, "forward", beta) + (1 - beta) * slow_divergence(
        s, m, "forward", beta
    )


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_divergences_equal_sums_over_the_vocabulary(kind: str, beta: float) -> None:
    draw = random.Random(1)
    for _ in range(20):
        logits = [[draw.gauss(0, 3) for _ in range(13)] for _ in range(2)]
        t, s = ([math.exp(x) / sum(map(math.exp, row)) for x in row] for row in logits)
        log_t, log_s = (
            torch.log_softmax(torch.tensor([row], dtype=torch.float64), -1) for row in logits
        )
        assert float(divergence(log_t, log_s, kind, beta)) == pytest.approx(
            slow_divergence(t, s, kind, beta), rel=1e-9
        )
    assert float(divergence(log_t, log_t, kind, beta)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_divergences_of_extreme_logits_are_finite_and_so_are_their_gradients(
    kind: str, beta: float
) -> None:
    z = torch.tensor([[1e4, -1e4, 0.0], [0.0, 1e4, -1e4], [-1e4, -1e4, 1e4]], requires_grad=True)
    taught = torch.tensor([[-1e4, 1e4, 0.0], [0.0, 1e4, -1e4], [1e4, 1e4, -1e4]])
    value = divergence(torch.log_softmax(taught, -1), torch.log_softmax(z, -1), kind, beta)
    value.sum().backward()
    assert bool(torch.isfinite(value).all()) and bool(torch.isfinite(z.grad).all())
    token, log_t = kept(taught, 1.0, 2)
    z.grad = None
    value = divergence(log_t, bucketed(z, 1.0, token), kind, beta)
    value.sum().backward()
    assert bool(torch.isfinite(value).all()) and bool(torch.isfinite(z.grad).all())


def test_what_is_not_kept_counts_as_one_token() -> None:
    z = torch.randn(4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    token, log = kept(z, 1.7, 3)
    p = torch.softmax(z / 1.7, -1)
    for row in range(4):
        order = sorted(range(9), key=lambda v: -float(p[row, v]))
        assert token[row].tolist() == order[:3]
        assert log[row].exp().tolist() == pytest.approx(
            [*(float(p[row, v]) for v in order[:3]), sum(float(p[row, v]) for v in order[3:])]
        )
    everything = kept(z, 1.0, 40)
    assert everything[0].shape == (4, 9) and bool((everything[1][:, -1] == FLOOR).all())


class Setting:
    """A moved LoRA student on the smaller of two tiny models, and a larger teacher of another
    family."""

    def __init__(
        self,
        layout: str = "tree",
        teacher_layout: str = "tree",
        family: str = "llama",
        trains: str = "lora",
    ):
        self.student = tiny.make_model(family)
        self.attached = (
            tiny.attach_lora(self.student) if trains == "lora" else tiny.attach_all(self.student)
        )
        tiny.randomise(self.attached, seed=2)
        self.layout = layout
        self.taught = tiny.make_model("qwen3", seed=7, num_hidden_layers=3, hidden_size=64)
        use_layout(self.taught, teacher_layout)
        self.teacher_policy = Policy(self.taught, self.taught, teacher_layout)

    def teacher(self, settings: dict[str, Any]) -> tuple[Any, Teacher]:
        entry = objectives.get("distill")
        assert entry is not None
        objective = entry.function(entry.config(teacher="t", **settings))
        return objective, Teacher(
            objective.teacher,
            tiny.VOCABULARY,
            lambda: self.teacher_policy,
            lambda: {"weights": "a"},
        )

    def gradients(
        self,
        settings: dict[str, Any],
        samples: list[Sample],
        rows_per_pass: int = 1 << 30,
        keep: bool = True,
    ) -> Any:
        stepper = tiny.make_stepper(
            self.student, self.attached, layout=self.layout, rows_per_pass=rows_per_pass
        )
        stepper.objective, stepper.policy.teacher = self.teacher(settings)
        if settings.get("top_k") and keep:
            stepper.policy.teacher.fill(samples, 40)
        return stepper.gradients(samples)

    def slow_loss(self, settings: dict[str, Any], samples: list[Sample]) -> Any:
        """One branch at a time through stock attention, the sums over the vocabulary written out."""
        self.student.set_attn_implementation("eager")
        self.taught.set_attn_implementation("eager")
        self.attached.model.eval()
        alpha, temperature, kind, beta = (
            settings.get(k, d)
            for k, d in (
                ("alpha", 0.5),
                ("temperature", 1.0),
                ("divergence", "forward"),
                ("beta", 0.5),
            )
        )
        likelihood = taught = torch.zeros(())
        weights = 0.0
        for branch in (b for sample in samples for b in sample.branches):
            ids = torch.tensor([branch.tokens])
            z_s = self.attached.model(input_ids=ids).logits[0].float()
            with torch.no_grad():
                z_t = self.taught(input_ids=ids).logits[0].float()
            for i, weight in zip(branch.learnt, branch.weights, strict=True):
                t, s = (
                    torch.softmax(z_t[i - 1] / temperature, -1),
                    torch.softmax(z_s[i - 1] / temperature, -1),
                )
                if settings.get("top_k", 10**9) < len(t):
                    order = sorted(range(len(t)), key=lambda v: -float(t[v]))
                    top, rest = order[: settings["top_k"]], order[settings["top_k"] :]
                    t, s = (torch.cat([p[top], p[rest].sum()[None]]) for p in (t, s))
                m = beta * t + (1 - beta) * s
                value = {
                    "forward": (t * torch.log(t / s)).sum(), "reverse": (s * torch.log(s / t)).sum(),
                    "jensen_shannon": beta * (t * torch.log(t / m)).sum() + (1 - beta) * (s * torch.log(s / m)).sum(),
                }[kind]  # fmt: skip
                taught = taught + weight * value
                likelihood = (
                    likelihood - weight * torch.log_softmax(z_s[i - 1], -1)[branch.tokens[i]]
                )
                weights += weight
        return alpha * likelihood / weights + (1 - alpha) * temperature**2 * taught / weights


def close(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys() and ours
    for name, g in theirs.items():
        assert float((ours[name] - g).norm()) <= 2e-5 * float(g.norm()) + 1e-9, name


@pytest.mark.wide("settings0", "settings3-tree-padded", "settings5-padded-tree")
@pytest.mark.parametrize(
    ("layout", "teacher_layout"), [("tree", "tree"), ("padded", "tree"), ("tree", "padded")]
)
@pytest.mark.parametrize("settings", VARIANTS)
def test_value_and_gradient_equal_the_papers_formula(
    settings: dict[str, Any], layout: str, teacher_layout: str
) -> None:
    s = Setting(layout, teacher_layout)
    samples = [*tiny.dialogues()[:3], *tiny.nothing_shared()[:1]]
    report = s.gradients(settings, samples)
    ours = tiny.gradients(s.attached)
    loss = s.slow_loss(settings, samples)
    loss.backward()
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    close(ours, tiny.gradients(s.attached))


@pytest.mark.parametrize("settings", VARIANTS[:4])
def test_a_head_that_trains_and_is_the_embedding_has_the_same_gradient(
    settings: dict[str, Any],
) -> None:
    s = Setting(family="gemma2", trains="everything")
    samples = tiny.dialogues()[:3]
    s.gradients(settings, samples)
    ours = tiny.gradients(s.attached)
    s.slow_loss(settings, samples).backward()
    close(ours, tiny.gradients(s.attached))


@pytest.mark.parametrize("settings", [VARIANTS[2], VARIANTS[4]])
def test_how_the_step_is_cut_changes_nothing(settings: dict[str, Any]) -> None:
    found = []
    for rows in (1 << 30, 40, 1):
        s = Setting()
        report = s.gradients(settings, [*tiny.nothing_shared(), *tiny.dialogues()[:1]], rows)
        found.append((report.passes, report.terms, tiny.gradients(s.attached)))
    assert [passes for passes, _, _ in found] == [1, 4, 5]
    for _, terms, other in found[1:]:
        assert terms == pytest.approx(found[0][1], rel=1e-5)
        close(other, found[0][2])


def test_kept_scores_are_the_ones_computed_live_and_survive_a_save(tmp_path: Path) -> None:
    samples = tiny.dialogues()
    settings = {"top_k": 4, "temperature": 1.3}
    live = Setting().gradients(settings, samples, keep=False)
    s = Setting()
    assert s.gradients(settings, samples).loss == pytest.approx(live.loss, rel=1e-5)
    _, teacher = s.teacher(settings)
    teacher.fill(samples, 30)
    teacher.save(tmp_path)

    def closed() -> Any:
        raise AssertionError("the teacher must not be needed again")

    again = Teacher(teacher.teaching, tiny.VOCABULARY, closed, lambda: {"weights": "a"})
    assert again.load(tmp_path) and again.store is not None and teacher.store is not None
    fresh = s.teacher(settings)[1]
    fresh.fill(samples, 30, tmp_path)
    for sample in samples:
        assert all(
            np.array_equal(lines, again.store.get([sample])[name])
            for name, lines in fresh.store.get([sample]).items()
        )
    stepper = tiny.make_stepper(s.student, s.attached)
    stepper.objective, stepper.policy.teacher = s.teacher(settings)[0], again
    assert stepper.gradients(samples).loss == pytest.approx(live.loss, rel=1e-5)
    for other in (
        Teacher(teacher.teaching, tiny.VOCABULARY, closed, lambda: {"weights": "b"}),
        Teacher(
            Teaching("t", temperature=2.0, top_k=4),
            tiny.VOCABULARY,
            closed,
            lambda: {"weights": "a"},
        ),
    ):
        with pytest.raises(CheckpointError) as caught:
            other.load(tmp_path)
        assert caught.value.problems[0].code == "E-OBJ-06"
    (tmp_path / "teacher.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(CheckpointError) as caught:
        again.load(tmp_path)
    assert caught.value.problems[0].code == "E-OBJ-05"
    assert not again.load(tmp_path / "nowhere")


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it() -> None:
    model = tiny.make_model("llama")
    attached = tiny.attach_lora(model)
    stepper = tiny.make_stepper(model, attached)
    s = Setting()
    s.teacher_policy = Policy(tiny.make_model("llama"), None, "tree")
    s.teacher_policy.causal = [s.teacher_policy.model]
    use_layout(s.teacher_policy.model, "tree")
    stepper.objective, stepper.policy.teacher = s.teacher({"alpha": 0.0})
    report = stepper.gradients(tiny.dialogues())
    assert report.loss == pytest.approx(0.0, abs=1e-5)
    assert max(float(g.abs().max()) for g in tiny.gradients(attached).values()) < 1e-5


# ---- opening a teacher


def world() -> World:
    return World("cpu", "float32", 1, 256)


def opened(student: Path, teacher: Path) -> Teacher:
    size = json.loads((student / "config.json").read_text())["vocab_size"]
    return teacher_of(Teaching(str(teacher)), student, size, EngineConfig(), world(), Quiet())


def test_a_teacher_is_opened_when_it_is_needed_and_compared_through_its_own_layout(
    tmp_path: Path,
) -> None:
    student, teacher = (
        tiny.save_folder(tmp_path / "s"),
        tiny.save_folder(tmp_path / "t", "qwen3", seed=7),
    )
    made = opened(student, teacher)
    samples = tiny.dialogues()
    s = Setting()
    stepper = tiny.make_stepper(s.student, s.attached)
    stepper.objective, stepper.policy.teacher = s.teacher({})[0], made
    ours = stepper.gradients(samples).loss
    assert made.policy.layout == "tree"
    s.taught = tiny.make_model("qwen3", seed=7)
    assert ours == pytest.approx(float(s.slow_loss({}, samples).detach()), rel=1e-5)


def test_a_teacher_with_another_number_of_tokens_is_refused_with_both_numbers(
    tmp_path: Path,
) -> None:
    student, teacher = (
        tiny.save_folder(tmp_path / "s"),
        tiny.save_folder(tmp_path / "t", vocab_size=300),
    )
    with pytest.raises(CompatError) as caught:
        opened(student, teacher)
    (found,) = caught.value.problems
    assert found.code == "E-OBJ-02" and "300" in found.what() and "211" in found.what()


def test_a_teacher_that_numbers_its_tokens_otherwise_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folders = []
    for name, words in (("s", "a b c d"), ("t", "a c b d"), ("u", "a b c d e")):
        folder = tiny.save_folder(tmp_path / name)
        backend = Tokenizer(
            models.WordLevel({word: i for i, word in enumerate(words.split())}, unk_token="a")
        )
        PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="a").save_pretrained(folder)
        folders.append(folder)
    with pytest.raises(CompatError) as caught:
        opened(folders[0], folders[1])
    assert caught.value.problems[0].code == "E-OBJ-03" and "2 of" in caught.value.problems[0].what()
    with pytest.raises(CompatError) as caught:
        opened(folders[0], folders[2])
    assert (
        caught.value.problems[0].code == "E-OBJ-02" and caught.value.problems[0].fields["size"] == 5
    )
    assert opened(folders[0], folders[0]).vocabulary == tiny.VOCABULARY


def test_rows_of_a_larger_head_that_stand_for_no_token_are_left_out() -> None:
    """Heads of one family are padded to different sizes; what both know is compared."""
    s = Setting()
    s.taught = tiny.make_model("qwen3", seed=7, vocab_size=256)
    with torch.no_grad():
        s.taught.lm_head.weight[tiny.VOCABULARY :] = 9.0
    use_layout(s.taught, "tree")
    s.teacher_policy = Policy(s.taught, s.taught, "tree")
    samples = tiny.nothing_shared()[:2]
    ours = s.gradients({"alpha": 0.0}, samples).loss
    s.student.set_attn_implementation("eager")
    s.taught.set_attn_implementation("eager")
    values = []
    with torch.no_grad():
        for branch in (b for sample in samples for b in sample.branches):
            ids = torch.tensor([branch.tokens])
            z_s, z_t = (
                s.attached.model.eval()(input_ids=ids).logits[0],
                s.taught(input_ids=ids).logits[0, :, : tiny.VOCABULARY],
            )
            t, q = torch.softmax(z_t, -1), torch.softmax(z_s, -1)
            values += [
                float((t[i - 1] * torch.log(t[i - 1] / q[i - 1])).sum()) for i in branch.learnt
            ]
    assert ours == pytest.approx(sum(values) / len(values), rel=1e-5)
