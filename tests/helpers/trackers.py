"""A tracker that is made of a few lines, in place of a library, and the figures that real libraries
keep in their own files, read by other means than ours."""

from __future__ import annotations

import json
import sqlite3
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FAKE = """
import json, os, time
HOW = os.environ.get("FAKE_TRACKER", "")
if HOW == "raises at once":
    raise ImportError("planted: this library is broken")

class OfflineExperiment:
    def __init__(self, project_name=None, experiment_key=None, offline_directory=None, **more):
        self.folder = offline_directory
        self.file = open(os.path.join(offline_directory, "told.jsonl"), "a")
        self.tell("opened", experiment_key, project_name)
    def tell(self, *what):
        self.file.write(json.dumps(what) + "\\n")
        self.file.flush()
    def set_name(self, name):
        self.tell("name", name)
    def log_parameters(self, given):
        self.tell("parameters", given)
    def log_metric(self, name, value, step=None):
        if HOW:
            open(os.path.join(self.folder, "misbehaves"), "w").close()
        if HOW == "raises":
            raise RuntimeError("planted: no such account")
        if HOW == "hangs":
            time.sleep(float(os.environ.get("FAKE_TRACKER_SECONDS", "90")))
        if HOW == "ends":
            os._exit(3)
        # Bounded, so that a guard that does not work fails a test and not the machine.
        for _ in range(500 if HOW == "fills" else 0):
            self.file.write("x" * 65536)
        for number in range(100 if HOW == "scatters" else 0):
            with open(f"{self.file.name}.{number}", "w") as handle:
                handle.write("x" * 500_000)
            time.sleep(0.02)
        if HOW in ("fills", "scatters"):
            time.sleep(90)
        self.tell("metric", name, value, step)
    def log_text(self, text, step=None, metadata=None):
        self.tell("text", metadata["name"], text, step)
    def log_image(self, image, name=None, step=None):
        self.tell("image", name, len(image.read()))
    def log_asset(self, path, file_name=None):
        self.tell("file", file_name)
    def log_other(self, name, value):
        self.tell("other", name, value)
    def end(self):
        self.tell("ended")

class ExistingOfflineExperiment(OfflineExperiment):
    pass
"""


def fake(folder: Path) -> Path:
    """A module `comet_ml` in `folder`; FAKE_TRACKER says how it behaves."""
    folder.mkdir(exist_ok=True)
    (folder / "comet_ml.py").write_text(FAKE, encoding="utf-8")
    return folder


def told(run: Path) -> list[list[Any]]:
    """What the fake was told, in order."""
    path = run / "track" / "comet" / "told.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


Held = list[tuple[str, int, float]]
"""(tag, step, value) as a tracker's files hold them."""


def held_by(kind: str, folder: Path) -> Held:
    """Every scalar in the files of a tracker."""
    found = list(READERS[kind](folder))
    return [(tag, step, value) for tag, step, value in found if "/" in tag]


def _tensorboard(folder: Path) -> Iterator[tuple[str, int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    held = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    held.Reload()
    for tag in held.Tags()["scalars"]:
        for one in held.Scalars(tag):
            yield tag, one.step, one.value


def records_of(path: Path) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format behind a head of 7 bytes, as Weights & Biases
    and SwanLab write it (github.com/google/leveldb, doc/log_format.md)."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        piece = data[at + 7 : at + 7 + length]
        at += 7 + length
        whole = piece if kind in (1, 2) else whole + piece
        if kind in (1, 4):
            yield whole


def _wandb(folder: Path) -> Iterator[tuple[str, int, float]]:
    from wandb.proto import wandb_internal_pb2

    for path in sorted(folder.glob("wandb/*run-*/*.wandb")):
        for data in records_of(path):
            record = wandb_internal_pb2.Record.FromString(data)
            items = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            for tag, value in items.items():
                if isinstance(value, int | float) or value in ("NaN", "Infinity"):
                    yield tag, int(items["_step"]), float(value)


def _swanlab(folder: Path) -> Iterator[tuple[str, int, float]]:
    from swanlab.proto.swanlab.record.v1 import record_pb2

    for path in sorted(folder.glob("run-*/*.swanlab")):
        for data in records_of(path):
            record = record_pb2.Record.FromString(data)
            if record.HasField("scalar"):
                yield record.scalar.key, record.scalar.step, record.scalar.value.number


def _mlflow(folder: Path) -> Iterator[tuple[str, int, float]]:
    with sqlite3.connect(folder / "mlflow.db") as base:
        yield from base.execute("select key, step, value from metrics").fetchall()


def _trackio(folder: Path) -> Iterator[tuple[str, int, float]]:
    with sqlite3.connect(folder / "tunewright.db") as base:
        for step, metrics in base.execute("select step, metrics from metrics"):
            for tag, value in json.loads(metrics).items():
                if isinstance(value, int | float):
                    yield tag, step, float(value)


def _comet(folder: Path) -> Iterator[tuple[str, int, float]]:
    for path in sorted(folder.glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            for line in archive.read("messages.json").splitlines():
                message = json.loads(line)
                if message["type"] == "metric_msg":
                    metric = message["payload"]["metric"]
                    yield metric["metricName"], metric["step"], float(metric["metricValue"])


READERS = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "swanlab": _swanlab,
    "trackio": _trackio,
    "comet": _comet,
}
