"""Thoughts that are written as words by a causal LM, which then goes on with its answer; a generator as such an LM."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, Cache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import StaticCache

from ..modeling.offloading_semcot import in_memory
from ..modeling.question_cache_semcot import hidden_settings
from ..modeling.thoughts_semcot import Thoughts
from .decoding import NO_PENALTIES, greedy_defaults
from .prompting import encode_prompt, pad_left
from .shared_prefix import can_share


def generator_lm(model: PreTrainedModel) -> PreTrainedModel:
    """Return a SemCoT model's generator as a causal LM of its own, which shares the generator's weights.

    Its LM head is the projection of a model with projection="vocabulary".

    Raises:
        ValueError: for a generator whose causal LM has weights besides backbone and head.
    """
    backbone = cast(Any, model.generator)
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(backbone.config, dtype=backbone.dtype)
    inner = backbone.get_base_model() if hasattr(backbone, "get_base_model") else backbone
    name = next((name for name, part in lm.named_children() if type(part) is type(inner)), None)
    if name is None:
        raise ValueError(
            f"the generator is a {type(inner).__name__}, which {type(lm).__name__} does not contain: evaluate this "
            "model with methods other than 'generator' and 'generator_no_cot'."
        )
    setattr(lm, name, backbone)
    lm.set_output_embeddings(cast(Any, model.projection))
    left = [name for name, weight in lm.named_parameters() if weight.is_meta]
    if left:
        raise ValueError(
            f"the generator's causal LM, {type(lm).__name__}, also has the weights {', '.join(left)}, which a SemCoT "
            "model does not keep: evaluate this model with methods other than 'generator' and 'generator_no_cot'."
        )
    return lm.eval()


@dataclass
class Reading:
    """Prompts in a causal LM, padded on the left.

    Args:
        ids, mask: (batch, length), the columns of the cache included.
        embeds: (batch, length, hidden size), where they are more than the embeddings of `ids`.
        cache: keys and values of the first columns, or `None`; the LM appends to it.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    embeds: torch.Tensor | None = None
    cache: Cache | None = None


@dataclass(frozen=True)
class Thought:
    """The words of one thought.

    Args:
        words: token ids, without the one that ends the thought.
        end: the token that ended it; `None` at the limit.
    """

    words: list[int]
    end: int | None


@torch.no_grad()
def read_question(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> Reading:
    """Return what a generator that thinks in words reads of prompts: questions, with its thought prompt around them.

    Args:
        model: a SemCoT model.
        ids, mask: (batch, length), prompts in the host's ids, padded on the left.
    """
    config = model.config
    queries, real = model._generator_inputs(*model._queries(ids, mask))
    cache = None
    if config.thought_prompt_ids is not None:
        queries, real, cache = model._prompted(queries, real, use_cache=not config.starts_with_thought_token)
    if cache is not None:
        before = queries.new_tensor(config.thought_prompt_ids[0]).expand(len(queries), -1)
        queries = torch.cat([before, queries], dim=1)
    real = torch.ones_like(queries) if real is None else real
    if not config.starts_with_thought_token:
        return Reading(queries, real, None, cache)
    embeds = model.generator.get_input_embeddings()(queries)
    thought = in_memory(model, "thought_embedding").to(embeds).expand(len(embeds), 1, -1)
    # The id of the <thought> column is not read.
    queries, real = (torch.cat([part, torch.ones_like(part[:, :1])], dim=1) for part in (queries, real))
    return Reading(queries, real, torch.cat([embeds, thought], dim=1), cache)


def write_thoughts(
    lm: PreTrainedModel, reading: Reading, *, limit: int, ends: Sequence[int], pad: int
) -> tuple[list[Thought], Reading]:
    """Write thoughts greedily, each up to its first token of `ends` or the limit.

    Returns:
        The thoughts, and the reading with their words; with padding behind those that are shorter than others.
    """
    if limit == 0:
        return [Thought([], None) for _ in reading.ids], reading
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=limit,
        eos_token_id=list(ends) or None,
        pad_token_id=pad,
        return_dict_in_generate=True,
        **NO_PENALTIES,
    )
    # Stop texts end answers.
    with greedy_defaults(lm, "stop_strings"):
        out = _generated(lm, config, _inputs(reading))
    new = out.sequences[:, 0 if reading.embeds is not None else reading.ids.shape[1] :]
    thoughts = []
    for row in new.tolist():
        count = next((place for place, token in enumerate(row) if token in ends), len(row))
        thoughts.append(Thought(row[:count], row[count] if count < len(row) else None))
    longest = max(len(thought.words) for thought in thoughts)
    # The last new token is not in the cache; where it ends the last thought, it is dropped.
    new = new[:, :longest]
    used = torch.tensor([[1] * len(t.words) + [0] * (longest - len(t.words)) for t in thoughts], device=new.device)
    used = used.reshape(len(thoughts), longest)
    embeds = reading.embeds
    if embeds is not None:
        embeds = torch.cat([embeds, lm.get_input_embeddings()(new)], dim=1)
    ids, mask = torch.cat([reading.ids, new], dim=1), torch.cat([reading.mask, used.to(reading.mask)], dim=1)
    return thoughts, Reading(ids, mask, embeds, out.past_key_values)


