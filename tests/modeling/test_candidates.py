"""Candidate thoughts: drawing, scores and choice against one thought at a time, by hand."""

import math

import pytest
import torch
from slow_path import ANSWER, HOSTS, NEW, STATEFUL, example_prompts, new_ids, padded

from semcot_hf import SemCoTConfig, SemCoTForCausalLM
from semcot_hf.modeling.candidates_semcot import CandidateSampler
from semcot_hf.modeling.thought_prompt_semcot import candidate_prompt_fields

COUNT, NUMBER, TEMPERATURE = 5, 6, 1.5
FIELDS = dict(
    generator_mode="sequential",
    projection="vocabulary",
    answer_prompt_ids=ANSWER,
    thought_length="adaptive",
    num_implicit_tokens=COUNT,
    mixture_top_k=4,
    num_candidates=NUMBER,
    candidate_temperature=TEMPERATURE,
)
# Many words end a thought, so that lengths differ.
ENDS = list(range(0, 320, 7))


def cut_of(prompt):
    return len(prompt) - len(ANSWER) if prompt[-len(ANSWER) :] == ANSWER else len(prompt)


@torch.no_grad()
def candidate_by_hand(model, prompt, place):
    """Tokens, words and the two log-probabilities of one candidate, without cache, mask and batch."""
    config, table = model.config, model.generator.get_input_embeddings()
    host_table = model.host.get_input_embeddings()
    inputs = table(torch.tensor([prompt[: cut_of(prompt)]]))
    if config.starts_with_thought_token:
        inputs = torch.cat([inputs, model.thought_embedding.expand(1, 1, -1)], dim=1)
    code, said, tokens, log = (place - 0.5) / (config.num_candidates - 1), [], [], 0.0
    while len(said) < COUNT:
        state = model.generator(inputs_embeds=inputs, use_cache=False).last_hidden_state[0, -1]
        logits = state @ model.projection.weight.T
        chosen = logits.topk(config.mixture_top_k)
        weights, mixed = chosen.values.softmax(dim=-1), chosen.indices
        word = int(logits.argmax())
        if place:
            shares = (logits.float() / config.candidate_temperature).softmax(dim=-1, dtype=torch.float64).tolist()
            word, start = 0, 0.0
            while start + shares[word] <= code:
                start += shares[word]
                word += 1
            code = (code - start) / shares[word]
            weights, mixed = torch.ones(1).to(weights), torch.tensor([word])
        log += float(logits.float().log_softmax(dim=-1)[word])
        if word in config.thought_ends:
            break
        said.append(word)
        tokens.append((weights[:, None] * host_table(mixed)).sum(dim=0))
        read = (weights[:, None] * table(mixed)).sum(dim=0)
        read = table(torch.tensor(word)) if config.word_feedback else read
        inputs = torch.cat([inputs, read[None, None]], dim=1)
    before = prompt[: cut_of(prompt)]
    logits = model.host(torch.tensor([[*before, *said, *ANSWER]])).logits[0].float().log_softmax(dim=-1)
    behind = [*said, *ANSWER]
    host = sum(float(logits[len(before) + step - 1, token]) for step, token in enumerate(behind))
    size = host_table.weight.shape[1]
    return (torch.stack(tokens) if tokens else torch.empty(0, size)), said, log, host


def chosen_by_hand(model, prompt):
    """The tokens, words and place of the candidate with the highest score."""
    found = [candidate_by_hand(model, prompt, place) for place in range(model.config.num_candidates)]
    scores = [log + model.config.candidate_host_weight * host for _, _, log, host in found]
    best = max(range(len(scores)), key=lambda place: (round(scores[place], 4), -place))
    return found[best][0], found[best][1], best


@pytest.fixture(scope="module")
def prompts():
    return example_prompts()


@pytest.fixture(scope="module")
def model(tiny_semcot):
    return tiny_semcot(end_of_thought_token_ids=ENDS, **FIELDS).eval()


def test_arithmetic_sampling_spreads_candidates_over_the_distribution():
    """16 codes over words of 1/2, 1/4 and 1/4: each pair of words as often as its probability says."""
    number = 17
    sampler = CandidateSampler(number, 1.0)
    logits = torch.tensor([0.5, 0.25, 0.25]).log()[None, None].repeat(2 * number, 1, 1)
    words = [sampler(logits)[:, 0].argmax(dim=-1).view(2, number) for _ in range(2)]
    assert torch.equal(words[0][0], words[0][1])
    assert words[0][0, 0] == 0 and words[1][0, 0] == 0
    pairs = list(zip(words[0][0, 1:].tolist(), words[1][0, 1:].tolist(), strict=True))
    shares = [0.5, 0.25, 0.25]
    assert all(pairs.count((a, b)) == 16 * shares[a] * shares[b] for a in range(3) for b in range(3))
    logs = sampler.log_probabilities(torch.tensor([1, 0] * number)).view(2, number)
    assert logs[0, 0] == pytest.approx(2 * math.log(0.5)) and logs[0, 1] == pytest.approx(math.log(0.5))


