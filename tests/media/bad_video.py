"""Films that are none, that lie, or that break off: each must be refused with a `MediaError`, soon and in little
memory."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from bindlm.media.video import VideoLimits, VideoSampling, load_video

from .films import film, sound

_SDP = (
    b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    b"m=video 45454 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
)
_BODIES = {
    "nothing": b"",
    "one byte": b"\0",
    "zeros": bytes(4096),
    "0xff": b"\xff" * 4096,
    "a text": b"This is not a film.\n" * 50,
    "half a character": "Straße".encode()[:5],
    "an SDP": _SDP,
    "an SDP in other lines": _SDP.replace(b"\r\n", b"\n"),
    "an M3U8": b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
    "an M3U8 of local files": b"#EXTM3U\n#EXTINF:2,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "a DASH manifest": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>http://127.0.0.1:9/</BaseURL></MPD>',
    "an ffconcat": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "an RTSP text": b"RTSP/1.0 200 OK\r\n\r\n",
    "a web page": b"<!DOCTYPE html><html><body>404</body></html>",
    "an SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "a PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "an archive": b"PK\x03\x04" + bytes(100),
    "a gzip": b"\x1f\x8b\x08" + bytes(100),
    "a program": b"\x7fELF" + bytes(200),
    "the head of a PNG": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "the head of a JPEG": b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(100),
    "the head of an MP3": b"ID3\x04\0\0\0\0\0\0" + b"\xff\xfb\x90\0" * 300,
    "only ftyp": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2",
    "ftyp and an endless box": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + b"\0\0\0\1moov" + b"\xff" * 8,
    "only an EBML head": b"\x1a\x45\xdf\xa3\x9fB\x86\x81\1",
    "EBML of unknown size": b"\x1a\x45\xdf\xa3\x01" + b"\xff" * 64,
    "only RIFF AVI": b"RIFF\xff\xff\xff\xffAVI LIST",
    "only a GIF head": b"GIF89a\xff\xff\xff\xff\0\0\0",
    "only FLV": b"FLV\1\5\0\0\0\x09\0\0\0\0",
    "only OggS": b"OggS\0\2" + bytes(40),
    "transport packets of nothing": (b"\x47\x1f\xff\x10" + b"\xff" * 184) * 20,
    "a Y4M of 65535 x 65535": b"YUV4MPEG2 W65535 H65535 F25:1 C420jpeg\nFRAME\n",
    "a Y4M of no size": b"YUV4MPEG2 F25:1\nFRAME\n",
    "a Y4M of a huge width": b"YUV4MPEG2 W2147483647 H1 F25:1 C420jpeg\nFRAME\n" + bytes(100),
    "a Y4M of no rate": b"YUV4MPEG2 W0 H0 F0:0\nFRAME\n",
}


def _box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


def replaced(data: bytes, marker: bytes, offset: int, value: bytes) -> bytes:
    """`data` with `value` written `offset` bytes behind the first `marker`."""
    place = data.index(marker) + offset
    return data[:place] + value + data[place + len(value) :]


def with_index_in_front(data: bytes) -> bytes:
    """An MP4 file of FFmpeg's with its `moov` box before the pictures."""
    begin = data.index(b"moov") - 4
    size = int.from_bytes(data[begin : begin + 4], "big")
    moov = bytearray(data[begin : begin + size])
    place = moov.index(b"stco") + 8
    for entry in range(int.from_bytes(moov[place : place + 4], "big")):
        at = place + 4 + 4 * entry
        moov[at : at + 4] = (int.from_bytes(moov[at : at + 4], "big") + size).to_bytes(4, "big")
    head = int.from_bytes(data[:4], "big")
    return data[:head] + bytes(moov) + data[head:begin] + data[begin + size :]


def table_bomb(count: int = 150_000_000) -> bytes:
    """An MP4 of 1 kB whose table states one size for `count` samples: 3.6 GB if it is believed."""
    data = replaced(film(num_frames=2), b"stsz", 8, struct.pack(">II", 16, count))
    data = replaced(data, b"stsc", 12, struct.pack(">II", 1, count))
    return replaced(data, b"stts", 12, struct.pack(">II", count, 512))


def run_bomb(count: int = 150_000_000) -> bytes:
    """A fragmented MP4 of 1 kB, one of whose runs states `count` samples without a word on any."""
    data = film(num_frames=2, container_options=(("movflags", "frag_keyframe+empty_moov+default_base_moof"),))
    place = data.index(b"moof") - 4
    header = _box(b"mfhd", struct.pack(">II", 0, 1))
    track = _box(b"tfhd", struct.pack(">IIIII", 0x020038, 1, 512, 0, 0x1010000))
    run = _box(b"trun", struct.pack(">II", 0, count))
    return data[:place] + _box(b"moof", header, _box(b"traf", track, run)) + _box(b"mdat", bytes(64))


def _sizes() -> dict[str, bytes]:
    """Films whose headers say that a frame is giant."""
    gif = film("gif", "gif", num_frames=2)
    mpeg = film("mpeg", "mpeg2video", num_frames=2)
    ivf = film("ivf", "libvpx", num_frames=2)
    avi = film("avi", "mjpeg", num_frames=2)
    picture_head = avi.index(b"\xff\xc0", avi.index(b"movi"))
    return {
        "a GIF of 65535 x 65535": gif[:6] + b"\xff\xff\xff\xff" + gif[10:],
        "an MPEG-2 of 4095 x 4095": replaced(mpeg, b"\0\0\1\xb3", 4, b"\xff\xff\xff"),
        "an IVF of 16383 x 16383": replaced(ivf, b"\x9d\x01\x2a", 3, b"\xff\x3f\xff\x3f"),
        "a JPEG of 65500 x 65500 in an AVI": avi[: picture_head + 5] + b"\xff\xdc\xff\xdc" + avi[picture_head + 9 :],
    }


