"""JSON Lines of pairs or responses in, raw rewards out."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trl_pafo.data.checks import check_responses
from trl_pafo.data.sources.reading import decode, parse_json_records, read_records
from trl_pafo.errors import ConfigError, DataError, RunFolderError
from trl_pafo.models.scoring import RewardScorer
from trl_pafo.storage.files import replacing

_SIDES = {"response": "reward", "chosen": "reward_chosen", "rejected": "reward_rejected"}


def check_records(records: Iterable[tuple[str, dict[str, Any]]], where: str) -> list[tuple[str, dict[str, Any]]]:
    """Rows to score with their places, checked; `records` are those of [`~trl_pafo.data.sources.reading.read_records`].

    Raises:
        DataError: If a row has no response, or its texts cannot be scored; the message names the line.
    """
    rows = []
    for at, row in records:
        check_responses(row, at)
        rows.append((at, row))
    if not rows:
        raise DataError(f"{where} holds no rows.")
    return rows


def score_file(args: Any) -> None:
    """Score a file; `args` are the flags of `trl-pafo score`. The input is checked before the model is loaded.

    Raises:
        ConfigError: If a flag is missing.
        DataError: If the input cannot be scored.
        RunFolderError: If the output exists.
        OSError: If it cannot be written, which is tried before anything is scored.
    """
    if not args.model_name_or_path or not args.input:
        raise ConfigError("Give --model_name_or_path and --input (a JSON Lines file, or - for standard input).")
    if not args.output:
        sys.stdout.write(_scored(args))
        sys.stdout.flush()
        return
    output = Path(args.output)
    if output.exists():
        raise RunFolderError(f"{output} exists already. Choose another --output; nothing is overwritten.")
    with replacing(output) as temporary:
        temporary.touch()
        text = _scored(args)
        temporary.write_text(text, encoding="utf-8")
    print(f"{text.count(chr(10))} rows scored: {output}")


def _read_rows(source: str) -> list[tuple[str, dict[str, Any]]]:
    if source == "-":
        where = "standard input"
        return check_records(parse_json_records(decode(sys.stdin.buffer.read(), where), where), where)
    return check_records(read_records(source), source)


def _scored(args: Any) -> str:
    """The lines of the input with their rewards."""
    places, rows = zip(*_read_rows(args.input), strict=True)
    scorer = RewardScorer.from_pretrained(
        args.model_name_or_path,
        bf16=args.bf16,
        num_history=args.num_history,
        history_max_tokens=args.history_max_tokens,
        history_fields=args.history_fields,
    )
    scored = scorer.score(
        rows,
        batch_size=args.batch_size,
        desc="Scoring" if args.output else None,
        name=places.__getitem__,
    )
    lines = ({**row, **{_SIDES[side]: reward for side, reward in found.items()}} for row, found in zip(rows, scored, strict=True))
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
