"""The pages keep up with the code: every key is documented in both languages, every link leads
somewhere, every name is real."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tunewright.core.config import DataConfig, EngineConfig
from tunewright.core.registry import formats, methods, objectives

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TRANSLATED = [
    "data",
    "data-check",
    "doctor",
    "engine",
    "faq",
    "errors",
    "fit",
    "damage",
    "evaluate",
    "exams",
    "judge",
    "numbers",
    "compare",
    "gate",
    "export",
    "serve",
    "studio",
    "chat",
    "batch",
    "callbacks",
    "track",
    "sweep",
    "push",
    "agents",
    "migrating",
    "models-safety",
    "pipelines",
    "rewards",
    "methods/lora",
    "objectives/sft",
    "objectives/dpo",
    "objectives/ipo",
    "objectives/orpo",
    "objectives/simpo",
    "objectives/cpo",
    "objectives/kto",
    "objectives/pretrain",
    "objectives/distill",
]


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as the usual hosts make them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_every_link_inside_the_project_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name) if name else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found / "README.md" if found.is_dir() else found), (
            target
        )


@pytest.mark.parametrize("name", TRANSLATED)
def test_pages_that_are_promised_in_chinese_are_there_and_link_back(name):
    english, chinese = DOCS / f"{name}.md", DOCS / f"{name}.zh-CN.md"
    assert f"({chinese.name})" in english.read_text(encoding="utf-8")
    text = chinese.read_text(encoding="utf-8")
    assert f"({english.name})" in text
    assert len(re.findall(r"[\u4e00-\u9fff]", text)) > 300


@pytest.mark.parametrize("suffix", ["", ".zh-CN"])
@pytest.mark.parametrize(
    ("section", "config", "page"),
    [("data", DataConfig, "data"), ("engine", EngineConfig, "engine")],
)
def test_every_key_is_documented(section, config, page, suffix):
    text = (DOCS / f"{page}{suffix}.md").read_text(encoding="utf-8")
    documented = set(re.findall(rf"^\| `({section}\.\w+)` \|", text, re.MULTILINE))
    assert documented == {f"{section}.{key}" for key in config.model_fields}


@pytest.mark.parametrize("suffix", ["", ".zh-CN"])
def test_every_key_of_a_method_is_documented(suffix):
    for entry in methods:
        text = (DOCS / "methods" / f"{entry.name}{suffix}.md").read_text(encoding="utf-8")
        assert set(re.findall(r"^\| `(method\.\w+)` \|", text, re.MULTILINE)) == {
            f"method.{key}" for key in entry.config.model_fields
        }


def test_every_registered_name_has_a_place():
    for registry, folder in ((methods, "methods"), (objectives, "objectives")):
        index = (DOCS / folder / "README.md").read_text(encoding="utf-8")
        assert all(
            f"| `{name}` |" in index and (DOCS / folder / f"{name}.md").exists()
            for name in registry.names()
        )
    for page in ("data.md", "data.zh-CN.md"):
        assert all(
            f"| `{name}` |" in (DOCS / page).read_text(encoding="utf-8") for name in formats.names()
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_piece_of_yaml_is_yaml(page):
    for piece in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        assert isinstance(yaml.safe_load(piece), dict)


def test_events_and_summary_keys_of_the_report_are_documented():
    source = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "src/tunewright/report").glob("*.py")
    )
    used = set(re.findall(r's\.get\("(\w+)"\)|summary\.get\("(\w+)"\)', source))
    for page in ("engine.md", "engine.zh-CN.md"):
        text = (DOCS / page).read_text(encoding="utf-8")
        missing = (
            {a or b for a, b in used} - set(re.findall(r"`(\w+)`", text)) - {"answers_at_limit"}
        )
        assert missing == set()
