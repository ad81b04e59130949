"""From a run file and `key=value` words to a `RunConfig`, with every problem found at once and
where each value came from."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from tunewright.core import foreign, yaml_mistakes
from tunewright.core.config import RunConfig, Section
from tunewright.core.errors import ConfigError, Problem, problem, raise_all
from tunewright.core.refusals import reason_of
from tunewright.core.registry import AXES, objectives
from tunewright.core.types import Objective
from tunewright.core.words import say

WHOLE = (
    "data.columns",
    "data.mixing",
    "data.template_arguments",
    "method.options",
    "method.rank_pattern",
    "method.alpha_pattern",
    "objective.reward",
    "engine.rates",
    "base.rotary",
    "track",
)
"""Keys whose value is a mapping with keys of its own."""
DEFAULT_KINDS = {"method": "lora", "objective": "sft"}
BATCH_PARTS = {"gradient_accumulation_steps", "per_device_train_batch_size", "micro_batch_size"}
"""Keys of other systems that convert only together."""


class _OurRules:
    """YAML 1.2 numbers: `2e-4` is a float, and `on`, `yes`, `no` are words. PyYAML's own rules are
    from YAML 1.1.

    A key is the text that stands there: `5e-5: 3` has the key `5e-5`, so that it can be said and
    found again.
    """

    yaml_implicit_resolvers: dict[str, Any]

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        loader: Any = super()
        self.flatten_mapping(node)  # type: ignore[attr-defined]
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.tag = "tag:yaml.org,2002:str"
        return loader.construct_mapping(node, deep)


class Loader(_OurRules, yaml.SafeLoader):
    """For a file that a person wrote."""


Loader.yaml_implicit_resolvers = {
    first: [
        (tag, rule)
        for tag, rule in rules
        if tag
        not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
    ]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf)$|^\.(?:nan|NaN)$"
    ),
    list("-+.0123456789"),
)
Loader.yaml_implicit_resolvers = {
    # Integers first: "16" also matches the float rule.
    first: sorted(rules, key=lambda pair: pair[0] != "tag:yaml.org,2002:int")
    for first, rules in Loader.yaml_implicit_resolvers.items()
}


_LibYaml: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class QuickLoader(_OurRules, _LibYaml):
    """The same rules with libyaml, where PyYAML has it: for hundreds of files that a program
    wrote. Its errors name places less well."""

    yaml_implicit_resolvers = Loader.yaml_implicit_resolvers


@dataclass
class ParsedRun:
    """A valid run and, for every dotted key, where its value came from (`run.yaml, line 9`,
    `command line`, `default`)."""

    config: RunConfig
    given: dict[str, Any]
    """The values that were given, by dotted key."""
    where: dict[str, str] = field(default_factory=dict)

    def source(self, key: str) -> str:
        """Where the value of `key` came from; `default` if nobody gave it."""
        return self.where.get(key, "default")


def parse_value(text: str) -> Any:
    """A value as YAML reads it: `3`, `2e-4`, `true`, `[a, b]`, `null`, or a plain word."""
    try:
        return yaml.load(text, Loader=Loader)  # noqa: S506 - a SafeLoader with other number rules
    except yaml.YAMLError:
        return text


def value_text(value: Any) -> str:
    """A value in one line, as `parse_value` reads it again."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.replace("\n...\n", "").strip()


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries to dotted keys. What stands in `WHOLE` stays whole: its keys are the
    user's."""
    if value is None and prefix in ("data", "base", "engine", "method", "objective"):
        return {}  # a section whose keys are all commented out
    if isinstance(value, dict) and prefix not in WHOLE and (value or not prefix):
        merged: dict[str, Any] = {}
        for key, inner in value.items():
            merged.update(flatten(inner, f"{prefix}.{key}" if prefix else str(key)))
        return merged
    return {prefix: value}


