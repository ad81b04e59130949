"""One process at a time trains in a run folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import story

from tunewright.core.errors import UsageError
from tunewright.record.folder import LOCK, Hold, is_held

HOLDER = """
import sys
from pathlib import Path
from tunewright.record.folder import Hold
with Hold() as hold:
    hold.take(Path(sys.argv[1]))
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_held_by_one_process_until_that_ends_however_it_ends(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        assert is_held(tmp_path)
        with pytest.raises(UsageError, match="E-RUN-19"), Hold() as hold:
            hold.take(tmp_path)
        assert is_held(tmp_path)
        other.kill()
    assert (tmp_path / LOCK).is_file() and not is_held(tmp_path)
    with Hold() as hold:
        hold.take(tmp_path)
        hold.take(tmp_path)  # held already: nothing
        assert is_held(tmp_path)
    assert not (tmp_path / LOCK).exists()


@pytest.mark.slow
def test_a_run_that_another_process_trains_is_not_resumed_beside_it(tmp_path: Path) -> None:
    model, rows = story.model_folder(tmp_path / "m"), story.rows_file(tmp_path / "r.json", 4)
    words = ["train", "--model", str(model), "--data", str(rows), "--out", str(tmp_path / "run")]
    done = story.tunewright(*words, "engine.steps=2", "engine.save_every=1")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run" / LOCK).exists()
    (tmp_path / "run" / "summary.json").unlink()
    before = (tmp_path / "run" / "events.jsonl").read_bytes()
    with Hold() as hold:
        hold.take(tmp_path / "run")
        refused = story.tunewright("train", str(tmp_path / "run"), "--resume")
    assert refused.returncode == 2 and "E-RUN-19" in refused.stderr
    assert not (tmp_path / "run" / "summary.json").exists()
    assert (tmp_path / "run" / "events.jsonl").read_bytes() == before
