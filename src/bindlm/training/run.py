"""One stage of training, from a recipe to a folder with the model: what `bindlm train` calls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bindlm.embedding import Embedder, bound_embedder
from bindlm.errors import CheckpointError, ConfigError
from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.training.batches import Embeddings
from bindlm.training.bound import adopt_prompt, encoder_name, media_places, recipe_model
from bindlm.training.captions_callback import CaptionCallback, caption_pictures
from bindlm.training.checkpointing import full_state
from bindlm.training.data.sources import Source, media_key, open_source
from bindlm.training.features.extract import extract_features
from bindlm.training.features.scan import media_of
from bindlm.training.features.store import FeatureStore
from bindlm.training.plan import num_micro_batches
from bindlm.training.processes import is_first_process, num_processes
from bindlm.training.recipe import plain
from bindlm.training.record import write_record
from bindlm.training.samples import TrainingData
from bindlm.training.schedule import step_multiplier
from bindlm.training.stage_recipe import FeaturesConfig, OptimizerConfig, StageRecipe
from bindlm.training.streamed import StreamedData
from bindlm.training.trainer import TrainResult, fit
from bindlm.training.watch import watch_callbacks
from bindlm.tuning.groups import optimizer_groups
from bindlm.tuning.parameter_table import parameter_table
from bindlm.tuning.stages import prepare_stage

Say = Callable[[str], None]
MODEL_FOLDER = "model"
"""Where in a run's folder the trained model is."""


@dataclass(frozen=True)
class StageResult:
    """What a stage left."""

    output: Path
    """The run's folder."""
    model: Path | None
    """Folder of the trained model; None where the run was interrupted."""
    training: TrainResult
    """Steps, losses and the last checkpoint."""


def train_stage(recipe: StageRecipe, *, is_fresh: bool = False, say: Say | None = None) -> StageResult:
    """Run a stage, or go on with it where its folder holds checkpoints.

    Features that are not there yet are made first. The folder then holds `recipe.yaml` and `run.json` (all that
    repeats the run), `metrics.jsonl`, `loss.png`, checkpoints, and in `model/` the result.

    Args:
        recipe: of the stage.
        is_fresh: begin again in spite of checkpoints.
        say: takes lines of progress; None is silent.

    Raises:
        ConfigError: a setting is impossible, or the folder holds a run of another recipe.
        CheckpointError: weights cannot be had, or the disk is full.
        TrainingError: the loss is not finite.
    """
    tell = say if say is not None and is_first_process() else _silent
    sources = open_sources(recipe)
    for source in sources:
        if source.bad.count:
            tell(f"{source.name}: {source.bad.count} bad rows left out, kept aside in {source.bad.kept_aside}")
    model = recipe_model(recipe.model, seed=recipe.run.seed, progress=is_first_process())
    adopt_prompt(model, recipe.data.prompt)
    embedder = _embedder(recipe, sources, model)
    store = open_features(recipe, sources, embedder, tell) if embedder is not None else None
    if store is not None:
        _leave_out_unreadable(sources, store, tell)
    torch.manual_seed(recipe.run.seed)  # of the adapters' first matrices
    prepare_stage(model, recipe.stage, recipe.tuning)
    data, accumulation = training_data(recipe, sources, model, store, _zero_image(recipe, embedder))
    if isinstance(data, TrainingData):
        tell(data.describe())
    for line in str(parameter_table(model)).splitlines():
        tell(line)
    if is_first_process():
        write_record(recipe, sources, encoder_fingerprint=embedder.fingerprint if embedder is not None else None)
    training = _fit(recipe, sources, model, data, accumulation, resume=not is_fresh)
    if training.is_interrupted:
        return StageResult(recipe.output, None, training)
    folder = recipe.output / MODEL_FOLDER
    state = full_state(model, model.saved_names())
    if is_first_process():
        model.eval().save_pretrained(folder, state_dict=state)
    return StageResult(recipe.output, folder, training)


def open_sources(recipe: StageRecipe) -> list[Source]:
    """The recipe's data sets; rows that cannot be used go aside into the run's folder.

    Raises:
        ConfigError: a data set is missing or has no usable row, or two have one name.
    """
    sources: list[Source] = []
    for config in recipe.data.sources:
        aside = recipe.output / "bad_rows" / f"{len(sources)}.jsonl"
        sources.append(open_source(config, bad_rows=aside if is_first_process() else None))
    names = [source.name for source in sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"Two data sets are called {twice[0]!r}; give each a name of its own: data.sources.0.name=…")
    return sources


