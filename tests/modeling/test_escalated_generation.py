"""`generate` with escalation against the slow path: rows, routes, signals, caches, streams, and what is refused."""

import copy

import pytest
import torch
from slow_path import ANSWER, HOSTS, NEW, example_prompts, padded, slow_path
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList, set_seed
from transformers.generation import BaseStreamer

from semcot_hf.modeling import escalated_call_semcot
from semcot_hf.modeling.escalation_semcot import Escalation
from semcot_hf.modeling.question_cache_semcot import can_share
from semcot_hf.modeling.splicing_semcot import positions_from_mask

REASONING = 11
WORDS = {"generator_mode": "sequential", "projection": "vocabulary"}
ALWAYS = Escalation(1.0, max_reasoning_tokens=REASONING)


@pytest.fixture(scope="module")
def prompts():
    return example_prompts()[:3]


@pytest.fixture(scope="module")
def model(tiny_semcot):
    return tiny_semcot(answer_prompt_ids=ANSWER)


@pytest.fixture(scope="module")
def words(tiny_lm, tiny_semcot):
    """A generator that ends its thoughts, on 4 of its words."""
    generator = tiny_lm("llama", hidden_size=32, seed=5)
    return tiny_semcot(
        generator=generator,
        answer_prompt_ids=ANSWER,
        thought_length="adaptive",
        end_of_thought_token_ids=list(range(0, 320, 4)),
        mixture_top_k=4,
        num_implicit_tokens=4,
        **WORDS,
    )


def slow_reasoning(model, prompt, new_tokens=REASONING):
    """The host alone goes on from the prompt without its answer prompt; without cache or mask."""
    text = list(prompt[: -len(ANSWER)])
    with torch.no_grad():
        for _ in range(new_tokens):
            text.append(int(model.host(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    return text[len(prompt) - len(ANSWER) :]


def slow_probabilities(ids, logits):
    logs = logits.float().log_softmax(dim=-1)[torch.arange(len(ids)), torch.tensor(ids)]
    return float(logs.mean().exp()), float(logs.min().exp())


def split(out, width, pad=0):
    """The new ids of each row without the padding behind them; no tiny model's answer ends on that id here."""
    rows = []
    for row in out.sequences[:, width:].tolist():
        while row and row[-1] == pad:
            row.pop()
        rows.append(row)
    return rows


def check_against_slow(model, prompts, expected_implicit, **options):
    """All thresholds between two rows' confidences: who escalates, and what comes out."""
    slow = [slow_path(model, p, num_implicit_tokens=model.config.num_implicit_tokens) for p in prompts]
    assert [ids for ids, _ in slow] == expected_implicit
    sure = [slow_probabilities(*made)[0] for made in slow]
    inputs, ordered = padded(prompts), sorted(sure)
    width = inputs["input_ids"].shape[1]
    for threshold in [0.0, *((a + b) / 2 for a, b in zip(ordered, ordered[1:], strict=False)), 1.0]:
        rule = Escalation(threshold, max_reasoning_tokens=REASONING)
        out = model.generate(**inputs, max_new_tokens=NEW, escalation=rule, return_dict_in_generate=True, **options)
        routes = ["explicit" if own < threshold else "implicit" for own in sure]
        assert out.route == routes
        torch.testing.assert_close(out.confidence, torch.tensor(sure), atol=1e-5, rtol=0)
        expected = [
            slow_reasoning(model, prompt) if route == "explicit" else ids
            for prompt, route, (ids, _) in zip(prompts, routes, slow, strict=True)
        ]
        assert torch.equal(out.sequences[:, :width], inputs["input_ids"])
        assert split(out, width) == expected
    return sure


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str)
def test_rows_that_need_it_go_on_as_on_the_slow_path(model, prompts, options):
    plain = model.generate(**padded(prompts), max_new_tokens=NEW)
    check_against_slow(model, prompts, plain[:, -NEW:].tolist(), **options)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("place", ["argument", "config", "own config"])
def test_a_kind_of_cache_may_be_named(model, prompts, monkeypatch, kind, place):
    inputs = {**padded(prompts), "escalation": ALWAYS}
    width = inputs["input_ids"].shape[1]
    if place == "argument":
        options = {"cache_implementation": kind, "max_new_tokens": NEW}
    elif place == "config":
        options = {"generation_config": GenerationConfig(cache_implementation=kind, max_new_tokens=NEW)}
    else:
        monkeypatch.setattr(model.generation_config, "cache_implementation", kind)
        options = {"max_new_tokens": NEW}
    out = model.generate(**inputs, **options, return_dict_in_generate=True)
    assert split(out, width) == [slow_reasoning(model, prompt) for prompt in prompts]
    if place != "argument":
        config = options.get("generation_config", model.generation_config)
        assert config.cache_implementation == kind


@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "gpt2", "gpt_neox"])
def test_families(tiny_lm, tiny_semcot, prompts, family):
    host = tiny_lm(family, **HOSTS[family])
    model = tiny_semcot(host=host, answer_prompt_ids=ANSWER)
    assert can_share(host) == (family in ("gpt2", "gpt_neox"))
    plain = model.generate(**padded(prompts), max_new_tokens=NEW)
    check_against_slow(model, prompts, plain[:, -NEW:].tolist())


