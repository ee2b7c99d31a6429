"""Rows of text and JSON files, one at a time, bounded in length, with what cannot be read named in their place."""

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from bindlm.errors import ConfigError
from bindlm.training.data.bad_rows import BadRow, BadRowError, LeftOut, shown
from bindlm.training.data.files import DataFile
from bindlm.training.data.sample import Sample

MAX_ROW = 16 << 20
"""Bytes of a line, and characters of an item of a JSON list: the longest document of MMC4 has a tenth of it."""
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Row:
    """One row as its file has it."""

    file: str
    """Name of the data file."""
    number: int
    """Line of a text file, else place in the file, counted from 1."""
    content: Any
    """What the row holds."""

    @property
    def id(self) -> str:
        """Unique within the source, and says where the row stands: `train.json:17`."""
        return f"{self.file}:{self.number}"

    def bad(self, reason: str) -> BadRow:
        """This row as a bad one."""
        return BadRow(self.file, self.number, reason, shown(self.content))


Outcome = Sample | BadRow | LeftOut
"""What a reader makes of a row."""


def samples_of(rows: Iterable[Row | BadRow], make: Callable[[Row], Iterable[Sample | LeftOut]]) -> Iterator[Outcome]:
    """Turn rows into samples; a row of which `make` raises `BadRowError` is a bad row, whole."""
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        try:
            made = list(make(row))
        except BadRowError as error:
            yield row.bad(str(error))
        else:
            yield from made


def lines_of(file: DataFile, *, keeps_blank: bool = False) -> Iterator[Row | BadRow]:
    """Lines without their ends; blank ones are passed over, unless they are kept.

    Bytes that are no UTF-8 come through as lone surrogates, so that only the row whose text holds them is bad.
    """
    with file.open() as stream:
        number = 0
        while line := stream.readline(MAX_ROW + 1):
            number += 1
            if len(line) > MAX_ROW:
                while line and not line.endswith(b"\n"):
                    line = stream.readline(_CHUNK)
                yield BadRow(file.label, number, f"line longer than {MAX_ROW >> 20} MiB")
                continue
            text = line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode("utf-8", "surrogateescape")
            text = text.rstrip("\r\n")
            if text or keeps_blank:
                yield Row(file.label, number, text)


def json_rows(file: DataFile) -> Iterator[Row | BadRow]:
    """Objects of a JSON list or of a file with one object a line.

    Raises:
        ConfigError: The file is neither.
    """
    with file.open() as stream:
        start = stream.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"["):
        rows = _list_items(file)
    elif start.startswith(b"{"):
        rows = _json_lines(file)
    else:
        raise ConfigError(f"{file.path} is neither a list of JSON objects nor one JSON object a line.")
    for row in rows:
        if isinstance(row, Row) and not isinstance(row.content, dict):
            row = row.bad("not a JSON object")
        yield row


def json_document(file: DataFile, max_bytes: int = 4 << 30) -> dict[str, Any]:
    """A file that is one JSON object.

    Raises:
        ConfigError: It is not, or is larger than `max_bytes`.
    """
    if file.path.stat().st_size > max_bytes:
        raise ConfigError(f"{file.path} has more than {max_bytes >> 30} GiB, which is too much for one JSON object.")
    try:
        with file.open() as stream:
            document = json.loads(stream.read().removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file.path} is not valid JSON, or not whole; get it again.") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{file.path} holds no JSON object but {_kind(document)}.")
    return document


def _json_lines(file: DataFile) -> Iterator[Row | BadRow]:
    for row in lines_of(file):
        if isinstance(row, Row):
            try:
                row = Row(row.file, row.number, json.loads(row.content))
            except (ValueError, RecursionError):
                row = row.bad("invalid JSON")
        yield row


def _list_items(file: DataFile) -> Iterator[Row | BadRow]:
    """Items of a JSON list, of which never more than one and a chunk are in memory.

    `json.load` of LLaVA's 230 MB would take 1.2 GB. Behind an item that is not JSON nothing can be told apart, so the
    list ends there.
    """
    with file.open() as stream:
        window = _Window(stream)
        window.skip("[")
        number = 0
        while not window.skip_blanks().startswith("]", window.position):
            number += 1
            try:
                item = window.decode()
            except BadRowError as error:
                yield BadRow(file.label, number, str(error), shown(window.text[window.position :][:1000]))
                return
            yield Row(file.label, number, item)
            window.skip_blanks()
            if not window.skip(","):
                if not window.text.startswith("]", window.position):
                    yield BadRow(file.label, number + 1, "the list ends too early")
                return


class _Window:
    """The part of a JSON text that is being read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.text = ""
        self.position = 0
        self._decode_bytes = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._decoder = json.JSONDecoder()
        self._is_at_end = False
        self._more()
        self.text = self.text.removeprefix("\ufeff")
        self.skip_blanks()

    def skip_blanks(self) -> str:
        """Go to the next character that is not blank; return the text."""
        while True:
            rest = len(self.text)
            while self.position < rest and self.text[self.position] in " \t\r\n":
                self.position += 1
            if self.position < rest or self._is_at_end:
                return self.text
            self._more()

    def skip(self, mark: str) -> bool:
        """Go past a mark, if it is next."""
        if is_next := self.text.startswith(mark, self.position):
            self.position += len(mark)
        return is_next

    def decode(self) -> Any:
        """The value that is next.

        Raises:
            BadRowError: There is none.
        """
        size = _CHUNK
        while True:
            try:
                value, end = self._decoder.raw_decode(self.text, self.position)
            except (ValueError, RecursionError):
                if self._is_at_end or len(self.text) - self.position > MAX_ROW:
                    raise BadRowError("invalid JSON, so that the rest of the list cannot be read") from None
            else:
                if end < len(self.text) or self._is_at_end:  # a number may go on in the next chunk
                    self.position = end
                    return value
            self._more(size)
            size *= 2  # else an item of n chunks would be parsed n times

    def _more(self, size: int = _CHUNK) -> None:
        data = self.stream.read(size)
        self._is_at_end = not data
        self.text = self.text[self.position :] + self._decode_bytes.decode(data, final=not data)
        self.position = 0


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"a {type(value).__name__}"
