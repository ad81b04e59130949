"""The types on which the axes meet: what a row becomes, and the one batch every objective and
method sees.

Plain Python integers and lists, so that data can be read, checked and cut into passes without
torch; tensors stand in what a pass gives, and are named for the type checker only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from tunewright.core.words import say
from tunewright.core.written import spelt

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from transformers import PreTrainedModel

    from tunewright.core.config import EngineConfig


@dataclass(frozen=True)
class Origin:
    """Where a row came from. `line` is the 1-based line of the file on which the row starts; `row`
    counts rows from 1."""

    file: str
    line: int
    row: int

    def __str__(self) -> str:
        # More rows than lines up to here: several stand on one line, and their number tells them
        # apart.
        return f"{self.file}:{self.line}" + (
            say("origin.row", row=self.row) if self.row > self.line else ""
        )


@dataclass(frozen=True)
class Message:
    """One turn of a dialogue. `role` is system, user, assistant or tool. `weight` scales the loss
    of an assistant turn; 0 leaves it unlearnt."""

    role: str
    content: str
    weight: float = 1.0
    tool_calls: list[dict[str, Any]] | None = None
    name: str | None = None
    tool_call_id: str | None = None


@dataclass(frozen=True)
class Conversation:
    """A dialogue whose assistant turns are learnt. `weight` scales the whole row."""

    messages: list[Message]
    origin: Origin
    tools: list[dict[str, Any]] | None = None
    weight: float = 1.0

    def question(self) -> list[Message]:
        """The turns before the last assistant turn: what a probe asks."""
        last = max(
            (i for i, m in enumerate(self.messages) if m.role == "assistant"),
            default=len(self.messages),
        )
        return self.messages[:last]

    def answer(self) -> str:
        """The last assistant turn, or an empty string."""
        return next((m.content for m in reversed(self.messages) if m.role == "assistant"), "")


@dataclass(frozen=True)
class PlainText:
    """Running text; every token is learnt. `weight` scales the whole row."""

    text: str
    origin: Origin
    weight: float = 1.0


@dataclass(frozen=True)
class Preference:
    """Two ways to go on after the same dialogue: `chosen` is to be preferred to `rejected`. Each is
    one or more turns and ends with an answer.

    `margin` says by how much the chosen one is better, where the data knows (reward objectives with
    a margin).
    """

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    origin: Origin
    tools: list[dict[str, Any]] | None = None
    weight: float = 1.0
    margin: float | None = None

    def question(self) -> list[Message]:
        """What a probe asks."""
        return self.prompt

    def answer(self) -> str:
        """The last chosen turn."""
        return self.chosen[-1].content


@dataclass(frozen=True)
class Judged:
    """A dialogue whose last answer somebody called good or bad (KTO)."""

    messages: list[Message]
    good: bool
    origin: Origin
    tools: list[dict[str, Any]] | None = None
    weight: float = 1.0

    def question(self) -> list[Message]:
        """The turns before the judged answer."""
        return self.messages[:-1]

    def answer(self) -> str:
        """The judged answer if it is good; nobody wants the other one."""
        return self.messages[-1].content if self.good else ""


@dataclass(frozen=True)
class Stepwise(Judged):
    """A dialogue whose last answer was judged step by step (process rewards). `steps` are the
    steps' texts and whether each is right; `good`: all are."""

    steps: tuple[tuple[str, bool], ...] = ()


@dataclass(frozen=True)
class Prompt:
    """A dialogue that ends with a question: where a rollout starts. `facts` holds the row's other
    columns (an expected answer) for reward functions."""

    messages: list[Message]
    origin: Origin
    tools: list[dict[str, Any]] | None = None
    weight: float = 1.0
    facts: dict[str, Any] = field(default_factory=dict)

    def question(self) -> list[Message]:
        """What a probe asks."""
        return self.messages

    def answer(self) -> str:
        """The expected answer, where the row has one."""
        return spelt(self.facts.get("answer", ""))


@dataclass(frozen=True)
class Answer:
    """What the model wrote after a prompt, as reward functions see it. `text` is without the stop
    token; `num_tokens` counts it where there is one."""

    messages: list[Message]
    """The dialogue up to the answer."""
    text: str
    num_tokens: int
    finished: bool
    """It ended with a stop token and was not cut off."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The row's other columns: an expected answer, a pattern, a schema."""
    origin: Origin | None = None
    thought: str = ""
    """What stood between <think> and </think> before the answer; it is not part of `text`."""

    @property
    def whole(self) -> str:
        """The thought and the answer, as a template of both is compared with them."""
        return f"<think>\n{self.thought}\n</think>\n\n{self.text}" if self.thought else self.text


