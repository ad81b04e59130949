"""Run a chat template with contents that watch what is done to them, so that its text can be put
together for other contents without running it again.

A content is a string that is asked for everything: being written, joined and stripped is followed;
a question about it ("does it hold </think>?") becomes a condition that another content must answer
alike; anything else raises Opaque. What the interpreter would do to a string without asking it
(`in`, `%`, `join`, a plain string's methods) is compiled as a call of ours. So where a run comes to
its end, the same run with any contents that meet the conditions would have taken the same way and
written the same text around them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tunewright.text.template import environment

_OPEN, _CLOSE = "\U0010fff0", "\U0010fff1"
_watched = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
FOLLOWED_FILTERS = {
    "trim",
    "string",
    "default",
    "d",
    "list",
    "first",
    "last",
    "length",
    "count",
    "map",
    "select",
    "reject",
    "selectattr",
    "rejectattr",
    "items",
    "upper",
    "lower",
    "capitalize",
    "reverse",
}
FOLLOWED_TESTS = {
    "defined",
    "undefined",
    "none",
    "string",
    "mapping",
    "number",
    "boolean",
    "true",
    "false",
    "sameas",
    "equalto",
    "eq",
    "==",
    "ne",
    "!=",
}
"""Filters and tests that reach a text only through its own methods. The others may not be given a
content."""


class Opaque(Exception):
    """The template does something to a content that cannot be followed."""


@dataclass(frozen=True)
class Condition:
    """What a template asked about a content, after `steps`, and the answer it got."""

    turn: int
    steps: tuple[tuple[str, str | None], ...]
    ask: str
    argument: Any
    answer: bool

    def holds(self, contents: Sequence[str]) -> bool:
        """Whether the row's own content gives the same answer."""
        text = stripped(contents[self.turn], self.steps)
        if self.ask == "unchanged":
            return text == contents[self.turn]
        if self.ask == "spaced":
            return text[:1].isspace() is self.answer
        if self.ask == "bool":
            return bool(text) is self.answer
        if self.ask == "in":
            return (self.argument in text) is self.answer
        if self.ask == "equal":
            return (text == self.argument) is self.answer
        return bool(getattr(text, self.ask)(self.argument)) is self.answer


def stripped(text: str, steps: Sequence[tuple[str, str | None]]) -> str:
    """`text` after strip, lstrip and rstrip calls."""
    for name, characters in steps:
        text = getattr(text, name)(characters)
    return text


@dataclass
class Trace:
    """One run of a template: which watched texts there are, and what was asked about them."""

    texts: list[tuple[int, tuple[tuple[str, str | None], ...]]] = field(default_factory=list)
    conditions: dict[Condition, None] = field(default_factory=dict)

    def text(self, turn: int, steps: tuple[tuple[str, str | None], ...] = ()) -> Watched:
        """A stand-in for a turn's content after `steps`."""
        self.texts.append((turn, steps))
        return Watched(f"{_OPEN}{len(self.texts) - 1}{_CLOSE}", self, len(self.texts) - 1)

    def ask(self, text: Watched, what: str, argument: Any, answer: bool) -> bool:
        """Note a question about a whole content, and answer it."""
        if text.number is None:
            raise Opaque(what)
        turn, steps = self.texts[text.number]
        self.conditions[Condition(turn, steps, what, argument, answer)] = None
        return answer


def _plain(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, Watched)


