"""What people write for a portfolio: rewards of candidates, tables of policies, users, answers. Checked, the place named."""

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from scipy.special import softmax

from trl_pafo.data.checks import TEXTS, check_texts
from trl_pafo.data.labels import normalize_labels
from trl_pafo.data.sources.reading import read_records
from trl_pafo.errors import DataError, PortfolioError
from trl_pafo.palm.core import FloatArray, OracleResult, check_weights

_CANDIDATE_ARRAYS = ("rewards", "logprobs", "reference", "names")
_CANDIDATE_KEYS = ("rewards", "logprobs", "prompt", "responses", "id")
_USER_KEYS = ("weights", "user", "group")
_ANSWER_KEYS = ("first", "second", "liked")


class Candidates(NamedTuple):
    """`rewards` of shape `(num_prompts, num_candidates, num_rewards)`, NaN where a prompt has fewer; `reference`, the
    probabilities of the candidates under the reference policy, 0 there; names of the rewards, if the file gives them."""

    rewards: FloatArray
    reference: FloatArray
    names: tuple[str, ...] | None


class PolicyTable:
    """
    Policies that exist, as an oracle: the best of them for any weights.

    Args:
        results (`Sequence[OracleResult]`):
            One a policy.
        weights (array of shape `(num_policies, num_rewards)`):
            The weights that each is the best for; NaN where none are known.
        names (`tuple[str, ...]`):
            Names of the rewards.
        beta (`float`, *optional*, defaults to `0.0`):
            Weight of the KL term.
    """

    def __init__(self, results: Sequence[OracleResult], weights: FloatArray, names: tuple[str, ...], beta: float = 0.0):
        self.results, self.weights, self.names, self.beta = list(results), weights, names, beta
        self.values = np.array([result.values for result in results])
        self.kl = np.array([result.kl for result in results])

    def __call__(self, weights: FloatArray) -> OracleResult:
        """The policy of the table that earns most."""
        return self.results[int((self.values @ weights - self.beta * self.kl).argmax())]

    def warm_start(self) -> list[OracleResult | tuple[FloatArray, OracleResult]]:
        """The policies as `build_portfolio` takes them."""
        return [
            result if np.isnan(weights).any() else (weights, result)
            for result, weights in zip(self.results, self.weights, strict=True)
        ]

    @property
    def problem(self) -> dict[str, Any]:
        """What decides the answers, as JSON values."""
        return {"oracle": "table", "values": self.values.tolist(), "kl": self.kl.tolist()}


def read_candidates(path: str | Path) -> Candidates:
    """Rewards of candidate responses, from an `.npz` or a JSON Lines file.

    An `.npz` holds `rewards` of shape `(num_prompts, num_candidates, num_rewards)` and optionally `logprobs` (of each response
    under the reference policy) or `reference` (probabilities), both `(num_prompts, num_candidates)`, and `names`. A line of
    JSON is a prompt: `{"rewards": [[...], ...], "logprobs": [...]}`, a list for each response in the order of the rewards or
    a mapping by name; `prompt`, `responses` and `id` may stand beside them.

    Raises:
        DataError: If an array, a key or a shape is not as said; the message names it.
    """
    path = Path(path)
    if path.suffix == ".npz":
        return _candidates_from_arrays(path)
    rows = _records(path, _CANDIDATE_KEYS, ("rewards",))
    if len({"logprobs" in row for _, row in rows}) > 1:
        raise DataError(f"{path}: some prompts have `logprobs` and some have none; give them to all or to none.")
    names: tuple[str, ...] | None = None
    tables = []
    for where, row in rows:
        rewards = row["rewards"]
        if isinstance(rewards, list) and rewards and all(isinstance(entry, dict) for entry in rewards):
            names = tuple(rewards[0]) if names is None else names
            if any(set(entry) != set(names) for entry in rewards):
                raise DataError(f"{where}: every response needs the rewards {', '.join(names)}.")
            rewards = [[entry[name] for name in names] for entry in rewards]
        tables.append(_numbers(rewards, 2, f"{where}: `rewards`"))
    num_rewards = {table.shape[1] for table in tables}
    if len(num_rewards) > 1:
        raise DataError(f"{path}: prompts have {sorted(num_rewards)} rewards; every response needs the same ones.")
    most = max(len(table) for table in tables)
    rewards = np.full((len(tables), most, num_rewards.pop()), np.nan)
    scores = np.full((len(tables), most), -np.inf)
    for place, ((where, row), table) in enumerate(zip(rows, tables, strict=True)):
        rewards[place, : len(table)] = table
        logprobs = _numbers(row.get("logprobs", [0.0] * len(table)), 1, f"{where}: `logprobs`")
        if len(logprobs) != len(table):
            raise DataError(f"{where}: {len(table)} responses and {len(logprobs)} `logprobs`.")
        scores[place, : len(table)] = logprobs
    return Candidates(rewards, softmax(scores, axis=1), names)