def cases(tmp_path: Path) -> list[tuple[str, Callable[[], object]]]:
    """Name, and a call that must raise `MediaError`."""
    found: list[tuple[str, Callable[[], object]]] = []

    def add(name: str, source: object, **settings: object) -> None:
        found.append((name, partial(load_video, source, **settings)))  # type: ignore[arg-type]

    for name, body in _BODIES.items():
        add(name, body)
    for container, codec in [("mp4", "libx264"), ("matroska", "libx264"), ("avi", "mpeg4"), ("webm", "libvpx-vp9")]:
        data = film(container, codec)
        for part in (0.001, 0.01, 0.1):
            add(f"{container} cut off at {part:.1%}", data[: max(int(len(data) * part), 1)])
    for part in (0.3, 0.5, 0.7, 0.9):
        data = film()
        add(f"mp4 cut off at {part:.0%}", data[: int(len(data) * part)])
    early = with_index_in_front(film())
    for part in (0.5, 0.9):
        add(f"mp4 with its index in front cut off at {part:.0%}", early[: int(len(early) * part)])
    rng = np.random.default_rng(0)
    noise = bytearray(early)
    begin = noise.index(b"mdat") + 4
    noise[begin:] = rng.integers(0, 256, len(noise) - begin, dtype=np.uint8).tobytes()
    add("mp4 with noise for pictures", bytes(noise))
    add("mp4 with zeros for pictures", early[:begin] + bytes(len(early) - begin))
    add("mp4 without its first kilobyte", early[1024:])
    add("mp4 whose time scale is 0", replaced(film(), b"mdhd", 16, bytes(4))[: len(film()) // 2])
    add("mp4 of an unknown codec", film().replace(b"avc1", b"zzzz"))
    add("mp4 of JPEG 2000", film("mov", "jpeg2000", num_frames=3))
    add("mp4 with a lying table of samples", table_bomb())
    add("mp4 with a lying run of samples", run_bomb())
    add("mp4 with a lying table called sound", table_bomb().replace(b"vide", b"soun"))
    add("mp4 with a lying table in a free box", table_bomb().replace(b"moov", b"free"))
    add("mp4 with a compressed index", film().replace(b"mvhd", b"cmov"))
    add("mp4 behind a strange box", b"\0\0\0\x0cabcdefgh" + table_bomb())
    for name, data in _sizes().items():
        add(name, data)
    for container, codec in [("mp4", "aac"), ("wav", "pcm_s16le"), ("flac", "flac"), ("ogg", "flac"), ("adts", "aac")]:
        add(f"sound alone: {container}", sound(container, codec))

    text = tmp_path / "notes.mp4"
    text.write_text("Dear diary,\n" * 20)
    pipe = tmp_path / "pipe.mp4"
    if hasattr(os, "mkfifo"):
        os.mkfifo(pipe)
        add("a pipe", pipe)
        add("a device", "/dev/zero")
    add("a text named mp4", text)
    add("a folder", tmp_path)
    add("missing", tmp_path / "missing.mp4")
    add("a path with a NUL", "film\0.mp4")
    add("an address", "http://127.0.0.1:9/film.mp4")
    add("a stream address", "rtsp://127.0.0.1/film", allow_url=True)
    add("a local address", "http://127.0.0.1:9/film.mp4", allow_url=True)
    add("a file address", "file:///etc/passwd", allow_url=True)
    add("a lavfi graph", "lavfi:testsrc")
    add("a closed file", _closed())
    add("an open text", io.StringIO("text"))
    add("a number", 7)
    add("None", None)
    add("a list of frames", [np.zeros((4, 4, 3), np.uint8)])

    frames = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    add("an array without a rate", frames)
    for name, array in {
        "floats": frames.astype(np.float32),
        "NaN": np.full((4, 8, 8, 3), np.nan),
        "objects": frames.astype(object),
        "one picture": frames[0],
        "grey": frames[..., 0],
        "channels first": frames.transpose(0, 3, 1, 2),
        "four channels": np.zeros((4, 8, 8, 4), np.uint8),
        "no frame": frames[:0],
        "no height": frames[:, :0],
        "masked": np.ma.masked_array(frames, mask=frames == 0),
        "a line of pixels": np.zeros((1, 1, 1000, 3), np.uint8),
        "a scalar": np.zeros((), np.uint8),
    }.items():
        add(f"an array: {name}", array, frames_per_second=25)

    for field, value in {"max_bytes": 100, "max_pixels": 64 * 48 - 1, "max_side": 63, "max_ratio": 1.2,
                         "max_seconds": 1.9, "max_frames": 49, "max_kept_bytes": 64 * 48 * 3,
                         "max_decoded_pixels": 64 * 48 * 3}.items():  # fmt: skip
        add(f"beyond {field}", film(), limits=VideoLimits(**{field: value}))  # type: ignore[arg-type]
        if field != "max_bytes":
            add(f"without times, beyond {field}", film("h264"), limits=VideoLimits(**{field: value}))  # type: ignore[arg-type]
    add("an array beyond max_frames", frames, frames_per_second=25, limits=VideoLimits(max_frames=3))
    add("an array beyond max_seconds", frames, frames_per_second=1e-5)
    add(
        "an array beyond max_kept_bytes",
        frames,
        sampling=VideoSampling(num_frames=4),
        limits=VideoLimits(max_kept_bytes=8 * 8 * 9),
    )
    return found


def _closed() -> io.BytesIO:
    file = io.BytesIO(film())
    file.close()
    return file
