"""Threads of a server ask for names at once: none finds half of a room."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import threading
from tunewright.core.registry import methods, objectives
found, start = [], threading.Barrier(8)
def ask(n):
    start.wait()
    found.append((methods if n % 2 else objectives).get("lora" if n % 2 else "sft"))
threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
assert len(found) == 8 and None not in found, found
"""


def test_no_thread_finds_half_of_a_room() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
