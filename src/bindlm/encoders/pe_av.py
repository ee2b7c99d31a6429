"""PE-AV, the Perception Encoder of sound and video, as a joint encoder of audio, video and text.

The graphs are those of transformers (`pe_audio_video`, `pe_audio`, `pe_video`). Sound and video were trained against
each other, so their embeddings lie in one space; a text has a head of its own for each of them, chosen by `text_head`.
The video tower is a model of timm, which this package does not depend on: without timm, the sound and text of a folder
load alone. Read the card of the weights for their licence; this package brings none.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bindlm.encoders.base import JointEncoder
from bindlm.encoders.chosen import choose_modalities
from bindlm.encoders.hosted import one_line, read_json, silent_transformers, token_ids
from bindlm.errors import CheckpointError, ConfigError

PE_AV_FAMILIES = {
    "pe_audio_video": ("audio", "video"),
    "pe_audio": ("audio",),
    "pe_video": ("video",),
}
"""Value of `model_type` in config.json to the senses that the model has beside text."""

_TIMM_CURE = 'pip install timm, or take the sound alone: senses=("audio",)'


@dataclass(frozen=True)
class PeAudioVideoEncoderConfig:
    """A model of the PE-AV family, and how media become its input."""

    model: Mapping[str, Any]
    """Its configuration as transformers writes it to config.json, `model_type` included."""
    senses: tuple[str, ...] | None = None
    """Which of "audio" and "video" to build beside text; None for all that the model has."""
    text_head: str | None = None
    """Head for texts: "audio", "video", or "audio_video" (which was trained against both at once, and needs both);
    None is that of the first sense. Compare a text with the sense its head was trained against."""
    folder: str | None = None
    """Where the tokenizer is; None where the encoder is only given token ids."""
    sample_rate_hz: int = 48_000
    """Rate to which sounds are resampled."""
    clip_seconds: float = 10.0
    """Longest sound; the rest is cut off. The model itself has no limit, but a batch needs one length."""
    num_frames: int = 16
    """Frames of a film, spread evenly over all of it."""
    image_size: int = 336
    """Pixels of each side of a frame, which is stretched to a square."""
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted from red, green and blue on a scale where white is 1."""
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Divides red, green and blue after that."""
    max_tokens: int = 128
    """Tokens to which a text is padded or cut."""

    def __post_init__(self) -> None:
        kind = self.model.get("model_type") if isinstance(self.model, Mapping) else None
        if kind not in PE_AV_FAMILIES:
            raise self._error("model", f"settings with a model_type among {', '.join(PE_AV_FAMILIES)}", kind)
        known = PE_AV_FAMILIES[str(kind)]
        senses = known if self.senses is None else tuple(self.senses)
        if isinstance(self.senses, str) or not senses or not set(senses) <= set(known):
            raise self._error("senses", f"one or more of {known} for {kind}", self.senses)
        object.__setattr__(self, "senses", tuple(sense for sense in known if sense in senses))
        heads = (*self.built, "audio_video") if len(self.built) == 2 else self.built
        head = self.built[0] if self.text_head is None else self.text_head
        if head not in heads:
            raise self._error("text_head", f"one of {heads}", self.text_head)
        object.__setattr__(self, "text_head", head)
        for name in ("sample_rate_hz", "num_frames", "image_size", "max_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise self._error(name, "a whole number of at least 1", value)
        if not _is_number(self.clip_seconds) or not 0.025 <= self.clip_seconds <= 3600:
            raise self._error("clip_seconds", "a number from 0.025 to 3600", self.clip_seconds)
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            if not isinstance(value, (tuple, list)) or len(value) != 3 or not all(map(_is_number, value)):
                raise self._error(name, "three finite numbers", value)
            object.__setattr__(self, name, tuple(float(channel) for channel in value))  # JSON gives lists
        if min(self.image_std) <= 0:
            raise self._error("image_std", "three numbers above 0", self.image_std)

    @property
    def built(self) -> tuple[str, ...]:
        """`senses`, which are known after construction."""
        return self.senses or ()

    def _error(self, name: str, expected: str, got: object) -> ConfigError:
        return ConfigError(f"PeAudioVideoEncoderConfig.{name} must be {expected}, got {got!r}.")


class PeAudioVideoEncoder(JointEncoder):
    """Sound, film and text in one joint space.

    Args:
        config: the model's own configuration, what to build of it, and how media become its input.

    Raises:
        ConfigError: the settings make no model, or its video tower needs timm, which is not installed.

    Example:
        >>> encoder = PeAudioVideoEncoder.from_folder("pe-av-large", senses=("audio",))
        >>> sound, text = encoder.preprocess("audio", "rain.wav"), encoder.preprocess("text", "rain on a roof")
        >>> encoder.encode("audio", sound[None]) @ encoder.encode("text", text[None]).T
    """

    modalities: tuple[str, ...]

    def __init__(self, config: PeAudioVideoEncoderConfig) -> None:
        from transformers import AutoModel

        super().__init__()
        model_config = _model_config(config)
        with silent_transformers():
            model = AutoModel.from_config(model_config)
        self._set_up(config, model)

    def _set_up(self, config: PeAudioVideoEncoderConfig, model: Any) -> None:
        self.config = config
        self.model = model
        self.modalities = (*config.built, "text")
        self.dim = model.config.text_config.hidden_size

    @classmethod
    def from_folder(
        cls,
        path: str | os.PathLike[str],
        dtype: torch.dtype | None = None,
        senses: tuple[str, ...] | None = None,
        text_head: str | None = None,
    ) -> PeAudioVideoEncoder:
        """Load a folder as transformers saves it; of a model of sound and video, either may be loaded alone.

        Args:
            path: the folder.
            dtype: of the weights; None is the file's own.
            senses: which of "audio" and "video"; None for all that the model has, () for texts alone.
            text_head: see `PeAudioVideoEncoderConfig`.

        Raises:
            CheckpointError: the folder, its config or its weights are missing, damaged, or not of this family.
            ConfigError: impossible senses, or the video tower needs timm, which is not installed.
        """
        from transformers import AutoModel

        folder = Path(path)
        official = read_json(folder / "config.json")
        if official.get("model_type") not in PE_AV_FAMILIES:
            known = ", ".join(PE_AV_FAMILIES)
            raise CheckpointError(f"{folder} is of model_type {official.get('model_type')!r}; expected one of {known}")
        if senses == ():  # the head for texts comes with a sense; sound needs no timm
            senses = PE_AV_FAMILIES[official["model_type"]][:1]
        config = PeAudioVideoEncoderConfig(model=official, senses=senses, text_head=text_head, folder=str(folder))
        config = replace(config, **_published_media_settings(folder))
        model_config = _model_config(config)
        # A single tower stands in the joint file under a name of its own; the text tower does not.
        mapping = {r"^(audio|video)_model\.": ""} if model_config.model_type != official["model_type"] else None
        try:
            with silent_transformers():
                model, found = AutoModel.from_pretrained(
                    folder,
                    config=model_config,
                    local_files_only=True,
                    dtype=dtype or "auto",
                    key_mapping=mapping,
                    output_loading_info=True,
                )
        except Exception as error:  # the readers of safetensors and pickle raise whatever they like
            raise CheckpointError(f"{folder} cannot be loaded; get its config.json and weights again") from error
        faults = [*found["missing_keys"], *(str(key) for key in found["mismatched_keys"])]
        if faults:
            raise CheckpointError(
                f"{folder} does not fit its config.json ({len(faults)} weights missing or of another shape: "
                f"{faults[0]}, ...)"
            )
        encoder = cls.__new__(cls)
        super(PeAudioVideoEncoder, encoder).__init__()
        encoder._set_up(config, model)
        return encoder.eval().requires_grad_(False)

    def embed(self, modality: str, values: Tensor) -> Tensor:
        """Embeddings `(B, D_joint)` before normalisation.

        Args:
            modality: one of `modalities`.
            values: audio `(B, 2, S)`: mono samples, and below them 1 where they are real and 0 where they fill up;
                video `(B, 3, T, H, W)`; text int64 `(B, T)`.

        Raises:
            ConfigError: the encoder has no such modality, or the values have another shape.
        """
        self.check_modality(modality)
        if modality == "text":
            return self._embed_text(values)
        owner = self._owner(modality)
        if modality == "audio":
            if values.ndim != 3 or values.shape[1] != 2:
                raise _shape_error("sounds (B, 2, S)", values)
            samples, is_real = values[:, :1].to(self.model.dtype), values[:, 1] > 0.5
            pooled = owner.audio_encoder(input_values=samples, padding_mask=is_real.long()).pooler_output
            return owner.audio_head(pooled)
        if values.ndim != 5 or values.shape[1] != 3:
            raise _shape_error("films (B, 3, T, H, W)", values)
        frames = values.transpose(1, 2).to(self.model.dtype).contiguous()  # (B, T, 3, H, W)
        return owner.video_head(owner.video_encoder(pixel_values_videos=frames).pooler_output)

    def _embed_text(self, input_ids: Tensor) -> Tensor:
        if input_ids.ndim != 2 or input_ids.is_floating_point():
            raise _shape_error("token ids (B, T)", input_ids)
        mask = (input_ids != self.model.config.text_config.pad_token_id).long()
        # Not by get_text_audio_embeds and its like: in transformers 5.23 those fail for want of hidden states.
        first = self.model.text_model(input_ids=input_ids, attention_mask=mask).last_hidden_state[:, 0]
        head = self.config.text_head
        if head == "audio_video":
            return self.model.text_audio_video_head(first)
        return self._owner(str(head)).get_submodule(f"text_{head}_head")(first)

    def _owner(self, sense: str) -> Any:
        """The part of the model that holds the tower and heads of one sense."""
        return getattr(self.model, f"{sense}_model", self.model)

    def preprocess(self, modality: str, source: Any, *, allow_url: bool = False) -> Tensor:
        """One medium to what `encode` takes a batch of.

        Args:
            modality: one of `modalities`.
            source: as `bindlm.media` reads the modality; for text the text itself.
            allow_url: whether an http(s) address is fetched.

        Returns:
            audio float32 `(2, S)`, S being `clip_seconds`; video float32 `(3, T, H, W)`; text int64 `(T,)`.

        Raises:
            MediaError: the medium cannot be used.
            ConfigError: no such modality, or no tokenizer in the folder.
        """
        self.check_modality(modality)
        if modality == "text":
            return self._tokens(source)
        return self._sound(source, allow_url) if modality == "audio" else self._film(source, allow_url)

    def _tokens(self, source: Any) -> Tensor:
        from bindlm.media.text import load_text

        if self.config.folder is None:
            raise ConfigError("PeAudioVideoEncoderConfig.folder is None, so there is no tokenizer; give it token ids.")
        return token_ids(self.config.folder, load_text(source), self.config.max_tokens)

    def _sound(self, source: Any, allow_url: bool) -> Tensor:
        from bindlm.media.audio import load_audio
        from bindlm.media.resample import num_resampled, resample

        audio, rate = load_audio(source, allow_url=allow_url), self.config.sample_rate_hz
        hop = self._owner("audio").audio_encoder.config.dac_config.hop_length
        length = math.ceil(self.config.clip_seconds * rate / hop) * hop
        end = min(num_resampled(audio.samples.shape[1], audio.sample_rate_hz, rate), length)
        wave = resample(torch.from_numpy(audio.samples), audio.sample_rate_hz, rate, begin=0, end=end).mean(dim=0)
        rest = -wave.shape[0] % hop
        if rest:  # as released: the last step of the codec is filled by reflection, what follows by silence
            wave = torch.from_numpy(np.pad(wave.numpy(), (0, rest), "reflect" if wave.shape[0] > 1 else "edge"))
        values = torch.stack([wave, torch.ones_like(wave)])
        return F.pad(values, (0, length - values.shape[1]))  # (2, S)

    def _film(self, source: Any, allow_url: bool) -> Tensor:
        from bindlm.media.video import load_video
        from bindlm.media.video_sampling import VideoSampling

        config = self.config
        video = load_video(source, sampling=VideoSampling(num_frames=config.num_frames), allow_url=allow_url)
        size = (config.image_size, config.image_size)
        distinct = []
        for frame in video.frames:  # one after the other: a film's frames may be large
            pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float() / 255
            distinct.append(F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)[0])
        frames = torch.stack(distinct)[torch.from_numpy(video.index[0])]  # (T, 3, H, W)
        mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (config.image_mean, config.image_std))
        return ((frames - mean) / std).transpose(0, 1).contiguous()  # (3, T, H, W)


def build(**settings: Any) -> PeAudioVideoEncoder:
    """Fresh weights by the settings of `PeAudioVideoEncoderConfig`."""
    return PeAudioVideoEncoder(PeAudioVideoEncoderConfig(**settings))


def from_folder(
    path: str | os.PathLike[str], *, modalities: Iterable[str] | None = None, dtype: torch.dtype | None = None
) -> PeAudioVideoEncoder:
    """`PeAudioVideoEncoder.from_folder`, building only the senses asked for.

    Raises:
        CheckpointError: as there.
        ConfigError: there is no such modality, or it needs timm, which is not installed.
    """
    wanted = [modalities] if isinstance(modalities, str) else None if modalities is None else list(modalities)
    senses = None if wanted is None else tuple(name for name in wanted if name != "text")
    encoder = PeAudioVideoEncoder.from_folder(path, dtype, senses)
    encoder.modalities = choose_modalities(encoder, wanted)
    return encoder


def _model_config(config: PeAudioVideoEncoderConfig) -> Any:
    """The configuration of transformers for the senses asked for."""
    from transformers import AutoConfig

    settings = dict(config.model)
    kind = settings.pop("model_type")
    if "video" in config.built and _needs_timm(settings, kind) and find_spec("timm") is None:
        raise ConfigError(f"The video tower of {kind} is a model of timm, which is not installed: {_TIMM_CURE}.")
    try:
        if len(config.built) < len(PE_AV_FAMILIES[kind]):  # the towers of the other sense may need what is not there
            sense = config.built[0]
            tower = (settings.get("audio_video_config") or {}).get(f"{sense}_config")
            settings = {"text_config": settings.get("text_config"), f"{sense}_config": tower}
            kind = f"pe_{sense}"
        return AutoConfig.for_model(kind, **_with_vision_config(settings))
    except Exception as error:  # whatever the strict configs of transformers raise
        raise ConfigError(f"PeAudioVideoEncoderConfig.model makes no model: {one_line(error)}.") from None


def _with_vision_config(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` with a vision tower that is not timm's as an object: a dictionary is always taken for one of timm."""
    from transformers import AutoConfig

    settings = dict(settings)
    for name in ("audio_video_config", "video_config"):
        if isinstance(settings.get(name), Mapping):
            settings[name] = _with_vision_config(settings[name])
    vision = settings.get("vision_config")
    if isinstance(vision, Mapping) and vision.get("model_type", "timm_wrapper") != "timm_wrapper":
        settings["vision_config"] = AutoConfig.for_model(**vision)
    return settings


