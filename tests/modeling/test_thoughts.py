"""Thoughts of different lengths: every path of generation and training against one question at a time, by hand."""

from itertools import combinations

import pytest
import torch
from slow_path import ANSWER, GENERATORS, HOSTS, NEW, example_prompts, new_ids, padded

from semcot_hf import SemCoTConfig, SemCoTForCausalLM

COUNT = 6
WORDS = dict(generator_mode="sequential", projection="vocabulary", answer_prompt_ids=ANSWER)
ADAPTIVE = dict(WORDS, thought_length="adaptive", num_implicit_tokens=COUNT, mixture_top_k=4)


def cut_of(prompt):
    return len(prompt) - len(ANSWER) if prompt[-len(ANSWER) :] == ANSWER else len(prompt)


@torch.no_grad()
def thought_by_hand(model, prompt, top_k=4, temperature=1.0):
    """Tokens (n, size) and words of one prompt: the generator without cache, mask and batch, step by step."""
    words, host_words = model.generator.get_input_embeddings(), model.host.get_input_embeddings()
    inputs = words(torch.tensor([prompt[: cut_of(prompt)]]))
    if model.config.starts_with_thought_token:
        inputs = torch.cat([inputs, model.thought_embedding.expand(1, 1, -1)], dim=1)
    made, said = [], []
    while len(made) < model.config.num_implicit_tokens:
        state = model.generator(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -1]
        logits = (state @ model.projection.weight.T)[0] / temperature
        if int(logits.argmax()) in model.config.thought_ends and model.config.thought_length == "adaptive":
            break
        chosen = logits.topk(top_k)
        weights = chosen.values.softmax(dim=-1)
        made.append((weights[:, None] * host_words(chosen.indices).double()).sum(dim=0))
        said.append(int(logits.argmax()))
        mixture = (weights[:, None] * words(chosen.indices)).sum(dim=0)
        read = words(logits.argmax()) if model.config.word_feedback else mixture
        inputs = torch.cat([inputs, read[None, None]], dim=1)
    size = host_words.weight.shape[1]
    return torch.stack(made) if made else torch.empty(0, size, dtype=torch.float64), said


@torch.no_grad()
def answer_by_hand(model, prompt, tokens, new_tokens=NEW):
    cut, text, scores = cut_of(prompt), list(prompt), []
    table = model.host.get_input_embeddings()
    for _ in range(new_tokens):
        embeds = table(torch.tensor([text]))[0]
        embeds = torch.cat([embeds[:cut], tokens.to(embeds), embeds[cut:]])[None]
        scores.append(model.host(inputs_embeds=embeds, use_cache=False).logits[0, -1])
        text.append(int(scores[-1].argmax()))
    return text[len(prompt) :], torch.stack(scores)


def with_ends(model, prompts):
    """Choose end-of-thought tokens for which the prompts' thoughts have the most lengths; return these lengths."""
    model.config.end_of_thought_token_ids = [VOCABULARY]
    said = [thought_by_hand(model, prompt)[1] for prompt in prompts]

    def lengths_of(ends):
        return [next((i for i, word in enumerate(words) if word in ends), len(words)) for words in said]

    words = sorted({word for row in said for word in row})
    chosen = max(combinations(words, 2), key=lambda ends: len(set(lengths_of(ends))), default=(VOCABULARY,))
    model.config.end_of_thought_token_ids = list(chosen)
    return lengths_of(chosen)


VOCABULARY = 319


@pytest.fixture(scope="module")
def prompts():
    return example_prompts()


@pytest.fixture(scope="module")
def model(tiny_lm, tiny_semcot, prompts):
    for seed in range(20):
        model = tiny_semcot(seed=seed, end_of_thought_token_ids=[VOCABULARY], **ADAPTIVE)
        lengths = with_ends(model, prompts)
        if len(set(lengths)) >= 3 and COUNT in lengths:
            return model
    raise AssertionError("no seed gives thoughts of three lengths")


@pytest.fixture(scope="module")
def slow(model, prompts):
    return [answer_by_hand(model, prompt, thought_by_hand(model, prompt)[0]) for prompt in prompts]


def test_tokens_and_mask(model, prompts):
    tokens, mask = model.implicit_embeddings(**padded(prompts), return_mask=True)
    for row, prompt in enumerate(prompts):
        expected, _ = thought_by_hand(model, prompt)
        assert mask[row].tolist() == [1] * len(expected) + [0] * (mask.shape[1] - len(expected))
        torch.testing.assert_close(tokens[row, : len(expected)], expected)
        assert not tokens[row, len(expected) :].any()
        alone, own = model.implicit_embeddings(torch.tensor([prompt]), return_mask=True)
        assert own.shape == (1, len(expected)) and own.all()
        torch.testing.assert_close(alone[0], expected)
    assert torch.equal(model.implicit_embeddings(**padded(prompts)), tokens)
    limited, mask = model.implicit_embeddings(**padded(prompts), num_implicit_tokens=2, return_mask=True)
    torch.testing.assert_close(limited, tokens[:, :2])


