"""Speed of `semcot serve`: batching of the embedded engine, what the front adds to vLLM, cost against explicit CoT.

    python examples/bench/serve_speed.py --model runs/demo/model --output runs/serve_speed
    vllm serve HOST --enable-prompt-embeds --no-enable-prefix-caching --port 8000
    python examples/bench/serve_speed.py --model runs/model --engine_url http://127.0.0.1:8000

Without --model, an untrained pair of --host and --generator is served: the times do not depend on the training. What
is compared alternates, so that other load on the machine meets both sides. Answers are greedy, and end where the host
ends them, or at --new_tokens; explicit reasoning at --reasoning_tokens.

--parts chooses among

- batching (without --engine_url): requests a second of --clients clients at once, and of one after another.
- overhead (with --engine_url): what the front adds to vLLM's own seconds for a request, by one client that asks each
  question of vLLM itself, with embeddings that are ready, and through the front, which makes them; which of the two
  comes first alternates. With implicit tokens, and for the host alone (token ids). The generator's own seconds are
  given apart and do not count: the front adds its seconds without them, less vLLM's. The report has medians over the
  pairs, and the bootstrap's 95 % interval of the share. Pairs whose answers differ in their number of tokens are left
  out. The engine must run with --no-enable-prefix-caching, or the second one of each pair would have less to compute.
- cost: answers a second with implicit tokens, by the checkpoint's rule of escalation where it has one, and with
  explicit reasoning of the host, --clients at once. A thousand answers cost 1000 / (answers a second) / 3600 x the
  price of the machine for an hour (--price).
"""

import asyncio
import json
import re
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import uvicorn
from transformers import AutoTokenizer
from trl import TrlParser

from semcot_hf import SemCoTForCausalLM, load_reasoning_dataset
from semcot_hf.demo import GENERATOR_PATH, HOST_PATH
from semcot_hf.inference.answering import Answerer
from semcot_hf.inference.decoding import decoding_config
from semcot_hf.inference.prompting import answer_prompt_ids, with_answer_prompt
from semcot_hf.inference.settings import AnswerSettings
from semcot_hf.options import option
from semcot_hf.serve.config import ServeConfig
from semcot_hf.serve.front import Front, load_front
from semcot_hf.serve.jobs import Job
from semcot_hf.serve.launch import app_of
from semcot_hf.serve.remote import encoded


@dataclass
class Arguments:
    """What is timed."""

    model: str = option("", "Folder or id of a SemCoT checkpoint; by default host and generator, untrained.")
    host: str = option(str(HOST_PATH), "Id or path of the host.")
    generator: str = option(str(GENERATOR_PATH), "Id or path of the generator.")
    implicit_tokens: int = option(6, "Implicit tokens of the untrained pair.")
    engine_url: str = option("", "Address of a `vllm serve` of the same host.")
    dtype: str = option("auto", "Data type of the weights of --model; of its generator where an engine has the host.")
    parts: list[str] = option(["batching", "overhead", "cost"], "What is measured.")
    dataset: str = option("examples/data/arithmetic", "Dataset with the questions, as `semcot distill` takes it.")
    split: str = option("train", "Its split.")
    requests: int = option(64, "Requests of each block, and questions of the pairs.")
    clients: int = option(16, "Clients at once.")
    new_tokens: int = option(24, "Most tokens of an answer.")
    reasoning_tokens: int = option(256, "Most tokens of an answer with explicit reasoning.")
    blocks: int = option(3, "Blocks of each side, and pairs of each question.")
    price: float = option(1.0, "Price of the machine for an hour.")
    output: str = option("runs/serve_speed", "Folder of the result.")


Ask = Callable[[httpx2.AsyncClient, int], Awaitable[int]]


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an application in a thread; yield its address."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def timed(ask: Ask, requests: int, clients: int) -> dict[str, float]:
    """Return seconds in all, mean seconds a request and mean tokens of an answer of requests by clients at once."""

    async def all_() -> tuple[float, list[float], list[int]]:
        gate, seconds = asyncio.Semaphore(clients), []

        async def one(client: httpx2.AsyncClient, number: int) -> int:
            async with gate:
                start = time.perf_counter()
                tokens = await ask(client, number)
                seconds.append(time.perf_counter() - start)
                return tokens

        async with httpx2.AsyncClient(timeout=None) as client:
            start = time.perf_counter()
            tokens = await asyncio.gather(*(one(client, number) for number in range(requests)))
            return time.perf_counter() - start, seconds, tokens

    whole, seconds, tokens = asyncio.run(all_())
    return {"seconds": whole, "a request": statistics.mean(seconds), "tokens": statistics.mean(tokens)}


