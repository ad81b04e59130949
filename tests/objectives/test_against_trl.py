"""Our losses against those of TRL's own trainers: the same tiny Llama, the same batch, value and
gradient in float32.

Each trainer is made as a user makes it, tokenises and batches the rows itself, and computes the
loss of its first batch; ours is computed from the token ids of that batch. Where TRL and a paper
differ, the option that reproduces TRL is compared (`orpo` with `sft_on: all`). Needs `pip install
trl`.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.core.registry import objectives
from tunewright.core.types import Branch, Sample
from tunewright.engine.loaded import use_layout
from tunewright.engine.oracles.reference import ReferenceStore
from tunewright.engine.oracles.teacher import Teacher
from tunewright.engine.policy import Policy

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]
trl = pytest.importorskip("trl")

TESTED = "1.16"
PARTS = [
    "red ",
    "stone",
    " and",
    " river",
    " old",
    " lamp",
    " seven",
    " keeps",
    " north",
    " salt",
    "water",
    " 4",
    " glass",
]


@pytest.fixture(autouse=True)
def _said(record_property: Callable[[str, object], None]) -> None:
    """Every result says which TRL it was compared with."""
    record_property("trl", trl.__version__)
    if not trl.__version__.startswith(TESTED + "."):
        warnings.warn(
            f"compared with TRL {trl.__version__}; what is promised was shown with {TESTED}",
            stacklevel=1,
        )


def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["".join(PARTS)] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def texts(count: int, seed: int) -> Iterator[str]:
    draw = random.Random(seed)
    for _ in range(count):
        yield "".join(draw.choices(PARTS, k=draw.randrange(3, 9)))


def pair_rows(count: int = 6) -> list[dict[str, Any]]:
    return [
        {"prompt": f"{p}:", "chosen": f" {c}", "rejected": f" {r}"}
        for p, c, r in zip(texts(count, 1), texts(count, 2), texts(count, 3), strict=True)
    ]


def judged_rows(count: int = 6) -> list[dict[str, Any]]:
    return [
        {"prompt": f"{i}{p}:", "completion": f" {c}", "label": i % 3 != 1}
        for i, (p, c) in enumerate(zip(texts(count, 4), texts(count, 5), strict=True))
    ]


class Models:
    """A model that has moved from where it started, and where it started. Every parameter trains,
    the head too."""

    def __init__(self, drift: float = 0.02) -> None:
        self.tokenizer = tokenizer()
        self.start = tiny.make_model(
            "llama", vocab_size=len(self.tokenizer), tie_word_embeddings=True, initializer_range=0.1
        )
        self.policy = copy.deepcopy(self.start)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for p in self.policy.parameters():
                p.add_(torch.randn(p.shape, generator=generator) * drift)

    def theirs(self) -> tuple[Any, Any]:
        """Copies, because TRL's trainers change the forward of a model they are given."""
        return tuple(copy.deepcopy(m).requires_grad_(True) for m in (self.policy, self.start))  # type: ignore[return-value]

    def ours(
        self, kind: str, settings: dict[str, Any], samples: list[Sample], layout: str = "tree"
    ) -> tuple[float, dict[str, torch.Tensor]]:
        model, start = copy.deepcopy(self.policy), copy.deepcopy(self.start)
        entry = objectives.get(kind)
        assert entry is not None
        objective = entry.function(entry.config(**settings))
        attached = tiny.attach_all(model)
        stepper = tiny.make_stepper(model, attached, layout=layout)
        stepper.objective, stepper.policy.spread = objective, objective.spread
        stepper.policy.asks = objective.asks
        use_layout(start, layout)
        if objective.reference:
            store = ReferenceStore({})
            at_start = Policy(start, start, layout)
            store.fill(at_start, samples, 256)
            if objective.companions:
                store.fill(at_start, objective.companions(samples, None), 256)
            stepper.policy.reference = store
        if objective.teacher:
            stepper.policy.teacher = Teacher(
                objective.teacher, len(self.tokenizer), lambda: Policy(start, start, layout), dict
            )
        return stepper.gradients(samples).loss, tiny.gradients(attached)


def settings_of(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path), "per_device_train_batch_size": 6, "report_to": [], "use_cpu": True, "bf16": False, "fp16": False, "max_length": 256,
        "gradient_checkpointing": False, "disable_tqdm": True, "seed": 0, "logging_strategy": "no", "save_strategy": "no", **more,
    }  # fmt: skip


def first_batch(trainer: Any) -> Any:
    return next(iter(trainer.get_train_dataloader()))


def their_loss(trainer: Any, batch: Any) -> tuple[float, dict[str, torch.Tensor]]:
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return float(loss.detach()), {
        n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None
    }


def agree(
    ours: tuple[float, dict[str, torch.Tensor]], theirs: tuple[float, dict[str, torch.Tensor]]
) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert ours[1].keys() == theirs[1].keys() and ours[1]
    for name, g in theirs[1].items():
        assert float((ours[1][name] - g).norm()) <= 1e-5 * float(g.norm()) + 1e-9, name
    assert sum(float(g.norm()) for g in theirs[1].values()) > 1e-3


def branch(ids: Any, learnt: Any, role: str = "answer") -> Branch:
    """Of a padded row and a mask of what counts; cut after the last learnt token."""
    places = [i for i, one in enumerate(learnt.tolist()) if one]
    return Branch(ids.tolist()[: places[-1] + 1], places, [1.0] * len(places), role=role)


def dataset(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sft(tmp_path: Path, smoothing: float, layout: str) -> None:
    m = Models()
    args = trl.SFTConfig(**settings_of(tmp_path, label_smoothing_factor=smoothing))
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pair_rows()]
    trainer = trl.SFTTrainer(
        m.theirs()[0], args=args, train_dataset=dataset(rows), processing_class=m.tokenizer
    )
    batch = first_batch(trainer)
    samples = [
        Sample([branch(ids, labels != -100)], i)
        for i, (ids, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True))
    ]
    agree(
        m.ours("sft", {"label_smoothing": smoothing}, samples, layout), their_loss(trainer, batch)
    )


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_sft_that_weighs_tokens_by_their_own_probability(tmp_path: Path, layout: str) -> None:
    m = Models()
    args = trl.SFTConfig(**settings_of(tmp_path, loss_type="dft"))
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pair_rows()]
    trainer = trl.SFTTrainer(
        m.theirs()[0], args=args, train_dataset=dataset(rows), processing_class=m.tokenizer
    )
    batch = first_batch(trainer)
    samples = [
        Sample([branch(ids, labels != -100)], i)
        for i, (ids, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True))
    ]
    agree(m.ours("sft", {"loss": "dft"}, samples, layout), their_loss(trainer, batch))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
            {"loss": ["sigmoid", "bco_pair"], "loss_weights": [0.8, 0.2], "sft_weight": 1.0},
        ),
        ({"loss_type": ["hinge", "ipo"]}, {"loss": ["hinge", "ipo"]}),
        ({"loss_type": ["sigmoid"], "use_weighting": True}, {"wpo": True}),
        (
            {"loss_type": ["ipo", "nca_pair"], "loss_weights": [0.5, 2.0], "use_weighting": True},
            {"loss": ["ipo", "nca_pair"], "loss_weights": [0.5, 2.0], "wpo": True},
        ),
    ],
)
def test_dpo_that_mixes_losses_or_weighs_pairs(
    tmp_path: Path, theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    m = Models()
    model, start = m.theirs()
    trainer = trl.DPOTrainer(
        model,
        ref_model=start,
        args=trl.DPOConfig(**settings_of(tmp_path, **theirs)),
        train_dataset=dataset(pair_rows()),
        processing_class=m.tokenizer,
    )
    batch = first_batch(trainer)
    pairs = _pairs_of(batch["input_ids"], batch["completion_mask"])
    agree(m.ours("dpo", ours, pairs), their_loss(trainer, batch))


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        ("bco_pair", {}), ("discopop", {}), ("sigmoid_norm", {"beta": 2.0}),
        ("sigmoid", {}), ("hinge", {"beta": 0.4}), ("ipo", {"beta": 0.2}), ("robust", {"label_smoothing": 0.1}), ("sigmoid", {"beta": 0.3}),
        ("exo_pair", {"label_smoothing": 0.1}), ("nca_pair", {}), ("sppo_hard", {"beta": 0.5}), ("apo_zero", {}), ("apo_down", {}),
    ],
)  # fmt: skip
def test_dpo(tmp_path: Path, loss: str, settings: dict[str, Any], layout: str) -> None:
    m = Models()
    args = trl.DPOConfig(**settings_of(tmp_path, loss_type=[loss], **settings))
    model, start = m.theirs()
    trainer = trl.DPOTrainer(
        model,
        ref_model=start,
        args=args,
        train_dataset=dataset(pair_rows()),
        processing_class=m.tokenizer,
    )
    batch = first_batch(trainer)
    agree(
        m.ours(
            "dpo",
            {"loss": loss, **settings},
            _pairs_of(batch["input_ids"], batch["completion_mask"]),
            layout,
        ),
        their_loss(trainer, batch),
    )


