"""What the page says of models, data and settings, made into what a command may be given.

Everything that names a file is resolved here: ids of lists, texts that stay in the allowed roots,
ids of hubs. What would let the page run code (a model's own code, reward functions, options that
libraries take for files to load) is refused here, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.core.errors import TunewrightError, UsageError, problem, raise_all
from tunewright.studio.given import Given
from tunewright.studio.places import RECIPES, Places, is_there, refused, shown

PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:==[A-Za-z0-9][A-Za-z0-9.!+_-]*)?")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?(?:@[\w.-]+)?")
HUB_SET = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?(?:#[\w.-]+)?")
NAMES = re.compile(r"[\w-][\w.-]*(?:,[\w-][\w.-]*)*")
KEY = re.compile(r"[a-z][a-z0-9_]*(?:\.[A-Za-z0-9_]+)*")
FORBIDDEN = ("trust_code", "trust_remote_code", "reward_code")
MODELS = ("model", "objective.teacher")
"""Keys whose value is a model."""
OPTION = re.compile(r"[\w.,:^$()|*+?\[\]-]*")
FILE_WORDS = re.compile(r"file|path|dir|cache|module_name", re.IGNORECASE)
REGISTRY = "dataset_info.json"
LONGEST = 1024


@dataclass(frozen=True)
class Checks:
    """`path_of` gives the place of an id that a list of the page has (a run, a file of data), or
    None."""

    places: Places
    path_of: Callable[[str], Path | None]

    def model(self, text: object, where: str = "model") -> str:
        """A model as commands take it: `pypi:`, `modelscope:` or hub id as they are, anything else
        as a path inside the roots. Raises UsageError."""
        if not isinstance(text, str) or not 0 < len(text) <= LONGEST or not text.isprintable():
            raise refused(text, where)
        listed = self.path_of(text)
        if listed is not None:
            return str(listed)
        for prefix, form in (("pypi:", PACKAGE), ("modelscope:", HUB_ID), ("hf:", HUB_ID)):
            if text.startswith(prefix):
                rest = text[len(prefix) :]
                if not form.fullmatch(rest) or ".." in rest:
                    raise UsageError(problem("E-MODEL-18", where, spec=shown(text)))
                return rest if prefix == "hf:" else text
        is_hub = HUB_ID.fullmatch(text) and ".." not in text and not text.endswith(".gguf")
        if is_hub and not is_there(self.places.root / text):
            return text
        return str(self.places.inside(text, where))

    def target(self, text: object, where: str = "target") -> str:
        """A run, an adapter or a model, as commands take it."""
        return self.model(text, where)

    def data(self, text: object, where: str = "data", folder: Path | None = None) -> str:
        """Rows as commands take them: a listed file, a recipe's, a path inside the roots, a set of
        a hub, or a name in a registry of the workspace. Raises UsageError."""
        if not isinstance(text, str) or not 0 < len(text) <= LONGEST or not text.isprintable():
            raise refused(text, where)
        listed = self.path_of(text)
        if listed is not None:
            return str(listed)
        if text.startswith("recipe:"):
            return str(recipe_file(text[len("recipe:") :], where))
        for prefix in ("hf:", "modelscope:"):
            if text.startswith(prefix):
                if not HUB_SET.fullmatch(text[len(prefix) :]) or ".." in text:
                    raise refused(text, where)
                return text
        registries = [folder] if folder else [self.places.root / "data", self.places.root]
        if NAMES.fullmatch(text) and any(_registered(text, place) for place in registries):
            return text
        return str(self.places.inside(text, where))

    def about_data(self, given: Given) -> dict[str, Any]:
        """A question about rows, with its paths resolved and without what would write. Raises
        UsageError."""
        args = {**given.values, "data": self.data(given.text("data"))}
        if "model" in given:
            args["model"] = self.model(given.text("model"))
        if "dir" in given:
            args["dir"] = str(self.places.inside(given.text("dir"), "dir"))
        if isinstance(args.get("held_out"), str):
            args["held_out"] = self.data(args["held_out"], "held_out")
        for extra in ("out", "tokenizer", "html", "repair"):
            args.pop(extra, None)
        return args

    def config(self, given: dict[str, Any]) -> dict[str, Any]:
        """The dotted keys of a run with every path resolved; all that is wrong at once. `out` is
        left out: the server chooses the folder. Raises UsageError."""
        wrong: list[Any] = []
        found: dict[str, Any] = {}
        given = _flat(given)
        for key, value in given.items():
            try:
                if value is not None and key != "out":
                    found[key] = self._value(key, value, given)
            except TunewrightError as error:
                wrong += error.problems
        raise_all(wrong)
        return found

    def _value(self, key: str, value: Any, given: dict[str, Any]) -> Any:
        if not KEY.fullmatch(key) or key.rpartition(".")[2] in FORBIDDEN:
            raise UsageError(problem("E-STUDIO-14", shown(key), what=shown(key)))
        if key in MODELS:
            return self.model(value, key)
        if key == "adapter":
            return self._adapter(value)
        if key in ("data.dir", "gate"):
            return str(self.places.inside(value, key))
        if key == "data.train":
            entries = value if isinstance(value, list) else [value]
            folder = given.get("data.dir")
            place = self.places.inside(folder, "data.dir") if folder else None
            resolved = [self._entry(one, place) for one in entries]
            return resolved if isinstance(value, list) else resolved[0]
        if key == "data.held_out" and isinstance(value, str):
            return self.data(value, key)
        if key == "objective.reward":
            return self._reward(value, key)
        if key == "method.options":
            require_harmless(value, key)
        if key == "track":
            return self._trackers(value, key)
        return value

    def _trackers(self, value: Any, key: str) -> Any:
        """Trackers that stay on this machine and in the run's folder: who may send it elsewhere, or
        write elsewhere, decides at the command line."""
        for one in value if isinstance(value, list) else [value]:
            extra = {"online", "folder"} & set(one) if isinstance(one, dict) else set()
            if extra:
                raise UsageError(problem("E-STUDIO-14", key, what=sorted(extra)[0]))
        return value

    def _adapter(self, value: Any) -> str:
        found = Path(self.model(value, "adapter"))
        inner = found / "adapter"
        return str(inner if (inner / "adapter_config.json").is_file() else found)

    def _entry(self, one: Any, folder: Path | None) -> Any:
        if isinstance(one, dict):
            return {**one, "file": self.data(one.get("file"), "data.train", folder)}
        return self.data(one, "data.train", folder)

    def _reward(self, value: Any, key: str) -> Any:
        """Rewards with the folders of reward models resolved; own functions never come from the
        page."""
        if isinstance(value, list):
            return [self._reward(one, key) for one in value]
        if isinstance(value, dict):
            found = {name: self._reward(inner, key) for name, inner in value.items()}
            if found.get("kind") == "python" or "python" in found:
                raise UsageError(problem("E-STUDIO-14", key, what="python"))
            if found.get("kind") == "model" or set(found) == {"run"}:
                found["run"] = self.model(found.get("run"), key)
            inner = found.get("model")
            if isinstance(inner, dict) and "run" in inner:
                found["model"] = {**inner, "run": self.model(inner["run"], key)}
            elif isinstance(inner, str):
                found["model"] = self.model(inner, key)
            return found
        if value == "python":
            raise UsageError(problem("E-STUDIO-14", key, what="python"))
        return value


def recipe_file(name: str, where: str = "data") -> Path:
    """The rows that a recipe brings. Raises UsageError for a name that is none."""
    path = RECIPES / f"{name}.jsonl"
    if not re.fullmatch(r"[a-z_]+(?:\.[a-z]{2})?", name) or not path.is_file():
        raise UsageError(problem("E-STUDIO-12", where, what=shown(f"recipe:{name}")))
    return path


def require_harmless(value: Any, key: str) -> None:
    """Raise UsageError for options of a library that could name a file: plain numbers and words
    pass."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if FILE_WORDS.search(str(name)):
                raise UsageError(problem("E-STUDIO-14", f"{key}.{shown(name)}", what=shown(name)))
            require_harmless(inner, f"{key}.{name}")
    elif isinstance(value, list):
        for inner in value:
            require_harmless(inner, key)
    elif isinstance(value, str) and not OPTION.fullmatch(value):
        raise UsageError(problem("E-STUDIO-14", key, what=shown(value)))
    elif FILE_WORDS.search(key.rpartition(".")[2]):
        raise UsageError(problem("E-STUDIO-14", key, what=shown(key)))


def _flat(given: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys in their long form, however the page wrote them: what a run file takes for
    `data.train` is looked at as `data.train`."""
    from tunewright.core.runfile import DEFAULT_KINDS, WHOLE, flatten

    found: dict[str, Any] = {}
    for key, value in flatten(given).items():
        key = str(key)
        if key == "data" and not isinstance(value, dict):
            key = "data.train"
        elif key in DEFAULT_KINDS:
            key = f"{key}.kind"
        whole = next((name for name in WHOLE if key.startswith(f"{name}.")), None)
        if whole is None:
            found[key] = value
            continue
        # A key inside of a mapping that is looked at as a whole.
        place = found.get(whole)
        found[whole] = place = place if isinstance(place, dict) else {}
        *parents, name = key[len(whole) + 1 :].split(".")
        for parent in parents:
            inner = place.get(parent)
            place[parent] = inner if isinstance(inner, dict) else {}
            place = place[parent]
        place[name] = value
    return found


def _registered(names: str, folder: Path) -> bool:
    try:
        known = json.loads((folder / REGISTRY).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(known, dict) and all(name in known for name in names.split(","))
