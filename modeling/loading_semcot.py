"""Build a SemCoT model from pretrained host and generator, and load checkpoints, the authors' too."""

import functools
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .checksums_semcot import base_state, has_checksum, saved_weights
from .configuration_semcot import SemCoTConfig
from .folders_semcot import TOKENIZERS
from .offloading_semcot import in_memory, memory_left
from .parts_semcot import unquantized
from .saving_semcot import SemCoTSavingMixin, generation_checksum, saved_dtypes
from .sources_semcot import (
    FILE_ARGUMENTS,
    HUB_ARGUMENTS,
    KNOWN_ARGUMENTS,
    SHARED_ARGUMENTS,
    HostPlace,
    ModelSource,
    TokenizerSource,
    base_of_adapters,
    check_part,
    check_source,
    check_source_type,
    load_generator,
    load_host,
    load_tokenizer,
    own_tokenizers,
    pick,
    readable,
    tokenizer_of_part,
)
from .structure_semcot import check_structure, check_whole
from .thought_prompt_semcot import recipe_fields
from .vocabularies_semcot import shared_words
from .weights_semcot import fingerprint

Model = TypeVar("Model", bound="SemCoTLoadingMixin")

logger = logging.get_logger(__name__)


class SemCoTLoadingMixin(SemCoTSavingMixin):
    """`from_host_generator_pretrained`, `from_original` and `from_pretrained` of `SemCoTForCausalLM`."""

    @classmethod
    def from_host_generator_pretrained(
        cls: type[Model],
        host: ModelSource,
        generator: ModelSource,
        *,
        num_implicit_tokens: int | None = None,
        host_kwargs: dict[str, Any] | None = None,
        generator_kwargs: dict[str, Any] | None = None,
        host_tokenizer: TokenizerSource | None = None,
        generator_tokenizer: TokenizerSource | None = None,
        thought_token_id: int | None = None,
        recipe: str | None = None,
        tokenizer: TokenizerSource | None = None,
        thought_prompt: Sequence[Mapping[str, str]] | None = None,
        **config_kwargs: Any,
    ) -> Model:
        """Build a SemCoT model from two pretrained models.

        Args:
            host: id, path or model of the host causal LM; it is frozen. Checkpoints of the attached layout refer to it
                by the id or path it was loaded from; save a modified host first and pass its folder.
            generator: id, path or model (with or without LM head) of the generator.
            num_implicit_tokens: k; 5 if `None`, or the recipe's.
            host_kwargs, generator_kwargs: arguments for their `from_pretrained` (dtype, device_map, revision ...).
            host_tokenizer, generator_tokenizer: ids, paths or tokenizers; pass both if the two models do not share a
                tokenizer. Queries are then re-tokenized for the generator.
            thought_token_id: the generator's token whose embedding initializes <thought>, such as the first word of
                its reasoning; the mean of all embeddings if `None`.
            recipe: "prompted" has an instruct model think in words as it is, without training: sequential mixtures of
                the 8 most probable words, of adaptive length up to 48, by a thought prompt; the generator itself reads
                the most probable word. "words" is the same without a prompt, for a generator that learns its words
                (`SemCoTDistillationConfig.words_max_steps`). Other arguments take precedence over it.
            thought_prompt: chat messages that precede each question in the generator's input, rendered by its chat
                template, or without one as "Question: ..." and "Thought: ...": a system message and worked examples;
                `DEFAULT_THOUGHT_PROMPT` for the recipe. Tokenizers are loaded from where the models were.
            tokenizer: the tokenizer of both models, for a thought prompt and `implicit_text`.
            config_kwargs: further fields of `SemCoTConfig`, such as `generator_mode="sequential"`.

        Returns:
            `SemCoTForCausalLM` with a newly initialized projection and <thought> embedding.

        Raises:
            ValueError: if one tokenizer is passed without the other, or for a token id outside the generator's
                vocabulary or of a generator that reads no <thought>.
        """
        if (host_tokenizer is None) != (generator_tokenizer is None):
            raise ValueError(
                "host_tokenizer and generator_tokenizer go together: pass both, or neither to use the models' own."
            )
        if host_tokenizer is not None and tokenizer is not None:
            raise ValueError(
                "tokenizer is that of both models, and host_tokenizer and generator_tokenizer were passed too: leave "
                "one of the two out."
            )
        named = {"host": (host, host_kwargs), "generator": (generator, generator_kwargs)}
        for role, (given, _) in named.items():
            check_source_type(role, _plain(given))
        tokenizers: list[Any] = [host_tokenizer, generator_tokenizer]
        if host_tokenizer is None and tokenizer is None:
            tokenizers = own_tokenizers((_plain(host), host_kwargs), (_plain(generator), generator_kwargs))
            if tokenizers[0] is not None:
                logger.info(
                    "Host and generator do not share a tokenizer: questions are re-tokenized for the generator."
                )
        tokenizers = [
            None if source is None else load_tokenizer(source, f"{role}_kwargs", options)
            for source, (role, (_, options)) in zip(tokenizers, named.items(), strict=True)
        ]
        if tokenizer is not None:
            both = {**(host_kwargs or {}), **(generator_kwargs or {})}
            tokenizer = load_tokenizer(tokenizer, "host_kwargs or generator_kwargs", both)
        generator = _plain(generator)
        loaded = None if isinstance(generator, PreTrainedModel) else generator
        if not isinstance(generator, PreTrainedModel):
            generator = load_generator(generator, generator_kwargs or {})
        check_part("generator", generator)
        host, place, is_there = _named_host(host, host_kwargs or {})
        backbone: Any = generator.base_model
        if backbone is generator and generator.get_output_embeddings() is not None:
            # Llama 4's base_model_prefix is not the name of its backbone.
            backbone = next(part for part in generator.children() if isinstance(part, PreTrainedModel))
        if loaded is None:
            check_structure("generator", backbone)
        for role, part in (("host", host), ("generator", generator)):
            check_whole(role, part)
        if recipe is not None or thought_prompt is not None or tokenizer is not None:
            separate = tokenizers[0] is not None
            words = tuple(
                tokenizer_of_part(role, _plain(source), options) if words_of is None else words_of
                for words_of, (role, (source, options)) in zip(
                    tokenizers if separate else (tokenizer, tokenizer), named.items(), strict=True
                )
            )
            config_kwargs = {**recipe_fields(recipe, thought_prompt, words, config_kwargs, separate), **config_kwargs}
        default = config_kwargs.pop("num_implicit_tokens", 5)
        config = SemCoTConfig(
            host_config=unquantized(host.config),
            **place.fields(),
            generator_config=unquantized(backbone.config),
            num_implicit_tokens=default if num_implicit_tokens is None else num_implicit_tokens,
            generator_name_or_path=generator.config.name_or_path or None,
            separate_generator_tokenizer=tokenizers[0] is not None,
            **config_kwargs,
        )
        model = cls(config, host=host, generator=backbone)
        model._record_host(is_there)
        for (role, (name, options)), part in zip(named.items(), (host, generator), strict=True):
            source = None if isinstance(_plain(name), PreTrainedModel) else name
            model._note_folders(role, part, source, **(options or {}))
        model.generation_config = host.generation_config
        embeddings = in_memory(backbone.get_input_embeddings())
        if thought_token_id is not None and not config.starts_with_thought_token:
            unused = (
                "with starts_with_thought_token=False, as in the recipes 'words' and 'prompted', no <thought> is read"
            )
            raise ValueError(f"thought_token_id={thought_token_id} has no use: {unused}. Leave it out.")
        if thought_token_id is None:
            model.thought_embedding.data = embeddings.detach().float().mean(dim=0).to(embeddings)
        elif 0 <= thought_token_id < embeddings.shape[0]:
            model.thought_embedding.data = embeddings[thought_token_id].detach().clone()
        else:
            raise ValueError(f"thought_token_id={thought_token_id}: the generator knows {embeddings.shape[0]} tokens.")
        model.projection.to(embeddings)
        model.match_scales()
        if config.projection == "vocabulary" and isinstance(model.projection, nn.Linear):
            head = generator.get_output_embeddings()
            model.projection.weight.data = (embeddings if head is None else in_memory(head)).detach().clone()
        for name, source in zip(TOKENIZERS, tokenizers, strict=True):
            setattr(model, name, source)
        found = model.host_word_ids
        if found is not None:
            sizes = (model.get_input_embeddings().weight.shape[0], found.shape[0])
            found.copy_(shared_words(tokenizers[0], tokenizers[1], *sizes))
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            model.generator_tokenizer = tokenizer
        return model.eval()

    def _record_host(self, found: bool | None) -> None:
        """Record the weights of the host that a new model has, and whether a loader finds them by its name."""
        attached = fingerprint(self.host)
        self._note_host(attached)
        self.config.host_fingerprint = attached and attached.text
        self._host_is_there = found

    @classmethod
    def from_original(
        cls: type[Model],
        path_or_id: str | PathLike,
        host: ModelSource,
        *,
        num_implicit_tokens: int = 1,
        host_kwargs: dict[str, Any] | None = None,
        answer_prompt_ids: list[int] | None = None,
        **kwargs: Any,
    ) -> Model:
        """Load a checkpoint published by the authors of SemCoT (`jonathanhe123/SemCoT-*`).

        Such a checkpoint contains the projection and the generator's backbone, with <thought> as an extra last row
        of its embedding table; its config.json names the generator. Its tokens are the states one position before the
        <thought> positions (`config.state_offset=-1`).

        Args:
            path_or_id: folder or Hub id of the checkpoint.
            host: id, path or model of the host that it was trained with.
            num_implicit_tokens: k; the authors train with 5 and evaluate with 1.
            host_kwargs: arguments for the host's `from_pretrained`.
            answer_prompt_ids: field of `SemCoTConfig`.
            kwargs: arguments for loading the generator, such as dtype, device_map and revision.

        Raises:
            ValueError: if the folder contains no such checkpoint, or the host has another hidden size.
        """
        hub = pick(kwargs, HUB_ARGUMENTS)
        original, _ = PreTrainedConfig.get_config_dict(path_or_id, **pick(kwargs, FILE_ARGUMENTS))
        if not {"model_name", "teacher_hid_dim"} <= original.keys():
            raise ValueError(
                f"{path_or_id} has no model_name and teacher_hid_dim in its config.json, which the authors' "
                "checkpoints have: load a checkpoint of this package by from_pretrained."
            )
        host, place, found = _named_host(host, {**hub, **(host_kwargs or {})})
        width = host.config.get_text_config().hidden_size
        if width != original["teacher_hid_dim"]:
            raise ValueError(
                f"host has hidden_size={width}, but {path_or_id} was trained with a host of "
                f"hidden_size={original['teacher_hid_dim']}: pass that host."
            )
        generator_config = AutoConfig.from_pretrained(original["model_name"], trust_remote_code=False, **hub)
        words = generator_config.get_text_config().vocab_size
        generator_config.get_text_config().vocab_size = words + 1
        config = SemCoTConfig(
            host_config=unquantized(host.config),
            **place.fields(),
            generator_config=generator_config,
            num_implicit_tokens=num_implicit_tokens,
            state_offset=-1,
            answer_prompt_ids=answer_prompt_ids,
            generator_name_or_path=original["model_name"],
        )
        names = {r"^model\.": "generator.", r"^projection_layer\.": "projection."}
        loaded = super().from_pretrained(path_or_id, config=config, build_host=False, key_mapping=names, **kwargs)
        generator: Any = loaded.generator
        thought = generator.get_input_embeddings().weight[-1].detach().clone()
        generator.resize_token_embeddings(words)
        config.generator_config = generator.config
        # The loaded model would save its weights under the authors' names, so a new one takes its parts.
        model = cls(config, host=host, generator=generator)
        model._record_host(found)
        model._note_folders("host", host, place.name, **place.arguments())
        model.projection, model.thought_embedding.data = loaded.projection, thought
        model.generation_config = host.generation_config
        return model.eval()

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | PathLike | None,
        *model_args: Any,
        config: PreTrainedConfig | str | PathLike | None = None,
        host: ModelSource | None = None,
        host_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Model:
        """Load a checkpoint of either layout.

        The attached layout loads its host from `config.host_name_or_path` at `config.host_revision`. `dtype`,
        `device_map`, `attn_implementation` and `quantization_config` apply to host and generator; without `dtype`,
        each keeps the dtype it was saved in.

        Args:
            pretrained_model_name_or_path: id or path of the checkpoint, or of peft's adapters for one.
            host: a host model, id or path that replaces the recorded one (attached layout only).
            host_kwargs: arguments for the host alone; they take precedence over the shared ones.
            model_args, config, kwargs: as in transformers; fields of `SemCoTConfig` among them replace the
                checkpoint's.

        Raises:
            ValueError: for a field out of range, if a host is passed for a checkpoint that contains its own, the host
                does not fit, or adapters do not name their base model.
            OSError: if the checkpoint has no configuration, or the host cannot be found; the message names the place
                that was searched.
        """
        if "torch_dtype" in kwargs:
            kwargs["dtype"] = kwargs.pop("torch_dtype")
        if kwargs.get("dtype", "auto") in (None, "auto"):
            # Host and generator may have different dtypes.
            kwargs.pop("dtype", None)
        pretrained_model_name_or_path, kwargs = base_of_adapters(pretrained_model_name_or_path, kwargs)
        if not isinstance(config, PreTrainedConfig):
            source: Any = config or pretrained_model_name_or_path
            config = SemCoTConfig.from_pretrained(source, **pick(kwargs, FILE_ARGUMENTS))
            for name in [name for name in kwargs if hasattr(config, name) and name not in SHARED_ARGUMENTS]:
                setattr(config, name, kwargs.pop(name))
            config.check_fields()
        if host is not None:
            check_source_type("host", _plain(host))
        if pretrained_model_name_or_path is None and host is None:
            # As for any model of transformers, all weights come from `state_dict`, the host's too.
            return super().from_pretrained(None, *model_args, config=config, **kwargs)
        if config.host_config is None or config.generator_config is None:
            raise OSError(
                f"{pretrained_model_name_or_path} has no config.json that names host and generator: pass the id or "
                "folder of a SemCoT checkpoint."
            )
        # Read before loading: Auto classes write the choice of attention into the config, and loading changes dtypes.
        dtypes: Any = saved_dtypes(config)
        attention = config.host_config._attn_implementation
        stored = {part: dtype for part, dtype in dtypes.items() if config.includes_host or part != "host"}
        apart = "dtype" not in kwargs and None not in stored.values() and len(set(stored.values())) > 1
        options = {**kwargs, "build_host": config.includes_host}
        if config.includes_host and (host is not None or host_kwargs):
            raise ValueError(
                f"{pretrained_model_name_or_path} carries its host: leave host and host_kwargs out, and pass dtype, "
                "device_map and the like directly."
            )
        if apart:
            options["dtype"] = functools.reduce(torch.promote_types, stored.values())
        if isinstance(kwargs.get("device_map"), dict):
            places = kwargs["device_map"] if config.includes_host else _places(kwargs["device_map"], False)
            if places.get("thought_embedding") == "disk" and len(places) > 1:
                # Accelerate offloads modules, and this weight is in none but the whole model.
                places = {**places, "thought_embedding": "cpu"}
            options["device_map"] = places
        checksums = (config.weights_checksum, config.generation_checksum)
        of_tokenizers = config.own_tokenizers_checksum
        config.weights_checksum = config.generation_checksum = config.own_tokenizers_checksum = None
        with readable(f"The checkpoint {str(pretrained_model_name_or_path)!r}"):
            loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **options)
        model: Any = loaded[0] if isinstance(loaded, tuple) else loaded
        # transformers makes all arguments that are left part of the generation configuration.
        vars(model.generation_config).pop("build_host", None)
        if apart:
            saved_names = model.state_dict().keys()
            for name, value in (*model.named_parameters(), *model.named_buffers()):
                # Other buffers, such as the frequencies of rotary positions, keep their precision.
                if value.is_floating_point() and name in saved_names and not value.is_meta:
                    value.data = value.data.to(stored[name.partition(".")[0]])
        if config.includes_host:
            host = model.host
            model._set_host(host)
            model._note_host(fingerprint(host))
        if not kwargs.get("ignore_mismatched_sizes"):
            model._check_checksums(str(pretrained_model_name_or_path), *checksums)
        if not config.includes_host:
            host, place, found = _plain(host), None, None
            if not isinstance(host, PreTrainedModel):
                saved = {"dtype": dtypes["host"] or "auto"}
                saved |= {} if attention is None else {"attn_implementation": attention}
                if kwargs.get("max_memory"):
                    kwargs["max_memory"] = memory_left(model, kwargs["max_memory"])
                host, place, found = _load_host(host, model.config, {**saved, **kwargs}, host_kwargs)
            report = model._attach(host, place, found)
            if report is not None and isinstance(loaded, tuple):
                loaded = (model, report.to_dict())
        for part in TOKENIZERS if model.config.separate_generator_tokenizer else ():
            # None would have transformers ask whether to run code of a tokenizer's own.
            files = {"trust_remote_code": False, **pick(kwargs, (*HUB_ARGUMENTS, "revision", "trust_remote_code"))}
            files["subfolder"] = "/".join(filter(None, (kwargs.get("subfolder"), part)))
            with readable(f"The checkpoint {str(pretrained_model_name_or_path)!r}", f"{part} (tokenizer.json)"):
                setattr(model, part, AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **files))
        if of_tokenizers is not None and of_tokenizers != model._checksum_of_tokenizers():
            raise ValueError(
                f"The tokenizers in {str(pretrained_model_name_or_path)!r} ({', '.join(TOKENIZERS)}) are not those "
                "that were saved there: a file was damaged, or is another checkpoint's. Copy or download the "
                "checkpoint again. To load them all the same, pass own_tokenizers_checksum=None to "
                "SemCoTForCausalLM.from_pretrained."
            )
        return loaded

    def _check_checksums(self, name: str, weights: str | None, generation: str | None) -> None:
        """Compare what was loaded with the checksums in the checkpoint's configuration.

        Raises:
            ValueError: for other weights than those that were saved.
        """
        loaded = saved_weights(self, base_state(self), self.config.includes_host)
        if has_checksum(loaded, weights) is False:
            raise ValueError(
                f"The weights (model*.safetensors) of the checkpoint {name!r} are not those that were saved with its "
                "config.json: a file was damaged, or is another checkpoint's. Copy or download the checkpoint again. "
                "To load it all the same, pass weights_checksum=None to SemCoTForCausalLM.from_pretrained."
            )
        if generation is not None and generation != generation_checksum(self):
            logger.warning(
                f"The generation_config.json of the checkpoint {name!r} is not as it was saved: it was edited or "
                "damaged. If you did not edit it, copy or download it again; if you did, save the model anew."
            )


