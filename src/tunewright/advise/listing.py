"""What can be chosen: methods with what they cost, objectives, formats, families of
models, error codes; as rows and as a table.

Shares are counted from sizes alone (`models/shape.py`) with each method's default options, so a
list needs no weights and no torch.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable
from typing import Any

from tunewright.core import registry
from tunewright.core.errors import UsageError, problem
from tunewright.core.telling import width
from tunewright.core.words import error_codes, error_text, said_again, say
from tunewright.models import proven
from tunewright.models.shape import ModelShape, trainable_parameters

LAYOUT_REASONS = ("layout.layers", "layout.backend", "layout.refused")
"""What the trial of the families said, in English, of those that do not take the tree."""
SHAPE = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}
"""A Llama of 135 million weights (SmolLM2's sizes), for shares where no model is named."""

Rows = list[dict[str, Any]]


def methods(shape: ModelShape | None = None) -> Rows:
    """One row a method: `trainable` numbers with default options and their `share` of `shape` (None
    where an option must be chosen first), whether it can be merged and stand on a quantised base,
    whose implementation it is, and its paper."""
    shape = shape or ModelShape.from_config(SHAPE)
    rows = []
    for entry in registry.methods:
        count = _trainable(entry, shape)
        rows.append(
            {
                "name": entry.name,
                "about": about("methods", entry),
                "trainable": count,
                "share": None if count is None else count / shape.parameters,
                "merges": entry.facts.get("merges", True) is True,
                "on_quantised": entry.facts.get("on_quantised", False) is True,
                "by": entry.facts.get("by", "Tunewright" if entry.is_ours else entry.package),
                "source": entry.facts.get("source", ""),
            }
        )
    return rows


def _trainable(entry: registry.Entry[Any], shape: ModelShape) -> int | None:
    """None where the count depends on an option that has no default."""
    return trainable_parameters(shape, entry.config()) if entry.has_defaults else None


def objectives() -> Rows:
    """One row an objective: what rows it learns from, and its paper."""
    found = registry.objectives
    return [
        {
            "name": e.name,
            "about": about("objectives", e),
            "rows": list(e.facts.get("rows", ())),
            "source": e.facts.get("source", ""),
        }
        for e in found
    ]


def formats() -> Rows:
    """One row a format of data: the columns it needs."""
    return [
        {"name": e.name, "about": about("formats", e), "needs": e.facts.get("needs", "")}
        for e in registry.formats
    ]


def rewards() -> Rows:
    """One row a reward function: the column of a row that it looks at, where it looks at one."""
    return [
        {"name": e.name, "about": about("rewards", e), "needs": e.facts.get("needs", "")}
        for e in registry.rewards
    ]


def models() -> Rows:
    """One row a family of models: what the trial of all families found (docs/models.md), and its
    parts where they are known by name; and one a package that brings a model. `training` is
    `tree` or `padded` with its `reason`, `open` where a step of the trial failed and `cannot` where
    the family cannot be trained."""
    from tunewright.core.families import cards
    from tunewright.core.words import ASSETS

    found, known = proven.table(), cards()
    wheels = json.loads((ASSETS / "models" / "known.json").read_text(encoding="utf-8"))["wheels"]
    names = sorted({*known, *found["families"], *found["open"], *found["cannot"]})
    return [
        *({"name": name, "kind": "family", **_family(name, known.get(name))} for name in names),
        *(
            {"name": f"pypi:{name}", "kind": "wheel", "version": facts["version"]}
            for name, facts in wheels.items()
        ),
    ]


def _family(name: str, card: dict[str, Any] | None) -> dict[str, Any]:
    """What is known of one family."""
    found = proven.table()
    parts = {} if card is None else {"blocks": list(card["blocks"]), "roles": list(card["roles"])}
    if name in found["cannot"]:
        return {"training": "cannot", "reason": found["cannot"][name], **parts}
    if name in found["open"]:
        return {"training": "open", "reason": ", ".join(found["open"][name]), **parts}
    row = found["families"].get(name)
    if row is None:
        return parts
    return {
        "class": row["class"],
        "training": row["layout"],
        "reason": said_again(row.get("reason", ""), *LAYOUT_REASONS),
        "answers": proven.WAYS[row["cache"]],
        **{key: row[key] for key in ("merge", "experts", "gguf")},
        **parts,
    }


def errors() -> Rows:
    """One row an error code."""
    return [
        {"code": code, "what": error_text(code)["what"], "do": error_text(code)["do"]}
        for code in error_codes()
    ]


LISTS: dict[str, Callable[..., Rows]] = {
    "methods": methods,
    "objectives": objectives,
    "formats": formats,
    "rewards": rewards,
    "models": models,
    "errors": errors,
}


def check(what: str, model: str | None = None) -> None:
    """Raise UsageError for a name that is no list, or a model for a list without shares."""
    if what not in LISTS:
        raise UsageError(problem("E-RUN-14", what, known=", ".join(LISTS)))
    if model is not None and what != "methods":
        raise UsageError(problem("E-LIST-02", "--model", what=what))


def rows_of(what: str, shape: ModelShape | None = None) -> Rows:
    """The rows of a list; `shape` is what shares of methods are counted on."""
    return methods(shape) if what == "methods" else LISTS[what]()


def shape_of(model: str | None) -> ModelShape | None:
    """The shape of a model as a run names it; None for None. What is not on this machine is
    fetched, as a run would."""
    if model is None:
        return None
    from tunewright.advise import fit
    from tunewright.core.telling import Tell
    from tunewright.sources import find

    return fit.shape_of(find.resolve(model, report=Tell().line).folder)


def about(axis: str, entry: registry.Entry[Any]) -> str:
    """One line about a registered name in the reader's language; for a name of another package, the
    first paragraph of its config class."""
    if entry.is_ours:
        return say(f"list.{axis}.{entry.name}")
    paragraph = inspect.cleandoc(entry.config.__doc__ or entry.package).split("\n\n")[0]
    return " ".join(paragraph.split())


# ---- as a table


def table(what: str, rows: Rows) -> list[str]:
    """The list for a terminal, one line a row under a heading."""
    columns = {
        "methods": ["name", "share", "merges", "on_quantised", "by", "source", "about"],
        "objectives": ["name", "rows", "source", "does"],
        "formats": ["name", "needs", "does"],
        "rewards": ["name", "does"],
        "models": ["name", "kind", "training", "answers", "merge", "experts", "gguf", "reason"],
        "errors": ["code", "what"],
    }[what]
    return align(
        [
            [say(f"list.column.{name}") for name in columns],
            *([_cell(name, row) for name in columns] for row in rows),
        ]
    )


def notes(what: str, shape: ModelShape | None = None) -> list[str]:
    """What the columns of a list mean, where that is not plain."""
    if what == "models":
        found = proven.table()
        return [
            say("list.models_tried", transformers=found["transformers"], date=found["date"]),
            say("list.models_note"),
        ]
    if what != "methods":
        return []
    shape = shape or ModelShape.from_config(SHAPE)
    total, vocabulary = f"{shape.parameters:,}", f"{shape.vocabulary:,}"
    about_shares = say(
        "list.shape",
        family=shape.family,
        total=total,
        layers=shape.layers,
        hidden=shape.hidden,
        vocabulary=vocabulary,
    )
    return [about_shares, say("list.merges_note")]


def percent(share: float | None) -> str:
    """0.0123 -> `1.2 %`, with two digits that count; words where there is nothing to count."""
    if share is None:
        return say("list.chosen")
    return say("list.none") if share == 0 else f"{100 * share:.2g} %" if share < 0.995 else "100 %"


def _cell(column: str, row: dict[str, Any]) -> str:
    if column == "does":
        return str(row["about"])
    if column == "by":
        return say("list.ours") if row["by"] == "Tunewright" else str(row["by"])
    if column == "kind":
        return say(f"list.{row['kind']}")
    if column == "training" and row.get("training") in ("open", "cannot"):
        return say(f"list.{row['training']}")
    if column == "share":
        return percent(row["share"])
    if column == "rows":
        return ", ".join(say(f"list.rows.{kind}") for kind in row["rows"])
    value = row.get(column, "")
    if isinstance(value, bool):
        return say("list.yes" if value else "list.no")
    return ", ".join(value) if isinstance(value, list) else str(value)


def align(lines: Iterable[list[str]]) -> list[str]:
    """Cells under one another, two spaces apart; a Chinese sign takes two places on a terminal."""
    cells = list(lines)
    widths = [max(width(line[i]) for line in cells) for i in range(len(cells[0]))]
    return [
        "  ".join(
            cell + " " * (w - width(cell)) for cell, w in zip(line, widths, strict=True)
        ).rstrip()
        for line in cells
    ]
