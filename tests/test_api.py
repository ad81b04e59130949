"""The same from Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import story

import tunewright
from tunewright.core.errors import ConfigError, UsageError
from tunewright.core.telling import Quiet


def test_train_returns_a_run_that_answers(tmp_path: Path) -> None:
    model = story.model_folder(tmp_path / "model")
    data = story.rows_file(tmp_path / "rows.json")
    run = tunewright.train(
        model=str(model),
        data=str(data),
        method={"kind": "lora", "rank": 4},
        engine={"steps": 3, "dtype": "float32", "threads": 1},
        out=str(tmp_path / "run"),
        tell=Quiet(),
    )
    assert run.summary["status"] == "done" and run.summary["steps"] == 3
    assert (run.adapter / "adapter_config.json").is_file() and run.report.path.is_file()
    assert run.report._repr_html_().startswith("<iframe")
    assert isinstance(run.chat("what is the capital 0?", max_new_tokens=4), str)
    assert len(run.before_after) == 5
    again = tunewright.Run(tmp_path / "run")
    assert again.summary == run.summary
    assert again.chat("what is the capital 0?", max_new_tokens=4) == run.chat(
        "what is the capital 0?", max_new_tokens=4
    )


def test_wrong_arguments_are_the_same_errors_as_in_a_run_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="E-CONFIG-03"):
        tunewright.train(model="x", data="y.json", engine={"epoch": 3})
    with pytest.raises(UsageError, match="E-RUN-04"):
        tunewright.Run(tmp_path)


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, tunewright; assert 'torch' not in sys.modules and 'transformers' not in sys.modules; print(tunewright.__version__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
