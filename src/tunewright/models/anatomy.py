"""What the parts of a model are called: roles (`attention.query`, `mlp.down`) to the modules of
each family.

A method names roles, so that it is written once for all families. The cards are data
(`assets/anatomies.json`), matched by the config's `model_type`; a family without a card is read
from module names and shapes, and says so. Works on models on the meta device: only names, classes
and shapes are looked at. Source of the idea: the adapter interface of AdapterHub (Poth et al.
2023).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunewright.core.errors import ModelError, Problem, problem, raise_all
from tunewright.core.families import cards
from tunewright.core.words import say

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROLES = (
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.qkv",
    "attention.gate",
    "attention.output",
    "mlp.gate",
    "mlp.up",
    "mlp.gate_up",
    "mlp.down",
    "experts.gate_up",
    "experts.gate",
    "experts.up",
    "experts.down",
    "router",
    "norm",
    "embedding",
    "head",
)
GROUPS = ("attention", "mlp", "experts")
"""Words for all roles that begin so."""
EXPERTS = {
    "gate_up_proj": "experts.gate_up",
    "gate_proj": "experts.gate",
    "up_proj": "experts.up",
    "down_proj": "experts.down",
}
"""Tensors that hold one matrix for each expert, by their own names."""
WHOLE = ("all", "linear", "all-linear")
"""Words for every linear module inside the blocks."""
FUSED = {
    "attention.query": "attention.qkv",
    "attention.key": "attention.qkv",
    "attention.value": "attention.qkv",
} | {"mlp.gate": "mlp.gate_up", "mlp.up": "mlp.gate_up"}
NAMES = {
    "attention.qkv": {
        "qkv_proj",
        "qkv",
        "c_attn",
        "query_key_value",
        "Wqkv",
        "W_pack",
        "att_proj",
        "in_proj",
        "in_proj_qkv",
        "in_proj_qkvz",
        "linear_x",
    },
    "attention.query": {"q_proj", "query", "q", "wq", "q_lin", "to_q", "q_a_proj", "q_b_proj"},
    "attention.key": {"k_proj", "key", "k", "wk", "k_lin", "to_k", "kv_a_proj_with_mqa"},
    "attention.value": {"v_proj", "value", "v", "wv", "v_lin", "to_v", "kv_b_proj"},
    "attention.output": {
        "o_proj",
        "out_proj",
        "dense",
        "wo",
        "o",
        "c_proj",
        "out_lin",
        "to_out",
        "attn_out",
        "linear_out",
        "output",
    },
}
"""Names in the part of a block that mixes tokens: attention, linear attention, a state space, a
convolution."""
FORWARD_NAMES = {
    "mlp.gate": {"gate_proj", "w1", "gate"},
    "mlp.gate_up": {"gate_up_proj", "wi", "gate_and_up_proj", "input_linear"},
    "mlp.up": {"up_proj", "w3", "fc1", "c_fc", "fc_in", "dense_h_to_4h"},
    "mlp.down": {"down_proj", "w2", "fc2", "c_proj", "fc_out", "dense_4h_to_h", "output_linear"},
}
MIXING = ("attn", "attention", "mixer", "mamba", "ssm", "conv", "temporal", "recurrent", "time_mix")
FORWARD = ("mlp", "feed_forward", "feedforward", "ffn", "ffw", "moe", "expert")
ROUTERS = {"gate", "router", "shared_expert_gate"}


@dataclass(frozen=True)
class Anatomy:
    """The modules of one model by role. All lists hold module names as `named_modules` gives them,
    in the order of the model."""

    family: str
    roles: dict[str, list[str]]
    blocks: list[str]
    guessed: bool = False
    """True when no card exists for this model type and the roles were read from names and shapes.
    """
    notes: list[str] = field(default_factory=list)
    linear: list[str] = field(default_factory=list)
    """Every linear module inside the blocks, routers of experts left out."""
    modules: list[str] = field(default_factory=list)
    """Every module that has weights of its own."""
    parameters: list[str] = field(default_factory=list)
    """Tensors that stand in a role without a module of their own: those that hold a matrix for each
    expert, and the weights of routers. They are selected by `experts`, by their roles and by name,
    never by `linear`."""
    past: list[str] = field(default_factory=list)
    """Linear modules whose weights the family reads without calling them: what is put on such a
    module does not act. Left out of groups and roles."""

    def select(self, targets: list[str], *, tensors: bool = False) -> list[str]:
        """Module names for roles (`attention.query`), groups (`attention`, `mlp`, `experts`, `all`)
        and plain module names (`q_proj`), each once; with `tensors` also names of `parameters`.

        Raises ModelError naming every target that matches nothing, with the roles this model has
        and a guess, and every one that matches tensors which the caller cannot take.
        """
        found: set[str] = set()
        wrong: list[Problem] = []
        for target in targets:
            names = [
                name
                for name in self._matches(target)
                if name not in self.past or name.rpartition(".")[2] == target or name == target
            ]
            found.update(names)
            if not names:
                wrong.append(self._no_match(target))
            elif not tensors and not set(names).isdisjoint(self.parameters):
                first = next(name for name in names if name in self.parameters)
                wrong.append(problem("E-MODEL-90", target, target=target, module=first))
        raise_all(wrong, ModelError)
        return [name for name in (*self.modules, *self.parameters) if name in found]

    def parts_of_blocks(self, name: str) -> list[str]:
        """Modules inside the blocks that hold layers and go by `name`, such as `self_attn`. None
        for what is a role, a group or a layer."""
        if name in (*WHOLE, *GROUPS, *self.roles):
            return []
        found: dict[str, None] = {}
        for module in self.modules:
            block = next((b for b in self.blocks if module.startswith(f"{b}.")), None)
            if block is None:
                continue
            holders = module[len(block) + 1 :].split(".")[:-1]
            if name in holders:
                found[".".join([block, *holders[: holders.index(name) + 1]])] = None
        return list(found)

    def role_of(self, module: str) -> str | None:
        """The role of a module, or None."""
        return next((role for role, names in self.roles.items() if module in names), None)

    def _matches(self, target: str) -> list[str]:
        if target in WHOLE:
            return self.linear
        if target in self.roles:
            return self.roles[target]
        if target in GROUPS:
            return [
                name
                for role, names in self.roles.items()
                if role.startswith(f"{target}.")
                for name in names
            ]
        modules = [name for name in self.modules if name == target or name.endswith(f".{target}")]
        # A layer comes before a tensor of the same name: `down_proj` is the dense one.
        return modules or [
            name for name in self.parameters if name == target or name.endswith(f".{target}")
        ]

    def _no_match(self, target: str) -> Problem:
        has = ", ".join(r for r in ROLES if r in self.roles)
        fused = FUSED.get(target)
        if target.removesuffix("_proj") in ("gate", "up") and "experts.gate_up" in self.roles:
            fused = "experts.gate_up"
        if fused in self.roles:
            return problem(
                "E-MODEL-36",
                target,
                target=target,
                fused=fused,
                module=self.roles[fused][0],
                family=self.family,
            )
        parts = [role for role, whole in FUSED.items() if whole == target and role in self.roles]
        if parts:
            return problem(
                "E-MODEL-37", target, target=target, parts=", ".join(parts), family=self.family
            )
        groups = [
            group for group in GROUPS if any(role.startswith(f"{group}.") for role in self.roles)
        ]
        words = [
            *self.roles,
            *groups,
            "all",
            *sorted({name.rpartition(".")[2] for name in self.modules}),
        ]
        close = difflib.get_close_matches(target, words, n=1, cutoff=0.5)
        # A part that this family does not have has no other spelling; and nobody is asked whether
        # he meant what he wrote.
        known = target in ROLES or target in GROUPS
        hint = "" if known else say("models.target_guess", guess=close[0] if close else "all")
        listed = "".join(f"{group}, " for group in groups)
        return problem(
            "E-MODEL-35",
            target,
            target=target,
            has=has,
            hint=hint,
            groups=listed,
            family=self.family,
        )


def of(model: PreTrainedModel) -> Anatomy:
    """The anatomy of a model. Reads names, classes and shapes, so a model on the meta device will
    do.

    Raises ModelError when no repeated blocks can be found.
    """
    family, model_type = model_types(model.config)
    card = cards().get(model_type)
    by_name = dict(model.named_modules())
    blocks = _blocks(by_name, card["blocks"] if card else ())
    if not blocks:
        raise ModelError(problem("E-MODEL-38", model_type=family))
    linear = [
        n
        for b in blocks
        for n, m in by_name.items()
        if n.startswith(f"{b}.") and is_linear(m) and not _is_router(n, by_name)
    ]
    notes: list[str] = []
    roles = _from_card(card["roles"], blocks, by_name) if card else {}
    if not any(r.startswith("attention.") for r in roles):
        # A card that fits nothing is no better than none: the installed Transformers may have
        # renamed the modules.
        card, roles = (
            None,
            _from_shapes(
                linear, by_name, getattr(model.config.get_text_config(), "hidden_size", None)
            ),
        )
        notes.append(say("models.anatomy_guessed", model_type=model_type, roles=", ".join(roles)))
    roles |= _outside_blocks(model, by_name)
    past = [n for n in linear if _is_read_past(n, by_name)]
    if past:
        notes.append(
            say("models.read_past", modules=", ".join(sorted({n.rpartition(".")[2] for n in past})))
        )
        linear = [n for n in linear if n not in past]
    whole = _expert_roles(blocks, by_name)
    roles |= whole
    tensors = [n for names in whole.values() for n in names if n not in by_name]
    experts = [
        n
        for b in blocks
        for n, m in by_name.items()
        if n.startswith(f"{b}.") and _holds_fused_experts(n, m)
    ]
    if experts:
        notes.append(say("models.experts_fused", module=experts[0]))
    own = [
        n
        for n, m in by_name.items()
        if n and (is_linear(m) or next(m.parameters(recurse=False), None) is not None)
    ]
    return Anatomy(
        model_type,
        {r: roles[r] for r in ROLES if roles.get(r)},
        blocks,
        card is None,
        notes,
        linear,
        own,
        tensors,
        past,
    )


def model_types(config: Any) -> tuple[str, str]:
    """(the model's own type, the type of its language model): they differ where images or sound
    come in as well."""
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    return str(config.model_type), str(text.model_type)


def body_of(causal: Any) -> Any:
    """The causal model without its head. Llama 4's text model states a name that it has not."""
    found = getattr(causal, causal.base_model_prefix, None)
    return getattr(causal, "model", causal) if found is None else found


def is_linear(module: Any) -> bool:
    """A matrix product with a weight of two dimensions: torch's Linear and its quantised kin, and
    GPT-2's Conv1D."""
    kind = type(module).__name__
    # DeepSeek-V4's grouped product gives each group of rows a part of the weight of its own.
    if (
        "Embedding" in kind
        or "Grouped" in kind
        or not (
            (hasattr(module, "in_features") and hasattr(module, "out_features")) or kind == "Conv1D"
        )
    ):
        return False
    # The weight of a quantised layer is made when it is read, so here it is only looked for.
    return (
        getattr(module, "_parameters", {}).get("weight") is not None
        or hasattr(type(module), "weight")
        or "weight" in vars(module)
    )


def shape_of(module: Any) -> tuple[int, int]:
    """(inputs, outputs) of a linear module, whatever way its weight lies."""
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)
    return int(module.weight.shape[0]), int(module.weight.shape[1])


