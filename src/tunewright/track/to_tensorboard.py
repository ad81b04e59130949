"""TensorBoard, from its own package (no torch, no TensorFlow). It stores figures as float32."""

from __future__ import annotations

import json
import struct
import time as clock
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunewright.track.settings import TrackerSettings
from tunewright.track.sink import About, as_markdown, tracker

LONGEST_TEXT = 100_000


class TensorBoardSettings(TrackerSettings):
    """Event files below a folder."""


class TensorBoard:
    """One event file per time that the run is told."""

    def __init__(self, settings: TensorBoardSettings, about: About):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.folder = str(about.folder)
        self._before = self.folder if about.goes_on else ""
        self._seen = self._read() if self._before else None
        self._writer = EventFileWriter(self.folder)
        if not about.goes_on:
            text = "\n".join(f"    {key}: {value}" for key, value in about.settings.items())
            self._text("run.yaml", 0, text)

    def figures(self, step: int, time: float, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2

        told = [summary_pb2.Summary.Value(tag=k, simple_value=v) for k, v in values.items()]
        summary = summary_pb2.Summary(value=told)
        self._writer.add_event(event_pb2.Event(wall_time=time, step=step, summary=summary))

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._text(name, step, as_markdown(rows))

    def picture(self, name: str, step: int, png: bytes) -> None:
        from tensorboard.compat.proto import summary_pb2

        width, height = struct.unpack(">II", png[16:24])
        image = summary_pb2.Summary.Image(
            encoded_image_string=png, width=width, height=height, colorspace=4
        )
        self._add(summary_pb2.Summary.Value(tag=name, image=image), step)

    def file(self, path: Path) -> None:
        if path.name == "summary.json":
            found = json.loads(path.read_text(encoding="utf-8"))
            self._text("summary.json", int(found.get("steps") or 0), _indented(found))

    def flush(self) -> None:
        self._writer.flush()

    def reached(self) -> Mapping[str, int] | None:
        return self._seen

    def finish(self, status: str) -> None:
        self._writer.close()

    def _read(self) -> dict[str, int]:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        held = EventAccumulator(self.folder, size_guidance={"scalars": 0})
        held.Reload()
        return {tag: held.Scalars(tag)[-1].step for tag in held.Tags()["scalars"]}

    def _text(self, name: str, step: int, text: str) -> None:
        from tensorboard.compat.proto import summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
        from tensorboard.plugins.text import metadata

        tensor = tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING,
            string_val=[text[:LONGEST_TEXT].encode("utf-8")],
            tensor_shape=tensor_shape_pb2.TensorShapeProto(),
        )
        about = metadata.create_summary_metadata(display_name=name, description="")
        self._add(summary_pb2.Summary.Value(tag=name, tensor=tensor, metadata=about), step)

    def _add(self, value: Any, step: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2

        summary = summary_pb2.Summary(value=[value])
        self._writer.add_event(event_pb2.Event(wall_time=clock.time(), step=step, summary=summary))


def _indented(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=2)
    return "\n".join(f"    {line}" for line in text.splitlines())


@tracker(
    "tensorboard", TensorBoardSettings, needs=("tensorboard",), view="tensorboard --logdir {folder}"
)
def tensorboard(settings: TensorBoardSettings, about: About) -> TensorBoard:
    """Open TensorBoard."""
    return TensorBoard(settings, about)
