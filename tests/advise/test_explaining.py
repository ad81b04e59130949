"""`explain`: codes, keys and terms in both languages, by any spelling, and guesses for the rest."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from helpers import story
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.advise import explaining, glossary
from tunewright.core import registry
from tunewright.core.config import DataConfig, EngineConfig
from tunewright.core.errors import UsageError
from tunewright.core.words import LANGUAGES, error_codes, error_text, set_language


@pytest.fixture(params=["en", "zh"])
def lang(request):
    set_language(request.param)
    yield request.param
    set_language(None)


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("LoRA", "lora"), ("低秩适配", "lora"), ("全量微调", "full"), ("full fine-tuning", "full"), ("Full Finetuning", "full"), ("P-Tuning v2", "p_tuning_v2"),
        ("ptuning V2", "p_tuning_v2"), ("(IA)³", "ia3"), ("ia3", "ia3"), ("奖励模型", "reward_model"), ("KL", "kl"), ("held out", "held_out"), ("验证集", "held_out"),
        ("EOS", "stop_token"), ("过拟合", "overfitting"), ("quantization", "quantisation"), ("batch-size", "batch"), ("学习率", "learning_rate"), ("ＬｏＲＡ", "lora"),
    ],
)  # fmt: skip
def test_a_term_is_found_by_any_of_its_names(word, key):
    assert glossary.find(word) == key


def test_words_that_a_learner_meets_are_there():
    wanted = (
        "LoRA, full fine-tuning, 全量微调, partial fine-tuning, 部分微调, QLoRA, rank, SFT, DPO, reward model, PPO, KL, epoch, learning rate, gradient, batch, token, template, "
        "stop token, loss mask, overfitting, held-out, merge, GGUF, quantisation, instruction tuning, PEFT, prompt tuning, prefix tuning, P-tuning, P-tuning v2, RLHF, adapter"
    )
    assert [word for word in wanted.split(", ") if glossary.find(word) is None] == []
    assert len(glossary.terms("en")) >= 60


def test_both_languages_have_the_same_entries_each_in_its_own_script():
    english, chinese = glossary.terms("en"), glossary.terms("zh")
    assert list(english) == list(chinese)
    assert len({term.group for term in english.values()}) == len(
        {term.group for term in chinese.values()}
    )
    for key in english:
        assert english[key].text.isascii() or "³" in english[key].text, key
        assert sum("\u4e00" <= c <= "\u9fff" for c in chinese[key].text) >= 8, key
        assert english[key].aliases, key
        assert all(other in english for other in english[key].see), key
        assert set(glossary._read("zh")[key]) <= {"group", "name", "aliases", "text"}


def test_no_name_belongs_to_two_terms():
    owners: dict[str, set[str]] = {}
    for lang in LANGUAGES:
        for key, term in glossary.terms(lang).items():
            for word in (key, term.name, *term.aliases):
                owners.setdefault(glossary.plain(word), set()).add(key)
    assert {word: keys for word, keys in owners.items() if len(keys) > 1} == {}


def test_what_a_term_says_to_write_exists():
    from typer.main import get_command

    from tunewright.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    for term in glossary.terms("en").values():
        ours = term.ours
        if ours.startswith("tunewright "):
            assert ours.split()[1] in commands, term.key
        elif "kind:" in ours:
            axis, _, rest = ours.partition(":")
            assert (
                registry.AXES[axis].get(rest.split("kind:")[1].split(",")[0].strip(" }"))
                is not None
            ), term.key
        elif ours.startswith("data.format: "):
            assert registry.formats.get(ours.partition(": ")[2]) is not None
        elif ours:
            section = ours.partition(":")[0].split(".")[0]
            assert section == "base" or ours.partition(":")[0] in explaining.all_keys(), term.key


@given(
    st.sampled_from(glossary.words()),
    st.sampled_from(
        [
            str.upper,
            str.lower,
            str.title,
            lambda w: w.replace(" ", "-"),
            lambda w: w.replace("-", "_"),
        ]
    ),
)
def test_spelling_does_not_matter(word, change):
    assert glossary.find(change(word)) == glossary.find(word) is not None


def test_every_code_explains_itself(lang):
    for code in error_codes():
        found = explaining.explain(code.lower())
        assert found["is"] == "code"
        said = explaining.lines(found)
        assert (said[0], said[-1]) == (code, error_text(code)["page"])
        # What is only known where it is raised is left open, and no line is empty for nothing.
        assert re.search(r"\{\w+(!r)?\}", "\n".join(said[1:-1])) is None
        assert [line for line in said[2:-2] if not line] == []
        start = error_text(code)["what"].partition("{")[0]
        assert said[2].startswith(start)


def test_every_key_of_every_section_explains_itself(lang):
    keys = explaining.all_keys()
    assert {f"data.{name}" for name in DataConfig.model_fields} - {"data.mixing"} <= set(keys)
    assert {f"engine.{name}" for name in EngineConfig.model_fields} <= set(keys)
    for entry in registry.methods:
        assert {f"method.{name}" for name in entry.config.model_fields} <= set(keys)
    for key in keys:
        text = "\n".join(explaining.lines(explaining.explain(key)))
        assert key in text
        assert "explain." not in text, "a word without a translation"


def test_a_key_tells_type_default_and_help_and_which_methods_differ():
    set_language("en")
    (form,) = explaining.explain("engine.batch_size")["keys"][0]["forms"]
    assert (form["type"], form["default"]) == ("whole number or auto", "auto")
    assert form["help"].startswith("Samples per optimiser step, always")
    forms = explaining.explain("method.rank")["keys"][0]["forms"]
    defaults = {kind: form["default"] for form in forms for kind in form["kinds"]}
    assert (defaults["lora"], defaults["loha"], defaults["vera"]) == ("16", "8", "256")
    assert {form["type"] for form in forms} == {"whole number > 0"}
    assert explaining.explain("data.train")["keys"][0]["forms"][0]["default"] == "required"
    assert [key["key"] for key in explaining.explain("early_stop")["keys"]] == ["engine.early_stop"]
    assert [key["key"] for key in explaining.explain("accept")["keys"]] == ["data.accept"]
    set_language(None)


def test_keys_are_explained_in_chinese_where_the_reader_is():
    set_language("zh")
    for key in explaining.all_keys():
        section = key.split(".")[0]
        for form in explaining.explain(key)["keys"][0]["forms"]:
            if section in ("data", "engine", "base", "method"):
                assert (
                    any("\u4e00" <= c <= "\u9fff" for c in form["help"]) or "`" in form["help"]
                ), key
    forms = explaining.explain("method.rank")["keys"][0]["forms"]
    assert {kind for form in forms for kind in form["kinds"]} >= {"lora", "loha", "vera", "galore"}
    set_language(None)


def test_a_registered_name_without_an_entry_tells_what_it_is(lang):
    found = explaining.explain("lora-plus")
    assert (found["is"], found["axis"], found["name"]) == ("name", "methods", "lora_plus")
    assert found["page"] == (
        "docs/methods/lora_plus.md" if lang == "en" else "docs/methods/lora_plus.zh-CN.md"
    )
    assert explaining.explain("prompt_completion")["ours"] == "data.format: prompt_completion"


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("overfiting", "overfit"),
        ("lerning rate", "learning rate"),
        ("engine.batchsiz", "engine.batch_size"),
        ("梯度累计", "梯度累积"),
    ],
)
def test_an_unknown_word_brings_the_closest_ones(word, near):
    with pytest.raises(UsageError) as caught:
        explaining.explain(word)
    (problem,) = caught.value.problems
    assert problem.code == "E-LIST-01"
    assert near in problem.fields["near"].split(", ")


@settings(max_examples=40)
@given(st.text(max_size=30))
def test_any_word_at_all_is_explained_or_refused_with_guesses(word):
    try:
        assert explaining.lines(explaining.explain(word))
    except UsageError as e:
        assert e.problems[0].code in ("E-LIST-01", "E-RUN-13")


def test_the_command_speaks_and_ends_as_others_do():
    done = story.tunewright("explain", "全量微调", TUNEWRIGHT_LANG="zh")
    assert (
        done.returncode == 0
        and "所有权重" in done.stdout
        and "docs/methods/full.zh-CN.md" in done.stdout
    )
    done = story.tunewright("explain", "method.rank", "--json")
    assert json.loads(done.stdout)["keys"][0]["key"] == "method.rank"
    done = story.tunewright("explain", "overfiting")
    assert done.returncode == 2 and "overfit" in done.stderr and not done.stdout
    done = story.tunewright("explain", "E-DATA-9999")
    assert done.returncode == 2 and "E-RUN-13" in done.stderr


def test_explaining_loads_nothing_heavy():
    program = (
        "import sys, runpy; sys.argv = ['tunewright', 'explain', sys.argv[1]]\n"
        "try: runpy.run_module('tunewright', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print('HEAVY', sorted({'torch', 'transformers', 'peft', 'numpy', 'tokenizers'} & set(sys.modules)))"
    )
    for word in ("LoRA", "method.rank", "nonsense"):
        done = subprocess.run(
            [sys.executable, "-c", program, word],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "HEAVY []" in done.stdout, done.stderr
