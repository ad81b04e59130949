"""Lists and objects as Python prints them, [{'role': 'user', 'content': None}], which data frames
leave in tables; read without running anything.

The text is parsed, and only lists, tuples, objects, strings, numbers, None, True and False are
taken from it, besides the call `array([...], dtype=object)` that numpy prints around a list. numpy
also leaves out the commas between the elements of an array; two neighbouring values are taken for
two elements, because Python itself never prints two strings side by side.
"""

from __future__ import annotations

import ast
import io
import tokenize
import warnings
from typing import Any

MOST_CHARACTERS = 2**21
MOST_DEPTH = 100
ARRAY = "array("
_OPENING, _CLOSING = "([{", ")]}"


class NotLiteral(Exception):
    """Why a text is no such value."""


def python_value(text: str) -> Any:
    """The value of a list or object in Python's spelling, as JSON has it. Raises NotLiteral."""
    if len(text) > MOST_CHARACTERS:
        raise NotLiteral(f"more than {MOST_CHARACTERS:,} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an escape that Python does not know
            parsed = ast.parse(_with_commas(text.strip()), mode="eval")
        return _value(parsed.body, 0)
    except (SyntaxError, ValueError, MemoryError, RecursionError, tokenize.TokenError) as error:
        raise NotLiteral(
            getattr(error, "msg", None) or str(error) or type(error).__name__
        ) from error


def _with_commas(text: str) -> str:
    """The text with a comma wherever one value directly follows another."""
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    places: list[int] = []
    before: tokenize.TokenInfo | None = None
    depth = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            continue
        if token.type == tokenize.COMMENT:
            raise NotLiteral("#")
        depth += (
            (token.string in _OPENING) - (token.string in _CLOSING)
            if token.type == tokenize.OP
            else 0
        )
        if depth > MOST_DEPTH:
            raise NotLiteral("nested too deeply")
        begins = token.type == tokenize.STRING or token.string in ("{", "[")
        ended = before is not None and (
            before.type == tokenize.STRING or before.string in ("}", "]", ")")
        )
        if begins and ended:
            places.append(starts[token.start[0] - 1] + token.start[1])
        before = token
    for place in reversed(places):
        text = f"{text[:place]},{text[place:]}"
    return text


def _value(node: ast.expr, depth: int) -> Any:
    if isinstance(node, ast.Constant) and (
        node.value is None or type(node.value) in (str, int, float, bool)
    ):
        return node.value
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(inner, depth + 1) for inner in node.elts]
    if isinstance(node, ast.Dict):
        keys = [_value(key, depth + 1) if key is not None else None for key in node.keys]
        if not all(isinstance(key, str) for key in keys) or len(set(keys)) < len(keys):
            raise NotLiteral("a name that is no text, or stands twice")
        return dict(zip(keys, (_value(inner, depth + 1) for inner in node.values), strict=True))
    if (
        isinstance(node, ast.UnaryOp)
        and isinstance(node.op, ast.USub)
        and isinstance(node.operand, ast.Constant)
        and type(node.operand.value) in (int, float)
    ):
        return -node.operand.value  # type: ignore[operator]
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "array"
        and node.args
    ):
        return _value(node.args[0], depth + 1)
    raise NotLiteral(f"{type(node).__name__}")
