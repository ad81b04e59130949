"""`tunewright data ...`: what the model would learn from, checked, shown and converted. Speaks to people and holds no logic, like `cli.py`."""

from __future__ import annotations

import typer

from tunewright.core.words import say

data_app = typer.Typer(help=say("cli.data_app"), no_args_is_help=True, rich_markup_mode=None)
