"""P-RLHF: what it trains on, that known users get what they like, and that what is saved is a plain model for everybody else."""

import json
import math
import re

import pytest
import torch
from helpers.parts import StoppedAfter, make_model, make_pairs
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trl_pafo import PAFOConfig
from trl_pafo.baselines import p_rlhf
from trl_pafo.baselines.p_rlhf import PRLHFRewardTrainer
from trl_pafo.errors import ConfigError, DataError
from trl_pafo.models.scoring import RewardScorer

QUERY = {"encoder": "query", "decoder": "q_proj"}


@pytest.fixture
def build(training, tmp_path):
    def make(model, rows=None, peft_config=None, eval_dataset=None, processing_class=None, **options):
        of_method = {name: options.pop(name) for name in ("form", "num_clusters", "known_weight") if name in options}
        args = PAFOConfig(str(options.pop("out", tmp_path / "out")), **{**training, **options})
        rows = make_pairs(history=1) if rows is None else rows
        given = {"eval_dataset": eval_dataset, "processing_class": processing_class, "peft_config": peft_config}
        return PRLHFRewardTrainer(model, args, train_dataset=rows, num_user_tokens=3, **given, **of_method)

    return make


def test_each_pair_of_a_batch_is_one_of_its_user_and_one_of_the_generic_user(base_model, build):
    trainer = build(base_model, known_weight=0.8, prefix_sharing="off")
    with torch.no_grad():  # else a fresh encoder gives all nearly the same reward
        next(weight for name, weight in trainer.model.named_parameters() if re.search(r"^(score|classifier)\.weight", name)).mul_(
            30
        )
    assert trainer.users == [f"user-{number}" for number in range(6)]
    batch = next(iter(trainer.get_train_dataloader()))
    chosen, rejected = batch["input_ids"].chunk(2)
    first = len(AutoTokenizer.from_pretrained(base_model))
    encoder = "bert" in trainer.model.config.model_type
    place = slice(1, 4) if encoder else slice(0, 3)
    for side in (chosen, rejected):
        known, generic = side.chunk(2)
        assert len(known) == 4
        assert (generic[:, place] == torch.arange(first, first + 3)).all()
        numbers = (known[:, place] - first) // 3
        assert (numbers >= 1).all()
        assert (numbers <= 6).all()
        assert (known[:, place] - first == 3 * numbers + torch.arange(3)).all()
        rest = torch.ones(known.shape[1], dtype=torch.bool)
        rest[place] = False
        assert torch.equal(known[:, rest], generic[:, rest])
    assert len(set(((chosen.chunk(2)[0][:, place.start] - first) // 3).tolist())) > 1

    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    trainer.model.eval()
    rewards = [
        trainer.model(input_ids=ids[mask.bool()][None], attention_mask=mask[mask.bool()][None]).logits.item()
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    losses = [math.log1p(math.exp(rewards[i + 8] - rewards[i])) for i in range(8)]
    assert loss.item() == pytest.approx(0.8 * sum(losses[:4]) / 4 + 0.2 * sum(losses[4:]) / 4, rel=1e-4)
    loss.backward()
    trained = {number for number in range(1, 7) if trainer.user_table.tokens.grad[number].any()}
    assert trained == set(((chosen.chunk(2)[0][:, place.start] - first) // 3).tolist())
    assert trainer.user_table.tokens.grad[0].any()


@pytest.mark.parametrize(
    ("kind", "adapter", "form"), [("encoder", 0, "individual"), ("encoder", 1, "cluster"), ("decoder", 1, "individual")]
)
def test_what_is_saved_is_a_plain_model(kind, adapter, form, build, request, tmp_path):
    base = request.getfixturevalue(kind)
    peft_config = LoraConfig(r=2, target_modules=[QUERY[kind]]) if adapter else None
    trainer = build(base, eval_dataset=make_pairs(seed=3, history=1), form=form, num_clusters=2, peft_config=peft_config)
    begun = trainer.user_table().detach().clone()
    trainer.train()
    rows = trainer.user_table().detach()
    assert (rows - begun).abs().amax(dim=(1, 2)).gt(1e-4).all()
    trainer.save_model()
    out = tmp_path / "out"
    assert "user_table.safetensors" not in {path.name for path in out.iterdir()}
    assert json.dumps("user-3") in (out / "chat_template.jinja").read_text()  # names of users stand there alone
    assert 'user-3"' not in (out / "tokenizer.json").read_text()
    if not adapter:
        model, info = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
        assert not any(info.values())
        saved = model.get_input_embeddings().weight[-21:].detach()
        torch.testing.assert_close(saved, rows.flatten(0, 1), rtol=0, atol=0)
    scorer = RewardScorer(out)
    first = len(AutoTokenizer.from_pretrained(base))
    given = {"prompt": "what is tea", "response": "the red house", "history": [{"prompt": "a", "chosen": "b", "rejected": "c"}]}
    variables = [{"user": "user-2"}, {"user": "who"}, {}, {"user": "user-4"}]
    ids = [row["response"] for row in scorer.tokenize([{**given, "chat_template_kwargs": each} for each in variables])]
    place = 1 if kind == "encoder" else 0
    assert [row[place] for row in ids] == [first + 9, first, first, first + 15]
    scores = [row["response"] for row in scorer.score([{**given, "chat_template_kwargs": each} for each in variables])]
    assert scores[1] == scores[2]
    assert len(set(scores)) == 3
    trainer.model.eval()
    in_memory = [trainer.model(input_ids=torch.tensor([row])).logits.item() for row in ids]
    assert scores == pytest.approx(in_memory, abs=1e-5)
    # Evaluation pairs of known users are theirs.
    margin = trainer.evaluate()["eval_margin"]
    pairs = [{**row, "chat_template_kwargs": {"user": row["user"]}} for row in make_pairs(seed=3, history=1)]
    of_pairs = scorer.score([{name: row[name] for name in row if name not in ("user", "group")} for row in pairs])
    assert sum(row["chosen"] - row["rejected"] for row in of_pairs) / len(of_pairs) == pytest.approx(margin, abs=1e-5)


def test_known_users_get_what_they_like(decoder, build):
    """Without past pairs, two tastes: a model that knows no user can serve one of them."""
    rows = make_pairs(num_users=4, pairs_per_user=20, history=0)
    new = make_pairs(num_users=4, pairs_per_user=10, seed=5, history=0)
    trainer = build(decoder, rows, max_steps=40, per_device_train_batch_size=8, learning_rate=8e-3)
    trainer.train()
    unknown = new.map(lambda row: {"user": f"new-{row['user']}"})
    assert trainer.evaluate(new)["eval_accuracy_group_min"] > 0.8
    assert trainer.evaluate(unknown)["eval_accuracy_group_mean"] == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(("form", "adapter"), [("individual", False), ("cluster", True)])
def test_an_interrupted_training_ends_the_same(form, adapter, decoder, build, tmp_path):
    how = {"form": form, "num_clusters": 2, "save_strategy": "steps", "save_steps": 2}
    peft_config = lambda: LoraConfig(r=2, target_modules=["q_proj"]) if adapter else None  # noqa: E731
    whole = build(decoder, out=tmp_path / "whole", peft_config=peft_config(), **how)
    whole.train()
    whole.save_model()
    broken = build(decoder, peft_config=peft_config(), **how)
    broken.add_callback(StoppedAfter(3))
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = build(decoder, peft_config=peft_config(), **how)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-2"))
    resumed.save_model()
    assert torch.equal(resumed.user_table(), whole.user_table())
    name = "adapter_model.safetensors" if adapter else "model.safetensors"
    found, expected = load_file(tmp_path / "out" / name), load_file(tmp_path / "whole" / name)
    if not adapter:  # the plain rows are what the table gives
        assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-6, atol=1e-7)


def test_a_checkpoint_is_a_plain_model_and_the_best_one_is_gone_back_to(decoder, build, tmp_path):
    rows = make_pairs(seed=3, history=1)
    how = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.3}
    trainer = build(decoder, eval_dataset=rows, form="cluster", num_clusters=2, load_best_model_at_end=True, **how)
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert not best.endswith("checkpoint-4")  # with so high a rate
    kept = load_file(f"{best}/user_table.safetensors")
    assert torch.equal(kept["tokens"], trainer.user_table.tokens)
    assert torch.equal(kept["weights"], trainer.user_table.weights)
    plain = AutoModelForSequenceClassification.from_pretrained(best).get_input_embeddings().weight[-21:]
    assert torch.equal(plain, trainer.user_table().flatten(0, 1))
    (tmp_path / "out/checkpoint-1/user_table.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no user_table\.safetensors"):
        build(decoder, form="cluster", num_clusters=2).train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-1"))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"form": "flat"}, ConfigError, "a `form` of individual or cluster"),
        ({"known_weight": 1.5}, ConfigError, r"a `known_weight` in \[0, 1\]; got 'individual', 3, 5, 1.5"),
        ({"rows": make_pairs().remove_columns("user")}, DataError, "must have the column `user`"),
        ({"rows": make_pairs().to_iterable_dataset()}, DataError, "and be no stream"),
        ({"eval_dataset": {"new": make_pairs().to_iterable_dataset()}}, DataError, "An evaluation dataset is a stream"),
        ({"peft_config": PrefixTuningConfig(num_virtual_tokens=2)}, ConfigError, "a `peft_config` such as LoraConfig"),
    ],
)
def test_what_cannot_be_used_is_refused(options, error, match, build):
    with pytest.raises(error, match=match):
        build("no/such-model", **options)


def test_arguments_by_position(decoder, training, tmp_path):
    given = (None, make_pairs(history=1), None, None, lambda prediction: {"mine": 1.0})
    trainer = PRLHFRewardTrainer(decoder, PAFOConfig(str(tmp_path / "out"), **training), *given, num_user_tokens=3)
    assert trainer.evaluate(make_pairs(history=1))["eval_mine"] == 1


def test_an_adapter_as_the_model_is_refused(decoder, build):
    model = AutoModelForSequenceClassification.from_pretrained(decoder)
    with pytest.raises(ConfigError, match="give the base as `model`"):
        build(get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])))


@pytest.mark.parametrize("launcher", ["FSDP", "DEEPSPEED"])
def test_launchers_that_cut_weights_up_are_refused(launcher, build, monkeypatch):
    monkeypatch.setattr(p_rlhf, "parse_flag_from_env", lambda name: name == f"ACCELERATE_USE_{launcher}")
    with pytest.raises(ConfigError, match="which FSDP and DeepSpeed cut up"):
        build("no/such-model")


def test_scaled_embeddings_are_refused(build, tmp_path):
    from transformers import Gemma3TextConfig, Gemma3TextForSequenceClassification

    AutoTokenizer.from_pretrained(make_model("decoder", tmp_path / "llama")).save_pretrained(tmp_path / "gemma")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    config = Gemma3TextConfig(vocab_size=60, intermediate_size=16, num_labels=1, pad_token_id=0, **sizes)
    Gemma3TextForSequenceClassification(config).save_pretrained(tmp_path / "gemma")
    with pytest.raises(ConfigError, match="scales what its embeddings give"):
        build(str(tmp_path / "gemma"))
