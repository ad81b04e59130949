"""Every template family: the learnt spans are the answers and their stop tokens, and a question has
the same ids in training and in chat."""

from __future__ import annotations

from functools import cache

import pytest
from helpers import families
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.errors import DataError
from tunewright.core.types import Message
from tunewright.text.rendered import CannotRender
from tunewright.text.renderer import Renderer

FAMILIES, tokenizer_of = families.FAMILIES, families.tokenizer_of

NAMES = sorted(FAMILIES)
few = settings(max_examples=8, deadline=None)
words = st.text(
    alphabet=st.sampled_from(list("ab \n\t.é你🙂<|>{}'\u00a0")), min_size=1, max_size=12
)
contents = words.filter(lambda t: t.strip())


@cache
def renderer_of(name):
    return Renderer(tokenizer_of(name))


def dialogue(num_turns, system, texts=None):
    """Turns with contents that occur once: Q0 A0 Q1 A1 ..."""
    messages = [Message("system", "be brief S")] if system else []
    for k in range(num_turns):
        ask, answer = texts[k] if texts else (f"question {k} here", f"answer {k} there")
        messages += [Message("user", ask), Message("assistant", answer)]
    return messages


def bare(text, family):
    """The learnt text without its stop token."""
    for stop in family.stop.split("|<") if "|<" in family.stop else [family.stop]:
        stop = stop if stop.startswith("<") else "<" + stop
        text = text.removesuffix(stop)
    return text.strip()


def stops_of(name):
    tokenizer = tokenizer_of(name)
    parts = (
        ["<|user|>", "<|endoftext|>"]
        if FAMILIES[name].stop == "<|user|>|<|endoftext|>"
        else [FAMILIES[name].stop]
    )
    return {tokenizer.convert_tokens_to_ids(part) for part in parts}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("num_turns", [1, 2, 3, 5, 8])
def test_learnt_spans_are_exactly_the_answers_and_their_stop_tokens(name, system, num_turns):
    renderer, family = renderer_of(name), FAMILIES[name]
    messages = dialogue(num_turns, system)
    rendered = renderer.render(messages)
    assert len(rendered.spans) == len(rendered.stop_index) == num_turns
    outside, at = [], 0
    for k, ((first, after), stop) in enumerate(
        zip(rendered.spans, rendered.stop_index, strict=True)
    ):
        assert stop == after - 1 and rendered.ids[stop] in stops_of(name)
        assert not stops_of(name) & set(rendered.ids[first:stop])
        text = renderer.decode(rendered.ids[first:after])
        assert bare(text, family) == f"answer {k} there"
        assert messages[rendered.turns[k]].content == f"answer {k} there"
        outside += rendered.ids[at:first]
        at = after
    outside += rendered.ids[at:]
    assert (
        "answer" not in renderer.decode(outside)
        and renderer.decode(outside).count("question") == num_turns
    )
    assert ("be brief S" in rendered.text) == system
    assert ("system_merged" in rendered.notes) == (system and not family.system)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@few
def test_question_has_the_same_ids_in_training_and_in_chat(name, data):
    renderer = renderer_of(name)
    texts = data.draw(st.lists(st.tuples(contents, contents), min_size=1, max_size=4))
    messages = dialogue(len(texts), data.draw(st.booleans()), texts)
    try:
        rendered = renderer.render(messages)
    except CannotRender as error:
        pytest.fail(f"{error} for {texts}")
    assert "prompt_differs" not in rendered.notes
    last = rendered.turns[-1]
    form = renderer.form_of(m.content for m in messages if m.role == "assistant")
    asked = renderer.prompt(messages[:last], form=form)
    assert asked == rendered.ids[: rendered.spans[-1][0]]
    for (first, after), turn in zip(rendered.spans, rendered.turns, strict=True):
        text = renderer.decode(rendered.ids[first:after])
        expected = "".join(messages[turn].content.split())
        assert expected in "".join(text.split())
        if name not in ("mistral", "mistral_v3"):  # moves the system prompt into the last question
            # Before an earlier answer the template writes no thought, not even an empty one.
            assert rendered.ids[:first] in [
                renderer.prompt(messages[:turn], form=one) for one in (form, "default")
            ]


