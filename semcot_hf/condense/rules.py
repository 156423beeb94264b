"""Condensation by rules: keep the equations, or the steps without which the host finds the answer less likely."""

from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.equations import equations_of as stated_equations
from ..data.schema import split_steps
from ..inference.prompting import default_answer_prompt, encode_prompt, pad_left, prompt_text, reasoning_before
from ..modeling.offloading_semcot import execution_device
from .journal import Reply
from .requests import Fail, Keep, Request

_ROWS_AT_ONCE = 32


def equations_of(reasoning: str) -> str:
    """Return the equations of a reasoning text in the format of GSM8K-Aug, "" when there are none.

    They are those of `data.equations.equations_of`.

    >>> equations_of("He eats 3, so 16-3 = <<16-3=13>>13 are left. He sells 13*2 = $<<13*2=26>>26 worth.")
    '<<16-3=13>> <<13*2=26>>'
    >>> equations_of("First 1,000 - 250 = 750 dollars. Then $750 x 2 = $1,500, or (1500 + 3) / 3 = 501.")
    '<<1000-250=750>> <<750*2=1500>> <<(1500+3)/3=501>>'
    >>> equations_of("There is no equation, though n = 3.")
    ''
    """
    return " ".join(f"<<{equation}>>" for equation in stated_equations(reasoning))


class EquationSource:
    """Keep the equations; see `equations_of`."""

    is_rule = True
    from_question = False
    fingerprint: Mapping = {"source": "equations"}

    def complete(self, requests: Sequence[Request], keep: Keep, fail: Fail) -> None:
        """Condense all requests."""
        for request in requests:
            keep(request, Reply(equations_of(request.reasoning)))


class SurprisalSource:
    """Keep the steps without which the host finds the answer less likely.

    The host's surprisal is s(S) = -log p(answer | question, steps S, answer prompt), in nats, summed over the answer's
    tokens. Steps are dropped one at a time, each time the step whose removal gives the smallest s, while s stays
    within `max_loss` of its value with all steps: with the kept steps the answer is at least exp(-max_loss) times as
    likely as with all. Of two steps with the same content one is kept, and at least one step in all.

    Args:
        model, tokenizer: the host, put into evaluation mode, and its tokenizer; prompts are those of explicit CoT.
        name: of the model: results of an earlier run are used only under the same name; its path by default.
        max_loss: in nats.
        batch_size: texts per forward pass.

    Raises:
        ValueError: when `max_loss` is negative.
    """

    is_rule = True
    from_question = False

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        max_loss: float = 0.1,
        batch_size: int = 16,
    ):
        if max_loss < 0:
            raise ValueError(f"max_loss={max_loss} must be 0 nats or more.")
        self.model, self.tokenizer = model.eval(), tokenizer
        self.max_loss, self.batch_size = max_loss, batch_size
        name = name or model.config.name_or_path
        self.fingerprint: Mapping = {"source": "surprisal", "model": name, "max_loss": max_loss}

    def complete(self, requests: Sequence[Request], keep: Keep, fail: Fail) -> None:
        """Condense all requests, a chunk of rows at a time."""
        for start in range(0, len(requests), _ROWS_AT_ONCE):
            chunk = requests[start : start + _ROWS_AT_ONCE]
            for request, (steps, before, after) in zip(chunk, self.kept_steps(chunk), strict=True):
                keep(request, Reply(" ".join(steps), surprisal=(round(before, 4), round(after, 4))))

    def kept_steps(self, requests: Sequence[Request]) -> list[tuple[list[str], float, float]]:
        """Return for each request the kept steps, and the surprisal given all steps and given the kept ones."""
        kept = [split_steps(request.reasoning) for request in requests]
        full = self.surprisal(list(zip(requests, kept, strict=True)))
        now = list(full)
        active = [row for row, steps in enumerate(kept) if len(steps) > 1]
        while active:
            tried = [(row, kept[row][:i] + kept[row][i + 1 :]) for row in active for i in range(len(kept[row]))]
            scores = iter(self.surprisal([(requests[row], steps) for row, steps in tried]))
            best: dict[int, tuple[float, list[str]]] = {}
            for (row, steps), score in zip(tried, scores, strict=True):
                if row not in best or score < best[row][0]:
                    best[row] = (score, steps)
            active = []
            for row, (score, steps) in best.items():
                if score <= full[row] + self.max_loss:
                    now[row], kept[row] = score, steps
                    if len(steps) > 1:
                        active.append(row)
        return list(zip(kept, full, now, strict=True))

    @torch.no_grad()
    def surprisal(self, texts: Sequence[tuple[Request, list[str]]]) -> list[float]:
        """Return the surprisal of each request's answer after the given steps, in nats."""
        device = execution_device(self.model.get_input_embeddings())
        encoded, answer_prompt = [], default_answer_prompt(self.tokenizer)
        for request, steps in texts:
            prompt = prompt_text(self.tokenizer, request.query, few_shot=False).removesuffix(answer_prompt)
            reasoning = reasoning_before(" ".join(steps), answer_prompt)
            context = encode_prompt(self.tokenizer, prompt + reasoning + answer_prompt)
            encoded.append((context, encode_prompt(self.tokenizer, f" {request.answer}")))
        order = sorted(range(len(encoded)), key=lambda i: -sum(map(len, encoded[i])))
        scores = [0.0] * len(encoded)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            ids, mask = pad_left([encoded[i][0] + encoded[i][1] for i in batch])
            longest = max(len(encoded[i][1]) for i in batch)
            logits = self.model(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                position_ids=(mask.cumsum(1) - 1).clamp(min=0).to(device),
                logits_to_keep=longest + 1,
            ).logits[:, -longest - 1 : -1]
            targets = ids[:, -longest:].to(device)
            losses = -logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
            for row, i in enumerate(batch):
                scores[i] = losses[row, longest - len(encoded[i][1]) :].sum().item()
        return scores
