"""What each injection costs beside the plain decoder: time and memory of prefill, of a step and of training.

    .venv/bin/python benchmarks/injections.py                            # all of it, in nine minutes
    .venv/bin/python benchmarks/injections.py --threads 1 --clock cpu    # on a busy machine
    .venv/bin/python benchmarks/injections.py --models tiny --no-lora --minutes 0    # does it run?

In one process and on one decoder, every two runs of injections stand between two of the plain decoder, and each gives
a ratio to the mean of these; the median of the ratios is told, and in brackets the middle half of them. So a machine
whose speed drifts favours nobody. There are as many rounds as the minutes allow, two at least; each table says how
many. The language model is frozen. Decoders: `mini` is SmolLM2-135M, narrow and deep,
where each call from Python weighs; `wide` has the layers of a 1B model, few of them and with random weights; `tiny`
shows that all of this runs.

- prefill: a prompt, with what `generate` does once for a condition. A prefix has its soft tokens before the prompt.
- step: one further word, with a key-value cache that holds the prompt.
- training: forward, loss on the last 32 words, backward to the condition and to all that the injection trains; of the
  plain decoder, to its input.
- memory: the most that tensors made in the pass held at one moment, key-value cache or gradients included.
- LoRA: the mini as it answers about a picture, with its adapters apart and merged into the weights.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bindlm.injections import AdditiveInjection, Injection, PrefixConfig, ZeroInitAttentionConfig
from bindlm.training.rehearsal import LiveBytes

PLACEHOLDER = 4
TARGETS = 32
LEAST_ROUNDS = 2
GOALS = {"additive": 1.02, "value path": 1.03}
PHASES = ("prefill", "step", "training")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class Way:
    """A decoder with an injection on it, or with none."""

    name: str
    injection: Injection | None = None
    condition: Tensor | None = None
    """`(1, N, D_lm)`."""
    num_soft: int = 0
    """Tokens more in the text."""

    def prompt(self, ids: Tensor) -> Tensor:
        """The text with placeholders in front."""
        return torch.cat([ids.new_full((len(ids), self.num_soft), PLACEHOLDER), ids], dim=1)

    def prepared(self) -> dict[str, Tensor]:
        """What `generate` gives to every step."""
        made = None if self.injection is None else self.injection.precompute(self.condition)
        return {} if made is None else {"condition": made}

    @property
    def goal(self) -> str:
        """What the ratio should not pass, where something was promised."""
        return f"{GOALS[self.name]:.2f}" if self.name in GOALS else ""


class Budget:
    """Shares what time is left equally among what is left to measure."""

    def __init__(self, seconds: float, num_parts: int) -> None:
        self.end = time.monotonic() + seconds
        self.num_parts = num_parts

    def next_end(self) -> float:
        """When the next part should be done, on the clock of `time.monotonic`."""
        now = time.monotonic()
        share = max(0.0, self.end - now) / max(1, self.num_parts)
        self.num_parts -= 1
        return now + share


def ways(config: Any) -> list[Way]:
    """The plain decoder, then every injection, gates half open."""
    width, heads, layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers

    def condition(num_tokens: int) -> Tensor:
        return torch.randn(1, num_tokens, width, generator=torch.Generator().manual_seed(num_tokens))

    def zero_init(num_tokens: int, num_layers: int, needs_condition: bool = True) -> Injection:
        return ZeroInitAttentionConfig(
            num_heads=heads,
            hidden_dim=width,
            num_layers=num_layers,
            num_tokens=num_tokens,
            needs_condition=needs_condition,
        ).build()

    made = [
        Way("plain"),
        Way("additive", AdditiveInjection(layers, gate_bound=1.0), condition(1)),
        Way("value path", zero_init(1, layers), condition(1)),
        Way("LLaMA-Adapter V1, 10 tokens", zero_init(10, max(1, layers - 2), needs_condition=False)),
        Way("LLaMA-Adapter V2, 10 queries", zero_init(10, max(1, layers - 1)), condition(10)),
    ]
    for num_tokens in (1, 4, 32):
        prefix = PrefixConfig(placeholder_id=PLACEHOLDER, hidden_dim=width, num_tokens=num_tokens).build()
        made.append(Way(f"prefix of {num_tokens}", prefix, condition(num_tokens), num_tokens))
    for way in made:
        for gate in way.injection.gate_parameters() if way.injection is not None else ():
            torch.nn.init.constant_(gate, 0.5)
    return made


class Bench:
    """A decoder, and what is done with it.

    Args:
        language_model: frozen.
        options: of the command line.
        budget: of the whole run.
    """

    def __init__(self, language_model: Any, options: argparse.Namespace, budget: Budget) -> None:
        self.language_model = language_model.requires_grad_(False).eval()
        self.options = options
        self.budget = budget
        self.filled: dict[str, tuple[dict[str, Tensor], Any, Tensor]] = {}
        self.clock = CLOCKS[options.clock]
        generator = torch.Generator().manual_seed(0)
        vocabulary = language_model.config.vocab_size
        self.ids = torch.randint(1000, vocabulary - 1000, (1, options.prompt_tokens), generator=generator)
        phases: dict[str, Callable[[Way], float]] = {
            "prefill": self.prefill,
            "step": self.step,
            "training": self.train,
        }
        self.phases = {name: phases[name] for name in options.phases}

    @torch.inference_mode()
    def prefill(self, way: Way) -> float:
        """Seconds of one pass over the prompt."""
        ids = way.prompt(self.ids)
        start = self.clock()
        self.language_model(ids, use_cache=True, logits_to_keep=1, **way.prepared())
        return self.clock() - start

    @torch.inference_mode()
    def step(self, way: Way) -> float:
        """Seconds of some words after a prompt, whose keys and values are made the first time and kept."""
        if way.name not in self.filled:
            given = way.prepared()
            output = self.language_model(way.prompt(self.ids), use_cache=True, logits_to_keep=1, **given)
            self.filled[way.name] = (given, output.past_key_values, output.logits[:, -1:].argmax(dim=-1))
        given, past, token = self.filled[way.name]
        start = self.clock()
        for _ in range(self.options.answer_tokens):
            output = self.language_model(token, past_key_values=past, use_cache=True, **given)
            token = output.logits[:, -1:].argmax(dim=-1)
        seconds = self.clock() - start
        past.crop(-self.options.answer_tokens)
        return seconds

    def train(self, way: Way) -> float:
        """Seconds of a step of training, without the optimizer."""
        ids = way.prompt(self.ids)
        given: dict[str, Any] = {"input_ids": ids}
        if way.injection is None:
            given = {"inputs_embeds": self.language_model.get_input_embeddings()(ids).requires_grad_()}
        elif way.condition is not None:
            given["condition"] = way.condition.clone().requires_grad_()
        start = self.clock()
        logits = self.language_model(**given, use_cache=False, logits_to_keep=TARGETS + 1).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, ids[0, -TARGETS:]).backward()
        seconds = self.clock() - start
        for parameter in way.injection.parameters() if way.injection is not None else ():
            parameter.grad = None
        return seconds

    def on(self, way: Way, measure: Callable[[Way], float]) -> float:
        """A measurement with an injection put on and taken off again."""
        if way.injection is None:
            return measure(way)
        way.injection.attach_to(self.language_model)
        try:
            return measure(way)
        finally:
            way.injection.detach()

    def ratios(self, chosen: list[Way], measure: Callable[[Way], float]) -> tuple[float, dict[str, list[float]]]:
        """Median seconds of the plain decoder, and for each way its ratios to it."""
        plain, others, end = chosen[0], chosen[1:], self.budget.next_end()
        for way in chosen:
            self.on(way, measure)  # warm up
        base: list[float] = [self.on(plain, measure)]
        found: dict[str, list[float]] = {way.name: [] for way in others}
        for number in range(self.options.rounds):
            if number >= LEAST_ROUNDS and time.monotonic() > end:
                break
            for some in zip_pairs(others):
                seconds = [self.on(way, measure) for way in some]
                base.append(self.on(plain, measure))
                for way, own in zip(some, seconds, strict=True):
                    found[way.name].append(own / statistics.mean(base[-2:]))
        self.filled.clear()
        return statistics.median(base), found

    def peak(self, way: Way, measure: Callable[[Way], float]) -> int:
        """The most bytes that lived at one moment of a pass, of those that it made."""
        live = LiveBytes()
        with live:
            self.on(way, measure)
        return live.peak


def report(bench: Bench, chosen: list[Way]) -> None:
    """Print the tables of one decoder."""
    told = {}
    for phase, measure in bench.phases.items():
        told[phase] = bench.ratios(chosen, measure)
        print(
            f"{phase}: { ({name: _spread(found) for name, found in told[phase][1].items()}) }",
            file=sys.stderr,
            flush=True,
        )
    length = bench.options.prompt_tokens
    plain = "; ".join(
        f"{phase} {_milliseconds(bench, phase, base):.1f} ms, {len(found[chosen[1].name])} rounds"
        for phase, (base, found) in told.items()
    )
    print(f"plain: {plain}\n")
    print("| × plain | goal | " + " | ".join(told) + " | tokens, × plain |")
    print("|---|---|" + "---|" * len(told) + "---|")
    for way in chosen[1:]:
        cells = " | ".join(_spread(found[way.name]) for _, found in told.values())
        share = f"{(length + way.num_soft) / length:.3f}" if way.num_soft else "1"
        print(f"| {way.name} | {way.goal or ('its tokens' if way.num_soft else '')} | {cells} | {share} |")
    print("\n| memory | prefill, MB | × plain | training, MB | × plain | state that trains, KB |")
    print("|---|---|---|---|---|---|")
    least: list[int] = []
    for way in chosen:
        peaks = [bench.peak(way, measure) for measure in (bench.prefill, bench.train)]
        least = least or peaks
        parameters = list(way.injection.parameters()) if way.injection is not None else []
        state = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
        cells = " | ".join(f"{peak / 1e6:.1f} | {peak / base:.3f}" for peak, base in zip(peaks, least, strict=True))
        print(f"| {way.name} | {cells} | {state / 1e3:.1f} |")
    print(flush=True)


def zip_pairs(ways: list[Way]) -> list[list[Way]]:
    """In twos; the last may be alone."""
    return [ways[start : start + 2] for start in range(0, len(ways), 2)]


def _milliseconds(bench: Bench, phase: str, seconds: float) -> float:
    return 1e3 * seconds / (bench.options.answer_tokens if phase == "step" else 1)


def _spread(ratios: list[float]) -> str:
    """ "1.012 (1.005-1.020)": the median, and the middle half."""
    if len(ratios) < 2:
        return f"{ratios[0]:.3f}"
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"


def decoders(names: list[str]) -> Iterator[tuple[str, Any]]:
    """Each language model that is asked for, one at a time in memory."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from bindlm.checkpoints import load_language_model
    from bindlm.configuration import BindLMConfig
    from bindlm.loading import MINI

    if "mini" in names:
        reference = BindLMConfig.from_pretrained(MINI).language_model
        assert reference is not None
        yield "SmolLM2-135M: 30 layers, 576 wide", load_language_model(reference, dtype=torch.float32)[0]
    sizes = {"wide": (2048, 5632, 3, 32, 8), "tiny": (64, 128, 3, 4, 2)}
    for name in (name for name in sizes if name in names):
        width, inner, layers, heads, kv_heads = sizes[name]
        config = LlamaConfig(
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            vocab_size=8000,
        )
        yield f"random Llama: {layers} layers, {width} wide", LlamaForCausalLM(config)


