"""The chat template of an export: a program that knows nothing but the folder asks as the run was
asked, and nothing that was learnt is written otherwise."""

from __future__ import annotations

import pytest
from helpers import families

from tunewright.core.types import Message
from tunewright.engine.naming import renderer_of
from tunewright.text import asked_template
from tunewright.text.renderer import CannotRender
from tunewright.text.thinking import Thinking

QUESTION = [Message("user", "Hi 你好"), Message("assistant", "Yes."), Message("user", "2+2?")]
THOUGHT = "<think>\nhm so\n</think>\n\nb."
ROWS = [
    [Message("user", "a?"), Message("assistant", "b.")],
    [Message("user", "a?"), Message("assistant", THOUGHT)],
    [Message("system", "Be."), *QUESTION, Message("assistant", THOUGHT)],
]
HABITS = {"rows without thoughts": Thinking(habit=False), "rows with": Thinking(habit=True)}
HABITS |= {"no rows": Thinking(), "off": Thinking(mode="off")}


def exported(name, table, thinking):
    """(how the run is asked, the tokenizer of the folder)."""
    renderer = renderer_of(families.tokenizer_of(name, table), thinking=thinking)
    tokenizer = families.tokenizer_of(name, table)
    tokenizer.chat_template = asked_template.for_folder(renderer, tokenizer.chat_template)
    return renderer, tokenizer


def asked(tokenizer, **given):
    turns = [{"role": m.role, "content": m.content} for m in QUESTION]
    return list(
        tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False, **given)
    )


def written(renderer, row):
    try:
        rendered = renderer.render(row)
    except CannotRender as error:
        return error.reason
    return rendered.ids, rendered.spans


@pytest.mark.parametrize("habit", HABITS)
def test_transformers_asks_the_folder_of_any_family_as_the_run_was_asked(habit):
    for table in (families.FAMILIES, families.THINKING):
        for name in table:
            run, tokenizer = exported(name, table, HABITS[habit])
            assert asked(tokenizer) == run.prompt(QUESTION), name
            # A stage that goes on from the folder learns and asks what one on the run does.
            for thinking in (HABITS[habit], Thinking(asked=True), Thinking(asked=False)):
                before, after = (
                    renderer_of(t, thinking=thinking)
                    for t in (families.tokenizer_of(name, table), tokenizer)
                )
                assert before.thinks == after.thinks, name
                assert before.prompt(QUESTION) == after.prompt(QUESTION), name
                for row in ROWS:
                    assert written(before, row) == written(after, row), (name, thinking, row)


@pytest.mark.parametrize("name", ["qwen3", "r1_distill", "smollm3"])
def test_a_program_can_still_ask_with_thinking(name):
    run, tokenizer = exported(name, families.THINKING, Thinking(habit=False))
    own = renderer_of(families.tokenizer_of(name, families.THINKING), thinking=Thinking(asked=True))
    assert asked(tokenizer) == run.prompt(QUESTION)
    assert asked(tokenizer, enable_thinking=True) == own.prompt(QUESTION) != run.prompt(QUESTION)


def test_a_template_that_needs_nothing_is_left_alone():
    tokenizer = families.tokenizer_of("qwen3", families.THINKING)
    source = tokenizer.chat_template
    assert asked_template.for_folder(renderer_of(tokenizer), source) == source
    several = {"default": source, "tool_use": "x"}
    thinking = Thinking(habit=False)
    made = asked_template.for_folder(renderer_of(tokenizer, thinking=thinking), several)
    assert (
        made["tool_use"] == "x" and made["default"].endswith(source) and made["default"] != source
    )


def test_line_breaks_at_both_ends_of_a_template_stay_as_they_were_written():
    tokenizer = families.tokenizer_of("r1_distill", families.THINKING)
    tokenizer.chat_template = "\n" + tokenizer.chat_template + "\n"
    run = renderer_of(tokenizer, thinking=Thinking(habit=False))
    wanted = run.prompt(QUESTION)
    tokenizer.chat_template = asked_template.for_folder(run, tokenizer.chat_template)
    assert asked(tokenizer) == wanted
