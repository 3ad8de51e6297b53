"""Training pairs under drawn histories: the tokens of a chat template by hand, the same with any workers, anew each epoch."""

import re

import numpy as np
import pytest
from helpers.parts import GROUPS, as_chat, make_pairs, make_teachers, make_tokenizer

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.data.group_mixture import GroupMixture
from trl_pafo.data.history import HistoryCutter, render_history
from trl_pafo.data.named_groups import name_group, reads_groups
from trl_pafo.data.showings import HistoryDraw
from trl_pafo.data.template import add_history_template
from trl_pafo.data.tokenization import tokenize_pairs
from trl_pafo.errors import DataError, TrlPafoError
from trl_pafo.evaluation.mixture import fit_groups
from trl_pafo.evaluation.rewards import score_rows
from trl_pafo.models.scoring import RewardScorer
from trl_pafo.trainer.samplers import DrawnOrder
from trl_pafo.trainer.showings import ShowingSampler, ShownPairs, fits_within


@pytest.fixture
def tokenizer():
    return add_history_template(make_tokenizer("decoder"))


@pytest.fixture
def rendered(tokenizer):
    return render_history(make_pairs(), HistoryCutter(tokenizer, 2, fields=["chosen"]))


@pytest.fixture
def build(decoder, training, tmp_path):
    def make(out="out", rows=None, distills=True, eval_dataset=None, teachers=None, **options):
        args = PAFOConfig(str(tmp_path / out), **{**training, **options})
        rows = make_pairs() if rows is None else rows
        if distills and not teachers and "teacher_margins" not in rows.column_names:
            rows = rows.add_column("teacher_margins", [dict.fromkeys(GROUPS, i - 14.5) for i in range(len(rows))])
        return PAFORewardTrainer(decoder, args, train_dataset=rows, eval_dataset=eval_dataset, teachers=teachers)

    return make


def by_hand(tokenizer, row: dict, history: list[dict], side: str) -> list[int]:
    turns = [*row["prompt"], *row[side]]
    return tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, history=history)["input_ids"]


@pytest.mark.parametrize("options", [{"min_history": 0}, {"tau": 0.5, "min_history": 1}])
def test_a_showing_is_the_pair_under_the_drawn_history(tokenizer, rendered, options):
    given = make_pairs()
    draw = HistoryDraw(given, rendered, seed=0, **options)
    tokens = tokenize_pairs(rendered, tokenizer).add_column("margin", [0.5] * 30)
    pairs = ShownPairs(tokens, rendered, tokenizer, draw)
    assert len(pairs) == 30
    numbers = [epoch * 30 + row for epoch in (0, 3) for row in range(30)]
    for number, shown in zip(numbers, pairs.__getitems__(numbers), strict=True):
        row, donor, num_history = draw(number % 30, number // 30)
        history = rendered[donor]["chat_template_kwargs"]["history"][:num_history]
        for side in ("chosen", "rejected"):
            assert shown[f"{side}_ids"] == by_hand(tokenizer, rendered[row], history, side)
        assert shown["margin"] == 0.5
        assert shown["group"] == given["group"][row]
        assert pairs[number] == shown


def test_the_pairs_that_fit_are_those_that_are_short_enough(tokenizer, rendered):
    fits = fits_within(tokenize_pairs(rendered, tokenizer), rendered, tokenizer, 40)
    found = []
    for row in range(0, 30, 4):
        for donor in range(30):
            history = rendered[donor]["chat_template_kwargs"]["history"]
            longest = max(len(by_hand(tokenizer, rendered[row], history, side)) for side in ("chosen", "rejected"))
            assert fits(row, donor) == (longest <= 40)
            found.append(longest <= 40)
    assert 0.1 < np.mean(found) < 0.9


def test_a_sampler_numbers_its_rows_by_epoch():
    for rows in (range(5), DrawnOrder(5, seed=1), DrawnOrder(5, 1, np.array([3, 1, 2, 5, 4]), 2)):
        sampler = ShowingSampler(rows)
        orders = []
        for epoch in (0, 1, 2, 1):
            sampler.set_epoch(epoch)
            numbers = list(sampler)
            assert sorted(numbers) == list(range(5 * epoch, 5 * epoch + 5))
            orders.append([number - 5 * epoch for number in numbers])
        assert orders[1] == orders[3]
        assert (len({tuple(order) for order in orders}) > 1) == (not isinstance(rows, range))


# --- in a training


def seen(trainer) -> list[list[list[int]]]:
    """Token ids of each batch of a training."""
    batches = []
    step = trainer.training_step
    trainer.training_step = lambda model, inputs, *more: (
        batches.append(inputs["input_ids"].tolist()) or step(model, inputs, *more)
    )
    trainer.train()
    return batches


@pytest.mark.parametrize("strategy", ["random", "group_by_length", "sequential"])
def test_each_epoch_shows_other_histories_and_workers_change_nothing(build, strategy):
    options = {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 6, "train_sampling_strategy": strategy}
    options |= {"prefix_sharing": "off"}
    alone = seen(build(**options))
    assert len(alone) == 10
    if strategy == "random":
        assert seen(build(**options, dataloader_num_workers=2)) == alone
    first, second = ({tuple(ids) for batch in half for ids in batch} for half in (alone[:5], alone[5:]))
    assert first != second


def test_own_histories_are_drawn_from_where_their_number_is(build):
    """Without teachers, too: a reference must be able to learn from few past pairs as the student does."""
    lengths = {}
    for least in (None, 0):
        trainer = build(distills=False, min_num_history=least, prefix_sharing="off", max_steps=5)
        lengths[least] = sum(len(ids) - ids.count(0) for batch in seen(trainer) for ids in batch)
        assert trainer._shown is None if least is None else trainer._shown.targets is None
    assert lengths[0] < 0.9 * lengths[None]


def test_a_label_counts_under_the_own_history_alone(build):
    trainer = build(per_device_train_batch_size=30, max_steps=1, alpha=1 - 1e-9)
    batch = next(iter(trainer.get_train_dataloader()))
    assert 5 < batch["has_label"].sum() < 25
    assert batch["teacher_margin"].abs().min() > 0


def test_pairs_that_no_other_history_fits_are_told(build, caplog):
    """Short pairs with long histories, and long pairs with short ones: each fits with its own alone."""

    def stretched(row):
        if row["group"] == "majority":
            return {"prompt": " ".join([row["prompt"]] * 9)}
        return {"history": [{**past, "chosen": " ".join([past["chosen"]] * 9)} for past in row["history"]]}

    rows = make_pairs().map(stretched)
    tokens = build(rows=rows, max_length=None).train_dataset
    assert "keep their own history" not in caplog.text
    longest = max(len(ids) for name in ("chosen_ids", "rejected_ids") for ids in tokens[name])
    trainer = build(rows=rows, max_length=longest)
    stuck = trainer._shown.draw.without_donor["majority"]
    assert stuck > 0
    assert f"{stuck} training pairs of the group 'majority' keep their own history" in caplog.text


# --- with the names of groups


def named_ids(tokenizer, row: dict, group: str, side: str) -> list[int]:
    """Token ids of one side of a pair whose prompt names a group."""
    line = f"Preference group: {group}\n"
    if isinstance(row["prompt"], str):
        text = line + row["prompt"] + row[side]
        return tokenizer(text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token)["input_ids"]
    first = {**row["prompt"][0], "content": line + row["prompt"][0]["content"]}
    return tokenizer.apply_chat_template([first, *row[side]], tokenize=True, return_dict=True)["input_ids"]


@pytest.mark.parametrize("as_given", [make_pairs, lambda: as_chat(make_pairs(history=0))])
def test_named_pairs_have_no_history_and_the_margin_of_each_groups_teacher(build, tokenizer, as_given, tmp_path):
    rows, teachers = as_given(), make_teachers("decoder", tmp_path)
    options = {"conditioning": "named", "max_steps": -1, "num_train_epochs": 1, "train_sampling_strategy": "group_by_length"}
    trainer = build(rows=rows, teachers=teachers, **options)
    pairs = trainer._shown
    order = list(trainer._get_train_sampler(pairs))
    assert len(order) == len(pairs) == 60
    assert sorted(order) == list(range(60))
    margin = {
        g: np.subtract(*score_rows(teachers[g], rows.remove_columns([n for n in ("history",) if n in rows.column_names])))
        for g in teachers
    }
    for number, shown in zip(order, pairs.__getitems__(order), strict=True):
        row, own = rows[number % 30], number < 30
        other = {"majority": "minority", "minority": "majority"}[row["group"]]
        group = row["group"] if own else other
        for side in ("chosen", "rejected"):
            assert shown[f"{side}_ids"] == named_ids(tokenizer, row, group, side)
        assert shown["has_label"] == own
        assert shown["teacher_margin"] == pytest.approx(margin[group][number % 30], abs=1e-3)
    assert [number % 30 for number in order[::2]] == [number % 30 for number in order[1::2]]  # side by side in a batch


@pytest.mark.parametrize("strategy", ["random", "sequential"])
def test_an_epoch_of_named_pairs_shows_each_under_each_name_once(build, strategy):
    trainer = build(conditioning="named", train_sampling_strategy=strategy)
    order = list(trainer._get_train_sampler(trainer._shown))
    assert sorted(order) == list(range(60))
    assert len(trainer.get_train_dataloader()) == 15
    rows = [number % 30 for number in order]
    assert rows[::2] == rows[1::2]
    assert (rows[::2] == list(range(30))) == (strategy == "sequential")


def test_what_is_saved_knows_its_groups_and_reads_past_pairs(build, tmp_path):
    rows = as_chat(make_pairs())
    trainer = build(rows=rows, conditioning="named", tau=0.25, num_history=1, eval_dataset=rows)
    trainer.train()
    logged = trainer.evaluate()
    trainer.save_model(str(tmp_path / "saved"))
    scorer = RewardScorer.from_pretrained(tmp_path / "saved")
    assert scorer.tau == 0.25
    assert scorer.mixture.as_json() == GroupMixture.unfitted({"majority": 2 / 3, "minority": 1 / 3}).as_json()
    assert scorer.renderer.cutter.num_history == 1
    # What an evaluation of the trainer reports is told the group of each pair.
    told = [scorer.by_group(found)[0] for found in scorer.read_tokens(scorer.tokenize(rows.to_list()))]
    own = [0 if group == "majority" else 1 for group in rows["group"]]
    margins = [pair["chosen"][place] - pair["rejected"][place] for pair, place in zip(told, own, strict=True)]
    assert logged["eval_margin"] == pytest.approx(np.mean(margins), abs=1e-4)
    with pytest.raises(DataError, match="the groups majoritys, minoritys"):
        fit_groups(tmp_path / "saved", rows.map(lambda row: {"group": f"{row['group']}s"}))
    again = PAFORewardTrainer(
        str(tmp_path / "saved"), PAFOConfig(str(tmp_path / "again"), use_cpu=True, bf16=False, report_to=[]), eval_dataset=rows
    )
    assert again.evaluate()["eval_margin"] == pytest.approx(logged["eval_margin"], abs=1e-4)


def test_named_pairs_that_may_become_too_long_are_left_out(build):
    names = {"majority": "many", "minority": "the few who like to sing it all day"}
    rows = as_chat(make_pairs()).map(
        lambda row: {"group": names[row["group"]], "teacher_margins": dict.fromkeys(names.values(), 1.0)}
    )

    def longest(trainer) -> list[int]:
        shown = trainer._shown.__getitems__(range(len(trainer._shown)))
        return [max(len(row[side]) for side in ("chosen_ids", "rejected_ids")) for row in shown]

    lengths = longest(build(rows=rows, conditioning="named"))
    of_row = [max(lengths[row], lengths[30 + row]) for row in range(30)]
    most = sorted(of_row)[20]
    kept = build(rows=rows, conditioning="named", max_length=most)
    assert len(kept.train_dataset) == sum(length <= most for length in of_row) < 30
    assert max(longest(kept)) == most


def test_what_names_cannot_do_is_an_error(build):
    ungrouped = as_chat(make_pairs()).remove_columns("group")
    stream = as_chat(make_pairs(history=0)).to_iterable_dataset()
    for change, message in (
        ({"eval_dataset": ungrouped}, "The evaluation dataset lacks the column group"),
        ({"eval_dataset": stream}, "The evaluation dataset .* is a stream"),
        ({"min_num_history": 0}, "Leave one of them out"),
    ):
        with pytest.raises(TrlPafoError, match=message):
            build(rows=as_chat(make_pairs()), conditioning="named", **change)


def test_its_card_says_how_it_is_asked_and_the_code_on_it_runs(build, tmp_path, monkeypatch):
    trainer = build(rows=as_chat(make_pairs()), conditioning="named", num_history=1)
    trainer.save_model(str(tmp_path / "saved"))
    given, with_us, without = re.findall(r"```python\n(.*?)```", trainer.model_card().render(), re.S)
    assert "'rejected'" in given or '"rejected"' in given
    monkeypatch.chdir(tmp_path / "saved")
    shown: dict = {}
    exec(given + with_us, shown)
    exec(given + without, shown)
    scorer = RewardScorer(tmp_path / "saved", num_history=0)
    named = [name_group({"prompt": "Can I freeze bread?", "response": text}, "majority") for text in shown["responses"]]
    assert shown["rewards"] == pytest.approx([row["response"] for row in scorer.score(named)], abs=1e-4)


def test_a_training_without_names_forgets_those_of_an_earlier_one(build, tmp_path):
    trainer = build(rows=as_chat(make_pairs()), conditioning="named", max_steps=1)
    trainer.save_model(str(tmp_path / "named"))
    args = PAFOConfig(str(tmp_path / "on"), use_cpu=True, bf16=False, report_to=[], max_steps=1, gradient_checkpointing=False)
    plain = PAFORewardTrainer(str(tmp_path / "named"), args, train_dataset=as_chat(make_pairs(history=0)).remove_columns("group"))
    plain.save_model(str(tmp_path / "plain"))
    assert not reads_groups(tmp_path / "plain")
    assert reads_groups(tmp_path / "named")
