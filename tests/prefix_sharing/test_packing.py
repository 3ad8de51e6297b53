"""Rewards and gradients of encoders without padding are those of padded sequences, and only what the reward needs is computed."""

import copy

import numpy as np
import pytest
import torch
from helpers.parts import losses, make_pairs
from helpers.rounding import rounding
from helpers.shared_pairs import gradients, largest_difference, make_family, recompute_layers
from peft import LoraConfig, get_peft_model
from torch.nn.functional import scaled_dot_product_attention

from trl_pafo import DataCollatorForGroupPreference, PAFOConfig, PAFORewardTrainer
from trl_pafo.errors import ConfigError
from trl_pafo.models.loading import load_reward_model
from trl_pafo.prefix_sharing import packing
from trl_pafo.prefix_sharing.packing import FirstTokens, PackedMask, forward_packed
from trl_pafo.prefix_sharing.packing_choice import TESTED_ENCODERS, choose_packing, why_not_packed

LENGTHS = [9, 1, 14, 5, 14, 3, 7, 2]


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return {"input_ids": torch.randint(3, 30522, mask.shape) * mask, "attention_mask": mask}


def padded(model, batch) -> torch.Tensor:
    return model(**batch).logits.squeeze(-1)


def packed(model, batch) -> torch.Tensor:
    return forward_packed(model, **batch).logits.squeeze(-1)


def assert_same(model, batch, bound=None) -> None:
    expected = padded(model, batch)
    assert expected.std() > 0.1
    wanted = gradients(model, expected)
    found = packed(model, batch)
    torch.testing.assert_close(found, expected, atol=bound or rounding(expected), rtol=0)
    assert largest_difference(gradients(model, found), wanted) < (bound or 16 * rounding())


@pytest.fixture
def seen(monkeypatch) -> list[int]:
    """Number of sequences, for each time that attention went sequence by sequence."""
    calls: list[int] = []
    attend = PackedMask._attend
    monkeypatch.setattr(PackedMask, "_attend", lambda self, *a, **k: calls.append(len(self.lengths)) or attend(self, *a, **k))
    return calls


