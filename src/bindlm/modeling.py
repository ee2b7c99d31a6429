"""A language model bound to a joint embedding space: encoder, cache, bridge and injection, composed.

ImageBind-LLM (arXiv 2309.03905). The way of the data: media tensor -> joint embedding `(B, D_joint)` -> mixture ->
visual cache -> bridge -> condition `(B, 1, D_lm)` -> injection into every decoder layer.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import AutoModelForImageTextToText, AutoModelForMultimodalLM

from bindlm.asking import Answer, AskMixin
from bindlm.bridges import BindNetwork, BindNetworkConfig
from bindlm.checkpoints import convert_pickled_state, load_language_model, load_state, resolve
from bindlm.checkpoints.state import save_state_atomic
from bindlm.configuration import BindLMConfig
from bindlm.encoders import JointEncoder, build_encoder
from bindlm.errors import CheckpointError, ConfigError
from bindlm.injections import AdditiveInjection, find_decoder_layers
from bindlm.space import VisualCache, VisualCacheConfig
from bindlm.space.mix import mix_embeddings
from bindlm.tuning.lora import inject_lora

__all__ = ["Answer", "BindLMForConditionalGeneration"]

WEIGHTS_FILE = "model.safetensors"


class BindLMForConditionalGeneration(AskMixin, PreTrainedModel, GenerationMixin):
    """Generate text conditioned on any sense of a joint embedding space.

    Args:
        config: what the model is made of.
        language_model: a loaded decoder to bind; None builds one with fresh weights from `config.text_config`.

    Example:
        >>> model = BindLMForConditionalGeneration.from_pretrained("my-bound-model")
        >>> model.ask("What is this?", image="cat.jpg")
        'This is a tabby cat, a kind of cat.'
    """

    config_class = BindLMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    encoder: JointEncoder
    language_model: PreTrainedModel
    bridge: BindNetwork

    def __init__(self, config: BindLMConfig, language_model: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if language_model is None:
            language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.language_model = language_model
        settings = dict(config.encoder)
        self.encoder = build_encoder(settings.pop("family"), **settings).requires_grad_(False)
        text_config = config.get_text_config()
        bridge = {"input_dim": self.encoder.dim, "output_dim": text_config.hidden_size, **config.bridge}
        if bridge["input_dim"] != self.encoder.dim or bridge["output_dim"] != text_config.hidden_size:
            raise ConfigError(
                f"The bridge is {bridge['input_dim']} -> {bridge['output_dim']}, but the encoder gives "
                f"{self.encoder.dim} and the language model takes {text_config.hidden_size}."
            )
        self.bridge = BindNetworkConfig(**bridge).build()
        self.injection = AdditiveInjection(text_config.num_hidden_layers, **config.injection)
        self.cache = VisualCache(VisualCacheConfig(**config.cache)) if config.cache is not None else None
        if self.cache is not None and self.cache.config.dim != self.encoder.dim:
            raise ConfigError(f"The cache is {self.cache.config.dim} wide, the encoder {self.encoder.dim}.")
        layers = find_decoder_layers(language_model)
        self._lora = inject_lora(language_model, config.lora) if config.lora is not None else None
        self.injection.attach(layers)
        self.generation_config = language_model.generation_config or GenerationConfig()
        self.processor: Any = None
        self.name = config.name_or_path or "bindlm"
        self.post_init()

    def init_weights(self) -> None:
        """Nothing: each part initialises or loads itself."""

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

    def add_cache(self, keys: Tensor, values: Tensor | None = None, **settings: Any) -> None:
        """Give the model a visual cache, or another one.

        Args:
            keys, values: `(N, D_joint)`, see `VisualCache`; without values, the keys at unit length are mixed in.
            **settings: fields of `VisualCacheConfig` other than its sizes.
        """
        sizes = {"num_entries": keys.shape[0], "dim": keys.shape[1], "has_own_values": values is not None}
        self.config.cache = {**sizes, **settings}
        self.cache = VisualCache(VisualCacheConfig(**self.config.cache))
        self.cache.keys.copy_(keys)
        if self.cache.values is not None and values is not None:
            self.cache.values.copy_(values)

    def add_lora(self, settings: dict[str, Any]) -> list[nn.Parameter]:
        """Put LoRA adapters into the language model, on wherever there is a condition.

        Args:
            settings: fields of `peft.LoraConfig`.

        Returns:
            The adapters' weights.

        Raises:
            ConfigError: the model has adapters already.
        """
        if self._lora is not None:
            raise ConfigError("This model has LoRA adapters already.")
        self.config.lora = dict(settings)
        self._lora = inject_lora(self.language_model, settings)
        return self._lora.parameters()

    # -- from media to condition ------------------------------------------------------------------------------------

    def encode_media(self, **media: Tensor | None) -> dict[str, Tensor]:
        """Joint embeddings of preprocessed media.

        Args:
            **media: by modality: `image` `(B, V, 3, S, S)`.

        Returns:
            By modality: `(B, D_joint)`, unit length, fp32.
        """
        with torch.inference_mode(mode=not torch.is_grad_enabled()):
            return {
                modality: self.encoder.encode(modality, values)
                for modality, values in media.items()
                if values is not None
            }

    def condition_from(
        self, joint_embedding: Tensor | Sequence[tuple[Tensor, float]], *, use_cache_entries: bool = True
    ) -> Tensor:
        """The condition of one or several joint embeddings.

        Args:
            joint_embedding: `(B, D_joint)`, or a list of `((B, D_joint), weight)` to be mixed.
            use_cache_entries: whether the visual cache, if there is one, pulls the embedding toward its entries.

        Returns:
            Condition `(B, 1, D_lm)` in the bridge's dtype.
        """
        if not isinstance(joint_embedding, Tensor):
            joint_embedding = mix_embeddings(joint_embedding)
        joint_embedding = joint_embedding.to(self.device)
        if self.cache is not None and use_cache_entries:
            joint_embedding = self.cache.enhance(joint_embedding)
        return self.bridge(joint_embedding.to(self.bridge.input.weight.dtype))

    def _condition(
        self,
        condition: Tensor | None,
        joint_embedding: Tensor | Sequence[tuple[Tensor, float]] | None,
        pixel_values: Tensor | None,
        has_media: Tensor | None,
    ) -> Tensor | None:
        """One condition from whichever form was given; rows without media get zeros."""
        if sum(value is not None for value in (condition, joint_embedding, pixel_values)) > 1:
            raise ConfigError("Give one of condition, joint_embedding and pixel_values, not several.")
        if condition is not None:
            return condition
        if pixel_values is not None:
            joint_embedding = self.encode_media(image=pixel_values)["image"]
        if joint_embedding is None:
            return None
        rows = self.condition_from(joint_embedding)
        if has_media is None:
            return rows
        spread = rows.new_zeros(len(has_media), *rows.shape[1:])
        spread[has_media.to(rows.device)] = rows
        return spread

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
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next token, given text and a condition.

        Args:
            input_ids: `(B, T)`.
            attention_mask: `(B, T)`, 1 where there is a token.
            pixel_values: pictures `(M, V, 3, S, S)` of the M rows that have one.
            has_media: `(B,)` bool, which rows these are; None where each row has one.
            joint_embedding: in place of pictures, `(B, D_joint)` or a list of `((B, D_joint), weight)`.
            condition: in place of either, what the bridge would give, `(B, 1, D_lm)`; an all-zero row has none.
            labels: `(B, T)`, -100 where no loss is wanted.
            **kwargs: whatever the language model takes (`past_key_values`, `position_ids`, `logits_to_keep`, …).

        Returns:
            The language model's own output.
        """
        condition = self._condition(condition, joint_embedding, pixel_values, has_media)
        if condition is not None:
            kwargs["condition"] = condition
        if self._lora is None:
            return self.language_model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs)
        is_conditioned = None if condition is None else condition.detach().ne(0).flatten(1).any(dim=1)
        if is_conditioned is not None and not bool(is_conditioned.any()):
            kwargs.pop("condition")
        with self._lora.rows(is_conditioned):
            return self.language_model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs)

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """transformers' `generate`, with the media encoded once, not once a token.

        Takes what `forward` takes for media, and everything transformers' `generate` takes: `streamer`, `num_beams`,
        `do_sample`, …
        """
        media = {
            name: kwargs.pop(name, None) for name in ("condition", "joint_embedding", "pixel_values", "has_media")
        }
        with torch.no_grad():
            condition = self._condition(**media)
        if condition is not None:
            kwargs["condition"] = condition
        return super().generate(inputs, **kwargs)

    # -- saving and loading -----------------------------------------------------------------------------------------

    def saved_names(self) -> list[str]:
        """Names of the tensors that belong to this model's own file: all but those kept by reference."""
        referenced = tuple(f"encoder.{tower}." for tower in self.config.encoder_weights)
        names = []
        for name in self.state_dict():
            if name.startswith(referenced) and referenced:
                continue
            is_adapter = ".lora_" in name
            if name.startswith("language_model.") and self.config.language_model is not None and not is_adapter:
                continue
            names.append(name)
        return names

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], state_dict: Mapping[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """Write configuration, trained weights and, where there is one, the processor into a folder.

        Only what was trained is written; what `config.json` names by reference is not. The folder appears whole or
        not at all; other files in it are kept.

        Args:
            save_directory: folder, made where absent.
            state_dict: weights to write in place of the model's own, as a distributed trainer gathers them.
            **kwargs: accepted for transformers' sake and unused (`safe_serialization` is always true).
        """
        if not kwargs.get("is_main_process", True):
            return
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        state = dict(self.state_dict() if state_dict is None else state_dict)
        wanted = {name: state[name].detach().cpu().contiguous() for name in self.saved_names() if name in state}
        save_state_atomic(folder / WEIGHTS_FILE, _without_ties(wanted), metadata={"format": "pt"})
        self.config.architectures = [type(self).__name__]
        self.config.save_pretrained(folder)
        if self.generation_config is not None:
            self.generation_config.save_pretrained(folder)
        if self.processor is not None:
            self.processor.save_pretrained(folder)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *args: Any,
        config: BindLMConfig | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        local_files_only: bool = False,
        progress: bool = True,
        **kwargs: Any,
    ) -> "BindLMForConditionalGeneration":
        """Load a bound model: its own folder, and what the folder names by reference.

        Args:
            pretrained_model_name_or_path: a folder or a hub id.
            config: in place of the folder's own.
            dtype: of the language model, bridge and gates; None is fp32. The encoder stays in fp32.
            device: where to put it; None is the CPU. `device_map` is read as a device.
            local_files_only: never touch the network.
            progress: whether to say on stderr what is fetched.
            **kwargs: other keywords of transformers, of which `attn_implementation` is used.

        Raises:
            CheckpointError: a part is missing, damaged, or does not fit.
        """
        device = device if device is not None else kwargs.pop("device_map", None)
        dtype = kwargs.pop("torch_dtype", None) if dtype is None else dtype
        folder = resolve(pretrained_model_name_or_path, local_files_only=local_files_only, progress=progress)
        if config is None:
            if not (folder / "config.json").is_file():
                raise CheckpointError(f"{folder} has no config.json, so it is not a model saved by bindlm.")
            config = BindLMConfig.from_pretrained(folder)
        language_model = None
        if config.language_model is not None:
            language_model, _ = load_language_model(
                config.language_model,
                dtype=dtype,
                attn_implementation=kwargs.get("attn_implementation"),
                local_files_only=local_files_only,
                progress=progress,
            )
            _check_same_shape(config, language_model)
        with torch.device("meta") if language_model is not None else torch.device("cpu"):
            model = cls(config, language_model)
        model._load_own_weights(folder / WEIGHTS_FILE)
        for tower, reference in config.encoder_weights.items():
            model._load_tower(tower, resolve(reference, local_files_only=local_files_only, progress=progress))
        if dtype is not None and dtype != "auto":
            resolved = getattr(torch, dtype) if isinstance(dtype, str) else dtype
            for part in (model.bridge, model.injection, model.language_model):
                part.to(resolved)
        if device is not None:
            model.to(device)
        if config.notice:
            warnings.warn(config.notice, UserWarning, stacklevel=2)
        model.name = str(pretrained_model_name_or_path)
        model.eval()
        return model

    def _load_own_weights(self, path: Path) -> None:
        """Strictly load this model's own file.

        Raises:
            CheckpointError: a missing or extra key, or a wrong shape.
        """
        own = self.state_dict()
        names = set(_without_ties({name: own[name] for name in self.saved_names()}))
        state = load_state(path, expected={name: tuple(own[name].shape) for name in names})
        # a language model that is saved here may tie its head, and assigning would cut the tie
        self.load_state_dict(state, strict=False, assign=self.config.language_model is not None)
        self.encoder.requires_grad_(False)
        if self._lora is None:
            return
        for parameter in self._lora.parameters():
            parameter.requires_grad_(False)

    def _load_tower(self, tower: str, path: Path) -> None:
        """Strictly load a frozen tower of the encoder from a file in its publisher's own keys."""
        module = getattr(self.encoder, tower, None)
        if not isinstance(module, nn.Module):
            raise ConfigError(f"BindLMConfig.encoder_weights names {tower!r}, which the encoder lacks.")
        expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        if path.suffix != ".safetensors":
            path = convert_pickled_state(path)
        module.load_state_dict(load_state(path, expected=expected), assign=True)
        module.requires_grad_(False)


def _without_ties(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop names that share storage with an earlier one (tied heads): safetensors keeps one copy."""
    seen: set[tuple[Any, ...]] = set()
    kept = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.device.type != "meta" and tensor.numel() and key in seen:
            continue
        seen.add(key)
        kept[name] = tensor
    return kept


def _check_same_shape(config: BindLMConfig, language_model: PreTrainedModel) -> None:
    """The referenced language model must be the one the bridge was trained for."""
    expected, given = config.get_text_config(), language_model.config.get_text_config()
    for field in ("hidden_size", "num_hidden_layers", "vocab_size"):
        if getattr(expected, field) != getattr(given, field):
            raise CheckpointError(
                f"{config.language_model} has {field} {getattr(given, field)}, but this model was trained on one with "
                f"{getattr(expected, field)}. Point `language_model` in config.json at the right one."
            )


AutoModelForImageTextToText.register(BindLMConfig, BindLMForConditionalGeneration)
AutoModelForMultimodalLM.register(BindLMConfig, BindLMForConditionalGeneration)
