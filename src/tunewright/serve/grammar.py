"""Answers in a form that is asked for: JSON, or JSON of a schema, by `llguidance` (extra `serve`).

A grammar says at every token which ones may follow; all others are barred. The answer ends where
the form is complete.
"""

from __future__ import annotations

import json
from typing import Any

import numpy
import torch
from torch import Tensor

from tunewright.core.errors import UsageError, problem
from tunewright.serve.pool import Served
from tunewright.serve.refusals import Refused

COMPACT: Any = {"whitespace_flexible": False}
"""JSON without free white space, in which small models lose themselves."""
LONGEST_SCHEMA = 256 * 1024
"""Characters of a schema."""


class Form:
    """The form of one answer while it is written."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self.matcher = matcher
        self.mask = numpy.zeros((vocabulary + 31) // 32, dtype=numpy.int32)

    def another(self) -> Form:
        """The same form for another answer, from its beginning."""
        return Form(self.matcher.deep_copy(), 32 * len(self.mask))

    def bar(self, z_V: Tensor) -> None:
        """Bar every token that may not follow. Raises ValueError where the form has an error."""
        self.matcher.unsafe_compute_mask_ptr(self.mask.ctypes.data, self.mask.nbytes)
        if self.matcher.is_error():
            raise ValueError(self.matcher.get_error())
        bits = numpy.unpackbits(self.mask.view(numpy.uint8), bitorder="little")
        allowed = torch.from_numpy(bits).to(z_V.device, torch.bool)
        n = min(len(allowed), len(z_V))
        z_V[n:] = -torch.inf
        z_V[:n].masked_fill_(~allowed[:n], -torch.inf)

    def take(self, token: int) -> bool:
        """Whether the answer goes on after `token`."""
        self.matcher.consume_token(token)
        return not (self.matcher.is_stopped() or self.matcher.is_error())


def form_of(served: Served, schema: dict[str, Any], param: str) -> Form:
    """The form of JSON that `schema` describes. Raises Refused for a schema that is none, or too
    large, and UsageError where llguidance is missing."""
    try:
        import llguidance
        import llguidance.hf
    except ImportError as error:
        raise UsageError(
            problem("E-SERVE-02", "response_format", module="llguidance", extra="serve")
        ) from error
    with served.words:
        if served.grammars is None:
            tokenizer = served.model.tokenizer
            rows = max(len(tokenizer), int(served.model.causal.config.get_text_config().vocab_size))
            try:
                served.grammars = llguidance.hf.from_tokenizer(
                    tokenizer, n_vocab=rows, eos_token=served.model.stop_ids
                )
            except (ValueError, TypeError) as error:
                reason = str(error)[:200]
                raise Refused("no_grammar", param=param, reason=reason) from error
    text = json.dumps(schema)
    if len(text) > LONGEST_SCHEMA:
        raise Refused("schema", param=param, reason=f"> {LONGEST_SCHEMA:,}")
    try:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(text, defaults=COMPACT)
        matcher = llguidance.LLMatcher(served.grammars, grammar, log_level=0)
        wrong = matcher.get_error() if matcher.is_error() else ""
    except (ValueError, TypeError) as error:
        wrong = str(error)
    if wrong:
        raise Refused("schema", param=param, reason=wrong.splitlines()[0][:300])
    return Form(matcher, served.grammars.vocab_size)


def schema_of(given: dict[str, Any] | None) -> dict[str, Any] | None:
    """The schema that a `response_format` asks for; None for plain text. Raises Refused."""
    if given is None or given == {"type": "text"}:
        return None
    kind = given.get("type")
    if kind == "json_object" and set(given) == {"type"}:
        return {"type": "object"}
    if kind == "json_schema" and isinstance(given.get("json_schema"), dict):
        schema = given["json_schema"].get("schema")
        if isinstance(schema, dict):
            return schema
    raise Refused(
        "value",
        param="response_format",
        name="response_format",
        value=json.dumps(given)[:80],
        known="text, json_object, json_schema",
    )


def schema_of_calls(tools: list[dict[str, Any]], must: str) -> dict[str, Any]:
    """The schema of a call of one of `tools`; `must` names the one, "" any of them."""
    forms = []
    for tool in tools:
        name = tool["function"]["name"]
        if must in ("", name):
            arguments = tool["function"].get("parameters") or {"type": "object"}
            forms.append(
                {
                    "type": "object",
                    "properties": {"name": {"const": name}, "arguments": arguments},
                    "required": ["name", "arguments"],
                    "additionalProperties": False,
                }
            )
    return forms[0] if len(forms) == 1 else {"anyOf": forms}
