"""The endpoint over the embedded engine, through the official client and by hand."""

import asyncio
import contextlib
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time

import httpx2
import openai
import pytest
import torch
from served import free_port, running

from semcot_hf.inference.prompting import answer_prompt_ids, with_answer_prompt
from semcot_hf.serve.config import ServeConfig
from semcot_hf.serve.launch import app_of

QUESTION = [{"role": "user", "content": "How many apples has Ann?"}]


@pytest.fixture(scope="module")
def model(tiny_lm, tiny_semcot, tiny_tokenizer):
    """A SemCoT model with thoughts in words."""
    made = tiny_semcot(
        tiny_lm(eos_token_id=9),
        tiny_lm(hidden_size=32, seed=5),
        projection="vocabulary",
        generator_mode="sequential",
        answer_prompt_ids=answer_prompt_ids(tiny_tokenizer),
    )
    made.generator_tokenizer = tiny_tokenizer
    return made


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return with_answer_prompt(tiny_tokenizer)


@pytest.fixture(scope="module")
def url(model, tokenizer):
    with running(
        app_of(model, tokenizer, ServeConfig(model="tiny", max_answer_tokens=100, max_prompt_tokens=1000))
    ) as address:
        yield address


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


def expected(model, tokenizer, prompt, new, **options):
    """The answer of `generate` alone, without its end-of-sequence token, which is no special token here."""
    if isinstance(prompt, list) and isinstance(prompt[0], dict):
        prompt = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
    ids = torch.tensor([tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, **options)
    new = output[0, ids.shape[1] :].tolist()
    return tokenizer.decode([token for token in new if token != 9], skip_special_tokens=True)


def post(url, path="/v1/chat/completions", key=None, **body):
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx2.post(url + path, json=body, headers=headers, timeout=60)


def test_a_chat_is_answered_as_generate_does(model, tokenizer, client):
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=6, temperature=0)
    assert answer.choices[0].message.content == expected(model, tokenizer, QUESTION, 6)
    assert answer.object == "chat.completion" and answer.model == "tiny"
    usage = answer.usage
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True)["input_ids"]
    assert (usage.prompt_tokens, usage.implicit_tokens) == (len(ids), 3)
    assert usage.total_tokens == len(ids) + 3 + usage.completion_tokens
    assert answer.choices[0].finish_reason == ("length" if usage.completion_tokens == 6 else "stop")


def test_the_number_of_implicit_tokens_is_the_requests(model, tokenizer, client):
    seen = set()
    for count in (0, 1, 3):
        answer = client.chat.completions.create(
            model="tiny", messages=QUESTION, max_tokens=6, temperature=0, extra_body={"implicit_tokens": count}
        )
        assert answer.choices[0].message.content == expected(model, tokenizer, QUESTION, 6, num_implicit_tokens=count)
        assert answer.usage.implicit_tokens == count
        seen.add(answer.choices[0].message.content)
    assert len(seen) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_the_thought_is_returned_as_text(model, tokenizer, client, stream):
    ids = torch.tensor([tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True)["input_ids"]])
    answer = client.chat.completions.create(
        model="tiny", messages=QUESTION, max_tokens=3, stream=stream, extra_body={"implicit_tokens": "text"}
    )
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    said = [choice.implicit_text for choice in choices if hasattr(choice, "implicit_text")]
    assert said == model.implicit_text(ids)


def test_tokens_that_are_no_words_are_read_by_their_step_decoder(tiny_lm, tiny_semcot, tiny_tokenizer, tokenizer):
    made = tiny_semcot(tiny_lm(eos_token_id=9), answer_prompt_ids=answer_prompt_ids(tiny_tokenizer))
    prompts = [f"Question: {name}?\nAnswer:" for name in ("Ann", "Bob and Eve")]
    body = {"prompt": prompts, "max_tokens": 3, "implicit_tokens": "text"}
    with running(app_of(made, tokenizer, ServeConfig(model="tiny"))) as url:
        refused = post(url, "/v1/completions", **body)
    assert refused.status_code == 400 and "it has no step decoder" in refused.json()["error"]["message"]
    made.add_step_decoder(tiny_lm("qwen2", hidden_size=16, seed=7))
    made.generator_tokenizer = tiny_tokenizer
    said = [made.implicit_text(tokenizer(prompt, return_tensors="pt")["input_ids"])[0] for prompt in prompts]
    with running(app_of(made, tokenizer, ServeConfig(model="tiny"))) as url:
        choices = post(url, "/v1/completions", **body).json()["choices"]
    assert [choice["implicit_text"] for choice in choices] == said and said[0] != said[1]


