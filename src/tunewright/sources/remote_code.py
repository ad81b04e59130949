"""A model's own code: which files it is, who may let it run, and the private copy it runs from.

Code runs only where a person gave the SHA-256 of exactly these files on the command line. The
consent belongs to that one command: it is held in a context that nothing written in a file, and no
environment variable, can reach. What runs is a copy made from the very bytes that were hashed, in a
folder of this process alone, so nothing can change between the look and the run. A type that
Transformers knows itself is opened without the code.
"""

from __future__ import annotations

import ast
import atexit
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tunewright.core.errors import ModelError, Problem, UsageError, problem, raise_all
from tunewright.core.families import cards
from tunewright.core.words import say
from tunewright.sources.headers import CONFIG_FILES, read_config

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
REFERENCE = re.compile(r"(?P<module>[A-Za-z_]\w*)\.[A-Za-z_]\w*")
"""What Transformers takes in `auto_map`: one module of the folder, one class."""
CODE_NAME = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)*\.py", re.ASCII)
MAX_FILES, MAX_BYTES = 200, 8 << 20
MAX_DEPTH = 80
"""More than the nesting that `vet.py` refuses."""
FIRST_LINES, LINE_WIDTH = 3, 110
CONFIG_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".tiktoken")
OPENED = ("config.json", "tokenizer_config.json")
"""The files whose `auto_map` decides what this program opens; the rest belongs to parts that are
never opened."""
REACHING = {
    "os",
    "subprocess",
    "socket",
    "ctypes",
    "urllib",
    "requests",
    "httpx",
    "http",
    "ftplib",
    "pickle",
    "marshal",
    "shutil",
    "importlib",
    "builtins",
    "multiprocessing",
    "pty",
    "huggingface_hub",
    "eval",
    "exec",
    "compile",
    "__import__",
    "open",
    "getattr",
}
"""Modules and calls worth a look before code is allowed. An aid for reading: their absence proves
nothing."""


@dataclass(frozen=True)
class Place:
    """Where a model is opened from. `code` names the configuration files whose code may run; empty
    for every ordinary model."""

    folder: Path
    code: frozenset[str] = frozenset()

    @property
    def model(self) -> bool:
        """Whether configuration and model are built by the folder's code."""
        return "config.json" in self.code

    @property
    def tokenizer(self) -> bool:
        """Whether opening the tokenizer may run the folder's code; Transformers reads the model's
        configuration for it."""
        return bool(self.code)


@dataclass
class _Consent:
    """What the person at the command line allowed, and what was opened under it."""

    digests: frozenset[str] = frozenset()
    files: set[str] = field(default_factory=set)
    places: dict[Path, Place] = field(default_factory=dict)

    def covers(self, code: Mapping[str, bytes]) -> bool:
        """Whether exactly this code was allowed, or every file of it is part of code that was: a
        run saves copies of what it was built with."""
        return digest_of(code) in self.digests or (
            bool(code) and {_one(name, text) for name, text in code.items()} <= self.files
        )

    def remember(self, code: Mapping[str, bytes]) -> None:
        """From here on the files of an allowed folder are known one by one."""
        if digest_of(code) in self.digests:
            self.files |= {_one(name, text) for name, text in code.items()}


_consent: ContextVar[_Consent | None] = ContextVar("tunewright_trust_code", default=None)


@contextmanager
def trusting(digests: Iterable[str]) -> Iterator[None]:
    """Inside, code with one of these hashes (`sha256:...`) may run. Only the command line calls
    this. Raises UsageError for what is no hash."""
    given = list(digests)
    raise_all(
        [
            problem("E-MODEL-52", "--trust-code", given=d[:80])
            for d in given
            if not DIGEST.fullmatch(d)
        ],
        UsageError,
    )
    token = _consent.set(_Consent(frozenset(given)))
    try:
        yield
    finally:
        _consent.reset(token)


def trusted() -> frozenset[str]:
    """The hashes of code that may run here."""
    consent = _consent.get()
    return frozenset() if consent is None else consent.digests


# ---- what a folder asks for


def knows(model_type: object) -> bool:
    """Whether the installed Transformers has this model type. Imports Transformers' table of names,
    no model code; for the families on our own cards, which every supported version has, not even
    that: it takes seconds, and a dry run should not."""
    if isinstance(model_type, str) and model_type in cards():
        return True
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return isinstance(model_type, str) and model_type in CONFIG_MAPPING_NAMES


