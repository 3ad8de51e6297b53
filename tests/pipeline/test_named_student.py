"""A student that reads the name of a group, in a run: fitted to held-out pairs, and judged as it is served."""

import json

import numpy as np
from helpers.parts import make_teachers

from trl_pafo.data.group_mixture import GroupMixture
from trl_pafo.data.rows import read_rows
from trl_pafo.evaluation.front import TAUS, predict_front
from trl_pafo.evaluation.mixture import draw_histories
from trl_pafo.models.scoring import RewardScorer
from trl_pafo.pipeline.prepare import load_prepared

OPTIONS = {"methods": ["personalized_bt", "pafo"], "validation_share": 0.3, "validation_users": 20, "reference_steps": [1]}


def test_it_is_fitted_to_held_out_pairs_and_judged_as_it_is_served(run, tmp_path):
    results = run(**OPTIONS, distill_anyway=True, conditioning="named", max_steps=4, teacher_folds=2)()
    folder = tmp_path / "run"
    data = load_prepared(folder / "data")
    scorer = RewardScorer.from_pretrained(folder / "models/pafo")

    held_out = data["validation"]
    user, group = held_out["user"][:], held_out["group"][:]
    rows = [{**row, "history": []} for row in read_rows(held_out)]
    told = [scorer.by_group(found)[0] for found in scorer.read_tokens(scorer.tokenize(rows, allow_no_history=True))]
    margins = np.array([row["chosen"] - row["rejected"] for row in told])
    texts = np.unique([str(prompt) for prompt in held_out["prompt"][:]], return_inverse=True)[1][:, None]
    past = draw_histories(user, group, texts, [1] * len(held_out), 8, 42)
    shares = data["train"].to_pandas()["group"].value_counts(normalize=True).to_dict()
    fitted = GroupMixture.fit(shares, margins, group, margins, past)
    for name, value in fitted.as_json().items():
        if name != "groups":
            np.testing.assert_allclose(scorer.mixture.as_json()[name], value, rtol=1e-3, atol=1e-3)
    repeated = np.tile(margins, (8, 1))
    by_tau = {tau: fitted.rewards(repeated, margins, past, tau).reshape(8, -1) for tau in TAUS}
    path = json.loads((folder / "reference_path.json").read_text())
    reference = {1.0: np.array(path["margins"]["1.0"])}
    assert scorer.tau == predict_front(by_tau, reference, 1.0, margins[:, 0], user, group, sorted(shares), seed=42)["tau"]

    served = scorer.score([{**row, "history": row["history"][:1]} for row in read_rows(data["test"])])
    written = [json.loads(line) for line in (folder / "results/pafo.jsonl").read_text().splitlines()]
    for side in ("chosen", "rejected"):
        np.testing.assert_allclose([row[side] for row in served], [row[f"reward_{side}"] for row in written], atol=1e-5)
    assert "PAFO" in results["front"]["points"]


def test_without_held_out_pairs_it_serves_with_the_shares_of_the_training(run, tmp_path):
    options = {"methods": ["pafo"], "reference": "pafo", "teachers": make_teachers("encoder", tmp_path)}
    run(**options, conditioning="named", tau=0.75).do_only(["prepare", "pafo"])
    scorer = RewardScorer.from_pretrained(tmp_path / "run/models/pafo")
    shares = load_prepared(tmp_path / "run/data")["train"].to_pandas()["group"].value_counts(normalize=True)
    assert scorer.tau == 0.75
    assert scorer.mixture.as_json() == GroupMixture.unfitted(shares.to_dict()).as_json()
