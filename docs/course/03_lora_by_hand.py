# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown] lang="en"
# # 3. LoRA by hand, then the product's: the same numbers
#
# **What for.** LoRA is the method that most people use first. In ten minutes you write it yourself, in thirty lines, and see that the product's adapter is nothing more.
#
# **The idea.** A layer multiplies by a matrix W of d × d numbers. LoRA leaves W alone and learns a correction of low rank beside it, **W + (α / r) · B · A**, where A has r rows and B has r columns. B begins as zeros, so that training begins at exactly the base model.

# %% [markdown] lang="zh"
# # 3. 手写 LoRA，再用产品的 LoRA：数字相同
#
# **为什么学。** LoRA 是大多数人最先使用的方法。十分钟里你会亲手用三十行写出它，并看到产品里的适配器并无更多东西。
#
# **思路。** 一层网络乘以一个 d × d 的矩阵 W。LoRA 不动 W，而在旁边学习一个低秩的修正：**W + (α / r) · B · A**，其中 A 有 r 行，B 有 r 列。B 从全零开始，因此训练恰好从基座模型出发。

# %%
import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tunewright
from tunewright.course import QUICK, bars, curves, grid, say, teach, tiny_model, write_rows

torch.set_num_threads(1)
colours = ["red", "green", "blue", "white", "black", "brown"]
known = ["brick", "grass", "jeans", "snow", "ink", "wood", "ruby", "moss", "ice", "night"]
things = ["apple", "leaf", "sky", "milk", "coal", "earth", "rose", "sea"]


def asked_for(names):
    return [
        {"instruction": f"colour of {name}?", "output": colours[i % 6]}
        for i, name in enumerate(names)
    ]


rows = asked_for(things)  # what LoRA will learn
base_rows = asked_for(known)  # what the base knows already
base = tiny_model("base", [f"{r['instruction']} {r['output']}" for r in rows + base_rows], layers=2)
teach(base, base_rows, steps=80, batch=10)
model = AutoModelForCausalLM.from_pretrained(base)
d = model.config.hidden_size
rank = 4
bars(
    {
        say("the whole matrix W", "整个矩阵 W"): d * d,
        say("A and B together", "A 与 B 合计"): 2 * rank * d,
    },
    about=say("numbers to learn in one layer", "一层中要学习的数字个数"),
)

# %% [markdown] lang="en"
# **Predict.** The matrices here are 96 × 96 and the rank is 4 (the base is a tiny model that this lesson has just taught the colours of ten other things). How many of the numbers that full fine-tuning of one matrix learns does LoRA learn: a half, a tenth, a twelfth? The picture above has the two figures.
#
# Now LoRA itself. The layer below *wraps* a linear layer: it freezes it and adds the correction.

# %% [markdown] lang="zh"
# **先猜一猜。** 这里的矩阵是 96 × 96，秩为 4（基座是本课刚刚教会的一个极小模型，它知道另外十种东西的颜色）。与全量微调一个矩阵相比，LoRA 学习的数字是它的二分之一、十分之一，还是十二分之一？上图给出了两个数字。
#
# 下面就是 LoRA 本身。这个层把一个线性层*包*起来：冻结它，再加上修正。

# %%
assert 2 * rank * d * 12 == d * d  # a twelfth


class LoraByHand(torch.nn.Module):
    def __init__(self, linear, rank, alpha, generator):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        random_RD = torch.randn(rank, linear.in_features, generator=generator)
        self.A = torch.nn.Parameter(random_RD / linear.in_features**0.5)
        self.B = torch.nn.Parameter(torch.zeros(linear.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x):
        return self.linear(x) + self.scale * (x @ self.A.T @ self.B.T)


generator = torch.Generator().manual_seed(0)
alpha = 8
model.requires_grad_(False)
hands = {}
for number, block in enumerate(model.model.layers):
    for name in ("q_proj", "v_proj"):
        wrapped = LoraByHand(getattr(block.self_attn, name), rank, alpha, generator)
        setattr(block.self_attn, name, wrapped)
        hands[f"model.layers.{number}.self_attn.{name}"] = wrapped
trained = [p for p in model.parameters() if p.requires_grad]
print(say("learnt", "学习"), sum(p.numel() for p in trained))
print(say("in all", "总共"), sum(p.numel() for p in model.parameters()))

# %% [markdown] lang="en"
# Before we train it, we write our A and B into a folder in [PEFT's](https://huggingface.co/docs/peft) layout. An adapter *is* these two files: a list of names with their matrices, and how to scale them. The product will start from the same numbers.

# %% [markdown] lang="zh"
# 训练之前，先把我们的 A 和 B 按 [PEFT](https://huggingface.co/docs/peft) 的格式写进一个文件夹。一个适配器*就是*这两个文件：一份带名字的矩阵清单，以及缩放方式。产品将从同样的数字出发。

# %%
from pathlib import Path

from safetensors.torch import load_file, save_file


def save_by_hand(folder):
    Path(folder).mkdir(exist_ok=True)
    tensors = {}
    for name, layer in hands.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = layer.A.detach().clone()
        tensors[f"base_model.model.{name}.lora_B.weight"] = layer.B.detach().clone()
    save_file(tensors, f"{folder}/adapter_model.safetensors", metadata={"format": "pt"})
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha}
    settings |= {"target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": base}
    Path(folder, "adapter_config.json").write_text(json.dumps(settings))
    return folder


