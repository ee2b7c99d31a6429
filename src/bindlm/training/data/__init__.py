"""What a model is trained on: published data sets of many layouts, read into one kind of sample."""

from bindlm.training.data.sample import Sample, Turn
from bindlm.training.data.sources import FORMATS, Source, media_key, open_source

__all__ = ["FORMATS", "Sample", "Source", "Turn", "media_key", "open_source"]
