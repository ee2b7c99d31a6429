"""The contrastive loss: what it is a mean of, whom it leaves out, and that devices together make one batch."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bindlm.binding.objective import LogitScale, contrastive_loss
from bindlm.errors import ConfigError

from .binding_case import unit_rows


def by_hand(media, anchors, scale, keys=None, negatives=()):
    """Row by row, with Python's own numbers."""

    def one_way(queries, candidates, further):
        losses = []
        for i, query in enumerate(queries):
            logits = []
            for j, candidate in enumerate(candidates):
                is_out = keys is not None and any(a == b and a >= 0 for a, b in zip(keys[i], keys[j], strict=True))
                if i == j or not is_out:
                    logits.append(scale * float(query @ candidate))
            logits += [scale * float(query @ other) for other in further]
            right = scale * float(query @ candidates[i])
            losses.append(math.log(sum(math.exp(logit - right) for logit in logits)))
        return sum(losses) / len(losses)

    return (one_way(media, anchors, negatives) + one_way(anchors, media, ())) / 2


@given(
    rows=st.integers(2, 7),
    seed=st.integers(0, 99),
    scale=st.floats(1, 30),
    keys=st.lists(st.tuples(st.integers(-1, 2), st.integers(-1, 3)), min_size=7, max_size=7),
)
def test_the_loss_is_what_the_formula_says(rows, seed, scale, keys):
    media, anchors = unit_rows(rows, seed=seed), unit_rows(rows, seed=seed + 1000)
    found = contrastive_loss(media, anchors, scale, keys=torch.tensor(keys[:rows]))
    assert found.item() == pytest.approx(by_hand(media, anchors, scale, keys[:rows]), rel=1e-4, abs=1e-5)


def test_further_anchors_count_as_negatives_of_media_alone():
    media, anchors, further = unit_rows(4), unit_rows(4, seed=1), unit_rows(3, seed=2)
    found = contrastive_loss(media, anchors, 5.0, negatives=further)
    assert found.item() == pytest.approx(by_hand(media, anchors, 5.0, negatives=further), rel=1e-5)


def test_further_anchors_of_the_same_key_do_not_count():
    media, anchors = unit_rows(4), unit_rows(4, seed=1)
    keys = torch.tensor([[0], [1], [2], [3]])
    alone = contrastive_loss(media, anchors, 5.0, keys=keys)
    with_own = contrastive_loss(
        media[:1], anchors[:1], 5.0, keys=keys[:1], negatives=anchors[:1], negative_keys=keys[:1]
    )
    assert with_own.item() == 0.0  # its own anchor again is no negative, and there is no other
    far = contrastive_loss(media, anchors, 5.0, keys=keys, negatives=anchors[:1], negative_keys=torch.tensor([[9]]))
    assert far > alone


def test_swapping_sides_changes_nothing_in_a_symmetric_loss():
    media, anchors = unit_rows(5), unit_rows(5, seed=1)
    torch.testing.assert_close(contrastive_loss(media, anchors, 7.0), contrastive_loss(anchors, media, 7.0))
    one_way = contrastive_loss(media, anchors, 7.0, is_symmetric=False)
    assert not torch.isclose(one_way, contrastive_loss(anchors, media, 7.0, is_symmetric=False))


def test_a_perfect_match_costs_nothing_where_its_twins_are_masked():
    anchors = torch.eye(3)[[0, 0, 1, 2]]  # the first two rows are one and the same
    keys = torch.tensor([[0], [0], [1], [2]])
    assert contrastive_loss(anchors, anchors, 100.0, keys=keys).item() == pytest.approx(0.0, abs=1e-6)
    # unmasked, each of the twins is torn between two that are equally right: half of the rows lose ln 2
    assert contrastive_loss(anchors, anchors, 100.0).item() == pytest.approx(math.log(2) / 2, abs=1e-5)


def test_rows_without_an_anchor_take_no_part():
    media, anchors = unit_rows(5), unit_rows(5, seed=1)
    is_present = torch.tensor([True, False, True, True, False])
    some = contrastive_loss(media, anchors, 5.0, is_present=is_present)
    torch.testing.assert_close(some, contrastive_loss(media[is_present], anchors[is_present], 5.0))