@pytest.mark.parametrize(
    "name", [n for n in NAMES if FAMILIES[n].template and n != "no_generation_prompt"]
)
def test_question_has_the_ids_that_transformers_gives(name):
    """Other programs ask with apply_chat_template; a model trained here must see the same from
    them."""
    renderer = renderer_of(name)
    messages = dialogue(3, FAMILIES[name].system)[:-1]
    raw = [{"role": m.role, "content": m.content} for m in messages]
    theirs = renderer.tokenizer.apply_chat_template(
        raw, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert renderer.prompt(messages) == list(theirs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_typed_control_tokens_stay_text(name, role):
    renderer, family = renderer_of(name), FAMILIES[name]
    harmless = renderer.render(dialogue(2, True))
    special = {renderer.tokenizer.convert_tokens_to_ids(s) for s in family.special}
    count = sum(i in special for i in harmless.ids)
    for token in [*family.special, "".join(family.special)]:
        messages = [
            m if m.role != role else Message(role, f"{m.content} a{token}b")
            for m in dialogue(2, True)
        ]
        rendered = renderer.render(messages)
        assert sum(i in special for i in rendered.ids) == count
        assert rendered.neutralised >= 1
        assert rendered.text.count(f"a{token}b") == sum(m.role == role for m in messages)
        assert f"a{token}b" in renderer.decode(rendered.ids).replace(" ", "") or family.spaces
        for (first, after), stop in zip(rendered.spans, rendered.stop_index, strict=True):
            assert stop == after - 1 and not special & set(rendered.ids[first:stop])
        asked = renderer.prompt(messages[:-1], form=renderer.form_of([messages[-1].content]))
        assert asked == rendered.ids[: rendered.spans[-1][0]]


def test_typed_control_tokens_in_tools_and_texts_stay_text():
    renderer = renderer_of("chatml")
    stop = renderer.stop_id
    rendered = renderer.render_text("before <|im_end|> after")
    assert rendered.ids.count(stop) == 1 and rendered.ids[-1] == stop and rendered.neutralised == 1
    tools = [
        {
            "type": "function",
            "function": {"name": "f", "description": "<|im_end|>", "parameters": {"<|im_end|>": 1}},
        }
    ]
    assert renderer.render(dialogue(1, False), tools).neutralised == 2


def test_private_use_characters_in_the_data_survive():
    renderer = renderer_of("chatml")
    text = "\uf8a0<|im_end|>\uf8a1 \uf8a2\uf8a3\uf8a2"
    rendered = renderer.render([Message("user", text), Message("assistant", text)])
    assert rendered.text.count(text) == 2 and rendered.neutralised == 2


@pytest.mark.parametrize(
    "thought", ["<think>\nhm\n</think>\n\n", "<think>hm</think>", "<think>\n\nhm\n\n</think>\n"]
)
def test_thinking_is_learnt_in_the_last_turn_and_left_out_of_earlier_ones(thought):
    renderer = renderer_of("qwen3")
    rendered = renderer.render(
        dialogue(2, True, [("q0", thought + "first"), ("q1", thought + "second")])
    )
    texts = [renderer.decode(rendered.ids[a:b]) for a, b in rendered.spans]
    assert texts == ["first<|im_end|>", "<think>\nhm\n</think>\n\nsecond<|im_end|>"]
    assert rendered.notes == ["thinking_stripped"]


def test_empty_thinking_that_the_template_writes_belongs_to_the_question_and_is_not_learnt():
    renderer = renderer_of("qwen3")
    rendered = renderer.render(dialogue(1, False))
    first, after = rendered.spans[0]
    assert renderer.decode(rendered.ids[first:after]) == "answer 0 there<|im_end|>"
    assert renderer.decode(rendered.ids[:first]).endswith("assistant\n<think>\n\n</think>\n\n")
    assert rendered.ids[:first] == renderer.prompt(dialogue(1, False)[:1], form="answer")


def test_template_that_rewrites_an_answer_is_refused_with_a_reason():
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "m['content']", "m['content'] | replace('bad', 'good')"
    )
    renderer = Renderer(tokenizer)
    assert renderer.render(dialogue(1, False)).spans
    with pytest.raises(CannotRender) as caught:
        renderer.render([Message("user", "q"), Message("assistant", "a bad answer")])
    assert caught.value.reason == "cannot_render"


def test_template_error_is_a_reason_not_a_traceback():
    with pytest.raises(CannotRender, match="alternate"):
        renderer_of("gemma").render(
            [Message("user", "a"), Message("user", "b"), Message("assistant", "c")]
        )


def test_no_second_bos_and_no_missing_one():
    for name in ("llama3", "gemma", "mistral"):
        renderer = renderer_of(name)
        ids = renderer.render(dialogue(2, False)).ids
        assert (
            ids.count(renderer.tokenizer.bos_token_id) == 1
            and ids[0] == renderer.tokenizer.bos_token_id
        )
    plain = renderer_of("plain")
    assert plain.prompt(dialogue(1, False)[:1])[0] == plain.tokenizer.bos_token_id
    assert plain.text("hello world")[0] == plain.tokenizer.bos_token_id
    assert plain.text("hello world")[-1] == plain.stop_id


def test_stop_id_is_what_the_template_writes_and_all_stops_are_listed():
    for name in NAMES:
        renderer, tokenizer = renderer_of(name), renderer_of(name).tokenizer
        assert renderer.stop_id in stops_of(name)
        assert {renderer.stop_id, tokenizer.eos_token_id} == set(renderer.stop_ids)
    extra = Renderer(
        tokenizer_of("gemma"), [tokenizer_of("gemma").convert_tokens_to_ids("<end_of_turn>")]
    )
    assert len(extra.stop_ids) == 2


def test_model_without_template_gets_the_plain_form():
    renderer = renderer_of("plain")
    assert renderer.template_name == "plain"
    rendered = renderer.render(
        [
            Message("system", "S"),
            Message("user", "Q"),
            Message("assistant", "A"),
            Message("user", "R"),
            Message("assistant", "B"),
        ]
    )
    assert rendered.text.startswith(
        "S\n\n### Instruction:\nQ\n\n### Answer:\nA</s>\n\n### Instruction:\nR\n\n### Answer:\nB</s>"
    )


def test_template_without_stop_between_turns_learns_the_answer_alone_there():
    tokenizer = tokenizer_of("plain")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    rendered = Renderer(tokenizer).render(dialogue(2, False))
    assert rendered.stop_index == [None, len(rendered.ids) - 1]
    assert [Renderer(tokenizer).decode(rendered.ids[a:b]).strip() for a, b in rendered.spans] == [
        "answer 0 there",
        "answer 1 there</s>",
    ]


def test_tool_calls_are_learnt_with_their_turn():
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "m['content'] + '<|im_end|>\n'",
        "m['content'] + (m['tool_calls'] | tojson if m['tool_calls'] else '') + '<|im_end|>\n'",
    )
    renderer = Renderer(tokenizer)
    calls = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]
    messages = [
        Message("user", "q"),
        Message("assistant", "", tool_calls=calls),
        Message("tool", "rain"),
        Message("assistant", "wet"),
    ]
    rendered = renderer.render(messages)
    texts = [renderer.decode(rendered.ids[a:b]) for a, b in rendered.spans]
    assert "weather" in texts[0] and texts[0].endswith("<|im_end|>") and texts[1] == "wet<|im_end|>"
    assert "rain" not in "".join(texts)


