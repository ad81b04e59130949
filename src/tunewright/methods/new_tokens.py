"""New tokens: words are put into the vocabulary, and only their rows of the embedding (and of the head, where it is a matrix of its own) train.

    E' = E with rows T replaced by the trained D, D (tokens, D); logits = h E'^T where the head is tied, h H'^T with H' likewise where it is not.

The layers are PEFT's (`TRAINABLE_TOKENS`), which keep the rows beside the table, so the table stays as it is and what is saved are the rows alone. The
tokenizer with the new words is saved beside them; PEFT's AutoPeftModelForCausalLM makes room for them by itself. A new row starts at the mean of the
rows of the pieces that the old tokenizer makes of the word (Hewitt 2021 takes the mean of all rows).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from tunewright.core.config import Section
from tunewright.core.errors import CompatError, ModelError, problem
from tunewright.core.registry import methods
from tunewright.core.types import Attached
from tunewright.methods.lora import attach_peft, wrap


class NewTokensConfig(Section):
    """Only the embedding rows of tokens that are named here train."""

    tokens: list[str | int] = Field(min_length=1)
    """Words that become one token each, such as ["<plan>", "</plan>"]; a number names a token that is there already (a reserved one)."""
    start: Literal["pieces", "mean"] = "pieces"
    """Where the row of a new word begins: at the mean of its pieces' rows, or at the mean of all rows."""

    @field_validator("tokens", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        given = [value] if isinstance(value, str | int) else value
        if isinstance(given, list) and any(isinstance(token, bool) or (isinstance(token, str) and not token.strip()) for token in given):
            raise ValueError("tokens are words or numbers of tokens")
        if isinstance(given, list) and len(set(map(str, given))) < len(given):
            raise ValueError("a token stands twice")
        return given

    def trainable_numbers(self, shape: Any) -> int:
        """Numbers that train on a model of `shape`: a row for each token, two where the head is a matrix of its own."""
        return int(len(self.tokens) * shape.hidden * (1 if shape.tied else 2))


@methods.register(
    "new_tokens", NewTokensConfig, by="PEFT", source="github.com/huggingface/peft", trains="embedding rows of added tokens", on_quantised=True
)
def new_tokens(config: NewTokensConfig, model: Any, anatomy: Any, base_path: str) -> Attached:
    """Train the rows of some tokens. Raises ModelError (E-METHOD-66) where words are to be added and the model's folder has no tokenizer, CompatError
    (E-METHOD-67) for the number of a token that is not there."""
    import peft

    from tunewright.models import vocabulary

    table = model.get_input_embeddings()
    rows = int(table.weight.shape[0])
    wrong = [token for token in config.tokens if isinstance(token, int) and not 0 <= token < rows]
    if wrong:
        raise CompatError(problem("E-METHOD-67", "method.tokens", tokens=", ".join(map(str, wrong)), last=rows - 1))
    pieces, ids = _pieces_and_ids(config, model)
    vocabulary.make_room(model, max(ids) + 1)
    places = list(anatomy.roles["embedding"])
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight and getattr(head, "bias", None) is None:
        places += anatomy.roles.get("head", [])  # PEFT's layer would leave out the bias of a head that has one
    settings = peft.TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=ids, target_modules=places)
    wrapped = wrap(model, settings, base_path)
    if config.start == "pieces":
        _start_at_pieces(wrapped, ids, pieces, rows)
    return attach_peft(wrapped)


def _pieces_and_ids(config: NewTokensConfig, model: Any) -> tuple[list[list[int]], list[int]]:
    """For each token the ids of its pieces in the old vocabulary (empty for a number), and its own id."""
    from tunewright.models import vocabulary

    if not any(isinstance(token, str) for token in config.tokens):
        return [[] for _ in config.tokens], [int(token) for token in config.tokens]
    from tunewright.models.load import load_tokenizer

    folder = Path(str(model.name_or_path))
    if not folder.is_dir():
        raise ModelError(problem("E-METHOD-66", "method.tokens", folder=folder))
    tokenizer = load_tokenizer(folder)
    pieces = [tokenizer(token, add_special_tokens=False)["input_ids"] if isinstance(token, str) else [] for token in config.tokens]
    return pieces, vocabulary.add_tokens(tokenizer, config.tokens)


def _start_at_pieces(wrapped: Any, ids: list[int], pieces: list[list[int]], rows: int) -> None:
    """Set the rows of tokens that are new to the vocabulary. The table itself keeps the mean of all rows there."""
    import torch

    seen: set[int] = set()
    with torch.no_grad():
        for module in wrapped.modules():
            trained = getattr(module, "trainable_tokens_delta", None)
            if trained is None or id(trained) in seen:
                continue
            seen.add(id(trained))
            weight = module.get_base_layer().weight
            for place, (token, parts) in enumerate(zip(ids, pieces, strict=True)):
                if token >= rows and parts:
                    trained["default"][place] = weight[parts].float().mean(0)
