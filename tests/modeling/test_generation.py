"""Generation with implicit tokens: every way of decoding against the slow path, which runs the host by hand."""

import pytest
import torch
from slow_path import ANSWER, NEW, example_prompts, new_ids, padded, slow_path
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria, set_seed


@pytest.fixture(scope="module")
def model(tiny_semcot):
    return tiny_semcot(answer_prompt_ids=ANSWER)


@pytest.fixture(scope="module")
def prompts():
    return example_prompts()


@pytest.fixture(scope="module")
def slow(model, prompts):
    return [slow_path(model, prompt) for prompt in prompts]


def test_implicit_tokens_matter(model, prompts, slow):
    """What the other tests compare would be worth nothing if the host paid the tokens no heed."""
    alone = model.generate(torch.tensor([prompts[0]]), num_implicit_tokens=0, max_new_tokens=NEW)
    assert new_ids(alone, len(prompts[0]))[0] != slow[0][0]


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_batch_equals_one_by_one_and_the_slow_path(tiny_semcot, prompts, mode):
    model = tiny_semcot(answer_prompt_ids=ANSWER, generator_mode=mode)
    inputs = padded(prompts)
    width = inputs["input_ids"].shape[1]
    options = dict(max_new_tokens=NEW, return_dict_in_generate=True, output_logits=True, output_scores=True)
    batch = model.generate(**inputs, **options)
    assert torch.equal(batch.sequences[:, :width], inputs["input_ids"])
    for row, prompt in enumerate(prompts):
        ids, logits = slow_path(model, prompt)
        assert new_ids(batch, width)[row] == ids
        torch.testing.assert_close(torch.stack(batch.logits)[:, row], logits.float(), atol=5e-6, rtol=0)
        single = model.generate(torch.tensor([prompt]), **options)
        assert single.sequences[0].tolist() == prompt + ids
        torch.testing.assert_close(torch.stack(single.scores)[:, 0], logits.float(), atol=5e-6, rtol=0)


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("sampled", [False, True])
def test_no_implicit_tokens_is_the_host_bit_for_bit(model, prompts, padding, sampled):
    inputs = padded(prompts) if padding else {"input_ids": torch.tensor([prompts[0]])}
    options = dict(max_new_tokens=NEW, do_sample=sampled, return_dict_in_generate=True, output_logits=True)
    set_seed(0)
    ours = model.generate(**inputs, **options, num_implicit_tokens=0)
    set_seed(0)
    hosts = model.host.generate(**inputs, **options)
    assert torch.equal(ours.sequences, hosts.sequences)
    assert all(map(torch.equal, ours.logits, hosts.logits))


def test_ready_made_embeddings_are_used_as_they_are(model, prompts, slow):
    inputs = padded(prompts)
    width = inputs["input_ids"].shape[1]
    tokens = model.implicit_embeddings(**inputs)
    out = model.generate(**inputs, implicit_embeddings=tokens, max_new_tokens=NEW)
    assert new_ids(out, width) == [ids for ids, _ in slow]
    shuffled = model.generate(**inputs, implicit_embeddings=tokens.flip(0), max_new_tokens=NEW)
    assert new_ids(shuffled, width) != [ids for ids, _ in slow]


def test_other_counts_than_the_default(model, prompts):
    for count in (1, 6):
        out = model.generate(torch.tensor([prompts[0]]), num_implicit_tokens=count, max_new_tokens=NEW)
        assert out[0].tolist() == prompts[0] + slow_path(model, prompts[0], num_implicit_tokens=count)[0]


def test_the_inferred_mask_is_the_given_one(model, prompts):
    inputs = padded(prompts)
    inferred = model.generate(inputs["input_ids"], max_new_tokens=NEW, eos_token_id=319)
    given = model.generate(**inputs, max_new_tokens=NEW, eos_token_id=319)
    assert torch.equal(inferred, given)


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("said", ["in the call", "in the configuration of the call", "by the model"])
def test_padding_is_inferred_by_the_id_that_generation_goes_by(tiny_semcot, prompts, said, count):
    model, inputs = tiny_semcot(answer_prompt_ids=ANSWER), padded(prompts)
    options = {"num_implicit_tokens": count, "max_new_tokens": NEW}
    expected = model.generate(**inputs, **options)
    if said == "in the call":
        model.generation_config.pad_token_id = None
        options["pad_token_id"] = 0
    elif said == "in the configuration of the call":
        model.generation_config.pad_token_id = None
        options = {**options, "generation_config": GenerationConfig(max_new_tokens=NEW, pad_token_id=0)}
        del options["max_new_tokens"]
    else:
        options["generation_config"] = GenerationConfig(max_new_tokens=NEW)
    assert torch.equal(model.generate(inputs["input_ids"], **options), expected)


