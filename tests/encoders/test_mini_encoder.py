"""The mini's encoder: views averaged, centred, whitened, unit length."""

from typing import Any

import pytest
import torch

from bindlm.encoders import MiniEncoder, build_encoder
from bindlm.encoders.efficientnet_lite import NUM_FEATURES
from bindlm.errors import ConfigError

from ..tiny import lively_tower


@pytest.fixture(scope="module")
def encoder() -> MiniEncoder:
    torch.manual_seed(0)
    built = build_encoder("mini", size="lite0", dim=12).eval()
    assert isinstance(built, MiniEncoder)
    built.image_tower.load_state_dict(lively_tower())
    built.mean.uniform_(0, 0.5)
    built.projection.normal_(std=0.1)
    return built


@pytest.fixture(scope="module")
def pixel_values() -> torch.Tensor:
    return torch.randn(3, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_embedding_is_the_whitened_mean_over_views(encoder: MiniEncoder, pixel_values: torch.Tensor) -> None:
    for row, views in enumerate(pixel_values):
        feature = torch.stack([encoder.image_tower(view[None])[0] for view in views]).mean(dim=0).double()
        embedding = encoder.projection.double() @ (feature - encoder.mean.double())
        expected = (embedding / embedding.norm()).float()
        torch.testing.assert_close(encoder.encode("image", pixel_values)[row], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_embeddings_have_unit_length_and_do_not_depend_on_the_batch(
    encoder: MiniEncoder, pixel_values: torch.Tensor
) -> None:
    together = encoder.encode("image", pixel_values)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3))
    for row in range(3):
        alone = encoder.encode("image", pixel_values[row : row + 1])[0]
        torch.testing.assert_close(alone, together[row], rtol=1e-4, atol=1e-5)
    assert (together[0] - together[1]).norm() > 0.01, "the pictures differ, so should their embeddings"


@torch.no_grad()
def test_whitening_turns_class_rows_into_prototypes(encoder: MiniEncoder, pixel_values: torch.Tensor) -> None:
    """In a space of full width the inner product with `P^-T w` is the head's logit, up to a constant of the class."""
    full = build_encoder("mini", size="lite0", dim=NUM_FEATURES).eval()
    assert isinstance(full, MiniEncoder)
    full.image_tower = encoder.image_tower
    generator = torch.Generator().manual_seed(2)
    full.mean.copy_(torch.rand(NUM_FEATURES, generator=generator))
    full.projection.copy_(
        torch.eye(NUM_FEATURES) + 0.01 * torch.randn(NUM_FEATURES, NUM_FEATURES, generator=generator)
    )
    rows = full.image_tower._fc.weight[:7].double()
    prototypes = torch.linalg.solve(full.projection.double().T, rows.T).T
    inner = full.embed("image", pixel_values).double() @ prototypes.T
    constant = full.image_tower._fc.bias[:7].double() + rows @ full.mean.double()
    logits = full.class_logits(pixel_values)[:, :7].double()
    torch.testing.assert_close(inner + constant, logits, rtol=1e-4, atol=1e-4)


def test_unknown_modality_is_refused(encoder: MiniEncoder) -> None:
    with pytest.raises(ConfigError, match="MiniEncoder has no 'audio'; it takes image"):
        encoder.encode("audio", torch.zeros(1, 1, 128))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 3, 32, 32), (1, 2, 1, 32, 32)])
def test_values_of_another_shape_are_refused(encoder: MiniEncoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"pictures \(B, V, 3, S, S\), got"):
        encoder.encode("image", torch.zeros(shape))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"family": "clap"}, "Unknown encoder family 'clap'; known: .*mini"),
        ({"family": "mini", "size": "lite9"}, "size must be one of lite0"),
        ({"family": "mini", "dim": 0}, "dim must lie in 1..1280"),
        ({"family": "mini", "dim": 1281}, "dim must lie in 1..1280"),
        ({"family": "mini", "depth": 3}, "does not take these settings"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        build_encoder(**settings)
