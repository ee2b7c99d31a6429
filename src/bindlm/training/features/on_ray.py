"""The extraction of features on many machines, by Ray Data: `bindlm features RECIPE --ray`.

The machine that is started on finds out which media there are and writes the store; the workers read, decode and
embed. So the data must be readable under the same paths everywhere (a shared file system), and the store's folder
only here. A worker that dies is replaced and its block embedded again; a driver that dies loses the blocks on their
way, as a killed run on one machine does.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bindlm.errors import ConfigError, MediaError
from bindlm.training.features.embed import MediaEmbedder, Row, embed_media
from bindlm.training.features.extract import Extraction, FeatureReport, extraction, note_changed
from bindlm.training.features.scan import Block, MediaSource, MediumRef
from bindlm.training.stage_recipe import FeaturesConfig, ViewsConfig

_BLOCKS_A_WORKER = 256
"""Blocks a worker is planned for at once: 2 million media of 8192 each. Between two such rounds it loads anew."""


@dataclass(frozen=True)
class Factory:
    """How another process makes an object: what is called, and with what. Both must be picklable."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()

    def __call__(self) -> Any:
        return self.function(*self.arguments)


@dataclass(frozen=True)
class _Facts:
    """What the driver keeps of an encoder."""

    name: str
    fingerprint: str
    dim: int


