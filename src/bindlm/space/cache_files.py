"""The open files of a visual cache on disk: vectors, names and index, each checked against the record."""

import mmap
import os
import threading
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from bindlm.errors import CheckpointError, ConfigError
from bindlm.space.cache import CacheEntry
from bindlm.space.cache_format import CacheFile, CacheIndexFile, CacheRecord, is_graph

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

_FP32_ERROR = 1e-5
"""More than a product of unit vectors of some thousand numbers is off by in fp32."""
_PARQUET_MAGIC = b"PAR1"
_READ_AT_ONCE = 4 << 20
_FAISS_HEAD = 16
"""Bytes of what every FAISS index begins with: its kind (4), its width (4) and its rows (8)."""


def damaged(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"the visual cache {folder} is damaged: {what}; get the folder again, or build it anew with: bindlm cache "
        "build (bindlm cache verify checks every byte)"
    )


def open_checked(folder: Path, file: CacheFile) -> BinaryIO:
    """One file of a cache, open for reading, once its size is what the record says.

    Raises:
        CheckpointError: it is missing, cannot be read, or was cut short.
    """
    try:
        stream = (folder / file.file).open("rb")
    except FileNotFoundError:
        raise damaged(folder, f"{file.file} is missing") from None
    except OSError:
        raise CheckpointError(f"{folder / file.file} cannot be read; check its permissions and the disk") from None
    if (size := os.fstat(stream.fileno()).st_size) != file.bytes:
        stream.close()
        raise damaged(folder, f"{file.file} has {size} bytes, expected {file.bytes}")
    return stream


class CacheValues:
    """The exact vectors of all rows, fp16, mapped or in memory.

    Raises:
        CheckpointError: a file is missing, of another size, or does not hold what the record says.
    """

    def __init__(self, folder: Path, record: CacheRecord, *, memory_map: bool) -> None:
        import numpy as np

        self._folder = folder
        self._shards = [_values(folder, file, record.dim, memory_map=memory_map) for file in record.values]
        self._starts = np.cumsum([0, *(file.rows for file in record.values)])
        self._streams = []
        if memory_map and hasattr(os, "preadv"):
            paths = (folder / file.file for file in record.values)
            self._streams = [_RowStream(path, shard) for path, shard in zip(paths, self._shards, strict=True)]

    def take(self, rows: "np.ndarray") -> "np.ndarray":
        """Rows by number `(n,)` as `(n, D_joint)` fp64 of unit length.

        Raises:
            CheckpointError: a row is not of unit length, as each was when it was written.
        """
        vectors = self._read(rows).double()
        return (vectors / self._lengths(vectors)[:, None]).numpy()

    def cosines(self, rows: "np.ndarray", query: "np.ndarray", top_k: int) -> "np.ndarray":
        """Products of rows, at unit length, and a query `(D_joint,)` fp32: `(n,)` fp32.

        Those among the ``top_k`` greatest, or so near to them that they might be, are taken in fp64 and rounded: the
        order of a sum, which a batch may change, does not show, and equal rows stay equal. For all others fp32 is
        exact enough to tell that they are not, and a quarter of the time.

        Raises:
            CheckpointError: see `take`.
        """
        import torch

        taken, target = self._read(rows), torch.from_numpy(query)
        vectors = taken.float()
        products = vectors @ target / self._lengths(vectors)
        if top_k < len(rows):
            edge = products.topk(top_k).values[-1] - _FP32_ERROR * target.norm()
            near = (products >= edge).nonzero()[:, 0]
            taken = taken[near]
        else:
            near = torch.arange(len(rows))
        exact = taken.double()
        products[near] = (exact @ target.double() / self._lengths(exact)).float()
        return products.numpy()

    def _read(self, rows: "np.ndarray") -> "Tensor":
        """Rows `(n, D_joint)` fp16, in PyTorch's hands: NumPy takes ten times as long to widen them."""
        import numpy as np
        import torch

        shards = np.searchsorted(self._starts, rows, side="right") - 1
        places = rows - self._starts[shards]
        taken = np.empty((len(rows), self._shards[0].shape[1]), dtype="<f2")
        if self._streams:
            into = taken.reshape(-1).view(np.uint8).data
            size = len(into) // max(len(rows), 1)
            where = zip(shards.tolist(), places.tolist(), strict=True)
            for number, (shard, place) in enumerate(where):
                self._streams[shard].read(place, into[number * size : (number + 1) * size])
        else:
            for shard in np.unique(shards):
                taken[shards == shard] = self._shards[shard][places[shards == shard]]
        return torch.from_numpy(taken)

    def _lengths(self, vectors: "Tensor") -> "Tensor":
        import torch

        lengths = torch.linalg.vector_norm(vectors, dim=1)
        if not bool(((lengths - 1).abs() < 0.02).all()):  # false for what is no number, too
            raise damaged(self._folder, "a vector is not of unit length")
        return lengths


