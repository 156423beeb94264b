"""The front of vLLM, over a stand-in that takes prompt embeddings: answers, checks at start-up, engines that fail."""

import asyncio
import contextlib
import re
import signal
import sys
import threading
import time
from pathlib import Path

import httpx2
import openai
import pytest
import torch
import yaml
from embeds_engine import EmbedsEngine
from served import free_port, running
from transformers import HfArgumentParser

from semcot_hf.inference.prompting import answer_prompt_ids, with_answer_prompt
from semcot_hf.serve import launch
from semcot_hf.serve.config import ServeConfig
from semcot_hf.serve.front import Front
from semcot_hf.serve.jobs import Job
from semcot_hf.serve.launch import app_of
from semcot_hf.serve.metrics import Metrics
from semcot_hf.serve.vllm import VllmEngine

CONFIG = ServeConfig(model="tiny", engine="vllm", engine_url=["http://127.0.0.1:1"])
WORDS = {"projection": "vocabulary", "generator_mode": "sequential"}
ADAPTIVE = {**WORDS, "thought_length": "adaptive", "end_of_thought_token_ids": list(range(0, 320, 4))}


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return with_answer_prompt(tiny_tokenizer)


@pytest.fixture(scope="module")
def model_of(tiny_lm, tiny_semcot, tiny_tokenizer):
    def make(family="llama", **fields):
        width = 32 if fields else 16
        made = tiny_semcot(
            tiny_lm(family),
            tiny_lm(hidden_size=width, seed=5),
            num_implicit_tokens=6 if fields else 3,
            answer_prompt_ids=answer_prompt_ids(tiny_tokenizer),
            **fields,
        )
        made.generator_tokenizer = tiny_tokenizer
        return made

    return make


def question(text):
    return [{"role": "user", "content": text}]


def expected(model, tokenizer, text, new, **options):
    ids = torch.tensor([tokenizer.apply_chat_template(question(text), add_generation_prompt=True)["input_ids"]])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, **options)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def ask(url, text="How many?", **body):
    return httpx2.post(
        f"{url}/v1/chat/completions", json={"messages": question(text), "temperature": 0, **body}, timeout=60
    )


def content(answer):
    return answer.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("family", "fields"),
    [("llama", {}), ("gpt2", {}), ("gemma3_text", {}), ("llama", ADAPTIVE), ("qwen2", WORDS)],
    ids=["llama", "gpt2", "gemma", "adaptive", "words"],
)
def test_answers_are_those_of_generate_alone(family, fields, model_of, tokenizer):
    model = model_of(family, **fields)
    engine = EmbedsEngine(model.host, tokenizer)
    texts = ["How many?", "Ann has three apples and gives one to Bob.", "Ann", "apples " * 8]
    with running(engine.app) as remote, running(app_of(model, tokenizer, CONFIG, [remote])) as url:

        async def ask_all():
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
                asked = [
                    client.chat.completions.create(
                        model="tiny",
                        messages=question(text),
                        max_tokens=6,
                        temperature=0,
                        extra_body={} if count is None else {"implicit_tokens": count},
                    )
                    for text in texts
                    for count in (None, 0, 2)
                ]
                return await asyncio.gather(*asked)

        answers = iter(asyncio.run(ask_all()))
        for text in texts:
            for count in (None, 0, 2):
                answer = next(answers)
                options = {} if count is None else {"num_implicit_tokens": count}
                assert answer.choices[0].message.content == expected(model, tokenizer, text, 6, **options)
                assert answer.usage.completion_tokens == 6 and answer.choices[0].finish_reason == "length"
                ids = tokenizer.apply_chat_template(question(text), add_generation_prompt=True)["input_ids"]
                made = model.implicit_embeddings(torch.tensor([ids]), None, count)
                assert answer.usage.implicit_tokens == made.shape[1]
    alone = [body for body in engine.asked if body["stream"] and "prompt" in body]
    assert len(alone) == len(texts) and all(body["positions"] == len(body["prompt"]) for body in alone)


