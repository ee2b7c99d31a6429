"""Small backbones for adapters: a sentence BERT with its tokenizer, and aiSFX of random weights as it is published."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel

from bindlm.encoders.aisfx import AisfxNet

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "dog", "bark", "##s", "the", "red"]
NUM_FEATURES = 16


def write_sentence_model(folder: Path) -> Path:
    """A folder as Sentence Transformers publishes: with a pooler and buffers that nobody needs."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=NUM_FEATURES,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    state = {name: tensor.contiguous() for name, tensor in BertModel(config).state_dict().items()}
    state["embeddings.position_ids"] = torch.arange(16)[None]
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "model_type": "bert"}))
    tokenizer = Tokenizer(WordPiece({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair=None, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(4)  # as published files do, and not what the tower was told
    tokenizer.enable_padding(length=4)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_aisfx(path: Path) -> Path:
    """A pair of weights and numbers of numpy, pickled."""
    torch.manual_seed(0)
    state = {f"embedding_net.{name}": tensor for name, tensor in AisfxNet().state_dict().items()}
    heads = {"fc.0.0.weight": torch.zeros(3, 512)}
    torch.save(({**state, **heads}, {"prosfx": (np.int64(0), 78)}), path)
    return path
