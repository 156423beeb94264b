"""Forward with implicit tokens: logits, labels and gradients, against the host run by hand row by row."""

import pytest
import torch
from torch.nn import functional as F

from semcot_hf import SemCoTForCausalLM

ANSWER = [7, 8]
COUNT = 3
# prompt, completion
EXAMPLES = [
    ([20, 21, 22, 23, *ANSWER], [30, 31]),
    ([24, *ANSWER], [32, 33, 34, 35]),
    ([25, 26, 27, 28, 29], [36]),
]


@pytest.fixture(scope="module")
def model(tiny_semcot):
    return tiny_semcot(answer_prompt_ids=ANSWER)


def batch(side="right"):
    width = max(len(prompt) + len(completion) for prompt, completion in EXAMPLES)
    names = "input_ids", "attention_mask", "labels", "completion_mask"
    rows = {name: [] for name in names}
    for prompt, completion in EXAMPLES:
        text = prompt + completion
        pad = width - len(text)
        values = (
            (text, 0),
            ([1] * len(text), 0),
            ([-100] * len(prompt) + completion, -100),
            ([0] * len(prompt) + [1] * len(completion), 0),
        )
        for name, (row, filler) in zip(names, values, strict=True):
            rows[name].append(row + [filler] * pad if side == "right" else [filler] * pad + row)
    return {name: torch.tensor(value) for name, value in rows.items()}


def by_hand(model, prompt, completion):
    """Logits (length, vocabulary) that predict the token behind each text token."""
    cut = len(prompt) - len(ANSWER) if prompt[-len(ANSWER) :] == ANSWER else len(prompt)
    tokens = model.implicit_embeddings(torch.tensor([prompt]))
    embeds = model.host.get_input_embeddings()(torch.tensor([prompt + completion]))
    embeds = torch.cat([embeds[:, :cut], tokens, embeds[:, cut:]], dim=1)
    logits = model.host(inputs_embeds=embeds).logits[0]
    return torch.cat([logits[: cut - 1], logits[cut - 1 + COUNT :]])


def text_rows(values, attention_mask):
    return [row[mask.bool()] for row, mask in zip(values, attention_mask, strict=True)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("known_by", ["labels", "completion_mask"])
def test_logits_and_loss(model, side, known_by):
    inputs = batch(side)
    labels = inputs.pop("labels")
    if known_by == "labels":
        del inputs["completion_mask"]
    out = model(**inputs, labels=labels)
    losses = []
    for row, (prompt, completion) in zip(text_rows(out.logits, inputs["attention_mask"]), EXAMPLES, strict=True):
        expected = by_hand(model, prompt, completion)
        torch.testing.assert_close(row, expected, atol=1e-9, rtol=0)
        losses.append(
            F.cross_entropy(expected[len(prompt) - 1 : -1], torch.tensor(completion), reduction="none").float()
        )
    torch.testing.assert_close(out.loss, torch.cat(losses).mean(), check_dtype=False, atol=1e-5, rtol=0)
    assert out.implicit_embeddings.shape == (3, COUNT, 32)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("keep", [1, 4, 7, 9, 50])
def test_logits_to_keep_are_the_last_ones(model, side, keep):
    inputs = batch(side)
    labels = inputs.pop("labels")
    full = model(**inputs).logits
    out = model(**inputs, logits_to_keep=keep)
    torch.testing.assert_close(out.logits, full[:, -keep:], atol=1e-12, rtol=0)
    if keep >= 7:
        torch.testing.assert_close(
            model(**inputs, labels=labels, logits_to_keep=keep).loss, model(**inputs, labels=labels).loss
        )


def test_logits_at_chosen_positions(model):
    inputs = batch()
    labels = inputs.pop("labels")
    wanted = torch.tensor([0, 2, 5])
    torch.testing.assert_close(model(**inputs, logits_to_keep=wanted).logits, model(**inputs).logits[:, wanted])
    with pytest.raises(ValueError, match="logits_to_keep is a tensor of positions"):
        model(**inputs, labels=labels, logits_to_keep=wanted)


def test_training_places_tokens_where_generation_does(model):
    """The first generated token's logits are the training logits at the prompt's end."""
    for prompt, completion in EXAMPLES:
        ids = torch.tensor([prompt + completion])
        completion_mask = torch.tensor([[0] * len(prompt) + [1] * len(completion)])
        trained = model(ids, completion_mask=completion_mask).logits[0, len(prompt) - 1]
        generated = model.generate(
            torch.tensor([prompt]), max_new_tokens=1, return_dict_in_generate=True, output_logits=True
        )
        torch.testing.assert_close(generated.logits[0][0], trained.float(), atol=5e-6, rtol=0)
        asked = model(torch.tensor([prompt]), num_implicit_tokens=COUNT).logits[0, -1]
        torch.testing.assert_close(asked, trained, atol=1e-9, rtol=0)


def test_the_generator_never_sees_the_completion(model):
    inputs = batch()
    tokens = model(**inputs).implicit_embeddings
    for row, (prompt, _) in enumerate(EXAMPLES):
        alone = model.implicit_embeddings(torch.tensor([prompt]))[0]
        torch.testing.assert_close(tokens[row], alone, atol=1e-9, rtol=0)


@pytest.mark.parametrize("what", ["plain text", "no tokens", "labels of plain text"])
def test_the_hosts_own_forward(model, what):
    inputs = batch()
    labels, completion_mask = inputs.pop("labels"), inputs.pop("completion_mask")
    options = {
        "plain text": {},
        "no tokens": {"labels": labels, "num_implicit_tokens": 0, "completion_mask": completion_mask},
        "labels of plain text": {"labels": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)},
    }[what]
    ours = model(**inputs, **options)
    hosts = model.host(**inputs, labels=options.get("labels"))
    assert torch.equal(ours.logits, hosts.logits)
    assert ours.loss is None and hosts.loss is None or torch.equal(ours.loss, hosts.loss)


