"""The shipped corpus is what its card says: five styles of the same advice, told apart neither by length nor by a template."""

import itertools
import json
import re
import runpy
from collections import Counter, defaultdict
from importlib.resources import files
from pathlib import Path

import pytest

from trl_pafo.data.sources import styles
from trl_pafo.data.sources.styles import STYLES, load_styles


@pytest.fixture(scope="module")
def corpus():
    return load_styles()


@pytest.fixture(scope="module")
def lines():
    text = files(styles.__package__).joinpath("styles.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def words(text):
    return re.findall(r"[\w']+", text.lower())


def normalized(text):
    return " ".join(words(text))


class TestContent:
    def test_24_prompts_an_area_in_five_styles_in_the_order_of_the_file(self, corpus, lines):
        assert len(corpus) == 192
        assert [(p.prompt, p.responses) for p in corpus] == [(line["prompt"], line["responses"]) for line in lines]
        assert all(tuple(p.responses) == STYLES for p in corpus)
        assert set(Counter(line["id"].rsplit("-", 1)[0] for line in lines).values()) == {24}
        assert all(len(line["facts"]) >= 2 and all(line["facts"]) and line["topic"] for line in lines)
        assert len({normalized(text) for p in corpus for text in p.responses.values()}) == 960

    def test_every_answer_has_25_to_60_words(self, corpus):
        for prompt in corpus:
            for style, text in prompt.responses.items():
                assert 25 <= len(text.split()) <= 60, (prompt.prompt, style)
                assert text == text.strip()

    def test_no_two_prompts_are_alike(self, corpus):
        assert len({normalized(p.prompt) for p in corpus}) == len(corpus)
        # Nor nearly: the words of no two prompts overlap by more than half.
        bags = [set(words(p.prompt)) for p in corpus]
        assert max(len(a & b) / len(a | b) for a, b in itertools.combinations(bags, 2)) < 0.5

    def test_no_word_for_word_template(self, corpus):
        where = defaultdict(set)
        for number, prompt in enumerate(corpus):
            for style, text in prompt.responses.items():
                tokens = words(text)
                for start in range(len(tokens) - 7):
                    where[tuple(tokens[start : start + 8])].add((number, style))
        assert max(map(len, where.values())) <= 3
        assert all(len({number for number, _ in texts}) == 1 for texts in where.values())


class TestLengthDoesNotTell:
    def test_neither_style_of_a_pair_is_mostly_longer(self, corpus):
        for a, b in itertools.combinations(STYLES, 2):
            for length in (len, lambda text: len(text.split())):
                sizes = [(length(p.responses[a]), length(p.responses[b])) for p in corpus]
                for longer in (sum(x > y for x, y in sizes), sum(x < y for x, y in sizes)):
                    assert 0.40 <= longer / len(sizes) <= 0.60

    def test_the_card_states_what_the_benchmark_prints(self):
        benchmark = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks/styles_length.py"))
        card = files(styles.__package__).joinpath("README.md").read_text(encoding="utf-8")
        for title, table in benchmark["sections"]().items():
            assert table in card, title


def test_the_card_names_every_style_and_the_license():
    card = files(styles.__package__).joinpath("README.md").read_text(encoding="utf-8")
    assert all(f"| {style} | " in card for style in STYLES)
    for words_of_it in ("Apache-2.0", "language model", "not opinions of real people", "professional advice"):
        assert words_of_it in card
