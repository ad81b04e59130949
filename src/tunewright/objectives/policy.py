"""Learning from the model's own answers: PPO, GRPO and its variants, RLOO.

Legend: L learnt tokens of a pass, A answers. `old_L` are log-probabilities before the first update
of a round, `ref_L` those of the model at step 0, ratio_L = exp(logprob_L - old_L). The engine draws
the answers, judges them and computes these values (`engine.rounds`); what stands here is the
arithmetic: advantages from rewards, and the losses.

Sources: PPO, Schulman et al. 2017 (arXiv 1707.06347), for language models Ziegler et al. 2019
(1909.08593) and Ouyang et al. 2022 (2203.02155); generalised advantage estimation, Schulman et al.
2015 (1506.02438); GRPO, Shao et al. 2024 (2402.03300); Dr. GRPO, Liu et al. 2025 (2503.20783);
DAPO, Yu et al. 2025 (2503.14476); GSPO's ratio of whole answers, Zheng et al. 2025 (2507.18071);
CISPO, MiniMax 2025 (2506.13585); RLOO, Ahmadian et al. 2024 (2402.14740); REINFORCE, Williams 1992
(doi 10.1007/BF00992696). The estimator of the KL term (`k3`) is Schulman's, "Approximating KL
divergence", 2020.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tunewright.core.config import Section
from tunewright.core.errors import ConfigError, problem
from tunewright.core.registry import objectives
from tunewright.core.types import (
    WITHOUT_DIFFERENCE,
    Experience,
    Needs,
    Objective,
    Rollouts,
    Sample,
    Term,
)

ROWS = ("prompt", "conversation", "preference", "judged")
Figures = dict[str, tuple[float, int]]


class RolloutSection(Section):
    """Learning from the model's own answers. Data: prompts, or rows whose answers are left out
    (they remain at hand for reward functions)."""

    reward: Any = None
    """What an answer is worth: the name of a reward function, a mapping with `kind` and its
    options, a reward run's folder, or a list of these."""
    on_bad: Literal["stop", "skip"] = "stop"
    """When a reward function fails on an answer: stop the run, or leave that answer out and count
    it."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Longest answer, in tokens."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the draws; the model also learns at this temperature, so that it is judged as it answered.
    """
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw among the likeliest tokens that sum to this probability."""
    top_k: int = Field(default=0, ge=0)
    """Draw among this many likeliest tokens; 0 for all."""


class PpoConfig(RolloutSection):
    """Proximal policy optimisation: a policy and a value head learn from rewarded answers, held to
    the model at step 0 by a KL term."""

    generations: int = Field(default=1, ge=1)
    """Answers drawn to each prompt of a step."""
    beta: float = Field(default=0.05, ge=0)
    """KL coefficient: what a nat of distance from the model at step 0 costs, in reward."""
    kl_target: float | None = Field(default=None, gt=0)
    """Let the coefficient adapt until an answer's KL is about this, in nats. Default: the
    coefficient stays."""
    kl_horizon: int = Field(default=1000, ge=1)
    """Answers over which the coefficient adapts."""
    epochs: int = Field(default=2, ge=1)
    """Times the answers of a round are learnt from."""
    minibatches: int = Field(default=1, ge=1)
    """Updates in each of these epochs."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount of later rewards."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """Lambda of generalised advantage estimation: 0 trusts the value head, 1 the rewards."""
    clip: float = Field(default=0.2, gt=0)
    """The ratio to the old probability counts only up to this distance from 1."""
    value_clip: float = Field(default=0.2, gt=0)
    """The same for values."""
    value_weight: float = Field(default=0.1, ge=0)
    """Weight of the value loss."""
    whiten_rewards: bool = False
    """Divide the rewards of a round by their standard deviation."""
    unfinished_penalty: float = Field(default=1.0, ge=0)
    """Taken off the reward of an answer that was cut off before it ended."""


