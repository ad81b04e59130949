"""The forms of the page: made from the schema, whole in both languages, and true to what pydantic
takes."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError

from tunewright.advise import glossary
from tunewright.core import registry
from tunewright.core.config import RunConfig, Section
from tunewright.core.errors import ConfigError
from tunewright.core.runfile import known_keys, parse_run
from tunewright.core.words import ASSETS, LANGUAGES, catalogue, set_language
from tunewright.studio import schema as forms

CJK = re.compile("[\u4e00-\u9fff]")
PICTURES = {
    "low-rank", "low-rank-start", "hadamard", "vectors", "rotation", "prefix", "prefix-layers", "bottleneck",
    "bottleneck-beside", "full", "full-lean", "part", "drawn", "new-blocks", "embedding", "embedding-rows", "sparse",
    "router", "plugin", "answers", "text", "pairs", "verdicts", "reward", "steps", "rollouts", "distill", "other",
}  # fmt: skip
"""What the page draws."""


@pytest.fixture(autouse=True)
def _language() -> Iterator[None]:
    yield
    set_language(None)


def said(language: str) -> dict[str, Any]:
    set_language(language)
    return forms.schema()


def every_field(found: dict[str, Any]) -> list[dict[str, Any]]:
    kinds = [*found["methods"], *found["objectives"]]
    return [field for one in [*found["sections"], *kinds] for field in one["fields"]]


def models() -> Iterator[tuple[str, type[BaseModel]]]:
    """Every class with settings, and the keys before its own."""
    yield "", RunConfig
    for name, info in RunConfig.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield f"{name}.", info.annotation
    for axis, entries in registry.AXES.items():
        for entry in entries:
            if entry.is_ours:
                yield f"{axis}.", entry.config


def helps() -> set[str]:
    """Every English help text that a form shows."""
    found = set()
    for _, model in models():
        for info in model.model_fields.values():
            parts = (info.annotation, *typing.get_args(info.annotation))  # also `Section | None`
            for inner in parts:
                if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
                    continue
                found.add(" ".join((inner.__doc__ or "").split()))
                found |= {forms.english_help(one) for one in inner.model_fields.values()}
            found.add(forms.english_help(info))
    return found - {""}


def test_every_key_of_a_run_is_in_the_forms() -> None:
    found = said("en")
    for kind in (*registry.methods.names(), "lora"):
        for objective in registry.objectives.names() if kind == "lora" else ["sft"]:
            keys = {f["key"] for section in found["sections"] for f in section["fields"]}
            for axis, name in (("methods", kind), ("objectives", objective)):
                (one,) = [one for one in found[axis] if one["name"] == name]
                keys |= {f["key"] for f in one["fields"]} | {f"{axis[:-1]}.kind"}
            wanted = set(known_keys({"method": kind, "objective": objective})) - {"data.mixing"}
            assert keys - {"data.mixing.temperature"} == wanted
    json.dumps(found, allow_nan=False)


def test_a_method_of_another_package_appears_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Config(Section):
        """Squares the circle.

        And more.
        """

        radius: int = Field(default=3, gt=0)
        """How far it reaches."""
        shape: Literal["round", "square"] = "round"

    Config.__module__ = "elsewhere.methods"
    monkeypatch.setattr(registry.methods, "_entries", dict(registry.methods._entries))
    registry.methods.load()
    registry.methods.register("made_up", Config, source="arXiv 0000.00000")(lambda *_: None)
    for language in LANGUAGES:
        (made,) = [one for one in said(language)["methods"] if one["name"] == "made_up"]
        assert made["title"] == "Made up" and made["text"] == "Squares the circle."
        assert (made["family"], made["picture"]) == ("other", "plugin")
        radius, shape = made["fields"]
        assert (radius["key"], radius["type"], radius["default"]) == ("method.radius", "int", 3)
        assert radius["minimum"] == 1 and radius["text"] == "How far it reaches."
        assert (shape["type"], shape["choices"]) == ("choice", ["round", "square"])


def test_every_help_text_has_its_chinese_and_no_other_has() -> None:
    """A changed English text is an untranslated one, and its old Chinese is left over."""
    table = glossary.translated("zh")
    assert helps() - set(table) == set(), "without Chinese"
    assert set(table) - helps() == set(), "Chinese of no text: the English was changed"
    for english, chinese in table.items():
        names = set(re.findall(r"`([^`]+)`", english))
        assert CJK.search(chinese), english
        missing = {n for n in names if n not in chinese and "docs/" not in n}
        assert not missing, (english, missing)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_field_section_method_and_objective_is_named(language: str) -> None:
    found = said(language)
    words = catalogue(language)
    for field in every_field(found):
        name = field["key"].rpartition(".")[2]
        keys = [key for key in words if key.startswith("field.") and key.endswith(f".{name}")]
        assert keys, field["key"]
        assert field["text"] and (language == "en" or CJK.search(field["text"])), field["key"]
    for one in [*found["methods"], *found["objectives"]]:
        axis = "methods" if one in found["methods"] else "objectives"
        assert f"kind.{axis}.{one['name']}" in words and f"kind.{axis}.{one['name']}.text" in words
        assert one["picture"] in PICTURES
        assert one["family"] in {family["key"] for family in found["families"][axis]}
        assert language == "en" or CJK.search(one["text"])
    for one in [*found["sections"], *found["formats"], *found["rewards"]]:
        assert one["title"] and (one.get("text") or one.get("about"))
    assert [r["name"] for r in found["rewards"] if r["name"] == "python"] == []


def test_the_table_of_families_names_what_is_registered() -> None:
    table = json.loads((ASSETS / "studio" / "kinds.json").read_text(encoding="utf-8"))
    for axis in ("methods", "objectives"):
        ours = [entry.name for entry in getattr(registry, axis) if entry.is_ours]
        assert sorted(table[axis]) == sorted(ours)
    assert said("en")["methods"][0]["name"] == "lora"
    assert said("en")["objectives"][0]["name"] == "sft"


def test_a_beginner_sees_few_fields() -> None:
    found = said("en")
    shown = [f["key"] for one in found["sections"] for f in one["fields"] if not f["more"]]
    assert sorted(shown) == sorted(forms.SIMPLE)
    lora = next(one for one in found["methods"] if one["name"] == "lora")
    assert [f["key"] for f in lora["fields"] if not f["more"]] == ["method.rank"]
    full = next(one for one in found["methods"] if one["name"] == "full")
    assert full["trainable_share"] == 1 and full["fields"] == []
    for kind, key in (("distill", "objective.teacher"), ("grpo", "objective.reward")):
        one = next(one for one in found["objectives"] if one["name"] == kind)
        assert key in [f["key"] for f in one["fields"] if not f["more"]]


# ---- true to pydantic


def outside(field: dict[str, Any]) -> list[Any]:
    """Values that the field says it does not take."""
    found: list[Any] = []
    if field["type"] in ("int", "float"):
        step = 1 if field["type"] == "int" else 1e-6
        found += [field["minimum"] - step] if "minimum" in field else []
        found += [field["maximum"] + step] if "maximum" in field else []
        found += [field[name] for name in ("above", "below") if name in field]
    if field["type"] == "choice":
        found.append("no such word")
    if not field["optional"] and field["type"] != "text" and not field["required"]:
        found.append(None)
    return found


def inside(field: dict[str, Any]) -> list[Any]:
    """Values at the very bounds, and every word."""
    found: list[Any] = list(field.get("choices", [])) if field["type"] != "text" else []
    if field["type"] in ("int", "float"):
        found += [field[name] for name in ("minimum", "maximum") if name in field]
        found += [field["above"] + 1e-6] if "above" in field else []
        found += [field["below"] - 1e-6] if "below" in field else []
    return found + ([None] if field["optional"] else [])


def takes(model: type[BaseModel], name: str, value: Any) -> bool:
    """What pydantic says of a value by itself: that two keys do not go together is no bound."""
    required = {
        "teacher": "t",
        "tokens": ["a"],
        "type": "LORA",
        "model": "m",
        "data": {"train": "d"},
    }
    known = {k: v for k, v in required.items() if k in model.model_fields and k != name}
    if "train" in model.model_fields and model.model_fields["train"].is_required():
        known["train"] = "x"
    try:
        model.model_validate({**known, name: value})
    except ValidationError as error:
        return not any(one["loc"][:1] == (name,) for one in error.errors())
    return True


@pytest.mark.parametrize(
    ("prefix", "model"), [pytest.param(p, m, id=f"{p}{m.__name__}") for p, m in models()]
)
def test_bounds_and_choices_are_those_that_pydantic_keeps(
    prefix: str, model: type[BaseModel]
) -> None:
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            continue
        if name in registry.AXES and model is RunConfig:
            continue
        field = forms.field_of(f"{prefix}{name}", info)
        for value in outside(field):
            assert not takes(model, name, value), (name, value, field)
        for value in inside(field):
            assert takes(model, name, value), (name, value, field)


def test_defaults_of_the_forms_make_a_run() -> None:
    found = said("en")
    for method in found["methods"]:
        if any(field["required"] for field in method["fields"]):
            continue
        given = {"model": "m", "data.train": "d", "method.kind": method["name"]}
        given |= {f["key"]: f["default"] for f in method["fields"] if f["default"] is not None}
        for section in found["sections"]:
            given |= {f["key"]: f["default"] for f in section["fields"] if not f["required"]}
        parse_run(given, {})
    with pytest.raises(ConfigError):
        parse_run({"model": "m", "data.train": "d", "method.rank": 0}, {})


def test_types_of_odd_annotations() -> None:
    shape = forms.shape_of
    assert shape(int | Literal["auto"])["type"] == "int"
    assert shape(int | Literal["auto"])["choices"] == ["auto"]
    assert shape(float | int | str | None) == {
        "type": "text", "optional": True, "accepts": ["float", "int", "text"]
    }  # fmt: skip
    assert shape(list[int] | None) == {
        "type": "list", "optional": True, "accepts": ["list"], "of": "int"
    }  # fmt: skip
    assert shape(tuple[float, float])["length"] == 2
    assert shape(dict[str, Any])["type"] == "map"
    assert shape(Any)["type"] == "text"
    assert shape(bool)["type"] == "bool"
    assert shape(Annotated[int, Field(ge=2)] | None)["minimum"] == 2
