"""Mixtures of words for a generator of another tokenizer, against plain loops over the texts of tokens."""

import copy

import pytest
import torch
from slow_path import ANSWER, new_ids, padded
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from semcot_hf import SemCoTConfig, SemCoTForCausalLM
from semcot_hf.modeling.candidates_semcot import CandidateSampler
from semcot_hf.modeling.implicit_tokens_semcot import SemCoTTokensMixin
from semcot_hf.modeling.thought_prompt_semcot import line_ends
from semcot_hf.modeling.vocabularies_semcot import continued_ids, first_ids, shared_words, token_bytes

LIMIT, TOP_K, END = 6, 3, 2
TEXTS = ["Ann has three apples", "Bob has 2?", "How many apples gives Bob to Ann now", "Question: one and 1"]
PIECES = ["▁", "\n", "▁Ann", "▁apples", "▁zebra", "three", "giraffe", "日"]
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]


@pytest.fixture(scope="module")
def spaced_tokenizer():
    """A tokenizer that writes spaces as ▁, has byte tokens, and puts <bos> before each text, as Gemma's does."""
    characters = [chr(code) for code in range(33, 127)]
    pieces = [*PIECES, *characters]
    scores = [(piece, -1.0 if len(piece) > 1 else -5.0) for piece in pieces]
    bytes_ = [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    vocabulary = [*((token, 0.0) for token in SPECIAL), *bytes_, *scores]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()],
    )
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 1)])
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def written(tokenizer, token):
    """What a token writes behind an "a"; `None` for special tokens."""
    first = tokenizer("a", add_special_tokens=False)["input_ids"]
    if token in tokenizer.all_special_ids or tokenizer.added_tokens_decoder.get(token):
        return None
    return tokenizer.decode([*first, token])[1:]


def counterparts(host_tokenizer, generator_tokenizer, size=320):
    """The words that decode alike, without parts of characters: {generator's id: host's ids}."""
    host = {token: written(host_tokenizer, token) for token in range(len(host_tokenizer))}
    own = {token: written(generator_tokenizer, token) for token in range(len(generator_tokenizer))}
    known = {token: text for token, text in own.items() if text and "�" not in text}
    return {token: [other for other, said in host.items() if said == text] for token, text in known.items()}


def test_words_that_both_write_alike(tiny_tokenizer, spaced_tokenizer, char_tokenizer, joining_tokenizer):
    tokenizers = [tiny_tokenizer, spaced_tokenizer, char_tokenizer, joining_tokenizer]
    for host in tokenizers:
        for generator in tokenizers:
            found = shared_words(host, generator, 400, 400).tolist()
            for token, others in counterparts(host, generator).items():
                assert (found[token] in others) if others else (found[token] == -1), (token, others)
            assert all(found[token] == -1 for token in generator.all_special_ids)


def test_single_words(tiny_tokenizer, spaced_tokenizer):
    found = shared_words(tiny_tokenizer, spaced_tokenizer, 320, 400).tolist()
    ids, host_ids = spaced_tokenizer.get_vocab(), tiny_tokenizer.get_vocab()
    pairs = {"▁": "Ġ", "\n": "Ċ", "<0x0A>": "Ċ", "<0x41>": "A", "A": "A", "<0xE6>": "æ", "▁Ann": "ĠAnn", "7": "7"}
    assert {piece: found[ids[piece]] for piece in pairs} == {piece: host_ids[other] for piece, other in pairs.items()}
    assert [found[ids[piece]] for piece in ("▁zebra", "giraffe", "日", "<bos>")] == [-1] * 4
    assert found[len(spaced_tokenizer) :] == [-1] * (400 - len(spaced_tokenizer))
    # Of the host's A and <0x41>, the first is what its tokenizer uses.
    back = shared_words(spaced_tokenizer, tiny_tokenizer, 400, 320).tolist()
    pairs = {"A": "A", "Ċ": "\n", "æ": "<0xE6>"}
    assert {piece: back[host_ids[piece]] for piece in pairs} == {piece: ids[other] for piece, other in pairs.items()}
    assert shared_words(tiny_tokenizer, spaced_tokenizer, host_ids["A"], 400)[ids["A"]] == -1
    assert token_bytes(spaced_tokenizer)[ids["日"]] == "日".encode()


