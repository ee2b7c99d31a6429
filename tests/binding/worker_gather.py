"""One of two processes of a contrastive step: python worker_gather.py MEETING_FILE OUTPUT RANK."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from bindlm.binding.objective import LogitScale, contrastive_loss


def main(meeting: str, output: str, rank: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=2)
    for is_symmetric in (False, True):
        torch.save(step(int(rank), is_symmetric), Path(output) / f"{int(is_symmetric)}-{rank}.pt")
    dist.destroy_process_group()


def step(rank: int, is_symmetric: bool) -> dict[str, torch.Tensor]:
    """This process's share of the loss, and its gradients."""
    torch.manual_seed(0)
    layer, values = torch.nn.Linear(8, 16), torch.randn(6, 8)
    generator = torch.Generator().manual_seed(0)
    anchors = torch.nn.functional.normalize(torch.randn(6, 16, generator=generator), dim=-1)
    keys = torch.tensor([[0], [1], [0], [2], [3], [1]])
    is_present = torch.tensor([True, True, False, True, True, True])
    scale, mine = LogitScale(0.1), slice(3 * rank, 3 * rank + 3)
    media = torch.nn.functional.normalize(layer(values[mine]), dim=-1)
    loss = contrastive_loss(
        media, anchors[mine], scale(), keys=keys[mine], is_present=is_present[mine], is_symmetric=is_symmetric
    )
    loss.backward()
    return {"loss": loss.detach(), "weight": layer.weight.grad, "bias": layer.bias.grad, "scale": scale.log_scale.grad}


if __name__ == "__main__":
    main(*sys.argv[1:])
