"""Ollama's Modelfile: a template in its language that gives the same text as the model's own.

A chat template is a program, and is not translated. It is asked for a few dialogues with marked
contents, and what stands between the marks is what Ollama must write there. The template that comes
of it is then read back from the Modelfile, run by the small interpreter below, which knows the
actions that are written here and no other, and compared with the model's own for dialogues of every
kind. Where one text differs, nothing is written. Source: Ollama's docs/modelfile.md, Go's
text/template.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from tunewright.core.errors import TunewrightError, UsageError
from tunewright.core.types import Message
from tunewright.export.gguf_proof import prompt_text
from tunewright.export.proof import shown
from tunewright.text.rendered import CannotRender

MARKS = ("qxsystemqx", "qxfirstqx", "qxanswerqx", "qxsecondqx")
"""Contents that no template writes by itself."""
QUOTES = '"""'


@dataclass(frozen=True)
class Pieces:
    """What a template writes around contents. The cuts between two turns are where it helps: only
    what they make together counts."""

    default: str
    """Before the first question where nobody gave a system prompt."""
    before_system: str
    after_system: str
    before_user: str
    after_user: str
    """Behind a question that has been answered."""
    asks: str
    """Behind the last question: the answer begins."""
    after_answer: str
    system_is_last: bool = False
    """The system prompt stands in the last question, wherever it was given."""


def pieces_of(renderer: Any, bos: str | None) -> Pieces:
    """The pieces of a renderer's template, without the first token `bos`, which Ollama writes
    itself. Raises UsageError (E-EXPORT-44) for a template that has none."""
    system, first, answer, second = MARKS
    alone = _text(renderer, bos, [("user", first)])
    told = _text(renderer, bos, [("system", system), ("user", first)])
    turns = [("user", first), ("assistant", answer), ("user", second)]
    whole = _text(renderer, bos, turns)
    try:
        start, asks = _between(alone, first)
        before_system, rest = _between(told, system)
        after_system, _ = _between(rest, first)
        _, rest = _between(whole, first)
        after_user, rest = _between(rest, answer)
        after_answer, _ = _between(rest, second)
    except ValueError as e:
        raise UsageError.of("E-EXPORT-44", "", reason=str(e)) from e
    longer = _text(renderer, bos, [("system", system), *turns])
    if longer.find(system) > longer.find(answer) and before_system == start:
        return Pieces(start, "", after_system, "", after_user, asks, after_answer, True)
    shared = _common_end(_common_end(start, after_system), after_answer)
    # A turn begins at its last control token: the same text, cut where a reader expects it.
    begins = max((shared.rfind(token) for token in renderer.control), default=-1)
    shared = shared[max(begins, 0) :]

    def cut(text: str) -> str:
        return text[: len(text) - len(shared)]

    return Pieces(
        cut(start), before_system, cut(after_system), shared, after_user, asks, cut(after_answer)
    )


def _text(renderer: Any, bos: str | None, turns: list[tuple[str, str]]) -> str:
    try:
        text = prompt_text(renderer, [Message(role, content) for role, content in turns])
    except (CannotRender, TunewrightError) as e:
        raise UsageError.of("E-EXPORT-44", "", reason=str(e)) from e
    return text.removeprefix(bos) if bos else text


def _between(text: str, mark: str) -> tuple[str, str]:
    """What stands before and behind a mark. Raises ValueError unless it stands once."""
    if text.count(mark) != 1:
        raise ValueError(f"a content stands {text.count(mark)} times in {shown(text)}")
    before, _, after = text.partition(mark)
    return before, after


def _common_end(one: str, other: str) -> str:
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return one[len(one) - count :]


# ---- Go's text/template


def go_template(pieces: Pieces) -> str:
    """The template in Go's language; no marker trims white space, so every character counts."""
    said = {name: _literal(text) for name, text in vars(pieces).items() if isinstance(text, str)}
    asks, after = said["asks"], said["after_user"]
    tail = asks if asks == after else "{{ if $last }}" + asks + "{{ else }}" + after + "{{ end }}"
    told = said["before_system"] + "{{ .Content }}" + said["after_system"]
    start, inside = "{{ if not .System }}" + said["default"] + "{{ end }}", ""
    if pieces.system_is_last:
        start, told = said["default"], ""
        last = "{{ if and $last $.System }}{{ $.System }}"
        inside = last + said["after_system"] + "{{ end }}"
    return "".join(
        [
            start,
            "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}",
            '{{ if eq .Role "system" }}' + told,
            '{{ else if eq .Role "user" }}'
            + said["before_user"]
            + inside
            + "{{ .Content }}"
            + tail,
            '{{ else if eq .Role "assistant" }}{{ .Content }}',
            "{{ if not $last }}" + said["after_answer"] + "{{ end }}{{ end }}{{ end }}",
        ]
    )