def counted(model):
    """(rows, columns) of each of the host's passes from now on, and the hook's handle."""
    widths = []

    def hook(module, args, kwargs):
        given = kwargs.get("inputs_embeds")
        given = kwargs.get("input_ids", args[0] if args else None) if given is None else given
        widths.append((given.shape[0], given.shape[1]))

    handle = model.host.register_forward_pre_hook(hook, with_kwargs=True)
    return widths, handle


def test_the_question_is_not_read_twice(model, words, prompts):
    for semcot in (model, words):
        widths, handle = counted(semcot)
        semcot.generate(**padded(prompts), max_new_tokens=NEW, escalation=ALWAYS)
        handle.remove()
        longer = [width for _, width in widths if width > 1]
        assert len(longer) == 1 and len(widths) == NEW + REASONING


def test_thoughts_of_different_lengths(words, prompts, monkeypatch):
    """Unused slots stand before the text, so that the columns of the question differ from row to row."""
    inputs = padded(prompts)
    _, mask = words.implicit_embeddings(**inputs, return_mask=True)
    assert len({*mask.sum(dim=1).tolist()}) > 1
    signals = ["answer_probability", "thought_entropy", "thought_ended", "agreement"]
    rule = Escalation(1.0, signals=signals, max_reasoning_tokens=REASONING)
    options = dict(max_new_tokens=NEW, return_dict_in_generate=True)
    out = words.generate(**inputs, escalation=rule, **options)
    width = inputs["input_ids"].shape[1]
    assert split(out, width) == [slow_reasoning(words, prompt) for prompt in prompts]
    # Without a cache that can be cut, the answers are the same.
    monkeypatch.setattr(escalated_call_semcot, "can_share", lambda host: False)
    other = words.generate(**inputs, escalation=rule, **options)
    assert torch.equal(other.sequences, out.sequences)
    plain = words.generate(**inputs, max_new_tokens=NEW)
    kept = words.generate(**inputs, max_new_tokens=NEW, escalation=0.0)
    assert torch.equal(plain, kept)
    drawn = words.generate(**inputs, max_new_tokens=NEW, num_candidates=4)
    assert torch.equal(words.generate(**inputs, max_new_tokens=NEW, num_candidates=4, escalation=0.0), drawn)
    # One row alone has the signals that it has in the batch.
    for row, prompt in enumerate(prompts):
        alone = words.generate(torch.tensor([prompt]), escalation=rule, **options)
        for name in signals:
            torch.testing.assert_close(alone.signals[name], out.signals[name][row : row + 1], atol=1e-5, rtol=0)
        thoughts = words.implicit_thoughts(torch.tensor([prompt]))
        assert out.signals["thought_ended"][row] == float(thoughts.ended)
        assert out.signals["thought_entropy"][row] == pytest.approx(entropy_by_hand(words, prompt), abs=1e-5)
        hard = copy.copy(words)
        hard.config = copy.copy(words.config)
        hard.config.mixture_top_k = 1
        expected = torch.equal(
            hard.generate(torch.tensor([prompt]), max_new_tokens=NEW),
            words.generate(torch.tensor([prompt]), max_new_tokens=NEW),
        )
        assert out.signals["agreement"][row] == float(expected)


