"""A GGUF file becomes, once, a folder that transformers opens fast: fp32 weights, tokenizer, chat template."""

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindlm.checkpoints.gguf_header import GgufHeader, read_header
from bindlm.checkpoints.home import home_path
from bindlm.checkpoints.locks import locked
from bindlm.checkpoints.notice import say
from bindlm.checkpoints.quiet import quiet_transformers
from bindlm.checkpoints.state import atomic_folder
from bindlm.checkpoints.wheel import digest_of
from bindlm.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

FORMAT_VERSION = 1
"""Part of the folder's name: a change of what is written below raises it, and old folders are made anew."""

_RECORD = "bindlm_conversion.json"

# How llama.cpp splits text before byte-level BPE, by `tokenizer.ggml.pre` (its llama-vocab.cpp). transformers knows
# the families with a regular expression of their own; these two it takes for one and the same.
_PLAIN_GPT2 = frozenset({"gpt-2", "gpt2", "mpt", "olmo", "jais", "trillion", "granite-docling"})
_DIGITS_APART = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})


def convert_gguf(
    path: str | os.PathLike[str], out_dir_parent: str | os.PathLike[str] | None = None, *, progress: bool = True
) -> Path:
    """Turn a GGUF language model into a transformers folder, or find the one made before.

    Args:
        path: The ``.gguf`` file.
        out_dir_parent: Where the folder goes; ``$BINDLM_HOME/converted`` by default.
        progress: Say on stderr that this takes a while.

    Returns:
        ``OUT_DIR_PARENT/<sha256 of the file>-<format version>/`` with fp32 safetensors, config, tokenizer, chat
        template and generation config.

    Raises:
        CheckpointError: the file is missing or damaged, it holds something that would come out wrong, or the disk is
            full.
    """
    path = Path(path)
    header = read_header(path)
    digest = digest_of(path, progress=progress)
    parent = Path(out_dir_parent) if out_dir_parent is not None else home_path() / "converted"
    folder = parent / f"{digest}-{FORMAT_VERSION}"
    if (folder / _RECORD).is_file():
        return folder
    doing = f"converting {path.name}"
    with locked(f"converted-{digest}-{FORMAT_VERSION}", doing, progress=progress):
        if not (folder / _RECORD).is_file():
            say(f"{doing}, once ...", progress=progress)
            with atomic_folder(folder) as unfinished:
                _convert(path, header, unfinished, progress)
                record = {"source": path.name, "sha256": digest, "format": FORMAT_VERSION}
                (unfinished / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return folder


def _convert(path: Path, header: GgufHeader, folder: Path, progress: bool) -> None:
    model, tokenizer = _read(path, progress)
    _check_rope(path, header, model.config)
    _repair_splitting(path, header, tokenizer)
    _clean(model, tokenizer)
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    usual_mode = (folder / "config.json").stat().st_mode
    for weights in folder.glob("*.safetensors"):
        weights.chmod(usual_mode)  # safetensors makes 0600, which locks out the group that shares a cache


def _read(path: Path, progress: bool) -> tuple["PreTrainedModel", "PreTrainedTokenizerFast"]:
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise CheckpointError(f"{path.name} needs the package gguf to be read; `pip install gguf`") from error
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    source = {"pretrained_model_name_or_path": str(path.absolute().parent), "gguf_file": path.name}
    try:
        with quiet_transformers(), _quiet_bar(progress):
            # Each Auto class parses the whole file anew for the config (5 s for a vocabulary of 49152): read it once.
            config = AutoConfig.from_pretrained(**source, local_files_only=True)
            tokenizer = PreTrainedTokenizerFast.from_pretrained(**source, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(
                **source, config=config, dtype=torch.float32, local_files_only=True
            )
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read as a language model: it is damaged, or transformers does not know its "
            "architecture; get it again, or use the safetensors form of the same model"
        ) from error
    return model, tokenizer


@contextlib.contextmanager
def _quiet_bar(progress: bool) -> Iterator[None]:
    """transformers' bar of this conversion obeys none of its own switches; it is shown on a terminal only."""
    if progress and sys.stderr.isatty():
        yield
    else:
        with contextlib.redirect_stderr(io.StringIO()):
            yield


def _check_rope(path: Path, header: GgufHeader, config: Any) -> None:
    """Refuse a file whose stretched rotary positions transformers drops: it would answer, and wrongly so."""
    prefix, told = f"{header.architecture}.rope.scaling", header.metadata
    is_scaled = told.get(f"{prefix}.type", "none") != "none" and told.get(f"{prefix}.factor") != 1.0
    is_scaled = is_scaled or any(name.startswith(("rope_freqs.", "rope_factors_")) for name in header.tensor_names)
    kinds = set(re.findall(r"'rope_type': '(\w+)'", str(getattr(config, "rope_parameters", None))))
    if is_scaled and kinds <= {"default"}:
        raise CheckpointError(
            f"{path} scales its rotary positions in a way that this conversion does not carry over; "
            "use the safetensors form of the same model"
        )


def _repair_splitting(path: Path, header: GgufHeader, tokenizer: "PreTrainedTokenizerFast") -> None:
    """Give the tokenizer the splitting that its merges were learned with.

    For a `tokenizer.ggml.pre` that transformers 5.23 has no rule for, it takes GPT-2's. SmolLM takes every digit apart
    first, which also decides who gets the spaces before a number: "a  7" is "a", two spaces, "7", and not "a", one
    space, " 7".
    """
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    now = json.loads(backend.to_str())["pre_tokenizer"] or {}
    is_gpt2_guess = now.get("type") == "ByteLevel" and now.get("use_regex", True)
    if header.metadata.get("tokenizer.ggml.model") != "gpt2" or not is_gpt2_guess:
        return
    splitting = header.metadata.get("tokenizer.ggml.pre", "gpt-2" if header.architecture == "gpt2" else None)
    if splitting in _DIGITS_APART:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif splitting not in _PLAIN_GPT2:
        raise CheckpointError(
            f"{path} splits text by the rule {splitting!r}, which is not known here, so its tokens would come out "
            "wrong; use the safetensors form of the same model"
        )


def _clean(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast") -> None:
    """Take out what only described the reading of a GGUF file."""
    # Marked as quantised, the model refuses to be saved; its weights are plain fp32 by now.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    for stray in ("_model_name_or_path", "_name_or_path"):
        model.config.__dict__.pop(stray, None)
    model.config._name_or_path = ""
    # The file knows the longest context; without this the tokenizer claims 10^30 tokens.
    tokenizer.model_max_length = getattr(model.config, "max_position_embeddings", tokenizer.model_max_length)
    tokenizer.init_kwargs["model_max_length"] = tokenizer.model_max_length
    for stray in ("is_local", "local_files_only", "gguf_file", "name_or_path", "vocab_file"):
        tokenizer.init_kwargs.pop(stray, None)