Row = Conversation | PlainText | Preference | Judged | Prompt


def asks(row: Row) -> TypeGuard[Conversation | Preference | Judged | Prompt]:
    """Whether a row asks something. Running text does not, nor does a dialogue that is one answer
    alone, such as a greeting."""
    return not isinstance(row, PlainText) and bool(row.question())


WITHOUT_DIFFERENCE = "groups_without_difference"
"""The figure of a round: the share of groups whose answers all have one reward."""
ROW_KINDS = {
    Conversation: "conversation",
    PlainText: "text",
    Preference: "preference",
    Judged: "judged",
    Prompt: "prompt",
    Stepwise: "stepwise",
}
"""The words of the fact `rows` of an objective."""


def turns_of(row: Row) -> list[Message]:
    """All turns of a row, of a preference the chosen ones before the rejected ones; none of running
    text."""
    if isinstance(row, PlainText):
        return []
    if isinstance(row, Preference):
        return [*row.prompt, *row.chosen, *row.rejected]
    return row.messages


@dataclass
class Branch:
    """One token sequence of a sample, with the tokens that are learnt.

    `tokens[i]` has position `positions[i]` (None: i). `learnt` are indices into `tokens`, each at
    least 1: the token at that index is predicted from the row before it, with weight `weights[k]`.
    Rows after the last needed one are never computed.
    """

    tokens: list[int]
    learnt: list[int]
    weights: list[float]
    positions: list[int] | None = None
    role: str = "answer"
    whole: bool = False
    """Every row is computed, also where no label needs it: what is counted over all tokens (the
    balance of experts) is counted over these, too."""


@dataclass
class Sample:
    """What one row of data becomes: the branches of one non-linear term, which stay in one pass.
    SFT 1, a preference pair 2, a rollout group k."""

    branches: list[Branch]
    index: int
    origin: Origin | None = None
    weight: float = 1.0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class TokenTree:
    """The branches of one pass merged into a radix tree, laid out depth first. T rows, L labels, B
    branches.

    Row j is visible to row i exactly when `j <= i < subtree_end[j]`; `depth[i]` is the number of
    ancestors, so a sliding window of w keeps `depth[i] - depth[j] < w`. Label l says: row
    `source[l]` predicts token `target[l]` with weight `weight[l]` for branch `branch[l]`.
    """

    token: list[int]
    position: list[int]
    depth: list[int]
    subtree_end: list[int]
    source: list[int]
    target: list[int]
    weight: list[float]
    branch: list[int]
    branch_sample: list[int]
    """For each branch of this tree, the index of its sample in `samples`."""
    samples: list[Sample]
    last: list[int] = field(default_factory=list)
    """For each branch the last of its rows: where a head that judges the whole branch reads."""

    @property
    def num_rows(self) -> int:
        """T: token rows really computed."""
        return len(self.token)


Figures: TypeAlias = "dict[str, tuple[float | Tensor, int]]"
"""Name -> (sum, count). A sum may stay on the device until it is read
(`core.moves.later`)."""


@dataclass
class PassOutput:
    """What an objective sees of one pass. L labels in the order of the samples' branches; weights
    are the data's."""

    logprob: Tensor
    """(L,) float32 or wider, in nats."""
    weight: Tensor
    """(L,)"""
    branch: Tensor
    """(L,) index of the branch."""
    branch_sample: list[int]
    samples: list[Sample]
    num_rows: int
    reference: Tensor | None = None
    """(B,) float64: summed log-probability of each branch's learnt tokens under the model at step
    0, where the objective asks for it."""
    score: Tensor | None = None
    """(B,) float32: what the score head says of each whole branch, where the objective has one."""
    value: Tensor | None = None
    """(L,) float32: what the value head says before each label, where the objective has one."""
    log_z: Tensor | None = None
    """(L,): logarithm of the sum of exponentials of the logits before each label, where the
    objective asks for `spread`."""
    mean_logprob: Tensor | None = None
    """(L,): mean log-probability of all tokens of the vocabulary before each label, where the
    objective asks for `spread`."""
    divergence: Tensor | None = None
    """(L,): how far the teacher's distribution before each label is from ours, in nats, where the
    objective has a teacher."""
    figures: Figures = field(default_factory=dict)
    """What an objective found on the way, to be looked at."""
    facts: dict[str, Tensor] = field(default_factory=dict)
    """(L,) each, without gradient: what the objective asks about the distribution before each
    label (`Objective.asks`)."""


