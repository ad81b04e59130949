"""What the statistic promises is what the run computes, counted from the steps as they are cut."""

from __future__ import annotations

import json

import pytest
from helpers import tiny
from helpers.story import model_folder, rows_file, tunewright, words

from tunewright.core.config import EngineConfig
from tunewright.engine.schedule import make_schedule
from tunewright.engine.sharing import step_sharing


def schedule_of(count, **engine):
    return make_schedule(EngineConfig(**engine), count, 1e-4)


@pytest.mark.parametrize("name", sorted(tiny.SETS))
@pytest.mark.parametrize("rows", [40, 1 << 20])
def test_the_figures_are_those_of_the_steps_that_are_taken(name, rows):
    samples = tiny.SETS[name]()
    schedule = schedule_of(len(samples), batch_size=3, epochs=2)
    found = step_sharing(samples, schedule, rows)
    model = tiny.make_model("llama")
    stepper = tiny.make_stepper(model, tiny.attach_lora(model), rows_per_pass=rows)
    logical = physical = 0
    for number in range(1, schedule.total_steps + 1):
        report = stepper.gradients([samples[i] for i in schedule.samples_of(number)])
        logical, physical = logical + report.logical_tokens, physical + report.physical_rows
    assert (found.logical, found.physical, found.steps) == (logical, physical, schedule.total_steps)


def test_nothing_is_shared_where_nothing_is_alike_and_all_where_all_is():
    alone = step_sharing(tiny.nothing_shared(), schedule_of(4, batch_size=4, epochs=1), 1 << 20)
    assert alone.prompt_shared == 0 and alone.speed_up == 1
    same = [tiny.single(list(range(5, 25)), [(10, 20)], i) for i in range(4)]
    found = step_sharing(same, schedule_of(4, batch_size=4, epochs=1), 1 << 20)
    assert found.prompt_shared == 0.75 and found.speed_up == 4
    padded = step_sharing(same, schedule_of(4, batch_size=4, epochs=1), 1 << 20, layout="padded")
    assert padded.prompt_shared == 0 and padded.physical == padded.needed


def test_some_steps_spread_over_a_long_run_tell_as_much():
    samples = [s for k in range(8) for s in tiny.system_prompt(k)]
    schedule = schedule_of(len(samples), batch_size=8, epochs=60)
    whole = step_sharing(samples, schedule, 1 << 20, most_steps=10_000)
    assert step_sharing(samples, schedule, 1 << 20, most_steps=32).physical_share == pytest.approx(
        whole.physical_share, rel=0.05
    )


def test_a_run_measures_what_was_promised_within_a_tenth(tmp_path):
    done = tunewright(
        *words(
            model_folder(tmp_path / "model"),
            rows_file(tmp_path / "rows.json", 24),
            tmp_path / "run",
        )
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    promised = json.loads((tmp_path / "run" / "data_report.json").read_text())["step_sharing"]
    assert promised["physical_share"] == pytest.approx(
        summary["physical_rows"] / summary["logical_tokens"], rel=0.1
    )
    assert "of the prompt tokens of a step are computed once" in done.stderr
