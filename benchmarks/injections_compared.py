"""Four injections trained side by side on the mini's data, and how often each then names what it has not seen.

    make mini ARGS="--until pairs"               # the data and the bridge that all of them start from
    .venv/bin/python benchmarks/injections_compared.py --plot docs/injections-compared.png

Each form gets the same pairs in the same order, as many steps, the same language model (frozen), the same visual cache
and the same bind network to start from, and as many trials of learning rates, each judged by the loss on pairs that
are not trained on. Then it is trained, and asked "What is this?" about new pairs and about photographs. A run that is
killed goes on where it was; what is finished is not done again.
"""

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bindlm.bridges import BindNetwork, Bridge
from bindlm.checkpoints.state import load_state, save_state_atomic, write_text_atomic
from bindlm.evaluation.photographs import Photograph, load_photographs
from bindlm.evaluation.scoring import names_any
from bindlm.injections import build_injection, stack_media
from bindlm.training.data.sources import Source, media_key, open_source
from bindlm.training.features.store import FeatureStore
from bindlm.training.plan import Picks
from bindlm.training.recipe import load_recipe
from bindlm.training.samples import TrainingData
from bindlm.training.schedule import step_multiplier
from bindlm.training.stage_recipe import StageRecipe, TuningConfig
from bindlm.training.trainer import fit
from bindlm.tuning.groups import optimizer_groups
from bindlm.tuning.stages import prepare_stage

PLACEHOLDER = 4
"""A reserved word of SmolLM2's vocabulary (`<reponame>`), which no text here has."""
QUESTION = "What is this?"
HELD_OUT = 512
"""Pairs of each of the two files that nobody trains on: the first."""
GATED = ((5e-4, 2e-2), (1e-3, 2e-2), (1e-3, 5e-2))
UNGATED = ((5e-4, None), (1e-3, None), (2e-3, None))
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


@dataclass(frozen=True)
class Form:
    """One way into the language model."""

    injection: dict[str, Any]
    rates: tuple[tuple[float, float | None], ...]
    """Trials: learning rate of the bridge (and prompts), and of the gates."""
    num_soft: int = 0
    """Soft tokens in the text."""


def _prefix(num_tokens: int) -> Form:
    return Form({"kind": "prefix", "placeholder_id": PLACEHOLDER, "num_tokens": num_tokens}, UNGATED, num_tokens)


FORMS = {
    "additive": Form({"kind": "additive", "gate_bound": 1.0}, GATED),
    "value path": Form({"kind": "zero_init_attention", "num_tokens": 1}, GATED),
    "prefix of 1": _prefix(1),
    "prefix of 4": _prefix(4),
}


class SeveralTokens(Bridge):
    """A bind network whose first layer makes N tokens of one embedding; all its blocks serve each of them.

    The further tokens start as copies of the first, a tenth of noise added so that they can part.
    """

    def __init__(self, network: BindNetwork, num_tokens: int) -> None:
        super().__init__()
        self.config = network.config
        self.network = network
        weight = network.input.weight.detach()
        copies = weight.repeat(num_tokens - 1, 1)
        self.more = nn.Linear(weight.shape[1], copies.shape[0], bias=False)
        self.more.weight.data = copies + 0.1 * weight.std() * torch.randn_like(copies)

    def forward(self, joint_embedding: Tensor) -> Tensor:
        """`(B, D_joint)` -> `(B, N, D_lm)`."""
        network = self.network
        first = network.input(joint_embedding).unsqueeze(1)  # (B, 1, D_lm)
        others = self.more(joint_embedding).unflatten(-1, (-1, first.shape[-1]))  # (B, N - 1, D_lm)
        tokens = torch.cat([first, others], dim=1)
        for block in network.blocks:
            tokens = block(tokens)
        return network.output_norm(tokens)


class Packed(nn.Module):
    """A bound model that takes packed rows whatever its injection: soft tokens are laid out in reading order."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        head: nn.Module = self.model.get_output_embeddings()
        return head

    def forward(self, input_ids: Tensor, media_rows: Tensor, joint_embedding: Tensor, **kwargs: Any) -> Any:
        """As the bound model's."""
        placeholder = self.model.injection.placeholder_id
        if placeholder is None:
            given = {"media_rows": media_rows, "joint_embedding": joint_embedding}
            return self.model(input_ids=input_ids, **given, **kwargs)
        soft = self.model.condition_from(joint_embedding)  # (M, N, D_lm)
        pairs = zip(media_rows, input_ids == placeholder, strict=True)
        order = [numbers[is_soft].unique_consecutive().tolist() for numbers, is_soft in pairs]
        condition = stack_media([[soft[number] for number in row] for row in order])
        return self.model(input_ids=input_ids, condition=condition, **kwargs)


