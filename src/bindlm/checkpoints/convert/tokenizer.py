"""The language model's tokenizer, brought along in files that need no further package to be read."""

import shutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bindlm.checkpoints.notice import say
from bindlm.checkpoints.quiet import quiet_transformers
from bindlm.errors import CheckpointError

__all__ = ["copy_tokenizer", "find_tokenizer"]

META_FILE = "tokenizer.model"
"""Sentencepiece's own format, in which LLaMA was published."""
_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", META_FILE)
_PACKAGES = ("sentencepiece", "google.protobuf")
"""What transformers reads it with."""
_PROBES = (
    "### Instruction:\nWhat is this?\n\n### Response:",
    "  two spaces,  a\ttab, 1234.5 and 'quotes'",
    " a space in front",
    "Ein Kätzchen, 一只猫, кот, 🐈‍⬛",
)
"""Texts on which both forms must agree: words, white space, digits, and characters that fall back to bytes."""


def find_tokenizer(llama: Path) -> list[Path]:
    """Tokenizer files beside a language model, and for Meta's layout one folder up; empty where there are none.

    Raises:
        CheckpointError: there is only Meta's, and the packages that read it are not installed.
    """
    home = llama if llama.is_dir() else llama.parent
    for place in [home, home.parent] if llama.is_dir() else [home]:  # Meta keeps one tokenizer beside all sizes
        if found := [place / name for name in _FILES if (place / name).is_file()]:
            if not (place / "tokenizer.json").is_file() and (place / META_FILE).is_file():
                _check_packages(place / META_FILE)
            return found
    return []


def copy_tokenizer(files: list[Path], folder: Path, *, vocab_size: int, progress: bool) -> bool:
    """Bring a language model's tokenizer into a folder; whether there is one that can be read.

    Args:
        files: as `find_tokenizer` gives them.
        folder: where to.
        vocab_size: of the language model.
        progress: whether to say on stderr what is missing.

    Raises:
        CheckpointError: Meta's file is damaged, made for another model, or cannot be converted without loss.
    """
    named = {file.name: file for file in files}
    if META_FILE in named and "tokenizer.json" not in named:
        # alone: the settings that older tokenizers had beside it name no special tokens, or wrong ones
        shutil.copyfile(named[META_FILE], folder / META_FILE)
        _convert(named[META_FILE], folder, vocab_size)
        return True
    for file in files:
        shutil.copyfile(file, folder / file.name)
    if "tokenizer.json" not in named:
        say(
            "there is no tokenizer beside the language model; put its files into the folder to ask questions",
            progress=progress,
        )
    return "tokenizer.json" in named


def _check_packages(file: Path) -> None:
    if missing := [name for name in _PACKAGES if not _is_installed(name)]:
        raise CheckpointError(
            f"{file} is in sentencepiece's format; reading it takes {' and '.join(missing)}, not installed here: pip "
            "install 'bindlm[llama]', or put the tokenizer.json of a LLaMA in transformers' layout beside it."
        )


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False


def _convert(file: Path, folder: Path, vocab_size: int) -> None:
    """Meta's `tokenizer.model` to `tokenizer.json` and `tokenizer_config.json`."""
    sentencepiece = import_module("sentencepiece")
    try:
        original = sentencepiece.SentencePieceProcessor(model_proto=file.read_bytes())
        size = original.get_piece_size()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{file} is damaged or no tokenizer of sentencepiece; get it again.") from error
    if size > vocab_size:
        raise CheckpointError(
            f"{file} has {size} tokens, but the language model knows {vocab_size}: it is the tokenizer of another one."
        )
    try:
        with quiet_transformers():
            converted = _fast(folder)
    except Exception as error:  # transformers raises many kinds, of which none is documented
        raise CheckpointError(f"transformers cannot convert {file}; give a tokenizer.json in its place.") from error
    for text in _PROBES:
        if converted(text, add_special_tokens=False)["input_ids"] != original.encode(text):
            raise CheckpointError(
                f"{file} splits {text!r} in a way that tokenizer.json cannot hold; give the tokenizer.json that was "
                "published for this language model."
            )
    converted.save_pretrained(folder)


def _fast(folder: Path) -> Any:
    """The same tokens and merges as transformers' LlamaTokenizer, but for a text that begins with a space.

    LLaMA puts a space in front of every text, also there; transformers' class does not, and would make its own again
    when loaded, so the result is of the general class.
    """
    from tokenizers import normalizers
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    made = LlamaTokenizer.from_pretrained(folder, local_files_only=True)
    backend = made.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    special = {name: getattr(made, name) for name in ("bos_token", "eos_token", "unk_token")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)
