"""Host and generator on different devices: no operation mixes them. "meta" stands for the host's device."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from semcot_hf.modeling.modeling_semcot import _text_logits
from semcot_hf.modeling.splicing_semcot import Slots, packed, splice

IDS = torch.tensor([[10, 11, 12, 13], [0, 14, 15, 16], [17, 18, 19, 20]])
MASK = (IDS > 0).long()
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class OneDevice(TorchDispatchMode):
    """Refuse operations on tensors of different devices, as two GPUs do; "meta" alone takes some from the CPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = tree_leaves((args, kwargs or {}))
        devices = {str(value.device) for value in given if isinstance(value, torch.Tensor) and value.dim()}
        assert len(devices) < 2 or function in COPIES, f"{function} of tensors on {devices}"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("length", ["fixed", "adaptive"])
@torch.no_grad()
def test_thoughts_are_those_of_one_device(tiny_semcot, length, number):
    model = tiny_semcot(
        generator_mode="sequential",
        projection="vocabulary",
        thought_length=length,
        end_of_thought_token_ids=list(range(0, 320, 5)),
        num_implicit_tokens=4,
        num_candidates=number,
        candidate_host_weight=0,
    )
    expected = model.implicit_thoughts(IDS, MASK)
    model.host.to("meta")
    with OneDevice():
        found = model.implicit_thoughts(IDS, MASK)
    assert found.embeddings.is_meta and found.embeddings.shape == expected.embeddings.shape
    assert (found.mask is None) == (length == "fixed")
    for name, part in expected._asdict().items():
        assert name == "embeddings" or part is None or torch.equal(getattr(found, name), part)


@pytest.mark.parametrize("slots", [None, Slots(torch.tensor([1, 0, 0]))])
def test_tokens_go_into_texts_on_the_host_s_device(slots):
    """Prompts, and so the columns, are on the generator's."""
    tokens, columns = torch.zeros(3, 2, 8, device="meta"), torch.tensor([4, 2, 3])
    with OneDevice():
        made, _ = packed(tokens, torch.tensor([[1, 0], [1, 1], [1, 1]]))
        spliced = splice(torch.zeros(3, 4, 8, device="meta"), made, columns, slots)
        logits = _text_logits(torch.zeros(3, 6, 9, device="meta"), columns, 2, slots)
    assert spliced.is_meta and spliced.shape == (3, 6, 8) and logits.shape == (3, 4, 9)
