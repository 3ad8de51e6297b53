"""Options of TRL's trainer that change how a step is computed, not what it computes: against the plain way."""

import pytest
import torch
import transformers
from helpers.parts import TRAINING, losses, make_pairs, make_teachers
from helpers.rounding import rounding
from peft import LoraConfig
from trl import RewardConfig, RewardTrainer

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.errors import ConfigError


@pytest.fixture(scope="module")
def train(decoder, tmp_path_factory):
    """Losses and weights of a training on margins of teachers; of a training with the same options, those of the first."""
    rows = make_pairs().add_column("teacher_margins", [{"majority": i % 5 - 1.5, "minority": 1.5 - i % 4} for i in range(30)])
    kept = {}

    def run(peft: bool = False, **more):
        options = {**TRAINING, "distillation_loss": "mse", "learning_rate": 2e-3, "adam_epsilon": 1e-5, **more}
        trainer = PAFORewardTrainer(
            decoder,
            PAFOConfig(str(tmp_path_factory.mktemp("out")), **options),
            train_dataset=rows,
            peft_config=LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"]) if peft else None,
        )
        trainer.train()
        weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        return trainer, losses(trainer), weights

    def once(peft: bool = False, **more):
        key = (peft, repr(more))
        if key not in kept:
            kept[key] = run(peft, **more)
        return kept[key]

    return once


def assert_same(got, expected, atol: float | None = None) -> None:
    atol = atol or rounding()
    assert got[1] == pytest.approx(expected[1], abs=atol)
    weights = {name.replace("_orig_mod.", ""): tensor for name, tensor in got[2].items()}
    assert weights.keys() == expected[2].keys()
    for name, tensor in expected[2].items():
        torch.testing.assert_close(weights[name], tensor, atol=atol, rtol=0)


def test_accumulated_steps_are_those_of_a_large_batch(train):
    """Counterfactual rows are not spread evenly, so only means over all rows add up."""
    assert_same(train(per_device_train_batch_size=2, gradient_accumulation_steps=2), train())


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_noise_on_the_embeddings_is_that_of_reward_trainer(kind, request, tmp_path):
    """Its size goes by the tokens of a row, and one row would hold a pair, or a batch."""
    rows, found = make_pairs(history=0).select_columns(["prompt", "chosen", "rejected"]), {}
    for trainer, config in ((RewardTrainer, RewardConfig), (PAFORewardTrainer, PAFOConfig)):
        eos_token = "[SEP]" if kind == "encoder" else None
        args = config(str(tmp_path / trainer.__name__), neftune_noise_alpha=5, eos_token=eos_token, **TRAINING)
        torch.manual_seed(0)
        made = trainer(request.getfixturevalue(kind), args, train_dataset=rows)
        made.train()
        found[trainer] = losses(made)
    assert found[PAFORewardTrainer] == found[RewardTrainer]
    assert "neftune_noise_alpha" in (made.prefix_sharing if kind == "decoder" else made.padding_free).reason
    with pytest.raises(ConfigError, match="`neftune_noise_alpha`"):
        PAFORewardTrainer(
            request.getfixturevalue(kind),
            PAFOConfig(str(tmp_path), neftune_noise_alpha=5, prefix_sharing="on", eos_token=eos_token, **TRAINING),
            train_dataset=rows,
        )


@pytest.mark.parametrize(("peft", "reentrant"), [(False, False), (True, True)])
def test_checkpointed_gradients_are_the_same(train, peft, reentrant, monkeypatch):
    calls: list[bool] = []
    kwargs = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    original = transformers.modeling_utils.checkpoint

    def spy(*args, **more):
        calls.append(more["use_reentrant"])
        return original(*args, **more)

    expected = train(peft)
    monkeypatch.setattr(transformers.modeling_utils, "checkpoint", spy)
    assert_same(train(peft, **kwargs), expected)
    assert set(calls) == {reentrant}


def test_bf16_is_near_and_its_teachers_are_scored_in_it(train, decoder, tmp_path):
    exact, rough = train(), train(bf16=True)
    assert rough[1] == pytest.approx(exact[1], rel=0.1)
    assert rough[1] != exact[1]
    teachers, options = make_teachers("decoder", tmp_path / "teachers"), {**TRAINING, "conditioning": "own"}
    margins = []
    for bf16 in (False, True):
        args = PAFOConfig(str(tmp_path / str(bf16)), **{**options, "bf16": bf16})
        trainer = PAFORewardTrainer(decoder, args, train_dataset=make_pairs(), teachers=teachers)
        margins.append(trainer.train_dataset["teacher_margin"][:])
    assert margins[0] != margins[1]
    assert margins[1] == pytest.approx(margins[0], abs=0.3, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_student_is_the_same(train, backend):
    torch.compiler.reset()
    got = train(torch_compile=True, torch_compile_backend=backend)
    assert isinstance(got[0].model_wrapped, torch._dynamo.OptimizedModule)
    assert_same(got, train(), atol=1e-4)


def test_activation_offloading(train, tmp_path, monkeypatch):
    if torch.accelerator.is_available():
        assert_same(train(activation_offloading=True, use_cpu=False), train(use_cpu=False))
        return
    # As a build of torch for GPUs says it, which most machines without one have.
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *args: torch.device("cuda"))
    with pytest.raises(ConfigError, match="this machine has no accelerator"):
        PAFOConfig(str(tmp_path), activation_offloading=True, **TRAINING)
