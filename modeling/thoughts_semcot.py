"""Thoughts in words: mixtures of word embeddings, the end of a thought, and the prompt that has a generator think."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.utils import logging

from .offloading_semcot import execution_device, in_memory
from .parts_semcot import SemCoTPreTrainedModel, contiguous_input
from .splicing_semcot import splice
from .vocabularies_semcot import continued_ids
from .weights_semcot import weights_state

logger = logging.get_logger(__name__)


class Thoughts(NamedTuple):
    """The implicit tokens of a batch of prompts, and how they were made.

    Args:
        embeddings: FloatTensor (batch, k, host hidden size).
        mask: LongTensor (batch, k), 1 where a token is; `None` if all of them are.
        ended: BoolTensor (batch,), whether the generator ended its thought before the limit of tokens and all of it
            was handed over; `None` for thoughts of fixed length.
        steps: LongTensor (batch,), the number of words that the generator wrote, which is that of the tokens unless
            they are text; `None` for thoughts of fixed length.
        lost_probability: FloatTensor (batch, steps), for each step of the generator the share of its mixture that is
            on words that the host lacks, 0 behind a thought's end; `None` for other projections, or one tokenizer.
        words: LongTensor (batch, steps), the id of each step's most probable word in the generator's vocabulary, -1
            behind a thought's end; `None` for other projections.
        shares: FloatTensor (batch, steps), the weight of these words in the generator's mixtures, 0 behind the end.
        entropy: FloatTensor (batch, steps), that of the generator's next-word distributions in nats; `None` likewise.
        as_text: BoolTensor (batch,), whether the thought was handed over as text; `None` likewise, and for thoughts of
            fixed length.
        candidate: LongTensor (batch,), the place of this thought among its question's candidates, 0 for the most
            probable words; `None` with one candidate.
    """

    embeddings: Tensor
    mask: Tensor | None = None
    ended: Tensor | None = None
    steps: Tensor | None = None
    lost_probability: Tensor | None = None
    words: Tensor | None = None
    shares: Tensor | None = None
    entropy: Tensor | None = None
    as_text: Tensor | None = None
    candidate: Tensor | None = None

    def mean_entropy(self) -> Tensor | None:
        """Return the mean of each thought's `entropy` (batch,) in nats, 0 for one without words; `None` likewise."""
        if self.entropy is None:
            return None
        steps = self.entropy.shape[1] if self.steps is None else self.steps
        total = self.entropy.sum(dim=1)
        return total / torch.as_tensor(steps, device=total.device).clamp(min=1)


def mixture_weights(logits: Tensor, top_k: int | None, temperature: float) -> tuple[Tensor, Tensor | None]:
    """Return the weights of the words in a mixture.

    Args:
        logits: (..., vocabulary).
        top_k: number of words; all of them for 0 or `None`.
        temperature: divides the logits.

    Returns:
        FloatTensor (..., words) of weights that sum to 1, and LongTensor (..., words) of the words' ids, the most
        probable first, or `None` if the words are the whole vocabulary in its order.

    >>> weights, ids = mixture_weights(torch.tensor([0.0, 4.0, 2.0, 4.0]), 2, 1.0)
    >>> weights.tolist(), sorted(ids.tolist())
    ([0.5, 0.5], [1, 3])
    """
    ids = None
    if top_k:
        logits, ids = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    if temperature != 1.0:
        logits = logits.float() / temperature
    return logits.softmax(dim=-1, dtype=torch.float32), ids


def word_entropy(logits: Tensor) -> Tensor:
    """Return the entropy in nats of next-token distributions: (..., vocabulary) -> (...).

    >>> word_entropy(torch.tensor([[0.0, 0.0], [0.0, -torch.inf]])).tolist()
    [0.6931471824645996, 0.0]
    """
    logs = logits.log_softmax(dim=-1, dtype=torch.float32)
    return torch.special.entr(logs.exp()).sum(dim=-1)


def find_question(
    ids: list[int], opening: list[int], closing: list[int], answer_prompt: Sequence[int] = ()
) -> list[int] | None:
    """Return the question of a prompt's last turn, without its markers; `None` without an `opening`.

    Earlier turns and worked examples end on `closing`, or where this is empty on the answer prompt. The question
    follows the first `opening` after them: it may contain further ones, which are ordinary text for some hosts.

    Args:
        ids: the prompt, without the answer prompt at its end.
        opening, closing: what stands before and after a question; the latter may be cut off.
        answer_prompt: `SemCoTConfig.answer_prompt_ids`.

    >>> find_question([1, 5, 8, 9, 2, 1, 6, 7, 2, 3], [1], [2])
    [6, 7]
    >>> find_question([1, 5, 1, 6], [1], [], [9]), find_question([1, 5, 9, 8, 1, 6, 1, 7], [1], [], [9])
    ([5, 1, 6], [6, 1, 7])
    >>> find_question([5, 6], [1], [2]) is None, find_question([1, 5, 6], [1], [2])
    (True, [5, 6])
    """
    starts = _places(ids, opening)
    if not starts:
        return None
    ended = max((place for place in _places(ids, closing or answer_prompt) if place < starts[-1]), default=-1)
    question = ids[next(start for start in starts if start > ended) + len(opening) :]
    return question[: next(iter(_places(question, closing)), None)]


def _places(ids: list[int], part: Sequence[int]) -> list[int]:
    """Return where a sequence begins in ids; nowhere for an empty one."""
    size, wanted = len(part), list(part)
    return [place for place in range(len(ids) - size + 1) if ids[place : place + size] == wanted] if size else []


@contextmanager
def single_words(model: PreTrainedModel) -> Iterator[None]:
    """Make each implicit token the most probable word alone (`mixture_top_k=1`), without a mixture."""
    own = model.config.mixture_top_k
    model.config.mixture_top_k = 1
    try:
        yield
    finally:
        model.config.mixture_top_k = own


class SemCoTThoughtsMixin(SemCoTPreTrainedModel):
    """The methods of `SemCoTForCausalLM` for mixtures of words and for thought prompts."""

    # By part, "generator" or "host": (what was read, and the state of its weights; some of their values; its keys and
    # values of what a prompt of worked examples says before each question).
    _prompt_caches: dict[str, tuple[Any, list[Tensor], Cache]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_prompt_caches": None}

    def train(self, mode: bool = True) -> "SemCoTThoughtsMixin":
        """Set the mode as torch does; prompts of worked examples are read again, whatever has changed."""
        self._prompt_caches = None
        super().train(mode)
        return self

    def feedback(self, states: Tensor) -> Tensor:
        """Return a sequential generator's next input after `states` (batch, 1, size): scaled, or word mixtures."""
        if self.config.projection == "vocabulary":
            return self._fed_back(self.word_logits(states)).to(states.dtype)
        return states * self.config.feedback_scale

    def _fed_back(self, logits: Tensor) -> Tensor:
        """Return what a generator reads after its next-token logits (batch, 1, vocabulary): a word or a mixture."""
        words: Any = self.generator.get_input_embeddings()
        if self.config.word_feedback:
            return words(logits[..., : words.weight.shape[0]].argmax(dim=-1))
        return self._mixture(logits, words)

    def tokens_of(self, states: Tensor) -> Tensor:
        """Map generator states (batch, k, size) to implicit tokens (batch, k, host hidden size)."""
        words = self.get_input_embeddings()
        if self.config.projection == "vocabulary":
            return self._host_mixture(self.word_logits(states)).to(words.weight.dtype)
        return self.projection(states.to(self.thought_embedding.dtype)).to(words.weight.dtype)

    def word_logits(self, states: Tensor) -> Tensor:
        """Return the generator's next-token logits at its states (projection="vocabulary")."""
        # Frozen, it may be of another dtype than what is trained.
        states = states.to(next(self.projection.parameters()).dtype)
        return self.projection(*contiguous_input(self.projection, (states,)))

    def _weights(self, logits: Tensor, words: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return `mixture_weights` over the words that both the generator and `words` have."""
        config = self.config
        return mixture_weights(logits[..., : words.shape[0]], config.mixture_top_k, config.mixture_temperature)

    def _mixture(self, logits: Tensor, words: Any) -> Tensor:
        """Return the weighted mean of word embeddings for next-token logits."""
        table = in_memory(words)
        weights, ids = self._weights(logits, table)
        weights = weights.to(table)
        if ids is None:
            mixture = weights @ table[: weights.shape[-1]]
        else:
            chosen = table[ids.to(table.device)]
            mixture = (weights[..., None, :] @ chosen)[..., 0, :]
        # Some families scale word embeddings in their lookup.
        return mixture * getattr(words, "embed_scale", 1.0)

    def _host_mixture(self, logits: Tensor) -> Tensor:
        """Return mixtures of the host's word embeddings for the generator's next-token logits.

        For a generator of another tokenizer the words that the host lacks are left out before the most probable ones
        are chosen and weighted, so that no mixture is empty.
        """
        words, host_ids = self.get_input_embeddings(), self.host_word_ids
        if host_ids is None:
            return self._mixture(logits, words)
        config, shared = self.config, host_ids >= 0
        logits = logits.masked_fill(~shared, -torch.inf)
        weights, ids = mixture_weights(logits, config.mixture_top_k, config.mixture_temperature)
        table = in_memory(words)
        known = host_ids.long().clamp(min=0).to(table.device)
        weights = weights.to(table)
        if ids is None:
            # Several of the generator's words may be one of the host's.
            shares = weights.new_zeros(*weights.shape[:-1], table.shape[0])
            mixture = shares.index_add(-1, known, weights) @ table
        else:
            mixture = (weights[..., None, :] @ table[known[ids.to(known.device)]])[..., 0, :]
        return mixture * getattr(words, "embed_scale", 1.0)

    def _most_probable(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the generator's most probable words (batch, steps), and their weights in its mixtures."""
        # A generator of another tokenizer has words that the host lacks.
        table: Any = (self if self.host_word_ids is None else self.generator).get_input_embeddings()
        weights, ids = self._weights(logits, table.weight)
        share, place = weights.max(dim=-1)
        return place if ids is None else ids.gather(-1, place[..., None])[..., 0], share

    def _lost_share(self, logits: Tensor, host_ids: Tensor) -> Tensor:
        """Return the share of each of the generator's own mixtures that is on words without a counterpart.

        Words that end a thought are not handed over and do not count.
        """
        lost = host_ids < 0
        lost[self.config.thought_ends] = False
        weights, ids = mixture_weights(logits, self.config.mixture_top_k, self.config.mixture_temperature)
        return (weights * (lost if ids is None else lost[ids])).sum(dim=-1)

    def _handed_over_as_text(self, thoughts: Thoughts, count: int) -> Thoughts:
        """Return thoughts of which those that lose more than the limit are the host's words of the same text.

        These have no gradient.

        Args:
            thoughts: mixtures.
            count: the largest number of tokens; text beyond it is cut off, and the thought counts as not ended.
        """
        lost, ended, steps, words = thoughts.lost_probability, thoughts.ended, thoughts.steps, thoughts.words
        if lost is None or ended is None or steps is None or words is None:
            return thoughts
        as_text = (lost > self.config.lost_limit).any(dim=1)
        thoughts = thoughts._replace(as_text=as_text)
        rows = as_text.nonzero()[:, 0].tolist()
        if not rows:
            return thoughts
        if self.host_tokenizer is None or self.generator_tokenizer is None:
            raise ValueError(
                "model.host_tokenizer or model.generator_tokenizer is None: a thought that loses more than "
                f"max_lost_probability={self.config.lost_limit} is re-tokenized for the host. Set both."
            )
        tokens, ended, lengths = thoughts.embeddings, ended.clone(), steps.clone()
        texts: dict[int, list[int]] = {}
        for row in rows:
            said = words[row, : int(steps[row])].tolist()
            text = self.generator_tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            ids = continued_ids(self.host_tokenizer, str(text))
            ended[row] &= len(ids) <= count
            texts[row] = ids[:count]
            lengths[row] = len(texts[row])
        width = int(lengths.max())
        padded = [texts.get(row, []) + [0] * (width - len(texts.get(row, []))) for row in range(len(tokens))]
        table = self.get_input_embeddings()
        padded_ids = torch.tensor(padded, dtype=torch.long, device=execution_device(table))
        host_words = table(padded_ids.view(len(padded), width))
        # A part of the graph even if all rows are text, so that a loss stays differentiable.
        gap = max(0, width - tokens.shape[1])
        mixtures = nn.functional.pad(tokens, (0, 0, 0, gap))[:, :width]
        mask = (torch.arange(width, device=lengths.device) < lengths[:, None]).long()
        tokens = torch.where(as_text.to(tokens.device)[:, None, None], host_words.to(tokens), mixtures)
        return thoughts._replace(
            embeddings=tokens.masked_fill(mask.to(tokens.device)[..., None] == 0, 0), mask=mask, ended=ended
        )

    def ends_thought(self, logits: Tensor) -> Tensor:
        """Return whether the most probable word of each next-token distribution ends a thought."""
        ends = torch.tensor(self.config.thought_ends, device=logits.device)
        return torch.isin(logits.argmax(dim=-1), ends)

    def _questions(
        self, ids: Tensor, mask: Tensor | None, markers: list[list[int]] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the questions in the host's prompts (batch, length), padded on the left.

        Args:
            markers: the ids that open and close a question; `config.question_marker_ids` if `None`.
        """
        opening, closing = markers or self.config.question_marker_ids or ([], [])
        if not opening and not closing:
            return ids, mask
        rows = []
        for row, real in zip(ids.cpu(), torch.ones_like(ids).cpu() if mask is None else mask.cpu(), strict=True):
            prompt = row[real.bool()].tolist()
            question = find_question(prompt, opening, closing, self.config.answer_prompt_ids or [])
            if not question:
                logger.warning_once(
                    "Some prompts have no question between config.question_marker_ids; the generator reads these as "
                    "they are. The host's chat template writes the markers around the last user message."
                )
            rows.append(question or prompt)
        width = max(map(len, rows))
        padded = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=ids.device)
        real = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=ids.device)
        return padded, None if min(map(len, rows)) == width else real

    def _prompted(
        self, ids: Tensor, mask: Tensor | None, use_cache: bool = True
    ) -> tuple[Tensor, Tensor | None, Cache | None]:
        """Put the thought prompt around questions in the generator's ids, padded on the left.

        Returns:
            ids, mask and cache as `generator_states` takes them. What stands before the question comes from a cache,
            computed once, unless `use_cache` is False, gradients are enabled, or the generator has recurrent layers,
            is being compiled or has sliding windows that padding would narrow.
        """
        before, after = self.config.thought_prompt_ids or ([], [])
        computing = torch.is_grad_enabled() or torch.compiler.is_compiling() or self.generator._is_stateful
        return self._put_around("generator", (before, after), ids, mask, use_cache and not computing)

    def _put_around(
        self, part: str, around: tuple[list[int], list[int]], ids: Tensor, mask: Tensor | None, use_cache: bool
    ) -> tuple[Tensor, Tensor | None, Cache | None]:
        """Put ids before and after questions, padded on the left; return as `_prompted` does.

        Args:
            part: "generator" or "host", in whose ids all are.
            around: the ids before and after.
            ids, mask: (batch, length).
            use_cache: whether what stands before may come from a cache, unless padding behind it narrows windows.
        """
        before, after = around
        behind = ids.new_tensor(after).expand(len(ids), -1)
        ids = torch.cat([ids, behind], dim=1)
        mask = None if mask is None else torch.cat([mask, torch.ones_like(behind)], dim=1)
        if not before:
            return ids, mask, None
        start = ids.new_tensor(before).expand(len(ids), -1)
        if use_cache:
            cache = self._cache_of_prompt(part, start[:1])
            if mask is None or not any(cache.is_sliding):
                cache.batch_repeat_interleave(len(ids))
                real = torch.ones_like(ids) if mask is None else mask
                return ids, torch.cat([torch.ones_like(start), real], dim=1), cache
        if mask is None:
            return torch.cat([start, ids], dim=1), None, None
        columns = mask.argmax(dim=1)
        return splice(ids, start, columns), splice(mask, torch.ones_like(start), columns), None

    @torch.no_grad()
    def _cache_of_prompt(self, part: str, ids: Tensor) -> Cache:
        """Return a copy of a part's keys and values of `ids` (1, length), computed again for new weights.

        Args:
            part: "generator", or "host", whose backbone reads them.
            ids: token ids of this part.
        """
        backbone: Any = self.generator if part == "generator" else self.host.get_decoder()
        known, values = weights_state(backbone)
        # Keys and values of half precision are others.
        half = torch.is_autocast_enabled(ids.device.type) and torch.get_autocast_dtype(ids.device.type)
        state = (ids.tolist(), half, known)
        caches = self._prompt_caches = self._prompt_caches or {}
        found = caches.get(part)
        if found is None or found[0] != state or not all(map(torch.equal, found[1], values)):
            cache = DynamicCache(config=backbone.config.get_text_config(decoder=True))
            # Ids, since some families scale what they look up.
            given = {"input_ids": ids} if part == "host" else {"inputs_embeds": backbone.get_input_embeddings()(ids)}
            backbone(**given, past_key_values=cache, use_cache=True)
            found = caches[part] = (state, values, cache)
        return copy.deepcopy(found[2])