def open_features(recipe: StageRecipe, sources: Sequence[Source], embedder: Embedder, say: Say) -> FeatureStore:
    """The embeddings of the data's media; what is missing is made first.

    Raises:
        ConfigError: the store is of another encoder or other views.
        CheckpointError: the disk is full.
    """
    config = _features_config(recipe)

    def opened() -> FeatureStore:
        return FeatureStore.open(config.path, fingerprint=embedder.fingerprint, views=config.views, name=embedder.name)

    if is_first_process():
        try:
            store = opened()
            is_whole = not _lacks_media(store, sources)
        except CheckpointError:
            is_whole = False
        if not is_whole:
            say(f"embedding the media of {', '.join(source.name for source in sources)} into {config.path}")
            report = extract_features(sources, embedder, config)
            say(f"{report.embedded} embedded, {report.reused} there already, {len(report.unreadable)} not readable")
    _wait_for_all()
    return opened()


def _lacks_media(store: FeatureStore, sources: Sequence[Source]) -> bool:
    """Whether data were added, or files changed, since the store was made."""
    known = store.unreadable()
    for source in sources:
        keys = (media_key(source.name, media) for media, _ in media_of(source.rows) if media is not None)
        while batch := list(islice(keys, 10_000)):
            if any(row < 0 and key not in known for row, key in zip(store.rows_of(batch), batch, strict=True)):
                return True
    return bool(store.stale(sources))


def _leave_out_unreadable(sources: Sequence[Source], store: FeatureStore, say: Say) -> None:
    """Take samples out whose medium no encoder can read; one torn file must not stop a run over millions."""
    known = store.unreadable()
    for source in sources:
        prefix = media_key(source.name, "")
        if media := {key.removeprefix(prefix) for key in known if key.startswith(prefix)}:
            source.leave_out(media)
            say(f"{source.name}: samples of {len(media)} unreadable media left out; {store.unreadable_path}")


def training_data(
    recipe: StageRecipe,
    sources: Sequence[Source],
    model: BindLMForConditionalGeneration,
    store: Embeddings | None,
    zero_image: Tensor | None = None,
) -> tuple[TrainingData | StreamedData, int]:
    """Micro-batches of the run, and how many a device takes for one optimizer step.

    Args:
        recipe: of the stage.
        sources: its data sets, opened; if one of them streams, all are read as streams.
        model: whose tokenizer and templates samples are rendered with.
        store: embeddings of the media; None where there are none.
        zero_image: `(D_joint,)`, for `prompt.zero_image_for_text`.

    Raises:
        ConfigError: streaming without `optimizer.num_steps`, media without embedding, or nothing to learn.
    """
    optimizer, num_devices = recipe.optimizer, num_processes()
    num_micro = num_micro_batches(optimizer.batch_size, optimizer.micro_batch_size, num_devices)
    settings: dict[str, Any] = {
        "batch_size": optimizer.batch_size,
        "num_micro": num_micro,
        "num_steps": optimizer.num_steps,
        "seed": recipe.run.seed,
        "packing": recipe.run.packing,
        "row_tokens": recipe.run.row_tokens,
        "store": store,
        "zero_image": zero_image,
        "conditioned_template": _conditioned_template(recipe, model),
        "places": media_places(model),
    }
    tokenizer, prompt = model.processor.tokenizer, recipe.data.prompt
    if any(source.config.streaming for source in sources):
        _check_streaming(optimizer)
        return StreamedData(sources, tokenizer, prompt, **settings), num_micro // num_devices
    data = TrainingData(
        sources,
        tokenizer,
        prompt,
        num_epochs=optimizer.num_epochs,
        order=optimizer.order,
        split_epoch=optimizer.split_epoch,
        cache=recipe.output / "tokens",
        **settings,
    )
    return data, num_micro // num_devices


def _conditioned_template(recipe: StageRecipe, model: BindLMForConditionalGeneration) -> str | None:
    """The template that questions with a medium will be asked in; the model keeps it."""
    return model.processor.conditioned_chat_template if recipe.data.prompt.template == "chat" else None


def _check_streaming(optimizer: OptimizerConfig) -> None:
    """A stream has no end and no order to choose."""
    if optimizer.num_steps is None or optimizer.warmup_epochs is not None or optimizer.order != "shuffled":
        raise ConfigError(
            "Nobody knows how long a streamed data set is: set optimizer.num_steps and warmup_steps in place of "
            "num_epochs and warmup_epochs, and leave optimizer.order at shuffled."
        )


