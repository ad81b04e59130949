"""Files at an address (`https://`, `s3://`, `gs://`...): copied to this machine by fsspec, in
pieces, so that memory does not grow with them, and then read like any other file.

Only an address that somebody wrote is opened; nothing is looked for there by itself. A copy is kept
in the cache under the address and the state that the other side tells (ETag, time, size): it is
copied again when that changes, and each time where no state is told. With HF_HUB_OFFLINE=1 the
newest copy is used and nothing is asked.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tunewright.core.errors import DataError
from tunewright.core.publish import cache_root, marker_of, publish
from tunewright.data.files.source import READERS, ending_of

LIBRARIES = {
    "https": "aiohttp", "http": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs",
    "az": "adlfs", "abfs": "adlfs", "oss": "ossfs",
}  # fmt: skip
"""Scheme of an address -> the library with which fsspec opens it."""
STATE = ("ETag", "etag", "LastModified", "last_modified", "updated", "mtime", "Content-MD5")
TRIES = 3
BAR = {"unit": "B", "unit_scale": True, "delay": 2, "leave": False}
"""A progress bar where copying takes more than two seconds."""
FILES = "files"
"""Where copies lie, beside the marker of their folder."""
State = tuple[list[str], int | None]
WILD = re.compile(r"[*?\[]")


def is_named(place: str) -> bool:
    """Whether a place is an address."""
    scheme, found, _ = place.partition("://")
    return bool(found) and scheme.lower() in LIBRARIES


def fetch(place: str) -> Path | list[Path]:
    """What an address names, as copies on this machine: one file, the files of a pattern with `*`
    in the order of their names, or (of an object store) a folder with the files in it that can be
    read, under their own names, since these say which part is which. Raises DataError where that
    cannot be done."""
    shown = _without_secrets(place)
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return _kept(place, shown)
    fs, path = _opened(place, shown)
    try:
        names, state, kind = _names(fs, path, place)
    except Exception as error:
        # Errors of many libraries: no network, no such file, no right to read it.
        raise _refused(shown, error) from error
    if not names:
        raise DataError.of("E-DATA-90", shown, name=shown, cause="no file that can be read")
    known = all(told for told, _ in state)
    mark = _short(repr((names, state)) if known else str(time.time_ns()))
    target = _folder(place) / mark
    if marker_of(target) is None:
        local = [_local(name, n if kind == "pattern" else None) for n, name in enumerate(names)]
        publish(target, lambda folder: _copy(fs, names, local, state, kind, folder, shown))
    os.utime(target)
    return _copies(target)


def _opened(place: str, shown: str) -> tuple[Any, str]:
    import fsspec

    scheme = place.partition("://")[0].lower()
    more: dict[str, Any] = {}
    if scheme in ("http", "https"):
        # As they lie there, so that the size that is told is the size of what comes; with the
        # proxies of this machine.
        more = {
            "headers": {"Accept-Encoding": "identity"}, "client_kwargs": {"trust_env": True},
        }  # fmt: skip
    try:
        return fsspec.core.url_to_fs(place, **more)
    except ImportError as error:
        library = LIBRARIES[scheme]
        raise DataError.of("E-DATA-91", shown, scheme=scheme, library=library) from error
    except Exception as error:
        raise _refused(shown, error) from error


def _names(fs: Any, path: str, place: str) -> tuple[list[str], list[State], str]:
    """The files, for each (what tells its state, its bytes), and whether they are a `file`, a
    `pattern` or a `folder`."""
    is_web = place.partition("://")[0].lower() in ("http", "https")
    names, kind = [path], "file"
    if not is_web and WILD.search(path):
        names, kind = sorted(name for name in fs.glob(path) if not name.endswith("/")), "pattern"
    elif not is_web and fs.isdir(path):
        names, kind = sorted(fs.find(path, maxdepth=1)), "folder"
        names = [name for name in names if ending_of(Path(name))[0] in READERS]
    found = []
    for name in names:
        about = fs.info(name)
        told = [f"{key}={about[key]}" for key in STATE if about.get(key)]
        found.append((told, about.get("size")))
    return names, found, kind


def _copy(
    fs: Any,
    names: list[str],
    local: list[str],
    state: list[State],
    kind: str,
    folder: Path,
    shown: str,
) -> dict[str, Any]:
    """Copy the files, under the names `local`, into a folder that is not yet known to anybody."""
    needed, free = sum(size or 0 for _, size in state), shutil.disk_usage(folder).free
    if needed > free:
        raise DataError.of("E-DATA-93", shown, needed=needed, free=free, folder=str(folder.parent))
    (folder / FILES).mkdir()
    for name, own, (_, size) in zip(names, local, state, strict=True):
        _copy_one(fs, name, folder / FILES / own, size, shown)
    return {"address": shown, "state": [told for told, _ in state], "kind": kind}


def _copy_one(fs: Any, name: str, target: Path, size: int | None, shown: str) -> None:
    from fsspec.callbacks import TqdmCallback

    for tried in range(1, TRIES + 1):
        try:
            told = {
                "desc": target.name,
                "unit": "B",
                "unit_scale": True,
                "delay": 2,
                "leave": False,
            }
            fs.get_file(name, str(target), callback=TqdmCallback(tqdm_kwargs=told))
            stored = target.stat().st_size
            if size is not None and stored != size:
                raise OSError(f"{stored:,} bytes came of {size:,}")
            return
        except FileNotFoundError as error:
            raise _refused(shown, error) from error
        except Exception as error:
            # A connection that breaks, as every library calls it by another name.
            if tried == TRIES:
                raise _refused(shown, error) from error
            time.sleep(tried)


def _kept(place: str, shown: str) -> Path | list[Path]:
    copies = [path for path in _folder(place).glob("*") if marker_of(path) is not None]
    if not copies:
        cause = "HF_HUB_OFFLINE is set, and there is no copy of it here"
        raise DataError.of("E-DATA-90", shown, name=shown, cause=cause)
    return _copies(max(copies, key=lambda path: path.stat().st_mtime))


def _copies(target: Path) -> Path | list[Path]:
    """What a folder of copies stands for."""
    marker = marker_of(target)
    assert marker is not None
    if marker["kind"] == "folder":
        return target / FILES
    return [target / name for name in sorted(marker["files"])]


def _local(name: str, number: int | None) -> str:
    """The name of a copy: that of the file, behind a number where files of several folders may have
    the same."""
    base = unquote(urlsplit(name).path if "://" in name else name).rsplit("/", 1)[-1]
    safe = re.sub(r"[^\w.() -]", "_", base).lstrip(".")[-120:] or "data"
    return safe if number is None else f"{number:05}-{safe}"


def _folder(place: str) -> Path:
    return cache_root() / "remote" / _short(place)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _without_secrets(place: str) -> str:
    """The address as it may be shown. Raises DataError for one with a password in it: settings are
    written into the run folder, which people share."""
    parts = urlsplit(place)
    if parts.password is not None:
        bare = f"{parts.scheme}://{parts.hostname}{parts.path}"
        raise DataError.of("E-DATA-92", bare, name=bare)
    return place.partition("?")[0]


def _refused(shown: str, error: Exception) -> DataError:
    # A signed address ends in a key: nothing after the question mark is shown.
    cause = re.sub(r"\?[^\s'\")]+", "", " ".join(str(error).split()))[:300] or type(error).__name__
    return DataError.of("E-DATA-90", shown, name=shown, cause=cause)
