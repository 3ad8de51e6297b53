import numpy as np
import pytest
import torch
from helpers.parts import make_model, remember_inputs
from helpers.rounding import rounding
from transformers import AutoTokenizer

from trl_pafo.data.history import remembered
from trl_pafo.data.sources.typed_users import AnsweredPrompt
from trl_pafo.data.template import add_history_template
from trl_pafo.errors import ConfigError, DataError, RunFolderError
from trl_pafo.models import RewardScorer, load_reward_model
from trl_pafo.palm import RewardScale, ScaledReward, fit_reward_models, score_candidates

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model as a training on messages leaves it."""
    return remember_inputs(make_model("encoder", tmp_path_factory.mktemp("plain")), num_history=0)


class TestScore:
    def test_each_response_under_each_model(self, folder, tmp_path):
        decoder = remember_inputs(make_model("decoder", tmp_path), num_history=0)
        shuffled = [AnsweredPrompt(p.prompt, dict(reversed(p.responses.items()))) for p in PROMPTS[1:]]
        rewards = score_candidates([PROMPTS[0], *shuffled], {"first": folder, "second": decoder}, batch_size=4)
        assert rewards.shape == (6, 3, 2)
        for column, kind in enumerate(("polite", "silly", "plain")):
            expected = [one(source, PROMPTS[4].prompt, PROMPTS[4].responses[kind]) for source in (folder, decoder)]
            np.testing.assert_allclose(rewards[4, column], expected, atol=rounding(expected))
        assert np.ptp(rewards, axis=(0, 1)).min() > 0.01

    def test_a_reward_model_as_a_function_of_trl(self, folder):
        texts = [p.responses["silly"] for p in PROMPTS[:3]]
        raw = np.array([one(folder, p.prompt, text) for p, text in zip(PROMPTS, texts, strict=False)])
        reward = ScaledReward("silliness", RewardScorer(folder), RewardScale.fit(raw[:, None], "sigmoid"))
        assert reward.__name__ == "silliness"
        expected = 1 / (1 + np.exp(-(raw - raw.mean()) / raw.std()))
        prompts = [p.prompt for p in PROMPTS[:3]]
        messages = [[{"role": "user", "content": p}] for p in prompts], [[{"role": "assistant", "content": t}] for t in texts]
        for arguments in ((prompts, texts), messages):
            np.testing.assert_allclose(reward(*arguments, completion_ids=None), expected, atol=rounding(raw / raw.std()))

    def test_the_history_of_each_row_is_shown(self, tmp_path):
        folder = remember_inputs(make_model("encoder", tmp_path), num_history=None)
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
        model, tokenizer = load_reward_model(fitted["silly"]), AutoTokenizer.from_pretrained(fitted["silly"])
        head, features = model.classifier if hasattr(model, "classifier") else model.score, []
        head.register_forward_hook(lambda _, inputs, __: features.append(inputs[0].detach().double().flatten(0, -2)[-1]))
        for p in PROMPTS:
            for response in p.responses.values():  # a decoder's head sees every token
                messages = [{"role": "user", "content": p.prompt}, {"role": "assistant", "content": response}]
                ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
                model(input_ids=torch.tensor([ids]))
        features, weight = torch.stack(features).reshape(len(PROMPTS), 3, -1), head.weight.detach().double()[0]
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
