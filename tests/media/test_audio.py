"""Sounds of every kind come in at their own rate with all channels; what happens to cut files is known."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bindlm.errors import ConfigError, MediaError
from bindlm.media.audio import Audio, load_audio
from bindlm.media.audio_limits import AudioLimits

from .bad_audio import encoded, floats, wav

RATE = 16_000
TIME = np.arange(RATE) / RATE
STEREO = np.stack([0.5 * np.sin(2 * np.pi * 440 * TIME), 0.25 * np.sin(2 * np.pi * 660 * TIME)]).astype(np.float32)

EXACT = [
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "FLOAT"),
    ("WAV", "DOUBLE"),
    ("WAVEX", "PCM_16"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
    ("CAF", "ALAC_16"),
]
LOSSY = [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None), ("WAV", "ULAW"), ("WAV", "IMA_ADPCM"), ("WAV", "MS_ADPCM")]

CONTAINERS = [
    ("ipod", "aac", 16_000),
    ("mp4", "aac", 16_000),
    ("mov", "alac", 16_000),
    ("adts", "aac", 16_000),
    ("webm", "libopus", 48_000),
    ("matroska", "flac", 16_000),
    ("matroska", "pcm_u8", 16_000),
    ("matroska", "pcm_s16le", 16_000),
    ("matroska", "ac3", 48_000),
    ("avi", "pcm_s16le", 16_000),
    ("mp2", "mp2", 16_000),
]


def contained(format_name: str, codec: str, rate: int) -> bytes:
    """The first channel in a container, as FFmpeg writes it."""
    buffer = io.BytesIO()
    try:
        with av.open(buffer, "w", format=format_name) as container:
            stream = container.add_stream(codec, rate=rate, layout="mono")
            frame = av.AudioFrame.from_ndarray((STEREO[:1] * 32_767).astype(np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = RATE, 0
            form = stream.codec_context.format
            resampler = av.AudioResampler(form.name if form else "fltp", "mono", rate, frame_size=1_024)
            for part in resampler.resample(frame):  # less than a last frame is left out
                container.mux(stream.encode(part))
            container.mux(stream.encode(None))
    except (av.FFmpegError, ValueError):  # UnknownCodecError is a ValueError
        pytest.skip(f"this FFmpeg does not write {codec} into {format_name}")
    return buffer.getvalue()


def similarity(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest correlation of two signals over the shifts that codecs bring."""
    found, expected = found[2_000:14_000], expected[2_000:14_000]
    spectra = np.fft.rfft(found, 32_768), np.fft.rfft(expected, 32_768)
    correlation = np.fft.irfft(spectra[0] * spectra[1].conj())
    return float(correlation.max() / (np.linalg.norm(found) * np.linalg.norm(expected)))


@pytest.mark.parametrize(("format_name", "subtype"), EXACT)
def test_exact_formats_come_back_to_the_bit_depth(format_name, subtype):
    audio = load_audio(encoded(format_name, subtype, STEREO.T))
    assert audio.samples.dtype == np.float32
    assert audio.samples.shape == (2, RATE)
    assert audio.sample_rate_hz == RATE
    assert audio.seconds == 1.0
    assert np.abs(audio.samples - STEREO).max() <= 2**-15


@pytest.mark.parametrize(("format_name", "subtype"), LOSSY)
def test_lossy_formats_come_back_similar(format_name, subtype):
    audio = load_audio(encoded(format_name, subtype, STEREO.T))
    assert audio.samples.shape[0] == 2
    assert RATE <= audio.samples.shape[1] < RATE + 1_100  # MS ADPCM fills its last block
    for channel in (0, 1):
        assert similarity(audio.samples[channel], STEREO[channel]) > 0.98


@pytest.mark.parametrize(("format_name", "codec", "rate"), CONTAINERS)
def test_what_soundfile_does_not_read_ffmpeg_does(format_name, codec, rate):
    audio = load_audio(contained(format_name, codec, rate))
    assert audio.sample_rate_hz == rate
    assert audio.samples.shape[0] == 1
    assert 0.9 < audio.seconds < 1.2
    assert audio.peak < 0.7
    every = rate // RATE
    assert similarity(audio.samples[0, ::every], STEREO[0]) > 0.98


