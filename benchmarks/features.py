"""What the feature store costs: rows read a second, extraction against the encoder alone, and the size of a picture.

    .venv/bin/python benchmarks/features.py

Reading: random batches from a memory-mapped store, against the same batches from an array in memory. Extraction: the
mini embeds the same JPEG files once through the store and once from preprocessed pictures that wait in memory, in
turns, so that a machine whose speed drifts favours neither; each pair gives one ratio. Every figure is a median.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import bindlm
from bindlm.training.features import FeatureStore, extract_features
from bindlm.training.features.digests import DigestMap, key_digest
from bindlm.training.features.keys import KeyEntry
from bindlm.training.features.ledger import Ledger
from bindlm.training.features.scan import Block, MediumRef
from bindlm.training.stage_recipe import FeaturesConfig

DIM = 1024


@dataclass(frozen=True)
class Facts:
    """Of an encoder that is not there: the reading part is about random rows."""

    name: str = "random"
    fingerprint: str = "0" * 16
    dim: int = DIM


class Pictures:
    """A data set that is a list of files."""

    name = "pictures"

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder = folder
        self.rows = [{"media": name, "modality": "image"} for name in names]

    def read_media(self, media: str) -> Path:
        return self.folder / media


def seconds(action: Callable[[], Any]) -> float:
    """What one call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def random_store(path: Path, rows: int) -> FeatureStore:
    """A store of random unit vectors with keys, written as an extraction writes it."""
    config = FeaturesConfig(str(path))
    ledger = Ledger(config, Facts())
    random = np.random.default_rng(0)
    for start in range(0, rows, config.shard_size):
        count = min(config.shard_size, rows - start)
        keys = [f"laion/{number:09}.jpg" for number in range(start, start + count)]
        contents = [key_digest(key) for key in keys]
        refs = [MediumRef(0, key, key, "image", content) for key, content in zip(keys, contents, strict=True)]
        vectors = random.standard_normal((count, 1, DIM), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        entries = [KeyEntry(key, content, 1, 1) for key, content in zip(keys, contents, strict=True)]
        ledger.add(Block("image", refs, entries), dict(enumerate(vectors.astype(np.float16))))
    ledger.finish(DigestMap())
    return FeatureStore.open(path)


def report_reading(store: FeatureStore, batch: int, repeats: int) -> None:
    """Print rows a second of random batches, and of look-ups by key."""
    random = np.random.default_rng(1)
    batches = [random.integers(0, len(store), batch) for _ in range(repeats)]
    views = [0] * batch
    in_memory = torch.from_numpy(
        np.concatenate([store._embedding(number)[:, 0] for number in range(len(store._record.shards))])
    )  # (N, D)
    mapped, array = [], []
    for rows in batches:
        mapped.append(seconds(lambda: store.get(rows.tolist(), views)))
        array.append(seconds(lambda: in_memory[torch.from_numpy(rows)].float()))
    ratio = statistics.median(other / own for own, other in zip(mapped, array, strict=True))
    rate = batch / statistics.median(mapped)
    print(f"| random batches of {batch} from {len(store):,} rows | {rate:,.0f} rows/s | {ratio:.2f} x of an array |")
    keys = [f"laion/{number:09}.jpg" for number in random.integers(0, len(store), 10_000).tolist()]
    one = seconds(lambda: [store.row_of(key) for key in keys])
    many = seconds(lambda: store.rows_of(keys))
    print(f"| row_of, rows_of | {len(keys) / one:,.0f}, {len(keys) / many:,.0f} keys/s | |")
    print(f"| opening | {seconds(lambda: FeatureStore.open(store.path)) * 1000:.0f} ms | |")
    size = sum(each.stat().st_size for each in store.path.rglob("*") if each.is_file())
    print(f"| on disk, a picture | {size / len(store):,.0f} bytes | {2 * DIM} of them the embedding |")


def save_photographs(folder: Path, count: int) -> list[str]:
    """JPEG files of 500 x 375 pixels with the detail of photographs, more or less."""
    random = np.random.default_rng(0)
    names = []
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (47, 63, 3), dtype=np.uint8))
        names.append(f"{number:05}.jpg")
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder / names[-1], quality=90)
    return names


def report_extraction(folder: Path, count: int, batch_size: int, pairs: int) -> None:
    """Print pictures a second through the store, and as a share of the encoder's own."""
    embedder = bindlm.load_embedder()
    (folder / "pictures").mkdir()
    source = Pictures(folder / "pictures", save_photographs(folder / "pictures", count))
    paths = [source.read_media(row["media"]) for row in source.rows]
    values = torch.stack([embedder.preprocess("image", path) for path in paths])
    embedder.encode("image", values[:batch_size])  # the first pass is slower
    stored, alone, again = [], [], []
    for number in range(pairs):
        config = FeaturesConfig(str(folder / f"store{number}"), batch_size=batch_size)
        stored.append(seconds(lambda: extract_features([source], embedder, config, progress=False)))
        alone.append(seconds(lambda: [embedder.encode("image", part) for part in values.split(batch_size)]))
        again.append(seconds(lambda: extract_features([source], embedder, config, progress=False)))
    ratio = statistics.median(other / own for own, other in zip(stored, alone, strict=True))
    rate = count / statistics.median(stored)
    print(f"| extraction of {count} JPEG files by the mini | {rate:,.1f} pictures/s | {ratio:.2f} x of the encoder |")
    print(f"| the same again, nothing new | {count / statistics.median(again):,.0f} pictures/s | |")


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="of the store that is read")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        print(f"| {options.threads} threads | | |\n|---|---|---|")
        report_reading(random_store(Path(scratch) / "store", options.rows), options.batch, options.repeats)
        report_extraction(Path(scratch), options.pictures, options.batch_size, options.pairs)


if __name__ == "__main__":
    main()