def test_a_batch_without_any_anchor_gives_zero_and_a_zero_gradient():
    media = unit_rows(3).requires_grad_()
    loss = contrastive_loss(media, torch.zeros(3, 16), 5.0, is_present=torch.zeros(3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert not media.grad.any()


def test_gradients_pull_towards_the_own_anchor():
    media, anchors = unit_rows(4).requires_grad_(), unit_rows(4, seed=1)
    contrastive_loss(media, anchors, 5.0).backward()
    assert ((-media.grad * anchors).sum(dim=1) > 0).all()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"\(3, 16\) and \(4, 16\)"):
        contrastive_loss(unit_rows(3), unit_rows(4), 1.0)


# -- temperature ------------------------------------------------------------------------------------------------------


def test_the_temperature_starts_where_it_is_told_and_never_passes_its_ceiling():
    scale = LogitScale(0.05)
    assert scale().item() == pytest.approx(20.0)
    with torch.no_grad():
        scale.log_scale.fill_(50.0)
    assert scale().item() == pytest.approx(100.0)
    with torch.no_grad():
        scale.log_scale.fill_(-3.0)
    assert scale().item() == pytest.approx(1.0)


def test_at_its_ceiling_the_temperature_can_still_come_down():
    scale = LogitScale(0.07)
    with torch.no_grad():
        scale.log_scale.fill_(50.0)
    # every row is nearest to the wrong anchor, so that a lower scale would cost less
    contrastive_loss(torch.eye(2), torch.eye(2).flip(0), scale()).backward()
    assert scale.log_scale.grad > 0


def test_a_fixed_temperature_has_nothing_to_train():
    assert not list(LogitScale(0.2, is_learnable=False).parameters())


# -- several processes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    """Folder of what two gloo processes found; one launch, since most of its time is imports."""
    folder = tmp_path_factory.mktemp("two")
    worker = Path(__file__).with_name("worker_gather.py")
    command = [sys.executable, str(worker), str(folder / "meet"), str(folder)]
    started = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    assert [each.wait(timeout=120) for each in started] == [0, 0]
    return folder


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_two_processes_get_the_gradient_of_the_whole_batch(two_processes, is_symmetric):
    shares = [torch.load(two_processes / f"{int(is_symmetric)}-{rank}.pt", weights_only=True) for rank in range(2)]
    torch.manual_seed(0)
    layer, values, anchors = torch.nn.Linear(8, 16), torch.randn(6, 8), unit_rows(6)
    keys = torch.tensor([[0], [1], [0], [2], [3], [1]])
    is_present = torch.tensor([True, True, False, True, True, True])
    scale = LogitScale(0.1)
    media = torch.nn.functional.normalize(layer(values), dim=-1)
    loss = contrastive_loss(media, anchors, scale(), keys=keys, is_present=is_present, is_symmetric=is_symmetric)
    loss.backward()
    torch.testing.assert_close(torch.stack([share["loss"] for share in shares]).mean(), loss.detach())
    for name, whole in (("weight", layer.weight), ("bias", layer.bias), ("scale", scale.log_scale)):
        mean = torch.stack([share[name] for share in shares]).mean(dim=0)
        torch.testing.assert_close(mean, whole.grad)


def test_distractors_count_as_negatives_unless_they_are_like_the_rows_anchor() -> None:
    anchors = torch.eye(4)[:2]
    embeddings = torch.nn.functional.normalize(torch.tensor([[1.0, 0.2, 0.5, 0.0], [0.1, 1.0, 0.0, 0.3]]), dim=-1)
    unlike, like = torch.eye(4)[2:3], torch.nn.functional.normalize(torch.tensor([[1.0, 0.0, 0.3, 0.0]]), dim=-1)
    plain = contrastive_loss(embeddings, anchors, 5.0, is_symmetric=False)
    assert contrastive_loss(embeddings, anchors, 5.0, distractors=unlike, is_symmetric=False) > plain + 0.01
    logits = 5 * torch.cat([embeddings @ anchors.T, embeddings @ like.T], dim=1)
    logits[0, 2] = -torch.inf  # like the first row's anchor, so none of its negatives
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(2))
    found = contrastive_loss(embeddings, anchors, 5.0, distractors=like, alike=0.5, is_symmetric=False)
    torch.testing.assert_close(found, expected)
