"""Files that lie, break off, or need reading between the lines."""

from __future__ import annotations

import io
import json
import re
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from bindlm.errors import MediaError
from bindlm.media import ImageLimits, load_image
from bindlm.media.image_decode import decode_image
from bindlm.media.names import Medium

FORMATS = ("BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")
LOSSY = ("GIF", "JPEG", "MPO", "WEBP")
TIFF_COMPRESSIONS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("format_name", FORMATS)
def test_every_accepted_format_gives_its_pixels_in_plain_rgb(format_name, picture, encode):
    loaded = load_image(encode(picture, format_name))
    assert type(loaded) is Image.Image
    assert (loaded.mode, loaded.size, loaded.info) == ("RGB", (80, 60), {})
    # The lossy ones lose part of the noise, 4 to 5 levels; swapped channels or rows would be 50 and more.
    assert np.abs(pixels(loaded) - pixels(picture)).mean() <= (6 if format_name in LOSSY else 0)


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_file_cut_off_anywhere_in_its_pixels_is_refused(format_name, picture, encode):
    data = encode(picture, format_name)
    # GIF ends in two bytes after the last pixel, which nobody misses.
    for end in {*range(1, len(data), 101), len(data) - 3}:
        with pytest.raises(MediaError):
            load_image(data[:end])


@pytest.mark.parametrize("compression", TIFF_COMPRESSIONS)
def test_a_cut_off_tiff_is_refused_in_every_compression(compression, picture, encode):
    data = encode(picture, "TIFF", compression=compression)
    assert load_image(data).size == picture.size
    for end in range(8, len(data), 499):
        with pytest.raises(MediaError):
            load_image(data[:end])


def test_a_progressive_jpeg_that_is_cut_off_is_refused(picture, encode):
    data = encode(picture, "JPEG", progressive=True)
    for end in range(200, len(data), 101):
        with pytest.raises(MediaError, match="cut off"):
            load_image(data[:end])


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_with_its_end_too_early_is_never_half_grey(mode, progressive, picture, encode):
    data = encode(picture.convert(mode), "JPEG", progressive=progressive)
    start = data.index(b"\xff\xda") + 20
    # The last block of pixels takes less than 120 bytes. The last scan of a progressive file only adds detail.
    stop = data.rindex(b"\xff\xda") if progressive else len(data) - 120
    ends = {*range(start, stop, 61)} | {end for end in range(start, stop) if data[end - 1 : end + 1] == b"\xff\0"}
    assert ends
    for end in ends:
        cut = data[:end] + b"\xff\xd9"
        if not progressive:
            Image.open(io.BytesIO(cut)).load()  # Pillow is content
        with pytest.raises(MediaError, match="cut off"):
            load_image(cut)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_may_be_grey(mode, progressive, picture, encode):
    grey = (127,) * 4 if mode == "CMYK" else Image.new("RGB", (1, 1), (128, 128, 128)).convert(mode).getpixel((0, 0))
    for size in ((64, 64), (3, 3), (65, 63)):
        data = encode(Image.new(mode, size, grey), "JPEG", progressive=progressive)
        assert load_image(data).size == size
        assert load_image(data + b"bytes after the end").size == size


def test_an_altered_png_is_refused(encode, picture):
    data = encode(picture, "PNG", compress_level=0)  # stored, so that an altered byte is an altered pixel
    for position in range(data.index(b"IDAT") + 20, len(data) - 24, 997):
        altered = data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]
        with pytest.raises(MediaError, match="damaged"):
            load_image(altered)


def test_a_png_of_indices_without_palette_is_refused(write_png):
    data = write_png(np.zeros((2, 2)), 8, 3)
    Image.open(io.BytesIO(data)).load()  # Pillow takes the indices for greys
    with pytest.raises(MediaError, match="damaged"):
        load_image(data)
    assert load_image(write_png(np.zeros((2, 2)), 8, 3, before=((b"PLTE", b"abc"),))).getpixel((0, 0)) == (97, 98, 99)


def test_an_orientation_after_the_pixels_of_a_png_is_seen(write_png):
    exif = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, 3, 1, 6) + b"\0\0\0\0"
    assert load_image(write_png(np.zeros((2, 5)), 8, 0, after=((b"eXIf", exif),))).size == (2, 5)


