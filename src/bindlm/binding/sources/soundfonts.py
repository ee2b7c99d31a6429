"""Labelled sounds out of General-MIDI soundfonts: any number of clips of named instruments and some effects.

The fonts are recordings of instruments, under the MIT licence; `tinysoundfont` (MIT) plays them without any system
library. `sound_voices.tsv` says which program of which font is which thing, over which notes it is played, and how.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from bindlm.binding.sources.sound_room import in_a_room
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
from bindlm.checkpoints.debian import fetch_debian_package
from bindlm.checkpoints.state import write_text_atomic
from bindlm.errors import CheckpointError

TABLE = Path(__file__).parent / "sound_voices.tsv"
RATE_HZ = 44100
CLIPS_OF_A_LABEL = 80
FONTS = {
    "fluid-gm": ("fluid-soundfont-gm", "usr/share/sounds/sf2/FluidR3_GM.sf2"),
    "fluid-gs": ("fluid-soundfont-gs", "usr/share/sounds/sf2/FluidR3_GS.sf2"),
    "musescore": ("musescore-general-soundfont", "usr/share/sounds/sf3/MuseScore_General_Full.sf3"),
}
"""Name in `sound_voices.tsv` -> Debian package and path in it. MuseScore's font shares most of its samples with
Fluid's, so it is asked only for what differs: pianos, harp, solo strings, sections."""
_KIT = 128
"""Bank whose programs are drum kits: each note is another instrument."""
_SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9), (0, 3, 5, 6, 7, 10), tuple(range(12)))
_CHORDS = ((0, 4, 7), (0, 3, 7), (0, 7), (0, 4, 7, 10), (0, 3, 7, 12), (0, 5, 9), (0, 12), (0, 4, 7, 12, 16))
_SILENT = 1e-4


@dataclass(frozen=True)
class Voice:
    """One program of one font."""

    label: str
    font: str
    """One of `FONTS`."""
    bank: int
    program: int
    notes: tuple[int, ...]
    """MIDI notes that the instrument has."""
    play: str
    """How, a letter each: `s`ingle notes, `m`elodies, `c`hords, single `h`its, `r`hythms, `e`ffects as recorded."""
    weight: int
    """Share of its label's clips."""

    @property
    def id(self) -> str:
        """`fluid-gm-0-40`, with the first and the last note for instruments of a drum kit."""
        note = f"-{self.notes[0]}-{self.notes[-1]}" if self.bank == _KIT else ""
        return f"{self.font}-{self.bank}-{self.program}{note}"


def load_voices(table: Path = TABLE) -> list[Voice]:
    """The voices, in the order of the table."""
    with table.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [
        Voice(
            row["label"],
            row["font"],
            int(row["bank"]),
            int(row["program"]),
            _notes(row["notes"]),
            row["play"],
            int(row["weight"]),
        )
        for row in rows
    ]


def _notes(text: str) -> tuple[int, ...]:
    first, dash, last = text.partition("-")
    return tuple(range(int(first), int(last) + 1)) if dash else tuple(int(note) for note in text.split(","))


def shares(voices: list[Voice], clips: int = CLIPS_OF_A_LABEL) -> dict[Voice, int]:
    """How many clips each voice gets: `clips` for each label, split by weight (rounded, at least one)."""
    total: dict[str, int] = defaultdict(int)
    for voice in voices:
        total[voice.label] += voice.weight
    return {voice: max(1, round(clips * voice.weight / total[voice.label])) for voice in voices}


@dataclass(frozen=True)
class Note:
    """One key that goes down and up again."""

    key: int
    start: float
    """Seconds."""
    end: float
    """Seconds."""
    velocity: int
    """1 to 127."""


def compose(voice: Voice, seconds: float, random: np.random.Generator) -> list[Note]:
    """What the voice plays in one clip."""
    play = str(random.choice(list(voice.play)))
    velocity = int(random.integers(45, 121))
    start = float(random.uniform(0, 0.15))
    if play in "sh":
        key = int(random.choice(voice.notes))
        end = seconds if random.random() < 0.3 else start + float(random.uniform(0.4, 1)) * (seconds - start) * 0.9
        return [Note(key, start, end, velocity)]
    if play == "e":
        return [Note(int(random.choice(voice.notes)), start, seconds, int(random.integers(90, 121)))]
    if play == "r":
        return _rhythm(voice, start, seconds, velocity, random)
    if play == "c":
        return _chords(voice, start, seconds, velocity, random)
    return _melody(voice, start, seconds, velocity, random)


