"""IMU recordings that must be refused, quickly and in little memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from bindlm.media.imu import load_imu
from bindlm.media.imu_preprocess import preprocess_imu

from .nasty_sources import Case, nasty_npy, nasty_sources

GOOD = np.arange(6 * 40, dtype=np.float32).reshape(40, 6)
ROW = "1,2,3,4,5,6\n"


def timed(times: list[object], header: str = "t,ax,ay,az,gx,gy,gz\n") -> bytes:
    """A file of seven columns, time first."""
    return (header + "".join(f"{time},{ROW}" for time in times)).encode()


def cases(tmp_path: Path) -> list[Case]:
    """What `load_imu` must refuse with a `MediaError`, told a rate where the rate is not the point."""
    steps = [i / 100 for i in range(50)]
    text = {
        "five columns": "1,2,3,4,5\n" * 9,
        "eight columns": "1,2,3,4,5,6,7,8\n" * 9,
        "a thousand columns": "1," * 1000 + "\n",
        "one row": ROW,
        "names only": "ax,ay,az,gx,gy,gz\n",
        "comments only": "# sample_rate_hz: 200\n" * 3,
        "endless comments": "#\n" * 3000,
        "blank lines first": "\n" * 1_000_000 + ROW * 9,
        "blank lines last": ROW * 9 + "\n" * 1_000_000,
        "shorter row": ROW * 9 + "1,2,3,4,5\n" + ROW * 9,
        "longer row": ROW * 9 + "1,2,3,4,5,6,7\n" + ROW * 9,
        "a word": ROW * 9 + "1,2,3,x,5,6\n" + ROW * 9,
        "a hole": ROW * 9 + "1,2,3,,5,6\n" + ROW * 9,
        "NaN": ROW * 9 + "1,2,3,nan,5,6\n" + ROW * 9,
        "infinity": ROW * 9 + "1,2,3,inf,5,6\n" + ROW * 9,
        "1e400": ROW * 9 + "1,2,3,1e400,5,6\n" + ROW * 9,
        "1e300": ROW * 9 + "1,2,3,1e300,5,6\n" + ROW * 9,
        "a long line": "1" * 3_000_000,
        "a long number": ROW + "1,2,3,4,5," + "6" * 100_000,
        "NUL": ROW * 3 + "1,2,\0,4,5,6\n",
        "names of another count": "ax,ay,az,gx,gy\n" + ROW * 9,
        "two rows of names": "ax,ay,az,gx,gy,gz\nm/s2,m/s2,m/s2,rad/s,rad/s,rad/s\n" + ROW * 9,
        "decimal commas": "1,5;2,5;3,5;4,5;5,5;6,5\n" * 9,
        "seven columns, time last": "ax,ay,az,gx,gy,gz,t\n".replace("ax,ay,az", "u,v,w") + "1,2,3,4,5,6,7\n" * 9,
        "two rates": "# sample_rate_hz: 200\n" + ROW * 9,
        "five million rows": ROW * 5_000_000,
        "a row too many": ROW * 500_001,
        "a rate of zero": "# sample_rate_hz: 0\n" + ROW * 9,
    }
    files: dict[str, bytes] = {name: body.encode() for name, body in text.items()} | {
        "bad UTF-8": ROW.encode() * 9 + b"\xff\xfe,2,3,4,5,6\n",
        "times stand still": timed([0] * 50),
        "times go back": timed(steps[::-1]),
        "times repeat": timed([*steps, steps[-1]]),
        "times pause": timed([*steps, 60.0, 60.01]),
        "times are NaN": timed([*steps[:20], "nan", *steps[21:]]),
        "times in milliseconds": timed([10 * i for i in range(50)]),
        "times in nanoseconds": timed([10_000_000 * i for i in range(50)]),
        "times too close": timed([i * 1e-9 for i in range(50)]),
        "times against the given rate": timed([i / 50 for i in range(50)]),
    }
    found: list[Case] = [(name, partial(load_imu, data, sample_rate_hz=100)) for name, data in files.items()]
    found.append(("no rate", partial(load_imu, ROW.encode() * 9)))
    found.append(("array without rate", partial(load_imu, GOOD)))
    arrays = {
        "6 x 6": GOOD[:6],
        "one axis": GOOD[0],
        "three axes": GOOD[None],
        "seven channels": np.ones((40, 7)),
        "one sample": GOOD[:1],
        "no sample": GOOD[:0],
        "objects": np.full((40, 6), None),
        "text": np.full((40, 6), "1"),
        "complex": GOOD.astype(np.complex64),
        "masked": np.ma.masked_array(GOOD, mask=True),
        "NaN in array": np.full((40, 6), np.nan),
        "too many samples": np.broadcast_to(np.ones((1, 6)), (3_000_000, 6)),
    }
    found += [(name, partial(load_imu, array, sample_rate_hz=100)) for name, array in arrays.items()]
    for sources in (nasty_sources(tmp_path), nasty_npy(GOOD)):
        found += [(name, partial(load_imu, source, sample_rate_hz=100)) for name, source in sources]
    found.append(("too slow for its length", partial(load_imu, np.ones((90_000, 6)), sample_rate_hz=1)))
    found.append(("shorter than a clip", lambda: preprocess_imu(load_imu(GOOD, sample_rate_hz=100))))
    return found
