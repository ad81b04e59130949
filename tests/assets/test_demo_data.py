"""The rules that the demo data keep, each one checked, and each check shown able to fail.

The data lie in src/tunewright/assets/demo/<language>/: facts about an invented place, general
questions mixed into the training, and general questions that probe what the model still knows.
"""

import copy
import json
import re
from collections import Counter
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "src/tunewright/assets/demo"
FILES = ("facts", "general_train", "general_probe")
ROWS = {
    "en": {"facts": 64, "general_train": 220, "general_probe": 24},
    "zh": {"facts": 40, "general_train": 40, "general_probe": 20},
}
PLACE = {"en": "mossenquay", "zh": "砚禾镇"}
WORDINGS = 5
# Shortest and longest answer, in words (en) or characters (zh).
FACT_ANSWER = {"en": (8, 18), "zh": (6, 30)}
GENERAL_ANSWER = {"en": (5, 25), "zh": (6, 40)}
ANCHOR_USES = 2

# Words that say nothing about the topic. A shorter list would make the overlaps look smaller.
STOP_EN = set(
    """
    a an the this that these those some any each every all both no not only
    i me my we us our you your he him his she her it its they them their one everyone everybody
    someone something
    am is are was were be been being do does did done have has had can could will would shall
    should may might must
    who whom whose what which when where why how many much often long
    of in on at by to from with into onto over under near up down out off for about as after before
    across along around behind below above through inside past between against during
    and or but so if than then there here too very also just most
    please tell say give gives given know name names named call calls called known complete finish
    fill sentence word words kind sort like
    """.split()
)
STOP_ZH = (
    "请告诉我 告诉我 补全句子 为什么 什么样 什么 怎么样 怎么 怎样 多少 哪里 哪儿 哪个 哪位 "
    "哪种 哪一 名字 称呼 何物 何处 请问 请 的 是 谁 哪 吗 呢 了 在 叫 几 那 有 把 会 要"
).split()
STOP_ZH_PATTERN = re.compile("|".join(sorted(STOP_ZH, key=len, reverse=True)))


def crude_stem(word):
    """Strip 's, then one of ing, ed, es, s, so that a plural or a tense does not hide a share."""
    word = word.removesuffix("'s").strip("'")
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            if ending in ("ing", "ed") and word[-1] == word[-2]:
                word = word[:-1]
            break
    return word.removesuffix("e")


def content(question, language, stemmed=False):
    """The content words of an English question, or the character bigrams of a Chinese one."""
    if language == "en":
        words = {w for w in re.findall(r"[a-z']+", question.lower()) if w not in STOP_EN}
        return {crude_stem(w) for w in words} if stemmed else words
    pieces = re.findall(r"[\u4e00-\u9fffA-Za-z0-9]+", STOP_ZH_PATTERN.sub(" ", question))
    return {piece[i : i + 2] for piece in pieces for i in range(len(piece) - 1)}


def overlap(question, other, language, stemmed=False):
    """The part of the question's content that the other question has too."""
    mine = content(question, language, stemmed)
    return len(mine & content(other, language, stemmed)) / len(mine) if mine else 1.0


def length(text, language):
    return len(text.split()) if language == "en" else len(text)


def same_text(question):
    """A question without case, spaces and punctuation, to find one written twice."""
    return re.sub(r"[\W_]+", "", question.lower())


def wordings(fact):
    return [row["question"] for row in fact["train"]]


def anchors(fact, language):
    """What the held-out question shares with every training wording, the place left out."""
    shared = content(fact["held_out"], language, stemmed=True)
    for question in wordings(fact):
        shared &= content(question, language, stemmed=True)
    return shared - content(PLACE[language], language, stemmed=True)


# Each rule takes the three files of one language and yields what breaks it.


def counts_are_as_promised(data, language):
    for name, wanted in ROWS[language].items():
        if len(data[name]) != wanted:
            yield f"{name} has {len(data[name])} rows, not {wanted}"


def rows_have_the_promised_form(data, language):
    forms = {
        "facts": {"id", "expected", "train", "held_out"},
        "general_train": {"question", "answer"},
        "general_probe": {"question", "expected"},
    }
    for name, keys in forms.items():
        for row in data[name]:
            if set(row) != keys:
                yield f"{name}: keys {sorted(row)}"
            texts = [v for k, v in row.items() if k != "train"]
            for pair in row.get("train", []):
                if set(pair) != {"question", "answer"}:
                    yield f"{name}: keys {sorted(pair)} in a wording"
                texts += pair.values()
            if any(not isinstance(t, str) or not t or t != t.strip() for t in texts):
                yield f"{name}: an empty text or one with spaces around it in {row}"
    for fact in data["facts"]:
        if len(fact["train"]) != WORDINGS:
            yield f"{fact['id']} has {len(fact['train'])} wordings"


