"""LLaMA-Adapter V2's eyes: all tokens of CLIP's tower through its last norm and projection, of blue-first pictures."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
)

import bindlm
from bindlm.encoders import build_encoder, load_encoder
from bindlm.encoders.clip_tokens import CLIP_TOKENS, CLIP_TOKENS_BGR, ClipTokensEncoder
from bindlm.errors import CheckpointError, ConfigError
from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.processing import BindLMProcessor

from ..converted import converted
from ..golden import golden
from ..released import TOLERANCE

SIDE, DIM, NUM_TOKENS = 12, 24, 10  # of the golden: a class token and 3 x 3 patches, 24 wide
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 4,
    "projection_dim": DIM,
}
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP, text tower and all, as it is published."""
    torch.manual_seed(0)
    settings = {"vocab_size": 32, "max_position_embeddings": 8, **TEXT}
    clip = CLIPModel(CLIPConfig(text_config=settings, vision_config=VISION, projection_dim=DIM))
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    path: Path = tmp_path_factory.mktemp("clip")
    clip.save_pretrained(path)
    return path


def picture(height: int = 30, width: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@torch.no_grad()
def test_class_token_is_clips_own_picture_feature(folder: Path) -> None:
    """And the other tokens take the way that CLIP leaves to the class token."""
    encoder, reference = ClipTokensEncoder.from_folder(folder), CLIPModel.from_pretrained(folder).eval()
    pixels = torch.randn(2, 3, SIDE, SIDE)
    tokens = encoder.embed("image", pixels)
    assert tokens.shape == (2, NUM_TOKENS, DIM)
    torch.testing.assert_close(tokens[:, 0], reference.get_image_features(pixels).pooler_output, rtol=0, atol=1e-6)
    last = reference.vision_model(pixels).last_hidden_state
    centred = last - last.mean(dim=-1, keepdim=True)
    normed = centred / (last.var(dim=-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    norm = reference.vision_model.post_layernorm
    expected = (normed * norm.weight + norm.bias) @ reference.visual_projection.weight.T
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-5)
    assert torch.equal(encoder.encode("image", pixels), tokens), "tokens keep the lengths the bridge was trained on"


def test_pictures_are_prepared_as_clip_does_it_with_red_and_blue_swapped(folder: Path) -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    straight, swapped = (load_encoder(folder, family=family) for family in (CLIP_TOKENS, CLIP_TOKENS_BGR))
    image = picture()
    blue_first = Image.fromarray(np.asarray(image)[..., ::-1].copy())
    for encoder, given in ((straight, image), (swapped, blue_first)):
        expected = processor(images=given, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(encoder.preprocess("image", image), expected, rtol=0, atol=1e-5)
    assert not torch.equal(straight.preprocess("image", image), swapped.preprocess("image", image))


@torch.no_grad()
def test_converted_model_sees_what_its_golden_sees_given_the_same_tokens(folder: Path, tmp_path: Path) -> None:
    """A folder without encoder, loaded with one: a picture gives the logits of its tokens, however it is given."""
    out = converted("llama_adapter_v2", "adapter_bias", tmp_path / "v2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        blind, model = bindlm.load(out), bindlm.load(out, encoder=folder)
    with pytest.raises(ConfigError, match="load it with encoder=…"):
        blind.encode_media(image=torch.zeros(1, 3, SIDE, SIDE))
    assert model.config.encoder["family"] == CLIP_TOKENS_BGR
    inputs, outputs = (golden(f"llama_adapter_v2/{name}.safetensors") for name in ("inputs", "outputs"))
    ids = inputs["tokens"]
    given = model(input_ids=ids, joint_embedding=inputs["clip_feats"]).logits
    torch.testing.assert_close(given, outputs["bias.logits"], **TOLERANCE)

    tower = CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    swapped = Image.fromarray(np.asarray(picture())[..., ::-1].copy())
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    pixels = processor(images=swapped, return_tensors="pt")["pixel_values"]
    last = tower.vision_model(pixels).last_hidden_state
    tokens = tower.visual_projection(tower.vision_model.post_layernorm(last))
    expected = model(input_ids=ids[:1], joint_embedding=tokens).logits
    seen = model.embed(image=picture())
    assert seen.shape == (1, NUM_TOKENS, DIM)
    torch.testing.assert_close(seen, tokens, rtol=0, atol=1e-5)
    given = model(input_ids=ids[:1], pixel_values=model.encoder.preprocess("image", picture())[None]).logits
    torch.testing.assert_close(given, expected, **TOLERANCE)


def test_a_question_about_a_picture_is_answered_and_the_encoder_is_kept_by_name(folder: Path, tmp_path: Path) -> None:
    out = converted("llama_adapter_v2", "adapter_lora_bias", tmp_path / "v2", encoder=str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = bindlm.load(out)
        model.processor = BindLMProcessor(
            tokenizer=tiny_tokenizer(), pictures="encoder", conditioned_chat_template="alpaca"
        )
        said = model.answer("what is this", image=picture(), max_new_tokens=4)
        assert said.answer_tokens > 0
        assert said.seconds["encode"] > 0
        model.save_pretrained(tmp_path / "again")
        again = BindLMForConditionalGeneration.from_pretrained(tmp_path / "again")
    assert not any(name.startswith("encoder.") for name in model.saved_names())
    joint = model.embed(image=picture())
    ids = torch.arange(5, 12)[None]
    with torch.no_grad():
        one, other = (each(input_ids=ids, joint_embedding=joint).logits for each in (model, again))
        assert torch.equal(one, other)
        other = model(input_ids=ids, joint_embedding=torch.randn_like(joint)).logits
    assert not torch.allclose(one, other, atol=1e-3), "the picture must count"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate("<unk> <s> </s> what is this a".split())}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


def test_what_is_no_clip_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no config.json; give a folder of CLIP"):
        load_encoder(tmp_path, family=CLIP_TOKENS)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match="cannot be loaded as CLIP's picture tower"):
        load_encoder(tmp_path, family=CLIP_TOKENS)
    encoder = load_encoder(folder, family=CLIP_TOKENS)
    with pytest.raises(ConfigError, match=r"takes pictures \(B, 3, 12, 12\), got \(1, 3, 9, 9\)"):
        encoder.embed("image", torch.zeros(1, 3, 9, 9))
    with pytest.raises(ConfigError, match="has no 'audio'"):
        encoder.embed("audio", torch.zeros(1))
    with pytest.raises(ConfigError, match="makes no tower of transformers"):
        build_encoder(CLIP_TOKENS, hidden_size="wide")


def test_published_tower_gives_257_tokens_of_768() -> None:
    with torch.device("meta"):
        encoder = build_encoder(
            CLIP_TOKENS_BGR,
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            patch_size=14,
            projection_dim=768,
        )
        assert encoder.embed("image", torch.zeros(1, 3, 224, 224)).shape == (1, 257, 768)
