"""`Chooser`: the next token of one answer, by transformers' own logits processors."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from ..inference.decoding import SAMPLING_SETTINGS, decoding_config
from ..inference.settings import makes_implicit_tokens
from ..modeling.offloading_semcot import execution_device
from ..modeling.question_cache_semcot import hidden_settings
from .jobs import RequestError, Sampling

# Below it sampling is greedy decoding, as in vLLM: logits divided by it are no numbers in float32.
_LEAST_TEMPERATURE = 1e-5
# Clients choose the settings, so that there is no end of them.
_REMEMBERED = 1000


def temperature_of(model: PreTrainedModel, sampling: Sampling) -> float:
    """Return the temperature that a request or else the model's generation config asks for; 0 decodes greedily."""
    own, found = model.generation_config, sampling.temperature
    if found is None:
        found = (1.0 if own.temperature is None else own.temperature) if own.do_sample else 0.0
    return 0.0 if found < _LEAST_TEMPERATURE else found


class Chooser:
    """Chooses the tokens of one answer as `generate` does.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        prompt: token ids, which penalties on repetition take into account.
        sampling: settings; what they leave open comes from the model's generation config.
        max_new_tokens: most tokens of the answer.
        index: number of the answer among those of a request; it is added to the seed.
        plain: settings for which `generate` is known to make no logits processors, which takes as long as a decoding
            step of a small host; new ones are added.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: list[int],
        sampling: Sampling,
        max_new_tokens: int,
        index: int = 0,
        plain: set[Sampling] | None = None,
    ):
        own, temperature = model.generation_config, temperature_of(model, sampling)
        self.greedy = temperature == 0
        config = decoding_config(model, tokenizer, max_new_tokens=max_new_tokens, temperature=temperature, stop=None)
        if not self.greedy:
            # transformers would take the 50 most probable tokens where neither request nor model says anything.
            top_k = own.top_k if sampling.top_k is None else sampling.top_k
            config.top_k = 0 if top_k is None else top_k
            config.top_p, config.min_p = sampling.top_p, sampling.min_p
        config.repetition_penalty = sampling.repetition_penalty
        self._device = execution_device(model.get_input_embeddings())
        self._ids = torch.tensor([prompt], device=self._device)
        # Which processors there are depends on the settings and on the model's generation config alone.
        self._settings = settings = replace(sampling, seed=None)
        plain = set() if plain is None else plain
        self._processors = LogitsProcessorList() if settings in plain else self._prepared(model, config)
        if not self._processors and len(plain) < _REMEMBERED:
            plain.add(settings)
        self._random = torch.Generator(self._device)
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed((sampling.seed + index) % 2**63)

    def _prepared(self, model: PreTrainedModel, config: GenerationConfig) -> LogitsProcessorList:
        """Return the logits processors that `generate` makes of a config and the model's defaults."""
        found: list[LogitsProcessorList] = []

        def take(model: Any, input_ids: Tensor, logits_processor: LogitsProcessorList, **_: Any) -> Tensor:
            found.append(logits_processor)
            return input_ids

        options: dict[str, Any] = {"num_implicit_tokens": 0} if makes_implicit_tokens(model) else {}
        generate = cast(Callable[..., Any], model.generate)
        # Stop texts are looked for in the answer's text.
        with hidden_settings(model, "stop_strings", *(SAMPLING_SETTINGS if self.greedy else ())):
            generate(
                input_ids=self._ids,
                attention_mask=torch.ones_like(self._ids),
                generation_config=config,
                custom_generate=take,
                **options,
            )
        return found[0]

    def choose(self, logits: Tensor, best: int) -> int:
        """Return the next token.

        Args:
            logits: (vocabulary,), in float32.
            best: their largest one's id, which greedy decoding without processors takes.

        Raises:
            RequestError: if the settings leave no probabilities.
        """
        token = best
        if self._processors:
            scores = self._processors(cast(Any, self._ids), logits[None])
            token = int(scores.argmax()) if self.greedy else self._drawn(scores)
            self._ids = torch.cat([self._ids, self._ids.new_tensor([[token]])], dim=1)
        elif not self.greedy:
            token = self._drawn(logits[None])
        return token

    def _drawn(self, scores: Tensor) -> int:
        chances = scores.softmax(dim=-1)
        if not chances.isfinite().all():
            given = ", ".join(f"{name}={value}" for name, value in vars(self._settings).items() if value is not None)
            raise RequestError(400, f"The settings {given} leave no probabilities to draw from: choose milder ones.")
        return int(torch.multinomial(chances, 1, generator=self._random))