def test_each_prompt_of_a_stream_has_its_thought(model, tokenizer):
    """Also those whose thoughts are made when others are answered already."""
    prompts = [f"Question: {name}?\nAnswer:" for name in ("Ann", "Bob", "Cem")]
    said = [model.implicit_text(tokenizer(prompt, return_tensors="pt")["input_ids"])[0] for prompt in prompts]
    body = {"prompt": prompts, "max_tokens": 3, "n": 2, "implicit_tokens": "text", "stream": True}
    with running(app_of(model, tokenizer, ServeConfig(model="tiny", tokens_per_batch=1))) as url:
        text = post(url, "/v1/completions", **body).text
    chunks = [json.loads(line[6:])["choices"][0] for line in text.splitlines() if line.startswith("data: {")]
    first = {index: next(chunk for chunk in chunks if chunk["index"] == index) for index in range(6)}
    assert [first[index]["implicit_text"] for index in range(6)] == [words for words in said for _ in range(2)]
    assert sum("implicit_text" in chunk for chunk in chunks) == 6


def test_a_streamed_chat_has_the_same_text(model, tokenizer, client):
    options = dict(model="tiny", messages=QUESTION, max_tokens=12, temperature=0, n=2)
    chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **options))
    texts, reasons = ["", ""], [[], []]
    for chunk in chunks[:-1]:
        [choice] = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] += [choice.finish_reason] if choice.finish_reason else []
    assert chunks[0].choices[0].delta.role == "assistant"
    assert texts == [expected(model, tokenizer, QUESTION, 12)] * 2
    assert [len(reason) for reason in reasons] == [1, 1]
    whole = client.chat.completions.create(**options)
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert len(chunks) > 6


def test_completions_take_texts_and_ids_and_several_of_them(model, tokenizer, client):
    prompts = ["Ann has", "How many apples has Bob?\nAnswer:"]
    for given in (prompts, [tokenizer(prompt)["input_ids"] for prompt in prompts]):
        answer = client.completions.create(model="tiny", prompt=given, max_tokens=5, temperature=0, n=2)
        wanted = [expected(model, tokenizer, prompt, 5) for prompt in prompts for _ in range(2)]
        assert [choice.text for choice in answer.choices] == wanted
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        chunks = client.completions.create(model="tiny", prompt=given, max_tokens=5, temperature=0, n=2, stream=True)
        texts = [""] * 4
        for chunk in chunks:
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert texts == wanted


