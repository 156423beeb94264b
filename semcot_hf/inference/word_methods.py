"""`WordMethod`: answers of methods whose thoughts are text: by host, by generator, and by one reading the other's."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling.candidates_semcot import candidates
from ..modeling.offloading_semcot import execution_device
from ..modeling.thought_prompt_semcot import DEFAULT_THOUGHT_PROMPT, line_ends
from ..modeling.vocabularies_semcot import retokenize
from .decoding import decoding_config
from .prompting import Query, encode_prompt, encode_prompts, encode_thought_prompts, pad_left, reasoning_before
from .settings import AnswerSettings, thinks_adaptively
from .shared_prefix import SharedPrefix, can_share, common_prefix
from .thoughts import (
    Reading,
    Thought,
    answer_after,
    breaks_line,
    generator_lm,
    read_question,
    write_answers,
    write_thoughts,
)

# The generator alone.
_ALONE = ("generator", "generator_no_cot")
# For these questions the prompts of "condensed" are compared, to find what all of them begin with.
_PROBES = ("How many?", "Who is it")


@dataclass(frozen=True)
class WrittenThought:
    """The words before an answer.

    Args:
        text: the words, without special tokens.
        tokens: their number.
        ended: whether the thought was ended before the limit.
        written: tokens that the answering LM itself generated for it.
    """

    text: str
    tokens: int
    ended: bool
    written: int = 0


class WordMethod:
    """One of the methods "words", "condensed", "generator" and "generator_no_cot", for batches of prompts.

    Args:
        model: the model; a SemCoT model whose generator thinks in words, except for "condensed".
        tokenizer: the host's.
        method: see `AnswerSettings`.
        settings: of the answers.
        limit: most words of a thought.
        answer_prompt: text before an answer.
        chat: whether the host is prompted with its chat template.
        stop: text that ends an answer, or `None`.

    Attributes:
        lm, tokenizer: the causal LM that writes the answer, and its tokenizer.
        config: of the answers' decoding.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        method: str,
        settings: AnswerSettings,
        limit: int,
        answer_prompt: str,
        chat: bool,
        stop: str | None,
    ):
        self.model, self.host_tokenizer, self.method, self.limit = cast(Any, model), tokenizer, method, limit
        self.answer_prompt, self.chat = answer_prompt, chat
        config = model.config
        separate = getattr(config, "separate_generator_tokenizer", False)
        self.words_tokenizer: PreTrainedTokenizerBase = self.model.words_tokenizer() if separate else tokenizer
        self.tokenizer = self.words_tokenizer if method in _ALONE else tokenizer
        self.lm = generator_lm(model) if method in _ALONE else cast(PreTrainedModel, getattr(model, "host", model))
        self._answer_ids: list[int] = list(getattr(config, "answer_prompt_ids", None) or [])
        # A model's own examples are in its generator's ids.
        own = settings.thought_prompt is None and not separate and getattr(config, "thought_prompt_ids", None)
        self._examples = None if own else settings.thought_prompt or DEFAULT_THOUGHT_PROMPT
        ends = list(config.thought_ends) if method in _ALONE or own else line_ends(tokenizer)
        # The host goes on in the same message, in a new line.
        condensed = method == "condensed"
        self.ends: list[int] = sorted(ends, key=lambda end: not breaks_line(tokenizer, end)) if condensed else ends
        self.config = decoding_config(
            self.lm,
            self.tokenizer,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            stop=stop,
            repeats=True,
        )
        if method in _ALONE:
            self._end_answers_of_generators()
        self._prefix: SharedPrefix | None = None
        self._looked_for_prefix = False

    def _end_answers_of_generators(self) -> None:
        """Let a generator's answer also end on the token that it was taught to end it with, or that ends a message."""
        special = set(self.tokenizer.added_tokens_decoder)
        found = [*cast(list[int], self.config.eos_token_id or []), self.tokenizer.eos_token_id]
        found += [end for end in self.ends if end in special]
        ends = list(dict.fromkeys(end for end in found if end is not None))
        self.config.eos_token_id = ends or None

    def prompts(self, queries: Iterable[Query]) -> Iterator[list[int]]:
        """Yield the prompts of "condensed", which end where the thought begins."""
        if self._examples is not None:
            yield from encode_thought_prompts(
                self.host_tokenizer, queries, self._examples, answer_prompt=self.answer_prompt, chat=self.chat
            )
            return
        before, after = self.model.config.thought_prompt_ids
        options = {"method": "semcot", "answer_prompt": self.answer_prompt, "chat": self.chat}
        for prompt in encode_prompts(self.host_tokenizer, queries, **options):
            question, _ = self.model._questions(torch.tensor([prompt[: self._cut(prompt)]]), None)
            yield [*before, *question[0].tolist(), *after]

    def answer(self, prompts: Sequence[Sequence[int]], **options: Any) -> tuple[list[list[int]], list[Any]]:
        """Return the new tokens of each answer, padding included, and each `WrittenThought` or `None`.

        Args:
            prompts: token ids in the host's vocabulary: for "condensed" those of `prompts`, else those of "semcot".
            options: further arguments of `generate`.
        """
        device = execution_device(self.model.get_input_embeddings())
        ids, mask = (part.to(device) for part in pad_left(prompts, self._pad()))
        if self.method == "generator" and self.limit and getattr(self.model.config, "num_candidates", 1) > 1:
            return self._go_on(ids, mask, options)
        if self.method == "generator":
            return self._think_aloud(read_question(self.model, ids, mask), options)
        if self.method == "condensed":
            return self._think_aloud(Reading(ids, mask, None, self._shared(prompts)), options)
        if self.method == "generator_no_cot":
            return self._answer_at_once(ids, mask, options), [None] * len(prompts)
        return self._read_words(prompts, ids, mask, options)

    def _think_aloud(self, reading: Reading, options: dict[str, Any]) -> tuple[list[list[int]], list[Any]]:
        """Have one LM write thoughts, then answers."""
        pad = cast(int, self.config.pad_token_id)
        thoughts, reading = write_thoughts(self.lm, reading, limit=self.limit, ends=self.ends, pad=pad)
        tails = [answer_after(self.tokenizer, t.end, self.ends, self.answer_prompt) for t in thoughts]
        return write_answers(self.lm, reading, tails, self.config, **options), [self._written(t) for t in thoughts]

    def _go_on(
        self, ids: torch.Tensor, mask: torch.Tensor, options: dict[str, Any]
    ) -> tuple[list[list[int]], list[Any]]:
        """Have the generator alone answer after that of its candidates which it finds most probable itself."""
        with candidates(self.model, host_weight=0.0), torch.no_grad():
            made = self.model.implicit_thoughts(ids, mask, self.limit)
        ended = [True] * len(ids) if made.ended is None else made.ended.tolist()
        said = [[word for word in row if word >= 0] for row in made.words.tolist()]
        first = next(iter(self.ends), None)
        thoughts = [Thought(words, first if end else None) for words, end in zip(said, ended, strict=True)]
        tails = [t.words + answer_after(self.tokenizer, t.end, self.ends, self.answer_prompt) for t in thoughts]
        reading = read_question(self.model, ids, mask)
        return write_answers(self.lm, reading, tails, self.config, **options), [self._written(t) for t in thoughts]

    def _written(self, thought: Thought) -> WrittenThought:
        text = str(self.tokenizer.decode(thought.words, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        ended = thought.end is not None
        return WrittenThought(text, len(thought.words), ended, len(thought.words) + ended)

    def _answer_at_once(self, ids: torch.Tensor, mask: torch.Tensor, options: dict[str, Any]) -> list[list[int]]:
        """Have the generator alone answer, after the host's prompts or, if it has a thought prompt, its own."""
        model, real = self.model, cast(torch.Tensor | None, mask)
        if self.tokenizer is not self.host_tokenizer and model.config.thought_prompt_ids is None:
            ids, real = retokenize(ids, mask, model.host_tokenizer, self.tokenizer, starts=True)
        elif self.tokenizer is not self.host_tokenizer:
            asked, shown = model._questions(*model._queries(ids, mask))
            shown = torch.ones_like(asked) if shown is None else shown
            texts = [
                str(self.host_tokenizer.decode(row[own.bool()], skip_special_tokens=True)).strip()
                for row, own in zip(asked, shown, strict=True)
            ]
            ids, real = pad_left(list(encode_prompts(self.tokenizer, texts, method="no_cot")), self._own_pad())
        device = model.projection_device()
        ids = ids.to(device)
        real = torch.ones_like(ids) if real is None else real.to(device)
        return write_answers(self.lm, Reading(ids, real), [[]] * len(ids), self.config, **options)

    def _read_words(
        self, prompts: Sequence[Sequence[int]], ids: torch.Tensor, mask: torch.Tensor, options: dict[str, Any]
    ) -> tuple[list[list[int]], list[Any]]:
        """Have the host alone read the generator's words as text before the answer prompt."""
        thoughts = words_of(self.model, self.words_tokenizer, ids, mask, self.limit)
        rows = []
        for prompt, thought in zip(prompts, thoughts, strict=True):
            cut, text = self._cut(prompt), thought.text.rstrip()
            if text and not self.chat:
                text = "\n" + text
            text = reasoning_before(text, self.answer_prompt)
            rows.append([*prompt[:cut], *encode_prompt(self.host_tokenizer, text), *prompt[cut:]])
        ids, mask = (part.to(ids.device) for part in pad_left(rows, self._pad()))
        return write_answers(self.lm, Reading(ids, mask), [[]] * len(rows), self.config, **options), thoughts

    def _cut(self, prompt: Sequence[int]) -> int:
        """Return where the answer prompt of a prompt begins."""
        count = len(self._answer_ids)
        return len(prompt) - count if count and list(prompt[-count:]) == self._answer_ids else len(prompt)

    def _pad(self) -> int:
        return self._own_pad() if self.tokenizer is self.host_tokenizer else 0

    def _own_pad(self) -> int:
        return cast(int, self.config.pad_token_id)

    def _shared(self, prompts: Sequence[Sequence[int]]) -> Any:
        """Return a cache with what the prompts of "condensed" begin with, which is computed once, or `None`."""
        if not self._looked_for_prefix:
            self._looked_for_prefix = True
            if can_share(self.lm):
                probes = list(self.prompts(_PROBES))
                self._prefix = SharedPrefix(self.lm, probes[0][: common_prefix(probes)])
        prefix = self._prefix
        if prefix is None or not all(list(p[: len(prefix)]) == prefix.ids and len(p) > len(prefix) for p in prompts):
            return None
        return prefix.cache([len(prompt) for prompt in prompts])


def words_of(
    model: Any, tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor, mask: torch.Tensor, limit: int
) -> list[WrittenThought]:
    """Return the words of a SemCoT model's implicit tokens for prompts (batch, length) padded on the left.

    Args:
        tokenizer: the generator's.
        limit: k.
    """
    words, _ = model.implicit_words(ids, mask, limit)
    adaptive, thoughts = thinks_adaptively(model), []
    for row in words.tolist():
        said = [word for word in row if word >= 0]
        thoughts.append(written_thought(tokenizer, said, not adaptive or len(said) < limit))
    return thoughts


def written_thought(tokenizer: PreTrainedTokenizerBase, words: list[int], ended: bool = True) -> WrittenThought:
    """Return the thought of these words of the generator, which `tokenizer` decodes."""
    text = str(tokenizer.decode(words, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return WrittenThought(text, len(words), ended)
