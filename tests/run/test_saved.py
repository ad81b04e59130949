"""What is compared after the reload: each text's own logits, whichever pass they came from."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.run import saved
from tunewright.run.saved import Text


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_texts_share_a_pass_and_keep_their_own_logits(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.make_model(family).eval()
    texts = [
        Text([1, 5, 9, 3], 2),
        Text([7, 2, 2]),
        Text([4, 4, 8, 1]),
        Text([7, 2, 6], 3),
        *[Text([i, 3, 1, 2]) for i in range(5)],
    ]
    passes: list[tuple[int, ...]] = []
    own = model.forward

    def counted(*args: Any, **given: Any) -> Any:
        passes.append(tuple(given["input_ids"].shape))
        return own(*args, **given)

    expected = []
    for text in texts:
        with torch.no_grad():
            expected.append(own(input_ids=torch.tensor([text.ids])).logits[0, -text.places :])
    counted.__signature__ = inspect.signature(own)  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "forward", counted)
    found = list(saved._logits(model, texts))
    assert passes == [(9, 4)]  # texts of any length share a pass
    for one, theirs in zip(found, expected, strict=True):
        assert one.shape == theirs.shape
        torch.testing.assert_close(one, theirs, rtol=1e-4, atol=1e-5)
