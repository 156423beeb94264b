"""The question cache of stage 2: keys and values of the training questions in frozen models, kept over all epochs."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ..alignment.decoder_layers import backbone_of
from ..modeling import SemCoTForCausalLM
from ..modeling.configuration_semcot import text_config


class QuestionCache:
    """Keys and values of the training questions in the host and, while it is frozen, in the generator.

    Args:
        model: the model.
        prompts: prompts as token ids, with the answer prompt.
        batch_size: questions per forward pass.
        budget: bytes for host and generator together; a model whose questions do not fit is not cached.
        with_generator: whether the generator is frozen now.
    """

    def __init__(
        self,
        model: SemCoTForCausalLM,
        prompts: Iterable[list[int]],
        batch_size: int,
        budget: float,
        with_generator: bool,
    ) -> None:
        self.model, self.answer_prompt = model, list(model.config.answer_prompt_ids or [])
        prompts = list(prompts)
        questions = [host_part(prompt, self.answer_prompt) for prompt in prompts]
        self.host = DecoderQuestionCache(backbone_of(model.host), questions, batch_size, budget)
        self.generator: DecoderQuestionCache | None = None
        if with_generator and _is_cacheable(model):
            questions = [generator_part(prompt, self.answer_prompt) for prompt in prompts]
            self.generator = DecoderQuestionCache(model.generator, questions, batch_size, budget - self.host.nbytes)

    def host_cache(self, prompts: list[list[int]]) -> DynamicCache | None:
        """Return the host's cache of a batch of prompts, or `None` if one of them is not cached."""
        return self.host.batch([host_part(prompt, self.answer_prompt) for prompt in prompts])[0]

    def implicit_embeddings(self, prompts: list[list[int]]) -> Tensor | None:
        """Return the implicit tokens of a batch of prompts, or `None` if the generator's cache lacks one of them.

        They are differentiable in <thought> and the projection, and equal to those of the model's forward pass.
        """
        if self.generator is None:
            return None
        cache, mask = self.generator.batch([generator_part(prompt, self.answer_prompt) for prompt in prompts])
        if cache is None or mask is None:
            return None
        count = self.model.config.num_implicit_tokens
        # No column of the queries is left to be read.
        return self.model.tokens_of(self.model.generator_states(mask[:, :0], mask, count, cache))

    def drop_generator(self) -> None:
        """Free the generator's keys and values, which are out of date once it is trained."""
        self.generator = None


def _is_cacheable(model: SemCoTForCausalLM) -> bool:
    """Return whether the generator's pass over a query is deterministic and ends before the first implicit token."""
    config = text_config(model.config.generator_config)
    dropout = any("drop" in key and isinstance(value, float) and value > 0 for key, value in vars(config).items())
    adapted = getattr(model.generator, "_hf_peft_config_loaded", False)
    semcot = model.config
    ends_elsewhere = semcot.state_offset != 0 or not semcot.starts_with_thought_token
    # Lengths of adaptive thoughts, and prompts around the questions, are known to the model's forward pass only.
    in_words = semcot.thought_length == "adaptive" or semcot.thought_prompt_ids is not None
    return not (dropout or adapted or semcot.separate_generator_tokenizer or ends_elsewhere or in_words)