start = save_by_hand("start")
{name: tuple(tensor.shape) for name, tensor in load_file("start/adapter_model.safetensors").items()}

# %% [markdown] lang="en"
# The training loop, by hand: twenty steps, all eight rows in each, AdamW with a constant rate. The loss is the mean over the tokens of the *answers*; the questions are only read (lesson 2).

# %% [markdown] lang="zh"
# 手写的训练循环：二十步，每步用全部八行，AdamW，学习率恒定。损失是*答案*各词元的平均；问题只读不学（见第 2 课）。

# %%
tokenizer = AutoTokenizer.from_pretrained(base)
samples = []
for row in rows:
    asked = [{"role": "user", "content": row["instruction"]}]
    question = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    answer = row["output"] + tokenizer.eos_token
    head, tail = tokenizer(question)["input_ids"], tokenizer(answer)["input_ids"]
    samples.append((torch.tensor([head + tail]), len(head)))

optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
by_hand = []
for _ in range(20):
    total, count = torch.zeros(()), 0
    for tokens, start_of_answer in samples:
        logits = model(tokens).logits[0, start_of_answer - 1 : -1]
        labels = tokens[0, start_of_answer:]
        total = total + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        count += len(labels)
    loss = total / count
    by_hand.append(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"{by_hand[0]:.4f} -> {by_hand[-1]:.4f}")

# %% [markdown] lang="en"
# Now the product, from the same `start`, with the same settings.
#
# **Predict.** To how many digits will the twenty losses agree?

# %% [markdown] lang="zh"
# 现在换产品，从同一个 `start` 出发，设置相同。
#
# **先猜一猜。** 两边的二十个损失会在多少位数字上一致？

# %%
run = tunewright.train(
    model=base,
    adapter=start,
    data={"train": write_rows("rows.jsonl", rows), "held_out": 0},
    method={"kind": "lora", "rank": rank, "alpha": alpha, "targets": ["attention.query", "attention.value"]},
    engine={
        **{"steps": 20, "batch_size": 8, "learning_rate": 1e-2, "schedule": "constant"},
        **{"warmup": 0, "clip": None, "dtype": "float32", "threads": 1},
    },
    out="run",
    **QUICK,
)
events = [json.loads(line) for line in Path(run.folder, "events.jsonl").read_text().splitlines()]
by_product = [event["loss"] for event in events if event["event"] == "step"]
largest = max(abs(a - b) for a, b in zip(by_hand, by_product, strict=True))
print(say("largest difference of a loss:", "损失的最大差："), f"{largest:.1e}")
assert largest < 1e-5 and by_hand[-1] < 0.7 * by_hand[0]
curves(
    {
        say("by hand", "手写"): list(enumerate(by_hand, 1)),
        say("product", "产品"): [(n, loss + 0.03) for n, loss in enumerate(by_product, 1)],
    },
    x=say("step", "步"),
    y=say("loss", "损失"),
    about=say("both losses; the product's is lifted by 0.03", "两条损失；产品的上移了 0.03"),
)

# %% [markdown] lang="en"
# **What to see.** One curve, drawn twice: the product's had to be lifted by 0.03 to be visible. And the matrices?

# %% [markdown] lang="zh"
# **看什么。** 其实是同一条曲线画了两次：产品的那条上移了 0.03 才看得见。那么矩阵呢？

# %%
saved = load_file(Path(run.adapter, "adapter_model.safetensors"))
gaps = []
for name, layer in hands.items():
    gaps.append((saved[f"base_model.model.{name}.lora_A.weight"] - layer.A).abs().max().item())
    gaps.append((saved[f"base_model.model.{name}.lora_B.weight"] - layer.B).abs().max().item())
print(say("largest difference of a weight:", "权重的最大差："), f"{max(gaps):.1e}")
assert max(gaps) < 1e-4
layer = hands["model.layers.0.self_attn.q_proj"]
delta = (layer.scale * layer.B @ layer.A).detach()
assert torch.linalg.matrix_rank(delta) <= rank
grid(
    delta[:32, :48].tolist(),
    title=say("a corner of the correction (alpha / r) B A", "修正 (alpha / r) B A 的一角"),
    about=say("the correction: rows are multiples of four patterns", "修正：各行由四种花纹叠加而成"),
)

# %% [markdown] lang="en"
# **What to see.** 96 × 96 numbers, but every row is a mixture of the same four patterns: that is what rank 4 means.
#
# **Exercise.** Merge the correction into W, so that the model needs no adapter any more, and show that it answers the same. Two lines are enough.

# %% [markdown] lang="zh"
# **看什么。** 虽有 96 × 96 个数字，但每一行都是同样四种花纹的混合：这就是秩为 4 的含义。
#
# **练习。** 把修正合并进 W，使模型不再需要适配器，并证明回答不变。两行就够。

# %% tags=["answer"]
tokens = samples[0][0]
with torch.no_grad():
    before = model(tokens).logits
    for layer in hands.values():
        layer.linear.weight += layer.scale * layer.B @ layer.A  # into W ...
        layer.B.zero_()  # ... and out of the adapter
    after = model(tokens).logits
print(f"{(after - before).abs().max().item():.1e}")
assert torch.allclose(after, before, atol=1e-4)