def _candidates_from_arrays(path: Path) -> Candidates:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, BadZipFile, zlib.error) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise DataError(f"{path} cannot be read as .npz: {error}. Write it with numpy.savez, without objects.") from error
    _check_keys(arrays, _CANDIDATE_ARRAYS, ("rewards",), str(path))
    rewards = _numbers(arrays["rewards"], 3, f"{path}: `rewards` (num_prompts, num_candidates, num_rewards)")
    if "logprobs" in arrays and "reference" in arrays:
        raise DataError(f"{path}: give `logprobs` or `reference`, not both.")
    shape = rewards.shape[:2]
    chosen = arrays.get("logprobs", arrays.get("reference", np.zeros(shape)))
    if chosen.shape != shape:
        raise DataError(f"{path}: `logprobs` or `reference` must have shape {shape}, as the rewards; got {chosen.shape}.")
    reference = np.asarray(chosen, dtype=np.float64) if "reference" in arrays else softmax(chosen, axis=1)
    names = tuple(str(name) for name in arrays["names"]) if "names" in arrays else None
    if names is not None and len(names) != rewards.shape[2]:
        raise DataError(f"{path}: {len(names)} `names` for {rewards.shape[2]} rewards.")
    return Candidates(rewards, reference, names)


def read_table(path: str | Path, reward_names: Sequence[str] | None = None, beta: float = 0.0) -> PolicyTable:
    """A table of policies, from a `.csv` or a `.json` file.

    CSV: the columns `policy` and `kl` (both optional), `w_NAME` for the weights that a policy is the best for (optional, for
    every reward), and a column for each reward NAME. JSON: a list of `{"values": {NAME: number, ...}, "kl": ..., "policy": ...,
    "weights": {NAME: ...}}`.

    Args:
        path (`str` or `Path`):
            The file.
        reward_names (`Sequence[str]`, *optional*):
            The rewards, in their order; by default all that the file has.
        beta (`float`, *optional*, defaults to `0.0`):
            Weight of the KL term; above 0 every policy needs its `kl`.

    Raises:
        DataError: If a column is unknown or missing, or holds no numbers.
    """
    path = Path(path)
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path)
    found = list(rows[0]["values"])
    names = tuple(found if reward_names is None else reward_names)
    if sorted(found) != sorted(names):
        raise DataError(
            f"{path} has the rewards {', '.join(found)}, asked for are {', '.join(names)}. Beside them a table has policy, kl and w_NAME."
        )
    if len(names) < 2:
        raise DataError(f"{path} has {len(names)} rewards; a portfolio needs at least 2.")
    results, weights = [], []
    for number, row in enumerate(rows, 1):
        where = f"{path}, policy {number}"
        if beta > 0 and row["kl"] is None:
            raise DataError(f"{where} has no `kl`, which the objective w.R - {beta:g} KL needs.")
        if set(row["values"]) != set(names) or (row["weights"] is not None and set(row["weights"]) != set(names)):
            raise DataError(f"{where}: values and weights must be given for each of {', '.join(names)}.")
        values = _numbers([row["values"][name] for name in names], 1, f"{where}: values")
        kl = 0.0 if row["kl"] is None else float(_numbers([row["kl"]], 1, f"{where}: `kl`")[0])
        policy = row["policy"] if row["policy"] not in (None, "") else f"policy {number - 1}"
        results.append(OracleResult(values, kl, policy))
        own = None if row["weights"] is None else _numbers([row["weights"][name] for name in names], 1, f"{where}: weights")
        weights.append(np.full(len(names), np.nan) if own is None else check_weights(own, len(names)))
    return PolicyTable(results, np.array(weights), names, beta)


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    rows = [row for _, row in _records(path, None, ())]
    columns = list(rows[0])
    if nameless := [name for name in columns if not name or name.startswith("Unnamed:")]:
        raise DataError(
            f"{path}: the column {nameless[0]!r} has no name, so that it would count as a reward. Leave it out, as an index of pandas by "
            "to_csv(index=False), or name it."
        )
    rewards = [name for name in columns if name not in ("policy", "kl") and not name.startswith("w_")]
    own = [name for name in columns if name.startswith("w_")]
    unknown = [name for name in own if name[2:] not in rewards]
    if unknown or (own and len(own) < len(rewards)):
        raise DataError(
            f"{path} has the rewards {', '.join(rewards)} and the weights {', '.join(own)}: a column w_NAME for every reward, or none."
        )
    read = []
    for row in rows:
        weights = {name[2:]: row[name] for name in own}
        given = own and any(weights.values())
        values = {name: row[name] for name in rewards}
        read.append(
            {"values": values, "kl": row.get("kl") or None, "policy": row.get("policy"), "weights": weights if given else None}
        )
    return read


def _json_rows(path: Path) -> list[dict[str, Any]]:
    rows = _records(path, ("values", "kl", "policy", "weights"), ("values",))
    for where, row in rows:
        if not isinstance(row["values"], dict) or not isinstance(row.get("weights") or {}, dict):
            raise DataError(f"{where}: `values` and `weights` must map names of rewards to numbers.")
    return [{"kl": None, "policy": None, "weights": None, **row} for _, row in rows]


