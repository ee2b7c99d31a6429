"""What the mini's own preparations read from `recipes/mini/0-*.yaml`; its stages are ordinary training recipes."""

from dataclasses import dataclass, field

from bindlm.training.mini.samples import NoiseConfig


@dataclass
class ModelConfig:
    """What the mini is made of."""

    language_model: str
    """Reference of the frozen language model."""
    image_tower: str
    """Reference of the frozen image tower."""
    size: str = "lite2"
    """Its size."""
    dim: int = 1024
    """D_joint."""
    hidden_dim: int = 1536
    """C_h of the bind network; the paper's 4 C would not fit 40 MB beside other senses."""
    gate_bound: float | None = 1.0
    """Where gates saturate."""
    cache_alpha: float = 0.7
    """Share of the retrieved prototypes."""
    cache_top_k: int = 10
    """Prototypes that count."""
    cache_temperature: float = 25.0
    """Sharpness; at 25 the cache's weights match the head's own softmax best (KL 0.07 on 211 pictures)."""
    answer_alpha: float = 0.8
    """The cache's share in the finished model: chosen, with the temperature, on validation photographs."""
    answer_temperature: float = 32.0
    """Sharpness in the finished model; in training a softer cache keeps the bridge from seeing one prototype only."""


@dataclass
class SpaceRecipe:
    """Joint space and visual cache."""

    model: ModelConfig
    num_views: int = 4
    """Random views of each picture."""
    shrinkage: float = 0.5
    """Share of a round covariance in the whitening."""
    picture_key_length: float = 0.7
    """Length of a picture's key beside the classes' 1."""
    seed: int = 7
    """Of the views."""


@dataclass
class DrawConfig:
    """Which entries are drawn, and what becomes of their embeddings."""

    classes: float = 0.74
    """Share of samples drawn from the 1000 classes."""
    emoji: float = 0.12
    """Share drawn from emoji; the rest is furniture."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)


@dataclass
class ReadoutRecipe:
    """Token pretraining of the bridge."""

    num_steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.01
    warmup_steps: int = 20
    save_every: int = 100
    kind_share: float = 0.25
    """How much the kind's tokens count beside the name's."""
    draw: DrawConfig = field(default_factory=DrawConfig)
    seed: int = 0


@dataclass
class PairsConfig:
    """Pairs of a joint embedding and words, drawn once for a stage."""

    num_samples: int
    """How many."""
    bare_turns: float = 0.5
    """Share that is a caption without a question: half as long as with one."""
    other_questions: bool = False
    """Whether questions other than for the name are asked."""
    draw: DrawConfig = field(default_factory=DrawConfig)
    seed: int = 0


@dataclass
class PairsRecipe:
    """The pairs of both stages."""

    pretrain: PairsConfig
    instruct: PairsConfig
