"""Made-up rooms."""

import numpy as np
import pytest

from bindlm.binding.sources.sound_room import in_a_room

RATE = 8000


@pytest.fixture
def dry():
    clip = np.zeros(RATE, np.float32)
    clip[100:900] = np.sin(np.arange(800) * 0.3)
    return clip


def test_a_sound_keeps_its_length_and_has_a_level(dry):
    for seed in range(8):
        wet = in_a_room(dry, RATE, np.random.default_rng(seed))
        assert wet.shape == dry.shape
        assert wet.dtype == np.float32
        assert 0.0999 <= np.abs(wet).max() <= 0.9501


def test_the_same_seed_is_the_same_room_and_another_is_another(dry):
    first, again, other = (in_a_room(dry, RATE, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)


def test_some_rooms_echo_and_some_are_dry(dry):
    def tail(seed):
        wet = in_a_room(dry, RATE, np.random.default_rng(seed))
        return np.abs(wet[1000:2000]).mean() / np.abs(wet).max()

    tails = sorted(map(tail, range(30)))
    assert tails[0] < 0.005
    assert tails[-1] > 0.02


def test_silence_stays_finite():
    assert np.isfinite(in_a_room(np.zeros(100, np.float32), RATE, np.random.default_rng(0))).all()
