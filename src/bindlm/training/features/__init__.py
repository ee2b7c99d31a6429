"""Joint embeddings of a data set's media, made once by the frozen encoder and read by every epoch."""

from bindlm.training.features.extract import FeatureReport, extract_features
from bindlm.training.features.on_ray import Factory, extract_on_ray
from bindlm.training.features.store import FeatureStore

__all__ = ["Factory", "FeatureReport", "FeatureStore", "extract_features", "extract_on_ray"]