def lines_of_keys(node: yaml.Node | None, prefix: str = "") -> tuple[dict[str, int], list[Problem]]:
    """Dotted key -> 1-based line, and keys that stand twice (YAML would keep the last without a
    word) or are no keys."""
    found: dict[str, int] = {}
    twice: list[Problem] = []
    before: tuple[str, yaml.Node] | None = None
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key = f"{prefix}.{key_node.value}" if prefix else str(key_node.value)
            place = f"line {key_node.start_mark.line + 1}"
            if (
                before is not None
                and node.flow_style
                and _is_rest_of_number(before[1], key_node, value_node)
            ):
                written = f"{before[1].value},{key_node.value}"
                twice.append(
                    problem(
                        "E-CONFIG-46",
                        place,
                        field=before[0],
                        value=written,
                        meant=yaml_mistakes.number_meant(written),
                    )
                )
            elif str(key_node.value).strip(yaml_mistakes.ODD_SPACES) != str(key_node.value):
                twice.append(yaml_mistakes.mistake("odd_space", place, str(key_node.value)))
            before = key, value_node
            if key in found:
                twice.append(problem("E-CONFIG-06", place, field=key, line=found[key]))
            found[key] = key_node.start_mark.line + 1
            inner, more = lines_of_keys(value_node, key)
            found.update(inner)
            twice.extend(more)
    return found, twice


def read_mapping(path: Path) -> tuple[dict[str, Any], yaml.Node | None]:
    """The content of a YAML file and its nodes, which know their lines. Raises ConfigError for a
    file that is missing or is not a mapping."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as e:
        raise ConfigError.of("E-CONFIG-01", str(path), file=path) from e
    except (OSError, UnicodeDecodeError) as e:
        cause = say("yaml.encoding.what") if isinstance(e, UnicodeDecodeError) else e
        raise ConfigError.of("E-CONFIG-02", str(path), cause=cause) from e
    try:
        node = yaml.compose(text, Loader=Loader)
        content = yaml.load(text, Loader=Loader)  # noqa: S506
    except yaml.YAMLError as e:
        if (named := yaml_mistakes.cause_of(text, e, path.name)) is not None:
            raise ConfigError(named) from e
        mark = getattr(e, "problem_mark", None)
        place = f"{path.name}, line {mark.line + 1}" if mark else path.name
        raise ConfigError.of("E-CONFIG-02", place, cause=getattr(e, "problem", None) or e) from e
    if not isinstance(content, dict):
        if (named := yaml_mistakes.no_mapping(text, path.name)) is not None:
            raise ConfigError(named)
        is_data = isinstance(content, list) and all(isinstance(one, dict) for one in content)
        cause = say("yaml.is_data" if content and is_data else "yaml.no_mapping", file=path)
        raise ConfigError.of("E-CONFIG-02", path.name, cause=cause)
    return content, node


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The dotted keys of a run file and the place of each. Raises ConfigError for a file that is
    missing or is not a mapping."""
    content, node = read_mapping(path)
    lines, twice = lines_of_keys(node)
    raise_all([Problem(p.code, f"{path.name}, {p.where}", p.fields) for p in twice], ConfigError)
    return flatten(content), {key: f"{path.name}, line {line}" for key, line in lines.items()}


def _is_rest_of_number(before: yaml.Node, key: yaml.Node, value: yaml.Node) -> bool:
    """Whether `{rate: 2,5e-5}` was written: the comma ends the value 2, and `5e-5` stands as a key
    without a value."""
    if (
        not (
            isinstance(before, yaml.ScalarNode)
            and isinstance(key, yaml.ScalarNode)
            and isinstance(value, yaml.ScalarNode)
        )
        or value.value
    ):
        return False
    touches = key.start_mark.index == before.end_mark.index + 1
    return touches and bool(yaml_mistakes.number_meant(f"{before.value},{key.value}"))


def _section_class(axis: str, kind: Any) -> type[Section] | None:
    entry = AXES[axis].get(kind) if isinstance(kind, str) else None
    return entry.config if entry else None


def known_keys(kinds: dict[str, str]) -> list[str]:
    """Every dotted key of a run with these kinds."""
    keys: list[str] = []
    for name, info in RunConfig.model_fields.items():
        if name in AXES:
            keys.append(f"{name}.kind")
            section = _section_class(name, kinds.get(name))
            keys.extend(f"{name}.{inner}" for inner in (section.model_fields if section else {}))
        elif isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys.extend(f"{name}.{inner}" for inner in info.annotation.model_fields)
        else:
            keys.append(name)
    return keys


