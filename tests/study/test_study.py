"""A study: cells one after the other, what is skipped, what fails, and its table. The runs are made up."""

import contextlib
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.studies import STYLES, make_config, pretend

from trl_pafo.errors import ConfigError, DataError, RunFolderError, StudyError
from trl_pafo.study.doing import RunFailedError
from trl_pafo.study.rows import ROWS, key_of, read_rows, rows_of_run
from trl_pafo.study.study import Study, join_cells, part_of


def outputs(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.suffix in (".md", ".csv", ".tex")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study of eight cells, and what it said."""
    config = make_config(tmp_path_factory.mktemp("finished") / "study")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        Study(config, attempt=pretend())()
    return config, said.getvalue()


class TestCells:
    def test_a_cell_leaves_its_options_its_rows_and_what_its_run_said(self, finished):
        config, _ = finished
        for cell in config.cells:
            folder = Path(config.output_dir) / cell.folder
            assert (folder / "cell.yaml").read_text() == cell.config
            assert (folder / "run.log").read_text() == "[evaluate]\n"
            rows = read_rows(folder / ROWS)
            assert {key_of(row) for row in rows} == {cell.key}
            assert {row["options"] for row in rows} == {cell.digest}
            assert {row["method"] for row in rows} >= set(cell.methods)

    def test_a_cell_that_is_done_is_not_done_again(self, finished, tmp_path, capsys):
        shutil.copytree(finished[0].output_dir, tmp_path / "study")
        done = []
        more = make_config(tmp_path / "study", seeds=[1, 2, 3])
        Study(more, attempt=pretend(done=done))()
        assert [options["seed"] for options in done] == [3] * 4
        assert "8 of 12 cells done before, kept" in capsys.readouterr().out

    def test_one_that_lacks_a_method_is_done_again(self, tmp_path):
        done, one = [], {"seeds": [1], "population_seeds": [0]}
        Study(make_config(tmp_path / "study", methods=["pafo"], **one), attempt=pretend(done=done))()
        Study(make_config(tmp_path / "study", **one), attempt=pretend(done=done))()
        assert len(done) == 4

    def test_cells_of_other_options_are_refused_before_any_is_done(self, finished):
        with pytest.raises(
            ConfigError, match=r"common/default/population0-seed1 was done with other options \(alpha: default -> 0.5\)"
        ):
            Study(make_config(finished[0].output_dir, alpha=0.5), attempt=pretend())

    def test_a_folder_that_holds_something_else_is_not_touched(self, tmp_path):
        (tmp_path / "study").mkdir()
        (tmp_path / "study/thesis.md").write_text("mine")
        with pytest.raises(RunFolderError, match="not empty and is no study"):
            Study(make_config(tmp_path / "study"))

    def test_progress_says_how_much_is_left(self, finished):
        _, said = finished
        assert re.findall(r"^\[(\d) of 8\] (.*)$", said, re.M)[:2] == [
            ("1", "common, population 0, seed 1"),
            ("2", "rare, population 0, seed 1"),
        ]
        assert re.findall(r"(\d cells?) left, about \d+ s\n", said) == [*(f"{n} cells" for n in range(7, 1, -1)), "1 cell"]


class TestParts:
    @pytest.mark.parametrize("parts", [1, 3, 10])
    def test_parts_are_disjoint_and_together_all(self, parts):
        cells = range(8)
        found = [part_of(cells, f"{number}/{parts}") for number in range(1, parts + 1)]
        assert [cell for part in found for cell in part] == list(cells)
        assert max(map(len, found)) - min(map(len, found)) <= 1

    @pytest.mark.parametrize("part", ["0/3", "4/3", "1", "a/b"])
    def test_a_part_that_is_none(self, part):
        with pytest.raises(ConfigError, match="--cells must be a part such as 3/10"):
            part_of([], part)

    def test_the_table_after_all_parts_is_that_of_the_study(self, finished, tmp_path):
        for number in (3, 1, 2):
            Study(make_config(tmp_path / "parts"), f"{number}/3", attempt=pretend())()
        assert outputs(tmp_path / "parts") == outputs(Path(finished[0].output_dir))


class TestFailures:
    def test_a_method_that_fails_stops_no_other_and_is_told(self, tmp_path, capsys):
        def fails(options):
            return "Its process was killed." if "pafo" in options["methods"] and options["seed"] == 2 else None

        config = make_config(tmp_path / "study", population_seeds=[0])
        with pytest.raises(StudyError, match="2 of 4 cells have a method that failed"):
            Study(config, attempt=pretend(fails))()
        said = outputs(tmp_path / "study")
        assert "- common, default, population 0, seed 2: pafo: Its process was killed." in said["study.md"]
        runs = pd.read_csv(tmp_path / "study/study.csv").set_index(["data", "method"])
        assert tuple(runs.loc[("rare", "pafo"), ["runs", "failed"]]) == (1, 1)
        assert tuple(runs.loc[("rare", "group_routed"), ["runs", "failed"]]) == (2, 0)
        assert "| 1, 1 failed |" in said["study.md"]
        assert "pafo failed: Its process was killed." in capsys.readouterr().out

        tried = []
        Study(config, attempt=pretend(done=tried))()
        assert [options["seed"] for options in tried] == [2] * 2
        assert "failed" not in outputs(tmp_path / "study")["study.md"]

    def test_where_the_reference_fails_the_cell_has_failed_and_the_next_is_done(self, tmp_path):
        config = make_config(tmp_path / "study", seeds=[1])
        fails = lambda options: "No space left." if options["population_seed"] == 0 else None  # noqa: E731
        with pytest.raises(StudyError, match="2 of 4 cells"):
            Study(config, attempt=pretend(fails))()
        rows = read_rows(tmp_path / "study" / config.cells[0].folder / ROWS)
        assert {row["method"]: row["error"] for row in rows} == dict.fromkeys(config.cells[0].methods, "No space left.")
        assert set(pd.read_csv(tmp_path / "study/study.csv")["runs"]) == {1}

    def test_where_the_run_itself_fails_its_methods_are_not_tried_one_by_one(self, tmp_path):
        config, tried = make_config(tmp_path / "study", population_seeds=[0], seeds=[1]), []

        def fails(options):
            if options.get("minority_ratio"):
                raise RunFailedError("No space left.")

        with pytest.raises(StudyError, match="1 of 2 cells"):
            Study(config, attempt=pretend(fails, tried))()
        assert len(tried) == 2
        errors = {
            cell.data: [row["error"] for row in read_rows(tmp_path / "study" / cell.folder / ROWS)] for cell in config.cells
        }
        assert not any(errors["common"])
        assert errors["rare"] == ["No space left."] * len(config.cells[0].methods)

    def test_a_disk_that_is_full_meanwhile_ends_the_search_for_the_method(self, tmp_path):
        config, tried = make_config(tmp_path / "study", population_seeds=[0], seeds=[1], data={"common": STYLES}), []

        def fails(options):
            if len(tried) == 3:
                raise RunFailedError("No space left.")
            return "It diverged." if len(tried) == 1 else None

        with pytest.raises(StudyError, match="1 of 1 cells"):
            Study(config, attempt=pretend(fails, tried))()
        assert [len(options["methods"]) for options in tried] == [4, 1, 2]
        assert {row["error"] for row in read_rows(tmp_path / "study" / config.cells[0].folder / ROWS)} == {"No space left."}


class TestTable:
    def test_it_has_the_means_of_the_results_of_the_runs(self, finished):
        """Against a loop over what the runs left."""
        config, _ = finished
        study = Path(config.output_dir)
        table = pd.read_csv(study / "study.csv").set_index(["data", "method"])
        for data in ("common", "rare"):
            runs = [
                {row["method"] + row["role"]: row for row in rows_of_run(study / cell.folder / "run")}
                for cell in config.cells
                if cell.data == data
            ]
            for method in ("bradley_terry", "pafo", "group_routed", "personalized_bt@4"):
                for role in ("majority", "minority", "overall"):
                    values = [run[method + role]["accuracy"] for run in runs]
                    before = [run["personalized_bt" + role]["accuracy"] for run in runs]
                    found = table.loc[(data, method)]
                    assert found[f"accuracy_{role}"] == pytest.approx(sum(values) / 4)
                    assert found[f"difference_{role}"] == pytest.approx(np.mean(np.subtract(values, before)))
                verdicts = [run[method + "overall"]["verdict"] for run in runs]
                for name in ("improves", "cannot tell", "degrades"):
                    assert table.loc[(data, method), name.replace(" ", "_")] == verdicts.count(name)

    def test_a_table_of_csv_files_alone_is_that_of_the_runs(self, finished, tmp_path):
        config, _ = finished
        study = Path(config.output_dir)
        copies = tmp_path / "copies"
        copies.mkdir()
        for number, cell in enumerate(config.cells):
            (copies / f"{number}.csv").write_bytes((study / cell.folder / ROWS).read_bytes())
        found = Study(make_config(tmp_path / "again"), cells_from=[str(copies)], attempt=pretend(lambda options: "not done"))()
        assert len(found)
        assert outputs(tmp_path / "again") == outputs(study)
        join_cells([str(study)], str(tmp_path / "joined"))
        joined = outputs(tmp_path / "joined")
        assert sorted(joined["study.csv"].splitlines()) == sorted(outputs(study)["study.csv"].splitlines())

    def test_folders_of_runs_that_no_study_made_are_joined(self, tmp_path):
        for seed in (1, 2):
            options = {"output_dir": str(tmp_path / f"runs/{seed}"), "methods": ["personalized_bt", "pafo"]}
            tmp_path.joinpath("runs").mkdir(exist_ok=True)
            pretend()(options | {"population_seed": 0, "seed": seed}, tmp_path / "log")
        join_cells([str(tmp_path / "runs")], str(tmp_path / "joined"))
        table = pd.read_csv(tmp_path / "joined/study.csv").set_index("method")
        assert (table.loc["pafo", "data"], table.loc["pafo", "runs"]) == ("styles", 2)
        again = [str(tmp_path / "runs/1"), str(tmp_path / "runs/2"), str(tmp_path / "runs/1")]
        with pytest.raises(DataError, match="the cell styles, default, population 0, seed 1 twice"):
            join_cells(again, str(tmp_path / "other"))

    def test_joined_cells_of_other_options_are_refused(self, finished, tmp_path):
        with pytest.raises(ConfigError, match="of other options than the study's"):
            Study(make_config(tmp_path / "other", alpha=0.5), cells_from=[finished[0].output_dir])

    def test_a_folder_without_cells(self, tmp_path):
        with pytest.raises(DataError, match=r"has no cell\.csv and no finished run"):
            join_cells([str(tmp_path)], str(tmp_path / "joined"))