@pytest.mark.parametrize(("bit_depth", "transparent"), [(1, 1), (2, 2), (4, 5), (8, 77), (16, 300)])
def test_the_transparent_grey_of_a_png_is_found_at_every_bit_depth(bit_depth, transparent, write_png):
    other = 0
    data = write_png(
        np.array([[other, transparent]]), bit_depth, 0, before=((b"tRNS", struct.pack(">H", transparent)),)
    )
    assert pixels(load_image(data)).tolist() == [[[0, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("bit_depth", [8, 16])
def test_the_transparent_colour_of_a_png_is_found_at_every_bit_depth(bit_depth, write_png):
    samples = np.array([[[10, 20, 30], [10, 20, 31]]])
    if bit_depth == 16:
        samples = samples * 256 + 99
    colour = struct.pack(">HHH", *samples[0, 0])
    data = write_png(samples, bit_depth, 2, before=((b"tRNS", colour),))
    assert pixels(load_image(data)).tolist() == [[[255, 255, 255], [10, 20, 31]]]


def test_sixteen_bit_colour_is_scaled(write_png):
    samples = np.array([[[0, 257 * 100, 65_535], [257 * 7, 0, 257 * 255]]])
    assert pixels(load_image(write_png(samples, 16, 2))).tolist() == [[[0, 100, 255], [7, 0, 255]]]


@pytest.mark.parametrize("format_name", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_taken(format_name, encode):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], format_name, save_all=True, append_images=frames[1:], lossless=True)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert np.unique(pixels(load_image(data)).reshape(-1, 3), axis=0).tolist() == [[255, 0, 0]]


def test_a_default_picture_beside_an_animation_is_taken(encode):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)
    assert load_image(data).getpixel((4, 4)) == (255, 0, 0)


def test_the_first_page_of_a_tiff_is_taken(encode):
    pages = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert load_image(data).getpixel((4, 4)) == (255, 0, 0)


def gif(screen: tuple[int, int], frame: tuple[int, int, int, int], body: bytes) -> bytes:
    palette = bytes([255, 0, 0, 0, 255, 0])
    header = b"GIF89a" + struct.pack("<HH", *screen) + b"\x80\0\0" + palette
    return header + b"," + struct.pack("<HHHH", *frame) + b"\0" + body + b"\0;"


@pytest.mark.parametrize(("alphas", "expected"), [((0, 0), (30, 20, 10)), ((0, 255), (255, 255, 255))])
def test_a_bmp_without_any_opacity_is_not_blank(alphas, expected):
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 2, 1, 1, 32, 3, 8, 0, 0, 0, 0) + masks + bytes(52)
    rows = b"".join(bytes([10, 20, 30, alpha]) for alpha in alphas)
    data = b"BM" + struct.pack("<IHHI", 14 + 108 + 8, 0, 0, 14 + 108) + header + rows
    assert load_image(data).getpixel((0, 0)) == expected


ONE_GREEN_PIXEL = b"\x02\x02\x4c\x01"  # codes of three bits: clear, colour 1, end


def test_what_the_first_frame_of_a_gif_leaves_open_is_white():
    data = gif((3, 1), (1, 0, 1, 1), ONE_GREEN_PIXEL)
    assert pixels(load_image(data)).tolist() == [[[255, 255, 255], [0, 255, 0], [255, 255, 255]]]


def test_a_gif_whose_pixels_end_early_is_refused():
    assert load_image(gif((1, 1), (0, 0, 1, 1), ONE_GREEN_PIXEL)).getpixel((0, 0)) == (0, 255, 0)
    with pytest.raises(MediaError):
        load_image(gif((2, 2), (0, 0, 2, 2), ONE_GREEN_PIXEL))


def grey_tiff(write_tiff, values: np.ndarray, **tags: int) -> bytes:
    named = {"photometric": 262, "bits": 258, "sample_format": 339, "kind": 254, "dng": 50706}
    given = {named[name]: value for name, value in tags.items()}
    return write_tiff({256: values.shape[1], 257: values.shape[0], 278: values.shape[0], **given}, values.tobytes())


