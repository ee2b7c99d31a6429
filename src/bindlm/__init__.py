"""Bind any sense into a language model.

    import bindlm

    model = bindlm.load()                                  # the embedded mini; or a folder, or a hub id
    model.ask("What is this?", image="cat.jpg")            # 'This is a tabby cat.'
    model.embed(image=["cat.jpg", "dog.jpg"]).shape        # torch.Size([2, D]), rows of unit length

Names are resolved when they are first used, so `import bindlm` loads neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bindlm.errors import BindLMError, CheckpointError, ConfigError, MediaError

if TYPE_CHECKING:
    from bindlm.configuration import BindLMConfig
    from bindlm.embedding import Embedder, load_embedder
    from bindlm.loading import load
    from bindlm.modeling import Answer, BindLMForConditionalGeneration
    from bindlm.processing import BindLMProcessor

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "BindLMConfig",
    "BindLMError",
    "BindLMForConditionalGeneration",
    "BindLMProcessor",
    "CheckpointError",
    "ConfigError",
    "Embedder",
    "MediaError",
    "__version__",
    "load",
    "load_embedder",
]

_LAZY_EXPORTS = {
    "Answer": "bindlm.modeling",
    "BindLMConfig": "bindlm.configuration",
    "BindLMForConditionalGeneration": "bindlm.modeling",
    "BindLMProcessor": "bindlm.processing",
    "Embedder": "bindlm.embedding",
    "load": "bindlm.loading",
    "load_embedder": "bindlm.embedding",
}
"""Public name -> the module that defines it, for names whose module is too heavy to import up front."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY_EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY_EXPORTS[name]), name)
    globals()[name] = value  # the next access does not come through here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY_EXPORTS})
