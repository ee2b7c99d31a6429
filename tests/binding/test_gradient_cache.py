"""Large batches in little memory: the same loss and gradients, and a peak that does not grow with the batch."""

import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bindlm.binding.gradient_cache import embed_in_chunks
from bindlm.binding.objective import contrastive_loss

from .binding_case import unit_rows


def gradients(net: nn.Module, values: torch.Tensor, chunk: int, **options: Any) -> tuple[float, list[torch.Tensor]]:
    net.zero_grad()
    media = nn.functional.normalize(embed_in_chunks(net, values, chunk, **options), dim=-1)
    loss = contrastive_loss(media, unit_rows(len(values)), 10.0)
    loss.backward()
    return loss.item(), [parameter.grad.clone() for parameter in net.parameters()]


def net(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), *middle, nn.Linear(32, 16))


@pytest.mark.parametrize("chunk", [1, 3, 5, 12, 50])
def test_loss_and_gradients_are_those_of_the_whole_batch(chunk):
    values, model = torch.randn(12, 8, generator=torch.Generator().manual_seed(1)), net()
    whole, wanted = gradients(model, values, 12)
    loss, found = gradients(model, values, chunk)
    assert loss == pytest.approx(whole, rel=1e-6)
    for one, other in zip(found, wanted, strict=True):
        # sums in another order, in fp32: 2e-7 at most seen, of gradients of 1e-2
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_dropout_falls_in_backward_as_it_fell_before():
    values, model = torch.randn(12, 8, generator=torch.Generator().manual_seed(1)), net(nn.Dropout(0.5))

    def plain_chunks(rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([model(part) for part in rows.tensor_split(3)])

    torch.manual_seed(7)
    loss, found = gradients(model, values, 5)
    torch.manual_seed(7)
    model.zero_grad()
    media = nn.functional.normalize(plain_chunks(values), dim=-1)
    wanted = contrastive_loss(media, unit_rows(12), 10.0)
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-6)
    for one, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-5, atol=1e-7)


def test_the_random_state_afterwards_is_as_if_nothing_was_made_twice():
    values, model = torch.randn(12, 8), net(nn.Dropout(0.5))
    torch.manual_seed(7)
    gradients(model, values, 5)
    after = torch.random.get_rng_state()
    torch.manual_seed(7)
    with torch.no_grad():
        embed_in_chunks(model, values, 5)
    assert torch.equal(torch.random.get_rng_state(), after)


def test_batch_norms_count_each_chunk_once():
    values, norm = torch.randn(12, 8, generator=torch.Generator().manual_seed(1)), nn.BatchNorm1d(32)
    model = net(norm)
    with torch.no_grad():
        embed_in_chunks(model, values, 4)
    wanted = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    norm.reset_running_stats()
    gradients(model, values, 4, module=model)
    for name, buffer in norm.named_buffers():
        assert torch.equal(buffer, wanted[name]), name


class Peak(TorchDispatchMode):
    """Most bytes that tensors made while it is on took together."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        address = storage._cdata
        if address in self._seen:
            return
        self._seen.add(address)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._release, address, storage.nbytes())

    def _release(self, address: int, size: int) -> None:
        self._seen.discard(address)
        self.now -= size


def peak_bytes(rows: int, chunk: int) -> int:
    """Beyond input, embeddings and similarities, whose loss is left out here."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 2))
    values = torch.randn(rows, 4)
    with Peak() as peak:
        embed_in_chunks(model, values, chunk).square().mean().backward()
    return peak.most


def test_peak_memory_does_not_grow_with_the_batch():
    whole = peak_bytes(2048, chunk=2048)
    assert whole > 3 * peak_bytes(512, chunk=512)  # the measure sees what it should
    small = peak_bytes(512, chunk=32)
    assert small < whole / 4
    assert peak_bytes(4096, chunk=32) < 1.3 * small