class GrpoConfig(RolloutSection):
    """Group-relative policy optimisation: several answers to each prompt, each judged against its
    group; no value head."""

    generations: int = Field(default=8, ge=2)
    """Answers drawn to each prompt: the group."""
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL term towards the model at step 0; the paper used 0.04, later work 0."""
    weigh_kl: bool = False
    """Multiply the KL term by the ratio, which makes its gradient unbiased after the first update
    (DeepSeek-V3.2; TRL's default)."""
    loss: Literal["grpo", "dr_grpo", "dapo", "cispo"] = "dapo"
    """grpo: mean over each answer's tokens, then over answers; dr_grpo: sum over tokens by
    `max_new_tokens`; dapo: mean over all tokens of the step; cispo: dapo's mean with the clipped
    ratio as a weight only."""
    scale: Literal["group", "batch", "none"] = "group"
    """Divide advantages by the standard deviation of the rewards of their group, of the whole step,
    or by nothing (Dr. GRPO)."""
    clip: float = Field(default=0.2, gt=0)
    """How far below 1 the ratio counts."""
    clip_high: float | None = Field(default=None, gt=0)
    """How far above 1; larger than `clip` leaves rare tokens room to grow (DAPO: 0.28). Default:
    `clip`."""
    ratio: Literal["token", "answer"] = "token"
    """Ratios token by token, or one for each whole answer, by its mean token (GSPO)."""
    epochs: int = Field(default=1, ge=1)
    """Times the answers of a round are learnt from."""
    minibatches: int = Field(default=1, ge=1)
    """Updates in each of these epochs."""
    unfinished_penalty: float = Field(default=0.0, ge=0)
    """Taken off the reward of an answer that was cut off before it ended."""


class DrGrpoConfig(GrpoConfig):
    """GRPO without its two biases: advantages are not divided by the spread of their group, nor
    losses by the answer's length."""

    loss: Literal["grpo", "dr_grpo", "dapo", "cispo"] = "dr_grpo"
    """Fixed by the name."""
    scale: Literal["group", "batch", "none"] = "none"
    """Fixed by the name."""


class RlooConfig(RolloutSection):
    """REINFORCE with a leave-one-out baseline: every answer is judged against the other answers to
    its prompt, as one action."""

    generations: int = Field(default=4, ge=2)
    """Answers drawn to each prompt."""
    beta: float = Field(default=0.05, ge=0)
    """KL coefficient: what a nat of distance from the model at step 0 costs, in reward."""
    clip: float = Field(default=0.2, gt=0)
    """The ratio of an answer's probability to the old one counts only up to this distance from 1;
    without effect in the first update of a round."""
    epochs: int = Field(default=1, ge=1)
    """Times the answers of a round are learnt from."""
    minibatches: int = Field(default=1, ge=1)
    """Updates in each of these epochs."""
    unfinished_penalty: float = Field(default=0.0, ge=0)
    """Taken off the reward of an answer that was cut off before it ended."""


class ReinforceConfig(RolloutSection):
    """The plain policy gradient: every answer is one action, judged against the other answers of
    the step."""

    generations: int = Field(default=1, ge=1)
    """Answers drawn to each prompt."""
    beta: float = Field(default=0.05, ge=0)
    """KL coefficient: what a nat of distance from the model at step 0 costs, in reward."""
    normalise: bool = False
    """Divide the advantages of a step by the standard deviation of its rewards (as REINFORCE++
    does)."""
    unfinished_penalty: float = Field(default=0.0, ge=0)
    """Taken off the reward of an answer that was cut off before it ended."""
    epochs: Literal[1] = 1
    """A policy gradient holds for the weights that drew the answers, so they are learnt from once.
    """
    minibatches: Literal[1] = 1
    """The same."""


# ---- advantages


def alike(groups: list[list[Experience]]) -> Figures:
    """How many groups have one reward for all of their answers, and teach nothing."""
    return {
        WITHOUT_DIFFERENCE: (
            float(sum(deviation([e.reward for e in group]) == 0 for group in groups)),
            len(groups),
        )
    }


def group_advantages(rewards: list[float], scale: str, spread: float) -> list[float]:
    """Rewards of one group minus their mean, divided by their standard deviation (n - 1) or by
    `spread`, that of the step. `none`: not divided."""
    mean = sum(rewards) / len(rewards)
    divisor = deviation(rewards) if scale == "group" else spread if scale == "batch" else 1.0
    # The small number is TRL's: a group of equal rewards has advantages of exactly 0 all the same.
    return [(r - mean) / (divisor + 1e-4) if scale != "none" else r - mean for r in rewards]


def deviation(values: list[float]) -> float:
    """Sample standard deviation; 0 for fewer than two."""
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return float((sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5)


def leave_one_out(rewards: list[float]) -> list[float]:
    """Each reward minus the mean of the others of its group."""
    total, count = sum(rewards), len(rewards)
    return [r - (total - r) / (count - 1) for r in rewards] if count > 1 else [0.0]


def generalised_advantages(
    rewards_n: Any, values_n: Any, gamma: float, lam: float
) -> tuple[Any, Any]:
    """(advantages, returns), each (n,): delta_t = r_t + gamma V_(t+1) - V_t, A_t = delta_t + gamma
    lam A_(t+1), R_t = A_t + V_t. After the end V is 0."""
    import torch

    advantage, after, found = 0.0, 0.0, []
    for reward, value in zip(
        reversed(rewards_n.tolist()), reversed(values_n.tolist()), strict=True
    ):
        advantage = reward + gamma * after - value + gamma * lam * advantage
        found.append(advantage)
        after = value
    advantages = torch.tensor(found[::-1], dtype=torch.float32)
    return advantages, advantages + values_n.float().cpu()


# ---- what a pass is made of


def joined(output: Any, name: str) -> Any:
    """A field of the experiences of a pass, in the order of its labels, (L,)."""
    import torch

    parts = [getattr(sample.facts["experience"], name) for sample in output.samples]
    if name == "old" and all(part is None for part in parts):
        return output.logprob.detach()  # the only update of its round: what it finds is what was
    return torch.cat([torch.as_tensor(part, dtype=torch.float32) for part in parts]).to(
        output.logprob.device
    )


def per_answer(values_L: Any, output: Any) -> Any:
    """Sums over the tokens of each answer, (A,)."""
    import torch

    return torch.zeros(
        len(output.branch_sample), dtype=values_L.dtype, device=values_L.device
    ).index_add(0, output.branch, values_L)


def lengths(output: Any) -> Any:
    """Tokens of each answer, (A,)."""
    import torch

    return per_answer(torch.ones_like(output.logprob), output)


def num_tokens(samples: list[Sample]) -> float:
    """Learnt tokens of a minibatch, each with its row's weight."""
    return float(sum(sum(branch.weights) for sample in samples for branch in sample.branches))


def num_answers(samples: list[Sample]) -> float:
    """Answers of a minibatch, each with its row's weight."""
    return float(sum(branch.weights[0] for sample in samples for branch in sample.branches))


def k3(logprob_L: Any, ref_L: Any) -> Any:
    """An estimate of KL(policy || reference) at each token that is never negative: exp(d) - d - 1
    with d = ref - logprob."""
    difference = ref_L - logprob_L
    return ratio_of(difference) - difference - 1


def ratio_of(log_ratio: Any) -> Any:
    """exp of a difference of log-probabilities, which of whole answers may be hundreds of nats:
    beyond 40 it stays finite and teaches nothing."""
    return log_ratio.clamp(-40.0, 40.0).exp()


def clipped_policy_loss(ratio: Any, advantage: Any, low: float, high: float) -> tuple[Any, Any]:
    """(loss, whether the clipped side counts): -min(ratio A, clip(ratio, 1 - low, 1 + high) A),
    element by element."""
    import torch

    free, held = ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage
    return -torch.minimum(free, held), held < free


def clipped_value_loss(value: Any, old: Any, returns: Any, clip: float) -> Any:
    """0.5 max((V - R)^2, (V_old + clip(V - V_old) - R)^2), element by element."""
    import torch

    held = old + (value - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((value - returns) ** 2, (held - returns) ** 2)


def _kl_of(groups: list[list[Experience]]) -> float:
    """Mean over answers of the summed log-ratio to the reference, in nats."""
    answers = [e for group in groups for e in group if e.reference is not None]
    return (
        sum(float((e.old - e.reference).sum()) for e in answers) / len(answers) if answers else 0.0
    )


def _settings(config: Any, judge: Any, **more: Any) -> Rollouts:
    return Rollouts(
        config.generations,
        config.max_new_tokens,
        config.temperature,
        config.top_p,
        config.top_k,
        config.reward,
        config.on_bad,
        judge,
        epochs=config.epochs,
        minibatches=config.minibatches,
        unfinished_penalty=config.unfinished_penalty,
        **more,
    )


def _watch(output: Any, logprob_L: Any, old_L: Any, clipped: Any) -> None:
    """Figures that every policy objective shows, as (sum over tokens or answers, number)."""
    ratio = (logprob_L - old_L).detach().exp()
    output.figures |= {
        "clip_share": (float(clipped.sum()), clipped.numel()),
        "ratio": (float(ratio.sum()), ratio.numel()),
        "ratio_gap": (float((ratio - 1).abs().sum()), ratio.numel()),
    }


# ---- the objectives


class _Kl:
    """The KL coefficient of a run: fixed, or led towards a target (Ziegler et al. 2019)."""

    def __init__(self, beta: float, target: float | None, horizon: int):
        self.beta, self.target, self.horizon = beta, target, horizon

    def after_round(self, figures: dict[str, float]) -> None:
        """Raise the coefficient where the model went too far, lower it where it stayed too close;
        at most by a fifth for each horizon of answers."""
        if self.target is not None and "kl" in figures:
            error = min(0.2, max(-0.2, figures["kl"] / self.target - 1))
            self.beta *= 1 + error * figures.get("answers", 0.0) / self.horizon

    def state(self) -> dict[str, Any]:
        return {"beta": self.beta}

    def load_state(self, state: dict[str, Any]) -> None:
        self.beta = float(state["beta"])


@objectives.register("ppo", PpoConfig, source="arXiv 1707.06347", rows=ROWS)
def ppo(config: PpoConfig) -> Objective:
    """policy = mean over tokens of -min(ratio A, clip(ratio) A); value = mean of 0.5 max((V - R)^2,
    (clipped V - R)^2).

    The reward of a token is -beta (old - ref), that of the last token also the answer's; A and R by
    generalised advantage estimation, A whitened over the round.
    """
    _require_reward(config)
    kl = _Kl(config.beta, config.kl_target, config.kl_horizon)

    def judge(groups: list[list[Experience]]) -> Figures:
        import torch

        answers = [e for group in groups for e in group]
        scores = [e.reward for e in answers]
        divisor = deviation(scores) + 1e-8 if config.whiten_rewards and len(scores) > 1 else 1.0
        for e, score in zip(answers, scores, strict=True):
            reward_n = (
                -kl.beta * (e.old - e.reference)
                if e.reference is not None
                else torch.zeros_like(e.old)
            )
            reward_n[-1] += score / divisor
            e.advantage, e.returns = generalised_advantages(
                reward_n, e.value, config.gamma, config.lam
            )
        everything = torch.cat([e.advantage for e in answers])
        mean, spread = everything.mean(), everything.std(correction=0) + 1e-8
        for e in answers:
            e.advantage = (e.advantage - mean) / spread
        returns, values = (
            torch.cat([e.returns for e in answers]),
            torch.cat([e.value.float().cpu() for e in answers]),
        )
        explained = 1 - float((returns - values).var(correction=0)) / (
            float(returns.var(correction=0)) + 1e-8
        )
        return {
            "kl": (_kl_of(groups), 1),
            "kl_coefficient": (kl.beta, 1),
            "explained_variance": (explained, 1),
        }

    def plan(samples: list[Sample]) -> dict[str, float]:
        return {"policy": num_tokens(samples), "value": num_tokens(samples)}

    def terms(output: Any) -> dict[str, Term]:
        old_L, advantage_L = joined(output, "old"), joined(output, "advantage")
        loss_L, clipped = clipped_policy_loss(
            ratio_of(output.logprob - old_L), advantage_L, config.clip, config.clip
        )
        value_L = clipped_value_loss(
            output.value, joined(output, "value"), joined(output, "returns"), config.value_clip
        )
        _watch(output, output.logprob, old_L, clipped)
        return {
            "policy": ((output.weight * loss_L).sum(), 1.0),
            "value": ((output.weight * value_L).sum(), config.value_weight),
        }

    reference = config.beta > 0 or config.kl_target is not None
    rollouts = _settings(
        config,
        judge,
        reference=reference,
        after_round=kl.after_round,
        state=kl.state,
        load_state=kl.load_state,
    )
    return Objective(
        plan, terms, Needs(heads=("value",), rows=ROWS), rollouts=rollouts, rate_factor=0.2
    )


@objectives.register("grpo", GrpoConfig, source="arXiv 2402.03300", rows=ROWS)
@objectives.register("dr_grpo", DrGrpoConfig, source="arXiv 2503.20783", rows=ROWS)
def grpo(config: GrpoConfig) -> Objective:
    """loss = mean of -min(ratio A, clip(ratio) A) + beta k3(logprob, ref), A = (reward - mean of
    the group) / spread; `loss` says what the mean is over."""
    _require_reward(config)
    high = config.clip if config.clip_high is None else config.clip_high

    def judge(groups: list[list[Experience]]) -> Figures:
        import torch

        spread = deviation([e.reward for group in groups for e in group])
        for group in groups:
            rewards = [e.reward for e in group]
            for e, advantage in zip(
                group, group_advantages(rewards, config.scale, spread), strict=True
            ):
                e.advantage = torch.full((e.num_tokens,), advantage)
        return alike(groups) | ({"kl": (_kl_of(groups), 1)} if config.beta else {})

    def plan(samples: list[Sample]) -> dict[str, float]:
        answers = num_answers(samples)
        return {
            "policy": {"grpo": answers, "dr_grpo": answers * config.max_new_tokens}.get(
                config.loss, num_tokens(samples)
            )
        }

    def terms(output: Any) -> dict[str, Term]:
        old_L, advantage_L = joined(output, "old"), joined(output, "advantage")
        log_ratio = output.logprob - old_L
        if config.ratio == "answer":
            mean_A = per_answer(log_ratio, output) / lengths(output)
            # The value is the answer's mean; the gradient goes through each token's own
            # log-probability (GSPO-token, equation 14).
            log_ratio = mean_A.detach()[output.branch] + output.logprob - output.logprob.detach()
        ratio = ratio_of(log_ratio)
        if config.loss == "cispo":
            clipped = ratio > 1 + high
            loss_L = -ratio.detach().clamp(max=1 + high) * advantage_L * output.logprob
        else:
            loss_L, clipped = clipped_policy_loss(ratio, advantage_L, config.clip, high)
        if config.beta:
            kl_L = k3(output.logprob, joined(output, "reference"))
            loss_L = loss_L + config.beta * (kl_L * ratio if config.weigh_kl else kl_L)
        if config.loss == "grpo":
            loss_L = loss_L / lengths(output)[output.branch]
        _watch(output, output.logprob, old_L, clipped)
        return {"policy": ((output.weight * loss_L).sum(), 1.0)}

    rollouts = _settings(config, judge, reference=config.beta > 0)
    return Objective(plan, terms, Needs(rows=ROWS), rollouts=rollouts, rate_factor=0.5)


@objectives.register("rloo", RlooConfig, source="arXiv 2402.14740", rows=ROWS)
def rloo(config: RlooConfig) -> Objective:
    """loss = mean over answers of -min(ratio A, clip(ratio) A), ratio of whole answers, A = R -
    mean of the other answers' R, R = reward - beta KL."""
    _require_reward(config)

    def judge(groups: list[list[Experience]]) -> Figures:
        import torch

        for group in groups:
            far = [
                float((e.old - e.reference).sum()) if e.reference is not None else 0.0
                for e in group
            ]
            rewards = [
                e.reward - config.beta * distance for e, distance in zip(group, far, strict=True)
            ]
            for e, advantage in zip(group, leave_one_out(rewards), strict=True):
                e.advantage = torch.full((e.num_tokens,), advantage)
        return alike(groups) | ({"kl": (_kl_of(groups), 1)} if config.beta else {})

    def plan(samples: list[Sample]) -> dict[str, float]:
        return {"policy": num_answers(samples)}

    def terms(output: Any) -> dict[str, Term]:
        old_L = joined(output, "old")
        ratio_A = ratio_of(per_answer(output.logprob - old_L, output))
        advantage_A = per_answer(joined(output, "advantage"), output) / lengths(output)
        loss_A, clipped = clipped_policy_loss(ratio_A, advantage_A, config.clip, config.clip)
        _watch(output, output.logprob, old_L, clipped)
        weight_A = per_answer(output.weight, output) / lengths(output)
        return {"policy": ((weight_A * loss_A).sum(), 1.0)}

    rollouts = _settings(config, judge, reference=config.beta > 0)
    return Objective(plan, terms, Needs(rows=ROWS), rollouts=rollouts, rate_factor=0.5)


@objectives.register("reinforce", ReinforceConfig, source="doi 10.1007/BF00992696", rows=ROWS)
def reinforce(config: ReinforceConfig) -> Objective:
    """loss = mean over answers of -A log p(answer), A = R - mean of the other R of the step, R =
    reward - beta KL."""
    _require_reward(config)

    def judge(groups: list[list[Experience]]) -> Figures:
        import torch

        answers = [e for group in groups for e in group]
        far = [
            float((e.old - e.reference).sum()) if e.reference is not None else 0.0 for e in answers
        ]
        rewards = [
            e.reward - config.beta * distance for e, distance in zip(answers, far, strict=True)
        ]
        divisor = deviation(rewards) + 1e-4 if config.normalise else 1.0
        for e, advantage in zip(answers, leave_one_out(rewards), strict=True):
            e.advantage = torch.full((e.num_tokens,), advantage / divisor)
        return {"kl": (_kl_of(groups), 1)} if config.beta else {}

    def plan(samples: list[Sample]) -> dict[str, float]:
        return {"policy": num_answers(samples)}

    def terms(output: Any) -> dict[str, Term]:
        import torch

        old_L = joined(output, "old")
        _watch(
            output, output.logprob, old_L, torch.zeros(len(output.branch_sample), dtype=torch.bool)
        )
        return {
            "policy": (-(output.weight * joined(output, "advantage") * output.logprob).sum(), 1.0)
        }

    rollouts = _settings(config, judge, reference=config.beta > 0)
    return Objective(plan, terms, Needs(rows=ROWS), rollouts=rollouts, rate_factor=0.5)


def _require_reward(config: RolloutSection) -> None:
    if config.reward is None:
        raise ConfigError(problem("E-OBJ-33", "objective.reward"))
