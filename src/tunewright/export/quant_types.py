"""What a model can be quantised to: who writes it, who reads it, and what may be expected of it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from tunewright.core.errors import UsageError


@dataclass(frozen=True)
class Format:
    """One number type of a quantised folder."""

    name: str
    bits: int
    package: str
    """The library that writes it and that Transformers reads it with."""
    expected: float
    """Share of positions with the run's most likely token, below which somebody should know."""
    least: float
    """The same, below which the result is no use and is refused."""
    is_grid: bool = False
    """Whether our own rounding (`gptq.py`) chooses the numbers."""


FORMATS = {
    "int8": Format("int8", 8, "bitsandbytes", 0.95, 0.80),
    "int4": Format("int4", 4, "compressed-tensors", 0.80, 0.25, is_grid=True),
    "nf4": Format("nf4", 4, "bitsandbytes", 0.75, 0.25),
}
BY_BITS = {8: "int8", 4: "int4"}
ALIASES = {"gptq": "int4"}
"""`gptq` names the way of rounding: int4 that must be calibrated."""
REFUSED = {"awq": "quantize.reason.awq"}
LEAST_OF_ROUNDED = {"int8": 0.90, "int4": 0.99, "nf4": 0.90}
"""Share of positions at which the file, opened afresh, must agree with the weights rounded in the
same way. bitsandbytes also rounds what goes into a matrix, and computes in half precision."""
GROUPS = (32, 64, 128)


def format_of(name: str | None, bits: int | None) -> Format:
    """What `--type` and `--bits` name together. Raises UsageError."""
    from tunewright.core.words import say

    known = ", ".join([*FORMATS, *ALIASES])
    if name in REFUSED:
        reason = say(REFUSED[name])
        raise UsageError.of("E-EXPORT-56", "--type", type=name, reason=reason, known=known)
    plain = ALIASES.get(name or "", name) or BY_BITS.get(bits or 8, "")
    found = FORMATS.get(plain)
    if found is None or (bits is not None and bits != found.bits):
        given = " ".join([f"--type {name}" if name else "", f"--bits {bits}" if bits else ""])
        raise UsageError.of("E-EXPORT-50", "--type", given=given.strip(), known=known)
    if importlib.util.find_spec(found.package.replace("-", "_")) is None:
        raise UsageError.of("E-EXPORT-51", "--type", type=found.name, package=found.package)
    return found
