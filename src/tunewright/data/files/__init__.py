"""Files to raw rows, one module a kind of file. Each registers its readers with
`source.reads`; `reading.py` is the door."""

from tunewright.data.files import columnar, json_files, tables, texts

__all__ = ["columnar", "json_files", "tables", "texts"]
