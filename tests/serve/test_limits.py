"""Limits of the endpoint: keys, addresses, time, and the queue."""

import asyncio
import http.client
import re
import socket
import threading
import time

import httpx2
import pytest
import torch
from served import running

from semcot_hf.inference.prompting import answer_prompt_ids, with_answer_prompt
from semcot_hf.modeling.thought_prompt_semcot import candidate_prompt_fields
from semcot_hf.serve.config import ServeConfig
from semcot_hf.serve.launch import app_of

QUESTION = [{"role": "user", "content": "How many apples has Ann?"}]
ROLES = ("user", "assistant")


@pytest.fixture(scope="module")
def model(tiny_lm):
    return tiny_lm(eos_token_id=9)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return tiny_tokenizer


def post(url, key=None, **body):
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx2.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)


def test_bodies_that_do_not_arrive_end_with_408(model, tokenizer):
    with running(app_of(model, tokenizer, ServeConfig(model="tiny", request_timeout=0.3))) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as client:
            head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            client.sendall(f'{head}Content-Length: 50\r\n\r\n{{"prompt"'.encode())
            answer = http.client.HTTPResponse(client)
            answer.begin()
            # The whole body, which may arrive behind the headers.
            assert answer.status == 408 and "did not arrive within 0.3 seconds" in answer.read().decode()


def test_a_key_is_asked_for(model, tokenizer):
    with running(app_of(model, tokenizer, ServeConfig(model="tiny", api_key="secret"))) as url:
        for path in ("/v1/models", "/metrics"):
            assert httpx2.get(url + path).status_code == 401
        wrong = post(url, key="secre", messages=QUESTION)
        assert wrong.status_code == 401 and "API key" in wrong.json()["error"]["message"]
        assert post(url, key="secret", messages=QUESTION, max_tokens=2).status_code == 200
        assert httpx2.get(f"{url}/health").status_code == 200


def test_addresses_of_other_machines_need_a_key(monkeypatch):
    with pytest.raises(ValueError, match="host='0.0.0.0' can be reached from other machines: pass --api_key"):
        ServeConfig(model="m", host="0.0.0.0")
    monkeypatch.setenv("SEMCOT_API_KEY", "k")
    assert ServeConfig(model="m", host="0.0.0.0").api_key == "k"
    with pytest.raises(ValueError, match="engine='sglang': must be one of"):
        ServeConfig(model="m", engine="sglang")
    with pytest.raises(ValueError, match="max_queue=0 must lie"):
        ServeConfig(model="m", max_queue=0)


def test_slow_answers_end_with_504(model, tokenizer, monkeypatch):
    app = app_of(model, tokenizer, ServeConfig(model="tiny", request_timeout=0.3, max_answer_tokens=200))
    monkeypatch.setattr("semcot_hf.serve.running.RunningBatch.step", lambda *_: time.sleep(0.1) or torch.zeros(1, 320))
    with running(app) as url:
        answer = post(url, messages=QUESTION, temperature=0, n=1)
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
        chunks = post(url, messages=QUESTION, temperature=0, n=1, stream=True).text
        # In the stream, or before its first piece on a machine that is very busy.
        assert re.search('"code": ?"timeout"', chunks) and "[DONE]" not in chunks


def test_full_queues_say_429(model, tokenizer, monkeypatch):
    config = ServeConfig(model="tiny", tokens_per_batch=1, max_queue=1, max_answer_tokens=200)
    released = threading.Event()

    def step(batch, tokens):
        released.wait()
        return torch.zeros(1, 320)

    monkeypatch.setattr("semcot_hf.serve.running.RunningBatch.step", step)

    async def ask_all(url):
        async with httpx2.AsyncClient(timeout=60) as client:
            body = {"messages": QUESTION, "temperature": 0, "max_tokens": 10}
            asked = [asyncio.create_task(client.post(f"{url}/v1/chat/completions", json=body)) for _ in range(6)]
            # No answer can end yet, so that the first response is a refusal.
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            released.set()
            return await asyncio.gather(*asked)

    with running(app_of(model, tokenizer, config)) as url:
        answers = asyncio.run(ask_all(url))
    statuses = sorted(answer.status_code for answer in answers)
    assert set(statuses) == {200, 429} and statuses.count(200) >= 1
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["Retry-After"] == "1" and refused.json()["error"]["type"] == "rate_limit_error"


def test_a_question_too_long_for_the_candidate_prompt_is_refused(tiny_semcot, tiny_lm, tiny_tokenizer):
    made = candidate_prompt_fields(tiny_tokenizer, [{"role": role, "content": "1 and" * 9} for role in ROLES])
    model = tiny_semcot(
        generator=tiny_lm(hidden_size=16, seed=1), generator_mode="sequential", projection="vocabulary",
        num_candidates=3, candidate_prompt=made, answer_prompt_ids=answer_prompt_ids(tiny_tokenizer),
    )  # fmt: skip
    with running(app_of(model, with_answer_prompt(tiny_tokenizer), ServeConfig(model="tiny"))) as url:
        long = [{"role": "user", "content": "apples " * 220}]
        refused = post(url, messages=long, max_tokens=2)
        error = refused.json()["error"]
        assert (refused.status_code, error["param"], error["code"]) == (400, "messages", "context_length_exceeded")
        assert "a candidate prompt of" in error["message"] and "ask for implicit_tokens=0" in error["message"]
        assert post(url, messages=long, max_tokens=2, implicit_tokens=0).status_code == 200
        assert post(url, messages=QUESTION, max_tokens=2).status_code == 200