def asking(url: str, body: Callable[[int], dict[str, Any]]) -> Ask:
    """Return a function that asks for one completion and returns its number of tokens."""

    async def ask(client: httpx2.AsyncClient, number: int) -> int:
        answer = await client.post(f"{url}/v1/completions", json={"temperature": 0, **body(number)})
        answer.raise_for_status()
        return int(answer.json()["usage"]["completion_tokens"])

    return ask


def generator_seconds(url: str) -> float:
    """Return for how many seconds a server has made implicit tokens."""
    found = re.search(r'^semcot_phase_seconds_sum\{phase="implicit"\} (\S+)$', httpx2.get(f"{url}/metrics").text, re.M)
    assert found is not None, "the server does not tell"
    return float(found.group(1))


def alternated(
    sides: dict[str, tuple[Ask, int]], requests: int, blocks: int, url: str
) -> dict[str, list[dict[str, float]]]:
    """Return the times of each side (a way to ask, and its number of clients), whose blocks alternate.

    The generator's seconds a request are those of the server at `url`.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for ask, clients in sides.values():
        timed(ask, min(requests, 2), clients)  # Not counted: first calls allocate and compile.
    for block in range(blocks):
        # Each side is the first one in every second block.
        for name in list(sides)[:: 1 if block % 2 == 0 else -1]:
            ask, clients = sides[name]
            before = generator_seconds(url)
            times = timed(ask, requests, clients)
            found[name].append({**times, "generator": (generator_seconds(url) - before) / requests})
            print(f"block {block + 1} of {blocks}, {clients} clients, {name}: {found[name][-1]}", flush=True)
    return found


def paired(direct: Ask, through: Ask, requests: int, repeats: int, url: str) -> list[dict[str, float]]:
    """Ask each question of vLLM and through the front, one request at a time; return seconds and tokens of each pair.

    The generator's seconds are those of the server at `url`.
    """

    async def one(client: httpx2.AsyncClient, ask: Ask, number: int) -> tuple[float, int]:
        start = time.perf_counter()
        tokens = await ask(client, number)
        return time.perf_counter() - start, tokens

    async def all_() -> list[dict[str, float]]:
        found = []
        async with httpx2.AsyncClient(timeout=None) as client:
            for number in range(min(requests, 2)):
                for ask in (direct, through):
                    await one(client, ask, number)  # Not counted: first calls allocate and compile.
            for place in range(requests * repeats):
                before = generator_seconds(url)
                pair: dict[str, float] = {}
                sides = {"vLLM": direct, "front": through}
                for side in list(sides)[:: 1 if place % 2 == 0 else -1]:
                    pair[side], pair[f"{side} tokens"] = await one(client, sides[side], place % requests)
                pair["generator"] = generator_seconds(url) - before
                found.append(pair)
                print(f"pair {place + 1} of {requests * repeats}: {pair}", flush=True)
        return found

    return asyncio.run(all_())


def overhead(pairs: list[dict[str, float]]) -> dict[str, Any]:
    """Return what the front adds to vLLM's own time for a request.

    >>> pairs = [{"vLLM": 2.0, "front": 2.5, "generator": 0.4, "vLLM tokens": 3, "front tokens": 3}] * 4
    >>> overhead(pairs)["front adds"], overhead(pairs)["front adds, 95 % interval"]
    (0.05, [0.05, 0.05])
    """
    same = [pair for pair in pairs if pair["vLLM tokens"] == pair["front tokens"]]
    if not same:
        raise ValueError("The answers of vLLM and of the front differ in length for all questions.")
    added = np.array([pair["front"] - pair["generator"] - pair["vLLM"] for pair in same])
    shares = added / [pair["vLLM"] for pair in same]
    drawn = np.random.default_rng(0).choice(shares, (10_000, len(shares)))
    return {
        **{f"{side} a request": median(same, side) for side in ("vLLM", "front", "generator")},
        "front adds, seconds": round(float(np.median(added)), 5),
        "front adds": round(float(np.median(shares)), 5),
        "front adds, 95 % interval": [
            round(float(bound), 5) for bound in np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
        ],
        "questions": len(same),
        "pairs of different lengths": len(pairs) - len(same),
        "pairs": pairs,
    }


def median(found: list[dict[str, float]], name: str) -> float:
    return statistics.median(times[name] for times in found)


def measure(arguments: Arguments, model: Any, tokenizer: Any, prompts: dict[str, list[list[int]]]) -> dict[str, Any]:
    """Return the result, with the times of all blocks."""
    url, requests, new = arguments.engine_url, arguments.requests, arguments.new_tokens
    config = ServeConfig(
        model="served",
        engine="vllm" if url else "transformers",
        engine_url=[url] if url else None,
        max_queue=max(256, requests),
        max_answer_tokens=max(2048, arguments.reasoning_tokens),
        request_timeout=36000.0,
    )
    ways: dict[str, Callable[[int], dict[str, Any]]] = {
        "implicit tokens": lambda number: {"prompt": prompts["semcot"][number], "max_tokens": new},
        "host alone": lambda number: {"prompt": prompts["semcot"][number], "max_tokens": new, "implicit_tokens": 0},
        "escalated": lambda number: {"prompt": prompts["semcot"][number], "max_tokens": new, "escalation": True},
        "explicit reasoning": lambda number: {
            "prompt": prompts["cot"][number],
            "max_tokens": arguments.reasoning_tokens,
            "implicit_tokens": 0,
        },
    }
    result: dict[str, Any] = {"settings": vars(arguments)}
    with served(app_of(model, tokenizer, config, [url] if url else None)) as own:
        asks = {name: asking(own, body) for name, body in ways.items()}
        if url and "overhead" in arguments.parts:
            if 'enable_prefix_caching="True"' in httpx2.get(f"{url}/metrics").text:
                raise ValueError(f"engine_url={url!r} keeps prefixes: start it with --no-enable-prefix-caching.")
            name = httpx2.get(f"{url}/v1/models").json()["data"][0]["id"]
            jobs = [Job(ids, lambda event: None, count=model.config.num_implicit_tokens) for ids in prompts["semcot"]]
            front = Front(model, tokenizer)
            embeds = [encoded(front.prompts([job])[0]) for job in jobs]
            # What the front sends too, instead of what vLLM takes from the host's own generation config.
            decoding = decoding_config(model, tokenizer, max_new_tokens=new, temperature=0.0, stop=None)
            common = {"model": name, "max_tokens": new, "stop_token_ids": list(decoding.eos_token_id or [])}
            common["repetition_penalty"] = model.generation_config.repetition_penalty or 1.0
            direct: dict[str, Callable[[int], dict[str, Any]]] = {
                "implicit tokens": lambda number: {**common, "prompt_embeds": embeds[number]},
                "host alone": lambda number: {**common, "prompt": prompts["semcot"][number]},
            }
            for way, body in direct.items():
                result[way] = overhead(paired(asking(url, body), asks[way], requests, arguments.blocks, own))
        if not url and "batching" in arguments.parts:
            sides = {"one": (asks["implicit tokens"], 1), "many": (asks["implicit tokens"], arguments.clients)}
            blocks = alternated(sides, requests, arguments.blocks, own)
            rates = {side: requests / median(blocks[side], "seconds") for side in sides}
            gain = rates["many"] / rates["one"]
            result["batching"] = {"requests a second": rates, "times": gain, "blocks": blocks}
        if "cost" in arguments.parts:
            names = ["implicit tokens", "escalated", "explicit reasoning"]
            names = [name for name in names if name != "escalated" or model.config.escalation is not None]
            sides = {name: (asks[name], arguments.clients) for name in names}
            blocks = alternated(sides, requests, arguments.blocks, own)
            rates = {side: requests / median(blocks[side], "seconds") for side in sides}
            costs = {side: 1000 / rate / 3600 * arguments.price for side, rate in rates.items()}
            result["cost"] = {
                "answers a second": rates,
                "a thousand answers": costs,
                "share of explicit reasoning": {side: costs[side] / costs["explicit reasoning"] for side in sides},
                "generated tokens": {side: median(blocks[side], "tokens") for side in sides},
                "blocks": blocks,
            }
    return result


def main() -> None:
    (arguments,) = TrlParser(Arguments).parse_args_and_config()
    if arguments.model:
        load = load_front if arguments.engine_url else SemCoTForCausalLM.from_pretrained
        model = load(arguments.model, dtype=arguments.dtype)
        tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    else:
        tokenizer = AutoTokenizer.from_pretrained(arguments.host)
        model = SemCoTForCausalLM.from_host_generator_pretrained(
            arguments.host,
            arguments.generator,
            num_implicit_tokens=arguments.implicit_tokens,
            answer_prompt_ids=answer_prompt_ids(tokenizer),
        )
        tokenizer = with_answer_prompt(tokenizer)
    queries = load_reasoning_dataset(arguments.dataset)[arguments.split]["query"]
    queries = [queries[number % len(queries)] for number in range(arguments.requests)]
    prompts = {
        method: list(Answerer(model, tokenizer, AnswerSettings(method=method)).prompts(queries))
        for method in ("semcot", "cot")
    }
    result = measure(arguments, model.eval(), tokenizer, prompts)
    Path(arguments.output).mkdir(parents=True, exist_ok=True)
    (Path(arguments.output) / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    for part in result.values():
        print({name: value for name, value in part.items() if name not in ("blocks", "pairs")})


if __name__ == "__main__":
    main()