def test_stop_texts_and_log_probabilities(model, tokenizer, client):
    text = expected(model, tokenizer, QUESTION, 12)
    answer = client.chat.completions.create(
        model="tiny", messages=QUESTION, max_tokens=12, temperature=0, stop=text[4:6], logprobs=True, top_logprobs=2
    )
    assert answer.choices[0].message.content == text[: text.index(text[4:6])]
    assert answer.choices[0].finish_reason == "stop"
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert token.logprob <= 0 and token.top_logprobs[0].token == token.token and len(token.top_logprobs) == 2
    answer = client.completions.create(model="tiny", prompt="Ann has", max_tokens=3, temperature=0, logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 3
    assert logprobs.text_offset == [0, *(len("".join(logprobs.tokens[:n])) for n in (1, 2))]
    streamed = client.completions.create(
        model="tiny", prompt="Ann has", max_tokens=3, temperature=0, logprobs=1, stream=True
    )
    found = [part for chunk in streamed if chunk.choices[0].logprobs for part in chunk.choices[0].logprobs.text_offset]
    assert found == logprobs.text_offset


def test_the_checkpoints_limit_and_stop_texts_hold_for_requests_without(model, tokenizer, monkeypatch):
    whole = expected(model, tokenizer, QUESTION, 12)
    stop = whole[4:6]
    monkeypatch.setattr(model.generation_config, "max_new_tokens", 3)
    with running(app_of(model, tokenizer, ServeConfig(model="tiny"))) as url:
        for path, asked in (("chat/completions", {"messages": QUESTION}), ("completions", {"prompt": "How many?"})):
            body = post(url, f"/v1/{path}", temperature=0, **asked).json()
            assert body["usage"]["completion_tokens"] == 3 and body["choices"][0]["finish_reason"] == "length"
    monkeypatch.setattr(model.generation_config, "stop_strings", [stop])
    with running(app_of(model, tokenizer, ServeConfig(model="tiny", max_answer_tokens=12))) as url:
        for temperature in (0, 1e-3):
            body = post(url, messages=QUESTION, temperature=temperature, max_tokens=12).json()
            assert body["choices"][0]["message"]["content"] == whole[: whole.find(stop)]
        body = post(url, messages=QUESTION, temperature=0, max_tokens=12, stop=[]).json()
        assert body["choices"][0]["message"]["content"] == whole


def test_models_health_and_metrics(url, client):
    assert [one.id for one in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.models.retrieve("other")
    assert httpx2.get(f"{url}/health").json() == {"status": "ok"}
    client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=2)
    text = httpx2.get(f"{url}/metrics").text
    found = dict(re.findall(r"^(semcot_\w+(?:\{[^}]*\})?) ([\d.e+-]+)$", text, re.MULTILINE))
    assert float(found['semcot_requests_total{path="/v1/chat/completions",status="200"}']) >= 1
    for phase in ("queue", "implicit", "prefill", "decode"):
        assert float(found[f'semcot_phase_seconds_count{{phase="{phase}"}}']) >= 1
    for kind in ("prompt", "implicit", "completion"):
        assert float(found[f'semcot_tokens_total{{kind="{kind}"}}']) >= 1
    assert float(found["semcot_waiting_requests"]) == float(found["semcot_running_answers"]) == 0


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "required"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "system"),
        ({"messages": [{"role": "user", "content": [{"type": "prompt_embeds", "data": "x"}]}]}, None, "messages.0"),
        ({"messages": [{"role": "user", "content": "x " * 300}]}, "messages", "context of 256"),
        ({"messages": [{"role": "user", "content": "x " * 3000}]}, "messages", "tokens are more than the 1000"),
        ({"implicit_token": 3}, "implicit_token", "no field of this API"),
        ({"implicit_tokens": -1}, "implicit_tokens", "greater than or equal to 0"),
        ({"implicit_tokens": "words"}, "implicit_tokens", "'text'"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 101}, "max_tokens", "from 1 to 100"),
        ({"max_completion_tokens": 101}, "max_completion_tokens", "from 1 to 100"),
        ({"n": 17}, "n", "more than the 16"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs=true"),
        ({"stop": [""]}, "stop", "1 to 256 characters"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"prompt_embeds": "AAAA"}, "prompt_embeds", "not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"generation_config": "no"}, "generation_config", "JSON text"),
        ({"generation_config": "[1]"}, "generation_config", "JSON text"),
        ({"generation_config": "[" * 100_000}, "generation_config", "JSON text"),
        ({"generation_config": '{"temperature": "hot"}'}, "generation_config", "temperature: Input should be a"),
        ({"generation_config": '{"temperature": -1.0}'}, "generation_config", "temperature: Input should be greater"),
        ({"generation_config": '{"top_k": "x"}'}, "generation_config", "top_k: Input should be a"),
        ({"generation_config": '{"top_p": 5.0}'}, "generation_config", "top_p: Input should be less"),
        ({"generation_config": '{"repetition_penalty": 0}'}, "generation_config", "repetition_penalty: Input should"),
        ({"generation_config": '{"max_new_tokens": 1.5}'}, "generation_config", "max_new_tokens: Input should"),
        ({"generation_config": '{"do_sample": "no"}'}, "generation_config", "do_sample: Input should"),
    ],
)
def test_bad_requests_get_400_with_the_fields_name(url, change, param, said):
    answer = post(url, **{"messages": QUESTION, "max_tokens": 2, **change})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param
    assert said in error["message"] and "x x" not in error["message"]


