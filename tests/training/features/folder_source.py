"""A data set that is a folder of pictures, and an embedder that another process can make."""

from pathlib import Path

import numpy as np
from PIL import Image

from bindlm.errors import MediaError


class FolderSource:
    """Has what extraction uses of a `bindlm.training.data.Source`."""

    def __init__(self, folder, name="photos", media=None, modality="image", as_bytes=False):
        self.folder = Path(folder)
        self.name = name
        self.as_bytes = as_bytes
        media = sorted(each.name for each in self.folder.iterdir()) if media is None else media
        self.rows = [{"media": each, "modality": modality} for each in media]

    def read_media(self, media):
        path = self.folder / media
        if not path.is_file():
            raise MediaError(f"Cannot use '{media}': there is no such file. Check media_root.")
        return path.read_bytes() if self.as_bytes else path


def save_pictures(folder, count, *, start=0, size=(12, 9)):
    """Pictures of as many colours, called 000.png and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        random = np.random.default_rng(number)
        pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder
