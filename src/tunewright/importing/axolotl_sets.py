"""Axolotl's data sets as ours: where each lies, its format and columns, and what becomes of the
other keys of a set. Source: Axolotl 0.18, docs of its dataset formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunewright.data.files.turns import ROLES
from tunewright.importing import shared
from tunewright.importing.sheet import CHANGED, LOST, NOT_NEEDED, SAME, Sheet, words_of

TYPES = {
    "alpaca": "alpaca",
    "chat_template": "auto",
    "sharegpt": "sharegpt",
    "completion": "text",
    "pretrain": "text",
    "gpteacher": "alpaca",
    "alpaca_chat": "alpaca",
    "chat_template.default": "preference",
    "chat_template.argilla": "preference",
    "passthrough": "auto",
    "stepwise_supervised": "stepwise",
}
ENDINGS = (".json", ".jsonl", ".csv", ".parquet", ".arrow", ".txt", ".gz")
UNDERSTOOD = {
    "path",
    "data_files",
    "field",
    "text_column",
    "field_messages",
    "field_chosen",
    "field_rejected",
    "field_system",
    "field_tools",
}
"""Keys of a set that `_place` and `_form` take over."""
ENTRY_NOT_NEEDED = {
    "ds_type": "told_by_ending",
    "chat_template": "template",
    "chat_template_jinja": "template",
    "preprocess_shards": "off",
    "name": "off",
}
ENTRY_LOST = {
    "message_field_training_detail": "mark_detail",
    "shards": "shards",
    "shards_idx": "shards",
    "drop_system_message": "system_kept",
    "revision": "entry_revision",
    "trust_remote_code": "remote_code",
    "skip": "entry_skip",
    **dict.fromkeys(("field_thinking", "template_thinking_key", "split_thinking"), "thinking"),
    **dict.fromkeys(
        ("field_human", "field_model", "input_format", "input_transform", "format", "conversation"),
        "entry_form",
    ),
}
MARKS = ("loss", "train", "training", "trainable", "loss_mask", "weight")
"""Names on a turn that say whether it is learnt, as rows here may carry them."""


def is_text(sheet: Sheet) -> bool:
    """Whether all sets are running text, of which every token is learnt."""
    entries = sheet.get("datasets", [])
    kinds = {str(e.get("type")) for e in entries if isinstance(e, dict)}
    return kinds == {"completion"} or (not kinds and sheet.has("pretraining_dataset"))


def data(sheet: Sheet) -> None:
    for key, ours in (
        ("datasets", "data.train"),
        ("pretraining_dataset", "data.train"),
        ("test_datasets", "data.held_out"),
    ):
        if not sheet.has(key):
            continue
        entries = sheet.get(key)
        made = _entries(sheet, key, entries if isinstance(entries, list) else [entries])
        if ours == "data.held_out":
            held: str = ",".join(
                entry if isinstance(entry, str) else str(entry["file"]) for entry in made
            )
            sheet.answer(key, CHANGED, {ours: held}, "test_datasets")
        else:
            sheet.answer(
                key,
                CHANGED,
                {ours: made[0] if len(made) == 1 and isinstance(made[0], str) else made},
                "datasets",
            )
    if sheet.has("test_datasets"):
        sheet.answer("val_set_size", NOT_NEEDED, why="off")
    else:
        shared.held_out(sheet, "val_set_size")
    limit = sheet.number("sequence_len", 512)
    sheet.take_number("sequence_len", "data.max_tokens")
    sheet.fill("sequence_len", {"data.max_tokens": limit}, 512)
    strategy = str(sheet.get("excess_length_strategy", "drop"))
    if sheet.has("excess_length_strategy"):
        sheet.take(
            "excess_length_strategy",
            "data.oversize",
            "truncate" if strategy == "truncate" else "drop",
            "" if strategy == "drop" else "cutoff",
        )
    sheet.take("default_system_message", "data.system")


def _entries(sheet: Sheet, key: str, entries: list[Any]) -> list[str | dict[str, Any]]:
    """Their list of sets as ours. A key of a set that is not taken over gets a line of its own."""
    made: list[str | dict[str, Any]] = []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            made.append(_place({"path": entry}))
            continue
        out: dict[str, Any] = {}
        for file in words_of(entry["data_files"]) if entry.get("data_files") else [_place(entry)]:
            out = {"file": file, **_form(entry)}
            made.append(out if len(out) > 1 else file)
        for name, value in entry.items():
            if value in (None, "", False) or (value == [] and name != "roles_to_train"):
                continue
            fate, why = _fate_in_entry(name, value, entry)
            if fate:
                sheet.part(
                    key,
                    f"{key}[{number}].{name}",
                    value,
                    fate,
                    why,
                    kind=value,
                    known=", ".join(MARKS),
                )
    return made


def _fate_in_entry(name: str, value: Any, entry: dict[str, Any]) -> tuple[str, str]:
    """What becomes of a key of a set: (fate, reason); no fate for what our set says as well."""
    is_hub = _place(entry).startswith("hf:")
    if name == "type":
        return (
            (LOST, "entry_type")
            if isinstance(value, str) and value.split(":")[0] not in TYPES
            else ("", "")
        )
    if name == "split":
        is_whole = value == "train" or (is_hub and "[" not in str(value))
        return (
            ("", "") if is_whole else (LOST, "entry_slice" if "[" in str(value) else "entry_split")
        )
    if name == "message_field_training":
        return (SAME, "mark_kept") if value in MARKS else (LOST, "mark_name")
    if name == "roles_to_train":
        learnt = value and {ROLES.get(str(role).lower()) for role in words_of(value)} == {
            "assistant"
        }
        return (NOT_NEEDED, "answers_learnt") if learnt else (LOST, "roles_to_train")
    if name in ("train_on_eos", "train_on_eot"):
        return (NOT_NEEDED, "stops_learnt") if value == "turn" else (LOST, "train_on_eos")
    if name == "message_property_mappings":
        return (
            ("", "")
            if isinstance(value, dict)
            and sorted(value.values()) in (["content", "role"], ["from", "value"])
            else (LOST, "turn_names")
        )
    if name in ("message_field_role", "message_field_content"):
        return (
            (NOT_NEEDED, "turn_names_seen")
            if value in ("role", "from", "content", "value")
            else (LOST, "turn_names")
        )
    if name == "roles":
        known = isinstance(value, dict) and all(
            str(word).lower() in ROLES for words in value.values() for word in words_of(words)
        )
        return (NOT_NEEDED, "roles") if known else (LOST, "role_names")
    if name in UNDERSTOOD or (name == "name" and is_hub):
        return "", ""
    if name in ENTRY_NOT_NEEDED:
        return NOT_NEEDED, ENTRY_NOT_NEEDED[name]
    return LOST, ENTRY_LOST.get(name, "entry_unknown")


def _place(entry: dict[str, Any]) -> str:
    """A path stays a path; anything else is a set of the hub, said so, with its configuration and
    split."""
    path = str(entry.get("path", ""))
    if (
        path.endswith(ENDINGS)
        or path.startswith((".", "/", "~"))
        or "/" not in path
        or Path(path).exists()
    ):
        return path
    return (
        f"hf:{path}"
        + (f"/{entry['name']}" if entry.get("name") else "")
        + (f"#{entry['split']}" if entry.get("split") else "")
    )


def _form(entry: dict[str, Any]) -> dict[str, Any]:
    """Format and columns of one of their sets, where ours does not see them by itself."""
    kind = entry.get("type")
    columns: dict[str, str] = {}
    if isinstance(kind, dict):
        names = (
            ("field_instruction", "instruction"),
            ("field_input", "input"),
            ("field_output", "output"),
            ("field_system", "system"),
        )
        columns = {
            ours: str(kind[theirs])
            for theirs, ours in names
            if kind.get(theirs) and kind[theirs] != ours
        }
        return {"format": "alpaca", **({"columns": columns} if columns else {})}
    form = TYPES.get(str(kind).split(":")[0], "auto")
    if form == "text":
        name = str(entry.get("field") or entry.get("text_column") or "text")
        columns |= {"text": name} if name != "text" else {}
    mapping = entry.get("message_property_mappings")
    if str(kind).startswith("chat_template") and form != "preference" and isinstance(mapping, dict):
        form = "sharegpt" if sorted(mapping.values()) == ["from", "value"] else "messages"
    if entry.get("field_messages"):
        ours = {"preference": "prompt", "sharegpt": "conversations"}.get(form, "messages")
        if entry["field_messages"] not in (ours, "messages" if form == "auto" else ours):
            columns[ours] = str(entry["field_messages"])
    for theirs, ours in (
        ("field_chosen", "chosen"),
        ("field_rejected", "rejected"),
        ("field_system", "system"),
        ("field_tools", "tools"),
    ):
        if entry.get(theirs) and entry[theirs] != ours:
            columns[ours] = str(entry[theirs])
    return {
        **({"format": form} if form != "auto" else {}),
        **({"columns": columns} if columns else {}),
    }
