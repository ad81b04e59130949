"""HTML that is safe by construction: `el` escapes every child that is not itself made by `el`.

Answers of a model may hold anything, a script or half a character included. Nothing reaches the
page but through this file.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from tunewright.core.words import ASSETS, say

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
VOID = {"meta", "br", "hr", "line", "path", "circle", "rect", "polyline"}
# What a page cannot hold: control characters but for tab and line break, halves of characters, and
# marks that turn the writing direction.
_BAD = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)
_CODE = re.compile("`([^`]+)`")


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Child = Any
"""A string (escaped), `Html` (kept), a number, None (nothing), or an iterable of these."""


def esc(text: object) -> Html:
    """`text` as the page may show it, for an element's content as for a quoted attribute."""
    return Html(html.escape(_BAD.sub("\ufffd", str(text)), quote=True))


def join(children: Iterable[Child]) -> Html:
    """All children, one after the other."""
    return Html("".join(_one(child) for child in children))


def _one(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, list | tuple):
        return join(child)
    return esc(child)


def el(name: str, /, *children: Child, **attributes: Any) -> Html:
    """An element. `class_` is `class`; underscores are hyphens; True is a bare attribute, None and
    False leave it out."""
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{esc(value)}"')
    head = " ".join(parts)
    if name in VOID and not children:
        return Html(f"<{head}>" if name in ("meta", "br", "hr") else f"<{head}/>")
    return Html(f"<{head}>{join(children)}</{name}>")


def words(key: str, lang: str, **fields: Any) -> Html:
    """The sentence of `key`, escaped, with `code` between backticks set as code."""
    return coded(say(key, lang=lang, **fields))


def coded(sentence: str) -> Html:
    """A sentence, escaped, with `code` between backticks set as code."""
    return Html(_CODE.sub(r"<code>\1</code>", esc(sentence)))


@cache
def _style() -> str:
    return (ASSETS / "report" / "style.css").read_text(encoding="utf-8")


def document(lang: str, title: str, *body: Child, style: str = "") -> str:
    """A whole page that asks nobody for anything; `style` is added to the style of all pages."""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", Html(_style() + style)),
    )
    page = el("html", head, el("body", *body), lang="zh-CN" if lang == "zh" else lang)
    return f"<!doctype html>\n{page}\n"