def key_named(name: str, kinds: dict[str, str] | None = None) -> str | None:
    """The dotted key of ours that a bare name stands for, be it ours (`epochs`, `out`) or another
    system's (`num_train_epochs`); None where there is none."""
    keys = known_keys(kinds or DEFAULT_KINDS)
    ours = (key for key in keys if name in (key, key.rpartition(".")[2]))
    return next(ours, foreign.RENAMED.get(name))


def _unknown(key: str, value: Any, given: dict[str, Any], keys: list[str], place: str) -> Problem:
    # "steps:5" is a text to YAML: the key of a mapping in brackets, or the whole value of its
    # section.
    for text, section in (
        (
            key.rpartition(".")[2] if "." not in key.partition(":")[2] else "",
            key.rpartition(".")[0],
        ),
        (value, key),
    ):
        name, colon, _ = text.partition(":") if isinstance(text, str) else ("", "", "")
        if colon and (f"{section}.{name}" if section else name) in keys:
            return yaml_mistakes.mistake("no_space", place, text)
    bare = key.rsplit(".", 1)[-1]
    if bare in foreign.WITHOUT_KEY:
        return problem(foreign.WITHOUT_KEY[bare], place, field=key)
    if bare in foreign.NOT_NEEDED:
        return problem("E-CONFIG-49", place, field=key)
    ours = foreign.translate(key, value, given)
    if ours:
        return problem("E-CONFIG-04", place, field=key, ours=ours[0], value=_shown(ours[1]))
    guess = _meant(key, keys)
    is_elsewhere = guess is not None and guess.rpartition(".")[2] == bare
    kinds = None if is_elsewhere else _kinds_with(bare, key.rpartition(".")[0])
    if kinds:
        axis, names = kinds
        fields = {"field": key, "axis": axis, "kinds": ", ".join(names), "key": f"{axis}.{bare}"}
        return problem("E-CONFIG-48", place, **fields)
    if guess:
        return problem("E-CONFIG-03", place, field=key, guess=guess)
    section = key.split(".")[0]
    known = [k for k in keys if k.split(".")[0] == section]
    # Sections in place of a hundred keys, where the key names none of them.
    known = known or list(dict.fromkeys(k.split(".")[0] for k in keys))
    return problem("E-CONFIG-05", place, field=key, known=", ".join(known))


