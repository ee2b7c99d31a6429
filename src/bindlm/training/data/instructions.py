"""Instruction data: single questions in Alpaca's shape, and conversations in ShareGPT's and LLaVA's."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from bindlm.training.data.bad_rows import BadRowError
from bindlm.training.data.fields import modality_of_name, optional_media_of, optional_text_of, text_of
from bindlm.training.data.files import DataFile
from bindlm.training.data.rows import Outcome, Row, json_rows, samples_of
from bindlm.training.data.sample import Sample, Turn
from bindlm.training.stage_recipe import SourceConfig

SUFFIXES = (".json", ".jsonl", ".ndjson")

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
}
"""What data call the sides -> what templates call them."""


def read_alpaca(file: DataFile, config: SourceConfig) -> Iterator[Outcome]:
    """Alpaca, GPT4LLM (English and Chinese) and GPT4Tools: `instruction`, `input`, `output`.

    Raises:
        ConfigError: The file is no JSON.
    """
    yield from samples_of(json_rows(file), _instruction)


def read_conversations(file: DataFile, config: SourceConfig) -> Iterator[Outcome]:
    """ShareGPT, LLaVA-Instruct, and any list of `messages` with role and content.

    Raises:
        ConfigError: The file is no JSON.
    """
    yield from samples_of(json_rows(file), partial(_conversation, turns=config.turns))


def _instruction(row: Row) -> Iterator[Sample]:
    question = text_of(row.content.get("instruction"), "instruction")
    context = optional_text_of(row.content.get("input"), "input")
    answer = text_of(row.content.get("output"), "output")
    yield _sample(row, row.id, (Turn("user", question, context), Turn("assistant", answer)))


def _conversation(row: Row, turns: str) -> Iterator[Sample]:
    system, rounds = _rounds(row.content)
    if turns == "all":
        yield _sample(row, row.id, system + tuple(turn for pair in rounds for turn in pair))
    elif turns == "first":
        yield _sample(row, row.id, system + rounds[0])
    else:
        for number, pair in enumerate(rounds):
            yield _sample(row, f"{row.id}#{number}", system + pair)


def _sample(row: Row, name: str, turns: tuple[Turn, ...]) -> Sample:
    media = optional_media_of(row.content)
    return Sample(name, turns=turns, media=media, modality="image" if media is None else modality_of_name(media))


def _rounds(row: dict[str, Any]) -> tuple[tuple[Turn, ...], list[tuple[Turn, Turn]]]:
    """The system's turn, if there is one, and the questions with their answers.

    Raises:
        BadRowError: The conversation has no such form.
    """
    turns = [_turn(each) for each in _listed_turns(row)]
    if (instruction := optional_text_of(row.get("system"), "system")) is not None:
        turns.insert(0, Turn("system", instruction))
    system = tuple(turns[:1]) if turns and turns[0].role == "system" else ()
    spoken = turns[len(system) :]
    if spoken and spoken[-1].role == "user":  # a question that nobody answered
        del spoken[-1]
    if not spoken:
        raise BadRowError("conversation without an answer")
    pairs = list(zip(spoken[::2], spoken[1::2], strict=False))
    if len(spoken) % 2 or any((ask.role, reply.role) != ("user", "assistant") for ask, reply in pairs):
        raise BadRowError("user and assistant do not alternate")
    return system, pairs


def _listed_turns(row: dict[str, Any]) -> list[Any]:
    for name in ("conversations", "messages", "conversation", "items"):
        if name in row:
            if not isinstance(row[name], list):
                raise BadRowError(f"{name} is no list")
            return row[name]
    raise BadRowError("no conversations or messages")


def _turn(turn: Any) -> Turn:
    if not isinstance(turn, dict):
        raise BadRowError("turn that is no JSON object")
    role = turn.get("from", turn.get("role"))
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise BadRowError(f"unknown role {str(role)[:30]!r}" if isinstance(role, str) else "turn without a role")
    return Turn(ROLES[role.lower()], text_of(_words(turn.get("value", turn.get("content"))), "turn"))


def _words(content: Any) -> Any:
    """The text of a turn; of a list of parts, their texts one after another."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        raise BadRowError("turn with parts that are no text")
    return "".join(part["text"] for part in content)
