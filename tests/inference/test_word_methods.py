"""Answers by words: the host that reads them, the generator alone, the host's own thoughts; against loops by hand."""

import pytest
import torch

from semcot_hf import SemCoTForCausalLM
from semcot_hf.distillation.words import WordSettings, tokenize_words
from semcot_hf.inference.answering import Answerer, answer_questions
from semcot_hf.inference.prompting import answer_prompt_ids, encode_prompts
from semcot_hf.inference.settings import AnswerSettings, methods_of
from semcot_hf.inference.thoughts import answer_after, generator_lm
from semcot_hf.modeling.candidates_semcot import candidates
from semcot_hf.modeling.thought_prompt_semcot import DEFAULT_THOUGHT_PROMPT, line_ends

QUERIES = [
    "How many apples has Ann now?",
    "Ann gives one to Bob.",
    "Bob?",
    "Three apples and three apples: how many has Bob?",
    "Has Ann one?",
]
LIMIT, NEW = 5, 6
# A token that no model has.
NEVER = 10_000
SHORT = [
    {"role": "system", "content": "Think."},
    {"role": "user", "content": "Bob has 1."},
    {"role": "assistant", "content": "1"},
]


def with_ends(model, tokenizer, questions):
    """End thoughts on tokens for which they have several lengths, one of them the limit."""
    model.config.end_of_thought_token_ids = [NEVER]
    said = [generator_by_hand(model, tokenizer, question)[0] for question in questions]
    words = sorted({word for row in said for word in row})

    def lengths(end):
        return {row.index(end) if end in row else LIMIT for row in said}

    end = max(words, key=lambda word: (LIMIT in lengths(word), len(lengths(word))))
    model.config.end_of_thought_token_ids = [end]
    return len(lengths(end)) > 1


@pytest.fixture(scope="module")
def make(tiny_lm, tiny_tokenizer):
    def make(family="llama", host=None, **fields):
        changes = {"sliding_window": 6} if family == "gemma3_text" else {}
        defaults = dict(
            num_implicit_tokens=LIMIT,
            generator_mode="sequential",
            projection="vocabulary",
            thought_length="adaptive",
            mixture_top_k=3,
            end_of_thought_token_ids=[NEVER],
            answer_prompt_ids=answer_prompt_ids(tiny_tokenizer),
        )
        for seed in range(1, 30):
            model = SemCoTForCausalLM.from_host_generator_pretrained(
                tiny_lm(max_position_embeddings=4096) if host is None else host,
                tiny_lm(family, 16, seed=seed, max_position_embeddings=2048, **changes),
                **{**defaults, **fields},
            )
            if with_ends(model, tiny_tokenizer, questions_of(tiny_tokenizer)):
                return model
        raise AssertionError("no seed gives thoughts of several lengths")

    return make


@pytest.fixture(scope="module")
def model(make):
    return make()


def prompts_of(tokenizer):
    return list(encode_prompts(tokenizer, QUERIES, method="semcot"))


def questions_of(tokenizer):
    """What a generator reads before it thinks: the prompts without the answer prompt."""
    start = answer_prompt_ids(tokenizer)
    assert all(prompt[-len(start) :] == start for prompt in prompts_of(tokenizer))
    return [prompt[: -len(start)] for prompt in prompts_of(tokenizer)]


@torch.no_grad()
def next_token(model, embeds):
    state = model.generator(inputs_embeds=embeds, use_cache=False).last_hidden_state[0, -1]
    return int((state @ model.projection.weight.T.to(state)).argmax())


def generator_by_hand(model, tokenizer, question):
    """(words, end, answer) of the generator alone, without batch and cache; tokenizer and question are its own."""
    ends = model.config.end_of_thought_token_ids
    table = model.generator.get_input_embeddings()
    embeds = table(torch.tensor([question]))
    if model.config.starts_with_thought_token:
        embeds = torch.cat([embeds, model.thought_embedding.expand(1, 1, -1).to(embeds)], dim=1)

    def push(embeds, ids):
        return torch.cat([embeds, table(torch.tensor([ids]))], dim=1)

    words, end = [], None
    while len(words) < LIMIT and end is None:
        token = next_token(model, embeds)
        if token in ends:
            end = token
        else:
            words.append(token)
            embeds = push(embeds, [token])
    closing = ends[0] if end is None else end
    text = tokenizer.decode([closing])
    tail = tokenizer("Answer:" if text.endswith("\n") else "\nAnswer:", add_special_tokens=False)["input_ids"]
    if closing < NEVER:
        embeds = push(embeds, [closing, *tail])
    return words, end, answer_by_hand(model, tokenizer, embeds)


