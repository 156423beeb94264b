"""Random calls of `generate` and `forward`, each drawn from a seed, compared with the slow path of `slow_rows`."""

import copy
import random
import traceback
from typing import Any

import torch
from escalated_calls import can_escalate, check_escalated
from random_draws import (
    PAIRS,
    Batch,
    Outcome,
    Pool,
    draw_batch,
    draw_processor,
    draw_tokens,
    rows_of,
    shown,
    tolerance,
)
from refused_calls import check_refusal
from slow_rows import Row, text_by_hand
from torch import Tensor
from torch.nn import functional as F
from transformers import LogitsProcessorList, set_seed
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper

# Arguments of `forward` that the host does not have.
OWN = ("completion_mask", "use_question_cache")


class Catching:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.ids += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def check_generate(rng: random.Random, model: Any, outcome: Outcome) -> None:
    """Draw a call of `generate`, make it, and compare it with the slow path."""
    batch = draw_batch(rng, model.config.thought_prompt_ids is not None)
    size, width = batch.ids.shape
    tokens = draw_tokens(rng, model, size)
    steps = rng.randrange(1, 6)
    ends = rng.choice([None, None, list(range(11, 320, 5))])
    options: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": ends}
    options |= rng.choice([{"max_new_tokens": steps}, {"max_length": width + steps}])
    way = rng.choice(["greedy"] * 4 + ["sample", "sample", "beams", "lookup", "prefix", "turn", "assistant"])
    processors = LogitsProcessorList()
    if way in ("greedy", "sample", "turn", "lookup", "assistant"):
        added, made = draw_processor(rng, ends)
        options |= added
        if made is not None:
            processors.append(made(width))
    returned = 1
    if way == "sample":
        returned = rng.choice([1, 1, 3])
        options |= {"do_sample": True, "temperature": 1.4, "top_k": 12, "top_p": 1.0, "num_return_sequences": returned}
        processors += [TemperatureLogitsWarper(1.4), TopKLogitsWarper(12)]
    elif way == "beams":
        beams = rng.choice([2, 3])
        returned = rng.choice([1, beams])
        options |= {
            "num_beams": beams,
            "num_return_sequences": returned,
            "length_penalty": rng.choice([1.0, 0.0, 2.0]),
        }
        options |= {"early_stopping": rng.choice([False, True])}
    elif way in ("lookup", "assistant"):
        batch.prompts, batch.ids, batch.mask = batch.prompts[:1], batch.ids[:1], batch.mask[:1]
        tokens = {name: value if isinstance(value, int) else value[:1] for name, value in tokens.items()}
        options |= {"prompt_lookup_num_tokens": 3} if way == "lookup" else {"assistant_model": model.host}
    if way not in ("prefix", "turn"):
        caches = [{}, {}, {}, {"use_cache": False}, {"cache_implementation": "dynamic"}]
        caches += [{"cache_implementation": "static"}]
        # Assisted decoding needs a dynamic cache.
        options |= rng.choice(caches) if way not in ("lookup", "assistant") else {}
    size = len(batch.prompts)
    given = rng.choice([torch.long, torch.long, torch.bool, torch.int32, torch.float32])
    inputs: dict[str, Any] = {"input_ids": batch.ids, "attention_mask": batch.mask.to(given)}
    if (batch.ids[batch.mask == 0] == 0).all() and rng.random() < 0.3:
        del inputs["attention_mask"]
    streamer = Catching() if size == 1 and returned == 1 and way in ("greedy", "sample") else None
    if rng.random() < 0.4:
        options |= {"return_dict_in_generate": True, "output_logits": way != "beams", "output_scores": True}
    outcome.about = f"generate {way} side={batch.side} {shown(inputs)} {shown(tokens)} {shown(options)}"
    seed = rng.randrange(10**6)
    if tokens.get("num_implicit_tokens") == 0:
        alone(model, "generate", {**inputs, **options}, outcome, seed)
        return
    rows = rows_of(model, batch, tokens)
    if way == "prefix":
        options |= prefix_of(model, batch, rows)
    set_seed(seed)
    extra = {} if streamer is None else {"streamer": streamer}
    made = model.generate(**inputs, **tokens, **options, **extra)
    found = made if isinstance(made, Tensor) else made.sequences
    if not torch.equal(found[:, :width], batch.ids.repeat_interleave(returned, 0)):
        outcome.problem = "the prompts came back changed"
        return
    if streamer is not None and (streamer.ids != found[0].tolist() or not streamer.ended):
        outcome.problem = f"the streamer got {streamer.ids}, not {found[0].tolist()}"
        return
    if way == "beams":
        expected = beams_by_hand(rows, steps, returned, options)
    else:
        set_seed(seed)
        texts = [row for row in rows for _ in range(returned)]
        expected, scores = text_by_hand(
            texts, batch.ids.repeat_interleave(returned, 0), steps, ends, processors, way == "sample"
        )
        if not isinstance(made, Tensor) and way not in ("lookup", "assistant"):
            compare_logits(outcome, model, made, scores)
    compare(outcome, model, rows, found[:, width:].tolist(), expected, way, returned, processors, batch)
    if way == "turn" and outcome.problem is None:
        second_turn(rng, model, batch, rows, inputs, tokens, options, outcome)