def test_streams_stops_choices_and_log_probabilities_pass_through(model_of, tokenizer):
    model = model_of(**WORDS)
    engine = EmbedsEngine(model.host, tokenizer)
    text = expected(model, tokenizer, "How many?", 8)
    with running(engine.app) as remote, running(app_of(model, tokenizer, CONFIG, [remote])) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        options = dict(model="tiny", messages=question("How many?"), max_tokens=8, temperature=0)
        texts = ["", ""]
        for chunk in client.chat.completions.create(n=2, stream=True, **options):
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert texts == [text, text]
        answer = client.chat.completions.create(
            logprobs=True, top_logprobs=2, stop=text[3:5], extra_body={"implicit_tokens": "text"}, **options
        )
        [choice] = answer.choices
        assert choice.message.content == text[: text.index(text[3:5])] and choice.finish_reason == "stop"
        ids = torch.tensor(
            [tokenizer.apply_chat_template(question("How many?"), add_generation_prompt=True)["input_ids"]]
        )
        assert choice.implicit_text == model.implicit_text(ids)[0]
        assert len(choice.logprobs.content) == answer.usage.completion_tokens
        assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
        # Greedy by default, as `generate` is for this checkpoint; vLLM would sample.
        del options["temperature"]
        client.chat.completions.create(seed=3, top_p=0.5, **options)
        sent = engine.asked[-1]
        assert (sent["temperature"], sent["seed"], sent["top_p"], "top_k" in sent) == (0, 3, 0.5, False)


def test_what_a_request_leaves_out_comes_from_the_checkpoint(model_of, tokenizer):
    """vLLM would take it from the host's folder."""
    model = model_of()
    model.generation_config.update(
        do_sample=True, temperature=0.5, top_k=7, repetition_penalty=1.2, eos_token_id=[9, 11],
        max_new_tokens=5, stop_strings="no such text",
    )  # fmt: skip
    engine = EmbedsEngine(model.host, tokenizer)
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop_token_ids")
    with running(engine.app) as remote, running(app_of(model, tokenizer, CONFIG, [remote])) as url:
        for given, sent in (
            ({"temperature": None}, [0.5, 1.0, 7, 0.0, 1.2, [9, 11]]),
            ({"temperature": 0.3, "top_p": 0.6, "top_k": -1, "min_p": 0.1}, [0.3, 0.6, 0, 0.1, 1.2, [9, 11]]),
            ({"repetition_penalty": 1.1}, [0, None, None, None, 1.1, [9, 11]]),
        ):
            assert ask(url, max_tokens=2, **given).status_code == 200
            assert [engine.asked[-1].get(name) for name in names] == sent
        assert ask(url, max_tokens=None).status_code == 200
        assert (engine.asked[-1]["max_tokens"], engine.asked[-1]["stop"]) == (5, ["no such text"])


def test_the_token_that_ends_an_answer_is_not_reported(model_of, tokenizer):
    """As by the embedded engine; vLLM reports it."""
    model = model_of()
    ids = torch.tensor([tokenizer.apply_chat_template(question("How many?"), add_generation_prompt=True)["input_ids"]])
    new = model.generate(ids, max_new_tokens=8)[0, ids.shape[1] :].tolist()
    model.generation_config.eos_token_id = end = new[5]
    for urls in (None, [EmbedsEngine(model.host, tokenizer)]):
        with contextlib.ExitStack() as stack:
            urls = urls and [stack.enter_context(running(engine.app)) for engine in urls]
            url = stack.enter_context(running(app_of(model, tokenizer, ServeConfig(model="tiny"), urls)))
            for stop, kept in ((None, new.index(end)), ([content(ask(url, max_tokens=3))], 3)):
                answer = ask(url, max_tokens=8, logprobs=True, stop=stop).json()
                [choice] = answer["choices"]
                assert choice["finish_reason"] == "stop"
                told = [token["token"] for token in choice["logprobs"]["content"]]
                assert told == [tokenizer.decode([token]) for token in new[:kept]]


def test_the_engines_limits_are_the_servers(model_of, tokenizer):
    model = model_of()
    engine = EmbedsEngine(model.host, tokenizer, positions=40)
    with running(engine.app) as remote, running(app_of(model, tokenizer, CONFIG, [remote])) as url:
        before = len(engine.asked)
        for asked, param in (({"max_tokens": 38}, "max_tokens"), ({"text": "apples " * 40}, "messages")):
            error = ask(url, **asked).json()["error"]
            assert "the context of 40" in error["message"] and error["param"] == param
        assert len(engine.asked) == before


