"""The learning rate over a run: linear warmup from zero, then half a cosine down to the least.

Release of ImageBind-LLM, where the rate is set at every iteration from the fractional epoch; time here is in any unit,
as long as it is one.
"""

import math
from collections.abc import Callable
from functools import partial

from bindlm.errors import ConfigError

__all__ = ["step_multiplier", "warmup_cosine"]


def warmup_cosine(
    time: float, *, learning_rate: float, total: float, warmup: float = 0.0, min_learning_rate: float = 0.0
) -> float:
    """The learning rate at a time, in epochs or in optimizer steps.

    Args:
        time: since the start, at least 0; after the end the least rate stays.
        learning_rate: peak, at the end of warmup.
        total: when the cosine ends, warmup included.
        warmup: how long the rate rises from 0.
        min_learning_rate: where the cosine ends.

    Example:
        >>> warmup_cosine(0.5, learning_rate=1.25e-4, warmup=1, total=4)
        6.25e-05
    """
    if time < warmup:
        return learning_rate * time / warmup
    if time >= total:
        return min_learning_rate
    progress = (time - warmup) / (total - warmup)
    return min_learning_rate + (learning_rate - min_learning_rate) * 0.5 * (1.0 + math.cos(math.pi * progress))


def step_multiplier(*, num_steps: int, warmup_steps: float = 0.0, min_ratio: float = 0.0) -> Callable[[float], float]:
    """`warmup_cosine` as what an optimizer step multiplies every group's peak by, for torch's `LambdaLR`.

    Each group has its own peak, the rate it is made with; all rise and fall together. With warmup, the first step is
    taken at rate 0, as in the release: it only fills AdamW's averages.

    Args:
        num_steps: optimizer steps of the run.
        warmup_steps: of them, those of warmup; may be a fraction.
        min_ratio: the least rate as a share of the peak, 0 to 1.

    Raises:
        ConfigError: no steps, warmup that is negative or longer than the run, or a ratio outside [0, 1].
    """
    if num_steps < 1 or not 0 <= warmup_steps <= num_steps:
        raise ConfigError(
            "A schedule needs at least 1 step, and warmup that is not negative and not longer than the run; got "
            f"num_steps={num_steps}, warmup_steps={warmup_steps:g}."
        )
    if not 0 <= min_ratio <= 1:
        raise ConfigError(
            f"The least learning rate must lie between 0 and the peak; it is {min_ratio:g} times the peak."
        )
    return partial(warmup_cosine, learning_rate=1.0, total=num_steps, warmup=warmup_steps, min_learning_rate=min_ratio)
