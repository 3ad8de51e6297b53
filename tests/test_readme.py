"""The blocks of README.md do what it says: the swap in TRL's own script, and the rewards for a user."""

import re
from pathlib import Path

import trl
from helpers.guides import run_script
from helpers.parts import make_model, make_pairs, make_teachers

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
FLAGS = "--max_steps 2 --logging_steps 1 --use_cpu true --bf16 false --gradient_checkpointing false --report_to none --per_device_train_batch_size 4"


def block(language: str) -> str:
    """The one block of a language."""
    [found] = re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return found


def swapped() -> str:
    """TRL's script with the lines of the diff changed; each line that goes is there once."""
    script = (Path(trl.__file__).parent / "scripts/reward.py").read_text(encoding="utf-8")
    for old, new in re.findall(r"^-(.+)\n((?:\+.+\n)+)", block("diff"), re.MULTILINE):
        assert script.count(f"{old}\n") == 1
        script = script.replace(f"{old}\n", "".join(line[1:] for line in new.splitlines(keepends=True)))
    return script


def test_the_swap_trains_a_student_whose_rewards_are_as_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = make_pairs()
    Path("data").mkdir()
    rows.to_parquet("data/train.parquet")
    model = make_model("decoder", tmp_path / "model")
    teachers = make_teachers("decoder", tmp_path / "teachers")
    Path("reward.py").write_text(swapped(), encoding="utf-8")
    names = ", ".join(f'"{group}": "{folder}"' for group, folder in teachers.items())
    flags = ["--dataset_name", "data", "--model_name_or_path", model, "--output_dir", "fair-reward-model"]
    run_script(tmp_path / "reward.py", *flags, "--teachers", f"{{{names}}}", *FLAGS.split())
    assert "'distillation_loss': " in capsys.readouterr().out
    found: dict = {}
    exec(block("python"), found)
    assert len(found["rewards"]) == 2
    assert found["rewards"][0] != found["rewards"][1]
    assert found["rewards"] != found["model"].score(
        "Can I freeze bread?", ["Yes, slice it first.", "Chill it, dear."], history=[]
    )
