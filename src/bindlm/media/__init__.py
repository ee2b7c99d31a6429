"""Media in, from anywhere: bounded, checked, and in one plain form.

A picture becomes an upright RGB `PIL.Image.Image`, a text a `str`; preprocessing turns a picture into the arrays that
an encoder reads. Whatever is wrong with a medium is one `bindlm.MediaError`. Names are resolved on first use, so this
package costs nothing to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bindlm.media.image import load_image
    from bindlm.media.limits import ImageLimits, TextLimits, UrlLimits
    from bindlm.media.preprocess import ImagePreprocessConfig, preprocess_image
    from bindlm.media.text import load_text

__all__ = [
    "ImageLimits",
    "ImagePreprocessConfig",
    "TextLimits",
    "UrlLimits",
    "load_image",
    "load_text",
    "preprocess_image",
]

_LAZY_EXPORTS = {
    "ImageLimits": "bindlm.media.limits",
    "ImagePreprocessConfig": "bindlm.media.preprocess",
    "TextLimits": "bindlm.media.limits",
    "UrlLimits": "bindlm.media.limits",
    "load_image": "bindlm.media.image",
    "load_text": "bindlm.media.text",
    "preprocess_image": "bindlm.media.preprocess",
}
"""Public name -> the module that defines it."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY_EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY_EXPORTS[name]), name)
    globals()[name] = value  # the next access does not come through here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY_EXPORTS})
