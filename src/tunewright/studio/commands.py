"""From the fields of a request to one command of the program, as a list of words.

No shell sees it, values stand behind their flag or behind `--`, and a value that begins with a
hyphen cannot become a flag: typer reads `--flag=value`. What the page may not choose (trusted code,
own reward functions, output folders outside the workspace) has no field here.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tunewright.core.errors import UsageError, problem
from tunewright.core.runfile import parse_run, parse_value
from tunewright.core.words import say
from tunewright.studio.checks import Checks
from tunewright.studio.given import Given
from tunewright.studio.jobs import Jobs
from tunewright.studio.places import Places, free_name, name_for_file, slug

WORDS = ("type", "name", "dtype", "way", "blocks", "to", "data")
"""Options of an export that are words; the others are numbers or switches."""
WAYS = ("merge", "gguf", "adapter-gguf", "ollama", "quantize", "prune", "shrink", "diff")


class Commands:
    """Makes jobs. Every method raises UsageError for wrong fields, before anything is queued."""

    def __init__(self, places: Places, checks: Checks, jobs: Jobs):
        self.places, self.checks, self.jobs = places, checks, jobs
        self.kinds: dict[str, Callable[[Given, str | None], dict[str, Any]]] = {
            "train": self.train,
            "evaluate": self.evaluate,
            "compare": self.compare,
            "advise": self.advise,
            "doctor": self.doctor,
            "export": self.export,
            "check": self.check,
            "bench": self.bench,
        }

    def add(self, given: Given, language: str | None) -> dict[str, Any]:
        """Queue what a request asks for."""
        return self.kinds[given.choice("kind", self.kinds)](given, language)

    def train(self, given: Given, language: str | None) -> dict[str, Any]:
        """One run: the settings become a file of the job, the folder's name comes from the run's
        label."""
        config = self.checks.config(given.mapping("config"))
        questions = given.texts("questions", [])
        label = given.text("name", "", most=200).strip()
        asked = config.get("probes")
        if questions and isinstance(asked, list):
            # Those with an expected answer stay as they are.
            known = {one if isinstance(one, str) else _question(one) for one in asked}
            config["probes"] = [*asked, *(one for one in questions if one not in known)]
        elif questions:
            config["probes"] = questions
        with self.jobs.changing():  # two clicks must not get one folder
            out = self._free_run(slug(label) or _stem(config))
            config["out"] = str(out)
            parse_run(dict(config), {key: key for key in config})
            return self.jobs.add(
                "train",
                label or out.name,
                ["train", "{job}/run.yaml", "--json"],
                files={"run.yaml": yaml_of(config)},
                run=self.places.id_of(out),
                run_path=str(out),
                label=label,
                config=_plain(config),
                log=str(self._run_log(out)),
                language=language,
            )

    def resume(self, run: Path, language: str | None) -> dict[str, Any]:
        """Go on with a run that was stopped."""
        return self.jobs.add(
            "train",
            run.name,
            ["train", "--resume", "--json", "--", str(run)],
            run=self.places.id_of(run),
            run_path=str(run),
            label="",
            resumed=True,
            log=str(self._run_log(run)),
            language=language,
        )

    def _run_log(self, run: Path) -> Path:
        return self.places.private / "logs" / f"{self.places.id_of(run)}.txt"

    def _free_run(self, name: str) -> Path:
        taken = {
            str(job["run_path"]) for job in self.jobs.all() if job["state"] in ("queued", "running")
        }
        return free_name(self.places.runs, name or "run", taken)

    def evaluate(self, given: Given, language: str | None) -> dict[str, Any]:
        """`evaluate`: rows, an exam, or a judge."""
        target = self.checks.target(given.text("target"))
        words: list[str] = []
        for field, flag in (("data", "--data"), ("exam", "--exam")):
            if field in given:
                words.append(f"{flag}={self.checks.data(given.text(field), field)}")
        for field, flag in (("judge", "--judge"), ("against", "--against")):
            if field in given:
                words.append(f"{flag}={self.checks.target(given.text(field), field)}")
        words += _numbers(
            given, limit="--limit", max_new_tokens="--max-new-tokens", shots="--shots"
        )
        words += _texts(given, metrics="--metrics", rewards="--rewards", options="--options")
        words += _texts(given, format="--format", group="--group")
        words += _flags(given, base="--base", details="--details", lowest="--lowest", chat="--chat")
        words += _switch(given, "generate") + _switch(given, "think") + _columns(given)
        if "rewards" in given and "python" in given.text("rewards"):
            raise UsageError(problem("E-STUDIO-14", "rewards", what="python"))
        words.append("--out={job}/evaluation")
        return self._ask("evaluate", target, ["evaluate", *words], [target], language)

    def compare(self, given: Given, language: str | None) -> dict[str, Any]:
        """`compare`: several models on the same rows."""
        targets = [self.checks.target(one, "targets") for one in given.texts("targets")]
        if not targets:
            raise UsageError(problem("E-STUDIO-10", "targets", field="targets", wanted="[A, B]"))
        words = [f"--data={self.checks.data(given.text('data'))}"]
        words += _numbers(given, limit="--limit", max_new_tokens="--max-new-tokens", seed="--seed")
        words += _numbers(given, temperature="--temperature")
        words += _texts(given, metrics="--metrics", system="--system", format="--format")
        words += _flags(given, base="--base") + _switch(given, "loss") + _switch(given, "think")
        words += [*_columns(given), "--out={job}/compared"]
        return self._ask("compare", targets[0], ["compare", *words], targets, language)

    def advise(self, given: Given, language: str | None) -> dict[str, Any]:
        """`advise`: prompt, retrieve, query, train, or none of it."""
        model = self.checks.model(given.text("model"))
        words = [f"--model={model}", f"--data={self.checks.data(given.text('data'))}"]
        for field in ("docs", "tables"):
            if field in given:
                words.append(f"--{field}={self.places.inside(given.text(field), field)}")
        words += _numbers(given, minutes="--minutes", users="--users", rows="--rows", seed="--seed")
        if "changes" in given:
            words.append(f"--changes={given.choice('changes', ('often', 'rarely'))}")
        words += _texts(given, system="--system", format="--format")
        words += _flags(given, everything="--everything") + _columns(given)
        words.append("--out={job}/advice")
        return self._ask("advise", model, ["advise", *words], [], language)

    def doctor(self, given: Given, language: str | None) -> dict[str, Any]:
        """`doctor`: what went wrong with a training."""
        target = self.checks.target(given.text("target"))
        words = []
        if "model" in given:
            words.append(f"--model={self.checks.model(given.text('model'))}")
        if "data" in given:
            words.append(f"--data={self.checks.data(given.text('data'))}")
        words += _numbers(given, rows="--rows") + _columns(given)
        return self._ask("doctor", target, ["doctor", *words], [target], language)

    def check(self, given: Given, language: str | None) -> dict[str, Any]:
        """`data check`: what a model would learn from a file."""
        data = self.checks.data(given.text("data"))
        words = []
        if "model" in given:
            words.append(f"--model={self.checks.model(given.text('model'))}")
        words += _numbers(given, max_tokens="--max-tokens")
        words += _texts(given, format="--format", objective="--objective") + _columns(given)
        return self._ask("check", data, ["data", "check", *words], [data], language)

    def bench(self, given: Given, language: str | None) -> dict[str, Any]:
        """`bench`: how fast a run is here."""
        model = self.checks.model(given.text("model"))
        words = [f"--model={model}", f"--data={self.checks.data(given.text('data'))}"]
        words += [*_numbers(given, steps="--steps"), "--out={job}/bench"]
        return self._ask("bench", model, ["bench", *words], [], language)

    def export(self, given: Given, language: str | None) -> dict[str, Any]:
        """`export ...` into a folder of its own below exports/."""
        way = given.choice("way", WAYS)
        target = self.checks.target(given.text("target"))
        name = name_for_file(given.text("name", Path(target).name or way), "name")
        options = Given(_as_wanted(given.mapping("options", {})), "options.")
        words = self._export_words(way, options)
        if way in ("gguf", "adapter-gguf"):
            name = name if name.endswith(".gguf") else f"{name}.gguf"
        if options.values:
            extra = sorted(options.values)[0]
            raise UsageError(
                problem("E-STUDIO-10", f"options.{extra}", field=f"options.{extra}", wanted="-")
            )
        with self.jobs.changing():
            taken = {str(job.get("out")) for job in self.jobs.all()}
            out = free_name(self.places.exports, name, taken)
            self.places.exports.mkdir(exist_ok=True)
            command = "gguf" if way == "adapter-gguf" else way
            return self.jobs.add(
                "export",
                f"{way}: {self.places.short(target)}",
                ["export", command, *words, "--json", "--", target, str(out)],
                target=target,
                out=str(out),
                language=language,
            )

    def _export_words(self, way: str, options: Given) -> list[str]:
        """The flags of one way; a field that was used is taken out, so that what is left over is
        unknown."""
        words = ["--adapter"] if way == "adapter-gguf" else []
        if way in ("gguf", "adapter-gguf", "ollama"):
            words += _texts(options, type="--type", name="--name")
        if way == "ollama":
            words += _numbers(options, num_ctx="--num-ctx")
        if way == "merge":
            words += _texts(options, dtype="--dtype")
        if way == "diff":
            words += _numbers(options, share="--share")
        if way == "quantize":
            words += _numbers(options, bits="--bits", group="--group", tokens="--tokens")
            words += _texts(options, type="--type") + _switch(options, "measure")
        if way == "prune":
            words += _texts(options, way="--way")
            words += _texts(options, blocks="--blocks")
            words += _numbers(options, share="--share", heal="--heal")
        if way == "shrink":
            words += _texts(options, blocks="--blocks", to="--to") + _numbers(
                options, heal="--heal"
            )
        if "data" in options and way in ("quantize", "prune", "shrink"):
            words.append(f"--data={self.checks.data(options.text('data'))}")
            options.values.pop("data")
        used = {word.partition("=")[0].removeprefix("--").removeprefix("no-") for word in words}
        for name in [n for n in options.values if n.replace("_", "-") in used]:
            del options.values[name]
        options.values = {k: v for k, v in options.values.items() if v is not None}
        return words

    def _ask(
        self, kind: str, about: str, words: list[str], ends: list[str], language: str | None
    ) -> dict[str, Any]:
        title = say("studio.job", kind=say(f"studio.job.{kind}"), about=self.places.short(about))
        argv = [*words, "--json", *(["--", *ends] if ends else [])]
        return self.jobs.add(kind, title, argv, target=about, language=language)


def shown_command(places: Places, job: dict[str, Any]) -> str:
    """A job's command as a person would type it in the workspace."""
    words = [word for word in job["argv"] if word != "--json"]
    words = [_short(places, word) for word in words]
    # `--` is only needed before a word that looks like a flag.
    if "--" in words and not any(w.startswith("-") for w in words[words.index("--") + 1 :]):
        words.remove("--")
    return shlex.join(["tunewright", *words])


