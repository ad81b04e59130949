"""The documentation site is built strictly in both languages, and nothing on it leads nowhere."""

from __future__ import annotations

import inspect
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import docs_site
import pytest

import tunewright
from tunewright import api

ROOT = Path(__file__).resolve().parents[2]


class Page(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {given[name] or "" for name in ("id", "name") if name in given}
        for name in ("href", "src"):
            if given.get(name):
                self.links.append(given[name] or "")


def dead_links(site: Path) -> list[str]:
    """Every link of a built site that leads to no file, or to no place in it."""
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    dead = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            known = pages[target].anchors if target in pages else None
            if not target.is_file() or (
                anchor and known is not None and anchor not in known and anchor != "__skip"
            ):
                dead.append(f"{path.relative_to(site)} -> {link}")
    return dead


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(module)
    out = tmp_path_factory.mktemp("site").resolve()
    docs_site.build(out)
    return out


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_links_of_the_pages_that_it_is_built_from_lead_to_files(lang: str, tmp_path: Path) -> None:
    docs_site.assemble(tmp_path, lang)
    dead = [
        f"{page.relative_to(tmp_path)} -> {target}"
        for page in tmp_path.rglob("*.md")
        for text in docs_site.FENCE.split(page.read_text(encoding="utf-8"))[::2]
        for _, target in docs_site.LINK.findall(text)
        if not re.match(r"[a-z]+:|#", target)
        and not (page.parent / unquote(target.partition("#")[0])).is_file()
    ]
    assert dead == []


@pytest.mark.peer
@pytest.mark.slow
def test_no_link_of_the_built_site_is_dead(site: Path) -> None:
    assert len(list(site.rglob("*.html"))) > 150
    assert dead_links(site) == []
    for lang in ("", "zh"):
        page = (site / lang / "index.html").read_text(encoding="utf-8")
        assert 'hreflang="zh"' in page and 'hreflang="en"' in page


@pytest.mark.peer
@pytest.mark.slow
def test_every_public_name_stands_in_the_reference(site: Path) -> None:
    for lang in ("", "zh"):
        anchors = Page(site / lang / "reference" / "index.html").anchors
        for name in tunewright.__all__:
            if not name.startswith("_"):
                module = getattr(tunewright, name).__module__
                assert f"{module}.{name}" in anchors
        for name in api.__all__:
            assert f"tunewright.api.{name}" in anchors
        for name, member in inspect.getmembers(api.Run):
            if not name.startswith("_") and name in vars(api.Run):
                assert member.__doc__ and f"tunewright.api.Run.{name}" in anchors


@pytest.mark.peer
@pytest.mark.slow
def test_both_languages_are_searched(site: Path) -> None:
    for lang, words in (("", "held-out rows"), ("zh", "保留数据")):
        index = json.loads((site / lang / "search" / "search_index.json").read_text("utf-8"))
        assert words in json.dumps(index["docs"], ensure_ascii=False).replace("\u200b", "")
        assert set(index["config"]["lang"]) == {"en", "zh"}


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<a href="no/">x</a><a href="#no">y</a><a href=".">z</a>')
    assert len(dead_links(tmp_path.resolve())) == 2
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n[nowhere](nowhere.md)\n")
    with pytest.raises(SystemExit, match="leads nowhere"):
        docs_site._page(page, "page.md", {})


def test_the_pages_of_the_site_are_gathered_in_both_languages(tmp_path: Path) -> None:
    for lang in docs_site.LANGUAGES:
        docs_site.assemble(tmp_path / lang, lang)
        inside = [page for part in docs_site.nav(lang) for names in part.values() for page in names]
        assert len(inside) == len(set(inside))
        for page in inside:
            assert (tmp_path / lang / page).is_file(), page
        text = (tmp_path / lang / "llms.txt").read_text(encoding="utf-8")
        assert text.startswith("# Tunewright\n\n> ")
        assert len(re.findall(r"^- \[.+\]\(https://\S+\): .+$", text, re.MULTILINE)) > 60
    english = (tmp_path / "en" / "track.md").read_text(encoding="utf-8")
    chinese = (tmp_path / "zh" / "track.md").read_text(encoding="utf-8")
    assert "zh-CN" not in english and "跟踪器" in chinese and "(callbacks.md)" in chinese
    agents = (tmp_path / "en" / "agents.md").read_text(encoding="utf-8")
    assert f"]({docs_site.HOST}/blob/main/skills/tunewright/SKILL.md)" in agents
