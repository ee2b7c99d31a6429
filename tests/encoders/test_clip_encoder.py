"""The CLIP family against transformers' own models, with tiny folders as transformers saves them."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.align.modeling_align import AlignModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from bindlm.encoders.clip import ClipEncoder, ClipEncoderConfig, build, from_folder
from bindlm.errors import CheckpointError, ConfigError, MediaError

_TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT = {**_TOWER, "vocab_size": 32, "max_position_embeddings": 8, "pad_token_id": 0, "eos_token_id": 31}
_VISION = {**_TOWER, "image_size": 32, "patch_size": 16}
_SETTINGS: dict[str, dict[str, Any]] = {
    "clip": {"text_config": {**_TEXT, "bos_token_id": 30}, "vision_config": _VISION, "projection_dim": 12},
    "metaclip_2": {"text_config": {**_TEXT, "bos_token_id": 30}, "vision_config": _VISION, "projection_dim": 12},
    "siglip": {"text_config": {**_TEXT, "bos_token_id": 30, "projection_size": 16}, "vision_config": _VISION},
    "siglip2": {
        "text_config": {**_TEXT, "bos_token_id": 30, "projection_size": 16},
        "vision_config": {**_TOWER, "patch_size": 4, "num_patches": 16},
    },
    "align": {
        "text_config": {**_TOWER, "vocab_size": 32, "max_position_embeddings": 8, "pad_token_id": 0},
        "vision_config": {
            "image_size": 32,
            "kernel_sizes": [3],
            "width_coefficient": 1.0,
            "depth_coefficient": 1.0,
            "in_channels": [32],
            "out_channels": [16],
            "strides": [1],
            "num_block_repeats": [1],
            "expand_ratios": [1],
            "depthwise_padding": [],
            "hidden_dim": 16,
        },
        "projection_dim": 16,
    },
}
_WORDS = "<pad> <unk> a photo of cat dog the red blue".split()


def _write_tokenizer(folder: Path) -> None:
    vocabulary = {word: index for index, word in enumerate(_WORDS)} | {"<s>": 30, "</s>": 31}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 31)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>"
    ).save_pretrained(folder)


def _write_folder(folder: Path, family: str) -> Path:
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(family, **copy.deepcopy(_SETTINGS[family])))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    _write_tokenizer(folder)
    if family == "siglip2":
        Siglip2ImageProcessorPil(patch_size=4, max_num_patches=16).save_pretrained(folder)
    else:
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
            folder
        )
    return folder


@pytest.fixture(scope="module", params=sorted(_SETTINGS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_folder(tmp_path_factory.mktemp(request.param), request.param)


def _picture(height: int = 40, width: int = 50) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _reference(folder: Path, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Picture and text features by transformers alone, called as its documentation calls it."""
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    is_naflex = model.config.model_type == "siglip2"
    processor = (Siglip2ImageProcessorPil if is_naflex else CLIPImageProcessorPil).from_pretrained(folder)
    pictures = processor(images=[_picture(), _picture(60, 33)], return_tensors="pt")
    tokens = tokenizer(texts, padding="max_length", max_length=8, truncation=True, return_tensors="pt")
    mask = {"attention_mask": tokens["attention_mask"]} if isinstance(model, AlignModel) else {}
    with torch.no_grad():
        image = model.get_image_features(**pictures).pooler_output
        text = model.get_text_features(input_ids=tokens["input_ids"], **mask).pooler_output
    return image, text


def test_features_equal_those_of_transformers(folder: Path) -> None:
    encoder = ClipEncoder.from_folder(folder)
    texts = ["a photo of a cat", "the red dog is a photo of the blue cat of the dog"]
    image, text = _reference(folder, texts)
    pictures = torch.stack([encoder.preprocess("image", picture) for picture in (_picture(), _picture(60, 33))])
    tokens = torch.stack([encoder.preprocess("text", text) for text in texts])
    torch.testing.assert_close(encoder.embed("image", pictures), image)
    torch.testing.assert_close(encoder.embed("text", tokens), text)
    assert image.shape[1] == text.shape[1] == encoder.dim
    assert (encoder.encode("image", pictures).norm(dim=-1) - 1).abs().max() < 1e-5
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder.training