def prefix_of(model: Any, batch: Batch, rows: list[Row]) -> dict[str, Any]:
    """Return the host's cache of the columns that all prompts share, as an argument of `generate`."""
    shared = 0
    while (
        shared < min(row.cut for row in rows)
        and bool((batch.mask[:, shared] == 1).all())
        and len(set(batch.ids[:, shared].tolist())) == 1
    ):
        shared += 1
    if not shared:
        return {}
    with torch.no_grad():
        ids = batch.ids[:, :shared]
        return {"past_key_values": model.host(ids, use_cache=True).past_key_values}


def beams_by_hand(rows: list[Row], steps: int, returned: int, options: dict[str, Any]) -> list[list[int]]:
    """Return the new ids of each row's beams: the host's own search on spliced embeddings, without cache."""
    names = ("num_beams", "num_return_sequences", "length_penalty", "early_stopping", "pad_token_id", "eos_token_id")
    found: list[list[int]] = []
    for row in rows:
        chosen = {name: options[name] for name in names}
        out = row.model.host.generate(
            inputs_embeds=row.embeds(row.prompt), use_cache=False, max_new_tokens=steps, do_sample=False, **chosen
        )
        found += out.tolist()
    width = max(map(len, found))
    # transformers' beam search takes a pad id of 0 for none.
    fill = (options["eos_token_id"] or [0])[0]
    return [ids + [fill] * (width - len(ids)) for ids in found]


def compare_logits(outcome: Outcome, model: Any, made: Any, expected: list[Tensor]) -> None:
    """Compare the logits of the first step, and of all steps where no rounding can have led elsewhere."""
    difference = (made.logits[0] - expected[0]).abs().max()
    if difference > tolerance(model):
        outcome.problem = f"the first step's logits differ by {float(difference):.3g}"


