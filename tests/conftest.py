"""Shared by all tests: offline, one thread, the optional data folder, a tiny tokenizer and tiny random models."""

import logging
import os
import sys
from functools import wraps

# Read when the libraries are imported, so they are set before any of them is.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

from pathlib import Path  # noqa: E402

# Test files share plain helper modules that stand beside them.
sys.path.insert(0, str(Path(__file__).parent))

import pytest  # noqa: E402
import torch  # noqa: E402
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, set_seed  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402

from semcot_hf import SemCoTForCausalLM  # noqa: E402

torch.set_num_threads(1)

VOCAB_SIZE = 320
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{ '<' + message.role + '>' + message.content + '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<assistant>' }}{%- endif %}"
)

# As in GPT-4's, Llama 3's and Qwen's tokenizers: signs are joined with line breaks, spaces with spaces.
SPLIT = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\p{L}+| \p{L}+|\p{N}|\s*[\r\n]+|\s+(?!\S)|\s+"
JOINED = "a\n\n\nb\n\nc?\n d   e  f) \n g.\n\nh \n\n i\n\n\n Answer:" * 9


@pytest.fixture(scope="session")
def shared_data():
    """The folder with the paper's data sets, beside the repository."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the paper's data sets are not there: ../shared/data is missing")
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE tokenizer of VOCAB_SIZE tokens with a chat template: pad 0, bos 1, eos 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<pad>", "<bos>", "<eos>", "<user>", "<assistant>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    text = "Question: Ann has three apples and gives one to Bob. How many apples has Ann now?\nAnswer: 2"
    tokenizer.train_from_iterator([text] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


@pytest.fixture(scope="session")
def char_tokenizer():
    """One token per character, another order of ids; of the host's special tokens it has <user> only."""
    characters = [chr(code) for code in [*range(126, 31, -1), 10]]
    vocabulary = {token: i for i, token in enumerate(["[pad]", "[bos]", "[unk]", "<user>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[pad]",
        bos_token="[bos]",
        unk_token="[unk]",
        additional_special_tokens=["<user>"],
    )


@pytest.fixture(scope="session")
def joining_tokenizer():
    """A tokenizer that joins line breaks and spaces, as those of most chat models do; it has no chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>", "<user>", "<assistant>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([JOINED], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    for joined in ("\n\n", "\n\n\n", "?\n", "  "):
        assert len(made(joined)["input_ids"]) == 1
    return made


@pytest.fixture(scope="session")
def tiny_lm():
    """Function (family, hidden_size=32, seed=0, dtype=float64, **config) -> a random causal LM in eval mode.

    Weights are drawn wide enough for every input token to matter; in float64 two logits are never equal. No token ends
    a generation unless `eos_token_id` is given.
    """

    def make(family="llama", hidden_size=32, seed=0, dtype=torch.float64, **changes):
        sizes = dict(
            vocab_size=VOCAB_SIZE,
            hidden_size=hidden_size,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            initializer_range=0.2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=None,
        )
        if family == "gpt2":
            for name in ("intermediate_size", "num_key_value_heads"):
                del sizes[name]
        elif family.startswith(("gemma", "qwen3")):
            sizes["head_dim"] = hidden_size // 4
        set_seed(seed)
        config = CONFIG_MAPPING[family](**{**sizes, **changes})
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()

    return make


@pytest.fixture(scope="session")
def tiny_semcot(tiny_lm):
    """Function (host=None, generator=None, num_implicit_tokens=3, **config fields) -> a random SemCoT model."""

    def make(host=None, generator=None, num_implicit_tokens=3, seed=0, **fields):
        host = tiny_lm("llama", seed=seed) if host is None else host
        generator = tiny_lm("llama", hidden_size=16, seed=seed + 1) if generator is None else generator
        set_seed(seed + 2)
        return SemCoTForCausalLM.from_host_generator_pretrained(
            host, generator, num_implicit_tokens=num_implicit_tokens, **fields
        )

    return make


@pytest.fixture
def warnings_of(caplog):
    """Warnings of the package, whose repeats of earlier tests are shown again."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.warning_once.cache_clear()
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


class CapturingBackend:
    """A backend of `torch.compile` that runs graphs as they are and counts how often it is asked for one."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, example_inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def capturing(monkeypatch):
    """Backend for `torch.compile` that captures graphs as the real compiler does, and starts with none kept."""
    torch.compiler.reset()
    # Torch's trace of itself is a log record for each line of what it compiles; pytest would keep them all.
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
    yield CapturingBackend()
    torch.compiler.reset()


@pytest.fixture
def captured(capturing, monkeypatch):
    """The functions that are handed to `torch.compile`, which has the capturing backend whatever is asked for."""
    functions, compile_function = [], torch.compile

    def compile_with_backend(function, **options):
        functions.append(function)
        return compile_function(function, **{**options, "backend": capturing, "options": None})

    monkeypatch.setattr(torch, "compile", compile_with_backend)
    return functions


@pytest.fixture(autouse=True)
def float32_by_default(monkeypatch):
    """Train in float32 by default on every CPU, so that the numbers are the same on all."""
    monkeypatch.setattr("semcot_hf.training.device_defaults.cpu_has_bfloat16", lambda: False)


@pytest.fixture
def read_columns(monkeypatch):
    """Have a model's host note how many columns each of its passes reads."""

    def note(model):
        widths, forward = [], model.host.get_decoder().forward

        # The signature says what a host supports.
        @wraps(forward)
        def noted(input_ids=None, inputs_embeds=None, **kwargs):
            widths.append((inputs_embeds if input_ids is None else input_ids).shape[1])
            return forward(input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)

        monkeypatch.setattr(model.host.get_decoder(), "forward", noted)
        return widths

    return note
