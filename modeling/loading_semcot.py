"""Adapters (LoRA and the like) of peft inside a model: found, and merged into what is saved."""

import copy
import os

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file, extract_commit_hash

from .configuration_semcot import SemCoTConfig


def adapted_layers(model):
    """(name, layer) of each layer that has adapters on it or a trained copy beside it (peft's `modules_to_save`).

    peft itself need not be there to find none.
    """
    found = []
    for name, module in model.named_modules():
        adapted = hasattr(module, "get_base_layer") and hasattr(module, "merge")
        if (adapted or _is_wrapper(module)) and not any(name.startswith(f"{outer}.") for outer, _ in found):
            found.append((name, module))
    return found


def merged_layer(layer):
    """A copy of the layer that the adapters stand on, with them merged into it; or the trained copy in use."""
    if _is_wrapper(layer) and not hasattr(layer, "token_adapter"):
        active = [] if layer.disable_adapters else layer.active_adapters
        return layer.modules_to_save[active[0]] if active else layer.original_module
    merged = copy.deepcopy(getattr(layer, "token_adapter", layer))
    merged.merge()
    return merged.get_base_layer()


def merged_state(model, state_dict=None):
    """State dict of `model` with its adapters merged into the layers they stand on; `model` stays as it is."""
    state = dict(model.state_dict() if state_dict is None else state_dict)
    for name, layer in adapted_layers(model):
        state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
        state.update({f"{name}.{key}": value for key, value in merged_layer(layer).state_dict().items()})
    return state


def _is_wrapper(module):
    """Whether it is peft's stand-in for a layer that is trained itself, or of which some rows are."""
    return hasattr(module, "original_module") and hasattr(module, "active_adapters")


HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token")
TOKENIZERS = ("host_tokenizer", "generator_tokenizer")
SHARED_ARGUMENTS = ("dtype", "device_map", "attn_implementation", "quantization_config", "max_memory")