def test_a_generator_that_reads_its_words(tiny_semcot, prompts):
    """Its words are those of ordinary decoding; the host's tokens are mixtures all the same."""
    model = tiny_semcot(seed=3, end_of_thought_token_ids=[VOCABULARY], word_feedback=True, **ADAPTIVE).eval()
    lengths, mixed = with_ends(model, prompts), []
    tokens, mask = model.implicit_embeddings(**padded(prompts), return_mask=True)
    words, _ = model.implicit_words(**padded(prompts))
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        expected, said = thought_by_hand(model, prompt)
        assert mask[row].sum() == length and words[row, :length].tolist() == said
        torch.testing.assert_close(tokens[row, :length], expected)
        model.config.word_feedback = False
        mixed.append(thought_by_hand(model, prompt)[1])
        model.config.word_feedback = True
    assert [row[: len(said)] for row, said in zip(words.tolist(), mixed, strict=True)] != mixed


def test_greedy(model, prompts, slow):
    inputs = padded(prompts)
    options = dict(max_new_tokens=NEW, return_dict_in_generate=True, output_logits=True)
    out = model.generate(**inputs, **options)
    for row, (prompt, (ids, logits)) in enumerate(zip(prompts, slow, strict=True)):
        assert new_ids(out, inputs["input_ids"].shape[1])[row] == ids
        torch.testing.assert_close(torch.stack(out.logits)[:, row], logits.float(), atol=5e-6, rtol=0)
        assert model.generate(torch.tensor([prompt]), max_new_tokens=NEW)[0].tolist() == prompt + ids


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"cache_implementation": "static", "num_beams": 2},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "top_k": 1},
        {"compiled": True},
    ],
    ids=str,
)
def test_batches_equal_single_questions(model, prompts, options):
    options = dict(options)
    if options.pop("compiled", False):
        model.compile_generator(backend="eager")
    try:
        inputs = padded(prompts)
        out = new_ids(model.generate(**inputs, max_new_tokens=NEW, **options), inputs["input_ids"].shape[1])
        model._compiled_tokens = None
        alone = [
            ids
            for prompt in prompts
            for ids in new_ids(model.generate(torch.tensor([prompt]), max_new_tokens=NEW, **options), len(prompt))
        ]
    finally:
        model._compiled_tokens = None
    assert out == alone


@pytest.mark.parametrize("options", [{"prompt_lookup_num_tokens": 3}, {"num_assistant_tokens": 2}], ids=str)
def test_assisted(model, prompts, slow, options, tiny_lm):
    if "num_assistant_tokens" in options:
        options = {"assistant_model": tiny_lm(seed=9)}
    for prompt, (ids, _) in zip(prompts, slow, strict=True):
        assert model.generate(torch.tensor([prompt]), max_new_tokens=NEW, **options)[0].tolist() == prompt + ids


def test_streaming(model, prompts, slow):
    class Streamer:
        seen = []

        def put(self, value):
            self.seen += value.flatten().tolist()

        def end(self):
            pass

    model.generate(torch.tensor([prompts[0]]), max_new_tokens=NEW, streamer=Streamer())
    assert Streamer.seen == prompts[0] + slow[0][0]


def test_given_tokens_of_any_mask(model, prompts, slow):
    inputs = padded(prompts)
    width = inputs["input_ids"].shape[1]
    tokens, mask = model.implicit_embeddings(**inputs, return_mask=True)
    expected = [ids for ids, _ in slow]
    out = model.generate(**inputs, implicit_embeddings=tokens, implicit_attention_mask=mask, max_new_tokens=NEW)
    assert new_ids(out, width) == expected
    # Tokens at the end of the slots, and with holes.
    for order in (mask.argsort(dim=1, stable=True), torch.arange(mask.shape[1]).expand(len(mask), -1)):
        moved = tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[2]))
        wide = torch.stack([moved, torch.full_like(moved, 7.0)], dim=2).flatten(1, 2)
        kept = torch.stack([mask.gather(1, order), torch.zeros_like(mask)], dim=2).flatten(1, 2)
        out = model.generate(**inputs, implicit_embeddings=wide, implicit_attention_mask=kept, max_new_tokens=NEW)
        assert new_ids(out, width) == expected
    shuffled = dict(implicit_embeddings=tokens.flip(0), implicit_attention_mask=mask.flip(0))
    out = new_ids(model.generate(**inputs, **shuffled, max_new_tokens=NEW), width)
    others = [thought_by_hand(model, prompt)[0] for prompt in reversed(prompts)]
    assert out == [answer_by_hand(model, *pair)[0] for pair in zip(prompts, others, strict=True)]