def answer_by_hand(model, tokenizer, embeds):
    answer, table = [], model.generator.get_input_embeddings()
    while len(answer) < NEW and answer[-1:] != [tokenizer.eos_token_id]:
        answer.append(next_token(model, embeds))
        embeds = torch.cat([embeds, table(torch.tensor([answer[-1:]]))], dim=1)
    return answer


def check_generator(model, tokenizer, expected, host_tokenizer=None, **options):
    options |= {"method": "generator", "max_new_tokens": NEW}
    for size in (1, 5):
        answers = answer_questions(model, host_tokenizer or tokenizer, QUERIES, batch_size=size, **options)
        for answer, (words, end, new) in zip(answers, expected, strict=True):
            assert answer.output == tokenizer.decode(new, skip_special_tokens=True)
            assert answer.thought == tokenizer.decode(words, skip_special_tokens=True)
            assert (answer.thought_tokens, answer.thought_ended) == (len(words), end is not None)
            assert answer.new_tokens == len(words) + (end is not None) + len(new)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "gpt_neox", "phi"])
@pytest.mark.parametrize("start", [True, False])
def test_the_generator_alone(make, tiny_tokenizer, family, start):
    model = make(family, starts_with_thought_token=start)
    expected = [generator_by_hand(model, tiny_tokenizer, question) for question in questions_of(tiny_tokenizer)]
    assert len({len(words) for words, _, _ in expected}) > 1
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_generator(model, tiny_tokenizer, expected)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_the_generator_alone_at_once(model, tiny_tokenizer):
    table = model.generator.get_input_embeddings()
    expected = [
        answer_by_hand(model, tiny_tokenizer, table(torch.tensor([prompt]))) for prompt in prompts_of(tiny_tokenizer)
    ]
    for size in (1, 5):
        answers = answer_questions(
            model, tiny_tokenizer, QUERIES, method="generator_no_cot", batch_size=size, max_new_tokens=NEW
        )
        assert [answer.output for answer in answers] == [
            tiny_tokenizer.decode(new, skip_special_tokens=True) for new in expected
        ]
        assert {(answer.thought, answer.thought_ended) for answer in answers} == {(None, True)}


@pytest.mark.parametrize("start", [True, False])
def test_the_generator_alone_goes_on_with_its_most_probable_candidate(make, tiny_tokenizer, start):
    """By its own score, whatever the host says of it."""
    model = make(starts_with_thought_token=start, candidate_host_weight=4.0, candidate_temperature=2.0)
    expected, table = [], model.generator.get_input_embeddings()
    for question in questions_of(tiny_tokenizer):
        with candidates(model, 6, 0.0), torch.no_grad():
            made = model.implicit_thoughts(torch.tensor([question]))
        words = [word for word in made.words[0].tolist() if word >= 0]
        end = model.config.end_of_thought_token_ids[0] if made.ended[0] else None
        tail = answer_after(tiny_tokenizer, end, model.config.thought_ends, "\nAnswer:")
        embeds = table(torch.tensor([question]))
        if start:
            embeds = torch.cat([embeds, model.thought_embedding.expand(1, 1, -1).to(embeds)], dim=1)
        embeds = torch.cat([embeds, table(torch.tensor([[*words, *tail]]))], dim=1)
        expected.append((words, end, answer_by_hand(model, tiny_tokenizer, embeds)))
    alone = [generator_by_hand(model, tiny_tokenizer, question) for question in questions_of(tiny_tokenizer)]
    assert [words for words, _, _ in expected] != [words for words, _, _ in alone]
    check_generator(model, tiny_tokenizer, expected, num_candidates=6)
    check_generator(model, tiny_tokenizer, alone)