def report_lora(options: argparse.Namespace, budget: Budget) -> None:
    """The mini as it answers about a picture, LoRA apart and merged into the weights, beside the same without."""
    import bindlm

    phases = [phase for phase in options.phases if phase != "training"]
    print("**The mini as it answers, LoRA on**\n")
    print("| × plain, of the same weights | " + " | ".join(phases) + " |\n|---|" + "---|" * len(phases))
    for is_merged in (False, True):
        bound: Any = bindlm.load()
        condition = bound.condition_from(torch.nn.functional.normalize(torch.randn(1, bound.encoder.dim), dim=-1))
        bound.injection.detach()
        lora = bound._lora
        language_model = bound.merge() if is_merged else bound.language_model
        bench = Bench(language_model, options, budget)
        chosen = [Way("plain"), Way("additive and LoRA", bound.injection, condition.detach())]

        def on(way: Way, measure: Callable[[Way], float], bench: Bench = bench, lora: Any = lora) -> float:
            if lora is None or way.injection is None:
                return Bench.on(bench, way, measure)
            with lora.rows(torch.tensor([True])):
                return Bench.on(bench, way, measure)

        if not is_merged:
            bench.on = on  # type: ignore[method-assign]
        cells = [_spread(bench.ratios(chosen, bench.phases[phase])[1][chosen[1].name]) for phase in phases]
        what = "merged" if is_merged else "apart"
        print(f"| additive, LoRA {what} | " + " | ".join(cells) + " |", flush=True)