def _short(places: Places, word: str) -> str:
    flag, equals, value = word.partition("=")
    if equals and flag.startswith("--"):
        return f"{flag}={places.short(value)}" if value.startswith("/") else word
    return places.short(word) if Path(word).is_absolute() else word


def yaml_of(config: dict[str, Any]) -> str:
    """Dotted keys as the text of a run file."""
    nested: dict[str, Any] = {}
    for key, value in config.items():
        *sections, name = key.split(".")
        place = nested
        for section in sections:
            inner = place.setdefault(section, {})
            # `method: lora` in short, and `method.rank` beside it.
            if not isinstance(inner, dict):
                inner = place[section] = {"kind": inner}
            place = inner
        if isinstance(place.get(name), dict) and not isinstance(value, dict):
            place[name]["kind"] = value
        else:
            place[name] = value
    return yaml.safe_dump(nested, allow_unicode=True, sort_keys=False, width=100)


def _stem(config: dict[str, Any]) -> str:
    first = config.get("data.train", "data")
    first = first[0] if isinstance(first, list) and first else first
    name = first.get("file", "data") if isinstance(first, dict) else str(first)
    kind = config.get("method.kind", config.get("method", "lora"))
    return slug(f"{Path(str(name)).stem}-{kind}")


def _question(row: Any) -> str:
    """What a row of `probes` asks."""
    names = ("instruction", "question", "prompt")
    return next((str(row[n]) for n in names if n in row), "") if isinstance(row, dict) else ""


