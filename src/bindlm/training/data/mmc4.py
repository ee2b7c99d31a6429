"""MMC4: documents with pictures between their sentences, of which each picture and its matched sentence is a pair."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from bindlm.training.data.bad_rows import BadRowError, LeftOut
from bindlm.training.data.fields import media_of, modality_of_name, text_of
from bindlm.training.data.files import DataFile
from bindlm.training.data.rows import Outcome, Row, json_rows, samples_of
from bindlm.training.data.sample import Sample
from bindlm.training.stage_recipe import SourceConfig

SUFFIXES = (".jsonl", ".json")


def read_mmc4(file: DataFile, config: SourceConfig) -> Iterator[Outcome]:
    """One document a line: `text_list`, `image_info`, `similarity_matrix` (pictures x sentences).

    Raises:
        ConfigError: The file is no JSON.
    """
    yield from samples_of(json_rows(file), partial(_pairs, min_similarity=config.min_similarity))


def _pairs(row: Row, min_similarity: float | None) -> Iterator[Sample | LeftOut]:
    texts, infos = row.content.get("text_list"), row.content.get("image_info")
    if not isinstance(texts, list) or not isinstance(infos, list):
        raise BadRowError("document without text_list and image_info")
    matrix = row.content.get("similarity_matrix")
    for number, info in enumerate(infos):
        if not isinstance(info, dict):
            raise BadRowError("picture that is no JSON object")
        line = matrix[number] if isinstance(matrix, list) and number < len(matrix) else None
        index, similarity = _match(info, line)
        if not 0 <= index < len(texts):
            raise BadRowError("matched sentence that is not there")
        if min_similarity is not None:
            if similarity is None:
                raise BadRowError("pair without similarity")
            if similarity < min_similarity:
                yield LeftOut("similarity below min_similarity")
                continue
        # Published documents of which a picture was not fetched have its address only.
        media = media_of(info.get("image_name") or info.get("raw_url"))
        caption = text_of(texts[index], "sentence").strip()
        yield Sample(f"{row.id}#{number}", captions=(caption,), media=media, modality=modality_of_name(media))


def _match(info: dict[str, Any], similarities: Any) -> tuple[int, float | None]:
    """The sentence of a picture and how similar it is: as the document says, else the most similar one."""
    index, similarity = info.get("matched_text_index"), info.get("matched_sim")
    line = [float(each) if _is_number(each) else -math.inf for each in similarities or []] if isinstance(
        similarities, list) else []  # fmt: skip
    if type(index) is not int:
        if not line:
            raise BadRowError("picture without matched sentence")
        index = max(range(len(line)), key=line.__getitem__)
        similarity = None
    if not _is_number(similarity):
        similarity = line[index] if 0 <= index < len(line) and math.isfinite(line[index]) else None
    return index, None if similarity is None else float(similarity)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