def test_the_front_makes_what_splicing_makes(model_of, tokenizer):
    """`Front.prompts` equals the model's own splicing of the same batch."""
    model = model_of(**ADAPTIVE)
    front = Front(model, tokenizer)
    for text, ends in (("How many?", True), ("Ann", False)):
        jobs = []
        for words in (text, text * 9, "Bob " + text):
            ids = tokenizer.apply_chat_template(question(words), add_generation_prompt=True)["input_ids"]
            jobs.append(Job(ids if ends else ids[:-1], lambda event: None, count=6))
        for job, embeds in zip(jobs, front.prompts(jobs), strict=True):
            ids = torch.tensor([job.prompt])
            tokens, mask = model.implicit_embeddings(ids, None, 6, return_mask=True)
            assert job.implicit_tokens == tokens.shape[1] == int(mask.sum())
            end = len(model.config.answer_prompt_ids) if ends else 0
            spliced = model.splice_inputs(ids, torch.ones_like(ids), tokens, torch.tensor([ids.shape[1] - end]))[0][0]
            torch.testing.assert_close(embeds, spliced)


@pytest.mark.parametrize("unscaled", [False, True])
def test_the_scale_of_gemmas_embeddings_is_found_at_start_up(unscaled, model_of, tokenizer):
    model = model_of("gemma3_text")
    engine = EmbedsEngine(model.host, tokenizer, unscaled=unscaled)
    with running(engine.app) as remote, running(app_of(model, tokenizer, CONFIG, [remote])) as url:
        assert content(ask(url, max_tokens=5)) == expected(model, tokenizer, "How many?", 5)


def test_engines_of_another_host_or_none_are_refused(model_of, tiny_lm, tokenizer):
    model = model_of()
    with running(EmbedsEngine(tiny_lm(seed=9), tokenizer).app) as remote:
        with pytest.raises(ValueError, match="its answer to embeddings differs from that to the same tokens"):
            app_of(model, tokenizer, CONFIG, [remote])
    with pytest.raises(ValueError, match="does not answer"):
        app_of(model, tokenizer, CONFIG, [f"http://127.0.0.1:{free_port()}"])
    with pytest.raises(ValueError, match="engine_url='127.0.0.1:8000': must start with http"):
        ServeConfig(model="m", engine="vllm", engine_url=["127.0.0.1:8000"])
    with pytest.raises(ValueError, match="needs --engine vllm"):
        ServeConfig(model="m", engine_url=["http://127.0.0.1:8000"])
    for more in ({}, {"engine": "vllm", "engine_url": ["http://127.0.0.1:8000"]}):
        with pytest.raises(ValueError, match="engine_options='--seed 1' are those of an engine that is started here"):
            ServeConfig(model="m", engine_options="--seed 1", **more)


def test_an_engine_killed_in_the_middle_gives_502_and_recovers(model_of, tokenizer):
    model, port = model_of(), free_port()
    engine = EmbedsEngine(model.host, tokenizer)
    wanted = expected(model, tokenizer, "How many?", 6)
    with running(engine.app, port) as remote:
        app = app_of(model, tokenizer, CONFIG, [remote])
        # It stays for all that follows.
        front = running(app)
        url = front.__enter__()
        assert content(ask(url, max_tokens=6)) == wanted
        engine.breaks_after = 2
        broken = ask(url, max_tokens=6)
        assert broken.status_code == 502 and broken.json()["error"]["code"] == "engine_unreachable"
        streamed = ask(url, max_tokens=6, stream=True).text
        assert '"code": "engine_unreachable"' in streamed and "[DONE]" not in streamed
        engine.breaks_after, engine.status = None, 500
        assert ask(url, max_tokens=6).status_code == 502
        engine.status = 400
        error = ask(url, max_tokens=6).json()["error"]
        assert "told to" in error["message"] and error["param"] == "seed"
        engine.status = None
        # vLLM names the field of some errors in the message only.
        error = ask(url, max_tokens=6, stop=["x"] * 5).json()["error"]
        assert "at most 4" in error["message"] and error["param"] == "stop"
    try:
        assert ask(url, max_tokens=6).status_code == 502
        with running(engine.app, port):
            assert content(ask(url, max_tokens=6)) == wanted
    finally:
        front.__exit__(None, None, None)
    assert engine.open == 0