class _RowStream:
    """Rows of a mapped array, read from its file instead, where the system can (POSIX).

    A row that is touched for the first time takes twice as long through a mapping, which maps its neighbourhood of 64
    KB too; in the end all of the file would count as this process's memory. Safe in threads and after a fork.
    """

    def __init__(self, path: Path, array: "np.ndarray") -> None:
        try:
            self._stream = path.open("rb")
        except OSError:
            raise damaged(path.parent, f"{path.name} is missing") from None
        self._number, self._row_bytes = self._stream.fileno(), 2 * array.shape[1]
        self._offset = getattr(array, "offset", 0)  # a file without rows is no mapping

    def read(self, row: int, into: memoryview) -> None:
        """Read one row, fp16.

        Raises:
            CheckpointError: the file has become shorter.
        """
        if os.preadv(self._number, [into], self._offset + row * self._row_bytes) != self._row_bytes:
            raise CheckpointError(f"{self._stream.name} has become shorter while it was open; get the cache again")


def _values(folder: Path, file: CacheFile, dim: int, *, memory_map: bool) -> "np.ndarray":
    import numpy as np

    with open_checked(folder, file) as stream:
        try:
            version = np.lib.format.read_magic(stream)
            if version != (1, 0):
                raise ValueError
            shape, is_fortran, kind = np.lib.format.read_array_header_1_0(stream)
        except ValueError:
            raise damaged(folder, f"{file.file} does not begin as an array does") from None
        start = stream.tell()
        if shape != (file.rows, dim) or is_fortran or kind != np.dtype("<f2"):
            raise damaged(folder, f"{file.file} holds {shape} of {kind}, expected {(file.rows, dim)} of float16")
        if file.bytes != start + 2 * file.rows * dim:
            raise damaged(folder, f"{file.file} is not as long as its rows")
        if file.rows == 0:
            return np.zeros(shape, kind)
        if not memory_map:
            return np.fromfile(stream, kind).reshape(shape)
        mapped = np.memmap(stream, kind, mode="r", offset=start, shape=shape)
        whole = getattr(mapped, "_mmap", None)
        if whole is not None and hasattr(whole, "madvise"):
            whole.madvise(mmap.MADV_RANDOM)  # neighbours lie anywhere: reading ahead would only fill memory
        return mapped


class CacheNames:
    """Ids, captions and sources, of which only the rows that are asked for are read.

    Its files are mapped from the start: a writer may remove them meanwhile, and a forked process may read them too,
    which with open files would move each other's place.

    Raises:
        CheckpointError: a file is missing, of another size, or no Parquet.
        ConfigError: pyarrow is not installed.
    """

    def __init__(self, folder: Path, record: CacheRecord) -> None:
        import importlib.util

        if record.entries and importlib.util.find_spec("pyarrow") is None:
            raise ConfigError(
                "the names of a cache's entries need pyarrow\ninstall it with: pip install 'bindlm[cache]'"
            )
        self._folder = folder
        self._files = record.entries
        self._starts = list(accumulate((file.rows for file in record.entries), initial=0))
        self._mapped = [_mapped_parquet(folder, file) for file in record.entries]
        self._tables: dict[int, Any] = {}
        self._lock = threading.Lock()

    def take(self, rows: Sequence[int]) -> list[CacheEntry]:
        """What rows are called; a row without a name has its number as id.

        Raises:
            CheckpointError: a file does not hold what the record says.
        """
        if not self._files:
            return [CacheEntry(str(row)) for row in rows]
        with self._lock:
            return [self._one(row) for row in rows]

    def _one(self, row: int) -> CacheEntry:
        shard = bisect_right(self._starts, row) - 1
        table, rest = self._table(shard), row - self._starts[shard]
        for group in range(table.num_row_groups):
            held = table.metadata.row_group(group).num_rows
            if rest < held:
                values = table.read_row_group(group, columns=["id", "caption", "source"]).slice(rest, 1).to_pylist()
                return _entry(values[0], row)
            rest -= held
        raise damaged(self._folder, f"{self._files[shard].file} lacks row {row}")

    def _table(self, shard: int) -> Any:
        if shard not in self._tables:
            import pyarrow as pa
            import pyarrow.parquet as pq

            file = self._files[shard]
            try:
                table = pq.ParquetFile(pa.BufferReader(pa.py_buffer(self._mapped[shard])))
                fits = table.metadata.num_rows == file.rows and {"id", "caption", "source"} <= set(
                    table.schema_arrow.names
                )
            except (pa.ArrowException, OSError):
                fits = False
            if not fits:
                raise damaged(self._folder, f"{file.file} does not hold the names of {file.rows} rows")
            self._tables[shard] = table
        return self._tables[shard]


