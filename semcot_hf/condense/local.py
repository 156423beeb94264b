"""Condensation by a local causal LM of transformers, in batches; also thoughts by worked examples."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..inference.answering import Answerer
from ..inference.prompting import encode_thought_prompts
from ..inference.settings import AnswerSettings
from ..modeling.thought_prompt_semcot import line_ends
from ..storage import text_digest
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
        max_new_tokens: maximum tokens of one reply; `None` means 512, or 96 for thoughts.
        temperature: of second and later replies.
        thought_prompt: chat messages, a system message and worked examples, by which the model writes a row's
            condensed reasoning from the question, as a single line; `None` has it condense a reasoning.
    """

    is_rule = False

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        batch_size: int = 16,
        max_new_tokens: int | None = None,
        temperature: float = 0.7,
        thought_prompt: Sequence[Mapping[str, str]] | None = None,
    ):
        self.model, self.tokenizer, self.thought_prompt = model.eval(), tokenizer, thought_prompt
        self.from_question = thought_prompt is not None
        if max_new_tokens is None:
            max_new_tokens = 96 if self.from_question else 512
        self.batch_size, self.max_new_tokens, self.temperature = batch_size, max_new_tokens, temperature
        self.fingerprint = {
            "source": "local",
            "model": name or model.config.name_or_path,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
        }
        if thought_prompt is not None:
            self.fingerprint["thought_prompt"] = text_digest(thought_prompt)

    def complete(self, requests: Sequence[Request], keep: Keep, fail: Fail) -> None:
        """Answer `requests` batch by batch, the longest prompts first."""
        answerer, prompts, fitting = self._answerer(sampled=False), {}, []
        asked = (messages(request) for request in requests)
        if self.thought_prompt is None:
            encoded = answerer.prompts(asked)
        else:
            shown = self.thought_prompt
            encoded = encode_thought_prompts(
                self.tokenizer, asked, shown, answer_prompt=answerer.answer_prompt, chat=answerer.chat
            )
        for request, prompt in zip(requests, encoded, strict=True):
            problem = answerer.context_problem(prompt)
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
        answerer = Answerer(self.model, self.tokenizer, settings)
        if self.from_question:
            answerer.think_until(line_ends(self.tokenizer))
        return answerer

    def _generate(self, batch: Sequence[Request], prompts: Mapping[str, list[int]]) -> list[Reply]:
        asked = [prompts[request.key] for request in batch]
        seed = int(batch[0].key[:12], 16) + len(batch[0].earlier)
        answerer = self._answerer(bool(batch[0].earlier))
        if self.from_question:
            answerer.share_prefix(asked)
        parts = answerer.parts(asked, range(len(asked)), seed=seed)
        return [
            Reply(answer.output, not answer.finished, len(asked[index]), answer.new_tokens)
            for indices, answers in parts
            for index, answer in zip(indices, answers, strict=True)
        ]