def test_no_thought_at_all(model, prompts, slow):
    """A generator that ends at once leaves the host's own answer, for single rows of a batch and for all."""
    tokens, mask = model.implicit_embeddings(**padded(prompts), return_mask=True)
    inputs, width = padded(prompts), max(map(len, prompts))
    mask[1] = 0
    out = model.generate(**inputs, implicit_embeddings=tokens, implicit_attention_mask=mask, max_new_tokens=NEW)
    host = model.generate(torch.tensor([prompts[1]]), num_implicit_tokens=0, max_new_tokens=NEW)
    expected = [ids for ids, _ in slow]
    expected[1] = new_ids(host, len(prompts[1]))[0]
    assert new_ids(out, width) == expected
    out = model.generate(**inputs, implicit_embeddings=tokens, implicit_attention_mask=mask * 0, max_new_tokens=NEW)
    assert torch.equal(out, model.generate(**inputs, num_implicit_tokens=0, max_new_tokens=NEW))


def test_a_conversation_goes_on(model, prompts):
    inputs = padded(prompts)
    first = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True)
    further = torch.randint(10, 300, (len(prompts), 3))
    ids = torch.cat([first.sequences, further], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones(len(prompts), 7, dtype=torch.long)], dim=1)
    out = model.generate(ids, attention_mask=mask, past_key_values=first.past_key_values, max_new_tokens=NEW)
    for row, prompt in enumerate(prompts):
        tokens, _ = thought_by_hand(model, prompt)
        cut, text = cut_of(prompt), ids[row, mask[row] == 1].tolist()
        for _ in range(NEW):
            embeds = model.host.get_input_embeddings()(torch.tensor([text]))[0]
            embeds = torch.cat([embeds[:cut], tokens, embeds[cut:]])[None]
            text.append(int(model.host(inputs_embeds=embeds, use_cache=False).logits[0, -1].argmax()))
        assert out[row, ids.shape[1] :].tolist() == text[-NEW:]


