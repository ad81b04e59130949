"""Peak memory of a run: loading, training, answering, each counted from the model's sizes. Pure
integers, no torch.

What autograd keeps for a row of a block was counted from the code (`models/kernels/fused.py`,
`models/kernels/tree_attention.py`, Transformers' Llama) and compared with runs: docs/fit.md has the
table. T rows of a pass, D hidden, Q query width, K key width, F inner width, V vocabulary, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tunewright.advise.tried import Trial
from tunewright.core.machine import KERNELS
from tunewright.models.limits import (
    ANSWER_TOKENS,
    ANSWERS_AT_ONCE,
    AT_ONCE,
    HEAD_ROWS,
    KEEP_BYTES,
    WIDE_NUMBERS,
)
from tunewright.models.shape import BYTES, ModelShape, roles_of

MiB = 2**20
PROCESS_BYTES = 410 * MiB
"""Python with torch, Transformers and PEFT imported and a tokenizer of 50,000 tokens read, on Linux
without CUDA (measured: 391 to 410 MiB)."""
TOKEN_BYTES = 400
"""Of Python and Rust objects for each token of a vocabulary beyond those 50,000."""
GPU_BYTES = 600 * MiB
"""What a CUDA process holds on the device before any tensor: context, kernels, workspace of the
matrix library."""
TORN, LOOSE, LOOSER = 0.55, 0.1, 0.4
"""Bytes of holes for each byte of compiled products, which stay where they were made, between
tensors that go; for each byte that lives within a step only; and for each of these besides where
oneDNN keeps as many products as it may (docs/plan.md has the figures)."""
PYTORCHS = 0.33
"""Of the bytes of a compiled product, the copy that PyTorch keeps beside oneDNN's, of twice as many
products (`core.machine.KERNELS`)."""
ASKED_MORE = 2.0
"""Kinds of products of all answers and held-out passes of a run, for each that a trial meets."""
MOMENTS = {
    "adamw": 8,
    "adamw_8bit": 2,
    "adafactor": 0.1,
    "muon": 4,
    "lion": 4,
    "adamw_schedule_free": 12,
    "adam_mini": 4,
}
"""Bytes that an update rule keeps for each number that trains (`engine/optim.py`). Schedule-free:
with the copy of what it learns with while its mean is measured."""
SLACK = 1.15
"""What the allocator holds beyond the tensors that live in it: freed blocks of another size, and
temporaries of the backward pass."""


@dataclass(frozen=True)
class Work:
    """What decides memory besides the model: what trains, how, and how much at once."""

    trainable: int
    rows: int
    """Token rows of the largest pass."""
    label_rows: int
    """Rows of that pass that reach the head."""
    longest: int
    dtype: str
    on_cpu: bool = True
    tree: bool = True
    targets: tuple[str, ...] = ("linear",)
    rank: int | None = 16
    probes: int = 5
    base_bits: float | None = None
    """Bits of one weight of the blocks' matrices where the base is quantised."""
    optimizer: str = "adamw"
    trial: Trial | None = None
    """What a few blocks held here; None: everything is counted."""
    all_passes: float = 1.0
    """Passes of the whole run."""
    moments: int | None = None
    """Numbers in the moments of a method's own optimiser; None: those of `optimizer`."""
    measured_labels: int = 0
    """Rows of held-out samples that predict a token, where they are measured."""
    recompute: str = "none"
    keep_bytes: int = KEEP_BYTES
    offload: str = "none"

    @property
    def item(self) -> int:
        """Bytes of one number of the computation."""
        return BYTES.get(self.dtype, 4)


def row_bytes(shape: ModelShape, work: Work) -> float:
    """Bytes that autograd keeps for one token row over all blocks, without attention
    probabilities."""
    D, Q, K, F = (
        shape.hidden,
        shape.heads * shape.head_dim,
        shape.kv_heads * shape.head_dim,
        shape.inner,
    )
    roles = set(roles_of(shape, list(work.targets))) if work.rank else set(shape.matrices)
    # The residual before each norm, and q, k and v, are needed whatever trains; the output of
    # attention by stock attention, and where a layer learns from it.
    numbers = 2 * D + Q + 2 * K
    numbers += Q if "attention.output" in roles or not work.tree else 0
    gated = {"mlp.gate", "mlp.gate_up"} & set(shape.matrices)
    numbers += 3 * F if gated else 2 * F
    # The input of a layer that trains is kept; a frozen layer needs only its weight.
    numbers += (
        D if roles & {"attention.query", "attention.key", "attention.value", "attention.qkv"} else 0
    )
    numbers += D if roles & {"mlp.gate", "mlp.up", "mlp.gate_up"} else 0
    numbers += F if "mlp.down" in roles and gated else 0
    numbers += (work.rank or 0) * len(roles & set(shape.matrices))
    if shape.experts > 1:
        numbers += F * 3
    blocks = float(shape.layers)
    if work.offload in ("activations", "all"):
        # The last block, and the one whose backward pass it is.
        blocks = min(blocks, 2.0)
    if work.recompute == "full":
        # Every block keeps its input; the last one, and the one that is computed again, all.
        blocks = min(blocks, 2 + blocks * D / numbers)
    elif work.recompute == "selective":
        kept = numbers - (3 * F if gated else 2 * F) + D
        blocks = min(blocks, 2 + blocks * kept / numbers)
    return blocks * numbers * work.item