class SemCoTLoadingMixin:
    """`from_host_generator_pretrained`, `from_pretrained` and `save_pretrained` of `SemCoTForCausalLM`."""

    @classmethod
    def from_host_generator_pretrained(
        cls,
        host,
        generator,
        *,
        num_implicit_tokens=5,
        host_kwargs=None,
        generator_kwargs=None,
        host_tokenizer=None,
        generator_tokenizer=None,
        thought_token_id=None,
        **config_kwargs,
    ):
        """Put a SemCoT model together from two pretrained models.

        Args:
            host: id, path or model of the host causal LM; it is frozen. An attached checkpoint names it by what it
                was loaded from: of a model that was changed since, save the changed one and pass its folder.
            generator: id, path or model (with or without LM head) of the generator.
            num_implicit_tokens: k.
            host_kwargs, generator_kwargs: arguments for their `from_pretrained` (dtype, device_map, revision ...).
            host_tokenizer, generator_tokenizer: ids, paths or tokenizers, both of them, where the two models do not
                share one; queries are then re-tokenized for the generator.
            thought_token_id: the generator's token whose embedding <thought> starts from, such as the word that its
                reasoning begins with; the mean of all embeddings when `None`.
            config_kwargs: further fields of `SemCoTConfig`, such as `generator_mode="sequential"`.

        Returns:
            `SemCoTForCausalLM` whose projection and <thought> embedding are fresh.

        Raises:
            ValueError: when one tokenizer is given without the other, or a token id that the generator does not know.
        """
        tokenizers = [host_tokenizer, generator_tokenizer]
        if (host_tokenizer is None) != (generator_tokenizer is None):
            raise ValueError(
                "host_tokenizer and generator_tokenizer go together: pass both, or neither when the models share one."
            )
        host, commit = _named_host(host, host_kwargs or {})
        generator = _plain(generator)
        if not isinstance(generator, PreTrainedModel):
            generator = _load_generator(generator, generator_kwargs or {})
        backbone = generator.base_model
        if backbone is generator and generator.get_output_embeddings() is not None:
            # Llama 4 names its backbone otherwise than it says.
            backbone = next(part for part in generator.children() if isinstance(part, PreTrainedModel))
        config = SemCoTConfig(
            host_config=unquantized(host.config),
            generator_config=backbone.config,
            num_implicit_tokens=num_implicit_tokens,
            host_name_or_path=host.config.name_or_path or None,
            host_revision=commit,
            host_subfolder=(host_kwargs or {}).get("subfolder"),
            generator_name_or_path=generator.config.name_or_path or None,
            separate_generator_tokenizer=host_tokenizer is not None,
            **config_kwargs,
        )
        model = cls(config, host=host, generator=backbone)
        model.generation_config = host.generation_config
        embeddings = backbone.get_input_embeddings().weight
        if thought_token_id is None:
            model.thought_embedding.data = embeddings.detach().float().mean(dim=0).to(embeddings)
        elif 0 <= thought_token_id < embeddings.shape[0]:
            model.thought_embedding.data = embeddings[thought_token_id].detach().clone()
        else:
            raise ValueError(f"thought_token_id={thought_token_id}: the generator knows {embeddings.shape[0]} tokens.")
        model.projection.to(embeddings)
        model.match_scales()
        if config.projection == "vocabulary":
            head = generator.get_output_embeddings()
            model.projection.weight.data = (embeddings if head is None else head.weight).detach().clone()
        for name, tokenizer in zip(TOKENIZERS, tokenizers, strict=True):
            if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
                tokenizer = AutoTokenizer.from_pretrained(tokenizer)
            setattr(model, name, tokenizer)
        return model.eval()

    @classmethod
    def from_original(
        cls, path_or_id, host, *, num_implicit_tokens=1, host_kwargs=None, answer_prompt_ids=None, **kwargs
    ):
        """Load a checkpoint published by the authors of SemCoT (`jonathanhe123/SemCoT-*`).

        Such a checkpoint holds the generator's backbone, whose embedding table has <thought> as an extra last row,
        and the projection; its config.json names the generator. Its tokens are the states one position before the
        <thought> positions, which `config.state_offset=-1` says.

        Args:
            path_or_id: folder or Hub id of the checkpoint.
            host: id, path or model of the host it was trained with.
            num_implicit_tokens: k; the authors train with 5 and evaluate with 1.
            host_kwargs: arguments for the host's `from_pretrained`.
            answer_prompt_ids: field of `SemCoTConfig`.
            kwargs: arguments for loading the generator, such as dtype, device_map and revision.

        Raises:
            ValueError: when the folder holds no such checkpoint, or the host has another hidden size.
        """
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        found = {name: kwargs[name] for name in ("revision", "subfolder") if name in kwargs}
        original, _ = PreTrainedConfig.get_config_dict(path_or_id, **hub, **found)
        if not {"model_name", "teacher_hid_dim"} <= original.keys():
            raise ValueError(
                f"{path_or_id} has no model_name and teacher_hid_dim in its config.json, which the authors' "
                "checkpoints have: load a checkpoint of this package by from_pretrained."
            )
        host, commit = _named_host(host, {**hub, **(host_kwargs or {})})
        width = host.config.get_text_config().hidden_size
        if width != original["teacher_hid_dim"]:
            raise ValueError(
                f"host has hidden_size={width}, but {path_or_id} was trained with a host of "
                f"hidden_size={original['teacher_hid_dim']}: pass that host."
            )
        generator_config = AutoConfig.from_pretrained(original["model_name"], **hub)
        words = generator_config.get_text_config().vocab_size
        generator_config.get_text_config().vocab_size = words + 1
        config = SemCoTConfig(
            host_config=unquantized(host.config),
            generator_config=generator_config,
            num_implicit_tokens=num_implicit_tokens,
            state_offset=-1,
            answer_prompt_ids=answer_prompt_ids,
            host_name_or_path=host.config.name_or_path or None,
            host_revision=commit,
            host_subfolder=(host_kwargs or {}).get("subfolder"),
            generator_name_or_path=original["model_name"],
        )
        names = {r"^model\.": "generator.", r"^projection_layer\.": "projection."}
        loaded = super().from_pretrained(path_or_id, config=config, build_host=False, key_mapping=names, **kwargs)
        thought = loaded.generator.get_input_embeddings().weight[-1].detach().clone()
        loaded.generator.resize_token_embeddings(words)
        config.generator_config = loaded.generator.config
        # A model of its own, since the loaded one would write the authors' names again.
        model = cls(config, host=host, generator=loaded.generator)
        model.projection, model.thought_embedding.data = loaded.projection, thought
        model.generation_config = host.generation_config
        return model.eval()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *model_args, config=None, host=None, host_kwargs=None, **kwargs
    ):
        """Load a checkpoint of either layout.

        An attached checkpoint brings its host from `config.host_name_or_path` at `config.host_revision`. `dtype`,
        `device_map`, `attn_implementation` and `quantization_config` reach host and generator alike; without `dtype`
        each has the one it was saved with.

        Args:
            host: a host model, id or path to use instead of the recorded one (attached layout only).
            host_kwargs: arguments for the host alone; they win over the shared ones.
            kwargs: as in transformers; fields of `SemCoTConfig` among them replace the checkpoint's.

        Raises:
            ValueError: when a checkpoint that carries its host is given another one, or the host does not fit.
            OSError: when the host cannot be found; the message says where it was looked for.
        """
        if "torch_dtype" in kwargs:
            kwargs["dtype"] = kwargs.pop("torch_dtype")
        if kwargs.get("dtype", "auto") in (None, "auto"):
            # Each part has a dtype of its own.
            kwargs.pop("dtype", None)
        if not isinstance(config, PreTrainedConfig):
            names = (*HUB_ARGUMENTS, "revision", "subfolder")
            found = {name: kwargs[name] for name in names if name in kwargs}
            config = SemCoTConfig.from_pretrained(config or pretrained_model_name_or_path, **found)
            for name in [name for name in kwargs if hasattr(config, name) and name not in SHARED_ARGUMENTS]:
                setattr(config, name, kwargs.pop(name))
        if pretrained_model_name_or_path is None and host is None:
            # Weights come from `state_dict`, as for any model of transformers; the host's are among them.
            return super().from_pretrained(None, *model_args, config=config, **kwargs)
        if config.includes_host:
            if host is not None or host_kwargs:
                raise ValueError(
                    f"{pretrained_model_name_or_path} carries its host: leave host and host_kwargs out, and pass "
                    "dtype, device_map and the like directly."
                )
            loaded = _load_whole(super().from_pretrained, pretrained_model_name_or_path, *model_args, config, kwargs)
            _load_tokenizers(loaded, pretrained_model_name_or_path, kwargs)
            return loaded
        # Auto classes put the choice of attention into the config; loading the generator changes the dtype in it.
        saved = {"dtype": config.host_config.dtype or "auto"}
        if config.host_config._attn_implementation is not None:
            saved["attn_implementation"] = config.host_config._attn_implementation
        own = (
            {"device_map": _places(kwargs["device_map"], False)} if isinstance(kwargs.get("device_map"), dict) else {}
        )
        loaded = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, config=config, build_host=False, **{**kwargs, **own}
        )
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        host = _plain(host)
        if not isinstance(host, PreTrainedModel):
            host = _load_host(host, model.config, {**saved, **kwargs}, host_kwargs)
        model.attach_host(host)
        if "subfolder" in (host_kwargs or {}):
            model.config.host_subfolder = host_kwargs["subfolder"]
        _load_tokenizers(loaded, pretrained_model_name_or_path, kwargs)
        return loaded

    def save_pretrained(self, save_directory, *args, include_host=None, state_dict=None, **kwargs):
        """Save a checkpoint: generator, projection and config, with the host by reference or included.

        Args:
            save_directory: the folder.
            include_host: `True` for one self-contained folder, `False` for the attached layout; `None` keeps the
                layout the model was loaded in, and includes a host that has no id or path to be found by, or has
                adapters or a resized vocabulary, which no id names.
            state_dict, args, kwargs: as in transformers. Adapters are merged into what is saved.

        Raises:
            ValueError: for the attached layout of such a host, or a quantized host to be included.
        """
        include_host = self._includes_host(include_host)
        if include_host and getattr(self.host, "is_quantized", False):
            raise ValueError(
                "include_host=True cannot save a quantized host: save with include_host=False, which names the host "
                "by config.host_name_or_path, or attach it unquantized first."
            )
        if os.path.isfile(save_directory):
            raise ValueError(f"save_directory={str(save_directory)!r} is a file: pass a folder.")
        layout = self.config.includes_host
        self.config.host_config.dtype, self.config.generator_config.dtype = self.host.dtype, self.generator.dtype
        state_dict = merged_state(self, state_dict)
        if not include_host:
            state_dict = {key: value for key, value in state_dict.items() if not key.startswith("host.")}
        for name in TOKENIZERS if self.config.separate_generator_tokenizer else ():
            if getattr(self, name) is None:
                raise ValueError(f"config.separate_generator_tokenizer=True, but model.{name} is None: set it.")
            if args[0] if args else kwargs.get("is_main_process", True):
                getattr(self, name).save_pretrained(os.path.join(save_directory, name))
        self.config.includes_host = include_host
        # With adapters, transformers would save those alone.
        adapted, self._hf_peft_config_loaded = self._hf_peft_config_loaded, False
        try:
            return super().save_pretrained(save_directory, *args, state_dict=state_dict, **kwargs)
        finally:
            self.config.includes_host, self._hf_peft_config_loaded = layout, adapted

    def _get_files_timestamps(self, working_dir):
        # What has changed since is uploaded; the tokenizers are written just before.
        return {
            name: time for name, time in super()._get_files_timestamps(working_dir).items() if name not in TOKENIZERS
        }

    def push_to_hub(self, *args, include_host=None, **kwargs):
        """Push to the Hub as transformers does; `include_host` as in `save_pretrained`."""
        layout, self.config.includes_host = self.config.includes_host, self._includes_host(include_host)
        try:
            return super().push_to_hub(*args, **kwargs)
        finally:
            self.config.includes_host = layout

    def _includes_host(self, wanted):
        """Whether a checkpoint is to hold the host, checked against what a loader could find otherwise."""
        changed = None
        if self.host is not None and adapted_layers(self.host):
            changed = "has adapters"
        elif self.host is not None and self.config.vocab_size != self._attached_words:
            changed = f"has had its vocabulary resized from {self._attached_words} to {self.config.vocab_size}"
        if wanted is None:
            return self.config.includes_host or self.config.host_name_or_path is None or changed is not None
        if not wanted and self.config.host_name_or_path is None:
            raise ValueError(
                "include_host=False needs config.host_name_or_path, by which a loader finds the host: set it, or "
                "pass include_host=True."
            )
        if not wanted and changed is not None:
            raise ValueError(
                f"include_host=False names the host {self.config.host_name_or_path!r}, but this one {changed}, "
                "which a loader would not find there: pass include_host=True, which saves it as it is (adapters "
                "merged), or attach the changed host, saved under a name of its own."
            )
        return wanted