def write_answers(
    lm: PreTrainedModel, reading: Reading, tails: Sequence[list[int]], config: GenerationConfig, **options: Any
) -> list[list[int]]:
    """Return the token ids of each row's answer, which follow what was read and its tail.

    Args:
        lm: the causal LM that has read.
        reading: what was read; rows may have padding anywhere.
        tails: token ids that it reads before it answers, for each row.
        config: of the answers' decoding.
        options: further arguments of `generate`.
    """
    device, pad = reading.ids.device, cast(int, config.pad_token_id)
    # Padding between tokens, which layers that count columns or keep a state would take for text.
    gaps = bool((reading.mask[:, 1:] < reading.mask[:, :-1]).any()) or len({*map(len, tails)}) > 1
    # A static cache has no room for the answer.
    if reading.cache is not None and not isinstance(reading.cache, StaticCache) and (not gaps or can_share(lm)):
        ids, mask = (part.long().to(device) for part in pad_left(tails, pad))
        ids, mask = torch.cat([reading.ids, ids], dim=1), torch.cat([reading.mask, mask], dim=1)
        inputs = _inputs(Reading(ids, mask, None, reading.cache))
    elif reading.embeds is None:
        read = [row[real.bool()].tolist() for row, real in zip(reading.ids, reading.mask, strict=True)]
        rows = [[*row, *tail] for row, tail in zip(read, tails, strict=True)]
        ids, mask = pad_left(rows, pad)
        inputs = _inputs(Reading(ids.to(device), mask.to(device)))
    else:
        table = lm.get_input_embeddings()
        parts = [
            torch.cat([row[real.bool()], table(torch.tensor(tail, device=device, dtype=torch.long)).to(row)])
            for row, real, tail in zip(reading.embeds, reading.mask, tails, strict=True)
        ]
        mask = pad_sequence([torch.ones(len(part)) for part in parts], batch_first=True, padding_side="left")
        embeds = pad_sequence(parts, batch_first=True, padding_side="left")
        inputs = {"inputs_embeds": embeds, "attention_mask": mask.long().to(device)}
    behind = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    return _generated(lm, config, {**inputs, **options})[:, behind:].tolist()


def _generated(lm: PreTrainedModel, config: GenerationConfig, options: dict[str, Any]) -> Any:
    """Return the output of `generate`."""
    with nullcontext() if options.get("past_key_values") is None else hidden_settings(lm, "cache_implementation"):
        return cast(Callable[..., Any], lm.generate)(generation_config=config, **options)


def _inputs(reading: Reading) -> dict[str, Any]:
    """Return the arguments of `generate`."""
    text = {"input_ids": reading.ids} if reading.embeds is None else {"inputs_embeds": reading.embeds}
    cache = {} if reading.cache is None else {"past_key_values": reading.cache}
    return {**text, "attention_mask": reading.mask, **cache}


def answer_after(
    tokenizer: PreTrainedTokenizerBase, end: int | None, ends: Sequence[int], answer_prompt: str
) -> list[int]:
    """Return what stands between a generator's words and its answer: the end of the thought and the answer prompt.

    These are the ids that a generator is taught with. A thought that was cut gets the first of `ends`. A generator
    that ended its message, such as an untaught one, and for which line breaks end a thought as well, gets a line
    break, so that it goes on in the same message.

    Args:
        tokenizer: the generator's.
        end: the token that ended the thought; `None` at the limit.
        ends: all tokens that end a thought.
        answer_prompt: text; a line break at its beginning is left out after one.
    """
    end = ends[0] if end is None and ends else end
    if end is None:
        return encode_prompt(tokenizer, answer_prompt)
    if end != ends[0] and not breaks_line(tokenizer, end):
        end = next((token for token in ends if breaks_line(tokenizer, token)), end)
    if breaks_line(tokenizer, end):
        answer_prompt = answer_prompt.lstrip("\n")
    return [end, *encode_prompt(tokenizer, answer_prompt)]


def breaks_line(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Return whether a token ends with a line break."""
    return str(tokenizer.decode([token])).endswith("\n")


def thought_fields(
    thoughts: Thoughts | None, mask: torch.Tensor | None, rows: int, limit: int
) -> list[dict[str, Any]]:
    """Return what each row's `Answer` says of its thought; `words` are the ids of its words, if it has any.

    Args:
        thoughts: those of the model; `None` for given tokens, and for models that make as many for each question.
        mask: (rows, k) of the tokens, where the rows have different numbers.
        rows: number of rows.
        limit: most tokens of a thought.
    """
    found: list[dict[str, Any]] = [{} for _ in range(rows)]
    if mask is not None:
        for row, length in zip(found, mask.sum(dim=1).tolist(), strict=True):
            row |= {"implicit_tokens": length, "thought_ended": length < limit}
    if thoughts is None:
        return found
    if thoughts.ended is not None:
        for row, ended in zip(found, thoughts.ended.tolist(), strict=True):
            row["thought_ended"] = ended
    if thoughts.as_text is not None:
        for row, as_text in zip(found, thoughts.as_text.tolist(), strict=True):
            row["thought_as_text"] = as_text
    if thoughts.words is not None:
        for row, words in zip(found, thoughts.words.tolist(), strict=True):
            row["words"] = [word for word in words if word >= 0]
    if thoughts.lost_probability is not None:
        shares = thoughts.lost_probability.tolist()
        steps = [len(row) for row in shares] if thoughts.steps is None else thoughts.steps.tolist()
        for row, lost, count in zip(found, shares, steps, strict=True):
            row["lost_probability"] = (sum(lost) / max(count, 1), max(lost, default=0.0))
    return found
