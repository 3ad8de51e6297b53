"""Rewards of models that somebody else trained, of columns of a table, and of Python functions: the same pairs, read once."""

import json
import math
import re
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from helpers.parts import make_model, make_pairs, make_tokenizer
from helpers.rounding import rounding
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from trl_pafo.cli import main
from trl_pafo.data.tokenization import tokenize_row
from trl_pafo.errors import ConfigError, DataError, TeacherError
from trl_pafo.evaluation import evaluate_models
from trl_pafo.evaluation.reward_sources import load_function, name_sources
from trl_pafo.models import RewardScorer

ROWS = make_pairs(num_users=8, pairs_per_user=4, num_minority=3, history=0).to_list()


def polite(prompts, completions, **columns):
    """Likes what the majority likes, and knows nothing else."""
    return [float("sir" in completion) - 0.001 * len(prompt) for prompt, completion in zip(prompts, completions, strict=True)]


def against(rows):
    """The rows as A against B, the liked one on changing sides."""
    found = []
    for n, row in enumerate(rows):
        first, second = (row["chosen"], row["rejected"]) if n % 3 else (row["rejected"], row["chosen"])
        scores = {"score_left": polite([""], [first])[0], "score_right": polite([""], [second])[0], "said": "RLL"[n % 3]}
        texts = {"question": row["prompt"], "left": first, "right": second}
        found.append({"worker": row["user"], "taste": row["group"], **texts, **scores})
    return found


ROLES = ("user", "prompt", "response_a", "response_b", "preferred", "group")
AGAINST = {
    "columns": dict(zip(ROLES, ("worker", "question", "left", "right", "said", "taste"), strict=True)),
    "preferred_values": {"a": "L", "b": "R"},
}


def accuracies(results, name):
    summary = results["methods"][name]
    return [summary[key]["value"] for key in ("overall", "accuracy/majority", "accuracy/minority", "group_min")]


def table(rows=ROWS, **columns):
    return pd.DataFrame(rows).assign(**columns)


