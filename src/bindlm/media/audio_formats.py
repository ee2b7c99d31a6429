"""Which sound format some bytes are in, by their first bytes alone, and which decoders may read it.

Formats without a mark of their own (raw numbers, HTK) and those hardly met today are not accepted though the decoders
could read them: each one less is one less to attack, and text is never taken for sound. Playlists and session
descriptions, which make a decoder open other addresses, are no sounds.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from bindlm.media.names import Medium


class Format(NamedTuple):
    """An accepted format and its decoders, soundfile first."""

    name: str
    """What messages call it."""
    is_for_soundfile: bool
    """Whether libsndfile is asked."""
    demuxer: str | None
    """FFmpeg's name of it, asked after that; None if there is no point."""


_MP3 = Format("MP3", False, "mp3")  # libsndfile's decoder writes warnings of its own to stderr

_SIGNATURES: tuple[tuple[re.Pattern[bytes], Format], ...] = (
    (re.compile(rb"(RIFF|RIFX|RF64).{4}WAVE", re.DOTALL), Format("WAV", True, "wav")),
    (re.compile(rb"fLaC"), Format("FLAC", True, "flac")),
    (re.compile(rb"OggS"), Format("Ogg", True, "ogg")),  # Vorbis, Opus, FLAC; Speex only through FFmpeg
    (re.compile(rb"FORM.{4}AIF[FC]", re.DOTALL), Format("AIFF", True, "aiff")),
    (re.compile(rb"\.snd|dns\."), Format("AU", True, None)),
    (re.compile(rb"caff\0"), Format("CAF", True, "caf")),
    (re.compile(rb"riff\x2e\x91\xcf\x11\xa5\xd6"), Format("Wave64", True, "w64")),
    (re.compile(rb"....ftyp|....(moov|mdat|wide|free|skip)", re.DOTALL), Format("MP4 (M4A, MOV)", False, "mov")),
    (re.compile(rb"\x1a\x45\xdf\xa3"), Format("WebM (Matroska)", False, "matroska")),
    (re.compile(rb"\xff[\xf0\xf1\xf8\xf9]"), Format("AAC", False, "aac")),
    # Layers II and III, with a bit rate and a sample rate that exist.
    (re.compile(rb"\xff[\xe2-\xe5\xf2-\xf5\xfa-\xfd][\x10-\xef]", re.DOTALL), _MP3),
    (re.compile(rb"#!AMR(-WB)?\n"), Format("AMR", False, "amr")),
    (re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"), Format("WMA (ASF)", False, "asf")),
    (re.compile(rb"RIFF.{4}AVI ", re.DOTALL), Format("AVI", False, "avi")),
)

_FOREIGN: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"\xef?\xbb?\xbf?\s*#EXTM3U|\s*\[playlist\]", re.IGNORECASE), "a playlist"),
    (re.compile(rb"v=0\r?\n"), "a session description (SDP)"),
    (re.compile(rb"MThd"), "a MIDI score (notes)"),
    (re.compile(rb"\x89PNG|\xff\xd8\xff|GIF8|BM.{12}\x28\0\0\0|RIFF.{4}WEBP", re.DOTALL), "a picture"),
    (re.compile(rb"%PDF"), "a PDF document"),
    (re.compile(rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!"), "an archive"),
    (re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE), "a web page"),
)

_NUM_SNIFFED = 2048
_MAX_TAGS = 4
CONVERT = "Convert it to WAV or FLAC"


def sniff(data: bytes, medium: Medium) -> Format:
    """The format that `data` starts like, one of the accepted ones; ID3 tags in front are passed over.

    Raises:
        MediaError: Another format, text, or nothing known; the message says which.
    """
    start = 0
    for _ in range(_MAX_TAGS):
        size = _tag_size(data[start : start + 10])
        if not size:
            break
        start += size
    head = data[start : start + _NUM_SNIFFED]
    for signature, found in _SIGNATURES:
        if signature.match(head):
            return found
    if start:  # padding or scraps between the tag and the first frame, as in many MP3 files
        return _MP3
    for signature, what in _FOREIGN:
        if signature.match(head):
            raise medium.error(f"it is {what}, not a sound", "Give a file that holds sound, such as WAV, FLAC or MP3")
    give = "Give a WAV, FLAC or MP3 file (a path is a str or Path)"
    raise medium.unknown_format(head, "sound", give=give, convert=CONVERT)


def _tag_size(head: bytes) -> int:
    """Bytes of the ID3v2 tag that starts with `head`; 0 where none does."""
    if len(head) < 10 or head[:3] != b"ID3" or max(head[6:10]) > 127:
        return 0
    size = 0
    for byte in head[6:10]:  # seven bits in each
        size = size << 7 | byte
    has_footer = bool(head[5] & 0x10)
    return 10 + size + 10 * has_footer
