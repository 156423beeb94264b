"""The timed calls: each method's answer, and the minimal passes of the models that produce the same answer."""

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from ...inference.shared_prefix import SharedPrefix
from ...modeling.modeling_semcot import SemCoTForCausalLM
from ..methods.latents import LatentModel
from .settings import COMPILED, COMPILED_PARALLEL, SHARED, SpeedSetting
from .shapes import ANSWER_PROMPT_IDS, own_tokens, prompts

# Number of tokens over which the time of a decode step is averaged.
DECODE_STEPS = 8
Calls = dict[str, Callable[[], object]]


@torch.no_grad()
def generator_pass(model: SemCoTForCausalLM, ids: Tensor, count: int, mode: str) -> Tensor:
    """Make k implicit tokens with nothing but forward passes of the generator's backbone and the projection.

    Args:
        model: its own path to the same tokens is what this bounds.
        ids: (batch, length), questions without the answer prompt.
        count: k.
        mode: "parallel" (one pass) or "sequential" (one cached pass per token).

    Returns:
        (batch, k, host hidden size).
    """
    generator = model.generator
    query = generator.get_input_embeddings()(ids)
    thought = model.thought_embedding.expand(len(ids), 1, -1)
    if mode == "parallel":
        inputs = torch.cat([query, thought.expand(-1, count, -1)], dim=1)
        return model.projection(generator(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -count:])
    cache, step, states = DynamicCache(config=generator.config), torch.cat([query, thought], dim=1), []
    for _ in range(count):
        outputs = generator(inputs_embeds=step, past_key_values=cache, use_cache=True)
        states.append(outputs.last_hidden_state[:, -1:])
        step = states[-1] * model.config.feedback_scale
    return model.projection(torch.cat(states, dim=1))


@torch.no_grad()
def raw_answer(
    host: PreTrainedModel, ids: Tensor, new_tokens: int, cache: str = "dynamic", past: Cache | None = None
) -> Tensor:
    """Answer greedily with the host's forward alone: a prefill with the last position's logits, then decode steps.

    Args:
        host: causal LM.
        ids: (batch, length), without padding.
        new_tokens: tokens to generate.
        cache: "dynamic", or "static" with the decode step compiled on a GPU.
        past: a cache of that kind that holds what precedes `ids`; a new one when `None`.

    Returns:
        LongTensor (batch, new_tokens).
    """
    decode = host.get_compiled_call(None) if cache == "static" and ids.device.type == "cuda" else host
    if past is None:
        past = _new_cache(host, cache, ids.shape[1] + new_tokens)
    logits = host(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1).logits
    tokens = [logits[:, -1:].argmax(dim=-1)]
    for _ in range(new_tokens - 1):
        logits = decode(input_ids=tokens[-1], past_key_values=past, use_cache=True).logits
        tokens.append(logits[:, -1:].argmax(dim=-1))
    return torch.cat(tokens, dim=1)


def _new_cache(host: PreTrainedModel, cache: str, length: int) -> Cache:
    if cache == "static":
        return StaticCache(config=host.config, max_cache_len=length)
    return DynamicCache(config=host.config)


@torch.no_grad()
def prefill_in_two(host: PreTrainedModel, question: Tensor, rest: Tensor, cache: str = "dynamic") -> Tensor:
    """Compute the first answer token in two passes: over the question, then over implicit tokens and answer prompt.

    This is the host's share if the generator read the question at the same time as the first pass.
    """
    past = _new_cache(host, cache, question.shape[1] + rest.shape[1] + 1)
    host(input_ids=question, past_key_values=past, use_cache=True, logits_to_keep=1)
    return raw_answer(host, rest, 1, cache, past)


def generated(
    model: SemCoTForCausalLM | LatentModel | PreTrainedModel,
    ids: Tensor,
    new_tokens: int,
    cache: str = "dynamic",
    **options: Any,
) -> Tensor:
    """Call the model's greedy `generate` for exactly `new_tokens` new tokens."""
    if cache == "static":
        options["cache_implementation"] = "static"
    return cast(Any, model).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        do_sample=False,
        **options,
    )


def method_calls(model: SemCoTForCausalLM, setting: SpeedSetting) -> Calls:
    """Return the calls of a row, each of which makes one batch of answers.

    Returns:
        `method`; `limit`, the parts that it cannot do without: the generator's passes and the host's own `generate`
        on a prompt as long as question and implicit tokens together; `strict_limit`, the same with bare forwards
        instead of `generate`; and `no_cot`, the host's `generate` on the question alone, for the other methods. A
        latent of Coconut counts as one more decode step. The limits of a compiled generator use the uncompiled one,
        so that its row shows what compiling saves.
    """
    host, cache, new, count = model.host, setting.cache, setting.answer, setting.k
    ids = prompts(setting.size, setting.batch, setting.prompt, model.projection_device())
    calls: Calls
    if setting.semcot:
        calls = _semcot_calls(model, setting, ids)
    elif setting.method == "coconut":
        latent = LatentModel(host, ANSWER_PROMPT_IDS, count)
        calls = {
            "method": lambda: generated(latent, ids, new, num_implicit_tokens=count),
            "limit": lambda: generated(host, ids, count + new),
            "strict_limit": lambda: raw_answer(host, ids, count + new),
        }
    else:
        text = ids
        if setting.method == "cot":
            # The host writes the reasoning and the answer prompt itself.
            text, new = _question(ids), setting.cot + len(ANSWER_PROMPT_IDS) + new
        calls = {
            "method": lambda: generated(model, text, new, cache, num_implicit_tokens=0),
            "limit": lambda: generated(host, text, new, cache),
            "strict_limit": lambda: raw_answer(host, text, new, cache),
        }
    if setting.method != "no_cot":
        calls["no_cot"] = lambda: generated(host, ids, setting.answer, cache)
    return calls


