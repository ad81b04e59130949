"""What a data check finds: planted faults by name and count, and nothing in clean data."""

from __future__ import annotations

import marshal
import pickle
import random

import pytest
from helpers import planting
from helpers.rows import check_rows

from tunewright.core.config import DataConfig
from tunewright.core.types import (
    Branch,
    Conversation,
    Judged,
    Message,
    Origin,
    PlainText,
    Preference,
    Sample,
    Stepwise,
)
from tunewright.core.words import catalogue
from tunewright.data.checks import (
    HELD_OUT,
    TRAIN,
    Finding,
    all_checks,
    points,
    score,
    shingles,
    stops,
)
from tunewright.data.checks.driver import bars, check, describe_checked
from tunewright.data.checks.opening import Opened
from tunewright.data.checks.roles import asks
from tunewright.data.checks.tokens import histogram
from tunewright.data.checks.wording import (
    CONTROL,
    chinese_id_is_valid,
    language_of,
    luhn_is_valid,
    personal_data,
)

REPORT = {"reasons": {}, "rows_read": 100, "rows_kept": 100, "dropped": {"rows": []}}


def conversation(asked, said, line=1):
    return Conversation(
        [Message("user", asked), Message("assistant", said)], Origin("f.json", line, line)
    )


def found_in(rows, held=(), samples=()):
    """Findings by key over rows in memory."""
    return {f.key: f for f in check_rows(list(rows), list(samples), list(held), [], REPORT)}


def pairs(*texts):
    return [conversation(asked, said, line) for line, (asked, said) in enumerate(texts, start=1)]


def varied(count, seed=0):
    return [
        conversation(r["instruction"], r["output"], i)
        for i, r in enumerate(planting.clean(count, seed), start=1)
    ]


# ---- the whole


@pytest.fixture(scope="module")
def opened():
    from helpers.families import tokenizer_of

    from tunewright.text.renderer import Renderer

    return Opened(Renderer(tokenizer_of("chatml")), None)


@pytest.mark.parametrize("oversize", ["drop", "truncate"])
def test_ten_planted_faults_are_all_named_with_their_counts(opened, write, oversize):
    rows, held, counts = planting.planted()
    config = DataConfig(
        train=write("train.jsonl", rows),
        held_out=write("held.jsonl", held),
        max_tokens=planting.LIMIT,
        oversize=oversize,
    )
    checked = check(config, opened)
    found = {f.key: f for f in checked.findings}
    if oversize == "truncate":
        # The half that is too long is trained on with a hole, and so is the giant, which is cut to
        # the limit like the others.
        counts = {**counts, "truncated": counts["too_long"]}
        counts = {
            key: count for key, count in counts.items() if key not in ("too_long", "giant_row")
        }
    for key, count in counts.items():
        assert abs(found[key].count - count) <= 0.05 * count, key
        assert found[key].places or key == "constant_answers", key
        assert found[key].what() and found[key].remedy()
    # Cut rows keep their stop tokens, so only rows that are left out make this set meaningless.
    assert {f.key for f in stops(checked.findings)} == (
        {"too_long"} if oversize == "drop" else set()
    )
    # Nothing but what was planted: the rest are notes.
    assert {f.key for f in checked.findings if f.severity == "warn"} <= set(counts)
    assert checked.is_stopped == (oversize == "drop") and checked.score < 70


def test_the_tenth_fault_has_a_set_of_its_own(opened, write):
    for fixed, severity in ((1000, "stop"), (700, "warn")):
        rows = planting.constant(1000, 1000 - fixed)
        (found,) = [
            f
            for f in check(DataConfig(train=write("c.jsonl", rows), held_out=0), opened).findings
            if f.key == "constant_answers"
        ]
        assert found.count == fixed and found.severity == severity and len(found.places) == 5


