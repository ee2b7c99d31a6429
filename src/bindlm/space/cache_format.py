"""What a visual cache on disk looks like: the names of its files, and the record that lists them.

    config.json              the record: sizes, encoder, settings, and each file with its bytes and its SHA-256
    index-<generation>.faiss a FAISS index of any kind, whose ids are row numbers
    values-<n>.npy           `(rows, D_joint)` fp16 of unit length: what is mixed in, and what cosines are taken from
    entries-<n>.parquet      id, caption and source of each row
    removed-<generation>.npy rows that are gone, int64, rising

Rows are counted over all shards in order and never shift: a row that is removed stays in its shard, leaves the index
(unless that is a graph, in which it stays as a waypoint), and is listed. Files never change once they are named.
`config.json` is replaced last, so that a reader sees the old cache or the new one; a file that no record names is no
part of the cache.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from bindlm.checkpoints.state import write_text_atomic
from bindlm.errors import CheckpointError, ConfigError
from bindlm.space.cache import CacheWeighting, VisualCacheConfig

MODEL_TYPE = "bindlm_visual_cache"
VERSION = 1
"""Of the layout; a later one is refused, never guessed at."""
CONFIG = "config.json"
METRIC = "inner_product"
OWN_PATTERNS = ("index-*.faiss", "values-*.npy", "entries-*.parquet", "removed-*.npy")
"""Files that a writer may make and remove; nothing else in the folder is touched."""
PULLED_SENSES = ("audio", "depth", "imu", "point", "text", "thermal", "video")
"""Every sense but image: the paper leaves pictures as they are, since a cache is made of pictures."""

_Part = TypeVar("_Part")


def index_name(generation: int) -> str:
    return f"index-{generation:06d}.faiss"


def values_name(number: int) -> str:
    return f"values-{number:06d}.npy"


def entries_name(number: int) -> str:
    return f"entries-{number:06d}.parquet"


def removed_name(generation: int) -> str:
    return f"removed-{generation:06d}.npy"


@dataclass(frozen=True)
class CacheFile:
    """One file of rows."""

    file: str
    """Its name in the folder."""
    rows: int
    """How many it holds."""
    bytes: int
    """Its size."""
    sha256: str
    """Of its content, 64 lower-case hexadecimal digits."""

    def __post_init__(self) -> None:
        if self.file != os.path.basename(self.file) or self.file.startswith(".") or "\\" in self.file or not self.file:
            raise ConfigError(f"CacheFile.file must be a plain file name, got {self.file!r}.")
        if self.rows < 0 or self.bytes < 1:
            raise ConfigError(f"{self.file}: rows must be at least 0 and bytes at least 1.")
        if len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            raise ConfigError(f"{self.file}: sha256 must be 64 hexadecimal digits, got {self.sha256!r}.")


def is_graph(key: str) -> bool:
    """Whether an index, by its `CacheIndexFile.key`, is a graph (HNSW), which rows cannot leave."""
    return any(part.startswith("HNSW") for part in key.split(","))


@dataclass(frozen=True)
class CacheIndexFile(CacheFile):
    """The FAISS index and how it is searched."""

    key: str
    """What it is, in the words of FAISS's factory, such as `IDMap2,Flat`."""
    search: dict[str, int] = field(default_factory=dict)
    """FAISS's settings of a search, such as `{"nprobe": 64}`."""
    oversampling: int = 1
    """Candidates for each neighbour wanted, from which the exact cosines choose; 1 for an index that is exact."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.oversampling < 1 or not self.key:
            raise ConfigError(f"{self.file}: a key and an oversampling of at least 1 are needed.")
        if any(value < 1 for value in self.search.values()):
            raise ConfigError(f"{self.file}: settings of a search must be at least 1, got {self.search}.")


@dataclass(frozen=True)
class CacheSettings:
    """How a cache is consulted where nobody says otherwise."""

    top_k: int = 10
    """Neighbours that count; a smaller cache gives all it has."""
    alpha: float = 0.5
    """Share of the retrieved feature, 0 to 1."""
    temperature: float = 20.0
    """Factor on the cosines before the softmax."""
    weighting: CacheWeighting = CacheWeighting.SOFTMAX
    """The released form or the paper's, see `CacheWeighting`."""
    modalities: tuple[str, ...] | None = PULLED_SENSES
    """Senses that are pulled; None for every one, pictures too."""

    def __post_init__(self) -> None:
        checked = VisualCacheConfig(num_entries=max(self.top_k, 1), dim=1, **vars(self))
        object.__setattr__(self, "weighting", checked.weighting)
        object.__setattr__(self, "modalities", checked.modalities)


