"""Does its length tell whose answer it is? The figures of `trl_pafo/data/sources/styles/README.md`, from the shipped file.

python benchmarks/styles_length.py
"""

from collections.abc import Callable

import numpy as np

from trl_pafo.data.sources.styles import STYLES, load_styles


def _words(text: str) -> int:
    return len(text.split())


UNITS: dict[str, Callable[[str], int]] = {"words": _words, "characters": len}


def lengths(unit: str) -> dict[str, np.ndarray]:
    """Length of the answer to each prompt, by style."""
    corpus = load_styles()
    return {style: np.array([UNITS[unit](prompt.responses[style]) for prompt in corpus]) for style in STYLES}


def longer_share(mine: np.ndarray, others: np.ndarray) -> float:
    """Accuracy of "the longer answer is mine" over the prompts; a tie is a coin flip."""
    return float((mine > others).mean() + (mine == others).mean() / 2)


def pair_shares(unit: str) -> dict[tuple[str, str], float]:
    """[`longer_share`] of each style against each other one."""
    by_style = lengths(unit)
    return {(a, b): longer_share(by_style[a], by_style[b]) for a in STYLES for b in STYLES if a != b}


def user_accuracy(unit: str) -> dict[str, tuple[float, float]]:
    """Accuracy of always choosing the longer, and the shorter, answer for a user of each style, over all its pairs."""
    shares = pair_shares(unit)
    longer = {style: float(np.mean([shares[style, other] for other in STYLES if other != style])) for style in STYLES}
    return {style: (share, 1 - share) for style, share in longer.items()}


def exact_count_accuracy() -> dict[tuple[str, str], float]:
    """Accuracy of a rule that knows how often each exact number of words occurs in either style, in the other prompts."""
    words = lengths("words")
    counts = {style: np.bincount(words[style], minlength=100) for style in STYLES}
    accuracy = {}
    for a, b in pair_shares("words"):
        wins = 0.0
        for mine, others in zip(words[a], words[b], strict=True):
            # Without the prompt itself; half an answer more for each count, so that no share is 0.
            of_a, of_b = counts[a] + 0.5, counts[b] + 0.5
            of_a[mine] -= 1
            of_b[others] -= 1
            ratio = np.log(of_a / of_b)
            wins += float(ratio[mine] > ratio[others]) + float(ratio[mine] == ratio[others]) / 2
        accuracy[a, b] = wins / len(words[a])
    return accuracy


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def size_table() -> str:
    """Shortest, mean and longest answer of each style."""
    words, characters = lengths("words"), lengths("characters")
    rows = [
        [s, str(words[s].min()), f"{words[s].mean():.1f}", str(words[s].max()), f"{characters[s].mean():.0f}"] for s in STYLES
    ]
    return _table(["style", "words, least", "mean", "most", "characters, mean"], rows)


def place_table() -> str:
    """Share of the prompts in which a style's answer takes each place from the shortest to the longest, in words."""
    by_style = lengths("words")
    all_lengths = np.stack([by_style[style] for style in STYLES])
    places = np.argsort(np.argsort(all_lengths, axis=0, kind="stable"), axis=0)
    rows = [[style, *(f"{(places[i] == place).mean():.3f}" for place in range(len(STYLES)))] for i, style in enumerate(STYLES)]
    return _table(["place", "shortest", "second", "third", "fourth", "longest"], rows)


def pair_table(name: str, shares: dict[tuple[str, str], float]) -> str:
    """Of the style in the row, against the style in the column."""
    rows = [[a, *("" if a == b else f"{shares[a, b]:.3f}" for b in STYLES)] for a in STYLES]
    return _table([name, *STYLES], rows)


def user_table() -> str:
    """By unit: the longer answer, the shorter answer."""
    by_unit = [user_accuracy(unit) for unit in UNITS]
    rows = [[style, *(f"{share:.3f}" for accuracy in by_unit for share in accuracy[style])] for style in STYLES]
    return _table(["user of", *(f"{rule}, in {unit}" for unit in UNITS for rule in ("longer", "shorter"))], rows)


def sections() -> dict[str, str]:
    """Title and table of each figure."""
    return {
        "Lengths": size_table(),
        "Share of the prompts in which the style takes each place by its number of words": place_table(),
        **{
            f'Accuracy of "the longer answer, in {unit}, is the one of the style in the row"': pair_table(unit, pair_shares(unit))
            for unit in UNITS
        },
        "Accuracy of always choosing the longer, or the shorter, answer for a user of a style": user_table(),
        "Accuracy of a rule that knows how often each exact number of words occurs in the two styles": pair_table(
            "exact words", exact_count_accuracy()
        ),
    }


if __name__ == "__main__":
    for title, table in sections().items():
        print(f"{title}\n\n{table}\n")