def machine() -> str:
    """What it runs on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {len(names)} logical processors"


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=["mini", "wide", "tiny"], default=["mini", "wide"])
    parser.add_argument("--minutes", type=float, default=8.0, help="that rounds may take, all together")
    parser.add_argument("--rounds", type=int, default=25, help="measurements of each injection, at most")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--answer-tokens", type=int, default=8, help="words that a step is averaged over")
    parser.add_argument("--only", nargs="*", default=None, help="of the injections, those with these names")
    parser.add_argument("--phases", nargs="*", choices=PHASES, default=list(PHASES))
    parser.add_argument("--lora", action=argparse.BooleanOptionalAction, default=True, help="the mini with its LoRA")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: seconds of this process alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(
        f"{machine()}; torch {torch.__version__}, {options.threads} threads, {options.clock} clock, fp32, prompt of "
        f"{options.prompt_tokens} tokens, {options.answer_tokens} words a measured step\n"
    )
    per_model = len(options.phases) + 1  # memory takes as long as a phase
    num_lora = 2 * sum(phase != "training" for phase in options.phases) + 1 if options.lora else 0
    budget = Budget(60 * options.minutes, per_model * len(options.models) + num_lora)
    for name, language_model in decoders(options.models):
        print(f"**{name}**\n")
        chosen = ways(language_model.config)
        if options.only is not None:
            chosen = [way for way in chosen if way.injection is None or way.name in options.only]
        report(Bench(language_model, options, budget), chosen)
        budget.next_end()
    if options.lora:
        report_lora(options, budget)


if __name__ == "__main__":
    main()