def _pairs_of(ids: Any, mask: Any) -> list[Sample]:
    half = len(ids) // 2
    return [
        Sample(
            [branch(ids[i], mask[i], "chosen"), branch(ids[half + i], mask[half + i], "rejected")],
            i,
        )
        for i in range(half)
    ]


def test_label_smoothing_of_dpo_is_cpos(tmp_path: Path) -> None:
    """TRL's DPO has no smoothed sigmoid any more (`robust` is another loss); its CPO trainer still
    has it."""
    m = Models()
    loss, batch = _cpo_like(
        tmp_path, m, "cpo", loss_type="sigmoid", cpo_alpha=0.0, beta=0.1, label_smoothing=0.2
    )
    agree(m.ours("cpo", {"beta": 0.1, "label_smoothing": 0.2, "sft_weight": 0.0}, batch), loss)


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beta": 0.5, "desirable_weight": 1.2, "undesirable_weight": 0.7},
        {"loss_type": "apo_zero_unpaired"},
    ],
)
def test_kto(tmp_path: Path, settings: dict[str, Any], layout: str) -> None:
    m = Models(drift=-0.02)  # the way in which the mismatched answers became likelier
    args = trl.KTOConfig(**settings_of(tmp_path, **settings))
    model, start = m.theirs()
    trainer = trl.KTOTrainer(
        model,
        ref_model=start,
        args=args,
        train_dataset=dataset(judged_rows()),
        processing_class=m.tokenizer,
    )
    # In the order of the rows, whose answers TRL has moved on by one for the baseline, as we do.
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(6)])
    parts = zip(batch["input_ids"], batch["completion_mask"], batch["label"], strict=True)
    samples = [
        Sample([branch(ids, mask, "good" if good else "bad")], i)
        for i, (ids, mask, good) in enumerate(parts)
    ]
    names = {"desirable_weight": "good_weight", "undesirable_weight": "bad_weight"}
    ours = {names.get(k, k): v for k, v in settings.items() if k != "loss_type"} | (
        {"loss": "apo_zero"} if "loss_type" in settings else {}
    )
    found = their_loss(trainer, batch)
    if "loss_type" not in settings:
        assert trainer._metrics["train"]["kl"][-1] > 1e-3  # else the baseline would not be compared
    agree(m.ours("kto", ours, samples, layout), found)


