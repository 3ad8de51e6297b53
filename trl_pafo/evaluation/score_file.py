"""Files of pairs or responses in, raw rewards out: in constant memory, and continued where it was interrupted."""

import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm.auto import tqdm

from trl_pafo.data.checks import check_responses
from trl_pafo.data.rendering import Reading
from trl_pafo.data.sources.reading import EXCEL_ENDINGS, TABLE_ENDINGS, iterate_records, read_records
from trl_pafo.data.user_histories import UserHistories
from trl_pafo.errors import ConfigError, DataError
from trl_pafo.models.batches import BATCHES_AT_ONCE, check_batch_size
from trl_pafo.models.loading import check_positions
from trl_pafo.models.ranks import is_first, on_first
from trl_pafo.models.safe_loading import identity_of_folder
from trl_pafo.models.scoring import RewardScorer
from trl_pafo.storage.files import digest_of_files, refuse_existing
from trl_pafo.storage.growing import growing
from trl_pafo.storage.versions import __version__

_TABLES = (*TABLE_ENDINGS, *EXCEL_ENDINGS, ".parquet", ".gz")

REWARD_KEYS = {"response": "reward", "chosen": "reward_chosen", "rejected": "reward_rejected"}


def score_file(args: Any, processes: PartialState | None = None) -> None:
    """Score a file; `args` are the flags of `trl-pafo score`. All of it is checked before weights are loaded.

    The `processes`, all of which call this with the same flags, share the forward passes; the first alone writes.

    Raises:
        ConfigError: If a flag is missing, or a name is that of another kind of file.
        DataError: If the input cannot be scored.
        RunFolderError: If the output exists, or was begun with another input, model or options.
        OSError: If it cannot be written, which is tried before anything is scored.
    """
    if not args.model_name_or_path or not args.input:
        raise ConfigError("Give --model_name_or_path and --input (a JSON Lines file, or - for standard input).")
    check_batch_size(args.batch_size)
    if Path(args.input).suffix.lower() in (*EXCEL_ENDINGS, ".parquet"):
        raise ConfigError(f"{args.input}: rows are read from JSON Lines, a JSON list or a CSV file. Write them as one of these.")
    if args.output and Path(args.output).suffix.lower() in _TABLES:
        raise ConfigError(
            f"--output {args.output}: plain JSON Lines are written, whatever the input is. Let the name end in .jsonl."
        )
    if os.path.exists(args.input) and Path(args.input).is_fifo():
        raise ConfigError(
            f"{args.input} is a pipe, and rows are read several times: all are checked before the first is scored. Save them as a file, or give "
            "- as the input, which answers each line as it comes."
        )
    if args.output:
        refuse_existing(args.output)
    state = _state(args.input)
    of_users = digest_of_files(args.users) if args.users else ""  # before it is read: a line appended meanwhile is another store
    next(iterate_records(args.input), None)  # is there, before anything is looked for
    scorer, users = scorer_of(args), users_of(args)
    num_rows = 0
    for place, row in read_records(args.input):
        check_responses(row, place)
        check_no_rewards(row, place)
        num_rows += 1
    if not num_rows:
        raise DataError(f"{args.input} holds no rows.")
    scoring = _Scoring(args, scorer, users, num_rows, state, processes)
    if not args.output:
        scoring.check_lengths()
        for text in scoring.lines():
            sys.stdout.write(text)
            sys.stdout.flush()
        return
    with ExitStack() as stack:
        file = None  # of the first process alone

        def begin() -> int:
            nonlocal file
            file, done = stack.enter_context(growing(Path(args.output), scoring.identity(of_users), scoring.at_once))
            if done:
                print(f"Going on after {done} of {num_rows} rows, which {args.output}.partial holds.", file=sys.stderr)
            return done

        done = on_first(begin)
        if not done:
            scoring.check_lengths()
        for text in scoring.lines(done):
            if file is not None:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
    print(f"{num_rows} rows scored: {args.output}")


def users_of(args: Any) -> UserHistories | None:
    """The past pairs of `--users`.

    Raises:
        ConfigError: If none of them would be shown.
    """
    if args.users and args.num_history == 0:
        raise ConfigError("--users gives histories, and --num_history 0 shows none. Leave out one of them.")
    return UserHistories(args.users) if args.users else None


def scorer_of(args: Any) -> RewardScorer:
    """The scorer that the flags of `trl-pafo score` ask for.

    Raises:
        ConfigError: If it shows no histories, and `--users` gives some.
    """
    limits = {name: getattr(args, name) for name in ("num_history", "history_max_tokens", "history_fields")}
    scorer = RewardScorer.from_pretrained(args.model_name_or_path, bf16=args.bf16, **limits)
    if args.users and (scorer.renderer.trained or {}).get("num_history") == 0:
        raise ConfigError("--users gives histories, and the model was trained without. Leave it out.")
    return scorer


