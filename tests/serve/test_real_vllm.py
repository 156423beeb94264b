"""The front over vLLM itself: `make vllm-test`, which installs it and sets SEMCOT_VLLM to its folder of commands."""

import asyncio
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import api_clients
import httpx2
import openai
import pytest
import torch
from served import free_port, running
from transformers import AutoTokenizer
from word_models import POSITIONS, answer_of, make_models

from semcot_hf import SemCoTForCausalLM
from semcot_hf.modeling.escalation_semcot import Escalation
from semcot_hf.serve.config import ServeConfig
from semcot_hf.serve.front import Front, load_front
from semcot_hf.serve.jobs import Job
from semcot_hf.serve.launch import app_of
from semcot_hf.serve.remote import encoded

VLLM = os.environ.get("SEMCOT_VLLM")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(not VLLM, reason="SEMCOT_VLLM is not set: make vllm-test"),
]
OPTIONS = f"--max-model-len {POSITIONS} --dtype float32 --enforce-eager --max-num-seqs 32"
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
QUESTION = "Ann flips the coin. Is it still heads up?"
# Logits closer than this are equal up to rounding.
SLACK = 1e-3


class Engine:
    """A stock `vllm serve HOST --enable-prompt-embeds`, which can be killed and started again at the same address."""

    def __init__(self, host, *options):
        self.host, self.port, self.options = host, free_port(), [*OPTIONS.split(), *options]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        command = [f"{VLLM}/vllm", "serve", self.host, "--enable-prompt-embeds", "--port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", *self.options],
            env={**os.environ, **SETTINGS},
            start_new_session=True,
        )

    def wait(self):
        while True:
            assert self.process.poll() is None, "vLLM ended"
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(f"{self.url}/health").status_code == 200:
                    return
            time.sleep(1)

    def kill(self):
        # With the processes that it has started.
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def metric(self, name):
        found = re.findall(rf"^{name}\{{[^}}]*\}} (\S+)$", httpx2.get(f"{self.url}/metrics").text, re.MULTILINE)
        return sum(map(float, found))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    make_models(folder)
    return folder


@pytest.fixture(scope="module")
def engines(folder):
    # Probabilities of all tokens can be had of the second one.
    made = [Engine(str(folder / "host")), Engine(str(folder / "host"), "--max-logprobs", "-1")]
    try:
        for engine in made:
            engine.start()
        for engine in made:
            engine.wait()
        yield made
    finally:
        for engine in made:
            if engine.process is not None and engine.process.poll() is None:
                engine.kill()


@pytest.fixture(scope="module")
def model(folder):
    return SemCoTForCausalLM.from_pretrained(folder / "model")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder / "model")


@contextlib.contextmanager
def fronted(folder, tokenizer, *engines, **options):
    """Serve the checkpoint's front over engines; yield its address."""
    urls = [engine.url for engine in engines]
    config = ServeConfig(model="tiny", engine="vllm", engine_url=urls, **options)
    with running(app_of(load_front(str(folder / "model")), tokenizer, config, urls)) as url:
        yield url


def ask(url, question=QUESTION, **body):
    messages = [{"role": "user", "content": question}]
    body = {"messages": messages, "temperature": 0, "max_tokens": 6, **body}
    return httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=300)


def content(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def ask_many(model, tokenizer, url, clients, requests):
    """Ask questions of mixed lengths from many clients at once; compare each answer with that of generate alone."""
    draw, asked = random.Random(0), []
    for _ in range(requests):
        words = draw.choices(["Ann", "Bob", "flips", "the", "coin", "not", "heads", "up?", "7"], k=draw.randint(1, 30))
        asked.append((" ".join(words), draw.randint(1, 20), draw.randint(0, 4), draw.random() < 0.5))

    async def one(client, gate, text, new, count, stream):
        async with gate:
            answer = await client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": text}],
                max_tokens=new,
                temperature=0,
                stream=stream,
                extra_body={"implicit_tokens": count},
            )
            if not stream:
                assert answer.usage.implicit_tokens == count
                return answer.choices[0].message.content
            return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])

    async def all_():
        gate = asyncio.Semaphore(clients)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=1200) as client:
            return await asyncio.gather(*(one(client, gate, *request) for request in asked))

    answers = asyncio.run(all_())
    assert len(answers) == requests
    different = close = 0
    for (text, new, count, _), answer in zip(asked, answers, strict=True):
        wanted, tied = answer_of(model, tokenizer, text, new, count, SLACK)
        if answer != wanted:
            different, close = different + 1, close + tied
    print(f"{requests} requests of {clients} clients: {different} differ from generate, {close} of them by rounding")
    return different, close