def test_words_in_the_middle_of_a_text(spaced_tokenizer, tiny_tokenizer):
    """A tokenizer that puts a space before each text puts none into the middle of it."""
    backend = Tokenizer.from_str(spaced_tokenizer.backend_tokenizer.to_str())
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    prefixed = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert prefixed("Ann", add_special_tokens=False)["input_ids"] == [spaced_tokenizer.get_vocab()["▁Ann"]]
    for text in ("Ann", " Ann has", "\nAnn", "=3"):
        expected = spaced_tokenizer(text, add_special_tokens=False)["input_ids"]
        assert continued_ids(prefixed, text) == continued_ids(spaced_tokenizer, text) == expected
    assert first_ids(spaced_tokenizer) == [1] and first_ids(tiny_tokenizer) == []


def thought_by_hand(model, prompt, limit=LIMIT):
    """(tokens (n, size), lost shares, whether it is handed over as text, whether it ended) of one prompt, in loops."""
    host_tokenizer, own = model.host_tokenizer, model.generator_tokenizer
    ids = own(host_tokenizer.decode(prompt[: -len(ANSWER)] if prompt[-len(ANSWER) :] == ANSWER else prompt))
    return thought_after(model, model.generator.get_input_embeddings()(torch.tensor([ids["input_ids"]])), limit)


def thought_after(model, inputs, limit=LIMIT):
    """`thought_by_hand` after what the generator reads (1, length, size)."""
    host_tokenizer, own = model.host_tokenizer, model.generator_tokenizer
    words, table = model.generator.get_input_embeddings(), model.host.get_input_embeddings()
    host_ids = dict(enumerate(model.projection.host_word_ids.tolist()))
    shared = [token for token, other in host_ids.items() if other >= 0]
    if model.config.starts_with_thought_token:
        inputs = torch.cat([inputs, model.thought_embedding.expand(1, 1, -1)], dim=1)
    top_k = model.config.mixture_top_k or len(host_ids)
    made, lost, said, ended = [], [], [], False
    while len(said) < limit and not ended:
        state = model.generator(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -1]
        logits = (state @ model.projection.weight.T)[0]
        ended = model.config.thought_length == "adaptive" and int(logits.argmax()) in model.config.thought_ends
        if ended:
            break
        chosen = logits.topk(min(top_k, len(logits)))
        weights = chosen.values.softmax(dim=-1)
        gone = [host_ids[token] < 0 and token not in model.config.thought_ends for token in chosen.indices.tolist()]
        lost.append(sum((weight.item() for weight, is_gone in zip(weights, gone, strict=True) if is_gone), 0.0))
        known = sorted(shared, key=lambda token: -logits[token].item())[:top_k]
        shares = torch.stack([logits[token] for token in known]).softmax(dim=-1)
        made.append(sum(share * table.weight[host_ids[token]] for share, token in zip(shares, known, strict=True)))
        said.append(int(logits.argmax()))
        mixture = (weights[:, None] * words.weight[chosen.indices]).sum(dim=0)
        read = words.weight[said[-1]] if model.config.word_feedback else mixture
        inputs = torch.cat([inputs, read[None, None]], dim=1)
    as_text = any(share > model.config.lost_limit for share in lost)
    if as_text:
        ids = host_tokenizer(own.decode(said, skip_special_tokens=True), add_special_tokens=False)["input_ids"]
        return table(torch.tensor(ids[:limit], dtype=torch.long)), lost, True, ended and len(ids) <= limit
    return torch.stack(made) if made else table.weight[:0], lost, False, ended


@pytest.fixture(scope="module")
def prompts(tiny_tokenizer):
    return [tiny_tokenizer(text, add_special_tokens=False)["input_ids"] + ANSWER for text in TEXTS]


@pytest.fixture(scope="module")
def make(tiny_lm, tiny_semcot, tiny_tokenizer, spaced_tokenizer):
    def make(host="llama", generator="llama", seed=0, **fields):
        size = len(spaced_tokenizer) + 3
        options = dict(
            generator_mode="sequential",
            projection="vocabulary",
            thought_length="adaptive",
            num_implicit_tokens=LIMIT,
            mixture_top_k=TOP_K,
            answer_prompt_ids=ANSWER,
            end_of_thought_token_ids=[END],
            host_tokenizer=tiny_tokenizer,
            generator_tokenizer=spaced_tokenizer,
        )
        return tiny_semcot(
            tiny_lm(host, seed=seed),
            tiny_lm(generator, hidden_size=16, seed=seed + 1, vocab_size=size),
            seed=seed,
            **{**options, **fields},
        )

    return make


