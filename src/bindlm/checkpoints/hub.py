"""Weights from the model hub, through `huggingface_hub` and its cache."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bindlm.checkpoints.home import disk_error
from bindlm.errors import CheckpointError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
SAFE_PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""What a snapshot may hold: no pickles (.bin, .pt, .pth), no code (.py), no second copies (.gguf, .onnx, .msgpack)."""

_SAFE_SUFFIXES = tuple(pattern[1:] for pattern in SAFE_PATTERNS)
_SAFE_FILES = (*_SAFE_SUFFIXES, ".gguf")


def fetch_from_hub(
    hub_id: str,
    *,
    subfolder: str | None = None,
    filename: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    progress: bool = True,
) -> Path:
    """A snapshot of ``org/name`` (its folder), or one file of it, from the hub's cache or the network.

    ``HF_HUB_OFFLINE=1`` means the cache only, as everywhere.

    Raises:
        CheckpointError: unknown, private or gated repository, no network, or a file that may hold code.
    """
    if filename is not None and not filename.endswith(_SAFE_FILES):
        raise CheckpointError(
            f"{filename!r} of {hub_id} may hold a pickle or code; expected one of {', '.join(_SAFE_FILES)}; "
            "convert it to safetensors first"
        )
    local_files_only = local_files_only or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    with _hub_errors(hub_id, revision), _hub_bars(progress):
        from huggingface_hub import hf_hub_download, snapshot_download

        if filename is not None:
            return Path(
                hf_hub_download(
                    hub_id, filename, subfolder=subfolder, revision=revision, local_files_only=local_files_only
                )
            )
        prefix = f"{subfolder}/" if subfolder else ""
        patterns = [prefix + pattern for pattern in SAFE_PATTERNS]
        snapshot = Path(
            snapshot_download(hub_id, revision=revision, allow_patterns=patterns, local_files_only=local_files_only)
        )
    folder = snapshot / subfolder if subfolder else snapshot
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{hub_id}{f' ({subfolder})' if subfolder else ''} holds no .safetensors file here; choose a repository "
            "that has one (pickled weights are not loaded), or, when offline, fetch it once with network access"
        )
    return folder


@contextmanager
def _hub_errors(hub_id: str, revision: str | None) -> Iterator[None]:
    """One CheckpointError for all that the hub's client raises; its own text holds addresses and request ids."""
    try:
        from huggingface_hub import errors
    except ImportError as error:
        raise CheckpointError(f"{hub_id} needs the package huggingface_hub; `pip install huggingface_hub`") from error
    try:
        yield
    except CheckpointError:
        raise
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{hub_id} is gated: accept its licence on its page, then log in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{hub_id} has no revision {revision!r}; check the branch, tag or commit") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{hub_id} is not in the hub's cache, and the hub cannot be reached or HF_HUB_OFFLINE is set; "
            "fetch it once with network access, or give a local folder"
        ) from error
    except errors.EntryNotFoundError as error:
        raise CheckpointError(f"{hub_id} does not hold that file; check subfolder and filename") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"the hub has no {hub_id}, or it is private; check the name, or log in with `hf auth login`"
        ) from error
    except errors.HFValidationError as error:
        raise CheckpointError(f"{hub_id!r} is no hub id; expected org/name") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno and error.filename:
            raise disk_error(error, Path(error.filename).parent) from error
        raise CheckpointError(
            f"cannot fetch {hub_id} from the hub: it cannot be reached, or its answer made no sense; check the "
            f"network and try `hf download {hub_id}`, or give a local folder"
        ) from error


@contextmanager
def _hub_bars(progress: bool) -> Iterator[None]:
    """Hide the hub's own bars for ``progress=False``, and put back what was."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if progress or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
