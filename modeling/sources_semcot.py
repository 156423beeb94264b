"""Where host and generator come from: record the host's place, compare tokenizers, refuse what cannot be loaded."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any, NamedTuple, TypeAlias

from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import find_adapter_config_file, is_peft_available, logging
from transformers.utils.hub import cached_file, extract_commit_hash

from .configuration_semcot import SemCoTConfig
from .weights_semcot import is_quantized

logger = logging.get_logger(__name__)
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token")
FILE_ARGUMENTS = (*HUB_ARGUMENTS, "revision", "subfolder")
SHARED_ARGUMENTS = (
    *("dtype", "attn_implementation", "quantization_config"),
    *("device_map", "max_memory", "offload_folder", "offload_buffers"),
)
# Arguments that name other weights of one id or path, and have a field in the configuration.
PLACE_ARGUMENTS = ("revision", "subfolder", "variant", "gguf_file")
# With other arguments the host may have weights that its name alone does not stand for.
KNOWN_ARGUMENTS = {*FILE_ARGUMENTS, *SHARED_ARGUMENTS, *PLACE_ARGUMENTS, "torch_dtype", "trust_remote_code"}
ModelSource: TypeAlias = str | PathLike | PreTrainedModel
TokenizerSource: TypeAlias = str | PathLike | PreTrainedTokenizerBase
# Settings without effect on what a frozen model computes, or that are saved elsewhere.
NO_SETTINGS = {
    *("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "quantization_config"),
    *("use_cache", "output_attentions", "output_hidden_states", "return_dict", "gradient_checkpointing"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "id2label", "label2id", "problem_type"),
}


class HostPlace(NamedTuple):
    """What names a host's weights: id or path and the arguments of `from_pretrained` that choose among its files."""

    name: str | None
    revision: str | None = None
    subfolder: str | None = None
    variant: str | None = None
    gguf_file: str | None = None

    @classmethod
    def recorded(cls, config: SemCoTConfig) -> "HostPlace":
        """Return the place that a configuration names."""
        return cls(config.host_name_or_path, *(getattr(config, f"host_{name}") for name in PLACE_ARGUMENTS))

    @classmethod
    def of_model(cls, host: PreTrainedModel) -> "HostPlace":
        """Return what a model object knows of its place: its name, the commit, and the file in GGUF format."""
        quantization = getattr(host.config, "quantization_config", None)
        name, commit = host.config.name_or_path or None, getattr(host.config, "_commit_hash", None)
        return cls(name, commit, gguf_file=getattr(quantization, "gguf_file", None))

    def is_elsewhere(self, other: "HostPlace") -> bool:
        """Return whether a model object's place is known to be another than `other`, of the same name perhaps."""
        if self.name != other.name or (self.gguf_file is not None and self.gguf_file != other.gguf_file):
            return True
        return self.revision is not None and other.revision is not None and self.revision != other.revision

    def fields(self) -> dict[str, Any]:
        """Return the fields of `SemCoTConfig` that record the place."""
        values = zip(PLACE_ARGUMENTS, self[1:], strict=True)
        return {"host_name_or_path": self.name, **{f"host_{name}": value for name, value in values}}

    def arguments(self) -> dict[str, str]:
        """Return the arguments of `from_pretrained` beside the name."""
        return {name: value for name, value in zip(PLACE_ARGUMENTS, self[1:], strict=True) if value is not None}

    def __str__(self) -> str:
        return " ".join([repr(self.name), *(f"{name}={value}" for name, value in self.arguments().items())])


def settings_of(config: Any) -> dict[str, Any]:
    """Return the values of a host's configuration that change what it computes; those of its parts by dotted names."""
    found: dict[str, Any] = {}
    for name, value in (config if isinstance(config, dict) else config.to_dict()).items():
        if name in NO_SETTINGS or name.startswith("_") or "drop" in name:
            continue
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": setting for inner, setting in settings_of(value).items()}
        else:
            found[name] = list(value) if isinstance(value, tuple) else value
    return found