def _fit(
    recipe: StageRecipe,
    sources: Sequence[Source],
    model: BindLMForConditionalGeneration,
    data: TrainingData | StreamedData,
    accumulation: int,
    *,
    resume: bool,
) -> TrainResult:
    optimizer, run = recipe.optimizer, recipe.run
    assert data.num_steps is not None
    return fit(
        model,
        data,
        output=recipe.output,
        num_steps=data.num_steps,
        accumulation=accumulation,
        optimizer_groups=optimizer_groups(
            model,
            learning_rate=optimizer.learning_rate,
            weight_decay=optimizer.weight_decay,
            gate_learning_rate=optimizer.gate_learning_rate,
            gate_weight_decay=optimizer.gate_weight_decay,
        ),
        schedule=_schedule(optimizer, data.num_steps, getattr(data, "steps_per_epoch", 0.0)),
        betas=optimizer.betas,
        seed=run.seed,
        save_every=run.save_every,
        keep_checkpoints=run.keep_checkpoints,
        log_every=run.log_every,
        bf16=run.bf16,
        gradient_checkpointing=run.gradient_checkpointing,
        compile_layers=run.compile,
        max_grad_norm=optimizer.max_grad_norm,
        callbacks=watch_callbacks(recipe.output, captions=_captions(recipe, model), title=str(recipe.output)),
        report_to=run.report_to,
        trainer_arguments=run.trainer,
        identity=_identity(recipe, sources),
        resume=resume,
    )


def _schedule(optimizer: OptimizerConfig, num_steps: int, steps_per_epoch: float) -> Callable[[int], float]:
    warmup: float = optimizer.warmup_steps
    if optimizer.warmup_epochs is not None:
        warmup = optimizer.warmup_epochs * steps_per_epoch
    return step_multiplier(
        num_steps=num_steps, warmup_steps=warmup, min_ratio=optimizer.min_learning_rate / optimizer.learning_rate
    )


def _captions(recipe: StageRecipe, model: BindLMForConditionalGeneration) -> CaptionCallback | None:
    run = recipe.run
    if not run.caption_pictures:
        return None
    question = run.caption_question or recipe.data.prompt.caption_instruction or "What is this?"
    prompt = model.processor.tokenize_chat([{"role": "user", "content": question}], is_conditioned=True)
    return CaptionCallback(
        caption_pictures(model, run.caption_pictures),
        prompt["input_ids"][0],
        model.processor.tokenizer,
        folder=recipe.output,
        every=run.caption_every,
    )


def _identity(recipe: StageRecipe, sources: Sequence[Source]) -> dict[str, Any]:
    """What a result depends on beyond what `fit` sees; how a run is watched and kept is not part of it."""
    content = plain(recipe)
    run = {name: content["run"][name] for name in ("packing", "row_tokens", "seed")}
    optimizer = {name: value for name, value in content["optimizer"].items() if name != "micro_batch_size"}
    prompt = content["data"]["prompt"]
    features = content["features"] and content["features"]["views"]
    data = {source.name: [source.fingerprint, source.config.weight] for source in sources}
    return {
        "stage": content["stage"],
        "model": content["model"],
        "data": data,
        "prompt": prompt,
        "views": features,
        "optimizer": optimizer,
        "tuning": content["tuning"],
        "run": run,
    }


def _embedder(
    recipe: StageRecipe, sources: Sequence[Source], model: BindLMForConditionalGeneration
) -> Embedder | None:
    """The encoder in front of the features, or None where no sample has a condition."""
    has_media = any(media is not None for source in sources for media, _ in media_of(source.rows))
    if not has_media and not recipe.data.prompt.zero_image_for_text:
        return None
    embedder = bound_embedder(model.encoder, model.processor.image_processor)
    embedder.name = encoder_name(recipe.model)
    return embedder


def _features_config(recipe: StageRecipe) -> FeaturesConfig:
    if recipe.features is None:
        raise ConfigError("The data have media, so the recipe must say where their features are kept: features.path=…")
    return recipe.features


def _zero_image(recipe: StageRecipe, embedder: Embedder | None) -> Tensor | None:
    """Embedding of a picture that is zero after preprocessing, as the release makes it, `(D_joint,)`."""
    if embedder is None or not recipe.data.prompt.zero_image_for_text:
        return None
    import numpy as np

    pixels = embedder.preprocess("image", np.zeros((224, 224, 3), dtype=np.uint8))
    return embedder.encode("image", torch.zeros_like(pixels)[None])[0]


def _wait_for_all() -> None:
    if num_processes() > 1:
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()


def _silent(line: str) -> None:
    """For those who do not watch."""