def test_settings_choose_the_number_of_candidates(make, tiny_tokenizer):
    """For all methods with thoughts; the model's own number is as it was."""
    model = make(candidate_host_weight=4.0, candidate_temperature=2.0)
    options = {"method": "semcot", "max_new_tokens": NEW}
    one, six = (answer_questions(model, tiny_tokenizer, QUERIES, **options, num_candidates=n) for n in (1, 6))
    said = answer_questions(model, tiny_tokenizer, QUERIES, method="words", max_new_tokens=NEW, num_candidates=6)
    model.config.num_candidates = 6
    own = answer_questions(model, tiny_tokenizer, QUERIES, **options)
    outputs = [[answer.output for answer in answers] for answers in (one, six, own)]
    assert outputs[0] != outputs[1] == outputs[2]
    with candidates(model, 1):
        assert [a.output for a in answer_questions(model, tiny_tokenizer, QUERIES, **options)] == outputs[0]
    words = [model.implicit_words(torch.tensor([prompt]))[0][0].tolist() for prompt in prompts_of(tiny_tokenizer)]
    texts = [[word for word in row if word >= 0] for row in words]
    assert [answer.thought for answer in said] == tiny_tokenizer.batch_decode(texts, skip_special_tokens=True)
    with pytest.raises(ValueError, match="num_candidates=0 must lie in"):
        AnswerSettings(num_candidates=0)


@pytest.mark.parametrize("method", ["generator", "words", "semcot"])
def test_without_words_there_are_no_candidates(make, tiny_tokenizer, method):
    model = make()
    options = {"method": method, "num_implicit_tokens": 0, "max_new_tokens": NEW}
    one, six = (answer_questions(model, tiny_tokenizer, QUERIES, **options, num_candidates=n) for n in (1, 6))
    assert [(a.output, a.thought) for a in six] == [(a.output, None if method == "semcot" else "") for a in one]


@pytest.mark.parametrize("start", [True, False])
def test_a_generator_with_a_thought_prompt(make, tiny_tokenizer, start):
    model = make(
        starts_with_thought_token=start,
        thought_prompt_ids=[[90, 91, 92, 93], [94]],
        question_marker_ids=[tiny_tokenizer("<user>")["input_ids"], tiny_tokenizer("\n")["input_ids"]],
    )
    questions = [[90, 91, 92, 93, *tiny_tokenizer(query)["input_ids"], 94] for query in QUERIES]
    assert with_ends(model, tiny_tokenizer, questions)
    check_generator(model, tiny_tokenizer, [generator_by_hand(model, tiny_tokenizer, row) for row in questions])


def test_a_generator_with_a_tokenizer_of_its_own(tiny_lm, tiny_tokenizer, char_tokenizer):
    for seed in range(1, 30):
        model = SemCoTForCausalLM.from_host_generator_pretrained(
            tiny_lm(),
            tiny_lm(hidden_size=16, seed=seed, vocab_size=len(char_tokenizer) + 3),
            num_implicit_tokens=LIMIT,
            generator_mode="sequential",
            projection="vocabulary",
            thought_length="adaptive",
            host_tokenizer=tiny_tokenizer,
            generator_tokenizer=char_tokenizer,
            end_of_thought_token_ids=[NEVER],
            answer_prompt_ids=answer_prompt_ids(tiny_tokenizer),
        )
        # Of the host's special tokens it knows <user>.
        questions = [char_tokenizer(f"<user>{query}\n")["input_ids"] for query in QUERIES]
        if with_ends(model, char_tokenizer, questions):
            break
    expected = [generator_by_hand(model, char_tokenizer, question) for question in questions]
    check_generator(model, char_tokenizer, expected, tiny_tokenizer)
    table = model.generator.get_input_embeddings()
    prompts = [char_tokenizer(f"<user>{query}\n\nAnswer:")["input_ids"] for query in QUERIES]
    at_once = [answer_by_hand(model, char_tokenizer, table(torch.tensor([prompt]))) for prompt in prompts]
    settings = AnswerSettings(method="generator_no_cot", max_new_tokens=NEW)
    answers = answer_questions(model, tiny_tokenizer, QUERIES, settings)
    assert [a.output for a in answers] == [char_tokenizer.decode(new, skip_special_tokens=True) for new in at_once]
    # The host reads the generator's words in its own tokens.
    [prompt, *_], start = prompts_of(tiny_tokenizer), answer_prompt_ids(tiny_tokenizer)
    said = model.implicit_text(torch.tensor([prompt]))[0]
    ids = [*prompt[: -len(start)], *tiny_tokenizer(said.rstrip(), add_special_tokens=False)["input_ids"], *start]
    out = model.host.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, eos_token_id=2)
    answers = answer_questions(model, tiny_tokenizer, QUERIES[:1], method="words", max_new_tokens=NEW)
    wanted = tiny_tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
    assert (answers[0].output, answers[0].thought) == (wanted, said)


