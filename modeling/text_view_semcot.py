"""What generation's hooks see of the loops' longer ids: the text alone, without the filler ids in front of it."""

import torch
from transformers import LogitsProcessorList, MaxLengthCriteria, StoppingCriteriaList
from transformers.generation import EosTokenCriteria, MaxTimeCriteria


class TextProcessors(LogitsProcessorList):
    """The prepared logits processors, called with the text ids only."""

    def __init__(self, processors, count):
        super().__init__(processors)
        self.count = count

    def __call__(self, input_ids, scores, **kwargs):
        return super().__call__(input_ids[:, self.count :], scores, **kwargs)


class TextCriterion:
    """A stopping criterion, called with the text ids only."""

    def __init__(self, criterion, count):
        self.criterion = criterion
        self.count = count

    def __call__(self, input_ids, scores, **kwargs):
        return self.criterion(input_ids[:, self.count :], scores, **kwargs)


class TextCandidates:
    """A candidate generator of assisted decoding, working on the text ids only."""

    def __init__(self, candidates, count):
        self._candidates = candidates
        self._count = count

    def __getattr__(self, name):
        return getattr(self._candidates, name)

    def get_candidates(self, input_ids, *args, **kwargs):
        ids, logits = self._candidates.get_candidates(input_ids[:, self._count :], *args, **kwargs)
        return torch.cat([input_ids[:, : self._count].to(ids.device), ids], dim=1), logits

    def update_candidate_strategy(self, input_ids, scores, num_matches):
        return self._candidates.update_candidate_strategy(input_ids[:, self._count :], scores, num_matches)


def text_criteria(criteria, count, max_length):
    """The stopping criteria for the loops' longer ids; those on length and on the last id need no text."""
    wrapped = StoppingCriteriaList()
    for criterion in criteria:
        if isinstance(criterion, MaxLengthCriteria):
            length = min(criterion.max_length + count, max_length)
            criterion = MaxLengthCriteria(length, criterion.max_position_embeddings)
        elif not isinstance(criterion, (EosTokenCriteria, MaxTimeCriteria)):
            criterion = TextCriterion(criterion, count)
        wrapped.append(criterion)
    return wrapped
