"""Many answers at once: joint embeddings, through the visual cache or past it, to what the language model says."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bindlm.errors import CheckpointError
from bindlm.space import VisualCache
from bindlm.space.entry_names import NamedEntry

MAX_NEW_TOKENS = 40


def embed_all(bound: Any, sense: str, media: Sequence[Any], batch_size: int) -> Tensor:
    """Joint embeddings `(N, D_joint)`, unit length, with a bar on stderr.

    Raises:
        MediaError: a medium cannot be used.
        ConfigError: the model lacks the sense.
    """
    from tqdm import tqdm

    bound.encoder.check_modality(sense)
    parts = []
    with tqdm(total=len(media), desc=f"embedding {sense}", file=sys.stderr, leave=False) as bar:
        for start in range(0, len(media), batch_size):
            batch = list(media[start : start + batch_size])
            parts.append(bound.embed(**{sense: batch}, batch_size=batch_size))
            bar.update(len(batch))
    return torch.cat(parts) if parts else torch.zeros(0, bound.encoder.dim)


@torch.inference_mode()
def answer_all(
    bound: Any, joint: Tensor, cache: VisualCache | None, question: str, *, batch_size: int = 16, desc: str = "asking"
) -> list[str]:
    """Greedy answers to one question about each joint embedding.

    Args:
        bound: a bound model with its processor.
        joint: `(N, D_joint)`.
        cache: what pulls the embeddings toward its entries; None leaves them as they are.
        question: in plain words.
        batch_size: answers made at once.
        desc: what the bar on stderr says.
    """
    from tqdm import tqdm

    tokenizer = bound.processor.tokenizer
    prompt = bound.processor.tokenize_chat([{"role": "user", "content": question}], is_conditioned=True)["input_ids"]
    prompt = prompt.to(bound.device)  # (1, T): all rows ask the same, so nothing is padded
    texts: list[str] = []
    with tqdm(total=len(joint), desc=desc, file=sys.stderr, leave=False) as bar:
        for rows in joint.to(bound.device).split(batch_size):
            pulled = cache.enhance(rows) if cache is not None else rows
            output = bound.generate(
                input_ids=prompt.expand(len(rows), -1),
                attention_mask=torch.ones_like(prompt).expand(len(rows), -1),
                condition=bound.bridge(pulled.to(bound.bridge.dtype)),
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
            decoded = tokenizer.batch_decode(output[:, prompt.shape[1] :], skip_special_tokens=True)
            texts += [text.strip() for text in decoded]
            bar.update(len(rows))
    return texts


def nearest_names(joint: Tensor, cache: VisualCache, entries: Sequence[NamedEntry]) -> list[str]:
    """What the cache entry nearest to each joint embedding is called."""
    nearest = cache.search(joint.to(cache.keys.device))[1][:, 0]
    return [entries[number].name for number in nearest.tolist()]


def cache_without(cache: VisualCache, left_out: Sequence[int]) -> VisualCache:
    """A cache that lacks some entries."""
    kept = torch.ones(cache.config.num_entries, dtype=torch.bool)
    kept[list(left_out)] = False
    count = int(kept.sum())
    smaller = VisualCache(replace(cache.config, num_entries=count, top_k=min(cache.config.top_k, count)))
    smaller.to(cache.keys)
    smaller.keys.copy_(cache.keys[kept])
    if cache.values is not None and smaller.values is not None:
        smaller.values.copy_(cache.values[kept])
    return smaller


def check_entries(cache: VisualCache | None, entries: Sequence[NamedEntry]) -> None:
    """Refuse names that are not those of the cache.

    Raises:
        CheckpointError: there are more or fewer of them than entries.
    """
    if entries and (cache is None or cache.config.num_entries != len(entries)):
        there = "no cache" if cache is None else f"a cache of {cache.config.num_entries} entries"
        raise CheckpointError(
            f"the model has {there}, but its cache_entries.json names {len(entries)}; export it anew"
        )