@torch.no_grad()
def entropy_by_hand(model, prompt):
    ids = torch.tensor([prompt[: -len(ANSWER)]])
    states, used = model._states(*model._generator_inputs(ids, None), model.config.num_implicit_tokens)
    distributions = torch.distributions.Categorical(logits=model.word_logits(states[0, : int(used.sum())]))
    return float(distributions.entropy().mean()) if used.any() else 0.0


def test_ends_of_answers(model, prompts):
    """Rows that end are padded, and count up to their end."""
    inputs = padded(prompts)
    width = inputs["input_ids"].shape[1]
    slow = [slow_path(model, prompt) for prompt in prompts]
    end = slow[0][0][2]
    out = model.generate(
        **inputs, max_new_tokens=NEW, escalation=0.0, return_dict_in_generate=True, eos_token_id=end, pad_token_id=0
    )
    for row, (ids, logits) in enumerate(slow):
        size = ids.index(end) + 1 if end in ids else NEW
        assert out.sequences[row, width : width + size].tolist() == ids[:size]
        mean, least = slow_probabilities(ids[:size], logits[:size])
        assert out.signals["answer_probability"][row] == pytest.approx(mean, abs=1e-5)
        assert out.signals["min_token_probability"][row] == pytest.approx(least, abs=1e-5)


class Doubling(LogitsProcessor):
    def __call__(self, input_ids, scores):
        scores *= 2
        return scores


@pytest.mark.parametrize("options", [{"do_sample": True, "temperature": 3.0}, {"logits_processor": True}], ids=str)
def test_probabilities_are_those_of_the_host_itself(model, prompts, options):
    """Neither temperature nor processors count."""
    options = (
        {**options, "logits_processor": LogitsProcessorList([Doubling()])}
        if "logits_processor" in options
        else options
    )
    set_seed(3)
    out = model.generate(**padded(prompts), max_new_tokens=4, escalation=0.0, return_dict_in_generate=True, **options)
    set_seed(3)
    plain = model.generate(**padded(prompts), max_new_tokens=4, **options)
    assert torch.equal(out.sequences, plain)
    for row, prompt in enumerate(prompts):
        chosen = iter(plain[row, -4:].tolist())
        ids, logits = slow_path(model, prompt, new_tokens=4, choose=lambda text, _, chosen=chosen: next(chosen))
        assert out.confidence[row] == pytest.approx(slow_probabilities(ids, logits)[0], abs=1e-5)


