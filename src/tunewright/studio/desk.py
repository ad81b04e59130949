"""The desk: a warm child process of the server that looks at data and plans, so that forms get
their answers at once and the server itself never loads a heavy library.

    python -m tunewright.studio.desk

`lines.py` says how it is talked to.
"""

from __future__ import annotations

import os
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


def main() -> None:
    """Answer the server until it is gone."""
    # Of a training beside it the desk should take nothing.
    if hasattr(os, "nice"):
        os.nice(5)
    Child(CALLS, keeps=("repair",)).run()


if __name__ == "__main__":
    main()
