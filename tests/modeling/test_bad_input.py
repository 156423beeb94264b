"""Bad input to `generate` and `implicit_embeddings`: a clear error or the obvious right answer."""

import numpy as np
import pytest
import torch
from conftest import VOCAB_SIZE
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
)

from semcot_hf import SemCoTConfig, SemCoTForCausalLM
from semcot_hf.modeling.escalation_semcot import Escalation

HOST_SIZE = 32


@pytest.fixture(scope="module")
def model(tiny_semcot):
    return tiny_semcot(answer_prompt_ids=[7, 8])


PROMPT = torch.tensor([[10, 11, 12, 7, 8]])
BAD = {
    "empty prompt": (dict(inputs=torch.empty(1, 0, dtype=torch.long)), r"shape \(1, 0\).*at least one token"),
    "no prompt": (dict(), "implicit tokens need input_ids"),
    "one dimension": (dict(inputs=torch.tensor([10, 11])), r"shape \(2,\): must be \(batch, length\)"),
    "padding only": (
        dict(inputs=PROMPT.repeat(2, 1), attention_mask=torch.tensor([[1] * 5, [0] * 5])),
        "row of padding only",
    ),
    "padding only, mask inferred": (
        dict(inputs=torch.zeros(1, 5, dtype=torch.long), generation_config=GenerationConfig(pad_token_id=0)),
        "padding inferred from pad_token_id without it, has a row of padding only",
    ),
    "answer prompt only": (dict(inputs=torch.tensor([[7, 8]])), "row without a prompt token"),
    "mask of another batch": (
        dict(inputs=PROMPT, attention_mask=torch.ones(2, 5)),
        r"attention_mask has shape \(2, 5\): must be that of input_ids, \(1, 5\)",
    ),
    "mask too long": (dict(inputs=PROMPT, attention_mask=torch.ones(1, 6)), r"attention_mask has shape \(1, 6\)"),
    "id beyond the vocabulary": (dict(inputs=PROMPT + 400), "ids from 407 to 412: must lie within 0 and 319"),
    "negative id": (dict(inputs=PROMPT - 9), "ids from -2 to 3"),
    "negative k": (dict(inputs=PROMPT, num_implicit_tokens=-1), "num_implicit_tokens=-1: must be an integer"),
    "fractional k": (dict(inputs=PROMPT, num_implicit_tokens=1.5), "num_implicit_tokens=1.5: must be an integer"),
    "several k": (
        dict(inputs=PROMPT, num_implicit_tokens=torch.tensor([1, 2])),
        r"num_implicit_tokens=tensor\(\[1, 2\]\): must be an integer",
    ),
    "padding on the right": (
        dict(inputs=PROMPT.repeat(2, 1), attention_mask=torch.tensor([[1] * 5, [1] * 4 + [0]])),
        "has padding at the end of a row.*pad on the left",
    ),
    "padding on the right, inferred": (
        dict(inputs=torch.tensor([[10, 7, 8, 0]]), pad_token_id=0, eos_token_id=2),
        "has padding at the end of a row.*pad on the left",
    ),
    "true as k": (dict(inputs=PROMPT, num_implicit_tokens=True), "num_implicit_tokens=True: must be an integer"),
    "prompt twice": (dict(inputs=PROMPT, input_ids=PROMPT), "inputs and input_ids were both passed"),
    "embedded prompt": (
        dict(inputs=PROMPT, inputs_embeds=torch.zeros(1, 5, HOST_SIZE)),
        "inputs_embeds cannot be used with implicit tokens",
    ),
    "a loop of the user's": (
        dict(inputs=PROMPT, custom_generate=lambda model, input_ids, **kwargs: input_ids),
        "custom_generate cannot be used with implicit tokens",
    ),
    "positions of the user's": (
        dict(inputs=PROMPT, position_ids=torch.arange(5)[None]),
        "position_ids cannot be used",
    ),
    "token types": (dict(inputs=PROMPT, token_type_ids=torch.zeros_like(PROMPT)), "token_type_ids cannot be used"),
    "continuous batching": (dict(inputs=PROMPT, cache_implementation="paged"), "'paged' feeds ids to the host alone"),
    "exit of a backbone": (dict(inputs=PROMPT, assistant_early_exit=1), "assistant_early_exit=1 cannot be used"),
    "exit of a backbone, no implicit tokens": (
        dict(inputs=PROMPT, assistant_early_exit=1, num_implicit_tokens=0),
        "assistant_early_exit=1 cannot be used",
    ),
    "embeddings of another size": (
        dict(inputs=PROMPT, implicit_embeddings=torch.zeros(1, 3, 16)),
        r"shape \(1, 3, 16\): must be \(batch, k, hidden size\) = \(1, k, 32\)",
    ),
    "embeddings of another batch": (
        dict(inputs=PROMPT, implicit_embeddings=torch.zeros(2, 3, HOST_SIZE)),
        r"shape \(2, 3, 32\): must be .* \(1, k, 32\)",
    ),
    "embeddings without a batch": (dict(inputs=PROMPT, implicit_embeddings=torch.zeros(HOST_SIZE)), r"shape \(32,\)"),
    "embeddings as a list": (dict(inputs=PROMPT, implicit_embeddings=[[0.0] * HOST_SIZE]), r"shape \(\)"),
    "embeddings of integers": (
        dict(inputs=PROMPT, implicit_embeddings=torch.zeros(1, 3, HOST_SIZE, dtype=torch.long)),
        "dtype torch.int64: must be floating-point",
    ),
    "embeddings with NaN": (
        dict(inputs=PROMPT, implicit_embeddings=torch.full((1, 3, HOST_SIZE), torch.nan)),
        "holds NaN or infinity",
    ),
    "k against embeddings": (
        dict(inputs=PROMPT, implicit_embeddings=torch.zeros(1, 3, HOST_SIZE), num_implicit_tokens=2),
        r"num_implicit_tokens=2 does not fit implicit_embeddings of shape \(1, 3, 32\)",
    ),
    "prompt longer than the context": (
        dict(inputs=torch.full((1, 260), 10)),
        "A prompt of 260 tokens, 3 implicit tokens and 1 new tokens are more than the host's context of 256",
    ),
    "more new tokens than the context": (
        dict(inputs=PROMPT, max_new_tokens=249),
        "A prompt of 5 tokens, 3 implicit tokens and 249 new tokens are more than",
    ),
    "greater length than the context": (dict(inputs=PROMPT, max_length=254), "249 new tokens are more than"),
}


