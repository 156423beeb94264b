"""Keys and values of the training questions, computed once: a frozen decoder reads a question alike in every epoch."""

import math

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ..alignment.decoder_layers import backbone_of
from ..modeling.splicing_semcot import positions_from_mask


class QuestionCache:
    """The questions of a training set as the frozen host, and the generator while it is frozen, have read them.

    Args:
        model: `SemCoTForCausalLM`.
        prompts: the prompts' ids, which end on the answer prompt.
        batch_size: questions computed at a time.
        budget: bytes for both tables; one that does not fit is not made.
        with_generator: whether the generator is frozen now.
    """

    def __init__(self, model, prompts, batch_size, budget, with_generator):
        self.model, self.answer_prompt = model, list(model.config.answer_prompt_ids)
        host, generator = backbone_of(model.host), model.generator
        questions = [host_part(prompt, self.answer_prompt) for prompt in prompts]
        self.host = QuestionTable(host, model.get_input_embeddings(), questions, batch_size, budget)
        self.generator = None
        if with_generator and _reads_alike(model):
            queries = [generator_part(prompt, self.answer_prompt) for prompt in prompts]
            left = budget - self.host.nbytes
            self.generator = QuestionTable(generator, generator.get_input_embeddings(), queries, batch_size, left)

    def host_cache(self, prompts):
        """`DynamicCache` of a batch in the host, or `None` where it is not stored."""
        return self.host.batch([host_part(prompt, self.answer_prompt) for prompt in prompts])[0]

    def implicit_embeddings(self, prompts):
        """The implicit tokens of a batch by the frozen generator, or `None` where its reading is not stored."""
        if self.generator is None:
            return None
        cache, mask = self.generator.batch([generator_part(prompt, self.answer_prompt) for prompt in prompts])
        return None if cache is None else tokens_behind(self.model, cache, mask)

    def drop_generator(self):
        """Free what the generator, trained from now on, will never read like that again."""
        self.generator = None


def _reads_alike(model):
    """Whether the generator's pass over a query is the same each time, and ends before the first implicit token."""
    settings = vars(model.config.generator_config.get_text_config())
    drops = any("drop" in key and isinstance(value, float) and value > 0 for key, value in settings.items())
    adapted = getattr(model.generator, "_hf_peft_config_loaded", False)
    own = model.config.separate_generator_tokenizer or model.config.state_offset != 0
    return not (drops or adapted or own)


class QuestionTable:
    """Keys and values of a frozen decoder over questions, by the questions' ids.

    They are computed in batches of questions of similar length, which depend on nothing but the questions: a resumed
    run, in whatever order it goes on, has the same bits.

    Args:
        backbone: decoder without LM head, frozen and without dropout.
        embeddings: its input embeddings.
        questions: sequences of ids; those of equal ids are one.
        batch_size: questions computed at a time.
        budget: bytes that the table may take on the decoder's device.

    `fits` is False, and the table empty, where they would take more, or where the decoder's cache holds more than
    one pair of keys and values a layer (recurrent states, for one).
    """

    def __init__(self, backbone, embeddings, questions, batch_size, budget):
        self.states, self.nbytes, self.memory = {}, 0, None
        questions = sorted({tuple(ids) for ids in questions}, key=lambda ids: (len(ids), ids))
        self.fits = bool(questions) and bool(questions[0])
        total = sum(map(len, questions))
        for start in range(0, len(questions), batch_size):
            chunk = questions[start : start + batch_size]
            states = _states(backbone, embeddings, chunk) if self.fits else None
            # All or nothing, which the first batch tells: every question has as many bytes a token.
            if states is None or states[0].nbytes // states[0].shape[3] * total > budget:
                self.fits = False
                return
            self.nbytes += sum(state.nbytes for state in states)
            self.states.update(zip(chunk, states, strict=True))

    def batch(self, questions):
        """The questions' cache, padded on the left: `DynamicCache` and mask (batch, longest), or `None` for both.

        Args:
            questions: sequences of ids; `None` is returned where the table lacks one of them.
        """
        states = [self.states.get(tuple(ids)) for ids in questions]
        if any(state is None for state in states):
            return None, None
        layers, pair, heads, _, size = states[0].shape
        width = max(state.shape[3] for state in states)
        padded = self._buffer(states[0], layers, pair, len(states), heads, width, size)
        mask = torch.zeros(len(states), width, dtype=torch.long, device=padded.device)
        for row, state in enumerate(states):
            gap = width - state.shape[3]
            padded[:, :, row, :, :gap] = 0
            padded[:, :, row, :, gap:] = state
            mask[row, gap:] = 1
        cache = DynamicCache()
        cache.layers = [_filled(keys, values) for keys, values in padded]
        return cache, mask

    def _buffer(self, like, *shape):
        """One piece of memory for all batches, which a cache's `update` copies from: fresh pages would cost more."""
        size = math.prod(shape)
        if self.memory is None or self.memory.numel() < size:
            self.memory = like.new_empty(size)
        return self.memory[:size].view(shape)


