"""Training the bridge at SmolLM2-135M size: this project's loop against a plainly written one, in one run.

    .venv/bin/python benchmarks/training.py    # features given, then encoded in the plain loop
    .venv/bin/python benchmarks/training.py --dtype bfloat16 --steps 3
    .venv/bin/python benchmarks/training.py --imagebind 2    # the plain loop with ImageBind-huge, 2 samples

The plain loop does what the released code of this family does: it pads every sample to 96 tokens, computes the logits
of all positions in fp32, and, if it is not given features, encodes each picture in each step. Both train the same
weights on the same samples in the same steps, so their losses are held against each other. Each runs in a process of
its own, so that its peak memory is its own; the first step is not counted.

The ceiling is the best rate of plain matrix products of the decoder's shapes in the same process and type. Operations
are counted for tokens that are no padding: forward 2 and backward 2 a weight of the frozen decoder, whose own
gradients are not made; 6 a weight of the bridge for each sample; 4 a weight of the head for each target; 8 x width
for each pair of tokens.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ceiling import matmul_ceiling
from PIL import Image
from torch import Tensor

WORDS = (
    "a the of on in with red small old wooden dog cat boat house tree street table two people man woman standing "
    "riding holding near water mountain sky field white black bicycle horse train kitchen window beach snow flowers"
).split()
MAX_TOKENS = 96
LEARNING_RATE = 4e-4


def write_data(folder: Path, count: int) -> None:
    """Pictures of noise, and captions as long as those of CC3M: about ten words, 3 to 25."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.gamma(4.0, 2.6, count).round(), 3, 25).astype(int)
    lines = ["image\tcaption\n"]
    for number, length in enumerate(lengths):
        noise = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((320, 240)).save(folder / f"{number}.jpg")
        lines.append(f"{number}.jpg\t{' '.join(random.choice(WORDS, length))}\n")
    (folder / "captions.tsv").write_text("".join(lines), encoding="utf-8")