def test_requests_go_to_the_least_busy_engine_and_past_one_that_is_down(model_of, tokenizer):
    model = model_of()
    engines = [EmbedsEngine(model.host, tokenizer) for _ in range(2)]
    wanted = expected(model, tokenizer, "How many?", 4)
    with running(engines[1].app) as second:
        with running(engines[0].app) as first:
            front = running(app_of(model, tokenizer, CONFIG, [first, second]))
            url = front.__enter__()
            before = [len(engine.asked) for engine in engines]
            for engine in engines:
                engine.held.clear()

            async def ask_all():
                async with httpx2.AsyncClient(timeout=60) as client:
                    body = {"messages": question("How many?"), "temperature": 0, "max_tokens": 4}
                    asked = [
                        asyncio.create_task(client.post(f"{url}/v1/chat/completions", json=body)) for _ in range(6)
                    ]
                    while sum(engine.open for engine in engines) < 6:
                        await asyncio.sleep(0.02)
                    open_ = [engine.open for engine in engines]
                    for engine in engines:
                        engine.held.set()
                    return open_, await asyncio.gather(*asked)

            open_, answers = asyncio.run(ask_all())
            assert open_ == [3, 3] and [content(answer) for answer in answers] == [wanted] * 6
            assert [len(engine.asked) - n for engine, n in zip(engines, before, strict=True)] == [3, 3]
        try:
            assert [content(ask(url, max_tokens=4)) for _ in range(3)] == [wanted] * 3
            engines[1].status = 503
            busy = ask(url, max_tokens=4)
            assert busy.status_code == 503 and busy.json()["error"]["code"] == "engine_busy"
        finally:
            front.__exit__(None, None, None)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_requests_pass_an_engine_that_answers_but_is_busy_or_broken(status, model_of, tokenizer):
    """vLLM's server may outlive its engine; requests to it get status 500 then."""
    model = model_of()
    engines = [EmbedsEngine(model.host, tokenizer) for _ in range(2)]
    with running(engines[0].app) as first, running(engines[1].app) as second:
        with running(app_of(model, tokenizer, CONFIG, [first, second])) as url:
            engines[0].status = status
            before = len(engines[1].asked)
            answers = [content(ask(url, max_tokens=4)) for _ in range(3)]
            assert answers == [expected(model, tokenizer, "How many?", 4)] * 3
            assert len(engines[1].asked) == before + 3


def test_a_client_that_hangs_up_frees_the_engines_place(model_of, tokenizer):
    model = model_of()
    engine = EmbedsEngine(model.host, tokenizer)
    with running(engine.app) as remote, running(app_of(model, tokenizer, CONFIG, [remote])) as url:
        engine.held.clear()
        with pytest.raises(httpx2.TimeoutException):
            httpx2.post(
                f"{url}/v1/chat/completions", json={"messages": question("How many?"), "max_tokens": 3}, timeout=0.5
            )
        start = time.monotonic()
        while "semcot_running_answers 0.0" not in httpx2.get(f"{url}/metrics", timeout=60).text:
            assert time.monotonic() - start < 60
            time.sleep(0.05)
        engine.held.set()


def test_clients_that_have_left_do_not_fill_the_queue(model_of, tokenizer, monkeypatch):
    front, begun, held = Front(model_of(), tokenizer), threading.Event(), threading.Event()
    made = front.prompts
    monkeypatch.setattr(front, "prompts", lambda jobs: begun.set() or held.wait(60) and made(jobs))
    engine = VllmEngine(front, ["http://127.0.0.1:1"], max_queue=1)
    try:
        first, waits, *left = (Job([5, 6], lambda event: None, count=3) for _ in range(4))
        engine.submit(first)
        assert begun.wait(60)
        for job in left:
            engine.submit(job)
            assert engine._number_waiting() == 1
            engine.cancel(job)
            assert engine._number_waiting() == 0 and not engine._waiting
        engine.submit(waits)
    finally:
        held.set()
        engine.close()