def test_answers_equal_generate_and_the_engines_own(folder, model, tokenizer, engines):
    with fronted(folder, tokenizer, *engines) as url:
        front = Front(model, tokenizer)
        seen = set()
        for count in (0, 1, 2, 4, None):
            answer = ask(url, implicit_tokens=count)
            wanted = answer_of(model, tokenizer, QUESTION, 6, count)
            assert content(answer) == wanted
            usage = answer.json()["usage"]
            assert usage["implicit_tokens"] == (4 if count is None else count)
            assert usage["completion_tokens"] == 6 or answer.json()["choices"][0]["finish_reason"] == "stop"
            seen.add(wanted)
            # What vLLM answers to the same embeddings, asked without the front.
            ids = tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True)
            job = Job(ids["input_ids"], lambda event: None, count=4 if count is None else count)
            body = {"model": str(folder / "host"), "prompt_embeds": encoded(front.prompts([job])[0]), "temperature": 0}
            own = httpx2.post(f"{engines[0].url}/v1/completions", json={**body, "max_tokens": 6}, timeout=60).json()
            assert own["choices"][0]["text"] == wanted
        assert len(seen) == 4


def test_fields_of_requests(folder, model, tokenizer, engines):
    text = answer_of(model, tokenizer, QUESTION, 12)
    with fronted(folder, tokenizer, engines[0]) as url:
        found = ask(url, n=2, max_tokens=12, logprobs=True, top_logprobs=2, stop=[text[6:9]]).json()
        assert [choice["message"]["content"] for choice in found["choices"]] == [text[: text.index(text[6:9])]] * 2
        for choice in found["choices"]:
            assert choice["finish_reason"] == "stop"
            assert all(len(token["top_logprobs"]) == 2 for token in choice["logprobs"]["content"])
        drawn = [ask(url, n=3, max_tokens=12, temperature=1.5, seed=seed).json()["choices"] for seed in (1, 1, 2)]
        texts = [[choice["message"]["content"] for choice in choices] for choices in drawn]
        assert texts[0] == texts[1] != texts[2] and len(set(texts[0])) > 1
        long = ask(url, max_tokens=POSITIONS).json()["error"]
        assert long["param"] == "max_tokens" and f"context of {POSITIONS}" in long["message"]


def test_thoughts_of_different_lengths(folder, tokenizer, engines, tmp_path):
    """Thoughts that end themselves, in one batch, answered as by generate."""
    ends = list(range(0, len(tokenizer), 4))
    fields = {"projection": "vocabulary", "generator_mode": "sequential", "thought_length": "adaptive"}
    make_models(tmp_path, **fields, end_of_thought_token_ids=ends)
    own = SemCoTForCausalLM.from_pretrained(tmp_path / "model")
    questions = [f"{name} flips the coin {count} times." for name in ("Ann", "Bob", "Eve") for count in range(1, 5)]
    with fronted(tmp_path, tokenizer, engines[0]) as url:
        with contextlib.ExitStack() as stack:
            answers = [None] * len(questions)

            def fill(number):
                answers[number] = ask(url, questions[number], implicit_tokens="text").json()

            threads = [threading.Thread(target=fill, args=(number,)) for number in range(len(questions))]
            for thread in threads:
                thread.start()
                stack.callback(thread.join)
        for question, answer in zip(questions, answers, strict=True):
            assert answer["choices"][0]["message"]["content"] == answer_of(own, tokenizer, question, 6)
        assert len({answer["usage"]["implicit_tokens"] for answer in answers}) > 1