def _as_wanted(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a form, where a number may come as the text of a choice, and the other way."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name in WORDS and isinstance(value, int | float) and not isinstance(value, bool):
            value = f"{value:g}"
        elif name not in WORDS and isinstance(value, str):
            number = parse_value(value)
            value = number if isinstance(number, int | float) else value
        if value not in (None, ""):
            found[name] = value
    return found


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "out"}


def _numbers(given: Given, **flags: str) -> list[str]:
    found = {flag: given.number(name) for name, flag in flags.items() if name in given}
    return [f"{flag}={int(n) if n == int(n) else n}" for flag, n in found.items()]


def _texts(given: Given, **flags: str) -> list[str]:
    return [f"{flag}={given.text(name)}" for name, flag in flags.items() if name in given]


def _flags(given: Given, **flags: str) -> list[str]:
    return [flag for name, flag in flags.items() if given.flag(name)]


def _switch(given: Given, name: str) -> list[str]:
    value = given.flag(name, None)
    return [] if value is None else [f"--{name}" if value else f"--no-{name}"]


def _columns(given: Given) -> list[str]:
    pairs = given.mapping("columns", {})
    if not all(isinstance(k, str) and isinstance(v, str) for k, v in pairs.items()):
        raise UsageError(
            problem("E-STUDIO-10", "columns", field="columns", wanted="{ours: theirs}")
        )
    return [f"--columns={ours}={theirs}" for ours, theirs in pairs.items()]
