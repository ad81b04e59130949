# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown] lang="en"
# # 6. Why a run teaches nothing, or too much: six broken runs
#
# **What for.** Sooner or later a run of yours goes wrong without an error message. Six faults make up most of such runs. Here you make all six on purpose, look at their curves, and let `doctor` name them.
#
# **The idea.** Every fault leaves its mark: in the training loss, in the held-out loss, in the rows, or in the saved weights. Look in this order.

# %% [markdown] lang="zh"
# # 6. 为什么什么都没学到，或学过了头：六次失败的训练
#
# **为什么学。** 总有一天，你的某次训练会在没有任何报错的情况下失败。六种毛病占了其中的大多数。这里你会故意把六种都犯一遍，看它们的曲线，再让 `doctor` 说出病名。
#
# **思路。** 每种毛病都会留下痕迹：在训练损失里、在保留数据的损失里、在数据行里，或在保存的权重里。请按这个顺序查看。

# %%
import json
import random
from pathlib import Path

import torch

import tunewright
from tunewright.course import QUICK, command, curves, letter_model, letter_rows, say, write_rows

torch.set_num_threads(1)
base = letter_model("base")  # knows which of three letters is first, second or last
rows = letter_rows("last", 256, called="mystery")
draw = random.Random(0)
noise = [{**row, "output": draw.choice("abcdefghijkl")} for row in rows[:104]]


def try_out(name, rows, method="lora", **engine):
    """One run; (its folder, its losses)."""
    run = tunewright.train(
        model=base,
        data={"train": write_rows(f"{name}.jsonl", rows), "held_out": 24},
        method=method,
        engine={"batch_size": 16, "dtype": "float32", "threads": 1, "epochs": 3, "evaluate_every": 10, **engine},
        out=name,
        **QUICK,
    )
    lines = Path(run.folder, "events.jsonl").read_text().splitlines()
    steps = [event for event in map(json.loads, lines) if event["event"] == "step"]
    return run, [(event["step"], event["loss"]) for event in steps]


# %% [markdown] lang="en"
# **Predict.** Below are a healthy run, A, and five others. Before you run the cell: which losses will fall, which stay, which rise?
#
# * B: a learning rate ten thousand times too small
# * C: every weight trains, at a learning rate far too large
# * D: two steps only
# * E: eighty rows whose answers are drawn at random, seen thirty times
# * F: nearly all rows have the same answer

# %% [markdown] lang="zh"
# **先猜一猜。** 下面是一次健康的训练 A 和另外五次。运行之前先想：哪些损失会下降，哪些不动，哪些上升？
#
# * B：学习率小了一万倍
# * C：训练全部权重，学习率大得离谱
# * D：只有两步
# * E：八十行，答案随机抽取，看三十遍
# * F：几乎所有行的答案都一样

# %%
same = [{**row, "output": "a"} for row in rows[:240]] + rows[240:]
made = {
    "A": try_out("A", rows, learning_rate=5e-3),
    "B": try_out("B", rows, learning_rate=5e-7),
    "C": try_out("C", rows, method="full", learning_rate=0.9),
    "D": try_out("D", rows, learning_rate=5e-4, steps=2),
    "E": try_out("E", noise, learning_rate=1e-2, epochs=30, keep_best=False),
    "F": try_out("F", same, learning_rate=5e-3),
}
curves(
    {name: [(n, min(loss, 8.0)) for n, loss in line] for name, (_, line) in made.items()},
    x=say("step", "步"),
    y=say("training loss", "训练损失"),
    about=say("training losses of six runs, cut at 8", "六次训练的训练损失，超过 8 的截去"),
)

# %% [markdown] lang="en"
# **What to see.** B is flat and C is torn: these two show at once. D has hardly begun. But E and F look *better* than the healthy A. A low training loss is no proof of anything; look at rows that nobody learnt from:

# %% [markdown] lang="zh"
# **看什么。** B 是平的，C 是乱的：这两个一眼可见。D 才刚刚开始。但 E 和 F 看起来比健康的 A *更好*。训练损失低什么也证明不了；要看没有学过的行：

# %%
for name, (run, line) in made.items():
    before, after = run.summary["held_out_loss_before"], run.summary["held_out_loss"]
    print(f"{name}  {say('training', '训练')} {line[0][1]:6.2f} -> {line[-1][1]:6.2f}", end="   ")
    print(f"{say('held out', '保留')} {before:6.2f} -> {after:6.2f}")

# %% [markdown] lang="en"
# Every run was examined at its end. `doctor` names what it found, with the figures that it saw and what to do.

# %% [markdown] lang="zh"
# 每次训练结束时都已做过检查。`doctor` 会说出发现了什么，附上它看到的数字，以及该怎么办。

# %%
named = {}
for name, (run, _) in made.items():
    findings = json.loads(Path(run.folder, "doctor.json").read_text())["findings"]
    named[name] = [one["code"] for one in findings]
    print(name, "; ".join(one["name"] for one in findings[:2]) or say("nothing", "没有"))
print(named)
worst = json.loads(Path("E", "doctor.json").read_text())["findings"][0]
print(worst["what"], worst["cause"], worst["remedy"], sep="\n")
assert named["A"] == [] and named["B"] == ["rate_too_small"] and named["D"] == ["steps_too_few"]
assert named["C"][0] == "rate_too_large" and named["E"][0] == "overfitting"
assert named["F"][0] == "constant_answers"

# %% [markdown] lang="en"
# **The sixth** comes from another tool: an adapter that somebody saved before its training had changed anything. It loads, it answers, and it is the base.

# %% [markdown] lang="zh"
# **第六个**来自别的工具：有人在训练还没改变任何东西之前就保存了适配器。它能加载，能回答，但它就是基座模型。

# %%
import warnings

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    model = AutoModelForCausalLM.from_pretrained(base)
    wrapped = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    wrapped.save_pretrained("theirs")
found = command("doctor", "theirs", "--model", base, "--json")["findings"]
print(found[0]["name"], "-", found[0]["what"])
assert found[0]["code"] == "adapter_zero"

# %% [markdown] lang="en"
# **Exercise.** Heal run E: which single change helps most, fewer epochs, a smaller rank, or answers that follow from the questions? Try one, and look at the held-out loss.

# %% [markdown] lang="zh"
# **练习。** 治好 E：哪一个改动最有用：更少的轮数、更小的秩，还是让答案能从问题得出？试一个，看保留数据的损失。

# %% tags=["answer"]
healed, _ = try_out("E-healed", rows[:104], learning_rate=1e-2, epochs=30, keep_best=False)
print(f"{made['E'][0].summary['held_out_loss']:.2f} -> {healed.summary['held_out_loss']:.2f}")
assert healed.summary["held_out_loss"] < made["E"][0].summary["held_out_loss"]
