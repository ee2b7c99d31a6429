"""The embedder: order, errors, reading ahead, and which weights it opens."""

import threading

import pytest
import torch

import bindlm
from bindlm.embedding import Embedder, load_embedder
from bindlm.encoders import JointEncoder
from bindlm.encoders.imagebind import ImageBindEncoder
from bindlm.errors import CheckpointError, ConfigError, MediaError

DEMO = bindlm.__path__[0] + "/mini/demo.jpg"


class Lengths(JointEncoder):
    """A text's length and number of e's: enough to tell rows apart."""

    modalities = ("text",)
    dim = 3

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.batches = []
        self.preprocessed = 0
        self.lock = threading.Lock()

    def preprocess(self, modality, source, *, allow_url=False):
        with self.lock:
            self.preprocessed += 1
        if source == "bad":
            raise MediaError("bad text")
        return torch.tensor([float(len(source)), source.count("e"), 1.0])

    def embed(self, modality, values):
        self.batches.append(len(values))
        return values * self.weight


@pytest.fixture
def embedder():
    return Embedder(Lengths(), name="lengths")


def expected(text):
    return torch.nn.functional.normalize(torch.tensor([float(len(text)), text.count("e"), 1.0]), dim=0)


def test_rows_come_in_the_order_given(embedder):
    texts = [f"{'e' * (number % 5)}{number}" for number in range(23)]
    rows = embedder.embed(text=texts, batch_size=4)
    torch.testing.assert_close(rows, torch.stack([expected(text) for text in texts]))
    assert embedder.encoder.batches == [4, 4, 4, 4, 4, 3]


def test_one_medium_needs_no_list(embedder):
    assert embedder.embed(text="tree").shape == (1, 3)


def test_a_bad_medium_fails_the_whole_list(embedder):
    with pytest.raises(MediaError, match="bad text"):
        embedder.embed(text=["good", "bad"])


def test_a_stream_goes_on_after_a_bad_medium(embedder):
    results = list(embedder.stream("text", ["bad", "a", "bad", "eb", "bad"], batch_size=2))
    assert [number for number, _ in results] == [0, 1, 2, 3, 4]
    assert [isinstance(value, MediaError) for _, value in results] == [True, False, True, False, True]
    torch.testing.assert_close(results[3][1], expected("eb"))


def test_bad_media_do_not_shrink_batches(embedder):
    list(embedder.stream("text", ["bad", "a", "b", "bad", "c", "d"], batch_size=2))
    assert embedder.encoder.batches == [2, 2]


def test_a_stream_reads_no_further_than_two_batches_ahead(embedder):
    taken = []

    def sources():
        for number in range(100):
            taken.append(number)
            yield str(number)

    stream = embedder.stream("text", sources(), batch_size=4)
    next(stream)
    assert len(taken) <= 12
    stream.close()
    assert embedder.encoder.preprocessed <= 12


@pytest.mark.parametrize(
    ("media", "complaint"),
    [
        ({}, "got none"),
        ({"text": None}, "got none"),
        ({"text": ["a"], "image": ["b"]}, "got text, image"),
        ({"audio": ["a"]}, "has no 'audio'"),
        ({"text": []}, "empty list"),
    ],
)
def test_what_cannot_be_embedded_is_an_error(embedder, media, complaint):
    with pytest.raises(ConfigError, match=complaint):
        embedder.embed(**media)


def test_a_batch_of_none_is_an_error(embedder):
    with pytest.raises(ConfigError, match="batch_size"):
        embedder.embed(text=["a"], batch_size=0)


def test_the_fingerprint_follows_the_weights(embedder):
    same, other = Embedder(Lengths()), Embedder(Lengths())
    with torch.no_grad():
        other.encoder.weight[1] += 1
    assert same.fingerprint == embedder.fingerprint != other.fingerprint


def test_the_minis_encoder_gives_what_the_mini_gives(mini):
    """One picture each, so that even rounding is the same."""
    assert torch.equal(load_embedder().embed(image=DEMO), mini.embed(image=DEMO))


def test_modalities_that_weights_lack_are_refused():
    with pytest.raises(ConfigError, match="has no 'thermal'"):
        load_embedder("mini", modalities=["thermal"])


def test_unknown_weights_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"layer.weight": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="no known encoder family"):
        load_embedder(path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="type 'bert'"):
        load_embedder(tmp_path)


def test_imagebind_takes_files_of_each_sense(tmp_path):
    """From file to embedding with tiny random towers whose input sizes are the published ones."""
    sizes = {f"{tower}_num_blocks": 1 for tower in ("vision", "text", "audio", "depth", "thermal", "imu")}
    widths = {f"{tower}_embed_dim": 48 for tower in ("vision", "text", "audio", "depth", "thermal", "imu")}
    embedder = Embedder(ImageBindEncoder(sizes | widths | {"out_embed_dim": 8}).eval())
    sound = tmp_path / "tone.wav"
    import numpy as np
    import soundfile
    from PIL import Image

    soundfile.write(sound, np.sin(np.arange(12_000) / 9).astype(np.float32), 8000)
    depth, thermal, imu = tmp_path / "depth.png", tmp_path / "thermal.png", tmp_path / "imu.npy"
    rows = np.arange(120 * 160).reshape(120, 160)
    Image.fromarray((500 + rows % 4000).astype(np.uint16)).save(depth)
    Image.fromarray((rows % 256).astype(np.uint8)).save(thermal)
    np.save(imu, np.random.default_rng(0).normal(size=(6, 1200)).astype(np.float32))
    frames = np.random.default_rng(0).integers(0, 256, (12, 32, 48, 3), dtype=np.uint8)
    film = tmp_path / "film.mp4"
    write_film(film, frames)
    for modality, source in {
        "image": DEMO,
        "video": film,
        "text": "a dog barking",
        "audio": sound,
        "depth": depth,
        "thermal": thermal,
    }.items():
        row = embedder.embed(**{modality: source})
        assert row.shape == (1, 8), modality
        torch.testing.assert_close(row.norm(), torch.tensor(1.0), msg=modality)
    with pytest.raises(MediaError, match="rate"):
        embedder.embed(imu=imu)


def write_film(path, frames):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=6)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
