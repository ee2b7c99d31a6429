"""bindlm convert imagebind-llm 7B.pth --llama llama-7B -o imagebind-llm-7B"""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from bindlm.cli.output import print_json, say
from bindlm.errors import ConfigError

RELEASES = {
    "imagebind-llm": "convert_imagebind_llm",
    "llama-adapter-v1": "convert_llama_adapter_v1",
    "llama-adapter-v2": "convert_llama_adapter_v2",
    "pandagpt": "convert_pandagpt",
}
"""What is converted -> the function of `bindlm.checkpoints`."""
WITH_ENCODER = ("imagebind-llm", "llama-adapter-v2", "pandagpt")
WITH_PHASE = ("imagebind-llm", "llama-adapter-v2")
WITH_GATE = ("llama-adapter-v1",)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("release", choices=list(RELEASES), metavar="RELEASE", help=f"one of {', '.join(RELEASES)}")
    parser.add_argument(
        "adapter",
        type=Path,
        nargs="+",
        metavar="ADAPTER",
        help="the published file (.pth, .pt, .safetensors); of several, later ones win",
    )
    parser.add_argument(
        "--llama", type=Path, required=True, metavar="DIR", help="its LLaMA, in Meta's layout or that of transformers"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where to")
    parser.add_argument(
        "--encoder",
        metavar="REFERENCE",
        help="the encoder's weights, kept by name: ImageBind's file or hub id, or for llama-adapter-v2 a folder or "
        "hub id of CLIP ViT-L/14 (default: none)",
    )
    parser.add_argument("--phase", choices=["pretrain", "finetune"], help="refuse an adapter of another phase")
    parser.add_argument(
        "--gate", choices=["tanh", "none"], help="of llama-adapter-v1: as it was trained, or as its demo generates"
    )
    parser.add_argument("--sizes", type=Path, metavar="JSON", help="sizes that differ from the published ones")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")


def run(options: Namespace) -> int:
    """Convert one checkpoint.

    Raises:
        ConfigError: an option that this release does not have, or sizes that cannot be read.
        CheckpointError: a file is missing, damaged or of another model or phase, or the disk is full.
    """
    from bindlm import checkpoints

    convert = getattr(checkpoints, RELEASES[options.release])
    out = convert(options.adapter, options.llama, options.output, _sizes(options.sizes), **_settings(options))
    if options.json:
        origin = json.loads((out / "config.json").read_text(encoding="utf-8"))["origin"]
        print_json({"folder": str(out), **origin})
    else:
        say(f"converted; open it with bindlm.load({str(out)!r})")
    return 0


def _settings(options: Namespace) -> dict[str, Any]:
    """Keywords of the release's function; one that it lacks is an error, not silence."""
    given = {
        "encoder": (options.encoder, WITH_ENCODER),
        "phase": (options.phase, WITH_PHASE),
        "gate_activation": (options.gate, WITH_GATE),
    }
    words = {"gate_activation": "--gate", "encoder": "--encoder", "phase": "--phase"}
    for name, (value, releases) in given.items():
        if value is not None and options.release not in releases:
            raise ConfigError(f"{words[name]} goes with {' or '.join(releases)}, not with {options.release}")
    return {name: value for name, (value, _) in given.items() if value is not None}


def _sizes(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        sizes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON") from error
    if not isinstance(sizes, dict):
        raise ConfigError(f"{path} must hold one JSON object, with sizes by part such as llama and bind")
    return sizes