def test_sixteen_bits_are_divided_by_32768():
    body = np.array([-32_768, -1, 0, 1, 32_767], dtype="<i2").tobytes()
    assert load_audio(wav(body)).samples.tolist() == [[-1.0, -1 / 32_768, 0.0, 1 / 32_768, 32_767 / 32_768]]


def test_floats_beyond_full_scale_are_kept_as_they_are():
    assert load_audio(floats(1.5, -2.0)).samples.tolist() == [[1.5, -2.0]]


def test_all_kinds_of_sources_give_the_same(tmp_path):
    data = encoded("WAV", "PCM_16")
    path = tmp_path / "no extension"
    path.write_bytes(data)
    expected = load_audio(data)
    with path.open("rb") as file:
        found = [load_audio(path), load_audio(str(path)), load_audio(file), load_audio(io.BytesIO(data))]
    found += [load_audio(expected), load_audio(expected.samples, sample_rate_hz=RATE)]
    found += [
        load_audio(data, sample_rate_hz=RATE),
        load_audio(torch.from_numpy(expected.samples), sample_rate_hz=RATE),
    ]
    for audio in found:
        assert audio.sample_rate_hz == RATE
        assert np.array_equal(audio.samples, expected.samples)


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        ("int16", [-32_768, 16_384], [-1.0, 0.5]),
        ("int32", [-(2**31), 2**30], [-1.0, 0.5]),
        ("uint8", [0, 128, 192], [-1.0, 0.0, 0.5]),
        ("float16", [-1.0, 0.5], [-1.0, 0.5]),
        ("float64", [-1.0, 0.5], [-1.0, 0.5]),
        (">i2", [-32_768, 16_384], [-1.0, 0.5]),
    ],
)
def test_arrays_are_scaled_by_their_type(dtype, values, expected):
    audio = load_audio(np.array(values, dtype=dtype), sample_rate_hz=8_000)
    assert audio.samples.tolist() == [expected]
    assert audio.sample_rate_hz == 8_000


def test_a_given_array_is_not_shared():
    array = np.zeros((1, 10), dtype=np.float32)
    audio = load_audio(array, sample_rate_hz=RATE)
    array[:] = 1
    assert audio.peak == 0


def test_tags_in_front_are_passed_over():
    tag = b"ID3\4\0\0\0\0\1\0" + bytes(128)
    for form in ("MP3", "FLAC"):
        assert load_audio(tag + tag + encoded(form)).samples.shape[0] == 1


@pytest.mark.parametrize(("format_name", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("AIFF", "PCM_16")])
def test_a_cut_file_gives_what_came_before_the_cut(format_name, subtype):
    data = encoded(format_name, subtype, STEREO.T)
    audio = load_audio(data[: len(data) * 3 // 4])
    num_samples = audio.samples.shape[1]
    assert RATE // 2 < num_samples < RATE * 7 // 8
    assert np.abs(audio.samples - STEREO[:, :num_samples]).max() <= 2**-15


def test_a_film_without_sound_is_refused():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 16
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), dtype=np.uint8))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(MediaError, match="without a sound track"):
        load_audio(buffer.getvalue())


@pytest.mark.parametrize("source", [encoded("WAV"), encoded("OGG", "VORBIS"), encoded("MP3")])
def test_limits_name_themselves(source):
    for limits, name in [
        (AudioLimits(max_seconds=0.01), "max_seconds"),
        (AudioLimits(max_samples=10), "max_samples"),
        (AudioLimits(max_bytes=10), "max_bytes"),
        (AudioLimits(min_sample_rate_hz=20_000), "min_sample_rate_hz"),
        (AudioLimits(max_sample_rate_hz=8_000), "max_sample_rate_hz"),
    ]:
        with pytest.raises(MediaError, match=name):
            load_audio(source, limits=limits)


