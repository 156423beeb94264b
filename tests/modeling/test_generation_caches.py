"""Generation with implicit tokens: caches, conversations, assistants and compiled decoding against the slow path."""

import copy
from importlib.util import find_spec

import pytest
import torch
from slow_path import ANSWER, NEW, example_prompts, new_ids, padded, slow_path
from transformers import CompileConfig, DynamicCache, set_seed


@pytest.fixture(scope="module")
def model(tiny_semcot):
    return tiny_semcot(answer_prompt_ids=ANSWER)


@pytest.fixture(scope="module")
def prompts():
    return example_prompts()


@pytest.fixture(scope="module")
def slow(model, prompts):
    return [slow_path(model, prompt) for prompt in prompts]


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"cache_implementation": "dynamic"},
        {"cache_implementation": "static"},
    ],
    ids=str,
)
def test_caches(model, prompts, slow, options):
    inputs = padded(prompts)
    out = model.generate(**inputs, max_new_tokens=NEW, **options)
    assert new_ids(out, inputs["input_ids"].shape[1]) == [ids for ids, _ in slow]


@pytest.mark.parametrize("beams", [1, 3])
def test_static_cache_is_not_outgrown_at_max_length(model, prompts, beams):
    inputs = padded(prompts[:3])
    length = inputs["input_ids"].shape[1] + NEW
    out = model.generate(**inputs, max_length=length, cache_implementation="static", num_beams=beams)
    assert torch.equal(out, model.generate(**inputs, max_length=length, num_beams=beams))


@pytest.mark.skipif(find_spec("optimum") is not None, reason="the backend of quantized caches may be installed")
def test_quantized_cache_without_its_backend_says_what_to_install(model, prompts):
    with pytest.raises(ImportError, match="optimum-quanto"):
        model.generate(torch.tensor([prompts[0]]), max_new_tokens=2, cache_implementation="quantized")


@pytest.mark.parametrize("words", [1, 2, 6])
def test_a_conversation_in_a_cache_of_the_users_is_that_in_a_returned_one(model, prompts, words):
    """The second message is read from its first word on."""
    first, options = torch.tensor([prompts[0]]), {"max_new_tokens": 4, "return_dict_in_generate": True}
    answers = []
    for cache in (None, DynamicCache(config=model.config)):
        if cache is None:
            made = model.generate(first, **options)
            ids, cache = made.sequences, made.past_key_values
        else:
            ids = model.generate(first, past_key_values=cache, max_new_tokens=4)
        ids = torch.cat([ids, torch.arange(20, 20 + words)[None]], dim=1)
        answers.append(model.generate(ids, past_key_values=cache, output_logits=True, **options))
    assert torch.equal(answers[0].sequences, answers[1].sequences)
    torch.testing.assert_close(answers[0].logits, answers[1].logits)


def test_a_cache_that_was_cut_back_to_a_prefix_is_one(model, prompts):
    cache = model.generate(torch.tensor([prompts[0]]), max_new_tokens=4, return_dict_in_generate=True).past_key_values
    cache.crop(3 - cache.get_seq_length())
    other = torch.tensor([[*prompts[0][:3], 40, 41, 42, *ANSWER]])
    out = model.generate(other, past_key_values=cache, max_new_tokens=NEW)
    assert torch.equal(out, model.generate(other, max_new_tokens=NEW))


def test_an_empty_cache_of_the_users_is_filled(model, prompts, slow):
    cache = DynamicCache(config=model.config)
    out = model.generate(torch.tensor([prompts[0]]), past_key_values=cache, max_new_tokens=NEW)
    assert out[0].tolist() == prompts[0] + slow[0][0]
    assert cache.get_seq_length() == len(prompts[0]) + 3 + NEW - 1


@pytest.mark.parametrize("count", [1, 4])
def test_conversation_goes_on_from_a_returned_cache(model, prompts, count):
    """The second turn's answer is that of one pass over turn 1 with its tokens, the answer and turn 2."""
    inputs = padded(prompts[:count])
    first = model.generate(**inputs, max_new_tokens=5, return_dict_in_generate=True)
    turn = torch.tensor([[30, 31, 32]]).expand(count, -1)
    mask = torch.cat([inputs["attention_mask"], torch.ones(count, 8, dtype=torch.long)], dim=1)
    ids = torch.cat([first.sequences, turn], dim=1)
    second = model.generate(ids, attention_mask=mask, past_key_values=first.past_key_values, max_new_tokens=NEW)
    assert torch.equal(second[:, : ids.shape[1]], ids)
    for row, prompt in enumerate(prompts[:count]):
        tokens = model.implicit_embeddings(torch.tensor([prompt]))
        text = ids[row, -(len(prompt) + 8) :].tolist()
        assert second[row, ids.shape[1] :].tolist() == by_hand(model, text, tokens, len(prompt))


