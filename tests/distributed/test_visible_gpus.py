"""Several GPUs that one process sees, without a launcher: refused before a model is loaded, as nothing trains in `nn.DataParallel`."""

from types import SimpleNamespace

import pytest
from helpers.parts import make_pairs
from helpers.tiny_policies import make_oracle
from transformers import TrainingArguments
from trl import ModelConfig

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.baselines import PRLHFRewardTrainer
from trl_pafo.errors import ConfigError
from trl_pafo.evaluation.methods import RunArguments
from trl_pafo.pipeline.run import Run
from trl_pafo.trainer.config import check_visible_gpus

NOWHERE = "no/such-model"


@pytest.fixture
def args(training, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    return PAFOConfig(str(tmp_path / "out"), **training)


@pytest.mark.parametrize(
    "start",
    [
        lambda args, out: PAFORewardTrainer(NOWHERE, args, train_dataset=make_pairs()),
        lambda args, out: PRLHFRewardTrainer(NOWHERE, args, train_dataset=make_pairs()),
        lambda args, out: Run(RunArguments(), args, ModelConfig(model_name_or_path=NOWHERE)),
        lambda args, out: make_oracle(NOWHERE, out / "portfolio"),
    ],
    ids=["trainer", "a trainer that loads its model itself", "run", "portfolio"],
)
def test_the_fix_is_named(start, args, tmp_path):
    with pytest.raises(ConfigError, match=r"2 GPUs are visible.*`accelerate launch` or `torchrun`.*CUDA_VISIBLE_DEVICES=0"):
        start(args, tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_spread_over_them_is_let_through(args):
    check_visible_gpus(args, SimpleNamespace(hf_device_map={"model": 0, "score": 1}))
    args.model_init_kwargs = {"device_map": "auto"}
    check_visible_gpus(args, NOWHERE)
    args.model_init_kwargs = {"device_map": None}
    with pytest.raises(ConfigError, match="device_map"):
        check_visible_gpus(args, NOWHERE)


def test_a_model_that_is_spread_over_them_shares_no_rows(decoder, training, tmp_path, monkeypatch):
    """What flex_attention is told of who sees whom stays where it was made."""
    spread = property(lambda trainer: True, lambda trainer, found: None)  # the Trainer finds it out
    monkeypatch.setattr(PAFORewardTrainer, "is_model_parallel", spread, raising=False)
    args = {**training, "prefix_sharing": "on"}
    with pytest.raises(ConfigError, match="the layers are on several devices"):
        PAFORewardTrainer(decoder, PAFOConfig(str(tmp_path), **args), train_dataset=make_pairs())


def test_p_rlhf_loads_its_model_onto_one_device(decoder, training, tmp_path, monkeypatch):
    """TRL's default on an accelerator spreads it over all, under a launcher too."""
    given = []

    def load(model, architecture, **options):
        given.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("trl_pafo.baselines.p_rlhf.create_model_from_path", load)
    with pytest.raises(KeyboardInterrupt):
        PRLHFRewardTrainer(decoder, PAFOConfig(str(tmp_path), **training), train_dataset=make_pairs())
    assert given[0]["device_map"] is None
