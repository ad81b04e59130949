"""The isolated process that reads a pickled checkpoint and writes its tensors as safetensors.
Started by `pickled.py` as `python -I -B`, never imported there.

Before anything of the file is looked at, the process gives up what it does not need: the network (a
namespace of its own, else Landlock), writing outside the output folder and starting programs
(Landlock), privileges, and unbounded memory, time and file size. An audit hook refuses the same
from inside Python, on every system. The pickle is then read twice: opcode by opcode without running
any, to name what it asks for, and by `torch.load(weights_only=True)`, whose unpickler builds
tensors and nothing else. The full unpickler is never used, and the hook would stop it. Job: one
JSON object on stdin. Answer: one JSON object as the last line of stdout. The parent believes none
of it without looking.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickletools
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

MAX_PICKLE_BYTES = 256 << 20
"""A pickle holds names and shapes; the numbers lie beside it. The largest models need a few MiB."""
LARGEST_GROWTH = 4
"""Tensors may share numbers (a head tied to the embedding); stored apart they may take this many
times the file, not more."""
STORAGES = (
    "Double",
    "Float",
    "Half",
    "BFloat16",
    "Long",
    "Int",
    "Short",
    "Char",
    "Byte",
    "Bool",
    "ComplexFloat",
)
ALLOWED = {
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch.nn.parameter.Parameter",
    "torch.storage.UntypedStorage",
    "torch.Tensor",
    *(f"torch.{name}Storage" for name in STORAGES),
    *(f"torch.float8_{kind}" for kind in ("e4m3fn", "e5m2", "e8m0fnu", "e4m3fnuz", "e5m2fnuz")),
    *(
        f"torch.{name}"
        for name in (
            "float64",
            "float32",
            "float16",
            "bfloat16",
            "int64",
            "int32",
            "int16",
            "int8",
            "uint8",
            "uint16",
            "uint32",
            "uint64",
            "bool",
            "complex64",
        )
    ),
}
"""All that a state dictionary of plain tensors can ask for; fewer names than PyTorch's own list,
which also knows subclasses and NumPy."""
CLOSED = (
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.spawn",
    "os.posix_spawn",
    "os.fork",
    "os.kill",
    "os.startfile",
    "pty.",
    "ctypes.",
    "webbrowser.",
    "urllib.",
    "http.",
    "ftplib.",
    "smtplib.",
    "poplib.",
    "imaplib.",
    "winreg.",
    "_winapi.",
    "pickle.find_class",
    "shutil.",
    "sys.addaudithook",
)
"""Audit events that reading weights never causes."""
CHANGES = {
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "os.utime",
    "os.setxattr",
    "os.removexattr",
}
LANDLOCK_WRITES = sum(1 << bit for bit in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12))
"""Write a file, remove, and make anything; bits of linux/landlock.h."""


class RefusedError(Exception):
    """What speaks against the file, in the parent's words."""

    def __init__(self, reason: str, **fields: Any):
        self.fields = {"refused": reason, **fields}
        super().__init__(reason)


# ---- doors


def close_kernel_doors(
    out: str, user_namespace: bool, memory_bytes: int, file_bytes: int, seconds: int
) -> list[str]:
    """Give up everything that the kernel lets a process give up; returns the names of the walls
    that stand. Elsewhere than on Linux: limits only."""
    walls = []
    if sys.platform == "linux":
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG: never outlive the parent
        walls += ["namespace"] if _leave_network(libc, user_namespace) else []
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        header, nothing = struct.pack("<Ii", 0x20080522, 0), bytes(24)
        libc.capset(header, nothing)
        walls += ["landlock"] if _landlock(libc, out) else []
    with contextlib.suppress(ImportError):
        import resource

        for kind, value in (
            ("RLIMIT_CPU", seconds),
            ("RLIMIT_AS", memory_bytes),
            ("RLIMIT_FSIZE", file_bytes),
            ("RLIMIT_CORE", 0),
        ):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                number = getattr(resource, kind)
                hard = resource.getrlimit(number)[1]
                value = value if hard == resource.RLIM_INFINITY else min(value, hard)
                resource.setrlimit(number, (value, value))
        walls.append("limits")
    return walls


