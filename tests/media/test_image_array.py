"""Arrays and tensors become pictures only where shape and type leave no doubt."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bindlm.errors import MediaError
from bindlm.media import ImageLimits, load_image


def pixels(source: object) -> list:
    return np.asarray(load_image(source)).tolist()


def test_uint8_in_all_shapes():
    colour = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert pixels(colour) == colour.tolist()
    grey = np.arange(8, dtype=np.uint8).reshape(2, 4)
    assert pixels(grey) == pixels(grey[..., None]) == np.stack([grey] * 3, axis=-1).tolist()
    with_opacity = np.array([[[200, 0, 100, 51], [1, 2, 3, 255]]], dtype=np.uint8)
    assert pixels(with_opacity) == [[[244, 204, 224], [1, 2, 3]]]


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_uint16_is_scaled(dtype):
    assert pixels(np.array([[0, 25_700, 65_535]], dtype=dtype)) == [[[0] * 3, [100] * 3, [255] * 3]]
    assert pixels(np.array([[[0, 25_700, 65_535]]], dtype=dtype)) == [[[0, 100, 255]]]


def test_bool_is_black_and_white():
    assert pixels(np.array([[False, True]])) == [[[0] * 3, [255] * 3]]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4"])
def test_floats_are_scaled(dtype):
    assert pixels(np.array([[[0, 0.25, 1]]], dtype=dtype)) == [[[0, 64, 255]]]


def test_a_rounding_error_of_floats_is_forgiven():
    assert pixels(np.array([[-1e-8, 1 + 1e-7]])) == [[[0] * 3, [255] * 3]]


@pytest.mark.parametrize("value", [-0.01, 1.01, 255.0, np.nan, np.inf, -np.inf])
def test_other_floats_are_refused(value):
    with pytest.raises(MediaError, match="0 to 1|NaN"):
        load_image(np.array([[0.5, value]]))


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u4", "u8", "c8", "O", "U1", "M8[s]", "u1,u1"])
def test_other_types_are_refused(dtype):
    with pytest.raises(MediaError, match="uint8, uint16, bool, or floats"):
        load_image(np.zeros((2, 2), dtype=dtype))


@pytest.mark.parametrize("shape", [(), (4,), (2, 2, 2), (2, 2, 5), (1, 2, 2, 3), (0, 4), (4, 0, 3), (0,)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(MediaError, match="shape"):
        load_image(np.zeros(shape, dtype=np.uint8))


def test_channels_first_are_refused_with_the_cure():
    with pytest.raises(MediaError, match="transpose"):
        load_image(np.zeros((3, 20, 30), dtype=np.uint8))


def test_masked_values_are_refused():
    with pytest.raises(MediaError, match="masked"):
        load_image(np.ma.masked_array(np.zeros((2, 2), dtype=np.uint8), mask=True))


def test_views_are_read_in_their_own_order():
    whole = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    for view in (whole[::-1], whole[:, ::2], whole[..., ::-1], whole.transpose(1, 0, 2), np.asfortranarray(whole)):
        assert pixels(view) == view.tolist()


def test_limits_hold_and_the_picture_is_a_copy():
    with pytest.raises(MediaError, match="max_pixels"):
        load_image(np.zeros((20, 20), dtype=np.uint8), limits=ImageLimits(max_pixels=399))
    source = np.zeros((2, 2, 3), dtype=np.uint8)
    loaded = load_image(source)
    source[:] = 255
    assert loaded.getpixel((0, 0)) == (0, 0, 0)


@given(
    arrays.arrays(
        dtype=st.one_of(arrays.scalar_dtypes(), arrays.array_dtypes()),
        shape=arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    )
)
def test_any_array_gives_a_picture_or_a_media_error(array):
    loaded, refusal = None, None
    try:
        loaded = load_image(array)
    except MediaError as error:
        refusal = str(error)
    if loaded is None:
        assert "<array, shape" in refusal
        assert "damaged" not in refusal  # which would hide an error of ours
    else:
        assert loaded.mode == "RGB"
        assert loaded.size == (array.shape[1], array.shape[0])


def test_tensors_with_channels_at_one_end():
    torch = pytest.importorskip("torch")
    colour = torch.arange(24, dtype=torch.uint8).reshape(2, 4, 3)
    assert pixels(colour) == pixels(colour.permute(2, 0, 1)) == colour.tolist()
    assert pixels(torch.full((3, 2, 2), 0.25)) == pixels(torch.full((2, 2, 3), 0.25, dtype=torch.bfloat16))
    assert pixels(torch.full((3, 2, 2), 0.25, requires_grad=True)) == [[[64] * 3] * 2] * 2


def test_tensors_that_leave_doubt_are_refused():
    torch = pytest.importorskip("torch")
    for shape in ((3, 4, 3), (3, 3, 3), (2, 4), (1, 2, 4), (2, 4, 4), (1, 3, 2, 2), (3, 0, 2), ()):
        with pytest.raises(MediaError, match="shape"):
            load_image(torch.zeros(shape))
    for tensor in (torch.zeros(3, 2, 2, device="meta"), torch.zeros(3, 2, 2).to_sparse()):
        with pytest.raises(MediaError, match="no plain tensor"):
            load_image(tensor)
    with pytest.raises(MediaError, match="0 to 1"):
        load_image(torch.full((3, 2, 2), -2.0))
    with pytest.raises(MediaError, match="int64"):
        load_image(torch.zeros(3, 2, 2, dtype=torch.int64))
    with pytest.raises(MediaError, match="max_pixels"):
        load_image(torch.zeros(1, 1, 3, dtype=torch.bfloat16).expand(60_000, 60_000, 3))  # 43 GB as float32
