"""Checkpoints of weights in shares: every rank writes its own part of every tensor, through
`torch.distributed.checkpoint`, as safetensors and without pickle.

The protocol is that of all checkpoints (`record.checkpoint`): everything is written into a hidden
folder, a manifest with the SHA-256 of every file comes last, then the folder is renamed. Each rank
hashes what it wrote; rank 0 publishes. A file says in its head which part of each tensor it holds,
so a run goes on with any number of processes: whoever reads puts the parts of one tensor after the
other together (`Checkpoint.tensors`) and keeps its own share.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tunewright.core.errors import CheckpointError, problem_of
from tunewright.engine import ranks
from tunewright.record import checkpoint

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def save(
    root: Path,
    step: int,
    tensors: dict[str, dict[str, Tensor]],
    state: dict[str, Any],
    *,
    protect: int | None = None,
) -> Path:
    """Publish the checkpoint of `step` from all ranks, and prune older ones. Arguments, and what is
    raised, as of `record.checkpoint.save`; it is raised on every rank."""
    team, target = ranks.current(), checkpoint.folder_of(root, step)
    flat = {f"{file}/{name}": t for file, group in tensors.items() for name, t in group.items()}
    needed = sum(t.numel() * t.element_size() for t in flat.values()) + 65536
    with contextlib.ExitStack() as stack:
        begin = checkpoint.filling(root, step, needed)
        temporary = _on_first(lambda: stack.enter_context(begin))
        if temporary is not None:
            _on_all(root, needed, lambda: _write(temporary, flat))
            files: dict[str, Any] = {}
            mine = f"shard-{team.rank + 1:05d}-*"
            for part in team.gather(checkpoint.facts_of(temporary, mine)):
                files |= part
            _on_first(lambda: checkpoint.seal(temporary, step, state, files))
        _on_first(stack.close)
    team.only_first(lambda: checkpoint.prune(root, protect))
    return target


def _write(folder: Path, flat: dict[str, Tensor]) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save(dict(flat), storage_writer=writer, process_group=ranks.current().control)


def _on_first(do: Callable[[], T]) -> T:
    """What rank 0 gets from `do`; the error that it raises there is raised everywhere."""

    def attempt() -> tuple[T | None, list[dict[str, Any]]]:
        try:
            return do(), []
        except CheckpointError as e:
            return None, [one.as_dict() for one in e.problems]

    found, wrong = ranks.current().first(attempt)
    if wrong:
        raise CheckpointError([problem_of(one) for one in wrong])
    return found  # type: ignore[return-value]


def _on_all(root: Path, needed: int, do: Callable[[], object]) -> None:
    """Let every rank do its part. A disk that is full for one of them is an error on all."""
    wrong: list[dict[str, Any]] = []
    try:
        do()
    except Exception as e:
        cause: BaseException | None = e
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if not isinstance(cause, OSError):
            raise
        error = checkpoint.blamed(root, needed, cause)
        wrong = [one.as_dict() for one in error.problems]
    told = [one for part in ranks.current().gather(wrong) for one in part]
    if told:
        raise CheckpointError(problem_of(told[0]))
