"""A real browser on a real server: Debian's Chromium through playwright, with a record of every
host that was asked and of every error of the console."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from helpers.studio_world import Served

CHROMIUM = Path("/usr/bin/chromium")
PAGE = Path(__file__).parents[2] / "src" / "tunewright" / "studio" / "page" / "index.html"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
SCREENS = (
    "home", "data", "train", "runs", "queue", "compare", "evaluate", "advise", "doctor", "export",
    "learn",
)  # fmt: skip
CUT_OFF = "ERR_INCOMPLETE_CHUNKED_ENCODING"
"""What the console says when a server that streams is killed: no fault of the page."""
LOCALES = {"en": "en-GB", "zh": "zh-CN"}


def require_browser() -> None:
    """Skip where there is no browser to drive, or no page to show."""
    for name in ("playwright", "fastapi", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    if not CHROMIUM.is_file():
        pytest.skip(f"{CHROMIUM} is missing (apt-get install chromium fonts-noto-cjk)")
    if not PAGE.is_file():
        pytest.skip("the page is not built: cd page && npm ci && npm run build")


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Chromium, headless."""
    require_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        try:
            yield chromium
        finally:
            chromium.close()


@dataclass
class Visit:
    """One tab of one person. Everything it asked for and complained of is kept."""

    page: Any
    served: Served
    hosts: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    clicks: int = 0

    def __post_init__(self) -> None:
        self.page.on("request", self._asked)
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", self._dialog)

    def _asked(self, request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob"):
            self.hosts.add(parts.netloc)

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            place = (message.location or {}).get("url", "")
            self.complaints.append(f"{message.text} {place}")

    def _dialog(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def enter(self) -> Visit:
        """Come in as a person does: with the address of the terminal."""
        self.page.goto(f"{self.served.address}/?token={self.served.token}")
        self.page.get_by_test_id("screen-home").wait_for()
        return self

    def go(self, place: str) -> Visit:
        """Open a screen and wait until it shows what it has."""
        self.page.goto(f"{self.served.address}/#/{place}")
        name = place.partition("?")[0]
        inner = {"runs/": "run", "data/": "data-file"}
        screen = next((inner[k] for k in inner if name.startswith(k)), name.partition("/")[0])
        self.page.get_by_test_id(f"screen-{screen}").wait_for()
        return self.settle()

    def settle(self, seconds: float = 30) -> Visit:
        """Wait until nothing is being loaded any more."""
        self.poll(lambda: self.page.get_by_test_id("loading").count() == 0, seconds)
        self.page.wait_for_timeout(150)
        return self

    def poll(self, is_true: Any, seconds: float = 30) -> None:
        """Wait in steps; the page's content policy forbids `wait_for_function`."""
        for _ in range(int(seconds * 10)):
            if is_true():
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"not in {seconds} s: {self.text()[:2000]}")

    def by(self, name: str) -> Any:
        """An element by its test id."""
        return self.page.get_by_test_id(name)

    def click(self, name: str) -> None:
        """A click that counts."""
        self.clicks += 1
        self.by(name).first.click()

    def choose(self, picker: str, text: str) -> None:
        """Choose in a combobox by typing."""
        field = self.by(f"{picker}-input")
        field.click()
        field.fill(text)
        self.by(f"{picker}-option").first.wait_for()
        field.press("Enter")

    def text(self) -> str:
        """Everything that is written on the page."""
        return str(self.page.locator("body").inner_text())

    def problem(self, within: str = "problem", seconds: float = 20) -> str:
        """The text of the first problem that is shown."""
        self.by(within).first.wait_for(timeout=seconds * 1000)
        return str(self.by(within).first.inner_text())

    def require_quiet(self, *allowed: str) -> None:
        """No other host, no error of the console, no dialog."""
        assert self.hosts <= {urlsplit(self.served.address).netloc}, self.hosts
        wrong = [c for c in self.complaints if not any(word in c for word in allowed)]
        assert not wrong, wrong
        assert not self.dialogs, self.dialogs


@contextlib.contextmanager
def visiting(
    chromium: Any, served: Served, *, language: str = "en", width: int = 1440, theme: str = "light"
) -> Iterator[Visit]:
    """A fresh browser profile on a server, and its first tab."""
    context = chromium.new_context(
        viewport={"width": width, "height": 900 if width > 600 else 780},
        locale=LOCALES[language],
        color_scheme=theme,
        reduced_motion="reduce",
    )
    context.set_default_timeout(30_000)
    try:
        yield Visit(context.new_page(), served).enter()
    finally:
        context.close()


def tab(visit: Visit, place: str) -> Visit:
    """Another tab of the same person."""
    other = Visit(visit.page.context.new_page(), visit.served)
    return other.go(place)


UNSAID = re.compile(
    r"\b(?:jobs|compare|evaluate|advise|doctor|export|runs|queue|learn|train|data|home|run|part|"
    r"shell|nav|chart|picker|net|theme|time|form)\.[a-z][a-z_]+(?:\.[a-z_]+)*\b"
)


def unsaid_keys(text: str) -> list[str]:
    """Keys that stand on the page in place of their words. Settings (`data.train`) and file names
    are dotted, too, and are told apart by the packs of words."""
    folder = Path(__file__).parents[2] / "page" / "src" / "locales"
    known = "".join(path.read_text(encoding="utf-8") for path in folder.glob("en*.json"))
    found = {word for word in UNSAID.findall(text) if "/" not in word}
    return sorted(word for word in found if f'"{word}"' in known)
