"""What can be said of a video file before FFmpeg sees it: which kinds are read, and which headers lie."""

from __future__ import annotations

import re
from collections.abc import Iterator

from bindlm.errors import MediaError
from bindlm.media.names import Medium

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,gif,h264,hevc,m4v,mpegvideo,ivf,yuv4mpegpipe"
)
"""FFmpeg's demuxers that may open a file. Those that follow addresses (hls, dash, concat, sdp, rtsp ...) are not among
them: an SDP text given as bytes would bind a UDP port."""

CODECS = frozenset(
    {
        "av1", "libdav1d", "flv", "gif", "h263", "h264", "hevc", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4",
        "msmpeg4v2", "msmpeg4", "msmpeg4v3", "png", "prores", "rawvideo", "theora", "vc1", "vp8", "vp9", "wmv1",
        "wmv2", "wmv3", "ffv1", "dnxhd", "qtrle",
    }
)  # fmt: skip
"""Decoders that may run; each one less is one less to attack (JPEG 2000 was the way in of CVE-2026-22778)."""

_MAX_TABLE_ENTRIES = 8_000_000
"""Samples that the tables of an MP4 file may name together: FFmpeg takes 24 bytes for each while it opens the file."""
_CONTAINERS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"})
_MAX_BOXES = 200_000

_FOREIGN: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (
        re.compile(rb"RIFF....WAVE|fLaC|ID3|\xff[\xe2\xe3\xf0-\xf3\xf8-\xfb]|FORM....AIFF|#!AMR", re.DOTALL),
        "it has sound and no picture",
    ),
    (
        re.compile(rb"\x89PNG|\xff\xd8\xff|RIFF....WEBP|II\x2a\0|MM\0\x2a|BM", re.DOTALL),
        "it is a picture, not a video",
    ),
    (
        re.compile(rb"#EXTM3U|v=0\s|ffconcat|\[playlist\]|\s*<MPD|\s*<\?xml", re.IGNORECASE),
        "it is a list of addresses",
    ),
    (re.compile(rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!"), "it is an archive"),
    (re.compile(rb"%PDF"), "it is a PDF document"),
    (re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE), "it is a web page"),
)
_CONVERT = "Convert it to MP4 (H.264)"


def damaged(medium: Medium) -> MediaError:
    """The error for a file that is cut off, altered, or written wrongly."""
    return medium.error("the file is damaged or cut off", "Copy or download it again, or write it anew as MP4 (H.264)")


def no_picture(medium: Medium) -> MediaError:
    """The error for a file of sound alone."""
    return medium.error("it has no picture, only sound or text", "Give a video, or read it as sound")


def unknown(data: bytes, medium: Medium) -> MediaError:
    """The error for bytes that none of the demuxers knows; the message says what they look like."""
    head = data[:2048]
    if re.match(rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI |FLV\x01|GIF8[79]a|OggS|YUV4MPEG2", head, re.DOTALL):
        return damaged(medium)
    for signature, what in _FOREIGN:
        if signature.match(head):
            if "sound" in what:
                return no_picture(medium)
            return medium.error(f"{what}, which is not read", "Give a video file, for example MP4")
    readable = head.decode("utf-8", "ignore")
    is_text = len(head) - len(readable.encode()) < 4 and all(char.isprintable() or char.isspace() for char in readable)
    if is_text:
        return medium.error("it holds text, not a video", "Give a video file (a path to one is a str or Path)")
    return medium.error("it is in no known video format", _CONVERT)


def check_structure(data: bytes, medium: Medium) -> None:
    """Refuse an MP4 file whose tables name more samples than its bytes could hold.

    A table may state a count without listing anything: a file of 1 kB could have FFmpeg fill gigabytes.

    Raises:
        MediaError: The tables lie.
    """
    if data[4:8] not in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"styp", b"sidx"):
        return
    bound = min(len(data), _MAX_TABLE_ENTRIES)
    total, is_sound, is_field = 0, False, memoryview(data)
    for kind, begin, end in _boxes(data, 0, len(data), medium):
        body = is_field[begin:end]
        if kind == b"hdlr" and len(body) >= 12:
            is_sound = bytes(body[8:12]) == b"soun"
        elif kind == b"trak":
            is_sound = False
        elif kind in (b"stsz", b"stz2") and len(body) >= 12:
            # Plain PCM states one size for millions of samples; FFmpeg reads it by chunks, so nothing is filled.
            if kind == b"stsz" and int.from_bytes(body[4:8], "big") and not is_sound:
                total += int.from_bytes(body[8:12], "big")
        elif kind == b"trun" and len(body) >= 8:
            total += int.from_bytes(body[4:8], "big")
        if total > bound:
            raise damaged(medium)


def _boxes(data: bytes, begin: int, end: int, medium: Medium) -> Iterator[tuple[bytes, int, int]]:
    """`(kind, begin, end)` of the body of every box, those inside others included, in the order of the file."""
    stack, count = [(begin, end)], 0
    while stack:
        position, stop = stack.pop()
        if position + 8 > stop:
            continue
        size, kind, header = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8], 8
        if size == 1:
            size, header = int.from_bytes(data[position + 8 : position + 16], "big"), 16
        elif size == 0:
            size = stop - position
        if size < header:
            continue  # what follows cannot be read; FFmpeg gives up here, too
        count += 1
        if count > _MAX_BOXES:
            raise damaged(medium)
        inner = (position + header, min(position + size, stop))
        stack.append((position + size, stop))
        if kind in _CONTAINERS:
            stack.append(inner)
        yield kind, *inner
