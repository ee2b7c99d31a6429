"""What a cache is made of: every layout gives the same rows, and what no cache can hold is named."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bindlm.caching import StoreSource, embed_pictures, open_embeddings, picture_fingerprint
from bindlm.caching import chunks as chunks_module
from bindlm.caching.arrays import numbered_files
from bindlm.caching.chunks import Rest, exactly, joined_chunks
from bindlm.caching.sources import source_kind
from bindlm.errors import CheckpointError, ConfigError

from ..fake_embedder import FakeEmbedder
from .cache_case import save_embeddings, unit, vectors


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("BINDLM_HOME", str(tmp_path_factory.mktemp("home")))


def read(source, start=0):
    """All rows of a source as one chunk."""
    return joined_chunks(list(source.chunks(start)))


def save_clip_retrieval(folder, counts, *, dtype=np.float16):
    """The layout that clip-retrieval leaves: names in Parquet, one file for each of vectors."""
    rows = save_embeddings(folder / "img_emb", counts, dtype=dtype)
    (folder / "metadata").mkdir()
    start = 0
    for number, count in enumerate(counts):
        keys = [f"{each:09}" for each in range(start, start + count)]
        columns = {
            "image_path": [f"{key}.jpg" for key in keys],
            "caption": [f"no. {key}" for key in keys],
            "key": keys,
        }
        pq.write_table(pa.table(columns), folder / "metadata" / f"metadata_{number}.parquet", row_group_size=3)
        start += count
    return rows


def test_clip_retrievals_layout_is_found_in_the_order_of_its_numbers(tmp_path):
    counts = [2, 3, 4, 5, 2, 3, 4, 5, 2, 3, 4, 5]  # img_emb_10 stands before img_emb_2 in the alphabet
    rows = save_clip_retrieval(tmp_path, counts)
    for path in (tmp_path, tmp_path / "img_emb"):
        source = open_embeddings(path)
        found = read(source)
        assert (source.num_rows, source.dim) == (42, 16)
        np.testing.assert_allclose(found.vectors, unit(rows.astype(np.float16)), atol=1e-3)
        assert found.ids[:2] == ["000000000", "000000001"]
        assert found.captions[41] == "no. 000000041"
        assert found.sources[41] == "000000041.jpg"


@pytest.mark.parametrize("start", [0, 1, 2, 4, 7, 13, 41])
def test_reading_can_begin_at_any_row(tmp_path, start, monkeypatch):
    save_clip_retrieval(tmp_path, [2, 5, 35])
    source = open_embeddings(tmp_path)
    whole, rest = read(source), read(source, start)
    assert rest.ids == whole.ids[start:]
    assert rest.captions == whole.captions[start:]
    np.testing.assert_array_equal(rest.vectors, whole.vectors[start:])


def test_parquet_with_a_column_of_embeddings_gives_the_same_as_arrays(tmp_path):
    rows = vectors(50)
    np.save(tmp_path / "all.npy", rows)
    names = {"id": [f"p{row}" for row in range(50)], "url": [f"http://x/{row}" for row in range(50)]}
    for kind in (pa.list_(pa.float32()), pa.list_(pa.float32(), 16), pa.large_list(pa.float64())):
        columns = {**names, "embedding": pa.array(rows.tolist(), kind)}
        pq.write_table(pa.table(columns), tmp_path / "all.parquet", row_group_size=7)
        found = read(open_embeddings(tmp_path / "all.parquet"), 9)
        np.testing.assert_array_equal(found.vectors, read(open_embeddings(tmp_path / "all.npy"), 9).vectors)
        assert (found.ids[0], found.sources[0], found.captions[0]) == ("p9", "http://x/9", None)


def test_rows_without_names_are_called_by_file_and_number(tmp_path):
    save_embeddings(tmp_path / "e", [2, 2])
    assert read(open_embeddings(tmp_path / "e")).ids == ["img_emb_0:0", "img_emb_0:1", "img_emb_1:0", "img_emb_1:1"]


def test_columns_can_be_named(tmp_path):
    rows = vectors(3)
    np.save(tmp_path / "a.npy", rows)
    table = pa.table({"uid": [7, 8, 9], "key": ["a", "b", "c"], "alt": ["x", None, "z"], "file": ["f", "g", "h"]})
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_embeddings(tmp_path / "a.npy", tmp_path / "a.parquet", columns=("uid", "alt", "file"))
    found = read(source)
    assert (found.ids, found.captions, found.sources) == (["7", "8", "9"], ["x", None, "z"], ["f", "g", "h"])
    with pytest.raises(ConfigError, match="no column 'nothing' for captions; it has uid, key, alt, file"):
        read(open_embeddings(tmp_path / "a.npy", tmp_path / "a.parquet", columns=(None, "nothing", None)))


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "holds NaN or infinity"), (np.inf, "holds NaN or infinity"), (0.0, "is all zeros")],
)
def test_a_row_that_points_nowhere_is_named(tmp_path, value, message):
    rows = vectors(20)
    rows[13] = value
    np.save(tmp_path / "a.npy", rows)
    with pytest.raises(ConfigError, match=rf"row 13 of .*a\.npy {message}"):
        read(open_embeddings(tmp_path / "a.npy"))


@pytest.mark.parametrize("scale", [1e-20, 1e-4, 1.0, 1e20])
def test_rows_of_any_length_come_out_at_unit_length(tmp_path, scale):
    np.save(tmp_path / "a.npy", vectors(5) * np.float32(scale))
    np.testing.assert_allclose(read(open_embeddings(tmp_path / "a.npy")).vectors, unit(vectors(5)), atol=1e-6)


def test_files_that_do_not_fit_together_are_refused(tmp_path):
    save_clip_retrieval(tmp_path, [3, 4])
    np.save(tmp_path / "img_emb" / "img_emb_1.npy", vectors(4, dim=8))
    with pytest.raises(ConfigError, match="img_emb_1.npy holds vectors of 8 numbers and .*img_emb_0.npy of 16"):
        open_embeddings(tmp_path)
    np.save(tmp_path / "img_emb" / "img_emb_1.npy", vectors(5))
    with pytest.raises(ConfigError, match=r"img_emb_1\.npy has 5 rows and .*metadata_1\.parquet has 4"):
        open_embeddings(tmp_path)
    (tmp_path / "metadata" / "metadata_1.parquet").unlink()
    with pytest.raises(ConfigError, match="2 files of vectors and 1 of metadata"):
        open_embeddings(tmp_path)


def test_files_that_are_not_what_they_are_called_are_refused(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY no array")
    np.save(tmp_path / "b.npy", vectors(5)[0])
    np.save(tmp_path / "c.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "d.npy", vectors(50))
    whole = (tmp_path / "d.npy").read_bytes()
    (tmp_path / "d.npy").write_bytes(whole[:-1])
    (tmp_path / "e.parquet").write_bytes(b"PAR1 no table")
    for name in ("a.npy", "b.npy", "c.npy", "d.npy", "e.parquet"):
        with pytest.raises(ConfigError, match=rf"{name[0]}\.{name[2:]} "):
            open_embeddings(tmp_path / name)
    pq.write_table(pa.table({"id": ["a"], "score": [1.0]}), tmp_path / "f.parquet")
    with pytest.raises(ConfigError, match="which column of .* holds the embeddings"):
        open_embeddings(tmp_path / "f.parquet")
    pq.write_table(pa.table({"embedding": [[1.0, 2.0], [1.0]]}), tmp_path / "g.parquet")
    with pytest.raises(ConfigError, match="row 1 of .* has an embedding of 1 numbers, expected 2"):
        read(open_embeddings(tmp_path / "g.parquet"))
    with pytest.raises(ConfigError, match="is not there; give a folder of pictures"):
        source_kind(tmp_path / "nothing")


def test_a_digest_tells_changed_files(tmp_path):
    save_embeddings(tmp_path / "e", [3, 3])
    before = open_embeddings(tmp_path / "e").digest()
    assert before == open_embeddings(tmp_path / "e").digest()
    save_embeddings(tmp_path / "e", [3, 4])
    assert before != open_embeddings(tmp_path / "e").digest()


def test_chunks_are_cut_anew_wherever_files_end(tmp_path, monkeypatch):
    save_embeddings(tmp_path / "e", [3, 10, 1, 20])
    source = open_embeddings(tmp_path / "e")
    whole = read(source)
    monkeypatch.setattr(chunks_module, "CHUNK_ROWS", 4)
    rest = Rest(iter(source.chunks()))
    pieces = [list(exactly(rest, rows)) for rows in (10, 0, 7, 17)]
    assert [[len(chunk.ids) for chunk in piece] for piece in pieces] == [[4, 4, 2], [], [4, 3], [4, 4, 4, 4, 1]]
    joined = joined_chunks([chunk for piece in pieces for chunk in piece])
    assert joined.ids == whole.ids
    np.testing.assert_array_equal(joined.vectors, whole.vectors)
    with pytest.raises(ConfigError, match="ended before its last row"):
        list(exactly(rest, 1))


def test_numbers_in_names_count_as_numbers(tmp_path):
    for name in ("a_10.npy", "a_9.npy", "a_010_1.npy", ".hidden_1.npy", "b.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in numbered_files(tmp_path, ".npy")] == ["a_9.npy", "a_10.npy", "a_010_1.npy"]
    with pytest.raises(ConfigError, match=r"holds no \.parquet files"):
        numbered_files(tmp_path, ".parquet")


# --- pictures and feature stores ---


class PictureEmbedder(FakeEmbedder):
    """With the fingerprint of its picture tower."""

    def fingerprint_of(self, modality):
        return f"{modality}-{self.fingerprint}"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for name, colour in (("red", (250, 0, 0)), ("deep/green", (0, 250, 0)), ("blue", (0, 0, 250))):
        Image.new("RGB", (4, 4), colour).save(folder / f"{name}.png")
    (folder / "red.txt").write_text("a red\n square")
    return folder


def test_pictures_are_embedded_with_their_captions_and_paths(photos, tmp_path):
    (photos / "broken.png").write_bytes(b"no picture")
    (photos / "same.png").write_bytes((photos / "red.png").read_bytes())
    embedder = PictureEmbedder()
    source = embed_pictures(photos, tmp_path / "work", embedder, progress=False)
    found = read(source)
    assert sorted(found.ids) == ["blue.png", "deep/green.png", "red.png"]
    row = found.ids.index("red.png")
    assert (found.captions[row], found.sources[row]) == ("a red square", str(photos / "red.png"))
    assert found.captions.count(None) == 2
    np.testing.assert_allclose(found.vectors[row], embedder.embed(image=str(photos / "red.png"))[0].numpy(), atol=1e-3)
    assert any("broken.png" in note for note in source.notes)
    assert any("1 of the pictures" in note for note in source.notes)


def test_pictures_that_are_there_are_embedded_once_and_those_that_are_gone_are_forgotten(photos, tmp_path):
    embedder = PictureEmbedder()
    first = embed_pictures(photos, tmp_path / "work", embedder, progress=False)
    assert len(embedder.seen) == 3
    again = embed_pictures(photos, tmp_path / "work", embedder, progress=False)
    assert (len(embedder.seen), again.digest()) == (3, first.digest())
    (photos / "blue.png").unlink()
    assert sorted(read(embed_pictures(photos, tmp_path / "work", embedder, progress=False)).ids) == [
        "deep/green.png",
        "red.png",
    ]


def test_a_picture_that_was_replaced_is_there_once(photos, tmp_path):
    embed_pictures(photos, tmp_path / "work", PictureEmbedder(), progress=False)
    Image.new("RGB", (4, 4), (90, 90, 90)).save(photos / "red.png")
    found = read(embed_pictures(photos, tmp_path / "work", PictureEmbedder(), progress=False))
    assert sorted(found.ids) == ["blue.png", "deep/green.png", "red.png"]
    np.testing.assert_allclose(found.vectors[found.ids.index("red.png")], 3**-0.5, atol=1e-3)


def test_a_folder_without_usable_pictures_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no pictures"):
        embed_pictures(tmp_path / "empty", tmp_path / "work", PictureEmbedder(), progress=False)
    (tmp_path / "empty" / "a.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match="none of the pictures in"):
        embed_pictures(tmp_path / "empty", tmp_path / "work", PictureEmbedder(), progress=False)
    with pytest.raises(ConfigError, match="fake takes no pictures, but audio"):
        embed_pictures(tmp_path / "empty", tmp_path / "work", PictureEmbedder(("audio",)), progress=False)


@pytest.mark.parametrize("twin", ["same.png", "a-twin.png"])
def test_a_feature_store_gives_its_pictures_and_no_other_sense(tmp_path, photos, twin):
    from bindlm.training.features import extract_features
    from bindlm.training.stage_recipe import FeaturesConfig, ViewsConfig

    class Mixed:
        name = "mixed"
        rows = (
            {"media": "a.wav", "modality": "audio"},
            {"media": "red.png", "modality": "image"},
            {"media": "blue.png", "modality": "image"},
            {"media": twin, "modality": "image"},
        )

        def read_media(self, media):
            return b"red" if media == "a.wav" else photos / media.replace(twin, "red.png")

    config = FeaturesConfig(str(tmp_path / "store"), views=ViewsConfig(num_views=3), shard_size=1)
    extract_features([Mixed()], PictureEmbedder(), config, progress=False)
    source = StoreSource(tmp_path / "store")
    found = read(source)
    first = min("mixed/red.png", f"mixed/{twin}")
    assert sorted(found.ids) == sorted(["mixed/blue.png", first])
    assert source_kind(tmp_path / "store") == "features"
    assert read(source, 1).ids == found.ids[1:]
    expected = PictureEmbedder().embed(image=str(photos / "red.png"))[0].numpy()
    np.testing.assert_allclose(found.vectors[found.ids.index(first)], expected, atol=1e-3)


def test_a_feature_store_knows_its_encoder(tmp_path, photos):
    source = embed_pictures(photos, tmp_path / "work", PictureEmbedder(), progress=False)
    assert picture_fingerprint(PictureEmbedder(), source) == "image-0123456789abcdef"
    with pytest.raises(CheckpointError, match="was made with fake .*; name the encoder that made it with --model"):
        picture_fingerprint(PictureEmbedder(fingerprint="f" * 16), source)
