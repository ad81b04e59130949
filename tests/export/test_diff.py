"""The sparse difference of a finished full run: the largest changes, an honest account, a folder
that opens on the base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.story import model_folder

from tunewright.core.errors import UsageError
from tunewright.core.telling import Quiet
from tunewright.export.diff import export_difference, lines
from tunewright.methods.saved import put_on
from tunewright.models.load import load_model


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What `export diff` reads of a run that trained every weight: its settings and its whole
    model, here with known changes."""
    base = model_folder(tmp_path / "base")
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    model = load_model(base, dtype="float32")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.01)
    model.save_pretrained(folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "model" / name).write_bytes((base / name).read_bytes())
    (folder / "run.yaml").write_text(
        f"model: {base}\ndata:\n  train: rows.json\n", encoding="utf-8"
    )
    return folder


def weights(folder: Path) -> dict[str, Any]:
    return {n: p.detach() for n, p in load_model(folder, dtype="float32").named_parameters()}


def test_it_keeps_the_largest_changes_of_the_matrices_and_says_what_it_left(
    run: Path, tmp_path: Path
) -> None:
    result = export_difference(run, tmp_path / "out", share=0.01, tell=Quiet())
    base, tuned = weights(tmp_path / "base"), weights(run / "model")
    total = sum(p.numel() for p in base.values())
    deltas = {n: tuned[n] - p for n, p in base.items()}
    matrices = {n: d for n, d in deltas.items() if ".layers." in n and d.ndim == 2}
    best = sorted((float(v) for d in matrices.values() for v in d.abs().flatten()), reverse=True)[
        : round(0.01 * total)
    ]
    assert result["changed"] == len(best)
    assert result["changed_share"] == pytest.approx(0.01, rel=0.1)
    inside = sum(float(d.double().square().sum()) for d in matrices.values())
    whole = sum(float(d.double().square().sum()) for d in deltas.values())
    assert result["kept"] == pytest.approx(sum(v * v for v in best) / inside, rel=1e-4)
    assert result["outside"] == pytest.approx(1 - inside / whole, rel=1e-4)
    merged = put_on(load_model(tmp_path / "base", dtype="float32"), tmp_path / "out").merge
    assert merged is not None
    found = dict(merged().named_parameters())
    for n, p in base.items():
        wanted = torch.where(deltas[n].abs() >= best[-1], tuned[n], p) if n in matrices else p
        assert torch.allclose(found[n], wanted, atol=1e-7), n
    assert f"{result['changed']:,}" in lines(result)[0]


def test_the_folder_is_opened_by_its_name_alone(run: Path, tmp_path: Path) -> None:
    from tunewright.engine.opening import open_target

    export_difference(run, tmp_path / "out", tell=Quiet())
    opened = open_target(str(tmp_path / "out"), Quiet(), dtype="float32")
    assert opened.attached is not None
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        tuned = opened.model(input_ids=ids).logits
        with opened.untouched():
            assert not torch.equal(opened.model(input_ids=ids).logits, tuned)


def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    run: Path, tmp_path: Path
) -> None:
    import shutil

    for share in (0.0, 1.0, -1.0):
        with pytest.raises(UsageError, match="E-METHOD-48"):
            export_difference(run, tmp_path / "out", share=share, tell=Quiet())
    unchanged = shutil.copytree(run, tmp_path / "unchanged")
    shutil.rmtree(unchanged / "model")
    shutil.copytree(tmp_path / "base", unchanged / "model")
    with pytest.raises(UsageError, match="E-METHOD-49"):
        export_difference(unchanged, tmp_path / "out", tell=Quiet())
    shutil.rmtree(run / "model")
    with pytest.raises(UsageError, match="E-METHOD-47"):
        export_difference(run, tmp_path / "out", tell=Quiet())
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_account_as_json(run: Path, tmp_path: Path) -> None:
    from helpers.story import tunewright

    done = tunewright(
        "export", "diff", str(run), str(tmp_path / "out"), "--share", "0.01", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["changed_share"] == pytest.approx(0.01, rel=0.1)
