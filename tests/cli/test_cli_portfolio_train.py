"""`trl-pafo portfolio train`: reward models and prompts in, trained members and their portfolio out."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers.parts import make_model, remember_inputs
from helpers.ranks import CPU_AS_GPU, PATIENCE, accelerate, environment, needs_deepspeed
from helpers.tiny_policies import PROMPTS, make_policy

from trl_pafo.cli import main
from trl_pafo.palm import Portfolio
from trl_pafo.palm.oracles import grpo

REWARDS = """
def brevity(completions, **kwargs):
    return [1 / (1 + len(completion[0]["content"].split())) for completion in completions]
"""
TRAINING = (
    "--max_steps 1 --num_generations 4 --max_completion_length 4 --learning_rate 0.02 --use_cpu true --bf16 false "
    "--gradient_checkpointing false --save_strategy no --report_to none --max_calls 3 --num_members 2 --num_samples 2"
).split()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A base, two reward models, a reward function and prompts."""
    root = tmp_path_factory.mktemp("files")
    make_policy(root / "base")
    for seed, name in enumerate(("warm", "brief")):
        remember_inputs(make_model("encoder", root / name, seed=seed), num_history=0)
    (root / "our_rewards.py").write_text(REWARDS)
    (root / "prompts").mkdir()
    for split, texts in (("train", PROMPTS[:4]), ("test", PROMPTS[4:])):
        rows = [{"prompt": [{"role": "user", "content": text}]} for text in texts]
        (root / "prompts" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def command(*rewards: str, batch: int = 8) -> list[str]:
    given = ["--model_name_or_path", "base", "--dataset_name", "prompts", "--rewards", *rewards]
    return ["portfolio", "train", *given, "--per_device_train_batch_size", str(batch), *TRAINING]


@pytest.fixture(scope="module")
def trained(files) -> tuple[Path, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(files)
        assert main([*command("warm", "brief"), "--output_dir", "run"]) == 0
    return files / "run"


def test_the_portfolio_names_its_rewards_and_its_members(trained):
    portfolio = Portfolio.load(trained / "portfolio")
    assert portfolio.reward_names == ("warm", "brief")
    assert len(portfolio) <= 2
    assert all((trained.parent / policy / "adapter_model.safetensors").exists() for policy in portfolio.policies)
    assert {path.name for path in (trained / "portfolio").iterdir()} == {
        *("portfolio.json", "scale.json", "cells.png", "gap.png", "usage.png")
    }


def test_past_pairs_choose_a_member_by_the_same_reward_models(trained, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(trained.parent)
    past = [{"prompt": "how do i sing", "chosen": "soup", "rejected": "a house and a tree"}]
    (tmp_path / "past.jsonl").write_text("".join(json.dumps(row) + "\n" for row in past))
    flags = ["--portfolio", "run/portfolio", "--history", str(tmp_path / "past.jsonl"), "--reward_models", "warm", "brief"]
    assert main(["portfolio", "choose", *flags]) == 0
    assert "member" in capsys.readouterr().out


def test_members_that_are_complete_are_kept(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained.parent)
    monkeypatch.setattr(grpo, "GRPOTrainer", None)
    monkeypatch.setattr(grpo, "MixedPolicy", None)
    assert main([*command("warm", "brief"), "--output_dir", "run"]) == 0
    said = capsys.readouterr().out
    calls = Portfolio.load(trained / "portfolio").calls
    assert said.count("done before, kept") == 2 + 2 * len(calls)  # the scale, the base, members and their evaluations
    assert "base: warm 0." in said
    assert "Portfolio: run/portfolio" in said


def test_a_reward_function_of_the_working_directory(files, monkeypatch, tmp_path):
    monkeypatch.chdir(files)
    assert main([*command("warm", "our_rewards.brevity"), "--output_dir", str(tmp_path)]) == 0
    portfolio = Portfolio.load(tmp_path / "portfolio")
    assert portfolio.reward_names == ("warm", "brevity")
    assert not (tmp_path / "portfolio/scale.json").exists()  # past pairs cannot be scored by a function alone
    assert set(np.round(1 / portfolio.calls[0].result.prompt_values[:, 1], 6)) <= {n / 2 for n in range(2, 21)} | {20 / 9}


@pytest.mark.parametrize(
    ("changes", "status", "match"),
    [
        ({"--rewards": None, "--dataset_name": None}, 1, "Give --rewards, --dataset_name"),
        ({"--rewards": "our_rewards.tone"}, 1, "our_rewards.tone is no folder, no Hub id, and no function"),
        ({"--rewards": "no/where"}, 1, "no/where"),
        ({"--dataset_name": "nowhere"}, 1, "nowhere cannot be loaded"),
        ({"--dataset_test_split": "held_out"}, 1, "no split 'held_out'; it has train, test"),
        ({"--dataset_streaming": "true"}, 1, "--dataset_streaming: members are trained on the same prompts"),
        ({"--epsilom": "1"}, 2, "--epsilom is unknown. Did you mean --epsilon?"),
    ],
)
def test_bad_input_is_one_line_before_a_model_is_loaded(changes, status, match, files, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(files)
    monkeypatch.setattr(grpo, "load_tokenizer", None)
    given = {
        "--model_name_or_path": "base",
        "--dataset_name": "prompts",
        "--rewards": "warm",
        "--output_dir": str(tmp_path / "new"),
    }
    flags = [part for flag, value in (given | changes).items() if value for part in (flag, value)]
    flags += ["--use_cpu", "true", "--bf16", "false"]
    assert main(["portfolio", "train", *flags]) == status
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("trl-pafo portfolio: ")
    assert match in error
    assert not (tmp_path / "new").exists()


def launched(config: str, files: Path, folder: Path) -> Portfolio:
    """The portfolio of two processes that a configuration of TRL starts."""
    for name in ("base", "warm", "brief", "prompts"):
        shutil.copytree(files / name, folder / name)
    argv = [*accelerate(config, folder, mixed_precision="no"), "-m", "trl_pafo.cli", *command("warm", "brief", batch=4)]
    more = {} if config == "multi_gpu" else CPU_AS_GPU
    done = subprocess.run(
        [*argv, "--output_dir", "run"], env=environment(**more), cwd=folder, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Portfolio: run/portfolio") == 1
    return Portfolio.load(folder / "run/portfolio")


@pytest.fixture(scope="module")
def data_parallel(files, tmp_path_factory) -> tuple[Path, Portfolio]:
    folder = tmp_path_factory.mktemp("data_parallel")
    return folder, launched("multi_gpu", files, folder)


@pytest.mark.slow
def test_two_processes_judge_the_base_as_one_does(trained, data_parallel):
    first, second = (json.loads((run / "evaluations/base.json").read_text()) for run in (trained, data_parallel[0] / "run"))
    assert first["responses"].keys() == second["responses"].keys()
    for row, answers in first["responses"].items():
        others = second["responses"][row]
        assert [text for text, *_ in answers] == [text for text, *_ in others]
        np.testing.assert_allclose([rewards for _, rewards, _ in answers], [rewards for _, rewards, _ in others], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["fsdp2", *(pytest.param(zero, marks=needs_deepspeed) for zero in ("zero2", "zero3"))])
def test_launchers_that_shard_train_the_members_of_one_that_does_not(config, files, data_parallel, tmp_path):
    sharded, whole = launched(config, files, tmp_path), data_parallel[1]
    assert [call.weights.tolist() for call in sharded.calls[:2]] == [[1.0, 0.0], [0.0, 1.0]]
    for call, other in zip(sharded.calls[:2], whole.calls[:2], strict=True):
        np.testing.assert_allclose(call.result.values, other.result.values, atol=1e-3)
        assert call.result.kl == pytest.approx(other.result.kl, abs=0.01)
        assert call.result.kl > 0.1  # it has learned
