"""The fast way against the slow way: the same text, ids, spans and reasons for every template
family, and no shape that could differ unseen."""

from __future__ import annotations

from functools import cache

import pytest
from helpers import families
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizer import NAMES

from tunewright.core.types import Message
from tunewright.text.fast.splicing import Splicer
from tunewright.text.rendered import CannotRender
from tunewright.text.renderer import Renderer
from tunewright.text.tokenizer import Light

FAST = {
    name for name in NAMES if name != "deepseek"
}  # whose question depends on the answer: its rows always take the slow way
words = st.text(
    alphabet=st.sampled_from(list("ab \n\t.é你🙂<|>{}'\u00a0\uf8a0")), min_size=1, max_size=12
).filter(lambda t: t.strip())
contents = words | st.sampled_from(
    ["</think>x", "<think>a</think>b", " <|im_end|>", "</s>", "hello world", "[INST]", "x\n\n"]
)


@cache
def renderer_of(name):
    return Renderer(families.tokenizer_of(name))


def slowly(renderer, messages, tools=None):
    try:
        return renderer.render(messages, tools)
    except CannotRender as error:
        return str(error)


def quickly(renderer, dialogues):
    return [
        str(one) if isinstance(one, CannotRender) else one
        for one in renderer.render_many(dialogues)
    ]


def splicer_of(template, name="chatml"):
    tokenizer = families.tokenizer_of(name)
    tokenizer.chat_template = template
    renderer = Renderer(tokenizer)
    return renderer, Splicer(renderer, Light.of(tokenizer))


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_both_ways_agree_on_every_family(name, data):
    renderer = renderer_of(name)
    dialogues = []
    for turns in data.draw(
        st.lists(
            st.lists(st.tuples(contents, contents), min_size=1, max_size=8), min_size=1, max_size=5
        )
    ):
        messages = [Message("system", data.draw(contents))] if data.draw(st.booleans()) else []
        messages += [
            m for ask, answer in turns for m in (Message("user", ask), Message("assistant", answer))
        ]
        dialogues.append((messages, None))
    assert quickly(renderer, dialogues) == [slowly(renderer, *one) for one in dialogues]


@pytest.mark.parametrize("name", sorted(FAST))
@pytest.mark.parametrize("system", [False, True])
def test_ordinary_dialogues_take_the_fast_way(name, system):
    messages = ([Message("system", "s")] if system else []) + [
        Message("user", "question"),
        Message("assistant", "answer"),
    ]
    renderer = renderer_of(name)
    renderer.render_many([])
    (made,) = renderer._splicer.splice([messages])
    assert made is not None and made.ids == renderer.render(messages).ids


@pytest.mark.parametrize("name", NAMES)
def test_tools_and_names_agree_too(name):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    calls = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
    dialogue = [
        Message("user", "q"),
        Message("assistant", "", tool_calls=calls),
        Message("tool", "r", name="f"),
        Message("assistant", "a"),
    ]
    renderer = renderer_of(name)
    asked = [
        (dialogue, tools),
        (dialogue[:1] + dialogue[3:], tools),
        ([Message("user", "q", name="n"), dialogue[3]], None),
    ]
    assert quickly(renderer, asked) == [slowly(renderer, *one) for one in asked]


TURN = "{{ '<|im_start|>' + m.role + '\n' + CONTENT + '<|im_end|>\n' }}"
WHOLE = (
    "{% for m in messages %}"
    + TURN
    + "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OPAQUE = [
    "m.content | upper", "m.content[:3]", "m.content | replace('a', m.content)", "m.content.split('a') | join('b')", "(m.content | length) | string",
    "('%s%s' % (m.content, ''))", "m.content | tojson", "'{}'.format(m.content)", "('x' in m.content and 'y' or m.content)",
    "('x' if m.content in 'abcxyz' else m.content)", "(m.content + m.content).strip()", "(m.content ~ ' ').rstrip()", "m.content | title",
    "m.content | list | join", "(m.content if m.content > 'b' else 'c')", "{'a': m.content}[('a')] | capitalize", "m.content.replace('a', 'b')",
    "m.content | indent", "m.content.encode().decode() if false else m.content.swapcase()", "('-'.join([m.content, m.content]))",
    "(m.content | string | safe).lower()", "m.content * 2",
]  # fmt: skip


