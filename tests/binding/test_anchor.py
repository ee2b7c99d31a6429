"""Anchors: embedded once and found again, read from a file, in views and in sentences."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from bindlm.binding.anchor import AnchorBank, encoded_bank, feature_bank
from bindlm.binding.pairs import AnchorSide
from bindlm.binding.recipe import AnchorColumn, AnchorRecipe
from bindlm.errors import ConfigError
from bindlm.space.zero_shot import TEMPLATE_SETS

from ..fake_embedder import FakeEmbedder as FakeFolderEmbedder


class FakeEmbedder(FakeFolderEmbedder):
    """With a fingerprint for each sense."""

    def fingerprint_of(self, modality: str) -> str:
        return self.fingerprint


def side(column: str, anchors: list[str]) -> AnchorSide:
    return AnchorSide(AnchorColumn(column), anchors, np.arange(len(anchors)))


def pictures(folder: Path) -> list[str]:
    for name, colour in (("red", (200, 0, 0)), ("green", (0, 200, 0))):
        Image.new("RGB", (40, 30), colour).save(folder / f"{name}.png")
    (folder / "torn.png").write_bytes(b"\x89PNG torn")
    return [str(folder / f"{name}.png") for name in ("red", "torn", "green")]


def bank(embedder: FakeEmbedder, folder: Path, column: str, anchors: list[str], **recipe: Any) -> AnchorBank:
    given: Any = embedder
    return encoded_bank(side(column, anchors), given, AnchorRecipe("fake", **recipe), folder / "cache", lambda n: None)


def test_pictures_are_embedded_once_and_torn_ones_are_known(tmp_path):
    embedder, names = FakeEmbedder(), pictures(tmp_path)
    first = bank(embedder, tmp_path, "image", names)
    assert list(first.unusable) == [1]
    assert first.rows.shape == (3, 1, 3)
    torch.testing.assert_close(torch.from_numpy(first.rows[0]), embedder.embed(image=names[0]))
    embedder.batches.clear()
    again = bank(embedder, tmp_path, "image", names)
    assert embedder.batches == []
    np.testing.assert_array_equal(again.rows, first.rows)
    assert again.unusable == first.unusable


def test_a_picture_that_changed_is_embedded_anew(tmp_path):
    embedder, names = FakeEmbedder(), pictures(tmp_path)
    bank(embedder, tmp_path, "image", names)
    Image.new("RGB", (9, 9), (0, 0, 200)).save(names[0])
    os.utime(names[0], ns=(1, 1))
    embedder.batches.clear()
    assert bank(embedder, tmp_path, "image", names).rows[0, 0].argmax() == 2
    assert embedder.batches == [("image", 1)]


def test_another_anchor_has_a_cache_of_its_own(tmp_path):
    names = pictures(tmp_path)
    bank(FakeEmbedder(), tmp_path, "image", names)
    other = FakeEmbedder(fingerprint="f" * 16)
    bank(other, tmp_path, "image", names)
    assert other.batches


def test_sentences_around_a_text_are_averaged(tmp_path):
    embedder = FakeEmbedder()
    templates = ("a red {}", "a green {}")
    found = bank(embedder, tmp_path, "text", ["blue"], templates=templates)
    rows = embedder.embed(text=["a red blue", "a green blue"])
    wanted = torch.nn.functional.normalize(rows.mean(dim=0), dim=0)
    torch.testing.assert_close(torch.from_numpy(found.rows[0, 0]), wanted)


def test_a_set_of_sentences_goes_by_its_name(tmp_path):
    embedder = FakeEmbedder()
    by_name = bank(embedder, tmp_path, "text", ["blue"], templates=("objects",))
    given = bank(embedder, tmp_path, "text", ["blue"], templates=TEMPLATE_SETS["objects"])
    np.testing.assert_array_equal(by_name.rows, given.rows)


def test_a_sense_that_the_anchor_lacks_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"anchor fake has no 'audio'.*image"):
        bank(FakeEmbedder(("image",)), tmp_path, "audio", ["a.wav"])


# -- ready embeddings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", [None, 2])
@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_features_are_read_by_row_and_brought_to_unit_length(tmp_path, suffix, views):
    shape = (4, 5) if views is None else (4, views, 5)
    values = 3 * np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    path = tmp_path / f"features{suffix}"
    np.save(path, values) if suffix == ".npy" else save_file({"features": values}, path)
    found = feature_bank(side("feature", [f"{path}#2", f"{path}#0"]))
    wanted = values.reshape(4, -1, 5)[[2, 0]]
    np.testing.assert_allclose(found.rows, wanted / np.linalg.norm(wanted, axis=-1, keepdims=True), rtol=1e-5)
    assert (found.dim, found.num_views) == (5, views or 1)


def test_a_draw_of_views_takes_each_and_rows_without_anchor_are_zero(tmp_path):
    rows = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
    bank = AnchorBank(rows, {}, "")
    found = bank.get(np.array([1, 1, 1, -1]), np.array([0, 4, 2, 0]))
    np.testing.assert_array_equal(found[:3], rows[1, [0, 1, 2]])
    assert not found[3].any()


@pytest.mark.parametrize(
    ("save", "said"),
    [
        (lambda path: np.save(path, np.ones((2, 5), np.float32)), "has 2 rows, from 0, and a table asks for row 3"),
        (lambda path: np.save(path, np.ones(5, np.float32)), r"must hold features \(N, D\)"),
        (lambda path: np.save(path, np.ones((5, 5), np.int64)), r"must hold features \(N, D\)"),
        (lambda path: path.write_bytes(b"no array"), "damaged or no .npy"),
    ],
)
def test_what_is_wrong_with_features_is_said(tmp_path, save, said):
    path = tmp_path / "features.npy"
    save(path)
    with pytest.raises(ConfigError, match=said):
        feature_bank(side("feature", [f"{path}#3"]))
