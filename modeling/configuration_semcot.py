"""Configuration of SemCoT: a frozen host LLM, its implicit-token generator, and where the tokens go."""

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

GENERATOR_MODES = ("parallel", "sequential")
PROJECTIONS = ("linear", "identity", "vocabulary")


class SemCoTConfig(PreTrainedConfig):
    """Configuration of a `SemCoTForCausalLM` (SemCoT, arXiv 2510.24940, section 3).

    Args:
        host_config: configuration of the host causal LM, as an object or a dict with a `model_type`.
        generator_config: configuration of the generator's backbone, likewise.
        step_decoder_config: configuration of the decoder that reads implicit tokens back as text (SIM-CoT,
            arXiv 2509.20317); `None` when the checkpoint carries no reader.
        num_implicit_tokens: k, the number of implicit tokens put into the host's input by default.
        generator_mode: "parallel" makes all k tokens in one pass over [query, k x <thought>] (the paper);
            "sequential" makes them one after another, each state fed back as the next input.
        state_offset: which generator states become tokens in parallel mode: 0 takes the states at the <thought>
            positions; -1 takes those one position earlier, as the authors' published checkpoints do.
        feedback_scale: factor on a state that is fed back in sequential mode, so that it is as large as the
            generator's word embeddings.
        projection: "linear" maps generator states to the host's hidden size; "identity" hands them over as they are
            (equal sizes needed); "vocabulary" makes each token a mixture of the host's word embeddings, by the
            generator's own distribution over the words (its LM head, trained further), and feeds the same mixture of
            the generator's word embeddings back in sequential mode. It needs one tokenizer for both, and with a
            generator that reasons in one word a step, its tokens are soft words from the start.
        answer_prompt_ids: token ids that end a prompt and belong behind the implicit tokens, such as those of
            "\\nAnswer:". The tokens go before them, or at the prompt's end where a prompt does not end on them.
        separate_generator_tokenizer: whether the generator reads queries in its own tokenizer's ids; the checkpoint
            then carries both tokenizers.
        includes_host: whether the checkpoint carries the host's weights (the whole layout).
        host_name_or_path, host_revision, host_subfolder: where the attached layout finds the host's weights: id or
            path, the exact commit, and the folder within.
        generator_name_or_path: the model that the generator was started from.

    Raises:
        ValueError: for a value out of range, naming the argument, the value and the remedy.
    """

    model_type = "semcot"
    sub_configs = {"host_config": AutoConfig, "generator_config": AutoConfig, "step_decoder_config": AutoConfig}

    host_config: dict | PreTrainedConfig | None = None
    generator_config: dict | PreTrainedConfig | None = None
    step_decoder_config: dict | PreTrainedConfig | None = None
    num_implicit_tokens: int = 5
    generator_mode: str = "parallel"
    state_offset: int = 0
    feedback_scale: float = 1.0
    projection: str = "linear"
    answer_prompt_ids: list[int] | None = None
    separate_generator_tokenizer: bool = False
    includes_host: bool = False
    host_name_or_path: str | None = None
    host_revision: str | None = None
    host_subfolder: str | None = None
    generator_name_or_path: str | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        for name in self.sub_configs:
            value = getattr(self, name)
            if isinstance(value, dict):
                setattr(self, name, _config_from_dict(name, value))
        self.answer_prompt_ids = list(self.answer_prompt_ids or [])
        self.auto_map = {
            "AutoConfig": "configuration_semcot.SemCoTConfig",
            "AutoModel": "modeling_semcot.SemCoTForCausalLM",
            "AutoModelForCausalLM": "modeling_semcot.SemCoTForCausalLM",
        }
        kwargs.pop("auto_map", None)
        if self.host_config is not None:
            self.tie_word_embeddings = self.host_config.get_text_config().tie_word_embeddings
            for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
                kwargs.setdefault(token, getattr(self.host_config.get_text_config(), token, None))
        self._check()
        parts = [part for name in self.sub_configs if (part := getattr(self, name)) is not None]
        attention = [part._attn_implementation for part in parts]
        super().__post_init__(**kwargs)
        if kwargs.get("attn_implementation") is None:
            # The base class hands its own unset choice down to configurations that live models share.
            for part, implementation in zip(parts, attention, strict=True):
                part._attn_implementation = implementation

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"This is a checkpoint of model_type={model_type!r}, not of a SemCoT model: pass it as host or "
                "generator to SemCoTForCausalLM.from_host_generator_pretrained."
            )
        return super().from_dict(config_dict, **kwargs)

    def _check(self):
        if self.num_implicit_tokens < 0:
            raise ValueError(f"num_implicit_tokens={self.num_implicit_tokens}: must be 0 or more.")
        if self.generator_mode not in GENERATOR_MODES:
            raise ValueError(f"generator_mode={self.generator_mode!r}: must be one of {GENERATOR_MODES}.")
        if self.state_offset not in (0, -1):
            raise ValueError(f"state_offset={self.state_offset}: must be 0, or -1 for the authors' checkpoints.")
        if self.state_offset == -1 and self.generator_mode != "parallel":
            raise ValueError("state_offset=-1 belongs to generator_mode='parallel': set state_offset=0.")
        if self.projection not in PROJECTIONS:
            raise ValueError(f"projection={self.projection!r}: must be one of {PROJECTIONS}.")
        if self.projection == "vocabulary" and self.separate_generator_tokenizer:
            raise ValueError(
                "projection='vocabulary' mixes the words of one vocabulary, but separate_generator_tokenizer is set: "
                "use projection='linear'."
            )
        if self.projection == "identity" and self.host_config is not None and self.generator_config is not None:
            host_size = self.host_config.get_text_config().hidden_size
            generator_size = self.generator_config.get_text_config().hidden_size
            if host_size != generator_size:
                raise ValueError(
                    f"projection='identity' needs equal hidden sizes, got {generator_size} for the generator and "
                    f"{host_size} for the host: use projection='linear'."
                )

    def get_text_config(self, decoder=None, encoder=None):
        """The host's configuration, which caches, vocabulary checks and length limits are about."""
        return self if self.host_config is None else self.host_config.get_text_config(decoder=decoder, encoder=encoder)

    @property
    def vocab_size(self):
        return self.get_text_config().vocab_size if self.host_config is not None else None

    @vocab_size.setter
    def vocab_size(self, value):
        self.host_config.get_text_config().vocab_size = value

    @property
    def hidden_size(self):
        return self.get_text_config().hidden_size if self.host_config is not None else None

    @property
    def num_hidden_layers(self):
        return self.get_text_config().num_hidden_layers if self.host_config is not None else None

    @property
    def num_attention_heads(self):
        return self.get_text_config().num_attention_heads if self.host_config is not None else None


def _config_from_dict(name, values):
    model_type = values.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"{name} has model_type={model_type!r}, which the installed transformers does not know: "
            "use a model type of transformers, or pass a configuration object."
        )
    return CONFIG_MAPPING[model_type](**{key: value for key, value in values.items() if key != "model_type"})