def test_no_word_without_probability_is_drawn():
    """Also where the sum of a large vocabulary's probabilities is rounded to less than a code."""
    logits = torch.full((2, 1, 60_000), -torch.inf)
    for seed in range(40):
        logits[:, :, :50_000] = torch.randn(50_000, generator=torch.Generator().manual_seed(seed))
        sampler = CandidateSampler(2, 1.0)
        sampler._codes = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
        assert int(sampler(logits)[1, 0].argmax()) < 50_000 and sampler._codes.isfinite().all()


@pytest.mark.parametrize("host_weight", [0.0, 0.25, 4.0])
@pytest.mark.parametrize("fields", [{}, {"word_feedback": True, "starts_with_thought_token": False}])
def test_the_most_probable_candidate_is_chosen(tiny_semcot, prompts, host_weight, fields):
    model = tiny_semcot(end_of_thought_token_ids=ENDS, **{**FIELDS, "candidate_host_weight": host_weight, **fields})
    model.eval()
    with torch.no_grad():
        thoughts = model.implicit_thoughts(**padded(prompts))
        alone = [model.implicit_thoughts(torch.tensor([prompt])) for prompt in prompts]
    expected = [chosen_by_hand(model, prompt) for prompt in prompts]
    assert thoughts.candidate.tolist() == [place for _, _, place in expected] and thoughts.candidate.any()
    assert thoughts.mask.shape[1] == max(len(said) for _, said, _ in expected)
    for row, (tokens, said, place) in enumerate(expected):
        assert [word for word in thoughts.words[row].tolist() if word >= 0] == said
        torch.testing.assert_close(thoughts.embeddings[row, : len(said)], tokens.to(thoughts.embeddings))
        assert thoughts.mask[row].tolist() == [1] * len(said) + [0] * (thoughts.mask.shape[1] - len(said))
        assert not thoughts.embeddings[row, len(said) :].any()
        assert bool(thoughts.ended[row]) == (len(said) < COUNT)
        # What stands beside a question changes nothing.
        assert alone[row].candidate.tolist() == [place]
        torch.testing.assert_close(alone[row].embeddings[0], tokens.to(thoughts.embeddings))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2", "phi", "olmo2", *STATEFUL])
