"""The mini's pairs of an embedding and words, as files that `bindlm train` reads: captions, dialogues and features.

Elsewhere a stage's features are those of pictures. The mini has few pictures and many names, so its features are
prototypes made as uncertain as photographs are (`samples.py`), stored in the same kind of store.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bindlm.checkpoints.state import write_text_atomic
from bindlm.space.entry_names import NamedEntry
from bindlm.training.features.extract import extract_features
from bindlm.training.mini.draws import EntryDraws
from bindlm.training.mini.recipes import PairsConfig
from bindlm.training.mini.vocabulary import any_dialogue, name_dialogue, sentence
from bindlm.training.stage_recipe import FeaturesConfig

_AT_ONCE = 256


def write_pairs(folder: Path, draws: EntryDraws, config: PairsConfig, *, fingerprint: str) -> None:
    """Write `captions.jsonl`, `dialogues.json` and `features/`; nothing is done where they are whole already.

    Args:
        folder: made where absent.
        draws: entries with embeddings.
        config: how many, and what is asked.
        fingerprint: of the encoder whose space the embeddings are of; a stage refuses features of another one.
    """
    done = folder / "done.json"
    wanted = json.dumps([fingerprint, repr(config)])
    if done.is_file() and done.read_text(encoding="utf-8") == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    random = np.random.default_rng(config.seed)
    kinds = sorted({entry.kind for entry in draws.entries if entry.kind})
    captions, dialogues = DrawnMedia("captions"), DrawnMedia("dialogues")
    for start in range(0, config.num_samples, _AT_ONCE):
        numbers, drawn = draws.draw(min(_AT_ONCE, config.num_samples - start), random)
        for offset, (number, embedding) in enumerate(zip(numbers, drawn, strict=True)):
            name, entry = f"{start + offset:06}", draws.entries[number]
            if random.random() < config.bare_turns:
                captions.add(name, embedding, {"caption": sentence(entry)})
            else:
                question, answer = _dialogue(entry, kinds, config.other_questions, random)
                turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
                dialogues.add(name, embedding, {"conversations": turns})
    embedder = GivenEmbeddings(drawn.shape[1], fingerprint)
    store = FeaturesConfig(path=str(folder / "features"), batch_size=_AT_ONCE)
    extract_features([captions, dialogues], embedder, store, progress=False)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in captions.data)
    write_text_atomic(folder / "captions.jsonl", lines)
    write_text_atomic(folder / "dialogues.json", json.dumps(dialogues.data, ensure_ascii=False, indent=0) + "\n")
    write_text_atomic(done, wanted)


class DrawnMedia:
    """A data set whose media are embeddings that were drawn, not files.

    Args:
        name: of the data file without its ending, which names the source in the stage's recipe.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.data: list[dict[str, Any]] = []
        """Rows of the file."""
        self._embeddings: dict[str, bytes] = {}

    def add(self, name: str, embedding: Tensor, words: dict[str, Any]) -> None:
        """A row with its embedding `(D_joint,)`."""
        self.data.append({"id": name, "image": name, **words})
        self._embeddings[name] = embedding.half().numpy().tobytes()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What the feature store looks at."""
        return [{"media": row["image"], "modality": "image"} for row in self.data]

    def read_media(self, media: str) -> bytes:
        """The embedding, as fp16."""
        return self._embeddings[media]


class GivenEmbeddings:
    """Stands where an embedder stands, for media that are their own embeddings.

    Args:
        dim: D_joint.
        fingerprint: of the encoder that would have made them.
    """

    modalities = ("image",)
    name = "mini"

    def __init__(self, dim: int, fingerprint: str) -> None:
        self.dim = dim
        self.fingerprint = fingerprint

    def preprocess(self, modality: str, source: bytes, *, allow_url: bool = False) -> Tensor:
        """`(D_joint,)`."""
        return torch.from_numpy(np.frombuffer(source, dtype=np.float16).copy()).float()

    def stream(
        self, modality: str, sources: Iterable[bytes], *, batch_size: int = 8, workers: int | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Each medium's number and embedding."""
        for number, source in enumerate(sources):
            yield number, self.preprocess(modality, source)


def _dialogue(
    entry: NamedEntry, kinds: list[str], has_other_questions: bool, random: np.random.Generator
) -> tuple[str, str]:
    return any_dialogue(entry, kinds, random) if has_other_questions else name_dialogue(entry, random)
