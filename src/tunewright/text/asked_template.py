"""The chat template as it leaves with an export: another program that asks with it asks as the run
was asked. What a run is asked with besides its template (whether to think, the person's arguments,
how an answer begins) is nowhere else in the exported files, and a program would leave it at the
family's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tunewright.core.types import Message
from tunewright.text.chat_template import plain_template
from tunewright.text.rendered import PLAIN
from tunewright.text.thinking import SWITCHES

if TYPE_CHECKING:
    from tunewright.text.renderer import Renderer

WRITTEN = "written_prompt"
"""The variable that holds what the template wrote, where something else is to stand at its end."""
Templates: TypeAlias = str | dict[str, str]
"""A template, or several by name, of which `default` is the one that a run uses."""


def save_tokenizer(renderer: Renderer, folder: Path, objective: str) -> None:
    """Write the tokenizer of a model that learnt by `objective`, with a template that asks as the
    run is asked. One that learnt running text alone and has no template gets none. Raises
    OSError."""
    tokenizer, own = renderer.tokenizer, renderer.tokenizer.chat_template
    if own or objective != "pretrain":
        tokenizer.chat_template = for_folder(renderer, own)
    try:
        tokenizer.save_pretrained(str(folder))
    finally:
        tokenizer.chat_template = own


def for_gguf(renderer: Renderer, own: Mapping[str, str] | str | None) -> Templates:
    """The template for a file whose reader may give no arguments, or its own: the run's choices
    hold whatever it gives."""
    form = renderer.form_of(None)
    stated = renderer.template.variables(form)
    before = "".join(f"{{% set {name} = {_literal(value)} %}}" for name, value in stated.items())
    return _around(renderer, own, before, renderer.template.behind(form))


def for_folder(renderer: Renderer, own: Mapping[str, str] | str | None) -> Templates:
    """The template for a folder: the run's choices are its defaults, which `apply_chat_template`
    can still be given otherwise. Where answers were learnt without a thought and the template has
    no switch, it gets one (`enable_thinking`)."""
    form, template = renderer.form_of(None), renderer.template
    stated = template.variables(form)
    bos = renderer.tokenizer.bos_token_id
    # Our own template leaves the first token to the tokenizer, which puts it before texts only.
    leads = template.name == PLAIN and renderer.prompt([Message("user", "x")])[0] == bos
    before = "{{ bos_token }}" if leads and bos is not None else ""
    before += "".join(
        f"{{% if {name} is not defined %}}{{% set {name} = {_literal(value)} %}}{{% endif %}}"
        for name, value in stated.items()
    )
    thinking = template.behind("thinking")
    if form != "answer" or template.behind("answer") == thinking:
        return _around(renderer, own, before, template.behind(form))
    switch = next((name for name in SWITCHES if name in stated), SWITCHES[0])
    asked = f"{switch} is defined and {switch}"
    return _around(renderer, own, before, template.behind("answer"), asked, thinking)


def _around(
    renderer: Renderer,
    own: Mapping[str, str] | str | None,
    before: str,
    behind: tuple[str, str],
    condition: str = "",
    otherwise: tuple[str, str] = ("", ""),
) -> Templates:
    """The template (ours where the model has none) with something before it, and another end of its
    prompt for an answer: `otherwise` where the condition holds."""
    if own is None or renderer.template.name == PLAIN:
        if renderer.tokenizer.eos_token != renderer.end_text:
            before = f"{{% set eos_token = {_literal(renderer.end_text)} %}}{before}"
        own = plain_template()
    if not isinstance(own, str):
        made = {"default": _around(renderer, own["default"], before, behind, condition, otherwise)}
        return {**own, **{name: str(text) for name, text in made.items()}}
    if any((*behind, *otherwise)):
        # Its last line break is not written where it ends the template; it no longer does.
        own = own.removesuffix("\n")
        cuts = bool(behind[0] or otherwise[0])
        if cuts:
            own = f"{{% set {WRITTEN} %}}{_first_break(own)}{{% endset %}}"
        ends = _ended(behind, cuts)
        if condition:
            other = _ended(otherwise, cuts)
            ends = f"{{% if {condition} %}}{other}{{% else %}}{ends}{{% endif %}}"
        else_all = f"{{% else %}}{{{{ {WRITTEN} }}}}" if cuts else ""
        own += f"{{% if add_generation_prompt %}}{ends}{else_all}{{% endif %}}"
    return before + (_first_break(own) if before else own)


def _ended(behind: tuple[str, str], cuts: bool) -> str:
    """What writes the end of a prompt. `cuts`: what the template wrote is held back, and is written
    here without what goes."""
    goes, comes = behind
    parts = [f"{WRITTEN}[:-{len(goes)}]" if goes else WRITTEN] if cuts else []
    parts += [_literal(comes)] if comes else []
    return f"{{{{ {' + '.join(parts)} }}}}" if parts else ""


def _first_break(source: str) -> str:
    """A template whose first line break is written although a tag stands before it."""
    return "{{ '' }}" + source if source.startswith("\n") else source


def _literal(value: Any) -> str:
    """A value as templates write it."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        pairs = (f"{_literal(str(k))}: {_literal(v)}" for k, v in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
