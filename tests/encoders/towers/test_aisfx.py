"""aiSFX as we rebuild it, against what the published code gives."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from bindlm.checkpoints import convert_pickled_state, load_state
from bindlm.encoders.aisfx import Aisfx, log_mel_blocks, log_mel_spectrogram
from bindlm.errors import CheckpointError

GOLDEN = Path(__file__).parents[2] / "data" / "aisfx_golden.npz"
"""Every fourth frame of the log-mel spectrogram of `chirp()`, and the features of its three blocks: by the code of the
wheel `aisfx` 0.1.2 (with librosa 0.10.2), run once."""


def chirp() -> torch.Tensor:
    time = np.arange(44_100 * 5) / 44_100
    sweep = 0.3 * np.sin(2 * np.pi * (200 * time + 300 * time**2)) * np.exp(-((time - 2) ** 2))
    beeps = 0.1 * np.sin(2 * np.pi * 6000 * time) * (np.sin(2 * np.pi * 3 * time) > 0)
    return torch.from_numpy((sweep + beeps).astype(np.float32))


def test_spectrogram_is_the_published_one() -> None:
    frames = np.load(GOLDEN)["frames"]
    np.testing.assert_allclose(log_mel_spectrogram(chirp())[::4].numpy(), frames, rtol=0, atol=1e-5)


@pytest.mark.slow  # fetches the wheel the first time
def test_features_are_the_published_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BINDLM_HOME")
    features = torch.from_numpy(np.load(GOLDEN)["features"])
    blocks = log_mel_blocks(chirp(), 4)
    net = Aisfx()
    assert (blocks[3] == -1).all(), "five seconds have three blocks"
    with torch.no_grad():
        torch.testing.assert_close(net.module(blocks)(blocks[:3]), features, rtol=1e-5, atol=1e-5)
    mean = net.features(blocks[None], like=torch.zeros(1))
    torch.testing.assert_close(mean, features.mean(dim=0, keepdim=True), rtol=1e-5, atol=1e-5)


def test_loudness_does_not_count() -> None:
    torch.testing.assert_close(log_mel_spectrogram(chirp() * 0.01), log_mel_spectrogram(chirp()), rtol=0, atol=1e-4)
    assert (log_mel_spectrogram(torch.zeros(5000)) == 0).all(), "silence stays silent"


@pytest.mark.parametrize(
    ("num_samples", "num_blocks"), [(1, 1), (44_100, 1), (149 * 1024, 2), (149 * 1024 - 1, 1), (4_000_000, 4)]
)
def test_blocks_lie_half_a_block_apart_and_are_at_most_so_many(num_samples: int, num_blocks: int) -> None:
    blocks = log_mel_blocks(torch.rand(num_samples) - 0.5, 4)
    assert blocks.shape == (4, 100, 96)
    assert int((blocks[:, 0, 0] >= 0).sum()) == num_blocks
    assert (blocks[num_blocks:] == -1).all()


@pytest.fixture
def no_safe_globals() -> Iterator[None]:
    """Without what other libraries told torch to trust in this process: accelerate does so for numpy's numbers."""
    known = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.add_safe_globals(known)


@pytest.mark.usefixtures("no_safe_globals")
def test_checkpoint_is_opened_once_with_only_numbers_beside_the_weights(
    backbones: dict[str, str], home_of_its_own: Path, tmp_path: Path
) -> None:
    published = Path(backbones["aisfx_adapter"])
    with pytest.raises(CheckpointError, match="may be code"):
        convert_pickled_state(published, entry=0, progress=False)
    converted = convert_pickled_state(published, entry=0, numpy_scalars=True, progress=False)
    assert converted.is_relative_to(home_of_its_own / "converted")
    assert "fc.0.0.weight" in load_state(converted)
    torch.save(({"weight": torch.zeros(1)}, {"code": print}), tmp_path / "hostile.pth")
    with pytest.raises(CheckpointError, match="may be code"):
        convert_pickled_state(tmp_path / "hostile.pth", entry=0, numpy_scalars=True, progress=False)


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    torch.save(({"embedding_net.conv_block1.conv1.weight": torch.zeros(2, 1, 3, 3)}, {}), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not fit"):
        Aisfx(str(tmp_path / "other.pth")).module(torch.zeros(1))