def test_texts_are_padded_to_the_full_length(folder: Path) -> None:
    """SigLIP's rule (its text tower looks at the padding), harmless to the others, and rows can be stacked."""
    encoder = ClipEncoder.from_folder(folder)
    short, long = encoder.preprocess("text", "a cat"), encoder.preprocess("text", "a photo of a cat " * 9)
    assert short.shape == long.shape == (8,)
    if encoder.family != "siglip2":  # whose own class of tokenizer takes the place of the one written
        assert short.tolist() == [2, 5, 31, 0, 0, 0, 0, 0]


def test_threads_prepare_as_one_does(folder: Path) -> None:
    encoder = ClipEncoder.from_folder(folder)
    jobs = [("image", _picture(30 + i, 50)) for i in range(8)] + [("text", "a red cat " * i) for i in range(1, 9)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda job: encoder.preprocess(*job), jobs))
    for job, values in zip(jobs, together, strict=True):
        assert torch.equal(values, encoder.preprocess(*job))


def test_fresh_weights_by_settings_alone_take_tensors_but_no_media() -> None:
    settings = json.loads(json.dumps({"model_type": "clip", **_SETTINGS["clip"]}))
    encoder = build(model=settings)
    assert encoder.encode("image", torch.randn(2, 3, 32, 32)).shape == (2, 12)
    copy.deepcopy(encoder)
    with pytest.raises(ConfigError, match=r"ClipEncoderConfig\.folder is None"):
        encoder.preprocess("image", _picture())


def test_some_modalities_on_request(folder: Path) -> None:
    assert from_folder(folder).modalities == ("image", "text")
    encoder = from_folder(folder, modalities=["text"])
    assert encoder.modalities == ("text",)
    with pytest.raises(ConfigError, match="has no 'image'"):
        encoder.preprocess("image", _picture())


def test_bf16_on_request(tmp_path: Path) -> None:
    encoder = ClipEncoder.from_folder(_write_folder(tmp_path, "siglip"), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}
    assert encoder.encode("image", encoder.preprocess("image", _picture())[None]).dtype == torch.bfloat16


def test_folders_that_make_no_encoder_are_one_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        ClipEncoder.from_folder(tmp_path / "nowhere")
    folder = _write_folder(tmp_path / "clip", "clip")
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:1000])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        ClipEncoder.from_folder(folder)
    weights.write_bytes(content)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "projection_dim": 13}))
    with pytest.raises(CheckpointError):
        ClipEncoder.from_folder(folder)
    deeper = {**config, "vision_config": {**config["vision_config"], "num_hidden_layers": 3}}
    (folder / "config.json").write_text(json.dumps(deeper))
    with pytest.raises(CheckpointError, match="is missing, 16 in all"):
        ClipEncoder.from_folder(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match="not of the CLIP family.*got 'bert'"):
        ClipEncoder.from_folder(folder)


def test_missing_processors_say_which_file(tmp_path: Path) -> None:
    folder = _write_folder(tmp_path, "clip")
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    encoder = ClipEncoder.from_folder(folder)
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json"):
        encoder.preprocess("image", _picture())
    with pytest.raises(ConfigError, match="tokenizer"):
        encoder.preprocess("text", "a cat")


def test_values_and_media_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    encoder = ClipEncoder.from_folder(_write_folder(tmp_path, "clip"))
    with pytest.raises(ConfigError, match=r"takes pictures \(B, 3, 32, 32\), got \(1, 3, 32, 31\)"):
        encoder.encode("image", torch.zeros(1, 3, 32, 31))
    with pytest.raises(ConfigError, match="T up to 8"):
        encoder.encode("text", torch.zeros(1, 9, dtype=torch.int64))
    with pytest.raises(ConfigError, match="has no 'audio'"):
        encoder.preprocess("audio", b"")
    with pytest.raises(MediaError):
        encoder.preprocess("image", b"no picture")
    with pytest.raises(ConfigError, match="model_type among clip"):
        ClipEncoderConfig(model={"model_type": "llama"})
    with pytest.raises(ConfigError, match="makes no model"):
        ClipEncoder(ClipEncoderConfig(model={"model_type": "clip", "projection_dim": "wide"}))


def test_patches_without_their_grid_are_refused(tmp_path: Path) -> None:
    encoder = ClipEncoder.from_folder(_write_folder(tmp_path, "siglip2"))
    values = encoder.preprocess("image", _picture())
    assert values.shape == (16, 3 * 4 * 4 + 2)
    with pytest.raises(ConfigError, match="state no grid"):
        encoder.encode("image", torch.zeros(1, *values.shape))
    with pytest.raises(ConfigError, match=r"takes pictures \(B, N, 50\)"):
        encoder.encode("image", torch.zeros(1, 3, 32, 32))