@pytest.fixture(scope="module")
def model(make, prompts):
    """A model whose thoughts are mixtures for some prompts and text for others, and end for some of each kind."""
    for seed in range(40):
        model = make(seed=seed)
        for weight in model.generator.parameters():
            weight.data *= 2
        with torch.no_grad():
            found = [thought_by_hand(model, prompt) for prompt in prompts]
        losses = sorted(max(lost, default=0.0) for _, lost, _, _ in found)
        model.config.max_lost_probability = sum(losses[1:3]) / 2
        words = [model.implicit_words(torch.tensor([prompt]))[0][0].tolist() for prompt in prompts]
        model.config.end_of_thought_token_ids = [END, words[0][3], words[-1][2]]
        with torch.no_grad():
            found = [thought_by_hand(model, prompt) for prompt in prompts]
        kinds = {(as_text, ended) for _, _, as_text, ended in found}
        if len({as_text for as_text, _ in kinds}) == 2 and len(kinds) >= 3:
            return model
    raise AssertionError("no seed gives thoughts of both kinds")


def test_batches_equal_plain_loops(model, prompts):
    for compiled in (False, True):
        if compiled:
            model.compile_generator(backend="eager")
        with torch.no_grad():
            thoughts = model.implicit_thoughts(**padded(prompts))
            for row, prompt in enumerate(prompts):
                tokens, lost, as_text, ended = thought_by_hand(model, prompt)
                count = len(tokens)
                assert thoughts.mask[row].tolist() == [1] * count + [0] * (thoughts.mask.shape[1] - count)
                assert (bool(thoughts.as_text[row]), bool(thoughts.ended[row])) == (as_text, ended)
                torch.testing.assert_close(thoughts.embeddings[row, :count], tokens, atol=1e-6, rtol=1e-6)
                assert not thoughts.embeddings[row, count:].any()
                expected = torch.tensor(lost + [0.0] * (thoughts.lost_probability.shape[1] - len(lost)))
                torch.testing.assert_close(thoughts.lost_probability[row].float(), expected)
                alone, mask = model.implicit_embeddings(torch.tensor([prompt]), return_mask=True)
                assert alone.shape[1] == count and mask.all()
                torch.testing.assert_close(alone[0], tokens, atol=1e-6, rtol=1e-6)
    model._compiled_tokens = None


def test_generation_and_forward(model, prompts):
    inputs, width = padded(prompts), max(map(len, prompts))
    out = new_ids(model.generate(**inputs, max_new_tokens=5), width)
    for row, prompt in enumerate(prompts):
        tokens = thought_by_hand(model, prompt)[0]
        ids = torch.tensor([prompt])
        given = dict(implicit_embeddings=tokens[None].detach()) if len(tokens) else dict(num_implicit_tokens=0)
        assert new_ids(model.generate(ids, max_new_tokens=5, **given), len(prompt))[0] == out[row]
        labels = torch.tensor([[-100] * len(prompt) + [20, 21]])
        full = torch.tensor([prompt + [20, 21]])
        torch.testing.assert_close(model(full, labels=labels).loss, model(full, labels=labels, **given).loss)
    said = model.implicit_text(**inputs)
    words = model.implicit_words(**inputs)[0].tolist()
    for text, row in zip(said, words, strict=True):
        assert text == model.generator_tokenizer.decode([word for word in row if word >= 0])


def loss_of(model, prompt, **given):
    labels = torch.tensor([[-100] * len(prompt) + [20, 21]])
    return model(torch.tensor([prompt + [20, 21]]), labels=labels, **given).loss


@pytest.mark.parametrize("top_k", [TOP_K, None])
def test_gradients_flow_through_mixtures_and_not_through_text(make, prompts, top_k):
    model = make(mixture_top_k=top_k, max_lost_probability=1.0)
    parameters = [model.projection.weight, *model.generator.parameters()]
    prompt = prompts[0]
    own = torch.autograd.grad(loss_of(model, prompt), parameters, allow_unused=True)
    by_hand = loss_of(model, prompt, implicit_embeddings=thought_by_hand(model, prompt)[0][None])
    expected = torch.autograd.grad(by_hand, parameters, allow_unused=True)
    assert own[0].abs().sum() > 0
    for first, second in zip(own, expected, strict=True):
        assert (first is None) == (second is None)
        if first is not None:
            # Mixtures are weighted in float32.
            torch.testing.assert_close(first, second, atol=1e-5 * float(second.abs().max()), rtol=1e-3)
    model.config.max_lost_probability = 0.0
    assert model.implicit_thoughts(torch.tensor([prompt])).as_text.all()
    loss_of(model, prompt).backward()
    assert all(weight.grad is None or not weight.grad.any() for weight in parameters)


