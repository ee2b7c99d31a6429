"""Training samples of the mini: an embedding, a question, an answer."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from bindlm.processing import CONDITIONED_CHAT_TEMPLATE
from bindlm.training.mini.samples import EmbeddingSampler
from bindlm.training.mini.vocabulary import Entry, any_dialogue, name_dialogue, sentence

IGNORED = -100
"""Label of a token without loss."""


@dataclass
class MixConfig:
    """What a stage's samples are made of."""

    classes: float = 0.74
    """Share of samples drawn from the 1000 classes."""
    emoji: float = 0.12
    """Share drawn from emoji; the rest is furniture."""
    bare_turns: float = 0.5
    """Share of batches that are a bare assistant turn: half as long as with a question."""
    other_questions: bool = False
    """Whether questions other than for the name are asked."""


class MiniDataset(Dataset[dict[str, Any]]):
    """Batches are a function of the seed and their first index alone, so a resumed run sees what it would have seen.

    Args:
        entries: what can be named.
        sampler: their embeddings.
        tokenizer: of the language model; None leaves out the text.
        mix: what samples are made of.
        num_samples: length.
        seed: of everything random.
    """

    def __init__(
        self,
        entries: list[Entry],
        sampler: EmbeddingSampler,
        tokenizer: PreTrainedTokenizerBase | None,
        mix: MixConfig,
        *,
        num_samples: int,
        seed: int,
    ) -> None:
        self.entries = entries
        self.sampler = sampler
        self.tokenizer = tokenizer
        self.mix = mix
        self.num_samples = num_samples
        self.seed = seed
        self.kinds = sorted({entry.kind for entry in entries if entry.kind})
        self._by_source = {
            source: [index for index, entry in enumerate(entries) if entry.source == source]
            for source in ("imagenet", "emoji", "furniture")
        }
        self._prompts: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return self.num_samples

    def _entry(self, random: np.random.Generator) -> int:
        draw = random.random()
        source = "imagenet" if draw < self.mix.classes else "emoji" if draw < self.mix.classes + self.mix.emoji else ""
        choices = self._by_source[source or "furniture"]
        return choices[int(random.integers(len(choices)))]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """A whole batch at once, as torch's loader asks for it."""
        random = np.random.default_rng([self.seed, indices[0]])
        numbers = [self._entry(random) for _ in indices]
        embeddings = self.sampler.draw(numbers, random)
        # bare or not is drawn for a whole batch, so that short turns are not padded to long ones
        is_bare = random.random() < self.mix.bare_turns
        samples = []
        for number, embedding in zip(numbers, embeddings, strict=True):
            sample: dict[str, Any] = {"joint_embedding": embedding, "entry": number}
            if self.tokenizer is not None:
                sample |= self._text(self.entries[number], is_bare, random)
            samples.append(sample)
        return samples

    def _text(self, entry: Entry, is_bare: bool, random: np.random.Generator) -> dict[str, list[int]]:
        assert self.tokenizer is not None
        question, answer = None, sentence(entry)
        if not is_bare and self.mix.other_questions:
            question, answer = any_dialogue(entry, self.kinds, random)
        elif not is_bare:
            question, answer = name_dialogue(entry, random)
        return {
            "prompt_ids": self._prompt_ids(question),
            "answer_ids": self.tokenizer(answer + "<|im_end|>", add_special_tokens=False)["input_ids"],
        }

    def _prompt_ids(self, question: str | None) -> list[int]:
        """Tokens before the answer; without a question, the opened assistant's turn alone."""
        assert self.tokenizer is not None
        key = question or ""
        if key not in self._prompts:
            text = "<|im_start|>assistant\n"
            if question:
                text = self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": question}],
                    chat_template=CONDITIONED_CHAT_TEMPLATE,
                    tokenize=False,
                    add_generation_prompt=True,
                )
            self._prompts[key] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._prompts[key]


def collate(samples: list[dict[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
    """Samples to one left-padded batch.

    Answers end at the right edge, so that logits are needed for the last `labels.shape[1]` positions only.

    Returns:
        `joint_embedding` `(B, D_joint)`, `input_ids`, `attention_mask`, `position_ids` `(B, T)` and `labels` `(B, A)`,
        A the longest answer.
    """
    width = max(len(sample["prompt_ids"]) + len(sample["answer_ids"]) for sample in samples)
    answer_width = max(len(sample["answer_ids"]) for sample in samples)
    input_ids = torch.full((len(samples), width), pad_token_id)
    mask = torch.zeros(len(samples), width, dtype=torch.long)
    labels = torch.full((len(samples), answer_width), IGNORED)
    for row, sample in enumerate(samples):
        ids = torch.tensor(sample["prompt_ids"] + sample["answer_ids"])
        input_ids[row, -len(ids) :] = ids
        mask[row, -len(ids) :] = 1
        labels[row, -len(sample["answer_ids"]) :] = torch.tensor(sample["answer_ids"])
    return {
        "joint_embedding": torch.stack([sample["joint_embedding"] for sample in samples]),
        "input_ids": input_ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(dim=1) - 1).clamp_min(0),
        "labels": labels,
    }
