"""The table of devices: how they are named, what is stated of them, and amounts of memory."""

from __future__ import annotations

import pytest

from tunewright.advise import devices
from tunewright.core.errors import UsageError

GiB = 2**30


def test_every_device_states_its_facts_and_where_they_stand() -> None:
    found = devices.all_devices()
    assert len(found) >= 25
    assert len({one.name for one in found}) == len(found)
    for one in found:
        assert one.memory_gib >= 8 and one.bandwidth_gbs >= 50, one
        assert one.source.startswith("https://"), one
        assert one.device in ("cuda", "mps") and (one.tflops is None or one.tflops > 10)
        # A rate is given only where the stated peak holds for the dtype that a run would take.
        assert (one.rates() is not None) == (one.tflops is not None and one.bfloat16)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("a100", "A100 80GB"),
        ("A100-40GB", "A100 40GB"),
        ("h100", "H100 80GB"),
        ("tesla t4", "T4"),
        ("m4 max", "Apple M4 Max"),
        ("Apple M2 Ultra", "Apple M2 Ultra"),
        ("mi300x", "MI300X"),
    ],
)
def test_a_device_is_found_by_the_names_that_people_use(said: str, meant: str) -> None:
    assert devices.named(said).name == meant


def test_no_name_stands_for_two_devices() -> None:
    names = [word for one in devices.all_devices() for word in (one.name, *one.aliases)]
    plain = [devices._plain(name) for name in names]
    assert len(set(plain)) == len(plain) and all(plain)


def test_an_unknown_device_names_the_nearest_and_all_that_are_known() -> None:
    with pytest.raises(UsageError, match="E-FIT-03") as refused:
        devices.named("RTX 4099")
    text = refused.value.text()
    assert "RTX 4090" in text and "H200" in text and "--memory" in text


@pytest.mark.parametrize(
    ("text", "size"),
    [("48GB", 48 * GiB), ("48", 48 * GiB), ("1.5 gib", 3 * GiB // 2), ("6000MB", 6000 * 2**20)],
)
def test_memory_is_read_with_and_without_a_unit(text: str, size: int) -> None:
    assert devices.bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "much", "-3GB", "0", "4 8GB", "48 bananas", "nan"])
def test_what_is_no_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="E-FIT-04"):
        devices.bytes_of(text)
