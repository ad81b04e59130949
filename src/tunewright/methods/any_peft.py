"""Any PEFT type by its name (`method: {kind: peft, type: ...}`), its options checked against PEFT's
own configuration."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from tunewright.core.errors import CompatError, ConfigError, problem, raise_all
from tunewright.core.registry import method
from tunewright.core.types import Attached, Model
from tunewright.core.words import say
from tunewright.methods.adalora import schedule_ranks
from tunewright.methods.peft import attach_peft, placing, wrap
from tunewright.methods.prompts import attach_prompt, wrap_prompt
from tunewright.methods.targets import MethodSection, chosen_roles
from tunewright.models.anatomy import Anatomy
from tunewright.models.shape import ModelShape

if TYPE_CHECKING:
    import peft


class PeftConfig(MethodSection):
    """Any method of the installed PEFT, by PEFT's own name and options."""

    type: str
    """PEFT's name of the method, such as LORA, BOFT, HRA, FOURIERFT, LN_TUNING."""
    options: dict[str, Any] = {}
    """Fields of PEFT's config class for that type, such as {r: 8}."""
    targets: list[str] = ["linear"]
    """Roles, groups or module names, where the type sits on modules and the options name none."""

    def trainable_numbers(self, shape: ModelShape) -> int:
        """About as many numbers as a LoRA of that rank has: PEFT's types are many, and none of the
        common ones has more."""
        rank = self.options.get("r", 16)
        return int(
            sum(
                (rank if isinstance(rank, int) else 16) * m.count * (m.inputs + m.outputs)
                for m in map(shape.matrices.__getitem__, chosen_roles(self.targets, shape))
            )
        )


RESERVED = {
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "inference_mode",
    "revision",
    "auto_mapping",
    "peft_version",
}
IMPOSSIBLE = {
    "XLORA": "lora",
    "POLY": "lora",
    "SHADOW": "lora",
    "MULTITASK_PROMPT_TUNING": "prompt_tuning",
    "CPT": "prompt_tuning",
    "CARTRIDGE": "prefix_tuning",
}
"""PEFT types that a run cannot train, and the kind to use instead; the reasons are sentences of the
catalogue."""


@method(
    "peft",
    PeftConfig,
    by="PEFT",
    source="github.com/huggingface/peft",
    trains="what the PEFT type trains",
    needs_weights=True,
)
def peft_type(config: PeftConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """Any PEFT type on the model. Raises ConfigError for a type or option that PEFT does not have,
    CompatError for what cannot be trained here."""
    settings_class = config_class(config)
    options = dict(config.options)
    known = settings_class.__dataclass_fields__
    if "target_modules" in known and not options.get("target_modules"):
        options |= {
            k: v for k, v in placing(model, anatomy.select(config.targets)).items() if k in known
        }
    settings: Any
    try:
        settings = settings_class(**{"task_type": "CAUSAL_LM", **options})
    except (TypeError, ValueError, ImportError) as e:
        cause = str(e).splitlines()[0][:300]
        raise CompatError(
            problem("E-METHOD-24", "method.options", type=config.type, cause=cause)
        ) from e
    if settings.is_prompt_learning:
        return attach_prompt(wrap_prompt(model, settings, base_path))
    wrapped = wrap(model, settings, base_path)
    attached = attach_peft(wrapped)
    if settings.peft_type.value == "ADALORA":
        schedule_ranks(attached, wrapped, 0.1, 0.3, None)
    return attached


def config_class(config: PeftConfig) -> type[peft.PeftConfig]:
    """PEFT's config class for `type`, every option checked against its fields."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    types = {t.value: settings for t, settings in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    name = config.type.upper().replace("-", "_")
    if name not in types:
        guess = difflib.get_close_matches(name, types, n=1, cutoff=0.0)
        raise ConfigError(
            problem(
                "E-METHOD-22",
                "method.type",
                type=config.type,
                guess=guess[0],
                known=", ".join(sorted(types)),
            )
        )
    if name in IMPOSSIBLE:
        reason = say(f"methods.impossible.{name}")
        raise CompatError(
            problem(
                "E-METHOD-25", "method.type", type=name, reason=reason, instead=IMPOSSIBLE[name]
            )
        )
    known = [field for field in types[name].__dataclass_fields__ if field not in RESERVED]
    wrong = []
    for option in config.options:
        if option in RESERVED:
            wrong.append(problem("E-METHOD-26", f"method.options.{option}", option=option))
        elif option not in known:
            guess = difflib.get_close_matches(option, known, n=1, cutoff=0.0)
            wrong.append(
                problem(
                    "E-METHOD-23",
                    f"method.options.{option}",
                    type=name,
                    option=option,
                    guess=guess[0],
                    known=", ".join(known),
                )
            )
    raise_all(wrong, ConfigError)
    return types[name]
