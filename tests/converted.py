"""The goldens' released checkpoints as people get them: files, converted into a folder, loaded by `bindlm.load`."""

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import bindlm
from bindlm.checkpoints import (
    convert_imagebind_llm,
    convert_llama_adapter_v1,
    convert_llama_adapter_v2,
    convert_pandagpt,
)
from bindlm.modeling import BindLMForConditionalGeneration

from .golden import GOLDEN
from .released import golden_config

CONVERTERS: dict[str, Any] = {
    "imagebind_llm": convert_imagebind_llm,
    "llama_adapter_v1": convert_llama_adapter_v1,
    "llama_adapter_v2": convert_llama_adapter_v2,
    "pandagpt": convert_pandagpt,
}


def converted(release: str, adapter: str, out: Path, **settings: Any) -> Path:
    """A golden's adapter and LLaMA as a bound model's folder; the legacy bridge goes with the finetuned rest."""
    config = golden_config(release)
    names = ["adapter", adapter] if adapter == "adapter_legacy_bridge" else [adapter]
    files = [GOLDEN / release / f"{name}.safetensors" for name in names]
    llama = GOLDEN / release / "llama.safetensors"
    return CONVERTERS[release](files, llama, out, config, progress=False, **settings)


@cache
def _folder(release: str, adapter: str, root: Path, **settings: Any) -> Path:
    name = "-".join([release, adapter, *map(str, settings.values())])
    return converted(release, adapter, root / name, **settings)


def loaded(release: str, adapter: str, root: Path, **settings: Any) -> BindLMForConditionalGeneration:
    """A fresh model from a golden's converted folder, which is made once for each `root`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the licence, which a test of its own reads
        return bindlm.load(_folder(release, adapter, root, **settings))