def _blocks(by_name: dict[str, Any], preferred: tuple[str, ...] | list[str]) -> list[str]:
    """Names of the repeated blocks: the list a card names, else the longest list of modules of one
    class that hold linear modules."""
    lists = [
        (name, list(m.named_children()))
        for name, m in by_name.items()
        if type(m).__name__ == "ModuleList"
    ]
    lists = [
        (name, children)
        for name, children in lists
        if children and any(is_linear(x) for x in children[0][1].modules())
    ]
    # Towers for images and sound have blocks too; the language model's list is what is adapted.
    speech = [
        (n, c)
        for n, c in lists
        if not any(
            word in n for word in ("vision", "visual", "audio", "image", "encoder", "experts")
        )
    ]
    named = [(n, c) for n, c in speech if n.rpartition(".")[2] in preferred]
    best = max(
        named or speech or lists,
        key=lambda entry: (-entry[0].count("."), len(entry[1])),
        default=None,
    )
    return [f"{best[0]}.{child}" for child, _ in best[1]] if best else []


def _from_card(
    card_roles: dict[str, list[str]], blocks: list[str], by_name: dict[str, Any]
) -> dict[str, list[str]]:
    """The card's roles, with only the modules that are there: layers of one model may differ (dense
    and expert blocks)."""
    return {
        role: [f"{b}.{p}" for b in blocks for p in places if is_linear(by_name.get(f"{b}.{p}"))]
        for role, places in card_roles.items()
    }