class TestForward:
    @pytest.mark.parametrize("family", TESTED_ENCODERS)
    def test_families(self, family, batch):
        model = make_family(family)
        assert choose_packing("auto", model).pack
        assert_same(model, batch)
        assert_same(model.double(), batch, 1e-10)

    @pytest.mark.parametrize("family", ["bert", "distilbert"])
    def test_the_last_layer_computes_first_tokens_alone(self, family, batch, seen):
        model = make_family(family, num_hidden_layers=3)
        tokens: dict[str, int] = {}
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear):
                count = lambda module, args, name=name: tokens.__setitem__(name, args[0].shape[:-1].numel())  # noqa: E731
                module.register_forward_pre_hook(count)
        FirstTokens.put_on(model)
        for module in model.modules():  # before what the hooks leave out is gone, and after
            if isinstance(module, torch.nn.Linear):
                module._forward_pre_hooks.move_to_end(next(iter(module._forward_pre_hooks)))
        packed(model, batch)
        all_tokens, first = sum(LENGTHS), len(LENGTHS)
        of_all = {name for name, number in tokens.items() if number == all_tokens}
        assert set(tokens.values()) == {all_tokens, first}
        keys = ("key", "value", "k_lin", "v_lin", "out_lin")
        assert all("layer.2." not in name or name.endswith(keys) for name in of_all)
        assert len(of_all) == 2 * 6 + (2 if family == "bert" else 3)
        assert seen == [len(LENGTHS)] * 3

    @pytest.mark.parametrize("use_reentrant", [True, False])
    def test_gradient_checkpointing(self, use_reentrant, batch):
        """Layers are computed again after another batch has been at work."""
        model = make_family("bert")
        wanted = gradients(model, padded(model, batch))
        recompute_layers(model, use_reentrant)
        model.train()  # where it is in force; dropout is off
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.enable_input_require_grads()
        found = packed(model, batch)
        packed(model, {name: tensor[:3] for name, tensor in batch.items()})
        assert largest_difference(gradients(model, found), wanted) < 16 * rounding()

    def test_adapters(self, batch):
        model = make_family("bert")
        packed(model, batch)  # the hooks are there before the adapter
        lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value", "dense"], init_lora_weights=False)
        adapted = get_peft_model(model, lora).eval()
        assert why_not_packed(adapted) is None
        assert (padded(adapted, batch) - padded(adapted.base_model.model, batch)).abs().max() < rounding()
        assert_same(adapted, batch)
        assert_same(adapted.merge_and_unload(), batch)

    def test_bfloat16(self, batch):
        model = make_family("bert")
        exact = padded(model, batch)
        with torch.autocast("cpu", torch.bfloat16):
            ours, theirs = packed(model, batch), padded(model, batch)
        assert ours.dtype == theirs.dtype == torch.bfloat16
        assert (ours - exact).abs().max() < 2 * (theirs - exact).abs().max()
        assert all(gradient.isfinite().all() for gradient in gradients(model, ours).values())

    def test_a_batch_is_filled_up_to_one_of_few_numbers_of_tokens(self, batch, monkeypatch):
        tokens: list[int] = []
        model = make_family("bert")
        model.bert.encoder.layer[0].intermediate.register_forward_pre_hook(lambda module, args: tokens.append(args[0].shape[1]))
        packed(model, {name: tensor.repeat(3, 1)[:20] for name, tensor in batch.items()})
        assert tokens == [140]  # of 139: from 128 to 255, multiples of 4
        fill = packing._tokens_to_fill_up
        lengths = range(1, 5000)
        assert len({length + fill(length) for length in lengths}) < 300
        assert max(fill(length) / length for length in lengths) < 1 / 32
        monkeypatch.setattr(packing, "_tokens_to_fill_up", lambda num_tokens: 6)
        assert_same(model.double(), batch, 1e-10)
        assert tokens[-1] == sum(LENGTHS) + 6

    def test_dropout_is_where_the_modules_have_it(self, batch):
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
        for option in off:
            model = make_family("bert", num_hidden_layers=2, **off | {option: 0.3}).train()
            with torch.no_grad():
                torch.manual_seed(0)
                found, theirs = (torch.stack([forward(model, batch) for _ in range(60)]) for forward in (packed, padded))
            assert found.std(0).min() > 0, option
            error = torch.sqrt((found.var(0) + theirs.var(0)) / 60)
            assert ((found.mean(0) - theirs.mean(0)).abs() < 5 * error + 1e-6).all(), option

    def test_a_copy_packs_and_a_compiled_model_does_not(self, batch, seen, monkeypatch):
        model = make_family("bert")
        expected = packed(model, batch)
        assert torch.equal(packed(copy.deepcopy(model), batch), expected)
        del seen[:]
        monkeypatch.setattr(model, "_compiled_call_impl", model._call_impl)  # what compile() sets
        torch.testing.assert_close(packed(model, batch), expected, atol=rounding(expected), rtol=0)
        assert not seen

    def test_hooks_that_are_gone_are_an_error(self, batch):
        model = make_family("bert")
        FirstTokens.put_on(model)
        model.bert.encoder.layer[-1].attention.output._forward_pre_hooks.clear()
        with pytest.raises(ConfigError, match="went past the hooks"):
            packed(model, batch)


def test_the_mask_stands_for_a_dense_one():
    torch.manual_seed(0)
    tensors = torch.randn(3, 1, 2, sum(LENGTHS), 8, dtype=torch.float64)
    number = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    dense = (number[:, None] == number)[None, None]
    mask = PackedMask.of(LENGTHS)
    assert mask.shape == dense.shape
    assert torch.equal(mask & True, dense)
    expected = scaled_dot_product_attention(*tensors, attn_mask=dense)
    torch.testing.assert_close(scaled_dot_product_attention(*tensors, attn_mask=mask), expected)
    first = scaled_dot_product_attention(*tensors, attn_mask=PackedMask.of(LENGTHS, first_only=True))
    is_first = torch.zeros(sum(LENGTHS), dtype=torch.bool)
    is_first[np.cumsum([0, *LENGTHS[:-1]])] = True
    torch.testing.assert_close(first, expected * is_first[:, None])


