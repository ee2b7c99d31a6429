"""The processes that `torchrun` starts for a run, as its environment counts them."""

import os

__all__ = ["is_first_process", "num_processes"]


def num_processes() -> int:
    """How many there are; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this one writes and speaks."""
    return int(os.environ.get("RANK", "0")) == 0