def test_hosts_score_as_in_one_pass(tiny_lm, tiny_semcot, prompts, family):
    """With and without a cache of the question, which layers with windows or a state do not share."""
    host = tiny_lm(family, **{**HOSTS, **STATEFUL}[family])
    model = tiny_semcot(host=host, end_of_thought_token_ids=ENDS, **FIELDS).eval()
    words = [[5, 6, 7], [9], [], [5, 6, 7], [11, 12], [30, 31, 32, 33], [8], [8, 8]]
    batch = padded([prompt[: cut_of(prompt)] for prompt in prompts])
    found = model.thought_log_probabilities(batch["input_ids"], batch["attention_mask"], words)
    for row, thought in enumerate(words):
        prompt = prompts[row // 2][: cut_of(prompts[row // 2])]
        behind = [*thought, *ANSWER]
        with torch.no_grad():
            logits = host(torch.tensor([[*prompt, *behind]])).logits[0].float().log_softmax(dim=-1)
        expected = sum(float(logits[len(prompt) + step - 1, token]) for step, token in enumerate(behind))
        assert float(found[row]) == pytest.approx(expected, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma", "gpt2", "jamba"])
def test_hosts_score_after_worked_examples(tiny_lm, tiny_semcot, tiny_tokenizer, prompts, family):
    """In a prompt of their own, into which the questions are put, with and without a cache of the examples."""
    host = tiny_lm(family, **{**HOSTS, **STATEFUL}[family])
    examples = [{"role": "user", "content": "1 and 1?"}, {"role": "assistant", "content": "1+1=2"}]
    made = candidate_prompt_fields(tiny_tokenizer, examples)
    opening, closing = tiny_tokenizer("<user>")["input_ids"], tiny_tokenizer("\n")["input_ids"]
    made |= {"opening": opening, "closing": closing}
    model = tiny_semcot(host=host, end_of_thought_token_ids=ENDS, candidate_prompt=made, **FIELDS).eval()
    questions = [[11, 12], [13, 14, 15, 16, 17], [18], [19, 20, 21]]
    whole = [[7, *opening, *question, *closing, 9] for question in questions]
    words = [[5, 6, 7], [9], [], [5, 6, 7], [11, 12], [30, 31, 32, 33], [8], [8, 8]]
    batch = padded(whole)
    for _ in range(2):
        found = model.thought_log_probabilities(batch["input_ids"], batch["attention_mask"], words)
    for row, thought in enumerate(words):
        read = [*made["before"], *questions[row // 2], *made["after"]]
        behind = [*thought, *made["end"]]
        with torch.no_grad():
            logits = host(torch.tensor([[*read, *behind]])).logits[0].float().log_softmax(dim=-1)
        expected = sum(float(logits[len(read) + step - 1, token]) for step, token in enumerate(behind))
        assert float(found[row]) == pytest.approx(expected, rel=1e-4, abs=1e-3)
        alone = model.thought_log_probabilities(torch.tensor([whole[row // 2]]), None, [thought])
        assert float(alone) == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_examples_beyond_the_host_s_context_are_refused(tiny_lm, tiny_semcot, tiny_tokenizer, prompts):
    examples = [{"role": "user", "content": "1?" * 60}, {"role": "assistant", "content": "1"}]
    made = candidate_prompt_fields(tiny_tokenizer, examples)
    host = tiny_lm(max_position_embeddings=len(made["before"]) + 12)
    model = tiny_semcot(host=host, end_of_thought_token_ids=ENDS, candidate_prompt=made, **FIELDS).eval()
    with pytest.raises(ValueError, match=r"candidate_prompt .* more than the host's context .*candidate_prompt=None"):
        model.thought_log_probabilities(torch.tensor([prompts[1]]), None, [[5] * 12])
    assert model.thought_log_probabilities(torch.tensor([prompts[0][:2]]), None, [[5]]).isfinite().all()


def test_a_long_thought_of_another_question_takes_no_room(tiny_lm, tiny_semcot, tiny_tokenizer, prompts):
    examples = [{"role": "user", "content": "1 and 1?"}, {"role": "assistant", "content": "1+1=2"}]
    made = candidate_prompt_fields(tiny_tokenizer, examples) | {"opening": [], "closing": []}
    room = sum(len(made[name]) for name in ("before", "after", "end")) + 20
    model = tiny_semcot(
        tiny_lm(max_position_embeddings=room), end_of_thought_token_ids=ENDS, candidate_prompt=made, **FIELDS
    ).eval()
    asked, words = [[11] * 18, [12] * 3], [[5, 6], [6] * 17]
    found = model.thought_log_probabilities(*padded(asked).values(), words)
    for row, thought in enumerate(words):
        alone = model.thought_log_probabilities(torch.tensor([asked[row]]), None, [thought])
        assert float(found[row]) == pytest.approx(float(alone), rel=1e-4, abs=1e-3)
    with pytest.raises(ValueError, match=f"are {room + 1} tokens, more than the host's context of {room}"):
        model.thought_log_probabilities(*padded(asked).values(), [[5, 6, 7], [6] * 17])


@pytest.mark.parametrize("data", [False, True])
def test_new_weights_of_the_host_read_the_examples_anew(tiny_semcot, tiny_tokenizer, prompts, data):
    examples = [{"role": "user", "content": "1 and 1?"}, {"role": "assistant", "content": "1+1=2"}]
    made = candidate_prompt_fields(tiny_tokenizer, examples)
    model = tiny_semcot(end_of_thought_token_ids=ENDS, candidate_prompt=made, **FIELDS).eval()
    ids = torch.tensor([prompts[1]])
    before = model.thought_log_probabilities(ids, None, [[5]])
    with torch.no_grad():
        for weight in model.host.parameters():
            (weight.data if data else weight).mul_(1.1)
    after = model.thought_log_probabilities(ids, None, [[5]])
    model._prompt_caches = None
    assert after != before and torch.equal(model.thought_log_probabilities(ids, None, [[5]]), after)


def test_all_candidates_of_a_batch(model, prompts):
    thoughts, own, host = model.candidate_thoughts(**padded(prompts))
    rows = [candidate_by_hand(model, prompt, place) for prompt in prompts for place in range(NUMBER)]
    assert [[word for word in row if word >= 0] for row in thoughts.words.tolist()] == [said for _, said, _, _ in rows]
    torch.testing.assert_close(own, torch.tensor([log for _, _, log, _ in rows]), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(host, torch.tensor([log for _, _, _, log in rows]), atol=1e-3, rtol=1e-4)
    with pytest.raises(ValueError, match="num_implicit_tokens=0, .*only thoughts in words are candidates"):
        model.candidate_thoughts(**padded(prompts), num_implicit_tokens=0)


def test_the_host_answers_after_the_chosen_thought(model, prompts):
    batch = padded(prompts)
    made = new_ids(model.generate(**batch, max_new_tokens=NEW, do_sample=False), batch["input_ids"].shape[1])
    with torch.no_grad():
        thoughts = model.implicit_thoughts(**batch)
    given = {"implicit_embeddings": thoughts.embeddings, "implicit_attention_mask": thoughts.mask}
    again = model.generate(**batch, **given, max_new_tokens=NEW, do_sample=False)
    assert made == new_ids(again, batch["input_ids"].shape[1])
    single = model.generate(**batch, num_candidates=1, max_new_tokens=NEW, do_sample=False)
    model.config.num_candidates = 1
    try:
        expected = model.generate(**batch, max_new_tokens=NEW, do_sample=False)
        fields = {"num_candidates": NUMBER, "max_new_tokens": NEW, "do_sample": False}
        assert made == new_ids(model.generate(**batch, **fields), batch["input_ids"].shape[1])
    finally:
        model.config.num_candidates = NUMBER
    assert torch.equal(single, expected) and made != new_ids(single, batch["input_ids"].shape[1])


def test_one_thought_where_gradients_are(model, prompts):
    batch = padded(prompts)
    first = [candidate_by_hand(model, prompt, 0)[0] for prompt in prompts]
    tokens = model.implicit_embeddings(**batch)
    for row, expected in enumerate(first):
        torch.testing.assert_close(tokens[row, : len(expected)], expected.to(tokens))


def test_thoughts_of_fixed_length_are_drawn_too(tiny_semcot, prompts):
    fields = {**FIELDS, "thought_length": "fixed", "num_implicit_tokens": 3, "candidate_host_weight": 4.0}
    model = tiny_semcot(**fields).eval()
    batch = padded(prompts)
    with torch.no_grad():
        thoughts = model.implicit_thoughts(**batch)
    assert thoughts.mask is None and thoughts.embeddings.shape[:2] == (len(prompts), 3)
    assert thoughts.words.shape == (len(prompts), 3) and thoughts.candidate.any()


@pytest.mark.parametrize("family", STATEFUL)
def test_recurrent_generators_read_each_question_anew(tiny_lm, tiny_semcot, prompts, family):
    """Their state cannot be repeated."""
    generator = tiny_lm(family, hidden_size=16, **STATEFUL[family])
    model = tiny_semcot(generator=generator, end_of_thought_token_ids=ENDS, **FIELDS).eval()
    with torch.no_grad():
        thoughts = model.implicit_thoughts(torch.tensor([prompts[1]]))
    tokens, said, place = chosen_by_hand(model, prompts[1])
    assert thoughts.candidate.tolist() == [place] and thoughts.words[0].tolist()[: len(said)] == said
    torch.testing.assert_close(thoughts.embeddings[0, : len(said)], tokens.to(thoughts.embeddings))


def test_a_saved_model_keeps_its_candidates(model, prompts, tmp_path):
    model.save_pretrained(tmp_path, include_host=True)
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path)
    batch = padded(prompts)
    options = {"max_new_tokens": NEW, "do_sample": False}
    assert loaded.config.num_candidates == NUMBER
    assert torch.equal(loaded.generate(**batch, **options), model.generate(**batch, **options))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_candidates": 0}, r"num_candidates=0: must be an integer of 1 or more"),
        ({"num_candidates": 2.5}, r"num_candidates=2.5: must be an integer"),
        (
            {"num_candidates": 2, "projection": "linear"},
            r"num_candidates=2 with .*: only thoughts in words",
        ),
        ({"candidate_temperature": 0.0}, r"candidate_temperature=0.0: must be above 0"),
        (
            {"candidate_prompt": {"before": [1]}},
            r"candidate_prompt has the keys \['before'\]: must have after, before",
        ),
        ({"candidate_host_weight": -1.0}, r"candidate_host_weight=-1.0: must be 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(fields, message):
    words = {"generator_mode": "sequential", "projection": "vocabulary"}
    with pytest.raises(ValueError, match=message):
        SemCoTConfig(**{**words, **fields})


def test_generate_refuses_them_too_and_leaves_the_model_as_it_was(model, tiny_semcot, prompts):
    with pytest.raises(ValueError, match="num_candidates=0: must be an integer"):
        model.generate(**padded(prompts), num_candidates=0)
    assert model.config.num_candidates == NUMBER
    with pytest.raises(ValueError, match="only thoughts in words can be drawn"):
        tiny_semcot().generate(**padded(prompts), num_candidates=2)
