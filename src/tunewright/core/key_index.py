"""Keys of 16 bytes and the number each stands for, in 24 bytes a key however many there are: a
dictionary of Python objects takes about 150.

New keys wait in a dictionary; every MOST_WAITING of them are merged into two sorted arrays. A key
that is added again stands for the later number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

KEY_BYTES = 16
MOST_WAITING = 1 << 15


class KeyIndex:
    """A dictionary from digests to whole numbers."""

    def __init__(self) -> None:
        self._keys: np.ndarray | None = None
        self._numbers: np.ndarray | None = None
        self._waiting: dict[bytes, int] = {}

    def add(self, key: bytes, number: int) -> None:
        """Let `key`, KEY_BYTES long, stand for `number`."""
        self._waiting[key] = number
        if len(self._waiting) >= MOST_WAITING:
            import numpy as np

            self._merge(
                b"".join(self._waiting),
                np.fromiter(self._waiting.values(), "<i8", len(self._waiting)),
            )
            self._waiting = {}

    def add_all(self, keys: bytes, first: int = 0) -> None:
        """Let keys that lie one after the other in `keys` stand for `first`, `first` + 1, ..."""
        import numpy as np

        self._merge(keys, np.arange(first, first + len(keys) // KEY_BYTES))

    def find(self, key: bytes) -> int | None:
        """The number that `key` stands for; None for a key that was not added."""
        number = self._waiting.get(key)
        if number is not None or self._keys is None or self._numbers is None:
            return number
        import numpy as np

        wanted = np.frombuffer(key, self._keys.dtype)[0]
        place = int(np.searchsorted(self._keys, wanted))
        return (
            int(self._numbers[place])
            if place < len(self._keys) and self._keys[place] == wanted
            else None
        )

    def __contains__(self, key: bytes) -> bool:
        return self.find(key) is not None

    def _merge(self, keys: bytes, numbers: np.ndarray) -> None:
        import numpy as np

        # Bytes of one length compare as numpy's texts do: zeros at the end, which numpy leaves out,
        # stand there in both.
        new = np.frombuffer(keys, f"S{KEY_BYTES}")
        all_keys = new if self._keys is None else np.concatenate([self._keys, new])
        all_numbers = numbers if self._numbers is None else np.concatenate([self._numbers, numbers])
        order = np.argsort(all_keys, kind="stable")
        all_keys, all_numbers = all_keys[order], all_numbers[order]
        last = np.append(all_keys[1:] != all_keys[:-1], True)[
            : len(all_keys)
        ]  # of equal keys the one that came last
        self._keys, self._numbers = all_keys[last], all_numbers[last]


__all__ = ["KEY_BYTES", "KeyIndex"]
