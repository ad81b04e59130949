"""A run as a folder for `ollama create`: a merged, already quantised GGUF and a Modelfile.

Newer versions of Ollama take no adapters and convert nothing, so the file is made here and proven
as every GGUF. The Modelfile states what Ollama would otherwise guess: the template, every stop
word, the length of the context, greedy answers as they were proven, the licence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunewright.core import signals
from tunewright.core.errors import UsageError
from tunewright.core.files import readable_size, sha256_of, write_json, write_text
from tunewright.core.telling import Tell
from tunewright.core.types import Message
from tunewright.core.words import say
from tunewright.export import card, gguf, modelfile
from tunewright.export.folder import ExportError, appearing, require_free
from tunewright.export.gguf_proof import dialogues, prompt_text
from tunewright.export.gguf_types import type_of
from tunewright.export.proof import RECORD, shown
from tunewright.sources import headers

MODEL, MODELFILE = "model.gguf", "Modelfile"
CONTEXT = 8192
"""Most tokens of context that are stated without being asked for: memory grows with them."""
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
THEIR_NAME = {"repetition_penalty": "repeat_penalty"}


def export_ollama(
    run: Path | str,
    out: Path,
    *,
    type: str = "q8_0",
    name: str | None = None,
    num_ctx: int | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Write what `run` names to the folder `out` for Ollama and return the record that lies in it.
    Raises as `gguf.export_gguf`, and UsageError (E-EXPORT-44) for a template that Ollama cannot
    have."""
    tell, out = tell or Tell(), Path(out)
    require_free(out)
    kind = type_of(type)
    with signals.watching():
        writing = gguf.Writing.prepare(run, out / MODEL, kind, name, tell)
        made = _modelfile(writing, num_ctx)
        text = made.text()
        require_same_text(text, writing, out)
        try:
            with appearing(out, "exporting") as temporary:
                path = temporary / MODEL
                record = writing.do(path, temporary)
                write_text(temporary / MODELFILE, text)
                written = (temporary / MODELFILE).read_text(encoding="utf-8")
                compared = require_same_text(written, writing, out)
                notes = [say("ollama.no_tools")]
                if made.licence is None:
                    notes.append(say("ollama.no_licence"))
                record |= {
                    "exported": "ollama",
                    "template_compared": compared,
                    "stop_words": made.stops,
                    "parameters": made.parameters,
                    "licence": writing.about.licence,
                    "notes": [*record["notes"], *notes],
                    "sha256": sha256_of(path),
                }
                write_json(temporary / RECORD, record)
                card.write(temporary, writing.tuned, record)
        except OSError as e:
            raise ExportError.of("E-EXPORT-27", str(out), cause=e) from e
    return {"folder": str(out), **record}


def _modelfile(writing: gguf.Writing, num_ctx: int | None) -> modelfile.Modelfile:
    """What the Modelfile says. Raises UsageError."""
    tuned = writing.tuned
    pieces = modelfile.pieces_of(tuned.renderer, _bos(writing))
    stated: dict[str, Any] = headers.config_of(tuned.base, "generation_config.json")
    given = {k: stated[k] for k in SAMPLING if isinstance(stated.get(k), int | float)}
    sampling = given if stated.get("do_sample") else {"temperature": 0}
    context = int(writing.context or CONTEXT)
    if num_ctx is not None and not 1 <= num_ctx <= context:
        raise UsageError.of("E-EXPORT-45", "--num-ctx", given=num_ctx, most=context)
    tokens = writing.words.keys["ggml.tokens"]
    return modelfile.Modelfile(
        modelfile.go_template(pieces),
        [tokens[i] for i in tuned.renderer.stop_ids],
        {
            "num_ctx": num_ctx or min(context, CONTEXT),
            **{THEIR_NAME.get(k, k): v for k, v in sampling.items()},
        },
        tuned.target.system,
        writing.about.licence_text or writing.about.licence,
    )


def _bos(writing: gguf.Writing) -> str | None:
    """The token that llama.cpp, and so Ollama, puts in front of every text."""
    if not writing.words.keys["ggml.add_bos_token"]:
        return None
    return str(writing.tuned.tokenizer.bos_token)


def require_same_text(text: str, writing: gguf.Writing, out: Path) -> int:
    """Raise ExportError unless the Modelfile asks as the run is asked, and stops where it stops.
    Returns how many dialogues were compared."""
    renderer, bos = writing.tuned.renderer, _bos(writing)
    template = modelfile.template_in(text)
    every = dialogues([])
    every += [[Message("system", "S 你好."), *one] for one in dialogues([])]
    for messages in every:
        run = prompt_text(renderer, messages)
        run = run.removeprefix(bos) if bos else run
        exported = modelfile.run_template(template, messages)
        if run != exported:
            said = {"run": shown(run, 400), "exported": shown(exported, 400)}
            raise ExportError.of("E-EXPORT-33", str(out), **said)
    tokens = writing.words.keys["ggml.tokens"]
    there = modelfile.stops_in(text)
    lost = [tokens[i] for i in renderer.stop_ids if tokens[i] not in there]
    if lost:
        raise ExportError.of("E-EXPORT-34", str(out), tokens=", ".join(lost))
    return len(every)


def lines(record: dict[str, Any]) -> list[str]:
    """The record for a terminal."""
    size = readable_size(record["file_bytes"])
    out = record["folder"]
    return [
        say("ollama.done", out=out, type=record["type"], size=size),
        *gguf.lines_of_proof(record),
        say("ollama.next", out=out, name=Path(out).name.lower()),
    ]
