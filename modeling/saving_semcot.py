"""Save a SemCoT model in the attached or the whole layout, and push it to the Hub."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from .checksums_semcot import content_checksum, saved_weights, tokenizer_checksum, weights_checksum
from .folders_semcot import TOKENIZERS, ReplacedFolder, check_target, copy_code, is_folder
from .parts_semcot import SemCoTPreTrainedModel
from .sources_semcot import HostPlace, changed_settings, load_host, settings_of
from .structure_semcot import check_saved_structure, plain_class
from .weights_semcot import (
    adapted_layers,
    fingerprint,
    fingerprint_of,
    is_flagged,
    is_part,
    is_quantized,
    loads_quantized,
    merged_state,
    same_weights,
    weights_fingerprint,
)

logger = logging.get_logger(__name__)


class SemCoTSavingMixin(SemCoTPreTrainedModel):
    """`save_pretrained` and `push_to_hub` of `SemCoTForCausalLM`."""

    # The layout of what is being pushed to the Hub.
    _pushed_layout: bool | None = None
    # Where files are written until all of them are whole.
    _replaced: ReplacedFolder | None = None

    def save_pretrained(
        self,
        save_directory: str | PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        *args: Any,
        include_host: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save a checkpoint: generator, projection and config, with the host by reference or included.

        A checkpoint that was in the folder before is replaced when the new one is written whole.

        Args:
            save_directory: the folder; never one that host or generator come from.
            include_host: `True` for the whole layout (one self-contained folder), `False` for the attached layout
                (host by reference). `None` keeps the layout that the model was loaded from, but includes a host
                without id or path, with adapters, with a resized vocabulary, or with other weights or settings than
                those that a loader finds under its name.
            is_main_process, state_dict, push_to_hub, args, kwargs: as in transformers. Adapters are merged into the
                saved weights.

        Raises:
            ValueError: for the attached layout with such a host, for a quantized host that is to be included, a
                quantized generator, or the folder of a part. Nothing is written then.
        """
        if os.path.isfile(save_directory):
            raise ValueError(f"save_directory={str(save_directory)!r} is a file: pass a folder.")
        if os.path.isfile(os.path.join(save_directory, "adapter_config.json")):
            raise ValueError(
                f"save_directory={str(save_directory)!r} holds adapters of peft, which every loader would apply to "
                "the saved model: pass another folder, or delete them first."
            )
        check_target(save_directory, self.part_sources())
        repo = str(kwargs.get("repo_id") or os.path.basename(os.path.normpath(save_directory)))
        with self.for_the_hub(include_host, repo) if push_to_hub else nullcontext():
            pushed = self._pushed_layout
            include_host = self._includes_host(include_host) if pushed is None else pushed
            self._check_parts_for_saving(include_host)
            if not include_host and is_quantized(self.host) and not loads_quantized(self.host):
                logger.warning_once(
                    f"The host is quantized, and the checkpoint names it ({self.config.host_name_or_path!r}): loading "
                    "takes the weights that are there. To quantize them again, pass "
                    "host_kwargs={'quantization_config': ...} to from_pretrained."
                )
            if push_to_hub:
                kwargs["repo_id"] = repo
            return self._write(save_directory, include_host, is_main_process, state_dict, push_to_hub, *args, **kwargs)

    def part_sources(self) -> list[tuple[str, str | PathLike | None]]:
        """Return (role, id or path) of what the model is made of, which no checkpoint may overwrite."""
        config: Any = self.config
        places = [("host", config.host_name_or_path), ("generator", config.generator_name_or_path)]
        if config.host_name_or_path and config.host_subfolder:
            places.append(("host", os.path.join(config.host_name_or_path, config.host_subfolder)))
        for role, part in (
            ("host", self.host),
            ("generator", self.generator),
            ("step decoder", self.step_decoder),
        ):
            if part is not None:
                places.append((role, part.config.name_or_path))
        return [*places, *self._part_folders]

    @contextmanager
    def for_the_hub(self, include_host: bool | None = None, repo_id: str | None = None) -> Iterator[None]:
        """Prepare what is saved inside the block for the Hub: no path of this machine is in it, nor needed.

        A host in a folder is included; `include_host` is as in `save_pretrained`.

        Raises:
            ValueError: for a host in a folder that cannot, or is not to be, included, and for a `repo_id` that is the
                host's or the generator's.
        """
        if self._pushed_layout is not None:
            yield
            return
        config: Any = self.config
        for role, source in self.part_sources():
            if repo_id is not None and source == repo_id:
                raise ValueError(f"repo_id={repo_id!r} is where the {role} comes from: push to another repository.")
        include = self._includes_host(include_host)
        if not include and self._is_local(config.host_name_or_path):
            if include_host is False or is_quantized(self.host):
                raise ValueError(
                    f"The host is in the folder {config.host_name_or_path!r} of this machine, where nobody who loads "
                    "the checkpoint from the Hub finds it: pass include_host=True (a quantized host cannot be "
                    "included), or push the host first and load it by its Hub id."
                )
            logger.warning("The host is in a folder of this machine: it is included in what is pushed to the Hub.")
            include = True
        self._check_parts_for_saving(include)
        layout = config.includes_host
        parts = [part for name in config.sub_configs if (part := getattr(config, name)) is not None]
        names = [(config, "host_name_or_path"), (config, "generator_name_or_path")]
        names += [(part, "_name_or_path") for part in parts]
        local = [(owner, name, value) for owner, name in names if self._is_local(value := getattr(owner, name, None))]
        try:
            self._pushed_layout = config.includes_host = include
            for owner, name, _ in local:
                setattr(owner, name, None if owner is config else "")
            yield
        finally:
            self._pushed_layout, config.includes_host = None, layout
            for owner, name, value in local:
                setattr(owner, name, value)

    def _is_local(self, name: str | None) -> bool:
        """Return whether a part's name is a path on this machine, also from another directory than it was loaded."""
        return is_folder(name) or name in self._local_names

    def push_to_hub(  # type: ignore[override]  # all other arguments are passed on
        self, repo_id: str, *args: Any, include_host: bool | None = None, **kwargs: Any
    ) -> Any:
        """Push to the Hub as transformers does; a host in a folder of this machine is included.

        Args:
            repo_id, args, kwargs: as in transformers.
            include_host: as in `save_pretrained`.

        Raises:
            ValueError: as `for_the_hub`.
        """
        with self.for_the_hub(include_host, repo_id):
            return super().push_to_hub(repo_id, *args, **kwargs)  # type: ignore[arg-type]  # transformers wraps it

    def _write(
        self,
        save_directory: str | PathLike,
        include_host: bool,
        is_main_process: bool,
        state_dict: dict[str, Tensor] | None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        layout = self.config.includes_host
        config: Any = self.config
        config.host_config.dtype, config.generator_config.dtype = self.host.dtype, self.generator.dtype
        if self.step_decoder is not None and config.step_decoder_config is not None:
            config.step_decoder_config.dtype = self.step_decoder.dtype
        parts = [name for name, value in self.named_parameters() if is_part(value)]
        own = state_dict is None
        if state_dict is None:
            state_dict = self.state_dict()
        elif not include_host:
            self._check_host_state(state_dict)
        if not include_host:
            state_dict = {key: value for key, value in state_dict.items() if not key.startswith("host.")}
        parts = [name for name in parts if name in state_dict or not own]
        # What transformers sharded while loading, it gathers itself.
        if own and parts and getattr(config, "distributed_config", None) is None:
            raise ValueError(
                f"There are {len(parts)} weights of which this process holds a part (DeepSpeed ZeRO-3 or FSDP), such "
                f"as {parts[0]!r}: pass state_dict= with the gathered weights, as Trainer and "
                "accelerator.get_state_dict(model) gather them."
            )
        state_dict = merged_state(self, state_dict)
        if self.step_decoder is not None:
            # Beside a decoder of 16 bits with adapters it is trained in float32.
            dtype = self.step_decoder.dtype
            state_dict |= {
                key: value.to(dtype) for key, value in state_dict.items() if key.startswith("step_projection.")
            }
        writes = self.should_save_on_this_rank(is_main_process) and not kwargs.get("distributed_checkpoint")
        # Trainer passes no weights if DeepSpeed writes its own files beside the configuration.
        if writes and not (parts and not state_dict):
            check_saved_structure(self, state_dict, include_host)
        lost = [key for key, value in state_dict.items() if value.is_meta]
        if lost:
            raise ValueError(
                f"{len(lost)} weights have no values (device meta), such as {lost[0]!r}, and cannot be saved: load "
                "the model without offloading it."
            )
        self.config.includes_host = include_host
        config.weights_checksum = weights_checksum(saved_weights(self, state_dict, include_host))
        config.generation_checksum = generation_checksum(self)
        config.own_tokenizers_checksum = self._checksum_of_tokenizers()
        # Otherwise transformers would save the adapters only.
        adapted, self._hf_peft_config_loaded = self._hf_peft_config_loaded, False
        # transformers saves the code of the class, which FSDP2 replaces by one of torch's.
        sharded, self.__class__ = type(self), plain_class(self)
        try:
            with ReplacedFolder(save_directory, kwargs.get("variant")) if writes else nullcontext() as self._replaced:
                folder = save_directory if self._replaced is None else self._replaced.path
                if self.config.separate_generator_tokenizer and is_main_process:
                    self._save_tokenizers(str(folder))
                return super().save_pretrained(folder, is_main_process, state_dict, *args, **kwargs)
        finally:
            self.__class__ = sharded
            self.config.includes_host, self._hf_peft_config_loaded, self._replaced = layout, adapted, None
            config.weights_checksum = config.generation_checksum = config.own_tokenizers_checksum = None

    def _check_host_state(self, state_dict: dict[str, Tensor]) -> None:
        """Raise ValueError for a state dict with other values of the host, which the attached layout leaves out."""
        lost = "are lost in the attached layout: pass include_host=True, which saves the host's weights."
        parameters = [(name, state_dict.get(f"host.{name}"), value) for name, value in self.host.named_parameters()]
        if any(is_part(value) for _, _, value in parameters):
            gathered = [(name, given) for name, given, _ in parameters if given is not None]
            now = fingerprint_of(gathered) if len(gathered) == len(parameters) else None
            known = (self._attached_fingerprint and self._attached_fingerprint.text, self.config.host_fingerprint)
            if now and any(same_weights(text, now.text) is False for text in known):
                raise ValueError(f"state_dict has other values of the host than when it was attached, which {lost}")
            return
        own = self.state_dict()
        for name, value in state_dict.items():
            kept = own.get(name) if name.startswith("host.") else None
            if kept is None or kept.is_meta or value.is_meta or kept.shape != value.shape:
                continue
            if kept.data_ptr() != value.data_ptr() and not torch.equal(kept, value.to(kept)):
                raise ValueError(f"state_dict has other values of {name!r} than the model, which {lost}")

    def _checksum_of_tokenizers(self) -> str | None:
        """Return the checksum of the tokenizers that a checkpoint carries in folders of their own."""
        if not self.config.separate_generator_tokenizer:
            return None
        return content_checksum([tokenizer_checksum(getattr(self, name)) for name in TOKENIZERS])

    def _save_tokenizers(self, folder: str) -> None:
        """Save both tokenizers in folders of their own; code of theirs beside the model's, where loading looks for it.

        Raises:
            ValueError: for two files of code with one name.
        """
        for name in TOKENIZERS:
            getattr(self, name).save_pretrained(os.path.join(folder, name))
            other = copy_code(os.path.join(folder, name), folder)
            if other is not None:
                raise ValueError(
                    f"{name} has code of its own in {other}, and host_tokenizer has other code under this name: pass "
                    "one of them as a tokenizer of transformers."
                )

    def _get_files_timestamps(self, working_dir: str | PathLike) -> dict[str, float]:
        # Of the folder that the files move to before they are uploaded.
        return super()._get_files_timestamps(working_dir if self._replaced is None else self._replaced.target)

    def _upload_modified_files(self, working_dir: str | PathLike, *args: Any, **kwargs: Any) -> Any:
        if self._replaced is not None:
            self._replaced.publish()
            working_dir = self._replaced.target
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def _check_parts_for_saving(self, include_host: bool) -> None:
        if include_host and self.host is not None and is_quantized(self.host):
            raise ValueError(
                "include_host=True cannot save a quantized host: save with include_host=False, which names the host "
                "by config.host_name_or_path, or attach it unquantized first. A model object that is not recorded so: "
                "pass its id or path instead, with host_kwargs such as gguf_file."
            )
        if is_flagged(self) or is_quantized(self.generator):
            raise ValueError(
                "The generator is quantized, and its weights cannot be saved: load the model without "
                "quantization_config, or quantize the host alone, by host_kwargs={'quantization_config': ...}."
            )
        for name in TOKENIZERS if self.config.separate_generator_tokenizer else ():
            if getattr(self, name) is None:
                raise ValueError(f"config.separate_generator_tokenizer=True, but model.{name} is None: set it.")

    def _includes_host(self, wanted: bool | None) -> bool:
        """Return whether a checkpoint includes the host; raise ValueError if it must, but is not wanted to."""
        name = self.config.host_name_or_path
        if wanted or (wanted is None and (self.config.includes_host or name is None)):
            return True
        if name is None:
            raise ValueError(
                "include_host=False needs config.host_name_or_path, by which a loader finds the host: set it, or "
                "pass include_host=True."
            )
        changed = self._change_of_host(wanted is False)
        if changed is None:
            return False
        if wanted is None:
            logger.warning_once(f"The host {name!r} {changed}: checkpoints include the host as it is.")
            return True
        raise ValueError(
            f"include_host=False names the host {name!r}, but this one {changed}, "
            "which a loader would not find there: pass include_host=True, which saves it as it is (adapters "
            "merged), or attach the changed host, saved under a name of its own."
        )

    def _change_of_host(self, on_demand: bool) -> str | None:
        """Return how the host differs from what a loader finds under its recorded name; `None` if it does not.

        A host that was not loaded from there by this class is compared with what is there, once.

        Args:
            on_demand: whether the user asks for the attached layout; a host that is not found on this machine is then
                no fault, since loading compares it.
        """
        if self.host is None:
            return None
        if adapted_layers(self.host):
            return "has adapters"
        if self.config.vocab_size != self._attached_words:
            return f"has had its vocabulary resized from {self._attached_words} to {self.config.vocab_size}"
        attached, now = self._attached_fingerprint, fingerprint(self.host)
        present = now and now.text
        known = (attached and attached.text, self.config.host_fingerprint)
        renamed = attached and now and attached.text == now.text and attached.ordered != now.ordered
        if renamed or any(same_weights(text, present) is False for text in known):
            return "has other weights than when it was loaded"
        changed = changed_settings(self._attached_settings or {}, settings_of(self.host.config))
        if changed:
            return f"has other settings than when it was loaded ({changed})"
        if self._host_is_there is None:
            place = HostPlace.recorded(self.config)
            if is_quantized(self.host) and place.gguf_file is None:
                # Only GGUF files are known to be quantized; other hosts may have been quantized while loading.
                packed = getattr(self.host, "quantization_method", None) == "gguf"
                return "is a GGUF file whose name is not recorded" if packed else None
            if any(hasattr(value, "ds_id") for value in self.host.parameters()):
                # Loading takes all processes, of which one may be saving.
                return None if on_demand else "is spread over processes by ZeRO-3, and cannot be compared with it here"
            try:
                found, place = load_host(str(place.name), {**place.arguments(), "local_files_only": True})
            except Exception as error:
                # Whatever stops a loader here would stop it later.
                logger.info(f"The host {place} could not be loaded: {error!r}")
                return None if on_demand else "could not be loaded from there to compare it"
            changed = changed_settings(settings_of(found.config), settings_of(self.host.config))
            if changed:
                return f"has other settings than the one found there ({changed})"
            # Of a host that is sharded by now, what it was is known.
            known_text = present or (attached and attached.text)
            if is_quantized(found) and not is_quantized(self.host):
                return "is not quantized as the one found there is, and cannot be compared with it"
            self._host_is_there = same_weights(weights_fingerprint(found), known_text) is not False
            if self._host_is_there:
                self.config.host_revision = place.revision
        return None if self._host_is_there else "has other weights than those found there"


def generation_checksum(model: Any) -> str:
    """Return a checksum of a model's generation configuration as it is written to generation_config.json."""
    written = model.generation_config.to_diff_dict()
    written.pop("transformers_version", None)
    return content_checksum(written)


def saved_dtypes(config: Any) -> dict[str, torch.dtype | None]:
    """Return the dtype in which each part of a checkpoint was saved; `None` where the configuration does not say."""
    generator, whole = config.generator_config.dtype, config.dtype
    decoder = None if config.step_decoder_config is None else config.step_decoder_config.dtype
    return {
        "host": config.host_config.dtype,
        "generator": generator,
        # The generator's own head makes mixtures of words.
        "projection": generator if config.projection == "vocabulary" else whole or generator,
        # transformers writes the dtype of the first parameter, which this is.
        "thought_embedding": whole or generator,
        **({} if config.step_decoder_config is None else dict.fromkeys(("step_decoder", "step_projection"), decoder)),
    }
