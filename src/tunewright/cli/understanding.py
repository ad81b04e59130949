"""How the command line is read: help pages, and what was not understood, in the reader's language.

Typer speaks English only (its gettext hook covers a few headings, and newer versions fewer). Here
its help pages are laid out in our words, by the places that Chinese signs take on a terminal; and
what it refuses becomes a `UsageError` with a code, like every other mistake.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from tunewright.cli.speaking import told
from tunewright.core.errors import Problem, TunewrightError, UsageError, problem, raise_all
from tunewright.core.telling import width
from tunewright.core.words import catalogue, say

Refused: Any = typer.BadParameter.__base__
"""Typer's error for every command line that it does not understand. It comes from the Click beside
Typer or from the one inside it, as Typer's version is."""
Context: Any = TyperCommand.context_class
HelpFormatter: Any = Context.formatter_class
FIRST_COLUMN = 30
"""Places of the widest name beside which an explanation still begins."""
EXTRA = re.compile(r"^(.*?)(?:  )?\[([^\[\]]*)\]$", re.DOTALL)
"""What Typer adds to the explanation of an option: `[env var: NAME; default: 8; required]`."""
TOO_MUCH = re.compile(r"extra arguments?(?:\(s\))? \((.*)\)", re.DOTALL)
NO_VALUE = re.compile(r"does not take a value")
OPEN, CLOSED, SIGN = "（《「『“", "，。；：、）》」』”！？…", "\u2e80-\uffef"
PIECES = re.compile(
    rf"\s+|\[[^\[\]]*[{SIGN}][^\[\]]*\]|[{OPEN}]*(?:[^\s{SIGN}]+|[{SIGN}])[{CLOSED}]*"
)
"""What a line may be cut between: words, and Chinese signs with the punctuation that clings."""


WIDE = re.compile(r"^(?:[—–－−]+(?=[A-Za-z])|[A-Za-z_.]+＝)")
"""How a word begins that was typed with a Chinese keyboard, or that a text editor made nicer:
`——model`, `engine.epochs＝3`."""


def fold(text: str, columns: int) -> list[str]:
    """`text` in lines of at most `columns` places; only a longer word stands over."""
    lines = []
    for paragraph in text.splitlines():
        line = ""
        for piece in PIECES.findall(paragraph):
            if line.strip() and width(line + piece.rstrip()) > columns:
                lines.append(line.rstrip())
                line = ""
            line += piece if line else piece.lstrip()
        lines.append(line.rstrip())
    return lines


class Page(HelpFormatter):
    """A help page in our words."""

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        """`Usage: program words`, the words folded under each other."""
        head = f"{prefix or say('help.usage')}{prog} "
        first, *rest = fold(args, self.width - width(head)) or [""]
        self.write("\n".join([head + first, *(" " * width(head) + line for line in rest)]) + "\n")

    def write_heading(self, heading: str) -> None:
        """`Options:` and the like; a heading without words here stays Typer's."""
        key = f"help.{heading.lower()}"
        said = say(key) if key in catalogue("en") else f"{heading}:"
        self.write(" " * self.current_indent + said + "\n")

    def write_text(self, text: str) -> None:
        """Running text."""
        indent = " " * self.current_indent
        lines = fold(text, self.width - self.current_indent)
        self.write("".join(f"{indent}{line}".rstrip() + "\n" for line in lines))

    def write_dl(self, rows: Sequence[tuple[str, str]], *_: Any, **__: Any) -> None:
        """Names and explanations, in two columns."""
        indent = " " * self.current_indent
        rows = [(_named(name), text) for name, text in rows]
        room = min(max(width(name) for name, _ in rows), FIRST_COLUMN) + 2
        for name, text in rows:
            lines = fold(_explained(text), self.width - self.current_indent - room) or [""]
            beside = width(name) + 2 <= room
            if beside:
                lines[0] = name + " " * (room - width(name)) + lines[0]
            else:
                self.write(f"{indent}{name}\n")
            for at, line in enumerate(lines):
                space = "" if beside and at == 0 else " " * room
                self.write(f"{indent}{space}{line}".rstrip() + "\n")


def _named(name: str) -> str:
    """A name in the left column, its type in our words; an argument's name says what it is."""
    name, found, kind = name.partition(" <")
    if not found or not name.startswith("-"):
        return name
    key = f"help.type.{kind.removeprefix('list[').split()[0].strip('[]<>')}"
    return f"{name} <{say(key) if key in catalogue('en') else kind.rstrip('>')}>"


def _explained(text: str) -> str:
    """An explanation with Typer's additions in our words."""
    found = EXTRA.match(text)
    if found is None:
        return text
    said = []
    for part in found[2].split("; "):
        key, colon, value = part.partition(": ")
        name = {"env var": "help.variable", "default": "help.default", "required": "help.required"}
        if key not in name or (key == "required") == bool(colon):
            # The bounds of a number; or no addition of Typer's, but the end of our own text.
            if "<=x" not in part and "x<=" not in part and "x>=" not in part:
                return text
            said.append(part)
        else:
            said.append(say(name[key], value=value))
    return f"{found[1]}  [{say('help.between').join(said)}]".strip()


class _Context(Context):
    formatter_class = Page


