"""Which back end computes attention: chosen with a reason, tried before it is used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import story, tiny

from tunewright.core.config import EngineConfig
from tunewright.core.errors import CompatError
from tunewright.engine import attention
from tunewright.models.kernels import flex_attention


@pytest.fixture(autouse=True)
def _own_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "cache"))


def chosen(wanted: str, device: str = "cpu", layout: str = "tree", family: str = "llama") -> Any:
    engine = EngineConfig(attention=wanted)
    return attention.choose(engine, tiny.make_model(family), layout, device, "float32")


def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention forgets the tree: a row sees every row before it."""
    real = flex_attention.mask_of

    def causal(tree: Any, *args: Any, **kwargs: Any) -> Any:
        open_tree = replace(tree, subtree_end=[tree.num_rows] * tree.num_rows)
        return real(open_tree, *args, **kwargs)

    monkeypatch.setattr(flex_attention, "mask_of", causal)


def test_on_a_cpu_auto_is_blocks_and_says_why() -> None:
    backend, why = chosen("auto")
    assert backend == "blocks" and "CUDA" in why


def test_what_is_asked_for_is_taken_where_it_agrees() -> None:
    assert chosen("blocks")[0] == "blocks"
    assert chosen("flex", family="gemma2")[0] == "flex"


def test_padded_rows_have_no_back_end() -> None:
    for wanted in ("auto", "flex"):
        backend, why = chosen(wanted, layout="padded")
        assert backend == wanted and "padded" in why


def test_a_back_end_that_gives_other_numbers_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong(monkeypatch)
    with pytest.raises(CompatError) as caught:
        chosen("flex")
    assert [p.code for p in caught.value.problems] == ["E-COMPAT-21"]
    assert "differs" in str(caught.value)


def test_one_that_fails_is_refused_with_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> Any:
        raise RuntimeError("no compiler found\nand more")

    monkeypatch.setattr(flex_attention, "attend", fails)
    with pytest.raises(CompatError, match="RuntimeError: no compiler found"):
        chosen("flex")


def test_auto_on_cuda_takes_flex_where_it_agrees_and_blocks_where_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "trouble", lambda *args: None)
    assert chosen("auto", "cuda:0")[0] == "flex"
    monkeypatch.setattr(attention, "trouble", lambda *args: "no compiler found")
    backend, why = chosen("auto", "cuda:0")
    assert backend == "blocks" and "no compiler found" in why


def test_a_trial_that_was_passed_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen("flex")[0] == "flex"
    calls: list[Any] = []
    monkeypatch.setattr(attention, "disagreement", lambda *args: calls.append(args) or 0.0)
    assert chosen("flex")[0] == "flex" and not calls
    assert chosen("flex", family="mistral")[0] == "flex" and len(calls) == 2


def test_a_window_and_a_softcap_of_the_model_are_tried() -> None:
    kinds = list(attention._kinds(tiny.make_model("gemma2").config))
    assert [kind[4] for kind in kinds] == [3.0, 3.0]
    assert kinds[0][3] is None and isinstance(kinds[1][3], int)
    assert list(attention._kinds(tiny.make_model("llama").config)) == [(4, 2, 12, None, None)]


def test_a_run_with_flex_learns_what_the_run_with_blocks_learns(tmp_path: Path) -> None:
    model = story.model_folder(tmp_path / "model")
    data = story.rows_file(tmp_path / "rows.json", 12)
    ends = {}
    for backend in ("blocks", "flex"):
        out = tmp_path / backend
        words = story.words(model, data, out, f"engine.attention={backend}", "engine.steps=4")
        done = story.tunewright(*words)
        assert done.returncode == 0, done.stderr
        # Where there is nothing to choose, nothing is said.
        assert ("attention: flex" in done.stdout + done.stderr) is (backend == "flex")
        ends[backend] = json.loads((out / "summary.json").read_text())
        assert yaml.safe_load((out / "run.yaml").read_text())["engine"]["attention"] == backend
    a, b = (ends[name]["final_loss"] for name in ("blocks", "flex"))
    assert a == pytest.approx(b, rel=1e-4)


def test_with_padded_rows_the_key_does_nothing_and_is_refused(tmp_path: Path) -> None:
    model = story.model_folder(tmp_path / "model")
    data = story.rows_file(tmp_path / "rows.json", 12)
    done = story.tunewright(
        *story.words(model, data, tmp_path / "run", "engine.attention=flex", "engine.layout=padded")
    )
    assert done.returncode != 0 and "E-COMPAT-12" in done.stdout + done.stderr