# Lengths


def test_implicit_tokens_eat_no_length(model, prompts):
    ids = torch.tensor([prompts[1]])
    length = ids.shape[1]
    assert model.generate(ids, max_length=length + 5).shape[1] == length + 5
    assert model.generate(ids, max_new_tokens=5).shape[1] == length + 5


def test_min_length_counts_text_only(model, prompts, slow):
    ids = torch.tensor([prompts[1]])
    length, first = ids.shape[1], slow[1][0][0]
    assert model.generate(ids, max_new_tokens=NEW, eos_token_id=first, pad_token_id=0).shape[1] == length + 1
    for options in ({"min_length": length + 4}, {"min_new_tokens": 4}):
        out = model.generate(ids, max_new_tokens=NEW, eos_token_id=first, pad_token_id=0, **options)
        assert first not in out[0, length : length + 4].tolist()
        expected, _ = slow_path(model, prompts[1], 4, lambda _, logits: int(without(logits, first).argmax()))
        assert out[0, length : length + 4].tolist() == expected


def without(logits, token):
    logits = logits.clone()
    logits[token] = -torch.inf
    return logits


def test_rows_that_end_early_are_padded(model, prompts, slow):
    end = slow[0][0][3]
    inputs = padded(prompts)
    out = model.generate(**inputs, max_new_tokens=NEW, eos_token_id=end, pad_token_id=0)
    for (ids, _), got in zip(slow, new_ids(out, inputs["input_ids"].shape[1]), strict=True):
        stop = ids.index(end) + 1 if end in ids else NEW
        assert got == (ids[:stop] + [0] * NEW)[: len(got)]


# Ways of decoding


def test_sampling_is_that_of_the_slow_logits(model, prompts):
    """With temperature and top-k the drawn ids follow the slow path's distribution, here its only two choices."""
    inputs = padded([prompts[0]] * 64)
    set_seed(0)
    out = model.generate(**inputs, do_sample=True, top_k=2, temperature=3.0, max_new_tokens=1)
    top = slow_path(model, prompts[0], 1)[1][0].topk(2).indices.tolist()
    assert {ids[0] for ids in new_ids(out, len(prompts[0]))} == set(top)


def test_sampling_a_batch_and_sequences_equals_repeated_rows(model, prompts):
    inputs = padded(prompts)
    set_seed(3)
    several = model.generate(**inputs, do_sample=True, num_return_sequences=3, max_new_tokens=NEW)
    set_seed(3)
    repeated = model.generate(
        **{key: value.repeat_interleave(3, dim=0) for key, value in inputs.items()}, do_sample=True, max_new_tokens=NEW
    )
    assert several.shape[0] == 12
    assert torch.equal(several, repeated)


def slow_beams(model, prompt, beams, new_tokens):
    """Beam search without end tokens: keep the best `beams` continuations by summed log-probability."""
    table, tokens = model.host.get_input_embeddings(), model.implicit_embeddings(torch.tensor([prompt]))
    cut = len(prompt) - len(ANSWER)
    kept = [([], 0.0)]
    for _ in range(new_tokens):
        grown = []
        for text, score in kept:
            embeds = table(torch.tensor([prompt + text]))
            embeds = torch.cat([embeds[:, :cut], tokens, embeds[:, cut:]], dim=1)
            with torch.no_grad():
                step = model.host(inputs_embeds=embeds).logits[0, -1].log_softmax(-1)
            grown += [(text + [i], score + float(step[i])) for i in step.topk(beams).indices.tolist()]
        kept = sorted(grown, key=lambda item: -item[1])[:beams]
    return kept


def test_beams_equal_a_beam_search_by_hand(model, prompts):
    inputs = padded(prompts[:3])
    width = inputs["input_ids"].shape[1]
    out = model.generate(
        **inputs,
        num_beams=3,
        num_return_sequences=3,
        max_new_tokens=5,
        return_dict_in_generate=True,
        output_scores=True,
    )
    for row, prompt in enumerate(prompts[:3]):
        expected = slow_beams(model, prompt, 3, 5)
        assert new_ids(out, width)[3 * row : 3 * row + 3] == [text for text, _ in expected]
        wanted = torch.tensor([score / 5 for _, score in expected])
        torch.testing.assert_close(out.sequences_scores[3 * row : 3 * row + 3], wanted, atol=5e-6, rtol=0)


class _SeeingProcessor(LogitsProcessor):
    """Keeps the ids it is shown."""

    def __init__(self):
        self.ids = []

    def __call__(self, input_ids, scores):
        self.ids.append(input_ids.clone())
        return scores


