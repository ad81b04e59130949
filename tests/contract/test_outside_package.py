"""Another package adds a method, an objective, a format and a reward, without a line of ours: it is
installed, and its names run through the same suites and through whole runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tests" / "outside_package"
SUITES = ("test_methods.py", "test_objectives.py", "test_formats.py", "test_rewards.py")


@pytest.mark.slow
def test_a_package_that_adds_to_every_axis_passes_our_suites_and_runs(tmp_path: Path) -> None:
    # Copied, for a build leaves files beside the sources.
    source = shutil.copytree(PACKAGE, tmp_path / "source")
    place = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    pip += ["--no-build-isolation", "--disable-pip-version-check", "--target", str(place)]
    done = subprocess.run([*pip, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    asked = [str(ROOT / "tests" / "contract" / name) for name in SUITES]
    asked.append(str(PACKAGE / "parts_in_runs.py"))
    environment = {
        **os.environ,
        "TUNEWRIGHT_CONTRACT": "tunewright_outside.contract_rows",
        "PYTHONPATH": os.pathsep.join([str(place), str(ROOT / "src")]),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-q", *asked],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