def _melody(voice: Voice, start: float, seconds: float, velocity: int, random: np.random.Generator) -> list[Note]:
    """A walk over a scale, in a part of the instrument's range."""
    root = int(random.choice(voice.notes))
    scale = _SCALES[int(random.integers(len(_SCALES)))]
    steps = [key for key in voice.notes if (key - root) % 12 in scale]
    at = steps.index(root)
    beat = float(np.exp(random.uniform(np.log(0.12), np.log(0.7))))
    touch = float(random.uniform(0.5, 1.05))
    notes: list[Note] = []
    time = start
    while time < seconds - 0.1:
        length = beat * float(random.choice((0.5, 1, 1, 1, 2)))
        loud = int(np.clip(velocity + random.normal(0, 8), 25, 127))
        notes.append(Note(steps[at], time, min(time + touch * length, seconds), loud))
        at = int(np.clip(at + random.choice((-4, -2, -1, -1, 0, 1, 1, 2, 4)), 0, len(steps) - 1))
        time += length
    return notes


def _chords(voice: Voice, start: float, seconds: float, velocity: int, random: np.random.Generator) -> list[Note]:
    """One to five chords, together or broken."""
    count = int(random.integers(1, 6))
    spread = float(random.choice((0, 0, 0.02, 0.08)))
    length = (seconds - start) / count
    notes = []
    for number in range(count):
        root = int(random.choice(voice.notes))
        chord = _CHORDS[int(random.integers(len(_CHORDS)))]
        keys = [root + step for step in chord if root + step in voice.notes]
        begin, end = start + number * length, start + (number + random.uniform(0.6, 1)) * length
        for place, key in enumerate(keys):
            notes.append(Note(key, min(begin + place * spread, end - 0.02), end, velocity))
    return notes


def _rhythm(voice: Voice, start: float, seconds: float, velocity: int, random: np.random.Generator) -> list[Note]:
    """Strokes on a grid, some left out, on one or more of the notes."""
    keys = random.choice(voice.notes, size=min(len(voice.notes), int(random.integers(1, 4))), replace=False)
    beat = float(np.exp(random.uniform(np.log(0.1), np.log(0.6))))
    notes: list[Note] = []
    for time in np.arange(start, seconds - 0.1, beat):
        if random.random() < 0.75 or not notes:
            loud = int(np.clip(velocity + random.normal(0, 12), 25, 127))
            notes.append(Note(int(random.choice(keys)), float(time), min(float(time) + beat, seconds), loud))
    return notes


