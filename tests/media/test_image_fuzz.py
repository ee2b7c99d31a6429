"""Whatever happens to the bytes of a picture, the answer is a picture or a `MediaError`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bindlm.errors import MediaError
from bindlm.media import load_image, load_text

KINDS = {
    "bmp": ("BMP", "RGB", {}),
    "bmp of indices": ("BMP", "P", {}),
    "gif": ("GIF", "P", {}),
    "gif, animated": ("GIF", "P", {"save_all": True, "copies": 2}),
    "jpeg": ("JPEG", "RGB", {}),
    "jpeg, progressive": ("JPEG", "RGB", {"progressive": True}),
    "jpeg of inks": ("JPEG", "CMYK", {}),
    "png": ("PNG", "RGBA", {}),
    "png, animated": ("PNG", "RGB", {"save_all": True, "copies": 2}),
    "png of indices": ("PNG", "P", {}),
    "ppm": ("PPM", "RGB", {}),
    "tiff": ("TIFF", "RGB", {}),
    "tiff of inks, packed": ("TIFF", "CMYK", {"compression": "tiff_lzw"}),
    "tiff, 16 bits": ("TIFF", "I;16", {"compression": "tiff_adobe_deflate"}),
    "webp": ("WEBP", "RGB", {"lossless": True}),
    "webp, animated": ("WEBP", "RGBA", {"save_all": True, "copies": 2}),
}


@pytest.fixture(scope="module")
def files(picture, encode) -> dict[str, bytes]:
    small = picture.resize((17, 13))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = {}
    for name, (format_name, mode, options) in KINDS.items():
        options = dict(options)
        if copies := options.pop("copies", 0):
            options["append_images"] = [small.rotate(90 * turn) for turn in range(1, copies + 1)]
        if format_name in ("JPEG", "PNG", "WEBP"):
            options["exif"] = exif
        image = small.convert("L").convert("I;16") if mode == "I;16" else small.convert(mode)
        found[name] = encode(image, format_name, **options)
    return found


def load_or_refuse(data: bytes) -> None:
    refusal = None
    try:
        loaded = load_image(data)
    except MediaError as error:
        refusal = error
    if refusal is not None:
        assert str(refusal).startswith("Cannot use picture <bytes")
        assert refusal.__suppress_context__ or refusal.__context__ is None  # no decoder's traceback beside it
    else:
        assert type(loaded) is Image.Image
        assert loaded.mode == "RGB"
        assert len(loaded.tobytes()) == 3 * loaded.width * loaded.height


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_altered_and_cut_files(kind, files, data):
    content = bytearray(files[kind])
    # Half of the hits in the first 200 bytes, where the headers are.
    places = st.integers(0, len(content) - 1) | st.integers(0, min(200, len(content)) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)):
        content[place] = value
    if data.draw(st.booleans()):
        start = data.draw(places)
        del content[start : start + data.draw(st.integers(1, 40))]
    load_or_refuse(bytes(content[: data.draw(st.integers(1, len(content)) | st.just(len(content)))]))


@given(st.binary(min_size=0, max_size=300))
def test_random_bytes(content):
    load_or_refuse(content)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@given(tail=st.binary(max_size=100))
def test_a_good_start_and_a_random_end(kind, files, tail):
    for length in (12, 30, 60):
        load_or_refuse(files[kind][:length] + tail)


@given(st.binary(max_size=200))
def test_random_bytes_as_text(content):
    try:
        text = load_text(content)
    except MediaError as error:
        refusal = str(error)
        text = None
    if text is None:
        assert refusal.startswith("Cannot use text <bytes")
    else:
        assert text.encode() == content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")


@given(st.text(max_size=80))
def test_any_name_is_printable_in_messages(name):
    with pytest.raises(MediaError) as caught:
        load_image(b"", name=name)
    assert str(caught.value).isprintable()
    with pytest.raises(MediaError) as caught:
        load_image(str(Path("no such folder") / f"{name}.png"))
    assert str(caught.value).isprintable()
