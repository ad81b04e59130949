"""Over a hundred hostile files: each gives rows or one clear error with a place, in time and in
little memory, never a traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.hostile import CORPUS

from tunewright.core.words import error_codes

HERE = Path(__file__).resolve().parent
# Each takes under 2 s of processor time on a laptop; a slow machine gets five times as long. A file
# that waits for ever ends at HANG_SECONDS.
MOST_SECONDS = 10
HANG_SECONDS = 300
MOST_BYTES = 2**30

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="pipes, devices and links are made as POSIX has them"
)


@pytest.fixture(scope="module")
def gone_through(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened to every file, in a process of its own: one that crashes or eats memory is
    caught here."""
    folder = tmp_path_factory.mktemp("hostile")
    environment = {**os.environ, "TUNEWRIGHT_LANG": "en", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE.parents[1] / "helpers" / "hostile.py"), str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CORPUS)
def test_a_hostile_file_gives_rows_or_one_clear_error(
    gone_through: dict[str, Any], name: str
) -> None:
    wanted, found = CORPUS[name][0], gone_through["files"][name]
    assert "traceback" not in found
    assert found["seconds"] < MOST_SECONDS
    if isinstance(wanted, int):
        assert found.get("rows") == wanted, found
        return
    assert set(found["codes"]) <= {*wanted, "E-DATA-04"} and found["codes"][0] in wanted, found
    assert set(found["codes"]) <= set(error_codes()) and len(found["codes"]) <= 6
    # Every problem names the file, and what is wrong inside a text names its line.
    assert all(name.partition("/")[0] in place for place in found["places"])
    if found["codes"][0] in ("E-DATA-03", "E-DATA-05", "E-DATA-36"):
        assert "line " in found["places"][0]
    # No place of a message is left open; what a file holds may be shown with its own brackets.
    assert len(found["text"]) < 6000 and not re.search(r"\{\w+\}", found["text"])


def test_the_corpus_is_large_and_needs_little_memory(gone_through: dict[str, Any]) -> None:
    assert len(gone_through["files"]) == len(CORPUS) >= 60
    assert gone_through["grown_bytes"] < MOST_BYTES


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    from helpers.hostile import go_through

    path = tmp_path / "a.json"
    path.write_text("[]")
    path.chmod(0)
    assert go_through(str(path))["codes"] == ["E-DATA-02"]