def test_ready_made_embeddings_without_labels_stand_at_the_prompts_end(model):
    prompt, other = torch.tensor([EXAMPLES[0][0]]), torch.tensor([EXAMPLES[2][0]])
    tokens = model.implicit_embeddings(other)
    out = model(prompt, implicit_embeddings=tokens)
    generated = model.generate(
        prompt, implicit_embeddings=tokens, max_new_tokens=1, return_dict_in_generate=True, output_logits=True
    )
    torch.testing.assert_close(out.logits[0, -1].float(), generated.logits[0][0], atol=5e-6, rtol=0)


def test_hidden_states_and_attentions_have_the_implicit_positions(tiny_semcot):
    model = tiny_semcot(answer_prompt_ids=ANSWER)
    model.set_attn_implementation("eager")
    inputs = batch()
    width = inputs["input_ids"].shape[1] + COUNT
    out = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in out.hidden_states] == [(3, width, 32)] * 3
    assert [attention.shape for attention in out.attentions] == [(3, 4, width, width)] * 2


def test_tuples(model):
    inputs = batch()
    out, values = model(**inputs), model(**inputs, return_dict=False)
    assert torch.equal(values[0], out.loss) and torch.equal(values[1], out.logits)
    inputs["labels"] = None
    assert torch.equal(
        model(**inputs, num_implicit_tokens=0, return_dict=False)[0],
        model.host(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits,
    )


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_gradients_reach_the_generator_and_never_the_host(tiny_semcot, mode):
    model = tiny_semcot(answer_prompt_ids=ANSWER, generator_mode=mode).train()
    model(**batch()).loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("host."):
            assert not parameter.requires_grad and parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_host_with_dropout_never_drops(tiny_lm, tiny_semcot):
    dropout = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    host, generator = tiny_lm("gpt2", **dropout), tiny_lm("gpt2", hidden_size=16, **dropout)
    model = tiny_semcot(host, generator, answer_prompt_ids=ANSWER)
    inputs = batch()
    tokens = model(**inputs).implicit_embeddings.detach()
    expected = model(**inputs, implicit_embeddings=tokens).logits
    torch.nn.Sequential(model).train()
    assert not any(module.training for module in model.host.modules())
    assert torch.equal(model(**inputs, implicit_embeddings=tokens).logits, expected)
    assert not torch.equal(model(**inputs).implicit_embeddings, tokens), "the generator's dropout is on"
    fresh = SemCoTForCausalLM(model.config)
    assert fresh.generator.training and not any(module.training for module in fresh.host.modules())


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_gradient_checkpointing_changes_no_gradient(tiny_semcot, mode):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_semcot(answer_prompt_ids=ANSWER, generator_mode=mode).train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert all(layer.gradient_checkpointing for layer in model.host.model.layers)
        model(**batch()).loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, atol=1e-12, rtol=1e-9)


def test_shifted_labels_replace_labels_in_the_loss(model):
    inputs = batch()
    shifted = F.pad(inputs["labels"], (0, 1), value=-100)[:, 1:]
    expected = model(**inputs).loss
    for keep in (0, 7):
        others = inputs["labels"].masked_fill(inputs["labels"] >= 0, 3)
        out = model(**{**inputs, "labels": others}, shift_labels=shifted, logits_to_keep=keep)
        torch.testing.assert_close(out.loss, expected)


def test_loss_over_several_batches_is_a_mean_over_their_tokens(model):
    inputs = batch()
    count = int((inputs["labels"] != -100).sum())
    whole = model(**inputs).loss
    parts = [
        model(**{name: value[row : row + 1] for name, value in inputs.items()}, num_items_in_batch=count).loss
        for row in range(3)
    ]
    torch.testing.assert_close(sum(parts), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("told_by", ["labels", "completion_mask"])
def test_what_is_masked_behind_the_answer_is_no_prompt(model, told_by):
    """The end of a turn, or padding without a mask: the generator must not read the answer on its account."""
    ids = torch.tensor([[20, 21, *ANSWER, 30, 31, 2, 9], [22, 23, *ANSWER, 32, 33, 2, 9]])
    answer = torch.tensor([[0, 0, 0, 0, 1, 1, 0, 0]]).expand(2, -1)
    known = {"labels": ids.masked_fill(answer == 0, -100)} if told_by == "labels" else {"completion_mask": answer}
    out = model(ids, **known)
    assert out.implicit_columns.tolist() == [2, 2]
    torch.testing.assert_close(out.implicit_embeddings, model.implicit_embeddings(ids[:, :4]))


def test_of_several_turns_the_last_is_the_completion(model):
    ids = torch.tensor([[20, 21, 30, 31, 22, 23, *ANSWER, 32, 2]])
    turns = torch.tensor([[0, 0, 1, 1, 0, 0, 0, 0, 1, 0]])
    assert model(ids, labels=ids.masked_fill(turns == 0, -100)).implicit_columns.tolist() == [6]