def check_no_rewards(row: Mapping[str, Any], place: str) -> None:
    """Raise [`DataError`] if a row has rewards of its own, which [`with_rewards`] would replace."""
    if own := [key for side, key in REWARD_KEYS.items() if side in row and key in row]:
        raise DataError(
            f"{place} has {' and '.join(f'`{key}`' for key in own)} already, which would be replaced. Rename what is there."
        )


def with_rewards(row: Mapping[str, Any], rewards: Mapping[str, float]) -> str:
    """A line: the row and its rewards."""
    return json.dumps({**row, **{REWARD_KEYS[side]: reward for side, reward in rewards.items()}}, ensure_ascii=False) + "\n"


def _state(path: str) -> tuple[int, ...]:
    """What changes where a file is written to or replaced; of one that is not there, nothing: reading it says so better."""
    if not os.path.exists(path):
        return ()
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns


class _Scoring:
    """Passes over the rows of a file, each of which holds few of them at once."""

    def __init__(
        self,
        args: Any,
        scorer: RewardScorer,
        users: UserHistories | None,
        num_rows: int,
        state: tuple[int, ...],
        processes: PartialState | None,
    ):
        self.args, self.scorer, self.users, self.num_rows, self.state = args, scorer, users, num_rows, state
        self.processes = processes
        self.at_once = BATCHES_AT_ONCE * args.batch_size
        self.reading = self._read()

    def _rows(self, first: int = 0) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        """Each row with its place, as it came and with the history of its user."""
        for place, row in islice(iterate_records(self.args.input), first, None):
            cutter = self.scorer.renderer.cutter
            yield place, row, row if self.users is None else self.users.attach(row, cutter.num_history, place)

    def _parts(self, first: int = 0) -> Iterator[tuple[tuple[str, ...], tuple[dict[str, Any], ...], tuple[dict[str, Any], ...]]]:
        rows = self._rows(first)
        while True:
            part = list(islice(rows, self.at_once))
            if _state(self.args.input) != self.state:
                raise DataError(
                    f"{self.args.input} was changed while it was read: what was checked is no longer what is scored. Leave it as it is until "
                    "all is scored, and start again."
                )
            if not part:
                return
            places, given, shown = zip(*part, strict=True)
            yield places, given, shown

    def _read(self) -> Reading:
        """How all rows are read together; users without a history are counted."""
        at = first_lacking = ""
        num_lacking = 0

        def rows() -> Iterable[dict[str, Any]]:
            nonlocal at, num_lacking, first_lacking
            for at, _, row in self._rows():  # `at` is the place of the row that is looked at
                if self.users is not None and not row["history"]:
                    num_lacking += 1
                    first_lacking = first_lacking or at
                yield row

        reading = self.scorer.renderer.reading(rows(), lambda _: at, allow_no_history=self.users is not None)
        if num_lacking:
            warnings.warn(
                f"{num_lacking} of {self.num_rows} rows are of users without past pairs in {self.args.users} (the first: {first_lacking}): they "
                "get the rewards of a user without a history.",
                stacklevel=3,
            )
        return reading

    def check_lengths(self) -> None:
        """Raise [`DataError`] if a row cannot be tokenized, or is longer than the model's positions."""

        def lengths() -> Iterator[int]:
            for places, _, shown in self._parts():
                for ids in self.scorer.sequences(shown, places.__getitem__, reading=self.reading):
                    yield max(map(len, ids.values()))

        check_positions(lengths(), self.scorer.positions, "rows", "the model", lambda row: next(self._rows(row))[0])

    def lines(self, done: int = 0) -> Iterator[str]:
        """The lines of the rows after the first `done`, with their rewards, many in a text."""
        how: dict[str, Any] = {"batch_size": self.args.batch_size, "reading": self.reading, "processes": self.processes}
        silent = not self.args.output or not is_first()
        with tqdm(total=self.num_rows, initial=done, desc="Scoring", unit="row", disable=silent) as bar:
            for places, given, shown in self._parts(done):
                found = self.scorer.score(shown, name=places.__getitem__, **how)
                yield "".join(map(with_rewards, given, found))
                bar.update(len(given))

    def identity(self, of_users: str) -> dict[str, str]:
        """All that decides the rewards, by name; `of_users` is the digest of the past pairs."""
        flags = ("batch_size", "bf16", "num_history", "history_max_tokens", "history_fields")
        return {
            "version": __version__,
            "input": digest_of_files(self.args.input),
            "model": identity_of_folder(self.scorer.folder),
            "users": of_users,
            **{name: json.dumps(getattr(self.args, name)) for name in flags},
        }
