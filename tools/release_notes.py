"""The notes of a release: its part of CHANGELOG.md.

python tools/release_notes.py 0.2.0
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

CHANGELOG = Path(__file__).resolve().parents[1] / "CHANGELOG.md"


def notes(version: str, text: str) -> str:
    """What stands below the heading of `version` (`Unreleased` for what comes next). Raises
    SystemExit where there is no such heading, or nothing below it."""
    parts = re.split(r"^## \[([^\]]+)\][^\n]*\n", text, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    if not found.get(version, "").strip():
        raise SystemExit(f"CHANGELOG.md says nothing of {version}; it knows {', '.join(found)}")
    return found[version].strip() + "\n"


if __name__ == "__main__":
    print(notes(sys.argv[1], CHANGELOG.read_text(encoding="utf-8")), end="")
