"""A model on grids as a folder in the format of compressed-tensors, `pack-quantized`: whole numbers
side by side in 32-bit words, a scale for each group, a zero point where the grid has one.

compressed-tensors packs, and writes what it packed into `config.json`; Transformers and vLLM read
both. Transformers makes the matrices wide again at the first pass, vLLM computes with them as they
are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunewright.export.gptq import Grid, Rounded


def _config(made: dict[str, Rounded]) -> Any:
    """The quantisation as compressed-tensors describes it: one group of modules for each grid."""
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
    )

    grids: dict[Grid, list[str]] = {}
    for name, rounded in made.items():
        grids.setdefault(rounded.grid, []).append(name)
    groups = {
        f"group_{number}": QuantizationScheme(
            targets=names,
            weights=QuantizationArgs(
                num_bits=grid.bits,
                type="int",
                symmetric=grid.symmetric,
                strategy="group",
                group_size=grid.group,
            ),
        )
        for number, (grid, names) in enumerate(grids.items())
    }
    return QuantizationConfig(
        config_groups=groups, format="pack-quantized", quantization_status="initialized"
    )


def compress(model: Any, made: dict[str, Rounded]) -> None:
    """Replace the rounded matrices of `model`, in float32, by their packed form."""
    import torch
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import apply_quantization_config

    config = _config(made)
    with torch.no_grad():
        apply_quantization_config(model, config, show_progress=False)
        for name, rounded in made.items():
            module = model.get_submodule(name)
            module.weight_scale.copy_(rounded.scales)
            if not rounded.grid.symmetric:
                module.weight_zero_point.copy_(rounded.zeros)
        compressor = ModelCompressor(config)
        compressor.compress_model(model)
        compressor.remove_decompression_hook(model)


def state(folder: Path, made: dict[str, Rounded]) -> None:
    """Say in the folder's `config.json` what is packed."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationStatus

    config = _config(made)
    config.quantization_status = QuantizationStatus.COMPRESSED
    ModelCompressor(config).update_config(str(folder))
