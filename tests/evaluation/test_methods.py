"""The options of a run: what may stand together, and what decides the data."""

from dataclasses import fields

import pytest

from trl_pafo.errors import ConfigError
from trl_pafo.evaluation.methods import METHODS, RIVALS, TITLES, RunArguments


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"methods": ["magic"]}, f"`methods` must be some of {', '.join((*METHODS, *RIVALS))}, rivals, or all, got"),
        ({"methods": []}, "`methods` must be some of"),
        ({"methods": ["pafo", "group_routed"]}, r"`reference` must be one of the methods \(pafo, group_routed\), got 'personal"),
        ({"teacher_kind": "half"}, "`teacher_kind` must be auto, adapter or full, got 'half'"),
        ({"student_learning_rate": 0.0}, "`student_learning_rate` must be above 0, got 0.0"),
        ({"teacher_epochs": -1.0}, "`teacher_epochs` must be above 0, got -1.0"),
        ({"student_start": "personalized_bt"}, "`student_start` must be teachers or base, got 'personalized_bt'"),
        ({"teacher_start": "hot"}, "`teacher_start` must be base or warm, got 'hot'"),
        ({"teacher_start": "warm", "methods": ["pafo", "bradley_terry"], "reference": "bradley_terry"}, "add it to `methods`"),
        ({"methods": ["worst_group_bt"], "reference": "worst_group_bt"}, "add that to `methods`"),
        ({"reference_steps": [0.5, 2]}, r"with 1 among them; got \[0.5, 2.0\]"),
        ({"reference_steps": [1, 1]}, "must be different multiples"),
        ({"reference_steps": [0, 1]}, "must be different multiples of the student's steps, above 0"),
        ({"num_resamples": 0}, "`num_resamples` must be at least 1"),
        ({"methods": ["personalized_bt", "teacher_mixture"], "validation_share": 0.0}, "is fitted on held-out pairs"),
        ({"methods": ["bradley_terry", "teacher_mixture"], "reference": "bradley_terry"}, "beside personalized_bt: add that"),
    ],
)
def test_what_cannot_stand_together(options, match):
    assert RunArguments(teacher_start="warm", teacher_kind="adapter").needs_teachers
    with pytest.raises(ConfigError, match=match):
        RunArguments(**options)


def test_every_method_has_a_title():
    assert RunArguments(methods=["all"]).methods == list(METHODS)
    assert set(TITLES) == {*METHODS, *RIVALS}
    assert all(name in RunArguments.__dataclass_fields__["methods"].metadata["help"] for name in TITLES)


def test_rivals_are_all_methods_of_other_papers_each_once():
    assert not set(RIVALS) & set(METHODS)
    methods = RunArguments(methods=["personalized_bt", "group_dro", "rivals"]).methods
    assert methods[:2] == ["personalized_bt", "group_dro"]
    assert sorted(methods) == sorted(["personalized_bt", *RIVALS])


def test_each_option_of_the_data_decides_them_and_none_of_the_run():
    before = RunArguments().data_inputs()
    changed = {"population_seed": 1, "majority": ["warm"]}
    assert RunArguments(**changed).data_inputs() == {**before, **changed}
    assert RunArguments(methods=["personalized_bt"], num_hidden_layers=2, num_resamples=5, overwrite=True).data_inputs() == before


def test_every_option_is_described():
    assert not [option.name for option in fields(RunArguments) if not option.metadata["help"].endswith(".")]