@pytest.mark.parametrize("sends", ["at_once", "explicit"])
def test_router(model, prompts, sends):
    inputs = padded(prompts)
    width = inputs["input_ids"].shape[1]
    at_once = model.generate(**inputs, max_new_tokens=NEW, num_implicit_tokens=0)[:, width:].tolist()
    implicit = model.generate(**inputs, max_new_tokens=NEW)[:, width:].tolist()
    logits = [model.host(torch.tensor([prompt])).logits[0, -1] for prompt in prompts]
    sure = [float(row.softmax(dim=-1).max()) for row in logits]
    threshold = sum(sorted(sure)[1:]) / 2
    router = {"signals": ["host_probability"], "calibration": None, "threshold": threshold, "sends": sends}
    rule = Escalation(0.0, router=router, max_reasoning_tokens=REASONING)
    out = model.generate(**inputs, max_new_tokens=NEW, escalation=rule, return_dict_in_generate=True)
    chosen = [own >= threshold if sends == "at_once" else own < threshold for own in sure]
    assert out.route == [sends if one else "implicit" for one in chosen] and 0 < sum(chosen) < 3
    other = at_once if sends == "at_once" else [slow_reasoning(model, prompt) for prompt in prompts]
    assert split(out, width) == [b if one else a for a, b, one in zip(implicit, other, chosen, strict=True)]
    torch.testing.assert_close(out.signals["host_probability"], torch.tensor(sure), atol=1e-5, rtol=0)
    entropies = torch.stack([torch.distributions.Categorical(logits=row).entropy() for row in logits]).float()
    torch.testing.assert_close(out.signals["host_entropy"], entropies, atol=1e-5, rtol=0)
    assert out.signals["question_tokens"].tolist() == [len(prompt) - len(ANSWER) for prompt in prompts]
    assert out.signals["answer_probability"].isnan().tolist() == chosen
    for row, one in enumerate(chosen):
        assert not one or out.confidence[row] == pytest.approx(sure[row], abs=1e-5)
    sent_all = Escalation(1.0, router={**router, "threshold": float(sends == "explicit")})
    assert {*model.generate(**inputs, max_new_tokens=2, escalation=sent_all, return_dict_in_generate=True).route} == {
        sends
    }


def test_given_tokens_and_provided_signals(model, prompts):
    inputs, tokens = padded(prompts), model.implicit_embeddings(**padded(prompts)).flip(0)
    mask = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 1, 1]])
    given = dict(implicit_embeddings=tokens, implicit_attention_mask=mask, max_new_tokens=NEW)
    plain = model.generate(**inputs, **given)
    rule = {"threshold": 0.5, "signals": ["similarity"], "max_reasoning_tokens": REASONING}
    rule["calibration"] = {"kind": "isotonic", "x": [0, 1], "y": [0, 1]}
    values = torch.tensor([0.9, 0.1, 0.6])
    out = model.generate(
        **inputs, **given, escalation=rule, escalation_signals={"similarity": values}, return_dict_in_generate=True
    )
    torch.testing.assert_close(out.confidence, values)
    assert out.route == ["implicit", "explicit", "implicit"]
    width = inputs["input_ids"].shape[1]
    rows = plain[:, width:].tolist()
    assert split(out, width) == [rows[0], slow_reasoning(model, prompts[1]), rows[2]]
    seen = []

    def similarity(ids, mask, thoughts):
        seen.append((ids, mask, thoughts.embeddings))
        return values

    options = dict(max_new_tokens=2, escalation=rule, escalation_signals={"similarity": similarity})
    assert model.generate(**inputs, return_dict_in_generate=True, **options).route == out.route
    assert torch.equal(seen[0][0], inputs["input_ids"]) and torch.equal(seen[0][1], inputs["attention_mask"])
    torch.testing.assert_close(seen[0][2], tokens.flip(0))


def test_no_implicit_tokens(model, prompts):
    inputs = padded(prompts)
    plain = model.generate(**inputs, max_new_tokens=NEW, num_implicit_tokens=0)
    kept = model.generate(**inputs, max_new_tokens=NEW, num_implicit_tokens=0, escalation=0.0)
    assert torch.equal(plain, kept)
    out = model.generate(
        **inputs, max_new_tokens=2, num_implicit_tokens=0, escalation=ALWAYS, return_dict_in_generate=True
    )
    assert split(out, inputs["input_ids"].shape[1]) == [slow_reasoning(model, prompt) for prompt in prompts]
    kept = model.generate(
        **inputs, max_new_tokens=2, num_implicit_tokens=0, escalation=0.0, return_dict_in_generate=True
    )
    assert kept.route == ["at_once"] * 3


