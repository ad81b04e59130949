"""The facts of a run folder for the doctor, and what it finds at the end of every run.

Most of it stands in the folder. What only the rows show (the floor of the loss, what decoding
settings make of the answers) is taken from the run's own samples while it ends, and read again from
its data files later, as long as they are there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.advise.doctor import lines_of
from tunewright.advise.doctor.decoding import Line, decoding_of, settings_of
from tunewright.advise.doctor.facts import Asked, Course, Data, Facts, Weights
from tunewright.advise.doctor.floor import Floor, entropy_floor
from tunewright.advise.doctor.found import found_of
from tunewright.advise.doctor.judging import examine
from tunewright.core import compat
from tunewright.core.errors import TunewrightError
from tunewright.core.files import read_json_objects
from tunewright.core.registry import methods, objectives, usual_rate
from tunewright.core.runfile import objective_of, parse_run
from tunewright.core.types import Sample
from tunewright.engine.schedule import learning_rate_for
from tunewright.record import folder as run_folder
from tunewright.record.diagnosis import Examination
from tunewright.report.record import Record, finite, goes_in_circles, number, read_record
from tunewright.report.verdict import skipped_steps

if TYPE_CHECKING:
    from tunewright.run.prepare import Plan

LINES = 200
"""Rows whose answers are held against the decoding settings."""
MOST_ADAPTER_BYTES = 16 << 20
"""Adapters up to this size are read again at the end of a run, for values that are no numbers."""
TEXTS = ("sft", "pretrain", "distill", "dpo", "kto", "orpo", "simpo", "cpo", "ipo")


@dataclass(frozen=True)
class Known:
    """What only the rows of a run show."""

    floor: Floor | None
    lines: Sequence[Line]
    stop: str
    folders: Sequence[Path]
    """Where decoding settings may stand, the nearest first."""


def known_of(plan: Plan, folder: Path) -> Known:
    """The same from a run that is under way; its weights lie in `folder`."""
    stops = plan.renderer.stop_ids
    return _known(plan.data.train, stops, plan.renderer.end_text, [folder, plan.source.folder])


def _known(
    samples: Sequence[Sample], stops: Sequence[int], end: str, folders: Sequence[Path]
) -> Known:
    lines = lines_of.lines_from(samples, stops, LINES)
    return Known(entropy_floor(samples) if lines else None, lines, str(end), folders)


def known_again(run: Path) -> Known | None:
    """The same from the run's files; None where its model or rows are not there as they were."""
    from tunewright.core.telling import Quiet
    from tunewright.data import inspect
    from tunewright.engine import opening
    from tunewright.models import load

    with contextlib.suppress(TunewrightError, OSError, ValueError, KeyError):
        given = run_folder.read_run(run)
        config = parse_run(given, dict.fromkeys(given, "run.yaml")).config
        found = opening.find(str(run), Quiet())
        renderer = found.renderer()
        data = inspect(
            config.data,
            renderer,
            load.context_of(opening.read_config(found)),
            config.engine.seed,
            check=False,
            wants=compat.wanted_rows(config),
            pack=objective_of(config).pack,
            refuse=False,
        )
        if len(data.train) != run_folder.read_data_report(run).get("train"):
            return None
        folders = [one for one in (found.adapter, found.source.folder) if one is not None]
        return _known(data.train, renderer.stop_ids, renderer.end_text, folders)
    return None


def reading_of(run: Path, data: str, how: dict[str, Any]) -> dict[str, Any]:
    """How the rows of `data` are read for a run where `how` does not say: as rows of the kind that
    it learns from, and the rows that it was trained on as they were read then."""
    settings = run_folder.read_run(run)
    with contextlib.suppress(TunewrightError, TypeError, ValueError):
        config = parse_run(settings, dict.fromkeys(settings, "run.yaml")).config
        found: dict[str, Any] = {"wants": compat.wanted_rows(config)}
        if how["format"] == "auto" and not how["columns"] and config.data.train == data:
            found |= {"format": config.data.format, "columns": config.data.columns}
        return found
    return {}


def facts_of(run: Path, known: Known | None = None, *, weights: bool = True) -> Facts:
    """What the folder of a run shows. `weights`: the adapter's own files are read."""
    record = read_record(run)
    return Facts(
        run.as_posix(),
        course=_course(record),
        data=_data(record, known),
        asked=_asked(run, record),
        weights=_weights(record) if weights else None,
        decoding=None
        if known is None or record.setting("objective.kind") not in TEXTS
        else decoding_of(
            settings_of(*known.folders), known.lines, stop=known.stop, looks_at_stop=False
        ),
    )


def later(facts: Facts, run: Path) -> Facts:
    """The facts of a run with how it ended, which a run that ends says itself."""
    if facts.course is None or facts.course.wall == "done":
        return facts
    told = run_folder.read_summary(run)
    total = finite(told.get("total_steps"))
    if total is None:
        started = [e for e in _lines(run / "events.jsonl") if e.get("event") == "started"]
        total = finite(started[-1].get("total_steps")) if started else None
    course = replace(
        facts.course,
        ended=facts.course.wall or "killed",
        total_steps=int(total or 0),
        why=str(told.get("reason") or ""),
    )
    return replace(facts, course=course)


def at_end(run: Path, known: Known | None) -> Examination:
    """Examine a run that has just ended, without reading large files, and write `doctor.json`."""
    small = sum(file.stat().st_size for file in (run / "adapter").glob("*.safetensors"))
    examination = examine(facts_of(run, known, weights=0 < small <= MOST_ADAPTER_BYTES))
    examination.write(run)
    return examination


