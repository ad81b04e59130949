"""What stands around the code: workflows, containers, versions, citation, release notes, shell
completion, and the wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import release_notes
import yaml
from helpers import story
from packaging.requirements import Requirement

from tunewright import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DOCKERFILES = sorted((ROOT / "docker").glob("*ockerfile"))


def commands_of(workflow: Path) -> list[str]:
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values()
    return [step["run"] for job in jobs for step in job.get("steps", []) if "run" in step]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_a_workflow_names_only_what_is_there(path: Path) -> None:
    text = "\n".join(commands_of(path))
    for extras in re.findall(r"-e '?\"?\.\[([\w,]+)\]", text):
        assert set(extras.split(",")) <= set(EXTRAS)
    for script in re.findall(r"tools/[\w/]+\.(?:py|txt)", text):
        assert (ROOT / script).is_file()
    for folder in re.findall(r"tests/\w+", text):
        assert (ROOT / folder).is_dir()


def test_workflows_run_on_three_systems() -> None:
    matrix = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]["fast"]
    assert matrix["strategy"]["matrix"]["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]


@pytest.mark.peer
def test_actionlint_finds_nothing() -> None:
    tool = shutil.which("actionlint") or shutil.which(
        "actionlint", path=str(Path(sys.executable).parent)
    )
    if tool is None:
        pytest.skip("actionlint is not installed")
    done = subprocess.run([tool, *map(str, WORKFLOWS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")))
def test_issue_templates_ask_in_both_languages(path: Path) -> None:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert found and re.search(r"[\u4e00-\u9fff]", path.read_text(encoding="utf-8"))


def instructions(path: Path) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_a_container_runs_as_a_person_and_copies_what_is_there(path: Path) -> None:
    found = instructions(path)
    users = [rest for name, rest in found if name == "USER"]
    assert users[-1:] == ["tunewright"]
    for name, rest in found:
        if name == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
        if name == "RUN":
            assert subprocess.run(["bash", "-n", "-c", rest]).returncode == 0
            for extras in re.findall(r"'\.\[([\w,]+)\]'", rest):
                assert set(extras.split(",")) <= set(EXTRAS)
    assert found[-2] == ("ENTRYPOINT", '["tunewright"]')
    assert story.tunewright(*yaml.safe_load(found[-1][1])).returncode == 0


@pytest.mark.parametrize("name", ["oldest", "newest", "tested"])
def test_the_named_versions_lie_in_the_allowed_ranges(name: str) -> None:
    lines = (ROOT / "tools" / "versions" / f"{name}.txt").read_text().splitlines()
    named = {Requirement(line).name.lower(): line for line in lines}
    every = [*PROJECT["dependencies"], *(one for extra in EXTRAS.values() for one in extra)]
    for requirement in map(Requirement, every):
        line = named.get(requirement.name.lower())
        if line is not None:
            version = line.partition("==")[2].replace("*", "0")
            assert requirement.specifier.contains(version), line
    assert {"torch", "transformers", "peft"} <= set(named)


def test_all_brings_every_extra_for_users() -> None:
    inside = set(re.findall(r"[\w]+", EXTRAS["all"][0].partition("[")[2]))
    assert inside == set(EXTRAS) - {"all", "test", "docs"}


def test_the_citation_names_this_version() -> None:
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert found["version"] == __version__ == PROJECT["version"]
    assert found["license"] == PROJECT["license"] and found["cff-version"] == "1.2.0"


def test_release_notes_are_the_part_of_the_changelog() -> None:
    text = (
        "# C\n\n## [Unreleased]\n\n## [0.2.0] - 2026-01-02\n\n### Added\n- a\n\n## [0.1.0]\n- b\n"
    )
    assert release_notes.notes("0.2.0", text) == "### Added\n- a\n"
    assert release_notes.notes("0.1.0", text) == "- b\n"
    for version in ("Unreleased", "0.3.0"):
        with pytest.raises(SystemExit, match=version):
            release_notes.notes(version, text)
    assert release_notes.notes("Unreleased", release_notes.CHANGELOG.read_text(encoding="utf-8"))


def test_shells_get_a_script_that_asks_this_program() -> None:
    for shell in ("bash", "zsh", "fish", "powershell"):
        told = story.tunewright("completion", shell)
        assert told.returncode == 0 and "_TUNEWRIGHT_COMPLETE" in told.stdout
    told = story.tunewright("completion", "tcsh")
    assert told.returncode == 2 and "E-RUN-20" in told.stderr


def test_a_shell_that_asks_is_answered() -> None:
    words = {"COMP_WORDS": "tunewright tra", "COMP_CWORD": "1"}
    start = "import sys; sys.argv = ['tunewright']; from tunewright.cli import main; main()"
    told = subprocess.run(
        [sys.executable, "-c", start],
        env={**os.environ, **words, "_TUNEWRIGHT_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
    )
    assert sorted(told.stdout.split()) == ["track", "train"]


@pytest.mark.peer
@pytest.mark.slow
def test_the_wheel_is_what_a_registry_takes(tmp_path: Path) -> None:
    for module in ("hatchling", "twine", "check_wheel_contents"):
        pytest.importorskip(module)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    environment = {**os.environ, "TUNEWRIGHT_PAGE": "skip"}
    subprocess.run(build, cwd=ROOT, env=environment, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    for check in (["twine", "check", "--strict"], ["check_wheel_contents"]):
        done = subprocess.run(
            [sys.executable, "-m", *check, str(wheel)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