def test_a_shared_prefix(model, prompts):
    longer = [[*range(60, 72), *prompt] for prompt in prompts]
    inputs = padded(longer)
    cache = DynamicCache(config=model.config)
    ids, mask = (part[:, :12] for part in (inputs["input_ids"], inputs["attention_mask"]))
    model.host(ids, mask, position_ids=positions_from_mask(mask), past_key_values=cache, use_cache=True)
    expected = model.generate(**inputs, max_new_tokens=NEW, escalation=ALWAYS)
    widths, handle = counted(model)
    assert torch.equal(
        model.generate(**inputs, max_new_tokens=NEW, escalation=ALWAYS, past_key_values=cache), expected
    )
    handle.remove()
    assert widths[0][1] == inputs["input_ids"].shape[1] - 12 + 3
    assert cache.get_seq_length() == 12
    turn = model.generate(torch.tensor([prompts[0]]), max_new_tokens=2, return_dict_in_generate=True)
    with pytest.raises(ValueError, match="past_key_values holds .* columns of an earlier turn"):
        model.generate(torch.tensor([prompts[0]]), past_key_values=turn.past_key_values, escalation=0.5)


class Collecting(BaseStreamer):
    def __init__(self):
        self.got, self.ended = [], 0

    def put(self, value):
        self.got.append(value.reshape(-1).tolist())

    def end(self):
        self.ended += 1


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_stream_has_the_final_answer_only(model, prompts, threshold):
    prompt, streamer = torch.tensor([prompts[1]]), Collecting()
    rule = Escalation(threshold, max_reasoning_tokens=REASONING)
    out = model.generate(prompt, max_new_tokens=NEW, escalation=rule, streamer=streamer)
    assert streamer.got == [prompts[1], *([token] for token in out[0, prompt.shape[1] :].tolist())]
    assert streamer.ended == 1
    with pytest.raises(ValueError, match="streams one prompt at a time"):
        model.generate(torch.tensor([prompts[1]] * 2), max_new_tokens=2, escalation=rule, streamer=streamer)


def test_configurations(model, prompts):
    """Lengths and a rule may come from configurations; the call's arguments are left as they are."""
    inputs = padded(prompts)
    config = GenerationConfig(max_length=inputs["input_ids"].shape[1] + NEW, return_dict_in_generate=True)
    before = config.to_dict()
    model.config.escalation = ALWAYS.to_dict()
    try:
        out = model.generate(**inputs, generation_config=config, escalation=True)
        assert split(out, inputs["input_ids"].shape[1]) == [slow_reasoning(model, prompt) for prompt in prompts]
        # Without the argument nothing is escalated.
        assert torch.equal(
            model.generate(**inputs, max_new_tokens=2), model.generate(**inputs, max_new_tokens=2, escalation=0.0)
        )
        assert model.generate(**inputs, generation_config=config, escalation=0).route == ["implicit"] * 3
    finally:
        model.config.escalation = None
    assert config.to_dict() == before


@pytest.mark.parametrize("limit", [100, 18])
def test_reasoning_ends_at_the_context(tiny_lm, tiny_semcot, prompts, limit):
    """Each row's own, however long the others are."""
    host = tiny_lm("gpt2", max_position_embeddings=24)
    model = tiny_semcot(host=host, answer_prompt_ids=ANSWER)
    rule = Escalation(1.0, max_reasoning_tokens=limit)
    rooms = [min(limit, 24 - len(prompt) + len(ANSWER)) for prompt in prompts]
    expected = [slow_reasoning(model, prompt, room) for prompt, room in zip(prompts, rooms, strict=True)]
    inputs = padded(prompts)
    out = model.generate(**inputs, max_new_tokens=2, escalation=rule, return_dict_in_generate=True)
    assert split(out, inputs["input_ids"].shape[1]) == expected and len({*rooms}) > 1
    alone = model.generate(torch.tensor([prompts[1]]), max_new_tokens=2, escalation=rule)
    assert alone[0, len(prompts[1]) :].tolist() == expected[1]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("way", ["implicit", "at_once", "explicit", "without tokens"])
