"""A language model bound to a joint embedding space: encoder, cache, bridge and injection, composed.

ImageBind-LLM (arXiv 2309.03905). The way of the data: media tensor -> joint embedding `(B, D_joint)` -> mixture ->
visual cache -> bridge -> condition `(B, 1, D_lm)` -> injection into every decoder layer.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import AutoModelForImageTextToText, AutoModelForMultimodalLM

from bindlm.asking import Answer, AskMixin
from bindlm.attaching import FOLDER
from bindlm.bridges import Bridge, build_bridge
from bindlm.checkpoints.quantization import quantization_of
from bindlm.configuration import BindLMConfig, built
from bindlm.encoders import JointEncoder, build_encoder
from bindlm.errors import ConfigError
from bindlm.injections import Injection, build_injection
from bindlm.injections.placing import (
    check_condition,
    check_media_rows,
    counted_positions,
    leave_out_the_cache,
    spread_in_reading_order,
    spread_over_places,
    spread_over_rows,
    spread_over_tokens,
)
from bindlm.injections.prefix import IGNORED_LABEL
from bindlm.modeling_folder import FolderModel
from bindlm.space import VisualCache, VisualCacheBase, VisualCacheConfig
from bindlm.space.mix import MixForm, mix_embeddings
from bindlm.tuning.bias_norm import add_biases, check_bias_names
from bindlm.tuning.lora import inject_lora

__all__ = ["Answer", "BindLMForConditionalGeneration"]


class BindLMForConditionalGeneration(AskMixin, FolderModel, GenerationMixin):
    """Generate text conditioned on any sense of a joint embedding space.

    Args:
        config: what the model is made of.
        language_model: a loaded decoder to bind; None builds one with fresh weights from `config.text_config`.
        encoder: a loaded encoder; None builds one with fresh weights from `config.encoder`.

    Example:
        >>> model = BindLMForConditionalGeneration.from_pretrained("my-bound-model")
        >>> model.ask("What is this?", image="cat.jpg")
        'This is a cat, a kind of animal.'
    """

    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    encoder: JointEncoder
    language_model: PreTrainedModel
    bridge: Bridge
    injection: Injection
    cache: VisualCacheBase | None

    def __init__(
        self,
        config: BindLMConfig,
        language_model: PreTrainedModel | None = None,
        encoder: JointEncoder | None = None,
    ) -> None:
        super().__init__(config)
        if language_model is None:
            language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.language_model = language_model
        if config.quantization is None:
            config.quantization = quantization_of(language_model)
        if encoder is None:
            encoder = built("encoder", build_encoder, config.encoder)
        self.encoder = encoder.requires_grad_(False).eval()
        text_config = config.get_text_config()
        bridge = {"input_dim": self.encoder.dim, "output_dim": text_config.hidden_size, **config.bridge}
        if bridge["input_dim"] != self.encoder.dim or bridge["output_dim"] != text_config.hidden_size:
            raise ConfigError(
                f"The bridge is {bridge['input_dim']} -> {bridge['output_dim']}, but the encoder gives "
                f"{self.encoder.dim} and the language model takes {text_config.hidden_size}."
            )
        self.bridge = built("bridge", build_bridge, bridge)
        self.injection = built("injection", partial(build_injection, text_config), config.injection)
        self.cache = None
        if config.cache is not None and FOLDER not in config.cache:  # a folder waits for the encoder's weights
            self.cache = VisualCache(built("cache", VisualCacheConfig, config.cache))
            self._check_width(self.cache)
        biases = config.tuned["biases"] if config.tuned is not None else []
        check_bias_names(language_model, biases)
        # Only now is the language model touched, and given back as it was if that goes wrong.
        self.injection.attach_to(language_model)
        try:
            lora = config.lora
            self._lora = inject_lora(language_model, lora, scope=config.lora_scope) if lora is not None else None
        except ConfigError:
            self.injection.detach()
            raise
        add_biases(language_model, biases)
        self.generation_config = language_model.generation_config or GenerationConfig()
        self.processor: Any = None
        self.name = config.name_or_path or "bindlm"
        self.post_init()

    def init_weights(self) -> None:
        """Nothing: each part initialises or loads itself."""

    def train(self, mode: bool = True) -> "BindLMForConditionalGeneration":
        """Set training mode for all but the encoder: its batch norms would follow the batch, and drift."""
        super().train(mode)
        self.encoder.eval()
        return self

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] = checkpoint, **kwargs: Any
    ) -> None:
        replaying = partial(_checkpoint_with_adapters, self, gradient_checkpointing_func)
        super()._set_gradient_checkpointing(enable, replaying, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The language model's head."""
        return self.language_model.get_output_embeddings()

    def get_decoder(self) -> nn.Module:
        """The language model's decoder."""
        return self.language_model.get_decoder()

    # -- from media to condition ------------------------------------------------------------------------------------

    def encode_media(self, **media: Tensor | None) -> dict[str, Tensor]:
        """Joint embeddings of preprocessed media.

        Args:
            **media: by modality: `image` `(B, V, 3, S, S)`.

        Returns:
            By modality: `(B, D_joint)`, fp32, of unit length; as their publisher has them where media join by "sum".
        """
        encode = self.encoder.encode
        if self.config.mixing == "sum":
            encode = getattr(self.encoder, "official_output", encode)
        embeddings = {}
        for modality, values in media.items():
            if values is not None:
                self.encoder.check_modality(modality)
                weight = next(self.encoder.parameters())
                values = values.to(weight) if values.is_floating_point() else values.to(weight.device)
                embeddings[modality] = encode(modality, values).float()
        return embeddings

    def condition_from(
        self,
        joint_embedding: Tensor | Sequence[tuple[Tensor, float]],
        *,
        use_cache_entries: bool | VisualCacheBase = True,
        form: MixForm | str = MixForm.RELEASED,
    ) -> Tensor:
        """The condition of one or several joint embeddings.

        Args:
            joint_embedding: `(B, D_joint)`, or a list of `((B, D_joint), weight)` to be mixed.
            use_cache_entries: whether the visual cache, if there is one, pulls the embedding toward its entries; or
                the cache to do it, such as `model.cache.for_senses(["audio"])`.
            form: what becomes of the weights, see `mix_embeddings`.

        Returns:
            Condition `(B, N, D_lm)` in the bridge's dtype; N is 1 for all bridges but those of patches `(B, P, D)`.
        """
        if self.config.mixing == "sum":
            return self._summed(joint_embedding)
        if not isinstance(joint_embedding, Tensor):
            joint_embedding = mix_embeddings(joint_embedding, form=form)
        joint_embedding = joint_embedding.to(self.device)
        cache = self.cache if use_cache_entries is True else use_cache_entries
        if cache:
            joint_embedding = cache.enhance(joint_embedding)
        return self.bridge(joint_embedding.to(self.bridge.dtype))

    def _summed(self, joint_embedding: Tensor | Sequence[tuple[Tensor, float]]) -> Tensor:
        """PandaGPT's way: each input is projected, bias and all, then they are summed; it knows no weight but 1."""
        given = [(joint_embedding, 1.0)] if isinstance(joint_embedding, Tensor) else list(joint_embedding)
        if not given:
            raise ConfigError("There is nothing to join: give at least one (embedding, weight).")
        if len(given) > 1 and any(embedding.ndim > 2 for embedding, _ in given):
            raise ConfigError(
                f"{len(given)} media of patches cannot be mixed: a patch has a place, and a sum of two pictures is "
                'neither. Ask about them one after the other (mix="turns"), or give a text with placeholders for each '
                "of them, and pixel_values or a joint_embedding with all of them in reading order."
            )
        like = {"device": self.device, "dtype": self.bridge.dtype}
        return torch.stack([weight * self.bridge(embedding.to(**like)) for embedding, weight in given]).sum(dim=0)

    def _condition(
        self,
        tokens: Tensor | None,
        condition: Tensor | None,
        joint_embedding: Tensor | Sequence[tuple[Tensor, float]] | None,
        pixel_values: Tensor | None,
        has_media: Tensor | None,
        media_rows: Tensor | None = None,
        use_cache_entries: bool | VisualCacheBase = True,
    ) -> Tensor | None:
        """One condition a row, `(B, N, D_lm)`, or with `media_rows` one a token, `(B, T, D_lm)`; zeros for none."""
        if sum(value is not None for value in (condition, joint_embedding, pixel_values)) > 1:
            raise ConfigError("Give one of condition, joint_embedding and pixel_values, not several.")
        if has_media is not None and media_rows is not None:
            raise ConfigError("Give has_media, for whole rows, or media_rows, for each token, not both.")
        if media_rows is not None:
            if tokens is None:
                raise ConfigError("media_rows say which medium a token has: give input_ids or inputs_embeds too.")
            check_media_rows(media_rows, tokens)
        if condition is not None and self.injection.is_precomputed(condition):
            return condition  # by `generate`, from what was checked there
        if pixel_values is not None:
            joint_embedding = self.encode_media(image=pixel_values)["image"]
            if use_cache_entries is True and self.cache is not None:
                use_cache_entries = self.cache.for_senses(["image"]) or False
        if joint_embedding is not None:
            condition = self.condition_from(joint_embedding, use_cache_entries=use_cache_entries)
            if has_media is not None:
                condition = spread_over_rows(condition, has_media)
            elif media_rows is None and self.injection.placeholder_id is not None and tokens is not None:
                condition = spread_in_reading_order(condition, tokens == self.injection.placeholder_id)
        elif has_media is not None and bool(has_media.any()):
            raise ConfigError("has_media marks rows with media, but there are no pixel_values and no joint_embedding.")
        if condition is None:
            if media_rows is not None and bool(media_rows.ge(0).any()):
                raise ConfigError("media_rows names media, but there are no pixel_values and no joint_embedding.")
            return None
        width = self.config.get_text_config().hidden_size
        check_condition(self.injection, condition, num_rows=_num_rows(tokens), width=width, media_rows=media_rows)
        if media_rows is not None and self.injection.placeholder_id is not None:
            assert tokens is not None
            return spread_over_places(condition, media_rows, tokens == self.injection.placeholder_id)
        if media_rows is not None:
            return spread_over_tokens(condition, media_rows)
        return condition.expand(_num_rows(tokens), -1, -1)

    # -- the language model -----------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        has_media: Tensor | None = None,
        joint_embedding: Tensor | Sequence[tuple[Tensor, float]] | None = None,
        condition: Tensor | None = None,
        labels: Tensor | None = None,
        media_rows: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next token, given text and a condition.

        Args:
            input_ids: `(B, T)`.
            attention_mask: `(B, T)`, 1 where there is a token.
            pixel_values: pictures `(M, V, 3, S, S)` of the M rows that have one.
            has_media: `(B,)` bool, which rows these are; None where each row has one.
            joint_embedding: in place of pictures, `(B, D_joint)` or a list of `((B, D_joint), weight)`; for a bridge
                of patches `(B, P, D)`.
            condition: in place of either, what the bridge would give, `(B, N, D_lm)`; an all-zero row has none. One
                row of any of the three serves a whole batch.
            labels: `(B, T)`, -100 where no loss is wanted; without any other the loss is 0.
            media_rows: `(B, T)` whole numbers, for rows of several samples (packing): which of M pictures, joint
                embeddings or conditions the sample of each token has, -1 for none. Samples are told apart by
                `position_ids` that begin anew and no `attention_mask`.
            position_ids: `(B, T)`; None has the language model count, from `attention_mask` where a prompt's keys
                would otherwise meet words in the wrong place.
            **kwargs: whatever the language model takes (`past_key_values`, `logits_to_keep`, …).

        Returns:
            The language model's own output.

        Raises:
            ConfigError: media that do not fit each other or the text.
        """
        tokens = input_ids if input_ids is not None else kwargs.get("inputs_embeds")
        condition = self._condition(tokens, condition, joint_embedding, pixel_values, has_media, media_rows)
        if condition is not None:
            kwargs["condition"] = condition
        if media_rows is not None or self.training:
            leave_out_the_cache(kwargs, is_packed=media_rows is not None)
        if position_ids is None and self.injection.reads_positions:
            position_ids = counted_positions(attention_mask, tokens)
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        if labels is not None:
            labels = self._without_placeholders(labels, input_ids, condition)
        with self._adapters(condition, media_rows, has_media):
            if labels is not None and "num_items_in_batch" not in kwargs and _has_no_target(labels):
                output = self.language_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
                output["loss"] = output["logits"].float().mean() * 0.0  # as released; a mean over none is no number
                return output
            return self.language_model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs)

    def _without_placeholders(self, labels: Tensor, input_ids: Tensor | None, condition: Tensor | None) -> Tensor:
        """No loss for saying a placeholder, whose place a medium takes."""
        if self.injection.placeholder_id is None or input_ids is None or condition is None:
            return labels
        return labels.masked_fill(input_ids == self.injection.placeholder_id, IGNORED_LABEL)

    def _adapters(
        self, condition: Tensor | None, media_rows: Tensor | None, has_media: Tensor | None
    ) -> AbstractContextManager[None]:
        """LoRA on for the rows that have a condition, be it for one token, if there is LoRA."""
        if self._lora is None:
            return nullcontext()
        if condition is None:
            return self._lora.rows(None)
        if self.injection.is_precomputed(condition):  # its zeros say nothing: a gate may be shut
            return self._lora.rows(condition.new_ones(len(condition)).bool() if has_media is None else has_media)
        given = condition.detach().ne(0).flatten(1) if media_rows is None else media_rows.ge(0)
        return self._lora.rows(given.any(dim=1))

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """transformers' `generate`, with the media encoded once, not once a token.

        Takes what `forward` takes for media, `use_cache_entries` (see `condition_from`), and everything
        transformers' `generate` takes: `streamer`, `num_beams`, `do_sample`, …
        """
        media = {
            name: kwargs.pop(name, None) for name in ("condition", "joint_embedding", "pixel_values", "has_media")
        }
        if kwargs.get("media_rows") is not None:
            raise ConfigError("media_rows are for training; generate takes a row a sample, and has_media.")
        given = (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        tokens = next((each for each in given if each is not None), None)
        use_cache_entries = kwargs.pop("use_cache_entries", True)
        with torch.no_grad():
            condition = self._condition(tokens, **media, use_cache_entries=use_cache_entries)
            kwargs |= self._ready_for_steps(condition, tokens, media["has_media"])
        if (placeholder := self.injection.placeholder_id) is not None:
            settings = kwargs.get("generation_config") or self.generation_config
            banned = kwargs.get("suppress_tokens") or getattr(settings, "suppress_tokens", None) or []
            kwargs["suppress_tokens"] = sorted({*banned, placeholder})
        return super().generate(inputs, **kwargs)

    def _ready_for_steps(
        self, condition: Tensor | None, tokens: Tensor | None, has_media: Tensor | None
    ) -> dict[str, Any]:
        """What each step of a generation is given in place of media, with the work done that no step need repeat."""
        if condition is not None and self.injection.is_precomputed(condition):
            return {"condition": condition} | ({} if has_media is None else {"has_media": has_media})
        rows = _num_rows(tokens)
        made = self.injection.precompute(condition, num_rows=rows)
        if made is None or not self.injection.is_precomputed(made):
            return {} if made is None else {"condition": made}
        is_given = torch.zeros(rows).bool() if condition is None else condition.ne(0).flatten(1).any(dim=1)
        return {"condition": made, "has_media": is_given.to(made.device)}


def _checkpoint_with_adapters(
    model: BindLMForConditionalGeneration, checkpointing: Callable[..., Any], function: Callable[..., Any], *args: Any
) -> Any:
    """Checkpoint a decoder layer so that backward replays it with the adapters on for the rows of its forward."""
    return checkpointing(function if model._lora is None else model._lora.bound(function), *args)


def _num_rows(tokens: Tensor | None) -> int:
    return len(tokens) if tokens is not None else 1


def _has_no_target(labels: Tensor) -> bool:
    return not torch.compiler.is_compiling() and not bool(labels[:, 1:].ne(IGNORED_LABEL).any())


AutoModelForImageTextToText.register(BindLMConfig, BindLMForConditionalGeneration)
AutoModelForMultimodalLM.register(BindLMConfig, BindLMForConditionalGeneration)
