"""Preference pairs as rows of token ids: checked once, with histories, counted where they are dropped. No model is loaded."""

from functools import partial

import pytest
from datasets import Dataset, concatenate_datasets
from helpers.parts import GROUPS, as_chat, make_pairs, make_tokenizer
from trl import RewardTrainer

from trl_pafo import PAFOConfig
from trl_pafo.data.history import HistoryCutter, remembered, render_history
from trl_pafo.data.template import add_history_template
from trl_pafo.data.tokenization import tokenize_pairs
from trl_pafo.errors import ConfigError, DataError, TeacherError
from trl_pafo.trainer import pairs as module
from trl_pafo.trainer.pairs import PairPreparer

by_trl = partial(RewardTrainer._prepare_dataset, None)


@pytest.fixture
def asked(monkeypatch):
    """Which teachers are asked whether they can score the pairs, and how; all of them can."""
    asked = []
    monkeypatch.setattr(module, "check_gives_rewards", lambda teacher: None)
    monkeypatch.setattr(module, "check_teacher", lambda teacher, tokenizer, **how: asked.append((teacher, how)))
    return asked


@pytest.fixture
def preparer(tmp_path, asked):
    def make(groups=(), **options) -> PairPreparer:
        teachers = {group: f"teacher of {group}" for group in groups}
        return PairPreparer(PAFOConfig(str(tmp_path), use_cpu=True, bf16=False, **options), teachers)

    return make


def prepare(preparer: PairPreparer, train, evaluation=None, tokenizer=None):
    """Both datasets, as a trainer has them prepared."""
    tokenizer = tokenizer or make_tokenizer("decoder")
    train, evaluation = preparer.check(train, evaluation)
    rows = [preparer.prepare(train, tokenizer, "train", by_trl)]
    return rows[0] if evaluation is None else (*rows, preparer.prepare(evaluation, tokenizer, "eval", by_trl))


TEXTS = make_pairs(history=0)
RENDERED = render_history(make_pairs(), HistoryCutter(add_history_template(make_tokenizer("decoder")), 1))  # cut before
IDS = Dataset.from_dict({"chosen_ids": [[1, 2], [3]], "rejected_ids": [[1], [4, 5]]})


# --- how rows are read


@pytest.mark.parametrize(
    ("rows", "options", "read"),
    [
        (TEXTS, {}, ("text", 0)),
        (as_chat(TEXTS), {}, ("messages", 0)),
        (make_pairs(history=2), {}, ("messages", None)),
        (make_pairs(history=2), {"num_history": 1}, ("messages", 1)),
        (RENDERED, {}, ("messages", 1)),
    ],
)
def test_the_tokenizer_remembers_how_pairs_are_read_and_later_ones_are_read_so(preparer, rows, options, read):
    tokenizer = make_tokenizer("decoder")
    train, evaluated = prepare(preparer(**options), rows, rows, tokenizer)
    assert tuple(remembered(tokenizer)[name] for name in ("inputs", "num_history")) == read
    assert evaluated["chosen_ids"][:] == train["chosen_ids"][:]


def test_prepared_pairs_show_other_fields_where_that_is_asked_for_and_as_many_past_pairs(preparer):
    prepared = concatenate_datasets([RENDERED, make_pairs(history=2).select_columns(["history"])], axis=1)
    for fields in (["chosen"], ["prompt", "rejected"]):
        tokenizer = make_tokenizer("decoder")
        train, evaluated = prepare(preparer(history_fields=fields), prepared, prepared, tokenizer)
        assert remembered(tokenizer)["fields"] == fields
        assert remembered(tokenizer)["num_history"] == 1
        expected = render_history(prepared, HistoryCutter(add_history_template(make_tokenizer("decoder")), 1, fields=fields))
        assert train["chosen_ids"][:] == evaluated["chosen_ids"][:]
        assert (
            train["chosen_ids"][:] == tokenize_pairs(expected, add_history_template(make_tokenizer("decoder")))["chosen_ids"][:]
        )


def test_prepared_pairs_keep_the_fields_that_they_show_where_another_number_is_asked_for(preparer):
    full = make_pairs(history=2)
    shown = render_history(full, HistoryCutter(add_history_template(make_tokenizer("decoder")), 2, fields=["chosen"]))
    tokenizer = make_tokenizer("decoder")
    prepared = concatenate_datasets([shown, full.select_columns(["history"])], axis=1)
    train, evaluated = prepare(preparer(num_history=1), prepared, prepared, tokenizer)
    assert tuple(remembered(tokenizer)[name] for name in ("num_history", "fields")) == (1, ["chosen"])
    assert train["chosen_ids"][:] == evaluated["chosen_ids"][:]


@pytest.mark.parametrize(
    ("loss", "conditioning", "warned"),
    [("hinge", "counterfactual", True), ("margin_bt", "named", True), ("hinge", "own", False), ("bce", "counterfactual", False)],
)
def test_losses_that_cannot_ask_for_a_negative_margin_are_warned_of_beside_other_groups(
    preparer, caplog, loss, conditioning, warned
):
    margins = make_pairs().add_column("teacher_margins", [dict.fromkeys(GROUPS, -1.0)] * 30)
    preparer(distillation_loss=loss, conditioning=conditioning).check(margins, None)
    assert ("is one-sided" in caplog.text) == warned


