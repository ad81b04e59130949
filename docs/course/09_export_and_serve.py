# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---
# needs: serve

# %% [markdown] lang="en"
# # 9. Export, serve, and chat with your model elsewhere
#
# **What for.** A trained model is worth something where it is used: in a program, in a chat window, on a colleague's machine. On the way there things get lost silently: the chat template, the token that ends an answer, sometimes the whole adapter. This lesson carries one model to three places and checks that it answers the same at each.
#
# **The idea.** Three ways to hand it out: the *adapter* (small, needs its base), the *merged model* (one folder, plain Transformers), and an *address* that speaks OpenAI's protocol.

# %% [markdown] lang="zh"
# # 9. 导出、服务，在别处与你的模型对话
#
# **为什么学。** 训练好的模型要用起来才有价值：在程序里、在聊天窗口里、在同事的机器上。途中有些东西会悄悄丢失：对话模板、结束回答的词元，有时甚至整个适配器。本课把一个模型带到三个地方，并检查它在每处的回答都相同。
#
# **思路。** 三种交付方式：*适配器*（小，需要基座）、*合并后的模型*（一个文件夹，普通 Transformers 就能用），以及一个说 OpenAI 协议的*地址*。

# %%
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import torch

import tunewright
from tunewright.course import QUICK, bars, letter_model, letter_rows, say, write_rows

torch.set_num_threads(1)
base = letter_model("base")
rows = letter_rows("last", 192, called="mystery", seed=1)
run = tunewright.train(
    model=base,
    data={"train": write_rows("rows.jsonl", rows), "held_out": 16},
    method={"kind": "lora", "rank": 8},
    engine={
        **{"epochs": 5, "batch_size": 16, "learning_rate": 5e-3},
        **{"dtype": "float32", "threads": 1},
    },
    out="mine",
    **QUICK,
)
questions = [row["instruction"] for row in letter_rows("last", 6, called="mystery", seed=3)]
here = [run.chat(question, max_new_tokens=8) for question in questions]
print(dict(zip(questions, here, strict=True)))


def bytes_of(folder):
    return sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))


# %% [markdown] lang="en"
# **Place 1: a plain folder.** `merge` folds the adapter into the base, writes a folder that any program with Transformers opens, loads it afresh and compares before it says that it is done.
#
# **Predict.** Which is larger, the adapter or the merged model, and how many times?

# %% [markdown] lang="zh"
# **第一处：普通文件夹。** `merge` 把适配器并入基座，写出任何装有 Transformers 的程序都能打开的文件夹，再重新加载、比较，然后才说完成。
#
# **先猜一猜。** 适配器和合并后的模型哪个大？大几倍？

# %%
merged = run.merge("merged")
sizes = {
    say("adapter", "适配器"): bytes_of(run.adapter) / 1024,
    say("merged model", "合并后的模型"): bytes_of(merged) / 1024,
}
bars(sizes, form="{:.0f} KiB", about=say("size of what is handed out", "交付物的大小"))

# %% [markdown] lang="en"
# Now without this product: Transformers alone, as a colleague would use the folder. The template and the stop token must have come along.

# %% [markdown] lang="zh"
# 现在不用本产品：只用 Transformers，就像同事会做的那样。模板和结束词元必须一起带过来。

# %%
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)


def elsewhere(question):
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = model.generate(**asked, max_new_tokens=8, do_sample=False)
    return tokenizer.decode(out[0][asked["input_ids"].shape[1] :], skip_special_tokens=True).strip()


there = [elsewhere(question) for question in questions]
print(there)
assert there == here and sizes[say("adapter", "适配器")] < sizes[say("merged model", "合并后的模型")]

# %% [markdown] lang="en"
# **Place 2: PEFT.** The adapter alone, on the base: what you send when the other side has the base already.

# %% [markdown] lang="zh"
# **第二处：PEFT。** 只有适配器，加在基座上：对方已有基座时就这样发送。

# %%
from peft import PeftModel

plain = AutoModelForCausalLM.from_pretrained(base)
model = plain
without = [elsewhere(question) for question in questions]
model = PeftModel.from_pretrained(plain, run.adapter).eval()
with_adapter = [elsewhere(question) for question in questions]
print(say("without the adapter:", "不带适配器："), without)
print(say("with it:", "带适配器："), with_adapter)
assert with_adapter == here and without != here

# %% [markdown] lang="en"
# **Place 3: an address.** `tunewright serve` speaks OpenAI's protocol, so every program that can talk to such an address can talk to your model. (It needs the extra `serve`: `pip install ".[serve]"` in the folder of the repository, `pip install "tunewright[serve]"` elsewhere.)

# %% [markdown] lang="zh"
# **第三处：一个地址。** `tunewright serve` 说 OpenAI 的协议，所以凡是能与这种地址对话的程序，都能与你的模型对话。（需要附加项 `serve`：在仓库文件夹里 `pip install ".[serve]"`，在别处 `pip install "tunewright[serve]"`。）

# %%
import socket

with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
with open("server.log", "w") as log:
    server = subprocess.Popen(
        [sys.executable, "-m", "tunewright", "serve", str(run.folder), "--port", str(port)],
        stdout=log,
        stderr=log,
    )
address = f"http://127.0.0.1:{port}"


def ask(question):
    body = {"model": "mine", "temperature": 0, "max_tokens": 8}
    body["messages"] = [{"role": "user", "content": question}]
    request = urllib.request.Request(
        f"{address}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)["choices"][0]["message"]["content"].strip()


try:
    for _ in range(240):
        assert server.poll() is None, Path("server.log").read_text()  # it says what is missing
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            break
        except OSError:
            time.sleep(0.5)
    served = [ask(question) for question in questions]
finally:
    server.terminate()
    server.wait(30)
print(served)
assert served == here

# %% [markdown] lang="en"
# **What to see.** Three places, the same answers. For llama.cpp, LM Studio and Ollama there are `tunewright export gguf` and `export ollama`; they prove the file in the same way ([export](../../../export.md)).
#
# **Exercise.** Send a colleague the adapter, and let them put it on another base by mistake. What do they see? Try it with a base that was taught with another `seed`.

# %% [markdown] lang="zh"
# **看什么。** 三个地方，回答相同。llama.cpp、LM Studio 和 Ollama 另有 `tunewright export gguf` 与 `export ollama`，它们以同样的方式证明文件无误（[导出](../../../export.zh-CN.md)）。
#
# **练习。** 把适配器发给同事，而对方误把它加到了另一个基座上。会看到什么？用另一个 `seed` 教出来的基座试试。

# %% tags=["answer"]
other = AutoModelForCausalLM.from_pretrained(letter_model("other", seed=7))
model = PeftModel.from_pretrained(other, run.adapter).eval()
mistaken = [elsewhere(question) for question in questions]
print(mistaken, say("instead of", "而不是"), here)
assert mistaken != here  # no error, only wrong answers: an adapter is a difference to one base
