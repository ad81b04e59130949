"""One schema makes the YAML, the flags, the Studio's forms, the reference page and the saved
record.

Every key of a run is a field of one of the classes below, or of the config class that a method or
objective registered. A key nobody knows is an error with a guess, a key of another system is
answered with ours and the converted value, and all problems come in one message.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tunewright.core.refusals import refused


class Section(BaseModel):
    """A part of the run file: frozen, no unknown keys, documented beside each field."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def _not_bool(value: Any) -> Any:
    # Python counts true as 1; a person who writes true means something else.
    if isinstance(value, bool):
        raise refused("no_truth")
    return value


class MixingConfig(Section):
    """How much of an epoch each entry of `data.train` makes up, where it does not say so itself."""

    temperature: float = Field(default=1.0, gt=0)
    """1: each entry counts by its number of rows; higher: small entries count more (shares are
    proportional to rows to the power 1 / temperature)."""


class DataConfig(Section):
    """What the model learns from."""

    train: str | list[str | dict[str, Any]]
    """A file, a folder, a name in a dataset_info.json, or a list of these."""
    held_out: float | int | str | None = None
    """Rows kept for measuring, never trained on: a share (0.1), a count (50) or a file. Default:
    the valid part of a folder; otherwise 0.1, or 0 with fewer than 20 rows."""
    dir: str | None = None
    """Folder in which names are looked up in a dataset_info.json."""
    format: str = "auto"
    """alpaca, messages, sharegpt, prompt_completion, text, preference, ... (`tunewright list
    formats`); auto detects it from the rows."""
    columns: dict[str, str] = {}
    """Maps our column names to yours, for example {instruction: question, output: answer}."""
    wording: str | None = None
    """How a question is composed from columns: {text} for texts with labels, {question} and
    {context} for questions about a text. Default: as docs/data.md says."""
    labels: list[str] | None = None
    """Names for numeric labels, in order: [negative, positive] for 0 and 1."""
    limit: int | None = Field(default=None, gt=0)
    """Use only the first n rows; applied before the split."""
    max_tokens: int | None = Field(default=None, gt=1)
    """Longest sample in tokens. Default: the model's context."""
    oversize: Literal["drop", "truncate"] = "drop"
    """What happens to a longer row: drop it (counted), or cut its answer's middle and keep the stop
    token."""
    system: str | None = None
    """A system prompt for rows that have none."""
    template: str | None = None
    """A chat template of your own: a Jinja file, or `chatml`. It is saved with the result, so that
    whoever asks the model uses it. Default: the model's own, or a plain one where it has none."""
    turns: Literal["all", "last", "last_round"] = "all"
    """Which of the assistant's turns of a dialogue are learnt: all; the last; last_round: all after
    the last question, with the calls of tools among them."""
    thinking: Literal["auto", "learn", "keep", "off"] = "auto"
    """What to do with thoughts before answers: learn them; keep them (shown, not learnt); off
    (removed). auto: learn, and rows without thoughts in the template's non-thinking form."""
    template_arguments: dict[str, Any] = {}
    """Further arguments of the model's chat template, for example {reasoning_effort: high};
    training and asking use the same. One that the template does not read is refused."""
    good_only: bool = False
    """Use only the chosen answer of pairs and the good ones of judged answers, as dialogues, so
    that sft can learn from them. Default: sft refuses such rows."""
    accept: list[str] = []
    """Names of findings (`swapped_roles`, `too_long`, ...) that would stop the run but that you
    accept."""
    mixing: MixingConfig = MixingConfig()
    """How entries of `data.train` are mixed; an entry may also say `repeat`, `share` or `cap`
    itself."""

    @field_validator("held_out", "limit", "max_tokens", mode="before")
    @classmethod
    def _no_truth(cls, value: Any) -> Any:
        return _not_bool(value)

    @field_validator("thinking", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads a bare `off` as false

    @field_validator("wording")
    @classmethod
    def _has_a_place(cls, value: str | None) -> str | None:
        if value is not None and "{text}" not in value and "{question}" not in value:
            raise refused("wording")
        return value

    @field_validator("held_out")
    @classmethod
    def _share_or_count(cls, value: Any) -> Any:
        if isinstance(value, int | float) and value < 0:
            raise refused("negative")
        return value


class RotaryConfig(Section):
    """Rotary scaling: the base reads more tokens than it was trained on."""

    kind: Literal["linear", "dynamic", "yarn", "llama3"]
    """linear stretches all positions alike; dynamic only where a text is longer than the context;
    yarn stretches slow turns and leaves fast ones, and needs the least training; llama3 is Llama
    3.1's form of it."""
    factor: Annotated[float, Field(gt=1)] | Literal["auto"] = "auto"
    """How many times the context the base had: 4 makes 8,192 of 2,048. auto: as often as
    `data.max_tokens` needs, and no scaling where it fits already."""
    original: int | None = Field(default=None, gt=1)
    """Tokens that the base was trained on. Default: what its configuration says."""
    attention_factor: float | None = Field(default=None, gt=0)
    """With yarn: factor on the attention's logits. Default: as the paper has it, from `factor`."""
    beta_fast: float | None = Field(default=None, gt=0)
    """With yarn: turns over the context from which a frequency stays as it is. Default: 32."""
    beta_slow: float | None = Field(default=None, gt=0)
    """With yarn: turns below which a frequency is stretched in full. Default: 1."""

    @model_validator(mode="after")
    def _of_yarn(self) -> RotaryConfig:
        given = (self.attention_factor, self.beta_fast, self.beta_slow)
        if self.kind != "yarn" and any(value is not None for value in given):
            raise refused("yarn")
        return self


class BaseConfig(Section):
    """How the frozen base is held."""

    bits: Literal[4, 8] | None = None
    """4 or 8: keep the frozen matrices of the blocks quantised. Saves memory and costs time.
    Default: not quantised."""
    type: Literal["nf4", "int4", "int8"] | None = None
    """dtype of a quantised base: nf4 (QLoRA's) or int4 for 4 bits, int8 for 8. Default: nf4 for 4
    bits."""
    double: bool = True
    """nf4 keeps its scales in 8 bits as well: 4.5 bits per weight instead of 6 with blocks of 16,
    4.13 instead of 4.5 with blocks of 64."""
    block: Literal[16, 32, 64] = 16
    """Weights that share one scale in nf4. 64 is QLoRA's and takes 4.13 bits per weight; 16 takes
    4.5 and preserves much more of a small model's quality."""
    dequantise: bool = False
    """A checkpoint that is quantised already (GPTQ, AWQ, FP8, ...): make its weights wide. Default:
    they stay as they are stored, and each is made wide while it is used."""
    rotary: RotaryConfig | None = None
    """Read longer texts than the base was trained on, such as {kind: yarn, factor: 4}. Kept with
    what is trained."""

    @property
    def number_type(self) -> str | None:
        """`type`, or what suits `bits`; None where nothing is quantised."""
        return None if self.bits is None else self.type or ("nf4" if self.bits == 4 else "int8")

    @property
    def bits_per_weight(self) -> float | None:
        """Bits of one quantised weight with its share of the scales (models/quantised.py)."""
        kind = self.number_type
        if kind is None:
            return None
        if kind != "nf4":
            return 8.0 if kind == "int8" else 4.5
        return 4 + (8 + 32 / 256 if self.double else 32) / self.block


class EngineConfig(Section):
    """How the steps are taken."""

    epochs: float = Field(default=3.0, gt=0)
    """How often every data row is seen."""
    steps: int | None = Field(default=None, gt=0)
    """Stop after this many optimiser steps; overrides epochs."""
    batch_size: int | Literal["auto"] = "auto"
    """Samples per optimiser step, always; how many fit in memory at once is `rows_per_pass`. auto:
    16, and fewer with less than 128 samples, so that little data still gives many steps."""
    learning_rate: float | Literal["auto"] = "auto"
    """Peak learning rate; auto takes what suits the method and the number of steps, and says so."""
    schedule: Literal["cosine", "linear", "constant", "inverse_sqrt", "wsd"] = "cosine"
    """How the learning rate falls after the warm-up. wsd stays at the peak and falls over the last
    steps (`decay`); inverse_sqrt falls with the root of the steps and does not know the end."""
    least_rate: float = Field(default=0.0, ge=0, lt=1)
    """Share of the peak rate to which cosine, linear and wsd fall."""
    cycles: int = Field(default=1, ge=1)
    """How often cosine falls from the peak: 3 restarts it twice, without another warm-up."""
    decay: float = Field(default=0.1, gt=0)
    """The falling part of wsd. Below 1: share of all steps; from 1: number of steps."""
    power: float = Field(default=1.0, gt=0)
    """linear falls with this power of what is left: 2 falls fast at first (a polynomial decay)."""
    warmup: float = Field(default=0.05, ge=0)
    """Below 1: share of all steps; from 1: number of steps."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    betas: tuple[float, float] | None = None
    """How long the two moments of AdamW remember; null: [0.9, 0.999]."""
    epsilon: float | None = Field(default=None, gt=0)
    """What AdamW adds to the root of the second moment; null: 1e-8."""
    clip: float | None = Field(default=1.0, gt=0)
    """Largest gradient norm; null: no clipping."""
    optimizer: Literal[
        "adamw", "adafactor", "adamw_8bit", "muon", "lion", "adamw_schedule_free", "adam_mini"
    ] = "adamw"
    """The update rule. adafactor keeps almost no state; adamw_8bit (bitsandbytes) a quarter of
    AdamW's; lion and adam_mini half; muon is for matrices, with AdamW for the rest;
    adamw_schedule_free needs no falling rate, because the mean of its steps is handed out."""
    rates: dict[str, float] = {}
    """Parts that learn faster or slower: a role (embedding, head, norm, attention.query, mlp), a
    side of LoRA (lora_a, lora_b), bias, or a module's name, each with the factor on the learning
    rate, such as {embedding: 0.1, lora_b: 16}. 0 is not allowed: choose what trains by the
    method."""
    balance: Annotated[float, Field(gt=0)] | Literal["auto"] | None = None
    """Weight of the load-balancing loss in a model of experts, which keeps them all in use; auto:
    what the model's configuration says. null: no such loss, as suits a router that is frozen."""
    neftune: float | None = Field(default=None, gt=0)
    """Strength of uniform noise on the input embeddings during training (5 is usual); null:
    none."""
    activation_cache: int | Literal["auto", "off"] = "auto"
    """If only upper blocks are trained: bytes for keeping the hidden states below them from the
    first epoch on; auto: a quarter of the free memory."""
    recompute: Literal["auto", "none", "selective", "full"] = "auto"
    """What a block computes again in the backward pass in place of keeping it: nothing, its MLP and
    its attention probabilities, or all of it (about a third more time, for long rows half of the
    memory). auto: as little as the memory estimate asks for. Numbers do not change."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """dtype of the computation; auto measures this processor and says what it found."""
    layout: Literal["auto", "tree", "padded"] = "auto"
    """tree computes shared prefixes once; padded puts one sample in a row."""
    offload: Literal["auto", "none", "optimizer", "activations", "all"] = "auto"
    """What lies elsewhere until it is needed: the optimiser's state, what the blocks keep for their
    backward pass, or both. Elsewhere is the host's memory for a GPU, and a file for a CPU. auto: as
    little as the memory estimate asks for. Numbers do not change."""
    attention: Literal["auto", "blocks", "flex"] = "auto"
    """What computes attention over the tree: blocks is for a CPU, flex (PyTorch's FlexAttention)
    for CUDA, where the same few kernels serve any number of forks. auto takes what suits the
    device and tries it first. Numbers are the same up to rounding."""
    rows_per_pass: int | Literal["auto"] = "auto"
    """Token rows computed at once. Changes memory and speed, never the gradient."""
    threads: int | Literal["auto"] = "auto"
    """Processor threads. The count stays while a run learns: another one rounds sums otherwise."""
    seed: int = 0
    """Start of every random stream."""
    save_every: int | Literal["auto", "epoch"] | None = "auto"
    """Steps between checkpoints, or `epoch`; null: only at the end."""
    evaluate_every: int | Literal["auto", "epoch"] | None = "auto"
    """Steps between measurements on the held-out rows, or `epoch`; null: only at the end."""
    evaluate_rows: int | None = Field(default=512, gt=0)
    """At most this many held-out rows are measured during training, the same ones each time; all of
    them at the end if that takes less than a tenth of the training time. null: always all."""
    show_answers: int = Field(default=0, ge=0)
    """Questions of the run that are asked again every `evaluate_every` steps while it learns; the
    answers are written into events.jsonl."""
    keep_best: bool = True
    """Return to the weights with the lowest held-out loss at the end."""
    early_stop: int | None = Field(default=None, gt=0)
    """Stop when the held-out loss has not improved for this many measurements; null: never."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    processes: int | Literal["auto"] = 1
    """Processes that share each step, one a GPU. auto: as many as this machine has GPUs. Under
    torchrun or SLURM their launcher decides. The gradient is that of one process."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """ddp: every process holds the whole model. fsdp: each holds a share of weights, gradients and
    optimiser state, and blocks are put together when they compute. auto: ddp where the memory
    estimate fits, else fsdp."""
    hybrid: bool = False
    """With fsdp on several machines: shares inside a machine, whole copies between them, so that
    only gradients cross the network."""
    offload_shares: bool = False
    """With fsdp: keep each process's share in the memory of its machine and bring it to the GPU a
    block at a time. Much slower; for models that fit no other way."""
    rank_timeout: float = Field(default=20.0, ge=2)
    """Seconds after which a process that shows no life ends the run."""
    max_restarts: int = Field(default=0, ge=0)
    """How often the processes are started again from the last checkpoint when one of them fails."""

    @field_validator("activation_cache", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        if value is False:
            return "off"  # YAML reads a bare `off` as false
        if value is True or (isinstance(value, int) and value < 1):
            raise refused("cache")
        return value

    @field_validator(
        "epochs",
        "steps",
        "learning_rate",
        "warmup",
        "least_rate",
        "cycles",
        "decay",
        "power",
        "weight_decay",
        "epsilon",
        "clip",
        "seed",
        "neftune",
        "rank_timeout",
        "max_restarts",
        "balance",
        mode="before",
    )
    @classmethod
    def _no_truth(cls, value: Any) -> Any:
        return _not_bool(value)

    @model_validator(mode="before")
    @classmethod
    def _no_fall(cls, given: Any) -> Any:
        # The mean of the steps takes the place of a falling rate: a schedule that nobody asked for
        # would count the last steps less.
        if isinstance(given, dict) and given.get("optimizer") == "adamw_schedule_free":
            return {"schedule": "constant", **given}
        return given

    @field_validator("rates")
    @classmethod
    def _above_zero(cls, value: dict[str, float]) -> dict[str, float]:
        if not all(factor > 0 for factor in value.values()):
            raise refused("factors")
        return value

    @field_validator("betas")
    @classmethod
    def _below_one(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not all(0 <= beta < 1 for beta in value):
            raise refused("betas")
        return value

    @field_validator(
        "rows_per_pass",
        "threads",
        "save_every",
        "evaluate_every",
        "evaluate_rows",
        "batch_size",
        "processes",
        mode="before",
    )
    @classmethod
    def _positive(cls, value: Any) -> Any:
        _not_bool(value)
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise refused("below_one")
        return value


class RunConfig(Section):
    """A whole run."""

    model: str
    """hub id · modelscope:ID · ./folder · ./file.gguf · pypi:PACKAGE"""
    adapter: str | None = None
    """Start from this PEFT folder."""
    data: DataConfig
    base: BaseConfig = BaseConfig()
    method: Any = None
    """What part of the model may change; `{kind: lora, ...}`."""
    objective: Any = None
    """What is optimised; `{kind: sft, ...}`."""
    engine: EngineConfig = EngineConfig()
    out: str | None = None
    """The run folder. Default: runs/<data>-<method>-<n>."""
    probes: int | list[str | dict[str, Any]] = 5
    """Questions asked before and after: a list of strings or rows, or how many rows of the data to
    ask."""
    gate: str | None = None
    """A contract that the trained model must keep: it is put to the run after the training, and to
    what is exported from it. Default: none."""
    forgetting: Literal["auto", "off"] = "auto"
    """auto: two dozen general questions before and after, to see what was forgotten; fewer, or
    none, where they would take long beside the training. off: none."""

    track: list[str | dict[str, Any]] = []
    """Trackers that are told what the run writes down, by a process beside it: tensorboard, wandb,
    mlflow, swanlab, trackio, comet. Nothing leaves this machine unless the entry says
    {kind: wandb, online: true}."""

    @field_validator("track", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict) else value

    @field_validator("forgetting", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads a bare `off` as false
