"""Scalar heads beside the output head: `score` (one number for a whole answer) and `value` (what is
still to be won, at every token).

A head is one row of weights over the last hidden state, in float32 whatever the model computes in.
It is a module of the causal model, so that the optimiser, the checkpoints and the finite check see
it as they see every other parameter. A reward run is saved as what Transformers calls a sequence
classifier with one label: PEFT's SEQ_CLS adapter with `score` beside it, or a whole model of that
class. Whoever reads such files puts the stored head on the model (`put_stored_score`); what trains
on from there goes on with it.

A trap of that class: it reads the score at the last token that is not padding, and where padding
and stop token are the same id (SmolLM2, Llama 2) it reads one token too early. What is saved
therefore names another padding id in the configuration; on a base whose configuration says
otherwise, set `model.config.pad_token_id` to an id that no answer ends with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunewright.core.errors import ModelError, problem
from tunewright.core.types import Attached

MODULES = {"score": "score", "value": "value_head"}
"""Head -> the name of its module on the causal model; `score` is Transformers' own name."""
FILES = {"score": "score.safetensors", "value": "value_head.safetensors"}
VALUE_RATE = 20.0
"""The value head's learning rate, as a multiple of the policy's."""
SCORE_KEY = "base_model.model.score.weight"
"""The name of a score head in a PEFT adapter's file."""


class ScalarHead(nn.Module):
    """hidden (..., D) -> (...,) in float32 or wider. `score` has no bias, because Transformers' has
    none; `value` starts at 0 everywhere and has one, which is where the mean reward of a run is
    learnt first."""

    def __init__(self, width: int, device: Any = None, value: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width, dtype=torch.float32, device=device))
        self.bias = (
            nn.Parameter(torch.zeros(1, dtype=torch.float32, device=device)) if value else None
        )
        if not value:
            nn.init.normal_(self.weight, std=1 / (width + 1) ** 0.5)

    def forward(self, hidden: Tensor) -> Tensor:
        """One number a row."""
        wide = torch.promote_types(hidden.dtype, self.weight.dtype)
        found = hidden.to(wide) @ self.weight.to(wide)[0]
        return found if self.bias is None else found + self.bias.to(wide)


def width_of(causal: Any) -> int:
    """D: numbers in a hidden row."""
    return int(causal.config.get_text_config().hidden_size)


def has_score(causal: Any) -> bool:
    """Whether a score head stands on the model."""
    return isinstance(getattr(causal, MODULES["score"], None), ScalarHead)


def put_heads(causal: Any, attached: Attached, wanted: tuple[str, ...]) -> None:
    """Let the heads an objective needs train: the one that a judge brought with it, else a new one.
    A `score` head is saved with the method's own files."""
    for name in wanted:
        if name == "score" and has_score(causal):
            head = causal.score.requires_grad_(True)
        else:
            head = ScalarHead(
                width_of(causal), next(causal.parameters()).device, value=name == "value"
            )
            setattr(causal, MODULES[name], head)
        found = next(full for full, module in attached.model.named_modules() if module is head)
        new = [f"{found}.{part}" for part, _ in head.named_parameters()]
        # A method that trains every weight of a judge has its head among them. The list may be the
        # method's own, which says what its files hold.
        attached.parameters = [
            *attached.parameters,
            *(full for full in new if full not in attached.parameters),
        ]
        if name == "value":
            # It starts from nothing while the policy moves with care, and advantages are only as
            # good as it is.
            attached.rate_factors = {**attached.rate_factors, **dict.fromkeys(new, VALUE_RATE)}
    if "score" in wanted:
        _save_with_score(causal, attached)


def head_module(causal: Any, name: str) -> Any:
    """The head of a model that has one."""
    return getattr(causal, MODULES[name])


def _save_with_score(causal: Any, attached: Attached) -> None:
    save = attached.save

    def save_both(folder: Path) -> None:
        save(folder)
        weight = head_module(causal, "score").weight.detach().cpu().contiguous()
        if attached.saves_model:
            as_classifier(folder, weight)
        elif (folder / "adapter_config.json").is_file():
            _into_adapter(folder, weight)
        else:
            from safetensors.torch import save_file

            save_file({"score.weight": weight}, folder / FILES["score"])

    attached.save = save_both


