"""The model card: numbers and names as given, and no name that can break or change it."""

import re
from functools import cache

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trl_pafo.models.base_models import WHEEL_MODELS
from trl_pafo.models.card import Accuracy, Card, GroupCount, base_id, hub_ids, with_base, with_repo
from trl_pafo.models.card_template import one_line

REPO_ID = re.compile(r"(?:[A-Za-z0-9](?:[\w.-]{0,94}[\w-])?/)?[A-Za-z0-9_](?:[\w.-]{0,94}[\w-])?", re.A)
EVIL = [
    "| evil | 9 |",
    "---",
    "a\n---\nbase_model: evil/model\n---\n# Owned",
    "{{ 7 * 7 }} {% include 'x' %} {# c #}",
    "<script>alert(1)</script>",
    "![x](http://evil.example/x.png) [y](javascript:z)",
    "http://evil.example www.evil.example",
    "```\nimport os\n```",
    'model_id = "evil/model"',
    '"""',
    "a: [b, {c: *d}] # e",
    "\u2028---\u2029\x85---\x0b\x00\x1b[31m\u202egnp",
    "&lt;b&gt; $x$ ~~y~~ **z** _w_",
    "~",
    "no",
    "1e3",
]


def card_errors(content: str) -> list[str]:
    """What the Hub has against the metadata of a card; rules of its documentation."""
    try:
        data = ModelCard(content).data.to_dict()  # refuses a model-index without its keys
    except (ValueError, yaml.YAMLError) as error:
        return [str(error)]
    ids = [
        name
        for key in ("base_model", "datasets")
        for name in ([data[key]] if isinstance(data.get(key), str) else data.get(key) or [])
    ]
    errors = [f"{name!r} is not valid. Use an id from https://hf.co." for name in ids if not REPO_ID.fullmatch(str(name))]
    texts = [*(data.get("tags") or ()), data.get("library_name", ""), data.get("pipeline_tag", "")]
    return errors + [f"{text!r} must be a string" for text in texts if not isinstance(text, str)]


def card_of(*names: str, **options) -> Card:
    groups = [GroupCount(name, 10 + i, 100 + i) for i, name in enumerate(names)]
    rows = [Accuracy("", 21, 201, 0.75, 0.7, 0.8), *(Accuracy(n, 10 + i, 100 + i, 0.5, 0.4, 0.6) for i, n in enumerate(names))]
    options = {"title": "fair", "groups": groups, "accuracies": rows, "history": {"num_history": 2}, **options}
    return Card(**options)


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ .*$", text, re.M)


def shape(text: str) -> tuple[list[str], list[str], int, list[str]]:
    """What a name must not change: headings, columns of tables, code blocks, links."""
    body = ModelCard(text).text
    cells = [re.sub(r"\\.", "", line).count("|") for line in body.splitlines() if line.startswith("|")]
    plain = re.sub(r"\\.", "", body)
    return headings(text), list(map(str, cells)), body.count("```"), re.findall(r"\]\([^)]*\)|https?://\S+|<\w+|\{\{|\{%", plain)


@cache
def tame_shape() -> tuple[list[str], list[str], int, list[str]]:
    return shape(card_of("some", "other").render())


def check_harmless(name: str) -> None:
    text = card_of(name, "other").render()
    assert shape(text) == tame_shape()
    data = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    assert "base_model" not in data
    metrics = data["model-index"][0]["results"][0]["metrics"]
    assert [m.get("args", {}).get("group", "") for m in metrics] == ["", one_line(name), "other"] or not one_line(name)
    assert not card_errors(text)
    assert re.findall(r"^model_id = .*", text, re.M) == ['model_id = "."']


@pytest.mark.parametrize("name", EVIL)
def test_a_reader_of_markdown_sees_the_name_as_text(name):
    markdown = (
        pytest.importorskip("markdown_it", reason="markdown-it-py is not installed").MarkdownIt("commonmark").enable("table")
    )

    def kinds(text: str) -> tuple[list[str], str]:
        tokens = markdown.parse(ModelCard(text).text)
        inline = [child for token in tokens for child in token.children or ()]
        marks = [child.type for child in inline if child.type not in ("text", "text_special")]
        return [token.type for token in tokens] + marks, "".join(child.content for child in inline)

    found, said = kinds(card_of(name, "other").render())
    assert found == kinds(card_of("some", "other").render())[0]
    assert one_line(name) in said


@given(st.text(min_size=1, max_size=40))
@settings(max_examples=10)
@example("a\n---\nbase_model: evil/model\n---\n# Owned")
@example('model_id = "evil/model"')
@example("1e3")
def test_no_group_name_at_all_can_break_or_change_the_card(name):
    if one_line(name):
        check_harmless(name)


@pytest.mark.parametrize("name", EVIL)
def test_titles_definitions_and_options_are_escaped_too(name):
    def card_with(name):
        options = dict(title=f"a {name}", group_definition=f"Made by {name}", findings=[f"Against {name}"])
        options |= dict(eval_dataset=f"x {name}", hyperparameters={"optim": name}, dropped={f"g {name}": 3})
        return card_of("g", **options).render()

    text, reference = card_with(name), card_with("b")
    assert len(headings(text)) == len(headings(reference))
    assert shape(text)[1:] == shape(reference)[1:]
    assert not card_errors(text)