class WithPlaceholders(TrainingData):
    """Micro-batches in which each sample begins with so many placeholders."""

    num_soft = 0

    def _tokens(self, picks: Picks) -> list[Any]:
        ids = np.full(self.num_soft, PLACEHOLDER, np.int32)
        return [
            (np.concatenate([ids, tokens]), np.concatenate([np.zeros(self.num_soft, bool), is_target]))
            for tokens, is_target in super()._tokens(picks)
        ]


class Comparison:
    """The mini's pairs, and all that is done with a form."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.recipe = load_recipe(options.recipe, StageRecipe)
        self.start = options.mini / "0-readout"
        pairs = options.mini / "pairs" / "pretrain"
        files = [pairs / "captions.jsonl", pairs / "dialogues.json"]
        configs = [
            replace(source, path=str(file)) for source, file in zip(self.recipe.data.sources, files, strict=True)
        ]
        self.trained = [_part(open_source(config), HELD_OUT, None) for config in configs]
        self.held = [_part(open_source(config), 0, HELD_OUT) for config in configs]
        self.store_path = pairs / "features"

    def model(self, form: Form) -> Packed:
        """The mini as its first stage finds it, with another injection."""
        import bindlm

        torch.manual_seed(self.options.seed)
        model: Any = bindlm.load(str(self.start))
        model.injection.detach()
        model.injection = build_injection(model.config.get_text_config(), **form.injection)
        model.injection.attach_to(model.language_model)
        if form.num_soft:
            # The bridge gives vectors of length one a number; words have a seventh of that, and soft tokens stand
            # among words. Learning rates of this size would never get there.
            words = model.get_input_embeddings().weight
            model.bridge.output_norm.weight.data.mul_(words.pow(2).mean().sqrt())
        if form.num_soft > 1:
            model.bridge = SeveralTokens(model.bridge, form.num_soft)
        prepare_stage(model, "pretrain", TuningConfig())
        self.store = FeatureStore.open(self.store_path, fingerprint=_fingerprint(model), views=None)
        return Packed(model)

    def data(self, packed: Packed, form: Form, sources: Sequence[Source], num_steps: int) -> WithPlaceholders:
        """Micro-batches for a form; the samples are the same for each."""
        data = WithPlaceholders(
            sources,
            packed.model.processor.tokenizer,
            self.recipe.data.prompt,
            batch_size=self.options.batch_size,
            num_steps=num_steps,
            seed=self.options.seed,
            row_tokens=self.recipe.run.row_tokens,
            store=self.store,
            conditioned_template=packed.model.processor.conditioned_chat_template,
            cache=self.options.out / "tokens",
        )
        data.num_soft = form.num_soft
        return data

    def train(self, form: Form, rates: tuple[float, float | None], num_steps: int, folder: Path) -> tuple[Packed, Any]:
        """A form trained from the start, and what `fit` said."""
        packed = self.model(form)
        optimizer = self.recipe.optimizer
        groups = optimizer_groups(
            packed, learning_rate=rates[0], gate_learning_rate=rates[1], weight_decay=optimizer.weight_decay
        )
        result = fit(
            packed,
            self.data(packed, form, self.trained, num_steps),
            output=folder,
            num_steps=num_steps,
            optimizer_groups=groups,
            schedule=step_multiplier(num_steps=num_steps, warmup_steps=max(1, num_steps // 15)),
            betas=optimizer.betas,
            seed=self.options.seed,
            save_every=60,
            keep_checkpoints=1,
            log_every=min(5, num_steps),
            max_grad_norm=optimizer.max_grad_norm,
        )
        return packed.eval(), result

    @torch.no_grad()
    def held_out_loss(self, packed: Packed, form: Form, num_batches: int) -> float:
        """Mean loss of a target token over pairs that are not trained on."""
        batches = self.data(packed, form, self.held, num_batches)
        packed.eval()
        sums = [0.0, 0.0]
        for number in range(num_batches):
            batch = batches[number]
            count = int((batch["labels"] != -100).sum())
            sums[0] += count * float(packed(**batch, use_cache=False).loss)
            sums[1] += count
        return sums[0] / sums[1]

    def best_rates(self, name: str) -> tuple[tuple[float, float | None], list[dict[str, Any]]]:
        """The trial with the lowest held-out loss, and all trials."""
        form, options = FORMS[name], self.options
        path = options.out / f"{_slug(name)}-trials.json"
        if path.is_file():
            trials = json.loads(path.read_text(encoding="utf-8"))
        else:
            trials = []
            for number, rates in enumerate(form.rates):
                folder = options.out / f"{_slug(name)}-trial-{number}"
                packed, _ = self.train(form, rates, options.trial_steps, folder)
                trials.append({"rates": rates, "loss": self.held_out_loss(packed, form, options.loss_batches)})
                print(f"{name}: trial {rates}, held-out loss {trials[-1]['loss']:.3f}", file=sys.stderr, flush=True)
            write_text_atomic(path, json.dumps(trials))
        rate, gate_rate = min(trials, key=lambda trial: trial["loss"])["rates"]
        return (rate, gate_rate), trials

    def run(self, name: str) -> dict[str, Any]:
        """Trials, training and examination of one form."""
        form, options = FORMS[name], self.options
        path = options.out / f"{_slug(name)}.json"
        if path.is_file():
            done: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return done
        rates, trials = self.best_rates(name)
        started = time.process_time()
        packed, training = self.train(form, rates, options.steps, options.out / _slug(name))
        seconds = time.process_time() - started
        tokens = sum(
            len(ids)
            for data in [self.data(packed, form, self.trained, options.steps)]
            for step in range(options.steps)
            for ids, _ in data._tokens(data.plan.micro_batch(step))
        )
        model = packed.model
        report = {
            "name": name,
            "rates": rates,
            "trials": trials,
            "cpu_seconds": seconds,
            "losses": training.losses,
            "tokens": tokens,
            "trained": sum(p.numel() for p in packed.parameters() if p.requires_grad),
            "gates": sum(p.numel() for p in model.injection.parameters()),
            "held_out_loss": self.held_out_loss(packed, form, options.loss_batches),
            "pairs": self._name_pairs(model, form),
            "photographs": self._name_photographs(model, form),
        }
        write_text_atomic(path, json.dumps(report))
        return report

    def _name_pairs(self, model: Any, form: Form) -> list[dict[str, Any]]:
        """Answers about pairs that are not trained on."""
        rows = [(source, row) for source in self.held for row in source.rows]
        rows = rows[:: max(1, len(rows) // self.options.pairs)][: self.options.pairs]
        keys = [media_key(source.name, row["media"]) for source, row in rows]
        joint = self.store.get(self.store.rows_of(keys).tolist(), [0] * len(keys))
        answers = ask(model, form, joint)
        names = [_name_in(row["captions"][0] if row["captions"] else row["turns"][-1]["text"]) for _, row in rows]
        return [
            {"answer": answer, "name": name, "right": names_any(answer, [name])}
            for answer, name in zip(answers, names, strict=True)
        ]

    def _name_photographs(self, model: Any, form: Form) -> list[dict[str, Any]]:
        """Answers about photographs."""
        rows: list[Photograph] = []
        for split in self.options.splits:
            found = load_photographs(split, root=self.options.photographs, allow_missing=True)
            rows += [row for row in found if row.photo]
        rows = rows[: self.options.limit]
        path = self.options.out / "photographs.safetensors"
        if not path.is_file():
            save_state_atomic(path, {"joint_embedding": model.embed(image=[row.open() for row in rows])})
        joint = load_state(path)["joint_embedding"]
        answers = ask(model, form, joint)
        return [
            {
                "id": row.id,
                "answer": answer,
                "split": row.split,
                "right": names_any(answer, row.acceptable),
                "lenient": names_any(answer, (*row.acceptable, *row.parents)),
            }
            for row, answer in zip(rows, answers, strict=True)
        ]


@torch.inference_mode()
def ask(model: Any, form: Form, joint: Tensor, batch_size: int = 32) -> list[str]:
    """What the model says about joint embeddings `(B, D_joint)`; the question is the same for all."""
    tokenizer = model.processor.tokenizer
    prompt = model.processor.tokenize_chat([{"role": "user", "content": QUESTION}], is_conditioned=True)["input_ids"]
    prompt = torch.cat([prompt.new_full((1, form.num_soft), PLACEHOLDER), prompt], dim=1)
    answers: list[str] = []
    for some in joint.split(batch_size):
        ids = prompt.expand(len(some), -1)
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            condition=model.condition_from(some),
            max_new_tokens=24,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        answers += tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
    return [answer.strip() for answer in answers]


def _part(source: Source, start: int, stop: int | None) -> Source:
    """Some rows of a data set."""
    source.rows = source.rows.select(range(start, len(source) if stop is None else stop))
    source.fingerprint += f"-{start}-{stop}"  # or its tokens would be taken for those of the whole
    return source


def _fingerprint(model: Any) -> str:
    from bindlm.embedding import bound_embedder

    return bound_embedder(model.encoder, model.processor.image_processor).fingerprint


def _name_in(sentence: str) -> str:
    """ "This is a bighorn sheep, a kind of animal." -> "bighorn sheep"."""
    match = re.match(r"(?:This is|These are) (?:an? )?(.+?)(?:, a kind of .*)?\.$", sentence)
    assert match is not None, sentence
    return match[1]


def _slug(name: str) -> str:
    return name.replace(" ", "-")


def sign_test(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Probability of a difference at least as large as this one if both were as good; two-sided, paired."""
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    count, fewer = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(math.comb(count, k) for k in range(fewer + 1)) / 2**count)


