"""`kill -9` at the moments of an export: under its final name there is the whole file or none."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import exported, story

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]
GGUF = [
    ["tunewright.export.gguf_file", "write", 1],
    ["tunewright.export.gguf_types", "rounded", 3],
    ["tunewright.export.gguf_file", "require_held", 1],
    ["tunewright.export.gguf_proof", "prove", 1],
    ["tunewright.core.publish", "move_file", 1],
    ["os", "replace", 1],
    ["tunewright.core.publish", "move_file", 2],  # the proof has its name, the file has none
    ["os", "replace", 3],
]
MERGE = [
    ["tunewright.export.proof", "logits_of", 1],
    ["tunewright.export.merge", "load_plain", 1],
    ["os", "rename", 1],
]
SMALLER = [
    ["tunewright.export.merge", "write_folder", 1],
    ["tunewright.export.remade", "prove", 1],
    ["tunewright.export.card", "write", 1],
    ["os", "rename", 1],
]
MORE = {
    "quantize": ["--bits", "4", "--no-measure"],
    "prune": ["--way", "blocks", "--blocks", "1"],
    "shrink": ["--to", "100kB"],
}
SCRIPT = """
import json, sys
from pathlib import Path
import peft, torch, transformers
import tunewright.export.gguf_adapter, tunewright.export.merge, tunewright.export.ollama
import tunewright.commands.shrinking
from helpers.killer import attempt
torch.set_num_threads(1)
plan = json.loads(sys.stdin.read())
for moment in [*plan["moments"], None]:
    status = attempt(plan["words"], moment, Path(plan["log"]))
    out = Path(plan["out"])
    print(json.dumps([moment, status, sorted(p.name for p in out.parent.iterdir() if p.name[0] != ".")]), flush=True)
"""


def killed(words: list[str], moments: list[list[object]], out: Path, log: Path) -> list[list]:
    tests = str(Path(__file__).parent.parent)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, *sys.path]), "TUNEWRIGHT_LANG": "en"}
    job = {"words": words, "moments": moments, "out": str(out), "log": str(log)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps(job), capture_output=True, text=True, env=env, check=False,
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(found) == len(moments) + 1, done.stderr
    return found


@pytest.mark.parametrize("way", ["gguf", "ollama", "merge", *MORE])
def test_after_a_kill_the_whole_export_is_there_or_nothing(tmp_path, way):
    base = exported.folder_of(tmp_path / "base", "llama")
    run = exported.run_of(tmp_path / "run", base, story.rows_file(tmp_path / "rows.json"))
    place = tmp_path / "place"
    place.mkdir()
    out = place / ("m.gguf" if way == "gguf" else "out")
    moments = MERGE if way == "merge" else GGUF if way == "gguf" else [*GGUF[:4], MERGE[-1]]
    moments = SMALLER if way in MORE else moments
    words = ["export", way, str(run), str(out), *MORE.get(way, [])]
    found = killed(words, moments, out, tmp_path / "log.txt")
    for moment, status, left in found[:-1]:
        assert status == -9, (moment, (tmp_path / "log.txt").read_text())
        assert out.name not in left, moment
    # The last one nobody killed: what the others left is no obstacle.
    assert found[-1][1] == 0, (tmp_path / "log.txt").read_text()
    if way == "gguf":
        record = json.loads((place / "m.proof.json").read_text())
        assert record["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    else:
        assert (out / "proof.json").is_file()
