"""A bound model and its folder: which tensors are its own, and how it comes back with the parts it refers to."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from bindlm.attaching import CacheMixin, config_for
from bindlm.bound_encoder import WEIGHTS_FILE, load_published_encoder, load_tower
from bindlm.bridges import Bridge
from bindlm.checkpoints import load_language_model, load_state, resolve
from bindlm.checkpoints.mapped import forget
from bindlm.checkpoints.quantization import (
    build_quantized,
    check_quantization,
    quantization_of,
    quantized_base_state,
    without_base,
)
from bindlm.checkpoints.state import check_shapes, dtype_of, save_state_atomic, without_ties
from bindlm.checkpoints.unfilled import without_random_weights
from bindlm.configuration import BindLMConfig, check_same_shape, load_config
from bindlm.encoders import JointEncoder
from bindlm.errors import ConfigError
from bindlm.injections import Injection
from bindlm.tuning.mixin import TuningMixin

__all__ = ["FolderModel"]


class FolderModel(CacheMixin, TuningMixin, PreTrainedModel):
    """Saving and loading of `BindLMForConditionalGeneration`: `save_pretrained` and `from_pretrained`."""

    config_class = BindLMConfig
    encoder: JointEncoder
    language_model: PreTrainedModel
    bridge: Bridge
    injection: Injection
    processor: Any
    name: str

    def saved_names(self) -> list[str]:
        """Names of the tensors that belong to this model's own file: all but those kept by reference."""
        towers = self.config.encoder_weights
        referenced = ("encoder.",) if isinstance(towers, str) else tuple(f"encoder.{tower}." for tower in towers)
        if self.config.language_model is not None:
            referenced += ("language_model.",)
        trained = {id(parameter) for parameter in [*self.lora_parameters(), *self.tuned_parameters()]}
        own = {name for name, parameter in self.named_parameters() if id(parameter) in trained}
        return [name for name in self.state_dict() if name in own or not name.startswith(referenced)]

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], state_dict: Mapping[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """Write configuration, trained weights and, where there is one, the processor into a folder.

        Only what was trained is written; what `config.json` names by reference is not, a visual cache on disk among it
        (see `attach_cache`). The folder appears whole or
        not at all; other files in it are kept.

        Args:
            save_directory: folder, made where absent.
            state_dict: weights to write in place of the model's own, as a distributed trainer gathers them.
            **kwargs: accepted for transformers' sake and unused (`safe_serialization` is always true).

        Raises:
            ConfigError: the language model belongs in the file, but only a quantised one is at hand.
        """
        if not kwargs.get("is_main_process", True):
            return
        if self.config.language_model is None and quantization_of(self.language_model) is not None:
            raise ConfigError(
                "This model's file would hold its language model, of which only quantised weights are at hand. Load "
                "it with quantization=False to save it, or set config.language_model to where its plain weights are."
            )
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        state = dict(self.state_dict() if state_dict is None else state_dict)
        wanted = {name: state[name].detach().cpu().contiguous() for name in self.saved_names() if name in state}
        save_state_atomic(folder / WEIGHTS_FILE, without_ties(wanted), metadata={"format": "pt"})
        self.config.architectures = [type(self).__name__]
        self.config.text_config.dtype = self.language_model.dtype
        config_for(self.config, folder).save_pretrained(folder)
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
        quantization: Any = None,
        trained_dtype: torch.dtype | str | None = None,
        encoder: str | os.PathLike[str] | None = None,
        cache: str | os.PathLike[str] | bool | None = None,
        local_files_only: bool = False,
        progress: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Load a bound model: its own folder, and what the folder names by reference.

        Args:
            pretrained_model_name_or_path: a folder or a hub id.
            config: in place of the folder's own.
            dtype: of the language model, bridge and gates; None is fp32, "auto" what the language model is stored in.
                The encoder and the cache stay in fp32.
            device: where to put it; None is the CPU. `device_map` is read as a device.
            quantization: how the language model is held: "int8", "int4", a quantisation config of transformers or its
                dictionary; None is what the folder says, False is in full. All else keeps its dtype.
            trained_dtype: of bridge, gates, prompts and LoRA; None is `dtype`.
            encoder: published weights of the encoder, for a model saved without or in place of its own: a file, a
                folder or a hub id.
            cache: folder of a visual cache to consult, see `attach_cache`; None is the model's own, False is none.
            local_files_only: never touch the network.
            progress: whether to say on stderr what is fetched.
            **kwargs: other keywords of transformers, of which `attn_implementation` is used.

        Raises:
            CheckpointError: a part is missing, damaged, or does not fit.
            ConfigError: `dtype` or `device` is none that torch has here, or the configuration is impossible; or the
                package that quantises is not installed.
        """
        device = device if device is not None else kwargs.pop("device_map", None)
        dtype = kwargs.pop("torch_dtype", None) if dtype is None else dtype
        folder = resolve(pretrained_model_name_or_path, local_files_only=local_files_only, progress=progress)
        if config is None:
            config = load_config(folder)
        if quantization is not None:
            config.quantization = check_quantization(quantization)
        if encoder is not None:
            # a model that was saved without may say which family it was trained with; else the weights tell it
            config.encoder = {"family": config.encoder.get("stands_for")}
            config.encoder_weights = os.fspath(encoder)
        attn_implementation = kwargs.get("attn_implementation")
        language_model = None
        if config.language_model is not None:
            language_model, _ = load_language_model(
                config.language_model,
                dtype=None if dtype == "auto" else dtype or torch.float32,
                device=device if config.quantization is not None else None,  # straight there: packed for its device
                attn_implementation=attn_implementation,
                quantization=config.quantization,
                local_files_only=local_files_only,
                progress=progress,
            )
            check_same_shape(config, language_model)
            resolved = language_model.dtype
        else:
            text_config: Any = config.text_config
            resolved = dtype_of(text_config.dtype if dtype == "auto" else dtype)
            text_config.dtype = resolved
            if attn_implementation is not None:
                text_config._attn_implementation = attn_implementation
            if config.quantization is not None:
                language_model = build_quantized(
                    text_config,
                    quantized_base_state(load_state(folder / WEIGHTS_FILE)),
                    config.quantization,
                    dtype=resolved,
                    device=device,
                    attn_implementation=attn_implementation,
                )
        fetching: dict[str, Any] = {"local_files_only": local_files_only, "progress": progress}
        loaded = None
        if isinstance(config.encoder_weights, str):
            loaded = load_published_encoder(config.encoder, config.encoder_weights, **fetching)
        with torch.device("meta") if language_model is not None else without_random_weights():
            model = cls(config, language_model, loaded)
        trained = resolved if trained_dtype is None else dtype_of(trained_dtype)
        model._load_own_weights(folder / WEIGHTS_FILE, resolved, trained)
        if isinstance(config.encoder_weights, dict):
            for tower, reference in config.encoder_weights.items():
                load_tower(model.encoder, tower, resolve(reference, **fetching))
        model.encoder.fetch_with(**fetching)  # what is fetched when a question needs it
        model._load_cache(cache, folder)
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
            model.language_model.generation_config = model.generation_config
        if device is not None:
            model.to(device)
        if config.notice:
            warnings.warn(config.notice, UserWarning, stacklevel=2)
        model.name = str(pretrained_model_name_or_path)
        model.eval()
        return model

    def _load_own_weights(self, path: Path, dtype: torch.dtype, trained: torch.dtype) -> None:
        """Strictly load this model's own file: encoder and cache as fp32, what was trained as `trained`, or `dtype`.

        Raises:
            CheckpointError: a missing or extra key, or a wrong shape.
        """
        own = self.state_dict()
        names = set(without_ties({name: own[name] for name in self.saved_names()}))
        state = load_state(path)
        if self.config.language_model is None and self.config.quantization is not None:
            mine = {id(parameter) for parameter in [*self.lora_parameters(), *self.tuned_parameters()]}
            mine_by_name = {name for name, parameter in self.named_parameters() if id(parameter) in mine}
            state, names = without_base(state, names, mine_by_name)
        check_shapes(
            path,
            {name: tuple(tensor.shape) for name, tensor in state.items()},
            {name: tuple(own[name].shape) for name in names},
        )
        adapters = {id(parameter) for parameter in self.lora_parameters()}
        adapted = {name for name, parameter in self.named_parameters() if id(parameter) in adapters}
        for name, tensor in state.items():
            if tensor.is_floating_point():
                is_base = name.startswith("language_model.") and name not in adapted
                kept = torch.float32 if name.startswith(("encoder.", "cache.")) else dtype if is_base else trained
                if kept != tensor.dtype:
                    state[name] = tensor.to(kept)
                    forget([tensor])
        self.load_state_dict(state, strict=False, assign=True)
        if self.config.language_model is None and self.config.quantization is None:
            self.language_model.tie_weights()  # assigning cut the tie of a head
        # never language_model.to(dtype): that would round the rotary frequencies, which transformers keeps in fp32
        self.bridge.to(trained)
        self.injection.to(trained)
        self.encoder.requires_grad_(False)
        for parameter in self.lora_parameters():
            parameter.data = parameter.data.to(trained)
            parameter.requires_grad_(False)