def compare(
    outcome: Outcome,
    model: Any,
    rows: list[Row],
    found: list[list[int]],
    expected: list[list[int]],
    way: str,
    returned: int,
    processors: LogitsProcessorList,
    batch: Batch,
) -> None:
    """Compare new ids; a choice between two logits that are as close as rounding is no difference."""
    if outcome.problem or found == expected:
        return
    for place, (ids, wanted) in enumerate(zip(found, expected, strict=True)):
        if ids == wanted:
            continue
        row = rows[place // returned]
        first = next((step for step, pair in enumerate(zip(ids, wanted, strict=False)) if pair[0] != pair[1]), None)
        if first is None or way in ("beams", "sample"):
            close = False
        else:
            text = wanted[:first]
            scores = row.logits(row.prompt + text)[-1].float()[None]
            seen = torch.tensor([batch.ids[place // returned].tolist() + text])
            scores = processors(seen, scores)[0]
            close = float(scores[wanted[first]] - scores[ids[first]]) < 2 * tolerance(model)
        if not close and not (way in ("beams", "sample") and tolerance(model) > 1e-3):
            outcome.problem = f"row {place}: {ids}, slow path {wanted}"
            return
        outcome.ties += 1


def second_turn(
    rng: random.Random,
    model: Any,
    batch: Batch,
    rows: list[Row],
    inputs: dict[str, Any],
    tokens: dict[str, Any],
    options: dict[str, Any],
    outcome: Outcome,
) -> None:
    """Continue a conversation from the cache that the first turn returned."""
    keep = {name: options[name] for name in ("pad_token_id", "eos_token_id")} | {"max_new_tokens": 3}
    cache = model.generate(**inputs, **tokens, **keep, return_dict_in_generate=True)
    if cache.past_key_values is None:
        return
    words = rng.randrange(1, 4)
    more = torch.tensor([[rng.randrange(10, 320) for _ in range(words)] for _ in batch.prompts])
    ids = torch.cat([cache.sequences, more], dim=1)
    grown = torch.ones(len(ids), ids.shape[1] - batch.mask.shape[1], dtype=torch.long)
    mask = torch.cat([batch.mask, grown], dim=1)
    again = model.generate(ids, attention_mask=mask, past_key_values=cache.past_key_values, **keep)
    texts = [row.prompt for row in rows]
    for row, line in zip(rows, ids.tolist(), strict=True):
        row.prompt = row.prompt + line[batch.ids.shape[1] :]
    expected, _ = text_by_hand(rows, ids, 3, keep["eos_token_id"], LogitsProcessorList(), False)
    whole = copy.copy(batch)
    whole.ids = ids
    compare(outcome, model, rows, again[:, ids.shape[1] :].tolist(), expected, "turn", 1, LogitsProcessorList(), whole)
    if outcome.problem:
        outcome.problem = f"second turn: {outcome.problem}"
    for row, text in zip(rows, texts, strict=True):
        row.prompt = text


def alone(model: Any, method: str, inputs: dict[str, Any], outcome: Outcome, seed: int) -> None:
    """Compare a call without implicit tokens with the host's own, bit for bit, errors included."""
    found: list[Any] = []
    for part, own in ((model, {"num_implicit_tokens": 0}), (model.host, {})):
        if part is model.host:
            inputs = {name: value for name, value in inputs.items() if name not in OWN}
        set_seed(seed)
        try:
            out = getattr(part, method)(**inputs, **own)
            found.append(out if isinstance(out, Tensor) else out.sequences if method == "generate" else out.logits)
        except Exception as error:
            found.append(str(error).replace("SemCoTForCausalLM", type(model.host).__name__))
    ours, hosts = found
    if type(ours) is not type(hosts) or not (torch.equal(ours, hosts) if isinstance(ours, Tensor) else ours == hosts):
        outcome.problem = f"without implicit tokens {ours}, the host's own {hosts}"
    elif isinstance(ours, str):
        outcome.refused = f"as the host does: {ours}"


# forward


def check_forward(rng: random.Random, model: Any, outcome: Outcome) -> None:
    """Draw a call of `forward`, make it, and compare its logits and loss with the slow path."""
    batch = draw_batch(rng, model.config.thought_prompt_ids is not None, completions=True)
    size = len(batch.prompts)
    tokens = draw_tokens(rng, model, size)
    has_completion = rng.random() < 0.8
    answers = [[rng.randrange(10, 320) for _ in range(rng.randrange(1, 5))] for _ in range(size)]
    tails = [[rng.randrange(10, 320)] if rng.random() < 0.2 else [] for _ in range(size)]
    texts = list(batch.prompts)
    if has_completion:
        texts = [prompt + answer + tail for prompt, answer, tail in zip(texts, answers, tails, strict=True)]
    width = max(map(len, texts)) + rng.choice([0, 2])
    ids, mask = torch.zeros(size, width, dtype=torch.long), torch.zeros(size, width, dtype=torch.long)
    completion, places = torch.zeros_like(ids), []
    for row, text in enumerate(texts):
        room = width - len(text)
        left = {"left": room, "right": 0, "both": rng.randrange(room + 1)}.get(batch.side, room)
        places.append(list(range(left, left + len(text))))
        if batch.side == "hole":
            places[-1] = [0, *range(1 + room, width)]
        ids[row, places[-1]], mask[row, places[-1]] = torch.tensor(text), 1
        if has_completion:
            start = len(batch.prompts[row])
            completion[row, places[-1][start : start + len(answers[row])]] = 1
    options: dict[str, Any] = {"attention_mask": mask.to(rng.choice([torch.long, torch.bool, torch.int32]))}
    labels = None
    if has_completion:
        form = rng.choice(["completion", "labels", "both"])
        if form != "labels":
            options["completion_mask"] = completion.to(rng.choice([torch.long, torch.bool]))
        if form != "completion":
            labels = options["labels"] = ids.masked_fill(completion == 0, -100)
    elif not tokens:
        tokens = {"num_implicit_tokens": 2}
    kept = rng.choice([0, 0, 1, 2, width - 1, width, width + 3, "positions"])
    if kept == "positions":
        if labels is not None:
            kept = 0
        else:
            kept = torch.tensor(sorted(rng.sample(range(width), 2)))
    options["logits_to_keep"] = kept
    options["use_question_cache"] = rng.random() < 0.4
    options["use_cache"] = rng.choice([None, True, False])
    if labels is not None and rng.random() < 0.3:
        options["num_items_in_batch"] = 5
    outcome.about = f"forward side={batch.side} {shown(tokens)} {shown(options)}"
    if "labels" in options and (completion.sum(1) == 0).any():
        return
    if tokens.get("num_implicit_tokens") == 0:
        alone(model, "__call__", {"input_ids": ids, **options}, outcome, 0)
        return
    batch = Batch(batch.prompts, ids, mask, batch.side)
    rows = rows_of(model, batch, tokens)
    out = model(ids, **options, **tokens)
    columns = list(range(width))
    if isinstance(kept, Tensor):
        columns = kept.tolist()
    elif 0 < kept < width:
        columns = columns[-kept:]
    wanted = torch.zeros(size, width, out.logits.shape[-1], dtype=out.logits.dtype)
    for row, text in enumerate(texts):
        wanted[row, places[row]] = rows[row].logits(text)
    if tuple(out.logits.shape[:2]) != (size, len(columns)):
        outcome.problem = f"logits of shape {tuple(out.logits.shape)}, {len(columns)} columns are wanted"
        return
    # Logits before padding predict nothing.
    real = (mask.bool() & F.pad(mask[:, 1:], (0, 1), value=1).bool())[:, columns]
    difference = (out.logits - wanted[:, columns])[real].abs()
    scale = tolerance(model)
    if difference.numel() and float(difference.max()) > scale:
        outcome.problem = f"logits differ by {float(difference.max()):.3g}"
        return
    # A label behind padding is predicted by the padding's logits, as in any model.
    before = F.pad(mask[:, :-1], (1, 0), value=1).bool()
    if labels is not None and bool((before | (labels == -100)).all()):
        part = labels[:, columns]
        count = options.get("num_items_in_batch")
        losses = F.cross_entropy(
            wanted[:, columns][:, :-1].float().flatten(0, 1), part[:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )
        expected = losses / (count or (part[:, 1:] != -100).sum())
        if not torch.allclose(out.loss.float(), expected, atol=scale, rtol=scale, equal_nan=True):
            outcome.problem = f"loss {float(out.loss)}, slow path {float(expected)}"


def call(pool: Pool, seed: int) -> Outcome:
    """Make the call of a seed."""
    rng = random.Random(seed)
    place, model = pool.draw(rng)
    outcome = Outcome(seed, "")
    check = rng.choices([check_generate, check_forward, check_refusal, check_escalated], [55, 27, 8, 10])[0]
    if check is check_escalated and not can_escalate(model):
        check = check_generate
    try:
        with torch.no_grad():
            check(rng, model, outcome)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        if "_semcot" in where.filename and isinstance(error, ValueError):
            outcome.refused = str(error)
        elif "not supported with stateful models" in str(error):
            outcome.refused = f"by transformers: {error}"
        else:
            outcome.problem = f"{error!r} at {where.filename.rsplit('site-packages')[-1]}:{where.lineno}"
    outcome.about = f"{'/'.join(map(str, PAIRS[place][::2]))} {outcome.about}"
    return outcome
