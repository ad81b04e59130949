"""`kill -9` at the moments of an export: under its final name there is the whole file or none."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
from helpers import exported, forks, story

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
    for moment in moments:
        done = forks.run(*words, moment=moment)
        assert done.returncode == -9, (moment, done.stderr)
        assert not out.exists(), moment
    # This one nobody kills: what the others left is no obstacle.
    done = forks.run(*words)
    assert done.returncode == 0, done.stderr
    if way == "gguf":
        record = json.loads((place / "m.proof.json").read_text())
        assert record["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    else:
        assert (out / "proof.json").is_file()