def test_streams_are_read_as_the_training_was(preparer):
    tokenizer = make_tokenizer("decoder")
    made = preparer()
    prepare(made, TEXTS.to_iterable_dataset(), tokenizer=tokenizer)
    with pytest.raises(DataError, match="dataset holds messages, and the model was trained on text"):
        made.prepare(as_chat(TEXTS).to_iterable_dataset(), tokenizer, "eval", by_trl)


def test_groups_become_texts(preparer):
    rows = TEXTS.remove_columns("group").add_column("group", [number % 2 for number in range(30)])
    made = preparer()
    train, evaluation = made.check(rows, {"a": rows.to_iterable_dataset()})
    assert set(train["group"]) == {"0", "1"}
    assert next(iter(evaluation["a"]))["group"] == "0"


# --- drops


def test_pairs_dropped_for_length_are_counted_by_group(preparer, caplog):
    rows = make_pairs()
    long = [
        " ".join(["tree"] * 150) if group == "minority" and i % 2 else chosen
        for i, (group, chosen) in enumerate(zip(rows["group"], rows["chosen"], strict=True))
    ]
    rows = rows.remove_columns("chosen").add_column("chosen", long)
    made = preparer(GROUPS, max_length=150)
    assert prepare(made, rows)["user"] == made.rows.given["user"][:]
    assert len(made.rows.messages) == 25
    assert made.dropped == {"train": {"minority": 5}}
    assert "minority: 5 of 10 (50.0%). Raise" in caplog.text
    with pytest.raises(ConfigError, match="No pair of the train dataset is within max_length=3"):
        prepare(preparer(max_length=3), rows)


# --- what is refused


FULL = make_pairs()


def with_margins(margins: dict) -> Dataset:
    return FULL.add_column("teacher_margins", [margins] * 30)


FIRST = FULL[0]
TOKENIZED = IDS.add_column("group", list(GROUPS)).add_column("history", [FIRST["history"]] * 2)
WITH_MARGINS = with_margins({"majority": 1.0, "minority": -1.0})
WITH_VARIABLES = TEXTS.add_column("chat_template_kwargs", [{"history": FIRST["history"]}] * 30)


def with_first(**changes) -> Dataset:
    return Dataset.from_list([{**FIRST, **changes}, *FULL])


@pytest.mark.parametrize(
    ("rows", "groups", "options", "error", "match"),
    [
        (FULL, ["majority"], {}, TeacherError, "'minority', and there are teachers for 'majority'"),
        (FULL, [*GROUPS, "rare"], {}, TeacherError, "there are teachers for 'majority', 'minority', 'rare'"),
        (FULL.remove_columns("group"), GROUPS, {}, DataError, "lacks the column group"),
        (with_first(rejected=FIRST["chosen"]), GROUPS, {}, DataError, "row 0: chosen and rejected are identical"),
        (with_first(history=[]), GROUPS, {}, DataError, "row 0: the history is empty"),
        (with_first(group=None), GROUPS, {}, DataError, "row 0: has no `group`"),
        (FULL.remove_columns("prompt"), GROUPS, {}, DataError, "so it needs an explicit prompt; it lacks the column prompt"),
        (TEXTS, GROUPS, {}, DataError, "has `teachers` and no histories"),
        (FULL.add_column("teacher_margin", [1.0] * 30), GROUPS, {}, DataError, "Give one of them"),
        (FULL.add_column("teacher_margin", [float("nan")] * 30), (), {}, DataError, "`teacher_margin` is not a finite"),
        (with_margins({"majority": 1.0, "minority": None}), (), {}, DataError, "must hold a finite number for each group"),
        (with_margins({"majority": 1.0}), (), {}, TeacherError, "there are teachers for 'majority'"),
        (WITH_MARGINS, (), {"conditioning": "posterior"}, DataError, "lacks the column history_log_likelihood"),
        (TOKENIZED, GROUPS, {}, DataError, "is tokenized, so its pairs cannot be shown under other histories"),
        (TOKENIZED, (), {"min_num_history": 0}, DataError, "is tokenized, so the number of past pairs cannot be drawn"),
        (WITH_VARIABLES, GROUPS, {}, DataError, "or set conditioning='own'.* lacks the column history"),
        (FULL.to_iterable_dataset(), GROUPS, {}, DataError, "is a stream, whose pairs no teacher can score before"),
        (TEXTS.to_iterable_dataset(), (), {"min_num_history": 1}, ConfigError, "which a stream cannot do"),
        (FULL.to_iterable_dataset(), (), {}, DataError, "write it into `chat_template_kwargs` first"),
        (WITH_VARIABLES.to_iterable_dataset(), (), {}, DataError, "holds texts with a `history` .*, which only messages show"),
    ],
)
def test_what_does_not_fit_is_refused(preparer, rows, groups, options, error, match):
    with pytest.raises(error, match=match):
        preparer(groups, **options).check(rows, None)


def test_with_alpha_one_nothing_is_asked_of_teachers(preparer):
    made = preparer(["of nobody"], alpha=1.0)
    assert len(prepare(made, TEXTS)) == 30
    assert not made.distills


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        (FULL, {}, {"shares_tokens": False, "alone": True}),
        (IDS.add_column("group", list(GROUPS)), {"conditioning": "own"}, {"shares_tokens": True, "alone": False}),
    ],
)
def test_teachers_are_asked_whether_they_can_score_such_rows(preparer, asked, rows, options, expected):
    made = preparer(GROUPS, **options)
    made.check(rows, None)
    made.check_teachers(make_tokenizer("decoder"))
    assert asked == [(f"teacher of {group}", expected) for group in GROUPS]