def _shown(value: Any) -> Any:
    """A value as one word of a command."""
    if isinstance(value, list):
        return "[" + ",".join(map(str, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else value


def _meant(key: str, keys: list[str]) -> str | None:
    """The key that an unknown one resembles: by its last word, first in the section that it names,
    so that a long section does not make all its keys alike (`objective.beta`, `objective.loss`)."""
    section, _, bare = key.rpartition(".")
    inside = {k.rpartition(".")[2]: k for k in keys if section and k.startswith(f"{section}.")}
    anywhere = {k.rpartition(".")[2]: k for k in reversed(keys)}
    if bare in anywhere:
        return anywhere[bare]
    for names, cutoff in ((inside, 0.6), (anywhere, 0.7)):
        close = difflib.get_close_matches(bare, names, n=1, cutoff=cutoff)
        if close:
            return names[close[0]]
    if inside:
        return None
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.7)  # the section is misspelt
    return close[0] if close else None


def _kinds_with(bare: str, section: str) -> tuple[str, list[str]] | None:
    """`method` or `objective` and the kinds of it that have this key; None where no kind has."""
    for axis, registry in AXES.items():
        if section in ("", axis):
            names = [e.name for e in registry if bare in getattr(e.config, "model_fields", {})]
            if names:
                return axis, names
    return None


def _pydantic_problems(error: ValidationError, prefix: str, where: dict[str, str]) -> list[Problem]:
    """What pydantic found, one problem a key."""
    found: dict[tuple[str, str], Problem] = {}
    for item in error.errors():
        # Unions add a tag such as 'int' or "literal['auto']" to the location; the field is the part
        # we know.
        depth = 2 if not prefix and item["loc"][:1] in [("data",), ("engine",), ("base",)] else 1
        parts = [str(part) for part in item["loc"][:depth]]
        key = ".".join([prefix, *parts] if prefix else parts)
        fields: dict[str, Any] = {"field": key}
        code = "E-CONFIG-07"
        if item["type"] != "missing":
            fields["value"] = item.get("input")
            meant = yaml_mistakes.number_meant(item.get("input"))
            code = "E-CONFIG-46" if meant else "E-CONFIG-08"
            fields |= {"meant": meant} if meant else {"reason": reason_of(item)}
        found.setdefault((key, code), problem(code, where.get(key, ""), **fields))
    return list(found.values())


def _gather_columns(given: dict[str, Any], where: dict[str, str]) -> None:
    """`data.columns.instruction=question` for `data.columns={instruction: question}`, added to what
    the file says; `method.options` as well."""
    for whole in WHOLE:
        for key in [k for k in given if k.startswith(f"{whole}.")]:
            known, value = given.get(whole), given.pop(key)
            value = str(value) if whole == "data.columns" else value
            given[whole] = {
                **(known if isinstance(known, dict) else {}),
                key.removeprefix(f"{whole}."): value,
            }
            where[whole] = where.get(key, "")


def _put_in_long_form(given: dict[str, Any], where: dict[str, str]) -> None:
    """`method=lora` becomes `method.kind=lora`, and `data: rows.json` `data.train`; kinds that are
    not given are the usual ones."""
    _gather_columns(given, where)
    for axis, kind in DEFAULT_KINDS.items():
        bare = given.pop(axis, None)
        if isinstance(bare, str):
            given[f"{axis}.kind"] = bare
            where[f"{axis}.kind"] = where.get(axis, "")
        given.setdefault(f"{axis}.kind", kind)
    if isinstance(given.get("data"), str | list):
        given["data.train"] = given.pop("data")
        where["data.train"] = where.get("data", "")


def _wrong_kinds(kinds: dict[str, Any], where: dict[str, str]) -> list[Problem]:
    """Methods and objectives that are not registered."""
    found = []
    for axis, kind in kinds.items():
        if _section_class(axis, kind) is None:
            fields = {
                "axis": axis,
                "kind": kind,
                "known": ", ".join(AXES[axis].names()),
                "guess": AXES[axis].guess(str(kind)) or "",
            }
            found.append(problem("E-CONFIG-09", where.get(f"{axis}.kind", ""), **fields))
    return found


def _wrong_paths(given: dict[str, Any], where: dict[str, str]) -> list[Problem]:
    """Paths that YAML took without complaint and nobody meant, and a share of held-out rows that is
    taken for a path."""
    found = [
        yaml_mistakes.mistake(cause, where.get(key, ""), repr(given[key]))
        for key in yaml_mistakes.PATHS
        if (cause := yaml_mistakes.in_path(given.get(key)))
    ]
    key, value = "data.held_out", given.get("data.held_out")
    meant = yaml_mistakes.number_meant(value)
    if meant and not Path(str(value)).exists():
        fields = {"field": key, "value": value, "meant": meant}
        found.append(problem("E-CONFIG-46", where.get(key, ""), **fields))
    return found


def _unknown_keys(
    unknown: list[str],
    given: dict[str, Any],
    where: dict[str, str],
    keys: list[str],
    kinds: dict[str, Any],
) -> list[Problem]:
    """A problem for each key that no section has. Where the section itself is unknown a second
    complaint would only confuse."""
    siblings = {k: v for k, v in given.items() if k.rsplit(".", 1)[-1] in BATCH_PARTS or k in keys}
    sections = [f"{axis}." for axis, kind in kinds.items() if _section_class(axis, kind) is None]
    return [
        _unknown(key, given[key], siblings, keys, where.get(key, ""))
        for key in unknown
        if not key.startswith(tuple(sections))
    ]


def _nested(given: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested dictionaries."""
    nested: dict[str, Any] = {"data": {}}
    for key, value in given.items():
        *sections, name = key.split(".")
        target = nested
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = value
    return nested


def parse_run(given: dict[str, Any], where: dict[str, str]) -> ParsedRun:
    """Build the run from dotted keys. Raises ConfigError with all problems: unknown keys, foreign
    keys, wrong values, missing ones."""
    _put_in_long_form(given, where)
    kinds = {axis: given[f"{axis}.kind"] for axis in AXES}
    keys = known_keys(kinds)
    unknown = [key for key in given if key not in keys]
    problems = _wrong_kinds(kinds, where) + _wrong_paths(given, where)
    problems += foreign.whole_file(_unknown_keys(unknown, given, where, keys, kinds))
    nested = _nested({key: value for key, value in given.items() if key not in unknown})
    for axis in AXES:
        section_class = _section_class(axis, kinds[axis])
        values = nested.pop(axis)
        del values["kind"]
        if section_class:
            try:
                nested[axis] = section_class.model_validate(values)
            except ValidationError as e:
                problems += _pydantic_problems(e, axis, where)
    try:
        config = RunConfig.model_validate(nested)
    except ValidationError as e:
        problems += _pydantic_problems(e, "", where)
    # What another system's key says is not missing as well.
    said = {p.fields["ours"] for p in problems if p.code == "E-CONFIG-04"}
    problems = [p for p in problems if p.code != "E-CONFIG-07" or p.fields["field"] not in said]
    raise_all(problems, ConfigError)
    return ParsedRun(config, dict(given), dict(where))


def load_run(
    source: Path | None,
    words: list[str] | None = None,
    flags: dict[str, Any] | None = None,
    *,
    own: dict[str, Any] | None = None,
    of: str = "",
) -> ParsedRun:
    """The run of a YAML file (or none), `key=value` words and flags; later ones win. `own` are the
    settings of the command `of` itself, by dotted key, which all others win over. Raises
    ConfigError."""
    given: dict[str, Any] = dict(own or {})
    where = dict.fromkeys(given, of)
    if source is not None:
        said, lines = read_yaml(source)
        given, where = given | said, where | lines
    for key, value in (flags or {}).items():
        if value is not None:
            given[key], where[key] = value, "command line"
    for word in words or []:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError.of("E-CONFIG-15", "command line", word=word)
        for inner, value in flatten(parse_value(text), key.strip()).items():
            given[inner], where[inner] = value, "command line"
    return parse_run(given, where)


def columns_of(words: list[str] | None) -> dict[str, str] | None:
    """The mapping of `--columns instruction=question,output=answer`, given once or several times;
    None where it was not given. Raises ConfigError.

    A comma parts two pairs only where a name and `=` follow, so that a column of a file may have
    one in its name.
    """
    found: dict[str, str] = {}
    for pair in (pair for word in words or [] for pair in re.split(r",(?=\s*\w+=)", word)):
        ours, equals, theirs = pair.partition("=")
        if not (equals and ours.strip() and theirs.strip()):
            raise ConfigError.of("E-CONFIG-15", "--columns", word=pair)
        found[ours.strip()] = theirs.strip()
    return found or None


def kind_of(section: Section) -> str:
    """The registered name of a method or objective section."""
    for registry in AXES.values():
        for entry in registry:
            if type(section) is entry.config:
                return entry.name
    raise AssertionError(f"{type(section).__name__} is not registered")


def objective_of(config: RunConfig) -> Objective:
    """What the run optimises. Raises ConfigError for settings with which it cannot work."""
    entry = objectives.get(kind_of(config.objective))
    assert entry is not None
    made: Objective = entry.function(config.objective)
    return made


def as_dict(config: RunConfig) -> dict[str, Any]:
    """The run as nested plain values, as written to run.yaml."""
    out = config.model_dump(exclude={"method", "objective"})
    for axis in AXES:
        section = getattr(config, axis)
        out[axis] = {"kind": kind_of(section), **section.model_dump()}
    order = ["model", "adapter", "data", "base", "method", "objective", "engine", "out", "probes"]
    more = {key: out[key] for key in ("gate", "track") if out[key]}
    return {key: out[key] for key in order} | more