# ---- the groups


def _course(record: Record) -> Course | None:
    if not record.steps and not record.summary:
        return None
    steps, s = record.steps, record.summary
    objective = record.setting("objective.kind")
    kept = s.get("held_out_loss")
    rewarded = any("reward" in (e.get("figures") or {}) for e in steps)
    return Course(
        objective=objective,
        method=record.setting("method.kind"),
        losses=_figures(steps, "loss"),
        rates=_figures(steps, "learning_rate"),
        norms=_figures(steps, "gradient_norm"),
        steps=len(steps) or int(finite(s.get("steps")) or 0),
        skipped=skipped_steps(record),
        dtype=record.setting("engine.dtype"),
        held=record.evaluations,
        held_kept=number(kept) if kept is not None else None,
        usual_rate=_usual(record),
        ranked=_ranked(record),
        rewarded=rewarded,
        groups_alike=finite(s.get("groups_without_difference")),
        picked=_mean_figure(record, "kept"),
        finished=_mean_figure(record, "finished"),
        wall=str(s.get("status") or ""),
    )


def _ranked(record: Record) -> float | None:
    """Share of pairs that are ranked right: of the held-out ones, else over the last steps."""
    told = record.summary.get("held_out_figures")
    held = finite(told.get("accuracy")) if isinstance(told, dict) else None
    last = record.steps[-max(1, len(record.steps) // 4) :]
    shares = [finite((one.get("figures") or {}).get("accuracy")) for one in last]
    known = [share for share in shares if share is not None]
    return held if held is not None else sum(known) / len(known) if known else None


def _mean_figure(record: Record, name: str) -> float | None:
    """The mean of a figure over the steps that have it."""
    found = [finite((one.get("figures") or {}).get(name)) for one in record.steps]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known else None


def _figures(steps: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [value for one in steps if (value := number(one.get(name))) is not None]


def _usual(record: Record) -> float | None:
    """The rate that `auto` would have chosen."""
    kind = record.setting("method.kind")
    if methods.get(kind) is None:
        return None
    steps = int(finite(record.summary.get("total_steps")) or len(record.steps) or 1)
    total = finite(record.summary.get("total_parameters")) or 0.0
    rate = learning_rate_for(usual_rate(kind), steps, int(total))
    return rate * _factor(record)


def _factor(record: Record) -> float:
    """What an objective multiplies the usual rate by; 1 for one that cannot be made again."""
    if objectives.get(record.setting("objective.kind")) is None:
        return 1.0
    with contextlib.suppress(TunewrightError, OSError, TypeError, ValueError):
        given = {k: v for k, v in record.settings.items() if v is not None}
        config = parse_run(given, dict.fromkeys(given, "run.yaml")).config
        return float(objective_of(config).rate_factor)
    return 1.0


def _data(record: Record, known: Known | None) -> Data | None:
    d = record.data
    if not d:
        return None

    def count(name: str) -> int:
        return int(finite(d.get(name)) or 0)

    found, rows = found_of(d), finite(d.get("train"))
    asks_only = not d.get("answers") and not d.get("learnt_tokens")
    learnt, tokens = finite(d.get("learnt_tokens")), finite(d.get("tokens_total"))
    reasons = d.get("reasons") if isinstance(d.get("reasons"), dict) else {}
    too_long = reasons.get("too_long") if isinstance(reasons, dict) else None
    return Data(
        rows=None if rows is None else int(rows),
        distinct=None if rows is None or asks_only else int(rows) - count("duplicates"),
        learnt_tokens=None if learnt is None or asks_only else int(learnt),
        tokens=None if tokens is None else int(tokens),
        truncated=found.get("truncated", (0, 0))[0],
        read=count("rows_read"),
        dropped=count("rows_dropped"),
        too_long=int(finite(too_long.get("count")) or 0) if isinstance(too_long, dict) else 0,
        duplicates=count("duplicates"),
        held_out=count("held_out"),
        leaked=count("held_out_overlap"),
        floor=known.floor.loss if known is not None and known.floor else None,
        floor_rows=known.floor.rows if known is not None and known.floor else 0,
        found=found,
    )


def _asked(run: Path, record: Record) -> list[Asked] | None:
    """The questions that were asked before and after; None where a run gives numbers or was not
    asked again."""
    if str(record.setting("objective.kind")) in ("reward", "process_reward"):
        return None
    found = []
    for line in _lines(run / "before_after.jsonl"):
        after = str(line.get("after") or "")
        end, end_before = line.get("after_end"), line.get("before_end")
        found.append(
            Asked(
                question=str(line.get("question") or ""),
                expected=str(line.get("expected") or ""),
                after=after,
                before=str(line.get("before") or ""),
                cut=end == "limit" or goes_in_circles(after),
                cut_before=end_before == "limit",
                differs=line.get("reload_differs") is True,
                kind=str(line.get("kind") or ""),
            )
        )
    return found if found and record.summary.get("status") == "done" else None


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return read_json_objects(path)
    except OSError:
        return []


def _weights(record: Record) -> Weights | None:
    """The files of a run's adapter; None for a whole model, and where nothing was saved."""
    from tunewright.advise.doctor import files

    folder = record.run / "adapter"
    if not any(folder.glob("*.safetensors")):
        return None
    try:
        return files.adapter_files(folder, None, "")
    except (OSError, ValueError, RuntimeError) as error:
        return Weights("adapter", refused=str(error).splitlines()[0][:200])
    except Exception as error:  # safetensors raises its own kinds for damaged files
        return Weights("adapter", refused=f"{type(error).__name__}: {error}"[:200])
