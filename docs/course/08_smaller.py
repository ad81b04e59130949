# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown] lang="en"
# # 8. Smaller: quantise, prune, distil
#
# **What for.** A model that fits the machine it must run on is worth more than a better one that does not. There are three ways to make one smaller: fewer bits for each number, fewer numbers, or a smaller model that learns from the large one.
#
# **The idea.** All three throw something away. The question is never "how small?" alone, but "how small, and what does it still get right?"

# %% [markdown] lang="zh"
# # 8. 更小：量化、剪枝、蒸馏
#
# **为什么学。** 能放进目标机器的模型，比放不进的更好的模型更有价值。变小有三条路：每个数字用更少的位，用更少的数字，或让一个小模型向大模型学习。
#
# **思路。** 三者都会丢掉一些东西。问题从来不只是“多小？”，而是“多小，还答对多少？”

# %%
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import tunewright
from tunewright.course import (
    QUICK, bars, curves, letter_model, letter_rows, say, share_right, write_rows,
)  # fmt: skip

torch.set_num_threads(1)
base = letter_model("base")
rows = [row for skill in ("first", "second", "last") for row in letter_rows(skill, 14, seed=9)]
test = write_rows("test.jsonl", rows)
whole = share_right(base, test, dtype="float32")
print(say("the base is right in", "基座答对"), f"{whole:.0%}")
assert whole > 0.8

# %% [markdown] lang="en"
# **Quantise, by hand.** Round every matrix of the blocks: each group of 32 weights shares one scale, each weight becomes one of a few steps.
#
# **Predict.** 8 bits are 255 steps, 4 bits 15, 2 bits 3 (-1, 0, 1), and 1 bit only says plus or minus. Where will the answers break?

# %% [markdown] lang="zh"
# **量化，手写。** 把每个块的矩阵取整：每 32 个权重共用一个比例，每个权重变成有限几档之一。
#
# **先猜一猜。** 8 位有 255 档，4 位 15 档，2 位 3 档（-1、0、1），1 位只有正负号。回答会在哪里崩溃？

# %%
def rounded(weight, bits):
    groups = weight.reshape(-1, 32)
    if bits == 1:  # only the sign is left, and one size for all 32
        return (groups.sign() * groups.abs().mean(dim=1, keepdim=True)).reshape(weight.shape)
    most = 2 ** (bits - 1) - 1
    scale = groups.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / most
    return ((groups / scale).round() * scale).reshape(weight.shape)


def changed(name, change):
    """The base with each matrix of its blocks changed, in a folder of its own."""
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for weight in model.model.layers.parameters():
            if weight.ndim == 2:
                weight.copy_(change(weight))
    model.save_pretrained(name)
    AutoTokenizer.from_pretrained(base).save_pretrained(name)
    return name


by_bits = {
    bits: share_right(changed(f"bits-{bits}", lambda w, n=bits: rounded(w, n)), test, dtype="float32")
    for bits in (8, 4, 2, 1)
}
print(by_bits)
bars(
    {say(f"{bits} bits", f"{bits} 位"): share for bits, share in by_bits.items()},
    top=1.0,
    form="{:.0%}",
    about=say("right answers after rounding", "取整之后答对的比例"),
)

# %% [markdown] lang="en"
# **What to see.** Eight bits cost nothing that you could see, and even at two this easy task survives; only with the bare signs mistakes begin. stands more than language does: a real model begins to suffer at four bits ([measured](../../../smaller.md)). `tunewright export quantize` chooses with better rounding (it looks at what each matrix computes on real rows), proves the result and writes what it cost.
#
# **Prune, by hand.** Set the smallest weights of each matrix to zero.
#
# **Predict.** What share can go before the answers do?

# %% [markdown] lang="zh"
# **看什么。** 八位看不出任何代价，到两位，这个简单任务也还撑得住；只剩正负号时才开始出错。它比语言更经得起折腾：真实的模型从四位起就会受损（[测量结果](../../../smaller.zh-CN.md)）。`tunewright export quantize` 用更好的取整方法（看每个矩阵在真实数据上算出什么），证明结果，并写明代价。
#
# **剪枝，手写。** 把每个矩阵中最小的权重设为零。
#
# **先猜一猜。** 去掉多大比例，回答才会坏？

# %%
assert by_bits[8] >= whole - 0.05 and by_bits[4] >= whole - 0.1 and by_bits[1] < by_bits[8]


def pruned(weight, share):
    limit = weight.abs().flatten().kthvalue(max(1, int(share * weight.numel()))).values
    return torch.where(weight.abs() > limit, weight, torch.zeros(()))