def test_fixed_lengths_are_mixtures_whatever_they_lose(make, prompts):
    model = make(thought_length="fixed", num_implicit_tokens=4)
    thoughts = model.implicit_thoughts(**padded(prompts))
    assert thoughts.mask is thoughts.ended is thoughts.as_text is None
    assert thoughts.lost_probability.max() > 0.25
    for row, prompt in enumerate(prompts):
        tokens, lost, as_text, _ = thought_by_hand(model, prompt, limit=4)
        assert not as_text
        torch.testing.assert_close(thoughts.embeddings[row], tokens, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(thoughts.lost_probability[row].float(), torch.tensor(lost))
    parallel = make(generator_mode="parallel", thought_length="fixed", num_implicit_tokens=4)
    assert parallel.implicit_embeddings(**padded(prompts)).isfinite().all()


def test_text_beyond_the_limit_is_cut_off_and_counts_as_not_ended(make, prompts):
    """A word of the generator may be several tokens of the host, so that a thought that was ended does not fit."""
    model = make()
    giraffe = model.generator_tokenizer.get_vocab()["giraffe"]
    states = iter([giraffe, giraffe, END] * 2)

    def logits_of(batch):
        return torch.nn.functional.one_hot(torch.tensor(batch), model.projection.out_features)[:, None].double() * 50

    assert len(model.host_tokenizer("giraffegiraffe")["input_ids"]) > LIMIT
    original = model.word_logits
    steps = {}

    def word_logits(hidden):
        if hidden.shape[1] > 1:
            return torch.cat([logits_of([giraffe])] * (hidden.shape[1] - 1) + [logits_of([END])], dim=1)
        steps["n"] = steps.get("n", 0) + 1
        return logits_of([next(states)])

    model.word_logits = word_logits
    with torch.no_grad():
        thoughts = model.implicit_thoughts(torch.tensor([prompts[0]]))
    expected = model.host_tokenizer("giraffegiraffe")["input_ids"][:LIMIT]
    assert thoughts.as_text.all() and not thoughts.ended.any() and steps["n"] == 3 and original is not None
    torch.testing.assert_close(thoughts.embeddings[0], model.host.get_input_embeddings()(torch.tensor(expected)))


EXAMPLES = [
    {"role": "system", "content": "Think."},
    {"role": "user", "content": "Bob has 1."},
    {"role": "assistant", "content": "1"},
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]  {{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}[model]{% endif %}"
)
SHOWN = {
    None: "Think.\n\nQuestion: Bob has 1.\nThought: 1\n\nQuestion: {}\nThought:",
    TEMPLATE: "[system]  Think.\n\n[user]  Bob has 1.\n\n[assistant]  1\n\n[user]  {}\n\n[model]",
}


@pytest.mark.parametrize("template", SHOWN, ids=["few-shot", "template"])
def test_thought_prompts(make, tiny_tokenizer, spaced_tokenizer, template):
    """The host's question, in the generator's own prompt and tokens, whose beginning comes from a cache or not."""
    own = copy.copy(spaced_tokenizer)
    own.chat_template = template
    model = make(recipe="prompted", thought_prompt=EXAMPLES, generator_tokenizer=own, max_lost_probability=None)
    assert model.config.mixture_top_k == TOP_K and not model.config.starts_with_thought_token
    assert {END} < set(line_ends(own)) and model.config.thought_ends == [END]
    questions = ["Ann has 2?", " How many apples has Bob now?\n", "zebra"]
    chats = [[*EXAMPLES, {"role": "user", "content": question}] for question in questions]
    prompts = [
        tiny_tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats
    ]
    words = model.generator.get_input_embeddings()
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            tokens, mask = model.implicit_embeddings(**padded(prompts), return_mask=True)
        for row, question in enumerate(questions):
            ids = own(SHOWN[template].format(question.strip()))["input_ids"]
            assert ids[0] == 1 and ids.count(1) == 1
            asked, _ = model._generator_inputs(torch.tensor([prompts[row]]), None)
            before, after = model.config.thought_prompt_ids
            assert [*before, *asked[0].tolist(), *after] == ids
            expected = thought_after(model, words(torch.tensor([ids])))[0]
            torch.testing.assert_close(tokens[row, : len(expected)], expected, atol=1e-6, rtol=1e-6)
            assert int(mask[row].sum()) == len(expected)


@pytest.mark.parametrize("include_host", [True, False])
def test_checkpoints_carry_the_counterparts(
    tiny_lm, tiny_tokenizer, spaced_tokenizer, prompts, tmp_path, include_host
):
    size = len(spaced_tokenizer)
    for name, lm, tokenizer in (
        ("host", tiny_lm(dtype=torch.float32), tiny_tokenizer),
        ("generator", tiny_lm(hidden_size=16, dtype=torch.float32, vocab_size=size, eos_token_id=2), spaced_tokenizer),
    ):
        lm.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        tmp_path / "host",
        tmp_path / "generator",
        generator_mode="sequential",
        projection="vocabulary",
        thought_length="adaptive",
        mixture_top_k=2,
    )
    assert model.config.separate_generator_tokenizer and model.config.lost_limit == 0.25
    model.save_pretrained(tmp_path / "saved", include_host=include_host)
    assert (tmp_path / "saved" / "config.json").stat().st_size < 20_000
    again = SemCoTForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.host_word_ids, model.host_word_ids) and (again.host_word_ids >= 0).any()
    half = SemCoTForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    assert half.projection.weight.dtype == torch.bfloat16 and torch.equal(half.host_word_ids, model.host_word_ids)
    inputs = padded(prompts)
    assert torch.equal(again.implicit_embeddings(**inputs), model.implicit_embeddings(**inputs))
    assert torch.equal(again.generate(**inputs, max_new_tokens=4), model.generate(**inputs, max_new_tokens=4))