def _named_host(host, kwargs):
    """(model, commit) of a host given by id or path, loaded at one known commit; a model's own commit is unknown."""
    host = _plain(host)
    if isinstance(host, PreTrainedModel):
        return host, None
    hub = {name: kwargs[name] for name in (*HUB_ARGUMENTS, "revision", "subfolder") if name in kwargs}
    commit = extract_commit_hash(cached_file(host, "config.json", **hub), None)
    revision = {} if commit is None else {"revision": commit}
    return AutoModelForCausalLM.from_pretrained(host, **{**kwargs, **revision}), commit


def _plain(model):
    """The model inside peft's wrapper, with its adapters in place; anything else as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def unquantized(config):
    """The host's configuration as its repository has it: else a loader takes our own weights for quantized ones."""
    if not hasattr(config, "quantization_config"):
        return config
    config = copy.deepcopy(config)
    del config.quantization_config
    return config


def _load_generator(name, kwargs):
    """A causal LM is loaded with its head, which would else be reported as left over, and has its backbone taken."""
    hub = {key: kwargs[key] for key in (*HUB_ARGUMENTS, "revision", "subfolder") if key in kwargs}
    config, _ = PreTrainedConfig.get_config_dict(name, **hub)
    causal = (config.get("architectures") or [""])[0].endswith("ForCausalLM")
    return (AutoModelForCausalLM if causal else AutoModel).from_pretrained(name, **kwargs)


