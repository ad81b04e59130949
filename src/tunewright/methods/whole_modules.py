"""Whole modules that an adapter trains beside its low-rank layers and saves with them
(`method.modules_to_save`): the embedding and the head, mostly.

The copies are PEFT's. A head that is the embedding stays the embedding: PEFT alone would train one
of the two and leave the other as it was. Words that are added (`method.new_tokens`) are rows of
such a copy where there is one, and rows beside the table where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunewright.core.errors import CompatError, problem, raise_all
from tunewright.core.types import Model
from tunewright.models.anatomy import Anatomy
from tunewright.models.shape import ModelShape, roles_of


def chosen(
    names: Sequence[str], sat_on: Sequence[str], model: Model, anatomy: Anatomy
) -> list[str]:
    """Names of the modules that roles, groups and module names choose, a tied head with its
    embedding. `sat_on` are those that carry low-rank layers.

    Raises ModelError for a name that matches nothing, CompatError for a module that carries a
    low-rank layer too (E-KEY-03) and for one that is held in few bits (E-KEY-04).
    """
    found: list[str] = anatomy.select(list(names)) if names else []
    if is_tied(model) and (place := set(anatomy.roles["embedding"]) | set(head(anatomy))) & set(
        found
    ):
        found = [name for name in anatomy.modules if name in {*found, *place}]
    both = [name for name in found if name in set(sat_on)]
    few = [name for name in found if _is_quantised(model.get_submodule(name))]
    raise_all(
        [problem("E-KEY-03", "method.modules_to_save", module=name) for name in both[:1]]
        + [problem("E-KEY-04", "method.modules_to_save", module=name) for name in few[:1]],
        CompatError,
    )
    return found


def _is_quantised(module: Any) -> bool:
    from tunewright.models.quantised import is_quantised

    return is_quantised(module)


def head(anatomy: Anatomy) -> list[str]:
    """The name of the output head, where there is one."""
    return list(anatomy.roles.get("head", []))


def is_tied(model: Model) -> bool:
    """Whether the output head is the embedding."""
    outputs: Any = model.get_output_embeddings()
    inputs: Any = model.get_input_embeddings()
    return outputs is not None and outputs.weight is inputs.weight


def named_for_peft(model: Model, names: list[str]) -> dict[str, Any]:
    """What PEFT's description says of the modules `names`: the shortest ends of names that choose
    exactly these, and that what is tied stays tied."""
    if not names:
        return {}
    ends = sorted({name.rpartition(".")[2] for name in names})
    matched = {n for n, _ in model.named_modules() if any(n.endswith(end) for end in ends)}
    return {
        "modules_to_save": ends if matched == set(names) else names,
        "ensure_weight_tying": is_tied(model),
    }


OUTSIDE = {
    **dict.fromkeys(("embed_tokens", "wte", "embed_in", "word_embeddings"), "embedding"),
    **dict.fromkeys(("lm_head", "embed_out"), "head"),
}
"""What families call the modules outside of their blocks."""


def numbers(names: Sequence[str], shape: ModelShape) -> int:
    """How many numbers the modules of a shape have that `names` choose; what it does not know
    counts nothing."""
    named = [OUTSIDE.get(name.rpartition(".")[2], name) for name in names]
    table, roles = shape.vocabulary * shape.hidden, roles_of(shape, named)
    tables = {"embedding", "head"} & set(roles)
    total = table * (1 if shape.tied and tables else len(tables))
    total += sum(shape.matrices[role].weights for role in roles if role in shape.matrices)
    return total + ((2 * shape.layers + 1) * shape.hidden if "norm" in named else 0)