@pytest.mark.parametrize("part", ["seconds", "load"])
def test_a_failure_outside_the_generator_ends_its_requests_only(model_of, tokenizer, part, monkeypatch):
    """Such as that of an observer."""
    model, failures = model_of(), []

    def fails_once(*_):
        if not failures:
            failures.append(1)
            raise OSError("no place for metrics")

    engine = EmbedsEngine(model.host, tokenizer)
    with running(engine.app) as remote, running(app_of(model, tokenizer, CONFIG, [remote])) as url:
        monkeypatch.setattr(Metrics, part, fails_once)
        failed = ask(url, max_tokens=3)
        assert failed.status_code == 500 and failed.json()["error"]["code"] == "engine_failed"
        assert content(ask(url, max_tokens=3)) == expected(model, tokenizer, "How many?", 3)


def test_vllm_is_started_where_no_address_is_given(model_of, tokenizer, tmp_path, monkeypatch):
    """A command of that name runs as long as the server does."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="there is no command `vllm` to start"), launch.started_engine("host", True):
        pass
    program = tmp_path / "vllm"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys\nfrom http.server import BaseHTTPRequestHandler, HTTPServer\n"
        "assert sys.argv[1:4] == ['serve', 'a-host', '--enable-prompt-embeds'] and sys.argv[-2:] == ['--seed', '3']\n"
        "class Handler(BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n        self.send_response(200)\n        self.end_headers()\n"
        "HTTPServer(('127.0.0.1', int(sys.argv[-3])), Handler).serve_forever()\n"
    )
    program.chmod(0o755)
    with launch.started_engine("a-host", True, "--seed 3") as url:
        assert httpx2.get(f"{url}/health").status_code == 200
    with pytest.raises(httpx2.TransportError):
        httpx2.get(f"{url}/health")
    with pytest.raises(ValueError, match="carries its host"), launch.started_engine(None, True):
        pass
    with pytest.raises(OSError, match="did not start"), launch.started_engine("another", True):
        pass


def test_sigterm_ends_the_engine_that_was_started(model_of, tokenizer, tmp_path, monkeypatch):
    """uvicorn raises the signal again when it has ended."""
    model = model_of()
    model.save_pretrained(tmp_path / "model", include_host=True)
    tokenizer.save_pretrained(tmp_path / "model")
    events = []
    with running(EmbedsEngine(model.host, tokenizer).app) as remote:

        @contextlib.contextmanager
        def started(host, elsewhere, options):
            try:
                yield remote
            finally:
                events.append("engine ended")

        def run(app, **_):
            events.append("served")
            handler = signal.getsignal(signal.SIGTERM)
            assert callable(handler), "SIGTERM would end the process at once"
            handler(signal.SIGTERM, None)

        monkeypatch.setattr(launch, "started_engine", started)
        monkeypatch.setattr("uvicorn.run", run)
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit):
            launch.serve(ServeConfig(model=str(tmp_path / "model"), engine="vllm"), None)
    assert events == ["served", "engine ended"] and signal.getsignal(signal.SIGTERM) == before


def test_the_compose_file_starts_a_front_over_its_engines(monkeypatch):
    """Its commands are those that a shell would run, and what must not be published is not."""
    text = (Path(__file__).parents[2] / "examples/serve/compose.yaml").read_text()
    services = yaml.safe_load(re.sub(r"\$\{(\w+):\?\}", r"\1", text))["services"]
    engines = {name: service for name, service in services.items() if name.startswith("engine")}
    devices = []
    for engine in engines.values():
        assert engine["entrypoint"] == ["vllm", "serve"] and "ports" not in engine
        assert engine["command"] == ["HOST", "--enable-prompt-embeds", "--port", "8000"]
        [device] = engine["deploy"]["resources"]["reservations"]["devices"]
        devices += device["device_ids"]
    assert devices == ["0", "1"]
    front = services["front"]
    [key] = front["environment"]
    monkeypatch.setenv(*key.split("="))
    assert front["command"][:2] == ["semcot", "serve"] and "ports" not in front
    [config] = HfArgumentParser(ServeConfig).parse_args_into_dataclasses(front["command"][2:])
    assert config.engine_url == [f"http://{name}:8000" for name in engines] and config.api_key == "SEMCOT_API_KEY"
    assert set(front["depends_on"]) == set(engines)
    proxy = (Path(__file__).parents[2] / "examples/serve/nginx.conf").read_text()
    assert f"proxy_pass http://front:{config.port};" in proxy and "./nginx.conf:" in services["proxy"]["volumes"][0]
    assert services["proxy"]["ports"] == ["443:443"]
