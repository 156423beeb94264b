"""What is timed: each method's answer, and the least passes of the models that make the same answer."""

import copy
from collections.abc import Callable

import torch
from transformers import DynamicCache, StaticCache

from ...inference.shared_prefix import SharedPrefix
from ..methods.latents import LatentModel
from .settings import COMPILED, COMPILED_PARALLEL, SHARED, SpeedSetting
from .shapes import ANSWER_PROMPT_IDS, own_tokens, prompts

# Tokens that a decode step is averaged over.
DECODE_STEPS = 8


@torch.no_grad()
def generator_pass(model, ids: torch.Tensor, count: int, mode: str) -> torch.Tensor:
    """The least that makes k implicit tokens: plain forwards of the backbone, and the projection.

    Args:
        ids: (batch, length), questions without the answer prompt.
        count: k.
        mode: "parallel" (one pass) or "sequential" (one cached pass a token).

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
def raw_answer(host, ids: torch.Tensor, new_tokens: int, cache: str = "dynamic", past=None) -> torch.Tensor:
    """Greedy tokens by the host's forward alone: one prefill with the last position's logits, then decode steps.

    Args:
        ids: (batch, length), without padding.
        cache: "dynamic", or "static" with the decode step compiled on a GPU.
        past: a cache, of that kind, of what stands before `ids`; a fresh one when `None`.

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


def _new_cache(host, cache, length):
    return (
        StaticCache(config=host.config, max_cache_len=length)
        if cache == "static"
        else DynamicCache(config=host.config)
    )


@torch.no_grad()
def prefill_in_two(host, question: torch.Tensor, rest: torch.Tensor, cache: str = "dynamic") -> torch.Tensor:
    """The first answer token by two passes: over the question, then over the implicit tokens and the answer prompt.

    This is what the host's share would be, were the generator to read the question beside the first of them.
    """
    past = _new_cache(host, cache, question.shape[1] + rest.shape[1] + 1)
    host(input_ids=question, past_key_values=past, use_cache=True, logits_to_keep=1)
    return raw_answer(host, rest, 1, cache, past)


def generated(model, ids: torch.Tensor, new_tokens: int, cache: str = "dynamic", **options) -> torch.Tensor:
    """`model.generate`, greedy, with exactly `new_tokens` new tokens."""
    if cache == "static":
        options["cache_implementation"] = "static"
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        do_sample=False,
        **options,
    )


def method_calls(model, setting: SpeedSetting) -> dict[str, Callable[[], object]]:
    """The calls of a row, each of which makes one batch of answers.

    Returns:
        `method`; `limit`, the parts that it cannot do without: the generator's passes and the host's own `generate`
        on a prompt as long as question and implicit tokens together; `strict_limit`, the same without `generate`'s
        loop, in bare forwards; and `no_cot`, the host's `generate` on the question alone, for the methods that are
        not just that. A thought of Coconut's counts as one more decode step. The parts of a compiled generator are
        timed uncompiled, so that its row tells what compiling saves.
    """
    host, cache, new, count = model.host, setting.cache, setting.answer, setting.k
    ids = prompts(setting.size, setting.batch, setting.prompt, model.projection_device())
    if setting.method.startswith("semcot"):
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


def _semcot_calls(model, setting, ids):
    host, cache, new, count = model.host, setting.cache, setting.answer, setting.k
    question, longer = _question(ids), _longer(ids, count)
    mode = "sequential" if setting.method in ("semcot_sequential", COMPILED) else "parallel"
    model.config.generator_mode = mode
    if setting.method in (COMPILED, COMPILED_PARALLEL):
        model = with_compiled_generator(model)

    def make_tokens():
        return generator_pass(model, question, count, mode) if count else None

    if setting.method == SHARED:
        shared = setting.prompt - own_tokens(setting.prompt)
        prefix, lengths = SharedPrefix(model, ids[0, :shared].tolist()), [setting.prompt] * setting.batch
        longer_lengths, rest = [length + count for length in lengths], longer[:, shared:]
        return {
            "method": lambda: generated(
                model, ids, new, num_implicit_tokens=count, past_key_values=prefix.cache(lengths)
            ),
            "limit": lambda: (
                make_tokens(),
                generated(host, longer, new, past_key_values=prefix.cache(longer_lengths)),
            ),
            "strict_limit": lambda: (make_tokens(), raw_answer(host, rest, new, past=prefix.cache(longer_lengths))),
        }
    return {
        "method": lambda: generated(model, ids, new, cache, num_implicit_tokens=count),
        "limit": lambda: (make_tokens(), generated(host, longer, new, cache)),
        "strict_limit": lambda: (make_tokens(), raw_answer(host, longer, new, cache)),
    }


def with_compiled_generator(model):
    """A copy on the same weights whose generator is compiled; the caller's own model stays as it is.

    On a GPU, where launching the kernels one by one is what takes the time, the graph of each length is captured.
    """
    model = copy.copy(model)
    captured = model.projection_device().type == "cuda"
    model.compile_generator(**({"mode": "reduce-overhead", "dynamic": False} if captured else {}))
    return model


def _question(ids):
    """What stands before the answer prompt."""
    return ids[:, : -len(ANSWER_PROMPT_IDS)]


def _longer(ids, count):
    """As many ids as prompt and implicit tokens together."""
    end = ids.shape[1] - len(ANSWER_PROMPT_IDS)
    return torch.cat([ids[:, :end], ids[:, :1].expand(-1, count), ids[:, end:]], dim=1)


def part_calls(model, setting: SpeedSetting, sequential_k: int, compiled: bool) -> dict[str, Callable[[], object]]:
    """The calls behind the derived figures: the generator's pass, the host's, and both modes end to end.

    `decode` answers with DECODE_STEPS tokens more than `prefill_k`, so that their difference is that many steps.

    Args:
        compiled: also `compiled_generator`, the tokens of a parallel generator that is compiled.
    """
    host, device, cache = model.host, model.projection_device(), setting.cache
    ids = prompts(setting.size, setting.batch, setting.prompt, device)
    question, longer = _question(ids), _longer(ids, setting.k)
    rest = longer[:, question.shape[1] :]

    calls = {}
    if compiled:
        quick = with_compiled_generator(model)

        @torch.no_grad()
        def compiled_generator():
            model.config.generator_mode = "parallel"
            return quick.implicit_embeddings(ids, num_implicit_tokens=setting.k)

        calls["compiled_generator"] = compiled_generator

    def whole(mode):
        model.config.generator_mode = mode
        return generated(model, ids, setting.answer, cache, num_implicit_tokens=sequential_k)

    return calls | {
        "generator": lambda: generator_pass(model, question, setting.k, "parallel"),
        "prefill": lambda: raw_answer(host, ids, 1, cache),
        "prefill_k": lambda: raw_answer(host, longer, 1, cache),
        "prefill_in_two": lambda: prefill_in_two(host, question, rest, cache),
        "question": lambda: raw_answer(host, question, 1, cache),
        "decode": lambda: raw_answer(host, longer, 1 + DECODE_STEPS, cache),
        "parallel": lambda: whole("parallel"),
        "sequential": lambda: whole("sequential"),
    }