def by_hand(model, text, tokens, length):
    cut = length - len(ANSWER) if text[length - len(ANSWER) : length] == ANSWER else length
    table, start = model.host.get_input_embeddings(), len(text)
    for _ in range(NEW):
        embeds = table(torch.tensor([text]))
        embeds = torch.cat([embeds[:, :cut], tokens, embeds[:, cut:]], dim=1)
        with torch.no_grad():
            text = text + [int(model.host(inputs_embeds=embeds).logits[0, -1].argmax())]
    return text[start:]


def test_a_third_turn_and_a_static_cache(model, prompts):
    ids = torch.tensor([prompts[0]])
    cache, texts = None, []
    for _ in range(3):
        out = model.generate(ids, past_key_values=cache, max_new_tokens=3, return_dict_in_generate=True)
        cache = out.past_key_values
        ids = torch.cat([out.sequences, torch.tensor([[40, 41]])], dim=1)
        texts.append(out.sequences[0].tolist())
    tokens = model.implicit_embeddings(torch.tensor([prompts[0]]))
    assert texts[2][-3:] == by_hand(model, texts[2][:-3], tokens, len(prompts[0]))[:3]


def with_prefix(prompts, size=12):
    generator = torch.Generator().manual_seed(1)
    prefix = torch.randint(10, 300, (size,), generator=generator).tolist()
    return prefix, [prefix + prompt for prompt in prompts]


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}], ids=str)
def test_a_prefix_is_prefilled_once_for_a_batch(model, prompts, options):
    """Padding stands behind the cached prefix: the mask is ones, zeros, ones."""
    prefix, longer = with_prefix(prompts)
    tail = padded(prompts)
    ids = torch.cat([torch.tensor([prefix] * len(prompts)), tail["input_ids"]], dim=1)
    mask = torch.cat([torch.ones(len(prompts), len(prefix), dtype=torch.long), tail["attention_mask"]], dim=1)
    cache = model.host(torch.tensor([prefix]), use_cache=True).past_key_values
    cache.batch_repeat_interleave(
        len(prompts) * max(options.get(name, 1) for name in ("num_beams", "num_return_sequences"))
    )
    whole = padded(longer)
    set_seed(0)
    expected = model.generate(**whole, max_new_tokens=NEW, **options)
    calls = []
    hook = model.host.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    set_seed(0)
    out = model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=NEW, **options)
    hook.remove()
    assert new_ids(out, ids.shape[1]) == new_ids(expected, whole["input_ids"].shape[1])
    assert calls[0]["inputs_embeds"].shape[1] == tail["input_ids"].shape[1] + 3


def test_a_returned_cache_that_was_emptied_starts_anew(model, prompts, slow):
    ids = torch.tensor([prompts[0]])
    first = model.generate(ids, max_new_tokens=3, return_dict_in_generate=True, cache_implementation="static")
    first.past_key_values.reset()
    out = model.generate(ids, past_key_values=first.past_key_values, max_new_tokens=2)
    assert out[0].tolist() == prompts[0] + slow[0][0][:2]


def test_a_conversation_that_began_with_a_prefix_goes_on(model, prompts):
    prefix, longer = with_prefix(prompts)
    ids = torch.tensor(longer[:1])
    plain, cached = None, model.host(torch.tensor([prefix]), use_cache=True).past_key_values
    answers = []
    for cache in (plain, cached):
        first = model.generate(ids, past_key_values=cache, max_new_tokens=4, return_dict_in_generate=True)
        turn = torch.cat([first.sequences, torch.tensor([[30, 31]])], dim=1)
        answers.append(model.generate(turn, past_key_values=first.past_key_values, max_new_tokens=NEW).tolist())
    assert answers[0] == answers[1]


def test_a_cache_that_reaches_past_the_implicit_tokens_place_is_refused(model, prompts):
    ids = torch.tensor([prompts[0]])
    cache = model.host(ids[:, :4], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="past_key_values holds 4 columns .* go before column 3: .* num_implicit_tok"):
        model.generate(ids, past_key_values=cache, max_new_tokens=2)


def test_a_prefix_is_refused_where_the_loop_reads_ids_again(model, prompts):
    prefix, longer = with_prefix(prompts)
    cache = model.host(torch.tensor([prefix]), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="past_key_values .* cannot be used with assisted decoding"):
        model.generate(torch.tensor(longer[:1]), past_key_values=cache, max_new_tokens=2, prompt_lookup_num_tokens=3)


