"""`advise --ask`: one question, answered in the way that the advice chose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunewright.commands.advising import simple
from tunewright.commands.advising.measuring import answer_limit, prompt_of
from tunewright.commands.advising.page import read_advice
from tunewright.commands.advising.passages import read_documents
from tunewright.commands.advising.prompts import Prompts
from tunewright.commands.advising.queries import SQL_TOKENS, Queries
from tunewright.commands.advising.rows import Rows, asked, read_rows
from tunewright.commands.advising.tables import Database, sql_in
from tunewright.core.errors import UsageError, problem
from tunewright.core.telling import Quiet
from tunewright.core.types import Conversation, Message, Origin
from tunewright.core.words import say
from tunewright.evaluate import baseline


def answer_with(out: Path, question: str) -> dict[str, Any]:
    """{"question", "way", "answer", "about"}: `about` are sentences on where the answer comes from.
    Raises UsageError where `out` holds no finished advice (E-ADVISE-08) and as `advise` does."""
    try:
        made = read_advice(out)
        given, way = made["asked"], made["verdict"]["way"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(problem("E-ADVISE-08", str(out))) from error
    rows = read_rows(
        given["data"],
        seed=given["seed"],
        held_out=given["held_out"],
        columns=given["columns"],
        data_format=given["data_format"],
        system=given["system"],
    )
    start = [] if given["system"] is None else [Message("system", given["system"])]
    # The empty answer stands for the one that is wanted.
    row = Conversation([*start, Message("user", question)], Origin("--ask", 1, 1))
    answer, about = _answered(way, given, made, rows, row)
    about.insert(0, say("advise.asked", way=say(f"advise.way.{way}")))
    return {"question": question, "way": way, "answer": answer, "about": about}


def _answered(
    way: str, given: dict[str, Any], made: dict[str, Any], rows: Rows, row: Conversation
) -> tuple[str, list[str]]:
    question = asked(row)
    if way in ("formula", "regressor"):
        formula = made["simple"]["formula"]
        said = [say("advise.by_formula", formula=formula)] if formula else []
        return simple.predict(rows, [question], given["seed"])[0], said
    if way == "classes":
        texts, labels = [asked(r) for r in rows.train], [r.answer().strip() for r in rows.train]
        return baseline.classes(texts, labels, [question], seed=given["seed"])[0], []
    if way in ("lookup", "sql"):
        return _queried(way, given, rows, row)
    return _written(way, given, made, rows, row)


def _queried(
    way: str, given: dict[str, Any], rows: Rows, row: Conversation
) -> tuple[str, list[str]]:
    queries = Queries(Database(Path(given["tables"])), rows)
    try:
        sql = queries.lookup.query(asked(row)) if way == "lookup" else None
        if sql is None:  # worded like no training question: the model tries
            model = _opened(given["model"], given)
            prompt = prompt_of(model, queries.way(), row, SQL_TOKENS)
            sql = sql_in(_answer(model, prompt, SQL_TOKENS))
        return queries.database.ask(sql) or "", [say("advise.by_query", sql=sql)]
    finally:
        queries.database.close()


def _written(
    way: str, given: dict[str, Any], made: dict[str, Any], rows: Rows, row: Conversation
) -> tuple[str, list[str]]:
    documents = None
    if given["docs"] is not None:
        documents = [passage.text for passage in read_documents(Path(given["docs"])).passages]
    prompts = Prompts.of(rows, documents, given["seed"])
    target = made["trained"] if way in ("lora", "lora_rag") else given["model"]
    chosen = {"lora": "base", "lora_rag": "rag"}.get(way, way)
    model = _opened(target, given)
    limit = 2 * answer_limit(rows, model.tokenizer)
    text = _answer(model, prompt_of(model, prompts.ways()[chosen], row, limit), limit)
    passages = prompts.found(row) if chosen == "rag" else []
    return text, [say("advise.by_passage", text=" ".join(one.split())[:200]) for one in passages]


def _opened(target: str, given: dict[str, Any]) -> Any:
    from tunewright.engine import opening

    return opening.open_target(target, Quiet(), dtype=given["dtype"]).answering


def _answer(model: Any, prompt: list[int], limit: int) -> str:
    from tunewright.engine.decoding.answers import answer

    (found,) = answer(model, [prompt], max_new_tokens=limit)
    return str(model.renderer.without_thoughts(found.text)).strip()
