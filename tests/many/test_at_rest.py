"""What a process of four holds of a model in shares while nothing computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import many, story

SCRIPT = Path(__file__).with_name("at_rest.py")


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_rank_of_four_holds_a_quarter_and_one_block_at_most(tmp_path: Path, dtype: str) -> None:
    story.model_folder(tmp_path / "model", num_hidden_layers=4)
    story.rows_file(tmp_path / "rows.json", 8)
    words = [str(SCRIPT), str(tmp_path / "model"), str(tmp_path / "rows.json"), dtype, "100"]
    ended = many.Pair(words, world=4).wait(110)
    assert [code for code, _ in ended] == [0] * 4, ended[0][1][-3000:]
    (line,) = [one for one in ended[0][1].splitlines() if one.startswith("FOUND ")]
    told = json.loads(line.removeprefix("FOUND "))
    assert len(told) == 4
    for one in told:
        # What trains is held in float32, whatever the model computes in; moments are two of them.
        assert one["before"] <= one["whole"] / 4 + one["block"]
        assert one["after"] == one["before"]
        assert one["moments"] <= 2 * (one["whole"] / 4 + one["block"])
    assert sum(one["before"] for one in told) >= told[0]["whole"]