def changed_settings(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return what differs between two results of `settings_of`, in words; "" for nothing. New names do not count."""
    names = [name for name in before if name in now and before[name] != now[name]]
    return ", ".join(f"{name}={now[name]!r} instead of {before[name]!r}" for name in names)


def folder_of(name: Any, kwargs: dict[str, Any] | None = None) -> str | None:
    """Return the folder on this machine that holds a model's files, as an absolute path; `None` if there is none.

    Args:
        name: its id or path.
        kwargs: arguments of its `from_pretrained`.
    """
    kwargs = kwargs or {}
    if not name:
        return None
    options = {**pick(kwargs, FILE_ARGUMENTS), "local_files_only": True}
    try:
        for file in (kwargs.get("gguf_file") or "config.json", "adapter_config.json"):
            found = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **options)
            if found is not None:
                return os.path.dirname(os.path.abspath(found))
    except (OSError, ValueError):
        # No such model here.
        pass
    return None


def pick(kwargs: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: kwargs[name] for name in names if name in kwargs}


@contextmanager
def readable(what: str, part: str = "a file of weights (*.safetensors)") -> Iterator[None]:
    """Turn the errors of files that cannot be parsed, which name no file, into an OSError with a remedy.

    Args:
        what: the model that is loaded inside the block.
        part: what of it is read.
    """
    try:
        yield
    except Exception as error:
        if not _is_damage(error):
            raise
        raise OSError(f"{what}: {part} is cut off or damaged ({error}): copy or download it again.") from error


def _is_damage(error: Exception) -> bool:
    """Return whether an error is one of those that cut off or damaged files give."""
    # tokenizers raises exceptions of no type of its own.
    return type(error).__name__ in ("SafetensorError", "Exception", "JSONDecodeError", "UnicodeDecodeError")


def load_host(name: str | PathLike, kwargs: dict[str, Any]) -> tuple[PreTrainedModel, HostPlace]:
    """Load a host from an id or path at one commit; return it with what names its weights."""
    check_source("host", name, kwargs)
    file = cached_file(
        name,
        kwargs.get("gguf_file") or "config.json",
        _raise_exceptions_for_missing_entries=False,
        **pick(kwargs, FILE_ARGUMENTS),
    )
    commit = extract_commit_hash(file, None)
    kwargs = {**kwargs, **({} if commit is None else {"revision": commit})}
    with readable(f"The host {str(name)!r}"):
        # None would have transformers ask whether to run code of its own.
        host = AutoModelForCausalLM.from_pretrained(name, **{"trust_remote_code": False, **kwargs})
    if isinstance(host, tuple):
        # With output_loading_info.
        host = host[0]
    # A folder of adapters gives the name of their base.
    place = HostPlace(host.config.name_or_path or None, commit, *(kwargs.get(key) for key in PLACE_ARGUMENTS[1:]))
    return host, place


def load_generator(name: str | PathLike, kwargs: dict[str, Any]) -> PreTrainedModel:
    """Load a generator, a causal LM with its head, whose weights would otherwise be reported as unexpected."""
    check_source("generator", name, kwargs)
    config, _ = PreTrainedConfig.get_config_dict(name, **pick(kwargs, (*FILE_ARGUMENTS, "gguf_file")))
    causal = (config.get("architectures") or ["ForCausalLM" if "gguf_file" in kwargs else ""])[0]
    with readable(f"The generator {str(name)!r}"):
        return (AutoModelForCausalLM if causal.endswith("ForCausalLM") else AutoModel).from_pretrained(name, **kwargs)


def base_of_adapters(name: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return what a SemCoT model is loaded from, if `name` may be a folder of peft's adapters on top of it.

    Args:
        name: id or path of adapters or of a checkpoint.
        kwargs: arguments of `from_pretrained`.

    Returns:
        For adapters, their base model and the arguments for it, in which transformers finds the adapters; for a
        checkpoint, also one that holds adapters itself, what was passed.

    Raises:
        ValueError: if the adapters do not name their base model.
        ImportError: for adapters without peft.
    """
    given = kwargs.get("adapter_kwargs") or {}
    if name is None or "_adapter_model_path" in given:
        return name, kwargs
    place = {**pick(kwargs, FILE_ARGUMENTS), **given}
    place = {key: value for key, value in place.items() if value is not None}
    file = find_adapter_config_file(name, **place)
    if file is None or os.path.isfile(os.path.join(os.path.dirname(file), "config.json")):
        return name, kwargs
    if not is_peft_available():
        raise ImportError(f"{name} holds adapters of peft, which is not installed: pip install peft.")
    config, _ = PreTrainedConfig.get_config_dict(name, _configuration_file="adapter_config.json", **place)
    base = config.get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"{name} holds adapters that do not name their base model (base_model_name_or_path={base!r} in "
            f"adapter_config.json): load the SemCoT model that they belong to, and call "
            f"model.load_adapter({str(name)!r})."
        )
    arguments = {key: value for key, value in kwargs.items() if key not in ("revision", "subfolder")}
    arguments["adapter_kwargs"] = {**pick(kwargs, ("revision", "subfolder")), **given, "_adapter_model_path": name}
    return base, {**arguments, **({"revision": config["revision"]} if config.get("revision") else {})}