@pytest.mark.parametrize("sends", [None, "at_once", "explicit"])
def test_escalation_goes_the_ways_of_generate(folder, tokenizer, engines, tmp_path, sends):
    """Text, route and confidence; the host's entropy takes an engine that tells the probabilities of all tokens."""
    fields = {"projection": "vocabulary", "generator_mode": "sequential", "thought_length": "adaptive"}
    make_models(tmp_path, **fields, end_of_thought_token_ids=list(range(0, len(tokenizer), 4)))
    own = SemCoTForCausalLM.from_pretrained(tmp_path / "model")
    sizes = {"answer_probability": 0.2, "min_token_probability": 0.1, "thought_entropy": 3.0, "thought_ended": 0.5}
    sizes |= {"host_probability": 0.2, "host_entropy": 3.0, "question_tokens": 20.0}
    asked = [f"{name} flips the coin {count} times." for name in ("Ann", "Bob", "Eve") for count in range(1, 5)]
    chats = [[{"role": "user", "content": text}] for text in asked]
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]

    def calibration(names):
        found = [sizes[name] for name in names]
        signs = [(-1.0) ** place for place in range(len(names))]
        return {"kind": "logistic", "coefficients": signs, "intercept": 0.0, "means": found, "scales": found}

    def made(prompt, rule):
        out = own.generate(
            torch.tensor([prompt]), max_new_tokens=6, escalation=rule, return_dict_in_generate=True, do_sample=False
        )
        text = tokenizer.decode(out.sequences[0, len(prompt) :], skip_special_tokens=True)
        return text, out.route[0], float(out.confidence)

    def between(rule):
        """Return a threshold in the widest gap amid the confidences, which no rounding crosses."""
        values = sorted(made(prompt, rule)[2] for prompt in prompts)
        low, high = max(zip(values[3:-3], values[4:-2], strict=True), key=lambda pair: pair[1] - pair[0])
        return (low + high) / 2

    rule = Escalation(0.0, [*sizes], calibration([*sizes]), max_reasoning_tokens=5)
    rule.threshold = between(rule)
    if sends is not None:
        names = ["host_probability", "host_entropy", "question_tokens"]
        router = {"signals": names, "calibration": calibration(names), "sends": sends}
        always = Escalation(0.0, router={**router, "threshold": float(sends == "explicit")})
        rule.router = {**router, "threshold": between(always)}
    own.config.escalation = rule.to_dict()
    own.save_pretrained(tmp_path / "model")
    wanted = [made(prompt, rule) for prompt in prompts]
    assert {route for _, route, _ in wanted} >= {"explicit", sends or "implicit"}
    first, every = engines
    with fronted(tmp_path, tokenizer, every, escalate="own") as url:
        body = {"prompt": prompts, "temperature": 0, "max_tokens": 6}
        answer = httpx2.post(f"{url}/v1/completions", json=body, timeout=300).json()
        for choice, (text, route, confidence) in zip(answer["choices"], wanted, strict=True):
            assert (choice["text"], choice["route"]) == (text, route)
            assert choice["confidence"] == pytest.approx(confidence, abs=1e-3)
        assert f'"route": "{wanted[0][1]}"' in ask(url, asked[0], stream=True).text
    with (
        pytest.raises(ValueError, match="'host_entropy', but the engine tells the probabilities of few tokens only"),
        fronted(tmp_path, tokenizer, first, escalate="own"),
    ):
        pass


def test_a_thousand_requests_of_64_clients(folder, model, tokenizer, engines):
    before = [engine.metric("vllm:request_success_total") for engine in engines]
    with fronted(folder, tokenizer, *engines) as url:
        different, close = ask_many(model, tokenizer, url, clients=64, requests=1000)
        assert different == close <= 5
        assert "semcot_running_answers 0.0" in httpx2.get(f"{url}/metrics").text
    shares = [engine.metric("vllm:request_success_total") - n for engine, n in zip(engines, before, strict=True)]
    # The least busy one gets each request, so that both have their part.
    assert sum(shares) >= 1000 and min(shares) > 300


def test_clients_that_hang_up_free_their_places(folder, tokenizer, engines):
    [engine, _] = engines
    body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 1.5, "n": 16, "max_tokens": 400}
    with fronted(folder, tokenizer, engine) as url:
        for stream in (True, False):
            before = engine.metric("vllm:generation_tokens_total")

            async def hang_up(stream):
                # More answers than the engine decodes at once, so that they are not ready before.
                async with httpx2.AsyncClient(timeout=None) as client:
                    asked = [
                        asyncio.create_task(client.post(f"{url}/v1/chat/completions", json={**body, "stream": stream}))
                        for _ in range(8)
                    ]
                    while "semcot_running_answers 8.0" not in (await client.get(f"{url}/metrics")).text:
                        await asyncio.sleep(0.1)
                    await asyncio.sleep(0.2)
                    for task in asked:
                        task.cancel()
                    await asyncio.gather(*asked, return_exceptions=True)

            asyncio.run(hang_up(stream))
            start = time.monotonic()
            while engine.metric("vllm:num_requests_running") + engine.metric("vllm:num_requests_waiting") > 0:
                assert time.monotonic() - start < 120
                time.sleep(0.1)
            # The answers would have some 35,000 tokens.
            made = engine.metric("vllm:generation_tokens_total") - before
            print(f"tokens made for clients that hung up: {made}")
            assert made < 20_000
        assert "semcot_running_answers 0.0" in httpx2.get(f"{url}/metrics").text