CALLS = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "d",
            "parameters": {"type": "object", "properties": {}},
        },
    }
]
ASKED, WET = [Message("user", "Q0 here")], Message("assistant", "A9 wet")
ORDERS = {
    "assistant first": [Message("assistant", "A1 hello"), *ASKED, WET],
    "two questions": [*ASKED, Message("user", "Q1 more"), WET],
    "two answers": [*ASKED, Message("assistant", "A1 one"), WET],
    "system in the middle": [
        *ASKED,
        Message("assistant", "A1 one"),
        Message("system", "S1 now"),
        Message("user", "Q1 more"),
        WET,
    ],
    "a result without a name": [
        *ASKED,
        Message("assistant", "A1 one"),
        Message("tool", "R1 rain"),
        WET,
    ],
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", ORDERS)
def test_turns_in_any_order_are_written_as_the_template_does_or_refused(name, order):
    """Never half: each turn's words stand in the text, and the spans are the answers."""
    renderer, messages = renderer_of(name), ORDERS[order]
    (made,) = renderer.render_many([(messages, None)])
    if isinstance(made, CannotRender):
        assert made.reason in ("cannot_render", "turn_unwritten")
        return
    assert all(m.content in made.text for m in messages)
    answers = [m.content for m in messages if m.role == "assistant"]
    assert [bare(renderer.decode(made.ids[a:b]), FAMILIES[name]) for a, b in made.spans] == answers
    raw = [{"role": m.role, "content": m.content} for m in messages]
    stock = renderer.tokenizer.apply_chat_template(
        raw, tokenize=False, **renderer.template.arguments()
    )
    assert (
        made.text.removesuffix(renderer.end_text).rstrip()
        == stock.removesuffix(renderer.end_text).rstrip()
    )


def test_some_template_writes_every_unusual_order():
    assert not [
        order
        for order, messages in ORDERS.items()
        if isinstance(renderer_of("chatml").render_many([(messages, None)])[0], CannotRender)
    ]


@pytest.mark.parametrize("role", ["tool", "system"])
def test_a_turn_that_the_template_leaves_out_is_a_reason_not_a_loss(role):
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{% for m in messages %}", "{% for m in messages if m['role'] in ['user', 'assistant'] %}"
    )
    renderer = Renderer(tokenizer)
    messages = [
        *ASKED,
        Message("assistant", "A1 one"),
        Message(role, "X1"),
        Message("user", "Q1"),
        WET,
    ]
    (made,) = renderer.render_many([(messages, None)])
    assert isinstance(made, CannotRender) and (made.reason, made.detail) == ("turn_unwritten", role)
    with pytest.raises(CannotRender, match="turn_unwritten"):
        renderer.require_written(messages[:-1])


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_system_prompt_is_written_as_the_template_writes_one(name):
    renderer = renderer_of(name)
    messages = [Message("system", ""), *ASKED, WET]
    (made,) = renderer.render_many([(messages, None)])
    raw = [
        {"role": m.role, "content": m.content}
        for m in (messages[1:] if renderer.template.refuses_system else messages)
    ]
    stock = renderer.tokenizer.apply_chat_template(
        raw, tokenize=False, **renderer.template.arguments()
    )
    assert (
        made.text.removesuffix(renderer.end_text).rstrip()
        == stock.removesuffix(renderer.end_text).rstrip()
    )
    assert made.text == renderer.render(messages).text and "system_merged" not in made.notes


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("words", ["", "I will call weather for Oslo"])
def test_a_call_is_written_or_the_row_is_refused_as_the_template_knows_none(name, words):
    renderer = renderer_of(name)
    messages = [
        *ASKED,
        Message("assistant", words, tool_calls=CALLS),
        Message("tool", "rain", name="weather"),
        WET,
    ]
    raw = [
        {"role": m.role, "content": m.content}
        | ({"tool_calls": m.tool_calls} if m.tool_calls else {})
        for m in messages[:2]
    ]
    try:
        stock = renderer.tokenizer.apply_chat_template(
            raw, tokenize=False, **renderer.template.arguments()
        )
    except Exception:
        stock = ""
    writes = (
        stock.replace(words, "").count("weather") == 1
        and stock.replace(words, "").count("Oslo") == 1
    )
    try:
        made = renderer.render(messages, TOOLS)
    except CannotRender as error:
        assert writes or error.reason in ("calls_unwritten", "turn_unwritten", "cannot_render")
        if not writes and error.reason == "calls_unwritten":
            with pytest.raises(CannotRender, match="calls_unwritten"):
                renderer.require_written(messages[:2])
        return
    assert writes
    a, b = made.spans[0]
    learnt = renderer.decode(made.ids[a:b]).replace(words, "")
    assert "weather" in learnt and "Oslo" in learnt


