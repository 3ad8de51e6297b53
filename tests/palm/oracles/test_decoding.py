from functools import cache

import numpy as np
import pytest
import torch
import transformers
from helpers.parts import make_tokenizer
from helpers.rounding import rounding
from helpers.tiny_policies import animals, brevity, make_adapter, make_policy, prompt_rows
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_pafo.errors import ConfigError, DataError, PortfolioError, TeacherError
from trl_pafo.palm import DecodingOracle, MixedPolicy

E = np.eye(3)
IDS = torch.tensor([[7, 9, 12, 30], [20, 21, 8, 44]])
PROMPT_IDS = [[7, 9, 12], [20], [33, 8, 44, 15, 9]]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_policy(tmp_path_factory.mktemp("base"), seed=0)


@pytest.fixture(scope="module")
def models(base, tmp_path_factory):
    """Three models of their own."""
    return [base, *(make_policy(tmp_path_factory.mktemp("model"), seed=seed) for seed in (1, 2))]


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    """Three adapters on one base."""
    return [make_adapter(base, tmp_path_factory.mktemp("adapter"), seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def mixed_models(models):
    return MixedPolicy(models, reference=models[0])


@pytest.fixture(scope="module")
def mixed_adapters(adapters, base):
    return MixedPolicy(adapters, tokenizer=AutoTokenizer.from_pretrained(base))


@cache
def load(folder):
    """A saved policy, by transformers and peft alone."""
    return (AutoPeftModelForCausalLM if "adapter" in folder else AutoModelForCausalLM).from_pretrained(folder).eval()


def alone(folder, ids):
    """Log-probabilities of a saved policy."""
    with torch.no_grad():
        return load(folder)(input_ids=ids).logits.log_softmax(dim=-1)


@pytest.mark.parametrize("kind", ["models", "adapters"])
class TestMixture:
    def test_it_is_the_normalized_product(self, kind, request):
        folders, mixed = request.getfixturevalue(kind), request.getfixturevalue(f"mixed_{kind}")
        probabilities = [alone(folder, IDS).exp().double().numpy() for folder in folders]
        for weights in (np.array([0.2, 0.5, 0.3]), E[1]):
            product = np.prod([p**w for p, w in zip(probabilities, weights, strict=True)], axis=0)
            expected = product / product.sum(axis=-1, keepdims=True)
            np.testing.assert_allclose(mixed.log_probs(weights, IDS).exp().numpy(), expected, atol=rounding(expected))
            assert np.abs(expected - probabilities[0]).max() > 0.01

    def test_sampling_agrees_with_a_loop_that_reads_each_sequence_anew(self, kind, request):
        mixed = request.getfixturevalue(f"mixed_{kind}")
        weights = np.array([0.2, 0.5, 0.3])
        uniforms = np.random.default_rng(0).random((len(PROMPT_IDS), 8))
        drawn, kl = mixed.sample(weights, PROMPT_IDS, uniforms)
        reference = request.getfixturevalue("base")
        for row, prompt in enumerate(PROMPT_IDS):  # no cache, no padding, no batch
            sequence, total = list(prompt), 0.0
            for uniform in uniforms[row]:
                ids = torch.tensor([sequence])
                p = mixed.log_probs(weights, ids)[0, -1].exp().double().numpy()
                q = alone(reference, ids)[0, -1].exp().double().numpy()
                total += float((p * np.log(p / q)).sum())
                sequence.append(int(np.flatnonzero(np.cumsum(p) > uniform * p.sum())[0]))
                if sequence[-1] == mixed.tokenizer.eos_token_id:
                    break
            assert drawn[row] == sequence[len(prompt) :]
            assert kl[row] == pytest.approx(total, abs=1e-4)
        assert kl.min() > 0.01


class TestToy:
    """Next-token distributions that are known by heart, whatever came before."""

    @staticmethod
    def policy(probabilities):
        """A model that says token i with `probabilities[i]`."""
        size = len(make_tokenizer("decoder"))
        config = transformers.LlamaConfig(
            vocab_size=size, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4, eos_token_id=5
        )
        model = transformers.LlamaForCausalLM(config)
        logits = torch.full((size,), -torch.inf)
        logits[: len(probabilities)] = torch.tensor(probabilities).log()

        def forward(input_ids, **kwargs):
            return transformers.modeling_outputs.CausalLMOutputWithPast(logits=logits.expand(*input_ids.shape, size))

        model.forward = forward
        return model

    def test_exact_mixture_and_kl(self):
        p, q, reference = [0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]
        mixed = MixedPolicy(
            [self.policy(p), self.policy(q)], reference=self.policy(reference), tokenizer=make_tokenizer("decoder")
        )
        product = np.array(p) ** 0.25 * np.array(q) ** 0.75
        expected = product / product.sum()
        np.testing.assert_allclose(mixed.log_probs([0.25, 0.75], IDS)[0, 0, :3].exp(), expected, atol=rounding(expected))
        number, length = 2000, 3
        drawn, kl = mixed.sample(np.array([0.25, 0.75]), [[1]] * number, np.random.default_rng(0).random((number, length)))
        counts = np.bincount(np.concatenate(drawn), minlength=3) / (number * length)
        np.testing.assert_allclose(counts, expected, atol=0.02)
        np.testing.assert_allclose(kl, length * np.sum(expected * np.log(expected / reference)), atol=1e-5)

    def test_a_token_that_one_policy_never_says_is_said_only_where_its_weight_is_zero(self):
        half = self.policy([0.5, 0.5])
        mixed = MixedPolicy([self.policy([1.0, 0.0]), half], reference=half, tokenizer=make_tokenizer("decoder"))
        uniforms = np.random.default_rng(0).random((50, 4))
        for weight, said in ((0.1, {0}), (0.0, {0, 1})):
            drawn, kl = mixed.sample(np.array([weight, 1 - weight]), [[1]] * 50, uniforms)
            assert {t for r in drawn for t in r} == said
        np.testing.assert_allclose(kl, 0.0, atol=rounding())

    def test_a_response_ends_with_the_end_token_and_costs_nothing_after_it(self):
        ends = [0.0] * 5 + [1.0]
        mixed = MixedPolicy([self.policy(ends)], reference=self.policy([0.1] * 10), tokenizer=make_tokenizer("decoder"))
        # Also for the number 0, below which lie all the tokens of probability 0 before it.
        drawn, kl = mixed.sample(np.ones(1), [[1], [2]], np.array([[0.5] * 6, [0.0] * 6]))
        assert drawn == [[5], [5]]
        np.testing.assert_allclose(kl, np.log(10), atol=1e-5)


def test_positions_do_not_count_the_padding(tmp_path):
    """A model of absolute positions: prompts of other lengths in the batch must not move them."""
    tokenizer = make_tokenizer("decoder")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=None, eos_token_id=5
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.transformer.wpe.weight.mul_(50)
    mixed = MixedPolicy([model], reference=model, tokenizer=tokenizer)
    uniforms = np.random.default_rng(1).random((len(PROMPT_IDS), 5))
    together, _ = mixed.sample(np.ones(1), PROMPT_IDS, uniforms)
    assert together == [mixed.sample(np.ones(1), [p], uniforms[[row]])[0][0] for row, p in enumerate(PROMPT_IDS)]


class TestEvaluate:
    def judge(self, mixed, weights=(0.5, 0.2, 0.3), conversational=True, **options):
        options = {"max_new_tokens": 4, "num_samples": 2, "batch_size": 4, "seed": 3, **options}
        return mixed.evaluate(np.array(weights), [brevity, animals], prompt_rows(conversational=conversational), **options)

    def test_the_same_whatever_the_batch_and_the_share_of_rows(self, mixed_models):
        whole, single = self.judge(mixed_models), self.judge(mixed_models, batch_size=1)
        parts = [self.judge(mixed_models, rows=rows) for rows in (range(0, 7, 2), range(1, 7, 2))]
        together = {**parts[0].responses, **parts[1].responses}
        for row, answers in whole.responses.items():
            for other in (single.responses[row], together[row]):
                assert [a[0] for a in other] == [a[0] for a in answers]
                np.testing.assert_allclose([a[2] for a in other], [a[2] for a in answers], atol=1e-4)

    def test_the_reference_itself_has_no_kl(self, mixed_models):
        assert self.judge(mixed_models, weights=(1, 0, 0), conversational=False).result(None).kl == 0.0
        assert self.judge(mixed_models, weights=(0, 1, 0), conversational=False).result(None).kl > 0.1

    def test_the_chat_template_takes_its_options(self, base):
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.chat_template = "{% if loud is defined %}haha {% endif %}{{ messages[0].content }}"
        ids = [
            MixedPolicy([base], reference=base, tokenizer=tokenizer, chat_template_kwargs=kwargs)._prompt_ids(
                [{"role": "user", "content": "how do i"}]
            )
            for kwargs in (None, {"loud": True})
        ]
        assert ids[1] == [*tokenizer("haha")["input_ids"], *ids[0]]

    def test_prompts_are_checked(self, mixed_models):
        with pytest.raises(DataError, match="rows with a column `prompt`; got 7 rows of"):
            mixed_models.evaluate(E[0], [brevity], prompt_rows().rename_column("prompt", "query"), max_new_tokens=2)
        with pytest.raises(ConfigError, match="must be at least 1"):
            self.judge(mixed_models, num_samples=0)


class TestOracle:
    def test_an_oracle_of_the_corners_is_each_policy(self, mixed_adapters, adapters, base):
        rows = prompt_rows()
        options = {"max_new_tokens": 5, "seed": 1}
        oracle = DecodingOracle(mixed_adapters, [brevity, animals, brevity], rows, **options)
        assert len({id(member.model) for member in (*mixed_adapters._members, mixed_adapters._reference)}) == 1  # one base
        for corner, folder in zip(E[:2], adapters, strict=False):
            result = oracle(corner)
            own = MixedPolicy([folder], reference=base).evaluate(np.ones(1), [brevity, animals], rows, **options).result(None)
            np.testing.assert_allclose(result.values[:2], own.values, atol=1e-12)
            assert result.kl == pytest.approx(own.kl, abs=1e-4)
            assert result.policy == {"mixture": adapters, "weights": corner.tolist()}

    def test_one_policy_a_reward(self, mixed_models):
        with pytest.raises(ConfigError, match="3 policies for 2 rewards"):
            DecodingOracle(mixed_models, [brevity, animals], prompt_rows(), max_new_tokens=2)


def test_equal_weights_of_another_configuration_are_another_policy(base):
    """Another width of attention, twice the scale of an adapter, another adapter of one model: other answers."""

    tokenizer = AutoTokenizer.from_pretrained(base)

    def identity() -> str:
        return str(MixedPolicy([model], reference=base, tokenizer=tokenizer).identity())

    model = AutoModelForCausalLM.from_pretrained(base)
    found = [identity(), identity()]
    model.config.attention_bias = True
    found.append(identity())
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=2, target_modules=["q_proj"])
    torch.manual_seed(0)
    model = get_peft_model(model, config)
    model.add_adapter("other", config)
    found.append(identity())
    model.set_adapter("other")
    found.append(identity())
    model.peft_config["other"].lora_alpha = 4
    found.append(identity())
    assert found[0] == found[1]
    assert len(set(found)) == len(found) - 1


class TestLoading:
    def test_another_tokenizer_is_refused(self, base, tmp_path):
        other = make_policy(tmp_path / "other")
        tokenizer = make_tokenizer("decoder")
        tokenizer.add_tokens(["extra"])
        tokenizer.save_pretrained(other)
        with pytest.raises(PortfolioError, match=r"other has another tokenizer than .*one tokenizer"):
            MixedPolicy([base, other], reference=base)

    def test_another_vocabulary_is_refused(self, base):
        larger = AutoModelForCausalLM.from_pretrained(base)
        larger.resize_token_embeddings(80)
        with pytest.raises(PortfolioError, match=r"vocabularies of \[53, 80, 53\].*cannot be mixed"):
            MixedPolicy([base, larger], reference=base)

    def test_what_is_missing_is_named(self, models, adapters, base):
        for policies, options, error, message in [
            ([], {}, ConfigError, "at least one policy"),
            (models, {}, ConfigError, "Give `reference`"),
            (adapters, {}, ConfigError, "give `tokenizer`"),
            (["no/such-policy"], {"reference": base}, TeacherError, "No model is found at 'no/such-policy'"),
        ]:
            with pytest.raises(error, match=message):
                MixedPolicy(policies, **options)
