"""Recall, ranks and classification against brute force over every order of the ties."""

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bindlm.binding.evaluate import classification, ranks, retrieval
from bindlm.errors import ConfigError

from .binding_case import unit_rows


def brute_force(scores: list[float], right: set[int], k: int) -> tuple[float, float]:
    """Recall at k and the first right one's rank, averaged over all orders in which equal scores may stand."""
    hits, places = [], []
    for order in permutations(range(len(scores))):
        if any(scores[a] < scores[b] for a, b in zip(order, order[1:], strict=False)):
            continue
        place = min(order.index(each) for each in right) + 1
        hits.append(place <= k)
        places.append(place)
    return sum(hits) / len(hits), sum(places) / len(places)


@st.composite
def questions(draw):
    """Integer vectors, whose inner products are exact and often equal."""
    width, candidates = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    vectors = st.lists(st.integers(-2, 2), min_size=width, max_size=width)
    query = draw(st.lists(vectors, min_size=1, max_size=4))
    gallery = draw(st.lists(vectors, min_size=candidates, max_size=candidates))
    target = draw(st.lists(st.integers(0, candidates - 1), min_size=len(query), max_size=len(query)))
    return torch.tensor(query).float(), torch.tensor(gallery).float(), torch.tensor(target)


@given(questions(), st.integers(1, 6))
def test_recall_and_rank_are_the_mean_over_all_orders_of_ties(question, k):
    query, gallery, target = question
    found = retrieval(query, gallery, target, ks=(k,))
    wanted = [brute_force((gallery @ row).tolist(), {int(right)}, k) for row, right in zip(query, target, strict=True)]
    assert found.recall[k] == pytest.approx(sum(recall for recall, _ in wanted) / len(wanted))
    better, equal, _ = ranks(query, gallery, target)
    assert (1 + better + equal / 2).tolist() == pytest.approx([rank for _, rank in wanted])


@given(questions(), st.integers(1, 6))
def test_classification_is_retrieval_of_the_class(question, k):
    query, gallery, target = question
    found = classification(query, gallery, target, ks=(1, k))
    assert found.top[k] == pytest.approx(retrieval(query, gallery, target, ks=(k,)).recall[k])
    by_class = [
        retrieval(query[target == c], gallery, target[target == c], ks=(1,)).recall[1] for c in target.unique()
    ]
    assert found.mean_of_classes == pytest.approx(sum(by_class) / len(by_class))


@given(st.integers(1, 5), st.integers(1, 6), st.data())
def test_chance_is_what_a_constant_gallery_scores(candidates, k, data):
    rows = [data.draw(st.sets(st.integers(0, candidates - 1), min_size=1)) for _ in range(3)]
    target = torch.tensor([[c in right for c in range(candidates)] for right in rows])
    found = retrieval(torch.ones(3, 2), torch.ones(candidates, 2), target, ks=(k,))
    wanted = [brute_force([0.0] * candidates, right, k) for right in rows]
    assert found.chance[k] == pytest.approx(sum(recall for recall, _ in wanted) / 3)
    assert found.median_rank_by_chance == pytest.approx(sum(rank for _, rank in wanted) / 3)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_equal_embeddings_score_no_better_than_chance(k):
    found = retrieval(torch.ones(4, 2), torch.ones(8, 2), torch.tensor([0, 3, 5, 7]), ks=(k,))
    assert found.recall[k] == pytest.approx(k / 8) == pytest.approx(found.chance[k])
    assert found.median_rank == 4.5


def test_of_several_right_candidates_the_first_counts_and_the_others_do_not_stand_in_its_way():
    gallery = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    target = torch.tensor([[False, True, True]])
    found = retrieval(torch.tensor([[0.0, 1.0]]), gallery, target, ks=(1,))
    assert (found.recall[1], found.median_rank) == (1.0, 1.0)


def test_a_perfect_match_is_found():
    rows = unit_rows(9)
    found = retrieval(rows, rows, torch.arange(9))
    assert found.recall == {1: 1.0, 5: 1.0, 10: 1.0}
    assert found.as_json()["R@1"] == {"score": 1.0, "chance": 0.1111}
    assert classification(rows, rows, torch.arange(9)).as_json()["top-1"]["score"] == 1.0


@pytest.mark.parametrize(
    ("query", "gallery", "target", "said"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), torch.tensor([0, 1]), "share a width"),
        (torch.ones(0, 3), torch.ones(2, 3), torch.tensor([]), "nothing to rank"),
        (torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0, 2]), "names candidate 2"),
        (torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0.0, 1.0]), "must be"),
        (torch.ones(1, 3), torch.ones(2, 3), torch.tensor([[False, False]]), "no right candidate"),
    ],
)
def test_what_cannot_be_ranked_is_refused(query, gallery, target, said):
    with pytest.raises(ConfigError, match=said):
        retrieval(query, gallery, target)
