"""In a file of its own: the mini's weights lie under the BINDLM_HOME of the user, which the other tests replace."""

import pytest
import torch

from bindlm.training.features import extract_features
from bindlm.training.stage_recipe import FeaturesConfig, ViewsConfig

from ...conftest import MINI_WEIGHTS
from .folder_source import FolderSource, save_pictures


@pytest.fixture(scope="module")
def embedder():
    if not MINI_WEIGHTS.is_file():
        pytest.skip("the mini's weights are not in src/bindlm/mini yet; `make mini` trains them")
    from bindlm.embedding import load_embedder

    return load_embedder()


def test_the_single_view_is_the_embedding_of_inference(embedder, tmp_path):
    source = FolderSource(save_pictures(tmp_path / "pictures", 3, size=(60, 40)))
    report = extract_features(
        [source], embedder, FeaturesConfig(str(tmp_path / "store"), batch_size=3), progress=False
    )
    expected = embedder.embed(image=[source.read_media(row["media"]) for row in source.rows], batch_size=3)
    rows = report.store.rows_of([f"photos/{row['media']}" for row in source.rows])
    assert torch.equal(report.store.get(rows, [0, 0, 0]), expected.half().float())


def test_a_crop_is_near_the_picture_and_not_it(embedder, tmp_path):
    source = FolderSource(save_pictures(tmp_path / "pictures", 2, size=(60, 40)))
    config = FeaturesConfig(str(tmp_path / "store"), views=ViewsConfig(num_views=2), batch_size=4)
    store = extract_features([source], embedder, config, progress=False).store
    whole = embedder.embed(image=source.read_media("000.png"))
    other = embedder.embed(image=source.read_media("001.png"))
    views = store.get([store.row_of("photos/000.png")] * 2, [0, 1])
    near, far = views @ whole.T, views @ other.T
    assert (near > far).all()
    assert (near < 0.9999).all()
