import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bindlm.checkpoints import convert_gguf, load_language_model, sha256_of
from bindlm.checkpoints.gguf import FORMAT_VERSION
from bindlm.checkpoints.gguf_header import read_header
from bindlm.errors import CheckpointError

from .tiny_gguf import MERGES, TEMPLATE, tiny_llama, vocabulary, write_gguf

FILES = {
    "bindlm_conversion.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_llama()


@pytest.fixture(scope="module")
def tiny(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of plain fp32 weights."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, llama)
    return path


@pytest.fixture(scope="module")
def converted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BINDLM_HOME", str(home))
        return convert_gguf(tiny, progress=False)


def test_weights_come_back_bit_for_bit(llama: Any, converted: Path) -> None:
    """The order of rows in q and k is llama.cpp's in the file and transformers' in the folder."""
    model, _ = load_language_model(converted, progress=False)
    wanted, got = llama.state_dict(), model.state_dict()
    assert wanted.keys() == got.keys()
    for name, tensor in wanted.items():
        assert got[name].dtype == torch.float32
        assert torch.equal(got[name], tensor), name
    ids = torch.arange(40).reshape(2, 20)
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, llama(ids).logits)


def test_config_keeps_what_decides_the_numbers(llama: Any, converted: Path) -> None:
    model, tokenizer = load_language_model(converted, progress=False)
    for name in (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
        "max_position_embeddings rope_parameters tie_word_embeddings bos_token_id eos_token_id pad_token_id hidden_act"
    ).split():
        assert getattr(model.config, name) == getattr(llama.config, name), name
    assert model.config.rms_norm_eps == pytest.approx(llama.config.rms_norm_eps, rel=1e-6)  # stored as fp32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generation_config.eos_token_id == 2
    assert not model.training
    assert tokenizer.model_max_length == 128
    assert getattr(model.config, "quantization_config", None) is None


def test_quantised_weights_are_what_gguf_itself_makes_of_them(llama: Any, tmp_path: Path, home: Path) -> None:
    import gguf

    path = tmp_path / "tiny.Q8_0.gguf"
    write_gguf(path, llama, quantised=True)
    model, _ = load_language_model(path, progress=False)
    got = model.state_dict()
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, gguf_name in {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight",
        "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
    }.items():
        assert stored[gguf_name].tensor_type.name == "Q8_0"
        expected = torch.from_numpy(gguf.dequantize(stored[gguf_name].data, stored[gguf_name].tensor_type).copy())
        assert torch.equal(got[name], expected), name
    for name, tensor in llama.state_dict().items():  # 8 bits for the largest of 32 weights; measured worst 0.004
        assert (got[name] - tensor).abs().max() <= tensor.abs().max() / 127, name


def test_tokenizer_keeps_specials_template_and_every_byte(converted: Path) -> None:
    _, tokenizer = load_language_model(converted, progress=False)
    assert len(tokenizer) == len(vocabulary())
    assert tokenizer.convert_ids_to_tokens(range(3)) == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (tokenizer.pad_token, tokenizer.unk_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == (
        "<|im_start|>hello<|im_end|>"
    )
    assert tokenizer("<|im_start|>hello<|im_end|>").input_ids == [1, vocabulary().index("hello"), 2]
    for text in ["hello  hello", " x ", "\n\t", "1234 don't", "naïve 猫 🐈", "a <|im_end|> b"]:
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_digits_stand_alone_and_leave_their_spaces_behind(converted: Path) -> None:
    _, tokenizer = load_language_model(converted, progress=False)
    assert "ĠĠ" in "".join(MERGES).replace(" ", "")
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    assert tokenizer.tokenize("a  b") == ["a", "Ġ", "Ġ", "b"]


@pytest.mark.parametrize(("splitting", "is_digit_apart"), [("gpt-2", False), ("starcoder", True)])
def test_splitting_follows_the_file(
    splitting: str, is_digit_apart: bool, llama: Any, tmp_path: Path, home: Path
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, llama, splitting=splitting)
    _, tokenizer = load_language_model(path, progress=False)
    assert (tokenizer.tokenize("a  1") == ["a", "ĠĠ", "1"]) == is_digit_apart


@pytest.mark.parametrize("splitting", ["something-new", None])
def test_unknown_splitting_is_refused_rather_than_guessed(
    splitting: str | None, llama: Any, tmp_path: Path, home: Path
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, llama, splitting=splitting)
    with pytest.raises(CheckpointError, match="tokens would come out wrong"):
        convert_gguf(path, progress=False)
    assert list((home / "converted").iterdir()) == []


def test_scaled_rotary_positions_are_refused_rather_than_dropped(llama: Any, tmp_path: Path, home: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, llama, llama__rope__scaling__type="yarn")
    with pytest.raises(CheckpointError, match="scales its rotary positions"):
        convert_gguf(path, progress=False)


def test_folder_is_named_after_the_file_and_made_once(
    tiny: Path, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = convert_gguf(tiny)
    assert folder == home / "converted" / f"{sha256_of(tiny)}-{FORMAT_VERSION}"
    assert {path.name for path in folder.iterdir()} == FILES
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    assert capsys.readouterr().err == "bindlm: converting tiny.gguf, once ...\n"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]

    # The second start finds the folder with neither torch nor transformers.
    code = (
        "import sys; from bindlm.checkpoints import convert_gguf; print(convert_gguf(sys.argv[1]));"
        "assert not {'torch', 'transformers', 'gguf'} & set(sys.modules)"
    )
    source = Path(__file__).parents[2] / "src"
    environment = os.environ | {"PYTHONPATH": str(source)}
    done = subprocess.run([sys.executable, "-c", code, tiny], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{folder}\n", "")

    elsewhere = convert_gguf(tiny, tmp_path / "elsewhere", progress=False)
    assert elsewhere == tmp_path / "elsewhere" / folder.name
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_half_converted_folder_is_never_used(tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bindlm.checkpoints import gguf

    real = gguf._convert

    def interrupted(path: Path, header: Any, folder: Path, progress: bool) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_gguf(tiny, progress=False)
    assert list((home / "converted").iterdir()) == []
    monkeypatch.setattr(gguf, "_convert", real)
    assert {path.name for path in convert_gguf(tiny, progress=False).iterdir()} == FILES


def test_header_is_read_without_its_arrays(tiny: Path) -> None:
    header = read_header(tiny)
    assert header.architecture == "llama"
    assert header.metadata["llama.block_count"] == 2
    assert header.metadata["llama.rope.freq_base"] == 5000.0
    assert header.metadata["tokenizer.ggml.add_bos_token"] is False
    assert header.metadata["tokenizer.chat_template"] == TEMPLATE
    assert "tokenizer.ggml.tokens" not in header.metadata
    assert len(header.tensor_names) == 2 + 2 * 9
    assert "blk.1.attn_q.weight" in header.tensor_names


def test_damaged_files_are_checkpoint_errors(tiny: Path, tmp_path: Path, home: Path) -> None:
    whole = tiny.read_bytes()
    path = tmp_path / "broken.gguf"
    generator = random.Random(0)
    cuts = [
        0,
        3,
        4,
        8,
        23,
        24,
        100,
        len(whole) // 2,
        len(whole) - 1,
        *(generator.randrange(len(whole)) for _ in range(4)),
    ]
    contents = {f"cut at {cut}": whole[:cut] for cut in cuts}
    contents["version 1"] = whole[:4] + struct.pack("<I", 1) + whole[8:]
    contents["big endian"] = whole[:4] + struct.pack(">I", 3) + whole[8:]
    contents["endless tensors"] = whole[:8] + struct.pack("<Q", 2**60) + whole[16:]
    contents["endless pairs"] = whole[:16] + struct.pack("<Q", 2**60) + whole[24:]
    contents["endless key"] = whole[:24] + struct.pack("<Q", 2**62) + whole[32:]
    contents["no GGUF"] = b"PK\x03\x04" + whole[4:]
    for what, content in contents.items():
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="get it again"):
            pytest.fail(f"{what}: converted to {convert_gguf(path, progress=False)}")
    assert not (home / "converted").exists() or list((home / "converted").iterdir()) == []
    with pytest.raises(CheckpointError, match="is missing or cannot be read"):
        convert_gguf(tmp_path / "none.gguf")


def test_unknown_architecture_is_a_checkpoint_error(tmp_path: Path, home: Path) -> None:
    import gguf

    path = tmp_path / "unknown.gguf"
    writer = gguf.GGUFWriter(path, "clip")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="does not know its architecture"):
        convert_gguf(path, progress=False)


def test_record_says_where_the_folder_comes_from(tiny: Path, converted: Path) -> None:
    record = json.loads((converted / "bindlm_conversion.json").read_text())
    assert record == {"source": "tiny.gguf", "sha256": sha256_of(tiny), "format": FORMAT_VERSION}