def test_clean_rows_give_neither_stops_nor_warnings(opened, write):
    checked = check(DataConfig(train=write("clean.jsonl", planting.clean(1000))), opened)
    assert [f.key for f in checked.findings if f.severity != "info"] == []
    assert checked.score == 100 and not checked.is_stopped
    shown = {f.key: f for f in checked.findings}
    assert shown["stops"].count == shown["stops"].total == 900 and shown["languages"].fields[
        "answers"
    ] == {"en": 900}
    text = describe_checked(checked)
    assert "score 100 of 100" in text and "\u2588" in text


def test_without_a_tokenizer_everything_is_checked_that_needs_no_tokens(write):
    rows, held, counts = planting.planted()
    checked = check(
        DataConfig(train=write("train.jsonl", rows), held_out=write("held.jsonl", held)), None
    )
    found = {f.key: f for f in checked.findings}
    for key in set(counts) - {"too_long"}:
        assert found[key].count == counts[key], key
    assert "learnt" not in found and found["lengths"].fields["unit"] == "characters"
    assert "without a model" in describe_checked(checked)


def test_data_from_which_nothing_is_learnt_is_described_instead_of_refused(opened, write):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"q {i}"},
                {"role": "assistant", "content": "a", "weight": 0},
            ]
        }
        for i in range(30)
    ]
    checked = check(DataConfig(train=write("w.jsonl", rows), held_out=0), opened)
    assert {f.key: f.count for f in stops(checked.findings)} == {"dropped": 30}
    assert (
        checked.report["rows_kept"] == 0
        and checked.score == 0
        and "STOP" in describe_checked(checked)
    )