def _from_shapes(
    linear: list[str], by_name: dict[str, Any], width: int | None
) -> dict[str, list[str]]:
    """Roles of the linear modules of blocks, by their own names, the parts they stand in and their
    shapes."""
    outputs = {
        name.rpartition(".")[0] for name in linear if _named(name, NAMES) == "attention.output"
    }
    roles: dict[str, list[str]] = {}
    for name in linear:
        inside = any(name.startswith(f"{part}.") for part in outputs)
        role = _guess(name, shape_of(by_name[name]), inside, width)
        if role:
            roles.setdefault(role, []).append(name)
    return {role: roles[role] for role in ROLES if role in roles}


def _named(name: str, names: dict[str, set[str]]) -> str | None:
    last = name.rpartition(".")[2]
    return next((role for role, those in names.items() if last in those), None)


def _guess(name: str, shape: tuple[int, int], has_output: bool, width: int | None) -> str | None:
    """A role from the module's own name, the part it stands in, and which way it widens.
    `has_output`: its part has a module that is the output by name.

    What stands in such a part and is none of query, key, value and output steers the mixing: a
    gate, a decay, a step size. `width`: a hidden row's.
    """
    part = name.lower().rpartition(".")[0]
    own = part.rpartition(".")[2]
    forward = any(word in own for word in FORWARD)
    mixing = not forward and any(word in part for word in MIXING)
    in_forward = _named(name, FORWARD_NAMES)
    if forward or (in_forward and name.rpartition(".")[2] not in ("gate", "c_proj")):
        return in_forward or _by_width(shape, width)
    role = _named(name, NAMES)
    if role and (mixing or role != "attention.output"):
        return role
    if mixing:
        return (
            "attention.gate" if has_output else "attention.output" if shape[0] >= shape[1] else None
        )
    return in_forward or _by_width(shape, width)