@pytest.mark.parametrize("form", ["FLAC", "OGG"])
def test_a_bomb_is_stopped_while_it_decodes_even_if_its_header_lies(form, monkeypatch):
    """The header is made to admit one sample; decoding must stop near the limit, not at the end."""
    data = encoded(form, samples=np.zeros((2_000_000, 1), dtype=np.int16))
    read = []
    plain_read = soundfile.SoundFile.read

    def counted(self, *arguments, **options):
        block = plain_read(self, *arguments, **options)
        read.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    monkeypatch.setattr("bindlm.media.audio_decode._UNKNOWN_LENGTH", 0)  # what the header says is not looked at
    with pytest.raises(MediaError, match="max_samples"):
        load_audio(data, limits=AudioLimits(max_samples=300_000))
    assert 0 < sum(read) <= 600_000


def test_ffmpeg_is_stopped_while_it_decodes_too(monkeypatch):
    data = contained("matroska", "flac", 16_000)
    from bindlm.media import audio_decode

    seen = []
    numbers = audio_decode._numbers
    monkeypatch.setattr(audio_decode, "_numbers", lambda frame: seen.append(frame.samples) or numbers(frame))
    with pytest.raises(MediaError, match="max_samples"):
        load_audio(data, limits=AudioLimits(max_samples=3_000))
    assert 3_000 < sum(seen) < 9_000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_bytes", 0),
        ("max_seconds", float("inf")),
        ("max_seconds", 0),
        ("max_samples", 1.5),
        ("max_channels", 0),
        ("min_sample_rate_hz", 0),
        ("min_sample_rate_hz", 500_000),
        ("max_amplitude", float("nan")),
        ("max_decompression_ratio", 0.5),
    ],
)
def test_impossible_limits_are_refused(field, value):
    with pytest.raises(ConfigError, match=rf"AudioLimits\.{field} must"):
        AudioLimits(**{field: value})


FUZZED = {
    "wav": encoded("WAV", "PCM_16"),
    "wav of floats": encoded("WAV", "FLOAT"),
    "wav of ADPCM": encoded("WAV", "MS_ADPCM"),
    "flac": encoded("FLAC", "PCM_16"),
    "ogg": encoded("OGG", "VORBIS"),
    "opus": encoded("OGG", "OPUS"),
    "mp3": encoded("MP3"),
    "caf": encoded("CAF", "ALAC_16"),
}
FROM_FFMPEG = {"m4a": ("ipod", "aac", 16_000), "mka": ("matroska", "flac", 16_000), "aac": ("adts", "aac", 16_000)}


def load_or_refuse(data: bytes) -> None:
    refusal = None
    try:
        audio = load_audio(data)
    except MediaError as error:
        refusal = error
    if refusal is not None:
        assert str(refusal).startswith("Cannot use sound <bytes")
        assert refusal.__suppress_context__ or refusal.__context__ is None  # no decoder's traceback beside it
    else:
        assert type(audio) is Audio
        assert audio.samples.dtype == np.float32
        assert audio.samples.size > 0
        assert np.isfinite(audio.samples).all()


@pytest.mark.parametrize("kind", [*FUZZED, *FROM_FFMPEG])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_altered_and_cut_files(kind, data):
    if kind not in FUZZED:
        FUZZED[kind] = contained(*FROM_FFMPEG[kind])
    content = bytearray(FUZZED[kind])
    # Half of the hits in the first 200 bytes, where the headers are.
    places = st.integers(0, len(content) - 1) | st.integers(0, min(200, len(content)) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)):
        content[place] = value
    if data.draw(st.booleans()):
        start = data.draw(places)
        del content[start : start + data.draw(st.integers(1, 40))]
    load_or_refuse(bytes(content[: data.draw(st.integers(1, len(content)) | st.just(len(content)))]))


@settings(deadline=None)
@given(st.binary(min_size=0, max_size=300))
def test_random_bytes(content):
    load_or_refuse(content)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(FUZZED)), st.integers(4, 80), st.binary(max_size=200))
def test_a_good_start_and_a_random_end(kind, length, tail):
    load_or_refuse(FUZZED[kind][:length] + tail)
