# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown] lang="en"
# # 4. Rank, rate, epochs: read the curves
#
# **What for.** Three settings decide most LoRA runs: how fast (learning rate), how much room (rank), how long (epochs). This lesson turns each of them and lets you see in the curves which way to turn it next.
#
# **The idea.** Watch two losses. The *training* loss says whether the model learns the rows. The *held-out* loss, of rows that nobody learns from, says whether it learns the *task*. When the second rises while the first falls, the model memorises.

# %% [markdown] lang="zh"
# # 4. 秩、学习率、轮数：读懂曲线
#
# **为什么学。** 三个设置决定了大多数 LoRA 训练：多快（学习率）、多大空间（秩）、多久（轮数）。本课逐个转动它们，让你从曲线上看出下一步该往哪边转。
#
# **思路。** 看两个损失。*训练*损失说明模型是否学会了这些行。*保留*损失来自没有学过的行，说明它是否学会了这个*任务*。后者上升而前者下降时，模型是在死记。

# %%
import json
from pathlib import Path

import torch

import tunewright
from tunewright.course import QUICK, bars, curves, letter_model, letter_rows, say, write_rows

torch.set_num_threads(1)
base = letter_model("base")
seen = letter_rows("reverse", 200, seed=1)
asked = {row["instruction"] for row in seen}
unseen = [row for row in letter_rows("reverse", 50, seed=2) if row["instruction"] not in asked]
held_out = write_rows("held-out.jsonl", unseen)


def learn(name, rows, rank=8, **engine):
    """A run; (its training losses, its held-out losses) as (step, loss)."""
    run = tunewright.train(
        model=base,
        data={"train": write_rows(f"{name}.jsonl", rows), "held_out": held_out},
        method={"kind": "lora", "rank": rank},
        engine={"batch_size": 16, "dtype": "float32", "threads": 1, "evaluate_every": 10, **engine},
        out=name,
        **QUICK,
    )
    events = [json.loads(line) for line in Path(run.folder, "events.jsonl").read_text().splitlines()]
    training = [(e["step"], e["loss"]) for e in events if e["event"] == "step"]
    measured = {e["step"]: e["held_out_loss"] for e in events if e["event"] == "evaluation"}
    return training, sorted(measured.items())


# %% [markdown] lang="en"
# **The rate.** Four rates, each ten times the one before.
#
# **Predict.** Sort them by the held-out loss after five epochs.

# %% [markdown] lang="zh"
# **学习率。** 四个学习率，每个是前一个的十倍。
#
# **先猜一猜。** 按五轮之后的保留损失给它们排序。

# %%
by_rate = {
    f"{rate:g}": learn(f"rate-{rate:g}", seen, epochs=5, learning_rate=rate)
    for rate in (1e-4, 1e-3, 1e-2, 1e-1)
}
curves(
    {name: training for name, (training, _) in by_rate.items()},
    x=say("step", "步"),
    y=say("training loss", "训练损失"),
    about=say("training loss at four rates", "四种学习率下的训练损失"),
)

# %%
last = {name: measured[-1][1] for name, (_, measured) in by_rate.items()}
print({name: round(loss, 3) for name, loss in last.items()})
best = min(last, key=last.__getitem__)
assert last["0.0001"] > last["0.001"] > last["0.01"] and last["0.1"] > last["0.01"]

# %% [markdown] lang="en"
# **What to see.** Too small: a line that hardly falls. Too large: a line that jumps and stays high. In between there is a wide valley; nobody needs the rate to the third digit. With `learning_rate: auto` the product takes what is usual for the method and the length of the run.
#
# **The rank.** More room, more numbers. Always better?

# %% [markdown] lang="zh"
# **看什么。** 太小：一条几乎不下降的线。太大：一条乱跳而且居高不下的线。中间是一道宽阔的谷；没人需要精确到第三位数字的学习率。用 `learning_rate: auto` 时，产品会取适合该方法和训练长度的值。
#
# **秩。** 空间更大，数字更多。总是更好吗？

# %%
by_rank = {
    rank: learn(f"rank-{rank}", seen, rank=rank, epochs=5, learning_rate=1e-2) for rank in (1, 4, 32)
}
after = {say(f"rank {rank}", f"秩 {rank}"): m[-1][1] for rank, (_, m) in by_rank.items()}
bars(after, form="{:.3f}", about=say("held-out loss after five epochs", "五轮后的保留损失"))

# %% [markdown] lang="en"
# **What to see.** The base's own loss on this task was far higher: even rank 1 learns most of what there is to learn. Sixteen is a sensible first rank; raise it when a *training* loss stays high although the rate is right.
#
# **The epochs.** Now only 40 rows of another task (`mystery` asks for the last letter), seen 40 times. As in real data some rows are wrong: one answer in four.
#
# **Predict.** Draw both curves in your mind before you look.

# %% [markdown] lang="zh"
# **看什么。** 基座自己在这个任务上的损失高得多：哪怕秩为 1，也学到了大部分。第一次用 16 是合理的；学习率合适而*训练*损失仍居高不下时，再加大。
#
# **轮数。** 现在换一个任务（`mystery` 问最后一个字母），只有 40 行，看 40 遍。像真实数据一样，有些行是错的：四个答案里有一个。
#
# **先猜一猜。** 看图之前，先在心里画出两条曲线。

# %%
before = by_rank[1][1][0][1]
print(say("held-out loss of the base:", "基座的保留损失："), round(before, 3))
assert all(measured[-1][1] < 0.7 * before for _, measured in by_rank.values())


def careless(count):
    """Rows of which every fourth has the first letter in place of the last."""
    rows = letter_rows("last", count, called="mystery", seed=1)
    return [
        {**row, "output": row["instruction"].split()[1]} if n % 4 == 0 else row
        for n, row in enumerate(rows)
    ]


held_out = write_rows("held-out-2.jsonl", letter_rows("last", 50, called="mystery", seed=2))
few, few_measured = learn("few", careless(40), epochs=40, learning_rate=5e-3, keep_best=False)
lowest = min(few_measured, key=lambda point: point[1])
curves(
    {say("training", "训练"): few, say("held out", "保留"): few_measured},
    x=say("step", "步"),
    y=say("loss", "损失"),
    about=say("forty rows, forty epochs", "四十行，四十轮"),
)

# %% [markdown] lang="en"
# **What to see.** The training loss goes to zero: all forty rows are known by heart, the wrong ones as well. The held-out loss turns: past its lowest point the model gets worse at the task. This is why the product measures during the run and, unless told otherwise, returns to the best state (`keep_best`).

# %% [markdown] lang="zh"
# **看什么。** 训练损失趋近于零：四十行全都背下来了，错的也背了。保留损失会转向：过了最低点，模型在任务上就越来越差。所以产品在训练中不断测量，并且默认回到最好的状态（`keep_best`）。

# %%
print(say("lowest held-out loss at step", "保留损失最低在第"), lowest)
assert few[-1][1] < 0.2 and few_measured[-1][1] > 1.2 * lowest[1]

# %% [markdown] lang="en"
# **Exercise.** Which helps more against this: stopping at the best point, or 240 equally careless rows in place of 40? Compare the lowest losses.

# %% [markdown] lang="zh"
# **练习。** 哪种做法更有用：停在最好的那一点，还是用 240 行同样草率的数据代替 40 行？比较最低的损失。

# %% tags=["answer"]
_, many = learn("many", careless(240), epochs=7, learning_rate=5e-3, keep_best=False)
print(f"{lowest[1]:.3f} -> {min(loss for _, loss in many):.3f}")
assert min(loss for _, loss in many) < lowest[1]