@pytest.mark.parametrize("length", ["adaptive", "fixed"])
def test_the_host_reads_the_words(make, tiny_tokenizer, length):
    model = make(thought_length=length)
    start, seen = answer_prompt_ids(tiny_tokenizer), []
    for prompt in prompts_of(tiny_tokenizer):
        words = [int(word) for word in model.implicit_words(torch.tensor([prompt]))[0][0] if word >= 0]
        said = tiny_tokenizer.decode(words, skip_special_tokens=True)
        text = tiny_tokenizer(said.rstrip(), add_special_tokens=False)["input_ids"]
        ids = [*prompt[: -len(start)], *text, *start]
        out = model.host.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, eos_token_id=2)
        new = out[0, len(ids) :].tolist()
        seen.append((tiny_tokenizer.decode(new, skip_special_tokens=True), said, len(words), len(new)))
    for size in (1, 5):
        answers = answer_questions(model, tiny_tokenizer, QUERIES, method="words", batch_size=size, max_new_tokens=NEW)
        made = [(answer.output, answer.thought, answer.thought_tokens, answer.new_tokens) for answer in answers]
        assert made == seen
        ended = [count < LIMIT or length == "fixed" for _, _, count, _ in seen]
        assert [answer.thought_ended for answer in answers] == ended


def test_words_without_a_chat_template_stand_on_a_line_of_their_own(model, tiny_tokenizer):
    answerer = Answerer(model, tiny_tokenizer, AnswerSettings(method="words", chat=False, max_new_tokens=1))
    seen, generate = [], model.host.generate
    prompts = list(answerer.prompts(QUERIES[:1]))
    try:
        model.host.generate = lambda **options: seen.append(options["input_ids"]) or generate(**options)
        answers = [answer for _, part in answerer.parts(prompts, [0]) for answer in part]
    finally:
        del model.host.generate
    assert tiny_tokenizer.decode(seen[0][0]) == f"Question: {QUERIES[0]}\n{answers[0].thought.rstrip()}\nAnswer:"


def test_single_words(model, tiny_tokenizer):
    """ "semcot_hard" is "semcot" of a model with mixture_top_k=1, and leaves the model as it was."""
    hard = answer_questions(model, tiny_tokenizer, QUERIES, method="semcot_hard", max_new_tokens=NEW)
    assert model.config.mixture_top_k == 3
    soft = answer_questions(model, tiny_tokenizer, QUERIES, method="semcot", max_new_tokens=NEW)
    assert [answer.output for answer in hard] != [answer.output for answer in soft]
    model.config.mixture_top_k = 1
    try:
        own = answer_questions(model, tiny_tokenizer, QUERIES, method="semcot", max_new_tokens=NEW)
        assert methods_of(model) == ("no_cot", "cot", "condensed", "semcot", "words", "generator", "generator_no_cot")
    finally:
        model.config.mixture_top_k = 3
    assert [answer.output for answer in hard] == [answer.output for answer in own]
    assert "semcot_hard" in methods_of(model)


