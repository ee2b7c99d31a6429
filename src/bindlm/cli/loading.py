"""A model for a verb, without the noise that its libraries make on the way."""

import os
import sys
import warnings
from typing import Any

from bindlm.cli.output import is_debugging, say


def load_model(reference: str | None) -> Any:
    """`bindlm.load` for a command line: says that it loads where somebody watches, and keeps the libraries quiet."""
    quiet_libraries()
    if sys.stderr.isatty():
        say(f"loading {reference or 'the mini'}")
    import bindlm

    return bindlm.load(reference)


def quiet_libraries() -> None:
    """Silence advice and warnings of transformers and the hub's client; what the user has set stays.

    Download bars stay at a terminal, where somebody waits for them.
    """
    if is_debugging():
        return
    settings = {
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "HF_HUB_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not sys.stderr.isatty():
        settings["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def set_seed(seed: int | None) -> None:
    """Seed what draws tokens, if a seed is given."""
    if seed is not None:
        import torch

        torch.manual_seed(seed)