class TestFunctions:
    def test_it_is_called_as_trl_calls_it(self):
        calls = []

        def reward(prompts, completions, **columns):
            calls.append(columns)
            assert len(prompts) == len(completions) == len(columns["user"]) == len(columns["topic"])
            topic = dict(zip(prompts, columns["topic"], strict=True))
            assert all(topic[prompt] == f"on {prompt}" for prompt in prompts)
            return torch.tensor(polite(prompts, completions))

        rows = table(topic=[f"on {row['prompt']}" for row in ROWS])
        results = evaluate_models(reward, rows, batch_size=5, num_resamples=20)
        assert [len(call["user"]) for call in calls] == [10] * 6 + [4]
        assert set(calls[0]) == {"user", "group", "topic"}
        assert accuracies(results, "reward") == [20 / 32, 1.0, 0.0, 0.0]
        assert results["reference"] is None

    def test_messages_reach_it_as_messages(self):
        talk = [{**row, "chosen": [{"role": "assistant", "content": row["chosen"]}]} for row in ROWS]
        talk = [{**row, "rejected": [{"role": "assistant", "content": row["rejected"]}]} for row in talk]

        def reward(prompts, completions, **_):
            return polite([p[0]["content"] for p in prompts], [c[0]["content"] for c in completions])

        assert accuracies(evaluate_models(reward, table(talk), num_resamples=20), "reward") == [20 / 32, 1.0, 0.0, 0.0]

    @pytest.mark.parametrize(
        ("returned", "match"),
        [
            (lambda n: [1.0], r"returned 1 rewards for 20 responses \(the table, rows 0 to 9\)"),
            (lambda n: None, "returned NoneType, not a list for 20 responses"),
            (lambda n: [0.0] * (n - 1) + [math.nan], "returned nan for the rejected response of the table, row 9"),
            (lambda n: [None] * n, "returned None for the chosen response of the table, row 0"),
            (lambda n: ["good"] * n, "returned 'good' for the chosen"),
        ],
    )
    def test_what_is_no_reward_is_refused(self, returned, match):
        def wrong(prompts, completions, **_):
            return returned(len(completions))

        with pytest.raises(ConfigError, match=f"The reward function wrong {match}"):
            evaluate_models(wrong, table(), batch_size=10)

    def test_one_that_does_not_take_the_columns_is_told_how_it_is_called(self):
        called = r"called as f\(prompts=..., completions=..., user=..., group=...\)"
        with pytest.raises(
            ConfigError, match=rf"failed \(TypeError: .*unexpected keyword .*; the table, rows 0 to 9\).*{called}"
        ):
            evaluate_models({"narrow": lambda prompts, completions: [0.0] * len(completions)}, table(), batch_size=10)

    @pytest.mark.parametrize(
        ("spec", "match"),
        [
            ("rewards", "write package.module:function"),
            ("nowhere:reward", r"nowhere cannot be imported \(ModuleNotFoundError"),
            ("broken:reward", r"broken cannot be imported \(RuntimeError: on import"),
            ("working:number", "working has no function number"),
        ],
    )
    def test_those_that_cannot_be_imported(self, spec, match, tmp_path, monkeypatch, capsys):
        (tmp_path / "broken.py").write_text("raise RuntimeError('on import')")
        (tmp_path / "working.py").write_text("number = 3")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [*sys.path])
        assert main(["evaluate", "--reward_function", spec, "--dataset_name", "x.csv"]) == 1
        error = capsys.readouterr().err
        assert f"--reward_function {spec}: " in error
        assert re.search(match, error)

    def test_one_of_the_working_folder(self, tmp_path, monkeypatch):
        (tmp_path / "rewards_of_tests.py").write_text("def reward(**columns):\n    return [0.0]\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [*sys.path])
        for _ in range(2):
            found = load_function("rewards_of_tests:reward")
            assert (found.name, found.call(prompts=[])) == ("rewards_of_tests:reward", [0.0])


class TestColumns:
    def test_the_scores_of_a_and_b_go_with_their_responses(self):
        results = evaluate_models(("score_left", "score_right"), pd.DataFrame(against(ROWS)), num_resamples=20, **AGAINST)
        assert accuracies(results, "score_left, score_right") == [20 / 32, 1.0, 0.0, 0.0]

    def test_ratings_of_several_responses_and_models(self):
        rows = [
            {"user": f"u{n % 4}", "prompt": f"q{n // 4}", "response": f"r{m}", "rating": m, "good": m, "bad": -m, "flat": 0}
            for n in range(12)
            for m in range(3)
        ]
        results = evaluate_models(("good", "bad", "flat"), pd.DataFrame(rows), num_resamples=20)
        assert {name: s["overall"]["value"] for name, s in results["methods"].items()} == {"good": 1, "bad": 0, "flat": 0.5}
        assert results["reference"] == "good"
        assert results["verdicts"]["bad"]["differences"]["overall"]["value"] == -1

    def test_several_models_of_pairs(self):
        scores = {"a1": 1.0, "a2": 0.0, "b1": "0", "b2": "1"}
        found = evaluate_models(("a1", "a2", "b1", "b2"), table(**scores), num_resamples=20)["methods"]
        assert {name: s["overall"]["value"] for name, s in found.items()} == {"a1, a2": 1, "b1, b2": 0}
        named = evaluate_models({"b": ("b1", "b2"), "a": ("a1", "a2")}, table(**scores), num_resamples=20)["methods"]
        assert {name: s["overall"]["value"] for name, s in named.items()} == {"b": 0, "a": 1}

    @pytest.mark.parametrize(
        ("columns", "error", "match"),
        [
            (("s1", "gap"), DataError, "The table, row 3: the score gap is nan|None, which is no finite number"),
            (("s1", "word"), DataError, "The table, row 0: the score word is 'high', which is no finite number"),
            (("s1", "gapp"), DataError, r"has no column 'gapp' .* Did you mean --score_columns gap\?"),
            (("s1",), ConfigError, "--score_columns needs two columns a model"),
        ],
    )
    def test_scores_that_are_missing(self, columns, error, match):
        gap = [math.nan if n == 3 else 0.0 for n in range(len(ROWS))]
        with pytest.raises(error, match=match):
            evaluate_models(columns, table(s1=1.0, s2=0.0, gap=gap, word="high"))


class TestModels:
    @pytest.mark.parametrize("kind", ["DistilBert", "GPT2"])
    def test_heads_of_any_name(self, kind, tmp_path):
        tokenizer = make_tokenizer("decoder" if kind == "GPT2" else "encoder")
        tokenizer.chat_template = None
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_dim": 32, "num_labels": 1}
        config = getattr(transformers, f"{kind}Config")(**sizes, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
        model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(10 if weight.dim() > 1 else 1)
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        found = RewardScorer.from_pretrained(tmp_path / "model").score(ROWS[:4])
        for row, rewards in zip(ROWS, found, strict=False):
            for side in ("chosen", "rejected"):
                ids = torch.tensor([tokenize_row(tokenizer, row, side)])
                with torch.no_grad():
                    reward = model(input_ids=ids).logits.item()
                assert rewards[side] == pytest.approx(reward, rel=1e-4, abs=1e-5)

    def test_an_adapter_is_what_its_merged_model_is(self, decoder, tmp_path, capsys):
        torch.manual_seed(3)
        base = transformers.AutoModelForSequenceClassification.from_pretrained(decoder)
        model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], r=2, init_lora_weights=False))
        model.save_pretrained(tmp_path / "adapter")
        make_tokenizer("decoder").save_pretrained(tmp_path / "adapter")
        model.merge_and_unload().save_pretrained(tmp_path / "merged")
        make_tokenizer("decoder").save_pretrained(tmp_path / "merged")
        table().to_csv(tmp_path / "rows.csv", index=False)
        argv = ["evaluate", "--model_name_or_path", *(str(tmp_path / name) for name in ("adapter", "merged")), decoder]
        argv += ["--data_path", str(tmp_path / "rows.csv"), "--num_resamples", "20", "--output_dir", str(tmp_path / "out")]
        assert main(argv) == 0
        assert "\nmerged against adapter: " in capsys.readouterr().out
        found = [pd.read_json(tmp_path / f"out/{name}.jsonl", lines=True) for name in ("adapter", "merged", "decoder")]
        adapter, merged, plain = (np.array(lines["reward_chosen"]) for lines in found)
        np.testing.assert_allclose(adapter, merged, atol=10 * rounding(adapter))
        assert np.abs(adapter - plain).max() > 1e-2
        assert found[1]["row"].tolist() == list(range(32))

    def test_an_adapter_without_its_base_names_it(self, decoder, tmp_path):
        base = transformers.AutoModelForSequenceClassification.from_pretrained(decoder)
        get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])).save_pretrained(tmp_path)
        make_tokenizer("decoder").save_pretrained(tmp_path)
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/gone/base"}))
        with pytest.raises(TeacherError, match=r"base of the adapter .* '/gone/base'"):
            evaluate_models(str(tmp_path), table())

    def test_a_reward_that_depends_on_padding_is_refused(self, tmp_path):
        config = transformers.XLNetConfig(vocab_size=60, d_model=16, n_layer=1, n_head=2, d_inner=32, num_labels=1)
        transformers.XLNetForSequenceClassification(config).save_pretrained(tmp_path)
        make_tokenizer("encoder").save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match="reads its reward at the last position, which is padding"):
            evaluate_models(str(tmp_path), table())

    def test_a_head_under_another_name_is_named(self, tmp_path):
        make_model("decoder", tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        weights["regression_head.weight"] = weights.pop("score.weight")
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ConfigError, match=r"If regression_head\.weight is its head under another name, .*--reward_function"):
            evaluate_models(str(tmp_path), table())


