"""What a feature store writes down about itself: `store.json`, and how its files are named and checked."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bindlm.checkpoints.state import write_text_atomic
from bindlm.errors import CheckpointError, ConfigError
from bindlm.training.stage_recipe import ViewsConfig

FORMAT = 1
"""Of `store.json` and the files it names; another one is refused, never guessed at."""
STORE_FILE, SHARDS, KEYS, UNREADABLE_FILE = "store.json", "shards", "keys", "unreadable.jsonl"
AGAIN = "run `bindlm features RECIPE`"
"""What mends a store that lacks something."""
MEND = "run `bindlm features RECIPE --verify`, which embeds anew what is damaged"
"""What mends a store whose bytes are not those that were written."""


@dataclass(frozen=True)
class FileRecord:
    """A file of the store."""

    file: str
    """Path under the store's folder, with `/`."""
    rows: int
    """Embeddings of a shard, keys of a key file or of the index."""
    num_bytes: int
    checksum: int
    """CRC-32: against a bad disk or a half-made copy, not against an enemy."""


@dataclass(frozen=True)
class ShardRecord(FileRecord):
    """A file of embeddings."""

    modality: str
    is_open: bool
    """Whether it holds fewer media than a file may: further media are added by writing a longer one in its place."""


@dataclass
class StoreRecord:
    """The content of `store.json`."""

    encoder: str
    """What messages call it."""
    fingerprint: str
    """Of its weights and preprocessing; embeddings of two never mix."""
    dim: int
    """D_joint."""
    views: dict[str, Any]
    """As `describe_views` gives it."""
    shards: list[ShardRecord] = field(default_factory=list)
    keys: list[FileRecord] = field(default_factory=list)
    """Later files win where a key is in two."""
    index: FileRecord | None = None
    """None until an extraction has ended. It counts rows through the shards in their order here, so while one goes
    on shards are only added at the end."""

    @property
    def num_views(self) -> int:
        """V."""
        return int(self.views["num_views"])

    def check(self, path: Path, *, fingerprint: str | None, name: str, views: dict[str, Any] | None) -> None:
        """Refuse a store of another encoder or of other views.

        Raises:
            ConfigError: it does not fit.
        """
        other = "name another features.path, or delete the folder, and " + AGAIN
        if fingerprint is not None and fingerprint != self.fingerprint:
            raise ConfigError(
                f"The feature store {path} was made with another encoder ({self.encoder}, {self.fingerprint}; this is "
                f"{name or 'unnamed'}, {fingerprint}): {other}."
            )
        if views is not None and views != self.views:
            raise ConfigError(
                f"The feature store {path} was made with other views ({_words(self.views)}; the recipe has "
                f"{_words(views)}): {other}."
            )

    def write(self, path: Path) -> None:
        """Replace `store.json`: the moment from which a file that is there belongs to the store.

        Raises:
            CheckpointError: the disk refuses; the old one is as it was.
        """
        modalities: dict[str, int] = {}
        for shard in self.shards:
            modalities[shard.modality] = modalities.get(shard.modality, 0) + shard.rows
        content = {
            "format": FORMAT,
            "dtype": "float16",
            "modalities": modalities,
            **dataclasses.asdict(self),
        }
        write_text_atomic(path / STORE_FILE, json.dumps(content, indent=1))


def _words(views: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in views.items())


def describe_views(views: ViewsConfig) -> dict[str, Any]:
    """The settings that embeddings depend on: of a single view, which is not cropped, only their number."""
    if views.num_views == 1:
        return {"num_views": 1}
    return {
        "num_views": views.num_views,
        "scale": list(views.scale),
        "ratio": list(views.ratio),
        "seed": views.seed,
    }


def read_record(path: Path) -> StoreRecord | None:
    """The record of the store in a folder, or None where there is none.

    Raises:
        CheckpointError: it is damaged or of another version.
    """
    damaged = CheckpointError(
        f"the feature store {path} is damaged: {STORE_FILE} is not what was written; delete the folder, and {AGAIN}"
    )
    try:
        content = json.loads((path / STORE_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        raise CheckpointError(f"{path / STORE_FILE} cannot be read; check its permissions and the disk") from None
    except (ValueError, RecursionError):
        raise damaged from None
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise damaged
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"the feature store {path} has format {content['format']}, and this bindlm reads {FORMAT}; name another "
            f"features.path, or delete the folder, and {AGAIN}"
        )
    try:
        return _parse(content)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise damaged from None


def _parse(content: dict[str, Any]) -> StoreRecord:
    record = StoreRecord(
        **{name: content[name] for name in ("encoder", "fingerprint", "dim", "views")},
        shards=[ShardRecord(**shard) for shard in content["shards"]],
        keys=[FileRecord(**keys) for keys in content["keys"]],
        index=FileRecord(**content["index"]) if content["index"] is not None else None,
    )
    files = [*record.shards, *record.keys, *([record.index] if record.index else [])]
    is_sound = (
        isinstance(record.encoder, str)
        and isinstance(record.fingerprint, str)
        and type(record.dim) is int
        and record.num_views >= 1
        and all(type(number) is int for each in files for number in (each.rows, each.num_bytes, each.checksum))
        # A record from elsewhere must not be able to name files outside of the folder.
        and all(not Path(each.file).is_absolute() and ".." not in Path(each.file).parts for each in files)
    )
    if not is_sound:
        raise ValueError
    return record


def is_whole(path: Path, record: FileRecord) -> bool:
    """Whether a file is there and as long as it was written; what it holds is not read."""
    try:
        return (path / record.file).stat().st_size == record.num_bytes
    except OSError:
        return False