def _load_whole(load, name, *args):
    """Load a checkpoint that carries its host, each part in the dtype it was saved with unless one is given."""
    *model_args, config, kwargs = args
    host_dtype, generator_dtype = config.host_config.dtype, config.generator_config.dtype
    apart = "dtype" not in kwargs and host_dtype != generator_dtype
    if apart:
        kwargs["dtype"] = torch.promote_types(host_dtype, generator_dtype)
    loaded = load(name, *model_args, config=config, **kwargs)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    if apart:
        host = model.host.to(host_dtype)
        model.host = None
        model.to(generator_dtype).host = host
    model._set_host(model.host)
    return loaded


def _load_tokenizers(loaded, name, kwargs):
    """Give a loaded model the two tokenizers of its checkpoint, where it has them."""
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    if model.config.separate_generator_tokenizer:
        arguments = {key: kwargs[key] for key in (*HUB_ARGUMENTS, "revision") if key in kwargs}
        for part in TOKENIZERS:
            folder = "/".join(filter(None, (kwargs.get("subfolder"), part)))
            setattr(model, part, AutoTokenizer.from_pretrained(name, subfolder=folder, **arguments))


def _places(device_map, of_host):
    """The places of the host's parts by the host's own names, or those of all other parts."""
    parts = {part: part == "host" or part.startswith("host.") for part in device_map}
    return {part[5:] if of_host else part: device_map[part] for part, hosts in parts.items() if hosts is of_host}