def _leave_network(libc: Any, user_namespace: bool) -> bool:
    """A network namespace without any interface that is up. False where the kernel does not allow
    it."""
    new_user, new_network = 0x10000000, 0x40000000
    user, group = os.getuid(), os.getgid()
    if libc.unshare((new_user if user_namespace else 0) | new_network):
        return False
    if user_namespace:
        with contextlib.suppress(OSError):
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"{user} {user} 1"),
                ("gid_map", f"{group} {group} 1"),
            ):
                with open(f"/proc/self/{name}", "w") as handle:
                    handle.write(text)
    return True


def _landlock(libc: Any, out: str) -> bool:
    """No program may be started, nothing written outside `out`, no TCP port used. Kernel 5.13 and
    later; False where it is missing."""
    version = libc.syscall(444, None, 0, 1)
    if version < 1:
        return False
    refer, truncate, execute = 1 << 13, 1 << 14, 1
    handled = (
        LANDLOCK_WRITES
        | execute
        | (refer if version >= 2 else 0)
        | (truncate if version >= 3 else 0)
    )
    attributes = struct.pack("<QQ", handled, 3) if version >= 4 else struct.pack("<Q", handled)
    ruleset = libc.syscall(444, attributes, len(attributes), 0)
    if ruleset < 0:
        return False
    place = os.open(out, os.O_PATH | os.O_DIRECTORY)
    try:
        rule = struct.pack("<Qi", handled & ~execute, place)
        return not libc.syscall(445, ruleset, 1, rule, 0) and not libc.syscall(446, ruleset, 0)
    finally:
        os.close(place)
        os.close(ruleset)