def adapter_config(
    peft_model_id: Any = None, adapter_name: str | None = None, peft_config: Any = None, *_: Any, **kwargs: Any
) -> dict[str, Any]:
    """Return the configuration of adapters that `load_adapter` gets with these arguments; {} if there is none."""
    if peft_config is not None:
        return peft_config if isinstance(peft_config, dict) else peft_config.to_dict()
    place = {**pick(kwargs, FILE_ARGUMENTS), **(kwargs.get("adapter_kwargs") or {})}
    place = {key: value for key, value in place.items() if key in FILE_ARGUMENTS and value is not None}
    if peft_model_id is None or find_adapter_config_file(peft_model_id, **place) is None:
        # Loading says what is missing.
        return {}
    return PreTrainedConfig.get_config_dict(peft_model_id, _configuration_file="adapter_config.json", **place)[0]


def check_source(role: str, name: str | PathLike, kwargs: dict[str, Any]) -> None:
    """Refuse a host or generator by its configuration file, before its weights are read; see `check_part`."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(name, **pick(kwargs, (*FILE_ARGUMENTS, "gguf_file")))
    except (OSError, ValueError):
        # A folder of adapters has none; for a wrong name, loading says what is missing.
        return
    if config:
        own_code = bool(kwargs.get("trust_remote_code")) and "auto_map" in config
        _check_type(role, repr(str(name)), config.get("model_type"), own_code)


def check_source_type(role: str, source: Any) -> None:
    """Raise ValueError for a host or generator that is neither a model of transformers nor names one."""
    if not isinstance(source, PreTrainedModel) and not (isinstance(source, str | PathLike) and str(source)):
        raise ValueError(f"{role}={str(source)[:80]!r}: pass an id, a path, or a model of transformers.")


def check_part(role: str, part: PreTrainedModel) -> None:
    """Raise ValueError for a part that could not be used, or not be saved and loaded again.

    These are SemCoT models, models with code of their own, quantized generators and step decoders, encoder-decoders,
    and hosts and step decoders that do not write text from left to right.
    """
    if not isinstance(part, PreTrainedModel):
        raise ValueError(f"{role}={str(part)[:80]!r}: pass a model of transformers, without peft's wrapper.")
    own_code = any(type(item).__module__.startswith("transformers_modules") for item in (part, part.config))
    _check_type(role, f"a {type(part).__name__}", part.config.model_type, own_code)
    if role != "host" and is_quantized(part):
        raise ValueError(
            f"{role} is quantized, and its weights are trained and saved: load it without quantization_config, "
            "from a checkpoint with ordinary weights."
        )

    name = f"{role} is a {type(part).__name__} (model_type={part.config.model_type!r})"
    if part.config.is_encoder_decoder:
        raise ValueError(f"{name}, an encoder-decoder, which has two inputs: take a decoder, such as a Llama.")
    if role != "generator" and not part.can_generate():
        raise ValueError(f"{name}, which writes no text: take a causal LM, as AutoModelForCausalLM loads it.")
    if role != "generator" and is_bidirectional(part):
        raise ValueError(
            f"{name}, an encoder, whose tokens see those behind them, so that it cannot write text: take a causal LM, "
            "or set is_decoder=True in its config before loading it if it was trained so."
        )


def is_bidirectional(model: PreTrainedModel) -> bool:
    """Return whether a model's tokens see those behind them, as in encoders such as BERT."""
    causal: list[Any] = [module.is_causal for module in model.modules() if hasattr(module, "is_causal")]
    # Older families have the switch in their configuration alone.
    return not any(causal) if causal else getattr(model.config, "is_decoder", None) is False


def _check_type(role: str, name: str, model_type: Any, own_code: bool) -> None:
    if model_type == SemCoTConfig.model_type:
        raise ValueError(
            f"{role}={name} is a SemCoT model, of which only a part would be used: load it by "
            f"SemCoTForCausalLM.from_pretrained, and pass its `.{role}`, or the model that its part was made of."
        )
    if own_code or (model_type is not None and model_type not in CONFIG_MAPPING):
        raise ValueError(
            f"{role}={name} (model_type={model_type!r}) has code of its own, which no SemCoT checkpoint has: "
            "take a model type of transformers" + (", without trust_remote_code." if own_code else ".")
        )


