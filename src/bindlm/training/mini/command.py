"""What `python -m bindlm.training.mini` and `python -m bindlm.binding.mini` share: threads, progress, how they end."""

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from bindlm.errors import BindLMError

Tell = Callable[[str], Any]
"""Says on stderr which step begins, and after how many seconds."""


def add_threads(parser: argparse.ArgumentParser) -> None:
    """The threads of torch; all cores that this process may use if left out."""
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of torch")


def run_steps(steps: Callable[[argparse.Namespace, Tell], None], arguments: argparse.Namespace) -> int:
    """Run the steps, and return the exit code.

    Args:
        steps: Does the work; an interrupted run raises KeyboardInterrupt.
        arguments: With `threads`.
    """
    import torch

    torch.set_num_threads(arguments.threads)
    start = time.perf_counter()

    def tell(step: str) -> None:
        print(f"[{time.perf_counter() - start:.0f} s] {step}", file=sys.stderr)

    try:
        steps(arguments, tell)
    except BindLMError as error:
        print(f"bindlm: error: {error}", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    return 0
