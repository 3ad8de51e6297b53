"""No name that comes from data, a manifest or a card leads a file out of the output folder."""

import hashlib
import json
from pathlib import Path

import pytest
from helpers.parts import make_model, make_pairs
from helpers.small_runs import train_nothing
from trl import ModelConfig

from trl_pafo import PAFOConfig
from trl_pafo.data.sources.typed_users import AnsweredPrompt
from trl_pafo.evaluation.methods import RunArguments
from trl_pafo.palm import fit_reward_models
from trl_pafo.pipeline.run import Run

NAMES = ["../../x", "/abs/x", "a/b", "..", "x" * 300, "a\x00b", "CON", "a\\b"]


def tree(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def inside(tmp_path):
    """A folder deep in another, around which nothing may appear or change."""
    (tmp_path / "precious.txt").write_text("precious")
    (tmp_path / "x").mkdir()
    (tmp_path / "x/precious.txt").write_text("precious")
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    before = tree(tmp_path)
    yield folder
    assert {path: d for path, d in tree(tmp_path).items() if not path.startswith(str(folder))} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "precious.txt", "x"]
    assert [path.name for path in folder.parent.iterdir()] == ["b"]


def test_groups_of_any_name_have_teachers_of_their_own(inside, training, tmp_path_factory, monkeypatch):
    """`a/b` and `a_b` were one folder once: the second teacher took the place of the first."""
    groups = ["a/b", "a_b", "../../x", "A_B"]
    rows = make_pairs(num_users=40, pairs_per_user=2, num_minority=20, history=0)
    users = sorted(set(rows["user"]), key=lambda user: int(user.split("-")[1]))
    group_of = {user: groups[n % len(groups)] for n, user in enumerate(users)}
    rows = [{**row, "group": group_of[row["user"]], "prompt": f"{row['prompt']} {n}"} for n, row in enumerate(rows)]
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    base = make_model("encoder", tmp_path_factory.mktemp("models") / "base")
    args = PAFOConfig(str(inside / "run"), **{**training, "max_steps": 1, "max_length": 128}, num_history=1)
    options = RunArguments(
        source="files", data_path=str(path), methods=["bradley_terry", "group_routed"], reference="bradley_terry"
    )
    train_nothing(monkeypatch)
    Run(options, args, ModelConfig(model_name_or_path=base))()
    teachers = json.loads((inside / "run/manifest.json").read_text())["stages"]
    outputs = {name: stage["output"] for name, stage in teachers.items() if name.startswith("teacher")}
    assert {name.partition(":")[2] for name in outputs} == set(groups)
    assert len({output.casefold() for output in outputs.values()}) == len(outputs) == 2 * len(groups)  # one a fold
    weights = [(inside / "run" / output / "model.safetensors").read_text() for output in outputs.values()]
    assert len(set(weights)) == len(outputs)


def test_types_of_responses_as_folders(inside, tmp_path_factory):
    base = make_model("encoder", tmp_path_factory.mktemp("models") / "base")
    prompts = [AnsweredPrompt(f"what {n}", {"../../x": "yes sir", "a/b": "no", "a_b": "haha"}) for n in range(3)]
    folders = fit_reward_models(prompts, inside / "models", model=base)
    assert set(folders) == {"../../x", "a/b", "a_b"}
    assert len(set(folders.values())) == 3
    for folder in folders.values():
        assert Path(folder).parent == inside / "models"
        assert (Path(folder) / "model.safetensors").is_file()
