import numpy as np
import pytest
from datasets import Dataset

from trl_pafo.errors import DataError
from trl_pafo.palm.oracles.judging import Judged, call_rewards, checked_rewards, digest_rows

ROWS = [{"prompt": "say a word", "target": 2}, {"prompt": "say two", "target": 5}]
CHAT = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]


@pytest.mark.parametrize(("rows", "conversational"), [(ROWS, False), (CHAT, True)])
def test_reward_functions_are_called_as_trl_calls_them(rows, conversational):
    seen = {}

    def near(prompts, completions, completion_ids, target, log_metric, **kwargs):
        log_metric("near", 1.0)
        seen.update(prompts=prompts, completions=completions, ids=completion_ids, more=sorted(kwargs))
        return [1 / (1 + abs(len(ids) - t)) for ids, t in zip(completion_ids, target, strict=True)]

    def half(completions, **kwargs):
        return [0.5] * len(completions)

    values = call_rewards([near, half], rows, ["one", "a b"], [[7], [8, 9]])
    np.testing.assert_allclose(values, [[1 / 2, 0.5], [1 / 4, 0.5]])
    texts = ["one", "a b"]
    expected = [[{"role": "assistant", "content": t}] for t in texts] if conversational else texts
    assert seen["completions"] == expected
    assert seen["prompts"] == [row["prompt"] for row in rows]
    assert seen["ids"] == [[7], [8, 9]]
    assert seen["more"] == ["log_extra", "trainer_state"]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([0.5, 1.2], "returned the value 1.2"),
        ([None, 0.5], "returned the value nan"),
        ([0.5], "returned 1 values for 2 responses"),
        (0.5, "must return a list of numbers, not float"),
    ],
)
def test_what_a_portfolio_cannot_use_is_named(answers, message):
    with pytest.raises(DataError, match=f"'tone'.*{message}" if "list" not in message else message):
        checked_rewards(answers, 2, "tone")


def test_means_by_prompt_and_over_prompts():
    judged = Judged()
    judged.add([(3, 0), (1, 0)], ["a", "b"], np.array([[0.2, 1.0], [0.4, 0.0]]), np.array([1.0, 3.0]))
    judged.add([(1, 1)], ["c"], np.array([[0.8, 0.5]]), np.array([5.0]))
    result = judged.result("folder")
    np.testing.assert_allclose(result.prompt_values, [[0.6, 0.25], [0.2, 1.0]])  # rows 1 and 3
    np.testing.assert_allclose(result.prompt_kl, [4.0, 1.0])
    np.testing.assert_allclose(result.values, [0.4, 0.625])
    assert (result.kl, result.policy) == (2.5, "folder")


def test_digests_know_rows_and_not_where_they_came_from(tmp_path):
    rows = Dataset.from_list(CHAT)
    rows.to_json(tmp_path / "rows.jsonl")
    read = Dataset.from_json(str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path / "cache"))
    assert digest_rows(rows) == digest_rows(read) == digest_rows(rows.map(lambda row: row))
    assert digest_rows(rows) != digest_rows(rows.select([1, 0])) != digest_rows(rows.select([0]))
