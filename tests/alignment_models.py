"""Shared by the tests of stage 1: a tiny host, settings, and snapshots of the weights."""

from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, set_seed

from semcot_hf.alignment.config import SemCoTAlignmentConfig


def make_host(tokenizer, **changes):
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.2,
        **changes,
    )
    return LlamaForCausalLM(config).eval()


def config(folder, **changes):
    defaults = dict(
        embedding_dim=32,
        first_layer=1,
        last_layer=2,
        num_train_epochs=1,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        head_learning_rate=1e-2,
        weight_decay=0.1,
        logging_steps=1,
        disable_tqdm=True,
        use_cpu=True,
        # Module-wide fixtures and runs in processes of their own compute in the same precision as the tests.
        bf16=False,
    )
    return SemCoTAlignmentConfig(str(folder), **{**defaults, **changes})


def snapshot(encoder):
    return {name: value.clone() for name, value in encoder.state_dict().items()}


class Snapshots(TrainerCallback):
    """Weights after every step."""

    def __init__(self):
        self.after = {}

    def on_step_end(self, args, state, control, model, **kwargs):
        self.after[state.global_step] = snapshot(model)