def test_every_finding_that_can_be_made_has_its_sentences_in_both_languages():
    import ast
    from pathlib import Path

    import tunewright.data.checks as room

    source = "".join(p.read_text(encoding="utf-8") for p in Path(room.__file__).parent.glob("*.py"))
    made = {
        node.args[0].value
        for node in ast.walk(ast.parse(source.replace("from __future__ import annotations", "")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in ("Finding", "_finding", "finding")
        and node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)
    }  # fmt: skip
    assert len(made) > 20
    for lang in ("en", "zh"):
        missing = [
            key
            for key in [*made, "mojibake", "mojibake_lost"]
            for part in ("name", "what", "do")
            if f"check.{key}.{part}" not in catalogue(lang)
        ]
        assert missing == []


# ---- what the parallel reader relies on


def test_checks_are_picklable_and_features_small_and_the_same_in_every_copy(opened):
    rows = [*varied(30), PlainText("some running text " * 2000, Origin("t.txt", 1, 1))]
    checks, copies = all_checks(["<|x|>"]), pickle.loads(pickle.dumps(all_checks(["<|x|>"])))  # noqa: S301
    for row in rows:
        for one, other in zip(checks, copies, strict=True):
            feature = one.feature(row, None)
            # Workers answer in marshal's form.
            assert feature == other.feature(row, None) == marshal.loads(marshal.dumps(feature))  # noqa: S302
        assert sum(len(marshal.dumps(c.feature(row, None))) for c in checks) < 1500
    for index, row in enumerate(rows):
        for one in checks:
            one.add(TRAIN if index < 20 else HELD_OUT, index, row.origin, one.feature(row, None))
    assert all(isinstance(f, Finding) for c in checks for f in c.findings())


# ---- near-duplicates


def jaccard(left, right):
    """The overlap of word triples, counted plainly."""
    one, two = (
        {tuple(t[i : i + 3]) for i in range(len(t) - 2)}
        for t in (left.lower().split(), right.lower().split())
    )
    return len(one & two) / len(one | two)


def test_estimated_overlap_is_the_true_one_up_to_the_noise_of_64_samples():
    draw = random.Random(3)
    words = [f"w{i}" for i in range(3000)]
    errors = []
    for _ in range(150):
        text = draw.choices(words, k=60)
        other = [w if draw.random() > 0.05 else draw.choice(words) for w in text]
        true = jaccard(" ".join(text), " ".join(other))
        errors.append(
            shingles.overlap(
                shingles.signature(" ".join(text)), shingles.signature(" ".join(other))
            )
            - true
        )
    assert abs(sum(errors) / len(errors)) < 0.02
    # The standard deviation of a share of 64 is at most 0.0625; 0.09 leaves room for 150 draws.
    assert (sum(e * e for e in errors) / len(errors)) ** 0.5 < 0.09


def test_near_duplicates_are_counted_and_different_rows_are_not():
    draw = random.Random(4)
    rows = [(planting.question(draw), planting.answer(draw, 4)) for _ in range(400)]
    changed = [(q, a.replace(a.split()[20], "altered", 1)) for q, a in rows[:40]]
    found = found_in(pairs(*rows, *changed))
    assert abs(found["near_duplicates"].count - 40) <= 2
    assert "duplicates" not in found
    assert found["near_duplicates"].fields["first_pair"] == "f.json:1 = f.json:401"


def test_chinese_near_duplicates_are_found_by_characters():
    draw = random.Random(6)
    signs = "春夏秋冬山水花鸟风云日月星辰江河湖海金木水火土天地人和东南西北上下左右大小多少高低远近新旧长短"
    texts = ["".join(draw.choices(signs, k=60)) for _ in range(200)]
    rows = [("问题" + t[:10] + "？", t) for t in texts] + [
        ("问题" + t[:10] + "？", t[:30] + "变" + t[31:]) for t in texts[:20]
    ]
    assert abs(found_in(pairs(*rows))["near_duplicates"].count - 20) <= 1


def test_an_instruction_before_every_text_makes_no_near_duplicates():
    draw = random.Random(7)
    long = (
        "Read the following review of a hotel with care and then decide whether the guest was content or not. Write one word only. "
        * 3
    )
    rows = pairs(
        *((long + planting.sentence(draw), draw.choice(["good", "bad"])) for _ in range(300))
    )
    assert "near_duplicates" not in found_in(rows)


# ---- single subjects


def test_exact_duplicates_leaks_and_contradictions():
    rows = varied(50)
    found = found_in([*rows, *rows[:7]], rows[40:46])
    assert (
        found["duplicates"].count == 7
        and found["held_out_repeated"].count == 6
        and found["held_out_repeated"].total == 6
    )
    labels = pairs(
        *[(f"review {i}", "good") for i in range(30)], *[(f"Review  {i}", "bad") for i in range(12)]
    )
    assert (
        found_in(labels)["contradictory_labels"].count == 12
        and found_in(labels)["contradictory_labels"].fields["rows"] == 24
    )
    stories = pairs(
        *[("Tell me a story please.", planting.answer(random.Random(i), 3)) for i in range(3)],
        *[(f"q {i}?", f"answer {i}") for i in range(40)],
    )
    assert found_in(stories)["several_answers"].severity == "info"


def test_a_pair_preferred_both_ways_and_an_answer_judged_both_ways_contradict():
    question, one, two = (
        [Message("user", "q")],
        [Message("assistant", "first")],
        [Message("assistant", "second")],
    )
    origin = Origin("p.json", 1, 1)
    both = [Preference(question, one, two, origin), Preference(question, two, one, origin)]
    assert found_in(both)["contradictory_labels"].count == 1
    assert "contradictory_labels" not in found_in(
        [both[0], Preference(question, one, [Message("assistant", "third")], origin)]
    )
    judged = [Judged([*question, *one], good, origin) for good in (True, False)]
    assert found_in(judged)["contradictory_labels"].count == 1


def test_swapped_roles_need_more_than_a_few_rows():
    swapped = pairs(
        *[(planting.sentence(random.Random(i)), f"What is number {i}?") for i in range(60)]
    )
    assert found_in([*varied(300), *swapped[:40]])["swapped_roles"].count == 40
    assert found_in(swapped)["swapped_roles"].severity == "stop"
    assert "swapped_roles" not in found_in([*varied(200), swapped[0]])
    assert (
        found_in(swapped[:20])["swapped_roles"].count == 20
    )  # too few to compare with the rest: by their looks
    back = pairs(
        *[
            (
                f"I need help with my order {i}",
                "Could you tell me the number of your order so that I can look it up for you?",
            )
            for i in range(60)
        ]
    )
    assert "swapped_roles" not in found_in(back)


@pytest.mark.parametrize(
    "text",
    [
        "What is it?",
        "你好吗？",
        "Explain the sea.",
        "请写一首诗",
        "“Why?”",
        "how do I do it",
        "为什么天空是蓝色的",
    ],
)
def test_questions_and_requests_ask(text):
    assert asks(text)


@pytest.mark.parametrize(
    "text",
    [
        "It is blue.",
        "天空是蓝色的。",
        "Paris",
        "Whatever happens, nothing changes.",
        "I want to create an account",
        "return x",
    ],
)
def test_answers_do_not_ask(text):
    assert not asks(text)


def test_labels_are_counted_and_an_uneven_set_is_named():
    even = pairs(*[(f"text {i}", ["good", "bad", "so so"][i % 3]) for i in range(90)])
    assert found_in(even)["labels"].fields["labels"] == {"good": 30, "bad": 30, "so so": 30}
    uneven = pairs(*[(f"text {i}", "good" if i % 30 else "bad") for i in range(150)])
    assert found_in(uneven)["uneven_labels"].fields == {
        "labels": {"good": 145, "bad": 5}, "shown": "good 145, bad 5", "different": 2, "top": "good", "least": "bad", "fewest": 5,
    }  # fmt: skip
    assert not {"labels", "uneven_labels"} & set(found_in(varied(90)))


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The weather is fine today and everybody is outside", "en"), ("今天天气很好，大家都出去玩了。", "zh"), ("Der Hund ist nicht mit der Katze in das Haus gegangen", "latin"),
        ("今日はとても良い天気ですね", "ja"), ("오늘은 날씨가 정말 좋네요", "ko"), ("Сегодня очень хорошая погода", "cyrillic"), ("ok", ""), ("12 + 30 = 42", ""),
        ("使用 Python 语言编写程序可以调用标准库里的各种工具", "zh"),
    ],
)  # fmt: skip
def test_languages_are_told_by_script_and_small_words(text, language):
    assert language_of(text) == language