Passes: TypeAlias = Callable[[list[Sample]], Iterable[PassOutput]]
"""Samples in, any number of them; the outputs of their passes out, without gradient."""
Model: TypeAlias = "PreTrainedModel"
"""A causal language model as Transformers has it: what a method is put on."""
Term: TypeAlias = "tuple[Tensor, float]"
"""(sum over the pass, coefficient). The engine divides the sum by what `plan` announced under the
same name for the whole step."""


@dataclass(frozen=True)
class Needs:
    """What a method asks of the engine."""

    layout: str = "any"
    """`any` or `padded`."""
    frozen_base: bool = False


@dataclass(frozen=True)
class VirtualPrompt:
    """What a learnt prompt puts before every branch. M virtual tokens; real tokens then have
    positions from M on. One of the two is given.

    A method offers it as `virtual_prompt() -> VirtualPrompt | None` on its root module, so that
    nothing that runs the model can forget it; it is made anew for every pass, with gradient, and
    None while the method is switched off.
    """

    num_tokens: int
    rows: Tensor | None = None
    """(M, D) input embeddings: rows at the root of the token tree, positions 0 to M - 1, seen by
    every branch and never predicting."""
    keys_values: list[tuple[Tensor, Tensor]] | None = None
    """For each layer (keys, values), each (K heads, M, head size), already turned by whatever the
    family does to keys: seen by every row."""


@dataclass
class Attached:
    """What a method returns: exactly what trains, and how to switch it off, fold it in, save and
    resume it (design, section 4)."""

    parameters: list[str]
    model: Any
    """The root module after the method was put on it."""
    needs: Needs
    save: Callable[[Path], None]
    """Writes what `methods.saved.put_on` reads again; a whole model where `saves_model`."""
    saves_model: bool = False
    """Every weight may have changed: the run folder gets `model/` in place of `adapter/`."""
    disabled: Callable[[], AbstractContextManager[None]] | None = None
    disabled_reason: str = ""
    merge: Callable[[], Any] | None = None
    """Folds the method into plain weights and returns the plain model."""
    merge_reason: str = ""
    penalties: Callable[[], dict[str, Term]] | None = None
    after_update: Callable[[int], None] | None = None
    state: Callable[[], dict[str, Any]] | None = None
    load_state: Callable[[dict[str, Any]], None] | None = None
    learning_rate: float = 2e-4
    """The rate that suits this method when the run file says `auto`."""
    rate_factors: dict[str, float] = field(default_factory=dict)
    """Parameters that learn at another rate than the rest: name -> factor on the rate of the step.
    """
    optimizer: Callable[[EngineConfig, list[tuple[str, nn.Parameter]]], Optimizer] | None = None
    """(engine config, named parameters) -> the method's own optimiser, where its paper is about the
    update (GaLore)."""
    with_optimizer: Callable[[EngineConfig, Optimizer], None] | None = None
    """(engine config, optimiser): called once with the run's optimiser, for methods that drop parts
    of its state (LISA)."""
    look: Callable[[Sequence[list[int]]], None] | None = None
    """Called once with token rows of training samples, after the method was put on and before
    `begin`, where its start depends on them (EVA)."""
    begin: Callable[[int], None] | None = None
    """Called once before the first step with the number of steps of the whole run, for methods with
    a schedule of their own."""
    complete_from: Callable[[], int] | None = None
    """The first step after which the weights are what was asked for (a rank that falls over the
    run); those of earlier steps are not kept as the best."""
    notes: list[str] = field(default_factory=list)
    """Sentences to say when the method has been put on."""
    tensors: Callable[[], dict[str, Tensor]] | None = None
    """Tensors beside the parameters that a resume needs, by name; restoring copies into the same
    tensors."""


@dataclass(frozen=True)
class Teaching:
    """How far a student is from its teacher, token by token; computed by
    `engine.oracles.teacher`."""

    model: str
    """What `engine.opening.find` takes: a model, an adapter or a run."""
    divergence: str = "forward"
    """`forward`, `reverse` or `jensen_shannon`."""
    beta: float = 0.5
    """Share of the teacher in the mixture of `jensen_shannon`."""
    temperature: float = 1.0
    """Both distributions are taken at this temperature."""
    top_k: int | None = None
    """Compare the teacher's k likeliest tokens and all others as one; kept in the run folder, so
    that the teacher is in memory only before the first step."""


