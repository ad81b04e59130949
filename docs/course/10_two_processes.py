# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown] lang="en"
# # 10. From one machine to many
#
# **What for.** When a step takes too long, or a model does not fit, several processes share the work. People fear this step, because so much can differ silently. Here two processes on your own processor show what must *not* change: the numbers.
#
# **The idea.** A step learns from, say, 16 rows. Two processes take 8 each, work out their part of the gradient, add the parts up, and take the same step.
#
# * *ddp*: every process holds the whole model; only gradients travel.
# * *fsdp*: each holds a share of weights and optimiser; the shares travel as they are needed.

# %% [markdown] lang="zh"
# # 10. 从一台机器到多台
#
# **为什么学。** 一步太慢，或模型放不下时，就让几个进程分担。人们害怕这一步，因为有太多东西会悄悄变得不同。这里用你自己处理器上的两个进程来看什么*不该*变：数字。
#
# **思路。** 一步要学（比如说）16 行。两个进程各拿 8 行，各算自己那部分梯度，把两部分加起来，再走同样的一步。
#
# * *ddp*：每个进程都有整个模型；只有梯度在传送。
# * *fsdp*：每个进程只存一份权重和优化器状态；用到时再传送。

# %%
import json
from pathlib import Path

from tunewright.course import bars, command, curves, letter_model, letter_rows, say, write_rows

base = letter_model("base", steps=60)  # hardly taught: this lesson is about numbers, not skill
rows = write_rows("rows.jsonl", letter_rows("first", 64))


def train(name, *more):
    """The same run by the command line, with other settings of the engine; its steps."""
    command(
        *("train", "--model", base, "--data", rows, "--out", name, "method.kind=full"),
        *("engine.steps=6", "engine.batch_size=16", "engine.learning_rate=2e-3"),
        *("engine.dtype=float32", "engine.threads=1", "data.held_out=0", "probes=0"),
        *("forgetting=off", *more),
    )
    lines = Path(name, "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == "step"]


alone = train("alone")
print([round(event["loss"], 5) for event in alone])

# %% [markdown] lang="en"
# **Predict.** With two processes: to how many digits will the six losses agree with these? One more word changes: `engine.processes=2`.

# %% [markdown] lang="zh"
# **先猜一猜。** 用两个进程：六个损失会与上面的在几位数字上一致？只多一个词：`engine.processes=2`。

# %%
ddp = train("ddp", "engine.processes=2", "engine.parallel=ddp")
fsdp = train("fsdp", "engine.processes=2", "engine.parallel=fsdp")
for one, two, three in zip(alone, ddp, fsdp, strict=True):
    print(f"{one['loss']:.6f}  {two['loss']:.6f}  {three['loss']:.6f}")
gap = max(
    abs(one["loss"] - other["loss"])
    for others in (ddp, fsdp)
    for one, other in zip(alone, others, strict=True)
)
print(say("largest difference:", "最大差："), f"{gap:.1e}")
assert gap < 1e-4
curves(
    {
        say("one process", "一个进程"): [(e["step"], e["loss"]) for e in alone],
        "ddp": [(e["step"], e["loss"] + 0.03) for e in ddp],
        "fsdp": [(e["step"], e["loss"] + 0.06) for e in fsdp],
    },
    x=say("step", "步"),
    y=say("loss", "损失"),
    about=say("the same losses, lifted by 0.03 and 0.06", "相同的损失，分别上移 0.03 和 0.06"),
)

# %% [markdown] lang="en"
# **What to see.** One curve, drawn three times. `batch_size` is the number of rows of a *step*, however many processes share it; with tools that count rows per device, doubling the devices quietly doubles the batch and changes the training.

# %% [markdown] lang="zh"
# **看什么。** 同一条曲线画了三次。`batch_size` 是一*步*的行数，不管几个进程来分；有些工具按每个设备计数，设备翻倍，批量也悄悄翻倍，训练就变了。

# %%
counts = {name: sum(e["label_tokens"] for e in events) for name, events in {"1": alone, "2": ddp}.items()}
print(say("learnt tokens with one and two processes:", "一个与两个进程学习的词元数："), counts)
assert counts["1"] == counts["2"]
seconds = {
    say("one process", "一个进程"): sum(e["seconds"] for e in alone),
    "ddp": sum(e["seconds"] for e in ddp),
    "fsdp": sum(e["seconds"] for e in fsdp),
}
bars(seconds, form="{:.2f} s", about=say("seconds of the six steps", "六步所用秒数"))

# %% [markdown] lang="en"
# **What to see.** For a model this small, sharing is *not* faster: talking takes longer than computing. It pays where a step takes seconds; and *fsdp* pays where the model does not fit once.
#
# **Exercise.** A run with two processes saved its model. Does it answer as the one that was trained alone? Compare the two files of weights.

# %% [markdown] lang="zh"
# **看什么。** 对这么小的模型，分担*并不*更快：通信比计算更费时。一步要几秒钟时它才合算；模型一份放不下时，*fsdp* 才合算。
#
# **练习。** 两个进程的训练保存了模型。它和单独训练的那个一样吗？比较两个权重文件。

# %% tags=["answer"]
from safetensors.torch import load_file

one, two = (load_file(Path(name, "model", "model.safetensors")) for name in ("alone", "fsdp"))
gap = max((one[name].float() - two[name].float()).abs().max().item() for name in one)
print(f"{gap:.1e}")
assert gap < 1e-3
