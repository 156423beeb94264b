"""SemCoTForCausalLM: a frozen host LLM whose input is extended by implicit chain-of-thought tokens."""

from dataclasses import dataclass
from inspect import signature

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_semcot import SemCoTConfig
from .generation_semcot import SemCoTGenerationMixin
from .implicit_tokens_semcot import SemCoTTokensMixin
from .loading_semcot import SemCoTLoadingMixin, unquantized
from .question_cache_semcot import cacheable_columns, fill_question_cache
from .splicing_semcot import (
    check_shapes,
    context_of,
    insertion_columns,
    left_aligned_queries,
    positions_from_mask,
    splice,
)


@dataclass
class SemCoTCausalLMOutput(CausalLMOutputWithPast):
    """Output of `SemCoTForCausalLM.forward`.

    `logits` and `loss` are about text tokens only: logits[:, i] predicts text token i + 1, whether or not implicit
    tokens stand between the two. `hidden_states` and `attentions` have the implicit positions too.

    Args:
        implicit_embeddings: (batch, k, host hidden size), the Z put into the host's input.
        implicit_columns: (batch,), the column before which each row's tokens were put.
        step_loss: scalar, mean cross-entropy of the step decoder where `step_input_ids` were given.
    """

    implicit_embeddings: torch.FloatTensor | None = None
    implicit_columns: torch.LongTensor | None = None
    step_loss: torch.FloatTensor | None = None


