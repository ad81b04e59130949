"""What a run of several processes needs on each of them, and what they send each other in a step:
counted from the configuration alone, like `memory.py`.

With whole copies (ddp) a process needs what one by itself needs, for its part of the rows, and two
buckets of gradients on their way. In shares (fsdp) weights, gradients and optimiser state are
divided; what computes just now (two blocks, and all that lies outside of them) is there whole. Sums
over a ring: each process sends 2 (N - 1) / N of what is summed, and (N - 1) / N of what is gathered
or scattered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunewright.advise import memory
from tunewright.core import compat
from tunewright.core.words import say

if TYPE_CHECKING:
    from tunewright.advise.memory import Work
    from tunewright.advise.question import Question
    from tunewright.models.shape import ModelShape

DIVIDED = ("weights", "adapter", "optimiser")
"""Parts that lie in shares."""
BUCKET_BYTES = 64 << 20
"""Gradients that travel at once (`engine.ranks`)."""
MEETING_BYTES = 24 << 20
"""Of each process on a CPU: threads, sockets and buffers of gloo (measured: 15 to 30 MiB)."""


def parts_of(
    parts: dict[str, int], shape: ModelShape, work: Work, question: Question
) -> dict[str, int]:
    """The bytes of each part on one of `question.processes`, from those of a process by itself."""
    number = question.processes
    if number == 1:
        return parts
    found = dict(parts)
    if work.on_cpu:
        found["process"] += MEETING_BYTES
    gradients = 4 * work.trainable
    if question.parallel != "fsdp":
        found["travelling"] = 2 * min(BUCKET_BYTES, gradients)
        return found
    for name in DIVIDED:
        found[name] = -(-parts[name] // number)
    if work.rank is None and work.item < 4:
        copies = work.item * memory.copied_numbers(shape, work)
        found["weights"] = -(-(parts["weights"] - copies) // number) + copies
    found["travelling"] = gathered_bytes(shape, work)
    return found


def gathered_bytes(shape: ModelShape, work: Work) -> int:
    """Weights that are whole while they compute, and their gradients before they are summed: of two
    blocks, and of all that lies outside of them at once (embedding, head). A sum needs the
    gradient in one piece besides, and gloo was seen to hold three more while it sums."""
    trains_all = work.rank is None and work.trainable >= shape.parameters // 2
    item = 4 if trains_all else work.item
    block = shape.block_weights // max(1, shape.layers)
    outside = shape.parameters - shape.block_weights
    gradients = 2 * 4 * work.trainable // max(1, shape.layers)
    if trains_all:
        gradients = 2 * 4 * block + (5 if work.on_cpu else 2) * 4 * outside
    return (2 * block + outside) * item + gradients


def phases_of(
    parts: dict[str, int], shape: ModelShape, work: Work, question: Question, whole: int
) -> list[dict[str, int]]:
    """What a process on a CPU holds of weights in shares before and after it trains: it reads the
    `whole` model before it keeps a share; a checkpoint copies what it saves and then writes it from
    memory."""
    own = {"process": parts["process"]}
    saved = memory.checkpoint_bytes(work) // question.processes
    frozen = parts["weights"] if work.rank is not None or work.item < 4 else 0
    outside = 4 * (shape.parameters - shape.block_weights)
    return [
        own | {"weights": parts["weights"] + whole},
        own | {"weights": frozen, "optimiser": 3 * saved, "travelling": outside},
    ]


def sent_bytes(question: Question) -> int:
    """Bytes that each process sends in a step."""
    number, work, shape = question.processes, question.work, question.grown
    if number == 1:
        return 0
    gradients, ring = 4 * work.trainable, (number - 1) / number
    if question.parallel != "fsdp":
        return int(2 * ring * gradients)
    trains_all = work.rank is None and work.trainable >= shape.parameters // 2
    weights = shape.parameters * (4 if trains_all else work.item)
    # Weights come together in the forward pass and again in the backward pass.
    return int(question.passes * ring * (2 * weights + gradients))


def may_share(question: Question) -> bool:
    """Whether the weights of the run can lie in shares (`core.compat` refuses it by name)."""
    plain = question.base_bits is None and question.optimizer == "adamw"
    return plain and not compat.is_kept_whole(question.method)


def choose(
    question: Question, needs_whole: int, available: int, comfortable: int
) -> tuple[str, str]:
    """(`ddp` or `fsdp`, why): whole copies where each process has room for one, or where there is
    no other way."""
    from tunewright.core.files import readable_size

    need, have = readable_size(needs_whole), readable_size(available)
    if not may_share(question):
        return "ddp", say("ranks.ddp_only", need=need, have=have)
    if needs_whole <= comfortable:
        return "ddp", say("ranks.ddp_fits", need=need, have=have)
    return "fsdp", say("ranks.fsdp_needed", need=need, have=have)