def as_table(reports: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    first = reports[0]
    head = (
        "injection",
        "trained",
        "in the injection",
        "rates of bridge, gates",
        "tokens",
        "CPU minutes",
        "loss, new pairs",
        f"new pairs named ({len(first['pairs'])})",
        f"photographs named ({len(first['photographs'])})",
        "with parents",
        f"as good as {first['name']}, p",
    )
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for report in reports:
        right, lenient = ([row[field] for row in report["photographs"]] for field in ("right", "lenient"))
        pairs = [row["right"] for row in report["pairs"]]
        chance = sign_test([row["right"] for row in first["photographs"]], right)
        cells = (
            report["name"],
            f"{report['trained'] / 1e6:.2f} M",
            f"{report['gates']:,}",
            ", ".join(f"{rate:g}" for rate in report["rates"] if rate is not None),
            f"{report['tokens']:,}",
            f"{report['cpu_seconds'] / 60:.1f}",
            f"{report['held_out_loss']:.2f}",
            f"{sum(pairs)} ({sum(pairs) / len(pairs):.0%})",
            f"{sum(right)} ({sum(right) / len(right):.0%})",
            f"{sum(lenient)} ({sum(lenient) / len(lenient):.0%})",
            "" if report is first else f"{chance:.2g}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(reports: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss curves, and shares of right answers with the standard error of each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8), width_ratios=(3, 2), layout="constrained")
    for report, colour in zip(reports, COLOURS, strict=False):
        steps, losses = zip(*report["losses"], strict=True)
        left.plot(steps, losses, color=colour, label=report["name"], linewidth=1.5)
    left.set(xlabel="step", ylabel="training loss of a target token", yscale="log")
    left.legend(frameon=False)
    groups = {"new pairs": ("pairs", "right"), "photographs": ("photographs", "right")}
    groups["photographs,\nwith parents"] = ("photographs", "lenient")
    width = 0.8 / len(reports)
    for number, (report, colour) in enumerate(zip(reports, COLOURS, strict=False)):
        shares, errors = [], []
        for kind, field in groups.values():
            rows = [row[field] for row in report[kind]]
            share = sum(rows) / len(rows)
            shares.append(100 * share)
            errors.append(100 * math.sqrt(share * (1 - share) / len(rows)))
        places = [place + (number - (len(reports) - 1) / 2) * width for place in range(len(groups))]
        right.bar(places, shares, width, yerr=errors, color=colour, error_kw={"linewidth": 1})
    right.set(xticks=range(len(groups)), xticklabels=list(groups), ylabel="named, %", ylim=(0, 100))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Compare, print the table, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--mini", type=Path, default=Path("runs/mini"), help="what `make mini` left")
    add("--recipe", type=Path, default=Path("recipes/mini/1-pretrain.yaml"), help="prompt, optimizer and batch")
    add("--out", type=Path, default=Path("runs/injections-compared"), help="folder of the runs")
    add("--forms", nargs="+", choices=list(FORMS), default=list(FORMS))
    add("--steps", type=int, default=180)
    add("--batch-size", type=int, default=16)
    add("--trial-steps", type=int, default=12, help="of each of a form's three trials of learning rates")
    add("--loss-batches", type=int, default=8, help="batches of new pairs that a loss is taken over")
    add("--pairs", type=int, default=128, help="new pairs to name")
    add("--splits", nargs="+", default=["test"], choices=["validation", "test"], help="halves of the photographs")
    add("--limit", type=int, default=None, help="only the first N photographs")
    add("--photographs", type=Path, default=None, help="folder of the photographs")
    add("--seed", type=int, default=12)
    add("--threads", type=int, default=torch.get_num_threads())
    add("--plot", type=Path, default=None, help="picture to draw")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not (options.mini / "pairs" / "pretrain" / "done.json").is_file():
        print(f"left out: there is no {options.mini} yet; make it with `make mini`", file=sys.stderr)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) for name, value in vars(options).items() if name not in ("forms", "plot", "threads")}
    settings["forms"] = str({name: asdict(form) for name, form in FORMS.items()})
    record = options.out / "settings.json"
    if record.is_file() and json.loads(record.read_text(encoding="utf-8")) != settings:
        raise SystemExit(f"{options.out} holds a comparison with other settings; give another --out")
    write_text_atomic(record, json.dumps(settings, indent=1))
    comparison = Comparison(options)
    reports = []
    for name in options.forms:
        reports.append(comparison.run(name))
        print(as_table(reports), file=sys.stderr, flush=True)
    print(as_table(reports))
    if options.plot is not None:
        plot(reports, options.plot)


if __name__ == "__main__":
    main()