def _semcot_calls(model: SemCoTForCausalLM, setting: SpeedSetting, ids: Tensor) -> Calls:
    host, cache, new, count = model.host, setting.cache, setting.answer, setting.k
    question, longer = _question(ids), _longer(ids, count)
    mode = "sequential" if setting.sequential else "parallel"
    model.config.generator_mode = mode
    if setting.method in (COMPILED, COMPILED_PARALLEL):
        model = with_compiled_generator(model)

    def make_tokens() -> Tensor | None:
        return generator_pass(model, question, count, mode) if count else None

    if setting.method != SHARED:
        return {
            "method": lambda: generated(model, ids, new, cache, num_implicit_tokens=count),
            "limit": lambda: (make_tokens(), generated(host, longer, new, cache)),
            "strict_limit": lambda: (make_tokens(), raw_answer(host, longer, new, cache)),
        }
    shared = setting.prompt - own_tokens(setting.prompt)
    prefix, rest = SharedPrefix(model, ids[0, :shared].tolist()), longer[:, shared:]

    def past(tokens: int) -> Cache:
        return prefix.cache([setting.prompt + tokens] * setting.batch)

    return {
        "method": lambda: generated(model, ids, new, num_implicit_tokens=count, past_key_values=past(0)),
        "limit": lambda: (make_tokens(), generated(host, longer, new, past_key_values=past(count))),
        "strict_limit": lambda: (make_tokens(), raw_answer(host, rest, new, past=past(count))),
    }


def with_compiled_generator(model: SemCoTForCausalLM) -> SemCoTForCausalLM:
    """Return a copy on the same weights with a compiled generator; the model itself does not change.

    On a GPU, where most of the time goes to launching kernels, a graph is captured for each length.
    """
    model = copy.copy(model)
    captured = model.projection_device().type == "cuda"
    model.compile_generator(**({"mode": "reduce-overhead", "dynamic": False} if captured else {}))
    return model


def _question(ids: Tensor) -> Tensor:
    """Return the prompts without the answer prompt."""
    return ids[:, : -len(ANSWER_PROMPT_IDS)]


def _longer(ids: Tensor, count: int) -> Tensor:
    """Return prompts with `count` more ids before the answer prompt, in place of implicit tokens."""
    end = ids.shape[1] - len(ANSWER_PROMPT_IDS)
    return torch.cat([ids[:, :end], ids[:, :1].expand(-1, count), ids[:, end:]], dim=1)


def part_calls(model: SemCoTForCausalLM, setting: SpeedSetting, sequential_k: int, compiled: bool) -> Calls:
    """Return the calls behind the derived figures: passes of generator and host, and both modes end to end.

    `decode` generates DECODE_STEPS more tokens than `prefill_k`; their difference is the time of those steps.

    Args:
        model, setting: of the row of parts.
        sequential_k: k of `parallel` and `sequential`, the two modes end to end.
        compiled: also return `compiled_generator`, the tokens of a compiled parallel generator.
    """
    host, cache = model.host, setting.cache
    ids = prompts(setting.size, setting.batch, setting.prompt, model.projection_device())
    question, longer = _question(ids), _longer(ids, setting.k)
    rest = longer[:, question.shape[1] :]

    def whole(mode: str) -> Tensor:
        model.config.generator_mode = mode
        return generated(model, ids, setting.answer, cache, num_implicit_tokens=sequential_k)

    calls: Calls = {
        "generator": lambda: generator_pass(model, question, setting.k, "parallel"),
        "prefill": lambda: raw_answer(host, ids, 1, cache),
        "prefill_k": lambda: raw_answer(host, longer, 1, cache),
        "prefill_in_two": lambda: prefill_in_two(host, question, rest, cache),
        "question": lambda: raw_answer(host, question, 1, cache),
        "decode": lambda: raw_answer(host, longer, 1 + DECODE_STEPS, cache),
        "parallel": lambda: whole("parallel"),
        "sequential": lambda: whole("sequential"),
    }
    if not compiled:
        return calls
    quick = with_compiled_generator(model)

    @torch.no_grad()
    def compiled_generator() -> Tensor:
        model.config.generator_mode = "parallel"
        return quick.implicit_embeddings(ids, num_implicit_tokens=setting.k)

    return {"compiled_generator": compiled_generator, **calls}
