"""Bound models of a few thousand random weights, for every decoder that the injection is held to."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from bindlm.configuration import BindLMConfig
from bindlm.encoders.efficientnet_lite import SIZES, EfficientNetLite
from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.processing import BindLMImageProcessor, BindLMProcessor

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCAB_SIZE = len(SPECIAL) + 256 + 5
"""Five more than the tokenizer has, as published models pad theirs: such tokens decode to nothing."""
HIDDEN = 32
NUM_LAYERS = 3
DIM = 16
"""Width of the tiny joint space."""
SIDE = 32
"""Pixels of a tiny view; the tower takes any."""
DECODERS = ("llama", "qwen3", "gemma3", "mixtral")

# Ten times transformers' default: logits then differ by whole units, so that a greedy choice is never a near tie.
_SPREAD = 0.2
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": _SPREAD,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def tiny_text_config(kind: str = "llama", **changes: Any) -> PreTrainedConfig:
    """Configuration of a tiny decoder; `changes` replace its fields."""
    settings = {**_COMMON, **changes}
    if kind == "llama":
        return LlamaConfig(**settings)
    if kind == "qwen3":
        return Qwen3Config(**settings)
    if kind == "gemma3":  # a window shorter than the tests' texts, in two layers of three
        window = {"sliding_window": 6, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
        return Gemma3TextConfig(**{"query_pre_attn_scalar": 8, **window, **settings})
    if kind == "mixtral":
        return MixtralConfig(num_local_experts=4, num_experts_per_tok=2, **settings)
    raise ValueError(kind)


def tiny_language_model(kind: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A plain decoder with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(tiny_text_config(kind, **changes)).eval()


def tiny_config(text_config: PreTrainedConfig | None = None, **changes: Any) -> BindLMConfig:
    """Configuration of a bound model around a tiny decoder."""
    settings: dict[str, Any] = {
        "encoder": {"family": "mini", "size": "lite0", "dim": DIM},
        "bridge": {"hidden_dim": 24},
        **changes,
    }
    return BindLMConfig(text_config=text_config or tiny_text_config(), **settings)


def tiny_model(
    kind: str = "llama",
    *,
    seed: int = 0,
    gate: float | None = 0.3,
    language_model: PreTrainedModel | None = None,
    reference: str | None = None,
    **changes: Any,
) -> BindLMForConditionalGeneration:
    """A bound model in evaluation mode, all of its weights random.

    Args:
        kind: one of `DECODERS`.
        seed: of every weight.
        gate: standard deviation of the gates; None leaves them at zero.
        language_model: a decoder to bind in place of a new one.
        reference: where that decoder's weights come from, if they are not to be saved with the model.
        **changes: fields of `BindLMConfig`.
    """
    language_model = language_model or tiny_language_model(kind, seed)
    with _tower_without_a_start():
        model = BindLMForConditionalGeneration(
            tiny_config(language_model.config, language_model=reference, **changes), language_model
        )
    generator = torch.Generator().manual_seed(seed + 1)
    model.encoder.image_tower.load_state_dict(lively_tower())
    randomize_(model.encoder.projection, 0.1, generator)
    for parameter in model.bridge.parameters():
        randomize_(parameter, 0.2, generator)
    if gate is not None:
        randomize_(model.injection.gate, gate, generator)
    if model.cache is not None:
        model.cache.keys.copy_(unit_rows(*model.cache.keys.shape, seed=seed + 2))
    if model._lora is not None:
        randomize_lora(model, seed + 3)
    return model.eval()


@contextmanager
def _tower_without_a_start() -> Iterator[None]:
    """Torch draws no weights for the tower, which gets `lively_tower`: a third of what a tiny model costs.

    What is drawn after it stays the same: the generator ends where it ended when weights were drawn.
    """
    start = EfficientNetLite.__init__

    def build(tower: EfficientNetLite, *arguments: Any, **options: Any) -> None:
        before = (repr((arguments, options)), torch.get_rng_state().numpy().tobytes())
        if before not in _AFTER_TOWER:
            start(tower, *arguments, **options)
            _AFTER_TOWER[before] = torch.get_rng_state()
            return
        with patch.object(nn.Conv2d, "reset_parameters", lambda convolution: None):
            start(tower, *arguments, **options)
        torch.set_rng_state(_AFTER_TOWER[before])

    with patch.object(EfficientNetLite, "__init__", build):
        yield


_AFTER_TOWER: dict[tuple[str, bytes], Tensor] = {}
"""State of the generator after a tower, by the tower's size and the state before."""


@cache
def lively_tower() -> dict[str, Tensor]:
    """Random weights under which pictures keep apart; torch's own start lets every signal die on the way."""
    torch.manual_seed(0)
    tower = EfficientNetLite(SIZES["lite0"])
    for module in tower.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5)
    return tower.state_dict()


def randomize_(tensor: Tensor, scale: float, generator: torch.Generator) -> None:
    with torch.no_grad():
        tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))


def randomize_lora(model: BindLMForConditionalGeneration, seed: int) -> None:
    """Random adapters: fresh ones change nothing, because LoRA starts with a zero matrix."""
    generator = torch.Generator().manual_seed(seed)
    assert model._lora is not None
    for parameter in model._lora.parameters():
        randomize_(parameter, 0.3, generator)


def unit_rows(rows: int, dim: int = DIM, seed: int = 0) -> Tensor:
    """`(rows, dim)` of unit length."""
    values = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))
    return nn.functional.normalize(values, dim=-1)


def token_batch(rows: int, length: int, seed: int = 0) -> Tensor:
    """`(rows, length)` of ordinary tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(SPECIAL), VOCAB_SIZE, (rows, length), generator=generator)


def padded_batch(lengths: list[int], seed: int = 0) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` of rows of these lengths, padded on the left."""
    longest = max(lengths)
    ids = token_batch(len(lengths), longest, seed)
    mask = torch.tensor([[0] * (longest - length) + [1] * length for length in lengths])
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so that most characters beyond ASCII are several tokens; ChatML with a system message."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return fast


def tiny_processor() -> BindLMProcessor:
    """A processor of tiny pictures and the tiny tokenizer."""
    return BindLMProcessor(image_processor=BindLMImageProcessor(size=SIDE), tokenizer=tiny_tokenizer())


def picture(seed: int = 0, width: int = 48, height: int = 40) -> Image.Image:
    """A picture of coloured blocks, so that two seeds look different to the tower."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)
