"""Bounds on what a film may measure, asked before and while it is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from bindlm.media.limits import _check_finite, _check_positive_ints
from bindlm.media.names import Medium

_MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class VideoLimits:
    """What a film may measure.

    Compressing well is no sign of a bomb here: an hour of one still picture is a few kilobytes. What the decoder has
    to do, and what is kept, are bounded instead.
    """

    max_bytes: int = 512 * _MEBIBYTE
    """Size of the file, of the bytes given, or of the body of a web answer."""
    max_pixels: int = 9_500_000
    """Width times height of one frame; the default takes 4K (4096 x 2304)."""
    max_side: int = 16_384
    """Width, and height."""
    max_ratio: float = 50.0
    """Longer side divided by the shorter one."""
    max_seconds: float = 14_400.0
    """From the first frame to the end of the last."""
    max_frames: int = 1_000_000
    """Frames in the file, whether they are looked at or not."""
    max_kept_bytes: int = 1024 * _MEBIBYTE
    """Decoded pixels of the picked frames together, 3 bytes a pixel."""
    max_decoded_pixels: int = 200_000_000_000
    """Pixels of all frames that must be decoded to reach the picked ones; the default is 100,000 frames of 1080p."""

    def __post_init__(self) -> None:
        _check_positive_ints(
            self, ("max_bytes", "max_pixels", "max_side", "max_frames", "max_kept_bytes", "max_decoded_pixels")
        )
        _check_finite(self, "max_ratio", 1)
        _check_finite(self, "max_seconds", 0.001)

    def check_size(self, medium: Medium, width: int, height: int) -> None:
        """Refuse frames of `width` x `height` pixels that are out of bounds.

        Raises:
            MediaError: With the size and the limit that it breaks.
        """
        size = f"its frames are {width} x {height} pixels"
        if min(width, height) < 1:
            raise medium.error(size, "Give a video with a picture")
        if max(width, height) > self.max_side:
            raise medium.error(
                f"{size}, and a side of at most {self.max_side} is allowed",
                "Shrink the video, or raise VideoLimits(max_side=...)",
            )
        if max(width, height) > self.max_ratio * min(width, height):
            raise medium.error(
                f"{size}, and the longer side may be at most {self.max_ratio:g} times the shorter one",
                "Cut the video to a part, or raise VideoLimits(max_ratio=...)",
            )
        if width * height > self.max_pixels:
            raise medium.error(
                f"{size}, {width * height / 1e6:.1f} million, and at most {self.max_pixels / 1e6:.1f} million are "
                "allowed",
                "Shrink the video, or raise VideoLimits(max_pixels=...)",
            )

    def check_seconds(self, medium: Medium, seconds: float) -> None:
        """Refuse a film that lasts too long."""
        if seconds > self.max_seconds:
            raise medium.error(
                f"it lasts longer than the {self.max_seconds:g} s allowed",
                "Cut it to a part, or raise VideoLimits(max_seconds=...)",
            )

    def check_num_frames(self, medium: Medium, num_frames: int) -> None:
        """Refuse a film of too many frames."""
        if num_frames > self.max_frames:
            raise medium.error(
                f"it has more than the {self.max_frames} frames allowed",
                "Cut it to a part, or raise VideoLimits(max_frames=...)",
            )

    def check_kept(self, medium: Medium, num_frames: int, width: int, height: int) -> None:
        """Refuse to keep `num_frames` frames of a size that take too much memory."""
        if num_frames * width * height * 3 > self.max_kept_bytes:
            raise medium.error(
                f"the {num_frames} frames to keep, of {width} x {height} pixels, take more than the "
                f"{self.max_kept_bytes} bytes allowed",
                "Shrink the video, pick fewer frames, or raise VideoLimits(max_kept_bytes=...)",
            )

    def check_decoded(self, medium: Medium, num_pixels: int) -> None:
        """Refuse to go on decoding."""
        if num_pixels > self.max_decoded_pixels:
            raise medium.error(
                f"reaching the frames needed takes decoding more than the {self.max_decoded_pixels} pixels allowed",
                "Write it anew with more key frames, cut it, or raise VideoLimits(max_decoded_pixels=...)",
            )
