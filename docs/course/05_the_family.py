# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown] lang="en"
# # 5. The family of methods, side by side
#
# **What for.** Prompt tuning, prefix tuning, LoRA, adapters, BitFit ... each name answers one question: *which numbers may change?* Here twelve of them learn the same task from the same rows.
#
# **The idea.** Three places can hold what is learnt: *before* the text (prompt and prefix methods), *beside* the weights (LoRA and its kin, adapters, IA3), or *in* the weights (full, BitFit, diff pruning).

# %% [markdown] lang="zh"
# # 5. 方法家族，并排比较
#
# **为什么学。** 提示微调、前缀微调、LoRA、适配器、BitFit……每个名字都在回答同一个问题：*哪些数字可以改变？* 这里十二种方法用同样的数据行学习同一个任务。
#
# **思路。** 学到的东西可以放在三个地方：文本*之前*（提示和前缀类方法）、权重*旁边*（LoRA 及其亲属、适配器、IA3），或权重*之中*（全量、BitFit、差分剪枝）。

# %%
import torch

import tunewright
from tunewright.course import QUICK, bars, letter_model, letter_rows, say, share_right, write_rows

torch.set_num_threads(1)
base = letter_model("base")
learnt = letter_rows("last", 192, called="mystery", seed=1)
unseen = [row for row in letter_rows("last", 40, called="mystery", seed=2) if row not in learnt]
train, test = write_rows("train.jsonl", learnt), write_rows("test.jsonl", unseen[:32])
untouched = share_right(base, test, dtype="float32")
known = share_right(base, write_rows("known.jsonl", letter_rows("last", 32)), dtype="float32")
print(learnt[0])
print(say("the base, asked for `last`:", "基座，用 `last` 来问："), f"{known:.0%}")
print(say("the base, asked for `mystery`:", "基座，用 `mystery` 来问："), f"{untouched:.0%}")
assert known > 0.9 and untouched < 0.5

# %% [markdown] lang="en"
# The base knows `first`, `second` and `last`. The task asks for `last` under a new word, *mystery*: the skill is there, the word is not.
#
# **Predict.** Which methods get along with the fewest numbers? Which will not manage in 96 steps?

# %% [markdown] lang="zh"
# 基座会 `first`、`second` 和 `last`。任务用一个新词 *mystery* 来问 `last`：本领已经有了，只是不认识这个词。
#
# **先猜一猜。** 哪些方法用最少的数字就够了？哪些在 96 步里学不会？

# %%
METHODS = {
    "prompt_tuning": 3e-2, "prefix_tuning": 3e-3, "p_tuning_v2": 1e-1,
    "lora": 5e-3, "loha": 2e-2, "lokr": 2e-2, "adalora": 2e-2, "adapter": 2e-2,
    "bitfit": 1e-1, "ia3": 1e-1, "diff_pruning": 1e-2, "full": 4e-3,
}  # fmt: skip
ENGINE = {"epochs": 8, "batch_size": 16, "dtype": "float32", "threads": 1}


def learn(method, rows, unseen, out):
    """Teach the base `rows`; (numbers that trained, share of `unseen` answered right)."""
    run = tunewright.train(
        model=base,
        data={"train": rows, "held_out": 0},
        method=method,
        engine={**ENGINE, "learning_rate": METHODS[method]},
        out=out,
        **QUICK,
    )
    return run.summary["trainable_parameters"], share_right(run.folder, unseen, dtype="float32")


numbers, right = {}, {}
for method in METHODS:
    numbers[method], right[method] = learn(method, train, test, f"runs/{method}")
    print(f"{method:14} {numbers[method]:7,} {right[method]:5.0%}", flush=True)
bars(
    right,
    top=1.0,
    form="{:.0%}",
    about=say("share of unseen questions answered right", "未见过的问题答对的比例"),
)

# %% [markdown] lang="en"
# **What to see.** Two of the shortest bars below stand for methods that learn the task with a few hundred or thousand numbers: where a model has the skill and only must be told when to use it, a small handle will do. A method that is behind here is not a bad one. Each has a rate of its own at which it learns best; these are first guesses, and 96 steps are few.

# %% [markdown] lang="zh"
# **看什么。** 下图中最短的几条里，有些方法只用几百或几千个数字就学会了任务：当模型已有本领、只需知道何时使用时，一个小把手就够了。这里落后的方法并不差：每种方法都有最适合自己的学习率，这里只是初次猜测，而且 96 步并不多。

# %%
assert min(right["lora"], right["full"]) > 0.8
assert max(right[m] for m in right if numbers[m] < 3000) > 0.8  # few numbers are enough
assert numbers["bitfit"] < numbers["ia3"] < 1000 < numbers["prompt_tuning"]
assert numbers["lokr"] < numbers["lora"] < numbers["full"]
bars(
    {name: numbers[name] for name in sorted(numbers, key=numbers.__getitem__)},
    form="{:,.0f}",
    about=say("numbers that each method learns", "每种方法学习的数字个数"),
)

# %% [markdown] lang="en"
# **A harder task.** Now `reverse: a b c` → `c b a`, which the base has never done: it has only ever written one letter.
#
# **Predict.** Will a cheap handle still do? Will LoRA, from 320 rows in 160 steps?

# %% [markdown] lang="zh"
# **更难的任务。** 现在是 `reverse: a b c` → `c b a`，基座从未做过：它以前每次只写一个字母。
#
# **先猜一猜。** 便宜的把手还够用吗？LoRA 呢，用 320 行、160 步？

# %%
backwards = letter_rows("reverse", 320, seed=1)
new = [row for row in letter_rows("reverse", 40, seed=2) if row not in backwards]
train_2, test_2 = write_rows("train-2.jsonl", backwards), write_rows("test-2.jsonl", new[:32])


harder = {}
for method in ("prompt_tuning", "bitfit", "lora"):
    _, harder[method] = learn(method, train_2, test_2, f"reverse/{method}")
print(harder)
assert max(harder.values()) < 0.5
bars(harder, top=1.0, form="{:.0%}", about=say("right on the harder task", "更难的任务上答对的比例"))

# %% [markdown] lang="en"
# **What to see.** None of them. What was easy above was to *call up* a skill; here the skill itself is new, and so few rows and steps do not teach it by any handle. "It worked with prompt tuning" holds for one task only. A new skill asks for many more rows and steps, or for a base that has it.
#
# **Exercise.** Perhaps the room is too small? Let every weight train (`full`) on the harder task. Guess first; then run it.

# %% [markdown] lang="zh"
# **看什么。** 一个都不行。上面容易的是*唤起*一种本领；这里本领本身是新的，这么少的行和步数，用哪种把手都教不会。“提示微调就行”只对某一个任务成立。新本领需要多得多的行和步数，或者一个本来就会的基座。
#
# **练习。** 也许是空间太小？在更难的任务上让全部权重都训练（`full`）。先猜，再运行。

# %% tags=["answer"]
_, harder["full"] = learn("full", train_2, test_2, "reverse/full")
print({name: f"{share:.0%}" for name, share in harder.items()})
assert harder["full"] < 0.5  # room is not what is missing
