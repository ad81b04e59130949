"""The teacher of a distillation: its distribution before every label of a pass, compared with the
student's a chunk of rows at a time.

The teacher runs over the same samples through a `Policy` of its own, in the layout that suits it. A
label has the same number in both, so a row of the student is compared with the row of the teacher
that predicts the same label; a row that several branches share is compared once.

With `top_k` the teacher's k likeliest tokens before every label of the run are computed once,
before the first step, and kept in the run folder as reference values are: bound to the rows by the
content of every branch and to the teacher by a digest of its weights. All other tokens count as
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunewright.core.errors import CompatError, ModelError, problem
from tunewright.core.moves import to_device
from tunewright.core.sequences import blocks
from tunewright.core.types import Sample, Teaching, TokenTree
from tunewright.engine import ranks
from tunewright.engine.oracles.kept import KeptValues, load_bound
from tunewright.engine.policy import Policy, head_of
from tunewright.engine.tree import build_tree, padded_rows
from tunewright.models.kernels.divergence import bucketed, divergence, kept
from tunewright.models.kernels.label_head import VALUE_CHUNK, Head, row_values
from tunewright.text.tokenizer import load_tokenizer

FILE = "teacher.safetensors"
Scores = tuple[Tensor, Tensor]
"""(L, K) int32 tokens and (L, K + 1) float32 log-probabilities, all others together in the last
column."""


class Teacher:
    """What the student is compared with. `open_policy` reads the teacher's weights; that happens
    when they are first needed."""

    def __init__(
        self,
        teaching: Teaching,
        vocabulary: int,
        open_policy: Callable[[], Policy],
        about: Callable[[], dict[str, str]],
    ):
        """`vocabulary` is the number of tokens both models know; a head may have more rows, which
        stand for nothing. `about` describes the teacher."""
        self.teaching, self.vocabulary = teaching, vocabulary
        self._open, self.about = open_policy, about
        self._policy: Policy | None = None
        self.store: KeptValues | None = None
        """Branch -> scores of its labels, where they were kept."""

    @property
    def policy(self) -> Policy:
        """The teacher's own `Policy`, in eval mode."""
        if self._policy is None:
            self._policy = self._open()
            self._policy.model.eval()
        return self._policy

    def divergence(
        self, samples: list[Sample], hidden_TD: Tensor, source_L: Tensor, head: Head
    ) -> Tensor:
        """(L,) nats, with gradient towards the student. `hidden_TD` are the student's rows and
        `source_L`, on the host, the row of each label."""
        rows, inverse = torch.unique(source_L, return_inverse=True)
        number = torch.arange(len(source_L))
        first_U = torch.full((len(rows),), len(source_L)).scatter_reduce(0, inverse, number, "amin")
        rows, inverse, first_U = (to_device(x, hidden_TD.device) for x in (rows, inverse, first_U))
        compare = (
            self._with_kept(samples, first_U)
            if self.teaching.top_k
            else self._with_all(samples, first_U)
        )
        return row_values(hidden_TD[rows], head, compare)[inverse]

    def _with_all(
        self, samples: list[Sample], label_U: Tensor
    ) -> Callable[[Tensor, slice], Tensor]:
        hidden_UD, head = self._rows(samples, label_U)
        t = self.teaching

        def compare(z: Tensor, rows: slice) -> Tensor:
            with torch.no_grad():
                taught = self._logits(hidden_UD[rows], head)
            log_t, log_s = (
                torch.log_softmax(logits / t.temperature, -1)
                for logits in (taught.to(z.device, z.dtype), z[:, : self.vocabulary])
            )
            return divergence(log_t, log_s, t.divergence, t.beta)

        return compare

    def _with_kept(
        self, samples: list[Sample], label_U: Tensor
    ) -> Callable[[Tensor, slice], Tensor]:
        token_LK, log_LK = self._scores(samples)
        token_UK, log_UK = (
            token_LK.to(label_U.device)[label_U].long(),
            log_LK.to(label_U.device)[label_U],
        )
        t = self.teaching

        def compare(z: Tensor, rows: slice) -> Tensor:
            log_s = bucketed(z[:, : self.vocabulary], t.temperature, token_UK[rows])
            return divergence(log_UK[rows].to(z.dtype), log_s, t.divergence, t.beta)

        return compare

    def _scores(self, samples: list[Sample]) -> Scores:
        """Of all labels of `samples`: kept ones, or (a measurement of a few steps, which keeps
        nothing) computed now."""
        if self.store is None:
            return self._score(samples)
        found = self.store.get(samples)
        return torch.from_numpy(found["tokens"].copy()), torch.from_numpy(found["logprobs"].copy())

    @torch.no_grad()
    def _rows(self, samples: list[Sample], label_U: Tensor | None = None) -> tuple[Tensor, Head]:
        """The teacher's hidden rows that predict these labels (None: all), and its head."""
        policy = self.policy
        tree: TokenTree = build_tree(samples) if policy.layout == "tree" else padded_rows(samples)
        hidden_TD = policy.hidden(tree, tree.source)
        source_L = to_device(tree.source, hidden_TD.device)
        return hidden_TD[
            source_L if label_U is None else source_L[label_U.to(source_L.device)]
        ], head_of(policy.causal[0])

    def _logits(self, hidden: Tensor, head: Head) -> Tensor:
        return head.logits(hidden)[:, : self.vocabulary].to(
            torch.promote_types(hidden.dtype, torch.float32)
        )

    @torch.no_grad()
    def _score(self, samples: list[Sample]) -> Scores:
        hidden_LD, head = self._rows(samples)
        tokens, logs = [], []
        for start in range(0, len(hidden_LD), VALUE_CHUNK):
            token, log = kept(
                self._logits(hidden_LD[start : start + VALUE_CHUNK], head),
                self.teaching.temperature,
                self.teaching.top_k or 1,
            )
            tokens.append(token.int().cpu())
            logs.append(log.float().cpu())
        return torch.cat(tokens), torch.cat(logs)

    def fill(
        self,
        samples: Iterable[Sample],
        rows_per_pass: int,
        folder: Path | None = None,
        *,
        on_pass: Callable[[int], None] | None = None,
    ) -> None:
        """Keep the scores of all samples; they wait in `folder` until `save`. `on_pass` is told how
        many samples are done and may raise."""
        store = KeptValues(self._columns, folder) if self.store is None else self.store
        self.store = store
        done = 0
        if ranks.current().is_many:
            self._fill_by_ranks(store, samples, rows_per_pass, on_pass)
            return
        for group in self.policy.visit(samples, rows_per_pass):
            if not store.has(group):
                branches = [branch for sample in group for branch in sample.branches]
                counts = [len(branch.learnt) for branch in branches]
                parts = zip(*(part.split(counts) for part in self._score(group)), strict=True)
                for branch, (token, log) in zip(branches, parts, strict=True):
                    if branch not in store:
                        store.add(branch, tokens=token.numpy(), logprobs=log.numpy())
            done += len(group)
            if on_pass:
                on_pass(done)

    def _fill_by_ranks(
        self,
        store: KeptValues,
        samples: Iterable[Sample],
        rows_per_pass: int,
        on_pass: Callable[[int], None] | None,
    ) -> None:
        """Every rank scores a part of the samples; all have all scores afterwards."""
        done = 0
        for block in blocks(samples):
            wanted = [one for one in block if not store.has([one])]
            place = {id(sample): i for i, sample in enumerate(wanted)}
            told = []
            for group in self.policy.own_passes(wanted, rows_per_pass):
                counts = [sum(len(b.learnt) for b in sample.branches) for sample in group]
                parts = zip(*(part.split(counts) for part in self._score(group)), strict=True)
                for sample, (token, log) in zip(group, parts, strict=True):
                    told.append((place[id(sample)], token.numpy(), log.numpy()))
            for part in ranks.current().gather(told):
                for i, token, log in part:
                    at = 0
                    for branch in wanted[i].branches:
                        end = at + len(branch.learnt)
                        if branch not in store:
                            store.add(branch, tokens=token[at:end], logprobs=log[at:end])
                        at = end
            done += len(block)
            if on_pass:
                on_pass(done)

    def keep(
        self,
        samples: Iterable[Sample],
        rows_per_pass: int,
        run: Path,
        on_pass: Callable[[int], None] | None = None,
    ) -> int:
        """`fill`, `save` and `close`; gives the number of branches."""
        self.fill(samples, rows_per_pass, run, on_pass=on_pass)
        self.save(run)
        self.close()
        return len(self.store or ())

    @property
    def _columns(self) -> dict[str, tuple[str, int]]:
        most = min(self.teaching.top_k or 1, self.vocabulary)
        return {"tokens": ("<i4", most), "logprobs": ("<f4", most + 1)}

    def close(self) -> None:
        """Let the teacher's weights go."""
        self._policy = None

    def save(self, folder: Path) -> None:
        """Write `FILE` in one rename."""
        assert self.store is not None
        self.store.save_for_all(folder / FILE, self._about())

    def load(self, folder: Path) -> bool:
        """Take what a run kept; False where it kept nothing. Raises CheckpointError for a file that
        cannot be read or is another teacher's."""
        if not (folder / FILE).is_file():
            return False  # what describes the teacher is read from its weights, which takes time
        self.store = load_bound(folder / FILE, self._columns, self._about(), "E-OBJ-05", "E-OBJ-06")
        return self.store is not None

    def _about(self) -> dict[str, Any]:
        return {
            **self.about(),
            "top_k": self.teaching.top_k,
            "temperature": self.teaching.temperature,
        }


