"""From the name of a source and its options to pairs in the one schema."""

import pytest
from helpers.sources import check_splits, load

from trl_pafo.data.sources.arguments import DataArguments, data_name
from trl_pafo.data.sources.registry import SOURCES, load_source, unused_options
from trl_pafo.data.sources.styles import load_styles
from trl_pafo.errors import ConfigError


def test_the_default_is_the_shipped_corpus_in_the_one_schema():
    assert DataArguments().source == "styles"
    splits = load("styles", train_users=20, test_users=10)
    check_splits(splits)
    style_of = {text: style for p in load_styles() for style, text in p.responses.items()}
    for row in splits["train"]:
        assert style_of[row["chosen"]] == {"majority": "thorough", "minority": "playful"}[row["group"]]


def test_context_pairs_are_those_of_the_options_or_of_the_caller():
    for given, asked, expected in ((None, 3, 3), (2, 3, 2), (0, 3, 0)):
        data = DataArguments(train_users=20, test_users=10, pairs_per_user=1, context_pairs=given)
        assert len(load_source(data, context_pairs=asked)["train"]) == 20 * (1 + expected)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"source": "hearsay"}, f"Unknown source 'hearsay'; choose one of {', '.join(SOURCES)}"),
        *(
            ({"source": name}, f"The source '{name}' reads a file: give its path with --data_path")
            for name in SOURCES
            if name not in ("styles", "swissmetro")
        ),
        ({"source": "prism", "data_path": "x"}, "name a field with --group_by.* or pass --infer_groups"),
        ({"source": "prism", "data_path": "x", "infer_groups": "minilm", "group_by": "age"}, "--group_by: no effect"),
        ({"data_path": "x", "infer_groups": "minilm", "minority_quantile": 0.1}, "--minority_quantile: no effect"),
        ({"source": "styles", "data_path": "x"}, r"--data_path: no effect on the source 'styles'.*--source \(dsp, .*files\)"),
        ({"max_words": 9}, r"--max_words: no effect on the source 'styles'. Leave it out, or choose another --source \(dsp\)"),
        ({"data_path": "x", "group_by": "y", "train_users": 5}, "--train_users, --group_by: no effect on the source 'files'"),
    ],
)
def test_options_that_do_not_fit_the_source(options, match):
    with pytest.raises(ConfigError, match=match):
        load_source(DataArguments(**options))


def test_options_with_an_effect_are_none_of_these():
    assert unused_options(DataArguments(source="swissmetro", train_users=5)) == []
    assert unused_options(DataArguments(train_users=5, label_noise=0.1, context_pairs=3)) == []
    assert unused_options(DataArguments(train_users=5, minority=["warm"], infer_groups="minilm")) == []


def test_a_path_alone_names_files_and_the_name_of_the_data_names_them():
    assert DataArguments(test_data_path="survey.csv").source == "files"
    assert DataArguments(source="dsp", data_path="survey.csv").source == "dsp"
    assert data_name(DataArguments().data_inputs()) == "styles (the shipped corpus)"
    assert data_name(DataArguments(data_path="a.csv", test_data_path="b.csv").data_inputs()) == "files (a.csv and b.csv)"
    assert data_name(DataArguments(source="swissmetro").data_inputs()) == "swissmetro"
