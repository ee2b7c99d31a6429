"""Published checkpoints to folders: every layout of a LLaMA, exact manifests, and nothing half-written."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import bindlm
from bindlm.checkpoints import convert_imagebind_llm, convert_llama_adapter_v1, convert_pandagpt
from bindlm.checkpoints.convert.adapter import Shapes, scaled_entry
from bindlm.checkpoints.convert.imagebind_llm import imagebind_llm_shapes
from bindlm.checkpoints.convert.llama import LlamaSizes
from bindlm.checkpoints.convert.llama_adapter import llama_adapter_v1_shapes, llama_adapter_v2_shapes
from bindlm.checkpoints.convert.pandagpt import pandagpt_shapes
from bindlm.checkpoints.convert.streamed import Entry, plain_entry, write_streamed
from bindlm.errors import CheckpointError

from ..converted import CONVERTERS, converted
from ..golden import GOLDEN, golden
from ..released import golden_config, released_llama

SEVEN = LlamaSizes(
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    vocab_size=32000,
)
THIRTEEN = LlamaSizes(
    hidden_size=5120,
    intermediate_size=13824,
    num_hidden_layers=40,
    num_attention_heads=40,
    num_key_value_heads=40,
    vocab_size=32000,
)
BIND = {"image_dim": 1024, "hidden": 16384}
ROWS = {"query_layer": 32, "query_len": 1}
VISUAL = {"clip_dim": 768, "v_embed_dim": 768, "v_depth": 8, "v_num_heads": 16, "v_mlp_ratio": 4.0}
QUERIES = {"query_layer": 31, "query_len": 10, "lora_rank": 16}
MANIFESTS: dict[str, Shapes] = {
    "llama_7b_base": SEVEN.meta_shapes(),
    "imagebind_llm_7b_finetune": imagebind_llm_shapes(SEVEN, BIND, ROWS),
    "imagebind_llm_7b_legacy_bridge": imagebind_llm_shapes(SEVEN, BIND, ROWS, is_legacy=True),
    "imagebind_llm_7b_pretrain": imagebind_llm_shapes(SEVEN, BIND, ROWS, is_finetuned=False),
    "llama_adapter_v1_7b": llama_adapter_v1_shapes(SEVEN),
    "llama_adapter_v2_multimodal_7b_bias": llama_adapter_v2_shapes(SEVEN, VISUAL, QUERIES),
    "llama_adapter_v2_multimodal_7b_lora_bias": llama_adapter_v2_shapes(SEVEN, VISUAL, QUERIES, has_lora=True),
    "llama_adapter_v2_multimodal_7b_pretrain": llama_adapter_v2_shapes(SEVEN, VISUAL, QUERIES, is_finetuned=False),
    "pandagpt_7b_delta": pandagpt_shapes(SEVEN),
    "pandagpt_13b_delta": pandagpt_shapes(THIRTEEN),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_expected_tensors_are_those_of_the_release(name: str) -> None:
    path = GOLDEN / "manifests" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"../shared/golden/manifests/{name}.json is not beside this checkout")
    keys = json.loads(path.read_text(encoding="utf-8"))["keys"]
    assert MANIFESTS[name] == {key: tuple(shape) for key, shape in keys.items()}


# -- layouts of the language model -----------------------------------------------------------------------------------


def llama_file(release: str = "imagebind_llm") -> Path:
    golden(f"{release}/llama.safetensors")  # or skip
    return GOLDEN / release / "llama.safetensors"


def params(**changes: Any) -> str:
    """Meta's params.json of the golden's LLaMA; -1 is what it really says of the vocabulary."""
    sizes = {"dim": 64, "n_layers": 4, "n_heads": 4, "vocab_size": -1, "multiple_of": 16, "norm_eps": 1e-6}
    return json.dumps({**sizes, **changes})


def meta_folder(folder: Path, shards: int = 1) -> Path:
    """The golden's LLaMA as Meta's files, cut as Meta cuts them."""
    folder.mkdir(parents=True)
    state = golden("imagebind_llm/llama.safetensors")
    for shard in range(shards):
        part = {}
        for name, tensor in state.items():
            linear = name.removesuffix(".weight").rpartition(".")[2]
            axis = 0 if linear in ("wq", "wk", "wv", "w1", "w3", "output") else 1
            part[name] = tensor if tensor.ndim == 1 else tensor.chunk(shards, dim=axis)[shard].clone()
        torch.save(part, folder / f"consolidated.{shard:02d}.pth")
    (folder / "params.json").write_text(params())
    return folder


def transformers_folder(folder: Path) -> Path:
    released_llama("imagebind_llm").save_pretrained(folder, max_shard_size="200KB")
    assert (folder / "model.safetensors.index.json").is_file()
    settings = json.loads((folder / "config.json").read_text())
    settings["architectures"] = ["LlamaForCausalLM"]
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "Meta's file": lambda folder: meta_folder(folder, 1),
    "Meta's two files": lambda folder: meta_folder(folder, 2),
    "transformers' files": transformers_folder,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_language_model_in_any_layout_gives_the_same_folder(layout: str, tmp_path: Path) -> None:
    config = golden_config("imagebind_llm")
    expected = converted("imagebind_llm", "adapter", tmp_path / "expected")
    folder = LAYOUTS[layout](tmp_path / "llama")
    given = {name: part for name, part in config.items() if name != "llama"}  # its sizes are read from the folder
    adapter = GOLDEN / "imagebind_llm" / "adapter.safetensors"
    out = convert_imagebind_llm(adapter, folder, tmp_path / "out", given, progress=False)
    state, wanted = load_file(out / "model.safetensors"), load_file(expected / "model.safetensors")
    assert set(state) == set(wanted)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in state.items())
    text = json.loads((out / "config.json").read_text())["text_config"]
    for name in ("hidden_size", "num_attention_heads", "intermediate_size", "vocab_size", "rms_norm_eps"):
        assert text[name] == json.loads((expected / "config.json").read_text())["text_config"][name]


@pytest.mark.parametrize("scaling", [None, {"type": "linear", "factor": 4.0}])
def test_settings_of_older_transformers_are_kept(scaling: dict[str, Any] | None, tmp_path: Path) -> None:
    """As the Vicunas have them: no `rope_parameters`, no number of key heads."""
    folder = transformers_folder(tmp_path / "llama")
    settings = json.loads((folder / "config.json").read_text())
    for name in ("rope_parameters", "num_key_value_heads", "head_dim"):
        settings.pop(name, None)
    settings |= {"rope_scaling": scaling, "torch_dtype": "float16", "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(settings))
    config = {name: part for name, part in golden_config("imagebind_llm").items() if name != "llama"}
    adapter = GOLDEN / "imagebind_llm" / "adapter_pretrain.safetensors"
    out = convert_imagebind_llm(adapter, folder, tmp_path / "out", config, progress=False)
    with pytest.warns(UserWarning, match="not for commercial use"):
        model = bindlm.load(out)
    tokens = torch.arange(9)[None]
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(tokens).logits
    torch.testing.assert_close(model(input_ids=tokens).logits, expected, rtol=0, atol=1e-5)
    assert model.config.text_config.max_position_embeddings == 512


@torch.no_grad()
def test_scale_and_bias_of_the_chat_form_are_a_plain_layer() -> None:
    case = {
        name.rpartition(".")[2]: tensor
        for name, tensor in golden("llama_adapter_v2/outputs.safetensors").items()
        if name.startswith("scale_bias_linear.")
    }
    weight = scaled_entry(plain_entry(case["weight"]), case["scale"]).make()
    given = nn.functional.linear(case["x"], weight, case["bias"])
    torch.testing.assert_close(given, case["y"], rtol=1e-4, atol=1e-6)


def nested(state: dict[str, Tensor], path: Path, **others: Any) -> Path:
    torch.save({"model": state, **others}, path)
    return path


def test_pickled_adapter_under_model_is_the_same_adapter(tmp_path: Path) -> None:
    state = golden("imagebind_llm/adapter.safetensors")
    path = nested(state, tmp_path / "7B.pth")
    out = convert_imagebind_llm(path, llama_file(), tmp_path / "out", golden_config("imagebind_llm"), progress=False)
    expected = load_file(converted("imagebind_llm", "adapter", tmp_path / "expected") / "model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_file(out / "model.safetensors").items())


def test_checkpoint_of_a_training_run_is_cut_to_what_was_published(tmp_path: Path) -> None:
    """It holds the encoder and the whole frozen LLaMA too, and older ones say `llma`."""
    base = golden("imagebind_llm/llama.safetensors")
    for name in ("adapter", "adapter_pretrain"):
        state = {
            key.replace("llama.", "llma."): value for key, value in golden(f"imagebind_llm/{name}.safetensors").items()
        }
        state = {f"llma.{key}": tensor for key, tensor in base.items()} | state
        state |= {"image_bind.trunk.weight": torch.zeros(2), "prefix_projector_norm.weight": torch.zeros(64)}
        path = nested(state, tmp_path / f"{name}.pth", epoch=3, args={"lr": 0.1})
        out = tmp_path / f"out-{name}"
        convert_imagebind_llm(path, llama_file(), out, golden_config("imagebind_llm"), progress=False)
        expected = load_file(converted("imagebind_llm", name, tmp_path / f"expected-{name}") / "model.safetensors")
        given = load_file(out / "model.safetensors")
        assert set(given) == set(expected)
        assert all(torch.equal(tensor, expected[key]) for key, tensor in given.items())


# -- what the folder says --------------------------------------------------------------------------------------------


def test_folder_names_its_parts_its_licence_and_its_way_to_generate(tmp_path: Path) -> None:
    out = converted("imagebind_llm", "adapter", tmp_path / "out", encoder="imagebind_huge.pth")
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "bindlm"
    assert config["origin"] == {"release": "ImageBind-LLM", "phase": "finetune", "adapter": ["adapter.safetensors"]}
    assert config["encoder_weights"] == "imagebind_huge.pth"
    assert config["injection"]["kind"] == "zero_init_attention"
    assert config["lora"]["r"] == config["lora"]["lora_alpha"] == 16
    assert "not for commercial use" in config["notice"]
    generation = json.loads((out / "generation_config.json").read_text())
    assert (generation["temperature"], generation["top_p"], generation["max_new_tokens"]) == (0.1, 0.75, 256)
    assert generation["do_sample"] is True


def test_loading_tells_the_licence_and_a_model_without_an_encoder_says_so(tmp_path: Path) -> None:
    out = converted("imagebind_llm", "adapter", tmp_path / "out")
    with pytest.warns(UserWarning, match="not for commercial use"):
        model = bindlm.load(out)
    assert (model.generation_config.top_p, model.generation_config.top_k) == (0.75, 0)
    with pytest.raises(bindlm.ConfigError, match="has no tokenizer"):
        model.ask("What is this?")
    with pytest.raises(bindlm.ConfigError, match="no encoder for 'image'"):
        model.encode_media(image=torch.zeros(1, 3, 8, 8))
    model.save_pretrained(tmp_path / "again")
    state = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in load_file(out / "model.safetensors").items())


def test_text_only_model_has_no_bridge_and_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="LLaMA-Adapter"):
        model = bindlm.load(converted("llama_adapter_v1", "adapter", tmp_path / "out"))
    with pytest.raises(bindlm.ConfigError, match="no bridge: it takes text only"):
        model(input_ids=torch.ones(1, 3, dtype=torch.long), joint_embedding=torch.zeros(1, 0))
    with pytest.raises(bindlm.ConfigError, match="no encoder for 'image': it takes text only"):
        model.encode_media(image=torch.zeros(1, 3, 8, 8))


def test_tokenizer_files_come_along_and_prompts_are_the_releases(tmp_path: Path) -> None:
    from ..tiny import tiny_tokenizer

    folder = transformers_folder(tmp_path / "llama")
    tiny_tokenizer().save_pretrained(folder)
    adapter = GOLDEN / "imagebind_llm" / "adapter.safetensors"
    config = {name: part for name, part in golden_config("imagebind_llm").items() if name != "llama"}
    out = convert_imagebind_llm(adapter, folder, tmp_path / "out", config, progress=False)
    with pytest.warns(UserWarning, match="not for commercial use"):
        processor = bindlm.load(out).processor
    path = GOLDEN / "imagebind_llm" / "training_rules.json"
    for case in json.loads(path.read_text())["prompts"]:
        messages = [{"role": "system", "content": case["input"]}] if case["input"] is not None else []
        messages.append({"role": "user", "content": case["instruction"]})
        for is_conditioned in (True, False):
            text = processor.render_chat(messages, is_conditioned=is_conditioned)
            assert text == processor.tokenizer.bos_token + case["text"]
        ids = processor.tokenize_chat(messages, is_conditioned=True)["input_ids"][0].tolist()
        assert ids == [processor.tokenizer.bos_token_id, *processor.tokenizer(case["text"])["input_ids"]]


# -- what is refused, and leaves nothing -----------------------------------------------------------------------------


def changed(state: dict[str, Tensor], path: Path, **changes: Tensor | None) -> Path:
    """A copy of a file with some tensors replaced, or left out."""
    names = {name: tensor for name, tensor in {**state, **changes}.items() if tensor is not None}
    save_file(names, path)
    return path


def wide_llama(path: Path) -> Path:
    sizes = LlamaSizes(32, 48, 4, 4, 4, 160)
    save_file({name: torch.zeros(shape) for name, shape in sizes.meta_shapes().items()}, path)
    return path


def cut(path: Path, source: Path) -> Path:
    path.write_bytes(source.read_bytes()[:-1000])
    return path


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this ran",)


def pickled_code(path: Path) -> Path:
    path.write_bytes(pickle.dumps({"model": _Code()}, protocol=2))  # as torch.save writes
    return path


REFUSED: dict[str, tuple[Callable[[Path, Path, Path], tuple[Path, Path]], str]] = {
    "another width": (lambda t, a, b: (a, wide_llama(t / "w.safetensors")), "width 64, but .* is 32 wide"),
    "another depth": (lambda t, a, b: (a, llama_file("pandagpt")), "n_layers|does not fit this model"),
    "swapped": (lambda t, a, b: (b, a), "holds no LLaMA"),
    "twice the base": (lambda t, a, b: (b, b), "is no adapter of ImageBind-LLM"),
    "cut adapter": (lambda t, a, b: (cut(t / "c.safetensors", a), b), "truncated, damaged"),
    "cut base": (lambda t, a, b: (a, cut(t / "c.safetensors", b)), "truncated, damaged"),
    "no adapter": (lambda t, a, b: (t / "nothing.pth", b), "missing"),
    "no base": (lambda t, a, b: (a, t / "nothing"), "missing"),
    "empty folder": (lambda t, a, b: (a, (t / "e").mkdir() or t / "e"), "holds no language model"),
    "code": (lambda t, a, b: (pickled_code(t / "code.pth"), b), "more than tensors"),
    "a gate less": (
        lambda t, a, b: (changed(golden_adapter(), t / "g.safetensors", **{"llama.layers.2.attention.gate": None}), b),
        "1 missing: llama.layers.2.attention.gate",
    ),
    "a tensor more": (
        lambda t, a, b: (changed(golden_adapter(), t / "m.safetensors", nose=torch.zeros(1)), b),
        "1 not expected: nose",
    ),
    "half of LoRA": (
        lambda t, a, b: (
            changed(golden_adapter(), t / "h.safetensors", **{"llama.layers.0.attention.lora_wq_l2.weight": None}),
            b,
        ),
        "1 missing: llama.layers.0.attention.lora_wq_l2.weight",
    ),
}


def golden_adapter() -> dict[str, Tensor]:
    return golden("imagebind_llm/adapter.safetensors")


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_before_anything_is_written(case: str, tmp_path: Path) -> None:
    golden_adapter()
    make, complaint = REFUSED[case]
    (tmp_path / "in").mkdir()
    adapter, llama = make(tmp_path / "in", GOLDEN / "imagebind_llm" / "adapter.safetensors", llama_file())
    config = {name: part for name, part in golden_config("imagebind_llm").items() if name != "llama"}
    config["llama"] = {"n_heads": 4}
    with pytest.raises(CheckpointError, match=complaint):
        convert_imagebind_llm(adapter, llama, tmp_path / "out", config, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_other_phase_is_refused(tmp_path: Path) -> None:
    for name, phase in (("adapter", "pretrain"), ("adapter_pretrain", "finetune")):
        with pytest.raises(CheckpointError, match=f"of the phase .*, not {phase}"):
            converted("imagebind_llm", name, tmp_path / "out", phase=phase)
    assert not list(tmp_path.iterdir())


def test_other_release_is_refused(tmp_path: Path) -> None:
    adapters = {
        "imagebind_llm": "adapter",
        "llama_adapter_v1": "adapter",
        "llama_adapter_v2": "adapter_bias",
        "pandagpt": "delta",
    }
    for release, convert in CONVERTERS.items():
        for other, name in adapters.items():
            if other != release:
                adapter = GOLDEN / other / f"{name}.safetensors"
                with pytest.raises(CheckpointError, match="no adapter of|does not fit"):
                    convert(adapter, llama_file(release), tmp_path / "out", golden_config(release), progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_seen_before", [True, False])
def test_full_disk_leaves_nothing(
    is_seen_before: bool, tiny_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    golden_adapter()
    disk = tiny_disk(1 << 20)
    if not is_seen_before:  # another program fills it while this one writes
        usage = shutil._ntuple_diskusage(1 << 40, 0, 1 << 40)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match="free some|full|space"):
        converted("imagebind_llm", "adapter", disk / "out")
    assert not list(disk.iterdir())


def test_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="exists and is no model of bindlm"):
        converted("imagebind_llm", "adapter", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_earlier_conversion_is_replaced(tmp_path: Path) -> None:
    converted("imagebind_llm", "adapter", tmp_path / "out")
    out = converted("imagebind_llm", "adapter_pretrain", tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["lora"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_sizes_without_a_configuration_are_the_published_ones(tmp_path: Path) -> None:
    for convert, adapter, release in (
        (convert_pandagpt, "delta", "pandagpt"),
        (convert_llama_adapter_v1, "adapter", "llama_adapter_v1"),
    ):
        llama_file(release)
        path = GOLDEN / release / f"{adapter}.safetensors"
        with pytest.raises(CheckpointError, match="does not fit this model"):
            convert(path, llama_file(release), tmp_path / "out", progress=False)


# -- the file, written as it is read ---------------------------------------------------------------------------------


def test_streamed_file_is_a_safetensors_file(tmp_path: Path) -> None:
    state = {
        "a": torch.randn(3, 5),
        "empty": torch.zeros(0, 4),
        "number": torch.tensor(7),
        "half": torch.randn(2, 2).half(),
        "brain": torch.randn(7).bfloat16(),
        "turned": torch.randn(4, 6).T,
    }
    write_streamed(tmp_path / "m.safetensors", {name: plain_entry(tensor) for name, tensor in state.items()})
    read = load_file(tmp_path / "m.safetensors")
    assert list(read) == list(state) or set(read) == set(state)
    for name, tensor in state.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name


def test_type_that_weights_never_have_is_refused(tmp_path: Path) -> None:
    entry = Entry((2,), torch.complex64, lambda: torch.zeros(2, dtype=torch.complex64), ())
    with pytest.raises(CheckpointError, match="complex64"):
        write_streamed(tmp_path / "m.safetensors", {"z": entry})


def test_language_model_head_may_be_tied(tmp_path: Path) -> None:
    """Not in a LLaMA as published, but in small ones of its kind."""
    base = released_llama("imagebind_llm")
    base.lm_head.weight = nn.Parameter(base.model.embed_tokens.weight.detach())
    base.config.tie_word_embeddings = True
    base.tie_weights()
    folder = tmp_path / "llama"
    base.save_pretrained(folder)
    config = {name: part for name, part in golden_config("imagebind_llm").items() if name != "llama"}
    adapter = GOLDEN / "imagebind_llm" / "adapter_pretrain.safetensors"
    out = convert_imagebind_llm(adapter, folder, tmp_path / "out", config, progress=False)
    with pytest.warns(UserWarning, match="not for commercial use"):
        model = bindlm.load(out)
    tokens = torch.arange(5)[None]
    torch.testing.assert_close(model(input_ids=tokens).logits, base(tokens).logits, rtol=0, atol=1e-6)
