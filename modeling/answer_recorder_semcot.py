"""What generation with escalation hooks into the loops: the probabilities of an answer's tokens, and held streams."""

from typing import Any

import torch
from torch import LongTensor, Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList


class AnswerRecorder(LogitsProcessor):
    """Record the log-probabilities of the tokens that a loop chooses, by the host's own next-token distributions.

    It stands before all other processors, so that temperature and penalties do not count. Of the distributions only
    the last one is kept.

    Args:
        records: whether to record; else it only tells what ends an answer.

    Attributes:
        ends, pad: the loop's end-of-sequence and padding ids.
    """

    def __init__(self, records: bool = True):
        self.records = records
        self.ends: list[int] = []
        self.pad: int | None = None
        self._logs: list[Tensor] = []
        self._last: Tensor | None = None

    def __call__(self, input_ids: LongTensor, scores: Tensor) -> Tensor:
        if self.records:
            self._take(input_ids[:, -1])
            # Processors after this one may write into the scores.
            self._last = scores.clone()
        return scores

    def _take(self, tokens: Tensor) -> None:
        if self._last is not None:
            chosen = self._last.gather(1, tokens.to(self._last.device)[:, None])[:, 0]
            self._logs.append((chosen - self._last.logsumexp(dim=-1)).float())
            self._last = None

    def answers(self, new: Tensor, used: list[list[int]]) -> list[Tensor]:
        """Return each row's log-probabilities, of its used tokens.

        Args:
            new: LongTensor (batch, steps), the new ids of the loop.
            used: those of each row that are no padding.
        """
        if len(self._logs) < new.shape[1]:
            self._take(new[:, -1])
        logs = torch.stack(self._logs[: new.shape[1]], dim=1)
        return [row[: len(ids)] for row, ids in zip(logs, used, strict=True)]


def recorder_first(processors: LogitsProcessorList, config: GenerationConfig) -> LogitsProcessorList:
    """Put a recorder before all other processors, and tell it what ends an answer."""
    recorder = next((entry for entry in processors or () if isinstance(entry, AnswerRecorder)), None)
    if recorder is None:
        return processors
    ends, pad = (getattr(config, name, None) for name in ("_eos_token_tensor", "_pad_token_tensor"))
    recorder.ends = [] if ends is None else ends.reshape(-1).tolist()
    recorder.pad = None if pad is None else int(pad)
    return LogitsProcessorList([recorder, *(entry for entry in processors if entry is not recorder)])


def used_ids(new: list[int], recorder: AnswerRecorder) -> list[int]:
    """Return a row's new ids up to its end, or without the padding of a row that was stopped otherwise.

    >>> recorder = AnswerRecorder()
    >>> recorder.ends, recorder.pad = [2], 0
    >>> used_ids([5, 2, 2, 0], recorder), used_ids([5, 6, 0, 0], recorder), used_ids([0, 0], recorder)
    ([5, 2], [5, 6], [0])
    """
    for place, token in enumerate(new, start=1):
        if token in recorder.ends:
            return new[:place]
    size = len(new)
    while size > 1 and new[size - 1] == recorder.pad:
        size -= 1
    return new[:size]


class HeldStreamer:
    """A streamer that gets the caller's prompt, then the tokens of the answer.

    Args:
        streamer: the caller's.
        prompt: its ids (1, length).
        skip: whether a loop puts a prompt first, which is left out.
    """

    def __init__(self, streamer: Any, prompt: Tensor, skip: bool = False):
        self.streamer, self.skip = streamer, skip
        streamer.put(prompt.cpu())

    def put(self, value: Tensor) -> None:
        """Pass tokens on."""
        if self.skip:
            self.skip = False
            return
        self.streamer.put(value)

    def end(self) -> None:
        """End the stream."""
        self.streamer.end()
