"""What the injection costs: prefill and decode of the mini's language model with and without a condition.

    .venv/bin/python benchmarks/injection.py

Plain and injected runs alternate in one process on one language model, and each pair gives one ratio, so a machine
whose speed drifts does not favour either. "plain" has no hook; "injected" adds a condition at every layer (Eq. 2);
"injected + LoRA" is how the mini answers about a picture.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

import bindlm
from bindlm.injections import AdditiveInjection, find_decoder_layers


def decode(language_model: torch.nn.Module, prompt: torch.Tensor, *, num_tokens: int, **kwargs: torch.Tensor) -> float:
    """Seconds for `num_tokens` greedy steps after a prefill that is not counted."""
    with torch.inference_mode():
        output = language_model(prompt, use_cache=True, logits_to_keep=1, **kwargs)
        start = time.perf_counter()
        for _ in range(num_tokens):
            token = output.logits[:, -1:].argmax(dim=-1)
            output = language_model(token, past_key_values=output.past_key_values, use_cache=True, **kwargs)
        return time.perf_counter() - start


def prefill(language_model: torch.nn.Module, prompt: torch.Tensor, **kwargs: torch.Tensor) -> float:
    """Seconds for one pass over the prompt."""
    with torch.inference_mode():
        start = time.perf_counter()
        language_model(prompt, use_cache=True, logits_to_keep=1, **kwargs)
        return time.perf_counter() - start


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15, help="counted pairs of runs")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--answer-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = bindlm.load()
    layers = find_decoder_layers(model.language_model)
    language_model, lora = model.language_model, model._lora
    prompt = torch.randint(1000, 40_000, (1, options.prompt_tokens), generator=torch.Generator().manual_seed(0))
    condition = model.condition_from(torch.nn.functional.normalize(torch.randn(1, model.encoder.dim), dim=-1)).detach()

    def run(measure: Callable[..., float], is_injected: bool, has_lora: bool) -> float:
        model.injection.detach()
        if is_injected:
            assert isinstance(model.injection, AdditiveInjection)
            model.injection.attach(layers)
        rows = torch.tensor([True]) if has_lora else None
        assert lora is not None
        with lora.rows(rows):
            return measure(language_model, prompt, **({"condition": condition} if is_injected else {}))

    print(f"torch {torch.__version__}, {options.threads} threads, {options.pairs} pairs; medians\n")
    print("| phase | plain | injected | ratio | injected + LoRA | ratio |\n|---|---|---|---|---|---|")
    phases: dict[str, Callable[..., float]] = {
        f"prefill, {options.prompt_tokens} tokens": prefill,
        f"decode, {options.answer_tokens} tokens": partial(decode, num_tokens=options.answer_tokens),
    }
    for name, measure in phases.items():
        ways = [(False, False), (True, False), (True, True)]
        for way in ways:
            run(measure, *way)  # warm up
        rows = [[run(measure, *way) for way in ways] for _ in range(options.pairs)]
        plain, injected, adapted = (statistics.median(column) for column in zip(*rows, strict=True))
        ratios = [statistics.median(row[i] / row[0] for row in rows) for i in (1, 2)]
        print(
            f"| {name} | {plain * 1e3:.0f} ms | {injected * 1e3:.0f} ms | {ratios[0]:.3f} | {adapted * 1e3:.0f} ms "
            f"| {ratios[1]:.3f} |"
        )
        if measure is not prefill:
            print(
                f"\ntokens a second: plain {options.answer_tokens / plain:.1f}, the mini about a picture "
                f"{options.answer_tokens / adapted:.1f}"
            )


if __name__ == "__main__":
    main()
