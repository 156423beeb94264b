"""Text views for generation's hooks: they receive the text ids, without the filler ids of the implicit tokens."""

from typing import Any

import torch
from torch import LongTensor, Tensor
from transformers import LogitsProcessorList, MaxLengthCriteria, StoppingCriteria, StoppingCriteriaList
from transformers.generation import EosTokenCriteria, MaxTimeCriteria
from transformers.generation.candidate_generator import CandidateGenerator


class TextProcessors(LogitsProcessorList):
    """Logits processors that are called with the text ids only.

    Args:
        processors: the prepared processors.
        fillers: number of filler ids before the text.
    """

    def __init__(self, processors: LogitsProcessorList, fillers: int) -> None:
        super().__init__(processors)
        self.fillers = fillers

    def __call__(self, input_ids: LongTensor, scores: Tensor, **kwargs: Any) -> Any:
        text: Any = input_ids[:, self.fillers :]
        return super().__call__(text, scores, **kwargs)


class TextCriterion(StoppingCriteria):
    """A stopping criterion that is called with the text ids only."""

    def __init__(self, criterion: StoppingCriteria, fillers: int) -> None:
        self.criterion, self.fillers = criterion, fillers

    def __call__(self, input_ids: LongTensor, scores: Tensor, **kwargs: Any) -> Any:
        return self.criterion(input_ids[:, self.fillers :], scores, **kwargs)


class TextCandidates:
    """A candidate generator of assisted decoding that works on the text ids only."""

    def __init__(self, candidates: CandidateGenerator, fillers: int) -> None:
        self._candidates: Any = candidates
        self._fillers = fillers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._candidates, name)

    def get_candidates(self, input_ids: LongTensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        ids, logits = self._candidates.get_candidates(input_ids[:, self._fillers :], *args, **kwargs)
        return torch.cat([input_ids[:, : self._fillers].to(ids.device), ids], dim=1), logits

    def update_candidate_strategy(self, input_ids: LongTensor, scores: Tensor, num_matches: int) -> Any:
        return self._candidates.update_candidate_strategy(input_ids[:, self._fillers :], scores, num_matches)


def text_criteria(criteria: StoppingCriteriaList, fillers: int, max_length: int) -> StoppingCriteriaList:
    """Adapt stopping criteria to ids with `fillers` ids before the text.

    Criteria on length get the longer length; those on the last id and on time need no text view.
    """
    wrapped = StoppingCriteriaList()
    for criterion in criteria:
        if isinstance(criterion, MaxLengthCriteria):
            length = min(criterion.max_length + fillers, max_length)
            criterion = MaxLengthCriteria(length, criterion.max_position_embeddings)
        elif not isinstance(criterion, (EosTokenCriteria, MaxTimeCriteria)):
            criterion = TextCriterion(criterion, fillers)
        wrapped.append(criterion)
    return wrapped
