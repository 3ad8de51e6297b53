"""The file of a study: its cells, and what is refused before anything is done."""

import pytest
import yaml
from helpers.studies import STYLES, make_config

from trl_pafo.errors import ConfigError
from trl_pafo.evaluation.methods import METHODS, RIVALS
from trl_pafo.study.config import StudyConfig, parse


def test_cells_are_data_times_settings_times_seeds(tmp_path):
    config = make_config(tmp_path, settings={"default": {}, "alpha_0": {"alpha": 0}})
    keys = [cell.key for cell in config.cells]
    assert set(keys) == {
        (data, setting, population, seed)
        for data in ("common", "rare")
        for setting in ("default", "alpha_0")
        for population in (0, 1)
        for seed in (1, 2)
    }
    assert len(keys) == len(set(keys)) == 16
    assert len({cell.folder for cell in config.cells}) == len({cell.digest for cell in config.cells}) == 16
    for cell in config.cells:
        run, args, _ = parse(cell.options)
        assert (run.population_seed, args.seed) == cell.key[2:]
        assert args.alpha == (0 if cell.setting == "alpha_0" else 0.1)
        assert run.minority_ratio == (0.05 if cell.data == "rare" else 0.1)


def test_a_setting_wins_over_the_data_and_these_over_what_is_shared(tmp_path):
    data = {"a": {**STYLES, "alpha": 0.2}, "b": STYLES}
    config = make_config(tmp_path, alpha=0.3, data=data, settings={"default": {}, "other": {"alpha": 0.4}}, seeds=[1])
    found = {(cell.data, cell.setting): parse(cell.options)[1].alpha for cell in config.cells}
    assert found == {("a", "default"): 0.2, ("b", "default"): 0.3, ("a", "other"): 0.4, ("b", "other"): 0.4}


def test_the_reference_is_in_every_cell_and_a_setting_may_have_methods_of_its_own(tmp_path):
    config = make_config(tmp_path, methods=["pafo"], settings={"default": {}, "few": {"methods": ["bradley_terry"]}})
    assert {cell.setting: cell.methods for cell in config.cells} == {
        "default": ["personalized_bt", "pafo"],
        "few": ["personalized_bt", "bradley_terry"],
    }
    assert make_config(tmp_path, methods=["all", "rivals"]).cells[0].methods == [*METHODS, *RIVALS]


def test_the_file_of_a_cell_makes_the_same_run(tmp_path):
    cell = make_config(tmp_path, learning_rate="3e-4", settings={"x": {"num_history": 2}}).cells[-1]
    again = parse(yaml.safe_load(cell.config))
    assert [vars(part) for part in (again[0], again[2])] == [vars(part) for part in parse(cell.options)[::2]]
    assert (again[1].learning_rate, again[1].num_history, again[1].seed) == (3e-4, 2, 2)


def test_a_cell_is_known_by_its_options_and_by_the_content_of_its_data_not_by_methods_or_paths(tmp_path):
    def digest(text="{}", name="a.jsonl", **given):
        path = tmp_path / name
        path.write_text(text)
        block = {"source": "dsp", "data_path": str(path)}
        return make_config(tmp_path, **({"data": {"dsp": block}, "seeds": [1], "population_seeds": [0]} | given)).cells[0].digest

    same = digest()
    assert digest(name="b.jsonl") == digest(methods=["pafo"]) == digest(output_dir="elsewhere") == same
    assert (
        len({same, digest(text="{ }", name="c.jsonl"), digest(alpha=0.5), digest(seeds=[2]), digest(population_seeds=[3])}) == 5
    )


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"output_dir": None}, "give `output_dir`"),
        ({"methods": ["pafoo"]}, r"unknown method 'pafoo' \(did you mean 'pafo'\?\); choose of bradley_terry"),
        ({"methods": None}, "give `methods`"),
        ({"data": {}}, "give `data`"),
        ({"data": {"a/b": STYLES}}, "'a/b' becomes the name of a folder"),
        ({"data": {"a": ["styles"]}}, r"a must be a mapping of options, got \['styles'\]"),
        ({"data": {"a": {"source": "stiles"}}}, "a: Unknown source 'stiles'; choose one of styles"),
        ({"data": {"a": {"source": "dsp"}}}, "a: The source 'dsp' reads a file: give its path"),
        ({"data": {"a": {"source": "dsp", "data_path": "DSP_FILE"}}}, "a: data_path: DSP_FILE does not exist"),
        ({"data": {"a": {**STYLES, "train_users": "many"}}}, "a: .*invalid int value: 'many'"),
        ({"learning_rte": 1}, r"common: unknown option 'learning_rte' \(did you mean 'learning_rate'\?\)"),
        ({"run": {"use_cpu": True}}, "use_cpu: given at the top and under `run`"),
        ({"settings": {"x": {"alpha": 2}}}, r"rare, x: `alpha` must be in \[0, 1\]"),
        ({"settings": {"x": {"seed": 2}}}, "x: seed: list the training seeds under `seeds`"),
        ({"reference": "pafo"}, "reference: a study compares with personalized_bt"),
        ({"seeds": [1, 1]}, "`seeds` must be a list of different whole numbers"),
        ({"seeds": 3}, "`seeds` must be a list"),
        ({"validation_share": 0}, "validation_share: 0 holds no pairs out"),
        ({"model_name_or_path": None}, "give model_name_or_path"),
        ({"num_history": 0}, "--num_history 0 shows no histories"),
    ],
)
def test_what_cannot_be_is_refused_with_the_fix(tmp_path, given, match):
    with pytest.raises(ConfigError, match=match):
        make_config(tmp_path, **given)


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        make_config(tmp_path, methods=["pafoo", "pafo"], data={"a": {"source": "x"}, "b": {**STYLES, "taste_mix": 2}}, seeds=[])
    assert len(str(error.value).splitlines()) == 1 + 4


def test_on_a_cpu_the_number_format_is_said(tmp_path):
    given = {"output_dir": "x", "methods": ["pafo"], "data": {"a": STYLES}, "model_name_or_path": "m", "use_cpu": True}
    with pytest.raises(ConfigError, match="say bf16: true or false"):
        StudyConfig.make(given)
    assert len(StudyConfig.make(given | {"bf16": True}).cells) == 1


@pytest.mark.parametrize(("text", "match"), [("a: [", "is no YAML"), ("- a", "must be a mapping")])
def test_a_file_that_is_no_study(tmp_path, text, match):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(ConfigError, match=match):
        StudyConfig.read(tmp_path / "study.yaml")
