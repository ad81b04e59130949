"""The output head of a model whose head is more than a matrix: BERT's transform before it, hidden
rows that are scaled first, logits that are cut or bent afterwards.

What stands between the last hidden rows and the logits is written in the `forward` of each family.
That code is run as it is, with hidden rows put in the place of what the body would compute; nothing
of it is copied. Whether a family needs it is tried once, on random rows.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tunewright.models.anatomy import body_of
from tunewright.models.kernels.label_head import Head
from tunewright.models.load import size_of

SIZES = (1.0, 30.0, 1000.0)
"""Standard deviations of the random rows."""
ROWS = len(SIZES)
DIFFERS = 0.1
"""Share of the spread of the log-probabilities."""
_needed: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


class _Given(dict[Any, Any]):
    """Stands for the output of a body that computed `hidden`, whatever is asked of it."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__(last_hidden_state=hidden)
        self.last_hidden_state = hidden

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return (self.last_hidden_state,)[key]
        return self.last_hidden_state if key in (0, "last_hidden_state") else None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class WholeHead:
    """Hidden rows (L, D) to logits (L, vocabulary), by the model's own forward."""

    def __init__(self, causal: Any) -> None:
        self.causal = causal
        self.body = body_of(causal)

    def __call__(self, hidden_LD: Tensor) -> Tensor:
        ids = torch.zeros(1, len(hidden_LD), dtype=torch.long, device=hidden_LD.device)
        before, asked = vars(self.body).get("forward"), []

        def given(*args: Any, **more: Any) -> _Given:
            asked.append(True)
            return _Given(hidden_LD[None])

        self.body.forward = given
        try:
            found = self.causal(input_ids=ids, use_cache=False, return_dict=True).logits
        finally:
            if before is None:
                del self.body.forward
            else:
                self.body.forward = before
        if not asked:  # a decoder taken out of a translation model asks its part, not the whole
            raise RuntimeError("the body was not asked")
        logits: Tensor = found[0]
        return logits


def is_needed(causal: Any, plain: Head) -> bool:
    """Whether the logits of a causal model are something else than `plain`: its output matrix times
    the hidden rows, with the scale and the cap that its configuration names."""
    if causal not in _needed:
        _needed[causal] = _differs(causal, plain)
    return _needed[causal]


@torch.no_grad()
def _differs(causal: Any, plain: Head) -> bool:
    table = plain.weight
    if table.device.type == "meta" or table.ndim != 2:
        return False
    training = causal.training
    causal.eval()
    try:
        whole = _logits(causal, table, table.shape[1])
        if whole is None:
            # A head that makes rows narrower first (RemBERT): its matrix does not fit them.
            width = size_of(causal.config.get_text_config(), "hidden_size", "d_model")
            return _logits(causal, table, width) is not None
        ours = plain.logits(_rows(table, table.shape[1]))
    finally:
        causal.train(training)
    if whole.shape != ours.shape:
        return False
    theirs, mine = (torch.log_softmax(z.float(), -1) for z in (whole, ours))
    # Far above what half precision rounds; another head is off by the size of the logits.
    gaps_L, spread_L = (theirs - mine).abs().mean(-1), mine.std(-1)
    return bool((gaps_L > DIFFERS * spread_L).any())


def _rows(table: Tensor, width: int) -> Tensor:
    """(ROWS, width) random rows, each larger than the one before: a cap is seen at large logits
    alone."""
    generator = torch.Generator().manual_seed(0)
    sizes_L1 = torch.tensor(SIZES)[:, None]
    rows_LD = sizes_L1 * torch.randn(ROWS, width, generator=generator)
    return rows_LD.to(table.device, table.dtype)


def _logits(causal: Any, table: Tensor, width: int) -> Tensor | None:
    """What the model's own forward makes of random rows of a width; None where it cannot."""
    try:
        return WholeHead(causal)(_rows(table, width))
    except (RuntimeError, TypeError, AttributeError, ValueError, KeyError, IndexError):
        return None