class Player:
    """A soundfont that is loaded once and played many times."""

    def __init__(self, font: Path) -> None:
        self._synth, self._font = _open(font)

    def play(self, voice: Voice, notes: list[Note], seconds: float, pan: float = 0.5) -> np.ndarray:
        """Play notes, without effects.

        Args:
            voice: which program.
            notes: what it plays.
            seconds: length of the clip; what still sounds is faded out over the last 50 ms.
            pan: share of the left channel in the single one that comes out.

        Returns:
            float32 `(S,)` at `RATE_HZ`.
        """
        self._synth.sounds_off(0)
        # The font is asked for kits by bank 128, not by channel.
        self._synth.program_select(0, self._font, voice.bank, voice.program)
        events = [(note.end, 0, note) for note in notes] + [(note.start, 1, note) for note in notes]
        pieces, done = [], 0
        for time, down, note in sorted(events, key=lambda event: event[:2]):
            until = min(round(time * RATE_HZ), round(seconds * RATE_HZ))
            pieces.append(self._samples(until - done))
            done = until
            if down:
                self._synth.noteon(0, note.key, note.velocity)
            else:
                self._synth.noteoff(0, note.key)
        pieces.append(self._samples(round(seconds * RATE_HZ) - done))
        both = np.concatenate(pieces)
        clip = both[:, 0] * pan + both[:, 1] * (1 - pan)
        fade = RATE_HZ // 20
        clip[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
        return clip

    def _samples(self, count: int) -> np.ndarray:
        """Float32 `(count, 2)`: the next samples."""
        if count <= 0:
            return np.zeros((0, 2), np.float32)
        return np.frombuffer(bytes(self._synth.generate(count)), np.float32).reshape(-1, 2)


def _open(font: Path) -> tuple[Any, Any]:
    """A synthesizer, and its number for the font."""
    try:
        tinysoundfont = import_module("tinysoundfont")
    except ImportError as error:
        raise CheckpointError(
            "playing a soundfont needs tinysoundfont, which is not installed. Run `pip install --no-deps "
            "tinysoundfont` (its other dependency, pyaudio, is for loudspeakers only)."
        ) from error
    synth = tinysoundfont.Synth(samplerate=RATE_HZ)
    try:
        return synth, synth.sfload(str(font))
    except Exception as error:  # the binding raises RuntimeError and its own
        raise CheckpointError(f"{font} is no readable soundfont; get its package again") from error


def render_clip(player: Player, voice: Voice, number: int) -> np.ndarray | None:
    """Clip `number` of a voice: the same at every call. None where the font has nothing on any of the notes tried.

    Returns:
        float32 `(S,)` at `RATE_HZ`, two to four seconds.
    """
    random = np.random.default_rng([*voice.id.encode(), number])
    for _ in range(5):
        seconds = float(random.uniform(2, 4))
        dry = player.play(voice, compose(voice, seconds, random), seconds, pan=float(random.uniform(0.2, 0.8)))
        if np.abs(dry).max() > _SILENT:
            return in_a_room(dry, RATE_HZ, random)
    return None


def encode_flac(clip: np.ndarray) -> bytes:
    """A clip `(S,)` in -1 to 1 as a 16-bit FLAC file."""
    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, clip, RATE_HZ, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def clips(
    folder: Path, fonts: dict[str, Path], voices: list[Voice], of_a_label: int
) -> Iterator[dict[str, str] | Skipped]:
    """Write all clips below `folder` and give the row of each; those that are there already are not made again."""
    count = shares(voices, of_a_label)
    for name, font in fonts.items():
        player: Player | None = None
        for voice in (each for each in voices if each.font == name):
            for number in range(count[voice]):
                file = folder / "clips" / voice.label.replace(" ", "_") / f"{voice.id}-{number:03d}.flac"
                if not is_there(file):
                    player = player or Player(font)
                    clip = render_clip(player, voice, number)
                    if clip is None:
                        yield Skipped(file.stem, "the font is silent there")
                        continue
                    write_bytes(file, encode_flac(clip))
                path = str(file.relative_to(folder))
                yield {"audio": path, "label": voice.label, "object": voice.id, "source": name}


_NOTE = """# Sounds out of soundfonts

Rendered by bindlm from recordings in these soundfonts, all under the MIT licence (parts public domain or CC0):

- Fluid (R3) General MIDI and GS SoundFont: copyright 2000-2002, 2008 Frank Wen <getfrank@gmail.com>
- MuseScore_General (HQ): copyright 2018-2021 S. Christian Collins; Fluid (R3) Mono: copyright 2014-2017 Michael
  Cowgill; ensemble strings from VSCO 2 Community Edition (CC0) by Sam Gossner, Simon Dalzell, Elan Hickler

The full text stands in /usr/share/doc/PACKAGE/copyright of each Debian package.
"""


def fetch_soundfonts(folder: Path, root: Path) -> Summary:
    """Render the clips of every voice into `folder`, from the packages unpacked below `root`."""
    fonts = {name: fetch_debian_package(package, root) / path for name, (package, path) in FONTS.items()}
    rows: list[dict[str, str]] = []
    skipped: list[Skipped] = []
    for each in clips(folder, fonts, load_voices(), CLIPS_OF_A_LABEL):
        if isinstance(each, Skipped):
            skipped.append(each)
        else:
            rows.append(each)
    write_table(folder / PAIRS, rows)
    write_text_atomic(folder / LICENCE_NOTE, _NOTE)
    labels = len({row["label"] for row in rows})
    return Summary("soundfonts", folder, {"clips": len(rows), "labels": labels}, (PAIRS,), tuple(skipped))


SOUNDFONTS = Source(
    title="Sounds of instruments and effects, rendered from General-MIDI soundfonts",
    packages=tuple(Package("apt", package) for package, _ in FONTS.values()),
    licence="MIT (parts public domain or CC0)",
    gives="clips/LABEL/*.flac (44.1 kHz, mono, 2 to 4 s) and pairs.jsonl (audio, label, object, source)",
    counts={"clips": 5598, "labels": 70},
    fetch=fetch_soundfonts,
)