@cache
def _knows_tokenizer(name: object) -> bool:
    """Whether a tokenizer class is Transformers' own."""
    if not isinstance(name, str) or not name:
        return False
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    found = tokenizer_class_from_name(name) or tokenizer_class_from_name(f"{name}Fast")
    return found is not None and found.__module__.split(".")[0] == "transformers"


def _is_native(name: str, config: Mapping[str, Any]) -> bool:
    """Whether Transformers opens what `config` describes with its own classes."""
    if name == "config.json":
        return knows(config.get("model_type"))
    return name == "tokenizer_config.json" and _knows_tokenizer(config.get("tokenizer_class"))


def needing(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The configuration files whose `auto_map` can only be followed by running the model's own
    code."""
    return [
        name
        for name, config in configs.items()
        if config.get("auto_map") and not _is_native(name, config)
    ]


def notes(folder: Path) -> list[str]:
    """Sentences for people: code that is not needed, and consent that nothing asked for."""
    found = {name: read_config(folder / name)[0] for name in OPENED if (folder / name).is_file()}
    needed = needing(found)
    said = [
        say(
            "models.native",
            file=name,
            kind=config.get("model_type") or config.get("tokenizer_class"),
        )
        for name, config in found.items()
        if config.get("auto_map") and name not in needed
    ]
    if _consent.get() is not None and not needed:
        said.append(say("models.trust_unused"))
    return said


def _references(value: Any, inside: bool = False, depth: int = 0) -> Iterator[str]:
    """Every class that an `auto_map` names, at any depth that `vet.py` lets pass."""
    if depth > MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _references(inner, inside or key == "auto_map", depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _references(inner, inside, depth + 1)
    elif inside and value is not None:
        yield str(value)


# ---- the files


def read_code(folder: Path) -> dict[str, bytes]:
    """Relative path -> bytes of every Python file of `folder`, hidden folders left out. Raises
    ModelError for names and sizes that nobody could read."""
    found: dict[str, bytes] = {}
    total = 0
    for place, folders, names in os.walk(folder, followlinks=False):
        folders[:] = sorted(d for d in folders if not d.startswith(".") and d != "__pycache__")
        for name in sorted(n for n in names if n.endswith(".py")):
            path = Path(place) / name
            relative = path.relative_to(folder).as_posix()
            if not CODE_NAME.fullmatch(relative) or not path.is_file():
                raise ModelError(problem("E-MODEL-56", str(folder), reason=repr(relative[:80])))
            total += path.stat().st_size
            if len(found) >= MAX_FILES or total > MAX_BYTES:
                raise ModelError(
                    problem(
                        "E-MODEL-56", str(folder), reason=f"> {MAX_FILES} / > {MAX_BYTES >> 20} MiB"
                    )
                )
            found[relative] = path.read_bytes()
    return found


def digest_of(code: Mapping[str, bytes]) -> str:
    """`sha256:` over all files in the order of their paths: path, a zero byte, the length as 8
    bytes (big end first), the contents."""
    digest = hashlib.sha256()
    for name in sorted(code):
        digest.update(name.encode() + b"\0" + len(code[name]).to_bytes(8, "big") + code[name])
    return f"sha256:{digest.hexdigest()}"


def _one(name: str, text: bytes) -> str:
    """A file by its own name and contents: libraries save a copy of it at the top of another
    folder."""
    return f"{name.rpartition('/')[2]} {hashlib.sha256(text).hexdigest()}"


def listing(code: Mapping[str, bytes]) -> str:
    """The files for people: path, size, first lines, and what they reach for."""
    lines = []
    for name, text in sorted(code.items()):
        lines.append(say("models.code_file", name=name, size=f"{len(text):,}"))
        shown = [line for line in text.decode("utf-8", "replace").splitlines() if line.strip()][
            :FIRST_LINES
        ]
        lines += [f"      | {_harmless(line)[:LINE_WIDTH]}" for line in shown]
        reached = reaches_for(text)
        if reached:
            lines.append("      " + say("models.code_reaches", names=", ".join(reached)))
    return "\n".join(lines)


def _harmless(text: str) -> str:
    """Without characters that move the cursor or hide text."""
    return "".join(c if c.isprintable() else " " for c in text)


def reaches_for(text: bytes) -> list[str]:
    """`name:line` of the imports and calls in REACHING, the first of each."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        return [type(e).__name__]
    found: dict[str, int] = {}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [(node.module or "").split(".")[0]]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names = [node.func.id]
        for name in names:
            if name in REACHING:
                found[name] = min(node.lineno, found.get(name, node.lineno))  # type: ignore[attr-defined]
    return [
        f"{name} ({say('models.code_line', line=line)})"
        for name, line in sorted(found.items(), key=lambda pair: pair[1])
    ]


# ---- judging and opening


def problems(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> list[Problem]:
    """What speaks against running the code that `configs` need: nothing when none is needed, or
    exactly this code was allowed."""
    needed = needing(configs)
    if not needed:
        return []
    key = f"{needed[0]}: auto_map"
    model_type = str(configs.get("config.json", configs[needed[0]]).get("model_type"))
    try:
        code = read_code(folder)
    except ModelError as e:
        return e.problems
    references = list(dict.fromkeys(_references(dict(configs))))
    elsewhere = [r for r in references if "--" in r]
    if elsewhere:
        return [
            problem(
                "E-MODEL-53", str(folder), file=needed[0], reference=_harmless(elsewhere[0])[:80]
            )
        ]
    if not code:
        return [
            problem(
                "E-MODEL-04",
                str(folder / needed[0]),
                key="auto_map",
                file=needed[0],
                model_type=model_type,
            )
        ]
    modules = [
        (r, match and f"{match['module']}.py")
        for r in references
        for match in [REFERENCE.fullmatch(r)]
    ]
    missing = [r for r, module in modules if module not in code]
    if missing:
        return [
            problem("E-MODEL-55", str(folder), file=needed[0], reference=_harmless(missing[0])[:80])
        ]
    consent, digest = _consent.get(), digest_of(code)
    if consent is None:
        shown = {
            "key": key,
            "model_type": model_type,
            "count": len(code),
            "files": listing(code),
            "digest": digest,
            "folder": str(folder),
        }
        return [problem("E-MODEL-50", **shown)]
    if not consent.covers(code):
        return [
            problem(
                "E-MODEL-51", str(folder), found=digest, given=", ".join(sorted(consent.digests))
            )
        ]
    consent.remember(code)
    return []


def place_of(folder: Path) -> Place:
    """Where to open `folder`: the folder itself, or, when it needs its own code and that was
    allowed, a private copy of exactly that code.

    Raises ModelError when code is needed and was not allowed.
    """
    folder = Path(folder)
    consent = _consent.get()
    if consent is not None and folder.resolve() in consent.places:
        return consent.places[folder.resolve()]
    configs = {
        name: read_config(folder / name)[0] for name in CONFIG_FILES if (folder / name).is_file()
    }
    needed = needing(configs)
    if not needed:
        return Place(folder)
    code = read_code(folder)
    if consent is None or not consent.covers(code):
        raise ModelError(
            problems(folder, configs)
            or problem("E-MODEL-51", str(folder), found=digest_of(code), given="-")
        )
    place = Place(_copy(folder, code), frozenset(needed))
    # Judged again where it lies: the original could have been another folder between the two looks.
    copied = {name: read_config(place.folder / name)[0] for name in configs}
    raise_all(problems(place.folder, copied), ModelError)
    consent.places[folder.resolve()] = place
    return place


@cache
def _private_root() -> Path:
    """A folder that only this user may enter, removed when the process ends; Transformers imports
    code from inside it and from nowhere else."""
    root = Path(tempfile.mkdtemp(prefix="tunewright-code-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    from transformers import dynamic_module_utils

    # Its usual place is shared by all programs of the user: a file there could be changed between
    # copying and importing.
    dynamic_module_utils.HF_MODULES_CACHE = str(root / "modules")
    return root


def _copy(folder: Path, code: Mapping[str, bytes]) -> Path:
    """The model in the private folder: the code from the bytes that were hashed, configurations
    copied, weights linked. Nothing else comes along."""
    root = _private_root()
    # The name becomes a module's name: the same code has the same name, other code another one.
    target = Path(tempfile.mkdtemp(dir=root)) / f"code_{digest_of(code)[7:23]}"
    for name, text in code.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(text)
    extra = folder / "additional_chat_templates"
    for path in [*folder.iterdir(), *(extra.iterdir() if extra.is_dir() else ())]:
        inside = target / path.relative_to(folder)
        if path.is_file() and path.suffix in CONFIG_SUFFIXES:
            inside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, inside)
        elif path.is_file() and path.suffix == ".safetensors":
            _link(path.resolve(), inside)
    return target


def _link(path: Path, inside: Path) -> None:
    for way in (os.symlink, os.link, shutil.copyfile):
        # Windows allows links only to some users, and hard links not across drives.
        with suppress(OSError):
            way(path, inside)
            return
    raise OSError(f"{inside}: cannot be linked or copied")