def prepared(folder: Path, options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """The mini with a new bridge, its embedder, and the data of the run."""
    import bindlm
    from bindlm.embedding import load_embedder
    from bindlm.injections import AdditiveInjection
    from bindlm.training.data.sources import open_source
    from bindlm.training.features.extract import extract_features
    from bindlm.training.samples import TrainingData
    from bindlm.training.stage_recipe import FeaturesConfig, PromptConfig, SourceConfig, TuningConfig
    from bindlm.tuning.stages import prepare_stage

    model = bindlm.load()
    torch.manual_seed(0)
    for module in model.bridge.modules():
        if isinstance(module, torch.nn.Linear):
            module.reset_parameters()
    assert isinstance(model.injection, AdditiveInjection)
    torch.nn.init.constant_(model.injection.gate, 0.1)
    model.cache = None
    prepare_stage(model, "pretrain", TuningConfig(frozen_dtype=options.dtype))
    embedder = load_embedder()
    source = open_source(SourceConfig(format="captions", path=str(folder / "captions.tsv")))
    started = time.perf_counter()
    report = extract_features([source], embedder, FeaturesConfig(path=str(folder / "features")), progress=False)
    seconds = time.perf_counter() - started
    data = TrainingData(
        [source],
        model.processor.tokenizer,
        PromptConfig(template="alpaca", max_tokens=MAX_TOKENS),
        batch_size=options.batch_size,
        num_steps=options.steps + 1,
        row_tokens=options.row_tokens,
        store=report.store,
    )
    return model, embedder, (source, data, seconds if report.embedded else None)


def ours(folder: Path, options: argparse.Namespace, results: Any) -> None:
    """This project's loop."""
    from transformers import TrainerCallback

    from bindlm.training.trainer import fit
    from bindlm.tuning.groups import optimizer_groups

    torch.set_num_threads(options.threads)
    model, _, (_, data, encoding_seconds) = prepared(folder, options)
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    baseline = peak_mib()
    result = fit(
        model,
        data,
        output=folder / f"run-{options.dtype}",
        num_steps=options.steps + 1,
        optimizer_groups=optimizer_groups(model, learning_rate=LEARNING_RATE, weight_decay=0.05),
        schedule=lambda step: 1.0,
        log_every=1,
        save_every=10_000,
        bf16=options.dtype == "bfloat16",
        compile_layers=options.compile,
        callbacks=[Clock()],
    )
    tokens = sum(int((data[step]["media_rows"] >= 0).sum()) for step in range(1, len(data)))
    targets = sum(int((data[step]["labels"] != -100).sum()) for step in range(1, len(data)))
    samples = options.steps * options.batch_size
    seconds = times[-1] - times[1]
    text = model.config.get_text_config()
    head = text.vocab_size * text.hidden_size
    decoder = sum(p.numel() for p in model.language_model.parameters()) - head
    bridge = sum(p.numel() for p in model.bridge.parameters())
    pairs = tokens * (tokens / samples) / 2 * 8 * text.hidden_size * text.num_hidden_layers / 2
    operations = 4 * decoder * tokens + 6 * bridge * samples + 4 * head * targets + pairs
    ceiling = matmul_ceiling(
        options.row_tokens, text.hidden_size, text.intermediate_size, getattr(torch, options.dtype)
    )
    results.put(
        {
            "seconds": seconds,
            "samples": samples,
            "tokens": tokens,
            "losses": [loss for _, loss in result.losses],
            "share": operations / seconds / ceiling,
            "ceiling": ceiling,
            "peak": peak_mib(),
            "above_model": peak_mib() - baseline,
            "encoding": encoding_seconds,
            "pictures": len(data.plan.lengths),
        }
    )


def plain(folder: Path, options: argparse.Namespace, encoder: str, results: Any) -> None:
    """The plainly written loop.

    Args:
        encoder: "none" is given features; "mini" and "imagebind" encode each picture in each step.
    """
    torch.set_num_threads(options.threads)
    model, embedder, (source, data, _) = prepared(folder, options)
    encode = imagebind() if encoder == "imagebind" else embedder.encode
    preprocess = embedder.preprocess if encoder != "imagebind" else imagebind_pixels
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.05)
    pad = model.processor.tokenizer.pad_token_id
    baseline = peak_mib()
    losses, samples, started = [], 0, 0.0
    for step in range(1 if encoder == "imagebind" else options.steps + 1):
        if step == 1 or encoder == "imagebind":
            started = time.perf_counter()
        picks = data.plan.micro_batch(step)
        if encoder == "imagebind":
            picks = picks.at(range(options.imagebind))
        ids = torch.full((len(picks.samples), MAX_TOKENS), pad)
        labels = torch.full_like(ids, -100)
        for row, (read, is_target) in enumerate(data._tokens(picks)):
            tokens = read.copy()  # mapped memory, which torch warns of
            ids[row, : len(tokens)] = torch.from_numpy(tokens)
            labels[row, : len(tokens)][torch.from_numpy(is_target.copy())] = torch.from_numpy(tokens[is_target]).long()
        if encoder == "none":
            joint = data.maker.store.get(data._store_rows[picks.samples].tolist(), [0] * len(ids))
        else:
            media = [source.rows[int(number)]["media"] for number in picks.samples]
            pixels = torch.stack([preprocess("image", source.read_media(name)) for name in media])
            joint = encode("image", pixels).clone()  # made in inference mode, which autograd refuses
        with torch.autocast("cpu", torch.bfloat16, enabled=options.dtype == "bfloat16"):
            logits = model(input_ids=ids, joint_embedding=joint, use_cache=False).logits.float()
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        samples += len(ids) * (step > 0 or encoder == "imagebind")
    seconds = time.perf_counter() - started
    results.put(
        {
            "seconds": seconds,
            "samples": samples,
            "losses": losses,
            "peak": peak_mib(),
            "above_model": peak_mib() - baseline,
        }
    )


