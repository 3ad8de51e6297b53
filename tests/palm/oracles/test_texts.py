import numpy as np
import pytest
import torch
from helpers.parts import make_model, remember_inputs
from helpers.rounding import rounding
from helpers.shared_pairs import needs_minilm
from transformers import AutoTokenizer

from trl_pafo.data.history import remembered
from trl_pafo.data.sources.styles import load_styles
from trl_pafo.data.sources.typed_users import AnsweredPrompt
from trl_pafo.data.template import add_history_template
from trl_pafo.errors import ConfigError, DataError, RunFolderError, TeacherError
from trl_pafo.models import RewardScorer, load_reward_model
from trl_pafo.palm import (
    CandidateOracle,
    RewardScale,
    ScaledReward,
    build_portfolio,
    fit_reward_models,
    score_candidates,
)

PROMPTS = [
    AnsweredPrompt(
        f"how do i {what}",
        {"polite": f"please kindly sir {what}", "silly": f"haha lol {what}", "plain": f"you can {what} in the {where}"},
    )
    for what in ("sing", "walk", "run")
    for where in ("house", "rain")
]
PROMPTS = [AnsweredPrompt(f"{p.prompt} {number}", p.responses) for number, p in enumerate(PROMPTS)]


def one(folder, prompt, response):
    """Reward of a single response, by transformers alone."""
    tokenizer = add_history_template(AutoTokenizer.from_pretrained(folder))
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    with torch.no_grad():
        return load_reward_model(folder)(input_ids=torch.tensor([ids])).logits.item()


@pytest.fixture
def on_messages(tmp_path):
    """A model as a training on messages leaves it."""

    def save(kind, **history):
        folder = make_model(kind, tmp_path / f"{kind}{len(history)}")
        return remember_inputs(folder, **{"num_history": 0, **history})

    return save


class TestScore:
    def test_each_response_under_each_model(self, on_messages):
        encoder, decoder = on_messages("encoder"), on_messages("decoder")
        shuffled = [AnsweredPrompt(p.prompt, dict(reversed(p.responses.items()))) for p in PROMPTS[1:]]
        rewards = score_candidates([PROMPTS[0], *shuffled], {"first": encoder, "second": decoder}, batch_size=4)
        assert rewards.shape == (6, 3, 2)
        for row in (0, 4):
            for column, kind in enumerate(("polite", "silly", "plain")):
                expected = [one(folder, PROMPTS[row].prompt, PROMPTS[row].responses[kind]) for folder in (encoder, decoder)]
                np.testing.assert_allclose(rewards[row, column], expected, atol=rounding(expected))
        assert np.ptp(rewards, axis=(0, 1)).min() > 0.01

    def test_a_reward_model_as_a_function_of_trl(self, on_messages):
        scorer = RewardScorer(on_messages("encoder"))
        texts = [p.responses["silly"] for p in PROMPTS]
        raw = np.array([one(scorer.folder, p.prompt, text) for p, text in zip(PROMPTS, texts, strict=True)])
        reward = ScaledReward("silliness", scorer, RewardScale.fit(raw[:, None], "sigmoid"))
        assert reward.__name__ == "silliness"
        standard = (raw - raw.mean()) / raw.std()
        messages = {
            "prompts": [[{"role": "user", "content": p.prompt}] for p in PROMPTS],
            "completions": [[{"role": "assistant", "content": t}] for t in texts],
        }
        for arguments in ({"prompts": [p.prompt for p in PROMPTS], "completions": texts}, messages):
            np.testing.assert_allclose(
                reward(completion_ids=None, **arguments), 1 / (1 + np.exp(-standard)), atol=rounding(raw / raw.std())
            )

    def test_the_history_of_each_row_is_shown(self, on_messages):
        folder = on_messages("encoder", num_history=None)
        reward = ScaledReward("fair", RewardScorer(folder), RewardScale("sigmoid", np.zeros(1), np.ones(1)))
        past = [{"prompt": "what", "chosen": "haha lol", "rejected": "yes sir"}]
        prompts, answers = ["how do i sing", "can i run"], ["kindly", "ok"]
        rows = [{"prompt": p, "response": a, "history": h} for p, a, h in zip(prompts, answers, [past, []], strict=True)]
        found = reward(prompts, answers, history=[past, []], note=["a", "b"])  # [] says that a user has none
        with pytest.warns(UserWarning, match="1 of 2 rows have no history"):
            raw = [[row["response"]] for row in RewardScorer(folder).score(rows)]
        np.testing.assert_allclose(found, reward.scale(np.array(raw))[:, 0], atol=rounding(np.array(raw)))
        with pytest.raises(DataError, match="no row has a history, and the model was trained with histories"):
            reward(prompts, answers)

    def test_what_cannot_be_scored_is_named(self, encoder):
        with pytest.raises(DataError, match="at least one prompt"):
            score_candidates([], {"first": encoder})
        with pytest.raises(DataError, match="one response of each type: polite, silly, plain"):
            score_candidates([PROMPTS[0], AnsweredPrompt("what", {"polite": "sir"})], {"first": encoder})
        with pytest.raises(TeacherError, match="No model is found at 'no/such-model'"):
            score_candidates(PROMPTS, {"first": "no/such-model"})
        with pytest.raises(DataError, match="1 of 1 rows are longer than the 256 positions of the model"):
            score_candidates([AnsweredPrompt("how", {"long": "cat " * 300})], {"first": encoder})


