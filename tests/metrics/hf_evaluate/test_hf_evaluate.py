import doctest
import multiprocessing
import re
import socket
import sys
import textwrap
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from trl_pafo.errors import ConfigError, DataError
from trl_pafo.metrics import compare, gini, hf_evaluate, jain, pair_correctness, theil

evaluate = pytest.importorskip("evaluate")

PAGE = Path(__file__).parents[3] / "docs" / "evaluation.md"
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="session", autouse=True)
def scripts(tmp_path_factory):
    """Where `evaluate` copies the scripts to. One folder for all tests: it is imported once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path_factory.mktemp("evaluate"))
        yield


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a module must do without a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")


@pytest.fixture
def pairs():
    """300 pairs of 30 users in three groups, some of them ties."""
    rng = np.random.default_rng(0)
    users = rng.integers(0, 30, 300)
    groups = np.array(["many", "few", "rest"])[np.minimum(users // 12, 2)]
    rewards = rng.integers(-3, 4, (300, 2)) + (groups == "many")[:, None] * [1.0, 0.0]
    return rewards, groups, users


def naive_accuracy(rewards, labels):
    points = defaultdict(list)
    for (chosen, rejected), label in zip(rewards, labels, strict=True):
        points[str(label)].append(1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0)
    return {label: sum(p) / len(p) for label, p in points.items()}, {label: len(p) for label, p in points.items()}


def expected_groups(rewards, groups):
    accuracy, count = naive_accuracy(rewards, groups)
    low, high = min(accuracy.values()), max(accuracy.values())
    return {
        "accuracy": naive_accuracy(rewards, ["all"] * len(rewards))[0]["all"],
        "count": len(rewards),
        **{f"accuracy/{name}": value for name, value in accuracy.items()},
        **{f"count/{name}": value for name, value in count.items()},
        "accuracy_group_mean": sum(accuracy.values()) / len(accuracy),
        "accuracy_group_min": low,
        "accuracy_group_max": high,
        "accuracy_difference": high - low,
        "accuracy_ratio": low / high,
        "worst_group": next(name for name in sorted(accuracy) if accuracy[name] == low),
    }


def expected_users(rewards, users, share=0.1):
    by_user = naive_accuracy(rewards, users)[0]
    accuracy = np.array(sorted(by_user.values()))
    worst = accuracy[: round(share * len(accuracy))]
    numbers = {
        "mean": accuracy.mean(),
        "std": accuracy.std(),
        "min": accuracy[0],
        "max": accuracy[-1],
        "max_min": accuracy[-1] - accuracy[0],
        "p10": np.percentile(accuracy, 10),
        "cvar": worst.mean(),
        "gini": gini(accuracy),
        "theil": theil(accuracy),
        "jain": jain(accuracy),
    }
    return {"user_count": len(accuracy), **{f"user_accuracy_{name}": value for name, value in numbers.items()}}


def is_plain(value):
    """Python's own numbers and texts, as `evaluate.save` and loggers need them."""
    return value is None or type(value) in (int, float, str) or (type(value) is dict and all(map(is_plain, value.values())))


class TestGroupFairness:
    def test_equals_a_plain_loop_of_margins_and_of_rewards(self, pairs):
        rewards, groups, _ = pairs
        metric = hf_evaluate.load("group_fairness")
        results = metric.compute(predictions=rewards, groups=groups)
        assert results == pytest.approx(expected_groups(rewards, groups))
        assert is_plain(results)
        assert metric.compute(predictions=rewards[:, 0] - rewards[:, 1], groups=groups) == results
        assert metric.compute(predictions=torch.tensor(rewards), groups=list(groups)) == results

    def test_keys_stay_where_groups_are_named(self):
        metric = hf_evaluate.load("group_fairness")
        results = metric.compute(predictions=[1.0, 0.0], groups=[1, 2], group_names=[1, 2, 3])
        assert np.isnan(results["accuracy/3"])
        assert results["count/3"] == 0
        assert (results["accuracy_group_min"], results["accuracy_ratio"], results["worst_group"]) == (0.5, 0.5, "2")
        with pytest.raises(DataError, match=r"`group_names` lacks groups that the pairs have: 2. Add them, or leave it out"):
            metric.compute(predictions=[1.0, 0.0], groups=[1, 2], group_names=[1])


