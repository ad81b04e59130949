"""What a request may ask for, read strictly: a field that is not known, or cannot be honoured, is
refused by name and never left out in silence."""

from __future__ import annotations

import json
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tunewright.core.types import Message
from tunewright.serve.refusals import Refused
from tunewright.text.thinking import CLOSE, OPEN

MOST_STOPS, MOST_BIASES = 16, 1024
IGNORED = frozenset(
    {"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)
"""Fields about the caller, which no answer depends on."""
DEFAULTS: dict[str, tuple[Any, ...]] = {
    "store": (None, False),
    "service_tier": (None, "auto", "default"),
    "modalities": (None, ["text"]),
    "suffix": (None, ""),
    "best_of": (None, 1),
    "functions": (None,),
    "function_call": (None,),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "verbosity": (None, "medium"),
    "repetition_penalty": (None, 1, 1.0),
    "min_p": (None, 0, 0.0),
}
"""Fields that change nothing at these values, and are refused at any other."""
Body = TypeVar("Body", bound="Common")


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class StreamOptions(_Strict):
    """`include_usage`: a last chunk with the counts of tokens."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class Common(_Strict):
    """What both kinds of requests take."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1)
    n: int | None = Field(None, ge=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    logit_bias: dict[str, float] | None = Field(None, max_length=MOST_BIASES)

    @property
    def stops(self) -> list[str]:
        """The texts before which an answer ends."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in given if text]

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def limit(self) -> int | None:
        """The most tokens of an answer."""
        return self.max_tokens

    def alternatives(self) -> int | None:
        """Likeliest tokens to tell beside each; None: no log-probabilities."""
        raise NotImplementedError

    def biases(self, vocabulary: int) -> dict[int, float]:
        """What is added to logits, by token. Raises Refused for what is no token."""
        found = {}
        for key, value in (self.logit_bias or {}).items():
            if not key.isascii() or not key.isdigit() or int(key) >= vocabulary:
                raise Refused("token", param="logit_bias", word=key[:40], most=vocabulary - 1)
            if not -100 <= value <= 100:
                raise Refused("bias", param="logit_bias", word=key)
            found[int(key)] = value
        return found


class Chat(Common):
    """A body of /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None

    @property
    def limit(self) -> int | None:
        """The most tokens of an answer, by either of its names."""
        given = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(given) > 1:
            raise Refused("both", param="max_tokens", one="max_completion_tokens")
        return given.pop() if given else None

    def alternatives(self) -> int | None:
        """As of `Common`."""
        if not self.logprobs:
            if self.top_logprobs:
                raise Refused("top_logprobs", param="top_logprobs")
            return None
        return self.top_logprobs or 0

    def think(self) -> bool | None:
        """Whether the template is asked with thinking; None: as it comes."""
        given = dict(self.chat_template_kwargs or {})
        asked = [given.pop(name) for name in ("enable_thinking", "thinking") if name in given]
        if given:
            raise Refused(
                "unknown",
                param="chat_template_kwargs",
                name=f"chat_template_kwargs.{next(iter(given))}",
            )
        if self.reasoning_effort is not None:
            if self.reasoning_effort != "none":
                raise Refused(
                    "value",
                    param="reasoning_effort",
                    name="reasoning_effort",
                    value=self.reasoning_effort[:40],
                    known="none",
                )
            asked.append(False)
        if any(not isinstance(one, bool) for one in asked) or len(set(asked)) > 1:
            raise Refused("type", param="chat_template_kwargs", name="enable_thinking")
        return asked[0] if asked else None

    def dialogue(self, system: str | None) -> list[Message]:
        """The messages; `system` stands first where they bring none. Raises Refused."""
        found = [_message(raw, i) for i, raw in enumerate(self.messages)]
        if system is not None and not any(one.role == "system" for one in found):
            found = [Message("system", system), *found]
        return found


class Completion(Common):
    """A body of /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]] = Field(min_length=1)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None

    def alternatives(self) -> int | None:
        """As of `Common`."""
        return self.logprobs

    def prompts(self) -> list[str | list[int]]:
        """Each prompt as text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(one, int) for one in self.prompt):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]


class Loading(_Strict):
    """A body of /v1/load_lora_adapter, as vLLM takes it."""

    lora_name: str = Field(min_length=1, max_length=200)
    lora_path: str = Field(min_length=1, max_length=4096)


class Unloading(_Strict):
    """A body of /v1/unload_lora_adapter."""

    lora_name: str = Field(min_length=1, max_length=200)
    lora_int_id: int | None = None


Model = TypeVar("Model", bound=BaseModel)


def parse(raw: bytes, kind: type[Model]) -> Model:
    """The body as `kind`. Raises Refused."""
    try:
        given = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused("json", reason=str(error)[:200]) from error
    if not isinstance(given, dict):
        raise Refused("object")
    try:
        json.dumps(given, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # half of a pair of surrogates
        raise Refused("unicode") from error
    known = kind.model_fields
    for name in [name for name in given if name not in known]:
        if name in IGNORED or (name in DEFAULTS and _plain(given[name]) in DEFAULTS[name]):
            del given[name]
        elif name in DEFAULTS:
            raise Refused("unsupported", param=name, code="unsupported_parameter", name=name)
        else:
            raise Refused("unknown", param=name[:80], code="unknown_parameter", name=name[:80])
    try:
        found = kind.model_validate(given)
    except (ValidationError, RecursionError) as error:
        raise _invalid(error) from error
    if isinstance(found, Common) and (
        len(found.stops) > MOST_STOPS or any(len(text) > 1000 for text in found.stops)
    ):
        raise Refused("stops", param="stop", most=MOST_STOPS)
    if isinstance(found, Common) and found.stream_options is not None and not found.stream:
        raise Refused("stream_options", param="stream_options")
    return found


def _plain(value: Any) -> Any:
    """A value to compare: True is not 1."""
    return value if not isinstance(value, bool) or value is False else "true"


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _invalid(error: ValidationError | RecursionError) -> Refused:
    if isinstance(error, RecursionError):
        return Refused("json", reason="nested too deeply")
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = [str(part) for part in first["loc"]]
    if first["type"] == "missing":
        return Refused("missing", param=where[0], name=".".join(where))
    if first["type"] == "extra_forbidden":
        return Refused("unknown", param=where[0], code="unknown_parameter", name=".".join(where))
    return Refused("field", param=where[0], name=where[0], reason=first["msg"])


ROLES = ("system", "developer", "user", "assistant", "tool")
_KNOWN = {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning"}
_EMPTY = {"refusal", "audio", "function_call", "annotations"}


def _message(raw: dict[str, Any], place: int) -> Message:
    where = f"messages[{place}]"
    role = raw.get("role")
    if role not in ROLES:
        raise Refused(
            "value", param=where, name=f"{where}.role", value=str(role)[:40], known=", ".join(ROLES)
        )
    for name in raw:
        if name in _EMPTY and not raw[name]:
            continue
        if name not in _KNOWN:
            raise Refused(
                "unknown", param=where, code="unknown_parameter", name=f"{where}.{name[:80]}"
            )
    content = _text(raw.get("content"), f"{where}.content")
    calls = _calls(raw.get("tool_calls"), f"{where}.tool_calls")
    if content is None and not calls:
        raise Refused("missing", param=where, name=f"{where}.content")
    content = content or ""
    thought = raw.get("reasoning_content") or raw.get("reasoning")
    if thought is not None and role == "assistant":
        if not isinstance(thought, str):
            raise Refused("type", param=where, name=f"{where}.reasoning_content")
        content = f"{OPEN}\n{thought.strip()}\n{CLOSE}\n\n{content}"
    for name in ("name", "tool_call_id"):
        if not isinstance(raw.get(name), str | None):
            raise Refused("type", param=where, name=f"{where}.{name}")
    return Message(
        "system" if role == "developer" else str(role),
        content,
        tool_calls=calls,
        name=raw.get("name"),
        tool_call_id=raw.get("tool_call_id"),
    )


def _text(content: Any, where: str) -> str | None:
    """Content as text: a string, or parts that are text."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Refused("type", param=where, name=where)
    found = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "refusal") or not isinstance(part.get(kind), str):
            raise Refused("part", param=where, code="unsupported_content", kind=str(kind)[:40])
        found.append(part[kind])
    return "\n".join(found)


def _calls(given: Any, where: str) -> list[dict[str, Any]] | None:
    """Tool calls of an earlier answer, arguments as objects, as templates take them."""
    if not given:
        return None
    try:
        found = []
        for call in given:
            arguments = call["function"]["arguments"]
            if isinstance(arguments, str):
                arguments = json.loads(arguments or "{}")
            if not isinstance(arguments, dict) or not isinstance(call["function"]["name"], str):
                raise TypeError
            function = {"name": call["function"]["name"], "arguments": arguments}
            found.append({**call, "type": "function", "function": function})
        return found
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise Refused("type", param=where, name=where) from error


def tools_of(body: Chat) -> tuple[list[dict[str, Any]] | None, str | None]:
    """(the tools that are offered, what must be called: None for nothing, "" for any, or a name).
    Raises Refused."""
    choice, tools = body.tool_choice, body.tools or None
    names = []
    for i, tool in enumerate(tools or []):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise Refused("type", param="tools", name=f"tools[{i}]")
        name, parameters = function.get("name"), function.get("parameters")
        if not isinstance(name, str) or not name or not isinstance(parameters, dict | None):
            raise Refused("type", param="tools", name=f"tools[{i}].function")
        names.append(name)
    must: Literal[""] | str | None = None
    if isinstance(choice, dict):
        named = choice.get("function")
        must = named.get("name") if isinstance(named, dict) else None
        if choice.get("type") != "function" or must not in names:
            raise Refused(
                "value",
                param="tool_choice",
                name="tool_choice",
                value=json.dumps(choice)[:80],
                known=", ".join(names) or "-",
            )
    elif choice == "required":
        must = ""
    elif choice not in (None, "auto", "none"):
        raise Refused(
            "value",
            param="tool_choice",
            name="tool_choice",
            value=choice[:40],
            known="none, auto, required",
        )
    if must is not None and not tools:
        raise Refused("no_tools", param="tool_choice")
    return (None if choice == "none" else tools), must