def _needs_timm(settings: Mapping[str, Any], kind: str) -> bool:
    tower: Any = settings.get("audio_video_config") if kind == "pe_audio_video" else settings
    for name in ("video_config", "vision_config"):
        tower = tower.get(name) if isinstance(tower, Mapping) else getattr(tower, name, None)
    named = tower.get("model_type") if isinstance(tower, Mapping) else getattr(tower, "model_type", None)
    return named in (None, "timm_wrapper")  # None: what transformers takes where nothing is said


def _published_media_settings(folder: Path) -> dict[str, Any]:
    """What the folder's processors state about rate, size and normalisation."""
    sound = _read_json_if_any(folder, "preprocessor_config.json")
    film: dict[str, Any] = {}
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        film = film or _read_json_if_any(folder, name)
    size = film.get("size")
    side = size.get("height", size.get("shortest_edge")) if isinstance(size, Mapping) else size
    stated = {
        "sample_rate_hz": sound.get("sampling_rate"),
        "image_size": side,
        "image_mean": film.get("image_mean"),
        "image_std": film.get("image_std"),
        "num_frames": film.get("num_frames"),
    }
    return {name: value for name, value in stated.items() if value is not None}


def _read_json_if_any(folder: Path, name: str) -> dict[str, Any]:
    return read_json(folder / name) if (folder / name).is_file() else {}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _shape_error(expected: str, values: Tensor) -> ConfigError:
    return ConfigError(
        f"PE-AV takes {expected}, got {tuple(values.shape)} of {values.dtype}; make them with the encoder's "
        "preprocess."
    )