class TestInUse:
    @pytest.fixture
    def make_trainer(self, encoder, training, tmp_path):
        def make(mode, collator=None, **options):
            options = {"padding_free": mode, "eos_token": "[SEP]", **training, **options}
            args = PAFOConfig(str(tmp_path / mode), **options)
            rows = [make_pairs(num_users=8, pairs_per_user=4, history=0, seed=seed) for seed in (0, 1)]
            return PAFORewardTrainer(encoder, args, collator, *rows)

        return make

    def test_training_evaluation_and_prediction(self, make_trainer, seen):
        found = {}
        for mode in ("on", "off"):
            trainer = make_trainer(mode, max_steps=5, learning_rate=1e-3)
            del seen[:]
            trainer.train()
            sequences = 2 * trainer.args.per_device_train_batch_size
            assert bool(seen) == (mode == "on")
            assert set(seen) <= {sequences, sequences + 1}  # with the one that fills up
            tokens = [log["num_tokens"] for log in trainer.state.log_history if "loss" in log]
            # Margins: what shifts both rewards of a pair has no gradient but rounding, which Adam divides by its size.
            margins = np.subtract(*trainer.predict(trainer.eval_dataset).predictions.T)
            found[mode] = (losses(trainer), tokens, trainer.evaluate()["eval_loss"], margins)
        assert len(found["on"][0]) == 5
        assert found["on"][1] == found["off"][1]
        for ours, theirs in zip(*found.values(), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=rounding(theirs, steps=8))

    def test_reasons(self, make_trainer, encoder, decoder):
        model = load_reward_model(encoder)
        assert choose_packing("off", model) == (False, "padding_free='off'")
        assert choose_packing("auto", model) == (True, "the model is an encoder that gives the rewards of padded sequences")
        own = DataCollatorForGroupPreference(pad_token_id=0)
        assert make_trainer("auto", collator=own).padding_free.reason == "the data collator is not the trainer's own"
        with pytest.raises(ConfigError, match=r"padding_free='on' cannot give .* `classifier` reads the first token"):
            choose_packing("on", load_reward_model(decoder))
        model.set_attn_implementation("eager")
        assert "'eager' cannot attend sequence by sequence" in choose_packing("auto", model).reason
        assert "gradients are compared in our tests" in choose_packing("auto", make_family("ernie")).reason
        assert choose_packing("on", make_family("ernie")).pack
        assert "gives other rewards" in why_not_packed(make_family("mobilebert", num_feedforward_networks=1))

    def test_each_part_of_the_method_is_needed(self, encoder, monkeypatch):
        """The small twin tells when one is left out."""
        monkeypatch.setattr(PackedMask, "_attend", lambda self, *tensors, **options: scaled_dot_product_attention(*tensors))
        assert "gives other rewards" in why_not_packed(load_reward_model(encoder))
        monkeypatch.undo()
        monkeypatch.setattr(torch.Tensor, "expand_as", lambda self, other: torch.zeros_like(other))
        assert "gives other rewards" in why_not_packed(load_reward_model(encoder))


class HandedOn(torch.autograd.Function):
    """What DeepSpeed's ZeRO-3 does to every tensor that a module is given."""

    @staticmethod
    def forward(ctx, tensor):
        return tensor.detach()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_a_mask_that_an_autograd_function_hands_on_is_still_the_mask():
    mask = PackedMask.of([3, 2])
    handed_on = HandedOn.apply(mask)
    assert type(handed_on) is PackedMask
    assert handed_on.lengths == [3, 2]
    assert torch.equal(handed_on & True, mask.dense())
