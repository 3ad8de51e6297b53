"""Features of texts against the hidden states of the model."""

import numpy as np
import pytest
import torch
from helpers.parts import make_tokenizer
from helpers.rounding import rounding
from transformers import AutoModel

from trl_pafo.errors import ConfigError
from trl_pafo.evaluation.text_features import embed_texts

TEXTS = ["the cat", "a dog can sing in the rain", "the cat", "please kindly sir", "red"]


def test_features_do_not_depend_on_the_batch_and_equal_texts_are_equal(base_model):
    features = embed_texts(TEXTS, base_model, batch_size=4)
    assert features.shape == (5, 4 * 16 + 1)
    assert features[0] == pytest.approx(features[2])
    assert features == pytest.approx(embed_texts(TEXTS, base_model, batch_size=1), abs=rounding(features))


def test_features_are_standardized_means_over_the_tokens_of_each_layer(encoder):
    features = embed_texts(TEXTS, encoder)
    tokenizer, model = make_tokenizer("encoder"), AutoModel.from_pretrained(encoder).eval()
    different = [TEXTS[i] for i in (0, 1, 3, 4)]
    means = []
    for text in different:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states
        means.append(torch.cat([states[layer].mean(1)[0] for layer in (0, 1, 1, 2)]).double().numpy())
    expected = (np.array(means) - np.mean(means, axis=0)) / np.std(means, axis=0)
    for depth in range(4):
        block = expected[:, 16 * depth : 16 * depth + 16]
        block /= np.sqrt((block**2).sum(axis=1).mean())
        assert features[[0, 1, 3, 4], 16 * depth : 16 * depth + 16] == pytest.approx(block, abs=1e-3)
    lengths = np.log([len(tokenizer(text)["input_ids"]) for text in different])
    assert np.corrcoef(features[[0, 1, 3, 4], -1], lengths)[0, 1] == pytest.approx(1)


def test_further_texts_do_not_change_the_features_of_the_reference(encoder):
    alone = embed_texts(TEXTS[:4], encoder)
    assert embed_texts(TEXTS, encoder, num_reference=4)[:4] == pytest.approx(alone, abs=rounding(alone))
    assert embed_texts(TEXTS, encoder)[:4] != pytest.approx(alone, abs=0.01)


def test_an_unknown_model_is_an_error():
    with pytest.raises(ConfigError, match="nowhere/x"):
        embed_texts(["a"], "nowhere/x")