@pytest.mark.parametrize("arguments, message", BAD.values(), ids=BAD)
def test_generate_refuses(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**arguments)


STATEFUL = {"num_hidden_layers": 4, "linear_num_value_heads": 4, "linear_num_key_heads": 2}
STATEFUL |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}


@pytest.mark.parametrize("family, changes", [("mistral", {"sliding_window": 4}), ("qwen3_5_text", STATEFUL)])
def test_hosts_that_count_columns_refuse_padding_within_a_prompt(tiny_lm, tiny_semcot, family, changes):
    model = tiny_semcot(tiny_lm(family, **changes), answer_prompt_ids=[7, 8])
    inputs = {"input_ids": PROMPT, "attention_mask": torch.tensor([[1, 0, 1, 1, 1]])}
    for call in (model.generate, model):
        with pytest.raises(ValueError, match="padding between the tokens of a row.*before the tokens"):
            call(**inputs, num_implicit_tokens=2)


def test_forward_refuses_embeddings_of_another_size(model):
    with pytest.raises(ValueError, match=r"shape \(1, 3, 16\)"):
        model(PROMPT, implicit_embeddings=torch.zeros(1, 3, 16))


@pytest.mark.parametrize("cached", ["past_key_values", "position_ids", "token_type_ids", "inputs_embeds"])
def test_forward_refuses_implicit_tokens_in_the_middle_of_a_sequence(model, cached):
    values = {
        "past_key_values": {"input_ids": PROMPT, "past_key_values": object()},
        "position_ids": {"input_ids": PROMPT, "position_ids": torch.arange(5)[None]},
        "token_type_ids": {"input_ids": PROMPT, "token_type_ids": torch.zeros_like(PROMPT)},
        "inputs_embeds": {"inputs_embeds": torch.zeros(1, 5, HOST_SIZE, dtype=torch.float64)},
    }[cached]
    with pytest.raises(ValueError, match="implicit tokens need input_ids, and take neither position_ids, "):
        model(**values, num_implicit_tokens=2)


def test_a_mask_for_each_pair_of_tokens_is_refused(model):
    labels = PROMPT.masked_fill(torch.arange(5) < 3, -100)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 1, 5, 5\)"):
        model(PROMPT, labels=labels, attention_mask=torch.ones(1, 1, 5, 5).tril())


def test_continuous_batching_is_refused(model):
    with pytest.raises(ValueError, match="Continuous batching .* feeds ids to the host alone"):
        model.generate_batch([[10, 11, 12, 7, 8]])


