"""The parts of an advice without a model: passages, queries, rows, scores."""

from __future__ import annotations

import json
import random
import sqlite3
from pathlib import Path

import pytest
from helpers import advising
from helpers.building import codes

from tunewright.commands.advising import passages, rows, simple
from tunewright.commands.advising import tables as advising_tables
from tunewright.commands.advising.lookup import Lookup, same
from tunewright.commands.advising.measuring import Judge, Kept, Measured, beyond_chance
from tunewright.commands.advising.prompts import Prompts
from tunewright.commands.advising.tables import Database, sql_in
from tunewright.core.errors import TunewrightError

# ---- passages


def test_a_passage_has_the_headings_it_stands_under() -> None:
    text = "# Library\n\nA large house.\n\n## Hours\n\nIt opens at nine every morning but Monday, and closes at six in the evening.\n\n# Pool\n\nIt opens at ten."
    found = passages.passages_of(text)
    assert found[1].startswith("Library\nHours\nIt opens at nine")
    assert found[2] == "Pool\nIt opens at ten."


def test_one_fact_a_line_is_one_passage_a_line_and_wrapped_lines_stay_together() -> None:
    facts = "Ida Vell runs the mill of Ostrey since 1950.\nBo Oom runs the inn of Ostrey since 1971.\nCy Thane runs the forge of Ostrey since 1981."
    assert passages.passages_of(facts) == facts.split("\n")
    items = "- The mill is open from nine to five on all days.\n- The inn is open at night and on all holidays"
    assert len(passages.passages_of(items)) == 2
    wrapped = "The mill of Ostrey is run by Ida Vell, who\nhas done so since 1950 and likes it."
    assert passages.passages_of(wrapped) == [wrapped]


@pytest.mark.parametrize("text", ["word " * 5000, "字" * 5000, "A sentence of five words. " * 800, "一句话。" * 900, "x" * 9000])  # fmt: skip
def test_long_texts_are_cut_and_nothing_is_lost(text: str) -> None:
    found = passages.passages_of(text)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert max(map(passages.num_words, found)) <= 4 * passages.PASSAGE_WORDS


def test_chinese_is_searched_by_characters_and_pairs() -> None:
    texts = [
        "星湖图书馆每天九点开门，由林若溪管理。",
        "星湖游泳馆每天十点开门。",
        "山谷面包店由陈大文经营。",
    ]
    index = passages.Index(texts)
    assert index.search("图书馆几点开门？", 1) == [0]
    assert index.search("谁经营面包店？", 1) == [2]
    assert passages.terms("GB2312编码 v1.5") == ["gb2312", "编", "码", "编码", "v1.5"]


def test_search_gives_equal_texts_in_their_order_and_leaves_a_row_out() -> None:
    index = passages.Index(["a red boat", "a red boat", "green hills"])
    assert index.search("red boat", 3) == [0, 1]
    assert index.search("red boat", 3, without=0) == [1]
    assert index.search("???", 3) == [] and passages.Index(["", "?"]).search("boat", 2) == []


def test_documents_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.md").write_text(
        "# A\n\nThe mill stands by the river.\n", encoding="utf-8"
    )
    (tmp_path / "b.txt").write_bytes("磨坊在河边。".encode("gb18030"))
    rows_ = [{"title": "C", "text": "The inn is old."}, {"question": "Who?", "answer": "Vell"}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows_)), encoding="utf-8")
    (tmp_path / "d.pdf").write_bytes(b"%PDF-1.4")
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    found = passages.read_documents(tmp_path)
    assert [p.place for p in found.passages] == ["b.txt", "c.jsonl:1", "c.jsonl:2", "sub/a.md"]
    assert found.passages[1].text == "C\nThe inn is old." and found.skipped == ["d.pdf"]
    assert "Who?" in found.passages[2].text and found.documents == 4


@pytest.mark.parametrize("make", ["missing", "empty", "pdf"])
def test_documents_without_text_are_refused(tmp_path: Path, make: str) -> None:
    place = tmp_path / "docs"
    if make != "missing":
        place.mkdir()
    if make == "pdf":
        (place / "a.pdf").write_bytes(b"%PDF-1.4")
    with pytest.raises(TunewrightError) as caught:
        passages.read_documents(place)
    assert codes(caught.value) == ["E-ADVISE-02"]


def test_every_fact_is_found_with_one_passage(tmp_path: Path) -> None:
    made = advising.facts(tmp_path)
    read = rows.read_rows(str(made["data"]), seed=0)
    documents = [p.text for p in passages.read_documents(made["docs"]).passages]
    prompts = Prompts.of(read, documents, 0)
    assert prompts.depth == 1
    own, chance = beyond_chance(read, prompts.held)
    assert min(own) == 1.0 and sum(chance) / len(chance) < 0.2