def test_implicit_tokens_with_their_words(model, tiny_tokenizer, monkeypatch):
    """The generator thinks no second time for them."""
    passes, own = [], model._states
    monkeypatch.setattr(model, "_states", lambda *args, **kwargs: passes.append(1) or own(*args, **kwargs))
    for method in ("semcot", "semcot_hard"):
        answerer = Answerer(model, tiny_tokenizer, AnswerSettings(method=method, max_new_tokens=NEW))
        passes.clear()
        plain = answerer.answers(QUERIES)
        assert {answer.thought for answer in plain} == {None}
        answerer.keeps_thoughts = True
        kept = answerer.answers(QUERIES)
        assert len(passes) == 2
        assert [(answer.output, answer.new_tokens) for answer in kept] == [(a.output, a.new_tokens) for a in plain]
        assert [answer.thought_tokens for answer in kept] == [answer.implicit_tokens for answer in kept]
        if method == "semcot":
            words = [
                model.implicit_text(torch.tensor([p]), tokenizer=tiny_tokenizer)[0] for p in prompts_of(tiny_tokenizer)
            ]
            assert [answer.thought for answer in kept] == words


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("examples", [None, SHORT])
def test_the_hosts_own_thoughts(tiny_lm, tiny_tokenizer, examples, own):
    """A plain causal LM, and a SemCoT model whose host has the generator's thought prompt and a limit of its own."""
    host = tiny_lm(max_position_embeddings=4096)
    lm = SemCoTForCausalLM.from_host_generator_pretrained(
        host,
        tiny_lm(hidden_size=16, seed=1, max_position_embeddings=4096),
        recipe="prompted",
        tokenizer=tiny_tokenizer,
        num_implicit_tokens=LIMIT,
        thought_prompt=examples,
    )
    lm = lm if own else host
    settings = AnswerSettings(method="condensed", max_new_tokens=NEW, thought_prompt=None if own else examples)
    ends = line_ends(tiny_tokenizer)
    expected = []
    for query in QUERIES:
        chat = [*(examples or DEFAULT_THOUGHT_PROMPT), {"role": "user", "content": query}]
        text = tiny_tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        ids = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
        out = host.generate(torch.tensor([ids]), max_new_tokens=48, do_sample=False, eos_token_id=ends)[0].tolist()
        new = out[len(ids) :]
        ended = new[-1] in ends
        words = new[:-1] if ended else new
        closing = next(end for end in ends if tiny_tokenizer.decode([end]).endswith("\n"))
        if ended and tiny_tokenizer.decode(new[-1:]).endswith("\n"):
            closing = new[-1]
        read = [*ids, *words, closing, *tiny_tokenizer("Answer:", add_special_tokens=False)["input_ids"]]
        answer = host.generate(torch.tensor([read]), max_new_tokens=NEW, do_sample=False, eos_token_id=2)[0].tolist()
        expected.append((tiny_tokenizer.decode(answer[len(read) :], skip_special_tokens=True), len(words), ended))
    for size in (1, 5):
        answers = answer_questions(lm, tiny_tokenizer, QUERIES, settings, batch_size=size)
        assert [(a.output, a.thought_tokens, a.thought_ended) for a in answers] == expected


