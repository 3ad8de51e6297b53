"""What every method that describes a user by a vector promises."""

import json
import re
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.parts import files_of, make_pairs
from helpers.vectors import pairs_of_two_tastes

from trl_pafo.baselines import GPO, MRM, VPL, LoRe
from trl_pafo.baselines.features import FeaturePairs
from trl_pafo.baselines.lore import fit_weights
from trl_pafo.baselines.user_model import drawn
from trl_pafo.errors import ConfigError, DataError, RunFolderError

SMALL = {LoRe: {"num_basis": 2}, MRM: {}, VPL: {"width": 16}, GPO: {"width": 16, "num_layers": 2, "num_heads": 2}}
LEARNS = {
    LoRe: {"num_basis": 2, "num_steps": 100},
    MRM: {"num_steps": 300},
    VPL: {"width": 64, "num_steps": 200},
    GPO: {"width": 32, "num_layers": 2, "num_heads": 2, "num_steps": 300},
}


@pytest.fixture(autouse=True)
def few_steps_of_new_users(monkeypatch):
    """Of LoRe; its 500 would not be seen here."""
    monkeypatch.setattr("trl_pafo.baselines.lore.fit_weights", partial(fit_weights, num_steps=50))


@pytest.fixture(scope="module", params=[LoRe, MRM, VPL, GPO], ids=lambda cls: cls.__name__)
def method(request):
    return request.param


@pytest.fixture(scope="module")
def fitted(method):
    return method.fit(pairs_of_two_tastes(8)[0], num_steps=3, **SMALL[method])


def take(pairs: FeaturePairs, rows: list[int], past: list[list[int]] | None = None) -> FeaturePairs:
    own = [pairs.past[row] for row in rows] if past is None else past
    return FeaturePairs(pairs.pairs[rows], pairs.past_pairs, own, pairs.user[rows])


def accuracy(model, pairs: FeaturePairs) -> np.ndarray:
    rewards = model.score(pairs)
    return rewards[:, 0] > rewards[:, 1]


def test_past_pairs_tell_the_taste_of_new_users(method, monkeypatch):
    """With them, both groups are served; with those of a user of the other taste, neither is."""
    if method in (VPL, GPO):
        monkeypatch.setattr(method, "learning_rate", 3e-3)  # small networks in few steps
    model = method.fit(pairs_of_two_tastes(100, seed=0)[0], **LEARNS[method])
    new, minority = pairs_of_two_tastes(40, seed=1)
    right = accuracy(model, new)
    assert right[minority].mean() > 0.75
    assert right[~minority].mean() > 0.75
    swapped = replace(new, past=new.past[6:] + new.past[:6])  # each user next to one of the other taste
    assert accuracy(model, swapped).mean() < 0.4


def test_a_user_without_past_pairs_gets_the_answer_for_all(fitted):
    pairs = pairs_of_two_tastes(4, seed=2)[0]
    alone = fitted.score(replace(pairs, past=[[]] * len(pairs.past)))
    assert np.isfinite(alone).all()
    # Whoever it is, and whoever else is asked for.
    mixed = replace(pairs, past=[own if number % 2 else [] for number, own in enumerate(pairs.past)])
    np.testing.assert_allclose(fitted.score(mixed)[::2], alone[::2], atol=1e-5)
    assert np.abs(fitted.score(mixed)[1::2] - alone[1::2]).max() > 1e-4


def test_rewards_do_not_depend_on_other_pairs(fitted):
    """Nor on the other response, the order of the past pairs, or how many others have."""
    pairs = pairs_of_two_tastes(4, seed=2)[0]
    past = [own[: 1 + number % 3] for number, own in enumerate(pairs.past)]
    whole = fitted.score(replace(pairs, past=past))
    for row in (0, 7, 23):
        np.testing.assert_allclose(fitted.score(take(pairs, [row], [past[row][::-1]]))[0], whole[row], atol=1e-5)
    swapped = fitted.score(replace(pairs, pairs=pairs.pairs.flip(1), past=past))
    np.testing.assert_allclose(swapped[:, ::-1], whole, atol=1e-5)


