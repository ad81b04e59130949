"""Pictures of a run as PNG: the drawings of its report and what callbacks left in `pictures/`.

The report draws SVG that takes colours from the page's variables; outside of the page those are put
in by hand, in the page's light colours.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from tunewright.core.callbacks import PICTURE_NAME, PICTURES

DRAWING = re.compile(r'<svg(?=[^>]*class="chart wide)[^>]*>.*?</svg>', re.DOTALL)
SECTION = re.compile(r'<section[^>]*\bid="([\w-]+)"')
VARIABLE = re.compile(r"(--[\w-]+):\s*([^;}]+)")
USED = re.compile(r"var\((--[\w-]+)(?:,[^)]*)?\)")
MOST = 24
FONTS = "DejaVu Sans, Noto Sans CJK SC, sans-serif"
HEAD = f'<svg xmlns="http://www.w3.org/2000/svg" font-family="{FONTS}"'


def of_run(run: Path) -> Iterator[tuple[str, bytes]]:
    """(name, PNG) of every picture that can be shown; nothing where no library draws SVG, but what
    is PNG already."""
    draws = importlib.util.find_spec("resvg_py") is not None
    if draws:
        for name, svg in drawings(run)[:MOST]:
            yield f"report/{name}", to_png(svg)
    folder = run / PICTURES
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in [p for p in found if PICTURE_NAME.fullmatch(p.name) and p.is_file()][:MOST]:
        if path.suffix == ".png":
            yield f"own/{path.stem}", path.read_bytes()
        elif draws:
            yield f"own/{path.stem}", to_png(path.read_text(encoding="utf-8"))


def drawings(run: Path) -> list[tuple[str, str]]:
    """(name, SVG) of the drawings of report.html, named by their section; none without a page."""
    try:
        page = (run / "report.html").read_text(encoding="utf-8")
    except OSError:
        return []
    style = "".join(re.findall(r"<style>(.*?)</style>", page, re.DOTALL))
    light = style.partition("@media (prefers-color-scheme: dark)")[0]
    values = {name: value.strip() for name, value in VARIABLE.findall(light)}
    rules = _resolved("\n".join(re.findall(r"(?m)^\.chart[^\n]*\}", style)), values)
    found: list[tuple[str, str]] = []
    for drawing in DRAWING.finditer(page):
        sections = SECTION.findall(page, 0, drawing.start())
        place = sections[-1] if sections else "report"
        number = 1 + sum(name.partition("-")[0] == place for name, _ in found)
        name = place if number == 1 else f"{place}-{number}"
        text = _resolved(drawing.group(), values).replace("<svg", HEAD, 1)
        text = text.replace(">", f"><style>{rules}</style>", 1)
        found.append((name, text))
    return found


def _resolved(text: str, values: dict[str, str]) -> str:
    return USED.sub(lambda match: values.get(match.group(1), "currentColor"), text)


def to_png(svg: str) -> bytes:
    """An SVG as PNG on white, twice as large as drawn."""
    import resvg_py

    return bytes(resvg_py.svg_to_bytes(svg_string=svg, background="white", zoom=2))