def attention_bytes(shape: ModelShape, work: Work) -> int:
    """Bytes of the attention probabilities kept for the backward pass."""
    if not work.tree:
        return 0
    # Blocks of short samples are joined and a causal block computes both halves: about the longest
    # sample and half a block of keys a row.
    pairs = work.rows * min(work.rows, work.longest + 64) * shape.heads * work.item
    if not work.on_cpu:
        return 0  # one kernel, which keeps a number a row (`kernels/flex_attention.py`)
    keep_bytes = work.keep_bytes if work.recompute == "none" else 0
    if work.offload in ("activations", "all") and keep_bytes:
        return 2 * pairs
    return pairs * shape.layers if pairs * shape.layers <= keep_bytes else pairs // 4


def weight_bytes(shape: ModelShape, work: Work) -> int:
    """Bytes of the base in the dtype it computes in. Quantised: the matrices of the blocks in few
    bits, the rest as before, and the largest matrix once more while it is used."""
    if work.base_bits is None and work.rank is None and work.item < 4:
        # What trains is counted with the optimiser, in float32; of its matrices one at a time is
        # copied (`models/kernels/master_linear.py`), of what lies outside of the blocks everything.
        frozen = max(0, shape.parameters - work.trainable)
        return (frozen + copied_numbers(shape, work)) * work.item
    if work.base_bits is None:
        return shape.parameters * work.item
    largest = max((m.inputs * m.outputs for m in shape.matrices.values()), default=0)
    return int(
        shape.block_weights * work.base_bits / 8
        + (shape.parameters - shape.block_weights + min(largest, WIDE_NUMBERS)) * work.item
    )


def whole_bytes(shape: ModelShape, work: Work) -> int:
    """Bytes of the whole base as a process reads it, or puts it together from shares."""
    if work.base_bits is not None or work.rank is not None:
        return weight_bytes(shape, work)
    trained = min(work.trainable, shape.parameters)
    return (shape.parameters - trained) * work.item + trained * 4


def copied_numbers(shape: ModelShape, work: Work) -> int:
    """Numbers of trained weights of the base of which a copy in half precision lives."""
    largest = max((m.inputs * m.outputs for m in shape.matrices.values()), default=0)
    outside = shape.parameters - shape.block_weights
    trains_all = work.trainable >= shape.parameters // 2
    return min(largest, work.trainable) + (outside if trains_all else 0)


def parts_of(shape: ModelShape, work: Work) -> dict[str, int]:
    """Bytes of each part while training: as a few blocks were seen to hold them, else counted."""
    adapter = work.trainable * 4 if work.rank else 0
    if work.trial is not None:
        return _tried(shape, work, work.trial)
    return {
        "weights": weight_bytes(shape, work),
        "adapter": adapter,
        "optimiser": state_bytes(work),
        "activations": int(
            SLACK * (work.rows * row_bytes(shape, work) + attention_bytes(shape, work))
        ),
        "head": _head_bytes(shape, work),
        "process": process_bytes(shape, work),
    }


def state_bytes(work: Work) -> int:
    """Bytes of gradients and of what the optimiser keeps.

    A gradient and the moments in float32 for each number that trains. An adapter's is used as a
    copy in the dtype of the model; a weight of a half-precision base is held in float32 besides
    (`methods/base_weights.py`).
    """
    copies = work.item if work.rank else 4 if work.item < 4 else 0
    own = work.trainable * MOMENTS.get(work.optimizer, 8.0)
    moments = own if work.moments is None else 4 * work.moments
    if work.offload in ("optimizer", "all"):
        moments = min(moments, float(AT_ONCE))
    return int(work.trainable * (4 + copies) + moments)


def process_bytes(shape: ModelShape, work: Work) -> int:
    """Bytes of the program without weights; on a GPU nothing of it counts as allocated."""
    if not work.on_cpu:
        return 0
    if work.trial is not None and work.trial.process_bytes:
        return work.trial.process_bytes
    return PROCESS_BYTES + TOKEN_BYTES * max(0, shape.vocabulary - 50_000)


