"""Answers in the shapes that OpenAI's clients read: whole, and as chunks of a stream."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from tunewright.core.version import __version__
from tunewright.engine.decoding.batch import Score
from tunewright.serve.generation import Ended, Said
from tunewright.serve.pool import Served


def usage(prompt: int, written: int) -> dict[str, int]:
    """Counts of tokens."""
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def calls_of(calls: list[dict[str, Any]], *, streamed: bool = False) -> list[dict[str, Any]]:
    """Calls of tools, with an id of their own."""
    return [
        {
            **({"index": i} if streamed else {}),
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {
                "name": call["name"],
                "arguments": json.dumps(call["arguments"], ensure_ascii=False),
            },
        }
        for i, call in enumerate(calls)
    ]


class Spelling:
    """Tokens as text and bytes, for log-probabilities."""

    def __init__(self, served: Served) -> None:
        self.served = served

    def text(self, token: int) -> str:
        """A token as text, control tokens shown."""
        with self.served.words:
            return str(self.served.model.tokenizer.decode([token], skip_special_tokens=False))

    def entry(self, token: int, logprob: float) -> dict[str, Any]:
        """A token as chat completions show it."""
        text = self.text(token)
        return {"token": text, "logprob": _finite(logprob), "bytes": self._bytes(token, text)}

    def _bytes(self, token: int, text: str) -> list[int]:
        """The bytes of a token; part of a character where it is no more than that."""
        if "\ufffd" in text:
            piece = str(self.served.model.tokenizer.convert_ids_to_tokens(token))
            if piece.startswith("<0x") and piece.endswith(">") and len(piece) == 6:
                return [int(piece[3:5], 16)]
            if all(letter in _BYTES for letter in piece):
                return [_BYTES[letter] for letter in piece]
        return list(text.encode("utf-8", "replace"))

    def chat(self, tokens: list[tuple[int, Score]]) -> dict[str, Any]:
        """`logprobs` of a chat completion."""
        content = [
            self.entry(token, score.logprob)
            | {"top_logprobs": [self.entry(t, value) for t, value in score.likeliest]}
            for token, score in tokens
        ]
        return {"content": content, "refusal": None}

    def completion(self, tokens: list[tuple[int, Score]], offset: int) -> dict[str, Any]:
        """`logprobs` of a completion, whose text so far has `offset` characters."""
        words, offsets = [self.text(token) for token, _ in tokens], []
        for word in words:
            offsets.append(offset)
            offset += len(word)
        return {
            "tokens": words,
            "token_logprobs": [_finite(score.logprob) for _, score in tokens],
            "top_logprobs": [
                {self.text(t): _finite(value) for t, value in score.likeliest}
                | {word: _finite(score.logprob)}
                for word, (_, score) in zip(words, tokens, strict=True)
            ],
            "text_offset": offsets,
        }


def _finite(value: float) -> float:
    """A log-probability that JSON can hold."""
    return max(value, -9999.0)


def _byte_letters() -> dict[str, int]:
    """The letter that byte-level tokenizers write for each byte (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    found = {chr(byte): byte for byte in plain}
    others = [byte for byte in range(256) if byte not in plain]
    return found | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_letters()


@dataclass
class Choice:
    """An answer that is put together from what was said."""

    index: int
    thought: str = ""
    text: str = ""
    tokens: list[tuple[int, Score]] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    reason: str = "stop"
    count: int = 0

    def add(self, event: Said | Ended) -> None:
        """Take up a piece of the answer, or its end."""
        self.tokens += event.tokens
        if isinstance(event, Ended):
            self.reason, self.count, self.calls = event.reason, event.count, event.calls
        elif event.kind == "thought":
            self.thought += event.text
        else:
            self.text += event.text

    @property
    def finish(self) -> str:
        """`finish_reason`."""
        return "tool_calls" if self.calls else self.reason


class Reply:
    """One reply in OpenAI's shapes. `chat`: of /v1/chat/completions, else of /v1/completions."""

    def __init__(self, served: Served, *, chat: bool, logprobs: bool) -> None:
        self.served, self.chat, self.logprobs = served, chat, logprobs
        self.spelling = Spelling(served)
        prefix = "chatcmpl-" if chat else "cmpl-"
        self.head: dict[str, Any] = {
            "id": prefix + secrets.token_hex(12),
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": f"tunewright-{__version__}-{served.opened.world.dtype}",
        }
        self.offsets: dict[int, int] = {}

    def whole(self, choices: list[Choice], prompt: int) -> dict[str, Any]:
        """The reply that is not streamed."""
        return self.head | {
            "choices": [self._choice(choice) for choice in choices],
            "usage": usage(prompt, sum(choice.count for choice in choices)),
        }

    def _choice(self, choice: Choice) -> dict[str, Any]:
        found: dict[str, Any] = {"index": choice.index, "finish_reason": choice.finish}
        if not self.chat:
            shown = self.spelling.completion(choice.tokens, 0) if self.logprobs else None
            return found | {"text": choice.text, "logprobs": shown}
        message: dict[str, Any] = {
            "role": "assistant",
            "content": choice.text if choice.text or not choice.calls else None,
            "refusal": None,
        }
        if choice.thought:
            message["reasoning_content"] = choice.thought
        if choice.calls:
            message["tool_calls"] = calls_of(choice.calls)
        shown = self.spelling.chat(choice.tokens) if self.logprobs else None
        return found | {"message": message, "logprobs": shown}

    # ---- streamed

    def begin(self, index: int) -> dict[str, Any]:
        """The chunk that opens an answer of a chat."""
        return self._chunk(index, {"delta": {"role": "assistant", "content": ""}})

    def piece(self, index: int, kind: str, text: str, tokens: list[tuple[int, Score]]) -> Any:
        """The chunk of a piece."""
        if self.chat:
            name = "reasoning_content" if kind == "thought" else "content"
            shown = self.spelling.chat(tokens) if self.logprobs else None
            return self._chunk(index, {"delta": {name: text}, "logprobs": shown})
        shown = None
        if self.logprobs:
            shown = self.spelling.completion(tokens, self.offsets.get(index, 0))
        self.offsets[index] = self.offsets.get(index, 0) + len(text)
        return self._chunk(index, {"text": text, "logprobs": shown})

    def end(self, event: Ended) -> list[dict[str, Any]]:
        """The chunks that close an answer."""
        found = []
        if event.tokens and self.logprobs:
            found.append(self.piece(event.index, "text", "", event.tokens))
        if event.calls:
            calls = calls_of(event.calls, streamed=True)
            found.append(self._chunk(event.index, {"delta": {"tool_calls": calls}}))
        reason = "tool_calls" if event.calls else event.reason
        last: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
        found.append(self._chunk(event.index, {**last, "finish_reason": reason}))
        return found

    def counts(self, prompt: int, written: int) -> dict[str, Any]:
        """The chunk with the counts of tokens."""
        return self._headed([]) | {"usage": usage(prompt, written)}

    def _chunk(self, index: int, choice: dict[str, Any]) -> dict[str, Any]:
        return self._headed([{"index": index, "logprobs": None, "finish_reason": None} | choice])

    def _headed(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        name = "chat.completion.chunk" if self.chat else "text_completion"
        return self.head | {"object": name, "choices": choices}
