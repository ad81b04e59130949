"""Tokens put into a tokenizer after pre-training, and room for them in the model's embedding and
head."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

from tunewright.sources import headers

WHOLE = (
    "weight",
    "modules_to_save.weight",
    "base_layer.weight",
    "original_module.weight",
    "token_adapter.base_layer.weight",
)
"""Names, behind that of the embedding or the head, under which an adapter's file holds the whole
matrix."""


def tokens_of(method: Any) -> list[str | int]:
    """The tokens whose rows a method's configuration trains: words to be added, or numbers of
    tokens that are there. Most methods have none."""
    return list(getattr(method, "tokens", None) or getattr(method, "new_tokens", None) or [])


def add_tokens(tokenizer: Any, tokens: Sequence[str | int]) -> list[int]:
    """The ids of tokens: words are put into the tokenizer where it has them not (in order, so that
    the ids are always the same), numbers are ids."""
    from tokenizers import AddedToken

    words = [token for token in tokens if isinstance(token, str)]
    # A mark of a format is part of an answer, so it is no special token: those vanish when text is
    # made of tokens.
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in words])
    return [
        int(tokenizer.convert_tokens_to_ids(token)) if isinstance(token, str) else token
        for token in tokens
    ]


def size_of(tokenizer: Any) -> int:
    """The rows that a tokenizer needs: one more than its highest id. Ids that no token has (they
    occur) count as well."""
    return max(len(tokenizer), *(i + 1 for i in tokenizer.added_tokens_decoder), 0)


def added_words(tokenizer: Any, base: Any) -> dict[str, int]:
    """Word -> id of what `tokenizer` has and that of the base has not, in the order of the ids."""
    known = base.get_vocab()
    return {
        str(token.content): i
        for i, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.content not in known
    }


def num_rows(model: PreTrainedModel) -> int:
    """Rows of the input embedding."""
    table: Any = model.get_input_embeddings()
    return int(table.weight.shape[0])


def make_room(model: PreTrainedModel, count: int) -> int:
    """Give embedding and head at least `count` rows; new ones are the mean of the old. Returns how
    many rows were added."""
    old = num_rows(model)
    return set_rows(model, count) if count > old else 0


def set_rows(model: PreTrainedModel, count: int) -> int:
    """Give embedding and head exactly `count` rows: rows at the end are cut off, or added as the
    mean of the old. Returns how many were added."""
    import torch

    old = num_rows(model)
    if count == old:
        return 0
    trains = {id(p): p.requires_grad for p in model.parameters()}
    model.resize_token_embeddings(count, mean_resizing=False)
    model.requires_grad_(any(trains.values()))
    with torch.no_grad():
        tables: tuple[Any, ...] = (model.get_input_embeddings(), model.get_output_embeddings())
        for module in tables:
            if module is not None and count > old:
                module.weight[old:] = module.weight[:old].float().mean(0).to(module.weight.dtype)
                if getattr(module, "bias", None) is not None:
                    module.bias[old:] = 0
    return count - old


def fit_rows(model: PreTrainedModel, folder: Path) -> int:
    """Give `model` as many rows as the adapter in the PEFT folder was made with. Returns how many
    were added (below 0: cut off).

    A whole embedding or head in the adapter's file settles it. Otherwise there is room for every
    token whose row the adapter holds and, as PEFT's AutoPeftModel makes it, for every token of the
    tokenizer beside it.
    """
    stated = _rows_in_file(model, folder)
    if stated:
        return set_rows(model, stated)
    return make_room(model, max(highest_token(folder) + 1, _rows_of_tokenizer(model, folder)))


def whole_matrices(model: PreTrainedModel, folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors in the adapter's file that are the whole embedding or head of
    `model`, on which no adapter is yet."""

    places = [f"base_model.model.{name}." for name in _row_modules(model)]
    found = {}
    for path in headers.weight_files(folder, "adapter")[0]:
        for name, (_, shape, _) in headers.read_safetensors_header(path).items():
            if any(
                name.startswith(place) and name.removeprefix(place) in WHOLE for place in places
            ):
                found[name] = shape
    return found


def _row_modules(model: PreTrainedModel) -> list[str]:
    """Names of the embedding and the head."""
    wanted = [
        module
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
        if module is not None
    ]
    return [name for name, module in model.named_modules() if any(module is one for one in wanted)]


def _rows_in_file(model: PreTrainedModel, folder: Path) -> int:
    """Rows of the embedding and head that the adapter in `folder` was made for, where its file
    shows them; else 0."""

    found = [shape[0] for shape in whole_matrices(model, folder).values()]
    table, places = model.get_input_embeddings(), _row_modules(model)
    for path in headers.weight_files(folder, "adapter")[0]:
        for name, (_, shape, _) in headers.read_safetensors_header(path).items():
            for place in places:
                rest = name.removeprefix(f"base_model.model.{place}.")
                if rest == "lora_embedding_A" and len(shape) == 2:
                    found.append(shape[1])
                elif rest == "lora_B.weight" and model.get_submodule(place) is not table:
                    found.append(shape[0])
    return max(found, default=0)


def _rows_of_tokenizer(model: PreTrainedModel, folder: Path) -> int:
    """Rows that the tokenizer of an adapter's folder needs, where it knows more tokens than the
    base's own; else 0."""
    folder, base = Path(folder), Path(str(model.name_or_path))
    if not (folder / "tokenizer_config.json").is_file():
        return 0
    size = _size_in(folder)
    if size <= num_rows(model):
        return 0
    # Some bases have tokens without rows; that is no word of the adapter's.
    return size if not (base / "tokenizer_config.json").is_file() or size > _size_in(base) else 0


def _size_in(folder: Path) -> int:
    """Tokens that the tokenizer of a folder knows."""
    marks = tuple(
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.iterdir())
        if path.suffix != ".safetensors" and path.is_file()
    )
    return _counted(folder, marks)


@functools.lru_cache(maxsize=16)
def _counted(folder: Path, marks: tuple[Any, ...]) -> int:
    """The same; the files, with these `marks`, are read once: opening an adapter asks twice."""
    from tunewright.text.tokenizer import load_tokenizer

    return size_of(load_tokenizer(folder))


def highest_token(folder: Path) -> int:
    """The highest token of which the adapter in a PEFT folder holds a row; -1 if none."""
    config = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    found = config.get("token_indices") or config.get("trainable_token_indices") or []
    lists = list(found.values()) if isinstance(found, dict) else [found]
    return max((int(i) for ids in lists for i in ids), default=-1)
