"""Configuration of a SemCoT model: the frozen host LLM, the implicit-token generator, and how tokens are made."""

import os
from os import PathLike
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .checksums_semcot import content_checksum
from .escalation_semcot import Escalation
from .folders_semcot import check_target, is_folder

GENERATOR_MODES = ("parallel", "sequential")
PROJECTIONS = ("linear", "identity", "vocabulary")
THOUGHT_LENGTHS = ("fixed", "adaptive")
MAX_LOST_PROBABILITY = 0.25
# The parts of a prompt in which a host scores candidates.
CANDIDATE_PROMPT = {"before", "after", "end", "opening", "closing"}


class SemCoTConfig(PreTrainedConfig):
    """Configuration of a `SemCoTForCausalLM` (SemCoT, arXiv 2510.24940, section 3).

    Args:
        host_config: configuration of the host causal LM, as an object or a dict with a `model_type`.
        generator_config: configuration of the generator's backbone, likewise.
        step_decoder_config: configuration of the causal LM that decodes implicit tokens into text (SIM-CoT,
            arXiv 2509.20317); `None` if the checkpoint has none.
        num_implicit_tokens: k, the default number of implicit tokens in the host's input.
        generator_mode: "parallel" computes all k tokens in one pass over [query, k x <thought>] (the paper);
            "sequential" computes one after another, feeding each hidden state back as the next input.
        state_offset: the generator states that become tokens in parallel mode: 0 for those at the <thought>
            positions, -1 for those one position earlier, as in the authors' published checkpoints.
        feedback_scale: factor on the hidden state that is fed back in sequential mode, which brings it to the scale
            of the generator's word embeddings.
        projection: "linear" maps generator states to the host's hidden size. "identity" passes them unchanged (equal
            sizes needed). "vocabulary" makes each token a mixture of the host's word embeddings, weighted by the
            generator's next-token distribution (its LM head, trained further), and feeds the same mixture of the
            generator's word embeddings back in sequential mode. With separate_generator_tokenizer, the host's mixtures
            are made of the words that both vocabularies write alike.
        thought_length: "fixed" makes `num_implicit_tokens` tokens for each question. "adaptive" lets the generator end
            each question's thought by itself, before the first token whose most probable word is an end-of-thought
            token; `num_implicit_tokens` is then the limit. It needs generator_mode="sequential" and
            projection="vocabulary".
        end_of_thought_token_ids: the generator's token ids that end a thought; its end-of-sequence tokens if `None`.
        mixture_top_k: number of most probable words in each mixture, whose weights are normalized to sum to 1; 1 gives
            the words themselves, 0 or `None` all words.
        mixture_temperature: temperature of the next-token distribution that weighs a mixture.
        word_feedback: whether the generator reads its most probable word after each step, as in ordinary decoding,
            instead of the mixture; the host reads mixtures either way.
        num_candidates: thoughts that a sequential generator with projection="vocabulary" makes for each question: the
            most probable words, and others by arithmetic sampling (arXiv 2210.15458). The host reads the one whose
            score is the highest. Where gradients are enabled, one thought is made.
        candidate_temperature: of the distributions that the other candidates are drawn from.
        candidate_host_weight: a candidate's score is its log-probability by the generator plus this times the one by
            the host, what stands behind it included; 0 leaves the choice to the generator.
        candidate_prompt: token ids of the prompt in which the host scores candidates, as `candidate_prompt_fields`
            makes them of worked examples: those "before" and "after" each question and the "end" behind a thought, and
            those "opening" and "closing" a question in the host's prompts. With `None`, or in prompts with
            `few_shot_ids`, it scores a candidate where this stands, with the answer prompt behind it.
        max_lost_probability: with mixtures and a generator of another tokenizer, the largest share of one token's
            mixture that may be on words that the host lacks. A thought with a token above it is handed over as text:
            its most probable words are re-tokenized for the host. 1 always gives mixtures; `None` is
            `MAX_LOST_PROBABILITY` for thoughts of adaptive length, and 1 for those of fixed length, whose number of
            tokens cannot change.
        starts_with_thought_token: whether <thought> stands between the query and the first token. `False` lets a
            sequential generator continue the query as a language model does: its state at the query's last token gives
            the first token.
        thought_prompt_ids: the generator's token ids before and after each question, such as those of worked examples;
            `None` has the generator read the host's prompt as it is.
        question_marker_ids: with a thought prompt, the host's token ids between which the question is found in a
            prompt: those that open the last user message and those that close it, as `find_question` reads them.
        question_spaces: with a thought prompt and a generator of another tokenizer, the white space before and after
            each question in the generator's text, with which its tokenizer may join the question's words.
        answer_prompt_ids: token ids that end a prompt and follow the implicit tokens, such as those of "\\nAnswer:".
            The tokens are inserted before them, or at the end of a prompt that does not end with them.
        few_shot_ids: the host's token ids of worked examples (few-shot) that the checkpoint's chat template puts
            before a question. The host reads them before implicit tokens; the generator does not, nor does the host
            where escalation has it answer without them.
        escalation: when the host reasons in words after an implicit answer: the dictionary of an `Escalation`, which
            `semcot calibrate` writes and `generate(escalation=True)` reads; `None` without a calibration.
        separate_generator_tokenizer: whether the generator has its own tokenizer; the checkpoint then has both.
        includes_host: whether the checkpoint contains the host's weights (whole layout).
        host_name_or_path: id or path of the host's weights, from which the attached layout loads them.
        host_revision, host_subfolder, host_variant, host_gguf_file: the arguments of `from_pretrained` that choose
            among the files of this id or path.
        host_fingerprint: digests of the host's weights (`weights_fingerprint`), which loading compares; `None` for
            weights that could not be read, such as quantized ones.
        generator_name_or_path: the model that the generator was initialized from.
        weights_checksum, generation_checksum, own_tokenizers_checksum: checksums of the weights, of
            generation_config.json and of the two tokenizers of `separate_generator_tokenizer`, which saving writes and
            loading compares; a loaded model has none.
        tokenizer_checksum: checksum of the tokenizer that the model was trained with, which the trainer records and
            the commands compare.

    Raises:
        ValueError: for a value out of range; the message names the argument, the value and the remedy.
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
    thought_length: str = "fixed"
    end_of_thought_token_ids: list[int] | None = None
    mixture_top_k: int | None = None
    mixture_temperature: float = 1.0
    word_feedback: bool = False
    num_candidates: int = 1
    candidate_temperature: float = 1.0
    candidate_host_weight: float = 0.5
    candidate_prompt: dict[str, list[int]] | None = None
    max_lost_probability: float | None = None
    starts_with_thought_token: bool = True
    thought_prompt_ids: list[list[int]] | None = None
    question_marker_ids: list[list[int]] | None = None
    question_spaces: list[str] | None = None
    answer_prompt_ids: list[int] | None = None
    few_shot_ids: list[int] | None = None
    escalation: dict[str, Any] | None = None
    separate_generator_tokenizer: bool = False
    includes_host: bool = False
    host_name_or_path: str | None = None
    host_revision: str | None = None
    host_subfolder: str | None = None
    host_variant: str | None = None
    host_gguf_file: str | None = None
    host_fingerprint: str | None = None
    generator_name_or_path: str | None = None
    weights_checksum: str | None = None
    generation_checksum: str | None = None
    tokenizer_checksum: str | None = None
    own_tokenizers_checksum: str | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        self.check_fields()
        self.auto_map = {
            "AutoConfig": "configuration_semcot.SemCoTConfig",
            "AutoModel": "modeling_semcot.SemCoTForCausalLM",
            "AutoModelForCausalLM": "modeling_semcot.SemCoTForCausalLM",
        }
        kwargs.pop("auto_map", None)
        if self.host_config is not None:
            host = text_config(self.host_config)
            self.tie_word_embeddings = host.tie_word_embeddings
            for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
                kwargs.setdefault(token, getattr(host, token, None))
        parts = [part for name in self.sub_configs if (part := getattr(self, name)) is not None]
        attention = [part._attn_implementation for part in parts]
        super().__post_init__(**kwargs)
        if kwargs.get("attn_implementation") is None:
            # The base class writes its own unset choice into the sub-configurations, which live models share.
            for part, implementation in zip(parts, attention, strict=True):
                part._attn_implementation = implementation

    def __setattr__(self, key: str, value: Any) -> None:
        super().__setattr__(key, value.to_dict() if isinstance(value, Escalation) else value)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        found, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        # Here its place is known.
        _check_file(found, pretrained_model_name_or_path)
        return found, unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        config_dict = dict(config_dict)
        _check_file(config_dict, kwargs.get("name_or_path"))
        config_dict.pop("config_checksum", None)
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"This is a checkpoint of model_type={model_type!r}, not of a SemCoT model: pass it as host or "
                "generator to SemCoTForCausalLM.from_host_generator_pretrained."
            )
        made = super().from_dict(config_dict, **kwargs)
        # Arguments replace fields of the file once these are checked.
        (made[0] if isinstance(made, tuple) else made).check_fields()
        return made

    @classmethod
    def from_json_file(cls, json_file: str | PathLike) -> Any:
        return cls.from_dict(cls._dict_from_json_file(json_file))

    def save_pretrained(self, save_directory: str | PathLike, *args: Any, **kwargs: Any) -> Any:
        """Save the configuration as transformers does, but never over that of the host or the generator.

        Raises:
            ValueError: for the folder of either.
        """
        host = self.host_name_or_path and os.path.join(self.host_name_or_path, self.host_subfolder or "")
        check_target(save_directory, [("host", host), ("generator", self.generator_name_or_path)])
        return super().save_pretrained(save_directory, *args, **kwargs)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Push the configuration alone to the Hub as transformers does, if it names no path of this machine.

        Raises:
            ValueError: for a host in a folder, which nobody finds there.
        """
        if is_folder(self.host_name_or_path) and not self.includes_host:
            raise ValueError(
                f"The configuration names a host in the folder {self.host_name_or_path!r} of this machine: push the "
                "model, by SemCoTForCausalLM.push_to_hub, which includes the host; or set host_name_or_path to its id."
            )
        return super().push_to_hub(*args, **kwargs)

    def to_json_file(self, json_file_path: str | PathLike, use_diff: bool = True) -> None:
        """Write the configuration with a checksum, by which `from_dict` notices a damaged file."""
        written: dict[str, Any] = self.to_diff_dict() if use_diff else self.to_dict()
        self.config_checksum = file_checksum(written)
        try:
            super().to_json_file(json_file_path, use_diff=use_diff)
        finally:
            del self.config_checksum

    def check_fields(self) -> None:
        """Bring fields that were set into the form that the constructor gives them, and check them as it does.

        Raises:
            ValueError: for a value out of range; the message names the argument, the value and the remedy.
        """
        for name in self.sub_configs:
            value = getattr(self, name)
            if isinstance(value, dict):
                setattr(self, name, _config_from_dict(name, value))
        self.answer_prompt_ids = list(self.answer_prompt_ids or [])
        self.few_shot_ids = list(self.few_shot_ids or []) or None
        if self.escalation is not None:
            self.escalation = Escalation.from_dict(self.escalation).to_dict()
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
        self._check_thoughts()
        self.check_candidates()
        if self.projection == "identity" and self.host_config is not None and self.generator_config is not None:
            host_size, generator_size = (
                text_config(config).hidden_size for config in (self.host_config, self.generator_config)
            )
            if host_size != generator_size:
                raise ValueError(
                    f"projection='identity' needs equal hidden sizes, got {generator_size} for the generator and "
                    f"{host_size} for the host: use projection='linear'."
                )

    def _check_thoughts(self) -> None:
        if self.thought_length not in THOUGHT_LENGTHS:
            raise ValueError(f"thought_length={self.thought_length!r}: must be one of {THOUGHT_LENGTHS}.")
        words = self.generator_mode == "sequential" and self.projection == "vocabulary"
        if self.thought_length == "adaptive" and not words:
            raise ValueError(
                f"thought_length='adaptive' with generator_mode={self.generator_mode!r} and "
                f"projection={self.projection!r}: only a generator that continues in words can end its thought: set "
                "generator_mode='sequential' and projection='vocabulary'."
            )
        if self.thought_length == "adaptive" and self.generator_config is not None and not self.thought_ends:
            raise ValueError(
                "thought_length='adaptive' needs a token that ends a thought, but end_of_thought_token_ids is "
                f"{self.end_of_thought_token_ids!r} and the generator's config has no eos_token_id: pass "
                "end_of_thought_token_ids."
            )
        if self.mixture_top_k is not None and self.mixture_top_k < 0:
            raise ValueError(f"mixture_top_k={self.mixture_top_k}: must be 1 or more, or 0 for all words.")
        if not self.mixture_temperature > 0:
            raise ValueError(
                f"mixture_temperature={self.mixture_temperature}: must be above 0; mixture_top_k=1 gives the most "
                "probable word."
            )
        limit = self.max_lost_probability
        if limit is not None and not 0 <= limit <= 1:
            raise ValueError(f"max_lost_probability={limit}: must be from 0 to 1 (mixtures, whatever they lose).")
        if limit is not None and limit < 1 and self.thought_length != "adaptive":
            raise ValueError(
                f"max_lost_probability={limit} with thought_length={self.thought_length!r}: a thought that is handed "
                "over as text has another number of tokens: set thought_length='adaptive', or max_lost_probability=1."
            )
        if not self.starts_with_thought_token and self.generator_mode != "sequential":
            raise ValueError(
                "starts_with_thought_token=False belongs to generator_mode='sequential': parallel tokens are read at "
                "<thought> positions."
            )
        for name in ("thought_prompt_ids", "question_marker_ids", "question_spaces"):
            pair = getattr(self, name)
            if pair is not None and len(pair) != 2:
                kind = "strings" if name == "question_spaces" else "lists of token ids"
                raise ValueError(f"{name} has {len(pair)} parts: must be two {kind}.")

    def check_candidates(self) -> None:
        """Raise ValueError for settings of candidates out of range, or without thoughts in words."""
        number = self.num_candidates
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"num_candidates={number!r}: must be an integer of 1 or more.")
        if number > 1 and (self.generator_mode, self.projection) != ("sequential", "vocabulary"):
            raise ValueError(
                f"num_candidates={number} with generator_mode={self.generator_mode!r} and "
                f"projection={self.projection!r}: only thoughts in words can be drawn: set "
                "generator_mode='sequential' and projection='vocabulary', or num_candidates=1."
            )
        if self.candidate_prompt is not None and {*self.candidate_prompt} != CANDIDATE_PROMPT:
            raise ValueError(
                f"candidate_prompt has the keys {sorted(self.candidate_prompt)}: must have "
                f"{', '.join(sorted(CANDIDATE_PROMPT))}, each a list of token ids."
            )
        if not self.candidate_temperature > 0:
            raise ValueError(f"candidate_temperature={self.candidate_temperature}: must be above 0.")
        if not self.candidate_host_weight >= 0:
            raise ValueError(f"candidate_host_weight={self.candidate_host_weight}: must be 0 or more.")

    @property
    def thought_ends(self) -> list[int]:
        """The generator's token ids that end a thought."""
        ends: Any = self.end_of_thought_token_ids
        if ends is None and self.generator_config is not None:
            ends = text_config(self.generator_config).eos_token_id
        return [ends] if isinstance(ends, int) else list(ends or [])

    @property
    def lost_limit(self) -> float:
        """The value of `max_lost_probability`, or its default."""
        if self.max_lost_probability is not None:
            return self.max_lost_probability
        return MAX_LOST_PROBABILITY if self.thought_length == "adaptive" else 1.0

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """Return the host's configuration, which caches, vocabulary checks and context limits refer to."""
        return self if self.host_config is None else text_config(self.host_config, decoder, encoder)

    @property
    def vocab_size(self) -> int | None:
        return self.get_text_config().vocab_size if self.host_config is not None else None

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        self.get_text_config().vocab_size = value

    @property
    def hidden_size(self) -> int | None:
        return self.get_text_config().hidden_size if self.host_config is not None else None

    @property
    def num_hidden_layers(self) -> int | None:
        return self.get_text_config().num_hidden_layers if self.host_config is not None else None

    @property
    def num_attention_heads(self) -> int | None:
        return self.get_text_config().num_attention_heads if self.host_config is not None else None

    @property
    def num_key_value_heads(self) -> int | None:
        return getattr(self.get_text_config(), "num_key_value_heads", None) if self.host_config is not None else None

    @property
    def max_position_embeddings(self) -> int:
        """Positions for prompt and new tokens: what host and generator have, less the default implicit tokens.

        Of the generator's, those of its thought prompt are left out as well.

        Clients such as lm-evaluation-harness read it to cut prompts.

        Raises:
            AttributeError: if neither part has a limit, as for a configuration without one.
        """
        limits = [part.max_position_embeddings - others for part, others in self._limited_parts()]
        if not limits:
            raise AttributeError("max_position_embeddings: neither host nor generator has a limit")
        return max(1, min(limits))

    @max_position_embeddings.setter
    def max_position_embeddings(self, value: int) -> None:
        for part, others in self._limited_parts():
            part.max_position_embeddings = value + others

    def _limited_parts(self) -> list[tuple[Any, int]]:
        """Return the text configurations with a limit on positions, and how many are neither prompt nor new tokens."""
        parts = [self.host_config, None if self.separate_generator_tokenizer else self.generator_config]
        shown = (0, sum(map(len, self.thought_prompt_ids or [])))
        found = [(text_config(part), length) for part, length in zip(parts, shown, strict=True) if part is not None]
        return [
            (part, length + self.num_implicit_tokens)
            for part, length in found
            if getattr(part, "max_position_embeddings", None)
        ]


