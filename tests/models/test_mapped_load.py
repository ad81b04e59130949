"""Weights stay in their files where these hold the dtype asked for: processes of one machine that
read the same model, to cut it into shares or beside each other, hold it once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import tiny

SIZES = """
import sys
from pathlib import Path
import transformers.models.llama.modeling_llama
from tunewright.models import load

def own():
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024

for dtype in sys.argv[2:]:
    before = own()
    model = load.load_model(Path(sys.argv[1]), dtype=dtype)
    looked_at = sum(float(p.sum()) for p in model.parameters())
    print(dtype, own() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_process_holds_nothing_of_a_model_but_what_it_converts(tmp_path: Path) -> None:
    model = tiny.make_model("llama", vocab_size=40_000, hidden_size=256)
    numbers = sum(p.numel() for p in model.parameters())
    assert 4 * numbers > 80e6
    model.save_pretrained(tmp_path)
    # What the first holds stays while the second is loaded: it holds nothing of its own.
    said = subprocess.run(
        [sys.executable, "-c", SIZES, str(tmp_path), "float32", "bfloat16"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    own = {dtype: int(grown) for dtype, grown in map(str.split, said.stdout.splitlines())}
    assert own["float32"] < 20e6
    assert own["bfloat16"] > 0.8 * 2 * numbers