class SemCoTForCausalLM(SemCoTLoadingMixin, SemCoTTokensMixin, SemCoTGenerationMixin, PreTrainedModel):
    """A frozen host LLM with an attached implicit-token generator (SemCoT, arXiv 2510.24940).

    The generator reads the query once and makes k embeddings Z = projection(states) of the host's hidden size; they
    stand in the host's input between the query and the answer prompt, and the host answers at once.

    Args:
        config: the configuration.
        host: the host causal LM; built from `config.host_config` with fresh weights when `None`.
        generator: the generator's backbone (no LM head); built from `config.generator_config` when `None`.
        build_host: `False` leaves the host out until `attach_host`, as loading the attached layout does.
    """

    config_class = SemCoTConfig
    base_model_prefix = "host"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Set where host and generator do not share a tokenizer.
    host_tokenizer = None
    generator_tokenizer = None

    def __init__(self, config, host=None, generator=None, build_host=True):
        super().__init__(config)
        for given in filter(None, (host, generator)):
            # Else `post_init` would draw anew what has come into it since it was loaded, such as adapters.
            for module in given.modules():
                module._is_hf_initialized = True
        if host is None and build_host:
            host = AutoModelForCausalLM.from_config(config.host_config)
        self.generator = AutoModel.from_config(config.generator_config) if generator is None else generator
        width = config.generator_config.get_text_config().hidden_size
        if config.projection == "identity":
            self.projection = nn.Identity()
        elif config.projection == "vocabulary":
            self.projection = nn.Linear(width, config.generator_config.get_text_config().vocab_size, bias=False)
        else:
            self.projection = nn.Linear(width, config.host_config.get_text_config().hidden_size)
        if config.generator_mode == "sequential" and not _takes_cache(self.generator):
            raise ValueError(
                f"generator_mode='sequential' needs a generator that keeps keys and values, which a "
                f"{config.generator_config.model_type} does not: choose generator_mode='parallel'."
            )
        self.thought_embedding = nn.Parameter(torch.empty(width))
        self.step_decoder = self.step_projection = None
        if config.step_decoder_config is not None:
            self._set_step_decoder(AutoModelForCausalLM.from_config(config.step_decoder_config))
        self.host = None
        if host is not None:
            self._set_host(host)
        self.post_init()

    def _init_weights(self, module):
        if module is self:
            nn.init.normal_(self.thought_embedding, std=self.config.initializer_range)
        elif isinstance(module, nn.Linear) and module in (self.projection, self.step_projection):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def attach_host(self, host):
        """Set the host causal LM and freeze it; from then on an attached checkpoint names what it was loaded from.

        Raises:
            ValueError: when its hidden size or vocabulary is not the one this model was made for, its word
                embeddings are of another size than its layers, its layers read ids too, or none of them has attention.
        """
        self._set_host(host)
        name, commit = host.config.name_or_path or None, getattr(host.config, "_commit_hash", None)
        if name != self.config.host_name_or_path:
            self.config.host_name_or_path, self.config.host_subfolder = name, None
            self.config.host_revision = commit
        elif commit is not None:
            self.config.host_revision = commit

    def _set_host(self, host):
        wanted, got = self.config.host_config.get_text_config(), host.config.get_text_config()
        for name in ("hidden_size", "vocab_size"):
            if getattr(wanted, name) != getattr(got, name):
                raise ValueError(
                    f"host has {name}={getattr(got, name)}, but this SemCoT model was made for a host with "
                    f"{name}={getattr(wanted, name)}: pass the host it was trained with "
                    f"({self.config.host_name_or_path or 'its id is not recorded'})."
                )
        check_word_size(host)
        if getattr(got, "hidden_size_per_layer_input", None):
            raise ValueError(
                f"host is a {got.model_type}, whose layers read the ids of their text once more "
                f"(hidden_size_per_layer_input={got.hidden_size_per_layer_input}); implicit tokens have none, so such "
                "a host is not supported."
            )
        if not _takes_cache(host):
            raise ValueError(
                f"host is a {got.model_type}, which keeps no keys and values (its forward has no past_key_values): "
                "take one with attention in some of its layers."
            )
        # Generation asks whether the cache can be cut back.
        self._is_stateful = host._is_stateful
        # What changes the one, such as resizing the embeddings, changes the other.
        self.config.host_config = unquantized(host.config)
        self._attached_words = got.vocab_size
        self.host = host.requires_grad_(False).eval()

    @torch.no_grad()
    def match_scales(self):
        """Start implicit tokens at the size of word embeddings: fresh projection weights and `config.feedback_scale`.

        A backbone's states are many times larger than its word embeddings (12 times in the demo's models), and a
        transformer that is handed such an input hardly changes it in its residual stream.
        """
        config = self.config.generator_config.get_text_config()
        ids = torch.arange(min(64, config.vocab_size, context_of(config) or 64))[None]
        words = self.generator.get_input_embeddings()(ids.to(self.projection_device()))
        states = self.generator(inputs_embeds=words, use_cache=False).last_hidden_state
        host_ids = torch.arange(min(64, self.config.vocab_size))[None]
        host_words = self.get_input_embeddings()(host_ids.to(self.get_input_embeddings().weight.device))
        sizes = [tensor.float().pow(2).mean().sqrt().item() for tensor in (words, states, host_words)]
        self.config.feedback_scale = sizes[0] / sizes[1]
        if self.config.projection == "linear":
            nn.init.normal_(self.projection.weight, std=sizes[2] / sizes[1] * self.projection.in_features**-0.5)

    def train(self, mode=True):
        """As in torch, but the frozen host stays in evaluation mode: it has no dropout, and its layers keep caches."""
        super().train(mode)
        if self.host is not None:
            self.host.eval()
        return self

    def add_step_decoder(self, decoder):
        """Attach a causal LM that reads implicit tokens back as text (SIM-CoT's auxiliary decoder), to be trained.

        Each Z_k, mapped linearly to the decoder's hidden size, stands as the first input embedding before the text
        of step k. `drop_step_decoder` removes it; generation never runs it.
        """
        self.config.step_decoder_config = decoder.config
        self._set_step_decoder(decoder)
        self._init_weights(self.step_projection)
        self.step_projection.to(device=self.projection_device(), dtype=decoder.dtype)

    def drop_step_decoder(self):
        """Remove the step decoder; answers do not change."""
        self.config.step_decoder_config = None
        self.step_decoder = self.step_projection = None

    def _set_step_decoder(self, decoder):
        self.step_decoder = decoder
        self.step_projection = nn.Linear(
            self.config.host_config.get_text_config().hidden_size, decoder.config.get_text_config().hidden_size
        )

    def projection_device(self):
        """The device where implicit tokens are made."""
        return self.thought_embedding.device

    def _set_gradient_checkpointing(self, enable=True, **kwargs):
        super()._set_gradient_checkpointing(enable, **kwargs)
        if self.config.generator_mode == "sequential":
            # Checkpointed layers drop their cache, which is what carries this generator from step to step.
            for module in self.generator.modules():
                if hasattr(module, "gradient_checkpointing"):
                    module.gradient_checkpointing = False

    def get_input_embeddings(self):
        return None if self.host is None else self.host.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.host.set_input_embeddings(value)

    def get_output_embeddings(self):
        return None if self.host is None else self.host.get_output_embeddings()

    def set_output_embeddings(self, value):
        self.host.set_output_embeddings(value)

    def get_decoder(self):
        return self.host.get_decoder()

    def _check_shape(self, embeddings, batch):
        size = self.config.get_text_config().hidden_size
        shape = tuple(getattr(embeddings, "shape", ()))
        if len(shape) != 3 or shape[0] != batch or shape[2] != size:
            raise ValueError(
                f"implicit_embeddings has shape {shape}: must be (batch, k, hidden size) = ({batch}, k, {size})."
            )
        if not embeddings.is_floating_point():
            raise ValueError(f"implicit_embeddings has dtype {embeddings.dtype}: must be floating-point numbers.")

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        completion_mask=None,
        implicit_embeddings=None,
        num_implicit_tokens=None,
        step_input_ids=None,
        step_attention_mask=None,
        use_question_cache=False,
        question_cache=None,
        **kwargs: Unpack[TransformersKwargs],
    ):
        """Run the host, with implicit tokens where the prompt's end is known.

        The prompt's end is known from `completion_mask`, or else from `labels` whose prompt is masked by -100; with
        neither, implicit tokens must be asked for, and then all of the input is prompt. Without them (log-likelihoods
        of plain text, labels of which some row has no prompt, decoding steps), and with `num_implicit_tokens=0`, this
        is the host's own forward.

        Args:
            input_ids: (batch, length); attention_mask: (batch, length), padding on either side.
            labels: (batch, length), -100 where no loss is wanted; `shift_labels` replaces them in the loss where a
                trainer has shifted them already.
            logits_to_keep: logits of the last so many text positions only, or a LongTensor of positions; 0 for all.
            completion_mask: (batch, length), 1 on the completion's tokens.
            implicit_embeddings: (batch, k, host hidden size), used instead of the generator's.
            step_input_ids, step_attention_mask: (batch, k, step length), the text of each token's reasoning step for
                the step decoder; rows of zeros in the mask are not supervised.
            use_question_cache: compute the host's keys and values of the questions first, without gradient. Loss and
                gradients are the same, in less time and memory; `hidden_states` and `implicit_columns` then begin
                behind the cached columns. Has no effect unless `logits_to_keep` is a number above 0, nor for hosts
                with recurrent layers (such as Mamba), whose states pass no gradient on.
            question_cache: with `use_question_cache`, the keys and values of this batch's questions if they are known
                already, such as from an earlier epoch; the forward pass appends to it.

        Returns:
            `SemCoTCausalLMOutput` with implicit tokens, else the host's output.

        Raises:
            ValueError: for implicit tokens together with cached, embedded or badly shaped input.
        """
        for name in ("output_attentions", "output_hidden_states"):
            if getattr(self.config, name):
                kwargs.setdefault(name, True)
        if completion_mask is None and labels is not None and inputs_embeds is None:
            completion_mask = _completion_of(labels, attention_mask)
        wanted = num_implicit_tokens is not None or implicit_embeddings is not None or completion_mask is not None
        if not wanted or (implicit_embeddings is None and self._check_count(num_implicit_tokens) == 0):
            return self.host(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                labels=labels,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                **kwargs,
            )
        others = (position_ids, past_key_values, kwargs.get("token_type_ids"))
        if input_ids is None or any(value is not None for value in others):
            raise ValueError(
                "implicit tokens need input_ids, and take neither position_ids, past_key_values nor token_type_ids: "
                "pass input_ids and attention_mask, or num_implicit_tokens=0 for the host alone."
            )
        check_shapes(input_ids, attention_mask)
        if labels is not None and not isinstance(logits_to_keep, int):
            raise ValueError("logits_to_keep is a tensor of positions, which labels cannot follow: pass a number.")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        columns, _ = insertion_columns(input_ids, mask, self.config.answer_prompt_ids, completion_mask)
        if implicit_embeddings is None:
            queries = left_aligned_queries(input_ids, mask, columns, self._pad_id())
            implicit_embeddings = self._make_tokens(*queries, self._check_count(num_implicit_tokens))
        else:
            self._check_shape(implicit_embeddings, input_ids.shape[0])
        count, length = implicit_embeddings.shape[1], input_ids.shape[1]
        loss_kwargs = {name: kwargs.pop(name) for name in ("num_items_in_batch", "shift_labels") if name in kwargs}
        some = isinstance(logits_to_keep, int) and logits_to_keep > 0
        # From the last token ahead of the implicit ones on, the logits of text and of host positions run in parallel.
        parallel = some and logits_to_keep <= length - int(columns.max()) + 1
        embeds, mask, position_ids = self.splice_inputs(input_ids, mask, implicit_embeddings, columns)
        cacheable = use_question_cache and not self._is_stateful
        split = cacheable_columns(columns, length, logits_to_keep) if cacheable else 0
        if split:
            use_cache = True
            question = (embeds[:, :split], mask[:, :split], position_ids[:, :split])
            past_key_values = fill_question_cache(self.host, *question, question_cache)
            embeds, position_ids, columns = embeds[:, split:], position_ids[:, split:], columns - split
        outputs = self.host(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep + (0 if parallel else count) if some else 0,
            **kwargs,
        )
        logits = outputs.logits
        if not parallel:
            logits = _text_logits(logits, columns - (embeds.shape[1] - logits.shape[1]), count)
        if not isinstance(logits_to_keep, int):
            logits = logits[:, logits_to_keep]
        loss = step_loss = None
        if labels is not None:
            if loss_kwargs.get("shift_labels") is not None:
                loss_kwargs["shift_labels"] = loss_kwargs["shift_labels"][:, -logits.shape[1] :].contiguous()
            loss = self.host.loss_function(
                logits=logits, labels=labels[:, -logits.shape[1] :], vocab_size=logits.shape[-1], **loss_kwargs
            )
        if step_input_ids is not None:
            step_loss = step_decoding_loss(
                self.step_decoder,
                self.step_projection(implicit_embeddings.to(self.step_projection.weight.dtype)),
                step_input_ids,
                step_attention_mask,
            )
        return SemCoTCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=None if split else outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            implicit_embeddings=implicit_embeddings,
            implicit_columns=columns,
            step_loss=step_loss,
        )

    def splice_inputs(self, input_ids, attention_mask, implicit_embeddings, columns):
        """Host inputs with implicit tokens in place: embeddings (batch, length + k, hidden), mask, position ids."""
        embeds = self.get_input_embeddings()(input_ids)
        embeds = splice(embeds, implicit_embeddings.to(embeds.dtype).to(embeds.device), columns)
        ones = attention_mask.new_ones(attention_mask.shape[0], implicit_embeddings.shape[1])
        mask = splice(attention_mask, ones, columns)
        return embeds, mask, positions_from_mask(mask)