by_share = {0.0: whole}
for share in (0.2, 0.5, 0.9):
    folder = changed(f"pruned-{share}", lambda w, s=share: pruned(w, s))
    by_share[share] = share_right(folder, test, dtype="float32")
print(by_share)
curves(
    {say("right", "答对"): list(by_share.items())},
    x=say("share of weights set to zero", "置零的权重比例"),
    y=say("share right", "答对的比例"),
    about=say("right answers after pruning", "剪枝之后答对的比例"),
)

# %% [markdown] lang="en"
# **What to see.** Many weights hardly matter, then the answers fall off a cliff. And mind: zeros make a file neither smaller nor faster by themselves. The product's `export prune --way blocks` leaves out whole blocks, which does both.

# %% [markdown] lang="zh"
# **看什么。** 许多权重几乎无关紧要，然后回答突然跌下悬崖。还要注意：零本身不会让文件变小或变快。产品的 `export prune --way blocks` 会去掉整个块，这样既小又快。

# %%
assert by_share[0.9] < whole - 0.3 and by_share[0.2] >= by_share[0.9]

# %% [markdown] lang="en"
# **Distil.** A student that is the teacher without its second block, so that half of it is missing, learns from 600 rows: once from the rows alone, once from the teacher as well. A row says which letter is right; a teacher also says how likely every other one was.
#
# **Predict.** Which student is ahead after the same steps?

# %% [markdown] lang="zh"
# **蒸馏。** 学生是去掉了第二个块的老师，缺了一半；它从 600 行学习：一次只看数据行，一次还看老师。数据行只说哪个字母对；老师还会说其他每个字母有多大可能。
#
# **先猜一猜。** 走同样的步数，哪个学生领先？

# %%
lesson = [row for skill in ("first", "second", "last") for row in letter_rows(skill, 200, seed=4)]
config = AutoConfig.from_pretrained(base)
config.num_hidden_layers, config.layer_types = 1, config.layer_types[:1]
half = AutoModelForCausalLM.from_config(config)
half.load_state_dict(AutoModelForCausalLM.from_pretrained(base).state_dict(), strict=False)
half.save_pretrained("student")
# The two are compared token by token, so the student's tokenizer is the teacher's.
AutoTokenizer.from_pretrained(base).save_pretrained("student")


def taught(name, objective):
    run = tunewright.train(
        model="student",
        data={"train": write_rows("lesson.jsonl", lesson), "held_out": test},
        method="full",
        objective=objective,
        engine={
            **{"epochs": 5, "batch_size": 32, "learning_rate": 2e-3, "keep_best": False},
            **{"dtype": "float32", "threads": 1},
        },
        out=name,
        **QUICK,
    )
    return run


alone = taught("alone", "sft")
distilled = taught("distilled", {"kind": "distill", "teacher": base, "alpha": 0.5})
scores = {
    say("teacher", "老师"): whole,
    say("student, rows alone", "学生，只看数据行"): share_right(alone.folder, test, dtype="float32"),
    say("student, distilled", "学生，蒸馏"): share_right(distilled.folder, test, dtype="float32"),
}
before = alone.summary["held_out_loss_before"]
print(say("the student before:", "学生起初："), f"{before:.2f}")
for name, run in (("alone", alone), ("distilled", distilled)):
    print(name, f"{run.summary['held_out_loss']:.3f}")
assert distilled.summary["held_out_loss"] < 0.8 * before
bars(scores, top=1.0, form="{:.0%}", about=say("right answers", "答对的比例"))

# %% [markdown] lang="en"
# **What to see.** Two students with the same rows and the same steps. Both mend what was cut out. Which one is ahead, and by how much, is what this run shows; with forty questions a few answers are chance, so look at the losses as well. A teacher pays most where rows are few and it knows much that they do not say.
#
# **Exercise.** Quantise by hand with groups of 64 in place of 32 weights, at 4 bits. Is it better or worse, and why?

# %% [markdown] lang="zh"
# **看什么。** 两个学生，同样的数据行，同样的步数。两个都补上了被切掉的部分。谁领先、领先多少，由这次训练来说；四十来个问题里差几题只是运气，所以也要看损失。当数据很少、而老师知道许多数据没说的东西时，老师最有用。
#
# **练习。** 用每组 64 个（而不是 32 个）权重在 4 位下手写量化。更好还是更差？为什么？

# %% tags=["answer"]
def error(size):
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    groups = weight.reshape(-1, size)
    scale = groups.abs().amax(dim=1, keepdim=True) / 7
    return (((groups / scale).round() * scale - groups).norm() / groups.norm()).item()


print(f"32: {error(32):.3f}   64: {error(64):.3f}")
assert error(64) > error(32)  # the largest of 64 is larger than that of 32, and sets the step
