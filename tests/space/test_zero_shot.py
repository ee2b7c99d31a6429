"""Naming by the nearest words: prompts averaged on the sphere, then a softmax over scaled cosines."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bindlm.errors import ConfigError
from bindlm.space.zero_shot import DEFAULT_TEMPLATES, TEMPLATE_SETS, class_embeddings, classify, templates_for

from ..tiny import unit_rows


def letters(prompts: list[str]) -> Tensor:
    """A text tower of 26 letter counts, of a length that grows with the prompt."""
    return torch.tensor([[float(prompt.count(chr(97 + index))) for index in range(26)] for prompt in prompts])


def test_a_class_is_the_mean_of_its_unit_prompts_at_unit_length() -> None:
    templates = ("a photo of a {}.", "{}")
    rows = class_embeddings(letters, ["cat", "dog"], templates)
    for row, label in zip(rows, ["cat", "dog"], strict=True):
        long, short = letters([f"a photo of a {label}.", label])
        expected = normalize(normalize(long, dim=0) + normalize(short, dim=0), dim=0)
        torch.testing.assert_close(row, expected)
    assert rows.norm(dim=1).tolist() == pytest.approx([1, 1])


def test_many_classes_come_in_order_and_in_bounded_batches() -> None:
    labels = [f"{'a' * (index % 50)}{'b' * (index // 50 + 1)}" for index in range(2500)]
    sizes = []

    def count(prompts: list[str]) -> Tensor:
        sizes.append(len(prompts))
        return letters(prompts)

    rows = class_embeddings(count, labels)
    assert max(sizes) <= 1024
    torch.testing.assert_close(rows, normalize(letters(labels), dim=1))


def test_a_label_may_hold_braces() -> None:
    seen: list[str] = []
    class_embeddings(lambda prompts: seen.extend(prompts) or letters(prompts), ["a{}", "{0}b"], ["see {}"])
    assert seen == ["see a{}", "see {0}b"]


def test_probabilities_are_the_softmax_of_scaled_cosines_falling() -> None:
    embeddings, classes = unit_rows(5, seed=1), unit_rows(7, seed=2)
    shares, numbers = classify(embeddings, classes, logit_scale=10.0, top_k=7)
    expected = (10.0 * embeddings @ classes.T).softmax(dim=1)
    torch.testing.assert_close(shares, expected.gather(1, numbers))
    assert (shares.diff(dim=1) <= 0).all()
    assert [sorted(row) for row in numbers.tolist()] == [list(range(7))] * 5
    torch.testing.assert_close(classify(embeddings, classes, logit_scale=10.0, top_k=2)[1], numbers[:, :2])


def test_the_scale_changes_how_sure_it_looks_and_never_the_order() -> None:
    embeddings, classes = unit_rows(3, seed=3), unit_rows(6, seed=4)
    mild, sharp = (classify(embeddings, classes, logit_scale=scale, top_k=6) for scale in (1.0, 20.0))
    assert torch.equal(mild[1], sharp[1])
    assert (sharp[0][:, 0] > mild[0][:, 0]).all()


def test_equally_likely_classes_come_lowest_first_and_few_classes_are_all_given() -> None:
    shares, numbers = classify(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]] * 3), top_k=10)
    assert numbers.tolist() == [[0, 1, 2]]
    assert shares.tolist() == [pytest.approx([1 / 3] * 3)]


def test_half_precision_gives_fp32() -> None:
    rows = class_embeddings(lambda prompts: letters(prompts).to(torch.bfloat16), ["cat", "dog"])
    assert rows.dtype == torch.float32
    assert classify(rows.to(torch.bfloat16), rows)[0].dtype == torch.float32


@pytest.mark.parametrize("template", [*(t for ts in TEMPLATE_SETS.values() for t in ts)])
def test_templates_of_the_sets_hold_one_place(template: str) -> None:
    assert template.count("{}") == 1


def test_each_sense_has_a_default_and_sets_go_by_name() -> None:
    assert set(DEFAULT_TEMPLATES) == {"image", "video", "text", "audio", "depth", "thermal", "imu", "point"}
    assert templates_for("image") == ("a photo of a {}.",)
    assert templates_for("audio") == ("a sound of {}.",)
    assert templates_for("image", "sounds") == TEMPLATE_SETS["sounds"]
    assert templates_for("image", "I see {}") == ("I see {}",)
    assert templates_for("image", ["{}?", "{}!"]) == ("{}?", "{}!")


@pytest.mark.parametrize("templates", ["no place", "{} and {}", "{0}", [], ["{}", "none"]])
def test_templates_without_one_place_are_refused(templates: str | list[str]) -> None:
    with pytest.raises(ConfigError, match="template"):
        templates_for("image", templates)


@pytest.mark.parametrize("labels", [[], "cat", ["cat", " "], ["cat", "dog", "cat"]])
def test_labels_among_which_nothing_can_be_chosen_are_refused(labels: list[str]) -> None:
    with pytest.raises(ConfigError, match="labels"):
        class_embeddings(letters, labels)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"logit_scale": 0.0}, "logit_scale"),
        ({"logit_scale": math.nan}, "logit_scale"),
        ({"logit_scale": math.inf}, "logit_scale"),
        ({"top_k": 0}, "top_k"),
        ({"class_embeddings": torch.ones(2, 3)}, "share a width"),
        ({"class_embeddings": torch.ones(0, 4)}, "no rows"),
        ({"embeddings": torch.ones(4)}, "share a width"),
    ],
)
def test_impossible_settings_are_refused(changes: dict, complaint: str) -> None:
    settings = {"embeddings": torch.ones(2, 4), "class_embeddings": torch.ones(3, 4), **changes}
    with pytest.raises(ConfigError, match=complaint):
        classify(settings.pop("embeddings"), settings.pop("class_embeddings"), **settings)
