"""The normalisation that CLIP brought up and that ImageBind and LanguageBind kept."""

from __future__ import annotations

from bindlm.media.preprocess import ImagePreprocessConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Of red, green and blue in CLIP's training pictures, on a scale where white is 1."""
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of red, green and blue in CLIP's training pictures, on a scale where white is 1."""


def clip_image_config(size: int = 224) -> ImagePreprocessConfig:
    """How CLIP, ImageBind and LanguageBind take a picture; LanguageBind a thermal picture too.

    The shorter side is resized to `size` with Pillow's bicubic filter, the middle square cut out, and CLIP's mean and
    deviation applied. For numbers equal to those of the released ImageBind, read the picture with
    `load_image(source, transparency="drop")`. (Unlike it, `load_image` also turns a picture upright and follows its
    ICC profile, where it has such.) LanguageBind resizes tensors, with or without antialiasing depending on the
    version of torchvision, so there pixels differ.

    Source:
        Radford et al. (arXiv 2103.00020); ImageBind (arXiv 2305.05665), appendix; LanguageBind (arXiv 2310.01852).
    """
    return ImagePreprocessConfig(size=size, crop_fraction=1.0, mean=CLIP_MEAN, std=CLIP_STD, interpolation="bicubic")
