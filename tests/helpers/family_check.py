"""Everything that a run needs of a family of models, done once with a tiny random model of it, beside
Transformers and PEFT as oracles. What is found is a row of `tunewright list models`.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from helpers import causal, tiny
from tunewright.bench.certificate import certify
from tunewright.core.config import EngineConfig
from tunewright.core.registry import methods
from tunewright.engine.decoding.batch import Ask
from tunewright.engine.decoding.writer import Writer
from tunewright.engine.loaded import put_new, put_saved, use_layout
from tunewright.engine.opening import Loaded
from tunewright.engine.policy import Policy
from tunewright.engine.rollouts.sampling import How, Sampler
from tunewright.models import anatomy
from tunewright.models.load import load_model

ANSWER = 6
"""Tokens of an answer."""
STEPS = ("load", "roles", "certificate", "save", "merge", "generate", "rollout")


class Check:
    """The steps of one family, in order; each raises AssertionError (or whatever breaks)."""

    def __init__(self, model_type: str, folder: Path) -> None:
        self.model_type, self.folder = model_type, folder
        self.row: dict[str, Any] = {"model_type": model_type}

    def run(self) -> Iterator[tuple[str, Exception | None]]:
        """(step, what went wrong) for each step."""
        for name in STEPS:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    getattr(self, name)()
            except Exception as e:
                yield name, e
                if name in ("load", "roles"):
                    return
            else:
                yield name, None

    def fresh(self, dtype: str = "float32") -> Any:
        """The model as it was loaded."""
        return copy.deepcopy(self.loaded).to(getattr(torch, dtype))

    def load(self) -> None:
        """A saved folder, opened, is the model that was saved."""
        made = causal.model_of(self.model_type)
        self.row["class"] = type(made).__name__
        made.save_pretrained(self.folder)
        if made.config.model_type not in causal.types():
            # The text model of a model of images and words: Transformers opens it by the whole
            # model's configuration alone.
            causal.config_of(self.model_type).save_pretrained(self.folder)
        self.loaded = load_model(self.folder, dtype="float32")
        ids = torch.arange(3, 23)[None]
        with torch.no_grad():
            wanted, found = (m(input_ids=ids, use_cache=False).logits for m in (made, self.loaded))
        assert torch.isfinite(wanted).all()
        assert float((wanted - found).abs().max()) <= 1e-4, "other logits after loading"

    def roles(self) -> None:
        """Blocks, linear layers, and a role for each of them but the named rest."""
        found = anatomy.of(self.loaded)
        self.row["roles"] = list(found.roles)
        self.row["guessed"] = found.guessed
        assert len(found.blocks) >= 2, f"blocks {found.blocks}"
        assert found.linear, "no linear layer"
        assert found.roles.get("embedding"), "no embedding"
        assert any(r.startswith("attention.") for r in found.roles), f"roles {list(found.roles)}"

    def attach(self, model: Any) -> Any:
        """LoRA on every linear layer, as a run puts it on."""
        entry = methods.get("lora")
        assert entry is not None
        return put_new(entry.config(rank=2), model, anatomy.of(model), str(self.folder))

    def placed(self, attached: Any) -> None:
        """LoRA sits on the layers that were chosen and on no others."""
        base = attached.model.get_base_model()
        sits = {name for name, module in base.named_modules() if hasattr(module, "lora_A")}
        chosen = set(anatomy.of(self.loaded).linear)
        assert sits == chosen, f"{sorted(sits ^ chosen)[:4]}"

    def layout_of(self, attached: Any, model: Any) -> str:
        loaded = Loaded(model, attached, causal.VOCABULARY)
        layout, reason = loaded.choose_layout(EngineConfig(), "float32")
        self.row["layout"], self.row["reason"] = layout, reason if layout == "padded" else ""
        return layout

    def certificate(self) -> None:
        """The engine's gradients are those of stock Transformers, one sample at a time: in float32,
        or where rounding alone hides it, in float64 (1e-9) and then in float32 within ten times the
        oracle's own error. The rule is the same for every family."""
        model = self.fresh()
        layout = self.layout_of(self.attach(model), model)
        self.layout = layout
        samples = [*tiny.dialogues()[:3], *tiny.nothing_shared()[:2]]
        for dtypes in (("float32",), ("float64", "float32")):
            found = certify(
                self.fresh, self.attach, samples, dtypes=dtypes, rows_per_pass=(1 << 30,),
                layout=layout, own_loss=self.model_type not in causal.SHIFTED_ELSEWHERE,
            )  # fmt: skip
            worst = max(map(found.worst, dtypes), key=lambda g: g.gap / g.limit)
            self.row["gap"], self.row["proof"] = found.worst(dtypes[0]).gap, dtypes[0]
            if found.passed:
                return
        raise AssertionError(
            f"{worst.dtype} {worst.tensor}: {worst.gap:.1e} > {worst.limit:.1e} ({layout})"
        )

    def save(self) -> None:
        """An adapter that was saved gives on a fresh base what it gave before, here and in PEFT."""
        from peft import PeftModel

        model = self.fresh()
        attached = self.attach(model)
        self.placed(attached)
        tiny.randomise(attached, spread=0.1)
        place = self.folder / "adapter"
        attached.save(place)
        ids = torch.arange(3, 23)[None]
        with torch.no_grad():
            mine = attached.model.eval()(input_ids=ids, use_cache=False).logits
            fresh = self.fresh()
            again = put_saved(fresh, place).model.eval()(input_ids=ids, use_cache=False).logits
            peft = PeftModel.from_pretrained(self.fresh(), place).eval()
            theirs = peft(input_ids=ids, use_cache=False).logits
            self.row["peft"] = float((mine - theirs).abs().max()) <= 1e-4 * float(mine.abs().max())
            plain = self.loaded(input_ids=ids, use_cache=False).logits
        assert float((mine - plain).abs().max()) > 1e-4, "the adapter does nothing"
        assert float((mine - again).abs().max()) <= 1e-4, "other logits when reopened"
        assert self.row["peft"] or self.model_type in causal.LOST_IN_PEFT, "other logits in PEFT"

    def merge(self) -> None:
        """A merged model is the model with the adapter."""
        model = self.fresh()
        attached = self.attach(model)
        tiny.randomise(attached, spread=0.1)
        ids = torch.arange(3, 23)[None]
        with torch.no_grad():
            mine = attached.model.eval()(input_ids=ids, use_cache=False).logits
        self.row["merge"] = attached.merge is not None
        if attached.merge is None:
            return
        with torch.no_grad():
            merged = attached.merge().eval()(input_ids=ids, use_cache=False).logits
        assert float((mine - merged).abs().max()) <= 1e-3 * float(mine.abs().max())

    def generate(self) -> None:
        """Greedy answers are those of Transformers' own `generate`, and each token is computed
        once."""
        model, prompts = self.fresh(), _prompts()
        plain = self.model_type in causal.GENERATES_OTHERWISE
        wanted = [_greedy(self.fresh(), p, plain) for p in prompts]
        count = _Counted(model)
        writer = Writer(Policy(model, model, "tree"), frozenset(), needs_layout="any")
        asks = [Ask(list(p), ANSWER) for p in prompts]
        with count:
            found = [one[0].tokens for one in writer.write(asks)]
        self.row["cache"] = _kind(writer, prompts[0])
        assert found == wanted, f"{found} are not {wanted}"

    def rollout(self) -> None:
        """The log-probabilities of drawn tokens are those of a plain pass."""
        model = self.fresh()
        attached = self.attach(model)
        tiny.randomise(attached, spread=0.05)
        layout = self.row.get("layout", "padded")
        use_layout(model, layout)
        policy = Policy(attached.model, model, layout)
        drawn = Sampler(policy, frozenset()).draw(_prompts(), How(2, ANSWER), 7, 2)
        use_layout(model, "padded")
        for prompt, answers in zip(_prompts(), drawn, strict=True):
            for one in answers:
                ids = torch.tensor([prompt + one.tokens])
                with torch.no_grad():
                    z = attached.model.eval()(input_ids=ids, use_cache=False).logits[0]
                    z = z[-len(one.tokens) - 1 : -1]
                own = torch.log_softmax(z, -1).gather(1, torch.tensor(one.tokens)[:, None])[:, 0]
                gap = float((own - torch.tensor(one.logprobs)).abs().max())
                assert gap <= 1e-3, f"log-probabilities of a draw are off by {gap:.1e}"