def test_what_does_not_work(make, tiny_tokenizer):
    with pytest.raises(ValueError, match="max_lost_probability=1.5: must be from 0 to 1"):
        SemCoTConfig(max_lost_probability=1.5)
    with pytest.raises(ValueError, match="max_lost_probability=0.5 with thought_length='fixed'"):
        make(thought_length="fixed", max_lost_probability=0.5)
    other = Tokenizer(models.WordLevel({"[unk]": 0, "日本": 1}, unk_token="[unk]"))
    with pytest.raises(ValueError, match="have no word in common: use projection='linear'"):
        make(generator_tokenizer=PreTrainedTokenizerFast(tokenizer_object=other, unk_token="[unk]"))
    with pytest.raises(ValueError, match="tokenizer is that of both models"):
        make(tokenizer=tiny_tokenizer)


@torch.no_grad()
def test_the_host_scores_candidates_by_their_text(make, prompts):
    """In its own tokens, also of words that it lacks; the chosen one is handed over as any thought is."""
    number = 8
    fields = {"num_candidates": number, "candidate_host_weight": 3.0, "candidate_temperature": 3.0}
    model = make(max_lost_probability=0.5, **fields).eval()
    host, own = model.host_tokenizer, model.generator_tokenizer
    lost = 0
    for prompt in prompts:
        before = prompt[: -len(ANSWER)]
        sampler = CandidateSampler(number, model.config.candidate_temperature)
        made = SemCoTTokensMixin._make_thoughts(model, torch.tensor([before]), None, LIMIT, True, sampler)
        said = [row[:count] for row, count in zip(made.words.tolist(), made.steps.tolist(), strict=True)]
        scores = sampler.log_probabilities(made.steps).tolist()
        for place, words in enumerate(said):
            text = host(own.decode(words, skip_special_tokens=True), add_special_tokens=False)["input_ids"]
            logits = model.host(torch.tensor([[*before, *text, *ANSWER]])).logits[0].float().log_softmax(dim=-1)
            behind = [*text, *ANSWER]
            read = sum(float(logits[len(before) + step - 1, token]) for step, token in enumerate(behind))
            scores[place] += 3.0 * read
        best = max(range(number), key=lambda place: (round(scores[place], 4), -place))
        chosen = model.implicit_thoughts(torch.tensor([prompt]))
        assert chosen.candidate.tolist() == [best]
        assert [word for word in chosen.words[0].tolist() if word >= 0] == said[best]
        assert chosen.embeddings.isfinite().all() and torch.equal(chosen.as_text, made.as_text[best : best + 1])
        width = int(made.mask[best].sum())
        assert torch.equal(chosen.embeddings[0], made.embeddings[best, :width])
        lost += int(made.as_text.sum())
    assert lost