@dataclass(frozen=True)
class CacheRecord:
    """What `config.json` of a cache folder says."""

    num_entries: int
    """Rows that can be found: those of all shards less those removed."""
    dim: int
    """D_joint."""
    fingerprint: str
    """Of the picture tower that made the vectors, `Embedder.fingerprint_of("image")`."""
    encoder: str
    """Its name, for messages."""
    index: CacheIndexFile
    values: tuple[CacheFile, ...]
    """Shards of vectors, in the order of their rows."""
    entries: tuple[CacheFile, ...] = ()
    """Shards of ids, captions and sources, cut like `values`; none where rows have no names."""
    removed: CacheFile | None = None
    """Rows that are gone."""
    settings: CacheSettings = field(default_factory=CacheSettings)
    notice: str | None = None
    """What a user must be told, such as a licence of the pictures."""

    def __post_init__(self) -> None:
        if self.dim < 1 or not self.values:
            raise ConfigError("A cache needs a width and at least one file of values.")
        if not self.fingerprint:
            raise ConfigError("A cache needs the fingerprint of the encoder that made its vectors.")
        if self.entries and [file.rows for file in self.entries] != [file.rows for file in self.values]:
            raise ConfigError("The files of entries must have the rows of the files of values.")
        gone = self.removed.rows if self.removed is not None else 0
        if self.num_entries != self.num_rows - gone or self.num_entries < 1:
            raise ConfigError(
                f"num_entries is {self.num_entries}, but there are {self.num_rows} rows and {gone} removed; at least "
                "one must be left."
            )
        held = self.num_rows if is_graph(self.index.key) else self.num_entries
        if self.index.rows != held:
            raise ConfigError(f"The index has {self.index.rows} rows, expected {held}.")
        if len({file.file for file in self.files()}) < len(self.files()):
            raise ConfigError("A file is named twice.")

    @property
    def num_rows(self) -> int:
        """Rows of all shards, those removed among them."""
        return sum(file.rows for file in self.values)

    def files(self) -> list[CacheFile]:
        """Every file of the cache but `config.json`."""
        removed = [] if self.removed is None else [self.removed]
        return [self.index, *self.values, *self.entries, *removed]

    def to_json(self) -> str:
        """The content of `config.json`."""
        content = {"model_type": MODEL_TYPE, "version": VERSION, "metric": METRIC, **asdict(self)}
        return json.dumps(content, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "CacheRecord":
        """Read what `to_json` wrote.

        Raises:
            ConfigError: it is something else; says what.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            raise ConfigError("it is no JSON") from None
        if not isinstance(content, dict) or content.get("model_type") != MODEL_TYPE:
            raise ConfigError("it is not that of a visual cache")
        version = content.get("version")
        if type(version) is not int or version != VERSION:
            raise ConfigError(f"it has version {version!r}, and this bindlm reads {VERSION}; update bindlm")
        if content.get("metric") != METRIC:
            raise ConfigError(f"its metric is {content.get('metric')!r}, expected {METRIC!r}")
        given = {name: value for name, value in content.items() if name not in ("model_type", "version", "metric")}
        return _record(given)


def read_record(folder: str | os.PathLike[str]) -> CacheRecord:
    """The record of a cache folder.

    Raises:
        CheckpointError: there is none, it cannot be read, it is damaged, or a later bindlm wrote it.
    """
    path = Path(folder) / CONFIG
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{folder} holds no visual cache: {CONFIG} is missing; build one with: bindlm cache build"
        ) from None
    except (OSError, UnicodeDecodeError):
        raise CheckpointError(f"{path} cannot be read; check its permissions and the disk") from None
    try:
        return CacheRecord.from_json(text)
    except ConfigError as error:
        raise CheckpointError(
            f"{path} cannot be used: {str(error).rstrip('.')}. Where it is damaged, build the cache anew"
        ) from None


def write_record(folder: str | os.PathLike[str], record: CacheRecord) -> None:
    """Make ``record`` the cache of a folder, whose files must be there already.

    Raises:
        CheckpointError: the disk is full or not writable; the cache is as it was.
    """
    write_text_atomic(Path(folder) / CONFIG, record.to_json())


def unnamed_files(folder: str | os.PathLike[str], record: CacheRecord | None) -> list[Path]:
    """Files with names of a cache's that no record names: of an older generation, or of a writer that was killed."""
    named = set() if record is None else {file.file for file in record.files()}
    found = (path for pattern in OWN_PATTERNS for path in Path(folder).glob(pattern))
    return sorted(path for path in found if path.name not in named)


def _record(content: Mapping[str, Any]) -> CacheRecord:
    _check_names(CacheRecord, content)
    parts = dict(content)
    parts["index"] = _parsed(CacheIndexFile, content.get("index"))
    for name in ("values", "entries"):
        parts[name] = tuple(_parsed(CacheFile, each) for each in _list(name, content.get(name, [])))
    if content.get("removed") is not None:
        parts["removed"] = _parsed(CacheFile, content["removed"])
    parts["settings"] = _settings(content.get("settings", {}))
    return _parsed(CacheRecord, parts)


def _settings(content: Any) -> CacheSettings:
    if isinstance(content, Mapping) and content.get("modalities") is not None:
        modalities = tuple(_list("modalities", content["modalities"]))
        content = {**content, "modalities": modalities}
    return _parsed(CacheSettings, content)


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"{name} must be a list")
    return value


def _check_names(kind: type, content: Any) -> None:
    names = [each.name for each in fields(kind)]
    if not isinstance(content, Mapping) or not set(content) <= set(names):
        surplus = f", got {', '.join(sorted(set(content) - set(names)))} too" if isinstance(content, Mapping) else ""
        raise ConfigError(f"{kind.__name__} must have the fields {', '.join(names)}{surplus}")


def _parsed(kind: type[_Part], content: Any) -> _Part:
    """``kind(**content)``, once each field is known to be of its type."""
    _check_names(kind, content)
    described = fields(kind)  # type: ignore[arg-type]
    for each in described:
        if each.name in content and not _fits(each.type, content[each.name]):
            raise ConfigError(f"{kind.__name__}.{each.name} cannot be {content[each.name]!r}")
    try:
        return kind(**content)
    except TypeError:
        names = ", ".join(each.name for each in described)
        raise ConfigError(f"{kind.__name__} lacks a field of {names}") from None


def _fits(kind: Any, value: Any) -> bool:
    if kind is int:
        return type(value) is int
    if kind is float:
        return type(value) in (int, float)
    if kind in (str, CacheWeighting):
        return isinstance(value, str)
    if kind == str | None:
        return value is None or isinstance(value, str)
    if kind == dict[str, int]:
        return isinstance(value, dict) and all(type(each) is int for each in value.values())
    if kind == tuple[str, ...] | None:
        return value is None or all(isinstance(each, str) for each in value)
    return True  # parsed by itself
