"""Chat templates run in jinja's sandbox, with the names that Transformers gives them. Source:
Transformers 5.23, `chat_template_utils`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_PLAIN = frozenset({type(None), str, int, float, bool})


def plain_data(value: Any) -> Any:
    """A copy made of JSON's types only, so that a template finds no method on its input that the
    sandbox does not know."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    # Looked at before the abstract types, which take several times as long.
    if kind is dict or isinstance(value, Mapping):
        return {plain_data(k): plain_data(v) for k, v in value.items()}
    if kind is list or isinstance(value, (list, tuple)):
        return [plain_data(v) for v in value]
    return str.__str__(value) if isinstance(value, str) else f"<{kind.__name__}>"


def with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """A message's thinking under every name that templates read."""
    given = next(
        (
            message[k]
            for k in ("reasoning_content", "thinking", "reasoning")
            if message.get(k) is not None
        ),
        None,
    )
    return message if given is None else {"thinking": given, **message, "reasoning_content": given}


@lru_cache(maxsize=16)
def compiled(source: str) -> Any:
    """The compiled template, in an environment of its own."""
    template = environment().from_string(source)
    # A chain of dictionaries, gone through at every rendering, would take a fourth of its time.
    template.globals = dict(template.globals)
    return template


class Generation(Extension):
    """`{% generation %}` marks what the model writes; the text inside is written as it is."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        """The block as a call that gives its own text."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Any) -> str:
        return str(caller())


class SafeNamespace(Namespace):
    """Jinja's namespace without names that begin with an underscore."""

    def __init__(*args: Any, **given: Any) -> None:
        self, rest = args[0], args[1:]
        values = dict(*rest, **given)
        for name in values:
            _no_underscore(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _no_underscore(name)
        super().__setitem__(name, value)


def _no_underscore(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a template may not store {name!r} on a namespace")


class SafeDict:
    """`dict(...)` of a template, without the class behind it."""

    def __call__(self, *args: Any, **given: Any) -> dict[Any, Any]:
        return dict(*args, **given)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As dict's."""
        return dict.fromkeys(*args)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja's sandbox as Transformers sets it up: blocks trimmed, loop controls, `generation`
    blocks, `tojson` without escapes."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = _tojson
    made.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": SafeDict(),
        "namespace": SafeNamespace,
    }
    return made