def _by_width(shape: tuple[int, int], width: int | None) -> str | None:
    """Up or down, where a matrix leads from a hidden row to a wider one or back; small side paths
    are neither."""
    inputs, outputs = shape
    if width is not None and (min(shape) != width or inputs == outputs):
        return None
    return None if inputs == outputs else "mlp.up" if outputs > inputs else "mlp.down"


def _outside_blocks(model: PreTrainedModel, by_name: dict[str, Any]) -> dict[str, list[str]]:
    """Norms wherever they stand, the token embedding, and the output head."""

    def name_of(module: Any) -> Iterator[str]:
        return (n for n, m in by_name.items() if module is not None and m is module)

    norms = [
        n
        for n, m in by_name.items()
        if "Norm" in type(m).__name__ and getattr(m, "weight", None) is not None
    ]
    head = model.get_output_embeddings()
    return {
        "norm": norms,
        "embedding": list(name_of(model.get_input_embeddings()))[:1],
        "head": list(name_of(head))[:1],
    }


def _is_router(name: str, by_name: dict[str, Any]) -> bool:
    """A linear module that only chooses experts: adapting it changes who answers, not how."""
    for inner in (name, name.rpartition(".")[0]):
        path, _, last = inner.rpartition(".")
        if last in ROUTERS and any(
            "experts" in n.removeprefix(f"{path}.") for n in by_name if n.startswith(f"{path}.")
        ):
            return True
    return False


def _expert_roles(blocks: list[str], by_name: dict[str, Any]) -> dict[str, list[str]]:
    """Role -> names of the tensors that hold all experts, and of what chooses among them: a plain
    linear layer, or the weight of a module that does more."""
    roles: dict[str, list[str]] = {}
    for name, module in by_name.items():
        if not any(name.startswith(f"{block}.") for block in blocks):
            continue
        if "expert" in name.rpartition(".")[2]:
            for own, p in module.named_parameters(recurse=False):
                if p.dim() == 3 and own in EXPERTS:
                    roles.setdefault(EXPERTS[own], []).append(f"{name}.{own}")
        last = name.rpartition(".")[2]
        if last == "shared_expert_gate":  # it weighs one expert and chooses none
            continue
        if (last in ROUTERS or "Router" in type(module).__name__) and _is_router(name, by_name):
            weight = getattr(module, "_parameters", {}).get("weight")
            if type(module).__name__ == "Linear":
                roles.setdefault("router", []).append(name)
            elif weight is not None and weight.dim() == 2:
                roles.setdefault("router", []).append(f"{name}.weight")
    return roles


def _is_read_past(name: str, by_name: dict[str, Any]) -> bool:
    """A linear module that is not called: kernels of state spaces take all matrices but the first
    as tensors, AltUp clips one of its own."""
    part, _, last = name.rpartition(".")
    kind = type(by_name.get(part)).__name__
    states = "Mamba" in kind or part.endswith(".mamba")
    return (states and last in ("x_proj", "dt_proj", "out_proj")) or (
        "AltUp" in kind and last == "correction_coefs"
    )


def _holds_fused_experts(name: str, module: Any) -> bool:
    """Experts stored as one parameter of three dimensions: no module of its own for each, so
    nothing to attach to."""
    return "expert" in name and any(p.dim() == 3 for p in module.parameters(recurse=False))
