"""A stand-in for `vllm serve HOST --enable-prompt-embeds`: its completions API over a tiny transformers host."""

import base64
import io
import json
import threading

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse


class EmbedsEngine:
    """Answers /v1/completions for ids and embeddings, greedily, in the form of vLLM 0.32's streams.

    Args:
        host: a causal LM.
        tokenizer: its tokenizer.
        unscaled: whether embeddings are taken before the factor of the host's lookup.
        positions: most positions of a prompt with its answer.
        max_logprobs: most tokens whose log-probabilities are reported at one place; -1 for all.
        processed: whether log-probabilities are those after the temperature.

    Attributes:
        breaks_after: number of chunks after which a connection breaks; `None` for whole answers.
        status: what all requests get instead of an answer; `None` for answers.
        breaks_at: number of the prompt's positions at which alone it breaks; `None` for all.
        asked: the bodies that came, with the prompt's number of positions.
        open: requests being answered.
        held: what a request waits for before its last chunk.
    """

    def __init__(self, host, tokenizer, unscaled=False, positions=200, max_logprobs=20, processed=False):
        self.host, self.tokenizer, self.unscaled, self.positions = host, tokenizer, unscaled, positions
        self.max_logprobs, self.processed = max_logprobs, processed
        self.breaks_after = self.breaks_at = self.status = None
        self.asked, self.open, self.held = [], 0, threading.Event()
        self.held.set()
        self.app = FastAPI()
        self.app.get("/v1/models")(self.models)
        self.app.get("/health")(lambda: {})
        self.app.post("/v1/completions")(self.complete)

    async def models(self):
        return {"data": [{"id": "the-host", "max_model_len": self.positions}]}

    async def complete(self, request: Request):
        body = {"n": 1, "stop": [], "stream": False, **await request.json()}
        assert body["model"] == "the-host"
        if body["n"] > 1 and body["temperature"] == 0:
            return JSONResponse({"error": {"message": "n must be 1 when using greedy sampling", "param": None}}, 400)
        if self.max_logprobs >= 0 and not 0 <= body.get("logprobs", 0) <= self.max_logprobs:
            return JSONResponse({"error": {"message": "greater than max allowed", "param": "logprobs"}}, 400)
        if len(body["stop"]) > 4:
            message = (
                "1 validation error:\n  {'type': 'too_long', 'loc': 'body.stop', 'msg': 'List should have at most 4"
            )
            return JSONResponse({"error": {"message": message, "param": None}}, 400)
        if self.status is not None:
            return JSONResponse({"error": {"message": "told to", "param": "seed"}}, self.status)
        table = self.host.get_input_embeddings()
        if "prompt_embeds" in body:
            assert "prompt" not in body
            file = io.BytesIO(base64.b64decode(body["prompt_embeds"], validate=True))
            embeds = torch.load(file, weights_only=True)
            assert embeds.dtype in (torch.float32, torch.bfloat16, torch.float16) and embeds.dim() == 2
            embeds = embeds.to(table.weight.dtype) * (getattr(table, "embed_scale", 1.0) if self.unscaled else 1.0)
        else:
            embeds = table(torch.tensor([body["prompt"]]))[0]
        self.asked.append({**body, "positions": len(embeds)})
        if not body["stream"]:
            made = self._answer(body, embeds)
            logprobs = made[0][1] and {name: [part[1][name][0] for part in made] for name in made[0][1]}
            text = "".join(part[0] for part in made)
            choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": made[-1][2]}
            return JSONResponse({"choices": [choice], "usage": {"completion_tokens": len(made)}})
        return StreamingResponse(self._stream(body, embeds), media_type="text/event-stream")

    def _stream(self, body, embeds):
        self.open += 1
        try:
            made = self._answer(body, embeds)
            tokens = 0
            for index in range(body["n"]):
                tokens += len(made)
                for number, (text, logprobs, reason, stopped) in enumerate(made):
                    breaks = self.breaks_at in (None, len(embeds)) and self.breaks_after is not None
                    if breaks and number >= self.breaks_after:
                        raise ConnectionError("the engine is killed")
                    if reason is not None:
                        self.held.wait()
                    choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
                    choice["stop_reason"] = stopped
                    yield f"data: {json.dumps({'choices': [choice]})}\n\n"
            yield f"data: {json.dumps({'choices': [], 'usage': {'completion_tokens': tokens}})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self.open -= 1

    @torch.no_grad()
    def _answer(self, body, embeds):
        ends = [self.host.generation_config.eos_token_id, *body.get("stop_token_ids", ())]
        ids, sent, made = [], "", []
        while True:
            text_embeds = self.host.get_input_embeddings()(torch.tensor([ids], dtype=torch.long))
            logits = self.host(inputs_embeds=torch.cat([embeds[None], text_embeds], dim=1)).logits[0, -1].float()
            token = int(logits.argmax())
            ids.append(token)
            text = self.tokenizer.decode(ids[:-1] if token in ends else ids, skip_special_tokens=True)
            cut = [text.index(stop) for stop in body["stop"] if stop in text]
            reason = "stop" if cut or token in ends else "length" if len(ids) == body["max_tokens"] else None
            stopped = next((stop for stop in body["stop"] if stop in text), None)
            text = text[: min(cut)] if cut else text if reason else text.rstrip("\ufffd")
            logprobs = None
            # vLLM reports the token that ends an answer, too.
            if "logprobs" in body:
                number = len(logits) if body["logprobs"] == -1 else max(1, body["logprobs"])
                heat = body["temperature"] if self.processed and body["temperature"] > 0 else 1.0
                values, top = (logits / heat).log_softmax(-1).topk(number)
                named = {f"token_id:{i}": v for i, v in zip(top.tolist(), values.tolist(), strict=True)}
                logprobs = {
                    "tokens": [f"token_id:{token}"],
                    "token_logprobs": [values[0].item()],
                    "top_logprobs": [named],
                }
            made.append((text[len(sent) :], logprobs, reason, stopped))
            sent = text
            if reason:
                return made
