"""Condensation by a local causal LM of transformers, in batches."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..inference.answering import Answerer
from ..inference.settings import AnswerSettings
from .journal import Reply
from .requests import Fail, Keep, Request, messages


class LocalSource:
    """Ask a causal LM through its tokenizer's chat template.

    First replies are greedy. Later ones are sampled with a seed that follows from the request, so that a run that is
    killed and resumed with the same batches gets the same replies.

    Args:
        model: the model, put into evaluation mode.
        tokenizer: its tokenizer.
        name: name of the model, by which earlier replies are recognized; its path by default.
        batch_size: questions per batch.
        max_new_tokens: maximum tokens of one reply.
        temperature: of second and later replies.
    """

    is_rule = False

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        batch_size: int = 16,
        max_new_tokens: int = 512,
        temperature: float = 0.7,
    ):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.batch_size, self.max_new_tokens, self.temperature = batch_size, max_new_tokens, temperature
        self.fingerprint = {
            "source": "local",
            "model": name or model.config.name_or_path,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
        }

    def complete(self, requests: Sequence[Request], keep: Keep, fail: Fail) -> None:
        """Answer `requests` batch by batch, the longest prompts first."""
        answerer, prompts, fitting = self._answerer(sampled=False), {}, []
        encoded = answerer.prompts(messages(request) for request in requests)
        for request, prompt in zip(requests, encoded, strict=True):
            problem = answerer.context_problem(len(prompt))
            if problem is not None:
                fail(request, problem)
                continue
            prompts[request.key] = prompt
            fitting.append(request)
        fitting.sort(key=lambda request: (bool(request.earlier), -len(prompts[request.key]), request.key))
        start = 0
        while start < len(fitting):
            batch = fitting[start : start + self.batch_size]
            # Greedy and sampled replies do not share a batch.
            batch = [request for request in batch if bool(request.earlier) == bool(batch[0].earlier)]
            for request, reply in zip(batch, self._generate(batch, prompts), strict=True):
                keep(request, reply)
            start += len(batch)

    def _answerer(self, sampled: bool) -> Answerer:
        settings = AnswerSettings(
            method="cot",
            max_new_tokens=self.max_new_tokens,
            stop=None,
            temperature=self.temperature if sampled else 0.0,
        )
        return Answerer(self.model, self.tokenizer, settings)

    def _generate(self, batch: Sequence[Request], prompts: Mapping[str, list[int]]) -> list[Reply]:
        asked = [prompts[request.key] for request in batch]
        seed = int(batch[0].key[:12], 16) + len(batch[0].earlier)
        parts = self._answerer(bool(batch[0].earlier)).parts(asked, range(len(asked)), seed=seed)
        return [
            Reply(answer.output, not answer.finished, len(asked[index]), answer.new_tokens)
            for indices, answers in parts
            for index, answer in zip(indices, answers, strict=True)
        ]
