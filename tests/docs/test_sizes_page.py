"""The tables of what fits where are those that `tunewright plan` counts now, and hold what is known
of memory from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import sizes_page

from tunewright.core.words import LANGUAGES

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_committed_table_is_current(lang: str) -> None:
    text = (DOCS / sizes_page.NAMES[lang]).read_text(encoding="utf-8")
    assert text == sizes_page.with_table(text, lang), "run: python tools/sizes_page.py docs"


def test_all_weights_take_sixteen_bytes_each_and_shares_divide_them() -> None:
    # Rajbhandari et al. 2020, section 3: 16 bytes a weight with Adam in mixed precision.
    alone, many = (sizes_page.planned(7, "full", count) for count in (1, 8))
    sixteen = 16 * alone["parameters"]
    assert alone["parts"]["optimiser"] == pytest.approx(sixteen, rel=0.01)
    assert many["parallel"] == "fsdp"
    assert many["parts"]["optimiser"] == pytest.approx(sixteen / 8, rel=0.01)
    # Each sends 7/8 of twice the weights and of the gradients, in float32, in one pass.
    assert many["sent_bytes_per_step"] == pytest.approx(7 / 8 * 12 * alone["parameters"], rel=0.01)


def test_a_seventy_billion_model_in_four_bits_is_that_of_a_device_of_48_gigabytes() -> None:
    # Dettmers et al. 2023 (arXiv 2305.14314): 65 billion weights on one GPU of 48 GB.
    found = sizes_page.planned(12, "QLoRA", 8)
    assert found["parallel"] == "ddp"  # it cannot lie in shares
    assert 36 * 2**30 < found["parts"]["weights"] < 42 * 2**30
    assert found["needed_memory_bytes"] < 48 * 2**30
