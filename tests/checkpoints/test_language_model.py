import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bindlm.checkpoints import load_language_model, load_tokenizer
from bindlm.errors import CheckpointError, ConfigError

from .tiny_gguf import tiny_llama, vocabulary, write_gguf


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny LLaMA and its tokenizer."""
    from bindlm.checkpoints import convert_gguf

    home = tmp_path_factory.mktemp("home")
    write_gguf(home / "tiny.gguf", tiny_llama())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BINDLM_HOME", str(home))
        return convert_gguf(home / "tiny.gguf", progress=False)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(made, tmp_path / "model"))


def change(path: Path, how: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    how(content)
    path.write_text(json.dumps(content))


def test_folder_loads_silently_in_evaluation_mode(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    model, tokenizer = load_language_model(str(folder), progress=False)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert not model.training
    assert model.dtype == torch.float32
    assert tokenizer("hello").input_ids == [vocabulary().index("hello")]


def test_dtype_attention_and_device_are_passed_on(folder: Path) -> None:
    model, _ = load_language_model(folder, dtype=torch.bfloat16, attn_implementation="eager", device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    model, _ = load_language_model(folder, dtype="float16")
    assert model.dtype == torch.float16


def test_stored_dtype_is_kept(folder: Path) -> None:
    model, _ = load_language_model(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    assert load_language_model(folder)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["float99", "int8", torch.int8, "Tensor", 32])
def test_impossible_dtype_is_a_config_error(dtype: Any, folder: Path) -> None:
    with pytest.raises(ConfigError, match="no floating-point type of torch"):
        load_language_model(folder, dtype=dtype)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "cpu:x"])
def test_device_that_is_not_there_is_a_config_error(device: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match="is not on this machine"):
        load_language_model(folder, device=device)


def test_missing_padding_is_added_and_changes_nothing(folder: Path) -> None:
    text = "hello  12"
    before_model, before_tokenizer = load_language_model(folder)
    wanted = before_tokenizer(text, return_tensors="pt").input_ids
    generated = before_model.generate(wanted, max_new_tokens=8, do_sample=False)
    change(folder / "tokenizer_config.json", lambda content: content.pop("pad_token"))
    for name in ("config.json", "generation_config.json"):
        change(folder / name, lambda content: content.pop("pad_token_id"))
    model, tokenizer = load_language_model(folder)
    assert tokenizer.pad_token == load_tokenizer(folder).pad_token == "<|im_end|>"
    assert model.generation_config.pad_token_id == 2
    assert model.get_input_embeddings().weight.shape == before_model.get_input_embeddings().weight.shape
    assert torch.equal(tokenizer(text, return_tensors="pt").input_ids, wanted)
    assert torch.equal(model.generate(wanted, max_new_tokens=8, do_sample=False), generated)


def test_padding_that_is_there_is_kept(folder: Path) -> None:
    change(folder / "tokenizer_config.json", lambda content: content.update(pad_token="<|endoftext|>"))
    change(folder / "generation_config.json", lambda content: content.update(pad_token_id=0))
    model, tokenizer = load_language_model(folder)
    assert tokenizer.pad_token_id == 0
    assert model.generation_config.pad_token_id == 0


def test_missing_weights_are_refused_instead_of_made_up(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state.pop("model.layers.1.mlp.up_proj.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights .* model\.layers\.1\.mlp\.up_proj\.weight"):
        load_language_model(folder)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    change(folder / "config.json", lambda content: content.update(intermediate_size=128))
    with pytest.raises(CheckpointError, match="cannot be loaded as a decoder"):
        load_language_model(folder)


def test_truncated_weights_and_tokenizer_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="safetensors are missing or damaged"):
        load_language_model(folder)
    weights.write_bytes(whole)
    (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="tokenizer in .* is missing or damaged"):
        load_language_model(folder)


def test_pickled_weights_are_not_loaded(folder: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="safetensors are missing"):
        load_language_model(folder)


def test_code_of_a_checkpoint_never_runs_and_nobody_is_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (folder / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    remote = {"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"}
    change(folder / "config.json", lambda content: content.update(model_type="evil", auto_map=remote))
    monkeypatch.setattr("builtins.input", lambda *question: pytest.fail("asked on the terminal"))
    with pytest.raises(CheckpointError, match="does not know its architecture"):
        load_language_model(folder)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_decoder_is_refused(folder: Path, tmp_path: Path) -> None:
    change(folder / "config.json", lambda content: content.update(model_type="vit"))
    with pytest.raises(CheckpointError, match="choose a decoder"):
        load_language_model(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        load_language_model(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="is no GGUF file"):
        load_language_model(folder / "model.safetensors")


def test_tokenizer_alone_needs_no_weights(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert load_tokenizer(folder)("hello").input_ids == [vocabulary().index("hello")]
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer in .* is missing or damaged"):
        load_tokenizer(folder)


def test_unknown_attention_is_named(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="attn_implementation='abacus' does not work here"):
        load_language_model(folder, attn_implementation="abacus")