def extract_on_ray(
    sources: Sequence[MediaSource],
    embedder: Factory,
    config: FeaturesConfig,
    *,
    num_workers: int | None = None,
    threads: int | None = None,
    progress: bool = True,
    verify: bool = False,
) -> FeatureReport:
    """As `extract_features`, on a Ray cluster: that of RAY_ADDRESS, else one of this machine alone.

    The store has the bytes of a run on one machine, if that has the same processor and computes with as many threads.

    Args:
        sources: data sets, with different names. What reads their media must be picklable.
        embedder: makes the `bindlm.embedding.Embedder`, once a worker; with a GPU to itself where the cluster has any.
        config: where the store is, how pictures are cropped, how many media a file holds.
        num_workers: processes; None for one a GPU, or one a core without.
        threads: that a worker computes with; None for its share of the cores.
        progress: whether to show a bar on stderr, at a terminal only.
        verify: whether all files of the store are read first, and what is damaged is made anew.

    Raises:
        ConfigError: ray is missing, workers have other weights than this machine, or as `extract_features`.
        CheckpointError: the disk is full or refuses; the store is intact and goes on from there.
    """
    own: MediaEmbedder = embedder()
    facts, modalities = _Facts(own.name, own.fingerprint, own.dim), tuple(own.modalities)
    del own  # its weights are the workers' business
    readers = min(4, os.cpu_count() or 1)  # threads here, which find out what there is
    with _cluster() as ray:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        cores = int(ray.cluster_resources().get("CPU", 1))
        num_workers = num_workers or gpus or cores
        cores_each = max(1, cores // num_workers)
        worker = _WorkerSettings(
            readers=tuple(_reader(source) for source in sources),
            embedder=embedder,
            fingerprint=facts.fingerprint,
            views=config.views,
            batch_size=config.batch_size,
            threads=threads or cores_each,
            folder=os.getcwd(),
        )
        options = {"num_cpus": cores_each, "num_gpus": 1 if gpus >= num_workers else 0}
        with extraction(sources, facts, modalities, config, progress, readers, verify) as (work, blocks):
            while round_of := list(islice(blocks, _BLOCKS_A_WORKER * num_workers)):
                _embed_round(ray, work, round_of, worker, num_workers, options)
    return work.report


@contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, connected; taken down again if it was started here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError:
        raise ConfigError("--ray needs the package ray; install it with: pip install 'bindlm[ray]'") from None
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    shows = context.enable_progress_bars
    context.enable_progress_bars = False  # ours counts media, not Ray's tasks
    try:
        yield ray
    finally:
        context.enable_progress_bars = shows
        if is_ours:
            ray.shutdown()


def _embed_round(
    ray: Any,
    work: Extraction,
    blocks: Sequence[Block],
    worker: "_WorkerSettings",
    num_workers: int,
    options: Mapping[str, Any],
) -> None:
    """Embed blocks on the cluster and add each to the store as it comes."""
    held = [dict(work.ledger.held_rows(block)) for block in blocks]
    tasks = []
    for number, block in enumerate(blocks):
        todo = [at for at in range(len(block.media)) if at not in held[number]]
        if todo:
            tasks.append(_as_task(number, todo, block))
        else:
            work.ledger.add(block, held[number])
            work.advance(block.num_rows)
    if not tasks:
        return
    data = ray.data.from_items(tasks, override_num_blocks=len(tasks))
    data = data.map_batches(
        _Worker,
        fn_constructor_args=(worker,),
        batch_size=1,
        # Few tasks wait at a worker, so that the last blocks are spread over all of them.
        compute=ray.data.ActorPoolStrategy(size=min(num_workers, len(tasks)), max_tasks_in_flight_per_actor=2),
        **options,
    )
    for answer in data.iter_rows():
        if answer["error"]:
            raise ConfigError(answer["error"])
        number = int(answer["number"])
        results = {**held[number], **_results(answer, work.ledger.record.num_views, work.ledger.record.dim)}
        note_changed(work.scan, blocks[number], results)
        work.ledger.add(blocks[number], results)
        work.advance(blocks[number].num_rows)


def _as_task(number: int, todo: Sequence[int], block: Block) -> dict[str, Any]:
    """A block as Ray carries it: plain columns, nothing of ours."""
    refs = [block.media[at] for at in todo]
    return {
        "number": number,
        "modality": block.modality,
        "at": np.array(todo, dtype=np.int64).tobytes(),
        "source": np.array([ref.source for ref in refs], dtype=np.int64).tobytes(),
        "content": b"".join(ref.content for ref in refs),
        "size": np.array([ref.size for ref in refs], dtype=np.int64).tobytes(),
        "mtime_ns": np.array([ref.mtime_ns for ref in refs], dtype=np.int64).tobytes(),
        "media": json.dumps([ref.media for ref in refs]),
    }


def _results(answer: Mapping[str, Any], num_views: int, dim: int) -> dict[int, Row | str | None]:
    places = np.frombuffer(answer["at"], dtype=np.int64)
    rows = np.frombuffer(answer["embedding"], dtype=np.float16).reshape(len(places), num_views, dim)  # (N, V, D)
    results: dict[int, Row | str | None] = dict(zip(places.tolist(), rows, strict=True))
    results.update({int(at): reason for at, reason in json.loads(answer["bad"]).items()})
    return results


def _reader(source: MediaSource) -> Callable[[str], Path | bytes]:
    """What reads the media of a source, without its table where that can be parted."""
    roots = getattr(source, "_roots", None)
    return source.read_media if roots is None else roots.read


@dataclass(frozen=True)
class _WorkerSettings:
    """What a worker is made with."""

    readers: tuple[Callable[[str], Path | bytes], ...]
    embedder: Factory
    fingerprint: str
    views: ViewsConfig
    batch_size: int
    threads: int
    folder: str
    """Working folder of the driver, which relative paths are under."""


class _Worker:
    """A process that embeds blocks; its encoder is loaded once."""

    def __init__(self, settings: _WorkerSettings) -> None:
        import torch

        torch.set_num_threads(settings.threads)
        self.settings = settings
        with suppress(OSError):
            os.chdir(settings.folder)
        self.embedder: MediaEmbedder = settings.embedder()
        if torch.cuda.is_available() and (encoder := getattr(self.embedder, "encoder", None)) is not None:
            encoder.to("cuda")

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        task = {name: values[0] for name, values in batch.items()}
        answer = {"number": task["number"], "at": task["at"], "embedding": b"", "bad": "{}", "error": ""}
        if self.embedder.fingerprint != self.settings.fingerprint:
            # Told, not raised: Ray wraps what is raised in text of its own.
            answer["error"] = (
                f"A worker has loaded other weights ({self.embedder.fingerprint}) than the machine that was started "
                f"on ({self.settings.fingerprint}); give all of them the same files."
            )
        else:
            answer["embedding"], answer["bad"] = self._embed(task)
        return {name: [value] for name, value in answer.items()}

    def _read(self, source: int, media: str) -> Path | bytes:
        return self.settings.readers[source](media)

    def _embed(self, task: Mapping[str, Any]) -> tuple[bytes, str]:
        refs = _references(task)
        places = np.frombuffer(task["at"], dtype=np.int64).tolist()
        settings = self.settings
        rows = np.zeros((len(refs), settings.views.num_views, self.embedder.dim), dtype=np.float16)  # (N, V, D)
        bad: dict[int, str | None] = {}
        for order, result in embed_media(
            refs, self._read, self.embedder, settings.views, batch_size=settings.batch_size, workers=settings.threads
        ):
            if isinstance(result, np.ndarray):
                rows[order] = result
            else:
                bad[places[order]] = str(result) if isinstance(result, MediaError) else None
        return rows.tobytes(), json.dumps(bad)


def _references(task: Mapping[str, Any]) -> list[MediumRef]:
    columns = [np.frombuffer(task[name], dtype=np.int64).tolist() for name in ("source", "size", "mtime_ns")]
    contents = [task["content"][at : at + 16] for at in range(0, len(task["content"]), 16)]
    return [
        MediumRef(source, media, "", task["modality"], content, size, mtime_ns)
        for media, content, source, size, mtime_ns in zip(json.loads(task["media"]), contents, *columns, strict=True)
    ]
