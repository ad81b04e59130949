"""What the lessons of docs/course share: a language model small enough to be taught in seconds,
pictures, and one sentence in two languages.

Nothing here trains: the lessons do that with `tunewright.train`, as a reader would.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tunewright.core import publish
from tunewright.core.files import write_json_lines
from tunewright.core.telling import Quiet
from tunewright.core.words import language

quiet = Quiet()
"""`tell=quiet`: a run that says nothing, for lessons that read its figures themselves."""

QUICK: dict[str, Any] = {"probes": 0, "forgetting": "off", "tell": quiet}
"""`**QUICK`: a run that asks no questions before and after, so that it takes a second or two."""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
COLOURS = ("#00796b", "#d81b60", "#1e66c8", "#e69100", "#6a3fa0", "#5d4037", "#444444", "#6b8e23")


def say(en: str, zh: str) -> str:
    """The sentence in the reader's language (`TUNEWRIGHT_LANG`)."""
    return zh if language() == "zh" else en


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write rows as JSON lines and return the path, ready for `data=`."""
    write_json_lines(Path(path), rows)
    return str(path)


def command(*words: str | Path) -> Any:
    """Run `tunewright WORDS` as in a terminal, show the line, and return what it prints: with
    `--json` the object, else the text. Raises RuntimeError with its message where it fails."""
    import json
    import subprocess
    import sys

    given = [str(word) for word in words]
    print("$ tunewright", " ".join(f'"{w}"' if " " in w else w for w in given))
    done = subprocess.run(
        [sys.executable, "-m", "tunewright", *given], capture_output=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.decode("utf-8", "replace"))
    text = done.stdout.decode("utf-8")
    return json.loads(text) if "--json" in given else text


def tiny_model(
    folder: str | Path,
    texts: Iterable[str],
    *,
    hidden: int = 96,
    layers: int = 3,
    heads: int = 4,
    context: int = 1024,
    seed: int = 0,
) -> str:
    """Write an untaught model of Qwen2's build into `folder` and return it; it has a few hundred
    thousand parameters.

    Its tokenizer is learnt from `texts`, so that each of their words is one token or a few; its
    chat template is ChatML. Weights are random: it knows nothing until a lesson trains it.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    chat = ["system\n", "user\n", "assistant\n"]
    backend.train_from_iterator([*texts, *chat], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=SPECIAL[2],
        pad_token=SPECIAL[0],
        chat_template=CHATML,
        model_max_length=context,
    )
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config)
    torch.set_rng_state(state)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def teach(
    folder: str | Path,
    rows: Sequence[Mapping[str, str]],
    *,
    steps: int = 600,
    batch: int = 48,
    rate: float = 2e-3,
    seed: int = 0,
) -> float:
    """Teach the tiny model in `folder` the rows (`instruction`, `output`) and return its last loss,
    in nats a learnt token.

    The plainest loop that there is: it stands for the months of pretraining that a base model had
    before you met it. Fine-tuning is `tunewright.train`.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    samples = _labelled(tokenizer, rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    draw = torch.Generator().manual_seed(seed)
    loss = torch.zeros(())
    # Matrices this small are slower on two threads, and far slower where others use the machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(steps):
            chosen = [samples[i] for i in torch.randint(len(samples), (batch,), generator=draw)]
            longest = max(len(tokens) for tokens, _ in chosen)
            tokens_BT = torch.full((batch, longest), tokenizer.pad_token_id)
            labels_BT = torch.full((batch, longest), -100)
            for b, (tokens, labels) in enumerate(chosen):
                tokens_BT[b, : len(tokens)] = torch.tensor(tokens)
                labels_BT[b, : len(labels)] = torch.tensor(labels)
            loss = model(input_ids=tokens_BT, labels=labels_BT).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
    finally:
        torch.set_num_threads(threads)
    model.eval().save_pretrained(folder)
    return loss.item()


LETTERS = "abcdefghijkl"
SKILLS = ("first", "second", "last")


def letter_rows(
    skill: str, count: int, *, called: str | None = None, seed: int = 0
) -> list[dict[str, str]]:
    """Rows of the lessons' toy task: `last: a g k` is answered with `k`.

    `skill` is `first`, `second`, `last` or `reverse`; `called` is the word that asks for
    it (default: its own name).
    """
    import random

    draw = random.Random(f"{skill} {seed}")
    rows = []
    for _ in range(count):
        given = draw.sample(LETTERS, 3)
        answer = {"first": given[:1], "second": given[1:2], "last": given[2:]}
        answer |= {"reverse": given[::-1]}
        question = f"{called or skill}: {' '.join(given)}"
        rows.append({"instruction": question, "output": " ".join(answer[skill])})
    return rows


def letter_model(folder: str | Path, *, steps: int = 650, seed: int = 0) -> str:
    """A tiny model that knows the skills `first`, `second` and `last`. Its tokenizer knows the
    words `mystery` and `reverse`, too, which nobody has taught it.

    Teaching takes some ten seconds and is done once: later lessons copy the taught model from the
    cache (`TUNEWRIGHT_CACHE`).
    """
    import hashlib
    import shutil

    import torch

    how = f"{Path(__file__).read_text(encoding='utf-8')} {torch.__version__}"
    key = hashlib.sha256(how.encode()).hexdigest()[:12]
    kept = publish.cache_root() / "course" / f"letters-{steps}-{seed}-{key}"
    if publish.marker_of(kept) is None:
        publish.publish(kept, lambda place: _taught_letters(place, steps, seed))
    shutil.copytree(kept, folder, ignore=shutil.ignore_patterns(publish.MARKER))
    return str(folder)


def _taught_letters(folder: Path, steps: int, seed: int) -> dict[str, Any]:
    rows = [row for skill in SKILLS for row in letter_rows(skill, 1000, seed=seed)]
    words = [f"{row['instruction']} {row['output']}" for row in rows[::20]]
    tiny_model(folder, [*words, "mystery: a", "reverse: a"], hidden=64, layers=2, seed=seed)
    return {"loss": teach(folder, rows, steps=steps, batch=32, rate=4e-3, seed=seed)}


def share_right(model: str | Path, rows: str, **options: Any) -> float:
    """The share of the rows of a file that a run or model answers exactly, between 0 and 1.
    `options` are those of `tunewright evaluate`."""
    from tunewright.evaluate.scoring import evaluate_target

    asked = {"options": [], "generate": True, "metrics": ["exact"], "max_new_tokens": 12}
    found = evaluate_target(str(model), rows, **{**asked, **options}, tell=quiet)
    return float(found["metrics"]["exact"]["value"])


def _labelled(
    tokenizer: Any, rows: Sequence[Mapping[str, str]]
) -> list[tuple[list[int], list[int]]]:
    """Tokens of each row and their labels: -100 where nothing is learnt, which is the question."""
    heads = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["instruction"]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for row in rows
    ]
    questions = tokenizer(heads)["input_ids"]
    answers = tokenizer([row["output"] + tokenizer.eos_token for row in rows])["input_ids"]
    return [(q + a, [-100] * len(q) + a) for q, a in zip(questions, answers, strict=True)]


class Picture:
    """A drawing as SVG; a notebook shows it in place."""

    def __init__(self, width: int, height: int, parts: Sequence[str], about: str):
        style = "font-family:system-ui,sans-serif;font-size:12px;background:#fff"
        self.svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" aria-label="{escape(about)}" '
            f'style="{style}">'
            f'<rect width="{width}" height="{height}" fill="#fff"/>{"".join(parts)}</svg>'
        )
        self.about = about

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"[{self.about}]"


def _text(x: float, y: float, text: str, anchor: str = "start", **more: str) -> str:
    extra = "".join(f' {name.rstrip("_")}="{value}"' for name, value in more.items())
    extra = extra if "fill" in more else extra + ' fill="#222"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = "#ccc") -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"'
        ' stroke-width="1"/>'
    )


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]], *, x: str, y: str, about: str
) -> Picture:
    """Lines through (x, y) points, one a name, with a legend. `about` says what is seen. Raises
    ValueError when there is no point."""
    from tunewright.report.chart import ticks

    points = [point for line in series.values() for point in line]
    if not points:
        raise ValueError("no point to draw")
    width, height, left, top, bottom = 640, 300, 60, 16, 44
    right = 150
    x_low, x_high = min(p[0] for p in points), max(p[0] for p in points)
    x_high = x_high if x_high > x_low else x_low + 1
    y_ticks = ticks(min(0.0, *(p[1] for p in points)), max(p[1] for p in points))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def px(value: float) -> float:
        return left + (value - x_low) / (x_high - x_low) * (width - left - right)

    def py(value: float) -> float:
        return top + (y_high - value) / (y_high - y_low) * (height - top - bottom)

    parts: list[str] = []
    for t in y_ticks:
        parts.append(_line(left, py(t), width - right, py(t)))
        parts.append(_text(left - 7, py(t) + 4, f"{t:g}", "end"))
    for t in ticks(x_low, x_high, 6):
        if x_low <= t <= x_high:
            parts.append(_line(px(t), height - bottom, px(t), height - bottom + 5, "#222"))
            parts.append(_text(px(t), height - bottom + 19, f"{t:g}", "middle"))
    parts.append(_text((left + width - right) / 2, height - 6, x, "middle"))
    middle = (top + height - bottom) / 2
    parts.append(_text(14, middle, y, "middle", transform=f"rotate(-90 14 {middle:.0f})"))
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = " ".join(f"{px(a):.1f},{py(b):.1f}" for a, b in line)
        parts.append(
            f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        if len(line) < 40:
            parts += [
                f'<circle cx="{px(a):.1f}" cy="{py(b):.1f}" r="2.5" fill="{colour}"/>'
                for a, b in line
            ]
        at = top + 8 + 18 * number
        parts.append(f'<rect x="{width - right + 10}" y="{at - 8}" width="14" height="4" ')
        parts.append(f'fill="{colour}"/>')
        parts.append(_text(width - right + 30, at - 2, name))
    return Picture(width, height, parts, about)


def bars(
    values: Mapping[str, float], *, about: str, top: float | None = None, form: str = "{:g}"
) -> Picture:
    """One bar a name, from 0 to `top` (default: the largest value), its value at its end, written
    as `form` says."""
    full = top or max([*values.values(), 1e-12])
    left, width, row = 190, 640, 24
    parts: list[str] = []
    for number, (name, value) in enumerate(values.items()):
        y = 10 + number * row
        long = max(0.0, min(1.0, value / full)) * (width - left - 90)
        parts.append(_text(left - 8, y + 14, name, "end"))
        parts.append(f'<rect x="{left}" y="{y + 3}" width="{long:.1f}" height="16" ')
        parts.append(f'fill="{COLOURS[0]}"/>')
        parts.append(_text(left + long + 6, y + 15, form.format(value)))
    return Picture(width, 20 + row * len(values), parts, about)


def ribbon(tokens: Sequence[str], marked: Sequence[bool], *, about: str) -> Picture:
    """Tokens as boxes that wrap into lines; marked ones are filled."""
    width, x, y, parts = 640, 8.0, 8.0, list[str]()
    for token, is_marked in zip(tokens, marked, strict=True):
        shown = token.replace("\n", "⏎").replace(" ", "·")
        wide = 10 + sum(13.0 if ord(c) > 0x2E7F else 7.2 for c in shown)
        if x + wide > width - 8:
            x, y = 8.0, y + 28
        fill, ink = (COLOURS[0], "#fff") if is_marked else ("#eee", "#222")
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="22" rx="3" fill="{fill}"/>'
        )
        parts.append(_text(x + wide / 2, y + 15, shown, "middle", fill=ink))
        x += wide + 3
    return Picture(width, int(y) + 36, parts, about)


def grid(
    values: Sequence[Sequence[float]], *, about: str, title: str = "", cell: int = 12
) -> Picture:
    """A matrix as squares: the larger the number, the darker; green above zero, red below."""
    largest = max((abs(v) for row in values for v in row), default=0.0) or 1.0
    parts = [_text(8, 16, title)] if title else []
    top = 24 if title else 8
    for r, row in enumerate(values):
        for c, value in enumerate(row):
            colour = COLOURS[0] if value >= 0 else COLOURS[1]
            parts.append(
                f'<rect x="{8 + c * cell}" y="{top + r * cell}" width="{cell}" height="{cell}" '
                f'fill="{colour}" fill-opacity="{abs(value) / largest:.2f}"/>'
            )
    columns = max((len(row) for row in values), default=0)
    width = max(16 + cell * columns, 16 + 8 * len(title))
    return Picture(width, top + 8 + cell * len(values), parts, about)


__all__ = [
    "LETTERS",
    "QUICK",
    "Picture",
    "bars",
    "command",
    "curves",
    "grid",
    "letter_model",
    "letter_rows",
    "quiet",
    "ribbon",
    "say",
    "share_right",
    "teach",
    "tiny_model",
    "write_rows",
]