def test_strategies_of_the_hub_are_refused_and_run_without_tokens(model, monkeypatch):
    """As `transformers-community/contrastive-search` does: it calls `generate` again with a loop of its own."""

    def loop(model, input_ids, **kwargs):
        return input_ids

    def fetched(model, *args, penalty_alpha=None, top_k=None, **kwargs):
        return GenerationMixin.generate(model, *args, custom_generate=loop, **kwargs)

    monkeypatch.setattr(GenerationMixin, "load_custom_generate", lambda self, *args, **kwargs: fetched)
    options = dict(penalty_alpha=0.6, top_k=4, trust_remote_code=True, max_new_tokens=2)
    with pytest.raises(ValueError, match="decoding strategy is a custom_generate of the Hub"):
        model.generate(PROMPT, **options)
    assert torch.equal(model.generate(PROMPT, num_implicit_tokens=0, **options), PROMPT)


def test_without_tokens_the_host_tells_what_it_takes(tiny_lm, tiny_semcot):
    host, types = tiny_lm("gpt2"), torch.ones_like(PROMPT)
    answer = tiny_semcot(host).generate(PROMPT, token_type_ids=types, max_new_tokens=4, num_implicit_tokens=0)
    assert torch.equal(answer, host.generate(PROMPT, token_type_ids=types, max_new_tokens=4))


def test_hooks_may_stand_in_their_places(model):
    options = GenerationConfig(max_new_tokens=6)
    stop = StoppingCriteriaList([MaxLengthCriteria(PROMPT.shape[1] + 2)])
    for count in (0, 3):
        answer = model.generate(PROMPT, options, LogitsProcessorList(), stop, num_implicit_tokens=count)
        assert answer.shape[1] == PROMPT.shape[1] + 2


def test_a_context_that_stretches_is_no_limit(tiny_lm, tiny_semcot):
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    host = tiny_lm(max_position_embeddings=16, rope_parameters=rope)
    assert tiny_semcot(host).generate(torch.arange(10, 40)[None], max_new_tokens=2).shape == (1, 32)


def test_a_query_longer_than_the_generators_context_is_refused(tiny_lm, tiny_semcot):
    model = tiny_semcot(generator=tiny_lm("gpt2", hidden_size=16, n_positions=16, max_position_embeddings=16))
    prompt = torch.arange(10, 24)[None]
    with pytest.raises(ValueError, match="query of 14 tokens and 3 implicit tokens .* generator's context of 16"):
        model.generate(prompt)
    assert model.generate(prompt[:, 1:], max_new_tokens=2).shape == (1, 15)


def test_a_generator_without_a_cache_makes_no_sequential_tokens(tiny_lm, tiny_semcot):
    generator = tiny_lm("openai-gpt", hidden_size=16)
    assert tiny_semcot(generator=generator).generate(PROMPT, max_new_tokens=2).shape == (1, 7)
    with pytest.raises(ValueError, match="'sequential' needs a generator that keeps keys and values"):
        tiny_semcot(generator=generator, generator_mode="sequential")


def test_numbers_of_numpy_count(model):
    assert model.implicit_embeddings(PROMPT, num_implicit_tokens=np.int64(2)).shape[1] == 2


def test_a_generator_with_nan_weights_does_not_answer(tiny_semcot):
    model = tiny_semcot()
    model.projection.bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="holds NaN or infinity: check .* the checkpoint's weights"):
        model.generate(PROMPT)


def test_embeddings_of_another_dtype_are_converted(model):
    tokens = torch.randn(1, 3, HOST_SIZE, dtype=torch.float16)
    options = dict(max_new_tokens=6)
    half = model.generate(PROMPT, implicit_embeddings=tokens, **options)
    assert torch.equal(half, model.generate(PROMPT, implicit_embeddings=tokens.double(), **options))


def test_all_of_the_context_can_be_used(model):
    out = model.generate(PROMPT, max_new_tokens=248)
    assert out.shape[1] == 253


def test_padding_uses_no_context(model):
    ids = torch.cat([torch.zeros(1, 20, dtype=torch.long), PROMPT], dim=1)
    out = model.generate(ids, attention_mask=(ids > 0).long(), max_new_tokens=248)
    assert torch.equal(out[:, 20:], model.generate(PROMPT, max_new_tokens=248))


@pytest.mark.parametrize("beams", [1, 2])
def test_a_generation_config_beyond_the_context_ends_there_with_a_warning(model, warnings_of, beams):
    config = GenerationConfig(max_new_tokens=1000, num_beams=beams)
    prompt = torch.randint(10, 300, (1, 240))
    out = model.generate(prompt, generation_config=config)
    assert out.shape[1] == 253
    assert any("asks for 1000 new tokens; only 13 fit the host's context of 256" in text for text in warnings_of())


