"""One pass through the model: rows in, log-probabilities of the labels out. The only place that
calls the model during training.

Two layouts of the same batch. `tree` lays all branches into one row of tokens and computes shared
beginnings once. `padded` gives every branch a row of its own with stock attention: it serves models
whose layers are not plain attention, and it is the oracle the tree is tested against.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tunewright.core.moves import to_device
from tunewright.core.sequences import blocks
from tunewright.core.types import PassOutput, Sample, TokenTree, VirtualPrompt
from tunewright.engine import ranks
from tunewright.engine.activation_cache import ActivationCache, spread
from tunewright.engine.neftune import Noise
from tunewright.engine.oracles.reference import ReferenceStore
from tunewright.engine.portions import Portions
from tunewright.engine.routing import Routing, shared_by
from tunewright.engine.tree import build_tree, cut_passes, padded_rows, read_whole, under_root
from tunewright.models import whole_head
from tunewright.models.anatomy import body_of
from tunewright.models.kernels.fused import fused_without_gradient
from tunewright.models.kernels.label_head import Head, label_logprobs, label_scores
from tunewright.models.kernels.last_block import LastBlock
from tunewright.models.kernels.row_facts import row_facts
from tunewright.models.kernels.tree_attention import Kept, TreePlan
from tunewright.models.limits import KEEP_BYTES
from tunewright.models.load import size_of
from tunewright.models.scalar_heads import head_module

if TYPE_CHECKING:
    from tunewright.engine.oracles.teacher import Teacher


CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""What families call the cap of their logits: Gemma 2 and later, RecurrentGemma, xLSTM."""


def head_of(model: Any) -> Head:
    """The output head of a causal language model, with its config's scale and softcap."""
    module = model.get_output_embeddings()
    config = model.config.get_text_config()
    # Granite divides by `logits_scaling`, HyperCLOVA X multiplies by it; Cohere multiplies by
    # `logit_scale`.
    scale = (getattr(config, "logits_scaling", None) or 1.0) ** (
        1 if config.model_type == "hyperclovax" else -1
    ) * (getattr(config, "logit_scale", None) or 1.0)
    # A method may have put layers on the head (LoRA on `head`) or hold its weight in float32: then
    # its forward, not its weight, is the head.
    plain = type(module) is nn.Linear and "forward" not in vars(module)
    own = None if plain and not module._forward_hooks else module
    found = Head(
        module.weight,
        getattr(module, "bias", None),
        scale,
        next((cap for name in CAPS if (cap := getattr(config, name, None))), None),
        own,
    )
    if whole_head.is_needed(model, found):
        return Head(module.weight, module=whole_head.WholeHead(model))
    return found


