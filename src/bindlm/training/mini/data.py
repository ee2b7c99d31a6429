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
    """Sample `index` is a function of seed and index alone, so a resumed run sees what it would have seen."""

    def __init__(
        self,
        entries: list[Entry],
        sampler: EmbeddingSampler,
        tokenizer: PreTrainedTokenizerBase,
        mix: MixConfig,
        *,
        num_samples: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.entries = entries
        self.sampler = sampler
        self.tokenizer = tokenizer
        self.mix = mix
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.kinds = sorted({entry.kind for entry in entries if entry.kind})
        self._by_source = {
            source: [index for index, entry in enumerate(entries) if entry.source == source]
            for source in ("imagenet", "emoji", "furniture")
        }

    def __len__(self) -> int:
        return self.num_samples

    def _entry(self, random: np.random.Generator) -> int:
        draw = random.random()
        source = "imagenet" if draw < self.mix.classes else "emoji" if draw < self.mix.classes + self.mix.emoji else ""
        choices = self._by_source[source or "furniture"]
        return choices[int(random.integers(len(choices)))]

    def __getitem__(self, index: int) -> dict[str, Any]:
        random = np.random.default_rng([self.seed, index])
        number = self._entry(random)
        entry = self.entries[number]
        # the same draw for a whole batch, so that short turns are not padded to long ones
        batch_random = np.random.default_rng([self.seed, 1, index // self.batch_size])
        if batch_random.random() < self.mix.bare_turns:
            prompt, answer = "<|im_start|>assistant\n", sentence(entry)
        else:
            dialogue = any_dialogue(entry, self.kinds, random) if self.mix.other_questions else name_dialogue(entry, random)
            question, answer = dialogue
            prompt = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": question}],
                chat_template=CONDITIONED_CHAT_TEMPLATE,
                tokenize=False,
                add_generation_prompt=True,
            )
        prompt_ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer_ids = self.tokenizer(answer + "<|im_end|>", add_special_tokens=False)["input_ids"]
        return {
            "joint_embedding": self.sampler.draw(number, random),
            "prompt_ids": prompt_ids,
            "answer_ids": answer_ids,
            "entry": number,
        }


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