def test_a_tiff_where_white_is_zero_is_not_a_negative(write_tiff):
    grey8 = np.array([[0, 100, 255]], dtype="u1")
    grey16 = np.array([[0, 257 * 100, 65_535]], dtype="<u2")
    floats = np.array([[0, 100 / 255, 1]], dtype="<f4")
    for photometric, expected in ((1, [0, 100, 255]), (0, [255, 155, 0])):
        for values, tags in ((grey8, {"bits": 8}), (grey16, {"bits": 16}), (floats, {"bits": 32, "sample_format": 3})):
            data = grey_tiff(write_tiff, values, photometric=photometric, **tags)
            assert pixels(load_image(data))[0, :, 0].tolist() == expected


def test_a_tiff_of_twelve_bits_is_not_dark(write_tiff):
    packed = np.packbits(np.array([[int(bit) for value in (0, 2048, 4095, 16) for bit in f"{value:012b}"]]), axis=1)
    data = write_tiff({256: 4, 257: 1, 278: 1, 258: 12}, packed.tobytes())
    assert pixels(load_image(data))[0, :, 0].tolist() == [0, 128, 255, 1]


def test_a_tiff_of_whole_numbers_without_known_white_is_refused(write_tiff):
    for values, tags in (
        (np.array([[0, 70_000]], dtype="<i4"), {"bits": 32, "sample_format": 2}),
        (np.array([[0, 70_000]], dtype="<u4"), {"bits": 32}),
        (np.array([[-5, 70]], dtype="<i2"), {"bits": 16, "sample_format": 2}),
    ):
        with pytest.raises(MediaError, match="which of them is white is unknown"):
            load_image(grey_tiff(write_tiff, values, **tags))


def test_the_preview_that_opens_a_raw_file_is_not_taken_for_the_picture(write_tiff):
    grey = np.zeros((2, 2), dtype="u1")
    assert load_image(grey_tiff(write_tiff, grey, kind=0)).size == (2, 2)
    for tags in ({"kind": 1}, {"dng": 0x01040000}):
        with pytest.raises(MediaError, match="preview"):
            load_image(grey_tiff(write_tiff, grey, **tags))


def test_slow_decoders_meet_a_lower_limit():
    small, large = (b"P6 %d %d 254\n" % size + bytes(3 * size[0] * size[1]) for size in ((9, 9), (1001, 1000)))
    assert load_image(small).size == (9, 9)
    with pytest.raises(MediaError, match="rare way of storing"):
        load_image(large)


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "film"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"<svg/>".replace(b"/", b" ") + b"</svg>", "SVG"),
        (b"<!DOCTYPE html><html><svg ></svg></html>", "web page"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\1\0\1\0\x10\x10", "ICO"),
        (b"\xff\x0a\x7f", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"8BPS\0\1", "Photoshop"),
        (b"II*\0\x10\0\0\0CR\2\0", "raw"),
        (b"P3\n1 1\n255\n0 0 0\n", "plain text"),
        (b"PK\x03\x04", "archive"),
        (b"RIFF\0\0\0\0WAVEfmt ", "sound"),
        (b"just words, in a file named .jpg", "text"),
        ("Wörter äöü ".encode() * 400, "text"),
        (b"BMW is not a bitmap", "text"),
        (b"\x01\x02\x03\x00\xff\xfe", "no known picture format"),
    ],
)
def test_other_formats_are_named_with_what_to_do(head, what):
    with pytest.raises(MediaError, match=what) as caught:
        load_image(head)
    assert re.search("PNG or JPEG", str(caught.value))


def test_broken_metadata_do_not_spoil_a_picture(picture, encode):
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"):
        loaded = load_image(encode(picture, "PNG", exif=exif))
        assert np.array_equal(pixels(loaded), pixels(picture))


def test_no_warning_of_pillow_is_seen_and_no_filter_is_left(write_png):
    data = write_png(np.zeros((2, 2)), 8, 0, before=((b"acTL", bytes(8)),))  # an animation of no frames
    with pytest.warns(UserWarning, match="Invalid APNG"):
        Image.open(io.BytesIO(data))
    filters = list(warnings.filters)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert load_image(data).size == (2, 2)
    assert seen == []
    assert warnings.filters == filters


def test_threads_decode_at_once_and_leave_the_warning_filters_alone(picture, encode):
    data = [encode(picture, name) for name in ("PNG", "JPEG", "TIFF", "GIF")]
    expected = [pixels(load_image(item)) for item in data]
    filters, wrong = list(warnings.filters), []

    def work() -> None:
        for _ in range(5):
            for item, right in zip(data, expected, strict=True):
                if not np.array_equal(pixels(load_image(item)), right):
                    wrong.append(item)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert warnings.filters == filters