def test_prompts_beyond_the_context_are_refused_whatever_answers_them(tiny_lm, tiny_semcot, family, way):
    model = tiny_semcot(host=tiny_lm(family, max_position_embeddings=24), answer_prompt_ids=ANSWER)
    router = {"signals": ["host_probability"], "calibration": None, "threshold": float(way == "explicit")}
    routes = way in ("at_once", "explicit")
    rule = Escalation(1.0, router={**router, "sends": way} if routes else None, max_reasoning_tokens=REASONING)
    options = {"escalation": rule, **({"num_implicit_tokens": 0} if way == "without tokens" else {})}
    count = 3 if way == "implicit" else 0
    fits = torch.arange(11, 31 - count).tolist() + ANSWER
    mixed = padded([fits, fits[4:]])
    assert len(model.generate(**mixed, max_new_tokens=24 - count - len(fits), **options)) == 2
    for prompts, new in ((mixed, 25 - count - len(fits)), (padded([fits * 2, fits]), 2)):
        with pytest.raises(ValueError, match=rf"A prompt of .* and {new} new .* more than the host's context of 24"):
            model.generate(**prompts, max_new_tokens=new, **options)


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"escalation": 1.5}, r"threshold=1\.5"),
        ({"escalation": True}, "semcot calibrate"),
        ({"num_beams": 2}, "num_beams=2"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences=2"),
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores=True"),
        ({"escalation": None, "escalation_signals": {}}, "escalation_signals belong"),
        ({"escalation_signals": {"mood": torch.ones(3)}}, "escalation_signals has mood"),
        ({"escalation_signals": {"agreement": torch.ones(2)}, "escalation": Escalation(0.5, ["agreement"])}, "shape"),
        ({"escalation": Escalation(0.5, ["similarity"])}, "'similarity', but it needs an alignment encoder"),
        ({"escalation": Escalation(0.5, ["thought_entropy"])}, "'thought_entropy', but .* are no words"),
        ({"escalation": Escalation(0.5, ["agreement"])}, "'agreement', but .* are no words"),
        ({"escalation": Escalation(0.5, ["thought_ended"])}, "'thought_ended', but all thoughts"),
        ({"escalation": Escalation(0.5, ["thought_ended"]), "num_implicit_tokens": 0}, "there is no thought"),
        ({"inputs_embeds": torch.ones(3, 2, 32)}, "inputs_embeds"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_refused(model, prompts, options, problem):
    with pytest.raises(ValueError, match=problem):
        model.generate(**padded(prompts), max_new_tokens=2, **{"escalation": 0.5, **options})


def test_a_host_that_cannot_reason_in_words(model, tiny_semcot, prompts):
    with pytest.raises(ValueError, match="escalation needs prompts that end on the answer prompt"):
        model.generate(torch.tensor([prompts[0][:-1]]), max_new_tokens=2, escalation=0.5)
    with pytest.raises(ValueError, match="answer_prompt_ids is empty"):
        tiny_semcot().generate(torch.tensor([prompts[0]]), max_new_tokens=2, escalation=0.5)
    with pytest.raises(ValueError, match="without a token before the answer prompt"):
        model.generate(torch.tensor([ANSWER]), max_new_tokens=2, escalation=0.5)
    with pytest.raises(ValueError, match="escalation needs input_ids"):
        model.generate(max_new_tokens=2, escalation=0.5)


def test_hard_words_cannot_agree(words, prompts):
    hard = copy.copy(words)
    hard.config = copy.copy(words.config)
    hard.config.mixture_top_k = 1
    with pytest.raises(ValueError, match="'agreement', but with mixture_top_k=1"):
        hard.generate(torch.tensor([prompts[0]]), max_new_tokens=2, escalation=Escalation(0.5, ["agreement"]))
