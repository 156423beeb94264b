"""Queries in the generator's own tokens, where host and generator do not share a tokenizer."""

import torch
from transformers import DynamicCache
from transformers.utils import logging

from .splicing_semcot import context_of, insertion_columns, left_aligned_queries, positions_from_mask


def generator_text(ids, host_tokenizer, generator_tokenizer):
    """Text of one query as the generator's tokenizer is to read it.

    Special tokens of the host stay only where the generator's tokenizer has the same ones; the host's bos becomes the
    generator's bos. Others would reach the generator as mere spelling.

    Args:
        ids: list of the host's token ids, without padding.
        host_tokenizer, generator_tokenizer: the two tokenizers.
    """
    known = set(generator_tokenizer.all_special_tokens) | set(generator_tokenizer.get_added_vocab())
    special = {i: str(token) for i, token in host_tokenizer.added_tokens_decoder.items() if token.special}
    special.update(zip(host_tokenizer.all_special_ids, host_tokenizer.all_special_tokens, strict=True))
    parts, run = [], []
    for i in [*ids, None]:
        if i is not None and i not in special:
            run.append(i)
            continue
        if run:
            parts.append(host_tokenizer.decode(run, skip_special_tokens=False))
            run = []
        if i is not None and i == host_tokenizer.bos_token_id:
            parts.append(generator_tokenizer.bos_token or "")
        elif i is not None and special[i] in known:
            parts.append(special[i])
    return "".join(parts)


def retokenize(input_ids, attention_mask, host_tokenizer, generator_tokenizer):
    """Queries in the host's ids -> the same queries in the generator's ids, padded on the left.

    Args:
        input_ids: (batch, length), in the host's vocabulary.
        attention_mask: (batch, length), or `None` where nothing is padding.
        host_tokenizer, generator_tokenizer: the two tokenizers.

    Returns:
        LongTensor (batch, other length) of ids and LongTensor (batch, other length) of their mask or
        `None` where nothing is padding, on the CPU.

    Raises:
        ValueError: when a tokenizer is missing or nothing of a query is left.
    """
    if host_tokenizer is None or generator_tokenizer is None:
        raise ValueError(
            "config.separate_generator_tokenizer=True, but model.host_tokenizer or model.generator_tokenizer is None: "
            "set both, or load the model by from_pretrained from a checkpoint that carries them."
        )
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    rows = []
    for ids, mask in zip(input_ids.tolist(), attention_mask.tolist(), strict=True):
        text = generator_text(
            [i for i, real in zip(ids, mask, strict=True) if real], host_tokenizer, generator_tokenizer
        )
        row = generator_tokenizer(text, add_special_tokens=False)["input_ids"]
        if not row:
            raise ValueError("input_ids has a row of special tokens only: every prompt needs another token.")
        rows.append(row)
    width = max(map(len, rows))
    if width == min(map(len, rows)):
        return torch.tensor(rows), None
    pad = generator_tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def parallel_states(generator, thought_embedding, input_ids, attention_mask, count, offset=0):
    """Generator states of `count` implicit tokens from one pass over [query, count x <thought>] (SemCoT, section 3.2).

    Args:
        generator: backbone whose forward takes `inputs_embeds` and returns `last_hidden_state`.
        thought_embedding: (generator hidden size,), the input embedding of <thought>.
        input_ids: (batch, length), queries padded on the left.
        attention_mask: (batch, length), or `None` where nothing is padding, which spares the backbone its masks.
        count: number of tokens, at least 1.
        offset: 0 for the states at the <thought> positions, -1 for those one position earlier.

    Returns:
        (batch, count, generator hidden size).
    """
    query = generator.get_input_embeddings()(input_ids)
    thoughts = thought_embedding.to(query.dtype).expand(query.shape[0], count, -1)
    masks = {}
    if attention_mask is not None:
        mask = _longer(attention_mask, count)
        masks = {"attention_mask": mask, "position_ids": positions_from_mask(mask)}
    embeds = torch.cat([query, thoughts], dim=1)
    states = generator(inputs_embeds=embeds, use_cache=False, **masks).last_hidden_state
    start = query.shape[1] + offset
    return states[:, start : start + count]


def sequential_states(generator, thought_embedding, input_ids, attention_mask, count, feedback):
    """Generator states of `count` implicit tokens, each fed back as the next input embedding (Coconut's recurrence).

    The query and one <thought> give the first state; every further state is one cached step, whose input is
    `feedback` of the last state (batch, 1, size). The other arguments and the result are those of `parallel_states`.

    Raises:
        ValueError: with gradients, for a backbone whose layers keep a state, which is overwritten from step to step.
    """
    if generator._is_stateful and torch.is_grad_enabled():
        raise ValueError(
            f"generator_mode='sequential' cannot be trained with a {generator.config.model_type} generator, whose "
            "layers overwrite their state at each step: choose generator_mode='parallel', or another generator."
        )
    query = generator.get_input_embeddings()(input_ids)
    thought = thought_embedding.to(query.dtype).expand(query.shape[0], 1, -1)
    if attention_mask is None:
        mask, positions = None, torch.arange(query.shape[1] + count, device=query.device)[None]
    else:
        mask = _longer(attention_mask, count)
        positions = positions_from_mask(mask)
    cache = DynamicCache(config=generator.config)
    # Compiled, a pass over the query alone computes its keys and values only: the compiler leaves out what its last
    # layer makes of them.
    inputs = [query, thought] if torch.compiler.is_compiling() else [torch.cat([query, thought], dim=1)]
    states, read = [], 0
    while len(states) < count:
        embeds = inputs.pop(0) if inputs else feedback(states[-1])
        start, read = read, read + embeds.shape[1]
        state = generator(
            inputs_embeds=embeds,
            attention_mask=None if mask is None else mask[:, :read],
            position_ids=positions[:, start:read],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1:]
        if not inputs:
            states.append(state)
    return torch.cat(states, dim=1)


def _longer(attention_mask, count):
    return torch.cat([attention_mask, attention_mask.new_ones(attention_mask.shape[0], count)], dim=1)


logger = logging.get_logger(__name__)


class SemCoTTokensMixin:
    """The part of `SemCoTForCausalLM` that makes implicit tokens, and reads them back where they are words."""

    # Set by `compile_generator`.
    _compiled_tokens = None

    def compile_generator(self, **options):
        """Make implicit tokens by compiled code from now on: the pass over the query and all k steps in one graph.

        Where a generator is small, Python takes most of its time, step by step; compiled, it has one call of it. The
        first tokens of a kind (one query or many, padded or not, each k) wait for the compiler, up to a minute where
        the generator is small; on a CPU torch needs a C++ compiler of the system for it. Tokens differ by rounding.
        On a GPU `mode="reduce-overhead", dynamic=False` also captures the graph and replays it, for each shape of
        queries: launching its kernels one by one is what takes the time there. Each shape waits for the compiler.
        Training, and whatever else asks for gradients, stays as it was; so do saved checkpoints and copies of the
        model, as after torch's own `Module.compile`.

        Args:
            options: of `torch.compile`; `dynamic=True`, and on a CPU `options={"cpp_wrapper": True}`, which takes
                Python out of the graph too, unless said otherwise. With `fullgraph=True` a family that cannot be
                compiled as one graph makes the first call raise torch's error, which names the line, as does one kind
                of tokens more than torch's `recompile_limit` (8); without, what is left runs uncompiled.
        """
        chosen = {"dynamic": True, **options}
        if self.projection_device().type == "cpu" and not {"backend", "mode", "options"} & options.keys():
            chosen["options"] = {"cpp_wrapper": True}
        self._compiled_tokens = torch.compile(_tokens, **chosen)

    def __getstate__(self):
        return {**super().__getstate__(), "_compiled_tokens": None}

    def implicit_embeddings(self, input_ids, attention_mask=None, num_implicit_tokens=None, completion_mask=None):
        """Make the implicit tokens Z of prompts (SemCoT, equations of section 3.2).

        Args:
            input_ids: LongTensor (batch, length), prompts, with or without the answer prompt at their end.
            attention_mask: (batch, length), padding on either side; all ones when `None`.
            num_implicit_tokens: k; `config.num_implicit_tokens` when `None`.
            completion_mask: (batch, length), 1 on tokens that are no prompt; the generator never sees them.

        Returns:
            FloatTensor (batch, k, host hidden size), in the host's embedding space and dtype.

        Raises:
            ValueError: for k out of range or a prompt without a token.
        """
        count = self._check_count(num_implicit_tokens)
        return self._make_tokens(*self._queries(input_ids, attention_mask, completion_mask), count)

    @torch.no_grad()
    def implicit_words(self, input_ids, attention_mask=None, num_implicit_tokens=None):
        """Read implicit tokens that are mixtures of words (`projection="vocabulary"`) back as words.

        Args:
            input_ids, attention_mask, num_implicit_tokens: as in `implicit_embeddings`.

        Returns:
            LongTensor (batch, k), the id of the likeliest word of each token, and FloatTensor (batch, k), its share of
            the mixture.

        Raises:
            ValueError: for a model whose tokens are no mixtures of words.
        """
        if self.config.projection != "vocabulary":
            raise ValueError(
                f"projection={self.config.projection!r}: these implicit tokens are no mixtures of words; read them "
                "with a step decoder (step_weight, keep_step_decoder), or train with projection='vocabulary'."
            )
        count = self._check_count(num_implicit_tokens)
        ids, mask = self._queries(input_ids, attention_mask)
        if count == 0:
            return ids.new_empty(len(ids), 0), torch.empty(len(ids), 0, device=ids.device)
        states = self._states(*self._read_by_generator(ids, mask), count)
        shares = self._shares(states, self.get_input_embeddings().weight)
        share, word = shares.max(dim=-1)
        return word, share

    def _queries(self, input_ids, attention_mask, completion_mask=None):
        """What the generator reads of prompts, padded on the left, and its mask, `None` without padding."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        columns, _ = insertion_columns(input_ids, mask, self.config.answer_prompt_ids, completion_mask)
        return left_aligned_queries(input_ids, mask, columns, self._pad_id())

    def _make_tokens(self, ids, mask, count):
        """Implicit tokens of queries (batch, length), padded on the left; their mask is `None` without padding."""
        if count == 0:
            size, dtype = self.config.get_text_config().hidden_size, self.get_input_embeddings().weight.dtype
            return torch.empty(ids.shape[0], 0, size, device=self.projection_device(), dtype=dtype)
        ids, mask = self._read_by_generator(ids, mask)
        context = context_of(self.config.generator_config.get_text_config())
        if context is not None and ids.shape[1] + count > context:
            raise ValueError(
                f"A query of {ids.shape[1]} tokens and {count} implicit tokens are more than the generator's context "
                f"of {context}: shorten the query."
            )
        if self._compiled_tokens is None or torch.is_grad_enabled():
            return _tokens(self, ids, mask, count)
        # Columns cut out of wider prompts have strides that would ask for a graph of their own.
        ids, mask = (x if x is None else x.clone(memory_format=torch.contiguous_format) for x in (ids, mask))
        tokens = self._compiled_tokens(self, ids, mask, count)
        # With captured graphs (mode="reduce-overhead") the next call overwrites what this one returns.
        return tokens.clone() if tokens.is_cuda else tokens

    def _read_by_generator(self, ids, mask):
        """Queries and their mask in the generator's own ids, checked and on its device."""
        device, host_words = self.projection_device(), self.get_input_embeddings().weight
        if self.config.separate_generator_tokenizer:
            ids, mask = retokenize(ids, mask, self.host_tokenizer, self.generator_tokenizer)
        ids, mask = ids.to(device), mask if mask is None else mask.to(device)
        known = self.config.generator_config.get_text_config().vocab_size
        # Asked only where the host has more words: reading the largest id makes the CPU wait for the device.
        if known < host_words.shape[0] and int(ids.max()) >= known:
            raise ValueError(
                f"input_ids holds the id {int(ids.max())}, but the generator knows {known} ids: host and generator "
                "must share a tokenizer."
            )
        return ids, mask

    def _states(self, ids, mask, count):
        """Generator states (batch, count, size) that the implicit tokens of queries are made of."""
        if self.config.generator_mode == "sequential":
            make, option = sequential_states, self.feedback
        else:
            make, option = parallel_states, self.config.state_offset
        return make(self.generator, self.thought_embedding, ids, mask, count, option)

    def feedback(self, states):
        """What a sequential generator reads after `states` (batch, 1, size): those, scaled, or a mixture of words."""
        if self.config.projection == "vocabulary":
            return self._mixture(states, self.generator.get_input_embeddings()).to(states.dtype)
        return states * self.config.feedback_scale

    def tokens_of(self, states):
        """Implicit tokens (batch, k, host hidden size) of generator states (batch, k, size), in the host's dtype."""
        words = self.get_input_embeddings()
        if self.config.projection == "vocabulary":
            return self._mixture(states, words).to(words.weight.dtype)
        return self.projection(states.to(self.thought_embedding.dtype)).to(words.weight.dtype)

    def _mixture(self, states, words):
        """Mean of the word embeddings that each state expects next, by the distribution of the trained LM head."""
        shares = self._shares(states, words.weight).to(words.weight)
        # Some families scale their word embeddings as they look them up.
        return shares @ words.weight[: shares.shape[-1]] * getattr(words, "embed_scale", 1.0)

    def _shares(self, states, words):
        """Distribution over the next word that each state expects, of those that both generator and `words` have."""
        logits = self.projection(states.to(self.thought_embedding.dtype))
        return logits[..., : words.shape[0]].softmax(dim=-1, dtype=torch.float32)

    def _pad_id(self):
        pad = self.config.get_text_config().pad_token_id
        return 0 if pad is None else pad

    def _check_count(self, num_implicit_tokens):
        count = self.config.num_implicit_tokens if num_implicit_tokens is None else num_implicit_tokens
        # Integers of NumPy count as well.
        if not hasattr(count, "__index__") or isinstance(count, bool) or count < 0:
            raise ValueError(f"num_implicit_tokens={count!r}: must be an integer of 0 or more.")
        if count > self.config.num_implicit_tokens:
            logger.warning_once(
                f"num_implicit_tokens={count} is more than the {self.config.num_implicit_tokens} this model was "
                "trained with (config.num_implicit_tokens): answers may get worse."
            )
        return int(count)


def _tokens(model, ids, mask, count):
    return model.tokens_of(model._states(ids, mask, count))