def test_rows_of_the_model_index_are_metrics_of_one_result():
    text = card_of("many", "few").render()
    index = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))["model-index"]
    assert len(index[0]["results"]) == 1
    result = index[0]["results"][0]
    assert result["task"]["type"] == "preference_evaluation"
    assert [(m["name"], m["value"], m["args"]["interval"]) for m in result["metrics"]] == [
        ("accuracy", 0.75, [0.7, 0.8]),
        ("accuracy (group=many)", 0.5, [0.4, 0.6]),
        ("accuracy (group=few)", 0.5, [0.4, 0.6]),
    ]
    read = ModelCard(text).data.eval_results
    assert [r.metric_args.get("group") for r in read] == [None, "many", "few"]


def test_where_a_group_is_small_no_number_by_group_is_given():
    def card_of_few(users: int, pairs: int, right: int) -> str:
        """Of 14 users and 56 pairs, 34 of them right, so many are those of the few; the card must not tell how many."""
        rows = [Accuracy("", 14, 56, 34 / 56, 0.4, 0.7)]
        groups = [GroupCount("many", 14 - users, 56 - pairs), GroupCount("few", users, pairs)]
        rows += [Accuracy(group.name, group.users, group.pairs, right / pairs, 0.1, 0.9) for group in groups]
        return Card("fair", groups=groups, accuracies=rows, dropped={"few": pairs, "many": 2}).render()

    hidden = {card_of_few(users, pairs, right) for users in (1, 4) for pairs in (users, 16) for right in (0, pairs)}
    assert len(hidden) == 1
    text = hidden.pop()
    assert "| all pairs | 0.607 | 0.400 to 0.700 | 14 | 56 |" in text
    assert "fewer than 5 users, so no number is given by group" in text
    assert [r.metric_name for r in ModelCard(text).data.eval_results] == ["accuracy"]
    text = card_of_few(5, 16, 8)
    assert "| few | 5 | 16 |" in text
    assert "| few | 0.500 | 0.100 to 0.900 | 5 | 16 |" in text
    assert "16 pairs of few, 2 pairs of many." in text
    rows = [Accuracy("few", None, 4, 0.5), Accuracy("", None, 44, 0.5)]  # each pair may be another user's
    assert "| few |" not in Card("fair", accuracies=rows).render()
    rows = [Accuracy("", 10, 40, 0.6), Accuracy("absent", 0, 0, float("nan"))]
    assert "| all pairs | 0.600 | unknown | 10 | 40 |" in Card("fair", accuracies=rows).render()


def test_paths_and_other_texts_are_no_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org/here").mkdir()
    names = ["org/there", "org/here", str(tmp_path), None, "a b/c", "x/y/z", "org/there", "name\n---"]
    assert hub_ids(names) == ["org/there"]
    assert base_id("/home/somebody/models/base") is None
    assert base_id("org/there") == "org/there"


def test_the_models_of_wheels_are_named_as_on_the_hub():
    for name, wheel in WHEEL_MODELS.items():
        assert re.fullmatch(r"[\w-]+/[\w.-]+", base_id(name))
        assert base_id(f"/somewhere/{wheel.package}/model") == base_id(name)


def test_repo_and_base_are_put_in_and_the_rest_is_kept():
    text = Card("fair", is_adapter=True).render() + "\nA word of mine.\n"
    assert "library_name: peft" in text
    moved = with_repo(text, "lab/fair")
    assert 'model_id = "lab/fair"' in moved
    assert moved.replace('"lab/fair"', '"."') == text
    based = with_base(moved, "lab/base-1_b")
    assert ModelCard(based).data.base_model == "lab/base-1_b"
    assert "A word of mine." in based
    assert with_repo("a card of another kind", "lab/fair") == "a card of another kind"


def test_code_of_the_snippet_is_python_for_every_kind():
    for adapter in (True, False):
        for history in (None, {"num_history": 1, "max_tokens": 9, "fields": ["chosen"]}):
            for conversational in (True, False):
                card = Card("t", is_adapter=adapter, history=history, is_conversational=conversational or history is not None)
                given, *ways = re.findall(r"```python\n(.*?)```", card.render(), re.S)
                assert len(ways) == 2
                for way in ways:
                    compile(given + way, "card", "exec")
                    assert ("history=history" in way) == (history is not None)


def test_how_groups_were_made_and_what_they_rest_on_stand_above_the_first_section():
    text = card_of("many", "few", group_definition="They were found.").render()
    assert text.index("They were found. They rest on 10 users of many, 11 of few.") < text.index("## Use")
    for groups in ([GroupCount("many", 9, 90), GroupCount("few", 3, 9)], [GroupCount("many", None, 90)], []):
        text = card_of(groups=groups, accuracies=[], group_definition="They were found.").render()
        assert "They were found." in text
        assert "rest on" not in text
