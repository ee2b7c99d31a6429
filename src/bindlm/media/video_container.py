"""What can be said of a video file before FFmpeg sees it: which kinds are read, and which headers lie."""

from __future__ import annotations

import re
from collections.abc import Iterator

from bindlm.errors import MediaError
from bindlm.media.names import Medium

_MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
_OTHERS = "matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,gif,h264,hevc,m4v,mpegvideo,ivf,yuv4mpegpipe"

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
_MAX_SOUND_ENTRIES = 40_000_000
"""The same for samples of sound that are all of one size: plain PCM, of which this is 14 minutes at 48 kHz. FFmpeg
reads it by chunks and takes nothing for each sample, but whether it will cannot be told from here."""
_FIRST_BOXES = frozenset(
    {
        b"ftyp",
        b"moov",
        b"mdat",
        b"free",
        b"skip",
        b"wide",
        b"pnot",
        b"moof",
        b"styp",
        b"sidx",
        b"uuid",
        b"junk",
        b"pdin",
    }
)
_TABLE_OR_HANDLER = re.compile(rb"stsz|stz2|trun|cmov|hdlr")
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
    give = "Give a video file (a path to one is a str or Path)"
    return medium.unknown_format(head, "video", give=give, convert=_CONVERT)


def formats(data: bytes) -> str:
    """FFmpeg's demuxers that may open `data`, as its option `format_whitelist`.

    Those that follow addresses (hls, dash, concat, sdp, rtsp ...) are never among them: an SDP text given as bytes
    would bind a UDP port. The one for MP4 is left out where `check_structure` did not look, lest FFmpeg finds an MP4
    file behind a strange beginning.
    """
    return f"{_MP4},{_OTHERS}" if _looks_like_mp4(data) else _OTHERS


def _looks_like_mp4(data: bytes) -> bool:
    return data[4:8] in _FIRST_BOXES


def check_structure(data: bytes, medium: Medium) -> None:
    """Refuse an MP4 file whose tables name more samples than its bytes could hold.

    A table may state a count without listing anything: a file of 1.6 kB that states 20 million has FFmpeg fill 1.4 GB,
    before a limit can be asked. FFmpeg takes tables from almost any box, so all but the pictures is searched for them.

    Raises:
        MediaError: The tables lie, or are compressed.
    """
    if not _looks_like_mp4(data):
        return
    total = total_sound = 0
    for kind, begin, end in _boxes(data):
        if kind == b"mdat":
            continue
        is_sound = False
        for match in _TABLE_OR_HANDLER.finditer(data, begin, end):
            body = match.end() + (8 if data[match.start() - 4 : match.start()] == b"\0\0\0\1" else 0)
            first, second = (int.from_bytes(data[at : at + 4], "big") for at in (body + 4, body + 8))
            if match[0] == b"hdlr":
                is_sound = data[body + 8 : body + 12] == b"soun"
            elif match[0] == b"cmov":
                raise medium.error("its index is compressed, which is not read", _CONVERT)
            elif match[0] == b"trun":
                total += first
            elif match[0] == b"stsz" and first and is_sound:
                total_sound += second
            else:
                total += second
            if total > min(len(data), _MAX_TABLE_ENTRIES) or total_sound > min(len(data), _MAX_SOUND_ENTRIES):
                raise damaged(medium)


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """`(kind, begin, end)` of the body of every outermost box."""
    position, count = 0, 0
    while position + 8 <= len(data):
        size, kind, header = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8], 8
        if size == 1:
            size, header = int.from_bytes(data[position + 8 : position + 16], "big"), 16
        elif size == 0:
            size = len(data) - position
        count += 1
        if size < header or count > _MAX_BOXES:
            yield b"", position, len(data)  # the rest in one
            return
        yield kind, position + header, min(position + size, len(data))
        position += size
