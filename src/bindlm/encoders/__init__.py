"""Encoder families: each maps its senses into one joint space."""

from bindlm.encoders.base import JointEncoder
from bindlm.encoders.mini import MiniEncoder, MiniEncoderConfig
from bindlm.encoders.registry import ENCODER_FAMILIES, EncoderFamily, build_encoder, load_encoder

__all__ = [
    "ENCODER_FAMILIES",
    "EncoderFamily",
    "JointEncoder",
    "MiniEncoder",
    "MiniEncoderConfig",
    "build_encoder",
    "load_encoder",
]