@dataclass(frozen=True)
class OwnAnswers:
    """What an objective asks that learns on texts of the model's own, without judging them: in
    `share` of the steps answers are drawn to the rows' questions."""

    share: float
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int


@dataclass
class Experience:
    """One answer that the model wrote, and what is known of it when the model learns from it. n
    tokens; the last five are (n,) tensors."""

    reward: float
    num_tokens: int
    finished: bool
    sampled: Sequence[float]
    """Log-probabilities as the sampler saw them."""
    old: Any = None
    """Log-probabilities before the first update of the round."""
    reference: Tensor | None = None
    """Log-probabilities under the model at step 0, where the objective asks for it."""
    value: Any = None
    """What the value head said before each token, where there is one."""
    advantage: Any = None
    returns: Any = None
    """What the value head is taught."""
    tokens: Sequence[int] = ()
    """What was written."""


@dataclass(frozen=True)
class Rollouts:
    """What an objective asks of the engine's rounds: answers are drawn, judged, and learnt from for
    `epochs` times `minibatches` updates.

    `judge(groups)` sets `advantage` (and `returns`) of every answer of a round, one group a prompt,
    and gives figures to look at; it runs without gradient.
    """

    num_answers: int
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    rewards: Any
    """`objective.reward` as it was given."""
    on_bad: Any
    """`stop` or `skip`."""
    judge: Callable[[list[list[Experience]]], Figures]
    epochs: int = 1
    minibatches: int = 1
    unfinished_penalty: float = 0.0
    """Taken off the reward of an answer that was cut off."""
    reference: bool = False
    pair: Callable[[list[Sample]], Sample | None] | None = None
    """Learns from the answers to a prompt together: makes one sample of them, None where they teach
    nothing. After everything was computed about each answer."""
    picks: bool = False
    """Only answers whose advantage is not 0 are learnt from, and what was likely before does not
    matter: nothing is computed of the others."""
    after_round: Callable[[dict[str, float]], None] | None = None
    """Told the figures of a round: a KL coefficient that adapts."""
    state: Callable[[], dict[str, Any]] | None = None
    load_state: Callable[[dict[str, Any]], None] | None = None


@dataclass(frozen=True)
class Objective:
    """What is optimised, as functions the engine calls.

    `plan(samples)` announces, before the first backward and without a model, what each named term
    is divided by for the whole step. `terms(output)` gives the same names' sums over one pass, with
    their coefficients. `prepare(samples)` runs over the whole step before both, and may change the
    samples' branches.
    """

    plan: Callable[[list[Sample]], dict[str, float]]
    terms: Callable[[PassOutput], dict[str, Term]]
    prepare: Callable[[list[Sample]], None] | None = None
    measure: Callable[[list[Sample], Passes], None] | None = None
    """`measure(samples, run)`, after `prepare`: a baseline over the whole step."""
    companions: Callable[[Sequence[Sample], int | None], Iterable[Sample]] | None = None
    """Told all samples of a run, and how many tokens the model can take, before the first step;
    gives those that `measure` will run besides, so that they have reference values, too."""
    heads: tuple[str, ...] = ()
    """Heads that it reads and trains: `value` (`output.value`), `score` (`output.score`)."""
    reference: bool = False
    """Wants `output.reference`: log-probabilities under the model at step 0."""
    spread: bool = False
    """Wants `output.log_z` and `output.mean_logprob`."""
    asks: tuple[str, ...] = ()
    """Wants `output.facts` of these names (`models.kernels.row_facts`)."""
    measured: Callable[[PassOutput], dict[str, Term]] | None = None
    """What held-out rows are measured by in place of `terms`, where a lower loss is not always a
    better model. The same names."""
    state: Callable[[], dict[str, Any]] | None = None
    """What it keeps from step to step, and a resumed run must know."""
    load_state: Callable[[dict[str, Any]], None] | None = None
    teacher: Teaching | None = None
    """Wants `output.divergence`, from this teacher."""
    own_answers: OwnAnswers | None = None
    """Some steps are taken on answers that the model wrote itself."""
    rollouts: Rollouts | None = None
    """Learns from the model's own answers; `plan` and `terms` then see samples whose
    `facts["experience"]` is an `Experience`."""
    pack: int | None = None
    """Learns from whole documents: long ones in windows, short ones side by side in samples of up
    to this many tokens (0: each by itself)."""
    rate_factor: float = 1.0
    """What the method's usual learning rate is multiplied by when the run file says `auto`."""
