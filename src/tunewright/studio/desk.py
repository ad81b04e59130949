"""The desk: a warm child process of the server that looks at data and plans, so that forms get
their answers at once and the server itself never loads a heavy library.

    python -m tunewright.studio.desk

`lines.py` says how it is talked to.
"""

from __future__ import annotations

from typing import Any

from tunewright.studio.lines import Call, Child, Request


def inspect(request: Request) -> Any:
    """What is in a file of rows."""
    from tunewright.studio import looking

    return looking.inspect(request)


def preview(request: Request) -> Any:
    """A row as the model would see it."""
    from tunewright.studio import looking

    return looking.preview(request)


def repair(request: Request) -> Any:
    """A mended copy of a file."""
    from tunewright.studio import looking

    return looking.repair(request)


def plan(request: Request) -> Any:
    """What a run will need."""
    from tunewright.studio import planned

    return planned.plan(request)


def plan_yaml(request: Request) -> Any:
    """The settings of a pasted run file."""
    from tunewright.studio import planned

    return planned.plan_yaml(request)


def check_model(request: Request) -> Any:
    """What is known of a model by its name."""
    from tunewright.studio import planned

    return planned.check_model(request)


def schema(request: Request) -> Any:
    """What forms are made of."""
    from tunewright.studio import schema as forms

    return forms.schema()


CALLS: dict[str, Call] = {
    "inspect": inspect,
    "preview": preview,
    "repair": repair,
    "plan": plan,
    "plan_yaml": plan_yaml,
    "schema": schema,
    "check_model": check_model,
}


WARM_AFTER = 1.5
"""Seconds without a request after which the desk loads what the first plan needs: nobody waits for
it then."""


class Warming:
    """Loads once what the first plan would have to wait for."""

    def __init__(self) -> None:
        self.done = False

    def __call__(self) -> None:
        """Load it, the first time."""
        if self.done:
            return
        self.done = True
        from tunewright.core.telling import silent
        from tunewright.engine import opening  # noqa: F401 - with torch and Transformers
        from tunewright.methods import peft_kinds  # noqa: F401

        with silent():
            import peft  # noqa: F401


def main() -> None:
    """Answer the server until it is gone."""
    warm = Warming()
    Child(CALLS, keeps=("repair",), idle=warm, idle_seconds=WARM_AFTER, interrupts=True).run()


if __name__ == "__main__":
    main()
