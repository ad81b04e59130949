"""From a run file and words to a run: every problem at once, with its line, and our key for a key
of another system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tunewright.core.errors import ConfigError, Problem
from tunewright.core.runfile import (
    Loader,
    QuickLoader,
    as_dict,
    flatten,
    kind_of,
    known_keys,
    load_run,
    parse_value,
    read_yaml,
)

GOOD = "model: some/model\ndata:\n  train: rows.json\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_bytes(text.encode("utf-8"))
    return path


def problems(source: Path | None, *words: str, **flags: Any) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load_run(source, list(words), flags)
    assert caught.value.exit_code == 2
    return caught.value.problems


def of(found: list[Problem], code: str) -> list[Problem]:
    return [p for p in found if p.code == code]


def test_a_file_words_and_flags_make_the_same_run(tmp_path: Path) -> None:
    text = (
        GOOD
        + "method: {kind: lora, rank: 8, targets: [q_proj, v_proj]}\nengine: {epochs: 2, learning_rate: 2e-4}\nout: here\n"
    )
    one = load_run(write(tmp_path, text))
    other = load_run(
        None, ["method.rank=8", "method.targets=[q_proj,v_proj]", "engine.epochs=2", "engine.learning_rate=2e-4"],
        {"model": "some/model", "data.train": "rows.json", "out": "here", "data.dir": None},
    )  # fmt: skip
    assert one.config == other.config
    assert as_dict(one.config) == as_dict(other.config)


def test_the_defaults_are_a_whole_run() -> None:
    run = load_run(None, [], {"model": "m", "data.train": "d"}).config
    assert (kind_of(run.method), run.method.rank, kind_of(run.objective)) == ("lora", 16, "sft")
    assert (run.engine.batch_size, run.engine.dtype, run.data.held_out, run.out) == (
        "auto",
        "auto",
        None,
        None,
    )


def test_what_is_written_down_reads_back_as_the_same_run(tmp_path: Path) -> None:
    run = load_run(
        None,
        [
            "method.rank=4",
            "data.columns={instruction: q}",
            "probes=[hello, 'it''s']",
            "engine.clip=null",
        ],
        {"model": "m", "data.train": "d"},
    ).config
    again = load_run(write(tmp_path, yaml.safe_dump(as_dict(run), allow_unicode=True)))
    assert again.config == run
    assert again.config.data.columns == {"instruction": "q"}


# Numbers and words.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4), ("2E-4", 2e-4), ("2.0e-4", 2e-4), ("1e5", 1e5), ("-3e2", -300.0), (".5", 0.5), ("3", 3), ("-3", -3), ("0.1", 0.1), ("1.", 1.0),
        ("true", True), ("False", False), ("null", None), ("~", None), ("on", "on"), ("yes", "yes"), ("no", "no"), ("NO", "NO"), ("2026-11-21", "2026-11-21"),
        ("[a, 2e-4]", ["a", 2e-4]), ("", None), ("auto", "auto"), ("a: b: c", "a: b: c"), ("e5", "e5"), ("1e", "1e"),
    ],
)  # fmt: skip
def test_values_are_read_as_yaml_1_2_reads_them(text: str, value: Any) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_the_rate_of_a_file_is_a_number(tmp_path: Path) -> None:
    run = load_run(write(tmp_path, GOOD + "engine:\n  learning_rate: 2e-4\n"))
    assert run.config.engine.learning_rate == 2e-4


# Keys nobody knows.


def test_a_misspelt_key_gets_a_guess_and_its_line(tmp_path: Path) -> None:
    (found,) = problems(write(tmp_path, GOOD + "method:\n  rnak: 8\n"))
    assert (found.code, found.where, found.fields["guess"]) == (
        "E-CONFIG-03",
        "run.yaml, line 5",
        "method.rank",
    )
    assert "Did you mean `method.rank`" in found.line()


@pytest.mark.parametrize(
    ("key", "guess"),
    [
        ("engine.epoch", "engine.epochs"),
        ("data.trian", "data.train"),
        ("modle", "model"),
        ("rank", "method.rank"),
        ("engine.clipp", "engine.clip"),
    ],
)
def test_guesses(key: str, guess: str) -> None:
    (found,) = problems(None, "model=m", "data.train=d", f"{key}=3")
    assert (found.code, found.where, found.fields["guess"]) == (
        "E-CONFIG-03",
        "command line",
        guess,
    )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["modules_to_save=[embed]"], "E-CONFIG-03", "`method.modules_to_save`"),
        (["optimizer=adamw"], "E-CONFIG-03", "`engine.optimizer`"),
        (["method.lora_targets=q"], "E-CONFIG-03", "`method.targets`"),
        (["lora_target=q_proj,v_proj"], "E-CONFIG-04", "`method.targets=[q_proj,v_proj]`"),
        (["additional_target=lm_head"], "E-CONFIG-04", "`method.modules_to_save=[lm_head]`"),
        (["use_dora=true"], "E-CONFIG-04", "`method.dora=true`"),
        (["objective.beta=0.2"], "E-CONFIG-48", "dpo"),
        (["beta=0.2"], "E-CONFIG-48", "dpo"),
        (["method.kind=full", "method.targets=[q]"], "E-CONFIG-48", "lora"),
        (["save_total_limit=3"], "E-CONFIG-49", "Remove it"),
        (["method.init=pissa"], "E-CONFIG-05", "method.pissa"),
        (["outdir=x"], "E-CONFIG-05", "model, adapter, data, base, method, objective, engine, out"),
    ],
)
def test_an_unknown_key_is_told_what_it_may_be_here(words: list[str], code: str, said: str) -> None:
    (found,) = problems(None, "model=m", "data.train=d", *words)
    assert found.code == code and said in found.line()


def test_a_file_of_another_system_is_told_how_it_is_converted(tmp_path: Path) -> None:
    theirs = "model_name_or_path: m\ndo_train: true\ndataset: d\nlora_rank: 8\nseed: 1\n"
    found = problems(write(tmp_path, theirs))
    assert [p.code for p in found] == [
        "E-CONFIG-50", "E-CONFIG-04", "E-CONFIG-49", "E-CONFIG-04", "E-CONFIG-04", "E-CONFIG-03",
    ]  # fmt: skip
    assert "`tunewright import run.yaml mine.yaml`" in found[0].line()
    few = problems(write(tmp_path, GOOD + "lora_rank: 8\nlr: 1e-4\n"))
    assert [p.code for p in few] == ["E-CONFIG-04", "E-CONFIG-04"]


def test_what_a_command_sets_itself_is_not_said_to_be_typed() -> None:
    own = {"engine.epochs": 4, "engine.learning_rate": 1e-3}
    run = load_run(None, ["model=m", "data.train=d", "engine.epochs=2"], own=own, of="demo")
    assert (run.config.engine.epochs, run.source("engine.epochs")) == (2, "command line")
    assert (run.given["engine.learning_rate"], run.source("engine.learning_rate")) == (1e-3, "demo")


def test_a_key_that_resembles_nothing_gets_the_list_of_its_section() -> None:
    (found,) = problems(None, "model=m", "data.train=d", "engine.xyzzy=3")
    assert found.code == "E-CONFIG-05"
    assert "engine.epochs" in found.fields["known"]
    assert "data.train" not in found.fields["known"]


@pytest.mark.parametrize(
    ("word", "ours", "value"),
    [
        ("r=8", "method.rank", "8"), ("method.r=8", "method.rank", "8"), ("lora_alpha=32", "method.alpha", "32"), ("lora_r=4", "method.rank", "4"),
        ("num_train_epochs=3", "engine.epochs", "3"), ("cutoff_len=512", "data.max_tokens", "512"), ("max_grad_norm=1.0", "engine.clip", "1.0"),
        ("lr_scheduler_type=cosine", "engine.schedule", "cosine"), ("target_modules=[q_proj,v_proj]", "method.targets", "[q_proj,v_proj]"),
        ("bf16=true", "engine.dtype", "bfloat16"), ("fp16=true", "engine.dtype", "float16"), ("load_in_4bit=true", "base.bits", "4"),
        ("per_device_train_batch_size=4", "engine.batch_size", "4"), ("model_name_or_path=x", "model", "x"), ("warmup_ratio=0.1", "engine.warmup", "0.1"),
        ("val_size=0.1", "data.held_out", "0.1"), ("output_dir=o", "out", "o"), ("max_samples=100", "data.limit", "100"),
    ],
)  # fmt: skip
def test_a_key_of_another_system_is_answered_with_ours(word: str, ours: str, value: str) -> None:
    found = problems(None, "model=m", "data.train=d", word)
    assert [(p.code, p.fields["ours"], str(p.fields["value"])) for p in found] == [
        ("E-CONFIG-04", ours, value)
    ]
    assert f"Write `{ours}={value}`" in found[0].line()


@pytest.mark.parametrize("prefix", ["", "engine."])
def test_a_batch_of_another_system_is_multiplied_out(prefix: str) -> None:
    found = problems(
        None,
        "model=m",
        "data.train=d",
        f"{prefix}per_device_train_batch_size=4",
        f"{prefix}gradient_accumulation_steps=8",
    )
    assert [(p.fields["ours"], p.fields["value"]) for p in found] == [("engine.batch_size", 32)] * 2


def test_accumulation_alone_multiplies_our_own_batch_size() -> None:
    (found,) = problems(
        None, "model=m", "data.train=d", "engine.batch_size=4", "gradient_accumulation_steps=8"
    )
    assert (found.fields["ours"], found.fields["value"]) == ("engine.batch_size", 32)


@pytest.mark.parametrize(
    "key", ["template", "gradient_checkpointing", "packing", "train_on_inputs", "trust_remote_code"]
)
def test_keys_that_are_missing_on_purpose_say_why(key: str) -> None:
    (found,) = problems(None, "model=m", "data.train=d", f"{key}=true")
    assert found.code in {f"E-CONFIG-{n}" for n in (10, 11, 12, 13, 14)}
    assert key in found.what()
    assert found.remedy()


def test_every_converted_key_exists_here() -> None:
    from tunewright.core.foreign import RENAMED

    assert set(RENAMED.values()) - set(known_keys({"method": "lora", "objective": "sft"})) <= {
        "objective.beta"
    }


# Wrong and missing values.


def test_everything_wrong_comes_in_one_message(tmp_path: Path) -> None:
    text = "data:\n  limit: -3\nmethod: {kind: lora, rank: many}\nengine:\n  epochs: 0\n  dtype: float8\n  epcohs: 2\n  lora_alpha: 4\nobjective: {kind: stf}\n"
    found = problems(write(tmp_path, text))
    assert {(p.code, p.fields.get("field") or p.fields.get("axis")) for p in found} == {
        ("E-CONFIG-07", "model"), ("E-CONFIG-07", "data.train"), ("E-CONFIG-08", "data.limit"), ("E-CONFIG-08", "method.rank"),
        ("E-CONFIG-08", "engine.epochs"), ("E-CONFIG-08", "engine.dtype"), ("E-CONFIG-03", "engine.epcohs"), ("E-CONFIG-04", "engine.lora_alpha"),
        ("E-CONFIG-09", "objective"),
    }  # fmt: skip
    lines = {p.fields.get("field"): p.where for p in found}
    assert lines["data.limit"] == "run.yaml, line 2"
    assert lines["method.rank"] == "run.yaml, line 3"
    assert lines["engine.dtype"] == "run.yaml, line 6"
    assert of(found, "E-CONFIG-09")[0].fields["guess"] == "sft"


@pytest.mark.parametrize(
    "word",
    ["engine.epochs=[1]", "engine.batch_size=0", "engine.batch_size=1.5", "method.rank=0", "method.dropout=1", "engine.learning_rate=fast", "engine.clip=-1",
     "engine.save_every=0", "engine.rows_per_pass=-5", "engine.learning_rate=.nan", "engine.epochs=.inf", "data.oversize=cut", "data.train=3"],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_named_once(word: str) -> None:
    found = problems(
        None, "model=m", *([] if word.startswith("data.train") else ["data.train=d"]), word
    )
    assert [p.code for p in found] == ["E-CONFIG-08"]
    assert found[0].fields["field"] == word.partition("=")[0]


@pytest.mark.parametrize("every", [5, "epoch", "auto", None])
def test_save_and_evaluate_take_steps_or_epoch(every: Any) -> None:
    text = "null" if every is None else every
    run = load_run(
        None,
        [f"engine.save_every={text}", f"engine.evaluate_every={text}"],
        {"model": "m", "data.train": "d"},
    ).config
    assert run.engine.save_every == run.engine.evaluate_every == every


@pytest.mark.parametrize(
    ("flags", "missing"),
    [
        ({}, {"model", "data.train"}),
        ({"model": "m"}, {"data.train"}),
        ({"data.train": "d"}, {"model"}),
    ],
)
def test_missing_model_and_data_are_named(flags: dict[str, str], missing: set[str]) -> None:
    assert {p.fields["field"] for p in of(problems(None, **flags), "E-CONFIG-07")} == missing


def test_a_key_that_stands_twice_names_both_lines(tmp_path: Path) -> None:
    (found,) = problems(
        write(tmp_path, GOOD + "engine:\n  epochs: 1\n  batch_size: 2\n  epochs: 3\n")
    )
    assert (found.code, found.where, found.fields["line"]) == ("E-CONFIG-06", "run.yaml, line 7", 5)


def test_a_section_that_stands_twice_is_seen_too(tmp_path: Path) -> None:
    found = problems(write(tmp_path, GOOD + "data:\n  train: other.json\n"))
    assert {p.code for p in found} == {"E-CONFIG-06"}


def test_a_missing_file_and_broken_yaml_name_the_place(tmp_path: Path) -> None:
    (found,) = problems(tmp_path / "none.yaml")
    assert (found.code, "none.yaml" in found.what()) == ("E-CONFIG-01", True)
    (found,) = problems(write(tmp_path, "model: m\ndata:\n  train: [a\nout: b\n"))
    assert (found.code, found.where) == (
        "E-CONFIG-45",
        "run.yaml, line 3",
    )  # where the bracket opens
    assert problems(write(tmp_path, "- a\n- b\n"))[0].code == "E-CONFIG-02"
    assert problems(write(tmp_path, ""))[0].code == "E-CONFIG-45"
    (tmp_path / "run.yaml").write_bytes(b"model: \xff\xfe\n")
    assert problems(tmp_path / "run.yaml")[0].code == "E-CONFIG-02"


def test_nothing_in_yaml_runs_code(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        load_run(write(tmp_path, "model: !!python/object/apply:os.getcwd []\ndata: {train: d}\n"))


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_run(tmp_path / "run.yaml").config.model == "some/model"


@pytest.mark.parametrize("word", ["rows.json", "=3", "--rank"])
def test_a_word_that_sets_nothing_is_an_error(word: str) -> None:
    assert [p.code for p in problems(None, word)] == ["E-CONFIG-15"]


def test_a_bare_kind_is_a_word_for_the_section() -> None:
    assert (
        kind_of(
            load_run(
                None, ["method=lora", "objective=sft"], {"model": "m", "data.train": "d"}
            ).config.method
        )
        == "lora"
    )
    (found,) = problems(None, "model=m", "data.train=d", "method=lroa", "method.rank=3")
    assert (found.code, found.fields["guess"]) == ("E-CONFIG-09", "lora")


# Known faults of core/runfile.py and core/foreign.py, each with the test that its repair must pass.


@pytest.mark.parametrize("section", ["engine", "base"])
def test_a_section_without_keys_means_the_defaults(tmp_path: Path, section: str) -> None:
    run = load_run(write(tmp_path, GOOD + f"{section}:\n  # nothing yet\n"))
    assert run.config.engine.epochs == 3.0


@pytest.mark.parametrize(
    "word",
    ["engine.epochs=true", "engine.batch_size=true", "data.held_out=true", "data.held_out=-0.1"],
)
def test_truth_is_no_number_and_a_share_is_not_negative(word: str) -> None:
    assert [p.code for p in problems(None, "model=m", "data.train=d", word)] == ["E-CONFIG-08"]


@pytest.mark.parametrize(
    "word", ["optim=adamw_torch", "lr_scheduler_type=constant_with_warmup", "max_steps=-1"]
)
def test_a_converted_value_is_one_that_this_system_takes(word: str) -> None:
    (found,) = problems(None, "model=m", "data.train=d", word)
    load_run(
        None, [f"{found.fields['ours']}={found.fields['value']}"], {"model": "m", "data.train": "d"}
    )


def test_targets_with_commas_become_a_list() -> None:
    (found,) = problems(None, "model=m", "data.train=d", "lora_target=q_proj,v_proj")
    assert found.fields["value"] == "[q_proj,v_proj]"


# Where a value came from.


def test_every_value_knows_where_it_came_from(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "engine:\n  epochs: 1\n  batch_size: 2\n")
    run = load_run(path, ["engine.epochs=5"], {"out": "o"})
    assert run.config.engine.epochs == 5
    assert run.source("engine.epochs") == "command line"
    assert run.source("engine.batch_size") == "run.yaml, line 6"
    assert run.source("out") == "command line"
    assert run.source("engine.clip") == "default"
    assert run.source("data.train") == "run.yaml, line 3"


def test_the_users_own_column_names_are_no_keys_of_ours(tmp_path: Path) -> None:
    given, _ = read_yaml(write(tmp_path, GOOD + "  columns: {instruction: my.column, output: b}\n"))
    assert given["data.columns"] == {"instruction": "my.column", "output": "b"}
    assert flatten({"a": {"b": 1}, "data": {"columns": {"x": "y"}}}) == {
        "a.b": 1,
        "data.columns": {"x": "y"},
    }


def test_a_bare_data_file_is_what_is_trained_on() -> None:
    assert load_run(None, [], {"model": "m", "data": "rows.json"}).config.data.train == "rows.json"


# Mistakes that YAML names in its own words, or takes without any.


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ('model: "C:\\Users\\mika\\tiny"\ndata: r.json\n', 1, "Windows path"),
        ('model: m\ndata:\n  train: "D:\\data\\rows.json"\n', 3, "Windows path"),
        (
            'model: "C:\\temp\\new"\ndata: r.json\n',
            1,
            "this path contains one",
        ),  # valid YAML: a tab and a line break
        (
            "model: m\ndata:\n  train: '..\\rows.json'\n  held_out: \"..\\test.json\"\n",
            4,
            "this path contains one",
        ),
        ("model: m\ndata:\n\ttrain: r.json\n", 3, "a tab"),
        ("model:m\ndata: r.json\n", 1, "no space after the colon"),
        ("model: m\ndata: r.json\nengine:\n  steps:5\n", 3, "no space after the colon"),
        (
            "model: m\ndata: r.json\nengine:\n  steps:5\n  epochs: 2\n",
            4,
            "no space after the colon",
        ),
        ("model: m\ndata: r.json\nengine: {steps:5}\n", 3, "no space after the colon"),
        ('model: "m\ndata: r.json\nout: x\n', 1, "has no partner"),
        ('model: m"\ndata: r.json\n', 1, "has no partner"),
        ("model: m\nout: 'it's'\ndata: r.json\n", 2, "closes before the value ends"),
        ("model\uff1am\ndata: r.json\n", 1, "full-width colon"),
        ("model: m\ndata: r.json\nengine\uff1a\n  steps: 5\n", 3, "full-width colon"),
        ("model: m\ndata: r.json\nengine: {steps: 2\uff0c epochs: 1}\n", 3, "full-width comma"),
        ("model: \u201cm\u201d\ndata: r.json\n", 1, "knows only straight ones"),
        (
            "model: m\ndata: r.json\nengine:\n\u00a0\u00a0steps: 3\n",
            4,
            "spaces that YAML does not know",
        ),
        ("model=m\ndata=r.json\n", 1, "not `key=value`"),
        ("model: m\ndata: *.json\n", 2, "unless it is quoted"),
        ("model: m\ndata: r.json\nout: a: b\n", 3, "a second colon"),
        ("model: m\ndata: {train: r.json\nengine: {steps: 3}\n", 2, "not closed"),
        ("model: m\n data: r.json\n", 2, "indentation"),
        ("model: m\ndata:\n  train: r.json\n held_out: 3\n", 4, "indentation"),
    ],
)
def test_a_beginners_mistake_in_yaml_is_named_with_its_line_and_a_remedy(
    tmp_path: Path, text: str, line: int, said: str
) -> None:
    (found,) = problems(write(tmp_path, text))
    assert (
        (found.code, found.where) == ("E-CONFIG-45", f"run.yaml, line {line}")
        and said in found.what()
        and found.remedy()
    )


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("2,5e-5", "2.5e-5"),
        ("0,05", "0.05"),
        ("1,000", "1000"),
        ("12 000", "12000"),
        ("5e\u22125", "5e-5"),
        ("\uff15", "5"),
        ("10%", "0.1"),
    ],
)
def test_what_is_nearly_a_number_is_answered_with_the_number(
    tmp_path: Path, value: str, meant: str
) -> None:
    (found,) = problems(write(tmp_path, GOOD + f"engine:\n  epochs: 1\n  warmup: {value}\n"))
    assert (found.code, found.where) == (
        "E-CONFIG-46",
        "run.yaml, line 6",
    ) and f"`{meant}`" in found.remedy()
    assert (
        found.fields["field"] == "engine.warmup"
        and problems(None, f"engine.warmup={value}", model="m", data="r.json")[0].code
        == "E-CONFIG-46"
    )


@pytest.mark.parametrize("value", ["2,5e-5", "0,05", "1,000"])
def test_a_decimal_comma_in_brackets_is_no_end_of_a_value(tmp_path: Path, value: str) -> None:
    (found,) = problems(
        write(tmp_path, GOOD + f"engine: {{steps: 2, learning_rate: {value}, epochs: 3}}\n")
    )
    assert (found.code, found.where, found.fields["field"]) == (
        "E-CONFIG-46",
        "run.yaml, line 4",
        "engine.learning_rate",
    )
    assert found.fields["value"] == value


def test_a_share_in_per_cent_is_no_file(tmp_path: Path) -> None:
    (found,) = problems(write(tmp_path, "model: m\ndata: {train: r.json, held_out: 10%}\n"))
    assert found.code == "E-CONFIG-46" and "`0.1`" in found.remedy()


@pytest.mark.parametrize("key", ["5", "5e-5", "true", "null", "2024-01-01"])
def test_a_key_is_the_text_that_stands_there_and_keeps_its_line(tmp_path: Path, key: str) -> None:
    (found,) = problems(write(tmp_path, GOOD + f"engine:\n  {key}: 3\n"))
    assert found.where == "run.yaml, line 5" and found.fields["field"] == f"engine.{key}"


def test_words_of_a_switch_thousands_and_numbers_in_quotes_are_taken(tmp_path: Path) -> None:
    run = load_run(
        write(tmp_path, GOOD + 'engine: {keep_best: no, steps: 1_000, learning_rate: "5e-5"}\n')
    ).config
    assert (run.engine.keep_best, run.engine.steps, run.engine.learning_rate) == (False, 1000, 5e-5)
    assert load_run(
        write(tmp_path, GOOD + "engine: {keep_best: on}\nmethod: {targets: [a,b]}\n")
    ).config.engine.keep_best
    assert (
        load_run(write(tmp_path, "model: C:\\temp\\m\ndata: 'D:\\rows.json'\n")).config.model
        == "C:\\temp\\m"
    )


def test_a_file_that_is_not_utf_8_or_empty_says_so(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes("model: \u6a21\u578b\n".encode("gbk"))
    (found,) = problems(tmp_path / "run.yaml")
    assert found.code == "E-CONFIG-02" and "UTF-8" in found.what()
    assert "empty" in problems(write(tmp_path, "# nothing\n"))[0].what()


def test_libyaml_reads_by_the_same_rules():
    text = "a: 2e-4\nb: on\n5e-5: 3\nc: 2024-01-01\nd: [1, .5, true, yes]\n<<: {z: .inf}\n"
    read = yaml.load(text, Loader=QuickLoader)  # noqa: S506
    assert read == yaml.load(text, Loader=Loader)  # noqa: S506
    assert read["a"] == 2e-4 and read["b"] == "on" and read["5e-5"] == 3
