"""Tiny tokenizers made on the fly, with chat templates in the shape of well-known families. Written
by hand, so that they are an oracle of shape only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "the quick brown fox jumps over the lazy dog and asks a question about the answer",
    "user assistant system model think Instruction Answer hello world one two three four five",
    "什么是机器学习？它是人工智能的一个分支。你好，世界。",
]


@dataclass(frozen=True)
class Family:
    """A template with its tokens. `stop` ends an answer."""

    template: str | None
    special: tuple[str, ...]
    bos: str | None
    eos: str
    stop: str
    added: tuple[str, ...] = ()
    rstrip: bool = False
    spaces: bool = False
    system: bool = True
    tools: bool = False
    """The template writes tools, tool calls and tool results."""


CHATML_TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    + CHATML_TURNS
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' -%}{%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set turns = messages -%}{%- endif -%}{{- bos_token -}}"
    "{%- for m in turns -%}{%- if m['role'] == 'user' -%}"
    "{%- if loop.index0 >= turns | length - 2 and loop.last | string != 'x' and system is defined and"
    " (loop.last or turns[loop.index0 + 1:] | selectattr('role', 'equalto', 'user') | list | length == 0) -%}"
    "{{- '[INST] ' + system + '\n\n' + m['content'] + '[/INST]' -}}{%- else -%}{{- '[INST] ' + m['content'] + '[/INST]' -}}{%- endif -%}"
    "{%- else -%}{{- ' ' + m['content'] | trim + eos_token -}}{%- endif -%}{%- endfor -%}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set turns = messages %}{% set system = false %}{% endif %}"
    "{% for m in turns %}{% if loop.index0 == 0 and system != false %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m['content'] %}{% else %}{% set content = m['content'] %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}{% elif m['role'] == 'user' %}"
    "{{ '<|User|>' + m['content'] }}{% else %}{{ '<|Assistant|>' + m['content'].split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
QWEN3 = (
    "{%- set ns = namespace(last=-1) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    "{%- for m in messages -%}{%- if m.role != 'assistant' -%}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}{%- else -%}"
    "{%- set content = m.content -%}{%- set thought = '' -%}{%- if '</think>' in content -%}"
    "{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') -%}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') -%}{%- endif -%}"
    "{%- if loop.index0 > ns.last -%}{{- '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') -}}"
    "{%- else -%}{{- '<|im_start|>assistant\n' + content -}}{%- endif -%}{{- '<|im_end|>\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
GLM = (
    "[gMASK]<sop>{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
NO_HEADER = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
TRIMMED = CHATML_TURNS.replace("m['content']", "m['content'] | trim")
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
VICUNA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ messages[0].content }}{% set turns = messages[1:] %}"
    "{% else %}{{ 'A chat between a user and an assistant.' }}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if m.role == 'user' %}{{ ' USER: ' + m.content }}{% else %}{{ ' ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
INTERNLM = "{{ bos_token }}" + CHATML_TURNS
YI = (
    "{% for m in messages %}{% if m.role in ['user', 'system', 'assistant'] %}"
    "{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>' ~ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
COMMAND_R = (
    "{% macro turn(name, text) %}{{ '<|START_OF_TURN_TOKEN|><|' ~ name ~ '_TOKEN|>' ~ text | trim ~ '<|END_OF_TURN_TOKEN|>' }}{% endmacro %}"
    "{{ bos_token }}{% for m in messages %}"
    "{{ turn({'user': 'USER', 'system': 'SYSTEM', 'assistant': 'CHATBOT'}[m.role], m.content) }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)
GRANITE = (
    "{%- if tools -%}{{- '<|start_of_role|>tools<|end_of_role|>' + tools | tojson(indent=4) + '<|end_of_text|>\n' -}}{%- endif -%}"
    "{%- for m in messages -%}{%- set said = m.content -%}"
    "{%- if m.role == 'tool' -%}{{- '<|start_of_role|>tool_response<|end_of_role|>' + said + '<|end_of_text|>\n' -}}"
    "{%- elif m.tool_calls is defined -%}{{- '<|start_of_role|>assistant<|end_of_role|><|tool_call|>' + m.tool_calls | map(attribute='function') | list | tojson"
    " + '<|end_of_text|>\n' -}}"
    "{%- else -%}{{- '<|start_of_role|>' + m.role + '<|end_of_role|>' + said + '<|end_of_text|>\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_of_role|>assistant<|end_of_role|>' -}}{%- endif -%}"
)
HERMES = (
    "{%- if tools -%}{{- '<|im_start|>system\n' + (messages[0].content if messages[0].role == 'system' else 'You are helpful.') -}}"
    "{{- '\n\n<tools>' -}}{%- for tool in tools -%}{{- '\n' + tool | tojson -}}{%- endfor -%}{{- '\n</tools><|im_end|>\n' -}}"
    "{%- elif messages[0].role == 'system' -%}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' -}}{%- endif -%}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{{- '<|im_start|>user\n' + m.content + '<|im_end|>\n' -}}"
    "{%- elif m.role == 'assistant' -%}{{- '<|im_start|>assistant\n' + m.content -}}"
    "{%- for call in m.tool_calls or [] -%}{%- if not loop.first or m.content -%}{{- '\n' -}}{%- endif -%}"
    "{{- '<tool_call>\n' + call.function | tojson + '\n</tool_call>' -}}{%- endfor -%}{{- '<|im_end|>\n' -}}"
    "{%- elif m.role == 'tool' -%}{{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
LLAMA31 = (
    "{{- bos_token -}}{%- if messages[0].role == 'system' -%}{%- set system = messages[0].content | trim -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set system = '' -%}{%- set turns = messages -%}{%- endif -%}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\n' + ('Environment: ipython\n' if tools else '') + system + '<|eot_id|>' -}}"
    "{%- for m in turns -%}{%- if m.role == 'user' -%}{{- '<|start_header_id|>user<|end_header_id|>\n\n' -}}"
    "{%- if tools and loop.first -%}{%- for tool in tools -%}{{- tool | tojson(indent=2) + '\n\n' -}}{%- endfor -%}{%- endif -%}{{- m.content | trim + '<|eot_id|>' -}}"
    "{%- elif m.role == 'tool' -%}{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + m.content | tojson + '<|eot_id|>' -}}"
    "{%- elif 'tool_calls' in m -%}{%- if m.tool_calls | length != 1 -%}{{- raise_exception('one call a turn') -}}{%- endif -%}"
    "{%- set call = m.tool_calls[0].function -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}"
    "{{- '{\"name\": \"' + call.name + '\", \"parameters\": ' + call.arguments | tojson + '}<|eot_id|>' -}}"
    "{%- else -%}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}"
)
PHI4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
MISTRAL_V1 = (
    "{%- if messages[0].role == 'system' -%}{%- set first = messages[0].content + '\n\n' -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set first = '' -%}{%- set turns = messages -%}{%- endif -%}{{- bos_token -}}"
    "{%- for m in turns -%}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}{{- raise_exception('Roles must alternate') -}}{%- endif -%}"
    "{%- if m.role == 'user' -%}{{- ' [INST] ' + (first if loop.first else '') + m.content + ' [/INST]' -}}"
    "{%- else -%}{{- ' ' + m.content + eos_token -}}{%- endif -%}{%- endfor -%}"
)
MISTRAL_V3 = (
    "{%- set ns = namespace(last=-1) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    "{{- bos_token -}}{%- for m in messages -%}{%- if m.role == 'user' -%}"
    "{%- if tools and loop.index0 == ns.last -%}{{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' -}}{%- endif -%}"
    "{{- '[INST] ' + (messages[0].content + '\n\n' if loop.index0 == ns.last and messages[0].role == 'system' else '') + m.content + '[/INST]' -}}"
    "{%- elif m.role == 'tool' -%}{{- '[TOOL_RESULTS] ' + {'content': m.content} | tojson + '[/TOOL_RESULTS]' -}}"
    "{%- elif m.role == 'assistant' and m.tool_calls is defined -%}{{- '[TOOL_CALLS] ' + m.tool_calls | map(attribute='function') | list | tojson + eos_token -}}"
    "{%- elif m.role == 'assistant' -%}{{- ' ' + m.content + eos_token -}}{%- endif -%}{%- endfor -%}"
)
GEMMA3 = (
    "{{ bos_token }}{%- if messages[0].role == 'system' -%}{%- set first = messages[0].content + '\n\n' -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set first = '' -%}{%- set turns = messages -%}{%- endif -%}"
    "{%- for m in turns -%}{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (first if loop.first else '') -}}"
    "{{- m.content | trim + '<end_of_turn>\n' -}}{%- endfor -%}{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}"
)
DEEPSEEK_CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\n\n' }}{% elif m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{% else %}{{ '<|Assistant|>' + m.content + eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}"
)
CHATGLM3 = (
    "[gMASK]<sop>{% for m in messages %}{{ '<|' + m.role + '|>\n ' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
BAICHUAN2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<reserved_106>' + m.content }}{% elif m.role == 'assistant' %}"
    "{{ '<reserved_107>' + m.content + eos_token }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<reserved_107>' }}{% endif %}"
)
SMOLLM3 = (
    "{%- set own = messages[0].content if messages[0].role == 'system' else '' -%}"
    "{{- '<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nReasoning Mode: /think\n\n## Custom Instructions\n\n' -}}"
    "{{- (own or 'You are a helpful assistant.') + '\n\n<|im_end|>\n' -}}"
    "{%- for m in (messages[1:] if own else messages) -%}{%- if m.role == 'user' -%}{{- '<|im_start|>user\n' + m.content + '<|im_end|>\n' -}}"
    "{%- else -%}{{- '<|im_start|>assistant\n' + m.content.lstrip('\n') + '<|im_end|>\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
LAST_QUESTION = "{%- set ns = namespace(last=-1, mode='') -%}{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
SPLIT_THOUGHT = (
    "{%- set content = m.content -%}{%- set thought = '' -%}{%- if '</think>' in content -%}"
    "{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') -%}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') -%}{%- endif -%}"
)
# A switch that writes an empty thought into the question; the last answer always has a thought, if
# an empty one.
QWEN3_SWITCH = (
    LAST_QUESTION + "{%- for m in messages -%}{%- if m.role != 'assistant' -%}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}{%- else -%}"
    + SPLIT_THOUGHT + "{{- '<|im_start|>assistant\n' -}}{%- if loop.index0 > ns.last and (loop.last or thought) -%}"
    "{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' -}}{%- endif -%}"
    "{{- content -}}{%- for call in m.tool_calls or [] -%}{{- '<tool_call>\n' + call.function | tojson + '\n</tool_call>' -}}{%- endfor -%}"
    "{{- '<|im_end|>\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}{%- endif -%}"
)  # fmt: skip
# The same, but a question opens the thought, unless thinking is switched off.
QWEN35 = QWEN3_SWITCH.replace(
    "</think>\n\n' -}}{%- endif -%}{%- endif -%}",
    "</think>\n\n' -}}{%- else -%}{{- '<think>\n' -}}{%- endif -%}{%- endif -%}",
)
# Thinking is off unless it is switched on.
QWEN35_SMALL = QWEN35.replace(
    "enable_thinking is defined and enable_thinking is false",
    "not (enable_thinking is defined and enable_thinking is true)",
)
# Every question opens the thought, and nothing switches it off.
QWEN3_THINKING = QWEN35.replace("enable_thinking is defined and enable_thinking is false", "false")
# Off: a word behind every question and an empty thought behind the header; without it, every answer
# that shows no thought has an empty one, too.
GLM45 = (
    "[gMASK]<sop>" + LAST_QUESTION
    + "{%- for m in messages -%}{%- if m.role == 'user' -%}{{- '<|user|>\n' + m.content -}}"
    "{{- '/nothink' if enable_thinking is defined and not enable_thinking and not m.content.endswith('/nothink') else '' -}}"
    "{%- elif m.role == 'assistant' -%}" + SPLIT_THOUGHT
    + "{{- '<|assistant|>\n<think>' + (thought.strip() if loop.index0 > ns.last else '') + '</think>' -}}"
    "{%- if content.strip() -%}{{- '\n' + content.strip() -}}{%- endif -%}"
    "{%- else -%}{{- '<|' + m.role + '|>\n' + m.content -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}"
    "{{- '\n<think></think>' if enable_thinking is defined and not enable_thinking else '' -}}{%- endif -%}"
)  # fmt: skip
# An empty thought is its closing alone.
GLM47 = (
    "[gMASK]<sop>" + LAST_QUESTION
    + "{%- for m in messages -%}{%- if m.role != 'assistant' -%}{{- '<|' + m.role + '|>' + m.content -}}{%- else -%}" + SPLIT_THOUGHT
    + "{{- '<|assistant|>' + ('<think>' + thought.strip() if loop.index0 > ns.last and thought else '') + '</think>' -}}{{- content.strip() -}}"
    "{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}"
    "{{- '</think>' if enable_thinking is defined and not enable_thinking else '<think>' -}}{%- endif -%}"
)  # fmt: skip
# Thoughts are left out of every answer, the last one too, and every question opens one.
R1_DISTILL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{% else %}{% set content = m.content %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<|Assistant|>' + content + '<|finish|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
# The mode stands in the system prompt, where a row may set it too; off, every answer has an empty
# thought.
SMOLLM3_SWITCH = (
    "{%- set on = enable_thinking is not defined or enable_thinking -%}{%- set said = '' -%}{%- set turns = messages -%}"
    "{%- if messages[0].role == 'system' -%}{%- set said = messages[0].content -%}{%- set turns = messages[1:] -%}"
    "{%- if '/no_think' in said -%}{%- set on = false -%}{%- elif '/think' in said -%}{%- set on = true -%}{%- endif -%}"
    "{%- set said = said.replace('/no_think', '').replace('/think', '').rstrip() -%}{%- endif -%}"
    "{{- '<|im_start|>system\nReasoning Mode: ' + ('/think' if on else '/no_think') + '\n\n' + (said or 'You are a helpful model.') + '<|im_end|>\n' -}}"
    "{%- for m in turns -%}{%- if m.role == 'assistant' -%}{{- '<|im_start|>assistant\n' + ('' if on else '<think>\n\n</think>\n') + m.content.lstrip('\n') -}}"
    "{%- else -%}{{- '<|im_start|>' + m.role + '\n' + m.content -}}{%- endif -%}{{- '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' + ('' if on else '<think>\n\n</think>\n') -}}{%- endif -%}"
)
# Channels: a thought in a field of its own goes to `analysis`, of the last answer only, which alone
# ends with <|return|>. The effort is an argument; nothing switches thinking off. Of the shape of
# gpt-oss's template (a first message of the system that the template writes, then the developer's).
HARMONY = (
    "{{- '<|start|>system<|message|>You are a helpful model.\nReasoning: ' + (reasoning_effort if reasoning_effort is defined else 'medium')"
    " + '\n\n# Valid channels: analysis, commentary, final.<|end|>' -}}"
    "{%- set turns = messages -%}{%- if messages[0].role in ('system', 'developer') -%}"
    "{{- '<|start|>developer<|message|># Instructions\n\n' + messages[0].content + '<|end|>' -}}{%- set turns = messages[1:] -%}{%- endif -%}"
    "{%- for m in turns -%}{%- if m.role == 'assistant' -%}"
    "{%- if '<|channel|>' in m.content -%}{{- raise_exception('Put analysis messages into the field thinking.') -}}{%- endif -%}"
    "{%- if m.tool_calls -%}{%- if m.thinking and m.content -%}{{- raise_exception('Both content and thinking beside a tool call.') -}}{%- endif -%}"
    "{%- if m.thinking -%}{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' -}}{%- endif -%}"
    "{%- set call = m.tool_calls[0].function -%}"
    "{{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' + call.arguments | tojson + '<|call|>' -}}"
    "{%- elif loop.last and not add_generation_prompt -%}{%- if 'thinking' in m -%}"
    "{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' -}}{%- endif -%}"
    "{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' -}}"
    "{%- else -%}{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' -}}{%- endif -%}"
    "{%- elif m.role == 'tool' -%}{{- '<|start|>functions.' + (m.name or 'tool') + ' to=assistant<|channel|>commentary<|message|>' + m.content | tojson + '<|end|>' -}}"
    "{%- else -%}{{- '<|start|>user<|message|>' + m.content + '<|end|>' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}"
)
# Marks of its own, which are special tokens, around a thought from a field; every answer may show
# one.
OWN_MARKS = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\n' -}}"
    "{%- if m.role == 'assistant' and m.reasoning_content -%}{{- '<seed:think>' + m.reasoning_content + '</seed:think>' -}}{%- endif -%}"
    "{{- m.content + '<|im_end|>' -}}{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
LLAMA3_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
COMMAND_TOKENS = (
    "<BOS_TOKEN>",
    "<EOS_TOKEN>",
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
)
GRANITE_TOKENS = ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>")
MISTRAL_TOKENS = (
    "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
)  # fmt: skip
IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

FAMILIES = {
    "chatml": Family(CHATML_DEFAULT, IM, None, "<|im_end|>", "<|im_end|>"),
    "chatml_eos_differs": Family(CHATML_TURNS, IM, None, "<|endoftext|>", "<|im_end|>"),
    "chatml_bos_is_header": Family(CHATML_TURNS, IM, "<|im_start|>", "<|im_end|>", "<|im_end|>"),
    "llama3": Family(
        LLAMA3,
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ),
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|eot_id|>",
    ),
    "gemma": Family(
        GEMMA,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<bos>",
        "<eos>",
        "<end_of_turn>",
        system=False,
    ),
    "mistral": Family(MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), "<s>", "</s>", "</s>"),
    "phi3": Family(
        PHI3,
        ("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<s>",
        "<|endoftext|>",
        "<|end|>",
        rstrip=True,
    ),
    "llama2": Family(LLAMA2, ("<s>", "</s>"), "<s>", "</s>", "</s>", spaces=True),
    "deepseek": Family(
        DEEPSEEK,
        ("<|begin|>", "<|finish|>", "<|User|>", "<|Assistant|>"),
        "<|begin|>",
        "<|finish|>",
        "<|finish|>",
        added=("<think>", "</think>"),
    ),
    "qwen3": Family(QWEN3, IM, None, "<|im_end|>", "<|im_end|>", added=("<think>", "</think>")),
    "trimmed": Family(TRIMMED, IM, None, "<|im_end|>", "<|im_end|>"),
    "header_is_stop": Family(
        GLM,
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
        None,
        "<|endoftext|>",
        "<|user|>|<|endoftext|>",
    ),
    "no_generation_prompt": Family(NO_HEADER, IM, None, "<|im_end|>", "<|im_end|>"),
    "zephyr": Family(ZEPHYR, ("<s>", "</s>"), "<s>", "</s>", "</s>", spaces=True),
    "vicuna": Family(VICUNA, ("<s>", "</s>"), "<s>", "</s>", "</s>", spaces=True),
    "internlm": Family(
        INTERNLM, ("<s>", "</s>", "<|im_start|>", "<|im_end|>"), "<s>", "</s>", "<|im_end|>"
    ),
    "yi": Family(YI, ("<|startoftext|>", *IM), "<|startoftext|>", "<|im_end|>", "<|im_end|>"),
    "command_r": Family(
        COMMAND_R, COMMAND_TOKENS, "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"
    ),
    "granite": Family(
        GRANITE, GRANITE_TOKENS, None, "<|end_of_text|>", "<|end_of_text|>", tools=True
    ),
    "hermes": Family(
        HERMES,
        IM,
        None,
        "<|im_end|>",
        "<|im_end|>",
        added=("<tool_call>", "</tool_call>"),
        tools=True,
    ),
    "llama31": Family(
        LLAMA31, LLAMA3_TOKENS, "<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>", tools=True
    ),
    "phi4": Family(PHI4, (*IM, "<|im_sep|>"), "<|endoftext|>", "<|endoftext|>", "<|im_end|>"),
    "mistral_v1": Family(MISTRAL_V1, ("<s>", "</s>"), "<s>", "</s>", "</s>", spaces=True),
    "mistral_v3": Family(MISTRAL_V3, MISTRAL_TOKENS, "<s>", "</s>", "</s>", tools=True),
    "gemma3": Family(
        GEMMA3,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<bos>",
        "<eos>",
        "<end_of_turn>",
    ),
    "deepseek_chat": Family(
        DEEPSEEK_CHAT,
        ("<|begin|>", "<|finish|>", "<|User|>", "<|Assistant|>"),
        "<|begin|>",
        "<|finish|>",
        "<|finish|>",
    ),
    "chatglm3": Family(
        CHATGLM3,
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
        None,
        "<|endoftext|>",
        "<|user|>|<|endoftext|>",
    ),
    "baichuan2": Family(
        BAICHUAN2,
        ("<s>", "</s>", "<reserved_106>", "<reserved_107>"),
        "<s>",
        "</s>",
        "</s>",
        spaces=True,
    ),
    "smollm3": Family(SMOLLM3, IM, None, "<|im_end|>", "<|im_end|>", added=("<think>", "</think>")),
    "plain": Family(None, ("<s>", "</s>"), "<s>", "</s>", "</s>"),
    "plain_spaces": Family(None, ("<s>", "</s>"), "<s>", "</s>", "</s>", spaces=True),
}

GLM_TOKENS = ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>")
THOUGHTS = ("<think>", "</think>")
# Templates that know thinking, beside the others: most tests run through every one of FAMILIES.
THINKING = {
    "qwen3": Family(
        QWEN3_SWITCH,
        IM,
        None,
        "<|im_end|>",
        "<|im_end|>",
        added=(*THOUGHTS, "<tool_call>", "</tool_call>"),
    ),
    "qwen3_thinking": Family(QWEN3_THINKING, IM, None, "<|im_end|>", "<|im_end|>", added=THOUGHTS),
    "qwen3.5": Family(
        QWEN35,
        IM,
        None,
        "<|im_end|>",
        "<|im_end|>",
        added=(*THOUGHTS, "<tool_call>", "</tool_call>"),
    ),
    "qwen3.5_small": Family(QWEN35_SMALL, IM, None, "<|im_end|>", "<|im_end|>", added=THOUGHTS),
    "glm4.5": Family(GLM45, GLM_TOKENS, None, "<|endoftext|>", "<|endoftext|>", added=THOUGHTS),
    "glm4.7": Family(GLM47, GLM_TOKENS, None, "<|endoftext|>", "<|endoftext|>", added=THOUGHTS),
    "r1_distill": Family(
        R1_DISTILL,
        ("<|begin|>", "<|finish|>", "<|User|>", "<|Assistant|>"),
        "<|begin|>",
        "<|finish|>",
        "<|finish|>",
        added=THOUGHTS,
    ),
    "smollm3": Family(SMOLLM3_SWITCH, IM, None, "<|im_end|>", "<|im_end|>", added=THOUGHTS),
}

# Templates that take a thought in a field of its own and write other marks around it.
CHANNELS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|return|>",
    "<|start|>",
    "<|end|>",
    "<|channel|>",
    "<|message|>",
    "<|call|>",
)
MARKED = {
    "harmony": Family(HARMONY, CHANNELS, "<|startoftext|>", "<|return|>", "<|return|>", tools=True),
    "own_marks": Family(
        OWN_MARKS, (*IM, "<seed:think>", "</seed:think>"), None, "<|im_end|>", "<|im_end|>"
    ),
}


@cache
def _bytes_trained() -> str:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS * 3,
        trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False),
    )
    return made.to_str()


@cache
def _spaces_trained() -> str:
    """In the manner of SentencePiece: a space before the first word, bytes for unknown characters."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.train_from_iterator(
        CORPUS[:2] * 3, trainers.BpeTrainer(vocab_size=200, show_progress=False)
    )
    model = json.loads(made.to_str())["model"]
    names = ["<unk>", *[f"<0x{b:02X}>" for b in range(256)], *model["vocab"]]
    vocab = {name: i for i, name in enumerate(dict.fromkeys(names))}
    whole = Tokenizer(
        models.BPE(
            vocab,
            [tuple(m) for m in model["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    whole.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    whole.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return whole.to_str()


def tokenizer_of(name: str, families: dict[str, Family] = FAMILIES) -> Any:
    """A fresh tokenizer of the family."""
    family = families[name]
    backend = Tokenizer.from_str(_spaces_trained() if family.spaces else _bytes_trained())
    backend.add_special_tokens(
        [
            AddedToken(s, special=True, normalized=False, rstrip=family.rstrip and s != family.bos)
            for s in family.special
        ]
    )
    backend.add_tokens([AddedToken(s, special=False, normalized=False) for s in family.added])
    if family.bos and family.template is None:
        from tokenizers.processors import TemplateProcessing

        backend.post_processor = TemplateProcessing(
            single=f"{family.bos} $A",
            special_tokens=[(family.bos, backend.token_to_id(family.bos))],
        )
    extra = {"unk_token": "<unk>"} if family.spaces else {}
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=family.eos,
        **extra,
    )
    made.chat_template = family.template
    return made
