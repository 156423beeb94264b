"""Worked examples in the host's prompt: what the host reads, what the generator reads, and what is read once."""

import pytest
import torch
from slow_path import ANSWER, GENERATORS, HOSTS, NEW, STATEFUL, new_ids, padded, slow_path

from semcot_hf import SemCoTForCausalLM
from semcot_hf.modeling.few_shot_semcot import without_few_shot
from semcot_hf.modeling.thought_prompt_semcot import candidate_prompt_fields

START, EXAMPLES = [3, 4], [50, 51, 52, *ANSWER, 53, 50]
FIELDS = dict(answer_prompt_ids=ANSWER, few_shot_ids=EXAMPLES)
WORDS = dict(
    generator_mode="sequential",
    projection="vocabulary",
    thought_length="adaptive",
    end_of_thought_token_ids=list(range(0, 320, 7)),
    num_implicit_tokens=5,
)
BODIES = [[11, 12, 13], [14, 15, 16, 17, 18, 19, 20], [21], [22, 23]]


def shown(body):
    return [*START, *EXAMPLES, *body, *ANSWER]


def plain(body):
    return [*START, *body, *ANSWER]


def expected_answer(model, prompt, new_tokens=NEW):
    """Greedy continuation of a prompt by the slow path, with the implicit tokens of the prompt without examples."""
    model.config.few_shot_ids = None
    bare, mask = without_few_shot(torch.tensor([prompt]), None, EXAMPLES)
    assert mask is None
    with torch.no_grad():
        tokens = model.implicit_embeddings(bare)
    model.config.few_shot_ids = EXAMPLES
    cut = len(prompt) - len(ANSWER)
    text, table = list(prompt), model.host.get_input_embeddings()
    with torch.no_grad():
        for _ in range(new_tokens):
            embeds = table(torch.tensor([text]))
            embeds = torch.cat([embeds[:, :cut], tokens, embeds[:, cut:]], dim=1)
            text.append(int(model.host(inputs_embeds=embeds, use_cache=False).logits[0, -1].argmax()))
    return text[len(prompt) :]


def test_prompts_without_examples_stay_as_they_are():
    ids = torch.tensor([[0, *plain([11, 12])], plain([11, 12, 13])])
    mask = (ids > 0).long()
    assert without_few_shot(ids, mask, EXAMPLES) == (ids, mask)
    assert without_few_shot(ids, mask, None)[0] is ids
    short = torch.tensor([[5, 6]])
    assert without_few_shot(short, None, EXAMPLES) == (short, None)
    # What looks alike across padding are no examples.
    broken = torch.tensor([[*EXAMPLES, 11]])
    assert without_few_shot(broken, torch.tensor([[1, 0, *[1] * (len(EXAMPLES) - 1)]]), EXAMPLES)[0] is broken


