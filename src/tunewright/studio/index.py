"""The index of runs: what the list shows of each, kept so that 200 runs open at once.

A cache and nothing more: every row stands under a stamp of the files it was made from, and is made
again when one of them changed. The file may be deleted at any time; a damaged one is replaced.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

VERSION = 1
SCHEMA = """
create table if not exists heads (
  id text primary key, path text not null, stamp text not null, head text not null
)
"""


class Index:
    """Heads of runs by id."""

    def __init__(self, path: Path):
        self.path, self._lock = path, threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def get_all(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Id -> (stamp, head)."""
        rows = self._try(lambda c: c.execute("select id, stamp, head from heads").fetchall()) or []
        found = {}
        for run_id, stamp, head in rows:
            with contextlib.suppress(ValueError):
                found[run_id] = (stamp, json.loads(head))
        return found

    def put(self, rows: list[tuple[str, str, str, dict[str, Any]]]) -> None:
        """Keep (id, path, stamp, head)."""
        texts = [(i, p, s, json.dumps(head, ensure_ascii=False)) for i, p, s, head in rows]
        if texts:
            self._try(
                lambda c: c.executemany("insert or replace into heads values (?, ?, ?, ?)", texts)
            )

    def forget(self, ids: list[str]) -> None:
        """Drop runs that are gone."""
        if ids:
            self._try(
                lambda c: c.executemany("delete from heads where id = ?", [(i,) for i in ids])
            )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._drop()

    def _try(self, action: Any) -> Any:
        """Do it; a file that vanished or is damaged is made anew, and nothing depends on it."""
        with self._lock:
            for attempt in range(2):
                try:
                    connection = self._open()
                    with connection:
                        return action(connection)
                except (sqlite3.Error, OSError):
                    self._drop()
                    if attempt == 0:
                        self._remove()
        return None

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and not self.path.exists():
            self._drop()
        if self._connection is None:
            self._connection = sqlite3.connect(self.path, timeout=5, check_same_thread=False)
            self._connection.execute("pragma journal_mode=wal")
            self._connection.execute("pragma synchronous=normal")
            (version,) = self._connection.execute("pragma user_version").fetchone()
            if version != VERSION:
                self._connection.execute("drop table if exists heads")
                self._connection.execute(f"pragma user_version={VERSION}")
            self._connection.execute(SCHEMA)
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _remove(self) -> None:
        for ending in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                self.path.with_name(self.path.name + ending).unlink()
