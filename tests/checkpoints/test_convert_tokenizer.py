"""Meta's `tokenizer.model` becomes a tokenizer that needs no further package, token for token the same."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import bindlm
from bindlm.checkpoints import convert_imagebind_llm
from bindlm.checkpoints.convert import tokenizer as tokenizers_of
from bindlm.checkpoints.convert.tokenizer import copy_tokenizer, find_tokenizer
from bindlm.errors import CheckpointError
from bindlm.processing import BindLMProcessor

from ..golden import GOLDEN, golden
from ..released import golden_config

WORDS = [
    "A cat sits on the mat, 12345 pictures of it.\n",
    "Below is an instruction that describes a task.\n\n### Instruction:\nWhat is this?\n\n### Response:",
    "rain falls on the roof  and on a  street",
]
TEXTS = [
    *WORDS,
    "",
    " ",
    " a",
    "a ",
    "\n",
    "\n\n###",
    "###",
    "  two\t tabs",
    "héllo 猫 🦊",
    "a\r\nb",
    "</Img> What?\n",
]


@pytest.fixture(scope="module")
def meta_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A file made as LLaMA's was (BPE, bytes for what is unknown, digits apart), and sentencepiece's own reading."""
    sentencepiece = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS * 20),
        model_writer=out,
        model_type="bpe",
        vocab_size=390,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("meta") / "tokenizer.model"
    path.write_bytes(out.getvalue())
    return path, sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())


def llama_beside(folder: Path, tokenizer: Path) -> Path:
    """The golden's LLaMA in Meta's layout: one tokenizer beside the folders of all sizes."""
    import torch

    (folder / "7B").mkdir(parents=True)
    # rows for the tokenizer's vocabulary: whether they mean anything is not what is tested
    state = golden("imagebind_llm/llama.safetensors")
    for name in ("tok_embeddings.weight", "output.weight"):
        state[name] = torch.cat([state[name]] * 3)[:390]
    torch.save(state, folder / "7B" / "consolidated.00.pth")
    sizes = {"dim": 64, "n_layers": 4, "n_heads": 4, "vocab_size": -1, "multiple_of": 16, "norm_eps": 1e-6}
    (folder / "7B" / "params.json").write_text(json.dumps(sizes))
    shutil.copyfile(tokenizer, folder / "tokenizer.model")
    return folder / "7B"


def convert(llama: Path, out: Path) -> Path:
    config = {name: part for name, part in golden_config("imagebind_llm").items() if name != "llama"}
    adapter = GOLDEN / "imagebind_llm" / "adapter_pretrain.safetensors"
    return convert_imagebind_llm(adapter, llama, out, config, progress=False)


def test_converted_tokenizer_is_sentencepieces_token_for_token(
    meta_tokenizer: tuple[Path, Any], tmp_path: Path
) -> None:
    """Also for a text that begins with a space, of which transformers' own LlamaTokenizer loses one."""
    path, original = meta_tokenizer
    out = convert(llama_beside(tmp_path / "llama", path), tmp_path / "out")
    (out / "tokenizer.model").unlink()
    processor = BindLMProcessor.from_pretrained(out)
    tokenizer: Any = processor.tokenizer
    assert len(tokenizer) == original.get_piece_size()
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert ids == (original.bos_id(), original.eos_id(), original.unk_id())
    for text in TEXTS:
        expected = original.encode(text)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected, repr(text)
        assert tokenizer.decode(expected) == original.decode(expected), repr(text)
    messages = [{"role": "user", "content": "What is this?"}]
    text = processor.render_chat(messages, is_conditioned=False).removeprefix("<s>")
    ids = processor.tokenize_chat(messages, is_conditioned=False)["input_ids"][0].tolist()
    assert ids == [original.bos_id(), *original.encode(text)]


def test_model_with_a_converted_tokenizer_answers(meta_tokenizer: tuple[Path, Any], tmp_path: Path) -> None:
    out = convert(llama_beside(tmp_path / "llama", meta_tokenizer[0]), tmp_path / "out")
    with pytest.warns(UserWarning, match="not for commercial use"):
        model = bindlm.load(out)
    answer = model.answer("What is this?", max_new_tokens=4)
    assert 1 <= answer.answer_tokens <= 4


def test_older_settings_beside_the_file_are_not_believed(meta_tokenizer: tuple[Path, Any], tmp_path: Path) -> None:
    """Early folders name empty special tokens."""
    folder = tmp_path / "llama"
    folder.mkdir()
    shutil.copyfile(meta_tokenizer[0], folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text('{"bos_token": "", "eos_token": "", "unk_token": ""}')
    out = tmp_path / "out"
    out.mkdir()
    assert copy_tokenizer(find_tokenizer(folder), out, vocab_size=390, progress=False)
    assert json.loads((out / "tokenizer_config.json").read_text())["bos_token"] == "<s>"


# -- what is refused, before anything is written ---------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["sentencepiece", "google.protobuf"])
def test_missing_package_is_named_before_anything_is_written(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"whatever")
    llama = llama_beside(tmp_path / "llama", tmp_path / "tokenizer.model")
    monkeypatch.setattr(tokenizers_of, "_is_installed", lambda name: name != missing)
    with pytest.raises(CheckpointError, match=rf"takes {missing}, not installed here: pip install 'bindlm\[llama\]'"):
        convert(llama, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "llama" / "tokenizer.json").write_text("{}")  # then it is not needed
    assert find_tokenizer(llama)


def test_package_inside_a_package_that_is_not_there_is_not_there_either() -> None:
    assert tokenizers_of._is_installed("importlib.util")
    assert not tokenizers_of._is_installed("no_such_package.protobuf")


def test_tokenizer_that_does_not_fit_leaves_nothing(meta_tokenizer: tuple[Path, Any], tmp_path: Path) -> None:
    llama = llama_beside(tmp_path / "llama", meta_tokenizer[0])
    out = tmp_path / "out"
    (llama.parent / "tokenizer.model").write_bytes(meta_tokenizer[0].read_bytes()[:-900])
    with pytest.raises(CheckpointError, match="damaged or no tokenizer of sentencepiece"):
        convert(llama, out)
    shutil.copyfile(meta_tokenizer[0], llama.parent / "tokenizer.model")
    assert not out.exists()
    files = find_tokenizer(llama)
    out.mkdir()
    with pytest.raises(CheckpointError, match="has 390 tokens, but the language model knows 160"):
        copy_tokenizer(files, out, vocab_size=160, progress=False)


def test_conversion_that_would_lose_tokens_is_refused(
    meta_tokenizer: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers' own LlamaTokenizer does with a space in front."""
    from transformers import LlamaTokenizer

    monkeypatch.setattr(tokenizers_of, "_fast", lambda folder: LlamaTokenizer.from_pretrained(folder))
    llama = llama_beside(tmp_path / "llama", meta_tokenizer[0])
    with pytest.raises(CheckpointError, match="in a way that tokenizer.json cannot hold"):
        convert(llama, tmp_path / "out")
    assert not (tmp_path / "out").exists()
