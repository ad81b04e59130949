"""Where the Studio may read and write, and the one way from a text of the page to a path.

The page names files by ids from lists. Where it may give a path (a model folder, a data file), the
text is refused for its form before the system sees it (a UNC path would make Windows send
credentials), then resolved, links followed, and has to lie below an allowed root. Names of new
files are made from safe letters only. Source of the cases: ../reference/reliability.md, S6.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tunewright.core.errors import UsageError, problem, raise_all
from tunewright.core.files import write_text
from tunewright.core.words import ASSETS, say

PRIVATE = ".studio"
RECIPES = ASSETS / "studio" / "recipes"
FOLDERS = ("jobs", "logs", "data", "trash", "notes")
LONGEST_PATH, LONGEST_NAME = 4096, 100
DEVICE = re.compile(r"(?i)^(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(\.|$)")
"""Names that Windows takes for devices, with any ending."""


@dataclass(frozen=True)
class Places:
    """The workspace `root`, and folders beside it that the person allowed on the command line."""

    root: Path
    allowed: tuple[Path, ...] = ()
    private: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(os.path.realpath(self.root)))
        real = tuple(Path(os.path.realpath(place)) for place in self.allowed)
        object.__setattr__(self, "allowed", real)
        object.__setattr__(self, "private", self.root / PRIVATE)

    @property
    def roots(self) -> tuple[Path, ...]:
        """Every folder below which the page may name something."""
        return (self.root, *self.allowed, RECIPES)

    @property
    def runs(self) -> Path:
        """Where new runs go."""
        return self.root / "runs"

    @property
    def exports(self) -> Path:
        """Where exports go."""
        return self.root / "exports"

    @property
    def uploads(self) -> Path:
        """Data that came through the page."""
        return self.private / "data"

    def prepare(self) -> None:
        """Make the private folder, readable by its owner alone. Raises UsageError."""
        try:
            if not self.root.is_dir():
                raise NotADirectoryError(f"{self.root} is no folder")
            for folder in (self.private, *(self.private / name for name in FOLDERS)):
                folder.mkdir(mode=0o700, exist_ok=True)
                with contextlib.suppress(OSError):
                    folder.chmod(0o700)
        except OSError as error:
            raise UsageError(
                problem("E-STUDIO-03", str(self.root), folder=self.root, cause=error)
            ) from error

    def token(self) -> str:
        """The token of this workspace; the same after a restart, so that an open page goes on."""
        path = self.private / "token"
        with contextlib.suppress(OSError):
            found = path.read_text(encoding="ascii").strip()
            if len(found) >= 32:
                return found
        made = secrets.token_urlsafe(32)
        # Made with its mode: between writing and chmod others could read it.
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(made)
        return made

    def inside(self, text: object, where: str) -> Path:
        """The existing file or folder that a text of the page names. Raises UsageError for a text
        that leaves the roots, whatever it would find there."""
        if not isinstance(text, str) or not is_plain_path(text):
            raise refused(text, where)
        given = Path(text)
        whole = given if given.is_absolute() else self.root / given
        # Looked at as text before the system is asked: of what lies elsewhere nothing is told, not
        # even whether it is there.
        lexical = Path(os.path.normpath(whole))
        if not self._holds(lexical):
            raise refused(text, where)
        real = Path(os.path.realpath(lexical))
        if not self._holds(real):
            raise refused(text, where)
        if not is_there(real):
            raise UsageError(problem("E-STUDIO-12", where, what=shown(text)))
        return real

    def _holds(self, path: Path) -> bool:
        if path.is_relative_to(self.private):
            return path.is_relative_to(self.uploads) and path != self.uploads
        return any(path.is_relative_to(root) for root in self.roots)

    def holds(self, path: Path) -> bool:
        """Whether a path, links followed, lies where the page may see it."""
        return self._holds(Path(os.path.realpath(path)))

    def short(self, path: Path | str) -> str:
        """A path as people read it: from the workspace on where it lies there."""
        path = Path(path)
        if path.is_relative_to(self.root):
            return path.relative_to(self.root).as_posix() or "."
        return str(path)

    def id_of(self, path: Path) -> str:
        """The id under which the page knows a path: the same in every process."""
        whole = os.path.abspath(path)  # noqa: PTH100 - a link is a place of its own
        return hashlib.sha256(os.fsencode(whole)).hexdigest()[:16]


def is_there(path: Path) -> bool:
    """Whether there is a file or folder; False for a name that no system could have."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def shown(text: object) -> str:
    """A text of the page in a message: short, and without control characters."""
    plain = "".join(c if c.isprintable() else "?" for c in str(text))
    return plain if len(plain) <= 120 else f"{plain[:117]}..."


