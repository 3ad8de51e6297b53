"""Each loss against a loop in float64 written from its formula, and its gradient against numerical differences."""

import math

import pytest
import torch

from trl_pafo.errors import ConfigError
from trl_pafo.trainer.losses import DISTILLATION_LOSSES, bradley_terry, pafo_loss


def naive(name: str, d: float, t: float, temperature: float) -> float:
    if name == "mse":
        return (d - t) ** 2
    if name == "bce":
        p, q = 1 / (1 + math.exp(-d / temperature)), 1 / (1 + math.exp(-t / temperature))
        return -(temperature**2) * (q * math.log(p) + (1 - q) * math.log(1 - p))
    if name == "hinge":
        return max(0.0, t - d)
    return math.log(1 + math.exp(-(d - t)))


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    margin = torch.randn(12, generator=generator, dtype=torch.float64) * 2
    teacher = torch.randn(12, generator=generator, dtype=torch.float64) * 2
    return margin, teacher, torch.rand(12, generator=generator) < 0.6


@pytest.mark.parametrize("name", DISTILLATION_LOSSES)
def test_gradient_equals_numerical_differences(name, rows):
    margin, teacher, has_label = rows
    margin.requires_grad_(True)

    def loss(d: torch.Tensor) -> torch.Tensor:
        return pafo_loss(d, teacher, has_label, alpha=0.3, distillation_loss=name, temperature=1.7, offset=0.2).loss

    assert torch.autograd.gradcheck(loss, (margin,))


@pytest.mark.parametrize("name", DISTILLATION_LOSSES)
def test_pafo_loss_equals_a_naive_loop(name, rows):
    margin, teacher, has_label = rows
    alpha, offset, temperature = 0.3, 0.2, 1.5
    bt = distilled = 0.0
    for d, t, label in zip(margin.tolist(), teacher.tolist(), has_label.tolist(), strict=True):
        if label:
            bt += math.log(1 + math.exp(-(d - offset)))
        distilled += naive(name, d, t, temperature)
    bt, distilled = bt / len(margin), distilled / len(margin)
    result = pafo_loss(
        margin,
        teacher,
        has_label,
        alpha=alpha,
        distillation_loss=name,
        temperature=temperature,
        offset=offset,
    )
    assert result.bradley_terry.item() == pytest.approx(bt, rel=1e-12)
    assert result.distillation.item() == pytest.approx(distilled, rel=1e-12)
    assert result.loss.item() == pytest.approx(alpha * bt + (1 - alpha) * distilled, rel=1e-12)


def test_what_is_not_given_is_temperature_1_no_offset_and_bce(rows):
    margin, teacher, has_label = rows
    naive_bt = [math.log(1 + math.exp(-d)) for d in margin.tolist()]
    assert bradley_terry(margin).tolist() == pytest.approx(naive_bt, rel=1e-12)
    naive_bce = [naive("bce", d, t, 1.0) for d, t in zip(margin.tolist(), teacher.tolist(), strict=True)]
    assert DISTILLATION_LOSSES["bce"](margin, teacher).tolist() == pytest.approx(naive_bce, rel=1e-12)
    found = pafo_loss(margin, teacher, has_label, alpha=0.5)
    assert found.distillation.item() == pytest.approx(sum(naive_bce) / len(margin), rel=1e-12)
    labeled = sum(loss for loss, label in zip(naive_bt, has_label.tolist(), strict=True) if label)
    assert found.bradley_terry.item() == pytest.approx(labeled / len(margin), rel=1e-12)


def test_large_margins_stay_finite():
    margin = torch.tensor([-1e4, 1e4])
    for loss in DISTILLATION_LOSSES.values():
        assert torch.isfinite(loss(margin, -margin, 1.0)).all()


def test_an_unknown_name_lists_the_known_ones(rows):
    with pytest.raises(ConfigError, match="mse"):
        pafo_loss(*rows, alpha=0.5, distillation_loss="nonsense")
