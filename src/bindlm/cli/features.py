"""bindlm features recipes/imagebind-llm/1-pretrain.yaml features.path=features data.sources.0.path=captions.tsv"""

import os
import time
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bindlm.cli.loading import quiet_libraries, telling_licences
from bindlm.cli.options import positive_int
from bindlm.cli.output import print_json, say
from bindlm.cli.recipes import add_recipe, add_threads_and_json, read_recipe, set_threads
from bindlm.errors import ConfigError

if TYPE_CHECKING:
    from bindlm.training.features import FeatureReport
    from bindlm.training.stage_recipe import FeaturesConfig, ModelRecipe, StageRecipe

SHOWN = 20
"""Unreadable media that are said one by one; a file lists them all."""


def add_arguments(parser: ArgumentParser) -> None:
    add_recipe(parser, folder="recipes/", example="features.path=features data.sources.0.path=pairs.tsv")
    parser.add_argument(
        "--verify", action="store_true", help="read what is there first, and make anew what is damaged"
    )
    parser.add_argument("--ray", action="store_true", help="on a Ray cluster: that of RAY_ADDRESS, else this machine")
    parser.add_argument(
        "--workers", type=positive_int, metavar="N", help="with --ray: processes (one a GPU, or one a core)"
    )
    add_threads_and_json(parser, threads="all cores; with --ray a worker's share")


def run(options: Namespace) -> int:
    """Embed the media of a recipe's data, as far as they are not in its store."""
    quiet_libraries()
    if options.workers is not None and not options.ray:
        raise ConfigError("--workers goes with --ray; on this machine alone there is one process: use --threads")
    from bindlm.training.stage_recipe import StageRecipe

    recipe = read_recipe(StageRecipe, options)
    if recipe.features is None:
        raise ConfigError(f"{options.recipe} has no features; say where they are to be kept: features.path=DIR")
    started = time.monotonic()
    with telling_licences():
        report = extract(recipe, recipe.features, options)
    seconds = time.monotonic() - started
    describe(report)
    if options.json:
        print_json(as_json(report, seconds))
    return 0


def extract(recipe: "StageRecipe", config: "FeaturesConfig", options: Namespace) -> "FeatureReport":
    """Open the data and the encoder, and embed.

    Raises:
        ConfigError: data or encoder do not fit, or `--ray` is given without the package.
        CheckpointError: the weights are not to be had, or the disk is full.
    """
    import torch

    from bindlm.training.bound import recipe_embedder
    from bindlm.training.data.sources import open_source
    from bindlm.training.features import Factory, extract_features, extract_on_ray

    set_threads(options)
    sources = [open_source(source) for source in recipe.data.sources]
    if options.ray:
        embedder = Factory(recipe_embedder, (everywhere(recipe.model),))
        return extract_on_ray(
            sources, embedder, config, num_workers=options.workers, threads=options.threads, verify=options.verify
        )
    own: Any = recipe_embedder(recipe.model)
    if torch.cuda.is_available():
        own.encoder.to("cuda")
    return extract_features(sources, own, config, verify=options.verify)


def everywhere(model: "ModelRecipe") -> "ModelRecipe":
    """The recipe with a path that holds in processes with another working folder."""
    if model.start_from is None or not os.path.exists(model.start_from):
        return model
    return replace(model, start_from=os.path.abspath(model.start_from))


def describe(report: "FeatureReport") -> None:
    """Say what was done, and what could not be used."""
    store = report.store
    if report.damaged:
        say(f"{report.damaged} damaged or missing files made anew")
    left_out = f", {len(report.unreadable)} left out" if report.unreadable else ""
    say(f"{store.path}: {report.embedded} embedded, {report.reused} there already{left_out}")
    senses = ", ".join(f"{count} {sense}" for sense, count in store.modalities.items()) or "none"
    views = f" in {store.num_views} views" if store.num_views > 1 else ""
    say(f"{store.path} holds {len(store)} media ({senses}){views}, {store.num_bytes / 1e6:.1f} MB, by {store.encoder}")
    for key, reason in report.unreadable[:SHOWN]:
        say(f"left out: {key}: {reason}")
    if len(report.unreadable) > SHOWN:
        say(f"and {len(report.unreadable) - SHOWN} more: {store.unreadable_path} lists them all")


def as_json(report: "FeatureReport", seconds: float) -> dict[str, Any]:
    """What `--json` prints."""
    from bindlm import __version__

    store = report.store
    return {
        "store": str(store.path),
        "embedded": report.embedded,
        "reused": report.reused,
        "unreadable": [{"key": key, "reason": reason} for key, reason in report.unreadable],
        "damaged": report.damaged,
        "media": len(store),
        "modalities": store.modalities,
        "views": store.num_views,
        "dim": store.dim,
        "bytes": store.num_bytes,
        "encoder": store.encoder,
        "fingerprint": store.fingerprint,
        "seconds": round(seconds, 1),
        "bindlm": __version__,
    }
