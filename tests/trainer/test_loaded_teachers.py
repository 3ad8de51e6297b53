"""Teachers in memory: several on one backbone, scored like each alone, and freed. (On ranks: tests/distributed)"""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers.parts import make_adapter, make_model
from helpers.rounding import rounding
from transformers import AutoTokenizer

from trl_pafo.errors import DataError, TeacherError
from trl_pafo.models.loading import load_reward_model
from trl_pafo.trainer import loaded_teachers as module
from trl_pafo.trainer.loaded_teachers import TeacherModels, by_backbone
from trl_pafo.trainer.teacher import as_teachers


@pytest.fixture
def adapters(decoder, tmp_path) -> dict[str, str]:
    return {group: make_adapter(decoder, tmp_path / group, seed) for seed, group in enumerate("abc", 1)}


@pytest.fixture
def sequences() -> list[list[int]]:
    rng = np.random.default_rng(0)
    found = [rng.integers(6, 40, rng.integers(3, 12)).tolist() for _ in range(9)]
    return [*found, found[0], found[4]]


def plain(model, sequences) -> np.ndarray:
    """Margins against the first of the sequences, each scored alone."""
    with torch.no_grad():
        rewards = np.array([model.eval()(torch.tensor([ids])).logits.item() for ids in sequences])
    return rewards - rewards[0]


def margins(models, group, sequences, batch_size=16) -> np.ndarray:
    return models.margins(group, sequences, len(sequences) * [sequences[0]], batch_size=batch_size)


def models_of(teachers, tokenizer, **options) -> TeacherModels:
    return TeacherModels(as_teachers(teachers), AutoTokenizer.from_pretrained(tokenizer), Accelerator(cpu=True), **options)


def test_adapters_of_one_base_share_it(adapters, decoder, sequences, monkeypatch):
    loads = []
    monkeypatch.setattr(module, "load_reward_model", lambda *a, **k: loads.append(a) or load_reward_model(*a, **k))
    with models_of(adapters, decoder) as models:
        for group in ("b", "a", "c", "a"):  # in any order, each head with its adapter
            expected = plain(load_reward_model(adapters[group]), sequences)
            np.testing.assert_allclose(margins(models, group, sequences, batch_size=2), expected, atol=rounding(expected))
        assert not any(p.requires_grad for p in models._model.parameters())
    assert len(loads) == 1
    with pytest.raises(RuntimeError, match="closed"):
        margins(models, "a", sequences)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    models_of(adapters, decoder)  # draws a head for the base, but nothing of what the student draws
    assert torch.equal(torch.rand(3), expected)


def test_each_adapter_is_scored_with_its_own_pad_id(adapters, decoder, sequences, tmp_path):
    """The pad id moves the token that a decoder pools at."""
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(sequences[0][-1])
    tokenizer.save_pretrained(adapters["b"])
    with models_of(adapters, decoder) as models:
        got = margins(models, "b", sequences, batch_size=2)
        own = load_reward_model(adapters["b"])
        own.config.pad_token_id = tokenizer.pad_token_id
        np.testing.assert_allclose(got, plain(own, sequences), atol=rounding(got))
        other = load_reward_model(adapters["a"])
        expected = plain(other, sequences)
        np.testing.assert_allclose(margins(models, "a", sequences, batch_size=2), expected, atol=rounding(expected))


def test_what_shares_a_backbone(adapters, decoder, tmp_path):
    other = make_model("decoder", tmp_path / "other", seed=7)
    teachers = as_teachers(
        {
            **adapters,
            "full": other,
            "again": other,
            "of another": make_adapter(other, tmp_path / "d", 4),
            "with biases": make_adapter(decoder, tmp_path / "e", 5, bias="all"),
        }
    )
    groups = [set(together) for together in by_backbone(teachers)]
    assert groups == [{"a", "b", "c"}, {"full", "again"}, {"of another"}, {"with biases"}]


def test_mixed_precision_of_the_run_is_used(adapters, decoder, sequences, monkeypatch):
    with models_of(adapters, decoder) as models:
        exact = margins(models, "a", sequences)
        # As under DeepSpeed, where `Accelerator.autocast` does nothing.
        monkeypatch.setattr(type(models.accelerator), "mixed_precision", "bf16")
        assert not models.accelerator.native_amp
        rough = margins(models, "a", sequences)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected = plain(load_reward_model(adapters["a"]), sequences)
    step = torch.finfo(torch.bfloat16).eps * np.abs(exact).max()  # of bfloat16, in the size of what is added up
    np.testing.assert_allclose(rough, expected, rtol=0, atol=2 * step)
    assert 1e-4 < np.abs(rough - exact).max() < 4 * step


def test_a_broken_teacher_is_named_so(adapters, decoder, sequences):
    with models_of(adapters, decoder) as models:
        with torch.no_grad():
            models._model.base_model.model.model.norm.weight.fill_(float("nan"))
        with pytest.raises(TeacherError, match=r"^The teacher of group 'a': \d+ of \d+ rewards are NaN or infinite"):
            margins(models, "a", sequences)


@pytest.mark.parametrize("prefix_sharing", ["off", "auto"])
def test_a_teacher_of_fewer_positions_than_the_rows_have_tokens(prefix_sharing, tmp_path):
    short = make_model("decoder", tmp_path / "short", max_position_embeddings=40)
    prefix = [7] * 38
    with models_of({"a": short}, short) as models:
        models.margins("a", [[*prefix, 8, 9]], [[*prefix, 9]], prefix_sharing=prefix_sharing)
        with pytest.raises(DataError, match=r"1 of 2 sequences are longer than the 40 positions of the teacher of group 'a'"):
            models.margins("a", [[*prefix, 8, 9]], [[*prefix, 9, 8, 7]], prefix_sharing=prefix_sharing)


def test_shared_rows_give_the_margins_of_two_rows(adapters, decoder, monkeypatch):
    rng = np.random.default_rng(1)
    prefixes = [rng.integers(6, 40, rng.integers(20, 30)).tolist() for _ in range(7)]
    chosen, rejected = ([[*p, first, *rng.integers(6, 40, 3).tolist()] for p in prefixes] for first in (4, 5))
    calls, score_pairs = [], module.score_pairs
    monkeypatch.setattr(module, "score_pairs", lambda *a, **k: calls.append(k["share_prefix"]) or score_pairs(*a, **k))
    with models_of(adapters, decoder) as models:
        apart = models.margins("b", chosen, rejected, batch_size=3)
        shared = models.margins("b", chosen, rejected, batch_size=3, prefix_sharing="auto")
    assert calls == [False, True]
    np.testing.assert_allclose(shared, apart, atol=rounding(apart))
    assert np.ptp(apart) > 1e-3