# ---- tables


@pytest.fixture(params=["csv", "sqlite"])
def goods(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Path]:
    return advising.table(tmp_path, kind=request.param)


def test_queries_are_learnt_from_examples(goods: dict[str, Path]) -> None:
    read = rows.read_rows(str(goods["data"]), seed=0)
    lookup = Lookup(Database(goods["tables"]))
    lookup.learn([(rows.asked(row), row.answer()) for row in read.train])
    right = 0
    for question, expected in zip(read.questions, read.expected, strict=True):
        sql = lookup.query(question)
        right += sql is not None and same(expected, lookup.database.ask(sql) or "", question)
    assert right == len(read.held_out)
    own, chance = beyond_chance(read, lambda row, a: float(lookup.reached(rows.asked(row), a)))
    assert min(own) == 1.0 and sum(chance) / len(chance) < 0.4


STAFF = [("Ida Vell", "Rome", 41, 3100.0), ("Bo Oom", "Rome", 29, 2800.5), ("Cy Thane", "Oslo", 55, 4100.0), ("Di Quist", "Oslo", 33, 2500.0), ("Ed Tull", "Bern", 47, 3900.0)]  # fmt: skip


@pytest.fixture
def staff(tmp_path: Path) -> Lookup:
    file = tmp_path / "staff.db"
    with sqlite3.connect(file) as db:
        db.execute('create table "staff list" (name text, city text, "age" integer, salary real)')
        db.executemany('insert into "staff list" values (?, ?, ?, ?)', STAFF)
        db.execute("create table cities (city text, country text)")
        db.executemany("insert into cities values (?, ?)", [("Rome", "Italy"), ("Oslo", "Norway"), ("Bern", "Switzerland")])  # fmt: skip
    db.close()
    return Lookup(Database(file))


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("How old is Ida Vell?", "41"),
        ("how old is IDA VELL", "41"),
        ("Ida Vell's age?", "41"),
        ("Wie alt ist Ida Vell?", "She is 41 years old."),
        ("Where does Bo Oom live?", "Rome"),
        ("Who earns most?", "Cy Thane"),
        ("Who earns most in Rome?", "Ida Vell"),
        ("Who is older, Bo Oom or Ed Tull?", "Ed Tull"),
        ("How many people live in Oslo?", "2"),
        ("What is the average age in Rome?", "35"),
        ("What do all earn together?", "16400.5"),
        ("How many people are older than 40?", "3"),
        ("In which country does Ed Tull live?", "Switzerland"),
        ("How many different cities are there?", "3"),
    ],
)
def test_an_answer_of_a_table_is_reached(staff: Lookup, question: str, expected: str) -> None:
    assert staff.reached(question, expected)


@pytest.mark.parametrize(("question", "expected"), [("How old is Ida Vell?", "42"), ("Where does Bo Oom live?", "Paris"), ("Who is it?", "Zed")])  # fmt: skip
def test_what_the_table_does_not_say_is_not_reached(
    staff: Lookup, question: str, expected: str
) -> None:
    assert not staff.reached(question, expected)


def test_a_year_is_a_name_and_a_figure(tmp_path: Path) -> None:
    file = tmp_path / "sales.csv"
    lines = [
        f"{year},{shop},{sold}"
        for year, shop, sold in (
            (2021, "Oslo", 40),
            (2021, "Bern", 55),
            (2022, "Oslo", 1999),
            (2022, "Bern", 2022),
        )
    ]
    file.write_text("sold_in,shop,pieces\n" + "\n".join(lines) + "\n", encoding="utf-8")
    lookup = Lookup(Database(file))
    assert lookup.reached("How many pieces were sold in Bern in 2021?", "55")
    assert lookup.reached("How many pieces were sold in 2021 together?", "95")
    assert lookup.reached("How often were more than 1999 pieces sold?", "1")


FORBIDDEN = [
    'DELETE FROM "staff list"',
    "UPDATE cities SET city = 'x'",
    "INSERT INTO cities VALUES ('a', 'b')",
    "DROP TABLE cities",
    "CREATE TABLE t (x)",
    "ATTACH '/tmp/x.db' AS x",
    "PRAGMA writable_schema=ON",
    "SELECT load_extension('x')",
    "SELECT randomblob(1000000000)",
    "SELECT printf('%.*c', 100000000, 'x')",
    "SELECT 1; DROP TABLE cities",
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c) SELECT COUNT(*) FROM c",
    "VACUUM INTO '/tmp/copy.db'",
    "not sql at all",
    "SELECT 'open",
    "SELECT \x00",
    "",
]