@pytest.mark.parametrize("expression", OPAQUE)
@given(texts=st.lists(st.tuples(contents, contents), min_size=1, max_size=3))
@settings(max_examples=10, deadline=None)
def test_templates_that_work_on_a_content_are_never_spliced_wrongly(expression, texts):
    try:
        renderer, splicer = splicer_of(WHOLE.replace("CONTENT", f"({expression})"))
    except Exception:  # a template that cannot render x and y is refused before
        return
    dialogues = [
        [m for ask, answer in texts for m in (Message("user", ask), Message("assistant", answer))]
    ]
    for messages, made in zip(dialogues, splicer.splice(dialogues), strict=True):
        if made is not None:
            slow = renderer.render(messages)
            assert (made.text, made.ids, made.spans) == (slow.text, slow.ids, slow.spans)


CONDITIONAL = [
    "(m.content if '</think>' not in m.content else m.content.split('</think>')[-1])", "(m.content if m.content != 'ab' else 'ba')",
    "('!' + m.content if m.content.startswith('a') else m.content)", "(m.content.lstrip('\n') if m.content.endswith('.') else m.content)",
    "m.content.split('</think>')[-1]", "m.content.replace('🙂', ':)')", "m.content or 'nothing'", "m.content | trim | trim('\n')",
]  # fmt: skip


@pytest.mark.parametrize("expression", CONDITIONAL)
@given(texts=st.lists(st.tuples(contents, contents), min_size=1, max_size=4))
@settings(max_examples=15, deadline=None)
def test_questions_about_a_content_become_conditions_of_the_row(expression, texts):
    renderer, splicer = splicer_of(WHOLE.replace("CONTENT", expression))
    plain = [Message("user", "q"), Message("assistant", "plain")]
    assert splicer.splice([plain])[0] is not None
    messages = [
        m for ask, answer in texts for m in (Message("user", ask), Message("assistant", answer))
    ]
    (made,) = splicer.splice([messages])
    if made is not None:
        slow = renderer.render(messages)
        assert (made.text, made.ids, made.spans) == (slow.text, slow.ids, slow.spans)


@pytest.mark.parametrize("source", [
    "{% macro w(t) %}[{{ t }}]{% endmacro %}" + WHOLE.replace("CONTENT", "w(m.content)"),
    "{% for m in messages %}{% set t %}<{{ m.content }}>{% endset %}" + TURN.replace("CONTENT", "t") + "{% endfor %}",
    WHOLE.replace("CONTENT", "(m.content if loop.last else m.content | trim)"),
    WHOLE.replace("CONTENT", "('' ~ m.content)"),
    WHOLE.replace("CONTENT", "(' ' + m.content if messages[0].content == m.content else m.content)"),
])  # fmt: skip
@given(texts=st.lists(st.tuples(contents, contents), min_size=1, max_size=3))
@settings(max_examples=10, deadline=None)
def test_texts_that_are_put_together_first_stay_exact(source, texts):
    try:
        renderer, splicer = splicer_of(source)
    except Exception:
        return
    messages = [
        m for ask, answer in texts for m in (Message("user", ask), Message("assistant", answer))
    ]
    (made,) = splicer.splice([messages])
    if made is not None:
        slow = renderer.render(messages)
        assert (made.text, made.ids, made.spans) == (slow.text, slow.ids, slow.spans)


def test_control_tokens_that_overlap_are_no_places_to_cut():
    from tokenizers import AddedToken

    tokenizer = families.tokenizer_of("chatml")
    tokenizer.backend_tokenizer.add_tokens(
        [
            AddedToken("\n<|im_start|>", normalized=False),
            AddedToken("<|im_end|>x", normalized=False),
        ]
    )
    renderer = Renderer(tokenizer)
    renderer.render_many([])
    assert (
        not {"<|im_start|>", "<|im_end|>"} & renderer._splicer._splits.keys()
        and "<|endoftext|>" in renderer._splicer._splits
    )
    messages = [Message("user", "q"), Message("assistant", "a")]
    assert quickly(renderer, [(messages, None)]) == [slowly(renderer, messages)]


def test_an_answer_whose_tokens_spell_something_else_is_left_to_the_slow_way():
    """Ids that nobody has proven are compared with their text, and refused where they are
    another's."""

    class Wrong:
        proves = False

        def ids(self, text):
            found = list(splicer.backend.encode(text, add_special_tokens=False).ids)
            return found[:-1] + [other] if "tea" in text else found

    renderer = renderer_of("chatml")
    splicer = Splicer(renderer, Light.of(renderer.tokenizer))
    other = splicer.backend.encode("x", add_special_tokens=False).ids[-1]
    good = [Message("user", "What do you drink?"), Message("assistant", "water")]
    bad = [Message("user", "What do you drink?"), Message("assistant", "green tea")]
    assert all(one is not None for one in splicer.splice([good, bad]))
    splicer._plans.clear()
    splicer._words = Wrong()
    found = splicer.splice([good, bad])
    assert found[0] is not None and found[1] is None
