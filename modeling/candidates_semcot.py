"""Candidate thoughts: several for each question, of which host and generator choose the most probable one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from .few_shot_semcot import few_shot_columns, few_shot_prefix
from .implicit_tokens_semcot import SemCoTTokensMixin
from .offloading_semcot import execution_device
from .question_cache_semcot import can_share, cut_cache
from .splicing_semcot import check_first_ids, check_shapes, context_of, positions_from_mask
from .thoughts_semcot import Thoughts
from .vocabularies_semcot import continued_ids

# Candidates that the host reads at once; each needs logits over its vocabulary.
_ROWS = 16


@contextmanager
def candidates(model: Any, number: int | None = None, host_weight: float | None = None) -> Iterator[None]:
    """Make `number` candidates for each question; those and the weight of the checkpoint for `None`.

    Raises:
        ValueError: for a number or weight out of range, or a model whose thoughts cannot be drawn.
    """
    config = model.config
    own = config.num_candidates, config.candidate_host_weight
    config.num_candidates = own[0] if number is None else number
    config.candidate_host_weight = own[1] if host_weight is None else host_weight
    try:
        config.check_candidates()
        yield
    finally:
        config.num_candidates, config.candidate_host_weight = own


class CandidateSampler:
    """Draw the words of several candidates for each question by arithmetic sampling (arXiv 2210.15458).

    The first candidate is the most probable words. The others have codes that divide [0, 1) evenly: the next word is
    the one within whose share of the distribution a code lies, and its place within this share is the code for the
    word after it. So candidates are spread over the distribution, and a question's are the same at each call and in
    each batch.

    Args:
        number: candidates of each question, which stand in consecutive rows.
        temperature: of the distributions drawn from.
        words: size of the generator's vocabulary, which logits may exceed.
    """

    def __init__(self, number: int, temperature: float, words: int | None = None):
        self.number, self.temperature, self.words = number, temperature, words
        self._codes: Tensor | None = None
        self._logs: list[Tensor] = []

    def __call__(self, logits: Tensor) -> Tensor:
        """Return next-token logits (rows, 1, words) in which each drawn word has all of the probability."""
        last = logits[:, -1, : self.words].float()
        if last.device.type == "mps":
            # It has no float64.
            last = last.cpu()
        codes = self._codes
        if codes is None:
            places = torch.arange(self.number, device=last.device, dtype=torch.float64)
            codes = ((places - 0.5) / max(1, self.number - 1)).repeat(len(last) // self.number)
        bounds = (last / self.temperature).softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)
        # Rounded, the sum may be less than a code.
        bounds = bounds / bounds[:, -1:]
        words = torch.searchsorted(bounds, codes.clamp(min=0)[:, None], right=True).clamp(max=last.shape[-1] - 1)
        ends, starts = bounds.gather(1, words), bounds.gather(1, (words - 1).clamp(min=0))
        starts = torch.where(words > 0, starts, torch.zeros_like(starts))
        self._codes = ((codes[:, None] - starts) / (ends - starts)).clamp(0, 1 - 1e-12)[:, 0]
        first = torch.arange(len(last), device=last.device) % self.number == 0
        words = torch.where(first[:, None], last.argmax(dim=-1, keepdim=True), words)
        self._logs.append(last.log_softmax(dim=-1).gather(1, words))
        first, words = first.to(logits.device), words.to(logits.device)
        drawn = logits.scatter(-1, words[..., None], logits.amax(dim=-1, keepdim=True) + 1e4)
        return torch.where(first[:, None, None], logits, drawn)

    def log_probabilities(self, steps: Tensor) -> Tensor:
        """Return the log-probability (rows,) of each thought of the given numbers of words (rows,), its end included.

        It is that of the generator, at a temperature of 1.
        """
        logs = torch.cat(self._logs, dim=1).to(steps.device)
        return logs.masked_fill(torch.arange(logs.shape[1], device=logs.device) > steps[:, None], 0).sum(dim=1)


class SemCoTCandidatesMixin(SemCoTTokensMixin):
    """Thoughts of `config.num_candidates` above 1, in `generate` and `implicit_thoughts`; one where gradients are."""

    def _make_thoughts(
        self, ids: Tensor, mask: Tensor | None, count: int, read: bool = False, sampler: Any = None
    ) -> Thoughts:
        config = self.config
        if config.num_candidates == 1 or count == 0 or torch.is_grad_enabled():
            return super()._make_thoughts(ids, mask, count, read)
        made, scores, host = self._candidates(ids, mask, count, reads=config.candidate_host_weight > 0)
        if host is not None:
            scores = scores + config.candidate_host_weight * host
        # The first of several alike, so the most probable words where they are among these.
        chosen = scores.view(-1, config.num_candidates).argmax(dim=1)
        rows = torch.arange(len(chosen), device=chosen.device) * config.num_candidates + chosen
        steps = _steps(made)
        widths = dict.fromkeys(("embeddings", "mask"), steps if made.mask is None else made.mask.sum(dim=1))
        kept = {}
        for name, part in made._asdict().items():
            # Tokens are on the host's device, all else is on the generator's.
            part = part if part is None else part[rows.to(part.device)]
            if part is not None and part.dim() > 1:
                # Handed over as text, a thought has another number of tokens than of words.
                part = part[:, : int(widths.get(name, steps)[rows].max())]
            kept[name] = part
        return Thoughts(**{**kept, "candidate": chosen})

    @torch.no_grad()
    def candidate_thoughts(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, num_implicit_tokens: int | None = None
    ) -> tuple[Thoughts, Tensor, Tensor]:
        """Make the candidates of prompts, of which `implicit_thoughts` returns one for each.

        Args:
            input_ids, attention_mask, num_implicit_tokens: as in `implicit_embeddings`.

        Returns:
            `Thoughts` of `config.num_candidates` rows for each prompt, one after another, the most probable words
            first; their log-probabilities by the generator (rows,), the end of the thought included; and those by the
            host (rows,), as `thought_log_probabilities` gives them.

        Raises:
            ValueError: as `implicit_thoughts` does; for a model whose thoughts are no words.
        """
        count = self._check_count(num_implicit_tokens)
        check_shapes(input_ids, attention_mask)
        check_first_ids(input_ids, None, self.config.get_text_config().vocab_size)
        if (self.config.generator_mode, self.config.projection) != ("sequential", "vocabulary") or count == 0:
            raise ValueError(
                f"num_implicit_tokens={count}, generator_mode={self.config.generator_mode!r} and "
                f"projection={self.config.projection!r}: only thoughts in words are candidates: take a model with "
                "generator_mode='sequential' and projection='vocabulary', and at least one token."
            )
        made, own, host = self._candidates(*self._queries(input_ids, attention_mask), count)
        assert host is not None  # it was asked for
        return made, own, host

    def _candidates(
        self, ids: Tensor, mask: Tensor | None, count: int, reads: bool = True
    ) -> tuple[Thoughts, Tensor, Tensor | None]:
        """Return the candidates of queries as `candidate_thoughts` does; the host's are `None` unless it `reads`."""
        config = self.config
        table: Any = self.generator.get_input_embeddings()
        sampler = CandidateSampler(config.num_candidates, config.candidate_temperature, table.weight.shape[0])
        made = super()._make_thoughts(ids, mask, count, True, sampler)
        steps = _steps(made)
        own = sampler.log_probabilities(steps)
        if not reads:
            return made, own, None
        return made, own, self.thought_log_probabilities(ids, mask, self._host_words(made, steps.tolist())).to(own)

    def _host_words(self, thoughts: Thoughts, steps: list[int]) -> list[list[int]]:
        """Return the words of thoughts in the host's ids."""
        assert thoughts.words is not None  # they were to be read
        words = [row[:count] for row, count in zip(thoughts.words.tolist(), steps, strict=True)]
        if self.host_word_ids is None:
            return words
        host, own = self.host_tokenizer, self.generator_tokenizer
        if host is None or own is None:
            raise ValueError(
                "model.host_tokenizer or model.generator_tokenizer is None: the host reads candidates in its own "
                "tokens. Set both."
            )
        texts = (str(own.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False)) for row in words)
        return [continued_ids(host, text) for text in texts]

    @torch.no_grad()
    def thought_log_probabilities(self, ids: Tensor, mask: Tensor | None, words: list[list[int]]) -> Tensor:
        """Return the host's log-probability of thoughts in words and of what ends them.

        The host reads them after the question in `config.candidate_prompt`, or where this is `None` or some prompts
        have worked examples (`config.few_shot_ids`) after the prompts as they are, with the answer prompt behind.

        Args:
            ids: (questions, length), prompts without the answer prompt, padded on the left.
            mask: (questions, length); `None` without padding.
            words: the host's ids of the thoughts, those of a question one after another, equally many for each.

        Returns:
            FloatTensor (thoughts,), sums over their tokens.

        Raises:
            ValueError: for worked examples that leave the question and its thoughts no room in the host's context.
        """
        host: Any = self.host
        device = execution_device(self.get_input_embeddings())
        ids, mask = ids.to(device), None if mask is None else mask.to(device)
        ends, shares = self.config.answer_prompt_ids or [], can_share(host)
        block, prompt = self.config.few_shot_ids, self.config.candidate_prompt
        if block and few_shot_columns(ids, torch.ones_like(ids) if mask is None else mask, block)[1].any():
            prompt = None
        if prompt is None:
            around: tuple[list[int], list[int]] = (few_shot_prefix(ids, mask, block), [])
            size = len(around[0])
            # Padded on the left, so that a row's padding stands before what is left of it.
            ids, mask = ids[:, size:], None if mask is None else mask[:, : mask.shape[1] - size]
        else:
            ends, around = prompt["end"], (prompt["before"], prompt["after"])
            ids, mask = self._questions(ids, mask, [prompt["opening"], prompt["closing"]])
        ids, mask, cache = self._put_around("host", around, ids, mask, shares)
        stored = 0 if cache is None else len(around[0])
        if cache is not None:
            ids = torch.cat([ids.new_tensor(around[0]).expand(len(ids), -1), ids], dim=1)
        mask = torch.ones_like(ids) if mask is None else mask
        number = len(words) // len(ids)
        # Thoughts of one question that are alike are read once.
        keys = [(row // number, tuple(thought)) for row, thought in enumerate(words)]
        unique = list(dict.fromkeys(keys))
        context, sizes = context_of(host.config.get_text_config()), mask.sum(dim=1).tolist()
        length = max(sizes[row] + len(thought) for row, thought in unique) + len(ends)
        if prompt is not None and context is not None and length > context:
            raise ValueError(
                f"config.candidate_prompt ({len(prompt['before'])} tokens before a question), question and thought "
                f"are {length} tokens, more than the host's context of {context}: make it of shorter examples, or set "
                "config.candidate_prompt=None."
            )
        read = ids.shape[1] - 1 if shares else 0
        if read > stored:
            cache = DynamicCache(config=host.config.get_text_config()) if cache is None else cache
            host(
                input_ids=ids[:, stored:read],
                attention_mask=mask[:, :read],
                position_ids=positions_from_mask(mask[:, :read])[:, stored:],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        found: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        for start in range(0, len(unique), _ROWS):
            part = unique[start : start + _ROWS]
            rows = torch.tensor([row for row, _ in part], device=device)
            tails = [[*thought, *ends] for _, thought in part]
            width = max(map(len, tails))
            padded = torch.tensor([tail + [0] * (width - len(tail)) for tail in tails], device=device)
            real = torch.tensor([[1] * len(tail) + [0] * (width - len(tail)) for tail in tails], device=device)
            given = torch.cat([ids[rows, read:], padded], dim=1)
            whole = torch.cat([mask[rows], real.to(mask)], dim=1)
            columns = torch.arange(read, device=device).expand(len(part), -1)
            known = (
                {"past_key_values": cut_cache(cache, rows, columns, host), "use_cache": True}
                if cache is not None
                else {}
            )
            logits = host(
                input_ids=given,
                attention_mask=whole,
                position_ids=positions_from_mask(whole)[:, read:],
                logits_to_keep=width + 1,
                **(known or {"use_cache": False}),
            ).logits[:, :-1]
            chosen = logits.gather(-1, padded[..., None])[..., 0].float()
            logs = (chosen - torch.stack([row.float().logsumexp(dim=-1) for row in logits])) * real
            found |= dict(zip(part, logs.sum(dim=1), strict=True))
        return torch.stack([found[key] for key in keys])


def _steps(thoughts: Thoughts) -> Tensor:
    """Return the number of words of each thought, also where all have as many."""
    if thoughts.steps is not None:
        return thoughts.steps
    assert thoughts.words is not None  # they were to be read
    return torch.full_like(thoughts.words[:, 0], thoughts.words.shape[1])
