"""What the encoders cost: items a second, peak memory, and the share of the machine's matrix-multiply ceiling.

    .venv/bin/python benchmarks/encoders.py                          # every tower of ImageBind, fp32
    .venv/bin/python benchmarks/encoders.py --towers image --dtypes float32 bfloat16
    .venv/bin/python benchmarks/encoders.py --folder 500             # a folder of pictures against the encoder alone

Weights are random, sizes are the published ones. Each row runs in a process of its own, so that its peak memory is its
own. The ceiling is the best rate, in the same process, dtype and minute, of plain matrix products: a large square one
and those of the tower's own MLP. Floating-point operations are counted from the sizes: 24 T D^2 + 4 T^2 D a block.
"""

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ceiling import best_of, matmul_ceiling

from bindlm.encoders.imagebind import ImageBindConfig, ImageBindEncoder
from bindlm.encoders.imagebind_config import TOWER_OF

SENSES = ("image", "text", "audio", "depth", "thermal", "imu")
INPUTS = {
    "image": (3, 224, 224),
    "audio": (1, 128, 204),
    "depth": (1, 224, 224),
    "thermal": (1, 224, 224),
    "imu": (6, 2000),
}
TOKENS = {"image": 257, "text": 77, "audio": 229, "depth": 197, "thermal": 197, "imu": 251}


def tower_flops(sense: str, config: ImageBindConfig) -> float:
    """Floating-point operations of one item."""
    tower, tokens = TOWER_OF[sense], TOKENS[sense]
    width, blocks = getattr(config, f"{tower}_embed_dim"), getattr(config, f"{tower}_num_blocks")
    keys: float = tokens if tower in ("vision", "text") else tokens + 1
    if sense == "text":
        keys = (tokens + 1) / 2  # causal: half of the products are needed
    return blocks * (24 * tokens * width**2 + 4 * tokens * keys * width)


def measure_tower(sense: str, dtype_name: str, batch: int, repeats: int, threads: int, results: Any) -> None:
    """One row, in a process of its own."""
    torch.set_num_threads(threads)
    dtype = getattr(torch, dtype_name)
    config = ImageBindConfig()
    baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.device("meta"):
        encoder = ImageBindEncoder(config, [sense])
    encoder = encoder.to(dtype).to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in encoder.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_(std=0.02)
    if sense == "text":
        values = torch.randint(1, config.text_vocab_size, (batch, config.text_context_length))
    else:
        values = torch.randn(batch, *INPUTS[sense]).to(dtype)
    width = getattr(config, f"{TOWER_OF[sense]}_embed_dim")
    with torch.inference_mode():
        encoder.encode(sense, values)  # warm up
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - baseline) / 1024
        seconds, ceilings = [], [matmul_ceiling(batch * TOKENS[sense], width, 4 * width, dtype)]
        for _ in range(repeats):  # alternating, so that a drifting machine favours neither
            seconds.append(best_of(lambda: encoder.encode(sense, values), 1))
            ceilings.append(matmul_ceiling(batch * TOKENS[sense], width, 4 * width, dtype, repeats=2))
    weights = sum(tensor.nbytes for tensor in encoder.state_dict().values()) / 2**20
    rate = batch * tower_flops(sense, config) / min(seconds)
    results.put((batch / statistics.median(seconds), peak, weights, rate, max(ceilings)))


def towers(options: argparse.Namespace) -> None:
    """The table of towers."""
    print("| tower | dtype | batch | items a second | peak MiB (weights) | GFLOP/s | ceiling | share |")
    print("|---|---|---|---|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
    for sense in options.towers:
        for dtype in options.dtypes:
            for batch in options.batches:
                results = context.Queue()
                arguments = (sense, dtype, batch, options.repeats, options.threads, results)
                process = context.Process(target=measure_tower, args=arguments)
                process.start()
                items, peak, weights, rate, ceiling = results.get()
                process.join()
                print(
                    f"| {sense} | {dtype} | {batch} | {items:.2f} | {peak:.0f} ({weights:.0f}) | {rate / 1e9:.0f} "
                    f"| {ceiling / 1e9:.0f} | {rate / ceiling:.0%} |",
                    flush=True,
                )


def folder(options: argparse.Namespace) -> None:
    """Embedding a folder of pictures against the encoder alone on values that lie ready."""
    import numpy as np
    from PIL import Image

    from bindlm.embedding import Embedder, load_embedder

    torch.set_num_threads(options.threads)
    if options.folder_encoder == "mini":
        embedder = load_embedder()
    else:
        sizes = ImageBindConfig(vision_num_blocks=options.folder_blocks)
        embedder = Embedder(ImageBindEncoder(sizes, ["image"]).eval())
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        paths = []
        for number in range(options.folder):
            # Photographs in size and smoothness: noise at an eighth of the resolution, enlarged.
            small = generator.integers(0, 256, (60, 80, 3), dtype=np.uint8)
            path = Path(place, f"{number}.jpg")
            Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
            paths.append(path)
        values = torch.stack([embedder.preprocess("image", path) for path in paths[: options.batches[-1]]])
        embedder.encode("image", values)  # warm up

        def alone() -> None:
            for _ in range(0, options.folder, len(values)):
                embedder.encode("image", values)

        seconds_alone = best_of(alone, 1)
        start = time.perf_counter()
        embedder.embed(image=paths, batch_size=len(values))
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        for path in paths[:50]:
            embedder.preprocess("image", path)
        decoding = (time.perf_counter() - start) / min(50, len(paths))
    print(
        f"{options.folder_encoder}, {options.folder} pictures of 640 x 480: encoder alone "
        f"{options.folder / seconds_alone:.2f} a second, folder {options.folder / seconds:.2f} a second, ratio "
        f"{seconds_alone / seconds:.3f}; decoding takes {decoding * 1e3:.0f} ms a picture"
    )


def main() -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", nargs="+", default=list(SENSES), choices=SENSES)
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=int, metavar="PICTURES", help="measure a folder in place of the towers")
    parser.add_argument("--folder-encoder", default="imagebind", choices=["imagebind", "mini"])
    parser.add_argument("--folder-blocks", type=int, default=32, help="blocks of ImageBind's vision tower")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {options.threads} threads\n")
    folder(options) if options.folder else towers(options)


if __name__ == "__main__":
    main()
