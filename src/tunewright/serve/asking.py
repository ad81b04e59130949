"""From what a request says to what the generator is asked: prompts, rooms, sampling, forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunewright.core.errors import UsageError
from tunewright.core.telling import silent
from tunewright.core.types import Message
from tunewright.engine.decoding.drawing import Sampling
from tunewright.serve.generation import Wanted
from tunewright.serve.grammar import Form, form_of, schema_of, schema_of_calls
from tunewright.serve.pool import Served
from tunewright.serve.refusals import Refused
from tunewright.serve.requests import Chat, Common, Completion, tools_of
from tunewright.text import thinking
from tunewright.text.rendered import CannotRender
from tunewright.text.thinking import Form as Asked

USUAL_TOKENS = 1024
"""Most tokens of an answer to a request that names no limit."""
TAIL = 24
"""Tokens at the end of a question in which an opened thought would stand."""


@dataclass(frozen=True)
class Limits:
    """What a request may take."""

    body_bytes: int = 8 * 2**20
    waiting: int = 256
    """Requests that wait or are answered at a time."""
    rows: int = 64
    """Answers that are written at a time."""
    seconds: float = 600.0
    """From a request to the end of its answer."""
    body_seconds: float = 30.0
    """Until a request is there as a whole."""
    tokens: int | None = None
    """Most tokens of an answer; None: what the context holds."""
    temperature: float = 1.0
    """Where a request names none."""


def of_chat(served: Served, body: Chat, limits: Limits) -> Wanted:
    """What a chat request asks of the generator. Raises Refused."""
    renderer = served.model.renderer
    schema, (tools, must) = schema_of(body.response_format), tools_of(body)
    param = "response_format"
    if must is not None and schema is not None:
        raise Refused("form_and_tools", param="tool_choice")
    if must is not None:
        schema, param = schema_of_calls(tools or [], must), "tool_choice"
    messages = body.dialogue(served.system)
    try:
        if tools and not renderer.writes_tools(messages, tools):
            raise Refused("template_tools", param="tools", code="unsupported_parameter")
        prompt = renderer.prompt(messages, tools, _asked(served, body, messages, schema))
    except CannotRender as error:
        reason = (error.detail or str(error))[:300]
        raise Refused("render", param="messages", reason=reason) from error
    opened = thinking.ends_open(renderer.decode(prompt[-TAIL:]))
    try:
        form = form_of(served, schema, param) if schema is not None else None
    except UsageError as error:  # a library is missing here
        reason = error.problems[0].what()
        raise Refused("no_grammar", 501, param=param, reason=reason) from error
    return _wanted(
        served,
        body,
        prompt,
        limits,
        form,
        opened=opened,
        tools=frozenset(tool["function"]["name"] for tool in tools or []),
        one_call=body.parallel_tool_calls is False or must is not None,
    )


def _asked(served: Served, body: Chat, messages: list[Message], schema: object) -> Asked:
    """The form in which the template is asked. What has a form is answered at once."""
    renderer, think = served.model.renderer, body.think()
    if think and (schema is not None or not renderer.thinks):
        raise Refused("think", param="chat_template_kwargs", code="unsupported_parameter")
    if not renderer.thinks:
        return "default"
    if think is None and schema is None:
        form: Asked = renderer.form_of(None)
        return form
    return "thinking" if think else "answer"


def of_completion(served: Served, body: Completion, limits: Limits) -> list[tuple[Wanted, str]]:
    """What a completion asks, prompt by prompt, and what is said again before each answer. Raises
    Refused."""
    tokenizer = served.model.tokenizer
    if body.echo and body.logprobs is not None:
        raise Refused("echo", param="echo", code="unsupported_parameter")
    rows = int(served.model.causal.get_input_embeddings().weight.shape[0])
    found = []
    for given in body.prompts():
        if isinstance(given, str):
            with silent():
                ids = list(tokenizer(given)["input_ids"])
        else:
            ids = list(given)
            if any(not 0 <= token < rows for token in ids):
                raise Refused("token", param="prompt", word="-", most=rows - 1)
        if not ids:
            raise Refused("no_prompt", param="prompt")
        before = ""
        if body.echo:
            before = given if isinstance(given, str) else str(tokenizer.decode(ids))
        found.append((_wanted(served, body, ids, limits, None, bare=True), before))
    return found


def _wanted(
    served: Served, body: Common, prompt: list[int], limits: Limits, form: Form | None, **more: Any
) -> Wanted:
    n, asked = body.n or 1, body.limit
    if n > limits.rows:
        raise Refused("n", param="n", most=limits.rows)
    room, context = served.model.room(len(prompt)), served.context
    if room == 0:
        raise Refused(
            "context",
            param="messages",
            code="context_length_exceeded",
            tokens=len(prompt),
            context=context,
        )
    most = [one for one in (room, limits.tokens) if one is not None]
    if asked is not None and most and asked > min(most):
        raise Refused(
            "max_tokens",
            param="max_tokens",
            code="context_length_exceeded" if asked > (room or asked) else "max_tokens_too_large",
            asked=asked,
            most=min(most),
            tokens=len(prompt),
            context=context or "-",
        )
    temperature = limits.temperature if body.temperature is None else body.temperature
    top_k = body.top_k if body.top_k is not None and body.top_k > 0 else 0
    rows = int(served.model.causal.get_input_embeddings().weight.shape[0])
    return Wanted(
        prompt,
        asked if asked is not None else min([*most, USUAL_TOKENS]),
        n,
        Sampling(temperature, 1.0 if body.top_p is None else body.top_p, top_k),
        body.seed,
        body.stops,
        body.alternatives(),
        body.biases(rows),
        body.presence_penalty or 0.0,
        body.frequency_penalty or 0.0,
        form,
        **more,
    )