class _SeeingCriterion(StoppingCriteria):
    """Keeps the ids it is shown and never stops."""

    def __init__(self):
        self.ids = []

    def __call__(self, input_ids, scores, **kwargs):
        self.ids.append(input_ids.clone())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 3}])
def test_processors_and_criteria_see_text_ids_only(model, prompts, options):
    processor, criterion = _SeeingProcessor(), _SeeingCriterion()
    ids = torch.tensor([prompts[1]])
    out = model.generate(ids, max_new_tokens=4, logits_processor=[processor], stopping_criteria=[criterion], **options)
    rows = ids.expand(options.get("num_beams", 1), -1)
    assert torch.equal(processor.ids[0], rows)
    assert all(torch.equal(seen[:, : ids.shape[1]], ids.expand(len(seen), -1)) for seen in criterion.ids)
    if not options:
        assert torch.equal(criterion.ids[-1], out)


def test_repetition_penalty_and_ngrams_follow_the_text(model, prompts):
    def penalised(text, logits):
        seen = torch.tensor(sorted(set(text)))
        logits = logits.clone()
        logits[seen] = torch.where(logits[seen] < 0, logits[seen] * 1.7, logits[seen] / 1.7)
        return int(logits.argmax())

    def no_pairs(text, logits):
        banned = [b for a, b in zip(text, text[1:], strict=False) if a == text[-1]]
        logits = logits.clone()
        logits[banned] = -torch.inf
        return int(logits.argmax())

    for options, choose in (({"repetition_penalty": 1.7}, penalised), ({"no_repeat_ngram_size": 2}, no_pairs)):
        prompt = prompts[3] * 2
        out = model.generate(torch.tensor([prompt]), max_new_tokens=12, **options)
        assert out[0, len(prompt) :].tolist() == slow_path(model, prompt, 12, choose)[0]


def test_custom_criterion_stops(model, prompts, slow):
    class AfterThree(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((input_ids.shape[0],), input_ids.shape[1] >= len(prompts[0]) + 3)

    out = model.generate(torch.tensor([prompts[0]]), max_new_tokens=NEW, stopping_criteria=[AfterThree()])
    assert out[0].tolist() == prompts[0] + slow[0][0][:3]


def test_stop_strings(model, prompts, slow, tiny_tokenizer):
    texts = [tiny_tokenizer.decode([token]) for token in slow[1][0]]
    stop = next(text for text in texts if text and "\ufffd" not in text)  # no half of a character
    first = next(i for i, token in enumerate(slow[1][0]) if stop in tiny_tokenizer.decode([token]))
    out = model.generate(torch.tensor([prompts[1]]), max_new_tokens=NEW, stop_strings=[stop], tokenizer=tiny_tokenizer)
    assert out[0].tolist() == prompts[1] + slow[1][0][: first + 1]


# Outputs


def test_returned_object(tiny_semcot, prompts):
    model = tiny_semcot(answer_prompt_ids=ANSWER)
    model.set_attn_implementation("eager")
    ids = torch.tensor([prompts[0]])
    out = model.generate(
        ids,
        max_new_tokens=4,
        return_dict_in_generate=True,
        output_scores=True,
        output_hidden_states=True,
        output_attentions=True,
    )
    assert len(out.scores) == len(out.hidden_states) == 4
    assert out.hidden_states[0][-1].shape[1] == out.attentions[0][0].shape[-1] == len(prompts[0]) + 3
    scores = model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
    slow = slow_path(model, prompts[0], 4)[1].log_softmax(-1).amax(-1)
    torch.testing.assert_close(scores[0], slow.float(), atol=5e-6, rtol=0)


def test_beam_transition_scores(model, prompts):
    ids = torch.tensor([prompts[0]])
    out = model.generate(ids, num_beams=3, max_new_tokens=5, return_dict_in_generate=True, output_scores=True)
    steps = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices)
    torch.testing.assert_close(steps.sum(dim=1) / 5, out.sequences_scores, atol=5e-6, rtol=0)


class _Streamed:
    def __init__(self):
        self.chunks, self.ended = [], False

    def put(self, value):
        self.chunks.append(value.flatten().tolist())

    def end(self):
        self.ended = True


@pytest.mark.parametrize("options", [{}, {"prompt_lookup_num_tokens": 3}])
def test_streamers_get_prompt_and_new_ids(model, prompts, slow, options):
    streamer = _Streamed()
    model.generate(torch.tensor([prompts[1]]), max_new_tokens=NEW, streamer=streamer, **options)
    assert streamer.ended
    assert streamer.chunks[0] == prompts[1]
    assert sum(streamer.chunks[1:], []) == slow[1][0]
