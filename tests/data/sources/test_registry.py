"""From the name of a source and its options to pairs in the one schema."""

from dataclasses import fields, replace

import pytest

from trl_pafo.data.checks import check_columns, check_pairs
from trl_pafo.data.sources import registry
from trl_pafo.data.sources.arguments import DataArguments, data_name
from trl_pafo.data.sources.registry import SOURCES, load_source, unused_options
from trl_pafo.data.sources.styles import load_styles
from trl_pafo.data.sources.typed_users import Population, make_splits
from trl_pafo.errors import ConfigError

STYLES = DataArguments(train_users=20, test_users=10)
ANSWER_OF = {text: style for p in load_styles() for style, text in p.responses.items()}


def liked(rows, group):
    return {ANSWER_OF[row["chosen"]] for row in rows if row["group"] == group}


def test_the_default_is_the_shipped_corpus_in_the_one_schema():
    assert DataArguments().source == "styles"
    splits = load_source(STYLES)
    assert list(splits) == ["train", "test"]
    for rows in splits.values():
        check_columns(rows.column_names, ["prompt", "chosen", "rejected", "user", "group", "support_rate"], "Styles")
        check_pairs(rows, "Styles")
        assert liked(rows, "majority") == {"thorough"}
        assert liked(rows, "minority") == {"playful"}


def test_every_option_reaches_the_population():
    data = DataArguments(
        majority=["warm", "formal"],
        minority=["terse"],
        minority_ratio=0.3,
        train_users=21,
        test_users=11,
        pairs_per_user=3,
        context_pairs=2,
        test_prompt_share=0.4,
        taste_mix=0.2,
        label_noise=0.1,
        population_seed=5,
    )
    names = ("majority", "minority", "minority_ratio", "train_users", "test_users", "pairs_per_user", "context_pairs")
    options = {name: getattr(data, name) for name in (*names, "test_prompt_share", "taste_mix", "label_noise")}
    expected = make_splits(load_styles(), Population(**options, seed=5))
    for name, rows in load_source(data).items():
        assert rows[:] == expected[name][:]
    for name, other in (("population_seed", 6), ("label_noise", 0.4), ("taste_mix", 0.9), ("test_prompt_share", 0.5)):
        assert load_source(replace(data, **{name: other}))["train"][:] != expected["train"][:]


def test_options_that_are_not_given_take_the_defaults():
    default = Population(majority=["thorough"], minority=["playful"])
    train = load_source(DataArguments())["train"]
    assert len(set(train["user"])) == default.train_users
    assert len(train) == default.train_users * (default.pairs_per_user + default.context_pairs)


@pytest.mark.parametrize("name", ["train_users", "test_users"])
def test_zero_users_are_not_taken_for_the_default(name):
    with pytest.raises(ConfigError, match=f"`{name}`=0"):
        load_source(replace(STYLES, **{name: 0}))


def test_unknown_styles_are_refused():
    with pytest.raises(ConfigError, match=r"`minority` must name types of the corpus \(terse, thorough, warm, formal, playful\)"):
        load_source(replace(STYLES, minority=["grumpy"]))


def test_unknown_sources_list_the_known_ones():
    with pytest.raises(ConfigError, match=f"Unknown source 'hearsay'; choose one of {', '.join(SOURCES)}"):
        load_source(DataArguments(source="hearsay"))


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in ("styles", "swissmetro")])
def test_sources_that_read_a_file_ask_for_its_path(name):
    with pytest.raises(ConfigError, match=f"The source '{name}' reads a file: give its path with --data_path"):
        load_source(DataArguments(source=name))


def test_every_source_is_named_where_the_option_is_described():
    text = DataArguments.__dataclass_fields__["source"].metadata["help"]
    assert all(name in text and f"`{name}`" in DataArguments.__doc__ for name in SOURCES)


@pytest.mark.parametrize("source", list(SOURCES))
def test_the_options_said_to_have_an_effect_are_those_that_are_looked_at(source, monkeypatch):
    """Loaders replaced, so that the options alone are read."""
    looked_at = set()

    class Watched(DataArguments):
        def __getattribute__(self, name):
            looked_at.add(name)
            return super().__getattribute__(name)

    data = Watched(source=source, data_path="x", group_by="gender", majority=["a"], minority=["b"])
    for module, names in {
        "styles": ["load_styles"],
        "dsp": ["load_dsp"],
        "swissmetro": ["load_swissmetro"],
        "files": ["load_files"],
        "ukp_convarg": ["load_ukp_convarg"],
        "prism": ["load_prism"],
        "personal_llm": ["load_personal_llm", "load_personal_llm_types"],
    }.items():
        for name in names:
            monkeypatch.setattr(f"trl_pafo.data.sources.{module}.{name}", lambda *args, **options: None)
    monkeypatch.setattr(registry, "make_splits", lambda *args: None)
    looked_at.clear()
    SOURCES[source](data)
    used = registry._USED[source]
    if source == "personal_llm":  # its two forms look at different options
        used = used | registry._POPULATION
        data.majority = data.minority = None
        SOURCES[source](data)
    known = {field.name for field in fields(DataArguments)}
    assert (looked_at & known) - {"source", "population_seed", "validation_share"} == used


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"source": "styles", "data_path": "survey.csv"},
            r"--data_path: no effect on the source 'styles'.*--source \(dsp, .*files\)",
        ),
        ({"max_words": 9}, r"--max_words: no effect on the source 'styles'. Leave it out, or choose another --source \(dsp\)"),
        ({"source": "swissmetro", "label_noise": 0.1}, "--label_noise: no effect on the source 'swissmetro'"),
        ({"data_path": "x", "context_pairs": 2}, "--context_pairs: no effect on the source 'files'"),
        ({"data_path": "x", "group_by": "y", "train_users": 5}, "--train_users, --group_by: no effect on the source 'files'"),
        (
            {"source": "prism", "data_path": "x", "group_by": "y", "majority": ["z"]},
            "--majority: no effect on the source 'prism'",
        ),
        (
            {"source": "personal_llm", "data_path": "x", "label_noise": 0.1},
            "--label_noise: no effect on the source 'personal_llm'",
        ),
        (
            {"source": "personal_llm", "data_path": "x", "majority": ["a"], "minority": ["b"], "minority_quantile": 0.1},
            "--minority_quantile: no effect",
        ),
        ({"source": "personal_llm", "data_path": "x", "majority": ["a"]}, "takes --majority and --minority together"),
    ],
)
def test_an_option_without_effect_is_an_error(options, match):
    with pytest.raises(ConfigError, match=match):
        load_source(DataArguments(**options))


def test_options_with_an_effect_are_none_of_these():
    assert unused_options(DataArguments(source="swissmetro", train_users=5)) == []
    assert unused_options(DataArguments(train_users=5, label_noise=0.1, context_pairs=3)) == []


@pytest.mark.parametrize("option", ["data_path", "test_data_path"])
def test_a_path_alone_names_files(option):
    assert DataArguments(**{option: "survey.csv"}).source == "files"
    assert DataArguments(source="dsp", **{option: "survey.csv"}).source == "dsp"


def test_the_name_of_the_data_names_its_files():
    assert data_name(DataArguments().data_inputs()) == "styles (the shipped corpus)"
    assert data_name(DataArguments(data_path="a.csv", test_data_path="b.csv").data_inputs()) == "files (a.csv and b.csv)"
    assert data_name(DataArguments(source="swissmetro").data_inputs()) == "swissmetro"
