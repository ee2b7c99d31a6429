"""Limits refuse impossible values when they are made, and out-of-bounds sizes when they are asked."""

from __future__ import annotations

import pytest

from bindlm.errors import ConfigError, MediaError
from bindlm.media import ImageLimits, TextLimits, UrlLimits
from bindlm.media.names import Medium

MEDIUM = Medium("picture", "'x'")


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        *((ImageLimits, field, value) for field in ("max_bytes", "max_pixels", "max_side", "min_side")
          for value in (0, -1, 1.5, True, "9", None)),
        *((ImageLimits, field, value) for field in ("max_ratio", "max_decompression_ratio")
          for value in (0.9, float("nan"), float("inf"), "2", True)),
        (ImageLimits, "min_side", 100_000),
        *((TextLimits, field, value) for field in ("max_bytes", "max_characters") for value in (0, 2.0)),
        *((UrlLimits, "timeout_s", value) for value in (0, -1, float("inf"), None)),
        *((UrlLimits, "max_redirects", value) for value in (-1, 1.0, True)),
        *((UrlLimits, "ports", value) for value in ((0,), (65_536,), ("80",), [80], 80)),
        *((UrlLimits, "allow_private_hosts", value) for value in (True, ("localhost",), ("a:b",), ["a:80"], (":80",))),
    ],
)  # fmt: skip
def test_impossible_limits_name_the_field_and_the_value(kind, field, value):
    with pytest.raises(ConfigError, match=rf"{kind.__name__}\.{field}") as caught:
        kind(**{field: value})
    assert repr(value) in str(caught.value)


def test_limits_cannot_be_changed_afterwards():
    with pytest.raises(AttributeError):
        ImageLimits().max_bytes = 1  # type: ignore[misc]


def test_a_small_file_may_be_a_blank_page_but_not_a_bomb():
    limits = ImageLimits()
    limits.check(MEDIUM, 2000, 2000, num_bytes=1)
    with pytest.raises(MediaError, match="decompression bomb"):
        limits.check(MEDIUM, 2001, 2000, num_bytes=3201)
    limits.check(MEDIUM, 2001, 2000, num_bytes=3202)
    limits.check(MEDIUM, 2001, 2000)  # an array has no file


def test_the_package_imports_nothing_heavy(run_python):
    script = (
        "import sys, bindlm.media\n"
        "assert sorted(bindlm.media.__all__) == bindlm.media.__all__\n"
        "assert set(bindlm.media.__all__) <= set(dir(bindlm.media))\n"
        "assert not {'PIL', 'numpy', 'torch'} & set(sys.modules)\n"
        "for name in bindlm.media.__all__: assert getattr(bindlm.media, name).__doc__\n"
        "assert 'transformers' not in sys.modules\n"  # torch is: sound and film are tensors
        "assert not hasattr(bindlm.media, 'nothing')\n"
    )
    run_python(script)