def _cpo_like(
    tmp_path: Path, m: Models, name: str, **settings: Any
) -> tuple[tuple[float, dict[str, torch.Tensor]], list[Sample]]:
    """The loss of one of TRL's experimental trainers, and the pairs of its batch."""
    if name == "cpo":
        from trl.experimental.cpo import CPOConfig as Config
        from trl.experimental.cpo import CPOTrainer as Trainer
    else:
        from trl.experimental.orpo import ORPOConfig as Config
        from trl.experimental.orpo import ORPOTrainer as Trainer
    trainer = Trainer(
        m.theirs()[0],
        args=Config(**settings_of(tmp_path, **settings)),
        train_dataset=dataset(pair_rows()),
        processing_class=m.tokenizer,
    )
    batch = first_batch(trainer)
    sides = [[branch(ids, labels != -100, side) for ids, labels in zip(batch[f"{side}_input_ids"], batch[f"{side}_labels"], strict=True)]
             for side in ("chosen", "rejected")]  # fmt: skip
    return their_loss(trainer, batch), [
        Sample(list(both), i) for i, both in enumerate(zip(*sides, strict=True))
    ]


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_orpo_with_the_likelihood_of_question_and_answer(tmp_path: Path, layout: str) -> None:
    m = Models()
    loss, samples = _cpo_like(tmp_path, m, "orpo", beta=0.3)
    papers = m.ours("orpo", {"beta": 0.3}, copy.deepcopy(samples), layout)
    agree(m.ours("orpo", {"beta": 0.3, "sft_on": "all"}, samples, layout), loss)
    assert papers[0] != pytest.approx(loss[0], rel=1e-3)  # the difference is one that can be seen


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 1.0), (2.5, 0.5)])
def test_simpo(tmp_path: Path, beta: float, gamma: float, layout: str) -> None:
    m = Models()
    loss, samples = _cpo_like(
        tmp_path, m, "cpo", loss_type="simpo", cpo_alpha=0.0, beta=beta, simpo_gamma=gamma
    )
    agree(m.ours("simpo", {"beta": beta, "gamma": gamma}, samples, layout), loss)


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_cpo(tmp_path: Path, layout: str) -> None:
    m = Models()
    loss, samples = _cpo_like(tmp_path, m, "cpo", loss_type="sigmoid", cpo_alpha=0.7, beta=0.2)
    agree(m.ours("cpo", {"beta": 0.2, "sft_weight": 0.7}, samples, layout), loss)


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize(
    ("beta", "temperature", "settings"),
    [
        (0.0, 1.0, {}),
        (1.0, 1.0, {"divergence": "reverse"}),
        (0.3, 2.0, {"divergence": "jensen_shannon", "beta": 0.3}),
        (0.0, 0.5, {}),
    ],
)
def test_distill(beta: float, temperature: float, settings: dict[str, Any], layout: str) -> None:
    """GKD's own loss on given texts. TRL leaves out the square of the temperature."""
    from trl.experimental.gkd import GKDTrainer

    m = Models()
    draw = SimpleNamespace(
        ids=torch.randint(3, 250, (4, 17), generator=torch.Generator().manual_seed(2))
    )
    labels = draw.ids.clone()
    labels[:, :5] = -100
    student, teacher = m.theirs()
    with torch.no_grad():
        taught = teacher(input_ids=draw.ids).logits
    loss = GKDTrainer.generalized_jsd_loss(
        student(input_ids=draw.ids).logits[:, :-1],
        taught[:, :-1],
        labels=labels[:, 1:],
        beta=beta,
        temperature=temperature,
    )
    loss = loss * temperature**2
    loss.backward()
    theirs = (
        float(loss.detach()),
        {n: p.grad for n, p in student.named_parameters() if p.grad is not None},
    )
    samples = [
        Sample([branch(ids, row != -100)], i)
        for i, (ids, row) in enumerate(zip(draw.ids, labels, strict=True))
    ]
    agree(
        m.ours(
            "distill",
            {"teacher": "-", "alpha": 0.0, "temperature": temperature, **settings},
            samples,
            layout,
        ),
        theirs,
    )