def test_a_cache_of_the_first_columns(model, prompts, slow):
    from transformers import DynamicCache

    inputs = padded(prompts)
    shared = 4
    cache = DynamicCache(config=model.host.config)
    ids, mask = inputs["input_ids"][:, :shared], inputs["attention_mask"][:, :shared]
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        model.host(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    out = model.generate(**inputs, past_key_values=cache, max_new_tokens=NEW)
    assert new_ids(out, inputs["input_ids"].shape[1]) == [ids for ids, _ in slow]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("options", [{}, {"logits_to_keep": 4}, {"logits_to_keep": 8}, {"use_question_cache": True}])
def test_forward_equals_single_rows(model, prompts, side, options):
    model.zero_grad()
    completions = [[20, 21], [22, 23, 24], [25], [26, 27]]
    rows = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    width = max(map(len, rows))
    if options.get("use_question_cache"):
        options = {**options, "logits_to_keep": 4}

    def padded_row(row, fill):
        gap = [fill] * (width - len(row))
        return gap + row if side == "left" else row + gap

    ids = torch.tensor([padded_row(row, 0) for row in rows])
    mask = torch.tensor([padded_row([1] * len(row), 0) for row in rows])
    labels = torch.tensor(
        [
            padded_row([-100] * len(prompt) + completion, -100)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
    )
    if side == "right" and "logits_to_keep" in options:
        pytest.skip("the last columns hold no completion")
    out = model(ids, attention_mask=mask, labels=labels, **options)
    total, count = 0, 0
    for prompt, completion in zip(prompts, completions, strict=True):
        single = torch.tensor([prompt + completion])
        target = torch.tensor([[-100] * len(prompt) + completion])
        tokens, _ = thought_by_hand(model, prompt)
        own = model(single, labels=target, implicit_embeddings=tokens[None])
        total, count = total + own.loss * len(completion), count + len(completion)
    torch.testing.assert_close(out.loss, total / count)
    out.loss.backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.generator.parameters() if weight.grad is not None)


@pytest.mark.parametrize("host", HOSTS)
def test_hosts(host, tiny_lm, tiny_semcot, prompts):
    lm = tiny_lm(host.partition("-")[0], **HOSTS[host])
    model = tiny_semcot(lm, tiny_lm(hidden_size=16, seed=1), end_of_thought_token_ids=[VOCABULARY], **ADAPTIVE)
    check(model, prompts[:3])


@pytest.mark.parametrize("generator", GENERATORS)
def test_generators(generator, tiny_lm, tiny_semcot, prompts):
    # Learned positions move GPT-2's states more than its words do.
    changes = {"n_positions": 256, "initializer_range": 0.4} if generator == "gpt2" else HOSTS[generator]
    lm = tiny_lm(generator, hidden_size=16, **changes)
    model = tiny_semcot(tiny_lm("gpt2"), lm, end_of_thought_token_ids=[VOCABULARY], **ADAPTIVE)
    check(model, prompts[:3])


def check(model, prompts):
    lengths = with_ends(model, prompts)
    assert len(set(lengths)) > 1
    inputs = padded(prompts)
    out = model.generate(**inputs, max_new_tokens=5, return_dict_in_generate=True, output_logits=True)
    for row, prompt in enumerate(prompts):
        ids, logits = answer_by_hand(model, prompt, thought_by_hand(model, prompt)[0], 5)
        assert new_ids(out, inputs["input_ids"].shape[1])[row] == ids
        torch.testing.assert_close(torch.stack(out.logits)[:, row], logits.float(), atol=1e-4, rtol=1e-4)
        assert new_ids(model.generate(torch.tensor([prompt]), max_new_tokens=5), len(prompt)) == [ids]


@pytest.mark.parametrize("top_k, temperature", [(1, 1.0), (4, 0.5), (0, 2.0), (None, 1.0)])
def test_mixtures(tiny_semcot, prompts, top_k, temperature):
    fields = dict(WORDS, mixture_top_k=top_k, mixture_temperature=temperature, starts_with_thought_token=False)
    model = tiny_semcot(**fields)
    tokens = model.implicit_embeddings(**padded(prompts))
    for row, prompt in enumerate(prompts):
        expected, words = thought_by_hand(model, prompt, top_k or 320, temperature)
        torch.testing.assert_close(tokens[row], expected, atol=1e-6, rtol=1e-6)
        if top_k == 1:
            torch.testing.assert_close(expected, model.host.get_input_embeddings()(torch.tensor(words)))
            assert model.implicit_words(torch.tensor([prompt]))[1].eq(1).all()


def test_words_and_text(model, prompts, tiny_tokenizer, tmp_path):
    ids, shares = model.implicit_words(**padded(prompts))
    text = model.implicit_text(**padded(prompts), tokenizer=tiny_tokenizer)
    for row, prompt in enumerate(prompts):
        _, words = thought_by_hand(model, prompt)
        assert ids[row].tolist() == words + [-1] * (ids.shape[1] - len(words))
        assert bool((shares[row, : len(words)] > 0.25).all()) and not shares[row, len(words) :].any()
        assert text[row] == tiny_tokenizer.decode(words)
    with pytest.raises(ValueError, match="tokenizer=None, and no tokenizer is found at"):
        model.implicit_text(**padded(prompts))
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    again = SemCoTForCausalLM.from_pretrained(tmp_path)
    assert again.config.thought_length == "adaptive" and again.config.mixture_top_k == 4
    assert again.implicit_text(**padded(prompts)) == text


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"thought_length": "long"}, "thought_length='long': must be one of"),
        ({"thought_length": "adaptive"}, "thought_length='adaptive' with generator_mode='parallel'"),
        ({"mixture_top_k": -1}, "mixture_top_k=-1: must be 1 or more, or 0"),
        ({"mixture_temperature": 0.0}, "mixture_temperature=0.0: must be above 0"),
        ({"starts_with_thought_token": False}, "belongs to generator_mode='sequential'"),
        ({"thought_prompt_ids": [[1]]}, "thought_prompt_ids has 1 parts"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        SemCoTConfig(**fields)


def test_a_generator_without_an_end(tiny_semcot):
    with pytest.raises(ValueError, match="needs a token that ends a thought, but end_of_thought_token_ids is None"):
        tiny_semcot(**ADAPTIVE)


def test_bad_masks(model, prompts):
    tokens, mask = model.implicit_embeddings(**padded(prompts), return_mask=True)
    for call in (model.generate, model):
        with pytest.raises(ValueError, match="implicit_attention_mask has shape"):
            call(**padded(prompts), implicit_embeddings=tokens, implicit_attention_mask=mask[:, 1:])
        with pytest.raises(ValueError, match="implicit_attention_mask belongs to implicit_embeddings"):
            call(**padded(prompts), num_implicit_tokens=3, implicit_attention_mask=mask)


@pytest.mark.parametrize("length", ["adaptive", "fixed"])
def test_the_lm_head_runs_once_for_each_word(tiny_semcot, prompts, length):
    options = {**ADAPTIVE, "thought_length": length, "end_of_thought_token_ids": [VOCABULARY]}
    model = tiny_semcot(**(options if length == "adaptive" else {**WORDS, "num_implicit_tokens": COUNT})).eval()
    sizes = []
    handle = model.projection.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[1]))
    for call in (model.implicit_embeddings, model.implicit_words):
        sizes.clear()
        call(**padded(prompts))
        assert sizes == [1] * COUNT
    handle.remove()
