"""Everything that is to be known on the day a GPU is there, in one command and one JSON file.

    python benchmarks/gpu.py --minutes 8 --out gpu.json
    python benchmarks/gpu.py --tiny --device cpu          # every part, on tiny shapes: seconds

In this order, each as long as the time allows; the file is written anew after every part:

1. the certificate of each attention back end in float32 on the device;
2. step time, tokens a second, share of the device's peak and peak memory of random models of the
   shapes of Qwen2.5-7B and Llama-3.1-8B, LoRA on all linear layers and QLoRA, on short chat rows,
   on rows that share prompts and on rows of 8,192 tokens;
3. the same rows through plain PEFT with SDPA and with flash attention over packed rows, in a
   process of its own on the same device;
4. a DPO step and the update of a GRPO round;
5. the estimated memory beside the measured one.

Logical tokens are those of all rows, shared ones counted each time; physical ones are computed.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "src"))

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-7b": {
        "model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28, "intermediate_size": 18_944,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152_064,
    },
    "llama-3.1-8b": {
        "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14_336,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256,
    },
}  # fmt: skip
TINY = {"hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320}  # fmt: skip
WARM, STEPS = 2, 8
"""Steps before time is taken, and most steps of which it is."""


@dataclass
class Bench:
    """What every part needs."""

    device: str
    tiny: bool
    deadline: float

    @property
    def dtype(self) -> str:
        """What everything computes in."""
        return "float32" if self.tiny else "bfloat16"

    @property
    def warm(self) -> int:
        """Steps before time is taken: kernels are compiled and memory is found in them."""
        return 1 if self.tiny else WARM

    @property
    def steps(self) -> int:
        """Steps of a measurement, those before time is taken included."""
        return self.warm + (2 if self.tiny else STEPS)

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.perf_counter()

    def wait(self) -> None:
        """Until the device has done what was asked of it."""
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()

    def sizes(self, name: str) -> dict[str, Any]:
        """The configuration of a shape."""
        own = SHAPES[name]
        return {"model_type": own["model_type"], **TINY} if self.tiny else dict(own)

    def build(self, name: str, dtype: str | None = None) -> Any:
        """A model of this shape with random weights, on the device."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        sizes = self.sizes(name)
        config = AutoConfig.for_model(
            sizes.pop("model_type"), **sizes, max_position_embeddings=32_768,
            tie_word_embeddings=False, pad_token_id=0,
        )  # fmt: skip
        torch.manual_seed(0)
        with torch.device(self.device):
            model = AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, dtype or self.dtype)
            )
        model.name_or_path = name
        return model.requires_grad_(False).eval()

    def peak(self) -> int:
        """Largest number of bytes since `forget_peak`; on a CPU of the process, ever."""
        from tunewright.core.machine import peak_memory_bytes

        return peak_memory_bytes(self.device)

    def forget_peak(self) -> None:
        """Free what is kept and measure the peak anew."""
        import gc

        import torch

        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


# ---- rows


def words(draw: random.Random, count: int, vocabulary: int) -> list[int]:
    """Random token ids; the first three are kept for special tokens."""
    return [draw.randrange(3, vocabulary) for _ in range(count)]