def _load_host(host, config, kwargs, host_kwargs):
    arguments = {name: kwargs[name] for name in (*HUB_ARGUMENTS, *SHARED_ARGUMENTS) if name in kwargs}
    if isinstance(arguments.get("attn_implementation"), dict):
        arguments["attn_implementation"] = arguments["attn_implementation"].get("host_config")
    if isinstance(arguments.get("device_map"), dict):
        arguments["device_map"] = _places(arguments["device_map"], True) or arguments["device_map"]
    name = config.host_name_or_path if host is None else host
    if host is None:
        found = {"revision": config.host_revision, "subfolder": config.host_subfolder}
        arguments.update({key: value for key, value in found.items() if value is not None})
    arguments.update(host_kwargs or {})
    try:
        AutoConfig.from_pretrained(
            name, **{key: arguments[key] for key in (*HUB_ARGUMENTS, "revision", "subfolder") if key in arguments}
        )
    except (OSError, ValueError) as error:
        raise OSError(
            f"This checkpoint holds the generator alone; its host {name!r}"
            + (f" at revision {arguments['revision']}" if "revision" in arguments else "")
            + " could not be found. Pass host= with a path, id or model of that host, or have the checkpoint saved "
            "with include_host=True."
        ) from error
    return AutoModelForCausalLM.from_pretrained(name, **arguments)