class Watched(str):
    """A text that stands for a content (or, with `number` None, is joined from some) and raises
    Opaque where it cannot be followed."""

    trace: Trace
    number: int | None

    def __new__(cls, text: str, trace: Trace, number: int | None = None) -> Watched:
        made = str.__new__(cls, text)
        made.trace, made.number = trace, number
        return made

    def _joined(self, text: str) -> Watched:
        return Watched(text, self.trace)

    def __str__(self) -> str:
        return self

    def __add__(self, other: Any) -> Any:
        return self._joined(str.__add__(self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: Any) -> Any:
        return self._joined(str.__add__(other, self)) if isinstance(other, str) else NotImplemented

    def __bool__(self) -> bool:
        if self.number is not None:
            return self.trace.ask(self, "bool", None, True)
        return True if _watched.sub("", str.__str__(self)) else _refuse("bool")

    def __contains__(self, part: Any) -> bool:
        return self.trace.ask(self, "in", part, False) if _plain(part) and part else _refuse("in")

    def __eq__(self, other: Any) -> bool:
        if self is other:
            return True
        if isinstance(other, str) and not _plain(other):
            raise Opaque("equal")
        return self.trace.ask(self, "equal", other, False) if _plain(other) else False

    def __ne__(self, other: Any) -> bool:
        return not self == other

    def _strip(self, name: str, characters: Any) -> Watched:
        if not (characters is None or _plain(characters)):
            raise Opaque(name)
        if self.number is None:
            return self._strip_ends(name, characters)
        turn, steps = self.trace.texts[self.number]
        return self.trace.text(turn, (*steps, (name, characters)))

    def _strip_ends(self, name: str, characters: str | None) -> Watched:
        """A joined text loses what its first and last piece lose, as long as something of each
        stays."""
        parts: list[str] = _watched.split(str.__str__(self))
        ends = ([("lstrip", 0)] if name != "rstrip" else []) + (
            [("rstrip", -1)] if name != "lstrip" else []
        )
        for side, place in ends:
            if parts[place]:
                parts[place] = getattr(parts[place], side)(characters)
                if not parts[place]:
                    raise Opaque(name)
            else:
                inner = 1 if place == 0 else -2
                turn, steps = self.trace.texts[int(parts[inner])]
                shorter = self.trace.text(turn, (*steps, (side, characters)))
                assert bool(shorter) and shorter.number is not None
                parts[inner] = str(shorter.number)
        return self._joined(
            "".join(f"{_OPEN}{part}{_CLOSE}" if i % 2 else part for i, part in enumerate(parts))
        )

    def strip(self, characters: Any = None, /) -> Watched:
        return self._strip("strip", characters)

    def lstrip(self, characters: Any = None, /) -> Watched:
        return self._strip("lstrip", characters)

    def rstrip(self, characters: Any = None, /) -> Watched:
        return self._strip("rstrip", characters)

    def startswith(self, part: Any, *more: Any) -> bool:
        return (
            self.trace.ask(self, "startswith", part, False)
            if _plain(part) and part and not more
            else _refuse("startswith")
        )

    def endswith(self, part: Any, *more: Any) -> bool:
        return (
            self.trace.ask(self, "endswith", part, False)
            if _plain(part) and part and not more
            else _refuse("endswith")
        )

    def split(self, part: Any = None, *more: Any) -> list[Any]:
        """A content without the separator is its own only part."""
        assert part not in self
        return [self]

    def replace(self, part: Any, other: Any, *more: Any) -> Watched:
        """A content without `part` stays as it is."""
        assert part not in self
        return self


def _refuse(name: str) -> Any:
    raise Opaque(name)


def _refusing(name: str) -> Any:
    def method(self: Watched, *given: Any, **more: Any) -> Any:
        raise Opaque(name)

    return method


_FOLLOWED = {
    *vars(Watched),
    "__class__",
    "__init__",
    "__new__",
    "__getattribute__",
    "__setattr__",
    "__delattr__",
    "__repr__",
    "__dir__",
    "__doc__",
    "__init_subclass__",
    "__subclasshook__",
    "__sizeof__",
    "__reduce__",
    "__reduce_ex__",
    "__getnewargs__",
    "__getstate__",
    "__dict__",
}
for _name in {*dir(str), "__radd__", "__rmod__", "__rmul__", "__iter__", "__hash__"} - _FOLLOWED:
    setattr(Watched, _name, _refusing(_name))
Watched.__hash__ = _refusing("__hash__")  # type: ignore[method-assign]


def _holds_watched(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_watched(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return any(map(_holds_watched, value))
    return isinstance(value, Watched)


def _guarded(function: Any, first: int = 0) -> Any:
    """`function`, refusing contents from argument `first` on."""

    @functools.wraps(function)
    def guarded(*given: Any, **more: Any) -> Any:
        if _holds_watched([*given[first:], *more.values()]):
            raise Opaque(getattr(function, "__name__", "call"))
        return function(*given, **more)

    return guarded


class Tracer:
    """A chat template compiled so that joined texts stay watched, and that raises Opaque where the
    interpreter itself would read a content."""

    def __init__(self, source: str):
        made = environment()
        made.filters = {
            name: f if name in FOLLOWED_FILTERS else _guarded(f) for name, f in made.filters.items()
        }
        made.filters |= {"join": _join, "replace": _replace, "_remainder": _remainder}
        made.tests = {
            name: f if name in FOLLOWED_TESTS else _guarded(f) for name, f in made.tests.items()
        } | {"_among": _among}
        call = made.call

        def watched_call(context: Any, function: Any, /, *given: Any, **more: Any) -> Any:
            owner = getattr(function, "__self__", None)
            # A plain text's method reads its arguments in C. Macros, namespaces, lists and a
            # content's own methods do not.
            named = [
                value for name, value in more.items() if name not in ("_loop_vars", "_block_vars")
            ]  # jinja's own, for functions that ask for them
            if (
                isinstance(owner, str)
                and not isinstance(owner, Watched)
                and _holds_watched([*given, *named])
            ):
                raise Opaque("call")
            return call(context, function, *given, **more)

        made.call = watched_call
        made.concat = _concat
        code = made.compile(_visible(made.parse(source)))
        self.template = made.template_class.from_code(made, code, made.make_globals(None))
        self.template.root_render_func.__globals__.update(str_join=_concat, markup_join=_concat)

    def run(
        self,
        roles: Sequence[str],
        upto: int,
        trace: Trace,
        generation: bool,
        variables: dict[str, Any],
    ) -> str:
        """The text of the first `upto` turns, with a stand-in for each content. Raises Opaque, and
        whatever the template raises."""
        messages = [{"role": role, "content": trace.text(k)} for k, role in enumerate(roles[:upto])]
        return str.__str__(
            self.template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=generation,
                **variables,
            )
        )


def _concat(parts: Any) -> str:
    found = [str(part) for part in parts]
    watched = next((part for part in found if isinstance(part, Watched)), None)
    text = "".join(found)
    return text if watched is None else Watched(text, watched.trace)


def _join(value: Any, between: Any = "", attribute: Any = None) -> Any:
    if attribute is not None or isinstance(value, (str, dict)) or isinstance(between, Watched):
        raise Opaque("join")
    parts: list[Any] = []
    for one in value:
        parts += [between, one] if parts else [one]
    return _concat(parts)


def _replace(value: Any, old: Any, new: Any, count: Any = None) -> Any:
    if _holds_watched([old, new]) or count is not None:
        raise Opaque("replace")
    return str(value).replace(str(old), str(new))


def _among(value: Any, group: Any) -> bool:
    if isinstance(value, Watched) and _plain(group):
        raise Opaque("in")
    return value in group


def _remainder(left: Any, right: Any) -> Any:
    if isinstance(left, str) and _holds_watched(right):
        raise Opaque("%")
    return left % right


def _visible(tree: Any) -> Any:
    """The template with `a in b` and `a % b` as calls of ours: the interpreter's own ask no method
    of a content."""
    from jinja2 import nodes
    from jinja2.visitor import NodeTransformer

    class Rewrite(NodeTransformer):
        def visit_Compare(self, node: Any) -> Any:
            self.generic_visit(node)
            if all(operand.op not in ("in", "notin") for operand in node.ops):
                return node
            if len(node.ops) > 1:
                raise Opaque("in")
            (operand,) = node.ops
            test = nodes.Test(
                node.expr, "_among", [operand.expr], [], None, None, lineno=node.lineno
            )
            return nodes.Not(test, lineno=node.lineno) if operand.op == "notin" else test

        def visit_Mod(self, node: Any) -> Any:
            self.generic_visit(node)
            return nodes.Filter(
                node.left, "_remainder", [node.right], [], None, None, lineno=node.lineno
            )

    return Rewrite().visit(tree).set_environment(tree.environment)


Piece = str | tuple[int, tuple[tuple[str, str | None], ...]]
"""A literal, or a turn's content after some stripping."""


def pieces_of(text: str, trace: Trace) -> list[Piece]:
    found: list[Piece] = []
    for number, part in enumerate(_watched.split(text)):
        if number % 2:
            found.append(trace.texts[int(part)])
        elif part:
            found.append(part)
    return found
