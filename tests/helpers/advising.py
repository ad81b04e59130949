"""Rows, documents and tables of constructed tasks, each with a right answer to "what should I do?"."""

from __future__ import annotations

import csv
import json
import random
import sqlite3
from pathlib import Path
from typing import Any

FIRST = "Tamsin Odric Hestrel Brann Maelis Corvin Ysolde Perrin Quilla Dunstan Elowen Garrick Isolde Joss Kerensa Lorcan".split()
LAST = "Vell Sloane Oom Juddock Larkwell Thane Marrow Quist Pellow Harrowgate Stane Wick Ambrose Tull Fenn Orrin".split()
PLACES = "Mossenquay Vellmar Drasken Ostrey Pellgate Kirnholm Tarvock Quendale Brimhollow Ashfirth Lundmere Orsk Wexmoor Saltrey Corhaven Nethwick Yarrow Thessel Ruddock Elmsgate".split()
TRADES = {
    "baker": "runs the bakery",
    "keeper": "keeps the lighthouse",
    "teacher": "teaches at the school",
    "smith": "works the forge",
    "ferryman": "steers the ferry",
    "gardener": "tends the gardens",
}


def write_rows(path: Path, rows: list[tuple[str, str]]) -> Path:
    """Questions and answers as JSONL."""
    path.write_text(
        "".join(
            json.dumps({"question": q, "answer": a}, ensure_ascii=False) + "\n" for q, a in rows
        ),
        encoding="utf-8",
    )
    return path


def facts(place: Path, seed: int = 0) -> dict[str, Any]:
    """Facts about invented places; every answer stands in a document, and no fact is asked twice."""
    draw = random.Random(seed)
    docs = place / "docs"
    docs.mkdir(parents=True)
    rows: list[tuple[str, str]] = []
    for town in PLACES:
        lines = [
            f"# {town}",
            "",
            f"{town} is a small town by the sea with {draw.randint(2, 9)} streets and a market on the square.",
        ]
        for trade, does in TRADES.items():
            name = f"{draw.choice(FIRST)} {draw.choice(LAST)}"
            lines += [
                "",
                f"In {town}, {name} {does} and has done so since {draw.randint(1900, 1999)}. People speak well of the {trade}.",
            ]
            rows.append((f"Who is the {trade} of {town}?", name))
        (docs / f"{town.lower()}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw.shuffle(rows)
    return {"data": write_rows(place / "rows.jsonl", rows), "docs": docs}


GOODS = "apples pears loaves candles ropes nets lamps barrels".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday".split()


def output_format(place: Path, seed: int = 0, count: int = 200) -> dict[str, Any]:
    """Orders in words become one fixed line."""
    draw = random.Random(seed)
    place.mkdir(parents=True, exist_ok=True)
    rows = []
    for _ in range(count):
        name, day, good, number = (
            draw.choice(FIRST),
            draw.choice(DAYS),
            draw.choice(GOODS),
            draw.randint(2, 30),
        )
        rows.append(
            (f"{name} wants {number} {good} on {day}.", f"ORDER|{good}|{number}|{day}|{name}")
        )
    return {"data": write_rows(place / "rows.jsonl", rows)}


CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "Austria": "Vienna",
    "Greece": "Athens",
    "Poland": "Warsaw",
    "Hungary": "Budapest",
    "Sweden": "Stockholm",
    "Norway": "Oslo",
    "Denmark": "Copenhagen",
    "Finland": "Helsinki",
    "Ireland": "Dublin",
    "Russia": "Moscow",
    "Ukraine": "Kyiv",
    "Turkey": "Ankara",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "Japan": "Tokyo",
    "China": "Beijing",
    "India": "New Delhi",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Cuba": "Havana",
    "Peru": "Lima",
    "Chile": "Santiago",
    "Argentina": "Buenos Aires",
    "Canada": "Ottawa",
    "Thailand": "Bangkok",
    "Vietnam": "Hanoi",
    "Indonesia": "Jakarta",
    "South Korea": "Seoul",
    "Romania": "Bucharest",
    "Bulgaria": "Sofia",
    "Belgium": "Brussels",
    "Netherlands": "Amsterdam",
    "Switzerland": "Bern",
    "Colombia": "Bogotá",
    "Venezuela": "Caracas",
    "Morocco": "Rabat",
    "Syria": "Damascus",
    "Lebanon": "Beirut",
    "Afghanistan": "Kabul",
    "Nepal": "Kathmandu",
    "Mongolia": "Ulaanbaatar",
    "Philippines": "Manila",
    "Czech Republic": "Prague",
}


def known_skill(place: Path) -> dict[str, Any]:
    """Capitals: what any language model has read."""
    place.mkdir(parents=True, exist_ok=True)
    return {
        "data": write_rows(
            place / "rows.jsonl",
            [(f"What is the capital of {land}?", city) for land, city in CAPITALS.items()],
        )
    }


def table(place: Path, seed: int = 0, kind: str = "csv") -> dict[str, Any]:
    """Questions whose answers are cells and sums of a table."""
    draw = random.Random(seed)
    place.mkdir(parents=True, exist_ok=True)
    goods = [
        f"{a} {b}"
        for a in "Veltrix Ombra Candor Lumen Tarsk Noxel Prime Astor".split()
        for b in "lamp chair desk shelf stool".split()
    ]
    lines = [
        (name, draw.choice(PLACES), draw.randint(100, 9999) / 10, draw.randint(0, 500))
        for name in goods
    ]
    heads = ("product", "supplier", "price", "stock")
    if kind == "csv":
        file = place / "goods.csv"
        with file.open("w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows([heads, *lines])
    else:
        file = place / "goods.sqlite"
        with sqlite3.connect(file) as db:
            db.execute(
                "create table goods (product text, supplier text, price real, stock integer)"
            )
            db.executemany("insert into goods values (?, ?, ?, ?)", lines)
        db.close()
    rows = []
    for name, supplier, price, stock in lines:
        rows += [
            (f"What does the {name} cost?", str(price)),
            (f"How many pieces of the {name} are in stock?", str(stock)),
            (f"Which supplier delivers the {name}?", supplier),
        ]
    for supplier in sorted({line[1] for line in lines}):
        rows.append(
            (
                f"How many products does {supplier} deliver?",
                str(sum(line[1] == supplier for line in lines)),
            )
        )
    draw.shuffle(rows)
    return {"data": write_rows(place / "rows.jsonl", rows), "tables": file}


def formula(place: Path, seed: int = 0, count: int = 300) -> dict[str, Any]:
    """Scores of machines from three figures."""
    draw = random.Random(seed)
    place.mkdir(parents=True, exist_ok=True)
    rows = []
    for _ in range(count):
        speed, load, age = draw.randint(10, 90), draw.randint(1, 50), draw.randint(0, 30)
        rows.append(
            (
                f"Machine with speed {speed}, load {load} and age {age}: what is its score?",
                f"{2.5 * speed - 1.2 * load - 0.8 * age + 10:.1f}",
            )
        )
    return {"data": write_rows(place / "rows.jsonl", rows)}


def main(folder: str) -> None:
    """The five tasks of docs/advise.md below a folder."""
    place = Path(folder)
    for build in (facts, output_format, known_skill, table, formula):
        made = build(place / build.__name__)
        print(build.__name__, *made.values())


if __name__ == "__main__":
    import sys

    main(sys.argv[1])