class TestNames:
    def test_folders_are_told_apart_by_their_ends(self):
        sources, reference = name_sources(["a/models/fair", "b/models/plain", "c/models/other"])
        assert (list(sources), reference) == (["fair", "plain", "other"], "fair")
        sources, reference = name_sources(["a/models/fair", "b/models/fair"], "b/models/fair")
        assert (list(sources), reference) == (["a/models/fair", "b/models/fair"], "b/models/fair")

    @pytest.mark.parametrize("reference", ["plain", "b/plain"])
    def test_the_reference_is_one_of_them_or_a_further_one(self, reference):
        assert name_sources(["a/fair", "b/plain"], reference)[1] == "plain"
        sources, name = name_sources(["a/fair", "c/third"], "b/plain")
        assert (list(sources), name) == (["fair", "third", "plain"], "plain")
        assert name_sources([polite, "a/fair"], polite)[1] == "polite"
        assert name_sources([("a1", "a2"), ("b1", "b2")], ("b1", "b2"), 2)[1] == "b1, b2"

    @pytest.mark.parametrize(
        ("models", "reference", "match"),
        [
            ([], None, "Give a model"),
            (["a", "a"], None, "The model a is given twice"),
            (["a"], "a", "--reference is the model itself"),
            ([polite, polite], None, "polite is given twice"),
        ],
    )
    def test_what_cannot_be_compared(self, models, reference, match):
        with pytest.raises(ConfigError, match=match):
            name_sources(models, reference)


def test_groups_are_made_of_agreement_where_the_data_name_none(tmp_path):
    rows = [
        {"user": f"u{n}", "prompt": f"q{m}", "chosen": "sir" if n else "lol", "rejected": "lol" if n else "sir"}
        for n in range(10)
        for m in range(3)
    ]
    results = evaluate_models(polite, pd.DataFrame(rows), minority_quantile=0.1, num_resamples=20)
    assert accuracies(results, "polite") == [0.9, 1.0, 0.0, 0.0]
    assert "agreement on these very pairs, so who errs is in the minority too" in results["read"][-1]
    with pytest.raises(ConfigError, match="has the column `group`, so `minority_quantile`"):
        evaluate_models(polite, table(), minority_quantile=0.1)
    with pytest.raises(ConfigError, match="does not say who judged"):
        evaluate_models(polite, pd.DataFrame(rows).drop(columns="user"), minority_quantile=0.1)