def rows_of(kind: str, bench: Bench, vocabulary: int) -> list[list[tuple[list[int], int]]]:
    """Steps of (tokens, where the answer begins)."""
    draw, scale = random.Random(kind), 16 if bench.tiny else 1
    system = words(draw, 40 // (4 if bench.tiny else 1), vocabulary)

    def one(question: list[int], answer: int) -> tuple[list[int], int]:
        return question + words(draw, max(2, answer), vocabulary), len(question)

    def step() -> list[tuple[list[int], int]]:
        if kind == "chat":
            return [
                one(
                    system + words(draw, draw.randrange(20, 120) // scale + 1, vocabulary),
                    draw.randrange(40, 240) // scale,
                )
                for _ in range(32)
            ]
        if kind == "shared":
            rows = []
            for _ in range(4):
                prompt = words(draw, 1024 // scale, vocabulary)
                rows += [one(prompt, draw.randrange(96, 160) // scale) for _ in range(8)]
            return rows
        return [one(words(draw, 4096 // scale, vocabulary), 4096 // scale) for _ in range(2)]

    return [step() for _ in range(bench.steps)]


def samples_of(rows: list[tuple[list[int], int]]) -> list[Any]:
    """Rows as samples whose answers are learnt."""
    from tunewright.core.types import Branch, Sample

    return [
        Sample([Branch(t, list(range(a, len(t))), [1.0] * (len(t) - a))], i)
        for i, (t, a) in enumerate(rows)
    ]


# ---- ours


def stepper_of(
    bench: Bench, shape: str, bits: int | None, objective: str = "sft", **said: Any
) -> Any:
    """What takes the steps, as a run would put it together."""
    import torch

    from tunewright.core.config import EngineConfig
    from tunewright.core.registry import methods, objectives
    from tunewright.engine import attention
    from tunewright.engine.loaded import put_new, use_layout
    from tunewright.engine.optim import optimizer_for
    from tunewright.engine.policy import Policy
    from tunewright.engine.rollouts.rounds import RoundStepper
    from tunewright.engine.step import Stepper
    from tunewright.models import anatomy
    from tunewright.models.kernels.fused import accelerate

    causal = bench.build(shape)
    if bits is not None:
        from tunewright.models.quantised import quantise_model

        quantise_model(causal, "nf4", True, device=None if bench.device == "cpu" else bench.device)
    accelerate(causal)
    method = methods.get("lora").config(rank=16, targets=["linear"])
    attached = put_new(method, causal, anatomy.of(causal), shape)
    use_layout(causal, "tree")
    engine = EngineConfig(attention="flex" if bench.tiny else "auto")
    policy = Policy(attached.model, causal, "tree")
    policy.attention, why = attention.choose(engine, causal, "tree", bench.device, bench.dtype)
    entry = objectives.get(objective)
    made = entry.function(entry.config(**said))
    rows = 4096 if not bench.tiny else 512
    parts = (policy, attached, made, optimizer_for(engine, attached, causal), rows, 1.0, 0)
    torch.manual_seed(0)
    stepper: Any = (
        RoundStepper(*parts, rollouts=made.rollouts) if made.rollouts else Stepper(*parts)
    )
    stepper.why = why
    return stepper


def timed(bench: Bench, take: Callable[[int], Any], share: float) -> tuple[list[float], list[Any]]:
    """(seconds of the steps after the first, what each gave), at most `share` seconds in all."""
    seconds, reports, until = [], [], time.perf_counter() + min(share, bench.left())
    for number in range(bench.steps):
        bench.wait()
        start = time.perf_counter()
        found = take(number)
        bench.wait()
        if number >= bench.warm:
            seconds.append(time.perf_counter() - start)
            reports.append(found)
            if time.perf_counter() > until:
                break
    return seconds, reports


def speed_of(
    bench: Bench, shape: str, seconds: list[float], logical: list[int], physical: list[int]
) -> dict[str, Any]:
    """Seconds of a step (median), tokens per second (`logical`: of the rows; `physical`: computed), the
    share of the device's peak, and the largest memory in bytes."""
    from tunewright.advise.fit import ModelShape

    count = ModelShape.from_config(bench.sizes(shape))
    whole, middle = sum(seconds), statistics.median(seconds)
    # Forward and backward through frozen weights: 4 operations a weight and token.
    reached = 4 * count.parameters * sum(physical) / whole
    peak = peak_flops(bench)
    return {
        "step_seconds": middle,
        "logical_tokens_per_second": sum(logical) / whole,
        "physical_tokens_per_second": sum(physical) / whole,
        "share_of_peak": reached / peak if peak else None,
        "peak_memory_bytes": bench.peak(),
        "steps": len(seconds),
    }


def peak_flops(bench: Bench) -> float | None:
    """What the maker states for this device, where it is known."""
    if not bench.device.startswith("cuda"):
        return None
    import torch

    from tunewright.advise.devices import all_devices

    name = torch.cuda.get_device_name(bench.device).casefold().replace("nvidia", "").split()
    for device in all_devices():
        if device.tflops and device.name.casefold().split()[0] in name:
            return device.tflops * 1e12
    return None


def ours(bench: Bench, shape: str, bits: int | None, kind: str, share: float) -> dict[str, Any]:
    """Steps of supervised fine-tuning on rows of this kind."""
    bench.forget_peak()
    stepper = stepper_of(bench, shape, bits)
    steps = [samples_of(rows) for rows in rows_of(kind, bench, bench.sizes(shape)["vocab_size"])]
    seconds, reports = timed(bench, lambda n: stepper.step(steps[n], n + 1, 1e-4), share)
    logical = [r.logical_tokens for r in reports]
    found = speed_of(bench, shape, seconds, logical, [r.physical_rows for r in reports])
    return found | {
        "attention": stepper.policy.attention,
        "why": stepper.why,
        "losses": [r.loss for r in reports],
    }


# ---- plain PEFT


def plain(bench: Bench, shape: str, way: str, kind: str, share: float) -> dict[str, Any]:
    """PEFT's LoRA on Transformers' model with PyTorch's AdamW: `sdpa` over padded batches, or
    `flash` over rows that are packed behind one another."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = bench.build(shape)
    # On tiny shapes SDPA stands in for flash attention, so that packed rows have been run.
    stock = way == "sdpa" or bench.tiny
    model.set_attn_implementation("sdpa" if stock else "flash_attention_2")
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    model.train()
    learns = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learns, lr=1e-4)
    steps = rows_of(kind, bench, bench.sizes(shape)["vocab_size"])

    def take(number: int) -> tuple[int, int]:
        rows, computed = steps[number], 0
        count = sum(len(t) - a for t, a in rows)
        for batch in batches(rows, way):
            given = (padded if way == "sdpa" else packed)(batch, bench.device)
            computed += given["input_ids"].numel()
            model(**given, num_items_in_batch=count, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(learns, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return sum(len(t) for t, _ in rows), computed

    seconds, reports = timed(bench, take, share)
    return speed_of(bench, shape, seconds, *map(list, zip(*reports, strict=True)))


def batches(rows: list[tuple[list[int], int]], way: str) -> Iterator[list[tuple[list[int], int]]]:
    """Rows of like length together, about 4,096 tokens at once, one row at least."""
    batch: list[tuple[list[int], int]] = []
    for row in sorted(rows, key=lambda one: -len(one[0])):
        size = sum(len(t) for t, _ in batch) + len(row[0])
        if way == "sdpa" and batch:
            size = (len(batch) + 1) * len(batch[0][0])
        if batch and size > 4096:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def padded(batch: list[tuple[list[int], int]], device: str) -> dict[str, Any]:
    """A batch as rows of one length (B, T)."""
    import torch

    wide = max(len(t) for t, _ in batch)
    ids = torch.tensor([t + [0] * (wide - len(t)) for t, _ in batch])
    mask = torch.tensor([[1] * len(t) + [0] * (wide - len(t)) for t, _ in batch])
    labels = torch.tensor([[-100] * a + t[a:] + [-100] * (wide - len(t)) for t, a in batch])
    found = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: x.to(device) for name, x in found.items()}


def packed(batch: list[tuple[list[int], int]], device: str) -> dict[str, Any]:
    """A batch as one row (1, T), its samples told apart by their positions."""
    import torch

    ids = [w for t, _ in batch for w in t]
    labels = [w for t, a in batch for w in [-100] * a + t[a:]]
    positions = [i for t, _ in batch for i in range(len(t))]
    found = {"input_ids": ids, "labels": labels, "position_ids": positions}
    return {name: torch.tensor([x], device=device) for name, x in found.items()}


def peer(bench: Bench, shape: str, way: str, kind: str, share: float) -> dict[str, Any]:
    """`plain` in a process of its own, so that neither finds the other's memory."""
    words_ = ["--peer", shape, way, kind, "--seconds", str(min(share, bench.left()))]
    command = [sys.executable, __file__, "--device", bench.device, *words_]
    done = subprocess.run(
        [*command, *(["--tiny"] if bench.tiny else [])],
        capture_output=True, text=True, timeout=max(60.0, bench.left() + 60), check=False,
    )  # fmt: skip
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["?"])[-1][:300]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


# ---- the parts


def certificates(bench: Bench) -> dict[str, Any]:
    """Gradients of each back end against stock Transformers, one sample at a time."""
    import torch

    from tunewright.bench.certificate import certify
    from tunewright.core.registry import methods
    from tunewright.engine.loaded import put_new
    from tunewright.models import anatomy

    draw, samples = random.Random(0), []
    trunk = words(draw, 150, 300)
    for length in (40, 90, 7):
        rows = trunk[: 150 - length] + words(draw, length, 300)
        samples += samples_of([(rows, len(rows) // 2)])
    families = {
        "llama": {},
        "mistral": {"sliding_window": 32},
        "gemma2": {"sliding_window": 32, "attn_logit_softcapping": 20.0, "head_dim": 16},
    }
    found = {}
    for family, more in families.items():

        def build(dtype: str, family: str = family, more: dict[str, Any] = more) -> Any:
            from transformers import AutoConfig, AutoModelForCausalLM

            config = AutoConfig.for_model(
                family, **{**TINY, **more}, pad_token_id=0, attention_dropout=0.0
            )
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            return model.to(bench.device, getattr(torch, dtype)).requires_grad_(False).eval()

        def attach(model: Any) -> Any:
            return put_new(methods.get("lora").config(rank=4), model, anatomy.of(model), "random")

        for backend in ("blocks", "flex"):
            try:
                one = certify(
                    build, attach, samples, dtypes=("float32",), attention=backend,
                    rows_per_pass=(1 << 30, 1),
                )  # fmt: skip
                worst = one.worst("float32")
                found[f"{family} {backend}"] = {
                    "passed": one.passed, "gap": worst.gap, "limit": worst.limit,
                }  # fmt: skip
            except Exception as e:
                found[f"{family} {backend}"] = {"passed": False, "error": str(e)[:300]}
    return found


def preferences(bench: Bench, shape: str, share: float) -> dict[str, Any]:
    """Steps of DPO: 8 pairs of answers of 128 tokens to prompts of 512."""
    from tunewright.core.types import Branch, Sample
    from tunewright.engine.oracles.reference import ReferenceStore

    bench.forget_peak()
    draw, scale = random.Random(0), 16 if bench.tiny else 1
    vocabulary = bench.sizes(shape)["vocab_size"]

    def pair(index: int) -> Any:
        prompt = words(draw, 512 // scale, vocabulary)
        branches = []
        for role in ("chosen", "rejected"):
            tokens = prompt + words(draw, 128 // scale, vocabulary)
            learnt = list(range(len(prompt), len(tokens)))
            branches.append(Branch(tokens, learnt, [1.0] * len(learnt), role=role))
        return Sample(branches, index)

    steps = [[pair(8 * n + i) for i in range(8)] for n in range(bench.steps)]
    stepper = stepper_of(bench, shape, None, "dpo")
    store = ReferenceStore({})
    store.fill(stepper.policy, [s for step in steps for s in step], stepper.rows_per_pass)
    stepper.policy.reference = store
    seconds, reports = timed(bench, lambda n: stepper.step(steps[n], n + 1, 1e-5), share)
    logical = [r.logical_tokens for r in reports]
    found = speed_of(bench, shape, seconds, logical, [r.physical_rows for r in reports])
    return found | {"pairs_per_second": 8 * len(seconds) / sum(seconds)}


def group_update(bench: Bench, shape: str, share: float) -> dict[str, Any]:
    """The update of a GRPO round: 4 prompts of 512 tokens, 8 answers of 256 each; drawing them is
    not in it."""
    from tunewright.core.types import Branch, Experience, Sample
    from tunewright.engine.step import Stepper

    bench.forget_peak()
    draw, scale = random.Random(1), 16 if bench.tiny else 1
    vocabulary = bench.sizes(shape)["vocab_size"]
    stepper = stepper_of(bench, shape, None, "grpo", reward="length")

    def take(number: int) -> Any:
        groups, samples = [], []
        for g in range(4):
            prompt = words(draw, 512 // scale, vocabulary)
            group = []
            for _ in range(8):
                answer = words(draw, 256 // scale, vocabulary)
                learnt = list(range(len(prompt), len(prompt) + len(answer)))
                branch = Branch(prompt + answer, learnt, [1.0] * len(answer), role="drawn")
                sample = Sample([branch], g)
                sample.facts["experience"] = Experience(
                    draw.random(), len(answer), True, [0.0] * len(answer)
                )
                group.append(sample.facts["experience"])
                samples.append(sample)
            groups.append(group)
        stepper._old_values([samples])
        stepper.rollouts.judge(groups)
        return Stepper.step(stepper, samples, number + 1, 1e-5)

    seconds, reports = timed(bench, take, share)
    logical = [r.logical_tokens for r in reports]
    return speed_of(bench, shape, seconds, logical, [r.physical_rows for r in reports])


def estimated(bench: Bench, shape: str, bits: int | None, kind: str) -> int:
    """Bytes that `tunewright plan` would foresee for the steps of `ours`."""
    from tunewright.advise import fit
    from tunewright.advise.fit import ModelShape, SampleFacts
    from tunewright.advise.question import Question
    from tunewright.core.registry import methods
    from tunewright.engine.tree import build_tree
    from tunewright.models.shape import trainable_parameters

    sizes = bench.sizes(shape)
    steps = [samples_of(rows) for rows in rows_of(kind, bench, sizes["vocab_size"])]
    count = ModelShape.from_config(sizes)
    method = methods.get("lora").config(rank=16, targets=["linear"])
    rows = sum(build_tree(step).num_rows for step in steps)
    labels = sum(len(s.branches[0].learnt) for step in steps for s in step)
    longest = max(len(s.branches[0].tokens) for step in steps for s in step)
    facts = SampleFacts(sum(map(len, steps)), rows, min(labels, rows), longest)
    asked = Question(
        shape=count, trainable=trainable_parameters(count, method), method=method,
        rows_per_pass=4096 if not bench.tiny else 512, facts=facts, steps=len(steps),
        batch_size=len(steps[0]), dtype=bench.dtype, device=bench.device,
        base_bits=4.5 if bits else None, probes=0,
    )  # fmt: skip
    return fit.estimate(asked).peak_bytes


# ---- the whole


def run(bench: Bench, write: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All parts in order. What fails is written down and the next part is taken."""
    import torch

    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(0) if bench.device.startswith("cuda") else "cpu",
        "torch": torch.__version__,
        "tiny": bench.tiny,
    }

    def part(name: str, work: Callable[[], Any]) -> None:
        if bench.left() <= 0:
            found[name] = {"skipped": "no time left"}
        else:
            start = time.perf_counter()
            try:
                found[name] = work()
            except Exception as e:
                found[name] = {"error": f"{type(e).__name__}: {e}"[:500]}
                print(traceback.format_exc(), file=sys.stderr)
            found.setdefault("seconds", {})[name] = round(time.perf_counter() - start, 1)
        write(found)

    part("certificate", lambda: certificates(bench))
    # Every combination once, the most telling first: the time may not reach for all.
    jobs = [
        (shape, bits, kind)
        for bits in (None, 4)
        for kind in ("chat", "shared", "long")
        for shape in SHAPES
    ]
    share = max(1.0, 0.45 * bench.left() / len(jobs))
    for shape, bits, kind in jobs:
        name = f"{shape} {'qlora' if bits else 'lora'} {kind}"
        part(
            name,
            lambda shape=shape, bits=bits, kind=kind: (
                ours(bench, shape, bits, kind, share)
                | {"estimated_peak_bytes": estimated(bench, shape, bits, kind)}
            ),
        )
        if bits is None:
            for way in ("sdpa", "flash"):
                part(
                    f"{shape} peft-{way} {kind}",
                    lambda shape=shape, way=way, kind=kind: peer(bench, shape, way, kind, share),
                )
    for shape in SHAPES:
        part(f"{shape} dpo", lambda shape=shape: preferences(bench, shape, share))
        part(f"{shape} grpo update", lambda shape=shape: group_update(bench, shape, share))
    return found


def main() -> None:
    """Write the figures to `--out` and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, for a CPU")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--peer", nargs=3, metavar=("SHAPE", "WAY", "ROWS"), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=5.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    bench = Bench(args.device, args.tiny, time.perf_counter() + 60 * args.minutes)
    if args.peer:
        shape, way, kind = args.peer
        print(json.dumps(plain(bench, shape, way, kind, args.seconds)))
        return

    def write(found: dict[str, Any]) -> None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")

    print(json.dumps(run(bench, write), indent=1))


if __name__ == "__main__":
    main()
