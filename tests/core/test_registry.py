"""What happens to names that other packages bring."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunewright.core.config import Section
from tunewright.core.errors import ConfigError
from tunewright.core.registry import Registry


class One(Section):
    """Settings of a name."""


class Other(Section):
    """Settings of another."""


@pytest.mark.parametrize("fault", ["no_such_module", "broken"])
def test_a_package_that_cannot_be_loaded_is_named(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "faulty_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[tunewright.rewards]\nx = faulty_{fault}\n")
    (tmp_path / "faulty_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    made: Registry = Registry("rewards", "tunewright.rewards")
    for _ in range(2):  # asked again, it says so again
        with pytest.raises(ConfigError) as caught:
            made.names()
        (found,) = caught.value.problems
        assert found.code == "E-CONFIG-47" and "faulty-package" in found.line()
        assert f"faulty_{fault}" in found.line()


def test_a_name_and_a_config_class_stand_for_one_thing() -> None:
    made: Registry = Registry("rewards", "tunewright.rewards")
    made.register("one", One)(lambda config: None)
    with pytest.raises(ValueError, match="registered twice"):
        made.register("one", Other)(lambda config: None)
    with pytest.raises(ValueError, match="config class of 'one' already"):
        made.register("other", One)(lambda config: None)