def _named_host(host: Any, kwargs: dict[str, Any]) -> tuple[PreTrainedModel, HostPlace, bool | None]:
    """Return a host, loaded if it is an id or path, what names its weights, and whether a loader finds them so."""
    host = _plain(host)
    check_source_type("host", host)
    if isinstance(host, PreTrainedModel):
        check_part("host", host)
        check_structure("host", host)
        return host, HostPlace.of_model(host), None
    model, place = load_host(host, kwargs)
    return model, place, (place.name == str(host) and kwargs.keys() <= KNOWN_ARGUMENTS) or None


def _plain(model: Any) -> Any:
    """Return the model inside the wrappers of peft and torch.compile, with its adapters; anything else unchanged."""
    model = getattr(model, "_orig_mod", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _places(device_map: dict[str, Any], of_host: bool) -> dict[str, Any]:
    """Return the part of a device map that concerns the host, under the host's own names, or the rest of it."""
    parts = {part: part == "host" or part.startswith("host.") for part in device_map}
    return {part[5:] if of_host else part: device_map[part] for part, hosts in parts.items() if hosts is of_host}


def _load_host(
    host: Any, config: SemCoTConfig, kwargs: dict[str, Any], host_kwargs: dict[str, Any] | None
) -> tuple[PreTrainedModel, HostPlace, bool | None]:
    """Load the host of an attached checkpoint from `host` or, if `None`, from where the configuration says.

    Returns:
        The host, what names its weights, and whether a loader finds them so (`None`: unknown).
    """
    arguments = pick(kwargs, (*HUB_ARGUMENTS, *SHARED_ARGUMENTS))
    if isinstance(arguments.get("attn_implementation"), dict):
        arguments["attn_implementation"] = arguments["attn_implementation"].get("host_config")
    if isinstance(arguments.get("device_map"), dict):
        arguments["device_map"] = _places(arguments["device_map"], True) or arguments["device_map"]
    recorded = HostPlace.recorded(config)
    name: Any = recorded.name if host is None else host
    if host is None:
        arguments.update(recorded.arguments())
    arguments.update(host_kwargs or {})
    check_source("host", name, arguments)
    try:
        # The configuration of adapters is that of their base.
        base, options = base_of_adapters(name, arguments)
        AutoConfig.from_pretrained(base, **pick(options, (*FILE_ARGUMENTS, "gguf_file")))
    except (OSError, ValueError) as error:
        raise OSError(
            f"This checkpoint holds the generator alone; its host {name!r}"
            + (f" at revision {arguments['revision']}" if "revision" in arguments else "")
            + " could not be found. Pass host= with a path, id or model of that host, or have the checkpoint saved "
            "with include_host=True."
        ) from error
    return _named_host(name, arguments)
