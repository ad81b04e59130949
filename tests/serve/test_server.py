"""The server, asked by the real client of OpenAI: every answer is the right model's, and every
setting of a request does what it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers import serving
from helpers.serving import FACTS, Running

from tunewright.core.telling import Quiet
from tunewright.core.types import Message
from tunewright.serve.answering import open_target

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")
CAPITAL = [{"role": "user", "content": "what is the capital"}]
FREE = [{"role": "user", "content": "a small model"}]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    base = serving.base_folder(folder / "base")
    for name, facts in FACTS.items():
        serving.taught_run(folder / name, base, facts)
    return folder


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Running]:
    targets = [(place / "red", "red"), (place / "blue", "blue"), (place / "base", "base")]
    with serving.serving(targets, adapters=place) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Any:
    return server.client()


def say(client: Any, model: str = "red", messages: Any = CAPITAL, **how: Any) -> Any:
    how = {"temperature": 0, "max_tokens": 24, **how}
    return client.chat.completions.create(model=model, messages=messages, **how)


def test_each_adapter_gives_its_own_answers_at_the_same_time(client: Any) -> None:
    asked = [(m, q, a) for m, facts in FACTS.items() for q, a in facts.items()] * 12
    with ThreadPoolExecutor(16) as crowd:
        found = list(
            crowd.map(lambda one: say(client, one[0], [{"role": "user", "content": one[1]}]), asked)
        )
    assert [r.choices[0].message.content for r in found] == [a for _, _, a in asked]
    assert {r.model for r in found} == {"red", "blue"}
    assert all(r.choices[0].finish_reason == "stop" for r in found)
    # Nothing of an adapter is on the base, or on the other.
    assert say(client, "base").choices[0].message.content not in [
        facts["what is the capital"] for facts in FACTS.values()
    ]


@pytest.mark.parametrize("name", ["red", "base"])
def test_greedy_text_is_that_of_chat_to_the_letter(client: Any, place: Path, name: str) -> None:
    for messages in (CAPITAL, FREE):
        served = say(client, name, messages, max_tokens=40).choices[0].message.content
        own = open_target(str(place / name), Quiet(), dtype="float32", device="cpu")
        turns = [Message("user", messages[0]["content"])]
        assert served == own.ask(turns, max_new_tokens=40).text


@pytest.mark.parametrize("how", [{}, {"stop": ["e"]}, {"n": 3, "temperature": 1.0, "seed": 4}])
def test_a_stream_says_what_the_whole_reply_says(client: Any, how: dict[str, Any]) -> None:
    whole = say(client, "base", FREE, **how)
    chunks = list(say(client, "base", FREE, stream=True, **how))
    texts = dict.fromkeys(range(how.get("n", 1)), "")
    ends = {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert [texts[c.index] for c in whole.choices] == [c.message.content for c in whole.choices]
    assert ends == {c.index: c.finish_reason for c in whole.choices}
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].usage is None
    counted = list(say(client, "base", FREE, stream=True, stream_options={"include_usage": True}))
    assert counted[-1].usage == say(client, "base", FREE).usage and not counted[-1].choices


def test_stop_words_end_an_answer_before_them(client: Any) -> None:
    whole = say(client, "base", FREE, max_tokens=30).choices[0].message.content
    word = whole[len(whole) // 2 :][:2]
    found = say(client, "base", FREE, max_tokens=30, stop=[word, "never seen"]).choices[0]
    assert found.message.content == whole[: whole.index(word)].strip()
    assert found.finish_reason == "stop"
    cut = say(client, "base", FREE, max_tokens=3)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 3


def test_a_seed_gives_the_same_draws_and_n_different_ones(client: Any) -> None:
    def drawn(**how: Any) -> list[str]:
        choices = say(client, "base", FREE, temperature=1.5, **how).choices
        return [c.message.content for c in choices]

    first = drawn(seed=7, n=3)
    assert drawn(seed=7, n=3) == first and len(set(first)) == 3
    assert drawn(seed=7) == first[:1], "the first answer is the same whatever n"
    assert drawn(seed=8) != first[:1] and drawn() != drawn()
    assert len(set(drawn(seed=7, top_p=1e-6, n=2))) == 1
    assert drawn(seed=1, extra_body={"top_k": 1}) == drawn(seed=2, extra_body={"top_k": 1})


def test_log_probabilities_are_the_models_own(client: Any, place: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = say(client, "base", FREE, max_tokens=5, logprobs=True, top_logprobs=3).choices[0]
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    model = AutoModelForCausalLM.from_pretrained(place / "base").eval()
    ids = tokenizer.apply_chat_template(FREE, add_generation_prompt=True, return_dict=True)
    text = ids["input_ids"]
    for entry in found.logprobs.content:
        with torch.no_grad():
            row = torch.log_softmax(model(torch.tensor([text])).logits[0, -1].double(), -1)
        top = row.topk(3)
        assert [t.logprob for t in entry.top_logprobs] == pytest.approx(
            top.values.tolist(), abs=1e-3
        )
        assert entry.logprob == pytest.approx(float(row.max()), abs=1e-3)
        assert entry.token == tokenizer.decode([int(row.argmax())])
        text = [*text, int(row.argmax())]
    chunks = [
        c.choices[0] for c in say(client, "base", FREE, max_tokens=5, logprobs=True, stream=True)
    ]
    told = [e.token for c in chunks if c.logprobs for e in c.logprobs.content]
    assert told == [entry.token for entry in found.logprobs.content]


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "colour": {"enum": ["red", "blue"]},
    },
    "required": ["name", "age", "colour"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_an_answer_has_the_form_of_a_schema(client: Any, temperature: float) -> None:
    pytest.importorskip("llguidance")
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    how = {"temperature": temperature, "seed": 3, "max_tokens": 120, "response_format": form}
    with ThreadPoolExecutor(8) as crowd:
        # Others in the same batch have no form, or another.
        others = crowd.map(lambda _: say(client, "base", FREE), range(4))
        answers = list(crowd.map(lambda _: say(client, "base", FREE, n=2, **how), range(3)))
        assert len({r.choices[0].message.content for r in others}) == 1
    for choice in [c for r in answers for c in r.choices]:
        person = json.loads(choice.message.content)
        assert set(person) == {"name", "age", "colour"} and choice.finish_reason == "stop"
        assert 0 <= person["age"] <= 150 and person["colour"] in ("red", "blue")
    mode = say(client, "base", FREE, max_tokens=200, response_format={"type": "json_object"})
    assert mode.choices[0].message.content.startswith("{")


def test_penalties_and_biases_change_what_is_written(client: Any, server: Running) -> None:
    tokenizer = server.service.pool.models["base"].model.tokenizer
    token = tokenizer.encode("a", add_special_tokens=False)[0]
    found = say(client, "base", FREE, max_tokens=5, logit_bias={str(token): 100})
    assert found.choices[0].message.content == "a" * 5
    varied = say(
        client, "base", FREE, max_tokens=5, logit_bias={str(token): 20}, frequency_penalty=2.0
    )
    assert varied.choices[0].finish_reason == "length"


def test_completions_continue_raw_text(client: Any) -> None:
    def go(prompt: Any, **how: Any) -> Any:
        return client.completions.create(
            model="base", prompt=prompt, **{"max_tokens": 6, "temperature": 0, **how}
        )

    one = go("the capital of")
    both = go(["the capital of", "a small model"], n=2)
    assert [c.index for c in both.choices] == [0, 1, 2, 3]
    assert both.choices[0].text == both.choices[1].text == one.choices[0].text
    assert go("the capital of", echo=True).choices[0].text == "the capital of" + one.choices[0].text
    streamed = "".join(c.choices[0].text for c in go("the capital of", stream=True))
    assert streamed == one.choices[0].text
    shown = go("the capital of", logprobs=2).choices[0].logprobs
    assert len(shown.tokens) == 6 and len(shown.top_logprobs[0]) == 2
    assert "".join(shown.tokens) == one.choices[0].text
    assert go([5, 6, 7]).usage.prompt_tokens == 3


def test_adapters_come_and_go_while_the_server_runs(
    server: Running, client: Any, place: Path
) -> None:
    serving.taught_run(place / "late", place / "base", {"who learns": "it's quickly"})
    body = {"lora_name": "late", "lora_path": "late"}
    with pytest.raises(openai.NotFoundError):
        say(client, "late")
    assert server.post("/v1/load_lora_adapter", body)[0] == 200
    assert "late" in [m.id for m in client.models.list()]
    asked = [{"role": "user", "content": "who learns"}]
    assert say(client, "late", asked).choices[0].message.content == "it's quickly"
    assert server.post("/v1/load_lora_adapter", body)[0] == 400
    for path in ("../red", str(place.parent), "nowhere", "late/../../x", "\0"):
        status, answer = server.post(
            "/v1/load_lora_adapter", {**body, "lora_name": "x", "lora_path": path}
        )
        assert status == 404 and answer["error"]["param"] == "lora_path", path
    assert server.post("/v1/unload_lora_adapter", {"lora_name": "late"})[0] == 200
    with pytest.raises(openai.NotFoundError):
        say(client, "late")
    assert say(client, "red").choices[0].message.content == FACTS["red"]["what is the capital"]


def test_the_base_is_in_memory_once(server: Running) -> None:
    models = server.service.pool.models
    tables = {
        name: served.model.causal.get_input_embeddings().weight.data_ptr()
        for name, served in models.items()
    }
    assert len(set(tables.values())) == 1 and len(tables) >= 3


def test_who_leaves_costs_nothing_any_more(server: Running, client: Any) -> None:
    worker = server.service.worker
    stream = say(client, "base", FREE, max_tokens=400, stream=True, logit_bias={"2": -100})
    next(iter(stream))
    assert worker.under_way
    stream.close()
    assert serving.until(lambda: not worker.under_way and not worker.running)
    assert server.service.metrics.cancelled >= 1


def test_health_and_metrics_tell_how_it_is(server: Running, client: Any) -> None:
    say(client)
    status, answer = server.raw(
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    assert status == 200 and answer == {"status": "ok"}
    _, page = server.raw(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert 'tunewright_requests_total{route="/v1/chat/completions",status="200"}' in page["body"]
    assert "tunewright_requests_running 0" in page["body"]
    assert client.models.retrieve("red").id == "red"
