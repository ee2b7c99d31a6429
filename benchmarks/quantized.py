"""What holding the mini's language model in fewer bits costs and saves: memory, speed, and how answers change.

    .venv/bin/python benchmarks/quantized.py

    .venv/bin/python benchmarks/quantized.py --media 2 --tokens 3    # does it run?

Each way is a process of its own, whose memory is told first. Then the model in fp32 is loaded beside it, the two
answer in turns, and each pair gives a ratio of times; the median is told, and in brackets the middle half. Media are
entries of the mini's own visual cache, so that no picture is decoded. All ways answer greedily; the words of fp32 are
then read by each, and its next-word logits compared with fp32's of the same base: the share of equal first choices,
the length of the difference to that of the logits (each less its mean, on which no choice depends), the divergence.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bindlm

WAYS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"dtype": "bfloat16", "trained_dtype": "float32"},
    "int8": {"quantization": "int8"},
    "int4": {"quantization": "int4"},
}
QUESTION = "What is this?"


@torch.inference_mode()
def measure(way: str, folder: Path, *, num_media: int, num_tokens: int) -> dict[str, Any]:
    """Load one way, answer, and read fp32's answers."""
    began = time.perf_counter()
    model = bindlm.load(**WAYS[way], progress=False)
    loaded = time.perf_counter() - began
    after_load = _resident_mb("VmRSS")
    messages = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    prompt: Tensor = model.processor.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    cache: Any = model.cache
    keys: Tensor = cache.keys
    media = keys[torch.linspace(0, len(keys) - 1, num_media).long()]
    timed(model, prompt, media[:1], num_tokens)  # warms up
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    weights = model.language_model.get_memory_footprint() / 2**20
    exactly: Any = model if way == "fp32" else bindlm.load(progress=False)
    timed(exactly, prompt, media[:1], num_tokens)
    pairs = [[timed(each, prompt, embedding, num_tokens) for each in (exactly, model)] for embedding in media.split(1)]
    said = torch.cat([own[2] for _, own in pairs])  # (M, T)
    if way == "fp32":
        torch.save(said, folder / "said.pt")
    reference = torch.load(folder / "said.pt", weights_only=True)
    texts = torch.cat([prompt.expand(num_media, -1), reference], dim=1)
    logits = model(input_ids=texts, joint_embedding=media).logits[:, prompt.shape[1] - 1 : -1].float()
    if way == "fp32":
        torch.save(logits, folder / "logits.pt")
    plain = torch.load(folder / "logits.pt", weights_only=True)
    centred = plain - plain.mean(dim=-1, keepdim=True)
    error = (logits - logits.mean(dim=-1, keepdim=True) - centred).norm(dim=-1) / centred.norm(dim=-1)
    exact = plain.log_softmax(dim=-1)
    divergence = (exact.exp() * (exact - logits.log_softmax(dim=-1))).sum(dim=-1).mean()
    return {
        "weights_mb": weights,
        "resident_mb": after_load,
        "peak_mb": peak,
        "load_s": loaded,
        "first_token_ms": 1e3 * statistics.median(own[0] for _, own in pairs),
        "token_ms": 1e3 * statistics.median(own[1] for _, own in pairs),
        "first_token_ratios": [own[0] / base[0] for base, own in pairs],
        "token_ratios": [own[1] / base[1] for base, own in pairs],
        "error": float(error.mean()),
        "same_answers": float((said == reference).all(dim=1).float().mean()),
        "same_next_word": float((logits.argmax(dim=-1) == exact.argmax(dim=-1)).float().mean()),
        "divergence": float(divergence),
    }


def timed(model: Any, prompt: Tensor, embedding: Tensor, num_tokens: int) -> tuple[float, float, Tensor]:
    """Seconds to the first token, seconds of each further one, and the tokens `(1, T)`."""
    options: dict[str, Any] = {"joint_embedding": embedding, "do_sample": False}
    begin = time.perf_counter()
    model.generate(prompt, max_new_tokens=1, **options)
    first = time.perf_counter() - begin
    begin = time.perf_counter()
    made = model.generate(prompt, min_new_tokens=num_tokens, max_new_tokens=num_tokens, **options)
    return first, (time.perf_counter() - begin - first) / (num_tokens - 1), made[:, prompt.shape[1] :]


def machine() -> str:
    """What it runs on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {len(names)} logical processors"


def _spread(ratios: list[float]) -> str:
    if len(ratios) < 2:
        return f"{ratios[0]:.2f}"
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def _resident_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 2**10
    return float("nan")


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=int, default=12, help="entries of the cache that are asked about")
    parser.add_argument("--tokens", type=int, default=8, help="length of each answer")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.way:
        print(json.dumps(measure(options.way, options.folder, num_media=options.media, num_tokens=options.tokens)))
        return
    print(
        f"{machine()}; torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{options.threads} threads; medians\n"
    )
    print("| base | weights | resident after load | peak | load | first token | × fp32 | each further token | × fp32 "
          "| same answer | same next token | logits differ by | divergence |\n" + "|---" * 13 + "|")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            command = [sys.executable, __file__, "--way", way, "--folder", folder, "--media", str(options.media)]
            command += ["--tokens", str(options.tokens), "--threads", str(options.threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{way} failed:\n{done.stderr}")
            row = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {way} | {row['weights_mb']:.0f} MB | {row['resident_mb']:.0f} MB | {row['peak_mb']:.0f} MB "
                f"| {row['load_s']:.1f} s | {row['first_token_ms']:.0f} ms | {_spread(row['first_token_ratios'])} "
                f"| {row['token_ms']:.0f} ms | {_spread(row['token_ratios'])} | {row['same_answers']:.0%} "
                f"| {row['same_next_word']:.1%} | {row['error']:.1%} | {row['divergence']:.4f} nats |",
                flush=True,
            )


if __name__ == "__main__":
    main()