def text_config(
    config: dict | PreTrainedConfig | None, decoder: bool | None = None, encoder: bool | None = None
) -> PreTrainedConfig:
    """Return the text model's part of a sub-configuration of `SemCoTConfig`, which holds objects once it is made.

    Raises:
        ValueError: if the sub-configuration is missing.
    """
    if not isinstance(config, PreTrainedConfig):
        raise ValueError(f"host_config or generator_config is {config!r}: a SemCoT model needs both.")
    return config.get_text_config(decoder=decoder, encoder=encoder)


def file_checksum(content: dict[str, Any]) -> str:
    """Return the checksum of a config.json, apart from what names places, or has a checksum of its own."""
    apart = {"generator_name_or_path", "weights_checksum", "config_checksum", "transformers_version"}
    apart |= {
        f"host_{name}" for name in ("name_or_path", "revision", "subfolder", "variant", "gguf_file", "fingerprint")
    }
    kept = {key: value for key, value in content.items() if key not in apart and not key.startswith("_")}
    return content_checksum(kept)


def _check_file(content: dict[str, Any], name: str | PathLike | None) -> None:
    """Raise ValueError for the content of a config.json that is not the one its checksum was made of."""
    checksum = content.get("config_checksum")
    if checksum is not None and checksum != file_checksum(content):
        raise ValueError(
            f"The config.json of {str(name or 'a SemCoT checkpoint')!r} is not as it was saved: it was damaged or "
            "edited. Copy or download it again; to load it as it is, delete its line config_checksum."
        )


def _config_from_dict(name: str, values: dict[str, Any]) -> PreTrainedConfig:
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"{name} has model_type={model_type!r}, which the installed transformers does not know: "
            "use a model type of transformers, or pass a configuration object."
        )
    return CONFIG_MAPPING[model_type](**{key: value for key, value in values.items() if key != "model_type"})
