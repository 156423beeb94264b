"""Random calls of `generate` with escalation, compared with answers, confidences and routes found row by row."""

import random
from typing import Any

import torch
from random_draws import ANSWER, Outcome, draw_batch, draw_processor, draw_tokens, rows_of, shown, tolerance
from slow_rows import Row, text_by_hand
from torch import Tensor
from transformers import LogitsProcessorList

from semcot_hf.modeling.escalation_semcot import Escalation
from semcot_hf.modeling.thoughts_semcot import single_words

AS_IT_IS = {"kind": "isotonic", "x": [0.0, 1.0], "y": [0.0, 1.0]}


def can_escalate(model: Any) -> bool:
    """Return whether escalation works for a model, and its probabilities are known well enough to be compared."""
    return bool(model.config.answer_prompt_ids) and tolerance(model) < 1e-4


def check_escalated(rng: random.Random, model: Any, outcome: Outcome) -> None:
    """Draw a call of `generate` with escalation, make it, and compare it with the slow path."""
    batch = draw_batch(rng, model.config.thought_prompt_ids is not None)
    while batch.side in ("right", "both") or not all(
        prompt[-2:] == ANSWER and len(prompt) > 2 for prompt in batch.prompts
    ):
        batch = draw_batch(rng, model.config.thought_prompt_ids is not None)
    size, width = batch.ids.shape
    tokens = draw_tokens(rng, model, size)
    steps, reasoning = rng.randrange(1, 6), rng.randrange(1, 8)
    ends = rng.choice([None, None, list(range(11, 320, 5))])
    added, made = draw_processor(rng, ends)
    if {"repetition_penalty", "no_repeat_ngram_size"} & set(added):
        # They count padding, of which there is less where some rows are continued alone.
        added, made = {}, None
    options: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": ends, "max_new_tokens": steps, **added}
    options |= rng.choice([{}, {}, {"use_cache": False}, {"cache_implementation": "static"}])

    def answers(rows: list[Row], prompts: list[list[int]], most: int) -> tuple[list[list[int]], list[Tensor]]:
        """Return each row's new ids, and their log-probabilities."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        processors = LogitsProcessorList([] if made is None else [made(longest)])
        texts, logits = text_by_hand(rows, ids, most, ends, processors, False)
        texts = [used(text, ends or []) for text in texts]
        logs = torch.stack(logits, dim=1).log_softmax(dim=-1)
        return texts, [log[range(len(text)), text] for log, text in zip(logs, texts, strict=True)]

    rows = rows_of(model, batch, tokens)
    without = tokens.get("num_implicit_tokens") == 0
    implicit, logs = answers(rows, batch.prompts, steps)
    kinds = ["answer_probability", "min_token_probability"]
    worded = model.config.projection == "vocabulary" and model.config.mixture_top_k != 1
    kinds += ["agreement"] * (worded and not without and "implicit_embeddings" not in tokens)
    kind = rng.choice(kinds)
    if kind == "agreement":
        with single_words(model):
            hard, _ = answers(rows_of(model, batch, tokens), batch.prompts, steps)
        sure = [float(a == b) for a, b in zip(implicit, hard, strict=True)]
    else:
        sure = [float(log.min() if kind == "min_token_probability" else log.mean()) for log in logs]
        sure = [float(torch.tensor(value, dtype=torch.float64).exp()) for value in sure]
    threshold = rng.choice([0.0, 1.0, 0.5, sum(sure) / size, max(sure) * 0.999])
    plain = [Row(model, prompt, 0) for prompt in batch.prompts]
    first = [float(row.logits(row.prompt)[-1].softmax(dim=-1).max()) for row in plain]
    router, sends = None, rng.choice([None, None, None, "at_once", "explicit"])
    if sends is not None:
        router = {"signals": ["host_probability"], "calibration": None, "threshold": sum(first) / size, "sends": sends}
    near = [abs(value - threshold) < 1e-3 for value in sure if 0 < threshold < 1]
    near += [abs(value - sum(first) / size) < 1e-3 for value in first if router is not None]
    rule: Any = Escalation(threshold, [kind], AS_IT_IS, max_reasoning_tokens=reasoning, router=router)
    rule = rng.choice([rule, rule.to_dict()])
    detailed = rng.random() < 0.6
    options["return_dict_in_generate"] = detailed
    outcome.about = (
        f"escalated by {kind} below {threshold:.3f} router={sends} side={batch.side} {shown(tokens)} {shown(options)}"
    )
    if any(near):
        outcome.ties += 1
        return
    routed = [False] * size
    if router is not None:
        routed = [(value >= router["threshold"]) == (sends == "at_once") for value in first]
    unsure = [value < threshold for value in sure]
    routes = [
        sends if by_router else "explicit" if low else "at_once" if without else "implicit"
        for by_router, low in zip(routed, unsure, strict=True)
    ]
    at_once, _ = answers(plain, batch.prompts, steps)
    texts = [prompt[: -len(ANSWER)] for prompt in batch.prompts]
    explicit, _ = answers([Row(model, text, 0) for text in texts], texts, reasoning)
    by_route = {"at_once": at_once, "implicit": implicit, "explicit": explicit}
    expected = [by_route[route][place] for place, route in enumerate(routes)]
    found = model.generate(batch.ids, attention_mask=batch.mask, escalation=rule, **tokens, **options)
    sequences = found.sequences if detailed else found
    if not torch.equal(sequences[:, :width], batch.ids):
        outcome.problem = "the prompts came back changed"
        return
    compare_rows(outcome, sequences[:, width:].tolist(), expected)
    if detailed and outcome.problem is None:
        if found.route != routes:
            outcome.problem = f"routes {found.route}, slow path {routes}"
        for place, confidence in enumerate(found.confidence.tolist()):
            wanted = first[place] if routed[place] else sure[place]
            if abs(confidence - wanted) > 1e-4:
                outcome.problem = f"row {place}: confidence {confidence}, slow path {wanted}"


def used(text: list[int], ends: list[int]) -> list[int]:
    """Return a row's new ids up to its end, without padding behind it."""
    for place, token in enumerate(text, start=1):
        if token in ends:
            return text[:place]
    while len(text) > 1 and text[-1] == 0:
        text = text[:-1]
    return text


def compare_rows(outcome: Outcome, found: list[list[int]], expected: list[list[int]]) -> None:
    """Compare rows of new ids, padded on the right."""
    width = max(map(len, expected))
    padded = [text + [0] * (width - len(text)) for text in expected]
    if found != padded:
        outcome.problem = f"new ids {found}, slow path {padded}"
