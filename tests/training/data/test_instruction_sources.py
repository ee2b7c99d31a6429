"""Instruction data of every published shape."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bindlm.errors import ConfigError
from bindlm.training.data import Sample, Turn
from bindlm.training.data.bad_rows import BadRow
from bindlm.training.data.files import DataFile
from bindlm.training.data.sources import FORMATS
from bindlm.training.stage_recipe import SourceConfig

TWO_ROUNDS = [
    {"from": "human", "value": "One?"},
    {"from": "gpt", "value": "1"},
    {"from": "human", "value": "Two?"},
    {"from": "gpt", "value": "2"},
]
ROUND_1 = (Turn("user", "One?"), Turn("assistant", "1"))
ROUND_2 = (Turn("user", "Two?"), Turn("assistant", "2"))
SYSTEM = Turn("system", "Be kind.")


def outcomes(layout, path, **fields):
    return list(FORMATS[layout].read(DataFile(path, path.name), SourceConfig(layout, str(path), **fields)))


@pytest.mark.parametrize("layout", ["alpaca", "gpt4tools"])
@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_alpaca_rows_are_a_question_with_context_and_its_answer(json_file, layout, name):
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "说你好。", "input": "", "output": "你好！"},
        {"instruction": "Hi", "output": "Hello"},
    ]
    assert [sample.turns for sample in outcomes(layout, json_file(rows, name))] == [
        (Turn("user", "Add.", "1 2"), Turn("assistant", "3")),
        (Turn("user", "说你好。"), Turn("assistant", "你好！")),
        (Turn("user", "Hi"), Turn("assistant", "Hello")),
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"output": "x"}, "no instruction"),
        ({"instruction": "x"}, "no output"),
        ({"instruction": "x", "output": " \n"}, "empty output"),
        ({"instruction": "x", "input": 3, "output": "y"}, "input is no text but a number"),
        ({"instruction": "x", "output": "\ud800"}, "output is no valid UTF-8"),
        ({"instruction": ["x"], "output": "y"}, "instruction is no text but a list"),
        ("words", "not a JSON object"),
        ({"instruction": "x", "output": "y", "image": ["a.jpg", "b.jpg"]}, "several media in one row"),
    ],
)
def test_a_faulty_alpaca_row_is_bad_and_the_next_is_read(json_file, row, reason):
    bad, good = outcomes("alpaca", json_file([row, {"instruction": "a", "output": "b"}]))
    assert (bad.number, bad.reason) == (1, reason)
    assert good.id == "data.json:2"


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ("all", [("data.json:1", (*ROUND_1, *ROUND_2))]),
        ("split", [("data.json:1#0", ROUND_1), ("data.json:1#1", ROUND_2)]),
        ("first", [("data.json:1", ROUND_1)]),
    ],
)
@pytest.mark.parametrize("layout", ["sharegpt", "llava"])
def test_rounds_are_kept_split_or_cut_as_asked(json_file, layout, turns, expected):
    samples = outcomes(layout, json_file([{"id": "x", "conversations": TWO_ROUNDS}]), turns=turns)
    assert [(sample.id, sample.turns) for sample in samples] == expected


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "1"}]},
        {"conversations": [{"from": "user", "value": "One?"}, {"from": "chatgpt", "value": "1"}]},
        {"items": [{"from": "human", "value": "One?"}, {"from": "gpt", "value": "1"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "One?"}]},
                {"role": "assistant", "content": "1"},
            ]
        },
    ],
)
def test_every_spelling_of_the_sides_is_known(json_file, row):
    assert outcomes("sharegpt", json_file([row]))[0].turns == ROUND_1


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "system", "value": "Be kind."}, *TWO_ROUNDS]},
        {"system": "Be kind.", "conversations": TWO_ROUNDS},
    ],
)
def test_the_systems_words_stand_before_every_split_round(json_file, row):
    samples = outcomes("sharegpt", json_file([row]), turns="split")
    assert [sample.turns for sample in samples] == [(SYSTEM, *ROUND_1), (SYSTEM, *ROUND_2)]


def test_a_question_without_answer_at_the_end_is_trimmed(json_file):
    assert outcomes("sharegpt", json_file([{"conversations": TWO_ROUNDS[:3]}]))[0].turns == ROUND_1


@pytest.mark.parametrize(
    ("conversation", "reason"),
    [
        ([], "conversation without an answer"),
        (TWO_ROUNDS[:1], "conversation without an answer"),
        (TWO_ROUNDS[1:], "user and assistant do not alternate"),
        ([TWO_ROUNDS[0], *TWO_ROUNDS], "user and assistant do not alternate"),
        ([*TWO_ROUNDS, TWO_ROUNDS[1]], "user and assistant do not alternate"),
        ([*TWO_ROUNDS[:2], {"from": "system", "value": "x"}, *TWO_ROUNDS[2:]], "user and assistant do not alternate"),
        ([{"from": "tool", "value": "x"}], "unknown role 'tool'"),
        ([{"value": "x"}], "turn without a role"),
        (["x"], "turn that is no JSON object"),
        ([{"from": "human", "value": ""}, TWO_ROUNDS[1]], "empty turn"),
        ([{"from": "human", "value": [{"type": "image"}]}, TWO_ROUNDS[1]], "turn with parts that are no text"),
        ("x", "conversations is no list"),
    ],
)
def test_a_conversation_of_another_form_is_bad(json_file, conversation, reason):
    bad, good = outcomes("sharegpt", json_file([{"conversations": conversation}, {"conversations": TWO_ROUNDS}]))
    assert bad.reason == reason
    assert isinstance(good, Sample)


def test_llava_keeps_the_picture_and_its_marker(json_file):
    rows = [
        {
            "id": "1",
            "image": "coco/1.jpg",
            "conversations": [{"from": "human", "value": "<image>\nOne?"}, TWO_ROUNDS[1]],
        },
        {"id": "1", "conversations": TWO_ROUNDS[:2]},
    ]
    first, second = outcomes("llava", json_file(rows))
    assert (first.media, first.modality, first.turns[0].text) == ("coco/1.jpg", "image", "<image>\nOne?")
    assert (second.media, second.turns) == (None, ROUND_1)
    assert first.id != second.id


def test_an_invalid_line_is_bad_and_the_next_is_read(tmp_path):
    path = tmp_path / "data.jsonl"
    good = json.dumps({"instruction": "a", "output": "b"})
    path.write_bytes(f"{good}\n{{no json\n\n{'[' * 100_000}\n".encode() + b'"\xff"\n' + good.encode())
    found = outcomes("alpaca", path)
    assert [(row.number, row.reason) for row in found if isinstance(row, BadRow)] == [
        (2, "invalid JSON"),
        (4, "invalid JSON"),
        (5, "not a JSON object"),
    ]
    assert [row.id for row in found if isinstance(row, Sample)] == ["data.jsonl:1", "data.jsonl:6"]


@pytest.mark.parametrize(
    ("end", "reason"),
    [(', {"instruction": "c', "invalid JSON"), ("", "too early"), (", oops]", "invalid JSON"), (" 7]", "too early")],
)
def test_a_list_that_breaks_off_keeps_what_came_before(tmp_path, end, reason):
    path = tmp_path / "data.json"
    path.write_text(f'[{{"instruction": "a", "output": "b"}}{end}')
    good, bad = outcomes("alpaca", path)
    assert isinstance(good, Sample)
    assert reason in bad.reason


def test_a_list_longer_than_a_chunk_is_read_whole(json_file):
    rows = [{"instruction": f"{number}", "output": "ä" * 3000} for number in range(1200)]
    assert [sample.turns[0].text for sample in outcomes("alpaca", json_file(rows))] == [str(n) for n in range(1200)]


def test_a_byte_order_mark_does_no_harm(tmp_path):
    for name, text in (
        ("a.json", '[{"instruction": "a", "output": "b"}]'),
        ("b.jsonl", '{"instruction": "a", "output": "b"}'),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert isinstance(outcomes("alpaca", tmp_path / name)[0], Sample)


@pytest.mark.parametrize("content", ["", "hello", "\x89PNG"])
def test_what_is_no_json_is_refused(tmp_path, read, content):
    path = tmp_path / "data.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="neither a list of JSON objects nor one JSON object a line"):
        read("alpaca", path)


def test_the_error_for_another_layout_names_it(json_file, read):
    path = json_file([{"conversations": TWO_ROUNDS}])
    with pytest.raises(ConfigError, match=r'no instruction \(1\).*looks like format "sharegpt"'):
        read("alpaca", path)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
FIELDS = ["instruction", "input", "output", "image", "conversations", "messages", "system"]
TURNS = st.fixed_dictionaries({}, optional={name: ANY_JSON for name in ("from", "role", "value", "content")})
ALTERNATING = st.lists(
    st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "system", "x"]), "value": st.text(max_size=4)}),
    max_size=6,
)
ROW = st.dictionaries(st.sampled_from(FIELDS), ANY_JSON | st.lists(TURNS, max_size=4) | ALTERNATING, max_size=5)


@given(
    st.lists(ROW | ANY_JSON, max_size=4),
    st.sampled_from(["alpaca", "sharegpt"]),
    st.sampled_from(["all", "split", "first"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_json_is_fatal_and_every_sample_is_a_conversation(tmp_path, rows, layout, turns):
    path = tmp_path / "any.json"
    path.write_text(json.dumps(rows))
    found = outcomes(layout, path, turns=turns)
    samples = [each for each in found if isinstance(each, Sample)]
    assert len({sample.id for sample in samples}) == len(samples)
    for sample in samples:
        roles = [turn.role for turn in sample.turns]
        spoken = roles[1:] if roles[0] == "system" else roles
        assert spoken == ["user", "assistant"] * (len(spoken) // 2)
        assert spoken
        assert all(turn.text.strip() for turn in sample.turns)


@given(st.binary(max_size=120))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_are_more_than_bad_rows(tmp_path, data):
    path = tmp_path / "any.json"
    for start in (b'[{"instruction": "a", "output": "b"},', b'{"instruction": "a", "output": "b"}\n'):
        path.write_bytes(start + data)
        assert isinstance(outcomes("alpaca", path)[0], Sample)
