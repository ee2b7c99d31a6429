"""A recording as one channel at a tower's rate."""

from typing import Any

import numpy as np
import torch

from bindlm.media.audio import load_audio
from bindlm.media.resample import resample


def load_waveform(source: Any, sample_rate_hz: int, *, allow_url: bool = False) -> np.ndarray:
    """Read a sound, mix its channels and bring it to a rate.

    Args:
        source: as for `bindlm.media.load_audio`; a bare array `(S,)` or tensor counts as being at this rate.
        sample_rate_hz: The wanted rate.
        allow_url: Whether addresses of the web are fetched.

    Returns:
        float32 `(S,)`, full scale 1.

    Raises:
        MediaError: The sound cannot be used.
    """
    rate = sample_rate_hz if isinstance(source, (np.ndarray, torch.Tensor)) else None
    audio = load_audio(source, allow_url=allow_url, sample_rate_hz=rate)
    mixed = torch.from_numpy(audio.samples).mean(dim=0, keepdim=True)  # (1, S)
    return resample(mixed, audio.sample_rate_hz, sample_rate_hz)[0].numpy()
