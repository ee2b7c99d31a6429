"""The report about a data set."""

import json

import pytest

from bindlm.errors import ConfigError
from bindlm.training.data.check import check_source, pieces_of
from bindlm.training.data.lengths_plot import plot_lengths
from bindlm.training.render import render
from bindlm.training.stage_recipe import PromptConfig

from ...tiny import tiny_tokenizer

ROWS = [
    {
        "image": "a.jpg",
        "conversations": [{"from": "human", "value": "<image>\nOne?"}, {"from": "gpt", "value": "1 Ä门"}],
    },
    {"image": "b.jpg", "conversations": [{"from": "human", "value": "Two?"}, {"from": "gpt", "value": "2"}]},
    {"image": "b.jpg", "conversations": [{"from": "human", "value": "Two?"}, {"from": "gpt", "value": "2"}]},
    {"conversations": [{"from": "human", "value": "Three?"}, {"from": "gpt", "value": "3" * 40}]},
    {"conversations": []},
]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def source(json_file, tmp_path, opened):
    (tmp_path / "a.jpg").write_bytes(b"jpg")
    return opened("llava", json_file(ROWS))


def test_counts_media_and_duplicates_are_reported(source, tokenizer):
    report = check_source(source, tokenizer, PromptConfig())
    assert (report.samples, report.bad, report.bad_reasons) == (4, 1, {"conversation without an answer": 1})
    assert (report.with_media, report.without_media, dict(report.modalities)) == (3, 1, {"image": 3})
    assert (report.missing, report.missing_names, report.duplicates) == (2, ["b.jpg", "b.jpg"], 1)
    json.dumps(report.to_dict())


def test_lengths_are_those_of_rendering_before_the_cut(source, tokenizer):
    report = check_source(source, tokenizer, PromptConfig(max_tokens=60))
    expected = [
        len(render(each, tokenizer, PromptConfig(max_tokens=9999), is_conditioned=each.media is not None).input_ids)
        for each in source
    ]
    assert report.token_lengths == expected
    lengths = report.lengths
    assert (lengths.min, lengths.max, lengths.measured) == (min(expected), max(expected), 4)
    assert lengths.min <= lengths.median <= lengths.p95 <= lengths.max
    assert report.share_cut == sum(length > 60 for length in expected) / 4 > 0


@pytest.mark.parametrize("template", ["chat", "alpaca"])
def test_shown_samples_mark_the_answers_only_as_learned(source, tokenizer, template):
    report = check_source(source, tokenizer, PromptConfig(template=template))
    shown = {each.id: each.pieces for each in report.shown}
    pieces = shown["data.json:1"]
    assert [is_learned for _, is_learned in pieces][:2] == [False, True]
    assert "One?" in pieces[0][0]
    assert "".join(text for text, is_learned in pieces if is_learned).startswith("1 Ä门")
    assert len(shown) == 3


def test_pieces_put_together_are_the_whole_text(source, tokenizer):
    sample = source.sample(source.rows[0])
    rendered = render(sample, tokenizer, PromptConfig(), is_conditioned=True)
    whole = tokenizer.decode(rendered.input_ids, clean_up_tokenization_spaces=False)
    assert "".join(text for text, _ in pieces_of(rendered, tokenizer)) == whole


def test_a_tokenizer_without_a_template_is_a_config_error(source):
    bare = tiny_tokenizer()
    bare.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        check_source(source, bare, PromptConfig())


def test_conversations_that_the_template_refuses_are_counted(source, tokenizer):
    picky = tiny_tokenizer()
    picky.chat_template = (
        "{% if 'Three' in messages[0]['content'] %}{{ raise_exception('no') }}{% endif %}" + tokenizer.chat_template
    )
    report = check_source(source, picky, PromptConfig())
    assert (report.refused, len(report.token_lengths), len(report.shown)) == (1, 3, 2)


def test_lengths_are_drawn(tmp_path):
    for lengths in ([3], [1, 2, 2, 50, 900]):
        plot_lengths(tmp_path / "lengths.png", lengths, 96, title="a $x$ \x1b set")
        assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["lengths.png"]
    with pytest.raises(ConfigError, match="suffix"):
        plot_lengths(tmp_path / "lengths.txt", [1], 96)