def test_pillows_own_bomb_error_does_not_leak(monkeypatch, encode, picture):
    data = encode(picture, "TIFF")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(MediaError, match="claims more pixels"):
        decode_image(data, Medium("picture", "'x'"), ImageLimits())


def test_running_out_of_memory_is_a_media_error(monkeypatch, encode, picture):
    def fail(*args: object) -> None:
        raise MemoryError

    data = encode(picture, "PNG")
    monkeypatch.setattr(Image.Image, "load", fail)
    with pytest.raises(MediaError, match="not enough memory"):
        load_image(data)


BOMBS_SCRIPT = """
import json, resource, sys, time
from pathlib import Path
from bindlm.errors import MediaError
from bindlm.media import load_image
import bindlm.media.image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
answers = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    try:
        answer = f"loaded {load_image(path).size}"
    except MediaError as error:
        answer = str(error)
    answers[path.name] = [answer, time.process_time() - start]
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([answers, (after - before) // 1024]))
"""


def bombs(write_png, write_tiff, encode) -> dict[str, bytes]:
    """Small files that would unpack to hundreds of megabytes, or keep a core busy."""
    dot = np.zeros((1, 1))
    zeros = zlib.compress(bytes(50_000_000))
    jpeg = bytearray(encode(Image.new("L", (8, 8)), "JPEG"))
    sides = jpeg.index(b"\xff\xc0") + 5
    jpeg[sides : sides + 4] = struct.pack(">HH", 65_500, 65_500)
    progressive = encode(Image.new("RGB", (4000, 4000)), "JPEG", progressive=True)
    last_scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    tile_tags = {256: 16, 257: 16, 322: 30_000, 323: 30_000, 324: 8, 325: len(zeros), 259: 8}
    webp_canvas = b"WEBPVP8X" + struct.pack("<II", 10, 0) + b"\xfe\x3f\0\xfe\x3f\0"
    return {
        "giant.png": write_png(dot, 1, 0, compressed=zeros, size=(20_000, 20_000)),
        "blank.png": write_png(dot, 1, 0, compressed=zeros[:7000], size=(7_900, 7_900)),
        "icc.png": write_png(dot, 8, 0, before=((b"iCCP", b"x\0\0" + zeros),)),
        "ztxt.png": write_png(dot, 8, 0, before=((b"zTXt", b"x\0\0" + zeros),)),
        "itxt_after.png": write_png(dot, 8, 0, after=((b"iTXt", b"x\0\1\0\0\0" + zeros),)),
        "chunks.png": write_png(dot, 8, 0, before=((b"noTE", b""),) * 150_000),
        "frame.gif": gif((1, 1), (0, 0, 65_535, 65_535), ONE_GREEN_PIXEL),
        "canvas.webp": b"RIFF" + struct.pack("<I", len(webp_canvas)) + webp_canvas,
        "giant.jpg": bytes(jpeg),
        "scans.jpg": progressive[:-2] + last_scan * 1000 + b"\xff\xd9",
        "segments.jpg": b"\xff\xd8" + b"\xff\xfe\0\2" * 500_000 + progressive[2:],
        "giant.bmp": b"BM" + struct.pack("<IIIIiiHHIIIIII", 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "tiles.tif": write_tiff(tile_tags, zeros),
        "giant.pgm": b"P5 60000 60000 255\n0",
    }


def test_bombs_are_refused_in_little_time_and_memory(tmp_path, run_python, write_png, write_tiff, encode):
    files = bombs(write_png, write_tiff, encode)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    answers, peak_mib = json.loads(run_python(BOMBS_SCRIPT, str(tmp_path)))
    assert answers.keys() == files.keys()
    for name, (answer, seconds) in answers.items():
        assert answer.startswith("Cannot use picture"), (name, answer)
        assert seconds < 2, (name, seconds)
        if name in ("giant.png", "canvas.webp", "giant.jpg", "giant.bmp", "giant.pgm"):
            assert "pixels" in answer, (name, answer)  # told by the size, before Pillow could
            assert "max_" in answer, (name, answer)
    assert peak_mib < 256
