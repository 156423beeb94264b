"""`Comparison`: a question answered at once, with explicit reasoning and with implicit tokens, and what these say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..inference.answering import Answer, Answerer
from ..inference.settings import AnswerSettings, makes_implicit_tokens
from ..modeling.escalation_semcot import Escalation
from .thoughts import says_words

METHODS = {"no_cot": "At once", "cot": "With explicit reasoning", "semcot": "With implicit tokens"}


@dataclass(frozen=True)
class Compared:
    """The answers to one question.

    Args:
        answers: by method, a key of `METHODS`; their seconds include the implicit tokens.
        words: the words of the implicit tokens, each with its share in its token; `None` for tokens that are none.
        route: "at_once", "implicit" or "explicit", the answer that the checkpoint's rule of escalation would give;
            `None` without a rule, or for the implicit tokens of another question.
        confidence: that of the rule in the answer with implicit tokens, or of its router where that decides.
    """

    answers: dict[str, Answer]
    words: list[tuple[str, float]] | None
    route: str | None = None
    confidence: float | None = None


class Comparison:
    """Answers questions by all methods of a SemCoT model.

    Args:
        model: the model.
        tokenizer: its tokenizer.

    Raises:
        ValueError: for a model without implicit tokens.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        if not makes_implicit_tokens(model):
            raise ValueError(
                f"model_type={model.config.model_type!r} makes no implicit tokens: pass a SemCoT checkpoint."
            )
        self._model: Any = model
        self._tokenizer = tokenizer
        stored = getattr(model.config, "escalation", None)
        rule = None if stored is None else Escalation.from_dict(stored)
        problem = getattr(model, "signal_problem", None)
        self._signals = [] if rule is None else rule.all_signals
        self._rule = None if problem is None or any(map(problem, self._signals)) else rule

    def ask(self, question: str, max_new_tokens: int, other: str | None = None) -> Compared:
        """Answer a question by each method.

        Args:
            question: the question.
            max_new_tokens: most tokens of each answer.
            other: a question whose implicit tokens the host gets instead of the question's own.

        Raises:
            ValueError: for a question that is empty, holds half a character or does not fit the context.
        """
        for name, text in (("question", question), ("other", other)):
            if text is not None and not text.strip():
                raise ValueError(f"{name} is empty: write one.")
            if text is not None and any("\ud800" <= letter <= "\udfff" for letter in text):
                raise ValueError(f"{name} holds half a surrogate pair, which is not a character: correct the text.")
        answers = {}
        words = None
        for method in METHODS:
            # Implicit tokens of another question say nothing of how sure the model is of this one.
            signals = self._signals if self._rule and method == "semcot" and other is None else []
            settings = AnswerSettings(method=method, max_new_tokens=max_new_tokens, signals=signals)
            answerer = Answerer(self._model, self._tokenizer, settings)
            asked = [question.strip(), *([] if other is None else [other.strip()])]
            prompts = list(answerer.prompts(asked))
            for prompt in prompts if method == "semcot" else prompts[:1]:
                problem = answerer.context_problem(prompt)
                if problem is not None:
                    raise ValueError(problem)
            options: dict[str, Any] = {}
            if method == "semcot":
                if other is not None:
                    options["implicit_embeddings_for"] = lambda _, ids=prompts[-1]: self._tokens(ids)
                words = self._words(prompts[-1])
            [(_, [answers[method]])] = answerer.parts(prompts, [0], **options)
        return Compared(answers, words, *self._route(answers["semcot"].signals))

    def _route(self, signals: dict[str, float] | None) -> tuple[str | None, float | None]:
        """Return the rule's route and confidence by the signals of an implicit answer."""
        if self._rule is None or not signals:
            return None, None
        known = {name: torch.tensor([value]) for name, value in signals.items()}
        if self._rule.router is not None:
            chosen, sure = self._rule.routed(known)
            if chosen:
                return str(self._rule.router["sends"]), float(sure)
        confidence = float(self._rule.confidence(known))
        return "implicit" if confidence >= self._rule.threshold else "explicit", confidence

    def _tokens(self, ids: Sequence[int]) -> Any:
        with torch.no_grad():
            return self._model.implicit_embeddings(self._batch(ids), return_mask=True)

    def _words(self, ids: Sequence[int]) -> list[tuple[str, float]] | None:
        if not says_words(self._model):
            return None
        found, shares = (part[0].tolist() for part in self._model.implicit_words(self._batch(ids)))
        own = getattr(self._model, "generator_tokenizer", None)
        tokenizer = self._tokenizer if own is None else own
        return [(str(tokenizer.decode([word])), share) for word, share in zip(found, shares, strict=True) if word >= 0]

    def _batch(self, ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor([list(ids)], device=self._model.get_input_embeddings().weight.device)