def test_bad_bodies_prompts_and_paths(url):
    complete = f"{url}/v1/completions"
    assert httpx2.post(complete, content=b"{", headers={"content-type": "application/json"}).status_code == 400
    nested = b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert httpx2.post(complete, content=nested, headers={"content-type": "application/json"}).status_code == 400
    # What a form on a web page can send without being asked.
    assert httpx2.post(complete, content=b'{"prompt": "a"}', headers={"content-type": "text/plain"}).status_code == 400
    for prompt, said in (([], "text or token ids"), ([320], "319"), ("", "at least one token"), (None, "prompt")):
        error = post(url, "/v1/completions", prompt=prompt).json()["error"]
        assert said in error["message"] and error["param"] == "prompt", prompt
    body = b'{"prompt": "half \\ud83d"}'
    answer = httpx2.post(complete, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and "half a surrogate pair" in answer.json()["error"]["message"]
    answer = post(url, model="gpt-5", messages=QUESTION)
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"
    assert httpx2.get(f"{url}/v1/files").status_code == 404
    assert httpx2.get(f"{url}/v1/completions").status_code == 405
    assert httpx2.get(f"{url}/docs").status_code == httpx2.get(f"{url}/openapi.json").status_code == 404


def test_large_bodies_are_refused_before_they_are_read(url):
    big = post(url, "/v1/completions", prompt="x" * 1_100_000)
    assert big.status_code == 413 and "1000000 bytes" in big.json()["error"]["message"]

    def chunks():
        yield b'{"prompt": "'
        for _ in range(11):
            yield b"x" * 100_000

    # Without a length in the headers, the bytes are counted.
    answer = httpx2.post(
        f"{url}/v1/completions", content=chunks(), headers={"content-type": "application/json"}, timeout=60
    )
    assert answer.status_code == 413


def test_another_name_of_the_host_is_refused_without_a_key(url):
    assert httpx2.get(f"{url}/v1/models", headers={"Host": "evil.example"}).status_code == 403
    assert httpx2.get(f"{url}/v1/models", headers={"Host": "localhost"}).status_code == 200


def test_a_plain_causal_lm_is_served_too(tiny_lm, tiny_tokenizer):
    model = tiny_lm()
    with running(app_of(model, tiny_tokenizer, ServeConfig(model="plain"))) as url:
        answer = post(url, messages=QUESTION, max_tokens=5, temperature=0).json()
        assert answer["choices"][0]["message"]["content"] == expected(model, tiny_tokenizer, QUESTION, 5)
        assert answer["usage"]["implicit_tokens"] == 0
        error = post(url, messages=QUESTION, implicit_tokens=2).json()["error"]
        assert error["param"] == "implicit_tokens" and "makes none" in error["message"]


def test_a_tokenizer_without_the_models_answer_prompt_is_refused(model, char_tokenizer):
    with pytest.raises(ValueError, match="save the model's tokenizer with it"):
        app_of(model, char_tokenizer, ServeConfig(model="tiny"))


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_place(model, tokenizer, stream, monkeypatch):
    config = ServeConfig(model="tiny", tokens_per_batch=1, max_answer_tokens=200)
    step = "semcot_hf.serve.running.RunningBatch.step"
    with monkeypatch.context() as patch, running(app_of(model, tokenizer, config)) as url:
        # It would go on for 100 s.
        patch.setattr(step, lambda batch, tokens: time.sleep(0.5) or torch.zeros(len(tokens), 320))
        with pytest.raises(httpx2.TimeoutException), httpx2.Client(timeout=0.5) as hurried:
            body = {"messages": QUESTION, "temperature": 0, "stream": stream}
            with hurried.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
                if not stream:
                    answer.read()
                time.sleep(0.3)
                raise httpx2.ReadTimeout("hangs up")
        start = time.monotonic()
        while "semcot_running_answers 0.0" not in httpx2.get(f"{url}/metrics", timeout=60).text:
            assert time.monotonic() - start < 60
            time.sleep(0.1)
        patch.undo()
        answer = post(url, messages=QUESTION, max_tokens=4, temperature=0).json()
        assert answer["choices"][0]["message"]["content"] == expected(model, tokenizer, QUESTION, 4)


@pytest.mark.parametrize("shown", [False, True])
def test_logs_hold_prompts_only_if_asked(model, tokenizer, caplog, shown):
    caplog.set_level(logging.DEBUG)
    with running(app_of(model, tokenizer, ServeConfig(model="tiny", log_prompts=shown))) as url:
        post(url, messages=[{"role": "user", "content": "a secret question"}], max_tokens=2)
        post(url, messages=[{"role": "user", "content": "a secret question"}], max_tokens=2, tools=[1])
        # Half a character in a field that is not read.
        body = b'{"prompt": "a", "max_tokens": 2, "user": "\\ud83d"}'
        answer = httpx2.post(f"{url}/v1/completions", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 200
    assert "/v1/chat/completions 200" in caplog.text
    assert ("a secret question" in caplog.text) == shown


def ask_many(model, tokenizer, url, clients, requests):
    """Ask mixed questions from many clients at once; return those answered otherwise than by generate alone."""
    draw = random.Random(0)
    asked = []
    for _ in range(requests):
        words = [
            draw.choice(["Ann", "Bob", "has", "apples", "three", "4", "and", "?"]) for _ in range(draw.randint(1, 30))
        ]
        asked.append((" ".join(words), draw.randint(1, 20), draw.randint(0, 3), draw.random() < 0.5))

    async def ask(client, gate, text, new, count, stream):
        messages = [{"role": "user", "content": text}]
        async with gate:
            answer = await client.chat.completions.create(
                model="tiny",
                messages=messages,
                max_tokens=new,
                temperature=0,
                stream=stream,
                extra_body={"implicit_tokens": count},
            )
            if not stream:
                return answer.choices[0].message.content
            return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])

    async def ask_all():
        gate = asyncio.Semaphore(clients)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600) as client:
            return await asyncio.gather(*(ask(client, gate, *one) for one in asked))

    answers = asyncio.run(ask_all())
    assert len(answers) == requests
    return [
        (one, answer)
        for one, answer in zip(asked, answers, strict=True)
        if answer
        != expected(model, tokenizer, [{"role": "user", "content": one[0]}], one[1], num_implicit_tokens=one[2])
    ]


