"""A browser for the tests of a file. Not for longer: while playwright lives, no other test of the
process could run a loop of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browsing import browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found
