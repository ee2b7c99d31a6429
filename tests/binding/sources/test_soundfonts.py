"""Clips rendered from soundfonts."""

import sys

import numpy as np
import pytest

from bindlm.binding.sources import soundfonts
from bindlm.binding.sources.sound_labels import load_sound_labels
from bindlm.binding.sources.soundfonts import (
    FONTS,
    Player,
    clips,
    compose,
    encode_flac,
    load_voices,
    render_clip,
    shares,
)
from bindlm.binding.sources.source import Skipped
from bindlm.errors import CheckpointError
from bindlm.media.audio import load_audio

VOICES = load_voices()


class FakeSynth:
    """Holds a tone for each key that is down; program 99 is silent."""

    def __init__(self):
        self.down = {}
        self.time = 0
        self.program = 0

    def program_select(self, channel, font, bank, program):
        self.program = program

    def noteon(self, channel, key, velocity):
        self.down[key] = velocity

    def noteoff(self, channel, key):
        self.down.pop(key, None)

    def sounds_off(self, channel):
        self.down.clear()

    def generate(self, count):
        time = (self.time + np.arange(count)) / soundfonts.RATE_HZ
        self.time += count
        waves = [v / 127 * np.sin(2 * np.pi * 440 * 2 ** ((k - 69) / 12) * time) for k, v in self.down.items()]
        wave = sum(waves, np.zeros(count)) * (self.program != 99)
        return memoryview(np.repeat(wave[:, None], 2, axis=1).astype(np.float32).tobytes())


@pytest.fixture
def font(monkeypatch, tmp_path):
    monkeypatch.setattr(soundfonts, "_open", lambda font: (FakeSynth(), 0))
    return tmp_path / "some.sf2"


def test_every_voice_has_a_label_a_font_and_notes_of_a_keyboard():
    assert {voice.label for voice in VOICES} <= set(load_sound_labels())
    for voice in VOICES:
        assert voice.font in FONTS
        assert voice.weight >= 1
        assert voice.notes
        assert 0 <= min(voice.notes)
        assert max(voice.notes) <= 127
        assert voice.play
        assert set(voice.play) <= set("smchre")
    assert len({(voice.label, voice.id, voice.notes) for voice in VOICES}) == len(VOICES)


def test_no_two_voices_write_the_same_file():
    assert len({(voice.label, voice.id) for voice in VOICES}) == len(VOICES)


def test_each_label_gets_about_as_many_clips():
    count = shares(VOICES, 80)
    of_label = {}
    for voice, clips_of in count.items():
        of_label[voice.label] = of_label.get(voice.label, 0) + clips_of
    assert len(count) == len(VOICES)
    assert all(77 <= clips_of <= 83 for clips_of in of_label.values())


@pytest.mark.parametrize("label", ["violin", "piano", "drum", "dog", "cymbal"])
def test_what_is_played_lies_in_the_range_and_in_the_clip(label):
    for voice in (each for each in VOICES if each.label == label):
        for seed in range(20):
            notes = compose(voice, 2.5, np.random.default_rng(seed))
            assert notes
            for note in notes:
                assert note.key in voice.notes
                assert 1 <= note.velocity <= 127
                assert 0 <= note.start < note.end <= 2.6


def test_a_melody_has_many_notes_and_a_hit_has_one():
    melody = next(voice for voice in VOICES if voice.play == "m")
    hit = next(voice for voice in VOICES if voice.play == "h")
    assert max(len(compose(melody, 3, np.random.default_rng(seed))) for seed in range(10)) > 4
    assert all(len(compose(hit, 3, np.random.default_rng(seed))) == 1 for seed in range(10))


def test_a_note_sounds_from_its_start_to_its_end(font):
    clip = Player(font).play(VOICES[0], [soundfonts.Note(69, 0.5, 1.0, 127)], 2.0)
    rate = soundfonts.RATE_HZ
    assert len(clip) == 2 * rate
    assert not clip[: rate // 2].any()
    assert not clip[rate:].any()
    assert np.abs(clip[rate // 2 : rate]).max() == pytest.approx(1, abs=0.01)


def test_a_clip_is_the_same_at_every_call_and_each_number_is_another(font):
    player, voice = Player(font), VOICES[0]
    first = render_clip(player, voice, 0)
    assert len(first) >= 2 * soundfonts.RATE_HZ
    assert len(first) <= 4 * soundfonts.RATE_HZ
    assert encode_flac(render_clip(Player(font), voice, 0)) == encode_flac(first)
    assert len(render_clip(player, voice, 1)) != len(first)


def test_clips_are_written_once_with_their_rows_and_silence_is_told(font, tmp_path, monkeypatch):
    voices = [VOICES[0], soundfonts.Voice("gong", VOICES[0].font, 0, 99, (60,), "s", 1)]
    fonts = {VOICES[0].font: font}
    found = list(clips(tmp_path, fonts, voices, 2))
    rows = [each for each in found if not isinstance(each, Skipped)]
    assert [row["label"] for row in rows] == ["piano", "piano"]
    assert {each.reason for each in found if isinstance(each, Skipped)} == {"the font is silent there"}
    audio = load_audio(tmp_path / rows[0]["audio"])
    assert (audio.sample_rate_hz, audio.samples.shape[0]) == (soundfonts.RATE_HZ, 1)
    monkeypatch.setattr(soundfonts, "render_clip", lambda *_: pytest.fail("rendered again"))
    assert list(clips(tmp_path, fonts, voices[:1], 2)) == rows


def test_without_the_renderer_the_message_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tinysoundfont", None)
    with pytest.raises(CheckpointError, match="pip install --no-deps tinysoundfont"):
        Player(tmp_path / "some.sf2")


def test_a_file_that_is_no_font_is_told(tmp_path):
    pytest.importorskip("tinysoundfont")
    (tmp_path / "no.sf2").write_bytes(b"RIFF nothing")
    with pytest.raises(CheckpointError, match=r"no\.sf2 is no readable soundfont"):
        Player(tmp_path / "no.sf2")
