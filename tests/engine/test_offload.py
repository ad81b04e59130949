"""What lies elsewhere in between comes back bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.engine import offload, recompute, state
from tunewright.engine.offload import AwayOptimizer, FileStore, HostStore, Store

STORES = [FileStore, HostStore]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _everything_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny tensors are put away too, a few parameters at a time."""
    monkeypatch.setattr(offload, "SMALLEST", 1)
    monkeypatch.setattr(offload, "AT_ONCE", 1 << 14)


def made(
    family: str = "llama", layout: str = "tree", optimizer: str = "adamw", **method: Any
) -> Any:
    model = tiny.make_model(family, num_hidden_layers=3 if family == "llama" else 2)
    torch.manual_seed(1)
    attached = tiny.attach_lora(model, **method) if method else tiny.attach_all(model)
    return tiny.make_stepper(
        model, attached, layout, rows_per_pass=80, clip=1.0, optimizer=optimizer
    )


def away(stepper: Any, store: Store, *, activations: bool, optimizer: bool) -> Any:
    if activations:
        offload.keep_activations_away(stepper.policy, store)
    if optimizer:
        stepper.optimizer = AwayOptimizer(stepper.optimizer, store)
    return stepper


def learnt(stepper: Any, steps: int = 3) -> tuple[list[float], dict[str, torch.Tensor]]:
    samples = tiny.dialogues() + tiny.pairs()
    losses = [stepper.step(samples, n, 1e-2).loss for n in range(1, steps + 1)]
    return losses, {name: p.detach().clone() for name, p in stepper.trained()}


def require_same(a: Any, b: Any) -> None:
    assert a[0] == b[0]
    assert a[1].keys() == b[1].keys()
    assert all(torch.equal(a[1][name], b[1][name]) for name in a[1])


@pytest.mark.wide("llama-tree-FileStore", "gemma2-padded-HostStore")
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_weights_are_the_same_bits(store: Any, layout: str, family: str) -> None:
    ours = away(made(family, layout), store(), activations=True, optimizer=True)
    require_same(learnt(ours), learnt(made(family, layout)))
    state_of = ours.optimizer.state
    assert any(hasattr(v, "get") for s in state_of.values() for v in s.values())


@pytest.mark.wide("full-FileStore")
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("level", ["selective", "full"])
def test_with_dropout_and_blocks_that_are_computed_again(store: Any, level: str) -> None:
    ours, wanted = (made(rank=4, dropout=0.3) for _ in range(2))
    for one in (ours, wanted):
        recompute.install(one.policy, level)
    away(ours, store(), activations=True, optimizer=True)
    require_same(learnt(ours), learnt(wanted))


@pytest.mark.parametrize(
    "optimizer",
    ["adamw", "adafactor", "adamw_8bit", "muon", "lion", "adam_mini", "adamw_schedule_free"],
)
def test_every_rule_updates_a_part_of_the_parameters_at_a_time(optimizer: str) -> None:
    ours = away(made(optimizer=optimizer), HostStore(), activations=False, optimizer=True)
    assert len(list(ours.optimizer._parts())) > 3
    wanted = made(optimizer=optimizer)
    require_same(learnt(ours), learnt(wanted))
    # What is handed out is the same too, and afterwards what learns.
    with ours.handed_out(), wanted.handed_out():
        pairs = zip(ours.parameters(), wanted.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    require_same(learnt(ours), learnt(wanted))


@pytest.mark.parametrize("store", STORES)
def test_a_checkpoint_holds_the_same_and_is_taken_up_by_either(store: Any) -> None:
    def tensors(stepper: Any) -> dict[str, torch.Tensor]:
        found = state.optimizer_tensors(stepper.optimizer, stepper.trained())
        return {name: value.clone() for name, value in found.items()}

    whole = made()
    wanted = learnt(whole, 4)
    first, plain = away(made(), store(), activations=False, optimizer=True), made()
    learnt(first, 2)
    learnt(plain, 2)
    kept = tensors(first)
    assert kept.keys() == tensors(plain).keys()
    assert all(torch.equal(kept[n], v) for n, v in tensors(plain).items())
    for resumed in (made(), away(made(), store(), activations=False, optimizer=True)):
        with torch.no_grad():
            for (_, p), (_, old) in zip(resumed.trained(), first.trained(), strict=True):
                p.copy_(old)
        own = {name: value.clone() for name, value in kept.items()}
        state.load_optimizer_tensors(resumed.optimizer, resumed.trained(), own)
        samples = tiny.dialogues() + tiny.pairs()
        losses = [resumed.step(samples, n, 1e-2).loss for n in (3, 4)]
        assert losses == wanted[0][2:]
        now = dict(resumed.trained())
        assert all(torch.equal(now[n], v) for n, v in wanted[1].items())


def test_less_is_held_between_forward_and_backward() -> None:
    def held(kept_away: bool) -> int:
        stepper = made(rank=4)
        own = {p.untyped_storage().data_ptr() for p in stepper.policy.model.parameters()}
        found: dict[int, int] = {}

        def see(tensor: torch.Tensor) -> torch.Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        if kept_away:
            away(stepper, FileStore(), activations=True, optimizer=False)
        stepper.policy.model.train()
        # The hooks of the blocks are inside of this one, so it sees what stays.
        with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
            stepper.policy(tiny.dialogues())
        return sum(size for place, size in found.items() if place not in own)

    assert held(True) < 0.6 * held(False)


@pytest.mark.parametrize("store", STORES)
def test_any_order_of_dimensions_comes_back_as_it_lay(store: Any) -> None:
    kept = store()
    for x in (
        torch.randn(4, 5, 6),
        torch.randn(4, 5, 6).transpose(0, 2),
        torch.randn(8, 3).t(),
        torch.randn(2, 1, 3).to(torch.bfloat16),
        torch.randn(10, 4)[2:7],
        torch.tensor(3.0),
        torch.arange(7, dtype=torch.uint8),
    ):
        assert offload.has_no_gaps(x)
        slot = kept.put(x, CPU)
        back = slot.get()
        assert torch.equal(back, x) and back.stride() == x.stride() and back.dtype == x.dtype
        assert torch.equal(slot.on_host(), x)
        slot.set(x * 2)
        assert torch.equal(slot.get(), x * 2) and torch.equal(slot.on_host(), x * 2)
    for x in (torch.randn(4, 5)[:, :3], torch.randn(1, 5).expand(4, 5)):
        assert not offload.has_no_gaps(x)


def test_the_file_has_no_name_and_starts_again_when_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path))
    store = FileStore()
    slots = [store.put(torch.randn(100), CPU) for _ in range(3)]
    assert store.end >= 1200 and not list((tmp_path / "offload").iterdir())
    del slots[1:]
    assert store.end >= 1200
    del slots
    assert store.end == 0