class Policy(nn.Module):
    """The root module of training: a pass of samples in, `PassOutput` out. Nobody touches the head
    outside of its forward."""

    def __init__(
        self,
        model: Any,
        causal: Any,
        layout: str,
        *,
        heads: tuple[str, ...] = (),
        spread: bool = False,
        asks: Sequence[str] = (),
        teacher: Teacher | None = None,
        temperature: float = 1.0,
    ):
        """`model` is what trains (a PEFT model, or the causal model itself), `causal` the causal
        language model inside it.

        A pass is read by the scalar `heads` (`models.scalar_heads`); with `score`, whole branches
        are read and nothing is predicted. `spread`: it also tells how each distribution is spread
        over the vocabulary, and `asks` names more about it (`row_facts`). `teacher`: its
        distributions are compared with the pass's. Logits are divided by `temperature`: what learns
        from its own answers learns at the temperature at which it drew them.
        """
        super().__init__()
        self.model = model
        self.causal = [causal]  # in a list, so that its parameters are not registered twice
        self.layout = layout
        self.heads, self.spread, self.teacher = heads, spread, teacher
        self.asks = tuple(asks)
        self.temperature = temperature
        self.attention = "blocks"
        """What computes attention over the tree (`engine.attention`)."""
        self.keep_bytes = KEEP_BYTES
        """Attention probabilities are kept up to here, where no block is computed again."""
        self.recompute = "none"
        """What blocks compute again in the backward pass (`engine.recompute`)."""
        self.keep_everything: Callable[[], None] = lambda: None
        """Undoes `recompute`."""
        self.cache: ActivationCache | None = None
        """Hidden states below the lowest trained block, where only upper blocks train."""
        self.reference: ReferenceStore | None = None
        """Log-probabilities under the model at step 0."""
        self.routing: Routing | None = None
        """What the routers decide in passes with gradient, where there are experts."""
        self.computes_on: torch.device | None = None
        """Where the weights are put together (`engine.sharding`); None: where they lie."""
        self.prompt_rows = 0
        """Rows that a learnt prompt added to the tree, or to every padded row, in the last pass;
        keys and values add none."""

    @property
    def device(self) -> torch.device:
        """Where passes are computed. Shares of weights may lie in the machine's memory."""
        return self.computes_on or next(self.causal[0].parameters()).device

    @functools.cached_property
    def last(self) -> LastBlock:
        """What of the last block can leave out rows that nobody reads."""
        return LastBlock(self.causal[0])

    def cut(self, samples: list[Sample], rows_per_pass: int) -> list[list[Sample]]:
        """The samples of a step in passes of at most `rows_per_pass` rows (`tree.cut_passes`)."""
        return cut_passes(samples, rows_per_pass, padded=self.layout == "padded")

    def share(self, samples: Sequence[Sample]) -> Portions | None:
        """Which rank takes which of the samples; None in a run by itself."""
        return ranks.current().share(samples, padded=self.layout == "padded")

    def own_passes(
        self,
        samples: list[Sample],
        rows_per_pass: int,
        shared: Portions | None = None,
        *,
        fill: bool = True,
    ) -> list[list[Sample]]:
        """The passes of this rank over its part of `samples`. `fill`: without gradient; where all
        ranks must run as many passes, those that are missing are run now and forgotten."""
        team = ranks.current()
        if team.is_many:
            shared = shared or self.share(samples)
            assert shared is not None
            groups = self.cut([samples[i] for i in shared.places[team.rank]], rows_per_pass)
        else:
            groups = self.cut(samples, rows_per_pass)
        if fill:
            self.run_missing(team.most(len(groups)) - len(groups), samples)
        return groups

    def run_missing(self, count: int, samples: Sequence[Sample]) -> None:
        """Run `count` passes over the smallest sample, without gradient."""
        one = min(samples, key=lambda s: sum(len(b.tokens) for b in s.branches), default=None)
        for _ in range(count if one is not None else 0):
            with torch.no_grad():
                self([one])

    def visit(self, samples: Iterable[Sample], rows_per_pass: int) -> Iterator[list[Sample]]:
        """Any number of samples in passes, cut a block at a time."""
        for block in blocks(samples):
            yield from self.cut(block, rows_per_pass)

    def scores(self, samples: list[Sample], rows_per_pass: int) -> Iterator[tuple[Sample, Tensor]]:
        """Each sample, in the order of the passes, with what the score head says of its branches,
        (branches,); without gradient."""
        self.model.eval()
        for group in self.cut(samples, rows_per_pass):
            with torch.no_grad(), fused_without_gradient():
                score_B = self(group).score
            assert score_B is not None
            counts = [len(sample.branches) for sample in group]
            yield from zip(group, score_B.split(counts), strict=True)

    def forward(self, samples: list[Sample], noise: Noise | None = None) -> PassOutput:
        """Log-probabilities of every label of `samples`, with gradient where the model has
        trainable parameters. `noise` is added to the input embeddings while the model learns."""
        scoring = "score" in self.heads
        balanced = self.routing is not None and self.routing.weight is not None
        read = read_whole(samples) if scoring else samples
        tree = build_tree(read) if self.layout == "tree" else padded_rows(read)
        if self.cache is not None and not self.cache.holds():
            self.cache = None
        with self.cache.replaying(tree) if self.cache is not None else contextlib.nullcontext():
            rows = None if balanced else [*tree.source, *tree.last] if scoring else tree.source
            hidden_TD = self.hidden(tree, rows, noise, samples)
        device, causal = hidden_TD.device, self.causal[0]
        source_L = torch.tensor(tree.source, dtype=torch.long)
        target_L = to_device(tree.target, device, torch.long)
        score_B = value_L = log_z_L = mean_L = divergence_L = None
        if scoring:
            last_B = to_device(tree.last, device)
            score_B = head_module(causal, "score")(hidden_TD[last_B])
        if "value" in self.heads:
            value_L = head_module(causal, "value")(hidden_TD[to_device(source_L, device)])
        if not len(source_L):
            logprob_L = hidden_TD.new_zeros(0, dtype=torch.float32)
        elif self.spread:
            logprob_L, log_z_L, mean_L = label_scores(hidden_TD, source_L, target_L, self.head())
        else:
            logprob_L = label_logprobs(hidden_TD, source_L, target_L, self.head())
        if self.teacher is not None:
            divergence_L = self.teacher.divergence(samples, hidden_TD, source_L, head_of(causal))
        weight_L = to_device(tree.weight, device, logprob_L.dtype)
        branch_L = to_device(tree.branch, device, torch.long)
        return PassOutput(
            logprob_L,
            weight_L,
            branch_L,
            tree.branch_sample,
            samples,
            self._num_rows(tree),
            self._reference(samples, logprob_L, weight_L, branch_L),
            score_B,
            value_L,
            log_z_L,
            mean_L,
            divergence_L,
            facts=self._facts(hidden_TD, source_L),
        )

    def _facts(self, hidden_TD: Tensor, source_L: Tensor) -> dict[str, Tensor]:
        """What is asked about the distribution before each label; nothing of a pass without."""
        if not self.asks or not len(source_L):
            return {name: hidden_TD.new_zeros(0, dtype=torch.float32) for name in self.asks}
        return row_facts(hidden_TD, source_L, self.head(), self.asks)

    def _num_rows(self, tree: TokenTree) -> int:
        """Rows that the pass over `tree` has just computed, those of a learnt prompt among them."""
        if self.layout == "tree":
            return tree.num_rows + self.prompt_rows
        return len(tree.branch_sample) * (max(tree.depth) + 1 + self.prompt_rows)

    def _reference(
        self, samples: list[Sample], logprob_L: Tensor, weight_L: Tensor, branch_L: Tensor
    ) -> Tensor | None:
        """(B,): what the model at step 0 says of the branches; a pass that learns in step 1 says so
        itself."""
        if self.reference is None:
            return None
        if self.reference.taking and torch.is_grad_enabled():
            self.reference.take(samples, logprob_L, weight_L, branch_L)
        return self.reference.of(samples, logprob_L.device)

    def head(self) -> Head:
        """The output head at the temperature of this policy."""
        head = head_of(self.causal[0])
        if self.temperature == 1.0:
            return head
        # Dividing the cap, too, divides what comes out of it.
        return replace(
            head,
            scale=head.scale / self.temperature,
            softcap=head.softcap and head.softcap / self.temperature,
        )

    def hidden(
        self,
        tree: TokenTree,
        read: Sequence[int] | None = None,
        noise: Noise | None = None,
        samples: list[Sample] | None = None,
        kept: dict[int, Kept] | None = None,
    ) -> Tensor:
        """(T, D): the rows of `tree` after the last norm. Where only the rows `read` are wanted,
        the others need not be right. `samples` are those that `noise` was drawn for, where the tree
        was built from copies of them."""
        with self._noisy(tree, noise, samples):
            return (
                self._tree_hidden(tree, read, kept)
                if self.layout == "tree"
                else self._padded_hidden(tree)
            )

    @contextlib.contextmanager
    def _noisy(
        self, tree: TokenTree, noise: Noise | None, samples: list[Sample] | None
    ) -> Iterator[None]:
        """Inside, the input embeddings of `tree` get the noise of this step; only while the model
        learns, never while it is measured or answers."""
        if noise is None or not self.model.training or not torch.is_grad_enabled():
            yield
            return
        noise_TD = noise.rows(tree, self.layout == "tree", samples)
        table = self.causal[0].get_input_embeddings()
        hook = table.register_forward_hook(
            lambda module, given, out: out + spread(noise_TD.to(out.device), out, tree)
        )
        try:
            yield
        finally:
            hook.remove()

    @functools.cached_property
    def first_position(self) -> int:
        """The position of the first token: 0, but RoBERTa and its kin count from the id of their
        padding on."""
        tables = (getattr(m, "position_embeddings", None) for m in self.body.modules())
        padding = [t.padding_idx for t in tables if isinstance(t, nn.Embedding)]
        return next((p + 1 for p in padding if p is not None), 0)

    @property
    def body(self) -> Any:
        """The causal model without its head."""
        return body_of(self.causal[0])

    def virtual(self) -> VirtualPrompt | None:
        """What a learnt prompt puts before every branch, where the method has one."""
        offered = getattr(self.model, "virtual_prompt", None)
        prompt: VirtualPrompt | None = offered() if offered is not None else None
        self.prompt_rows = (
            prompt.num_tokens if prompt is not None and prompt.rows is not None else 0
        )
        return prompt

    def inputs(self, ids_BT: Tensor, prompt: VirtualPrompt | None) -> dict[str, Any]:
        """What the body is called with: token ids, and in front of them learnt rows or, as a cache,
        learnt keys and values."""
        if prompt is None:
            return {"input_ids": ids_BT}
        B = len(ids_BT)
        if prompt.rows is not None:
            embedded_BTD = self.causal[0].get_input_embeddings()(ids_BT)
            return {
                "inputs_embeds": torch.cat(
                    [prompt.rows.to(embedded_BTD.dtype).expand(B, -1, -1), embedded_BTD], 1
                )
            }
        assert prompt.keys_values is not None
        seen = [(k.expand(B, -1, -1, -1), v.expand(B, -1, -1, -1)) for k, v in prompt.keys_values]
        from transformers import DynamicCache  # a dry run that only names this file needs it not

        return {"input_ids": ids_BT, "past_key_values": DynamicCache(seen)}

    def _tree_hidden(
        self,
        tree: TokenTree,
        read: Sequence[int] | None = None,
        kept: dict[int, Kept] | None = None,
    ) -> Tensor:
        """(T, D) of the tree's own rows, of which only `read` need be right."""
        prompt = self.virtual()
        ids = to_device([tree.token], self.device)
        before, unseen = (
            (prompt.num_tokens, prompt.num_tokens if prompt.rows is None else 0)
            if prompt
            else (0, 0)
        )
        own, tree = tree, under_root(tree, before)
        plan = TreePlan(
            tree,
            self.device,
            self.keep_bytes if self.recompute == "none" else 0,
            size_of(self.causal[0].config.get_text_config(), "num_hidden_layers"),
            unseen,
            kept=kept,
            backend=self.attention,
        )
        positions = to_device([tree.position[unseen:]], self.device)
        positions += self.first_position
        with self._reading(read, before - unseen, plan):
            if self.routing is not None:
                self._watch(shared_by(own, before - unseen), plan)
            hidden = self.body(
                **self.inputs(ids, prompt), position_ids=positions, tree_plan=plan, use_cache=False
            ).last_hidden_state[0]
        return hidden[before - unseen :]

    def _watch(self, rows: Sequence[int], plan: TreePlan) -> None:
        """Tell who watches the routers what a pass of the tree stands for: how many samples have
        each row."""
        assert self.routing is not None
        if not torch.is_grad_enabled():
            return
        device = self.device
        read = None if plan.read is None else torch.tensor(list(plan.read), device=device)
        self.routing.begin(
            torch.tensor(rows, device=device, dtype=torch.float32), plan.reading, read
        )

    @contextlib.contextmanager
    def _reading(self, read: Sequence[int] | None, before: int, plan: TreePlan) -> Iterator[None]:
        """Inside, a pass over the tree of `plan` computes in its last block only the rows `read`,
        which come after `before` rows of a learnt prompt."""
        num_rows = plan.tree.num_rows - plan.num_virtual
        if read is None or not read:
            yield
            return
        rows = [before + row for row in sorted(set(read))]
        if not self.last.worth(rows, num_rows):
            yield
            return
        plan.read, plan.reading = rows, self.last.modules
        with self.last.only(rows, num_rows, self.device):
            yield

    def _padded_hidden(self, tree: TokenTree) -> Tensor:
        """(T, D): the rows of all branches one after the other, without the padding."""
        starts = [i for i, depth in enumerate(tree.depth) if depth == 0]
        lengths = [b - a for a, b in zip(starts, [*starts[1:], tree.num_rows], strict=True)]
        ids = torch.zeros(len(starts), max(lengths), dtype=torch.long)
        positions, mask = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            ids[row, :length] = torch.tensor(tree.token[start : start + length])
            positions[row, :length] = torch.tensor(tree.position[start : start + length])
            mask[row, :length] = 1
        positions += self.first_position
        # Where the rows of the branches lie in the padded batch: known here, not on the device.
        wanted = to_device(mask.flatten().nonzero()[:, 0], self.device)
        ids, positions, mask = (to_device(x, self.device) for x in (ids, positions, mask))
        prompt = self.virtual()
        seen, first = mask, 0
        if prompt is not None:
            positions = positions + prompt.num_tokens
            seen = torch.cat([mask.new_ones(len(mask), prompt.num_tokens), mask], 1)
            if prompt.rows is not None:
                first = prompt.num_tokens
                positions = torch.cat(
                    [
                        (torch.arange(first, device=self.device) + self.first_position).expand(
                            len(mask), -1
                        ),
                        positions,
                    ],
                    1,
                )
        if self.routing is not None and torch.is_grad_enabled():
            unread = mask.new_zeros(len(mask), first)
            self.routing.begin(torch.cat([unread, mask], 1).reshape(-1).float())
        hidden_BTD = self.body(
            **self.inputs(ids, prompt), position_ids=positions, attention_mask=seen, use_cache=False
        ).last_hidden_state
        return hidden_BTD[:, first:].flatten(0, 1)[wanted]
