"""Some of the modalities that an encoder has, in its own order."""

from collections.abc import Iterable

from bindlm.encoders.base import JointEncoder
from bindlm.errors import ConfigError


def choose_modalities(encoder: JointEncoder, modalities: Iterable[str] | None) -> tuple[str, ...]:
    """The modalities asked for, None being all.

    Raises:
        ConfigError: the encoder lacks one of them, or none is asked for.
    """
    if modalities is None:
        return encoder.modalities
    wanted = [modalities] if isinstance(modalities, str) else list(modalities)
    if not wanted:
        raise ConfigError("modalities must name at least one; None takes all.")
    for modality in wanted:
        encoder.check_modality(modality)
    return tuple(modality for modality in encoder.modalities if modality in wanted)
