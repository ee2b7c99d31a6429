"""Token ids equal those of the released ImageBind, whatever is typed."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bindlm.media
from bindlm.errors import ConfigError, MediaError
from bindlm.media import TextLimits
from bindlm.media.clip_text import END_ID, START_ID, VOCAB_SIZE, clean_clip_text, tokenize_clip

from ..golden import GOLDEN, golden

MERGES = Path(bindlm.media.__file__).parent / "data" / "clip_bpe_merges.txt.gz"
PREPROCESS = "imagebind/preprocess"


@pytest.fixture
def prompts() -> list[str]:
    golden(f"{PREPROCESS}/text.safetensors")  # skips where there is none
    described = json.loads((GOLDEN / PREPROCESS / "preprocess.json").read_text())
    return [text["prompt"] for text in described["text"]]


def ids(text: str, **settings) -> list[int]:
    """The ids of one text, start, end and padding taken off."""
    row = tokenize_clip([text], **settings)[0].tolist()
    return row[1 : row.index(END_ID)]


def test_ids_equal_the_released(prompts):
    expected = golden(f"{PREPROCESS}/text.safetensors")["token_ids"]
    found = tokenize_clip(prompts)
    assert found.dtype == torch.int64
    assert torch.equal(found, expected)


def test_ids_of_the_older_rule_equal_the_released(prompts):
    expected = golden(f"{PREPROCESS}/text.safetensors")["token_ids_llama_adapter_fork"]
    assert torch.equal(tokenize_clip(prompts, is_end_kept=False), expected)


def test_known_ids():
    """As printed in the documentation of OpenAI's CLIP, so that this holds without golden files too."""
    assert tokenize_clip(["Hello World!"], context_length=8).tolist() == [[START_ID, 3306, 1002, 256, END_ID, 0, 0, 0]]
    assert ids("a photo of a cat") == [320, 1125, 539, 320, 2368]
    assert tokenize_clip([""], context_length=4).tolist() == [[START_ID, END_ID, 0, 0]]


def test_the_shipped_merges_are_those_of_clip():
    text = gzip.decompress(MERGES.read_bytes())
    assert hashlib.sha256(text).hexdigest() == "d308b7377a8ceaa9707a21614fe8c831b9196e197b7aeb69833359362907af02"
    assert len(text.splitlines()) == VOCAB_SIZE - 512 - 2
    assert MERGES.read_bytes()[4:8] == b"\0\0\0\0", "a time in the header makes each build differ"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  A\t\nDOG ", "a dog"),
        ("Caf&amp;eacute;", "café"),
        ("schÃ¶n", "schön"),
        ("it’s ﬁne", "it's fine"),
        ("ＦＵＬＬ", "full"),
        ("ΟΔΟΣ", "οδος"),
    ],
)
def test_cleaning(text, cleaned):
    assert clean_clip_text(text) == cleaned


def test_digits_stand_alone_and_suffixes_are_cut_off():
    assert ids("2023") == [token for digit in "2023" for token in ids(digit)]
    assert ids("dog's") == ids("dog") + ids("'s")


def test_a_special_token_written_out_is_the_token_itself():
    row = tokenize_clip(["a <|endoftext|> b"])[0].tolist()
    assert row[:5] == [START_ID, 320, END_ID, 321, END_ID]


@pytest.mark.parametrize(("num_words", "is_whole"), [(75, True), (76, False), (500, False)])
def test_what_is_too_long_keeps_its_end_unless_told_otherwise(num_words, is_whole):
    text = "dog " * num_words
    kept = tokenize_clip([text])[0]
    lost = tokenize_clip([text], is_end_kept=False)[0]
    assert kept[-1] == END_ID
    assert torch.equal(kept[:-1], lost[:-1])
    assert (lost[-1] == END_ID) == is_whole


def test_padding_and_length_can_be_set():
    assert tokenize_clip(["dog"], context_length=5, pad_id=END_ID)[0].tolist() == [
        START_ID, 1929, END_ID, END_ID, END_ID,
    ]  # fmt: skip
    assert tokenize_clip([]).shape == (0, 77)


def test_a_file_is_read_and_a_str_is_not_a_path(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a dog")
    assert torch.equal(tokenize_clip([path, b"a dog"]), tokenize_clip(["a dog", "a dog"]))
    assert not torch.equal(tokenize_clip([str(path)]), tokenize_clip(["a dog"]))


@pytest.mark.parametrize(
    "settings", [{"context_length": 1}, {"context_length": 7.0}, {"pad_id": -1}, {"pad_id": VOCAB_SIZE}]
)
def test_impossible_settings(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        tokenize_clip(["a"], **settings)


def test_one_bare_text_is_refused():
    with pytest.raises(ConfigError, match=r"write \[text\]"):
        tokenize_clip("a dog")


@pytest.mark.parametrize("text", ["a" * 11, "\0", "\ud800", None, 7])
def test_unusable_texts(text):
    with pytest.raises(MediaError, match="text"):
        tokenize_clip([text], limits=TextLimits(max_characters=10))


def test_a_whole_book_takes_no_longer_than_its_cleaning():
    assert tokenize_clip(["dog " * 200_000])[0, 75] == 1929


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200))
def test_any_text_is_a_row(text):
    row = tokenize_clip([text])[0]
    end = int((row == END_ID).int().argmax())
    assert row[0] == START_ID
    assert end > 0
    assert ((row >= 0) & (row < VOCAB_SIZE)).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=20).filter(lambda text: "\0" not in text), min_size=2, max_size=4))
def test_a_batch_gives_what_each_text_gives_alone(texts):
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    assert torch.equal(tokenize_clip(texts), torch.cat([tokenize_clip([text]) for text in texts]))
