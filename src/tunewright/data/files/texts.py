"""Running text: a row is a block of lines between blank lines; in a file without any blank line
every line is a row; or the file is one row."""

from __future__ import annotations

from collections.abc import Iterator

from tunewright.core.types import Origin
from tunewright.data.files.source import RawRow, Source, reads


@reads("text", ".txt", ".md")
def read_text(source: Source) -> Iterator[RawRow]:
    """Each row is `{"text": block}`; with `source.whole` the only row is the file."""
    if source.whole:
        with source.text() as text:
            content = text.read()
        if content.strip():
            yield RawRow({"text": content.strip("\n")}, Origin(source.name, 1, 1))
        return
    one_a_line = not _has_blank_lines(source)
    block: list[str] = []
    row = started = 0
    with source.text() as text:
        for number, line in enumerate(text, start=1):
            line = line.removesuffix("\n")
            if block and (one_a_line or not line.strip()):
                row += 1
                yield RawRow({"text": "\n".join(block)}, Origin(source.name, started, row))
                block = []
            if line.strip():
                started = started if block else number
                block.append(line)
    if block:
        yield RawRow({"text": "\n".join(block)}, Origin(source.name, started, row + 1))


def _has_blank_lines(source: Source) -> bool:
    """Whether a blank line stands before the last line with text."""
    blank = False
    with source.text() as text:
        for line in text:
            if not line.strip():
                blank = True
            elif blank:
                return True
    return False