def shares_tokenizer(host_tokenizer: PreTrainedTokenizerBase, generator_tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the generator can read the host's ids: each host token has the same id in both vocabularies."""
    return host_tokenizer.get_vocab().items() <= generator_tokenizer.get_vocab().items()


def own_tokenizers(*parts: tuple[ModelSource, dict[str, Any] | None]) -> list[PreTrainedTokenizerBase | None]:
    """Return the tokenizers of host and generator if they differ; `None` for both if they are one, or one is missing.

    Args:
        parts: (id, path or model, arguments of its `from_pretrained`) of the host and of the generator. A model object
            has the tokenizer of the id or path that it was loaded from, if that is on this machine.
    """
    found: list[PreTrainedTokenizerBase | None] = []
    for part, kwargs in parts:
        found.append(_tokenizer_of(part, kwargs or {}))
        if found[-1] is None:
            return [None, None]
    host_tokenizer, generator_tokenizer = found
    if host_tokenizer is None or generator_tokenizer is None or shares_tokenizer(host_tokenizer, generator_tokenizer):
        return [None, None]
    return found


def load_tokenizer(source: TokenizerSource, argument: str, kwargs: dict[str, Any] | None) -> PreTrainedTokenizerBase:
    """Return a tokenizer, loaded from an id or path, without asking whether to run code of its own.

    Args:
        source: the tokenizer, or its id or path.
        argument: name of the argument that holds `kwargs`.
        kwargs: arguments that a model is loaded with, of which `trust_remote_code` runs such code.

    Raises:
        ValueError: for code of its own that is not trusted.
    """
    if isinstance(source, PreTrainedTokenizerBase):
        return source
    trusted = bool((kwargs or {}).get("trust_remote_code"))
    try:
        # None would have transformers ask.
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trusted)
    except ValueError as error:
        if trusted or "auto_map" not in get_tokenizer_config(source):
            raise
        raise ValueError(
            f"The tokenizer of {str(source)!r} has code of its own: pass trust_remote_code=True in {argument}, which "
            "runs it, or the tokenizer itself."
        ) from error


def tokenizer_of_part(role: str, part: ModelSource, kwargs: dict[str, Any] | None) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a host or generator, downloaded if need be.

    Raises:
        ValueError: if there is none.
    """
    if isinstance(part, PreTrainedModel) and not part.config.name_or_path:
        raise ValueError("tokenizer=None, and host or generator is a model without id or path: pass tokenizer=.")
    found = _tokenizer_of(part, kwargs or {}, False)
    if found is None:
        raise ValueError(
            f"No tokenizer of the {role} is found beside its weights: pass tokenizer=, or trust_remote_code=True in "
            f"{role}_kwargs for one with code of its own."
        )
    return found


def _tokenizer_of(part: ModelSource, kwargs: dict[str, Any], locally: bool = True) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer beside a model's weights, or in the folder above them; `None` if there is none.

    Args:
        part: the model.
        kwargs: arguments of its `from_pretrained`.
        locally: whether that of a model object is looked for on this machine only.
    """
    arguments = {"trust_remote_code": False, **pick(kwargs, (*FILE_ARGUMENTS, "gguf_file", "trust_remote_code"))}
    name: Any = part
    if isinstance(part, PreTrainedModel):
        arguments["local_files_only"], name = locally, part.config.name_or_path
    if not name:
        return None
    found = _tokenizer_at(name, arguments)
    if found is None and not isinstance(part, PreTrainedModel):
        # A folder of adapters may have none beside them: their base has.
        base, options = base_of_adapters(name, pick(kwargs, FILE_ARGUMENTS))
        if base != name:
            return _tokenizer_at(base, {**arguments, **pick(options, ("revision", "subfolder"))})
    return found


def _tokenizer_at(name: Any, arguments: dict[str, Any]) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer at an id or path, or in the folder above its subfolder; `None` if there is none.

    Raises:
        OSError: for a damaged file of a tokenizer.
    """
    above = {name: value for name, value in arguments.items() if name != "subfolder"}
    for options in (arguments, above) if "subfolder" in arguments else (arguments,):
        try:
            with readable(f"The model {str(name)!r}", "its tokenizer (tokenizer.json)"):
                tokenizer = AutoTokenizer.from_pretrained(name, **options)
        except Exception as error:
            if isinstance(error.__cause__, Exception) and _is_damage(error.__cause__):
                raise
            # Each kind of tokenizer has its own error for missing files.
            continue
        # Without files, some kinds are made with special tokens alone.
        if set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
            return tokenizer
    if "auto_map" in get_tokenizer_config(name, **arguments):
        logger.warning(
            f"The tokenizer of {str(name)!r} has code of its own, which is not run, and is not compared: host and "
            "generator are taken to share one. If they do not, pass host_tokenizer and generator_tokenizer; "
            "trust_remote_code=True in host_kwargs or generator_kwargs runs the code."
        )
    return None
