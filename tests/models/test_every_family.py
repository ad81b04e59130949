"""Every causal class that the installed Transformers has: opened, named, trained, saved, merged,
answering and drawing, each beside Transformers' or PEFT's own (`helpers/family_check.py`).

A few families of each kind are tried in the fast suite, all of them before a release (`thorough`).
What is found is the table of `tunewright list models`; `python tools/families_page.py docs --try`
makes it anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import causal
from helpers.family_check import Check

from tunewright.core.words import ASSETS
from tunewright.export.gguf_families import FAMILIES as IN_GGUF

SHOWN = ("qwen3_5_text", "gpt_oss", "deepseek_v3", "gemma3", "bert", "mamba2")
"""A hybrid, sinks, latent attention with experts, images beside words, a head that is more than a
matrix, a state alone."""
TABLE: dict[str, Any] = json.loads((ASSETS / "models" / "families.json").read_text("utf-8"))
TYPES = [name for name in causal.types() if name not in causal.CANNOT]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "model_type", [pytest.param(t, marks=() if t in SHOWN else pytest.mark.thorough) for t in TYPES]
)
def test_a_family_is_opened_trained_saved_and_asked(model_type: str, tmp_path: Path) -> None:
    check = Check(model_type, tmp_path)
    wrong = [f"{step}: {type(e).__name__}: {e}" for step, e in check.run() if e is not None]
    if model_type in TABLE["open"] and TABLE["transformers"] == _version():
        assert wrong, "it passes now: python tools/families_page.py docs --try " + model_type
        pytest.xfail("; ".join(wrong))
    assert not wrong, "\n".join(wrong)
    known = TABLE["families"].get(model_type)
    if known is not None and TABLE["transformers"] == _version():
        found = {name: check.row[name] for name in ("class", "layout", "cache", "merge")}
        assert found == {name: known[name] for name in found}, "python tools/families_page.py docs"


def _version() -> str:
    import transformers

    return str(transformers.__version__)


def test_no_causal_class_is_left_out_and_the_list_of_open_ones_only_shrinks() -> None:
    """95 of 100 pass; neither the open ones nor those that cannot be trained are counted. The table
    is that of one version of Transformers: an older one has fewer classes."""
    if TABLE["transformers"] == _version():
        assert len(causal.CANNOT) + len(TABLE["open"]) <= 0.05 * len(causal.types())
        assert set(causal.CANNOT) <= set(causal.types())
        assert set(TABLE["families"]) | set(TABLE["open"]) == set(TYPES)
        assert set(TABLE["cannot"]) == set(causal.CANNOT)
    assert {t for t, row in TABLE["families"].items() if row["gguf"]} == set(IN_GGUF)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", causal.CANNOT)
def test_what_cannot_be_trained_really_cannot(model_type: str, tmp_path: Path) -> None:
    """The list shrinks by itself: who can do all steps has no place in it."""
    try:
        wrong = [step for step, e in Check(model_type, tmp_path).run() if e is not None]
    except Exception:
        return
    assert wrong, "this family can be trained: take it off the list"


def test_a_family_that_is_not_proven_says_so_when_it_is_opened(tmp_path: Path) -> None:
    from tunewright.models.proven import doubts

    class Config:
        model_type = "llama"

    assert doubts(Config) == []
    for name, told in (TABLE["open"] | TABLE["cannot"]).items():
        Config.model_type = name
        (sentence,) = doubts(Config)
        assert name in sentence
        assert told in sentence if isinstance(told, str) else all(step in sentence for step in told)