def guard(out: str) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that refuses network, programs, native libraries, the full unpickler, and
    changes outside `out`."""
    root = os.path.realpath(out)
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def inside(path: Any) -> bool:
        if isinstance(path, int):
            return True
        real = os.path.realpath(os.fsdecode(path))
        return real == root or real.startswith(root + os.sep)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(CLOSED):
            raise PermissionError(f"closed: {event}")
        if (
            event == "open"
            and isinstance(args[2], int)
            and args[2] & writing
            and not inside(args[0])
        ):
            raise PermissionError(f"closed: writing {args[0]!r}")
        if event in CHANGES and not all(inside(a) for a in args if isinstance(a, str | bytes)):
            raise PermissionError(f"closed: {event}")

    return hook


# ---- reading


def _pickles(path: str) -> Iterator[BinaryIO]:
    """The pickles inside a checkpoint of either layout of `torch.save`. Raises RefusedError for a
    container that could grow or that is none."""
    with open(path, "rb") as handle:
        if handle.read(4) == b"PK\x03\x04":
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
                if any(m.compress_type != zipfile.ZIP_STORED or m.flag_bits & 1 for m in members):
                    raise RefusedError("damaged", cause="compressed members")
                names = [m for m in members if m.filename.endswith(".pkl")]
                if (
                    len(names) != 1
                    or not names[0].filename.endswith("/data.pkl")
                    or names[0].file_size > MAX_PICKLE_BYTES
                ):
                    raise RefusedError(
                        "damaged",
                        cause=f"{len(names)} pickles inside: "
                        + ", ".join(m.filename[-40:] for m in names[:3]),
                    )
                yield io.BytesIO(archive.read(names[0]))
            return
        handle.seek(0)
        # The layout before PyTorch 1.6: magic number, version, machine, content, keys, one pickle
        # each; then the numbers.
        for _ in range(5):
            yield handle


def asked_for(path: str) -> list[str]:
    """Every name of a module that the pickles of `path` ask for and no table of tensors needs.
    Reads opcodes; nothing is built or run."""
    found: dict[str, None] = {}
    try:
        for stream in _pickles(path):
            words: list[str] = []
            for opcode, argument, _ in pickletools.genops(stream):
                name = None
                if opcode.name in ("GLOBAL", "INST"):
                    name = ".".join(str(argument).split(" ", 1))
                elif opcode.name == "STACK_GLOBAL":
                    name = ".".join(words[-2:]) or "STACK_GLOBAL"
                elif opcode.name.startswith("EXT"):
                    name = f"{opcode.name} {argument}"
                elif isinstance(argument, str):
                    words = [*words[-1:], argument]
                if name is not None and name not in ALLOWED:
                    found[name] = None
    except RefusedError:
        raise
    except Exception as e:
        if not found:
            raise RefusedError("damaged", cause=f"{type(e).__name__}: {e}"[:200]) from e
    return list(found)


def read(path: str) -> dict[str, Any]:
    """Name -> tensor. Raises RefusedError for anything but a flat table of plain tensors."""
    import torch

    names = asked_for(path)
    if names:
        raise RefusedError("global", name=", ".join(n[:80] for n in names[:3]))
    with open(path, "rb") as handle:
        mapped = handle.read(4) == b"PK\x03\x04"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as e:
        match = re.search(r"(?:GLOBAL|global:?) ([\w.]+)", str(e))
        if match:
            raise RefusedError("global", name=match[1]) from e
        raise RefusedError(
            "damaged", cause=f"{type(e).__name__}: {next(iter(str(e).splitlines()), '')}"[:200]
        ) from e
    if not isinstance(content, dict):
        raise RefusedError("content", key="-", kind=type(content).__name__)
    total = 0
    for key, value in content.items():
        plain = type(value) in (torch.Tensor, torch.nn.Parameter)
        if (
            not isinstance(key, str)
            or not plain
            or value.layout != torch.strided
            or value.is_quantized
            or value.device.type != "cpu"
        ):
            raise RefusedError("content", key=str(key)[:80], kind=type(value).__name__)
        total += value.numel() * value.element_size()
    if not content:
        raise RefusedError("content", key="-", kind="0")
    there = Path(path).stat().st_size
    if total > LARGEST_GROWTH * there:
        raise RefusedError("damaged", cause=f"{total} bytes of tensors in {there} bytes")
    return content


def convert(source: str, target: str) -> int:
    """Write the tensors of `source` as the safetensors file `target`; returns how many. Those that
    share memory are stored each by itself."""
    from safetensors.torch import save_file

    seen: set[int] = set()
    tensors = {}
    for name, value in read(source).items():
        plain = value.detach().contiguous()
        start = plain.untyped_storage().data_ptr()
        # An exact copy, bit for bit: the library refuses two names for one piece of memory.
        tensors[name] = (
            plain.clone()
            if start in seen
            or plain.untyped_storage().nbytes() != plain.numel() * plain.element_size()
            else plain
        )
        seen.add(start)
    save_file(tensors, target, metadata={"format": "pt"})
    return len(tensors)


def main() -> None:
    """Do the job on stdin."""
    job = json.load(sys.stdin)
    walls = close_kernel_doors(
        job["out"], job["user_namespace"], job["memory_bytes"], job["file_bytes"], job["seconds"]
    )
    sys.path += [place for place in job["paths"] if place not in sys.path]
    sys.modules["dill"] = None  # type: ignore[assignment]  # torch imports it where it is installed, and it opens /dev/null for writing
    import safetensors.torch  # noqa: F401
    import torch  # noqa: F401  (both before the hook, which lets no library be loaded)

    sys.addaudithook(guard(job["out"]))
    walls.append("hook")
    answer: dict[str, Any] = {"walls": walls, "tensors": 0}
    source = ""
    try:
        for source, name in job["files"]:
            answer["tensors"] += convert(source, str(Path(job["out"], name)))
    except RefusedError as e:
        answer |= {"file": Path(source).name, **e.fields}
    except Exception as e:
        answer |= {
            "file": Path(source).name,
            "refused": "damaged",
            "cause": f"{type(e).__name__}: {e}"[:200],
        }
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