@pytest.mark.parametrize("family", [*HOSTS, *STATEFUL])
def test_hosts_read_the_examples_and_generators_do_not(tiny_lm, tiny_semcot, family):
    host = tiny_lm(family.partition("-")[0], **{**HOSTS, **STATEFUL}[family])
    model = tiny_semcot(host=host, num_implicit_tokens=3, **FIELDS).eval()
    prompts = [shown(body) for body in BODIES]
    expected = [expected_answer(model, prompt) for prompt in prompts]
    if family == "llama":
        assert expected != [slow_path(model, plain(body))[0] for body in BODIES]
    options = dict(max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    for _ in range(2):
        batch = padded(prompts)
        assert new_ids(model.generate(**batch, **options), batch["input_ids"].shape[1]) == expected
    alone = [new_ids(model.generate(torch.tensor([prompt]), **options), len(prompt))[0] for prompt in prompts]
    assert alone == expected


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_thoughts_of_different_lengths_behind_the_examples(tiny_lm, tiny_semcot, family):
    """The slots that shorter thoughts leave unused are padding before the columns that are read once."""
    model = tiny_semcot(host=tiny_lm(family), **FIELDS, **WORDS).eval()
    prompts = [shown(body) for body in [*BODIES, [31, 32, 33, 34], [60, 61]]]
    with torch.no_grad():
        assert len(set(model.implicit_thoughts(**padded(prompts)).steps.tolist())) > 1
    expected = [expected_answer(model, prompt) for prompt in prompts]
    for _ in range(2):
        batch = padded(prompts)
        found = model.generate(**batch, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        assert new_ids(found, batch["input_ids"].shape[1]) == expected


@pytest.mark.parametrize("family", GENERATORS)
@pytest.mark.parametrize("fields", [{}, {**WORDS, "num_implicit_tokens": 3}])
def test_thoughts_are_those_of_the_prompt_without_examples(tiny_lm, tiny_semcot, family, fields):
    model = tiny_semcot(generator=tiny_lm(family), **{"num_implicit_tokens": 3, **FIELDS, **fields}).eval()
    with torch.no_grad():
        found = model.implicit_thoughts(**padded([shown(body) for body in BODIES]))
        expected = model.implicit_thoughts(**padded([plain(body) for body in BODIES]))
        mixed = model.implicit_thoughts(**padded([shown(BODIES[0]), *map(plain, BODIES[1:])]))
    for thoughts in (found, mixed):
        torch.testing.assert_close(thoughts.embeddings, expected.embeddings)


def test_words_are_learned_without_the_examples(tiny_semcot):
    model = tiny_semcot(**FIELDS, **WORDS)
    words = torch.tensor([[30, 31, 32, 0]] * 4)
    given = {"thought_input_ids": words, "thought_targets": words}
    losses = [model(**padded([make(body) for body in BODIES]), **given).loss for make in (shown, plain)]
    torch.testing.assert_close(*losses)
    losses[0].backward()
    assert all(parameter.grad is None for parameter in model.host.parameters())


def test_the_examples_are_read_once(tiny_semcot, read_columns):
    model = tiny_semcot(num_implicit_tokens=3, **FIELDS).eval()
    prompts = [shown(body) for body in BODIES]
    expected = [expected_answer(model, prompt, 2) for prompt in prompts]
    widths, size = read_columns(model), len(START) + len(EXAMPLES)
    options = dict(max_new_tokens=2, do_sample=False, eos_token_id=None)
    batch = padded(prompts)
    longest = max(map(len, BODIES)) + len(ANSWER) + 3
    for first in ([size], []):
        assert new_ids(model.generate(**batch, **options), batch["input_ids"].shape[1]) == expected
        assert widths == [*first, longest, 1]
        widths.clear()
    # Prompts that do not all begin with the same examples are read whole.
    for others in ([plain(BODIES[0])], [[9, *shown(BODIES[0])]]):
        model.generate(**padded([prompts[1], *others]), **options)
        assert widths[0] == max(len(prompts[1]), *map(len, others)) + 3
        widths.clear()
    for whole in (
        {"use_cache": False},
        {"cache_implementation": "dynamic"},
        {"output_attentions": True, "return_dict_in_generate": True},
    ):
        found = model.generate(torch.tensor([prompts[0]]), **options, **whole)
        assert new_ids(found, len(prompts[0])) == expected[:1] and widths[0] == len(prompts[0]) + 3
        widths.clear()
    model.generate(torch.tensor([prompts[0]]), **options, num_beams=2)
    assert widths[0] == len(prompts[0]) + 3
    # New weights of the host read them again.
    with torch.no_grad():
        for weight in model.host.parameters():
            weight.mul_(1.1)
    expected = [expected_answer(model, prompt, 2) for prompt in prompts]
    widths.clear()
    assert new_ids(model.generate(**batch, **options), batch["input_ids"].shape[1]) == expected
    assert widths[0] == size


def test_an_assistant_with_examples(tiny_lm, tiny_semcot):
    target = tiny_lm(seed=3)
    assistant = tiny_semcot(num_implicit_tokens=3, **FIELDS).eval()
    prompt = torch.tensor([shown(BODIES[0])])
    options = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)
    found = target.generate(prompt, assistant_model=assistant, **options)
    assert torch.equal(found, target.generate(prompt, **options))


def test_keys_and_values_of_half_precision_are_not_kept(tiny_lm, tiny_semcot):
    parts = [tiny_lm(dtype=torch.float32), tiny_lm("gpt2", hidden_size=16, dtype=torch.float32)]
    model = tiny_semcot(*parts, num_implicit_tokens=3, **FIELDS).eval()
    prompt = torch.tensor([shown(BODIES[1])])
    options = dict(max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True)
    expected = model.generate(prompt, **options).logits[0]
    model._prompt_caches = None
    with torch.autocast("cpu", torch.bfloat16):
        half = model.generate(prompt, **options).logits[0]
    assert torch.equal(model.generate(prompt, **options).logits[0], expected) and not torch.equal(half, expected)


def test_weights_swapped_through_data_read_the_examples_anew(tiny_semcot):
    """As averages of weights are swapped in; torch counts no change of the parameters."""
    model = tiny_semcot(num_implicit_tokens=3, **FIELDS).eval()
    prompt = torch.tensor([shown(BODIES[1])])
    options = dict(max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True)
    before = model.generate(prompt, **options).logits[0]
    for weight in model.host.parameters():
        weight.data.copy_(weight * 1.1)
    after = model.generate(prompt, **options).logits[0]
    model._prompt_caches = None
    assert torch.equal(model.generate(prompt, **options).logits[0], after) and not torch.equal(before, after)


def test_a_model_made_for_inference_alone(tiny_semcot):
    with torch.inference_mode():
        model = tiny_semcot(num_implicit_tokens=3, **FIELDS).eval()
        prompt = torch.tensor([shown(BODIES[1])])
        options = dict(max_new_tokens=2, do_sample=False, eos_token_id=None)
        found = [model.generate(prompt, **options) for _ in range(2)]
        assert torch.equal(*found)


def test_a_cache_goes_on_after_examples(tiny_semcot):
    """The next turn of a chat, from the cache that the first one returned."""
    model = tiny_semcot(num_implicit_tokens=3, **FIELDS).eval()
    options = dict(max_new_tokens=3, do_sample=False, eos_token_id=None, return_dict_in_generate=True)
    prompt = torch.tensor([shown(BODIES[0])])
    first = model.generate(prompt, **options)
    longer = torch.cat([first.sequences, torch.tensor([[31, 32]])], dim=1)
    second = model.generate(longer, past_key_values=first.past_key_values, **options)
    tokens = model.implicit_embeddings(prompt)
    table, cut, text = model.host.get_input_embeddings(), prompt.shape[1] - len(ANSWER), longer[0].tolist()
    with torch.no_grad():
        for _ in range(3):
            embeds = table(torch.tensor([text]))
            embeds = torch.cat([embeds[:, :cut], tokens, embeds[:, cut:]], dim=1)
            text.append(int(model.host(inputs_embeds=embeds).logits[0, -1].argmax()))
    assert second.sequences[0].tolist() == text


def test_a_cropped_cache_of_thoughts_of_different_lengths_is_refused(tiny_semcot):
    model = tiny_semcot(**FIELDS, **WORDS).eval()
    options = dict(max_new_tokens=2, do_sample=False, eos_token_id=None, return_dict_in_generate=True)
    for make in (shown, plain):
        batch = padded([make(body) for body in [*BODIES, [31, 32, 33, 34], [60, 61]]])
        first = model.generate(**batch, **options)
        cache = first.past_key_values
        assert cache.implicit_slots.unused.any()
        cache.crop(2 - cache.get_seq_length())
        with pytest.raises(ValueError, match="cropped to 2 columns, whose rows were padded to thoughts"):
            model.generate(**batch, past_key_values=cache, **options)
        one = {name: part[1:2] for name, part in batch.items()}
        alone = model.generate(**one, **options)
        alone.past_key_values.crop(2 - alone.past_key_values.get_seq_length())
        again = model.generate(**one, past_key_values=alone.past_key_values, **options)
        assert torch.equal(again.sequences, alone.sequences)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", *STATEFUL])
def test_candidates_are_scored_after_the_examples(tiny_lm, tiny_semcot, family):
    host = tiny_lm(family.partition("-")[0], **{**HOSTS, **STATEFUL}[family])
    unused = {name: [5] for name in ("before", "after", "end", "opening", "closing")}
    model = tiny_semcot(host=host, num_candidates=3, candidate_prompt=unused, **FIELDS, **WORDS).eval()
    words = [[5, 6, 7], [9], [], [5, 6, 7], [11, 12], [30, 31, 32, 33], [8], [8, 8]]
    whole = [shown(body)[: -len(ANSWER)] for body in BODIES]
    other = [[9, *whole[0]], *whole[1:]]
    for prompts in (whole, whole, other):
        batch = padded(prompts)
        found = model.thought_log_probabilities(batch["input_ids"], batch["attention_mask"], words)
        for row, thought in enumerate(words):
            read, behind = prompts[row // 2], [*thought, *ANSWER]
            with torch.no_grad():
                logits = host(torch.tensor([[*read, *behind]])).logits[0].float().log_softmax(dim=-1)
            expected = sum(float(logits[len(read) + step - 1, token]) for step, token in enumerate(behind))
            assert float(found[row]) == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_candidates_of_prompts_without_examples_have_the_prompt_of_their_own(tiny_semcot, tiny_tokenizer):
    examples = [{"role": "user", "content": "1 and 1?"}, {"role": "assistant", "content": "1+1=2"}]
    made = candidate_prompt_fields(tiny_tokenizer, examples) | {"opening": [4], "closing": []}
    model = tiny_semcot(num_candidates=3, candidate_prompt=made, **FIELDS, **WORDS).eval()
    bare = torch.tensor([plain(BODIES[0])[: -len(ANSWER)]])
    found = model.thought_log_probabilities(bare, None, [[5, 6]])
    read, behind = [*made["before"], *BODIES[0], *made["after"]], [5, 6, *made["end"]]
    with torch.no_grad():
        logits = model.host(torch.tensor([[*read, *behind]])).logits[0].float().log_softmax(dim=-1)
    expected = sum(float(logits[len(read) + step - 1, token]) for step, token in enumerate(behind))
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_chosen_candidates_are_those_of_the_prompt_without_examples(tiny_semcot):
    """Where the host has no say; and with its say, some others."""
    model = tiny_semcot(num_candidates=5, candidate_host_weight=0.0, candidate_temperature=1.5, **FIELDS, **WORDS)
    model.eval()
    with torch.no_grad():
        made = [model.implicit_thoughts(**padded([make(b) for b in BODIES])) for make in (shown, plain)]
        assert made[0].words.tolist() == made[1].words.tolist()
        assert made[0].candidate.tolist() == made[1].candidate.tolist()
        _, own, host = model.candidate_thoughts(**padded([shown(body) for body in BODIES]))
        model.config.candidate_host_weight = 2.0
        chosen = model.implicit_thoughts(**padded([shown(body) for body in BODIES])).candidate
    assert chosen.tolist() == (own + 2 * host).view(4, 5).argmax(dim=1).tolist()


def test_escalation_answers_without_the_examples(tiny_semcot):
    """Explicit reasoning and answers at once, also beside rows without examples."""
    rule = {"threshold": 1.0, "signals": ["answer_probability"], "max_reasoning_tokens": 5}
    model = tiny_semcot(num_implicit_tokens=3, **FIELDS).eval()
    prompts = [shown(BODIES[0]), plain(BODIES[1]), shown(BODIES[2])]
    options = dict(max_new_tokens=5, do_sample=False, eos_token_id=None)
    batch = padded(prompts)
    found = model.generate(**batch, escalation=rule, return_dict_in_generate=True, **options)
    assert found.route == ["explicit"] * 3
    for row, body in enumerate(BODIES[:3]):
        bare = plain(body)[: -len(ANSWER)]
        expected = model.host.generate(torch.tensor([bare]), attention_mask=torch.ones(1, len(bare)).long(), **options)
        assert found.sequences[row, batch["input_ids"].shape[1] :].tolist() == expected[0, len(bare) :].tolist()
    router = {"signals": ["host_probability"], "calibration": None, "threshold": 0.0, "sends": "at_once"}
    routed = model.generate(**batch, escalation={**rule, "router": router}, return_dict_in_generate=True, **options)
    assert routed.route == ["at_once"] * 3
    for row, body in enumerate(BODIES[:3]):
        bare = torch.tensor([plain(body)])
        expected = model.host.generate(bare, attention_mask=torch.ones_like(bare), **options)
        assert routed.sequences[row, batch["input_ids"].shape[1] :].tolist() == expected[0, bare.shape[1] :].tolist()
        likely = model.host(bare).logits[0, -1].softmax(dim=-1).max()
        assert float(routed.signals["host_probability"][row]) == pytest.approx(float(likely), rel=1e-4)
    sure = model.generate(**batch, escalation={**rule, "threshold": 0.0}, **options)
    assert torch.equal(sure, model.generate(**batch, **options))


def test_a_checkpoint_keeps_its_examples(tiny_semcot, tmp_path):
    model = tiny_semcot(num_implicit_tokens=3, **FIELDS).eval()
    model.save_pretrained(tmp_path)
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.config.few_shot_ids == EXAMPLES
    prompt = torch.tensor([shown(BODIES[1])])
    assert torch.equal(loaded.generate(prompt, max_new_tokens=4), model.generate(prompt, max_new_tokens=4))
    assert type(model.config)(few_shot_ids=[]).few_shot_ids is None