def read_users(path: str | Path, names: Sequence[str]) -> tuple[FloatArray, list[str] | None, list[str]]:
    """Weights, groups (or `None`) and ids of users, from JSON Lines: `{"weights": [...], "group": ..., "user": ...}`.

    `weights` is a list in the order of the rewards or a mapping by name. A user without a name is called by its place, from 1 on.

    Raises:
        DataError: If a key is unknown, a user occurs twice, or some users have a group and some none.
        PortfolioError: If weights are off the simplex.
    """
    rows = _records(Path(path), _USER_KEYS, ("weights",))
    weights = []
    for where, row in rows:
        try:
            weights.append(check_weights(_by_name(row["weights"], names, f"{where}: `weights`"), len(names)))
        except PortfolioError as error:
            raise PortfolioError(f"{where}: {error}") from error
    given = normalize_labels([row.get("user") for _, row in rows], "user", str(path), missing="keep")
    users = [user or str(number) for number, user in enumerate(given, 1)]
    if twice := [user for user, count in Counter(users).items() if count > 1]:
        raise DataError(f"{path}: the user {twice[0]!r} occurs twice; give one line a user.")
    return np.array(weights), _labels(rows, "group", path), users


def read_answers(path: str | Path, names: Sequence[str]) -> FloatArray:
    """Pairwise answers as differences of rewards, liked minus other, of shape `(num_answers, num_rewards)`, from JSON Lines:
    `{"first": [...], "second": [...], "liked": "first"}`, rewards as a list or a mapping by name.

    Raises:
        DataError: If a line is not so.
    """
    differences = []
    for where, row in _records(Path(path), _ANSWER_KEYS, _ANSWER_KEYS):
        first, second = (_by_name(row[side], names, f"{where}: `{side}`") for side in ("first", "second"))
        if row["liked"] not in ("first", "second"):
            raise DataError(f"{where}: `liked` must be first or second, got {row['liked']!r}.")
        differences.append(first - second if row["liked"] == "first" else second - first)
    return np.array(differences)


def _labels(rows: Sequence[tuple[str, Mapping[str, Any]]], name: str, path: str | Path) -> list[str] | None:
    """Labels of a column that all rows have, or none has."""
    labels = normalize_labels([row.get(name) for _, row in rows], name, str(path), missing="keep")
    known = [label for label in labels if label is not None]
    if known and len(known) < len(rows):
        first = rows[labels.index(None)][0]
        raise DataError(f"{first}: {len(rows) - len(known)} of {len(rows)} rows have no `{name}`; give it to all or to none.")
    return known or None


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """Past pairs from JSON Lines: `prompt`, `chosen`, `rejected`, optionally `user` and `group`; other columns are left alone.

    Raises:
        DataError: If a line lacks a text, or some have a user, or a group, and some none.
    """
    rows = _records(Path(path), None, TEXTS)
    for where, row in rows:
        check_texts(row, where)
    users, groups = (_labels(rows, name, path) for name in ("user", "group"))
    return [{**row, "user": users and users[place], "group": groups and groups[place]} for place, (_, row) in enumerate(rows)]


def _by_name(given: Any, names: Sequence[str], where: str) -> FloatArray:
    if isinstance(given, dict):
        if set(given) != set(names):
            raise DataError(f"{where} names {', '.join(map(str, given)) or 'nothing'}; the rewards are {', '.join(names)}.")
        given = [given[name] for name in names]
    vector = _numbers(given, 1, where)
    if len(vector) != len(names):
        raise DataError(f"{where} holds {len(vector)} numbers for the {len(names)} rewards {', '.join(names)}.")
    return vector


def _numbers(given: Any, num_axes: int, where: str) -> FloatArray:
    try:
        array = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} must be numbers, alike in length: {error}.") from error
    if array.ndim != num_axes or not array.size or not np.isfinite(array).all():
        raise DataError(f"{where} must be finite numbers with {num_axes} axes, got shape {array.shape}.")
    return array


def _records(path: Path, known: Sequence[str] | None, needed: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Each row with its place."""
    rows = list(read_records(path))
    for place, row in rows:
        _check_keys(row, known, needed, place)
    if not rows:
        raise DataError(f"{path} holds no rows.")
    return rows


def _check_keys(row: Mapping[str, Any], known: Sequence[str] | None, needed: Sequence[str], where: str) -> None:
    missing = [name for name in needed if name not in row]
    unknown = [] if known is None else [str(name) for name in row if name not in known]
    if missing or unknown:
        problem = f"lacks `{missing[0]}`" if missing else f"has the unknown entry `{unknown[0]}`"
        allowed = "" if known is None else f"; known are {', '.join(known)}"
        raise DataError(f"{where} {problem}{allowed}.")
