"""The table of what models of 0.5 to 70 billion weights need on one device and on eight, in
`docs/many-gpus.md` and `docs/many-gpus.zh-CN.md`, counted by `tunewright plan`.

Run `python tools/sizes_page.py docs` after changing what an estimate counts; a test compares the
committed tables with what this makes. Nothing of it is measured.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tunewright.advise import changes, devices
from tunewright.commands import planning
from tunewright.core.files import write_text
from tunewright.core.runfile import parse_run

NAMES = {"en": "many-gpus.md", "zh": "many-gpus.zh-CN.md"}
BEGIN, END = "<!-- sizes_page.py -->", "<!-- end of sizes_page.py -->"
SIZES = (1, 3, 5, 7, 9, 10, 11, 12)
"""Places in `changes.LADDER`."""
WAYS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "QLoRA": {"base.bits": 4},
    "full": {"method.kind": "full"},
}
SETTINGS = {"engine.recompute": "full", "engine.offload": "none"}
"""With `auto`, what is counted would depend on the device that it is held against."""
DEVICE, COUNT, ROWS, TOKENS = "A100 40GB", 8, 1000, 512
HEADS = {
    "en": "| weights | way | one device needs, GiB | smallest that holds it | {count} × {device} | GiB on each | of it weights, gradients, optimiser | sent by each in a step, GiB | fits |\n|---|---|---|---|---|---|---|---|---|",
    "zh": "| 参数量 | 方式 | 单个设备需要（GiB） | 放得下的最小设备 | {count} × {device} | 每个设备 GiB | 其中权重、梯度、优化器 | 每步每个设备发送（GiB） | 放得下 |\n|---|---|---|---|---|---|---|---|---|",
}
WORDS = {"en": {"none": "none", "yes": "yes", "no": "no"}, "zh": {"none": "没有", "yes": "是", "no": "否"}}  # fmt: skip


def planned(size: int, way: str, count: int) -> dict[str, Any]:
    """What `tunewright plan` finds for a size of the ladder on `count` devices."""
    shape, device = changes.ladder()[size], devices.named(DEVICE)
    given = {"model": planning.ANY_MODEL, "data.train": planning.MADE_UP, **SETTINGS, **WAYS[way]}
    wish = planning.Wish(
        device=device, rows=ROWS, tokens=TOKENS, shape=shape, devices=count, try_blocks=False
    )
    return planning.plan(parse_run(given, {}), wish).figures


def row(size: int, way: str, lang: str) -> str:
    """One line of the table."""
    words = WORDS[lang]
    alone, many = planned(size, way, 1), planned(size, way, COUNT)
    parts = many["parts"]
    held = sum(parts.get(name, 0) for name in ("weights", "adapter", "optimiser"))
    cells = [
        f"{changes.billions(alone['parameters'])}B",
        way,
        gib(alone["needed_memory_bytes"]),
        (alone["fits_on"] or [words["none"]])[0],
        many["parallel"],
        gib(many["needed_memory_bytes"]),
        gib(held),
        gib(many["sent_bytes_per_step"]),
        words["yes" if many["fits"] else "no"],
    ]
    return "| " + " | ".join(cells) + " |"


def gib(size: int) -> str:
    """Bytes as GiB, for a cell."""
    return f"{size / 2**30:,.1f}"


def table(lang: str) -> str:
    """The lines between the marks."""
    head = HEADS[lang].format(count=COUNT, device=DEVICE)
    return "\n".join([head, *(row(size, way, lang) for size in SIZES for way in WAYS)])


def with_table(text: str, lang: str) -> str:
    """A page with the table of now between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(lang)}\n{END}{after}"


def main(words: list[str]) -> int:
    """Write the table into both pages of the folder that is named."""
    folder = Path(words[0] if words else "docs")
    for lang, name in NAMES.items():
        path = folder / name
        write_text(path, with_table(path.read_text(encoding="utf-8"), lang))
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
