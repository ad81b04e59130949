"""What the files of an adapter or a trained model hold, read without a model: values that are no
numbers, updates that are zero, the base that is named."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.advise.doctor.facts import Weights
from tunewright.core.errors import ModelError
from tunewright.sources import headers
from tunewright.sources.fingerprint import weights_digest

if TYPE_CHECKING:
    from torch import Tensor

UPDATES = re.compile(
    r"lora_B|lora_embedding_B|vera_lambda_b|hada_w2_a|lokr_w2(?:_a)?\b|oft_[rR]|boft_R|"
    r"hra_u|fourierft_spectrum|\.delta"
)
"""Tensors that start at zero and must not stay there."""
HALF_PRECISION = 1e-2
"""The same weights in bfloat16 differ by less than this."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def adapter_files(folder: Path, base: Path | None, given: str) -> Weights:
    """The weights of a PEFT folder, and whether the base that it names is the one in `base`, which
    the person called `given`; None: nobody asks."""
    described = headers.config_of(folder, "adapter_config.json")
    named = described.get("base_model_name_or_path")
    named = named if isinstance(named, str) else ""
    tensors = zero = updates = bad = 0
    for name, tensor in _tensors(folder):
        tensors += 1
        bad += not _is_finite(tensor)
        if UPDATES.search(name):
            updates += 1
            zero += not bool(tensor.any())
    return Weights(
        "adapter",
        tensors,
        zero,
        updates,
        bad,
        named_base=named,
        given_base=given,
        same_base=None if base is None else _is_same_base(named, given, base),
    )


def model_files(folder: Path, base: Path | None, given: str) -> Weights:
    """The weights of a whole trained model; `base` is what it started from, where that is known."""
    tensors = bad = 0
    for _, tensor in _tensors(folder):
        tensors += 1
        bad += not _is_finite(tensor)
    found = Weights("model", tensors, not_finite=bad, given_base=given)
    if base is None or base.resolve() == folder.resolve():
        return found
    return replace(found, same_as_base=_is_same_model(folder, base))


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a folder's safetensors files, one at a time."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - no mapping
                yield name, stored.get_tensor(name)


def _is_finite(tensor: Tensor) -> bool:
    import torch

    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.float()).all())


def _is_same_model(folder: Path, base: Path, tolerance: float = 0.0) -> bool:
    """Whether two folders hold the same values under the same names, but for `tolerance` as a share
    of a tensor's largest value. Ends at the first difference."""
    from safetensors import safe_open

    places: dict[str, Path] = {}
    for path in base.glob("*.safetensors"):
        with safe_open(path, framework="pt") as stored:
            places |= dict.fromkeys(stored.keys(), path)
    shared = 0
    for name, ours in _tensors(folder):
        if name not in places:
            continue
        with safe_open(places[name], framework="pt") as stored:
            theirs = stored.get_tensor(name)
        if ours.shape != theirs.shape:
            return False
        far = float((ours.float() - theirs.float()).abs().max()) if ours.numel() else 0.0
        if far > tolerance * float(ours.float().abs().max() if ours.numel() else 0.0):
            return False
        shared += 1
    return shared > 0


def _is_same_base(named: str, given: str, base: Path) -> bool | None:
    """Whether `named` in an adapter means the model in `base`; None where nobody can say."""
    if not named:
        return None
    there = Path(named)
    try:
        if there.is_dir() and (there / "config.json").is_file():
            if there.resolve() == base.resolve():
                return True
            same = weights_digest(there) == weights_digest(base)
            return same or _is_same_model(there, base, HALF_PRECISION)
    except OSError:
        return None
    if named == given:
        return True
    # Of two names of the hub only the model's own name tells: mirrors have other owners.
    is_hub = HUB_ID.fullmatch(named) and HUB_ID.fullmatch(given) and not Path(given).exists()
    if is_hub:
        return named.rpartition("/")[2].lower() == given.rpartition("/")[2].lower() or None
    return None


def refused(weights: Weights, error: ModelError) -> Weights:
    """The same, with why it could not be put on the model."""
    told: dict[str, Any] = next((one.fields for one in error.problems), {})
    return replace(
        weights,
        refused=error.problems[0].what(),
        lost=int(told.get("lost") or 0),
        missing=int(told.get("missing") or 0),
        first=str(told.get("first") or ""),
    )