@pytest.mark.parametrize("method", ["condensed", "words", "generator", "generator_no_cot"])
def test_stop_texts_of_the_checkpoint_end_answers_alone(make, tiny_tokenizer, method):
    """Thoughts go on."""
    model = make()
    plain = answer_questions(model, tiny_tokenizer, QUERIES, method=method, max_new_tokens=NEW)
    thought = "".join(answer.thought or "" for answer in plain)
    letters = [letter for letter in plain[0].output[1:] if letter.isascii() and letter.isprintable()]
    stop = max(letters, key=lambda letter: letter in thought, default="a")
    assert stop in thought or method != "condensed"
    for config in (model.generation_config, model.host.generation_config):
        config.stop_strings = [stop]
    made = answer_questions(model, tiny_tokenizer, QUERIES, method=method, max_new_tokens=NEW)
    assert [answer.thought for answer in made] == [answer.thought for answer in plain]
    for answer, whole in zip(made, plain, strict=True):
        # The generator alone is another model, which has no stop texts.
        cut = stop in whole.output and not method.startswith("generator")
        assert answer.output == (whole.output[: len(answer.output)] if cut else whole.output)
        assert answer.finished or not cut
    assert made[0].new_tokens < plain[0].new_tokens or method.startswith("generator")


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_the_hosts_own_thoughts_with_a_kind_of_cache(tiny_lm, tiny_tokenizer, kind):
    """The cache of the thought goes on to the answer, unless it is a static one, which has no room for it."""
    host = tiny_lm(max_position_embeddings=4096)
    options = {"method": "condensed", "max_new_tokens": NEW}
    expected = [answer.output for answer in answer_questions(host, tiny_tokenizer, QUERIES, **options)]
    host.generation_config.cache_implementation = kind
    for size in (1, 5):
        answers = answer_questions(host, tiny_tokenizer, QUERIES, **options, batch_size=size)
        assert [answer.output for answer in answers] == expected
    assert host.generation_config.cache_implementation == kind


def test_what_stands_before_an_answer(tiny_tokenizer, joining_tokenizer):
    """The same ids as in the rows that generators are taught with, which end thoughts on the first of the ends."""
    newline, word = tiny_tokenizer("\n")["input_ids"][0], tiny_tokenizer("x")["input_ids"][0]

    def text(end, ends, prompt):
        return tiny_tokenizer.decode(answer_after(tiny_tokenizer, end, ends, prompt))

    assert text(newline, [newline, 2], "\nAnswer:") == "\nAnswer:"
    assert text(newline, [newline, 2], "Answer:") == "\nAnswer:"
    assert text(None, [newline, 2], "\nAnswer:") == "\nAnswer:"
    assert text(2, [2, newline], "\nAnswer:") == "<eos>\nAnswer:"
    assert text(2, [newline, 2], "\nAnswer:") == "\nAnswer:"
    assert text(2, [word, 2], "Answer:") == "<eos>Answer:"
    assert text(None, [], "\nAnswer:") == "\nAnswer:"
    for tokenizer in (tiny_tokenizer, joining_tokenizer):
        for end in ("\n", "<eos>"):
            for prompt in ("\nAnswer:", "Answer:", " Answer:"):
                [first] = tokenizer(end, add_special_tokens=False)["input_ids"]
                taught = WordSettings("", tokenizer, 9, first, (first,), True, prompt)
                ids = tokenize_words("x", "7", taught)["thought_ids"]
                own = tokenizer(" 7<eos>", add_special_tokens=False)["input_ids"]
                assert ids == [*ids[:1], *answer_after(tokenizer, first, [first], prompt), *own]


def test_methods_of_other_models(tiny_lm, tiny_semcot, tiny_tokenizer):
    linear, host = tiny_semcot(), tiny_lm()
    assert methods_of(linear) == ("no_cot", "cot", "semcot") and methods_of(host) == ("no_cot", "cot")
    for lm in (linear, host):
        for method in ("words", "generator", "generator_no_cot", "semcot_hard"):
            with pytest.raises(ValueError, match=f"method='{method}': a model of type .*thinks in words"):
                Answerer(lm, tiny_tokenizer, AnswerSettings(method=method))
    shown = [{"query": "", "reasoning": "", "answer": ""}]
    with pytest.raises(ValueError, match="pass the examples as thought_prompt"):
        Answerer(host, tiny_tokenizer, AnswerSettings(method="condensed", few_shot=shown))
    with pytest.raises(ValueError, match="num_implicit_tokens=3 needs a method with implicit tokens or a thought"):
        Answerer(host, tiny_tokenizer, AnswerSettings(method="no_cot", num_implicit_tokens=3))


def test_generators_with_further_weights_are_refused(model, monkeypatch):
    lm = generator_lm(model)
    assert lm.get_output_embeddings() is model.projection and lm.base_model is model.generator
    monkeypatch.setattr(type(lm), "set_output_embeddings", lambda self, head: None)
    with pytest.raises(ValueError, match="also has the weights lm_head.weight"):
        generator_lm(model)