@pytest.mark.parametrize(
    "asked", [{"num_implicit_tokens": 0}, {"num_implicit_tokens": 1}, {"use_cache": False}, "own"]
)
def test_a_conversation_goes_on_with_the_tokens_it_began_with(model, prompts, asked):
    first = model.generate(torch.tensor([prompts[0]]), max_new_tokens=4, return_dict_in_generate=True)
    text = torch.cat([first.sequences, torch.tensor([[30, 31, 32]])], dim=1)
    options = {"implicit_embeddings": torch.zeros(1, 3, 32)} if asked == "own" else asked
    with pytest.raises(ValueError, match="past_key_values .*holds"):
        model.generate(text, past_key_values=first.past_key_values, **options)


def test_a_conversation_is_forked(model, prompts):
    """Each row of a cache several times, as its `batch_repeat_interleave` makes it."""
    inputs = padded(prompts[:2])
    inputs["input_ids"][1, -2:] = 40  # the tokens of this row go elsewhere
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "return_dict_in_generate": True}
    first = model.generate(**inputs, **options)
    more = torch.tensor([[30, 31, 32]]).expand(2, -1)
    text = torch.cat([first.sequences, more], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 7, dtype=torch.long)], dim=1)
    cache = copy.deepcopy(first.past_key_values)
    expected = model.generate(text, attention_mask=mask, past_key_values=first.past_key_values, **options).sequences
    cache.batch_repeat_interleave(2)
    twice = {"attention_mask": mask.repeat_interleave(2, dim=0), "past_key_values": cache}
    forked = model.generate(text.repeat_interleave(2, dim=0), **twice, **options).sequences
    assert torch.equal(forked, expected.repeat_interleave(2, dim=0))
    with pytest.raises(ValueError, match="holds the implicit tokens of 4 rows, input_ids has 3"):
        model.generate(text[:1].expand(3, -1), attention_mask=mask[:1].expand(3, -1), past_key_values=cache)


def test_logits_at_prefill_are_those_of_the_last_position(model, prompts):
    """One copy of the spliced embeddings goes in, and one row of logits comes out."""
    seen, lookups = [], []
    hooks = [
        model.host.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1])),
        model.get_input_embeddings().register_forward_pre_hook(lambda _, args: lookups.append(args[0].shape[1])),
    ]
    inputs = padded(prompts)
    model.generate(**inputs, max_new_tokens=3)
    for hook in hooks:
        hook.remove()
    assert seen == [1, 1, 1]
    assert lookups == [inputs["input_ids"].shape[1], 1, 1]


# Assistants


def test_prompt_lookup(model, prompts, slow):
    for prompt, (ids, _) in zip(prompts, slow, strict=True):
        out = model.generate(torch.tensor([prompt]), max_new_tokens=NEW, prompt_lookup_num_tokens=4)
        assert out[0].tolist() == prompt + ids


@pytest.mark.parametrize("which", ["other", "host"])
def test_assisted_decoding(model, prompts, slow, tiny_lm, which):
    assistant = tiny_lm("llama", hidden_size=16, seed=9) if which == "other" else model.host
    for prompt, (ids, _) in zip(prompts, slow, strict=True):
        out = model.generate(torch.tensor([prompt]), max_new_tokens=NEW, assistant_model=assistant)
        assert out[0].tolist() == prompt + ids


def test_a_semcot_assistant(model, prompts, slow, tiny_semcot):
    assistant = tiny_semcot(answer_prompt_ids=ANSWER, seed=5)
    for prompt, (ids, _) in zip(prompts, slow, strict=True):
        out = model.generate(torch.tensor([prompt]), max_new_tokens=NEW, assistant_model=assistant)
        assert out[0].tolist() == prompt + ids


def test_prefill_in_chunks_is_refused(model, prompts):
    with pytest.raises(ValueError, match="prefill_chunk_size=4 cannot be used with implicit tokens"):
        model.generate(torch.tensor([prompts[1]]), max_new_tokens=2, prefill_chunk_size=4)


def test_compiled_decoding(tiny_semcot, prompts, slow):
    """The decode step goes through torch.compile as one graph, which serves every step and length."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    config = CompileConfig(fullgraph=True, dynamic=False, backend=backend, mode=None)
    config._compile_all_devices = True  # on CPU, too
    model = tiny_semcot(answer_prompt_ids=ANSWER)
    inputs = padded(prompts)
    for new in (NEW, 5):
        out = model.generate(**inputs, max_new_tokens=new, cache_implementation="static", compile_config=config)
        assert new_ids(out, inputs["input_ids"].shape[1]) == [ids[:new] for ids, _ in slow]
    assert len(graphs) == 1