def _tried(shape: ModelShape, work: Work, trial: Trial) -> dict[str, int]:
    """The parts as a few blocks were seen to hold them, from those few to all of them, and from the
    pass and the steps that were tried to those of the run."""
    adapter = work.trainable * 4 if work.rank else 0
    weights = trial.rest_weights + shape.layers * trial.block_weights - adapter
    whole = replace(work, recompute="none", keep_bytes=KEEP_BYTES, offload="none")
    share = work.trainable / max(1, trial.trainable)
    state = trial.state_bytes * share * state_bytes(work) / max(1, state_bytes(whole))
    kept_few = trial.rest_bytes + trial.learning_blocks * trial.block_bytes
    more = 0 if trial.still_blocks else shape.layers - trial.blocks
    larger = work.rows / max(1.0, trial.pass_rows)
    kept = larger * (kept_few + more * trial.block_bytes)
    if work != whole:
        seen, now = (
            work.rows * row_bytes(shape, one) + attention_bytes(shape, one) for one in (whole, work)
        )
        kept *= now / seen
    parts = {
        "weights": int(weights),
        "adapter": adapter,
        "optimiser": int(state),
        "activations": int(SLACK * kept),
        "head": 0,
        "process": process_bytes(shape, work),
    }
    if not trial.peak_bytes:
        parts["head"] = _head_bytes(shape, work)
        return parts
    # What lived besides in the largest pass that was tried: temporaries of the head and the loss.
    grown = trial.peak_rows / max(1.0, trial.pass_rows)
    gradients = trial.gradient_bytes * share
    several = trial.passes > 1
    besides = trial.peak_bytes - _together(kept_few * grown, trial.gradient_bytes, several)
    besides *= work.rows / max(1.0, trial.peak_rows)
    parts["optimiser"] = int(max(0.0, state - gradients))
    parts["activations"] = int(_together(kept, gradients, several))
    parts["head"] = max(0, int(besides))
    parts["kernels"] = _compiled(work, trial)
    within = parts["activations"] + parts["head"]
    parts["holes"] = hole_bytes(trial, parts["kernels"], within)
    return parts


def hole_bytes(trial: Trial, kernels: int, within: int) -> int:
    """Bytes that the process keeps of what was freed, where `kernels` bytes of compiled products
    stay and `within` bytes come and go."""
    full = KERNELS * trial.kernel_bytes
    share = min(1.0, kernels / full) if full else 0.0
    return int(TORN * kernels + (LOOSE + LOOSER * share) * within)


def _together(kept: float, gradients: float, several: bool) -> float:
    """Bytes of what autograd keeps and of gradients at the worst moment: in a step of one pass the
    former goes as the latter come."""
    return kept + gradients if several else max(kept, gradients)


def _compiled(work: Work, trial: Trial) -> int:
    """Bytes of the products that a run compiles and keeps: every new number of rows brings some,
    until oneDNN keeps as many as it may, and then PyTorch."""
    later = max(0.0, work.all_passes - 1)
    found = trial.first_kernels + ASKED_MORE * trial.read_kernels + later * trial.pass_kernels
    most = KERNELS * trial.kernel_bytes
    return int(min(found, most) + PYTORCHS * min(max(0.0, found - most), most))


def _head_bytes(shape: ModelShape, work: Work) -> int:
    """Bytes of the rows that visit the output head at once."""
    rows = min(HEAD_ROWS, work.label_rows)
    # A trainable head is computed again in float32, with a gradient of the same size.
    return rows * shape.vocabulary * (work.item if work.rank else work.item + 8)


def answering_bytes(shape: ModelShape, work: Work) -> int:
    """Bytes for the answers before and after: keys and values of all questions of a batch, and the
    probabilities of their next token."""
    length = work.longest + ANSWER_TOKENS
    questions = min(work.probes, ANSWERS_AT_ONCE)
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * length * work.item
    logits = shape.vocabulary * (work.item + 8)
    prefill = work.longest * (2 * shape.inner + 4 * shape.hidden) * 4
    return int(SLACK * questions * (cache + logits + prefill))


def measuring_bytes(shape: ModelShape, work: Work) -> int:
    """Bytes of the rows of held-out samples that visit the output head at once."""
    return min(HEAD_ROWS, work.measured_labels) * shape.vocabulary * work.item


def loading_bytes(shape: ModelShape, work: Work) -> int:
    """Bytes of the checkpoint that stay mapped while it is read. The system takes them back when
    memory is short, so a run never fails by them."""
    same = BYTES.get(shape.stored_dtype, 0) == work.item
    return 0 if same or not work.on_cpu else shape.file_bytes


def checkpoint_bytes(work: Work) -> int:
    """Bytes of a checkpoint: what trains and the optimiser's moments."""
    own = work.trainable * MOMENTS.get(work.optimizer, 8.0)
    return int(work.trainable * 4 + (own if work.moments is None else 4 * work.moments))


def saved_bytes(shape: ModelShape, work: Work) -> int:
    """Bytes of what the run leaves: an adapter in float32, or a whole model."""
    return shape.parameters * work.item if work.rank is None else 4 * work.trainable