def test_answers_in_another_language_are_counted_unless_asked_for():
    plain = [
        (
            "请介绍一下这座城市的历史和文化。",
            "The city has a long history and a rich culture of its own.",
        )
    ] * 1
    asked = [
        (
            "请把下面的句子翻译成英文：这座城市历史悠久。",
            "This city has a long history and a rich culture.",
        )
    ]
    code = [
        ("请写一个函数计算两个整数的和。", "def add(first, second):\n    return first + second")
    ]
    chinese = [
        (f"请问第{i}个问题的答案是什么内容呢？", f"第{i}个问题的答案是这样的一些内容。")
        for i in range(80)
    ]
    found = found_in(pairs(*plain * 10, *asked * 10, *code * 10, *chinese))
    assert found["other_language"].count == 10 and found["other_language"].fields["ways"] == {
        "zh-en": 10
    }
    assert "other_language" not in found_in(pairs(*plain, *chinese))


def test_tokens_of_any_family_are_found_and_html_is_not():
    for token in CONTROL:
        found = found_in(pairs((f"What is {token} good for?", "Nothing.")))
        assert found.get("control_tokens", found.get("wrong_template")).count == 1, token
    clean = [
        "<s>old price</s> new price",
        "if (a < b || c > d) { return x[i]; }",
        "<div><end></div>",
        "# Title\n## Section",
        "[INSTALL] run it",
        "a <|> b",
    ]
    assert not {"control_tokens", "wrong_template"} & set(
        found_in(pairs(*((text, "Fine.") for text in clean)))
    )
    own = check_rows(pairs(("say <|mine|> now", "no")), [], [], [], REPORT, ["<|mine|>", "!", "  "])
    assert {f.key for f in own} >= {"control_tokens"}


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "<s>[INST] hi [/INST] hello </s>", "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
        "<start_of_turn>user\nhi<end_of_turn>\n", "### Instruction:\nDo it\n\n### Response:\n", "<|user|>\nhi<|end|>\n<|assistant|>\n", "Human: hi\n\nAssistant: hello",
        "<｜User｜>hi<｜Assistant｜>hello", "### 指令：\n写\n### 回答：\n好",
    ],
)  # fmt: skip
def test_a_rendered_template_inside_a_turn_is_a_wrong_template(text):
    found = found_in(pairs((text, "hello")))
    assert (
        found["wrong_template"].count == 1
        and found["wrong_template"].severity == ("stop" if "<" in text else "warn")
        and "control_tokens" not in found
    )


