"""Which stages of a run go side by side, and which begins first."""

from trl_pafo.pipeline.schedule import longest_first, rounds
from trl_pafo.pipeline.stage import Stage


def stage(name, *needs, steps=0):
    return Stage(name, name, {}, lambda out: None, needs, derived=not steps, steps=steps)


def names(stages):
    return [stage.name for stage in stages]


PATH = [stage("x1", steps=10), stage("x4", steps=40), stage("path", "x1", "x4"), stage("chosen", "path")]
TEACHERS = [stage("a", steps=3), stage("b", steps=2)]


def test_a_student_that_is_judged_first_has_a_round_of_its_own():
    front, student = stage("front", "a", "b", "path"), stage("student", "a", "b", "front", "chosen", steps=10)
    found = rounds([*PATH, *TEACHERS, front, student])
    assert [(names(r.cheap), names(r.trainings)) for r in found] == [
        ([], ["x1", "x4", "a", "b"]),
        (["path", "chosen", "front"], ["student"]),
    ]


def test_a_student_that_waits_for_teachers_alone_goes_beside_the_path_and_its_teachers_come_early():
    student = stage("student", "a", "b", steps=10)
    found = rounds([*PATH, *TEACHERS, student, stage("margins", "student"), stage("last", "margins", steps=1)])
    assert names(found[0].trainings) == ["x1", "x4", "a", "b", "student"]
    assert names(longest_first(found[0].trainings)) == ["x4", "a", "b", "x1", "student"]
    assert (names(found[1].cheap), names(found[1].trainings)) == (["path", "chosen", "margins"], ["last"])


def test_a_run_without_trainings_has_an_empty_round():
    assert rounds([]) == [([], [])]