def imagebind() -> Any:
    """ImageBind-huge's vision tower with random weights, as an `encode`."""
    from bindlm.encoders.imagebind import ImageBindConfig, ImageBindEncoder

    with torch.device("meta"):
        tower = ImageBindEncoder(ImageBindConfig(), ["image"])
    tower = tower.to_empty(device="cpu").eval()
    for tensor in tower.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_(0, 0.02)

    def encode(modality: str, pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return tower.encode(modality, pixels).clone()

    return encode


def imagebind_pixels(modality: str, source: Any) -> Tensor:
    """A picture as ImageBind's loader prepares it."""
    from bindlm.encoders.imagebind import ImageBindConfig
    from bindlm.encoders.imagebind_media import preprocess

    return preprocess(modality, source, ImageBindConfig())


def peak_mib() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_process(function: Any, *arguments: Any) -> dict[str, Any]:
    """What a function puts, run in a process of its own."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=function, args=(*arguments, results))
    process.start()
    while results.empty() and process.is_alive():
        time.sleep(0.1)
    if results.empty() and process.exitcode:
        raise SystemExit(f"{function.__name__} failed")
    result: dict[str, Any] = results.get()
    process.join()
    print(f"{function.__name__}: {result['samples'] / result['seconds']:.3g} samples a second", file=sys.stderr)
    return result


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="counted optimizer steps")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--row-tokens", type=int, default=192)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--imagebind", type=int, default=0, metavar="SAMPLES", help="also encode with ImageBind-huge")
    parser.add_argument("--compile", action="store_true", help="decoder layers through torch.compile")
    parser.add_argument("--alone", action="store_true", help="this project's loop only")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, options.batch_size * (options.steps + 1))
        rows = {"bindlm, features given": in_process(ours, folder, options)}
        if not options.alone:
            rows["plain loop, features given"] = in_process(plain, folder, options, "none")
            rows["plain loop, the mini's encoder"] = in_process(plain, folder, options, "mini")
        if options.imagebind:
            rows["plain loop, ImageBind-huge"] = in_process(plain, folder, options, "imagebind")
    if options.json:
        print(json.dumps(rows))
        return
    report(rows, options)


def report(rows: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """Print what was measured."""
    first = rows["bindlm, features given"]
    rate = first["samples"] / first["seconds"]
    print(f"torch {torch.__version__}, {options.threads} threads, {options.dtype}, batch {options.batch_size}\n")
    print("| loop | samples a second | bindlm is | peak MiB | above the loaded model | last loss |")
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        own = row["samples"] / row["seconds"]
        print(
            f"| {name} | {own:.3g} | {rate / own:.2f} x | {row['peak']:.0f} | {row['above_model']:.0f} "
            f"| {row['losses'][-1]:.4f} |"
        )
    if not options.alone:
        both = zip(first["losses"], rows["plain loop, features given"]["losses"], strict=True)
        difference = max(abs(a - b) for a, b in both)
        print(f"\nlargest difference of the two losses over {options.steps + 1} steps: {difference:.1e}")
    print(
        f"\nbindlm: {first['tokens'] / first['seconds']:.0f} tokens a second, {first['share']:.0%} of the ceiling of "
        f"{first['ceiling'] / 1e9:.0f} GFLOP/s"
    )
    if first["encoding"] and not options.alone:
        each = first["encoding"] / first["pictures"]
        passes = 3
        counted = 1 / (1 / rate + each / passes)
        other = rows["plain loop, the mini's encoder"]
        print(
            f"with the mini's encoder counted once for {passes} passes: {counted:.3g} samples a second, "
            f"{counted * other['seconds'] / other['samples']:.2f} x the plain loop that encodes"
        )


if __name__ == "__main__":
    main()
