"""A chat template that a person brings (`data.template`): a Jinja file, or one of ours by its name.

Its text takes the place of the tokenizer's own before anything is rendered, and is saved with the
tokenizer beside what was trained, so that chat, serving, exports and other programs write the same.
A run keeps a copy, which a resumed run reads: the file may have changed since.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunewright.core.errors import ConfigError, first_line, problem
from tunewright.core.words import ASSETS
from tunewright.text.template import compiled

FILE = "template.jinja"
"""In a run folder: the template as it was when the run began."""
NAMED = ("chatml",)


def read(given: str | None, run: Path | None = None) -> str | None:
    """The text of the template that a run file names; of a run that is taken up again (`run`), its
    own copy. None where none is named.

    Raises ConfigError for a file that is missing (E-KEY-08) and for one that is no template or does
    not write the messages (E-KEY-09).
    """
    if given is None:
        return None
    path = Path(given)
    kept = run / FILE if run is not None else None
    if kept is not None and kept.is_file():
        path = kept
    elif given in NAMED:
        path = ASSETS / "templates" / f"{given}.jinja"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        cause, names = first_line(e), ", ".join(NAMED)
        raise ConfigError(
            problem("E-KEY-08", "data.template", file=given, cause=cause, names=names)
        ) from e
    _require_template(text, str(path))
    return text


def _require_template(text: str, where: str) -> None:
    try:
        compiled(text)
    except Exception as e:  # jinja raises several kinds, and the sandbox its own
        raise ConfigError(problem("E-KEY-09", where, cause=first_line(e))) from e
    if "messages" not in text:
        raise ConfigError(problem("E-KEY-09", where, cause="messages"))


def lay_over(tokenizer: Any, text: str | None) -> Any:
    """The same tokenizer with this template, where there is one."""
    if text is not None:
        tokenizer.chat_template = text
    return tokenizer