class TestUserFairness:
    def test_equals_a_plain_loop(self, pairs):
        rewards, _, users = pairs
        metric = hf_evaluate.load("user_fairness")
        results = metric.compute(predictions=rewards, users=users)
        assert results == pytest.approx(expected_users(rewards, users))
        assert is_plain(results)
        assert metric.compute(predictions=rewards, users=users, share=0.5) == pytest.approx(expected_users(rewards, users, 0.5))


class TestParetoVerdict:
    def test_equals_compare(self, pairs):
        rewards, groups, users = pairs
        reference = rewards[:, ::-1]
        module = evaluate.load(hf_evaluate.path("pareto_verdict"), module_type="comparison")
        columns = {"predictions1": rewards, "predictions2": reference, "groups": groups, "users": users}
        for options in ({}, {"confidence": 0.8, "num_resamples": 500, "seed": 3}):
            results = module.compute(**columns, **options)
            correct, of_reference = (pair_correctness(r[:, 0] - r[:, 1]) for r in (rewards, reference))
            assert results == asdict(compare(correct, of_reference, users, groups, **options))
            assert is_plain(results)


class TestAdding:
    @pytest.mark.parametrize("options", [{}, {"keep_in_memory": True}])
    def test_batches_of_any_size_and_single_pairs_combined(self, pairs, options):
        rewards, groups, users = pairs
        both = evaluate.combine([hf_evaluate.load(name, **options) for name in ("group_fairness", "user_fairness")])
        for start, end in [(0, 64), (64, 64), (64, 65), (65, 290)]:
            both.add_batch(predictions=rewards[start:end], groups=groups[start:end], users=users[start:end])
        for reward, group, user in zip(rewards[290:299], groups[290:299], users[290:299], strict=True):
            both.add(prediction=reward, groups=group, users=user)
        both.add_batch(predictions=rewards[299:], groups=groups[299:], users=users[299:])
        expected = pytest.approx(expected_groups(rewards, groups) | expected_users(rewards, users))
        assert both.compute() == expected
        assert both.compute(predictions=rewards, groups=groups, users=users) == expected

    @pytest.mark.parametrize(
        ("columns", "match"),
        [
            ({"predictions": [1.0]}, "takes the columns predictions, groups, one value per pair; got predictions"),
            ({"predictions": [1.0], "groups": ["a"], "references": [1]}, "takes no references: .* Give the columns"),
            ({"predictions": [1.0, 2.0], "groups": ["a"]}, "their lengths are {'predictions': 2, 'groups': 1}"),
            ({"predictions": [1.0, np.nan], "groups": ["a", "b"]}, "1 of 2 margins are NaN"),
            ({"predictions": [True], "groups": ["a"]}, r"`predictions` must be margins of shape .* got shape \(1,\) of bool"),
            ({"predictions": [[1.0]], "groups": ["a"]}, r"the chosen response's first; got shape \(1, 1\)"),
            ({"predictions": torch.ones(1, requires_grad=True), "groups": ["a"]}, r"`.detach\(\).float\(\).cpu\(\)`"),
            ({"predictions": [1.0, 2.0], "groups": ["a", None]}, "row 1: has no `groups`. Fill the column"),
        ],
    )
    def test_a_bad_batch_is_refused_and_not_stored(self, columns, match):
        metric = hf_evaluate.load("group_fairness")
        metric.add_batch(predictions=[1.0, -1.0], groups=["a", "a"])
        with pytest.raises(DataError, match=match):
            metric.add_batch(**columns)
        if "references" in columns:
            with pytest.raises(DataError, match=match):
                metric.compute(**columns)
        assert metric.compute()["count"] == 2

    def test_a_bad_single_pair_is_refused(self):
        metric = hf_evaluate.load("group_fairness")
        with pytest.raises(DataError, match="takes no references"):
            metric.add(prediction=1, reference=1, groups="a")
        with pytest.raises(DataError, match="1 of 1 margins are NaN"):
            metric.add(prediction=np.nan, groups="a")
        metric.add(prediction=2, groups="a")
        assert metric.compute()["count"] == 1
        with pytest.raises(DataError, match="at least one pair"):
            metric.compute(predictions=[], groups=[])


