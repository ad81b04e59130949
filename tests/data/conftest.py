"""Fixtures of the data room: a renderer over a tiny tokenizer, and files written on the fly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.families import tokenizer_of

from tunewright.core.words import set_language
from tunewright.text.renderer import Renderer


@pytest.fixture(autouse=True)
def _english():
    set_language("en")
    yield
    set_language(None)


@pytest.fixture(scope="session")
def renderer() -> Renderer:
    return Renderer(tokenizer_of("chatml"))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], str]:
    """Write a file of this name: bytes and text as they are, a list as JSON or, for .jsonl, one
    value a line."""

    def put(name: str, content: Any) -> str:
        path = tmp_path / name
        if isinstance(content, list):
            content = (
                "\n".join(map(json.dumps, content))
                if name.endswith("l")
                else json.dumps(content, indent=1)
            )
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return str(path)

    return put
