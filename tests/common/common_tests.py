"""transformers' common tests of models and configurations, on SemCoTForCausalLM with and without implicit tokens.

Run by `make common-tests`; see `fetch_and_run.py`.
"""

import json
import unittest

import torch
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, ids_tensor
from transformers import LlamaConfig, Qwen2Config
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from semcot_hf import SemCoTConfig, SemCoTForCausalLM

# By this table the tests tell which classes take labels.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[SemCoTConfig.model_type] = SemCoTForCausalLM.__name__

COUNT, ANSWER = 3, [7, 8]


class SemCoTTester:
    """A tiny pair of models and its inputs.

    Args:
        completion: number of tokens behind the prompt; above 0 the forward passes carry implicit tokens.
        fields: of the model's configuration.
    """

    batch_size, seq_length, vocab_size = 3, 7, 99
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4
    is_training = True

    def __init__(self, completion=0, **fields):
        self.completion = completion
        self.fields = {"num_implicit_tokens": COUNT, "answer_prompt_ids": ANSWER, **fields}
        self.encoder_seq_length = self.key_length = self.seq_length + (COUNT if completion else 0)

    def get_config(self):
        # Two families, since the tests find a part of a configuration by its model type.
        host, generator = (
            family(
                vocab_size=self.vocab_size,
                hidden_size=size,
                intermediate_size=37,
                num_hidden_layers=self.num_hidden_layers,
                num_attention_heads=self.num_attention_heads,
                num_key_value_heads=2,
                max_position_embeddings=64,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
            )
            for family, size in ((LlamaConfig, self.hidden_size), (Qwen2Config, 16))
        )
        return SemCoTConfig(host_config=host, generator_config=generator, **self.fields)

    def prepare_config_and_inputs_for_common(self):
        ids = ids_tensor((self.batch_size, self.seq_length), self.vocab_size)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.completion:
            inputs["completion_mask"] = torch.zeros_like(ids)
            inputs["completion_mask"][:, -self.completion :] = 1
        return self.get_config(), inputs


class CommonTests(ModelTesterMixin):
    all_model_classes = (SemCoTForCausalLM,)
    # Configurations of host and generator lie within the model's.
    _is_composite = True
    # They skip models older than 2023, which they tell by a copyright line.
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        self.model_tester = self.make_tester()
        config = self.model_tester.get_config()
        fields = ("num_implicit_tokens", "generator_mode", "answer_prompt_ids", "projection")
        written = json.loads(config.to_json_string())
        parts = {name: written[name] for name in ("host_config", "generator_config")}
        self.config_tester = ConfigTester(
            self,
            config_class=SemCoTConfig,
            common_properties=["hidden_size", "num_attention_heads", "num_hidden_layers"],
            **parts,
            **{name: getattr(config, name) for name in fields},
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("generation_tests.py runs the tests of generation.")
    def test_generation_tester_mixin_inheritance(self):
        pass

    @unittest.skip("The model is composite: test_can_set_attention_dynamically_composite_model runs instead.")
    def test_sdpa_can_dispatch_non_composite_models(self):
        pass

    @unittest.skip("It replaces the weights of a saved checkpoint, which from_pretrained refuses by their checksum.")
    def test_model_weights_reload_no_missing_tied_weights(self):
        pass

    @unittest.skip("A plain LM's checkpoint lacks the generator: from_pretrained refuses it and says what to do.")
    def test_correct_missing_keys(self):
        pass


NO_GRADIENT = "The host is frozen: without implicit tokens nothing in the forward pass has a gradient."
NEEDS_IDS = "The generator reads ids, so implicit tokens need input_ids; HostForwardTest runs this test."


class HostForwardTest(CommonTests, unittest.TestCase):
    """Plain text: the host's forward."""

    make_tester = SemCoTTester

    @unittest.skip(NO_GRADIENT)
    def test_retain_grad_hidden_states_attentions(self):
        pass

    @unittest.skip(NO_GRADIENT)
    def test_training(self):
        pass

    @unittest.skip(NO_GRADIENT)
    def test_training_gradient_checkpointing(self):
        pass

    @unittest.skip(NO_GRADIENT)
    def test_training_gradient_checkpointing_use_reentrant_false(self):
        pass

    @unittest.skip(NO_GRADIENT)
    def test_training_gradient_checkpointing_use_reentrant_true(self):
        pass


class ParallelTest(CommonTests, unittest.TestCase):
    """Implicit tokens made in parallel stand before the completion."""

    def make_tester(self):
        return SemCoTTester(completion=2)

    @unittest.skip(NEEDS_IDS)
    def test_inputs_embeds(self):
        pass


NO_CHECKPOINTS = "Checkpointed layers drop their cache, which carries the sequential generator from step to step."


class SequentialTest(CommonTests, unittest.TestCase):
    """Implicit tokens made one after another."""

    def make_tester(self):
        return SemCoTTester(completion=2, generator_mode="sequential")

    @unittest.skip(NEEDS_IDS)
    def test_inputs_embeds(self):
        pass

    @unittest.skip(NO_CHECKPOINTS)
    def test_gradient_checkpointing_enable_disable(self):
        pass

    @unittest.skip(NO_CHECKPOINTS)
    def test_peft_gradient_checkpointing_enable_disable(self):
        pass

    @unittest.skip(NO_CHECKPOINTS)
    def test_training_gradient_checkpointing(self):
        pass

    @unittest.skip(NO_CHECKPOINTS)
    def test_training_gradient_checkpointing_use_reentrant_false(self):
        pass

    @unittest.skip(NO_CHECKPOINTS)
    def test_training_gradient_checkpointing_use_reentrant_true(self):
        pass