class _Speaking:
    """What commands and groups of commands do alike."""

    context_class: Any = _Context

    def get_help_option(self, ctx: Any) -> Any:
        """`--help`, explained."""
        found = super().get_help_option(ctx)  # type: ignore[misc]
        if found is not None:
            found.help = say("help.help")
        return found

    def get_short_help_str(self, limit: int = 45) -> str:
        """The whole explanation: Typer cuts at spaces, which Chinese does not have."""
        return str(self.help or "").strip()  # type: ignore[attr-defined]

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words behind the command's name."""
        pieces = super().collect_usage_pieces(ctx)  # type: ignore[misc]
        ours = {"[OPTIONS]": "help.some_options", "COMMAND [ARGS]...": "help.some_command"}
        return [say(ours[piece]) if piece in ours else piece for piece in pieces]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As Typer does; a refusal always says of which command it is."""
        try:
            found: list[str] = super().parse_args(ctx, args)  # type: ignore[misc]
            return found
        except Refused as e:
            e.ctx = e.ctx or ctx
            raise


class Command(_Speaking, TyperCommand):
    """One command."""


class Group(_Speaking, TyperGroup):
    """Commands under one name, and the program itself."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is meant. Raises UsageError for one that is not there."""
        name = args[0]
        if (
            self.get_command(ctx, name) is None
            and not name.startswith("-")
            and not ctx.resilient_parsing
        ):
            near = _near(difflib.get_close_matches(name, list(self.commands)))
            raise UsageError.of("E-RUN-22", name=name, near=near, help=f"{ctx.command_path} --help")
        return super().resolve_command(ctx, args)

    def main(  # type: ignore[override]
        self, args: Any = None, *, standalone_mode: bool = True, **more: Any
    ) -> Any:
        """Run a command line and end the process with its exit code."""
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **more)
        words = sys.argv[1:] if args is None else list(args)
        try:
            _require_plain_signs(words)
            code = super().main(args, standalone_mode=False, **more)
        except typer.Abort:
            print(say("help.aborted"), file=sys.stderr)
            code = 1
        except Refused as e:
            if type(e).__name__ == "NoArgsIsHelpError":
                e.show()
                code = e.exit_code
            else:
                code = told(UsageError(_problem(e)), as_json="--json" in words).exit_code
        except TunewrightError as e:
            code = told(e, as_json="--json" in words).exit_code
        sys.exit(code if isinstance(code, int) else 0)


class App(typer.Typer):
    """Typer whose commands speak the reader's language."""

    def __init__(self, **given: Any) -> None:
        super().__init__(
            cls=Group,
            no_args_is_help=True,
            add_completion=False,
            pretty_exceptions_enable=False,
            rich_markup_mode=None,
            **given,
        )

    def command(self, name: str | None = None, **given: Any) -> Any:
        """As Typer's."""
        return super().command(name, cls=Command, **given)


def _require_plain_signs(words: Sequence[str]) -> None:
    """Raise UsageError for dashes and equals signs that are not those of a keyboard."""
    wrong = [
        problem("E-RUN-28", word=word, meant=re.sub("^[—–－−]+", "--", word).replace("＝", "="))
        for word in words
        if WIDE.match(word)
    ]
    raise_all(wrong, UsageError)


def _near(names: Sequence[str]) -> str:
    """`Perhaps a or b. `, or nothing."""
    return say("help.near", names=say("help.or").join(names)) if names else ""


def _problem(refused: Any) -> Problem:
    """What Typer refused, as one of our problems."""
    ctx = refused.ctx
    path = ctx.command_path if ctx is not None else "tunewright"
    usage = " ".join([path, *(ctx.command.collect_usage_pieces(ctx) if ctx is not None else [])])
    asked = {"help": f"{path} --help", "usage": usage}
    kind = type(refused).__name__
    param = getattr(refused, "param", None)
    if kind == "NoSuchOption":
        name = refused.option_name
        near = _setting(name) if "KEY=VALUE" in usage else ""
        near = near or _near(_options_like(name, refused))
        return problem("E-RUN-23", command=path, name=name, near=near, **asked)
    if kind == "MissingParameter" and param is not None:
        return problem("E-RUN-24", what=_name_of(param), **asked)
    if kind == "BadOptionUsage":
        if NO_VALUE.search(refused.message):
            reason = say("help.no_value")
            return problem("E-RUN-25", name=refused.option_name, reason=reason, **asked)
        return problem("E-RUN-24", what=say("help.value_of", name=refused.option_name), **asked)
    if kind == "BadParameter" and param is not None:
        reason = _reason(refused)
        return problem("E-RUN-25", name=_name_of(param), reason=reason, **asked)
    if refused.message == "Missing command.":
        return problem("E-RUN-24", what=say("help.a_command"), **asked)
    extra = TOO_MUCH.search(refused.message)
    if extra is not None:
        return problem("E-RUN-26", words=extra[1], **asked)
    return problem("E-RUN-27", reason=refused.format_message(), **asked)


def _options_like(name: str, refused: Any) -> list[str]:
    """Options that may be meant; for `-m` those that begin with that letter."""
    if name.startswith("--"):
        return [option for option in refused.possibilities or [] if option != "--help"]
    params = refused.ctx.command.params if refused.ctx is not None else []
    options = [option for param in params for option in param.opts]
    return [option for option in options if option.startswith(f"-{name}")][:3]


def _name_of(param: Any) -> str:
    """What a person calls an option or an argument."""
    if param.param_type_name == "option":
        return max(param.opts, key=len)
    return str(param.metavar or (param.name or "").upper())


def _reason(refused: Any) -> str:
    """Why a value is refused, with the value where it is known."""
    from pydantic import ValidationError

    from tunewright.core.refusals import reason_of

    cause = refused.__cause__
    if not isinstance(cause, ValidationError):
        return str(refused.message).rstrip(".")
    found = cause.errors()[0]
    return say("help.given", reason=reason_of(found), value=found["input"])


def _setting(option: str) -> str:
    """A hint for who writes a setting of a run as an option (`--epochs 3`), or nothing."""
    from tunewright.core.runfile import key_named

    key = key_named(option.lstrip("-").replace("-", "_"))
    return say("help.setting", key=key) if key else ""