def test_more_tokens_than_trained_warn_once(model, warnings_of):
    for _ in range(2):
        assert model.generate(PROMPT, num_implicit_tokens=4, max_new_tokens=2).shape[1] == 7
    told = [text for text in warnings_of() if "num_implicit_tokens=4 is more than the 3" in text]
    assert len(told) == 1


def test_a_prompt_without_the_answer_prompt_warns_once(model, warnings_of):
    for _ in range(2):
        model.generate(PROMPT[:, :3], max_new_tokens=2)
    assert len([text for text in warnings_of() if "do not end on the answer prompt" in text]) == 1


def test_no_id_is_a_placeholder(model):
    """Implicit tokens have no ids: every id of the vocabulary in a prompt is text, <thought> being no part of it."""
    ids = torch.arange(10, 320)[None, :200]
    out = model.generate(ids, max_new_tokens=3)
    assert torch.equal(out[:, :200], ids) and model.config.vocab_size == 320


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_implicit_tokens": -1}, "num_implicit_tokens=-1: must be 0 or more"),
        ({"generator_mode": "both"}, "generator_mode='both': must be one of"),
        ({"state_offset": 1}, "state_offset=1: must be 0, or -1"),
        ({"state_offset": -1, "generator_mode": "sequential"}, "state_offset=-1 belongs to generator_mode='parallel'"),
        ({"projection": "mlp"}, "projection='mlp': must be one of"),
        ({"projection": "identity"}, "projection='identity' needs equal hidden sizes, got 16 .* and 32"),
    ],
)
def test_config_refuses(tiny_semcot, fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_semcot(**fields)


@pytest.fixture(scope="module")
def folder(tiny_semcot, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_semcot().save_pretrained(folder, include_host=True)
    return folder


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"generator_mode": "Parallel"}, "generator_mode='Parallel': must be one of"),
        ({"thought_length": "adaptiv"}, "thought_length='adaptiv': must be one of"),
        ({"projection": "foo"}, "projection='foo': must be one of"),
        ({"num_candidates": 0}, "num_candidates=0: must be an integer of 1 or more"),
        ({"mixture_temperature": 0.0}, "mixture_temperature=0.0: must be above 0"),
        ({"escalation": {"signals": ["agreement"]}}, "lacks 'threshold'"),
    ],
)
@pytest.mark.parametrize("loader", [SemCoTForCausalLM, SemCoTConfig, AutoModelForCausalLM, AutoConfig])
def test_loading_refuses_fields_as_the_config_does(folder, loader, fields, message):
    with pytest.raises(ValueError, match=message):
        loader.from_pretrained(folder, **fields)


def test_fields_are_read_as_the_config_reads_them(folder):
    fields = dict(answer_prompt_ids=None, few_shot_ids=(), escalation=Escalation(0.5))
    built = SemCoTConfig(**fields)
    for config in (
        SemCoTForCausalLM.from_pretrained(folder, **fields).config,
        SemCoTConfig.from_pretrained(folder, **fields),
        SemCoTConfig.from_pretrained(folder, **fields, return_unused_kwargs=True, other=1)[0],
    ):
        assert {name: getattr(config, name) for name in fields} == {name: getattr(built, name) for name in fields}


@pytest.mark.parametrize("ids", [[10, VOCAB_SIZE, 11], [10, -1, 11]])
def test_ids_outside_the_vocabulary_are_told_in_every_call(model, ids):
    """As those of a padding token that was added to the tokenizer."""
    ids = torch.tensor([ids])
    message = rf"input_ids holds ids from .* within 0 and {VOCAB_SIZE - 1}, since the host knows {VOCAB_SIZE} tokens"
    for call in (model, model.generate):
        for options in ({"num_implicit_tokens": 0}, {"num_implicit_tokens": 2}):
            with pytest.raises(ValueError, match=message):
                call(ids, **options)
    with pytest.raises(ValueError, match=message):
        model(ids, labels=torch.tensor([[-100, 11, 11]]))


@pytest.mark.parametrize("name", ["implicit_embeddings", "implicit_thoughts", "implicit_words", "implicit_text"])
def test_prompts_whose_tokens_are_asked_for(name, tiny_semcot):
    model = tiny_semcot(projection="vocabulary")
    with pytest.raises(ValueError, match="ids from 407 to 412: must lie within 0 and 319"):
        getattr(model, name)(PROMPT + 400)
    with pytest.raises(ValueError, match="ids from -2 to 3"):
        getattr(model, name)(PROMPT - 9)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 6\)"):
        getattr(model, name)(PROMPT, torch.ones(1, 6))
    with pytest.raises(ValueError, match=r"input_ids has shape \(1, 0\)"):
        getattr(model, name)(PROMPT[:, :0])
