"""Which rows get which history: a user's own past, and never the pair that is judged."""

from pathlib import Path

import pytest
from datasets import Dataset, load_dataset, load_from_disk
from helpers.parts import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_pafo.data import HISTORY_FIELDS
from trl_pafo.data.attaching import attach_history
from trl_pafo.data.history import HistoryCutter, render_history
from trl_pafo.errors import DataError


def user_rows(*prompts, user="u"):
    return [{"prompt": p, "chosen": f"yes {i}", "rejected": f"no {i}", "user": user} for i, p in enumerate(prompts)]


def past_prompts(dataset):
    return [[entry["prompt"] for entry in history] for history in dataset["history"]]


class TestAttach:
    def test_nobody_has_no_history(self):
        """Rows without a user are of people who are not known, not of one and the same."""
        rows = [row | {"user": None} for row in user_rows("p", "q")]
        with pytest.raises(DataError, match=r"The pairs, row 0: has no `user` \(so have 2 of 2 rows\)"):
            attach_history(Dataset.from_list(rows), 1)

    def test_k_zero_keeps_all_rows_with_empty_histories(self, tmp_path):
        dataset = Dataset.from_list(user_rows("p") + user_rows("a", "b", user="v"))
        attached = attach_history(dataset, 0)
        assert attached.remove_columns("history")[:] == dataset[:]
        rendered = render_history(attached, HistoryCutter(make_tokenizer("encoder"), 0))
        rendered.to_parquet(tmp_path / "rows.parquet")
        loaded = load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path), split="train")
        assert loaded["chat_template_kwargs"][:] == [{"history": []}] * 3

    def test_users_without_history_are_dropped_or_kept_where_that_is_asked_for(self, caplog):
        rows = user_rows("a", "b", user="v") + user_rows("p") + user_rows("q", "q", user="w")
        dataset = Dataset.from_list([{**row, "group": "few" if row["user"] == "w" else "many"} for row in rows])
        with caplog.at_level("INFO"):
            assert set(attach_history(dataset, 2, missing="drop")["user"]) == {"v"}
        assert "2 of 3 users are left out, who have no history: few 1, many 1" in caplog.text
        assert "1 of 5 pairs only serve as history" in caplog.text
        kept = attach_history(dataset, 2, missing="keep")
        assert past_prompts(kept) == [["a"], [], [], []]
        assert kept["user"][:] == ["v", "u", "w", "w"]
        with pytest.raises(DataError, match=r"2 of 3 users have no history .the first: 'u'.: .* set num_history to 0"):
            attach_history(dataset, 2)
        with pytest.raises(DataError, match="2 of 2 users have no history"):
            attach_history(dataset.select([2, 3]), 1, missing="drop")

    def test_histories_of_other_rows(self):
        pool = user_rows("a", "b", "c") + user_rows("x", user="v")
        rows = user_rows("c", "d") + user_rows("y", user="v") + user_rows("a", user="w")
        attached = attach_history(Dataset.from_list(rows), 2, pool=Dataset.from_list(pool), missing="keep")
        assert past_prompts(attached) == [["b", "a"], ["c", "b"], ["x"], []]
        assert attached["history"][0][0] == {k: pool[1][k] for k in HISTORY_FIELDS}

    @settings(max_examples=40)
    @given(
        st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("pqrs")), min_size=2, max_size=24),
        st.integers(1, 5),
        st.integers(1, 3),
        st.booleans(),
        st.randoms(use_true_random=False),
    )
    def test_all_rows_at_once_as_one_after_the_other(self, judged, k, min_history, past_only, rng):
        rows = [{"n": i, "prompt": p, "chosen": f"yes {i}", "rejected": f"no {i}", "user": u} for i, (u, p) in enumerate(judged)]
        rng.shuffle(rows)
        order = rng.choices(range(len(rows)), k=len(rows))  # some rows twice, behind indices
        dataset = Dataset.from_list(rows).select(order)
        expected = naive_attach([rows[i] for i in order], k, past_only, min_history)
        if expected is None:
            with pytest.raises(DataError, match="have no history"):
                attach_history(dataset, k, past_only, min_history)
        else:
            assert attach_history(dataset, k, past_only, min_history).to_list() == expected

    def test_histories_of_rows_on_disk_are_on_disk_and_made_once(self, tmp_path):
        data = Dataset.from_list(user_rows("p", "q", "r") + user_rows("a", "b", user="v"))
        assert not attach_history(data, 2).cache_files
        data.save_to_disk(tmp_path)
        stored = load_from_disk(tmp_path)
        first, again = attach_history(stored, 2), attach_history(stored, 2)
        assert first[:] == attach_history(data, 2)[:]
        assert [Path(file["filename"]).parent for file in first.cache_files] == [tmp_path]
        assert first.cache_files == again.cache_files
        assert attach_history(stored, 1)[:] == attach_history(data, 1)[:]


def naive_attach(rows, k, past_only, min_history):
    """Row by row; `None` if a user has no history."""
    of_user = {}
    for row in rows:
        of_user.setdefault(row["user"], []).append(row)
    told_by = ["prompt"] if len({row["prompt"] for row in rows}) > 1 else ["chosen", "rejected"]
    about = lambda row: {row[name] for name in told_by}  # noqa: E731
    found, needed = [], {}
    for row in rows:
        mine = of_user[row["user"]]
        place = next(i for i, other in enumerate(mine) if other is row and i not in {p for u, p, _ in found if u == row["user"]})
        others = mine[:place][::-1] + ([] if past_only else mine[place + 1 :][::-1])
        past = [{k: other[k] for k in HISTORY_FIELDS} for other in others if not about(other) & about(row)][:k]
        found.append((row["user"], place, {**row, "history": past}))
        needed[row["user"]] = max(needed.get(row["user"], 0), len(past))
    if not all(needed.values()):
        return None
    return [row for user, _, row in found if len(row["history"]) >= max(1, min(min_history, needed[user]))]
