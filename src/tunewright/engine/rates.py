"""Parts of a model that learn at another rate than the rest: `engine.rates`, from words to
parameters.

A word is a role or group of the anatomy, a side of LoRA, `bias`, or the name of a module. Of
several that name one parameter the narrowest counts (a module before a role before a group); the
side of LoRA multiplies, and so does what the method asks for itself (LoRA+).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tunewright.core.errors import CompatError, problem, raise_all

SIDES = {"lora_a": ".lora_A.", "lora_b": ".lora_B."}
EMBEDDING_SIDES = {"lora_a": ".lora_embedding_A", "lora_b": ".lora_embedding_B"}
"""LoRA on an embedding names its sides otherwise."""
GROUPS = ("all", "linear", "all-linear", "attention", "mlp")


def role_of(name: str, roles: Mapping[str, Iterable[str]]) -> str | None:
    """The role of the module that a parameter belongs to, whatever a method put around it; None for
    one without. `name` is the parameter's, `roles` are module names by role."""
    inside = f".{name}"
    found = [
        (len(module), role)
        for role, modules in roles.items()
        for module in modules
        if f".{module}." in inside
    ]
    if found:
        return max(found)[1]
    # Blocks that a method added have other numbers than those the anatomy knew.
    parts = set(name.split("."))
    short = {
        role
        for role, modules in roles.items()
        if any(module.rpartition(".")[2] in parts for module in modules)
    }
    return short.pop() if len(short) == 1 else None


def factors(
    rates: Mapping[str, float],
    names: Iterable[str],
    roles: Mapping[str, Iterable[str]],
    own: Mapping[str, float],
) -> dict[str, float]:
    """Parameter -> factor on the rate of the step, where it is not 1. `own` are those of the
    method.

    Raises CompatError (E-KEY-01) for every word that names nothing that trains.
    """
    names = list(names)
    known = {name: role_of(name, roles) for name in names}
    made: dict[str, float] = {}
    used: set[str] = set()
    for name in names:
        words = sorted(
            (word for word in rates if _width(word, name, known[name]) is not None),
            key=lambda word: _width(word, name, known[name]) or 0,
        )
        sides = [word for word in rates if _is_side(word, name)]
        used.update(words, sides)
        factor = own.get(name, 1.0) * (rates[words[0]] if words else 1.0)
        for word in sides:
            factor *= rates[word]
        if factor != 1.0:
            made[name] = factor
    there = sorted({role for role in known.values() if role})
    raise_all(
        [
            problem("E-KEY-01", "engine.rates", word=word, roles=", ".join(there) or "-")
            for word in rates
            if word not in used
        ],
        CompatError,
    )
    return made


def _is_side(word: str, name: str) -> bool:
    return word in SIDES and (SIDES[word] in name or EMBEDDING_SIDES[word] in name)


def _width(word: str, name: str, role: str | None) -> int | None:
    """How much a word names besides this parameter, the narrowest 0; None where it does not name
    it."""
    if word in SIDES:
        return None
    if word == "bias":
        return 1 if name.endswith("bias") else None
    if word == role:
        return 2
    if word in GROUPS:
        group = role.partition(".")[0] if role else ""
        if word in ("attention", "mlp"):
            return 3 if group == word else None
        return 4 if group in ("attention", "mlp") else None
    return 0 if f".{word}." in f".{name}." else None