def refused(text: object, where: str) -> UsageError:
    """The refusal of a path."""
    return UsageError(problem("E-STUDIO-11", where, path=shown(text)))


def is_plain_path(text: str) -> bool:
    """Whether a text may be looked at as a path at all, under the rules of every system at once."""
    if not text or len(text) > LONGEST_PATH or not text.isprintable():
        return False
    if text.startswith(("\\\\", "//", "~", "-")) or "::" in text:
        return False
    parts = [part for part in re.split(r"[/\\]", text) if part not in ("", ".")]
    if os.name != "nt" and ("\\" in text or re.match(r"[A-Za-z]:", text)):
        return False
    if os.name == "nt":
        parts = parts[1:] if re.fullmatch(r"[A-Za-z]:", parts[0]) else parts
        if any(":" in part for part in parts):
            return False
    return not any(
        part == ".." or DEVICE.match(part) or part != part.rstrip(". ") for part in parts
    )


def name_for_file(text: object, where: str) -> str:
    """A file name from one that the page gives: what is unusual becomes a hyphen, what aims
    elsewhere is refused. Raises UsageError."""
    if not isinstance(text, str) or not text.strip() or len(text) > 255:
        raise UsageError(problem("E-STUDIO-18", where, name=shown(text)))
    wrong = re.search(r"[/\\\x00-\x1f\x7f]|::|%(?:2e|2f|5c|00)", text, re.IGNORECASE)
    if wrong or text.strip(". ") == "" or ".." in text or re.match(r"[A-Za-z]:", text):
        raise UsageError(problem("E-STUDIO-18", where, name=shown(text)))
    name = slug(text)
    if not name or DEVICE.match(name) or DEVICE.match(text):
        raise UsageError(problem("E-STUDIO-18", where, name=shown(text)))
    return name


def open_places(root: Path, allow: Sequence[Path]) -> Places:
    """The workspace `root`, with its private folder made, and the folders that are allowed beside
    it. Raises UsageError (E-STUDIO-03) for what is no folder."""
    places = Places(root.expanduser(), tuple(folder.expanduser() for folder in allow))
    raise_all(
        problem("E-STUDIO-03", "--allow", folder=folder, cause=say("studio.no_folder"))
        for folder in places.allowed
        if not folder.is_dir()
    )
    places.prepare()
    return places


def slug(text: str) -> str:
    """A text as a part of a file name: letters, digits, `_`, `-` and `.` inside."""
    plain = unicodedata.normalize("NFKC", text)
    return re.sub(r"[^\w.-]+", "-", plain).strip("-._ ")[:LONGEST_NAME].strip("-._ ")


def free_name(folder: Path, name: str, taken: set[str] | None = None) -> Path:
    """`folder/name`, or with the first number that makes it free."""
    stem, dot, ending = name.partition(".")
    n = 1
    while True:
        path = folder / (name if n == 1 else f"{stem}-{n}{dot}{ending}")
        if not os.path.lexists(path) and str(path) not in (taken or ()):
            return path
        n += 1


def write_private(path: Path, text: str) -> None:
    """Replace a file below the private folder."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_text(path, text)
