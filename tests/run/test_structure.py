"""What a method refuses is refused before weights are read, and what only weights can show is left
to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.core.errors import TunewrightError
from tunewright.core.registry import methods
from tunewright.core.runfile import parse_run
from tunewright.run.structure import require_place


def config(**given: Any) -> Any:
    keys = {
        "model": "m",
        "data.train": "d",
        **{key.replace("__", "."): value for key, value in given.items()},
    }
    return parse_run(keys, dict.fromkeys(keys, "test")).config


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"method__rank": 9999}, "E-METHOD-20"), ({"method__kind": "galore", "method__rank": 9999}, "E-METHOD-09"),
        ({"method__kind": "apollo", "method__rank": 9999}, "E-METHOD-09"), ({"method__targets": ["attention.qkv"]}, "E-MODEL-37"),
        ({"method__kind": "freeze", "method__blocks": 99}, "E-METHOD-02"), ({"method__kind": "bitfit"}, "E-METHOD-01"),
    ],
)  # fmt: skip
def test_what_the_model_has_no_place_for_is_refused_from_its_configuration(
    given: dict[str, Any], code: str
) -> None:
    with pytest.raises(TunewrightError) as caught:
        require_place(config(**given), tiny.make_config("llama"))
    assert caught.value.problems[0].code == code


@pytest.mark.parametrize(
    "kind", sorted(set(methods.names()) - {"bitfit", "new_tokens", "peft", "loftq"})
)
def test_what_fits_passes_and_the_random_streams_of_a_run_are_not_touched_by_weights_that_are_not_there(
    kind: str,
) -> None:
    more = (
        {"method__rank": 4}
        if "rank" in methods.get(kind).config.model_fields and kind != "apollo_mini"
        else {}
    )  # type: ignore[union-attr]
    more |= {"method__block_size": 4} if kind in ("oft", "boft") else {}
    made = require_place(config(method__kind=kind, **more), tiny.make_config("llama"))
    assert made is None
    assert torch.zeros(1).device.type == "cpu"  # the default device is what it was
