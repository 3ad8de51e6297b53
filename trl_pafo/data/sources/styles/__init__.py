"""The shipped corpus: everyday prompts, each answered in five styles. See README.md beside this file."""

import json
from pathlib import Path

from datasets import DatasetDict

from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.data.sources.typed_users import AnsweredPrompt, make_splits

STYLES = ("terse", "thorough", "warm", "formal", "playful")
CORPUS = Path(__file__).with_name("styles.jsonl")


def load_styles() -> list[AnsweredPrompt]:
    """The corpus, in the order of its file."""
    lines = CORPUS.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [AnsweredPrompt(row["prompt"], {style: row["responses"][style] for style in STYLES}) for row in rows]


def load(data: DataArguments) -> DatasetDict:
    """The pairs of users who prefer answers of one style: `thorough` the majority, `playful` the minority by default."""
    return make_splits(load_styles(), data, majority="thorough", minority="playful")
