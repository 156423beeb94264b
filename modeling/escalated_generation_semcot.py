"""`generate` with escalation: an implicit answer, its confidence and, where that is low, explicit reasoning."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from .candidates_semcot import candidates
from .escalated_call_semcot import EscalatedCall
from .escalation_semcot import Escalation
from .generation_semcot import SemCoTGenerationMixin
from .thoughts_semcot import Thoughts

# (input ids, attention mask, thoughts) of a batch -> (batch,).
SignalFunction = Callable[[Tensor, Tensor, Thoughts], Tensor]


class SemCoTEscalationMixin(SemCoTGenerationMixin):
    """`generate` with `escalation`; without it, it is that of `SemCoTGenerationMixin`."""

    @torch.no_grad()
    def generate(  # type: ignore[override]  # further arguments are keyword-only
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        *,
        escalation: bool | float | Escalation | Mapping[str, Any] | None = None,
        escalation_signals: Mapping[str, Tensor | SignalFunction] | None = None,
        num_candidates: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate answers with k implicit tokens in the host's input and, where these are not sure, by reasoning.

        Args:
            inputs: LongTensor (batch, length) of prompts, or `input_ids=`; batches padded on the left need
                `attention_mask=`.
            generation_config, logits_processor, stopping_criteria: as in transformers.
            escalation: answers whose confidence is below a threshold are replaced by explicit reasoning of the host,
                which reads the prompt without its answer prompt and without implicit tokens, and writes up to
                `max_reasoning_tokens`. `True` takes the checkpoint's own rule (`config.escalation`); a number is a
                threshold on the confidence of its calibration, or on the probability of the answer's tokens if it has
                none; an `Escalation` or its dictionary is a rule of its own. `None` escalates nothing.
            escalation_signals: signals by name that the model does not compute itself, such as "similarity", or in
                place of its own: a tensor (batch,), or a function of (input ids, attention mask, `Thoughts`).
            num_candidates: thoughts made for each question, of which the host reads one; `config.num_candidates` if
                `None`.
            kwargs: all other arguments of `SemCoTGenerationMixin.generate` and of transformers. With `escalation`,
                prompts must end on the answer prompt, `past_key_values` is a cache of their first columns, which is
                left as it is, and there is one sequence for each prompt, without beams or assistants. A `streamer`
                gets the tokens of the final answer only.

        Returns:
            Prompt ids followed by the new ids, without fillers, or transformers' output objects. With `escalation`,
            rows are padded on the right, and the object is a `SemCoTEscalatedOutput`.

        Raises:
            ValueError: as in `SemCoTGenerationMixin.generate`; for a rule out of range, a checkpoint without
                calibration, a signal that the model does not have, a host that cannot reason in words because the
                prompt does not end on an answer prompt, or an option that does not work with escalation.
        """
        if num_candidates is not None:
            with candidates(self, num_candidates):
                known = {"escalation": escalation, "escalation_signals": escalation_signals, **kwargs}
                return self.generate(inputs, generation_config, logits_processor, stopping_criteria, **known)
        hooks: dict[str, Any] = {"logits_processor": logits_processor, "stopping_criteria": stopping_criteria}
        if escalation is not None:
            rule = Escalation.of(escalation, self.config.escalation)
            if inputs is not None and kwargs.get("input_ids") is not None:
                raise ValueError("inputs and input_ids were both passed: pass one of the two.")
            ids = kwargs.pop("input_ids", None) if inputs is None else inputs
            call = EscalatedCall(self, rule, ids, generation_config, hooks, kwargs, dict(escalation_signals or {}))
            return call.run()
        if escalation_signals is not None:
            raise ValueError("escalation_signals belong to escalation, which is None: pass both.")
        return super().generate(inputs, generation_config, **hooks, **kwargs)

    def signal_problem(self, name: str, num_implicit_tokens: int | None = None) -> str | None:
        """Return why this model does not have a signal of `Escalation`; `None` if it has it.

        Args:
            name: of the signal.
            num_implicit_tokens: k; `config.num_implicit_tokens` if `None`.
        """
        config = self.config
        if name == "similarity":
            return "it needs an alignment encoder, which is no part of a checkpoint"
        if name in ("agreement", "thought_entropy", "thought_ended") and self._check_count(num_implicit_tokens) == 0:
            return "there is no thought with num_implicit_tokens=0"
        if name in ("agreement", "thought_entropy") and config.projection != "vocabulary":
            return f"the implicit tokens of projection={config.projection!r} are no words"
        if name == "agreement" and config.mixture_top_k == 1:
            return "with mixture_top_k=1 the words are hard ones already"
        if name == "thought_ended" and config.thought_length != "adaptive":
            return f"all thoughts of thought_length={config.thought_length!r} have as many tokens"
        return None
