"""A clean set of varied questions and answers, and faults to plant in it. Written without the code
under test."""

from __future__ import annotations

import random
from typing import Any

SUBJECTS = "river castle engine garden market telescope bakery harbour violin glacier library orchard volcano bridge museum printer satellite forest beehive tunnel".split()
OTHERS = "winter summer copper silver paper wooden ancient modern northern southern public private heavy gentle narrow distant quiet famous broken painted".split()
VERBS = "carries opens measures cleans repairs protects connects feeds warms divides supports replaces follows explains colours surrounds".split()
THINGS = "stones letters boats children windows seeds coins lamps maps ropes wheels bottles candles horses mirrors ladders clocks baskets gloves tiles".split()
PLACES = "valley island village capital desert coast meadow suburb square plateau cellar attic courtyard station canyon lagoon".split()
ASKING = [
    "What is special about",
    "Why do people like",
    "How old is",
    "Where would you find",
    "Who looks after",
    "When was somebody last at",
    "How far away is",
    "Which tool fits",
]
Row = dict[str, Any]


def sentence(draw: random.Random) -> str:
    """About twelve words."""
    one = [
        draw.choice(part)
        for part in (OTHERS, SUBJECTS, VERBS, OTHERS, THINGS, PLACES, OTHERS, SUBJECTS)
    ]
    return f"The {one[0]} {one[1]} {one[2]} {draw.randint(2, 900)} {one[3]} {one[4]} near the {one[5]} and the {one[6]} {one[7]}."


def question(draw: random.Random) -> str:
    """About ten words with a question mark."""
    first = draw.choice(ASKING)
    return f"{first} the {draw.choice(OTHERS)} {draw.choice(SUBJECTS)} with {draw.randint(2, 9000)} {draw.choice(OTHERS)} {draw.choice(THINGS)} in the {draw.choice(PLACES)}?"


def answer(draw: random.Random, sentences: int = 0) -> str:
    return " ".join(sentence(draw) for _ in range(sentences or draw.randint(1, 3)))


def clean(count: int, seed: int = 0) -> list[Row]:
    """Rows in which nothing is wrong."""
    draw = random.Random(seed)
    return [{"instruction": question(draw), "output": answer(draw)} for _ in range(count)]


# Longer than any clean row in tokens of the tiny tokenizer, shorter than a giant.
LONG_SENTENCES, GIANT_SENTENCES, LIMIT = 12, 400, 600


def planted(seed: int = 1) -> tuple[list[Row], list[Row], dict[str, int]]:
    """1,000 rows with nine faults, 100 held-out rows, and how many rows each fault has. Faults do
    not overlap but for the giant, which is also too long."""
    draw = random.Random(seed)
    rows: list[Row] = [
        {"instruction": question(draw), "output": answer(draw, LONG_SENTENCES)} for _ in range(500)
    ]
    rows.append({"instruction": question(draw), "output": answer(draw, GIANT_SENTENCES)})
    rows += [{"instruction": answer(draw, 1), "output": question(draw)} for _ in range(60)]
    rows += [{"instruction": question(draw), "output": ""} for _ in range(50)]
    spoilt = "Größe, naïve façade, señor Müller – 5 €.".encode().decode("cp1252")
    rows += [
        {"instruction": question(draw), "output": f"{answer(draw, 1)} {spoilt}"} for _ in range(40)
    ]
    for k in range(25):
        asked = f"{question(draw)} Good or bad?"
        rows += [
            {"instruction": asked, "output": label}
            for label in (("good", "bad") if k % 2 else ("bad", "good"))
        ]
    rows += [
        {"instruction": question(draw) + " <|im_end|> and then?", "output": answer(draw)}
        for _ in range(20)
    ]
    rows += [
        {
            "instruction": f"<s>[INST] {question(draw)} [/INST] {sentence(draw)}",
            "output": answer(draw),
        }
        for _ in range(30)
    ]
    kept = clean(100 - 70, seed + 7)
    shared = [{"instruction": question(draw), "output": answer(draw)} for _ in range(30)]
    rows += shared
    rows += [
        {"instruction": question(draw), "output": answer(draw)} for _ in range(1000 - len(rows))
    ]
    draw.shuffle(rows)
    held = [*shared, *kept, *clean(40, seed + 9)]
    counts = {
        "too_long": 501, "held_out_repeated": 30, "swapped_roles": 60, "empty": 50, "mojibake": 40, "contradictory_labels": 25, "control_tokens": 20,
        "wrong_template": 30, "giant_row": 1,
    }  # fmt: skip
    return rows, held, counts


def constant(count: int, varied: int, seed: int = 3) -> list[Row]:
    """Rows of which all but `varied` have one and the same answer."""
    draw = random.Random(seed)
    return [
        {
            "instruction": question(draw),
            "output": answer(draw) if k < varied else "I am not able to help with that.",
        }
        for k in range(count)
    ]