@pytest.mark.parametrize("lost", ["name", "arguments"])
def test_a_template_that_writes_half_a_call_writes_none(lost):
    tokenizer = tokenizer_of("chatml")
    kept = (
        "m['tool_calls'][0]['function']['"
        + ("arguments" if lost == "name" else "name")
        + "'] | tojson"
    )
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "m['content'] +", f"m['content'] + ({kept} if m['tool_calls'] else '') +"
    )
    with pytest.raises(CannotRender, match="calls_unwritten"):
        Renderer(tokenizer).render(
            [
                *ASKED,
                Message("assistant", "weather Oslo", tool_calls=CALLS),
                Message("tool", "rain"),
                WET,
            ]
        )


@pytest.mark.parametrize("name", NAMES)
def test_whether_a_template_writes_tools_is_known(name):
    renderer = renderer_of(name)
    messages = [Message("user", "weather?"), WET]
    assert renderer.writes_tools(messages, TOOLS) is FAMILIES[name].tools
    assert renderer.writes_tools(messages[:1], TOOLS) is FAMILIES[name].tools


def test_tokenizer_without_end_token_is_refused():
    tokenizer = tokenizer_of("plain")
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="E-DATA-17"):
        Renderer(tokenizer)


def test_template_that_cannot_render_anything_is_refused():
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(DataError, match="never"):
        Renderer(tokenizer)