def _entry(named: dict[str, Any], row: int) -> CacheEntry:
    name = named["id"]
    return CacheEntry(str(row) if name is None else name, named["caption"], named["source"])


def _mapped_parquet(folder: Path, file: CacheFile) -> mmap.mmap:
    size = len(_PARQUET_MAGIC)
    with open_checked(folder, file) as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    if len(mapped) < 2 * size or mapped[:size] != _PARQUET_MAGIC or mapped[-size:] != _PARQUET_MAGIC:
        raise damaged(folder, f"{file.file} is no Parquet file")
    return mapped


class CacheIndex:
    """The FAISS index of a cache, which names candidates; how near they are, the vectors say.

    Raises:
        CheckpointError: the file is missing, of another size, or not the index that the record describes.
    """

    def __init__(self, folder: Path, record: CacheRecord, *, memory_map: bool) -> None:
        import faiss

        self._folder = folder
        with open_checked(folder, record.index) as stream:
            _check_head(folder, record, stream.read(_FAISS_HEAD))
            if memory_map and is_graph(record.index.key):
                _read_ahead(stream)
        flags = faiss.IO_FLAG_MMAP_IFC if memory_map else 0
        try:
            self._index: Any = faiss.read_index(os.fspath(folder / record.index.file), flags)
        except (RuntimeError, MemoryError):  # a size that FAISS read from damaged bytes may be any number
            raise damaged(folder, f"FAISS cannot read {record.index.file}") from None
        # a graph's rows are all equally long, see bindlm.caching.graphs: the order by distance is that by product
        self._is_graph = is_graph(record.index.key)
        metric = faiss.METRIC_L2 if self._is_graph else faiss.METRIC_INNER_PRODUCT
        held = (self._index.d, self._index.ntotal, self._index.metric_type, self._index.is_trained)
        if held != (record.dim, record.index.rows, metric, True):
            raise damaged(folder, f"{record.index.file} is no index of these entries by inner product")
        self._set_search(folder, record.index)

    def _set_search(self, folder: Path, file: CacheIndexFile) -> None:
        """Once, here: a setting that changed during a search would meet other threads' searches."""
        import faiss

        for name, value in file.search.items():
            try:
                faiss.ParameterSpace().set_index_parameter(self._index, name, value)
            except RuntimeError:
                raise damaged(folder, f"{file.file} ({file.key}) knows no setting {name!r}") from None

    def candidates(self, queries: "np.ndarray", count: int, *, is_thorough: bool = False) -> "np.ndarray":
        """Rows that may be nearest: `(B, D_joint)` fp32 -> `(B, count)` int64, -1 where there is none.

        Args:
            is_thorough: whether an index in lists looks into each, in place of those that seem nearest, and a graph is
                walked until ``count`` rows are found.
        """
        options = {"params": self._thorough(count)} if is_thorough else {}
        return self._index.search(queries, count, **options)[1]

    def _thorough(self, count: int) -> Any:
        import faiss

        inner: Any
        if self._is_graph:
            inner = faiss.SearchParametersHNSW(efSearch=count)  # type: ignore[attr-defined]
        elif (lists := faiss.try_extract_index_ivf(self._index)) is not None:
            inner = faiss.SearchParametersIVF(nprobe=lists.nlist)  # type: ignore[call-arg]
        else:
            return None
        if isinstance(self._index, faiss.IndexPreTransform):
            return faiss.SearchParametersPreTransform(index_params=inner)  # type: ignore[call-arg]
        return inner


def _read_ahead(stream: BinaryIO) -> None:
    """Bring a file into the system's cache, from its begin to its end: FAISS looks at all edges when it opens a graph,
    and a walk at rows anywhere; page by page, both take many times as long."""
    buffer = bytearray(_READ_AT_ONCE)
    while stream.readinto(buffer):  # type: ignore[attr-defined]
        pass


def _check_head(folder: Path, record: CacheRecord, head: bytes) -> None:
    dim, rows = int.from_bytes(head[4:8], "little"), int.from_bytes(head[8:16], "little")
    if len(head) < _FAISS_HEAD or not head.startswith(b"I"):
        raise damaged(folder, f"{record.index.file} does not begin as a FAISS index does")
    if (dim, rows) != (record.dim, record.index.rows):
        raise damaged(
            folder,
            f"{record.index.file} is an index of {rows} entries of width {dim}, expected {record.index.rows} of "
            f"width {record.dim}",
        )
