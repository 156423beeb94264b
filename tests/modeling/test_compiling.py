"""`compile_generator`: the implicit tokens by one compiled graph, against the uncompiled way."""

import copy
import pickle
import shutil

import pytest
import torch
from slow_path import ANSWER, example_prompts, padded
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

# What a linear layer becomes.
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.linear.default)

FAMILIES = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": 6},
    "gemma3_text": {"sliding_window": 6},
    "gpt2": {},
    "gpt_neox": {},
    "phi": {},
    "olmo": {},
}


@pytest.mark.parametrize("family, mode", [*((family, "sequential") for family in FAMILIES), ("llama", "parallel")])
def test_every_family_is_one_graph_that_makes_the_same_tokens(family, mode, tiny_lm, tiny_semcot, capturing):
    generator = tiny_lm(family, hidden_size=16, seed=1, **FAMILIES[family])
    model = tiny_semcot(generator=generator, num_implicit_tokens=2, answer_prompt_ids=ANSWER, generator_mode=mode)
    inputs = padded(example_prompts()[:3])
    expected = model.generate(**inputs, max_new_tokens=3)
    model.compile_generator(backend=capturing, fullgraph=True)
    with torch.no_grad():
        tokens = model.implicit_embeddings(**inputs)
    assert capturing.graphs == 1
    torch.testing.assert_close(tokens, model.implicit_embeddings(**inputs).detach(), rtol=1e-5, atol=1e-6)
    assert torch.equal(model.generate(**inputs, max_new_tokens=3), expected)
    assert capturing.graphs == 1


def test_of_the_query_only_keys_and_values_are_computed(tiny_lm, tiny_semcot, capturing):
    """With one layer, that is two of its seven products; the k tokens need all of them."""
    products = []

    def count(graph, example_inputs):
        products.append(sum(node.target in PRODUCTS for node in graph.graph.nodes))
        return make_boxed_func(graph.forward)

    generator = tiny_lm("llama", hidden_size=16, num_hidden_layers=1, seed=1)
    model = tiny_semcot(generator=generator, generator_mode="sequential", num_implicit_tokens=3)
    model.compile_generator(backend=aot_autograd(fw_compiler=count), fullgraph=True)
    with torch.no_grad():
        model.implicit_embeddings(torch.tensor(example_prompts()[:1]))
    # One more maps the states to the host.
    assert products == [2 + 3 * 7 + 1]


@pytest.mark.slow
@pytest.mark.filterwarnings("default::DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's own compiler needs g++ on a CPU")
def test_torchs_own_compiler_makes_the_same_tokens(tiny_lm, tiny_semcot, capturing):
    """Compiled by torch, whose kept graphs the fixture throws away."""
    generator = tiny_lm(num_hidden_layers=1, seed=1)
    model = tiny_semcot(
        generator=generator, num_implicit_tokens=2, generator_mode="sequential", projection="vocabulary"
    )
    model.compile_generator()
    prompts = torch.tensor(example_prompts()[:1])
    with torch.no_grad():
        compiled = model.implicit_embeddings(prompts)
    torch.testing.assert_close(compiled, model.implicit_embeddings(prompts).detach(), rtol=1e-5, atol=1e-6)


def test_other_lengths_and_batches_need_no_new_graph(tiny_semcot, capturing):
    model = tiny_semcot(generator_mode="sequential")
    model.compile_generator(backend=capturing, fullgraph=True)
    made = []
    with torch.no_grad():
        for rows, length in ((1, 7), (1, 9), (1, 23), (2, 7), (3, 11), (5, 30)):
            ids = torch.arange(rows * length).reshape(rows, length) % 40 + 3
            made.append((ids, model.implicit_embeddings(ids)))
    # One query is a graph of its own.
    assert capturing.graphs == 2
    for ids, tokens in made:
        torch.testing.assert_close(tokens, model.implicit_embeddings(ids).detach(), rtol=1e-5, atol=1e-6)


def test_more_kinds_than_torch_keeps_run_uncompiled(tiny_semcot, capturing):
    model = tiny_semcot(generator_mode="sequential")
    model.compile_generator(backend=capturing)
    prompts = torch.tensor(example_prompts()[:1])
    with torch._dynamo.config.patch(recompile_limit=1), torch.no_grad():
        made = [model.implicit_embeddings(prompts, num_implicit_tokens=count) for count in (1, 2, 3)]
    assert capturing.graphs == 1
    for tokens in made:
        expected = model.implicit_embeddings(prompts, num_implicit_tokens=tokens.shape[1]).detach()
        torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-6)


def test_training_is_not_compiled_and_reads_new_weights(tiny_semcot, capturing):
    model = tiny_semcot(generator_mode="sequential")
    model.compile_generator(backend=capturing, fullgraph=True)
    prompts = torch.tensor(example_prompts()[:1])
    model.implicit_embeddings(prompts).sum().backward()
    assert capturing.graphs == 0 and model.thought_embedding.grad.abs().sum() > 0
    with torch.no_grad():
        before = model.implicit_embeddings(prompts)
        model.thought_embedding.add_(1)
        after = model.implicit_embeddings(prompts)
    assert capturing.graphs == 1
    torch.testing.assert_close(after, model.implicit_embeddings(prompts).detach(), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(before, after, atol=1e-4)


def test_checkpoints_and_copies_are_as_before(tiny_semcot, tmp_path, capturing):
    model = tiny_semcot(generator_mode="sequential")
    prompts = torch.tensor(example_prompts()[:1])
    expected = model.generate(prompts, max_new_tokens=3)
    model.compile_generator(backend=capturing, fullgraph=True)
    names = set(model.state_dict())
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    model.save_pretrained(tmp_path, include_host=True)
    copies.append(type(model).from_pretrained(tmp_path))
    for other in copies:
        assert set(other.state_dict()) == names
        assert torch.equal(other.generate(prompts, max_new_tokens=3), expected)
    assert capturing.graphs == 0
    assert torch.equal(model.generate(prompts, max_new_tokens=3), expected)
    assert capturing.graphs == 1
