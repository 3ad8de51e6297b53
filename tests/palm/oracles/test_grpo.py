import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.parts import make_model, remember_inputs
from helpers.tiny_policies import animals, brevity, make_oracle, make_policy, prompt_rows
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

from trl_pafo.errors import ConfigError, DataError, RunFolderError
from trl_pafo.models import RewardScorer
from trl_pafo.palm import MixedPolicy, Portfolio, member_name
from trl_pafo.palm.oracles import grpo
from trl_pafo.storage.run_folder import RunFolder

HALF = np.array([0.5, 0.5])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_policy(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """A member that was trained for long enough to see for which reward."""
    folder = tmp_path_factory.mktemp("portfolio") / "run"
    oracle = make_oracle(base, folder, options={"max_steps": 20, "per_device_train_batch_size": 16}, num_samples=8)
    return oracle, oracle.evaluate_base(), oracle(np.array([0.0, 1.0]))


@pytest.fixture(scope="module")
def half(base, tmp_path_factory):
    """A folder with one finished member, which is HALF's, and the result."""
    folder = tmp_path_factory.mktemp("half") / "run"
    return folder, make_oracle(base, folder)(HALF)


@pytest.fixture
def run(half, tmp_path):
    return shutil.copytree(half[0], tmp_path / "run")


class TestMembers:
    def test_a_member_beats_the_base_for_its_weights(self, trained):
        _, start, animal = trained
        assert animal.values[1] > start.values[1] + 0.1
        assert animal.values[1] - start.values[1] > animal.values[0] - start.values[0]
        assert start.kl == 0.0
        assert animal.kl > 0.1

    def test_a_member_is_an_adapter_that_peft_loads(self, trained, base):
        oracle, _, animal = trained
        folder = Path(animal.policy)
        assert folder == oracle.path / "members" / member_name([0, 1])
        about = json.loads((folder / "member.json").read_text())
        assert about == {"rewards": ["brevity", "animals"], "weights": [0.0, 1.0], "steps": 20}
        model = AutoPeftModelForCausalLM.from_pretrained(folder)
        assert model.peft_config["default"].base_model_name_or_path == base
        assert any(p.abs().sum() > 0 for name, p in model.named_parameters() if "lora_B" in name)
        assert AutoTokenizer.from_pretrained(folder).get_vocab() == oracle.tokenizer.get_vocab()

    def test_values_and_kl_are_those_of_the_saved_adapter(self, trained):
        oracle, _, animal = trained
        again = MixedPolicy([animal.policy]).evaluate(
            np.ones(1), [brevity, animals], oracle.eval_dataset, max_new_tokens=4, num_samples=8, batch_size=5, seed=42
        )
        np.testing.assert_allclose(again.result(None).prompt_values, animal.prompt_values, atol=1e-9)
        assert again.result(None).kl == pytest.approx(animal.kl, abs=1e-4)
        name = member_name([0, 1])
        responses = oracle.responses(name)
        assert sorted(responses) == [0, 1, 2]
        assert [a[0] for a in responses[1]] == [a[0] for a in again.responses[1]]
        assert set(oracle.seconds()) == {f"member {name}", f"evaluation {name}", "evaluation base"}


class TestResume:
    def test_a_folder_in_which_another_build_is_at_work(self, base, tmp_path):
        oracle = make_oracle(base, tmp_path / "run")
        with RunFolder(tmp_path / "run").locked(), pytest.raises(RunFolderError, match="Another run is running"):
            oracle(HALF)
        assert not (tmp_path / "run/members").exists()

    def test_a_complete_member_is_not_trained_again(self, base, half, run, monkeypatch):
        first = half[1]
        monkeypatch.setattr(grpo, "GRPOTrainer", None)
        monkeypatch.setattr(grpo, "MixedPolicy", None)
        second = make_oracle(base, run)(HALF + np.array([1e-9, -1e-9]))
        assert second.policy == str(run / "members" / member_name(HALF))
        assert second.kl == first.kl > 0
        np.testing.assert_array_equal(second.prompt_values, first.prompt_values)
        with pytest.raises(TypeError):  # another member has to be trained
            make_oracle(base, run)(np.array([0.4, 0.6]))

    def test_an_interrupted_member_is_trained_again_and_the_others_are_kept(self, base, half, run, monkeypatch):

        class Killed(grpo.GRPOTrainer):
            def save_model(self, *args, **kwargs):
                super().save_model(*args, **kwargs)
                assert self.args.run_name == f"run: {member_name([0, 1])}"  # in a tracker each member has a name of its own
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(grpo, "GRPOTrainer", Killed)
            with pytest.raises(KeyboardInterrupt):
                make_oracle(base, run)(np.array([0.0, 1.0]))
        members = run / "members"
        assert [p.name for p in members.iterdir()] == [member_name(HALF)]
        again = make_oracle(base, run)
        assert again(np.array([0.0, 1.0])).policy == str(members / member_name([0, 1]))
        assert again(HALF).kl == half[1].kl
        assert sorted(p.name for p in members.iterdir()) == [member_name([0, 1]), member_name(HALF)]

    def test_other_options_are_refused_and_overwrite_replaces(self, base, run):
        with pytest.raises(RunFolderError, match=r"stage 'member 0\.50-0\.50-.*args\.learning_rate: 0\.02 -> 0\.5"):
            make_oracle(base, run, options={"learning_rate": 0.5})(HALF)
        with pytest.raises(RunFolderError, match="prompts:"):
            make_oracle(base, run, train_dataset=prompt_rows(3))(HALF)
        with pytest.raises(RunFolderError, match=r"args\.neftune_noise_alpha: not set -> "):
            make_oracle(base, run, options={"neftune_noise_alpha": 5.0})(HALF)
        changed = make_oracle(base, run, options={"learning_rate": 0.5}, overwrite=True)(HALF)
        assert changed.kl > 0

    def test_what_judges_decides_an_evaluation(self, base, run, monkeypatch):
        make_oracle(base, run).evaluate_base()
        monkeypatch.setattr(grpo, "GRPOTrainer", None)  # the same member is judged anew
        result = make_oracle(base, run, eval_dataset=prompt_rows(2, first=5))(HALF)
        assert result.prompt_values.shape == (2, 2)
        monkeypatch.setattr(grpo, "MixedPolicy", None)
        make_oracle(base, run).evaluate_base()
        with pytest.raises(TypeError):
            make_oracle(base, run, options={"chat_template_kwargs": {"a": 1}}).evaluate_base()

    def test_the_first_layers_of_a_model(self, base, tmp_path):
        oracle = make_oracle(base, tmp_path / "run", num_hidden_layers=1)
        assert oracle.base == str(tmp_path / "run/base_model")
        result = oracle(HALF)
        assert AutoPeftModelForCausalLM.from_pretrained(result.policy).config.num_hidden_layers == 1


class TestSavedRewardModels:
    @pytest.fixture
    def tone(self, tmp_path):
        return remember_inputs(make_model("encoder", tmp_path / "tone", seed=3), num_history=0)

    def test_raw_rewards_are_put_where_those_of_the_base_lie(self, base, tone, tmp_path):
        oracle = make_oracle(base, tmp_path / "run", rewards=[tone, brevity], num_samples=2)
        assert oracle.names == ["tone", "brevity"]
        scorer = RewardScorer.from_pretrained(tone)
        typical = MixedPolicy([base], reference=base).evaluate(
            np.ones(1), [brevity], oracle.train_dataset, max_new_tokens=4, seed=oracle.args.seed
        )

        def raw(dataset, judged):
            rows = [
                {"prompt": dataset[row]["prompt"], "response": [{"role": "assistant", "content": text}]}
                for row, own in judged.items()
                for text, *_ in own
            ]
            return np.array([row["response"] for row in scorer.score(rows)])

        first = raw(oracle.train_dataset, typical.responses)
        oracle.evaluate_base()
        judged = oracle.responses("base")
        expected = 1 / (1 + np.exp(-(raw(oracle.eval_dataset, judged) - first.mean()) / first.std()))
        found = [rewards[0] for own in judged.values() for _, rewards, _ in own]
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert np.ptp(found) > 0.01

    def test_another_model_under_the_same_name_is_another_problem(self, base, tone, tmp_path, monkeypatch):
        make_oracle(base, tmp_path / "run", rewards=[tone, brevity])(HALF)
        make_model("encoder", Path(tone), seed=4)
        monkeypatch.setattr(grpo, "GRPOTrainer", None)
        with pytest.raises(RunFolderError, match=r"reward_models\.tone"):
            make_oracle(base, tmp_path / "run", rewards=[remember_inputs(tone, num_history=0), brevity])(HALF)

    def test_models_of_one_name_get_names(self, base, tone, tmp_path):
        with pytest.raises(ConfigError, match=r"Two rewards have one name .* Give `reward_names`"):
            make_oracle(base, tmp_path / "run", rewards=[tone, tone])
        with pytest.raises(ConfigError, match="must name each of the 2 rewards, got warm"):
            make_oracle(base, tmp_path / "run", rewards=[tone, tone], reward_names=["warm"])
        assert make_oracle(base, tmp_path / "run", rewards=[tone, brevity], reward_names=["warm", "b"]).names == ["warm", "b"]


class TestInput:
    def test_a_reward_out_of_range_stops_the_training(self, base, tmp_path):
        def loud(completions, **kwargs):
            return [3.0] * len(completions)

        with pytest.raises(DataError, match=r"'loud' returned the value 3\.0"):
            make_oracle(base, tmp_path / "run", rewards=[brevity, loud])(HALF)
        assert not (tmp_path / "run/members" / member_name(HALF)).exists()  # not only the evaluation

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"rewards": []}, ConfigError, "at least one reward"),
            ({"options": {"push_to_hub": True}}, ConfigError, "push each member over the one before.*portfolio export"),
            ({"options": {"eval_strategy": "steps", "eval_steps": 1}}, ConfigError, "judged when it is trained"),
            ({"options": {"max_completion_length": None}}, ConfigError, "Set `max_completion_length`"),
            ({"rewards": [brevity, brevity]}, ConfigError, "Two rewards have one name"),
            ({"train_dataset": prompt_rows(1)}, ConfigError, "takes 2 prompts .* has 1"),
            ({"eval_dataset": prompt_rows(3, first=3)}, DataError, "1 prompts are in `train_dataset` and in"),
            ({"train_dataset": prompt_rows(4).rename_column("prompt", "text")}, DataError, "`train_dataset` must be rows with"),
        ],
    )
    def test_what_cannot_be_used_is_named_before_a_model_is_loaded(self, changes, error, message, tmp_path):
        with pytest.raises(error, match=message):
            make_oracle("no/such-model", tmp_path / "run", **changes)


