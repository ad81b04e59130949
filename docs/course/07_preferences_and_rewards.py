# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown] lang="en"
# # 7. When nobody can write the answer: SFT, reward model, PPO; DPO; GRPO with a rule
#
# **What for.** Sometimes you cannot write the right answer, but you can say which of two is better, or check one by a rule. Three roads lead from there to a better model; here you walk all three on one task.
#
# **The idea.**
#
# * *SFT, reward model, PPO*: imitate; learn a judge from pairs; practise under that judge.
# * *DPO*: learn from the pairs directly, without a judge.
# * *GRPO*: draw several answers to each question, check them by a rule, do more of what was better than the rest of its group.

# %% [markdown] lang="zh"
# # 7. 没人能写出答案时：SFT、奖励模型、PPO；DPO；用规则的 GRPO
#
# **为什么学。** 有时你写不出正确答案，但能说出两个中哪个更好，或能用规则检验一个答案。由此有三条路通向更好的模型；这里在同一个任务上把三条都走一遍。
#
# **思路。**
#
# * *SFT、奖励模型、PPO*：先模仿；再从成对数据学出一个评判者；然后在它的评判下练习。
# * *DPO*：直接从成对数据学习，不需要评判者。
# * *GRPO*：对每个问题抽取几个回答，用规则检验，多做比同组其他回答更好的事。

# %%
import torch

import tunewright
from tunewright.course import QUICK, bars, letter_model, letter_rows, say, share_right, write_rows

torch.set_num_threads(1)
base = letter_model("base")
rows = letter_rows("last", 160, seed=1)
seen = {row["instruction"] for row in rows}
unseen = [row for row in letter_rows("last", 60, seed=2) if row["instruction"] not in seen]


def glad(row):
    return {**row, "output": f"{row['output']}!"}


right = [glad(row) for row in rows]  # what people want
test = write_rows("test.jsonl", [glad(row) for row in unseen[:32]])
engine = {"batch_size": 16, "dtype": "float32", "threads": 1}
lora = {"kind": "lora", "rank": 16}

shares = {}


def measure(name, run):
    """Note the share of right answers, and show two answers."""
    shares[name] = share_right(run.folder, test, dtype="float32")
    answers = [run.chat(row["instruction"], max_new_tokens=8) for row in unseen[:2]]
    print(f"{name}: {shares[name]:.0%}", answers)


print(rows[0], "->", right[0]["output"])

# %% [markdown] lang="en"
# **Step 1, SFT on careless data.** People would like a glad answer (`k!`). In two of five rows it is glad, in the others plain (`k`), and nobody has sorted them.
#
# **Predict.** How often will the model, asked for its most likely answer, be glad?

# %% [markdown] lang="zh"
# **第一步：在草率的数据上做 SFT。** 人们想要高兴的回答（`k!`）。五行里有两行是高兴的，其余是平淡的（`k`），没人整理过。
#
# **先猜一猜。** 只取最可能的回答时，模型有多大比例是高兴的？

# %%
careless = [right[n] if n % 5 < 2 else row for n, row in enumerate(rows)]
sft = tunewright.train(
    model=base,
    data={"train": write_rows("careless.jsonl", careless), "held_out": 0},
    method=lora,
    engine={**engine, "epochs": 5, "learning_rate": 5e-3},
    out="sft",
    **QUICK,
)
measure("SFT", sft)

# %% [markdown] lang="en"
# **Step 2, the judge.** A pair says: this answer rather than that one. The reward model learns to give the chosen one the larger number. It is measured on pairs that it never saw.

# %% [markdown] lang="zh"
# **第二步：评判者。** 一对数据的意思是：要这个回答，不要那个。奖励模型学习给被选中的回答更大的分数，并在没见过的成对数据上测量。

# %%
pairs = [
    {"prompt": row["instruction"], "chosen": better["output"], "rejected": row["output"]}
    for row, better in zip(rows, right, strict=True)
]
pairs_file = write_rows("pairs.jsonl", pairs)
judge = tunewright.train(
    model=base,
    adapter=str(sft.adapter),
    data={"train": pairs_file, "held_out": 24},
    objective={"kind": "reward", "center": 0.01},
    engine={**engine, "epochs": 3, "learning_rate": 5e-3},
    out="judge",
    **QUICK,
)
accuracy = judge.summary["held_out_figures"]["accuracy"]
print(say("unseen pairs that the judge ranks right:", "评判者排对的未见过的成对："), f"{accuracy:.0%}")
assert accuracy > 0.8

# %% [markdown] lang="en"
# **Step 3, practice under the judge.** No row says what to write any more: the prompts have no answers.

# %% [markdown] lang="zh"
# **第三步：在评判下练习。** 再没有哪一行告诉模型写什么：这些提示没有答案。