class DecoderQuestionCache:
    """Keys and values of questions in one frozen decoder, by the questions' token ids.

    They are computed in batches of questions of similar length, which depend on the set of questions only, so that a
    resumed run gets the same bits in whatever order it continues.

    Args:
        backbone: decoder without LM head, frozen and without dropout.
        questions: sequences of token ids; duplicates are cached once.
        batch_size: questions per forward pass.
        budget: bytes on the decoder's device.

    `fits` is False and the cache is empty if the questions need more bytes, or if a layer of the decoder's cache holds
    something other than one pair of keys and values (such as recurrent states).
    """

    def __init__(
        self, backbone: PreTrainedModel, questions: Iterable[Sequence[int]], batch_size: int, budget: float
    ) -> None:
        self.states: dict[tuple[int, ...], Tensor] = {}
        self.nbytes, self._memory = 0, torch.empty(0)
        ordered = sorted({tuple(ids) for ids in questions}, key=lambda ids: (len(ids), ids))
        self.fits = bool(ordered) and bool(ordered[0])
        total = sum(map(len, ordered))
        for start in range(0, len(ordered), batch_size):
            chunk = ordered[start : start + batch_size]
            states = _compute_states(backbone, chunk) if self.fits else None
            # All or nothing, known from the first batch: every token needs the same number of bytes.
            if states is None or states[0].nbytes // states[0].shape[3] * total > budget:
                self.fits = False
                return
            self.nbytes += sum(state.nbytes for state in states)
            self.states.update(zip(chunk, states, strict=True))

    def batch(self, questions: list[list[int]]) -> tuple[DynamicCache, Tensor] | tuple[None, None]:
        """Return the cache of a batch, padded on the left, and its mask (batch, longest).

        Both are `None` if one of the questions is not cached. The next call overwrites the returned cache.
        """
        states = [self.states[key] for key in map(tuple, questions) if key in self.states]
        if len(states) < len(questions):
            return None, None
        layers, pair, heads, _, size = states[0].shape
        width = max(state.shape[3] for state in states)
        shape = (layers, pair, len(states), heads, width, size)
        # One buffer for all batches: allocating new pages takes longer.
        if self._memory.numel() < math.prod(shape):
            self._memory = states[0].new_empty(math.prod(shape))
        padded = self._memory[: math.prod(shape)].view(shape)
        mask = torch.zeros(len(states), width, dtype=torch.long, device=padded.device)
        for row, state in enumerate(states):
            gap = width - state.shape[3]
            padded[:, :, row, :, :gap] = 0
            padded[:, :, row, :, gap:] = state
            mask[row, gap:] = 1
        cache = DynamicCache()
        for keys, values in padded:
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            # Set directly, since `update` would copy them.
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
        return cache, mask


@torch.no_grad()
def _compute_states(backbone: PreTrainedModel, questions: list[tuple[int, ...]]) -> list[Tensor] | None:
    """Return (layers, 2, heads, tokens, size) of each question, or `None` for a decoder with another kind of cache."""
    width = max(map(len, questions))
    # Padding on the right is not attended to, so any id will do.
    ids = torch.tensor([[*question, *[question[0]] * (width - len(question))] for question in questions])
    # Sliding-window layers are kept whole, too: their mask excludes what lies outside the window.
    cache = DynamicCache()
    embeds = backbone.get_input_embeddings()(ids.to(backbone.device))
    backbone(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
    pairs = [(layer.keys, layer.values) for layer in cache.layers if type(layer) is DynamicLayer]
    tensors = [tensor for pair in pairs for tensor in pair if tensor is not None]
    shapes, dtypes = {tensor.shape for tensor in tensors}, {tensor.dtype for tensor in tensors}
    if len(pairs) < len(cache.layers) or len(shapes) != 1 or len(dtypes) != 1 or tensors[0].shape[2] != width:
        return None
    stacked = torch.stack(tensors).unflatten(0, (-1, 2))
    return [stacked[:, :, row, :, : len(question)].clone() for row, question in enumerate(questions)]


def question_ids(input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor) -> list[list[int]]:
    """Return the prompts of a batch as lists of token ids, without padding and completions.

    >>> ids = torch.tensor([[0, 5, 6, 7, 8]])
    >>> question_ids(ids, torch.tensor([[0, 1, 1, 1, 1]]), torch.tensor([[0, 0, 0, 0, 1]]))
    [[5, 6, 7]]
    """
    prompt = (attention_mask.bool() & ~completion_mask.bool()).cpu()
    return [ids[mask].tolist() for ids, mask in zip(input_ids.cpu(), prompt, strict=True)]


def host_part(prompt: list[int], answer_prompt: list[int]) -> list[int]:
    """Return the tokens before the implicit tokens of every row; without answer prompt, those before the last token.

    >>> host_part([5, 6, 9], [9]), host_part([5, 6, 9], [])
    ([5, 6], [5, 6])
    """
    return prompt[: len(prompt) - max(len(answer_prompt), 1)]


def generator_part(prompt: list[int], answer_prompt: list[int]) -> list[int]:
    """Return the tokens that the generator reads: all but the answer prompt, if the prompt ends with it.

    >>> generator_part([5, 6, 9], [9]), generator_part([5, 6, 9], [8])
    ([5, 6], [5, 6, 9])
    """
    size = len(answer_prompt)
    return prompt[: len(prompt) - size] if prompt[len(prompt) - size :] == list(answer_prompt) else prompt
