"""Two hundred pictures with captions to try training on: `python -m bindlm.training.example pairs`.

Emoji (Noto Color Emoji, OFL-1.1) with their Unicode names, from two Debian packages that are fetched once. 160 go into
`pairs/train.tsv`, 40 that are held out into `pairs/test.tsv`, both with the columns `image` and `caption`.
"""

import argparse
import io
import sys
from pathlib import Path

import numpy as np

from bindlm.checkpoints import home
from bindlm.checkpoints.home import disk_errors
from bindlm.checkpoints.state import replacing_file, write_text_atomic
from bindlm.errors import BindLMError
from bindlm.training.mini.pictures import NamedPicture, load_emoji, paste_on_background

NUM_TRAIN, NUM_TEST = 160, 40
_SIDE = 256


def write_example(folder: Path, packages: Path, *, seed: int = 0) -> tuple[int, int]:
    """Write the pictures and the two tables.

    Args:
        folder: made where absent.
        packages: folder that keeps unpacked Debian packages.
        seed: of the choice, the backgrounds and the split.

    Returns:
        How many pairs are for training and how many are held out.

    Raises:
        CheckpointError: the packages cannot be had, or the disk is full.
    """
    random = np.random.default_rng(seed)
    emoji = sorted(load_emoji(packages), key=lambda picture: picture.id)
    chosen = [emoji[number] for number in random.permutation(len(emoji))[: NUM_TRAIN + NUM_TEST]]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = [_write(folder, picture, random) for picture in chosen]
    for name, part in (("train", lines[:NUM_TRAIN]), ("test", lines[NUM_TRAIN:])):
        write_text_atomic(folder / f"{name}.tsv", "image\tcaption\n" + "".join(part))
    return NUM_TRAIN, len(lines) - NUM_TRAIN


def _write(folder: Path, item: NamedPicture, random: np.random.Generator) -> str:
    """One picture as a file, and its line of the table."""
    content = io.BytesIO()
    paste_on_background(item, random, _SIDE).save(content, format="PNG")
    name = f"images/{item.id}.png"
    with disk_errors(folder), replacing_file(folder / name) as temporary:
        temporary.write_bytes(content.getvalue())
    return f"{name}\tA little drawing of: {item.name}.\n"


def main() -> int:
    """Write the example into a folder."""
    parser = argparse.ArgumentParser(prog="python -m bindlm.training.example", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write")
    folder = parser.parse_args().folder
    try:
        num_train, num_test = write_example(folder, home() / "debian")
    except BindLMError as error:
        print(f"bindlm: error: {error}", file=sys.stderr)
        return 4
    print(f"{num_train} pairs in {folder / 'train.tsv'}, {num_test} held out in {folder / 'test.tsv'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