@torch.no_grad()
def _states(backbone, embeddings, questions):
    """(layers, 2, heads, tokens, size) of each question, or `None` for a decoder whose cache is of another kind."""
    width = max(map(len, questions))
    device = embeddings.weight.device
    # Behind a question, where no token of it looks, any id does.
    ids = torch.tensor([[*question, *[question[0]] * (width - len(question))] for question in questions])
    # Sliding layers, too, are kept whole here: their mask leaves out what lies beyond the window.
    cache = DynamicCache()
    backbone(inputs_embeds=embeddings(ids.to(device)), past_key_values=cache, use_cache=True)
    pairs = [(layer.keys, layer.values) for layer in cache.layers if type(layer) is DynamicLayer]
    shapes = {tensor.shape for pair in pairs for tensor in pair if tensor is not None}
    kinds = {tensor.dtype for pair in pairs for tensor in pair if tensor is not None}
    if len(pairs) < len(cache.layers) or len(shapes) != 1 or len(kinds) != 1 or shapes.pop()[2] != width:
        return None
    stacked = torch.stack([torch.stack(pair) for pair in pairs])
    return [stacked[:, :, row, :, : len(question)].clone() for row, question in enumerate(questions)]


def _filled(keys, values):
    """A cache layer that holds these already, without the copy of `update`."""
    layer = DynamicLayer()
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer


def question_ids(input_ids, attention_mask, completion_mask):
    """The prompts' ids of a batch as lists, without padding and completions.

    >>> ids = torch.tensor([[0, 5, 6, 7, 8]])
    >>> question_ids(ids, torch.tensor([[0, 1, 1, 1, 1]]), torch.tensor([[0, 0, 0, 0, 1]]))
    [[5, 6, 7]]
    """
    wanted = (attention_mask.bool() & ~completion_mask.bool()).cpu()
    return [ids[mask].tolist() for ids, mask in zip(input_ids.cpu(), wanted, strict=True)]


def host_part(prompt, answer_prompt):
    """What stands before the implicit tokens of every row of a batch; without answer prompt, before the last token.

    >>> host_part([5, 6, 9], [9]), host_part([5, 6, 9], [])
    ([5, 6], [5, 6])
    """
    return prompt[: len(prompt) - max(len(answer_prompt), 1)]


def generator_part(prompt, answer_prompt):
    """What the generator reads of a prompt: all but the answer prompt, where it ends on that.

    >>> generator_part([5, 6, 9], [9]), generator_part([5, 6, 9], [8])
    ([5, 6], [5, 6, 9])
    """
    size = len(answer_prompt)
    return prompt[: len(prompt) - size] if prompt[len(prompt) - size :] == list(answer_prompt) else prompt


def tokens_behind(model, cache, attention_mask):
    """The implicit tokens Z of a model whose generator has read the queries already; the same as those of its forward.

    Args:
        model: `SemCoTForCausalLM` with `state_offset` 0.
        cache, attention_mask: of the queries in the generator (`QuestionTable.batch`).

    Returns:
        (batch, k, host hidden size), differentiable in <thought> and projection.
    """
    config, thought = model.config, model.thought_embedding
    count, length = config.num_implicit_tokens, attention_mask.shape[1]
    sequential = config.generator_mode == "sequential"
    mask = torch.cat([attention_mask, attention_mask.new_ones(attention_mask.shape[0], count)], dim=1)
    positions = positions_from_mask(mask)
    words = model.generator.get_input_embeddings().weight.dtype
    step = thought.to(words).expand(mask.shape[0], 1 if sequential else count, -1)
    states = []
    while length < mask.shape[1]:
        end = length + step.shape[1]
        state = model.generator(
            inputs_embeds=step,
            attention_mask=mask[:, :end],
            position_ids=positions[:, length:end],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        states.append(state)
        step, length = model.feedback(state), end
    return model.tokens_of(torch.cat(states, dim=1))