class TestFit:
    @pytest.fixture(scope="class", params=["encoder", "decoder"])
    @classmethod
    def fitted(cls, request, tmp_path_factory):
        base = request.getfixturevalue(request.param)
        return fit_reward_models(PROMPTS, tmp_path_factory.mktemp("fitted"), model=base, l2=1e-2)

    def test_each_prefers_its_type_on_the_same_backbone(self, fitted):
        assert list(fitted) == ["polite", "silly", "plain"]
        rewards = score_candidates(PROMPTS, fitted)
        for place in range(3):
            assert (rewards[:, place, place] > np.delete(rewards[:, :, place], place, axis=1).max(axis=1)).all()
        states = [load_reward_model(folder).state_dict() for folder in fitted.values()]
        changed = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
        assert len(changed) == 1
        assert changed < {"classifier.weight", "score.weight"}
        trained = remembered(AutoTokenizer.from_pretrained(fitted["silly"]))
        assert (trained["inputs"], trained["num_history"]) == ("messages", 0)

    def test_the_head_is_the_optimum_of_its_loss(self, fitted):
        def margins(folder, change=None):
            model = load_reward_model(folder)
            head = model.classifier if hasattr(model, "classifier") else model.score
            tokenizer = AutoTokenizer.from_pretrained(folder)
            features = []
            handle = head.register_forward_hook(lambda _, inputs, __: features.append(inputs[0].detach().double()))
            for p in PROMPTS:
                for response in p.responses.values():
                    messages = [{"role": "user", "content": p.prompt}, {"role": "assistant", "content": response}]
                    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
                    model(input_ids=torch.tensor([ids]))
            handle.remove()
            last = [f[0, -1] if f.dim() == 3 else f[0] for f in features]  # a decoder's head sees every token
            return torch.stack(last).reshape(len(PROMPTS), 3, -1), head.weight.detach().double()[0]

        features, weight = margins(fitted["silly"])
        spread = features.std(dim=(0, 1), correction=0) + 1e-8
        head = (weight * spread).requires_grad_()
        differences = (features[:, [1, 1]] - features[:, [0, 2]]) / spread
        loss = torch.nn.functional.softplus(-differences @ head).mean() + 1e-2 / 2 * head @ head
        loss.backward()
        assert loss < 0.5
        assert head.grad.abs().max() < 2e-4

    def test_nothing_is_overwritten(self, fitted, encoder, tmp_path):
        (tmp_path / "silly").mkdir()
        with pytest.raises(RunFolderError, match="silly exists already"):
            fit_reward_models(PROMPTS, tmp_path, model=encoder)
        with pytest.raises(ConfigError, match=r"types of the prompts \(polite, silly, plain\), got rude"):
            fit_reward_models(PROMPTS, tmp_path, types=["rude"], model=encoder)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["silly"]


@needs_minilm
def test_the_shipped_corpus_under_three_reward_models(tmp_path):
    prompts = load_styles()[:24]
    models = fit_reward_models(prompts[:16], tmp_path, types=list(prompts[0].responses)[:3], num_hidden_layers=1, l2=1e-2)
    raw = score_candidates(prompts[16:], models)
    # Each reward model tells its style from the others on prompts that it has not seen.
    assert min(np.delete(raw[:, [i], i] > raw[:, :, i], i, axis=1).mean() for i in range(3)) > 0.8
    oracle = CandidateOracle(RewardScale.fit(raw)(raw))
    portfolio = build_portfolio(oracle, 3, 0.05, progress=False)
    weights = np.random.default_rng(0).dirichlet(np.ones(3), size=2000)
    optimum = np.array([oracle.optimum(row) for row in weights])
    assert (1 - (weights @ portfolio.values.T).max(axis=1) / optimum).max() <= portfolio.gap + 1e-9 <= 0.05 + 1e-9