def ids_and_expected_answers_are_unique(data, language):
    for key in ("id", "expected"):
        for value, n in Counter(fact[key].lower() for fact in data["facts"]).items():
            if n > 1:
                yield f"{key} {value} occurs {n} times"


def expected_is_in_every_training_answer(data, language):
    for fact in data["facts"]:
        for pair in fact["train"]:
            if fact["expected"] not in pair["answer"]:
                yield f"{fact['id']}: {pair['answer']}"


def expected_is_in_no_question(data, language):
    questions = [q for fact in data["facts"] for q in [*wordings(fact), fact["held_out"]]]
    for row in data["facts"] + data["general_probe"]:
        own = [row["question"]] if "question" in row else questions
        for question in own:
            if row["expected"].lower() in question.lower():
                yield f"{row['expected']} in {question}"


def expected_is_in_no_other_fact(data, language):
    for fact in data["facts"]:
        for other in data["facts"]:
            if other is not fact:
                for pair in other["train"]:
                    if fact["expected"].lower() in pair["answer"].lower():
                        yield f"{fact['id']}: {fact['expected']} in {pair['answer']}"


def expected_of_a_fact_is_in_no_general_row(data, language):
    for fact in data["facts"]:
        for row in data["general_train"] + data["general_probe"]:
            if any(fact["expected"].lower() in text.lower() for text in row.values()):
                yield f"{fact['id']}: {fact['expected']} in {row}"


def answers_are_short(data, language):
    groups = [
        ([p["answer"] for f in data["facts"] for p in f["train"]], FACT_ANSWER[language]),
        ([row["answer"] for row in data["general_train"]], GENERAL_ANSWER[language]),
    ]
    for answers, (least, most) in groups:
        for answer in answers:
            if not least <= length(answer, language) <= most:
                yield f"{length(answer, language)} long: {answer}"


def held_out_shares_at_most_half_with_any_wording(data, language):
    for fact in data["facts"]:
        if len(content(fact["held_out"], language)) < 3:
            yield f"{fact['id']}: too few content words in {fact['held_out']}"
        for question in wordings(fact):
            for stemmed in (False, True):
                share = overlap(fact["held_out"], question, language, stemmed)
                if share > 0.5:
                    yield f"{fact['id']}: {share:.2f} of {fact['held_out']} in {question}"


def held_out_has_an_anchor_in_every_wording(data, language):
    for fact in data["facts"]:
        if not anchors(fact, language):
            yield f"{fact['id']}: no anchor in {fact['held_out']}"


def an_anchor_serves_at_most_two_facts(data, language):
    uses = Counter(a for fact in data["facts"] for a in anchors(fact, language))
    for anchor, n in uses.items():
        if n > ANCHOR_USES:
            yield f"anchor {anchor} serves {n} facts"


def no_question_occurs_twice(data, language):
    questions = [q for fact in data["facts"] for q in [*wordings(fact), fact["held_out"]]]
    questions += [r["question"] for r in data["general_train"] + data["general_probe"]]
    for question, n in Counter(map(same_text, questions)).items():
        if n > 1:
            yield f"{question} occurs {n} times"


def probes_share_no_topic_word_with_general_training(data, language):
    for probe in data["general_probe"]:
        for row in data["general_train"]:
            for stemmed in (False, True):
                shared = content(probe["question"], language, stemmed) & content(
                    row["question"], language, stemmed
                )
                if shared:
                    yield f"{sorted(shared)}: {probe['question']} / {row['question']}"


def probes_share_less_than_half_with_any_fact_question(data, language):
    for probe in data["general_probe"]:
        for fact in data["facts"]:
            for question in [*wordings(fact), fact["held_out"]]:
                for stemmed in (False, True):
                    if overlap(probe["question"], question, language, stemmed) >= 0.5:
                        yield f"{probe['question']} / {question}"


def expected_of_a_probe_is_in_no_training_text(data, language):
    training = [text for row in data["general_train"] for text in row.values()]
    training += [text for f in data["facts"] for pair in f["train"] for text in pair.values()]
    for probe in data["general_probe"]:
        for text in training:
            if probe["expected"].lower() in text.lower():
                yield f"{probe['expected']} in {text}"