def _literal(text: str) -> str:
    """Text as it stands in a template: braces of Go and quotes of the Modelfile as strings."""
    return re.sub(r'\{\{|"""', lambda m: "{{ " + json.dumps(m[0]) + " }}", text)


ACTION = re.compile(r"\{\{ (.*?) \}\}")


def run_template(source: str, messages: list[Message]) -> str:
    """What Go makes of a template of `go_template`: an interpreter of the actions that stand there.
    Raises ValueError for any other."""
    parts = ACTION.split(source)
    tree, rest = _parse(parts)
    if rest:
        raise ValueError(f"{rest[0]!r} closes nothing")
    system = "\n\n".join(m.content for m in messages if m.role == "system")
    return _render(tree, {"System": system, "Messages": messages})


def _parse(parts: list[str]) -> tuple[list[Any], list[str]]:
    """Text and actions, alternating, as a tree; ends before an `else` or `end` of its parent."""
    tree: list[Any] = [parts[0]]
    rest = parts[1:]
    while rest:
        action, text, rest = rest[0], rest[1], rest[2:]
        if action == "end" or action.startswith("else"):
            return tree, [action, text, *rest]
        if action.startswith(("if ", "range ")):
            branches = []
            opened, text = (action, text)
            while True:
                inner, rest = _parse([text, *rest])
                branches.append((opened, inner))
                opened, text, rest = rest[0], rest[1], rest[2:]
                if opened == "end":
                    break
            tree.append(branches)
        else:
            tree.append((action,))
        tree.append(text)
    return tree, []


def _render(tree: list[Any], values: dict[str, Any]) -> str:
    said = []
    for node in tree:
        if isinstance(node, str):
            said.append(node)
        elif isinstance(node, tuple):
            said.append(_print(node[0], values))
        elif node[0][0].startswith("range "):
            for number, message in enumerate(values["Messages"]):
                inside = {**values, "Role": message.role, "Content": message.content}
                inside["last"] = number == len(values["Messages"]) - 1
                said.append(_render(node[0][1], inside))
        else:
            branch: list[Any] = next((inner for asked, inner in node if _holds(asked, values)), [])
            said.append(_render(branch, values))
    return "".join(said)


def _print(action: str, values: dict[str, Any]) -> str:
    if action.startswith("$last :="):
        return ""
    if action.startswith('"'):
        return str(json.loads(action))
    return str(values[action.lstrip("$.")])


def _holds(asked: str, values: dict[str, Any]) -> bool:
    asked = asked.removeprefix("else ").removeprefix("if ")
    if asked == "else":
        return True
    if match := re.fullmatch(r'eq \.Role "(\w+)"', asked):
        return bool(values["Role"] == match[1])
    if asked == "and $last $.System":
        return bool(values["last"] and values["System"])
    wanted = not asked.startswith("not ")
    name = asked.removeprefix("not ").lstrip(".$")
    return bool(values[name]) == wanted


# ---- the file


@dataclass
class Modelfile:
    """What stands in it."""

    template: str
    stops: list[str]
    parameters: dict[str, float | int]
    system: str | None = None
    licence: str | None = None

    def text(self) -> str:
        """The file. Raises UsageError for text that its quotes cannot hold."""
        said = ["FROM ./model.gguf", ""]
        said += [f"PARAMETER stop {json.dumps(one, ensure_ascii=False)}" for one in self.stops]
        said += [f"PARAMETER {name} {value:g}" for name, value in self.parameters.items()]
        said += ["", f"TEMPLATE {_quoted(self.template)}"]
        if self.system:
            said += ["", f"SYSTEM {_quoted(self.system)}"]
        if self.licence:
            said += ["", f"LICENSE {_quoted(self.licence)}"]
        return "\n".join(said) + "\n"


def _quoted(text: str) -> str:
    if QUOTES in text or text.endswith('"'):
        raise UsageError.of("E-EXPORT-44", "", reason=f"{QUOTES} in {shown(text)}")
    return f"{QUOTES}{text}{QUOTES}"


def template_in(modelfile: str) -> str:
    """The template of a Modelfile. Raises ValueError where there is none."""
    found = re.search(r'^TEMPLATE """(.*?)"""$', modelfile, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError("no TEMPLATE")
    return found[1]


def stops_in(modelfile: str) -> list[str]:
    """The stop words of a Modelfile."""
    return [json.loads(one) for one in re.findall(r"^PARAMETER stop (.+)$", modelfile, re.M)]
