"""A model for a verb, without the noise that its libraries make on the way."""

import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bindlm.cli.output import is_debugging, say
from bindlm.errors import ConfigError

WEIGHTS = {
    "image": ("pictures", "ImageBind, CLIP or LanguageBind"),
    "video": ("videos", "ImageBind, LanguageBind or PE-AV"),
    "text": ("words", "ImageBind, CLIP or LanguageBind"),
    "audio": ("sounds", "ImageBind, LanguageBind or PE-AV"),
    "point": ("3-D objects", "Point-Bind"),
    "depth": ("depth maps", "ImageBind or LanguageBind"),
    "thermal": ("thermal pictures", "ImageBind or LanguageBind"),
    "imu": ("recordings of movement", "ImageBind"),
}
"""Sense -> how it is called in advice, and which published encoders have it."""


def load_model(reference: str | None, cache: str | bool | None = None, quantization: str | None = None) -> Any:
    """`bindlm.load` for a command line: says that it loads where somebody watches, and keeps the libraries quiet.

    Args:
        cache: What `--cache` gave; a bad folder is told before the model is loaded.
        quantization: What `--quantize` gave.
    """
    quiet_libraries()
    if isinstance(cache, str):
        from bindlm.space import read_record

        read_record(cache)
    if sys.stderr.isatty():
        say(f"loading {reference or 'the mini'}")
    import bindlm

    with telling_licences():
        asked: dict[str, Any] = {"cache": cache, "quantization": quantization}
        return bindlm.load(reference, **{name: value for name, value in asked.items() if value is not None})


@contextmanager
def telling_licences() -> Iterator[None]:
    """Say the terms of weights that are loaded in the block, where the libraries' own warnings are kept quiet."""
    from bindlm.encoders.licences import LicenceWarning

    show = warnings.showwarning

    def tell(message: Any, category: Any, *others: Any, **options: Any) -> None:
        if issubclass(category, LicenceWarning):
            say(str(message))
        else:
            show(message, category, *others, **options)

    with warnings.catch_warnings():
        warnings.simplefilter("always", LicenceWarning)
        warnings.showwarning = tell
        yield


def load_embedder(reference: str | None, senses: Sequence[str], *, all_towers: bool = False) -> Any:
    """`bindlm.embedding.load_embedder` for a command line.

    Args:
        reference: What `--model` gave.
        senses: What the command needs.
        all_towers: Whether the others are loaded too; an index belongs to a model as a whole.

    Raises:
        ConfigError: The model lacks a sense; says which models have it.
        CheckpointError: Weights cannot be had or do not fit.
    """
    quiet_libraries()
    if sys.stderr.isatty():
        say(f"loading {reference or 'the mini'}")
    from bindlm.embedding import load_embedder as load

    try:
        with telling_licences():
            embedder = load(reference, modalities=None if all_towers else list(senses), progress=True)
    except ConfigError as error:
        if missing := [sense for sense in senses if repr(sense) in str(error)]:
            raise ConfigError(f"{error}\n{_cure(missing, reference)}") from error
        raise
    if missing := [sense for sense in senses if sense not in embedder.modalities]:
        lacking = ", ".join(repr(sense) for sense in missing)
        raise ConfigError(
            f"{embedder.name} has no {lacking}; it takes {', '.join(embedder.modalities)}\n{_cure(missing, reference)}"
        )
    return embedder


def check_senses(model: Any, senses: Sequence[str], reference: str | None) -> None:
    """Say which senses a bound model has, where it lacks one that a command needs.

    Raises:
        ConfigError: It lacks one.
    """
    if not senses:
        return
    held = tuple(model.encoder.modalities)
    missing = [sense for sense in senses if sense not in held]
    if not missing:
        return
    lacking = ", ".join(repr(sense) for sense in missing)
    cure = _mini_has(missing, reference) or "name a bound model that has it with --model PATH"
    raise ConfigError(f"{reference or 'the mini'} has no {lacking}; it takes {', '.join(held)}\n{cure}")


def _cure(missing: Sequence[str], reference: str | None) -> str:
    """What to do about senses that the encoder of ``reference`` lacks."""
    encoders = "\n".join(
        f"for {WEIGHTS[sense][0]}, name the weights of {WEIGHTS[sense][1]} with --model PATH"
        for sense in missing
        if sense in WEIGHTS
    )
    return _mini_has(missing, reference) or encoders or "name weights that have it with --model PATH"


def _mini_has(missing: Sequence[str], reference: str | None) -> str | None:
    """The advice to take the bundled model, where it is not the one that was asked for and has the senses."""
    if reference is None or not set(missing) <= set(mini_senses()):
        return None
    return "the bundled mini has it: leave out --model"


def mini_senses() -> tuple[str, ...]:
    """Senses of the bundled model, by its configuration: no weights are read."""
    import bindlm

    path = Path(bindlm.__path__[0]) / "mini" / "config.json"
    try:
        return ("image", *json.loads(path.read_text(encoding="utf-8"))["encoder"].get("towers", {}))
    except (OSError, ValueError, LookupError, AttributeError):
        return ()  # only advice hangs on it


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
        settings |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def set_seed(seed: int | None) -> None:
    """Seed what draws tokens, if a seed is given."""
    if seed is not None:
        import torch

        torch.manual_seed(seed)