RULES = [
    counts_are_as_promised,
    rows_have_the_promised_form,
    ids_and_expected_answers_are_unique,
    expected_is_in_every_training_answer,
    expected_is_in_no_question,
    expected_is_in_no_other_fact,
    expected_of_a_fact_is_in_no_general_row,
    answers_are_short,
    held_out_shares_at_most_half_with_any_wording,
    held_out_has_an_anchor_in_every_wording,
    an_anchor_serves_at_most_two_facts,
    no_question_occurs_twice,
    probes_share_no_topic_word_with_general_training,
    probes_share_less_than_half_with_any_fact_question,
    expected_of_a_probe_is_in_no_training_text,
]


@pytest.fixture(scope="module", params=sorted(ROWS))
def language(request):
    return request.param


@pytest.fixture(scope="module")
def data(language):
    return {
        name: [
            json.loads(line)
            for line in (DEMO / language / f"{name}.jsonl").read_text("utf-8").splitlines()
        ]
        for name in FILES
    }


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_demo_data_keep_the_rule(rule, data, language):
    assert list(rule(data, language)) == []


# One planted violation for each rule: a change to a copy of the data that the rule must report.


def plant_counts(data):
    data["general_probe"].pop()


def plant_form(data):
    data["facts"][0]["train"].pop()


def plant_unique(data):
    data["facts"][1]["expected"] = data["facts"][0]["expected"]


def plant_answer_without_expected(data):
    fact = data["facts"][3]
    fact["train"][4]["answer"] = fact["train"][4]["answer"].replace(fact["expected"], "?")


def plant_expected_in_question(data):
    data["facts"][5]["held_out"] += " " + data["facts"][5]["expected"]


def plant_expected_in_other_fact(data):
    data["facts"][7]["train"][2]["answer"] += " " + data["facts"][8]["expected"]


def plant_expected_in_general_row(data):
    data["general_train"][4]["answer"] += " " + data["facts"][8]["expected"]


def plant_long_answer(data):
    data["general_train"][6]["answer"] *= 9


def plant_overlap(data):
    fact = data["facts"][10]
    fact["held_out"] = fact["train"][1]["question"] + "?"


def plant_no_anchor(data):
    data["facts"][10]["held_out"] = data["facts"][-1]["held_out"]


def plant_common_anchor(data):
    data["facts"] += [copy.deepcopy(data["facts"][12]) for _ in range(ANCHOR_USES)]


def plant_duplicate(data):
    data["general_train"][9]["question"] = data["general_train"][8]["question"].upper() + " ?"


def plant_probe_in_general_training(data):
    data["general_train"][11]["question"] = data["general_probe"][2]["question"]


def plant_probe_in_facts(data):
    data["facts"][20]["train"][0]["question"] = data["general_probe"][3]["question"]


def plant_probe_answer_in_training(data):
    data["facts"][20]["train"][0]["answer"] = data["general_probe"][3]["expected"]


PLANTS = [
    plant_counts,
    plant_form,
    plant_unique,
    plant_answer_without_expected,
    plant_expected_in_question,
    plant_expected_in_other_fact,
    plant_expected_in_general_row,
    plant_long_answer,
    plant_overlap,
    plant_no_anchor,
    plant_common_anchor,
    plant_duplicate,
    plant_probe_in_general_training,
    plant_probe_in_facts,
    plant_probe_answer_in_training,
]


@pytest.mark.parametrize(
    ("rule", "plant"), list(zip(RULES, PLANTS, strict=True)), ids=[rule.__name__ for rule in RULES]
)
def test_a_planted_violation_of_the_rule_is_reported(rule, plant, data, language):
    broken = copy.deepcopy(data)
    plant(broken)
    assert list(rule(broken, language)) != []


def test_the_stemmed_overlap_finds_a_share_that_the_raw_one_misses():
    held_out, training = "Which ferries sails?", "Which ferried sailing?"
    assert overlap(held_out, training, "en") == 0
    assert overlap(held_out, training, "en", stemmed=True) == 1


def test_the_overlap_counts_content_words_only():
    assert content("Who is the keeper of the lighthouse?", "en") == {"keeper", "lighthouse"}
    assert overlap("Who minds the lighthouse?", "Who keeps the lighthouse?", "en") == 0.5


def test_a_chinese_overlap_counts_bigrams_without_stop_words():
    assert content("钟楼在哪里？", "zh") == {"钟楼"}
    assert overlap("钟楼多高？", "钟楼在哪里？", "zh") == pytest.approx(1 / 3)