# Each `generate` asks for it four times, and building it from so many parameters takes as long as a small layer.
SemCoTForCausalLM.forward.__signature__ = signature(SemCoTForCausalLM.forward)


def check_word_size(host):
    """Raise ValueError for a host, or its backbone, whose word embeddings are of another size than its layers."""
    size = host.config.get_text_config().hidden_size
    width = getattr(host.get_input_embeddings(), "embedding_dim", size)
    if width != size:
        raise ValueError(
            f"host has word embeddings of size {width} and layers of size {size}: a host whose word embeddings are "
            "projected (as OPT-350m's are) is not supported; take one where the two are alike."
        )


def _takes_cache(model):
    return "past_key_values" in signature(type(model).forward).parameters


def _completion_of(labels, attention_mask):
    """Mask of the labelled tokens, or `None` when some row has no prompt before them."""
    labelled = labels != -100
    whole = attention_mask is None or attention_mask.shape != labelled.shape
    real = torch.ones_like(labelled) if whole else attention_mask.bool()
    has_prompt = (real & (labelled.cumsum(dim=1) == 0)).any(dim=1)
    return labelled.long() if bool(has_prompt.all()) else None


def _text_logits(logits, columns, count):
    """Select, for each text position, the logits that predict the next text token.

    Before the last prompt token ahead of the implicit tokens that is the position itself; from there on it lies
    `count` positions further, since the last implicit token predicts the text behind it.
    """
    length = logits.shape[1] - count
    text = torch.arange(length, device=logits.device)[None]
    source = torch.where(text < columns[:, None] - 1, text, text + count)
    return logits.gather(1, source[..., None].expand(-1, -1, logits.shape[-1]))


def step_decoding_loss(decoder, latents, step_input_ids, step_attention_mask):
    """Mean over supervised steps' tokens of CE(decoder([z_k; step_k]), step_k) (SIM-CoT, arXiv 2509.20317).

    Args:
        decoder: causal LM; latents: (batch, k, decoder hidden size), one per step, in its embedding space.
        step_input_ids: (batch, k, length), steps padded on the right, end-of-sequence token included.
        step_attention_mask: (batch, k, length); a row of zeros leaves its token unsupervised.

    Returns:
        Scalar; 0 when no step is supervised.
    """
    used = step_attention_mask.bool().any(dim=-1)
    ids, mask = step_input_ids[used], step_attention_mask[used]
    if ids.shape[0] == 0:
        return latents.sum() * 0.0
    text = decoder.get_input_embeddings()(ids[:, :-1])
    embeds = torch.cat([latents[used][:, None].to(text.dtype), text], dim=1)
    logits = decoder(inputs_embeds=embeds, attention_mask=torch.cat([mask[:, :1], mask[:, :-1]], dim=1)).logits
    labels = ids.masked_fill(mask == 0, -100)
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)