def test_personal_data_is_counted_by_kind_and_check_digits_count():
    # The identity numbers are made up; their check characters were computed by hand from the
    # standard's table.
    assert chinese_id_is_valid("11010519491231002X") and not chinese_id_is_valid(
        "110105194912310021"
    )
    assert luhn_is_valid("4111111111111111") and not luhn_is_valid("4111111111111112")
    assert personal_data("write to anna.b@post.org or call +49 170 9876 5432") == {
        "email": 1,
        "phone": 1,
    }
    assert personal_data("身份证11010519491231002X，电话13912345678") == {
        "id_number": 1,
        "phone": 1,
    } or personal_data("身份证11010519491231002X") == {"id_number": 1}
    assert personal_data("card 5425 2334 3010 9903") == {"card": 1}
    for text in (
        "user@example.com",
        "pi is 3.14159265358979",
        "110105194912310021",
        "order 1234567890123",
        "2020-01-02 10:20",
        "call 555-123-4567",
        "192.168.100.200",
        "a@b",
    ):
        assert personal_data(text) == {}, text


def test_damaged_rows_are_counted_by_what_can_be_done():
    bad = [("What is it?", "Das MÃ¤dchen")] * 3 + [("Was?", "Das M\ufffddchen")] * 2
    found = found_in([*varied(10), *pairs(*bad)])
    assert found["mojibake"].count == 3 and found["mojibake_lost"].count == 2


def sample(length, learnt, answers=1, stops=1, **facts):
    return Sample(
        [Branch([0] * length, list(range(length - learnt, length)), [1.0] * learnt)],
        0,
        facts={"answers": answers, "stops_learnt": stops, **facts},
    )


def test_learnt_share_stop_tokens_and_cuts_are_those_of_the_samples():
    rows = varied(10)
    found = found_in(
        rows, samples=[sample(20, 5, stops=int(i < 6), truncated=i < 2) for i in range(10)]
    )
    assert (found["learnt"].count, found["learnt"].total) == (50, 200)
    assert (found["stops"].count, found["stops"].total) == (6, 10)
    assert (
        found["no_stop"].count == 4
        and found["no_stop"].severity == "warn"
        and found["no_stop"].places[0] == "f.json:7"
    )
    assert found["truncated"].count == 2 and found["truncated"].severity == "warn"
    half = found_in(rows, samples=[sample(20, 5, stops=int(i < 5)) for i in range(10)])
    assert half["no_stop"].severity == "stop" and half["no_stop"].count == 5
    assert (
        found_in(rows, samples=[sample(500, 1) for _ in rows])["little_learnt"].severity == "warn"
    )