# %%
prompts = [{"prompt": row["instruction"]} for row in right]
ppo = tunewright.train(
    model=base,
    adapter=str(sft.adapter),
    data={"train": write_rows("prompts.jsonl", prompts), "format": "prompts", "held_out": 0},
    objective={"kind": "ppo", "reward": str(judge.folder), "max_new_tokens": 4, "beta": 0.02},
    engine={**engine, "steps": 20, "learning_rate": 2e-3},
    out="ppo",
    **QUICK,
)
measure(say("SFT, judge, PPO", "SFT、评判者、PPO"), ppo)

# %% [markdown] lang="en"
# **The second road, DPO:** the same pairs, the same start, one run, no judge.

# %% [markdown] lang="zh"
# **第二条路，DPO：** 同样的成对数据，同样的起点，一次训练，没有评判者。

# %%
dpo = tunewright.train(
    model=base,
    adapter=str(sft.adapter),
    data={"train": pairs_file, "held_out": 0},
    objective={"kind": "dpo", "beta": 0.1},
    engine={**engine, "epochs": 2, "learning_rate": 1e-3},
    out="dpo",
    **QUICK,
)
measure(say("SFT, DPO", "SFT、DPO"), dpo)
print(f"{dpo.summary['first_loss']:.3f} -> {dpo.summary['final_loss']:.3f}")
assert abs(dpo.summary["first_loss"] - 0.693) < 0.01  # the logarithm of 2: nothing has changed yet

# %% [markdown] lang="en"
# **The third road, GRPO with a rule:** eight answers to each prompt, and a rule that checks them. Here the rule is "equal to the expected answer"; with a program it could be "the tests pass".
#
# **Predict.** GRPO compares answers within a group. What does it learn from a group in which all eight are right?

# %% [markdown] lang="zh"
# **第三条路，用规则的 GRPO：** 每个提示抽八个回答，再用规则检验。这里的规则是“等于期望的答案”；若是程序，规则可以是“测试通过”。
#
# **先猜一猜。** GRPO 在组内比较回答。如果一组八个全对，它能学到什么？

# %%
checked = [{"prompt": row["instruction"], "answer": row["output"]} for row in right]
grpo = tunewright.train(
    model=base,
    adapter=str(sft.adapter),
    data={"train": write_rows("checked.jsonl", checked), "format": "prompts", "held_out": 0},
    objective={"kind": "grpo", "reward": "exact_match", "generations": 8, "max_new_tokens": 4},
    engine={**engine, "steps": 30, "learning_rate": 5e-3},
    out="grpo",
    **QUICK,
)
measure(say("SFT, GRPO", "SFT、GRPO"), grpo)
alike = grpo.summary.get("groups_without_difference")
print(say("groups without a difference:", "没有差别的组："), alike)
bars(
    shares,
    top=1.0,
    form="{:.0%}",
    about=say("unseen questions answered as people want", "未见过的问题按人们的意愿作答的比例"),
)

# %% [markdown] lang="en"
# **What to see.** All three roads end above the careless SFT. From a group whose answers are all alike GRPO learns nothing: nothing in it is better than the rest.

# %% [markdown] lang="zh"
# **看什么。** 三条路的终点都高于草率的 SFT。一组回答若全都一样，GRPO 什么也学不到：没有哪个比其余的更好。

# %%
start, *roads = shares.values()
assert min(roads) > start + 0.1

# %% [markdown] lang="en"
# **Exercise.** The judge is only a model. Which of its answers does it like better: one `!`, or five of them? Why is a rule, where there is one, worth more than a judge?

# %% [markdown] lang="zh"
# **练习。** 评判者只是一个模型。它更喜欢哪个回答：带一个 `!` 的，还是带五个的？为什么只要有规则，规则就比评判者更有价值？

# %% [markdown] lang="en"
# <details>
# <summary>Answer</summary>
#
# The judge has seen no answer with more than one `!`, and may have learnt no more than "longer is better". About such answers it says whatever its weights happen to say, and PPO will look for exactly such places (people call it reward hacking). A rule has no such gaps: it cannot be talked into anything. Where no rule exists, keep the practising model near its start (`beta`), and read its answers.
#
# </details>

# %% [markdown] lang="zh"
# <details>
# <summary>答案</summary>
#
# 评判者没见过带一个以上 `!` 的回答，也许学到的只是“越长越好”。对这样的回答，它的分数只是权重碰巧给出的，而 PPO 恰恰会去寻找这样的地方（人们称之为奖励作弊）。规则没有这种漏洞：没法说服它。没有规则时，要让练习中的模型离起点不远（`beta`），并亲自读它的回答。
#
# </details>
