"""The extraction on a local Ray cluster of two workers against the one in this process."""

import os
import signal
import sys
from pathlib import Path

import pytest

from bindlm.errors import ConfigError
from bindlm.training.features import Factory, extract_features, extract_on_ray
from bindlm.training.features.on_ray import _Worker, _WorkerSettings
from bindlm.training.stage_recipe import FeaturesConfig, ViewsConfig

from .folder_source import FolderSource, save_pictures
from .test_feature_extraction import files_of


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    ray = pytest.importorskip("ray")
    import logging

    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("BINDLM_HOME", str(tmp_path_factory.mktemp("home")))
    # Workers import neither this file nor the source beside it: they get both by value.
    for module in (sys.modules[__name__], sys.modules[FolderSource.__module__]):
        ray.cloudpickle.register_pickle_by_value(module)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield ray
    ray.shutdown()
    patch.undo()


class Colours:
    """An embedder of two layers whose weights a seed gives."""

    name, fingerprint, dim, modalities = "colours", "00112233", 8, ("image",)

    def __init__(self, fingerprint="00112233", deadly=None):
        import torch

        self.fingerprint = fingerprint
        self.deadly = deadly
        self.num_seen = 0
        self.weight = torch.randn(3 * 16, 8, generator=torch.Generator().manual_seed(0))

    def preprocess(self, modality, source, *, allow_url=False):
        import torch

        from bindlm.media import load_image

        self.num_seen += 1
        if self.deadly is not None and self.num_seen == 7 and not self.deadly.exists():  # in its first block
            self.deadly.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        picture = load_image(source).resize((4, 4))
        return torch.tensor(list(picture.tobytes()), dtype=torch.float32)

    def stream(self, modality, sources, *, batch_size=8, workers=None):
        import torch

        from bindlm.errors import MediaError

        def batches():
            batch = []
            for number, source in enumerate(sources):
                try:
                    batch.append((number, self.preprocess(modality, source)))
                except MediaError as error:
                    yield [(number, error)]
                    continue
                if len(batch) == batch_size:
                    yield batch
                    batch = []
            yield batch

        pending = {}
        following = 0
        for batch in batches():
            for number, value in batch:
                if isinstance(value, torch.Tensor):
                    value = torch.nn.functional.normalize(value @ self.weight, dim=-1)
                pending[number] = value
            while following in pending:
                yield following, pending.pop(following)
                following += 1


def sources_of(folder):
    return [FolderSource(folder)]


def on_ray(folder, config, **options):
    embedder = Factory(Colours, options.pop("arguments", ()))
    return extract_on_ray(sources_of(folder), embedder, config, num_workers=2, threads=1, progress=False, **options)


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_and_the_bytes_are_those_of_one_process(cluster, tmp_path):
    folder = save_pictures(tmp_path / "pictures", 22)
    (folder / "007.png").write_bytes(b"no picture")
    views = ViewsConfig(num_views=2)
    config = FeaturesConfig(str(tmp_path / "store"), views=views, batch_size=2, shard_size=4)
    marker = tmp_path / "killed"
    report = on_ray(folder, config, arguments=("00112233", marker))
    assert marker.exists()
    alone = FeaturesConfig(str(tmp_path / "alone"), views=views, batch_size=2, shard_size=4)
    expected = extract_features(sources_of(folder), Colours(), alone, progress=False)
    assert files_of(config.path) == files_of(alone.path)
    assert (report.embedded, report.unreadable) == (expected.embedded, expected.unreadable)
    assert [key for key, _ in report.unreadable] == ["photos/007.png"]
    again = on_ray(folder, config)  # nothing is left for a worker
    assert (again.embedded, again.reused) == (0, 21)


def test_a_worker_with_other_weights_embeds_nothing_and_says_so(tmp_path):
    folder = save_pictures(tmp_path / "pictures", 1)
    settings = _WorkerSettings(
        (FolderSource(folder).read_media,),
        Factory(Colours, ("44556677",)),
        "00112233",
        ViewsConfig(),
        2,
        1,
        str(folder),
    )
    here = os.getcwd()
    answer = _Worker(settings)({"number": [0], "at": [b""]})
    os.chdir(here)
    assert "other weights (44556677) than the machine that was started on (00112233)" in answer["error"][0]
    assert answer["embedding"] == [b""]


def test_without_ray_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    folder = save_pictures(tmp_path / "pictures", 1)
    with pytest.raises(ConfigError, match=r"pip install 'bindlm\[ray\]'"):
        on_ray(folder, FeaturesConfig(str(tmp_path / "store")))
    assert not Path(tmp_path / "store").exists()
