"""The predicted front in a run: what is judged on held-out pairs, and what a student and the mixture of teachers are worth."""

import json

import numpy as np
import pytest
from datasets import Dataset

from trl_pafo.data.group_mixture import GroupMixture
from trl_pafo.evaluation.mixture import draw_histories, score_mixture
from trl_pafo.evaluation.rewards import score_rows
from trl_pafo.metrics import group_accuracy, pair_correctness
from trl_pafo.pipeline.front import predict_run
from trl_pafo.pipeline.prepare import load_prepared


def test_teachers_path_and_student_are_judged_on_the_same_held_out_pairs(run, tmp_path, capsys):
    options = {
        "methods": ["personalized_bt", "pafo", "teacher_mixture"],
        "validation_share": 0.3,
        "validation_users": 20,
        "reference_steps": [1, 2],
    }
    made = run(**options, distill_anyway=True, tau=0.6, max_steps=4)
    results, folder = made(), tmp_path / "run"
    front = results["front"]
    data = load_prepared(folder / "data")
    held_out, group = data["validation"], data["validation"]["group"][:]
    teachers = {name: str(folder / f"teachers/{name}") for name in ("majority", "minority")}

    def accuracy_of(source):
        return group_accuracy(pair_correctness(np.subtract(*score_rows(source, held_out))), group)

    models = {"personalized BT, x1": "personalized_bt_x1", "personalized BT, x2": "personalized_bt_x2", "PAFO": "pafo"}
    found = {name: accuracy_of(folder / f"models/{model}") for name, model in models.items()}
    own = {name: accuracy_of(teachers[name])[name] for name in teachers}
    for name, accuracies in (found | {"group-routed teachers": own}).items():
        for g, accuracy in accuracies.items():
            assert front["points"][name][f"accuracy/{g}"]["value"] == pytest.approx(accuracy)
    assert [place["tau"] for place in front["mixture"]] == [0, 0.25, 0.5, 0.6, 0.75, 1]
    assert front["reference"] == f"personalized BT, x{results['path']['chosen']:g}"
    shares = np.array(data["train"].to_pandas()["group"].value_counts(normalize=True).sort_index())
    np.testing.assert_allclose(front["fitted"]["share"], shares)

    mixture = GroupMixture.from_json(front["fitted"], "")
    margins = np.stack([np.subtract(*score_rows(teachers[name], held_out)) for name in sorted(teachers)], axis=1)
    texts = np.unique([str(prompt) for prompt in held_out["prompt"][:]], return_inverse=True)[1][:, None]
    past = draw_histories(held_out["user"][:], group, texts, [1] * len(held_out), 8, 42)
    for place in front["mixture"]:
        draws = [
            mixture.margins(margins, margins, past[i : i + len(group)], place["tau"]) for i in range(0, len(past), len(group))
        ]
        mean = group_accuracy(np.mean([pair_correctness(draw) for draw in draws], axis=0), group)
        assert front["points"][place["name"]]["accuracy/minority"]["value"] == pytest.approx(mean["minority"])

    mixed = score_mixture(front, teachers, data["test"])
    rows = [json.loads(line) for line in (folder / "results/teacher_mixture.jsonl").read_text().splitlines()]
    margins = [row["reward_chosen"] - row["reward_rejected"] for row in rows]
    np.testing.assert_allclose(margins, mixed.chosen, atol=1e-3)

    before = json.loads((folder / "front/front.json").read_text())
    assert "students" not in before
    assert {name: point for name, point in front["points"].items() if name != "PAFO"} == before["points"]
    for path in ("front/front.md", "results/front.md", "results/results.md", "report.html"):
        assert front["sentence"].split(": ")[0] in (folder / path).read_text()
    for path in ("front/front.png", "results/front.png"):
        assert (folder / path).stat().st_size > 1000
    said = capsys.readouterr().out
    assert (
        said.index("[front]") < said.index("mixture of teachers, tau 0.6") < said.index(front["sentence"]) < said.index("[pafo]")
    )
    assert "[front] done before, kept" in (made(), capsys.readouterr().out)[1]


def test_without_held_out_pairs_nothing_is_worth_it(tmp_path, encoder):
    pairs = {"user": ["u", "v"], "group": ["a", "b"], "prompt": ["p", "q"], "chosen": ["x", "y"], "rejected": ["y", "x"]}

    train = Dataset.from_dict(pairs)
    predict_run(tmp_path / "front", train.select([]), train, {"a": "", "b": ""}, {"margins": {}}, 1.0, 50, 0)
    found = json.loads((tmp_path / "front/front.json").read_text())
    assert found["worth"] is False
    assert found["sentence"] in (tmp_path / "front/front.md").read_text()
    assert not (tmp_path / "front/front.png").exists()
