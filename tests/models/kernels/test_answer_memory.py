"""The memory of answers that are being written gives back what a long prompt took, and loses
nothing when it is made anew."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch

from tunewright.models.kernels.answer_attention import AnswerMemory
from tunewright.models.kernels.tree_attention import Kept

K, D = 2, 64


def join(memory: AnswerMemory, *lengths: int) -> torch.Tensor:
    """New rows with prompts of these lengths; what stands in their columns, (K, sum, D)."""
    found = torch.randn(K, sum(lengths), D)
    start, paths = 0, []
    for length in lengths:
        paths.append(list(range(start, start + length)))
        start += length
    kept = {layer: Kept(found, -found, 1.0, None, None) for layer in range(2)}
    memory.add(kept, paths)
    return found


def live_bytes(memory: AnswerMemory) -> int:
    stores = [s for x in memory.layers.values() for s in (x.k, x.v, x.far_k, x.far_v)]
    return sum(s.data.nbytes for s in stores if s.data is not None)


def step(memory: AnswerMemory) -> None:
    """A token of every row that is all ones."""
    memory.begin()
    one = torch.ones(len(memory), K, D)
    for layer in memory.layers:
        memory.attend(layer, one, one, one, 1.0, None, None)
    memory.advance()


def test_a_long_prompt_among_short_ones_does_not_stay_in_memory() -> None:
    """Waves of short prompts without an end, and once a long one."""
    memory = AnswerMemory(torch.device("cpu"))
    figures = []
    for wave in range(6):
        if wave == 2:
            join(memory, 4000)
        while len(memory) < 32:
            join(memory, 30)
        for _ in range(20):
            step(memory)
        figures.append(live_bytes(memory))
        memory.keep([i for i in range(len(memory)) if memory.lengths[i] < 1000][:8])
    assert figures[2] > 10 * figures[1]
    # Half of a buffer may be room for what is to come.
    assert max(figures[3:]) <= 2 * figures[1]


def test_long_prompts_after_many_short_ones_take_room_for_themselves_alone() -> None:
    memory = AnswerMemory(torch.device("cpu"))
    join(memory, *[20] * 64)
    memory.keep([0])
    join(memory, 8000)
    layers, both, item = 2, 2, 4
    assert live_bytes(memory) <= 1.1 * layers * both * item * 2 * K * 8000 * D


def test_nothing_is_lost_when_the_buffers_are_made_anew() -> None:
    torch.manual_seed(0)
    memory = AnswerMemory(torch.device("cpu"))
    first = join(memory, 70, 90, 3000)
    step(memory)
    assert memory.keep([0, 1]) == [0, 1]
    before = live_bytes(memory)
    second = join(memory, 50)
    assert live_bytes(memory) < before / 4
    for layer in memory.layers.values():
        assert layer.k.data is not None and layer.v.data is not None
        for row, found in enumerate((first[:, :70], first[:, 70:160], second)):
            n = found.shape[1]
            assert torch.equal(layer.k.data[row, :, :n], found)
            assert torch.equal(layer.v.data[row, :, :n], -found)
        assert bool((layer.k.data[0, :, 70] == 1).all() and (layer.k.data[1, :, 90] == 1).all())


COUNT = """
import ctypes, sys, torch
from tunewright.core import machine
if sys.argv[1] == "few":
    machine.keep_few_kernels()
class Heap(ctypes.Structure):
    _fields_ = [(f"f{i}", ctypes.c_size_t) for i in range(10)]
libc = ctypes.CDLL("libc.so.6")
libc.mallinfo2.restype = Heap
weight = torch.ones(64, 64)
def used(start):
    for rows in range(start, start + 150):
        torch.ops.mkldnn._linear_pointwise(torch.ones(rows, 64), weight, None, "none", [], "")
    return libc.mallinfo2().f7
print(*[used(start) for start in range(1, 600, 150)])
"""


def test_compiled_products_of_ever_new_sizes_end_taking_memory() -> None:
    """Bytes in use after 150, 300, 450 and 600 numbers of rows, and without the bound."""
    if not sys.platform.startswith("linux") or not torch.backends.mkldnn.is_available():
        pytest.skip("oneDNN and glibc's figures are asked")
    grown = {}
    for how in ("few", "many"):
        env = {k: v for k, v in os.environ.items() if "CACHE_CAPACITY" not in k}
        out = subprocess.check_output([sys.executable, "-c", COUNT, how], text=True, env=env)
        used = [int(x) for x in out.split()]
        grown[how] = [b - a for a, b in itertools.pairwise(used)]
    assert min(grown["many"]) > 150 * 2000, grown
    assert max(map(abs, grown["few"])) < 0.1 * min(grown["many"]), grown
