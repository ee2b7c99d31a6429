"""Token pretraining of the bridge: before any pass through the language model, learn to point at the name's tokens.

A language model reads its last hidden state through its final norm and its head. If the bridge's output, read in the
same way, already gives the tokens of the name, then the injection has something to say from the first step. This costs
no pass of the language model and saves most of them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from bindlm.bridges import BindNetwork
from bindlm.space import VisualCacheBase
from bindlm.space.entry_names import NamedEntry


class Readout(nn.Module):
    """Bridge, then the language model's own final norm and head, restricted to the tokens that names use.

    Args:
        bridge: what is trained.
        cache: the visual cache in front of it, or None.
        final_norm: weight of the language model's final norm, `(D_lm,)`.
        head: its head, `(V, D_lm)`.
        targets: `(E, V)` rows summing to 1: how much each token counts for each entry.
    """

    def __init__(
        self, bridge: BindNetwork, cache: VisualCacheBase | None, final_norm: Tensor, head: Tensor, targets: Tensor
    ) -> None:
        super().__init__()
        self.bridge = bridge
        self.cache = cache
        used = targets.sum(dim=0) > 0
        self.register_buffer("head", (head[used] * final_norm).detach().clone(), persistent=False)  # (U, D_lm)
        self.register_buffer("targets", targets[:, used].clone(), persistent=False)  # (E, U)

    def forward(self, joint_embedding: Tensor, entry: Tensor) -> dict[str, Tensor]:
        """Cross entropy between read-out tokens and those of the name.

        Args:
            joint_embedding: `(B, D_joint)`.
            entry: `(B,)` entry numbers.
        """
        if self.cache is not None:
            joint_embedding = self.cache.enhance(joint_embedding)
        condition = self.bridge(joint_embedding).squeeze(1)  # (B, D_lm)
        logits = F.rms_norm(condition, condition.shape[-1:]) @ self.head.T  # type: ignore[operator]
        loss = F.cross_entropy(logits, self.targets[entry])  # type: ignore[index]
        return {"loss": loss, "logits": logits}


def name_targets(
    entries: list[NamedEntry], tokenizer: PreTrainedTokenizerBase, vocab_size: int, kind_share: float
) -> Tensor:
    """Token shares `(E, V)` of each entry: mostly its name, the first token twice, some its kind."""
    targets = torch.zeros(len(entries), vocab_size)
    for row, entry in enumerate(entries):
        name = tokenizer(" " + entry.name, add_special_tokens=False)["input_ids"]
        kind = tokenizer(" " + entry.kind, add_special_tokens=False)["input_ids"] if entry.kind else []
        for token in [name[0], *name]:
            targets[row, token] += (1 - kind_share * bool(kind)) / (len(name) + 1)
        for token in kind:
            targets[row, token] += kind_share / len(kind)
    return targets