class _Counted:
    """Inside, rows that pass through the embedding are counted."""

    def __init__(self, model: Any) -> None:
        self.table, self.rows = model.get_input_embeddings(), 0

    def __enter__(self) -> None:
        def seen(module: Any, given: Any, out: Any) -> None:
            self.rows += out.shape[:-1].numel()

        self.hook = self.table.register_forward_hook(seen)

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


def _kind(writer: Writer, prompt: list[int]) -> str:
    with writer.ways.opened(prompt, shared=False) as way:
        if type(way).__name__ == "TreeWay":
            return "tree"
        way.read([prompt], 1)
        return "none" if way.cache is None else "joined" if way.joins else "own"


def _prompts() -> list[list[int]]:
    draw = random.Random(4)
    return [tiny.words(draw, length) for length in (9, 14)]


def _greedy(model: Any, prompt: list[int], plain: bool) -> list[int]:
    """What Transformers writes; `plain`: by the model's forward alone, token by token."""
    ids = torch.tensor([prompt])
    # Decoders of translation models end every text with a token of their own.
    model.generation_config.forced_eos_token_id = None
    model.generation_config.forced_bos_token_id = None
    settings: dict[str, Any] = {
        "attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": ANSWER,
        "min_new_tokens": ANSWER, "eos_token_id": None, "pad_token_id": 0,
    }  # fmt: skip
    with torch.inference_mode():
        try:
            if plain:
                raise ValueError
            out = model.generate(input_ids=ids, **settings)[0]
        except (AttributeError, TypeError, ValueError, RuntimeError):
            # Transformers' own loop cannot run this class: the model's forward, token by token.
            out = ids[0]
            for _ in range(ANSWER):
                z = model(input_ids=out[None], use_cache=False).logits[0, -1]
                out = torch.cat([out, z.argmax()[None]])
    written: list[int] = out[len(prompt) :].tolist()
    return written
