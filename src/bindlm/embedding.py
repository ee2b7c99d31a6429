"""Media of any sense to joint embeddings, without a language model.

import bindlm

embedder = bindlm.load_embedder("imagebind_huge.pth")
sounds = embedder.embed(audio=["rain.wav", "dog.ogg"])  # (2, 1024), unit length
words = embedder.embed(text=["rain", "a dog barking"])
sounds @ words.T  # cosine similarities
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bindlm.checkpoints import resolve
from bindlm.checkpoints.notice import say
from bindlm.encoders import JointEncoder, load_encoder
from bindlm.encoders.bound import MODEL_TYPE as TOWER_MODEL_TYPE
from bindlm.encoders.bound import BoundEncoder, load_tower_folder, read_tower_folder
from bindlm.encoders.registry import model_type_of
from bindlm.errors import CheckpointError, ConfigError, MediaError

if TYPE_CHECKING:
    from bindlm.processing import BindLMImageProcessor

__all__ = ["Embedder", "load_embedder"]

_PREPROCESSING_VERSION = 1
"""Raised when preprocessing changes what a family gives, so that old indexes are refused."""
_SAMPLES = 16
"""Values of each tensor that enter a fingerprint: reading all of ImageBind would take a minute."""

Preprocess = Callable[..., Tensor]


class Embedder:
    """An encoder with its preprocessing: media in, unit-length joint embeddings out.

    Args:
        encoder: any family.
        name: what messages and `--json` call it.
        preprocess: by modality, `(source, allow_url) -> Tensor` in place of the encoder's own preprocessing.
    """

    def __init__(
        self, encoder: JointEncoder, *, name: str = "encoder", preprocess: Mapping[str, Preprocess] | None = None
    ) -> None:
        self.encoder = encoder
        self.name = name
        self._preprocess = dict(preprocess or {})
        self._fingerprints: dict[str | None, str] = {}

    @property
    def modalities(self) -> tuple[str, ...]:
        """Senses it takes."""
        return tuple(self.encoder.modalities)

    @property
    def dim(self) -> int:
        """D_joint."""
        return self.encoder.dim

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that differ where weights, sizes, references or preprocessing do.

        Names, shapes, types and a sample of the values of every tensor; not the whole of each.
        """
        return self._fingerprint_of(None)

    def fingerprint_of(self, modality: str) -> str:
        """As `fingerprint`, of what one sense depends on: another sense that joins the space leaves it as it is.

        Raises:
            ConfigError: no such modality.
        """
        self.encoder.check_modality(modality)
        return self._fingerprint_of(modality)

    def _fingerprint_of(self, modality: str | None) -> str:
        if modality not in self._fingerprints:
            digest = hashlib.sha256(f"{_PREPROCESSING_VERSION} {type(self.encoder).__name__}".encode())
            state = self.encoder.state_dict()
            for name in sorted(state if modality is None else self.encoder.tensor_names(modality)):
                tensor = state[name]
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                flat = tensor.detach().flatten()
                sample = flat[:: max(1, flat.numel() // _SAMPLES)]
                digest.update(sample.cpu().to(torch.float64).numpy().tobytes())
            for sense in self.modalities if modality is None else (modality,):
                digest.update(self.encoder.identity(sense).encode())
            self._fingerprints[modality] = digest.hexdigest()[:16]
        return self._fingerprints[modality]

    def preprocess(self, modality: str, source: Any, *, allow_url: bool = False) -> Tensor:
        """One medium to what `encode` takes a batch of, without the batch axis; safe to call from several threads.

        Raises:
            MediaError: the medium cannot be used.
            ConfigError: no such modality.
        """
        self.encoder.check_modality(modality)
        if modality in self._preprocess:
            return self._preprocess[modality](source, allow_url=allow_url)
        return self.encoder.preprocess(modality, source, allow_url=allow_url)

    @torch.inference_mode()
    def encode(self, modality: str, values: Tensor) -> Tensor:
        """A batch of preprocessed media to `(B, D_joint)`, unit length, fp32, on the CPU."""
        weight = next(self.encoder.parameters())
        values = values.to(weight) if values.is_floating_point() else values.to(weight.device)
        return self.encoder.encode(modality, values).float().cpu()

    def embed(
        self,
        *,
        batch_size: int = 8,
        allow_url: bool = False,
        workers: int | None = None,
        **media: Any,
    ) -> Tensor:
        """Joint embeddings of media of one sense.

        Args:
            batch_size: media encoded at once.
            allow_url: whether a medium may be an http(s) address.
            workers: threads that decode while the encoder works; None for one a core, at most 4.
            **media: one sense by name, with one medium or a list of N: `image=["a.jpg", "b.jpg"]`, `text="a dog"`.

        Returns:
            `(N, D_joint)`, unit length, fp32, on the CPU, in the order given.

        Raises:
            MediaError: a medium cannot be used; nothing is returned for the others.
            ConfigError: no sense or several, one that the encoder lacks, or nothing in it.

        Example:
            >>> bindlm.load_embedder().embed(image=["cat.jpg", "dog.jpg"]).shape
            torch.Size([2, 1024])
        """
        given = {modality: value for modality, value in media.items() if value is not None}
        if len(given) != 1:
            raise ConfigError(
                f"Give media of one sense, such as image=[…]; got {', '.join(given) or 'none'}. To mix several, embed "
                "each and use bindlm.space.mix_embeddings."
            )
        modality, sources = next(iter(given.items()))
        self.encoder.check_modality(modality)
        listed = list(sources) if isinstance(sources, (list, tuple)) else [sources]
        if not listed:
            raise ConfigError(f"There is nothing to embed: {modality} is an empty list.")
        rows: list[Tensor] = []
        for _, row in self.stream(modality, listed, batch_size=batch_size, workers=workers, allow_url=allow_url):
            if isinstance(row, MediaError):
                raise row
            rows.append(row)
        return torch.stack(rows)

    def stream(
        self,
        modality: str,
        sources: Iterable[Any],
        *,
        batch_size: int = 8,
        workers: int | None = None,
        allow_url: bool = False,
    ) -> Iterator[tuple[int, Tensor | MediaError]]:
        """Embed many media, decoding the next ones while the encoder works on a batch.

        Args:
            modality: one of `modalities`.
            sources: media; read only as far ahead as two batches.
            batch_size: media encoded at once.
            workers: threads that decode; None for one a core, at most 4.
            allow_url: whether a medium may be an http(s) address.

        Yields:
            For each medium in order its number and its embedding `(D_joint,)`, or the MediaError that it met.

        Raises:
            ConfigError: no such modality, or an impossible batch size.
        """
        self.encoder.check_modality(modality)
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}.")
        workers = min(4, os.cpu_count() or 1) if workers is None else workers
        numbered = enumerate(sources)
        pool = ThreadPoolExecutor(max_workers=max(1, workers), thread_name_prefix="bindlm-decode")
        waiting: deque[tuple[int, Future[Tensor | MediaError]]] = deque()

        def read_ahead() -> None:
            while len(waiting) < 2 * batch_size and (following := next(numbered, None)) is not None:
                waiting.append(
                    (following[0], pool.submit(self._preprocess_or_error, modality, following[1], allow_url))
                )

        try:
            read_ahead()
            while waiting:
                batch: list[tuple[int, Tensor | MediaError]] = []
                while waiting and sum(isinstance(value, Tensor) for _, value in batch) < batch_size:
                    number, future = waiting.popleft()
                    batch.append((number, future.result()))
                    read_ahead()
                values = [value for _, value in batch if isinstance(value, Tensor)]
                embeddings = iter(self.encode(modality, torch.stack(values)) if values else ())
                for number, value in batch:
                    yield number, value if isinstance(value, MediaError) else next(embeddings)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _preprocess_or_error(self, modality: str, source: Any, allow_url: bool) -> Tensor | MediaError:
        try:
            return self.preprocess(modality, source, allow_url=allow_url)
        except MediaError as error:
            return error


def load_embedder(
    reference: str | os.PathLike[str] | None = None,
    *,
    family: str | None = None,
    modalities: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    local_files_only: bool = False,
    progress: bool = True,
) -> Embedder:
    """An encoder with its preprocessing.

    Args:
        reference: None or "mini" for the embedded mini; a bound model's folder; a published weight file (ImageBind's
            or Point-Bind's `.pth`); a folder or hub id of CLIP, SigLIP, PE-AV or LanguageBind; or the folder of a
            tower that was bound to one of these, which gives its sense and, where they can be had, theirs.
        family: of the weights; None recognises it.
        modalities: senses to load; None loads all. A tower that is not asked for is not read.
        dtype: of the weights; None keeps the file's.
        device: where to put it; None is the CPU.
        local_files_only: never touch the network.
        progress: whether to say on stderr what is fetched.

    Raises:
        CheckpointError: the weights are not to be had, damaged, or of no known family.
        ConfigError: unknown family or sense.
    """
    if reference is None or reference == "mini":
        from bindlm.loading import MINI

        path, name = MINI, "mini"
    else:
        path = resolve(reference, local_files_only=local_files_only, progress=progress)
        name = str(reference)
    if family is None and path.is_dir() and model_type_of(path) == "bindlm":
        embedder = _embedder_of_bound_model(path, local_files_only=local_files_only, progress=progress)
        for modality in modalities or ():
            embedder.encoder.check_modality(modality)
        embedder.encoder.to(dtype=dtype)
    elif family in (None, "tower") and path.is_dir() and model_type_of(path) == TOWER_MODEL_TYPE:
        embedder = _embedder_of_tower(path, modalities, dtype, local_files_only=local_files_only, progress=progress)
    else:
        embedder = Embedder(load_encoder(path, family=family, modalities=modalities, dtype=dtype))
    embedder.name = name
    if device is not None:
        embedder.encoder.to(device)
    return embedder


def _embedder_of_bound_model(folder: Path, *, local_files_only: bool, progress: bool) -> Embedder:
    """The encoder of a bound model; its language model stays on the disk."""
    from bindlm.bound_encoder import load_bound_encoder
    from bindlm.processing import image_processor_in

    encoder = load_bound_encoder(folder, local_files_only=local_files_only, progress=progress)
    return bound_embedder(encoder, image_processor_in(folder))


def _embedder_of_tower(
    folder: Path,
    modalities: Sequence[str] | None,
    dtype: torch.dtype | None,
    *,
    local_files_only: bool,
    progress: bool,
) -> Embedder:
    """A trained tower and, unless it alone is asked for or it cannot be had, the encoder that it was bound to."""
    tower = load_tower_folder(folder, dtype=dtype or torch.float32)
    anchor = read_tower_folder(folder).anchor
    others = None if modalities is None else [sense for sense in modalities if sense != tower.modality]
    embedder: Embedder | None = None
    if anchor is not None and others != []:
        try:
            embedder = load_embedder(
                _anchor_reference(folder, anchor.reference),
                modalities=anchor.modalities,
                dtype=dtype,
                local_files_only=local_files_only,
                progress=progress,
            )
        except CheckpointError as error:
            if others is not None:  # its senses were asked for
                raise
            say(f"the {tower.modality} tower of {folder} comes without its anchor: {error}", progress=progress)
    if embedder is not None and anchor is not None:
        made_with = {embedder.fingerprint, *map(embedder.fingerprint_of, embedder.modalities)}
        if anchor.fingerprint not in made_with:
            raise CheckpointError(
                f"{folder} was bound to another {anchor.reference} (fingerprint {anchor.fingerprint}; this one has "
                f"{embedder.fingerprint}), so their embeddings do not compare; bind it anew, or load it alone with "
                f"modalities=[{tower.modality!r}]"
            )
        if embedder.dim != tower.dim:
            raise CheckpointError(
                f"{folder} gives embeddings of {tower.dim} numbers, and {anchor.reference} of {embedder.dim}"
            )
    encoder = BoundEncoder({tower.modality: tower}, embedder.encoder if embedder is not None else None)
    encoder.fetch_with(local_files_only=local_files_only, progress=progress)
    for modality in modalities or ():
        encoder.check_modality(modality)
    encoder.requires_grad_(False).eval()
    prepare = dict(embedder._preprocess) if embedder is not None else {}
    prepare.pop(tower.modality, None)
    return Embedder(encoder, preprocess=prepare)


def _anchor_reference(folder: Path, reference: str) -> str:
    """The anchor's reference; a relative path may also start at the tower's own folder."""
    beside = folder / reference
    return str(beside) if reference != "mini" and not Path(reference).exists() and beside.exists() else reference


def bound_embedder(encoder: JointEncoder, processor: "BindLMImageProcessor | None") -> Embedder:
    """The encoder of a bound model, with the image processor that its pictures go through.

    Args:
        encoder: of the model.
        processor: of the model; None where the encoder prepares pictures.
    """
    if processor is None:
        return Embedder(encoder)

    def picture(source: Any, allow_url: bool) -> Tensor:
        return processor(processor.load([source], allow_url=allow_url))["pixel_values"][0]

    return Embedder(encoder, preprocess={"image": picture})