def require_same_vocabulary(
    name: str,
    theirs: Path,
    size: int,
    student: Path,
    student_size: int,
    own_words: dict[str, int] | None,
) -> None:
    """Raise CompatError unless the teacher `name`, with its tokenizer in `theirs` and a head of
    `size` rows, gives every token the id that the student gives it.

    `own_words` are the student's token ids where it has more of them than the model in `student`.
    """
    ours, taught = own_words or _words(student), _words(theirs)
    where = "objective.teacher"
    if ours and taught:
        if len(ours) != len(taught):
            raise CompatError(
                problem("E-OBJ-02", where, teacher=name, size=len(taught), student=len(ours))
            )
        wrong = sum(taught.get(word) != number for word, number in ours.items())
        if wrong:
            raise CompatError(
                problem(
                    "E-OBJ-03",
                    where,
                    teacher=name,
                    wrong=wrong,
                    size=len(taught),
                    student=len(ours),
                )
            )
    elif size != student_size:
        raise CompatError(problem("E-OBJ-02", where, teacher=name, size=size, student=student_size))


def _words(folder: Path) -> dict[str, int]:
    """Token -> id of a folder's tokenizer; empty where it brings none."""
    try:
        return dict(load_tokenizer(folder).get_vocab())
    except ModelError:
        return {}