def test_many_clients_get_the_answers_of_generate_alone(model, tokenizer, url):
    assert ask_many(model, tokenizer, url, clients=16, requests=48) == []
    load = httpx2.get(f"{url}/metrics").text
    assert "semcot_running_answers 0.0" in load


@pytest.mark.slow
def test_a_thousand_requests_of_64_clients(model, tokenizer, url):
    assert ask_many(model, tokenizer, url, clients=64, requests=1000) == []


@pytest.mark.slow
def test_a_killed_server_starts_again_and_loses_open_requests_only(model, tokenizer, tmp_path):
    folder, port = tmp_path / "model", free_port()
    model.save_pretrained(folder, include_host=True)
    tokenizer.save_pretrained(folder)
    command = [sys.executable, "-m", "semcot_hf.cli.main", "serve", "--model", str(folder), "--port", str(port)]
    url = f"http://127.0.0.1:{port}"

    @contextlib.contextmanager
    def started():
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
        try:
            start = time.monotonic()
            while True:
                with contextlib.suppress(httpx2.TransportError):
                    if httpx2.get(f"{url}/health").status_code == 200:
                        break
                assert process.poll() is None and time.monotonic() - start < 120, process.stderr.read().decode()
                time.sleep(0.2)
            yield process
        finally:
            process.kill()
            process.wait()

    def ask():
        answer = post(url, messages=QUESTION, max_tokens=8, temperature=0).json()
        return answer["choices"][0]["message"]["content"]

    with started() as process:
        before = ask()
        with (
            pytest.raises(httpx2.TransportError),
            httpx2.stream(
                "POST", f"{url}/v1/chat/completions", json={"messages": QUESTION, "n": 16, "stream": True}, timeout=60
            ) as answer,
        ):
            for number, _ in enumerate(answer.iter_lines()):
                if number == 3:
                    process.send_signal(signal.SIGKILL)
    with started() as process:
        assert ask() == before == expected(model, tokenizer, QUESTION, 8)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0 or process.returncode == -signal.SIGTERM