@pytest.mark.parametrize("sql", FORBIDDEN)
def test_sql_can_only_read(staff: Lookup, sql: str) -> None:
    before = staff.database.path.read_bytes()
    found = staff.database.ask(sql)
    assert not found
    assert staff.database.path.read_bytes() == before
    assert staff.database.ask("SELECT COUNT(*) FROM cities") == "3"


def test_sql_without_an_end_is_stopped(staff: Lookup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were it not, this test would not end."""
    monkeypatch.setattr(advising_tables, "MOST_SECONDS", 0.2)
    tables = ", ".join(f'"staff list" AS t{i}' for i in range(14))
    assert staff.database.ask(f"SELECT COUNT(*) FROM {tables}") is None  # noqa: S608


@pytest.mark.parametrize(
    ("written", "sql"),
    [
        ("SELECT a FROM t;", "SELECT a FROM t"),
        ("```sql\nSELECT a FROM t\n```\nThis gives a.", "SELECT a FROM t"),
        ("The query is: select a from t where b = 'x;y'; It works.", "select a from t where b = 'x;y'"),
        ("WITH x AS (SELECT 1) SELECT * FROM x", "WITH x AS (SELECT 1) SELECT * FROM x"),
        ("I do not know", "I do not know"),
    ],
)  # fmt: skip
def test_the_statement_in_what_a_model_wrote(written: str, sql: str) -> None:
    assert sql_in(written) == sql


def test_columns_of_a_csv_are_typed_by_what_stands_in_them(tmp_path: Path) -> None:
    file = tmp_path / "a list.csv"
    file.write_text("code;order;size\n007;3;1.5\n012;;2\n", encoding="utf-8")
    database = Database(file)
    (table,) = database.tables
    assert [(c.name, c.is_number) for c in table.columns] == [("code", False), ("order", True), ("size", True)]  # fmt: skip
    assert database.ask("SELECT code FROM a_list WHERE size > 1.6") == "012"
    assert '"order" REAL' in database.schema()


@pytest.mark.parametrize(("name", "content"), [("a.csv", b""), ("a.txt", b"a,b\n1,2\n"), ("a.sqlite", b"SQLite format 3\x00" + b"\x07" * 200), ("none.csv", None), ("a.db", b"no database")])  # fmt: skip
def test_what_is_no_table_is_refused(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TunewrightError) as caught:
        Database(tmp_path / name)
    assert codes(caught.value)[0] in ("E-ADVISE-03", "E-DATA-06", "E-DATA-16")


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "a.db") as db:
        db.execute("create table t (x)")
    db.close()
    with pytest.raises(TunewrightError) as caught:
        Database(tmp_path / "a.db")
    assert codes(caught.value) == ["E-ADVISE-03"]


@pytest.mark.parametrize(
    ("expected", "result", "question", "right"),
    [
        ("12.5", "12.50", "", True),
        ("12.33", "12.3333333", "", True),
        ("1,200", "1200", "", True),
        ("12", "12.4", "", True),
        ("0", "0.3", "", False),
        ("It costs 12.5 dollars.", "12.5", "What does it cost?", True),
        ("It costs 112.5 dollars.", "12.5", "What does it cost?", False),
        ("The lamp costs 5", "lamp", "What does the lamp cost?", False),
        ("a chair, a lamp and a desk", "a lamp, a desk, a chair", "", True),
        ("罗马", "罗马", "", True),
        ("他住在罗马。", "罗马", "他住哪里？", True),
        ("Rome", "", "", False),
    ],
)
def test_when_a_result_is_the_answer(
    expected: str, result: str, question: str, right: bool
) -> None:
    assert same(expected, result, question) is right


# ---- rows and scores


def test_equal_questions_stay_on_one_side_and_the_seed_decides(tmp_path: Path) -> None:
    pairs = [(f"Question {i // 2}?", f"answer {i}") for i in range(120)]
    file = advising.write_rows(tmp_path / "rows.jsonl", pairs)
    one, again, other = (rows.read_rows(str(file), seed=seed) for seed in (1, 1, 2))
    assert one.questions == again.questions != other.questions
    assert not set(one.questions) & {rows.asked(row) for row in one.train}
    assert len(one.train) + len(one.held_out) == 120 and 24 <= len(one.held_out) <= 48


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    for pairs in (
        [(f"q {i}", "a") for i in range(9)],
        [("the same?", f"a {i}") for i in range(90)],
    ):
        file = advising.write_rows(tmp_path / "rows.jsonl", pairs)
        with pytest.raises(TunewrightError) as caught:
            rows.read_rows(str(file), seed=0)
        assert codes(caught.value) == ["E-ADVISE-01"]


def test_what_an_answer_says_beyond_its_question(tmp_path: Path) -> None:
    made = rows.read_rows(str(advising.output_format(tmp_path)["data"]), seed=0)
    assert not any(made.beyond(row) for row in made.held_out)
    facts = rows.read_rows(str(advising.facts(tmp_path / "facts")["data"]), seed=0)
    assert all(facts.beyond(row) for row in facts.held_out)


def judged(tmp_path: Path, pairs: list[tuple[str, str]]) -> Judge:
    return Judge(rows.read_rows(str(advising.write_rows(tmp_path / "r.jsonl", pairs)), seed=0))


def test_a_label_counts_where_it_is_named_and_no_other(tmp_path: Path) -> None:
    draw = random.Random(0)
    labels = ["good", "not good", "bad"]
    judge = judged(tmp_path, [(f"text {i}", draw.choice(labels)) for i in range(60)])
    assert judge.metric == "labels"
    judge.rows.held_out[:] = judge.rows.held_out[:1]
    expected = judge.rows.expected[0]
    others = [label for label in labels if label != expected]
    assert judge.scores([f"It is {expected}."]) == [1.0]
    assert judge.scores([others[0]]) == [0.0]
    assert judge.scores([f"{expected} or bad or goodness, no, {others[0]} {others[1]}"]) == [0.0]
    assert judge.scores([""]) == [0.0]


def test_the_metric_follows_from_the_answers(tmp_path: Path) -> None:
    names = [
        a + b
        for a in "Tam Od Hest Bra Mae".split()
        for b in "sin ric rel nn lis vin olde rin".split()
    ]
    kinds = {
        "number": [(f"q{i}", str(i * 7)) for i in range(40)],
        "contains": [(f"q{i}", f"{a} Vell") for i, a in enumerate(names)],
        "json_equal": [(f"q{i}", json.dumps({"n": i})) for i in range(40)],
        "rougeL": [(f"q{i}", f"In this year {a} built the old mill by the river again, said {a}.") for i, a in enumerate(names)],
    }  # fmt: skip
    for metric, pairs in kinds.items():
        judge = judged(tmp_path, pairs)
        assert judge.metric == metric
        assert judge.scores(judge.rows.expected) == [1.0] * len(judge.rows.held_out)


def test_a_formula_is_found_and_predicts_new_rows(tmp_path: Path) -> None:
    read = rows.read_rows(str(advising.formula(tmp_path)["data"]), seed=0)
    found = simple.measure(read, Judge(read), 0)
    assert found.suffices == "formula" and found.formula is not None
    assert {one.way: sum(one.scores) for one in found.measured}["formula"] == len(read.held_out)
    question = "Machine with speed 40, load 10 and age 5: what is its score?"
    assert simple.predict(read, [question], 0) == ["94.0"]


def test_few_different_numbers_are_labels_and_numbers(tmp_path: Path) -> None:
    draw = random.Random(2)
    pairs = [
        (f"Width {a} and height {b}?", str(a + b))
        for a, b in ((draw.randint(0, 4), draw.randint(0, 4)) for _ in range(200))
    ]
    read = rows.read_rows(str(advising.write_rows(tmp_path / "r.jsonl", pairs)), seed=0)
    assert read.labels
    found = simple.measure(read, Judge(read), 0)
    assert found.suffices == "formula" and {"formula", "classes"} <= {m.way for m in found.measured}


def test_words_around_a_number_do_not_hide_it(tmp_path: Path) -> None:
    pairs = [
        (f"x is {i} and y is {i * i % 7}", f"Score: {3 * i + i * i % 7} points") for i in range(60)
    ]
    read = rows.read_rows(str(advising.write_rows(tmp_path / "r.jsonl", pairs)), seed=0)
    judge = Judge(read)
    assert judge.metric == "number" and simple.measure(read, judge, 0).suffices == "formula"


def test_words_are_a_classifier(tmp_path: Path) -> None:
    draw = random.Random(1)
    words = {"fruit": "apple pear plum cherry".split(), "tool": "hammer saw chisel drill".split()}
    pairs = []
    for i in range(120):
        label = draw.choice(list(words))
        pairs.append(
            (f"Item {i}: {draw.choice(words[label])} and {draw.choice(words[label])}", label)
        )
    read = rows.read_rows(str(advising.write_rows(tmp_path / "r.jsonl", pairs)), seed=0)
    found = {one.way: one for one in simple.measure(read, Judge(read), 0).measured}
    assert sum(found["classes"].scores) == len(read.held_out) > sum(found["constant"].scores)


def test_what_is_kept_is_found_under_its_key_only(tmp_path: Path) -> None:
    kept, one = Kept(tmp_path), Measured("base", ["a"], [1.0], [0.0], 1.5, 20.0, ends={"stop": 1})
    assert kept.get("base", "k") is None
    kept.put("k", one)
    assert kept.get("base", "k") == one and kept.get("base", "other") is None
    (tmp_path / "measured" / "base.json").write_text("{", encoding="utf-8")
    assert kept.get("base", "k") is None
