"""Which picture format some bytes are in, by their first bytes alone: names and extensions are often wrong.

Accepted: PNG (and APNG), JPEG (and its kin MPO, of which the first picture is read), WEBP, GIF, BMP, TIFF (and
BigTIFF), and binary PBM, PGM and PPM. Not accepted though Pillow could read them: ICO (its entries may differ from the
sizes that its header states), plain-text PNM (its decoder takes quadratic time on a hostile file), AVIF and JPEG 2000
(not built into every Pillow), and all formats that start another program or are hardly met today: each decoder less is
one less to attack.
"""

from __future__ import annotations

import re

from bindlm.media.names import Medium

_SIGNATURES: tuple[tuple[str, re.Pattern[bytes]], ...] = (
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    # The second size, of the header, tells a bitmap from a text that starts with "BM".
    ("BMP", re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL)),
    ("TIFF", re.compile(rb"II[\x2a\x2b]\0(?!.{4}CR)|MM\0[\x2a\x2b]", re.DOTALL)),
    ("PPM", re.compile(rb"P[456]\s")),
)

_FOREIGN: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"....ftyp(hei|hev|mif1|msf1)", re.DOTALL), "a HEIC (HEIF) picture, as phones store them"),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "an AVIF picture"),
    (re.compile(rb"....ftypcrx", re.DOTALL), "a camera's raw picture"),
    (re.compile(rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI ", re.DOTALL), "a film or a sound, not a picture"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "a JPEG XL picture"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "a JPEG 2000 picture"),
    (re.compile(rb"II\x2a\0.{4}CR|FUJIFILMCCD-RAW", re.DOTALL), "a camera's raw picture"),
    (re.compile(rb"8BPS"), "a Photoshop document"),
    (re.compile(rb"\0\0[\1\2]\0"), "an icon or cursor (ICO)"),
    (re.compile(rb"P[123]\s"), "a PNM picture written as plain text"),
    (re.compile(rb"%PDF"), "a PDF document"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "a PostScript drawing"),
    (re.compile(rb"RIFF....WAVE|OggS|ID3|fLaC", re.DOTALL), "a sound, not a picture"),
    (re.compile(rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!"), "an archive"),
    (re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE), "a web page, not a picture"),
    (re.compile(rb"[^\0]{0,2000}?<svg[\s>]", re.IGNORECASE), "an SVG drawing"),
)

_NUM_SNIFFED = 2048
_CONVERT = "Convert it to PNG or JPEG"


def sniff(data: bytes, medium: Medium) -> str:
    """Pillow's name of the format that `data` starts like, one of the accepted ones.

    Raises:
        MediaError: Another format, text, or nothing known; the message says which.
    """
    head = data[:_NUM_SNIFFED]
    for format_name, signature in _SIGNATURES:
        if signature.match(head):
            return format_name
    for signature, what in _FOREIGN:
        if signature.match(head):
            raise medium.error(f"it is {what}, which is not read", _CONVERT)
    give = "Give a PNG or JPEG file (a path to one is a str or Path)"
    raise medium.unknown_format(head, "picture", give=give, convert=_CONVERT)