def test_names_of_members():
    assert member_name([0.25, 0.75]).startswith("0.25-0.75-")
    assert member_name([0.25, 0.75]) == member_name([0.25 + 1e-9, 0.75]) != member_name([0.2501, 0.7499])
    assert member_name([0.0, 1.0]) == member_name([-0.0, 1.0])


SCRIPT = """
import sys
import numpy as np
from accelerate import PartialState
from helpers.tiny_policies import make_oracle
from trl_pafo.palm import build_portfolio
def say(*words):  # in one piece, into a pipe that two processes share
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
oracle = make_oracle(sys.argv[1], sys.argv[2], options={"per_device_train_batch_size": 4}, eval_batch_size=2)
first, again, base = oracle(np.array([0.5, 0.5])), oracle(np.array([0.5, 0.5])), oracle.evaluate_base()
assert PartialState().num_processes == 2
if PartialState().is_main_process:  # by one process alone: it must not wait for the other
    assert oracle.seconds()
say("RESULT", PartialState().process_index, first.values.tolist(), first.kl, again.kl == first.kl, base.values.tolist())
portfolio = build_portfolio(oracle, 2, 0.05, num_members=1, max_calls=2, oracle_factor="estimate", progress=False)
portfolio.save(f"{sys.argv[2]}-portfolio-{PartialState().process_index}")
try:
    make_oracle(sys.argv[1], sys.argv[2], options={"learning_rate": 1.0})(np.array([0.5, 0.5]))
except ValueError as error:
    say("REFUSED", PartialState().process_index, type(error).__name__)
PartialState().destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_members_and_build_a_portfolio_and_only_one_writes(base, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    tests = Path(__file__).parents[2]
    path = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    # What `accelerate launch` starts on several GPUs; on a CPU it starts one process, whatever it is told.
    command = [sys.executable, *["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"], tmp_path / "script.py"]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, base, tmp_path / "run"], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    # Two processes write to one pipe, so that a line may begin in the middle of another's.
    lines = sorted(re.findall(r"(?:RESULT|REFUSED)(?: (?!RESULT|REFUSED)\S+)+", done.stdout))
    assert lines[:2] == ["REFUSED 0 RunFolderError", "REFUSED 1 RunFolderError"]
    assert len(lines) == 4
    assert lines[2].split(" ", 2)[2] == lines[3].split(" ", 2)[2]
    assert " True " in lines[2]
    assert {p.name for p in (tmp_path / "run/members").iterdir()} == {member_name(w) for w in (HALF, [1, 0], [0, 1])}
    first, second = (Portfolio.load(tmp_path / f"run-portfolio-{rank}") for rank in range(2))
    assert first.values.tolist() == second.values.tolist()
    assert {Path(call.result.policy).name for call in first.calls} == {member_name([1, 0]), member_name([0, 1])}
    # The base is judged as in one process: the responses do not depend on how the prompts were shared out.
    base_values = make_oracle(base, tmp_path / "alone").evaluate_base().values
    np.testing.assert_allclose(json.loads("[" + lines[2].rsplit(" [", 1)[1]), base_values, atol=1e-9)
