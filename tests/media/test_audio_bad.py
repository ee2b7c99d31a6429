"""Every bad sound is one `MediaError` in one form, soon and in little memory; no decoder opens anything else."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from bindlm.errors import MediaError
from bindlm.media.audio import load_audio
from bindlm.media.audio_decode import _decode_ffmpeg
from bindlm.media.audio_formats import Format
from bindlm.media.audio_limits import AudioLimits
from bindlm.media.names import Medium

from .bad_audio import SDP, cases


def test_every_bad_sound_is_refused(tmp_path, capfd):
    calls = cases(tmp_path)
    assert len(calls) == len({name for name, _ in calls}) >= 40
    for name, call in calls:
        print(name)  # which one, should it be taken for a sound
        begin = time.process_time()
        with pytest.raises(MediaError) as caught:
            call()
        assert str(caught.value).startswith("Cannot use sound "), name
        assert "secret" not in str(caught.value), name
        assert caught.value.__suppress_context__ or caught.value.__context__ is None, name
        assert time.process_time() - begin < 2, name
    assert capfd.readouterr().err == ""  # no decoder speaks for itself


def is_bound(port: int) -> bool:
    tables = [Path(f"/proc/net/{name}") for name in ("udp", "udp6")]
    return any(f":{port:04X} " in table.read_text() for table in tables if table.exists())


@pytest.mark.skipif(not Path("/proc/net/udp").exists(), reason="sockets are looked up in /proc")
def test_a_session_description_opens_no_socket():
    """Neither by what is sniffed, nor, that taken away, by what the demuxer may open. Unhindered it listens on the
    port until its time is over: seen within a tenth of a second."""
    results: list[object] = []

    def decode() -> None:
        with pytest.raises(MediaError):
            load_audio(SDP)
        form = Format("SDP", False, "sdp")
        results.append(_decode_ffmpeg(SDP, form, Medium("sound", "x"), AudioLimits()))

    thread = threading.Thread(target=decode, daemon=True)
    thread.start()
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        assert not is_bound(34_566)
    thread.join(5)
    assert results == [None]  # and so it ended, in time