def compute_shard(rank, world_size, folder, shards, queue):
    where = {"num_process": world_size, "process_id": rank, "experiment_id": "test", "cache_dir": folder}
    rewards, groups, users = shards[rank]
    group_metric, user_metric = (hf_evaluate.load(name, **where) for name in ("group_fairness", "user_fairness"))
    group_metric.add_batch(predictions=rewards, groups=groups)
    user_metric.add_batch(predictions=rewards, users=users)
    queue.put((rank, group_metric.compute(), user_metric.compute()))


def test_several_processes(pairs, tmp_path):
    rewards, groups, users = pairs
    hf_evaluate.load("group_fairness"), hf_evaluate.load("user_fairness")  # scripts copied once, before the fork
    shards = list(zip(*(np.split(column, [7, 300]) for column in pairs), strict=True))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [
        context.Process(target=compute_shard, args=(rank, len(shards), str(tmp_path), shards, queue))
        for rank in range(len(shards))
    ]
    for process in processes:
        process.start()
    results = {rank: found for rank, *found in (queue.get(timeout=60) for _ in processes)}
    for process in processes:
        process.join()
    assert results[0][0] == pytest.approx(expected_groups(rewards, groups))
    assert results[0][1] == pytest.approx(expected_users(rewards, users))
    assert all(results[rank] == [None, None] for rank in range(1, len(shards)))


class TestFolder:
    @pytest.mark.parametrize("name", hf_evaluate.NAMES)
    def test_description_names_every_column_and_output(self, name, pairs):
        import trl_pafo.metrics.hf_evaluate

        module = hf_evaluate.load(name)
        assert module.name == name
        assert module.description.strip()
        assert module.inputs_description in module.compute.__doc__
        rewards, groups, users = pairs
        columns = {"predictions": rewards, "predictions1": rewards, "predictions2": rewards, "groups": groups, "users": users}
        results = module.compute(**columns)
        for key in {*module.features, *(re.sub(r"/.*", "/{group}", key) for key in results)}:
            assert re.search(rf"(^| ){re.escape(key)}[:, ]", module.inputs_description, re.MULTILINE), key
        usage = textwrap.dedent(module.inputs_description.split("Examples:")[1])
        examples = doctest.DocTestParser().get_doctest(usage, {"trl_pafo": trl_pafo}, name, None, None)
        assert len(examples.examples) > 1
        assert doctest.DocTestRunner().run(examples).failed == 0

    def test_page(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        section = PAGE.read_text(encoding="utf-8").split("## Modules for Hugging Face evaluate")[1].split("\n## ")[0]
        names = {}
        for block in PYTHON_BLOCK.findall(section):
            exec(block, names)
        assert names["both"].compute(predictions=[1.0], groups=["few"], users=[1])["accuracy"] == 1.0
        assert names["evaluate_shard"](0, 1, [[1.0, 0.0]], ["few"])["accuracy"] == 1.0

    def test_unknown_module(self):
        with pytest.raises(ConfigError, match="no module 'group'; choose one of group_fairness, pareto_verdict, user_fairness"):
            hf_evaluate.path("group")

    def test_without_evaluate(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "evaluate", None)
        with pytest.raises(ConfigError, match=r"pip install trl-pafo\[evaluate\]"):
            hf_evaluate.load("group_fairness")
        assert Path(hf_evaluate.path("group_fairness")).is_dir()
