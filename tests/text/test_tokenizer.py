"""The tokenizer read without Transformers gives the ids and the text of AutoTokenizer, or says why
it cannot be sure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import families
from helpers.tiny import FAMILIES as MODEL_FAMILIES
from helpers.tiny import make_config
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from tunewright.core.types import Message
from tunewright.text.chat_kind import stated_ids
from tunewright.text.rendered import CannotRender
from tunewright.text.renderer import Renderer
from tunewright.text.tokenizer import QWEN_WORDS, Light, NotLight, load_light

NAMES = sorted(families.FAMILIES)
TEXTS = [
    "hello world",
    "",
    " a  b\n\nc\t",
    "é你🙂 <|im_end|></s>[INST]<think>x",
    "what's 12345?",
    "<s>",
    "\x00\u202e",
]
CHATS = [
    [("user", "hi")],
    [
        ("system", "be brief"),
        ("user", "hi"),
        ("assistant", " there \n"),
        ("user", "你好 <|im_end|>"),
    ],
    [("user", "a"), ("assistant", "<think>\nhm\n</think>\n\nb"), ("user", "c"), ("assistant", "d")],
]


def saved(tokenizer, folder, **config):
    tokenizer.save_pretrained(folder)
    if config:
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def both(folder):
    return Light.of_folder(folder), AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True
    )


def outcome(function, *given, **more):
    """The result, or that there is none: templates raise, and both sides must."""
    try:
        return function(*given, **more)
    except Exception as error:
        return type(error).__name__


def assert_same(light, theirs):
    for text in TEXTS:
        for special in (False, True):
            ids = theirs.encode(text, add_special_tokens=special)
            assert light.encode(text, add_special_tokens=special) == ids
        assert light.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
        assert light.decode(ids, skip_special_tokens=True) == theirs.decode(
            ids, skip_special_tokens=True
        )
    for chat in CHATS if theirs.chat_template else ():
        messages = [{"role": role, "content": content} for role, content in chat]
        for generation in (False, True):
            given = {"tokenize": False, "add_generation_prompt": generation}
            assert outcome(light.apply_chat_template, messages, **given) == outcome(
                theirs.apply_chat_template, messages, **given
            )
    for name in (
        "bos_token",
        "eos_token",
        "pad_token",
        "unk_token",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "unk_token_id",
    ):
        assert getattr(light, name) == getattr(theirs, name), name
    assert (
        light.special_tokens_map == theirs.special_tokens_map
        and light.chat_template == theirs.chat_template
    )
    ours, added = light.added_tokens_decoder, theirs.added_tokens_decoder
    assert {i: (t.content, t.special) for i, t in ours.items()} == {
        i: (t.content, t.special) for i, t in added.items()
    }
    for token in [*(t.content for t in added.values()), "no such token", "a"]:
        assert light.convert_tokens_to_ids(token) == theirs.convert_tokens_to_ids(token)
    assert light.convert_ids_to_tokens([0, 1, 2]) == theirs.convert_ids_to_tokens(
        [0, 1, 2]
    ) and len(light) == len(theirs)


@pytest.mark.parametrize("name", NAMES)
def test_every_template_family_reads_as_with_transformers(name, tmp_path):
    light, theirs = both(saved(families.tokenizer_of(name), tmp_path))
    assert_same(light, theirs)
    assert (
        light.fingerprint()
        == Light.of(theirs).fingerprint()
        == Light.from_state(json.loads(json.dumps(light.state()))).fingerprint()
    )


@pytest.mark.parametrize("family", sorted(MODEL_FAMILIES))
def test_every_model_family_reads_as_with_transformers_or_is_left_to_it(family, tmp_path):
    make_config(family).save_pretrained(tmp_path)
    families.tokenizer_of("chatml").save_pretrained(tmp_path)
    if family in ("mistral", "qwen2"):
        # AutoTokenizer decides by rules of its own: another class builds another pipeline than the
        # file holds.
        with pytest.raises(NotLight):
            Light.of_folder(tmp_path)
        found, why = load_light(tmp_path)
        assert why and type(found) is type(AutoTokenizer.from_pretrained(str(tmp_path)))
        return
    assert_same(*both(tmp_path))
    assert stated_ids(tmp_path) == {2}


def test_a_real_model_folder_reads_as_with_transformers():
    folder = next(
        iter(Path(os.environ.get("TUNEWRIGHT_CACHE", "/nowhere")).glob("models/*smollm2*")), None
    )
    if folder is None:
        pytest.skip("no cached SmolLM2")
    light, theirs = both(folder)
    assert_same(light, theirs)
    assert light.fingerprint() == Light.of(theirs).fingerprint()


def test_the_class_of_qwen_is_taken_where_its_pipeline_is_the_files(tmp_path):
    base = families.tokenizer_of("chatml")
    backend = Tokenizer.from_str(base.backend_tokenizer.to_str())
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated", invert=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    base._tokenizer = backend
    saved(base, tmp_path, model_type="qwen2")
    settings_file = tmp_path / "tokenizer_config.json"
    stated = json.loads(settings_file.read_text())
    settings_file.write_text(
        json.dumps(stated | {"tokenizer_class": "Qwen2Tokenizer", "unk_token": "<|endoftext|>"})
    )
    light, theirs = both(tmp_path)
    assert type(theirs).__name__ == "Qwen2Tokenizer"
    for text in [*TEXTS, "e\u0301 DON'T stop   now 123"]:
        assert light.encode(text, add_special_tokens=False) == theirs.encode(
            text, add_special_tokens=False
        )
    saved_text = json.loads((tmp_path / "tokenizer.json").read_text())
    saved_text["normalizer"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved_text))
    with pytest.raises(NotLight, match="Qwen2Tokenizer"):
        Light.of_folder(tmp_path)


@pytest.mark.parametrize(("file", "content", "reason"), [
    ("tokenizer.json", None, "tokenizer.json"),
    ("tokenizer.json", "{broken", "Expecting"),
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["x.Y", None]}}, "auto_map"),
    ("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"}, "LlamaTokenizer"),
    ("tokenizer_config.json", {}, "tokenizer_class"),
])  # fmt: skip
def test_folders_that_only_transformers_can_read_are_named_with_the_reason(
    file, content, reason, tmp_path
):
    saved(families.tokenizer_of("chatml"), tmp_path)
    path = tmp_path / file
    if content is None:
        path.unlink()
    else:
        path.write_text(
            content if isinstance(content, str) else json.dumps(content), encoding="utf-8"
        )
    with pytest.raises(NotLight, match=reason):
        Light.of_folder(tmp_path)


def test_named_templates_are_chosen_as_transformers_chooses(tmp_path):
    tokenizer = families.tokenizer_of("chatml")
    tokenizer.chat_template = {
        "default": "D{{ messages[0].content }}",
        "tool_use": "T{{ tools | tojson }}",
        "rag": "R",
    }
    saved(tokenizer, tmp_path)
    light, theirs = both(tmp_path)
    messages, tools = (
        [{"role": "user", "content": "q"}],
        [{"type": "function", "function": {"name": "é"}}],
    )
    for more in (
        {},
        {"tools": tools},
        {"chat_template": "rag"},
        {"chat_template": "x{{ bos_token }}"},
    ):
        assert light.apply_chat_template(messages, **more) == theirs.apply_chat_template(
            messages, tokenize=False, **more
        )


PARTS = [
    "{{ messages | tojson }}", "{{ messages[0] | tojson(indent=2) }}", "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}", "{{ strftime_now('%Y') }}", "{{ raise_exception('no') }}", "{{ messages[0].content.format(1) }}",
    "{% set ns = namespace(x=1) %}{% set ns.x = ns.x + 1 %}{{ ns.x }}", "{{ messages.append(1) }}", "{{ ''.__class__ }}", "{{ dict(a=1) | tojson }}",
    "  {% if true %}\n  x\n  {% endif %}\n", "{{ messages[0].nothing }}", "{{ messages[0]['reasoning_content'] }}", "{{ undefined_thing.x }}", "{{ eos_token }}{{ bos_token }}",
    "{{ documents is none }}{{ tools is none }}{{ add_generation_prompt }}", "{{ messages[0].content | trim | upper }}",
]  # fmt: skip


@given(parts=st.lists(st.sampled_from(PARTS), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_the_sandbox_is_that_of_transformers(parts):
    from transformers.utils import chat_template_utils

    theirs = families.tokenizer_of("llama3")
    light = Light.of(theirs)
    messages = [
        {"role": "user", "content": " é<&> ", "thinking": "t"},
        {"role": "assistant", "content": "b", "tool_calls": None},
    ]
    if not hasattr(chat_template_utils, "_REASONING_FIELDS"):
        # Older Transformers (5.17) neither call thoughts by both names nor leave out nulls.
        messages = [{key: m[key] for key in ("role", "content")} for m in messages]
    source = "".join(parts)
    mine, other = (
        outcome(t.apply_chat_template, messages, chat_template=source, tokenize=False)
        for t in (light, theirs)
    )
    assert mine == other


@pytest.mark.parametrize("name", NAMES)
def test_a_renderer_over_it_renders_the_same(name):
    theirs = families.tokenizer_of(name)
    ours, stock = Renderer(Light.of(theirs)), Renderer(theirs)
    assert (ours.stop_id, ours.stop_ids) == (stock.stop_id, stock.stop_ids)
    for found in ("refuses_system", "header"):
        assert getattr(ours.template, found) == getattr(stock.template, found)
    for chat in CHATS:
        messages = [Message(role, content) for role, content in chat]
        assert outcome(ours.render, messages) == outcome(stock.render, messages)
        assert outcome(ours.prompt, messages[:1]) == outcome(stock.prompt, messages[:1])
    assert ours.text("plain text") == stock.text("plain text")
    assert CannotRender


def test_reading_and_rendering_load_neither_torch_nor_transformers(tmp_path):
    saved(families.tokenizer_of("chatml"), tmp_path)
    code = (
        "import sys; from pathlib import Path; from tunewright.text.tokenizer import load_light; from tunewright.text.renderer import Renderer;"
        "from tunewright.core.types import Message as M; t, why = load_light(Path(sys.argv[1])); assert why is None;"
        "r = Renderer(t).render_many([([M('user', 'q'), M('assistant', 'a')], None)]); assert r[0].spans;"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr
