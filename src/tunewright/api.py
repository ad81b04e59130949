"""The same from Python.

import tunewright
run = tunewright.train(model="Qwen/Qwen2.5-0.5B-Instruct", data="rows.json", method={"kind": "lora",
"rank": 16}, engine={"epochs": 3})
print(run.chat("Who keeps the lighthouse?"))
run.report            # in a notebook the page is shown in place
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.core.callbacks import Callback
from tunewright.core.files import read_json_lines
from tunewright.core.pace import sleep_when_idle
from tunewright.core.runfile import flatten, parse_run
from tunewright.core.telling import Tell

if TYPE_CHECKING:
    from tunewright.serve.answering import Answerer

Part = Mapping[str, Any]


class Report:
    """The page with the evidence. `path` is the file; in a notebook it is shown in place."""

    def __init__(self, path: Path):
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        # An inline frame keeps the page's own style and policy apart from the notebook's.
        page = html.escape(self.path.read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:720px;border:0"></iframe>'


class Run:
    """A run folder: what was trained, what it answers and what it shows. `Run("runs/mine")` opens
    one that exists.

    Raises UsageError when the folder holds no run.
    """

    def __init__(self, folder: str | Path):
        from tunewright.record import folder as run_folder

        sleep_when_idle()
        self.folder = Path(folder)
        run_folder.read_run(self.folder)
        self.summary: dict[str, Any] = run_folder.read_summary(self.folder)
        self._open: dict[tuple[str, bool | None], Answerer] = {}

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, status={self.summary.get('status', '?')!r})"

    @property
    def adapter(self) -> Path:
        """The trained weights, in PEFT's layout."""
        return self.folder / "adapter"

    @property
    def report(self) -> Report:
        """The page with the evidence."""
        return Report(self.folder / "report.html")

    @property
    def before_after(self) -> list[dict[str, Any]]:
        """The questions with the answers before and after."""
        path = self.folder / "before_after.jsonl"
        return read_json_lines(path) if path.is_file() else []

    def chat(
        self,
        question: str,
        *,
        system: str | None = None,
        base: bool = False,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        think: bool | None = None,
    ) -> str:
        """The tuned model's answer to one question; `base` asks the untouched model. `system` is
        the system prompt: by default the run's own, `""` an empty one. `think`: asked with thinking
        or without, where the model's template knows both; by default as the run was.

        The model stays loaded for the next question. Warns of an answer that ended at the end of
        the context; raises ModelError for a question that fills it.
        """
        import warnings

        from tunewright.core.telling import Quiet
        from tunewright.core.types import Message
        from tunewright.core.words import say
        from tunewright.serve.answering import open_target

        def opened(of: str) -> Answerer:
            if (of, think) not in self._open:
                self._open[of, think] = open_target(
                    str(self.folder), Quiet(), base=of == "base", think=think
                )
            return self._open[of, think]

        answerer = opened("run")
        if base and not answerer.switches:
            answerer, base = opened("base"), False
        messages = [*answerer.start(system), Message("user", question)]
        found = answerer.ask(
            messages, base=base, max_new_tokens=max_new_tokens, temperature=temperature
        )
        if found.end == "context":
            warnings.warn(say("chat.context_full"), stacklevel=2)
        return found.text

    def evaluate(self, data: str, **options: Any) -> dict[str, Any]:
        """Measure the run on the rows of `data`: the figures of `tunewright evaluate --json`.
        `options` are those of `evaluate_target`; `out` is the folder for the answers, the figures
        and a page."""
        from tunewright.evaluate.scoring import evaluate_target
        from tunewright.report import evaluation_page

        result = evaluate_target(str(self.folder), data, **options)
        if options.get("out") is not None:
            result["page"] = str(evaluation_page.write(result, Path(options["out"])))
        return result

    def compare(self, data: str, *others: str, base: bool = True, **options: Any) -> dict[str, Any]:
        """The run beside its base (`base`) and other models on the questions of `data`: the figures
        of `tunewright compare --json`."""
        from tunewright.run.comparing import compare

        return compare([str(self.folder), *others], data, base=base, **options)

    def gate(self, contract: str | Path, **options: Any) -> dict[str, Any]:
        """Hold the run to a contract: the verdict of `tunewright gate --json`. `against`: the model
        it is compared with; `out`: the folder of the files."""
        from tunewright.run.gating import gate

        return gate(Path(contract), str(self.folder), **options)

    def merge(self, out: str | Path, *, dtype: str | None = None) -> Path:
        """Fold the adapter into the full-precision base, prove that it answers the same, and return
        the folder."""
        from tunewright.export.merge import merge_run

        merge_run(self.folder, Path(out), dtype=dtype)
        return Path(out)

    def gguf(self, out: str | Path, *, type: str | None = None, adapter: bool = False) -> Path:
        """Write the run as a GGUF file, or its LoRA adapter alone, prove it, and return the
        file."""
        from tunewright.export import gguf, gguf_adapter

        if adapter:
            gguf_adapter.export_adapter(self.folder, Path(out), type=type or "f32")
        else:
            gguf.export_gguf(self.folder, Path(out), type=type or "q8_0")
        return Path(out)

    def ollama(self, out: str | Path, *, type: str = "q8_0") -> Path:
        """Write the run as a folder for `ollama create`, prove it, and return the folder."""
        from tunewright.export.ollama import export_ollama

        export_ollama(self.folder, Path(out), type=type)
        return Path(out)


def train(
    model: str | None = None,
    data: str | Sequence[Any] | Part | None = None,
    method: str | Part | None = None,
    objective: str | Part | None = None,
    engine: Part | None = None,
    *,
    out: str | None = None,
    probes: int | Sequence[str | Part] | None = None,
    config: str | Path | None = None,
    tell: Tell | None = None,
    on: Iterable[Callback] = (),
    **more: Any,
) -> Run:
    """Train and return the finished `Run`. The arguments are the sections of a run file; `config`
    starts from one, the others then override it.

    `data` is a file or a whole section, `method` and `objective` a kind or a whole section.
    Progress goes to stderr, or to `tell`. The callbacks `on` are told of each step, measurement,
    checkpoint and answer (docs/callbacks.md). Raises UsageError for wrong input before anything is
    created, TrainingError or CheckpointError when the run fails or a callback raises.
    """
    from tunewright.core.runfile import read_yaml
    from tunewright.story import train as start

    sleep_when_idle()
    given: dict[str, Any] = {}
    where: dict[str, str] = {}
    if config is not None:
        given, where = read_yaml(Path(config))
    sections: dict[str, Any] = {
        "model": model,
        "method": method,
        "objective": objective,
        "engine": engine,
        "out": out,
        "probes": probes,
        **more,
    }
    sections["data"] = (
        data
        if isinstance(data, Mapping) or data is None
        else {"train": data if isinstance(data, str) else list(data)}
    )
    for name, section in sections.items():
        if section is None:
            continue
        value = dict(section) if isinstance(section, Mapping) else section
        for key, inner in flatten(value, name).items():
            given[key], where[key] = inner, "python"
    return Run(start(parse_run(given, where), tell=tell, on=on).folder)


def resume(folder: str | Path, *, tell: Tell | None = None, on: Iterable[Callback] = ()) -> Run:
    """Go on with a run that was stopped or failed, from its newest verified checkpoint; one that is
    done is left as it is. `on` are its callbacks, which are not kept in the folder. Raises as
    `train` does."""
    from tunewright.story import resume_run

    sleep_when_idle()
    return Run(resume_run(Path(folder), tell=tell, on=on).folder)


__all__ = ["Report", "Run", "resume", "train"]
