"""IMU recordings: any plain table, one rate, and five seconds in 2000 steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bindlm.errors import ConfigError, MediaError
from bindlm.media.imu import Imu, ImuLimits, load_imu
from bindlm.media.imu_preprocess import ImuPreprocessConfig, preprocess_imu

from . import bad_imu
from .nasty_sources import npy

SAMPLES = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32).round(4)


def table(rows: np.ndarray, header: str = "", delimiter: str = ",") -> bytes:
    lines = [delimiter.join(f"{value:.9g}" for value in row) for row in rows]
    return (header + "\n".join(lines) + "\n").encode()


TIMED = np.concatenate([np.arange(50)[:, None] / 200, SAMPLES.T], axis=1)
EGO4D = np.concatenate(
    [np.zeros((50, 1)), np.arange(50)[:, None] * 5, np.arange(50)[:, None] * 5 + 3, SAMPLES.T[:, [3, 4, 5, 0, 1, 2]]],
    axis=1,
)
EGO4D_NAMES = "component_idx,component_timestamp_ms,canonical_timestamp_ms,gyro_x,gyro_y,gyro_z,accl_x,accl_y,accl_z\n"


@pytest.mark.parametrize(
    "source",
    [
        table(TIMED),
        table(TIMED, "time,ax,ay,az,gx,gy,gz\n"),
        table(TIMED * ([1e3] + [1] * 6), '"Time_MS";"a";"b";"c";"d";"e";"f"\n', ";"),
        table(TIMED * ([1e9] + [1] * 6), "t_ns\ta\tb\tc\td\te\tf\n", "\t").replace(b"\n", b"\r\n"),
        table(SAMPLES.T, "# any words\n# Sample_Rate_Hz = 200\n"),
        table(SAMPLES.T, "\ufeff# sample_rate_hz: 200.0\nacc_x acc_y acc_z gyro_x gyro_y gyro_z\n", " "),
        table(EGO4D, EGO4D_NAMES),
    ],
    ids="times named milliseconds nanoseconds comment blanks ego4d".split(),
)
def test_every_table_gives_the_same_recording(source):
    found = load_imu(source)
    assert found.samples.dtype == np.float32
    assert found.sample_rate_hz == pytest.approx(200, rel=1e-6)
    np.testing.assert_allclose(found.samples, SAMPLES, atol=2e-4)
    assert found.duration_seconds == pytest.approx(0.25)


@pytest.mark.parametrize("source", [SAMPLES, SAMPLES.T, npy(SAMPLES), npy(SAMPLES.T), torch.from_numpy(SAMPLES)])
def test_arrays_of_either_order(source):
    found = load_imu(source, sample_rate_hz=200)
    np.testing.assert_array_equal(found.samples, SAMPLES)
    assert found.samples.flags.c_contiguous


def test_a_rate_is_never_guessed():
    with pytest.raises(MediaError, match="sample_rate_hz="):
        load_imu(SAMPLES)


def test_two_rates_must_agree():
    assert load_imu(table(TIMED), sample_rate_hz=201).sample_rate_hz == pytest.approx(200)
    with pytest.raises(MediaError, match="200 samples a second by one account and 100 by another"):
        load_imu(table(TIMED), sample_rate_hz=100)


def test_uneven_samples_are_brought_to_even_steps():
    rng = np.random.default_rng(0)
    times = np.arange(400) / 100
    times[1:-1] += rng.uniform(-0.004, 0.004, 398)
    wave = np.sin(times)
    rows = np.stack([times, *[wave] * 6], axis=1)
    found = load_imu(table(rows))
    np.testing.assert_allclose(found.samples[2], np.sin(np.arange(400) / 100), atol=5e-5)
    assert np.abs(found.samples[2] - wave).max() > 1e-3


def test_a_pause_is_not_bridged():
    rows = TIMED.copy()
    rows[20:, 0] += 1
    with pytest.raises(MediaError, match="pauses for 1.005 s after sample 20"):
        load_imu(table(rows))


def test_the_message_names_the_line():
    with pytest.raises(MediaError, match="line 3"):
        load_imu(b"1,2,3,4,5,6\n" * 2 + b"1,2,3,4,5\n", sample_rate_hz=100)


def test_limits():
    with pytest.raises(MediaError, match="40"):
        load_imu(table(TIMED), limits=ImuLimits(max_samples=40))
    with pytest.raises(MediaError, match="0.25 s"):
        load_imu(SAMPLES, sample_rate_hz=200, limits=ImuLimits(max_seconds=0.2))
    with pytest.raises(ConfigError, match="ImuLimits.max_samples"):
        ImuLimits(max_samples=0)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), "200", True, 1e9])
def test_impossible_rates(rate):
    with pytest.raises(ConfigError, match="sample_rate_hz"):
        load_imu(SAMPLES, sample_rate_hz=rate)


def test_bad_files_are_refused(tmp_path):
    cases = bad_imu.cases(tmp_path)
    assert len({name for name, _ in cases}) == len(cases) >= 40
    for name, load in cases:
        with pytest.raises(MediaError) as caught:
            load()
        assert "secret" not in str(caught.value), name


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_altered_and_cut_files(data):
    kinds = [table(TIMED[:12]), table(EGO4D[:12], EGO4D_NAMES), npy(SAMPLES), table(SAMPLES.T[:12], "# x\n", " ")]
    content = bytearray(data.draw(st.sampled_from(kinds)))
    places = st.integers(0, len(content) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)):
        content[place] = value
    try:
        found = load_imu(bytes(content[: data.draw(places | st.just(len(content)))]), sample_rate_hz=200)
    except MediaError:
        return
    assert found.samples.shape[0] == 6
    assert found.samples.dtype == np.float32
    assert np.isfinite(found.samples).all()


# --- preprocessing ---


def ramp(num_samples: int, rate: float) -> Imu:
    return Imu(np.tile(np.arange(num_samples, dtype=np.float32), (6, 1)), rate)


def test_at_400_hz_the_middle_is_copied():
    found = preprocess_imu(ramp(4001, 400))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.tile(np.arange(1000, 3000), (6, 1)))


@pytest.mark.parametrize("rate", [50, 200, 333.3, 1600])
def test_other_rates_are_interpolated(rate):
    num_samples = int(rate * 8)
    found = preprocess_imu(ramp(num_samples, rate))
    assert found.shape == (6, 2000)
    steps = np.diff(found[0])
    np.testing.assert_allclose(steps, rate / 400, atol=1e-2 * rate / 400)
    assert found[0, 0] == (num_samples - 5 * rate) // 2


def test_exactly_five_seconds_hold_their_last_value():
    found = preprocess_imu(ramp(1000, 200))
    assert found[0, 0] == 0
    assert found[0, -2:].tolist() == [999, 999]


def test_shorter_recordings_are_refused():
    assert preprocess_imu(ramp(999, 200)).shape == (6, 2000)  # one sample missing: a rounded rate
    with pytest.raises(MediaError, match="at least 5 s"):
        preprocess_imu(ramp(998, 200))
    config = ImuPreprocessConfig(clip_seconds=2)
    assert preprocess_imu(ramp(998, 200), config).shape == (6, 2000)


@pytest.mark.parametrize(("field", "value"), [("num_samples", 0), ("num_samples", 10**9), ("clip_seconds", 0.0)])
def test_impossible_settings(field, value):
    with pytest.raises(ConfigError, match=rf"ImuPreprocessConfig\.{field}"):
        ImuPreprocessConfig(**{field: value})
