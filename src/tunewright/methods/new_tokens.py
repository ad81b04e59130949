"""New tokens: words are put into the vocabulary, and only their rows of the embedding (and of the
head, where it is a matrix of its own) train.

    E' = E with rows T replaced by the trained D, D (tokens, D); logits = h E'^T where the head is
    tied, h H'^T with H' likewise where it is not.

The layers are PEFT's (`TRAINABLE_TOKENS`), which keep the rows beside the table, so the table stays
as it is and what is saved are the rows alone. The tokenizer with the new words is saved beside
them; PEFT's AutoPeftModelForCausalLM makes room for them by itself. A new row starts at the mean of
the rows of the pieces that the old tokenizer makes of the word (Hewitt 2021 takes the mean of all
rows). `word_rows.py` does that, for LoRA too.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from tunewright.core.registry import method
from tunewright.core.types import Attached, Model
from tunewright.methods import word_rows
from tunewright.methods.peft import attach_peft, wrap
from tunewright.methods.targets import MethodSection
from tunewright.methods.word_rows import checked_tokens
from tunewright.models.anatomy import Anatomy
from tunewright.models.shape import ModelShape


class NewTokensConfig(MethodSection):
    """Only the embedding rows of tokens that are named here train."""

    tokens: list[str | int] = Field(min_length=1)
    """Words that become one token each, such as ["<plan>", "</plan>"]; a number is the id of an
    existing token (a reserved one, for instance)."""
    start: Literal["pieces", "mean"] = "pieces"
    """Starting value for the row of a new word: the mean of its pieces' rows, or the mean of the
    rows of all tokens."""

    _tokens = field_validator("tokens", mode="before")(checked_tokens)

    def trainable_numbers(self, shape: ModelShape) -> int:
        """Numbers that train on a model of `shape`: a row for each token, two where the head is a
        matrix of its own."""
        return len(self.tokens) * shape.hidden * (1 if shape.tied else 2)


@method(
    "new_tokens",
    NewTokensConfig,
    by="PEFT",
    source="github.com/huggingface/peft",
    trains="embedding rows of added tokens",
    on_quantised=True,
    rate=1e-3,
    needs_weights=True,
    peft_types=("TRAINABLE_TOKENS",),
)
def new_tokens(config: NewTokensConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """Train the rows of some tokens. Raises what `word_rows.make` raises."""
    import peft

    words = word_rows.make(config.tokens, model, anatomy, "method.tokens")
    wrapped = wrap(
        model,
        peft.TrainableTokensConfig(
            task_type="CAUSAL_LM", token_indices=words.ids, target_modules=words.places
        ),
        base_path,
    )
    words.start(wrapped, config.start)
    return attach_peft(wrapped)
