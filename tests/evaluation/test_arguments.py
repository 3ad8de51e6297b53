"""The options of a run: what may stand together, and what decides the data."""

from dataclasses import fields

import pytest
from trl import TrlParser

from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.errors import ConfigError
from trl_pafo.evaluation.methods import METHODS, TITLES, RunArguments

OPTIONS = sorted(f.name for f in fields(RunArguments))


def parse(kind, *argv):
    (parsed,) = TrlParser(kind).parse_args_and_config(list(argv))
    return parsed


class TestMethods:
    def test_all_but_own_group_by_default(self):
        assert RunArguments().methods == [name for name in METHODS if name != "pafo_own_group"]

    def test_every_method_has_a_title(self):
        assert set(TITLES) == set(METHODS)

    @pytest.mark.parametrize("methods", [["pafo", "magic", "personalized_bt"], []])
    def test_unknown_or_none(self, methods):
        with pytest.raises(ConfigError, match=f"`methods` must be some of {', '.join(METHODS)}, got"):
            RunArguments(methods=methods)

    def test_the_reference_is_one_of_the_methods(self):
        assert RunArguments(methods=["pafo", "bradley_terry"], reference="bradley_terry").reference == "bradley_terry"
        with pytest.raises(
            ConfigError, match=r"`reference` must be one of the methods \(pafo, group_routed\), got 'personalized_bt'"
        ):
            RunArguments(methods=["pafo", "group_routed"])

    def test_teacher_start(self):
        assert RunArguments(teacher_start="warm").teacher_start == "warm"
        with pytest.raises(ConfigError, match="`teacher_start` must be base or warm, got 'hot'"):
            RunArguments(teacher_start="hot")
        with pytest.raises(ConfigError, match="starts from personalized_bt: add it to `methods`"):
            RunArguments(teacher_start="warm", methods=["pafo", "bradley_terry"], reference="bradley_terry")


class TestDataInputs:
    def test_they_are_the_options_of_the_data_alone(self):
        names = [f.name for f in fields(DataArguments)]
        for arguments in (DataArguments(), RunArguments()):
            assert list(arguments.data_inputs()) == names

    def test_each_option_of_the_data_is_in_them_and_none_of_the_run(self):
        before = RunArguments().data_inputs()
        assert RunArguments(population_seed=1, majority=["warm"]).data_inputs() == {
            **before,
            "population_seed": 1,
            "majority": ["warm"],
        }
        run = RunArguments(methods=["personalized_bt"], num_hidden_layers=2, num_resamples=5, overwrite=True)
        assert run.data_inputs() == before


class TestCommandLine:
    def test_flags(self):
        argv = [
            "--minority",
            "warm",
            "playful",
            "--minority_ratio",
            "0.2",
            "--methods",
            "pafo",
            "personalized_bt",
            "--overwrite",
            "true",
        ]
        run = parse(RunArguments, *argv)
        assert (run.minority, run.minority_ratio) == (["warm", "playful"], 0.2)
        assert (run.methods, run.overwrite) == (["pafo", "personalized_bt"], True)

    def test_yaml(self, tmp_path):
        file = tmp_path / "run.yaml"
        file.write_text("source: dsp\nminority: [entertainment]\npairs_per_user: 6\n")
        data = parse(DataArguments, "--config", str(file), "--pairs_per_user", "5")
        assert (data.source, data.minority, data.pairs_per_user) == ("dsp", ["entertainment"], 5)

    def test_nothing_given_is_the_default(self):
        assert parse(RunArguments) == RunArguments()
        assert parse(DataArguments) == DataArguments()

    def test_help_names_every_option(self, capsys):
        with pytest.raises(SystemExit):
            parse(RunArguments, "--help")
        text = capsys.readouterr().out
        assert all(f"--{name} " in text for name in OPTIONS)

    @pytest.mark.parametrize("name", OPTIONS)
    def test_every_option_is_described(self, name):
        kind = DataArguments if name in DataArguments.__dataclass_fields__ else RunArguments
        assert name in kind.__doc__
        assert kind.__dataclass_fields__[name].metadata["help"].endswith(".")
