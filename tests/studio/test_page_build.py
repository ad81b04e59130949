"""The built page: small, without inline scripts, and asking no other host for anything.

Where Node is, the page is there (the package's build makes it); elsewhere these tests are skipped.
"""

import gzip
import os
import re
import shutil
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "src" / "tunewright" / "studio" / "page"
MOST_BYTES = 250 * 1024
NAMES_NOT_PLACES = (
    "http://www.w3.org/",  # names of XML namespaces
    "https://svelte.dev/e/",  # in the text of an error of the runtime
    "https://github.com/markedjs/marked",  # the same
)
BUILT = (PAGE / "index.html").is_file()

pytestmark = pytest.mark.skipif(
    not BUILT and not (os.environ.get("CI") and shutil.which("npm")),
    reason="the page is not built: npm ci && npm run build in page/",
)


def _text(name):
    return (PAGE / name).read_text(encoding="utf-8")


def _imports(name):
    """What a chunk needs before it runs."""
    folder = Path(name).parent
    found = re.findall(r"(?:from|import)\s*[\"'](\./[^\"']+\.js)[\"']", _text(name))
    return {(folder / one).as_posix() for one in found}


def _with_imports(names):
    whole, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name not in whole:
            whole.add(name)
            waiting += _imports(name) if name.endswith(".js") else []
    return whole


def _first_screen():
    """Files that the first visit needs: the shell, one language, the home screen, all styles."""
    html = _text("index.html")
    shell = {one.removeprefix("./") for one in re.findall(r'(?:src|href)="(\./[^"]+)"', html)}
    assets = {path.relative_to(PAGE).as_posix(): path for path in (PAGE / "assets").iterdir()}
    home = {name for name in assets if re.match(r"assets/Home-.*\.js$", name)}
    words = [name for name in assets if re.match(r"assets/(en|zh)-.*\.js$", name)]
    assert len(home) == 1 and len(words) == 2
    larger = max(words, key=lambda name: assets[name].stat().st_size)
    styles = {name for name in assets if name.endswith(".css")}
    return _with_imports({"index.html", *shell, *home, larger}) | styles


def test_the_page_was_built_where_node_is():
    assert BUILT


def test_the_first_screen_is_small():
    sizes = {
        name: len(gzip.compress((PAGE / name).read_bytes(), mtime=0)) for name in _first_screen()
    }
    assert sum(sizes.values()) < MOST_BYTES, sizes
    # Charts and Markdown come with the screens that show them.
    assert not any("Chart" in name or "Markdown" in name for name in sizes if name.endswith(".js"))


def test_no_script_stands_in_the_html():
    html = _text("index.html")
    assert re.findall(r"<script(?![^>]*\bsrc=)", html) == []
    assert re.findall(r"\son\w+=|javascript:|style=", html) == []


def test_names_of_files_change_with_what_is_in_them():
    for path in (PAGE / "assets").iterdir():
        assert re.fullmatch(r"[\w.-]+-[\w-]{8}\.(js|css|woff2|svg)", path.name), path.name


def test_nothing_is_asked_of_another_host():
    foreign = {}
    for path in PAGE.rglob("*"):
        if path.suffix not in (".js", ".css", ".html", ".svg"):
            continue
        code = path.read_text(encoding="utf-8")
        urls = re.findall(r"(?:https?|wss?):\/\/[\w.-]+[^\s\"'`)<]*", code)
        wrong = [url for url in urls if not url.startswith(NAMES_NOT_PLACES)]
        # A host without a scheme: //cdn.example.org/x.js in an attribute or a url().
        wrong += re.findall(r"(?:src|href)=[\"']//[^\"']+|url\([\"']?//[^)]+", code)
        if wrong:
            foreign[path.name] = wrong
    assert foreign == {}


def test_code_is_never_made_from_text():
    """The policy of the server forbids it, so a page that did it would be broken."""
    for path in (PAGE / "assets").glob("*.js"):
        assert not re.search(r"\beval\(|\bnew Function\(", path.read_text(encoding="utf-8")), path


def test_the_licences_of_what_is_inside_come_with_it():
    text = _text("licenses.txt")
    for name in ("svelte", "uplot", "marked", "dompurify"):
        assert re.search(rf"^{name} \d", text, re.MULTILINE), name
    assert "Permission is hereby granted" in text
