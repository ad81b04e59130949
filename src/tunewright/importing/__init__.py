"""Run files and training commands of LLaMA-Factory, Axolotl, ms-swift, TRL and torchtune, turned
into ours key by key.

`translate` reads a file and says what becomes of each key; `write` puts the result down after
`core.runfile` has accepted it, so a run file that would not load is never written. Values that the
file leaves to the other system's defaults are written out where ours differ.
"""

from tunewright.importing.files import Imported, translate, write

__all__ = ["Imported", "translate", "write"]
