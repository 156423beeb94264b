"""Controls: do answers depend on the content of the implicit tokens or only on their presence?"""

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any, cast

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from ..inference.batches import plan_batches
from ..inference.prompting import pad_left
from ..inference.settings import thinks_adaptively
from ..modeling.candidates_semcot import candidates
from ..modeling.offloading_semcot import execution_device
from .statistics import mcnemar

CONTROL_NAMES = {
    "none": "no tokens (k = 0)",
    "other_question": "another question's tokens",
    "mean": "the mean tokens",
    "noise": "noise of the same norm",
}
CONTROLS = tuple(CONTROL_NAMES)
SIGNIFICANCE = 0.05


def derangement(n: int, seed: int = 0) -> list[int]:
    """Return another question for each of `n` questions: one cycle through all, drawn by Sattolo's algorithm.

    Raises:
        ValueError: for fewer than 2 questions.

    >>> derangement(5, seed=1)
    [3, 4, 1, 2, 0]
    """
    if n < 2:
        raise ValueError(f"n={n}: the control 'other_question' needs at least 2 questions.")
    others, rng = list(range(n)), random.Random(seed)
    for last in range(n - 1, 0, -1):
        chosen = int(rng.random() * last)
        others[last], others[chosen] = others[chosen], others[last]
    return others


def noise_like(tokens: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Return Gaussian noise of the same shape in which each token (last dimension) has the norm of the original.

    >>> tokens = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])
    >>> torch.linalg.vector_norm(noise_like(tokens), dim=-1).round(decimals=4)
    tensor([[5., 2.]])
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(tokens.shape, generator=generator)
    norms = torch.linalg.vector_norm(tokens.float(), dim=-1, keepdim=True)
    return (noise / torch.linalg.vector_norm(noise, dim=-1, keepdim=True) * norms).to(tokens.dtype)


class ControlTokens:
    """The implicit tokens of all evaluation questions, computed on first use, and their controls.

    Args:
        model: a model with implicit tokens.
        prompts: token ids of the questions' prompts.
        batch_size: prompts at once.
        seed: of the other question and the noise.
        num_candidates: thoughts made for each question, of which one is taken; `None` means the model's own number.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[list[int]],
        *,
        batch_size: int,
        seed: int = 0,
        num_candidates: int | None = None,
    ):
        self.model, self.prompts, self.batch_size, self.seed = model, prompts, batch_size, seed
        self.num_candidates = num_candidates

    @cached_property
    def _made(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        device = execution_device(self.model.get_input_embeddings())
        make = cast(Callable[..., Any], self.model.implicit_embeddings)
        options = {"return_mask": True} if thinks_adaptively(self.model) else {}
        made: dict[int, torch.Tensor] = {}
        masks: dict[int, torch.Tensor] = {}
        for batch in plan_batches([len(prompt) for prompt in self.prompts], self.batch_size):
            ids, mask = pad_left([self.prompts[index] for index in batch])
            number = self.num_candidates
            with torch.no_grad(), nullcontext() if number is None else candidates(self.model, number):
                tokens = make(ids.to(device), mask.to(device), **options)
            if options:
                tokens, used = tokens
                masks.update(zip(batch, used.cpu(), strict=True))
            made.update(zip(batch, tokens.cpu(), strict=True))
        order = range(len(self.prompts))
        tokens = pad_sequence([made[index] for index in order], batch_first=True)
        return tokens, pad_sequence([masks[index] for index in order], batch_first=True) if masks else None

    @property
    def tokens(self) -> torch.Tensor:
        """Implicit tokens of every question, (questions, k, host hidden size), on the CPU."""
        return self._made[0]

    @property
    def mask(self) -> torch.Tensor | None:
        """Which tokens are used, (questions, k), if thoughts have different lengths; else `None`."""
        return self._made[1]

    @cached_property
    def _others(self) -> list[int]:
        return derangement(len(self.prompts), self.seed)

    @cached_property
    def _mean(self) -> torch.Tensor:
        tokens, mask = self._made
        if mask is None:
            return tokens.float().mean(dim=0).to(tokens.dtype)
        return (tokens.float().sum(dim=0) / mask.sum(dim=0)[:, None].clamp(min=1)).to(tokens.dtype)

    @cached_property
    def _noise(self) -> torch.Tensor:
        return noise_like(self.tokens, self.seed)

    def embeddings(self, control: str, indices: list[int]) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return a control's implicit embeddings (len(indices), k, host hidden size) for the questions at `indices`.

        For thoughts of different lengths, a pair of these and their mask (len(indices), k) is returned.

        Args:
            control: "other_question" (each question gets the tokens of another one, drawn once, and their number),
                "mean" (the mean over all questions that have a token at this place, token by token, as many as the
                question's own) or "noise" (Gaussian, of the same norm token by token).
            indices: the questions.
        """
        rows = [self._others[index] for index in indices] if control == "other_question" else indices
        if control == "other_question":
            tokens = self.tokens[rows]
        elif control == "mean":
            tokens = self._mean.expand(len(indices), -1, -1)
        elif control == "noise":
            tokens = self._noise[indices]
        else:
            raise ValueError(f"control={control!r}: must be one of {CONTROLS[1:]}.")
        mask = self._made[1]
        return tokens if mask is None else (tokens, mask[rows])


def verdict(
    semcot: Sequence[bool], no_cot: Sequence[bool], controls: Mapping[str, Sequence[bool]]
) -> tuple[bool, str]:
    """Return whether the implicit tokens carry the reasoning, and the sentence that says so.

    They do when SemCoT is significantly better than no CoT and every control (exact McNemar test, p < 0.05 each; all
    conditions must hold, so multiple testing needs no correction).

    Args:
        semcot, no_cot: verdicts question by question.
        controls: verdicts of each control except "none", which equals no CoT.

    >>> verdict([True] * 9 + [False], [False] * 10, {"noise": [True] * 8 + [False] * 2})[1]
    'It is not shown that the implicit tokens carry the reasoning: SemCoT (90.0 %) is not significantly better than \
noise of the same norm (80.0 %, p = 1.00).'
    >>> verdict([True] * 9 + [False], [False] * 10, {"noise": [False] * 10})
    (True, 'The implicit tokens carry the reasoning: SemCoT (90.0 %) is significantly better than no CoT (0.0 %) and \
than every control (at best noise of the same norm, 0.0 %), paired p < 0.05 each.')
    """
    failed = []
    for name, other in [("no CoT", no_cot), *((CONTROL_NAMES[control], run) for control, run in controls.items())]:
        p_value = mcnemar(semcot, other)
        if p_value >= SIGNIFICANCE:
            failed.append(f"{name} ({_percent(other)}, p = {p_value:.2f})")
        elif sum(semcot) < sum(other):
            failed.append(f"{name} ({_percent(other)}, which is better)")
    if failed:
        return False, (
            f"It is not shown that the implicit tokens carry the reasoning: SemCoT ({_percent(semcot)}) is not "
            f"significantly better than {' or '.join(failed)}."
        )
    best = max(controls, key=lambda control: sum(controls[control]))
    return True, (
        f"The implicit tokens carry the reasoning: SemCoT ({_percent(semcot)}) is significantly better than no CoT "
        f"({_percent(no_cot)}) and than every control (at best {CONTROL_NAMES[best]}, {_percent(controls[best])}), "
        f"paired p < {SIGNIFICANCE} each."
    )


def _percent(verdicts: Sequence[bool]) -> str:
    return f"{100 * sum(verdicts) / len(verdicts):.1f} %"