def test_giant_rows_stand_out_and_long_tails_do_not():
    draw = random.Random(8)
    lengths = [draw.randint(20, 400) for _ in range(300)]
    found = found_in(varied(301), samples=[sample(n, 5) for n in [*lengths, 9000]])
    assert (
        found["giant_row"].count == 1
        and found["giant_row"].places == ["f.json:301"]
        and found["giant_row"].fields["longest"] == 9000
    )
    tail = [int(50 * draw.paretovariate(1.5)) for _ in range(300)]
    assert (
        found_in(varied(300), samples=[sample(max(6, min(n, 2000)), 5) for n in tail]).get(
            "giant_row"
        )
        is None
    )


def test_the_histogram_counts_every_row_once():
    draw = random.Random(9)
    for _ in range(30):
        import numpy

        lengths = sorted(
            draw.randint(0, draw.choice([3, 50, 10_000])) for _ in range(draw.randint(1, 200))
        )
        bins = histogram(numpy.array(lengths, dtype=numpy.uint64))
        assert sum(count for _, _, count in bins) == len(lengths)
        assert all(
            count == sum(low <= max(n, 1) <= high for n in lengths) for low, high, count in bins
        )
        assert len(bars(bins)) == len(bins)


def test_the_score_is_what_the_findings_leave_of_a_hundred():
    found = [
        Finding("empty", "stop", 60, 100),
        Finding("duplicates", "warn", 10, 100),
        Finding("labels", "info", 5, 5),
    ]
    assert [points(f) for f in found] == [40, 4, 0] and score(found, REPORT) == 56
    assert (
        score([Finding("empty", "stop", 1, 1)] * 3, REPORT) == 0
        and score([], {"rows_kept": 0}) == 0
    )


# ---- judgements


def test_judgements_of_one_side_are_found_and_mixed_ones_are_not():
    def judged(good, line):
        return Judged(
            [Message("user", f"q {line}"), Message("assistant", f"a {line}")],
            good,
            Origin("f.json", line, line),
        )

    for goods, key in (
        ([True] * 8, "one_sided_answers_good"),
        ([False] * 8, "one_sided_answers_bad"),
    ):
        found = found_in([judged(good, i) for i, good in enumerate(goods, start=1)])
        assert (found[key].severity, found[key].count) == ("warn", 8) and "8" in found[key].what()
    assert not any(
        key.startswith("one_sided") for key in found_in([judged(i != 3, i) for i in range(1, 9)])
    )


def test_steps_of_one_side_are_found():
    def stepwise(labels, line):
        steps = tuple((f"s {i} ", good) for i, good in enumerate(labels))
        said = Message("assistant", "".join(text for text, _ in steps))
        return Stepwise(
            [Message("user", f"q {line}"), said],
            all(labels),
            Origin("f.json", line, line),
            steps=steps,
        )

    assert "one_sided_steps_good" in found_in([stepwise((True, True), i) for i in range(1, 6)])
    assert "one_sided_steps_bad" in found_in([stepwise((False,), i) for i in range(1, 6)])
    assert not any(
        key.startswith("one_sided")
        for key in found_in([stepwise((True, False), i) for i in range(1, 6)])
    )


def test_pairs_whose_one_side_or_margin_never_changes_are_found():
    def pair(line, chosen="", rejected="", margin=None):
        turns = [
            [Message("assistant", text or f"{name} {line}")]
            for name, text in (("c", chosen), ("r", rejected))
        ]
        return Preference(
            [Message("user", f"q {line}")], *turns, Origin("f.json", line, line), margin=margin
        )

    for settings, key in (
        ({"chosen": "yes"}, "one_chosen"),
        ({"rejected": "no"}, "one_rejected"),
        ({"margin": 1.5}, "one_margin"),
    ):
        found = found_in([pair(i, **settings) for i in range(1, 8)])
        assert {name for name in found if name.startswith("one_")} == {key}
        assert not any(
            name.startswith("one_")
            for name in found_in([*[pair(i, **settings) for i in range(1, 8)], pair(9, margin=2.0)])
        )
