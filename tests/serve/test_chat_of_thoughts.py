"""A thought is shown apart from its answer: in the terminal, streamed, and in whatever form the
template writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import story, thinking

from tunewright.serve.chatting import Apart

ANSWER = "<think>\nhm so\n</think>\n\nlamp 1"


@pytest.mark.parametrize("family", ["qwen3.5", "harmony"])
def test_chat_prints_the_answer_and_tells_the_thought_apart(family: str, tmp_path: Path) -> None:
    folder = thinking.base_folder(tmp_path / "model", family)
    thinking.teach(folder, {"what is 1": ANSWER})
    words = ("chat", str(folder), "--max-new-tokens", "40")
    done = story.tunewright(*words, stdin="what is 1\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "lamp 1\n"
    assert "[thought] hm so" in done.stderr and "channel" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        (ANSWER, "hm so", "lamp 1"),
        ("lamp <think> 1", "", "lamp <think> 1"),
        ("<think>\nhm", "hm", ""),
        ("<th", "", "<th"),
        ("  lamp\n\n 1 ", "", "  lamp\n\n 1 "),
    ],
)
def test_pieces_are_shown_once_and_apart(text: str, thought: str, answer: str, capsys: Any) -> None:
    for size in (1, 3, 100):
        apart = Apart()
        for at in range(0, len(text), size):
            apart.add(text[at : at + size])
        apart.end()
        found = capsys.readouterr()
        assert found.out == answer
        assert found.err.strip().removeprefix("[thought] ") == thought
