"""A line in, a line out, at once: rewards for another program that asks through a pipe."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any, BinaryIO

from accelerate import PartialState

from trl_pafo.data.checks import check_responses
from trl_pafo.data.history import history_of
from trl_pafo.data.sources.reading import parse_json_line
from trl_pafo.data.user_histories import UserHistories
from trl_pafo.errors import ConfigError, TeacherError, TrlPafoError
from trl_pafo.evaluation.score_file import check_no_rewards, scorer_of, users_of, with_rewards
from trl_pafo.models.batches import check_batch_size
from trl_pafo.models.scoring import RewardScorer

_READ = 1 << 20


def score_lines(args: Any, processes: PartialState | None = None) -> None:
    """Answer each line of standard input on standard output, in their order, and nothing else there; `args` are the flags of `trl-pafo score`.

    A line that cannot be scored is answered with its number, `line`, and the `error`; the others are not affected. What was appended to
    `--users` meanwhile is used.

    Raises:
        ConfigError: If a flag is missing or has no effect.
        TrlPafoError: If model or past pairs cannot be used, before the first line is read.
    """
    if processes is not None:
        raise ConfigError(
            "`-` reads standard input, which the processes of a launcher cannot share. Start it without a launcher."
        )
    if not args.model_name_or_path or args.output:
        raise ConfigError("`-` answers on standard output: give --model_name_or_path, and leave out --output.")
    check_batch_size(args.batch_size)
    out, number, counts = sys.stdout, 0, Counter[str]()
    with redirect_stdout(sys.stderr):  # what a library says
        users, scorer = users_of(args), scorer_of(args)
        scorer.model  # noqa: B018  # loaded before somebody waits
        for lines in lines_as_they_come(sys.stdin.buffer, args.batch_size):
            out.write("".join(_answers(scorer, users, lines, number, args.batch_size, counts)))
            out.flush()
            number += len(lines)
    print(
        f"{number} lines answered: {counts['error']} with an error, {counts['new']} for a user without a history.",
        file=sys.stderr,
    )


def lines_as_they_come(stream: BinaryIO, most: int) -> Iterator[list[bytes]]:
    """Lines as soon as they are there: what has come meanwhile together, at most so many."""
    rest = b""
    while data := stream.read1(_READ):  # type: ignore[attr-defined]  # waits for the first byte alone
        *lines, rest = (rest + data).split(b"\n")
        for start in range(0, len(lines), most):
            yield lines[start : start + most]
    if rest:
        yield [rest]


def _answers(
    scorer: RewardScorer, users: UserHistories | None, lines: Sequence[bytes], before: int, batch_size: int, counts: Counter[str]
) -> list[str]:
    rows: list[dict[str, Any]] = [{} for _ in lines]
    found: list[dict[str, float] | Exception] = []
    ids: list[dict[str, list[int]]] = []
    for number, line in enumerate(lines):
        place = f"line {before + number + 1}"
        try:
            row = rows[number] = parse_json_line(line, "standard input", before + number + 1)
            check_no_rewards(row, place)
            if users is not None:
                users.read_on()
            row, tokens = tokens_alone(scorer, users, row, place)
            counts["new"] += (users is not None or scorer.renderer.needs_history) and not history_of(row)
            ids.append(tokens)
            found.append({})
        except TrlPafoError as error:
            found.append(error)
    rewards = iter(score_apart(scorer.score_tokens, ids, batch_size))
    found = [answer if isinstance(answer, Exception) else next(rewards) for answer in found]
    counts["error"] += sum(isinstance(answer, Exception) for answer in found)
    return [
        json.dumps({**row, "line": before + number, "error": str(answer)}, ensure_ascii=False) + "\n"
        if isinstance(answer, Exception)
        else with_rewards(row, answer)
        for number, (row, answer) in enumerate(zip(rows, found, strict=True), start=1)
    ]


def tokens_alone(
    scorer: RewardScorer, users: UserHistories | None, row: dict[str, Any], place: str
) -> tuple[dict[str, Any], dict[Any, list[int]]]:
    """A row that comes alone with the history of its user, and the token ids of its responses; `place` names it in errors.

    Raises:
        DataError: If it cannot be scored.
    """
    check_responses(row, place)
    if users is not None:
        row = users.attach(row, scorer.renderer.cutter.num_history, place)
    scorer.renderer.check_told(row, place)
    return row, scorer.tokenize([row], lambda _: place, allow_no_history=True)[0]


def score_apart(
    score: Callable[..., list[dict[Any, float]]],
    ids: Sequence[Mapping[Any, Sequence[int]]],
    batch_size: int,
    caught: type[Exception] = TeacherError,
) -> list[dict[Any, float] | Exception]:
    """What a scorer's `score_tokens` or `read_tokens` gives; where one of them is not finite, or another error is `caught`, in halves, so that it is no other's error."""
    try:
        return list(score(ids, batch_size=batch_size))
    except caught as error:
        half = len(ids) // 2
        parts = (ids[:half], ids[half:]) if half else ()
        return [found for part in parts for found in score_apart(score, part, batch_size, caught)] or [error]