def test_an_engine_of_another_host_is_refused(folder, tokenizer, engines, tmp_path):
    other = SemCoTForCausalLM.from_host_generator_pretrained(str(folder / "generator"), str(folder / "generator"))
    config = ServeConfig(model="other", engine="vllm", engine_url=[engines[0].url])
    with pytest.raises(ValueError, match="does not answer|differs from that to the same tokens"):
        app_of(other, tokenizer, config, [engines[0].url])


@pytest.mark.parametrize("client", ["transformers chat", "langchain", "lm-eval"])
def test_clients_of_the_api(client, folder, model, tokenizer, engines, tmp_path):
    if client != "transformers chat" and not api_clients.PYTHON:
        pytest.skip("SEMCOT_CLIENTS is not set: make vllm-test")
    new, asked = api_clients.NEW_TOKENS, api_clients.QUESTIONS
    answers, alone = ([answer_of(model, tokenizer, question, new, count) for question in asked] for count in (None, 0))
    with fronted(folder, tokenizer, engines[0]) as url:
        if client == "langchain":
            assert api_clients.langchain(url, "tiny") == {"batch": answers, "stream": answers, "host alone": alone}
        elif client == "lm-eval":
            assert api_clients.lm_eval(url, "tiny", [answers[0], "another"], tmp_path) == (answers, 0.5)
        else:
            assert api_clients.transformers_chat(url, "tiny", asked[0], tmp_path) == answers[0].strip()


def test_engines_killed_in_the_middle_give_502_and_recover(folder, model, tokenizer, engines):
    wanted = answer_of(model, tokenizer, QUESTION, 6)
    first, second = engines
    with fronted(folder, tokenizer, *engines) as url:
        body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 1.5, "max_tokens": 400, "n": 8}
        seen = []
        with httpx2.stream("POST", f"{url}/v1/chat/completions", json={**body, "stream": True}, timeout=60) as answer:
            for line in answer.iter_lines():
                seen.append(line)
                if len(seen) == 20:
                    for engine in engines:
                        engine.kill()
        assert "engine_unreachable" in "".join(seen[-3:]) and "[DONE]" not in "".join(seen)
        broken = ask(url)
        assert broken.status_code == 502 and broken.json()["error"]["code"] == "engine_unreachable"
        # One of two is enough.
        second.start()
        second.wait()
        assert [content(ask(url)) for _ in range(3)] == [wanted] * 3


def test_a_front_that_starts_vllm_itself_is_killed_and_started_again(folder, model, tokenizer, engines):
    """`semcot serve --engine vllm` without an address, then with that of an engine."""
    for engine in engines:
        if engine.process.poll() is None:
            engine.kill()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "semcot_hf.cli.main", "serve", "--model", str(folder / "model")]
    command += ["--engine", "vllm", "--port", str(port), "--served_model_name", "tiny"]
    path = f"{VLLM}{os.pathsep}{os.environ['PATH']}"
    wanted = answer_of(model, tokenizer, QUESTION, 6)

    @contextlib.contextmanager
    def started(*options):
        process = subprocess.Popen([*command, *options], env={**os.environ, **SETTINGS, "PATH": path})
        try:
            while True:
                with contextlib.suppress(httpx2.TransportError):
                    if httpx2.get(f"{url}/health").status_code == 200:
                        break
                assert process.poll() is None, "the front ended"
                time.sleep(0.5)
            yield process
        finally:
            process.kill()
            process.wait()

    with started("--engine_options", OPTIONS) as process:
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        assert children and content(ask(url)) == wanted
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        assert not any(os.path.exists(f"/proc/{child}") for child in children)
    engine = engines[0]
    engine.start()
    engine.wait()
    with started("--engine_url", engine.url) as process:
        assert content(ask(url)) == wanted
        long = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 1.5, "max_tokens": 400, "n": 8}
        with (
            pytest.raises(httpx2.TransportError),
            httpx2.stream("POST", f"{url}/v1/chat/completions", json={**long, "stream": True}, timeout=60) as answer,
        ):
            for number, _ in enumerate(answer.iter_lines()):
                if number == 10:
                    process.send_signal(signal.SIGKILL)
    with started("--engine_url", engine.url):
        assert content(ask(url)) == wanted
        start = time.monotonic()
        while engine.metric("vllm:num_requests_running") > 0:
            assert time.monotonic() - start < 60
            time.sleep(0.2)
