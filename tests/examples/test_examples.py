"""The scripts and configurations of examples/, and the benchmark of a run's downstream use, on tiny models."""

import json
import re
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.guides import run_script
from helpers.parts import make_pairs
from helpers.small_runs import small_run
from helpers.tiny_policies import make_policy

from trl_pafo import PAFORewardTrainer
from trl_pafo.cli import main
from trl_pafo.data.messages import content_text
from trl_pafo.data.sources import DataArguments, load_source
from trl_pafo.data.sources.styles import load_styles
from trl_pafo.pipeline.starting_points import student_model, teacher_model
from trl_pafo.report.record import read_record

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, encoder: str) -> str:
    folder = tmp_path_factory.mktemp("examples") / "run"
    training = {"use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False}
    small_run(folder, training, encoder, methods=["personalized_bt", "pafo"], history_fields=["chosen"], test_users=40)()
    return str(folder)


def test_options_of_the_model_decide_as_in_the_script_of_trl(encoder, tmp_path, monkeypatch):
    made: list[dict] = []

    class Recorded(PAFORewardTrainer):
        def __init__(self, **arguments):
            super().__init__(**{**arguments, "quantization_config": None})  # which needs a library, and a GPU
            made.append({**arguments, "loaded": self.model})

    monkeypatch.setattr("trl_pafo.PAFORewardTrainer", Recorded)
    make_pairs(history=0).to_json(tmp_path / "pairs/train.jsonl")
    flags = f"--dataset_name {tmp_path}/pairs --model_name_or_path {encoder} --output_dir {tmp_path}/out --eos_token [SEP] --max_steps 1"
    flags += " --use_cpu true --bf16 false --report_to none --save_strategy no"
    of_model = "--dtype bfloat16 --attn_implementation eager --model_revision v1 --load_in_8bit true"
    run_script("examples/reward_pafo.py", *flags.split(), *of_model.split())
    [given] = made
    assert given["args"].model_init_kwargs["revision"] == "v1"
    assert given["quantization_config"].load_in_8bit
    assert given["loaded"].dtype == torch.bfloat16
    assert given["loaded"].config._attn_implementation == "eager"


def test_each_reward_model_trains_a_policy_and_the_teachers_judge_them(finished_run, tmp_path, capsys):
    policy, out = make_policy(tmp_path / "policy"), tmp_path / "out"
    flags = (
        f"--run {finished_run} --policy {policy} --output_dir {out} --max_steps 2 --per_device_train_batch_size 4 --bf16 false"
    )
    more = "--num_generations 4 --max_completion_length 8 --num_test 5 --learning_rate 0.1"
    run_script("examples/grpo_fair_reward.py", *flags.split(), *more.split())
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 10
    trained = {method: (out / method / "model.safetensors").read_bytes() for method in ("personalized_bt", "pafo")}
    assert trained["personalized_bt"] != trained["pafo"]
    number = r"[+-]\d+\.\d{3}"
    for group in ("majority", "minority"):
        mean = {
            name: np.mean([row[name]["reward"] for row in rows if row["group"] == group])
            for name in ("untrained", "personalized_bt", "pafo")
        }
        gain = rf"({number}) \[{number}, {number}\]"
        found = re.search(
            rf"{group}: untrained ({number})\n +personalized_bt: ({number}), gain {gain}\n"
            rf" +pafo: ({number}), gain {gain}; against personalized_bt {gain}",
            printed,
        )
        assert [float(value) for value in found.groups()] == pytest.approx(
            [
                mean["untrained"],
                mean["personalized_bt"],
                mean["personalized_bt"] - mean["untrained"],
                mean["pafo"],
                mean["pafo"] - mean["untrained"],
                mean["pafo"] - mean["personalized_bt"],
            ],
            abs=6e-4,
        )


def test_the_best_of_n_is_counted_by_group(finished_run, capsys):
    run_script(ROOT / "benchmarks/best_of_n.py", finished_run)
    printed = capsys.readouterr().out
    assert "Best of 5: 120 prompts of 40 test users; by chance 0.200" in printed
    found = json.loads((Path(finished_run) / "results/best_of_n.json").read_text())
    assert list(found) == ["personalized_bt", "pafo"]
    for of_model in found.values():
        for group in ("majority", "minority"):
            assert 0 <= of_model[group]["low"] <= of_model[group]["value"] <= of_model[group]["high"] <= 1
    assert found["pafo"]["verdict"] in printed


def test_states_that_hold_the_group_of_a_history_are_told_apart_by_the_probe(finished_run, capsys, monkeypatch):
    pairs = read_record(finished_run).pairs
    of_majority = {str(row["history"]) for row in pairs if row["group"] == "majority"}

    def sequences(self, rows, name):
        return [{key: [str(row["history"]) in of_majority] for key in ("chosen", "rejected")} for row in rows]

    def features(self, sequences, *, desc):
        """Noise, and in those of one model whose history it is."""
        found = np.random.default_rng(0).normal(size=(len(sequences), 2, 3))
        found[:, :, 0] += 10 * (desc == "pafo") * np.array([row["chosen"] for row in sequences])
        return [{"chosen": chosen, "rejected": rejected} for chosen, rejected in found]

    monkeypatch.setattr("trl_pafo.models.RewardScorer.sequences", sequences)
    monkeypatch.setattr("trl_pafo.models.RewardScorer.features", features)
    run_script(ROOT / "benchmarks/hidden_states.py", finished_run, "--pairs", "40")
    found = json.loads((Path(finished_run) / "results/hidden_states.json").read_text())
    assert found["pafo"] > 0.9
    assert found["personalized_bt"] < 0.7
    assert "By chance .500." in capsys.readouterr().out
    assert (Path(finished_run) / "results/hidden_states.png").stat().st_size > 10_000


@pytest.mark.parametrize("wrong", ["groups", "minority_pairs"])
def test_wrong_labels_are_in_training_and_validation_and_as_many_as_said(wrong, tmp_path):
    options = {"train_users": 40, "test_users": 20, "validation_users": 16, "context_pairs": 1}
    flags = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    out = tmp_path / "wrong"
    run_script(ROOT / "benchmarks/wrong_labels.py", "--wrong", wrong, "--share", "0.25", "--output_dir", str(out), *flags)
    found = load_source(DataArguments(source="files", data_path=str(out), context_pairs=1))
    right = load_source(DataArguments(source="styles", **options))
    columns = ("prompt", "chosen", "rejected", "user", "group")
    pairs = {split: list(zip(*(right[split][name] for name in columns), strict=True)) for split in right}
    read = {split: set(zip(*(found[split][name] for name in columns), strict=True)) for split in found}
    missing = {split: [pair for pair in pairs[split] if pair not in read[split]] for split in pairs}
    assert {split: len(rows) for split, rows in found.items()} == {split: len(of_split) for split, of_split in pairs.items()}
    assert not missing["test"]
    if wrong == "groups":  # a quarter of 4 and of 36 users in training, of twice 8 in validation
        named = {split: Counter(dict(pair[3:] for pair in of_split).values()) for split, of_split in missing.items()}
        assert named["train"] == {"minority": 1, "majority": 9}
        assert named["validation"] == {"minority": 2, "majority": 2}
    else:
        turned = {split: {(p, b, a, *who) for p, a, b, *who in of_split} & read[split] for split, of_split in missing.items()}
        assert [len(turned[split]) for split in ("train", "validation")] == [4 * 5 // 4, 8 * 5 // 4]
        assert {pair[4] for of_split in turned.values() for pair in of_split} == {"minority"}


def test_a_model_that_likes_thorough_answers_picks_for_the_majority_alone(finished_run, capsys, monkeypatch):
    thorough = {answered.responses["thorough"] for answered in load_styles()}

    def score_batch(self, requests):
        return [[float(content_text(response) in thorough) for response in request["responses"]] for request in requests]

    monkeypatch.setattr("trl_pafo.models.fair_reward_model.FairRewardModel.score_batch", score_batch)
    run_script(ROOT / "benchmarks/best_of_n.py", finished_run, "--methods", "pafo")
    found = json.loads((Path(finished_run) / "results/best_of_n.json").read_text())["pafo"]
    assert (found["majority"]["value"], found["minority"]["value"]) == (1, 0)


def test_a_prompt_that_is_too_long_for_a_model_is_left_out_for_all(finished_run, capsys, monkeypatch):
    lengths = [len(answer) for answered in load_styles() for answer in answered.responses.values()]

    def sequences(self, rows, *args, **kwargs):
        return [{"response": [0] * len(content_text(row["response"]))} for row in rows]

    monkeypatch.setattr("trl_pafo.data.rendering.InputRenderer.sequences", sequences)
    monkeypatch.setattr("trl_pafo.models.RewardScorer.positions", sorted(lengths)[-5])
    monkeypatch.setattr("trl_pafo.models.FairRewardModel.score_batch", lambda self, requests: [[0.0] * 5 for _ in requests])
    run_script(ROOT / "benchmarks/best_of_n.py", finished_run)
    kept, left_out = re.search(
        r"Best of 5: (\d+) prompts .*\nLeft out for all models: (\d+) prompts", capsys.readouterr().out
    ).groups()
    assert int(kept) + int(left_out) == 120
    assert 0 < int(left_out) < 120


def test_the_configuration_of_adapters_makes_adapters_of_all(monkeypatch):
    """(What a run makes of these: tests/pipeline/test_starting_points.py)"""
    taken = []
    monkeypatch.setattr("trl_pafo.cli.run.main", lambda *given: taken.append(given))
    assert main(["run", "--config", str(ROOT / "examples/lora.yaml")]) == 0
    [(run, args, model)] = taken
    student = student_model(model, run.teacher_kind)
    assert student.use_peft
    assert teacher_model(student, run.teacher_kind).use_peft
    assert (student.lora_r, student.lora_target_modules, student.lora_task_type) == (16, "all-linear", "SEQ_CLS")
    assert args.train_sampling_strategy == "group_by_length"


def test_the_notebook_tells_the_story_of_a_run(finished_run, monkeypatch, capsys):
    display = SimpleNamespace(Image=lambda path: path, display=lambda thing: print(thing))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    cells = json.loads((ROOT / "examples/story.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert code.count('Path("runs/quickstart")') == 1
    exec(code.replace("runs/quickstart", finished_run), {})
    printed = capsys.readouterr().out
    assert f"{finished_run}/results/majority_minority.png" in printed
    results = json.loads((Path(finished_run) / "results/results.json").read_text())
    for method, title in (("personalized_bt", "personalized BT"), ("pafo", "PAFO")):
        shown = [
            f"{results['methods'][method][f'accuracy/{group}']['value']:.3f}".rstrip("0") for group in ("majority", "minority")
        ]
        assert re.search(rf"^{title} +{shown[0]}\d* +{shown[1]}\d*$", printed, re.MULTILINE)
    assert "mended  broken" in printed
