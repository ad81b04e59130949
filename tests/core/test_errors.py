"""Errors for people: every code has a text in both languages, and a message says everything at
once."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import string
from pathlib import Path

import pytest

import tunewright
from tunewright.core import errors
from tunewright.core.errors import (
    ConfigError,
    Interrupted,
    Problem,
    TunewrightError,
    UsageError,
    problem,
    raise_all,
    system_reason,
)
from tunewright.core.runfile import read_yaml
from tunewright.core.words import (
    LANGUAGES,
    catalogue,
    error_codes,
    error_text,
    language,
    say,
    set_language,
    speaking,
)

SOURCE = Path(tunewright.__file__).parent


def used_codes() -> set[str]:
    text = "\n".join(p.read_text(encoding="utf-8") for p in SOURCE.rglob("*.py"))
    return set(re.findall(r'"(E-[A-Z]+-\d+)"', text))


def test_every_code_that_is_raised_has_a_text() -> None:
    assert used_codes() - set(error_codes()) == set()


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_code_says_what_and_has_a_page(lang: str) -> None:
    for code in error_codes():
        entry = catalogue(lang)[code]
        assert entry["what"], code
        assert entry["page"], code
        assert "do" in entry, code


def fields_of(text: str) -> set[str]:
    return {name.split("!")[0] for _, name, _, _ in string.Formatter().parse(text) if name}


def test_the_languages_have_the_same_keys_and_fill_in_the_same_fields() -> None:
    english, chinese = catalogue("en"), catalogue("zh")
    assert english.keys() == chinese.keys()
    for key, value in english.items():
        other = chinese[key]
        parts = (
            [(value[p], other[p]) for p in ("what", "do")]
            if isinstance(value, dict)
            else [(value, other)]
        )
        for a, b in parts:
            assert fields_of(a) == fields_of(b), key


def test_one_line_holds_code_what_where_and_remedy() -> None:
    found = problem("E-CONFIG-04", "run.yaml, line 9", field="r", ours="method.rank", value=8)
    assert (
        found.line()
        == "E-CONFIG-04  r: this key belongs to another tool; here it is `method.rank`.  (run.yaml, line 9) Write `method.rank=8`."
    )
    assert found.as_dict()["code"] == "E-CONFIG-04"


def test_a_message_counts_its_problems_and_names_what_it_is_about() -> None:
    error = ConfigError(
        [problem("E-CONFIG-07", field="model"), problem("E-CONFIG-07", field="data.train")]
    )
    assert error.text("run.yaml").splitlines()[0] == "tunewright: 2 problems in run.yaml"
    assert len(error.text().splitlines()) == 3
    assert (
        ConfigError(problem("E-CONFIG-07", field="model"))
        .text("x")
        .startswith("tunewright: 1 problem in x")
    )


def test_a_code_or_a_field_that_nobody_wrote_never_hides_the_error() -> None:
    assert "E-NONE-99" in Problem("E-NONE-99", "", {"a": 1}).what()
    assert "{field}" in Problem("E-CONFIG-07").what()
    assert say("no.such.key") == "no.such.key"


@pytest.mark.parametrize("value", ["{braces}", "{0}", "100 %", "{", "a}b"])
def test_values_with_braces_are_shown_as_they_are(value: str) -> None:
    assert value in problem("E-CONFIG-07", field=value).line()


def test_exit_codes() -> None:
    kinds = [
        k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, TunewrightError)
    ]
    for kind in kinds:
        if kind is not Interrupted:
            assert kind.exit_code == (2 if issubclass(kind, UsageError) else 1)
    assert Interrupted(15, problem("E-RUN-06")).exit_code == 143
    assert len(kinds) >= 9


def test_nothing_wrong_raises_nothing_and_a_generator_is_read_once() -> None:
    raise_all([])
    raise_all(iter(()))
    with pytest.raises(UsageError) as caught:
        raise_all(problem("E-CONFIG-07", field=str(i)) for i in range(3))
    assert len(caught.value.problems) == 3


def test_the_language_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_language(None)
    for name in ("TUNEWRIGHT_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    assert language() == "zh"
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert language() == "en"
    monkeypatch.setenv("TUNEWRIGHT_LANG", "zh")
    assert language() == "zh"
    assert "缺" in problem("E-CONFIG-07", field="model").line()


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_sentence_that_names_the_place_gets_it(
    lang: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEWRIGHT_LANG", lang)
    codes = [code for code in error_codes() if "{where}" in "".join(error_text(code).values())]
    assert {"E-EVAL-06", "E-OBJ-34"} <= set(codes)
    for code in codes:
        assert (
            "rows.json" in problem(code, "rows.json").line()
            and "{where}" not in problem(code, "rows.json").line()
        )
    assert "loss" in problem("E-TRAIN-01", "", where="loss").what()


@pytest.mark.parametrize(
    ("where", "zh"),
    [
        ("rows, line 2.jsonl", "rows, line 2.jsonl"),
        ("rows.jsonl, line 6, column 35", "rows.jsonl，第 6 行第 35 列"),
        ("run.yaml, line 3", "run.yaml，第 3 行"),
        ("line 3", "第 3 行"),
        ("command line", "命令行"),
        ("demo", "演示自带的设置"),
        ("rows.jsonl", "rows.jsonl"),
    ],
)
def test_a_place_is_said_in_the_readers_language(where: str, zh: str) -> None:
    one = problem("E-CONFIG-07", where, field="model")
    with speaking("zh"):
        assert one.place() == zh and f"({zh})" in one.line()
    assert one.as_dict()["where"] == where  # what programs read stays as it is
    with speaking("en"):
        assert one.place() == where


def test_a_list_of_rows_given_as_the_run_file_is_told_to_be_data(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text('[{"instruction": "a", "output": "b"}]', encoding="utf-8")
    with pytest.raises(ConfigError, match="--data") as caught:
        read_yaml(file)
    assert [p.code for p in caught.value.problems] == ["E-CONFIG-02"]
    file.write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(ConfigError, match="no keys and values"):
        read_yaml(file)


@pytest.mark.parametrize("number", [errno.EADDRINUSE, errno.EACCES, errno.ENOSPC, errno.ENOENT])
def test_what_the_system_refuses_is_said_in_the_readers_language(number: int) -> None:
    refusal = problem("E-RUN-03", "runs/mine", cause=OSError(number, os.strerror(number), "file"))
    with speaking("zh"):
        assert not re.search("[A-Za-z]", refusal.what())
        said = json.loads(json.dumps(refusal.as_dict(), ensure_ascii=False))
        assert said["what"] == refusal.what()
    with speaking("en"):
        assert say(f"system.{errno.errorcode[number]}") in refusal.what()


def test_a_host_that_nobody_knows_is_said_and_what_has_no_words_keeps_the_systems() -> None:
    with speaking("zh"):
        assert system_reason(socket.gaierror(-2, "Name or service not known")) == say(
            "system.NO_HOST"
        )
        assert system_reason(OSError(errno.ENOTTY, "Not a typewriter")) == "Not a typewriter"
        assert system_reason(OSError("the disk is away")) == "the disk is away"
