"""Forms in which questions are asked elsewhere: what a model was trained with, if not with the
template of its chat."""

from __future__ import annotations

from typing import Any

from tunewright.advise.doctor.decoding import Line
from tunewright.core.types import Message

FORMS = {
    "### Instruction / ### Response": "### Instruction:\n{q}\n\n### Response:\n",
    "Alpaca": (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\n{q}\n\n### Response:\n"
    ),
    "### Question / ### Answer": "### Question: {q}\n### Answer: ",
    "Question: / Answer:": "Question: {q}\nAnswer: ",
    "Q: / A:": "Q: {q}\nA: ",
    "User: / Assistant:": "User: {q}\nAssistant: ",
    "Human: / Assistant:": "\n\nHuman: {q}\n\nAssistant: ",
    "question, line break, answer": "{q}\n",
    "question, space, answer": "{q} ",
    "问：/ 答：": "问：{q}\n答：",
    "ChatML": "<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n",
    "Llama 2 [INST]": "[INST] {q} [/INST] ",
    "Llama 3": (
        "<|start_header_id|>user<|end_header_id|>\n\n{q}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "Zephyr": "<|user|>\n{q}\n<|assistant|>\n",
    "Gemma": "<start_of_turn>user\n{q}<end_of_turn>\n<start_of_turn>model\n",
}
"""Name -> what stands before the answer."""


def lines_in(form: str, tokenizer: Any, messages: list[Message], answer: str) -> Line | None:
    """A question and its answer in another form, as tokens with the tokenizer's own beginning; None
    where the form does not fit (several turns before the answer)."""
    turns = [m for m in messages if m.role != "system"]
    if len(turns) != 1 or not answer:
        return None
    before = FORMS[form].replace("{q}", turns[0].content)
    whole = list(tokenizer(before + answer)["input_ids"])
    prompt = list(tokenizer(before)["input_ids"])
    if prompt and whole[: len(prompt)] != prompt:
        # A tokenizer may join what stands on both sides, or end every text with a token.
        prompt = prompt[: next(i for i, t in enumerate(prompt) if whole[i : i + 1] != [t])]
    answer_ids = whole[len(prompt) :]
    return Line(prompt, answer_ids, None) if prompt and answer_ids else None