def test_the_same_seed_gives_the_same_model(method):
    pairs = pairs_of_two_tastes(8)[0]
    state = torch.random.get_rng_state()
    one, same, other = (method.fit(pairs, num_steps=3, seed=seed, **SMALL[method]).score(pairs) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-4
    assert torch.equal(torch.random.get_rng_state(), state)


def test_features_are_taken_in_any_unit(method):
    pairs = pairs_of_two_tastes(8)[0]
    scale, shift = torch.tensor([1e3, 0.1, 1.0, 7.0]), torch.tensor([0.0, 5.0, -9.0, 1.0])
    other = replace(pairs, pairs=pairs.pairs * scale + shift, past_pairs=pairs.past_pairs * scale + shift)
    found = [method.fit(each, num_steps=3, **SMALL[method]).score(each) for each in (pairs, other)]
    np.testing.assert_allclose(*found, atol=2e-3)


def test_a_saved_model_is_the_same(fitted, tmp_path):
    pairs = pairs_of_two_tastes(4, seed=2)[0]
    fitted.save(tmp_path / "saved")
    assert set(files_of(tmp_path / "saved")) == {"user_model.json", "user_model.safetensors"}
    loaded = type(fitted).load(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.score(pairs), fitted.score(pairs))
    with pytest.raises(RunFolderError, match="exists already"):
        fitted.save(tmp_path / "saved")
    other = LoRe if type(fitted) is not LoRe else GPO
    with pytest.raises(ConfigError, match=f"holds another class than {other.__name__}"):
        other.load(tmp_path / "saved")
    with pytest.raises(ConfigError, match="holds no fitted"):
        other.load(tmp_path)


@pytest.mark.parametrize("damage", ["weights cut off", "no object", "no class", "an option more", "another size", "no weight"])
def test_a_damaged_model_is_named(damage, tmp_path):
    pairs = pairs_of_two_tastes(4)[0]
    GPO.fit(pairs, num_steps=1, **SMALL[GPO]).save(tmp_path / "saved")
    config, weights = tmp_path / "saved/user_model.json", tmp_path / "saved/user_model.safetensors"
    options = json.loads(config.read_text())
    changed = {"no class": {"num_features": 4}, "an option more": {**options, "colors": 2}, "no object": [1]}
    changed |= {"another size": {**options, "num_features": 9}}
    if damage in changed:
        config.write_text(json.dumps(changed[damage]))
    else:
        weights.write_bytes(weights.read_bytes()[:-9] if damage == "weights cut off" else (2).to_bytes(8, "little") + b"{}")
    with pytest.raises(ConfigError, match=f"{tmp_path / 'saved'} holds no fitted GPO .* Fit it again, and save it"):
        GPO.load(tmp_path / "saved")
    pairs.save(tmp_path / "pairs.safetensors")
    (tmp_path / "pairs.safetensors").write_bytes((tmp_path / "pairs.safetensors").read_bytes()[:-9])
    with pytest.raises(DataError, match=r"pairs\.safetensors holds no features of pairs .* Save them again"):
        FeaturePairs.load(tmp_path / "pairs.safetensors")


def test_each_epoch_shows_each_pair_once(monkeypatch):
    rows = []
    loss = GPO.loss
    monkeypatch.setattr(GPO, "batch_size", 5)
    monkeypatch.setattr(GPO, "loss", lambda self, pairs, own, progress: rows.append(own.tolist()) or loss(self, pairs, own, 0.0))
    GPO.fit(pairs_of_two_tastes(2)[0], num_steps=6, **SMALL[GPO])
    assert [len(own) for own in rows] == [5, 5, 2, 5, 5, 2]
    for epoch in (rows[:3], rows[3:]):
        assert sorted(chain(*epoch)) == [*range(12)]
    assert rows[:3] != rows[3:]


def test_what_cannot_be_fitted_or_asked(fitted):
    pairs = pairs_of_two_tastes(4)[0]
    with pytest.raises(DataError, match=r"describes a user by past pairs, and no training pair has any\. Attach histories"):
        type(fitted).fit(replace(pairs, past=[[]] * len(pairs.past)))
    with pytest.raises(ConfigError, match="`num_steps` must be at least 1, got 0"):
        type(fitted).fit(pairs, num_steps=0)
    with pytest.raises(DataError, match=r"have 5 features, and \w+ was fitted to 4. Take those of the same model"):
        fitted.score(pairs_of_two_tastes(4, num_features=5)[0])


class TestParts:
    def test_drawn_takes_any_number_in_the_limits_and_any_of_the_pairs(self):
        is_there = torch.tensor([[True] * 5 + [False], [True] * 2 + [False] * 4, [False] * 6, [True] * 6])
        torch.manual_seed(0)
        draws = torch.stack([drawn(is_there, 3, 5) for _ in range(300)])
        assert not (draws & ~is_there).any()
        number = draws.sum(dim=2)
        assert [set(number[:, row].tolist()) for row in range(4)] == [{3, 4, 5}, {2}, {0}, {3, 4, 5}]
        shares = draws.float().mean(dim=0)
        np.testing.assert_allclose(shares[0, :5], 0.8, atol=0.1)
        np.testing.assert_allclose(shares[3], 4 / 6, atol=0.1)


def test_the_page_shows_how_they_are_used(tmp_path, monkeypatch, encoder):
    page = (Path(__file__).parents[2] / "docs/baselines.md").read_text(encoding="utf-8")
    [script] = [block for block in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL) if "VPL" in block]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(VPL, "loss", lambda self, *args: self.mu.weight.sum())  # the number of steps stands there
    rows = make_pairs(num_users=4, pairs_per_user=4, history=0)
    names = {"rows": rows, "new_rows": make_pairs(num_users=3, pairs_per_user=3, history=0, seed=1)}
    exec(script.replace('"reward-model"', repr(encoder)), names)
    assert names["rewards"].shape == (6, 2)  # earlier pairs alone are past, and the first of a user has none
    assert isinstance(VPL.load("vpl"), VPL)