def _into_adapter(folder: Path, weight: Tensor) -> None:
    """Make a saved PEFT adapter one of a sequence classifier: `score` beside its own tensors."""
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    save_file({**load_file(path), SCORE_KEY: weight}, path, metadata={"format": "pt"})
    described = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    described |= {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    (folder / "adapter_config.json").write_text(
        json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def as_classifier(folder: Path, weight: Tensor, *, tokens: bool = False) -> str:
    """Turn a saved causal model into a sequence classifier with one label, in place; with `tokens`
    into a token classifier, which scores every token, where the family has one. Returns the name of
    the class. Raises ModelError for a family that has none."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    name = (_token_class(config) if tokens else None) or _sequence_class(config, folder)
    head = {"score.weight": weight}
    if not name.endswith("ForSequenceClassification"):
        head["score.bias"] = torch.zeros(1, dtype=weight.dtype)  # that class has one; ours has none
    # Unset or equal to the stop token, the class would read its score at the wrong row.
    stop = config.eos_token_id
    stops = set(stop if isinstance(stop, list) else [stop])
    pad = next(i for i in range(config.get_text_config().vocab_size) if i not in stops)
    for path in sorted(folder.glob("*.safetensors")):
        tensors = {
            k: v for k, v in load_file(path).items() if not k.startswith(("lm_head.", "score."))
        }
        if (
            path.name in ("model.safetensors", "model-00001-of-00001.safetensors")
            or "00001-of" in path.name
        ):
            tensors |= head
        save_file(tensors, path, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = json.loads(index.read_text(encoding="utf-8"))
        first = min(listed["weight_map"].values())
        kept = {
            k: v
            for k, v in listed["weight_map"].items()
            if not k.startswith(("lm_head.", "score."))
        }
        listed["weight_map"] = kept | dict.fromkeys(head, first)
        index.write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    described |= {
        "architectures": [name],
        "id2label": {"0": "score"},
        "label2id": {"score": 0},
        "pad_token_id": pad,
    }
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return name


def _sequence_class(config: Any, folder: Path) -> str:
    from transformers import AutoModelForSequenceClassification

    mapping: Any = AutoModelForSequenceClassification._model_mapping
    if type(config) not in mapping:
        raise ModelError(problem("E-OBJ-31", str(folder), family=config.model_type))
    return str(mapping[type(config)].__name__)


def _token_class(config: Any) -> str | None:
    """The family's token classifier, where its head is one matrix called `score` as that of the
    sequence classifiers is."""
    import copy

    from transformers import AutoModelForTokenClassification

    mapping: Any = AutoModelForTokenClassification._model_mapping
    if type(config) not in mapping:
        return None
    described = copy.deepcopy(config)
    described.num_labels = 1
    with torch.device("meta"):
        made = mapping[type(config)](described)
    head = getattr(made, "score", None)
    return (
        str(type(made).__name__) if isinstance(head, nn.Linear) and head.bias is not None else None
    )


def stored_score(folder: Path) -> Tensor | None:
    """The `score` weight (1, D) of a saved reward run's files, or None where the folder is not one.
    Raises ModelError for a head with a bias that is not 0."""
    from safetensors import safe_open

    for name, key in (("adapter_model.safetensors", SCORE_KEY), (FILES["score"], "score.weight")):
        if (folder / name).is_file():
            with safe_open(folder / name, framework="pt") as stored:
                if key in stored.keys():  # noqa: SIM118 - not a dictionary
                    return stored.get_tensor(key)
    weight = bias = None
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as stored:
            keys = set(stored.keys())
            weight = stored.get_tensor("score.weight") if "score.weight" in keys else weight
            bias = stored.get_tensor("score.bias") if "score.bias" in keys else bias
    if bias is not None and bool(bias.any()):
        raise ModelError(problem("E-METHOD-73", str(folder), found="score.bias"))
    return weight


def put_stored_score(causal: Any, weight: Tensor, folder: Path) -> None:
    """A score head with these weights, read from `folder`, on `causal`, frozen. Raises ModelError
    (E-METHOD-73) for a head that gives several numbers."""
    width = width_of(causal)
    if tuple(weight.shape) != (1, width):
        raise ModelError(
            problem("E-METHOD-73", str(folder), found=" x ".join(map(str, weight.shape)))
        )
    head = ScalarHead(width, next(causal.parameters()).device)
    with torch.no_grad():
        head.weight.copy_(weight)
    head.requires_grad_(False)
    causal.score = head
