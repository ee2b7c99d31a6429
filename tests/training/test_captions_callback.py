"""Captions of fixed pictures while a model trains, which training does not notice."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bindlm.errors import ConfigError, MediaError
from bindlm.training.captions_callback import (
    CaptionCallback,
    CaptionPicture,
    caption_pictures,
    describe,
    undisturbed,
)
from bindlm.training.journal import read_journal
from bindlm.training.trainer import fit

from ..tiny import picture, tiny_model, tiny_processor, tiny_tokenizer, token_batch, unit_rows

ROOT = Path(__file__).resolve().parents[2]
PROMPT = tiny_tokenizer()("hi")["input_ids"]
ROWS = unit_rows(2)
PICTURES = [CaptionPicture("cat.jpg", ROWS[0]), CaptionPicture("dog.jpg", ROWS[1])]


class Noisy(torch.utils.data.Dataset):
    """Micro-batches that draw from the global generator, so that a run shows whether anybody else drew from it."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        ids = token_batch(2, 10, seed=index)
        return {
            "input_ids": ids,
            "labels": ids.clone(),
            "joint_embedding": torch.nn.functional.normalize(torch.randn(2, 16)),
        }


def run(folder, callbacks, num_steps=5):
    model = tiny_model()
    model.requires_grad_(False)
    model.bridge.requires_grad_(True)
    fit(
        model,
        Noisy(),
        output=folder,
        num_steps=num_steps,
        optimizer_groups=[{"params": list(model.bridge.parameters()), "lr": 1e-2}],
        schedule=lambda step: 1.0,
        save_every=2,
        callbacks=callbacks,
        gradient_checkpointing=True,
    )
    return model


def callback(folder, **settings):
    return CaptionCallback(
        PICTURES, PROMPT, tiny_tokenizer(), folder=folder, **{"every": 2, "max_new_tokens": 4, **settings}
    )


def test_a_run_ends_with_the_same_weights_with_captions_and_without(tmp_path, capsys):
    plain = run(tmp_path / "plain", [])
    shown = run(tmp_path / "shown", [callback(tmp_path / "shown")])
    for (name, a), b in zip(plain.state_dict().items(), shown.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    rows = read_journal(tmp_path / "shown" / "captions.jsonl")
    assert [(row["step"], row["picture"]) for row in rows] == [
        (step, label) for step in (0, 2, 4, 5) for label in ("cat.jpg", "dog.jpg")
    ]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "bindlm: step 4, dog.jpg: " in captured.err


def test_the_last_step_is_described_once(tmp_path):
    run(tmp_path, [callback(tmp_path)], num_steps=4)
    assert [row["step"] for row in read_journal(tmp_path / "captions.jsonl")] == [0, 0, 2, 2, 4, 4]


def test_a_resumed_run_describes_each_step_once(tmp_path):
    class Killed(CaptionCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 4:  # its captions are there, its checkpoint too
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [Killed(PICTURES, PROMPT, tiny_tokenizer(), folder=tmp_path, every=1, max_new_tokens=2)])
    run(tmp_path, [callback(tmp_path, every=1)])
    assert [row["step"] for row in read_journal(tmp_path / "captions.jsonl")[::2]] == [0, 1, 2, 3, 4, 5]


def test_captions_are_what_the_model_answers(tmp_path):
    model, processor = tiny_model(gate=3.0), tiny_processor()
    model.processor = processor
    picture(1).save(tmp_path / "one.png")
    picture(2).save(tmp_path / "two.png")
    paths = [str(tmp_path / "one.png"), str(tmp_path / "two.png")]
    pictures = caption_pictures(model, paths)
    assert [each.label for each in pictures] == ["one.png", "two.png"]
    prompt = processor.tokenize_chat([{"role": "user", "content": "What?"}], is_conditioned=True)["input_ids"][0]
    answers = [model.ask("What?", image=path, max_new_tokens=8) for path in paths]
    assert answers[0] != answers[1]
    assert describe(model.train(), pictures, prompt, processor.tokenizer, 8) == answers


def test_an_unreadable_picture_is_an_error_before_training(tmp_path):
    model = tiny_model()
    model.processor = tiny_processor()
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(MediaError, match=r"bad\.png"):
        caption_pictures(model, [str(tmp_path / "bad.png")])
    assert caption_pictures(model, []) == []


def test_modes_and_generators_are_as_before_even_after_an_error():
    model = tiny_model().train()
    model.bridge.eval()
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state()

    def disturb():
        with undisturbed(model):
            assert not any(module.training for module in model.modules())
            torch.randn(3)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        disturb()
    assert [module.training for module in model.modules()] == modes
    assert True in modes
    assert False in modes
    assert torch.equal(torch.get_rng_state(), before)


def test_a_failing_caption_ends_no_run_and_is_said_once(tmp_path, capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("bindlm.modeling.BindLMForConditionalGeneration.generate", fail)
    run(tmp_path, [callback(tmp_path)])
    assert capsys.readouterr().err.count("out of memory") == 1
    assert read_journal(tmp_path / "captions.jsonl") == []


def test_other_processes_describe_nothing(tmp_path):
    state = SimpleNamespace(global_step=0, is_world_process_zero=False)
    watcher = callback(tmp_path)
    watcher.on_train_begin(None, state, None, model=None)
    watcher.on_step_end(None, state, None, model=None)
    watcher.on_train_end(None, state, None, model=None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [{"every": -1}, {"max_new_tokens": 0}])
def test_impossible_settings_are_refused(tmp_path, settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        callback(tmp_path, **settings)
    with pytest.raises(ConfigError, match="at least one picture"):
        CaptionCallback([], PROMPT, tiny_tokenizer(), folder=tmp_path)


@pytest.mark.slow
def test_a_sharded_model_describes_what_the_whole_one_does(tmp_path):
    script = tmp_path / "sharded.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            import torch
            from pathlib import Path
            sys.path.insert(0, sys.argv[1])
            from tests.training.test_captions_callback import PICTURES, PROMPT, callback, run, tiny_tokenizer
            from tests.tiny import tiny_model
            from bindlm.training.captions_callback import describe, is_sharded
            from bindlm.training.sharding import shard

            store = f"file://{sys.argv[0]}.store"
            torch.distributed.init_process_group("gloo", init_method=store, rank=int(sys.argv[2]), world_size=2)
            model = tiny_model()
            whole = describe(model, PICTURES, torch.tensor(PROMPT), tiny_tokenizer(), 8)
            model.requires_grad_(False)
            model.bridge.requires_grad_(True)
            shard(model, torch.device("cpu"), {})
            assert is_sharded(model)
            batch = {"input_ids": torch.tensor([PROMPT]), "joint_embedding": PICTURES[0].joint_embedding[None]}
            for _ in range(2):  # before any step, and after one
                assert describe(model.train(), PICTURES, torch.tensor(PROMPT), tiny_tokenizer(), 8) == whole
                assert type(model.bridge.input.weight).__name__ == "DTensor"
                model(**batch).logits.sum().backward()
            torch.distributed.destroy_process_group()
            """
        )
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen([sys.executable, script, ROOT, rank], stderr=subprocess.PIPE, text=True, env=environment)
        for rank in "01"
    ]
    try:
        faults = [process.communicate(timeout=200)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], "\n".join(faults)[-3000:]
