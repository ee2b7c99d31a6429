"""What a bound model owns of its language model: LoRA adapters, and norms and biases that were trained."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bindlm.checkpoints import resolve
from bindlm.checkpoints.quantization import quantization_of
from bindlm.errors import CheckpointError, ConfigError
from bindlm.tuning.bias_norm import (
    add_biases,
    check_biases_have_a_switch,
    declare_biases,
    find_biases,
    find_norms,
)
from bindlm.tuning.lora import LoraSwitch, inject_lora, take_lora_out
from bindlm.tuning.peft_folder import (
    check_lora_state,
    read_lora_settings,
    read_lora_state,
    stored_name,
    write_lora,
)


class TuningMixin:
    """Methods of `BindLMForConditionalGeneration`; `config` always says what is there, for saving and loading."""

    config: Any
    language_model: Any
    injection: Any
    _lora: LoraSwitch | None

    def add_lora(self, settings: dict[str, Any], *, scope: str = "conditioned") -> list[nn.Parameter]:
        """Put LoRA adapters into the language model, on wherever there is a condition, or always.

        Args:
            settings: fields of `peft.LoraConfig`.
            scope: "conditioned" or "always", as `BindLMConfig.lora_scope`.

        Returns:
            The adapters' weights.

        Raises:
            ConfigError: the model has adapters already, or the settings do not fit it.
        """
        if self._lora is not None:
            raise ConfigError("This model has LoRA adapters already.")
        self._lora = inject_lora(self.language_model, settings, scope=scope)
        self.config.lora, self.config.lora_scope = dict(settings), scope
        return self._lora.parameters()

    def set_lora_scope(self, scope: str) -> None:
        """Have the adapters, if there are any, on for rows with a medium ("conditioned") or for all ("always")."""
        if scope not in ("conditioned", "always"):
            raise ConfigError(f'The scope of LoRA must be "conditioned" or "always", got {scope!r}.')
        self.config.lora_scope = scope
        if self._lora is not None:
            self._lora.set_scope(scope)

    def lora_parameters(self) -> list[nn.Parameter]:
        """The adapters' weights; empty where there are none."""
        return self._lora.parameters() if self._lora is not None else []

    def load_lora(
        self,
        path: str | os.PathLike[str],
        *,
        scope: str = "always",
        local_files_only: bool = False,
        progress: bool = True,
    ) -> list[nn.Parameter]:
        """Put LoRA adapters that PEFT saved into the language model.

        Args:
            path: their folder, or a hub id.
            scope: "always", as PEFT has them; or "conditioned", on for rows with a medium only.
            local_files_only: never touch the network.
            progress: whether to say on stderr what is fetched.

        Returns:
            The adapters' weights.

        Raises:
            CheckpointError: they are damaged, made for another language model, or more than plain LoRA; the model is
                as it was.
            ConfigError: the model has adapters already.
        """
        folder = resolve(path, local_files_only=local_files_only, progress=progress)
        settings = read_lora_settings(folder)
        file, state = read_lora_state(folder)
        try:
            parameters = self.add_lora(settings, scope=scope)
        except ConfigError as error:
            if self._lora is not None:
                raise
            raise CheckpointError(f"{folder} was made for another language model: {error}") from error
        adapters = self._lora_by_name()
        try:
            check_lora_state(file, state, adapters)
        except CheckpointError:
            self.unload_lora()
            raise
        with torch.no_grad():
            for name, parameter in adapters.items():
                parameter.copy_(state[stored_name(name)])
                parameter.requires_grad_(False)
        return parameters

    def save_lora(self, path: str | os.PathLike[str]) -> None:
        """Write the LoRA adapters as PEFT does, for `peft.PeftModel.from_pretrained` and `load_lora`.

        Norms and biases that were trained with them are no adapters, and not in it: `save_pretrained` keeps those.

        Raises:
            ConfigError: the model has no adapters.
            CheckpointError: the disk is full or not writable.
        """
        if self._lora is None:
            raise ConfigError("This model has no LoRA adapters to save.")
        write_lora(Path(path), self.config.lora, self._lora_by_name(), self.config.language_model)

    def _lora_by_name(self) -> dict[str, nn.Parameter]:
        """The adapters' weights by their names in the language model."""
        own = {id(parameter) for parameter in self.lora_parameters()}
        return {name: each for name, each in self.language_model.named_parameters() if id(each) in own}

    def unload_lora(self) -> None:
        """Take the LoRA adapters out, if there are any; norms, biases and the injection stay."""
        self._drop_lora(merge=False)

    def merge(self) -> Any:
        """The language model alone, with all that was trained of it, as a plain transformers model.

        Adapters are added into the weights, biases are declared in its configuration, the injection is taken off: it
        is what this model computes for text without media, LoRA always on. It can be saved and loaded by transformers.
        It is not a copy: this bound model has given its language model away and is of no more use.

        Raises:
            ConfigError: the language model's kind cannot have such biases, or it is quantised; nothing is changed
                then.
        """
        if quantization_of(self.language_model) is not None:
            raise ConfigError(
                "merge() needs the language model in full, and this one is quantised: load it again with "
                "quantization=False, merge, and quantise what comes out."
            )
        biases = (self.config.tuned or {}).get("biases", [])
        check_biases_have_a_switch(self.language_model, biases)
        self.injection.detach()
        self._drop_lora(merge=True)
        declare_biases(self.language_model, biases)
        return self.language_model

    def _drop_lora(self, *, merge: bool) -> None:
        if self._lora is None:
            return
        self._lora.close()
        take_lora_out(self.language_model, merge=merge)
        self._lora, self.config.lora = None, None

    def add_tuned(self, *, norms: bool = False, biases: Sequence[str] = ()) -> None:
        """Make norms and biases of the language model this model's own: saved with it, as they are to be trained.

        What was tuned before stays so.

        Args:
            norms: whether all norms of the decoder are.
            biases: names of linear layers of the decoder, such as "q_proj"; those without a bias get one of zeros.

        Raises:
            ConfigError: the decoder has no such layers; nothing is changed then.
        """
        before = self.config.tuned or {"norms": False, "biases": []}
        add_biases(self.language_model, biases)
        names = [*before["biases"], *(name for name in dict.fromkeys(biases) if name not in before["biases"])]
        tuned = {"norms": bool(norms or before["norms"]), "biases": names}
        self.config.tuned = tuned if tuned["norms"] or names else None

    def tuned_parameters(self) -> list[nn.Parameter]:
        """Norms and biases of the language model that are this model's own."""
        tuned = self.config.tuned
        if tuned is None:
            return []
        norms = find_norms(self.language_model).values() if tuned["norms"] else ()
        found = [parameter for norm in norms for parameter in norm.parameters(recurse=False)]
        return found + find_biases(self.language_model, tuned["biases"])
