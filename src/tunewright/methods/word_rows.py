"""Rows of the embedding (and of a head that is a matrix of its own) for words that are added: which
they are, their positions and their starting values.

`new_tokens` trains nothing but such rows; LoRA and its kin train them beside their own
(`method.new_tokens`). The layers are PEFT's in both, which keep the rows beside the table. A word
is new where the tokenizer did not have it, not where the table has no row for it: many tables end
with rows that no token has (Qwen2.5 has 271), and those were never trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.core.errors import CompatError, ModelError, problem
from tunewright.core.refusals import refused
from tunewright.core.types import Model
from tunewright.models import vocabulary
from tunewright.models.anatomy import Anatomy
from tunewright.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel


def checked_tokens(value: object) -> object:
    """A list of words and numbers as it was written, one alone as a list. Raises ValueError for
    what is neither, and for a token that stands twice."""
    given = [value] if isinstance(value, str | int) else value
    if isinstance(given, list) and any(
        isinstance(token, bool) or (isinstance(token, str) and not token.strip()) for token in given
    ):
        raise refused("tokens")
    if isinstance(given, list) and len(set(map(str, given))) < len(given):
        raise refused("token_twice")
    return given


@dataclass
class WordRows:
    """Tokens whose rows will train. `pieces` holds for each its pieces in the old tokenizer, None
    for one that was there; `known` counts the rows that belonged to a token before."""

    ids: list[int]
    pieces: list[list[int] | None]
    known: int
    places: list[str]
    """Names of the modules with the rows: the embedding, and the head where it is a matrix of its
    own."""
    whole: list[str] = field(default_factory=list)
    """Of these, those that train whole (`modules_to_save`): the rows are some of theirs."""

    def inside(self, whole: Sequence[str]) -> None:
        """Leave the modules `whole`, which train from the first row to the last, out of
        `places`."""
        self.whole = [name for name in self.places if name in whole]
        self.places = [name for name in self.places if name not in whole]

    def start(self, wrapped: PeftModel, start: str) -> None:
        """Set the rows of words that are new on PEFT's model: to the mean of their pieces' rows, or
        of the rows of all tokens (`mean`)."""
        import torch

        seen: set[int] = set()
        with torch.no_grad():
            module: Any
            for module in wrapped.modules():
                trained = getattr(module, "trainable_tokens_delta", None)
                if trained is None or id(trained) in seen:
                    continue
                seen.add(id(trained))
                weight = module.get_base_layer().weight
                for place, parts in enumerate(self.pieces):
                    if parts is not None:
                        trained["default"][place] = self._mean(weight, parts, start)
            for name in self.whole:
                inside: Any = wrapped.get_base_model().get_submodule(name)
                weight = inside.weight
                for i, parts in zip(self.ids, self.pieces, strict=True):
                    if parts is not None:
                        weight[i] = self._mean(weight, parts, start)

    def _mean(self, weight: Any, pieces: list[int], start: str) -> Any:
        """The mean of the rows of `pieces`, or of all that belonged to a token, in float32."""
        rows = weight[pieces if pieces and start == "pieces" else slice(self.known)]
        return rows.float().mean(0)


def make(tokens: Sequence[str | int], model: Model, anatomy: Anatomy, field: str) -> WordRows:
    """Find the ids of `tokens` and give the model room for them. `field` is where the tokens were
    written.

    Raises ModelError (E-METHOD-66) where words are to be added and the model's folder has no
    tokenizer, CompatError (E-METHOD-67) for the number of a token that is not there.
    """
    rows = vocabulary.num_rows(model)
    wrong = [token for token in tokens if isinstance(token, int) and not 0 <= token < rows]
    if wrong:
        raise CompatError(
            problem("E-METHOD-67", field, tokens=", ".join(map(str, wrong)), last=rows - 1)
        )
    pieces, ids, known = _look_up(tokens, model, field)
    vocabulary.make_room(model, max(ids) + 1)
    places = list(anatomy.roles["embedding"])
    head = model.get_output_embeddings()
    if (
        head is not None
        and head.weight is not model.get_input_embeddings().weight
        and getattr(head, "bias", None) is None
    ):
        places += anatomy.roles.get(
            "head", []
        )  # PEFT's layer would leave out the bias of a head that has one
    return WordRows(ids, pieces, min(known, rows), places)


def _look_up(
    tokens: Sequence[str | int], model: Model, field: str
) -> tuple[list[list[int] | None], list[int], int]:
    """For each token its pieces in the old vocabulary (None for one that was there) and its own id;
    and the size of the old vocabulary, 0: not asked."""
    if not any(isinstance(token, str) for token in tokens):
        return [None for _ in tokens], [int(token) for token in tokens], 0
    folder = Path(str(model.name_or_path))
    if not folder.is_dir():
        raise ModelError(problem("E-METHOD-66", field, folder=folder))
    tokenizer = load_tokenizer(folder)
    old, known = tokenizer.get_vocab(), vocabulary.size_of(tokenizer)
    new = [isinstance(token, str) and token not in old for token in tokens]
    pieces = [
        tokenizer(token, add_special_tokens=False)["input_ids"] if is_new else None
        for token, is_new in zip(tokens, new, strict=True)
    ]
    return pieces, vocabulary.add_tokens(tokenizer, tokens), known
