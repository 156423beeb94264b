"""transformers' common tests of models and configurations, on SemCoTForCausalLM with and without implicit tokens.

Run by `make common-tests`; see `fetch_and_run.py`.
"""

import unittest

import torch
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, ids_tensor
from transformers import LlamaConfig

from semcot_hf import SemCoTConfig, SemCoTForCausalLM

COUNT = 3


class SemCoTTester:
    """A tiny Llama pair and its inputs; with `completion` the forward passes carry implicit tokens."""

    batch_size, seq_length, vocab_size = 3, 7, 99
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4
    is_training = True

    def __init__(self, completion=0, mode="parallel"):
        self.completion, self.mode = completion, mode
        self.encoder_seq_length = self.key_length = self.seq_length + (COUNT if completion else 0)

    def get_config(self):
        host, generator = (
            LlamaConfig(
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
            for size in (self.hidden_size, 16)
        )
        return SemCoTConfig(
            host_config=host,
            generator_config=generator,
            num_implicit_tokens=COUNT,
            generator_mode=self.mode,
            answer_prompt_ids=[7, 8],
        )

    def prepare_config_and_inputs_for_common(self):
        ids = ids_tensor((self.batch_size, self.seq_length), self.vocab_size)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.completion:
            inputs["completion_mask"] = torch.zeros_like(ids)
            inputs["completion_mask"][:, -self.completion :] = 1
        return self.get_config(), inputs


class CommonTests(ModelTesterMixin):
    all_model_classes = (SemCoTForCausalLM,)
    # Of the host, whose sub-configuration they look into.
    _is_composite = True

    def setUp(self):
        self.model_tester = self.make_tester()
        self.config_tester = ConfigTester(
            self,
            config_class=SemCoTConfig,
            common_properties=["hidden_size", "num_attention_heads", "num_hidden_layers"],
            **self.model_tester.get_config().to_dict(),
        )

    def test_config(self):
        self.config_tester.run_common_tests()


class HostForwardTest(CommonTests, unittest.TestCase):
    """Plain text: the host's forward."""

    make_tester = SemCoTTester


class ParallelTest(CommonTests, unittest.TestCase):
    """Implicit tokens made in parallel stand before the completion."""

    def make_tester(self):
        return SemCoTTester(completion=2)


class SequentialTest(CommonTests, unittest.TestCase):
    """Implicit tokens made one after another."""

    def make_tester(self):
        return SemCoTTester(completion=2, mode="sequential")
