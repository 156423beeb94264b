"""transformers' tests of generation, on SemCoTForCausalLM without implicit tokens and with each way to make them.

Run by `SEMCOT_TRANSFORMERS=FOLDER make common-tests`, where FOLDER is a checkout of transformers; see
`fetch_and_run.py`.
"""

import unittest
from unittest.mock import patch

import pytest
from common_tests import ANSWER, SemCoTTester
from tests.generation.test_utils import GenerationTesterMixin
from transformers import GenerationMixin, PreTrainedModel

from semcot_hf import SemCoTForCausalLM

if not hasattr(GenerationTesterMixin, "test_greedy_generate"):
    reason = "the source distribution lacks the tests of generation: set SEMCOT_TRANSFORMERS to a checkout"
    pytest.skip(reason, allow_module_level=True)

EMBEDDED = "The generator reads ids, so implicit tokens need input_ids; HostGenerationTest runs this test."
# Names that tests begin with, and why they are not run with implicit tokens.
SKIPPED = {
    "test_generate_from_random_inputs_embeds": EMBEDDED,
    "test_generate_from_inputs_embeds": EMBEDDED,
    "test_generate_continue_from_inputs_embeds": EMBEDDED,
    "test_generate_without_input_ids": EMBEDDED,
    "test_generate_with_and_without_position_ids": "The model counts positions, those of implicit tokens included.",
}


def with_tokens(tests: type) -> type:
    """Skip the tests of a class that do not apply to implicit tokens."""
    for name in dir(tests):
        reasons = [reason for start, reason in SKIPPED.items() if name.startswith(start)]
        if reasons:
            setattr(tests, name, unittest.skip(reasons[0])(lambda self: None))
    return tests


class GenerationTester(SemCoTTester):
    """Prompts of which the first is padded, and all end on the answer prompt."""

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        ids = inputs["input_ids"].clamp(min=10)
        ids[:, -len(ANSWER) :] = ids.new_tensor(ANSWER)
        ids[0, :2] = 0
        return config, {"input_ids": ids, "attention_mask": (ids != 0).long()}


class GenerationTests(GenerationTesterMixin):
    """Attentions and states are of the host's columns, implicit tokens included."""

    all_generative_model_classes = (SemCoTForCausalLM,)
    has_attentions = True
    fields: dict = {}

    def setUp(self):
        self.model_tester = GenerationTester(**self.fields)

    def _host_lengths(self, lengths):
        count = self.model_tester.fields["num_implicit_tokens"]
        return {name: lengths[name] + count for name in ("prompt_length", "output_length")}

    def _check_attentions_for_generate(self, **values):
        super()._check_attentions_for_generate(**{**values, **self._host_lengths(values)})

    def _check_hidden_states_for_generate(self, **values):
        super()._check_hidden_states_for_generate(**{**values, **self._host_lengths(values)})

    def _check_past_key_values_for_generate(self, batch_size, past_key_values, seq_length, config):
        length = seq_length + getattr(past_key_values, "implicit_count", 0)
        super()._check_past_key_values_for_generate(batch_size, past_key_values, length, config)

    def test_inherits_generation_mixin(self):
        """A base class of the model's inherits GenerationMixin, as opposed to PreTrainedModel."""
        parents = [part for part in SemCoTForCausalLM.__mro__ if GenerationMixin in part.__bases__]
        self.assertTrue(parents and not issubclass(PreTrainedModel, GenerationMixin))

    # They are skipped for models that cannot be compiled as one graph, but need static caches and masks only.

    def test_generate_with_static_cache(self):
        with patch.object(SemCoTForCausalLM, "_can_compile_fullgraph", True):
            super().test_generate_with_static_cache()

    def test_custom_4d_attention_mask(self):
        with patch.object(SemCoTForCausalLM, "_can_compile_fullgraph", True):
            super().test_custom_4d_attention_mask()


class HostGenerationTest(GenerationTests, unittest.TestCase):
    """No implicit tokens: the host's own generation."""

    fields = {"num_implicit_tokens": 0}

    def test_generate_from_inputs_embeds_with_static_cache(self):
        with patch.object(SemCoTForCausalLM, "_can_compile_fullgraph", True):
            super().test_generate_from_inputs_embeds_with_static_cache()


@with_tokens
class ParallelGenerationTest(GenerationTests, unittest.TestCase):
    """Implicit tokens made in parallel."""


@with_tokens
class SequentialGenerationTest(GenerationTests, unittest.TestCase):
    """Implicit tokens made one after another."""

    fields = {"generator_mode": "sequential"}


@with_tokens
class WordsGenerationTest(GenerationTests, unittest.TestCase):
    """Mixtures of words."""

    fields = {"generator_mode": "sequential", "projection": "vocabulary", "mixture_top_k": 4}
