"""Options of TRL's trainer that change how a step is computed, not what it computes: with teachers, against the plain way."""

import pytest
import torch
import transformers
from helpers.parts import losses, make_pairs, make_teachers
from helpers.rounding import rounding
from peft import LoraConfig

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.errors import ConfigError


@pytest.fixture
def train(decoder, training, tmp_path):
    """Losses and weights of a training with teachers."""
    teachers = make_teachers("decoder", tmp_path / "teachers")

    def run(name: str, peft: bool = False, **more):
        options = {**training, "distillation_loss": "mse", "learning_rate": 2e-3, "adam_epsilon": 1e-5, **more}
        trainer = PAFORewardTrainer(
            decoder,
            PAFOConfig(str(tmp_path / name), **options),
            train_dataset=make_pairs(),
            teachers=teachers,
            peft_config=LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"]) if peft else None,
        )
        trainer.train()
        weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        return trainer, losses(trainer), weights

    return run


def assert_same(got, expected, atol: float | None = None) -> None:
    atol = atol or rounding()
    assert got[1] == pytest.approx(expected[1], abs=atol)
    weights = {name.replace("_orig_mod.", ""): tensor for name, tensor in got[2].items()}
    assert weights.keys() == expected[2].keys()
    for name, tensor in expected[2].items():
        torch.testing.assert_close(weights[name], tensor, atol=atol, rtol=0)


def test_accumulated_steps_are_those_of_a_large_batch(train):
    """Counterfactual rows are not spread evenly, so only means over all rows add up."""
    got = train("a", per_device_train_batch_size=2, gradient_accumulation_steps=3)
    assert_same(got, train("b", per_device_train_batch_size=6))


@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_are_the_same(train, peft, reentrant):
    calls: list[bool] = []
    kwargs = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    original = transformers.modeling_utils.checkpoint

    def spy(*args, **more):
        calls.append(more["use_reentrant"])
        return original(*args, **more)

    expected = train("b", peft)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.modeling_utils, "checkpoint", spy)
        got = train("a", peft, **kwargs)
    assert set(calls) == {reentrant}
    assert_same(got, expected)


def test_bf16_is_near_and_its_teachers_are_scored_in_it(train):
    exact, rough = train("a"), train("b", bf16=True)
    assert rough[1] == pytest.approx(exact[1], rel=0.1)
    assert rough[1] != exact[1]
    margins = [run[0].train_dataset["teacher_margin"][:] for run in (exact, rough)]
    assert margins[0] != margins[1]
    assert margins[1] == pytest.approx(margins[0], abs=0.3, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_student_is_the_same(train, backend):
    torch.compiler.reset()
    got = train("a", torch_compile=True, torch_compile_backend=backend)
    assert isinstance(got[0].model_wrapped, torch._dynamo.OptimizedModule)
    assert_same(got, train("b"), atol=1e-4)


def test_activation_offloading(train, decoder, training, tmp_path, monkeypatch):
    if torch.accelerator.is_available():
        assert_same(train("a", activation_offloading=True, use_cpu=False), train("b", use_cpu=False))
        return
    # As a build of torch for GPUs says it, which most machines without one have.
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *args: torch.device("cuda"))
    with pytest.raises(ConfigError, match="this machine has no accelerator"):
        PAFORewardTrainer(
            "does/not-exist", PAFOConfig(str(tmp_path), activation_offloading=True, **training), train_dataset=make_pairs()
        )
