"""What people write for a portfolio: rewards of candidates, tables of policies, users, answers. Checked, the place named."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import softmax

from trl_pafo.data.checks import TEXTS, check_texts
from trl_pafo.data.labels import normalize_labels
from trl_pafo.data.sources.reading import read_records
from trl_pafo.errors import DataError, PortfolioError
from trl_pafo.palm.core import FloatArray, OracleResult, check_weights

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

    `weights`, of shape `(num_policies, num_rewards)`, are those that each is the best for; NaN where none are known. `names` are
    those of the rewards.
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
    def policies(self) -> list[str]:
        """Their names."""
        return [result.policy for result in self.results]

    @property
    def problem(self) -> dict[str, Any]:
        """What decides the answers, as JSON values."""
        return {"oracle": "table", "values": self.values.tolist(), "kl": self.kl.tolist()}


def read_candidates(path: str | Path) -> Candidates:
    """Rewards of candidate responses from JSON Lines, a line a prompt: `{"rewards": [[...], ...], "logprobs": [...]}`.

    `rewards` has for each response a list in the order of the rewards, or a mapping by name; `logprobs` (optional) is that of each
    response under the reference policy, of which none is taken for less probable than 2e-308. `prompt`, `responses` and `id` may stand
    beside them.

    Raises:
        DataError: If a key or a shape is not as said; the message names the line.
    """
    path = Path(path)
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
    # A probability of 0 would mean that there is no such candidate, and that of a long response rounds to 0.
    reference = np.where(np.isfinite(scores), np.maximum(softmax(scores, axis=1), np.finfo(np.float64).tiny), 0.0)
    return Candidates(rewards, reference, names)


def read_table(
    path: str | Path,
    reward_names: Sequence[str] | None = None,
    beta: float = 0.0,
    reward_range: Sequence[float] | None = None,
) -> PolicyTable:
    """A table of policies from CSV: a column for each reward, and optionally `policy`, `kl`, and for every reward NAME `w_NAME`,
    the weights that a policy is the best for.

    `reward_names` are the rewards in their order, by default all that the file has. With a `beta` above 0 every policy needs its
    `kl`. The ends of `reward_range` become 0 and 1.

    Raises:
        DataError: If a column is unknown or missing, holds no numbers or some out of range, or two policies have one name; the
            message names policy and column, or the line.
        PortfolioError: If weights are off the simplex.
    """
    path = Path(path)
    found_rows = _records(path, None, ())
    rows = [row for _, row in found_rows]
    columns = list(rows[0])
    if other := [place for place, row in found_rows if (set(row) ^ set(columns)) - {"policy", "kl"}]:
        raise DataError(f"{other[0]} has other entries than the first policy ({', '.join(columns)}). Give the same to each.")
    if nameless := [name for name in columns if not name or name.startswith("Unnamed:")]:
        raise DataError(
            f"{path}: the column {nameless[0]!r} has no name, so it would count as a reward. Leave it out, as an index of pandas "
            "by to_csv(index=False), or name it."
        )
    found = [name for name in columns if name not in ("policy", "kl") and not name.startswith("w_")]
    if reward_names is None and (meant := [name for name in found if name.lower() in ("policy", "kl") or name.startswith("W_")]):
        raise DataError(
            f"{path}: the column {meant[0]} would count as a reward. Write policy, kl and w_NAME in small letters, or say which columns are "
            "rewards: --reward_names."
        )
    names = tuple(found if reward_names is None else reward_names)
    if sorted(found) != sorted(names) or len(names) < 2:
        raise DataError(
            f"{path} has the rewards {', '.join(found)}, asked for are {', '.join(names)}; a portfolio needs at least 2. Beside "
            "them a table has policy, kl and w_NAME."
        )
    weighted = [name for name in columns if name.startswith("w_")]
    if weighted and sorted(weighted) != sorted(f"w_{name}" for name in names):
        raise DataError(f"{path} has the weights {', '.join(weighted)}: a column w_NAME for every reward, or none.")
    least, greatest = reward_range or (0.0, 1.0)
    has_kl = any(not _is_blank(row.get("kl")) for row in rows)
    results, weights, policies = [], [], set()
    labels = normalize_labels([row.get("policy") for row in rows], "policy", str(path), missing="keep")
    for number, row in enumerate(rows):
        policy = labels[number] or f"policy {number}"
        where = f"{path}, {policy}"
        if policy in policies:
            raise DataError(f"{path}: two policies are named {policy}. Give each a name of its own.")
        policies.add(policy)
        if (beta > 0 or has_kl) and _is_blank(row.get("kl")):
            why = f"which the objective w.R - {beta:g} KL needs" if beta > 0 else "which others have; give it for all or for none"
            raise DataError(f"{where} has no `kl`, {why}.")
        values = np.array([_numbers([row[name]], 1, f"{where}, column {name}: {row[name]!r}")[0] for name in names])
        for name, value in zip(names, values, strict=True):
            if not least <= value <= greatest:
                raise DataError(
                    f"{where}, column {name}: {value:g} is not in [{least:g}, {greatest:g}]. Say which values a reward can have: --reward_range "
                    "LEAST GREATEST."
                )
        kl = float(_numbers([row["kl"]], 1, f"{where}, column kl: {row['kl']!r}")[0]) if has_kl else 0.0
        results.append(OracleResult((values - least) / (greatest - least), kl, policy))
        own = [row[f"w_{name}"] for name in names] if weighted else []
        given = not all(map(_is_blank, own))
        weights.append(check_weights(_numbers(own, 1, f"{where}: weights"), len(names)) if given else np.full(len(names), np.nan))
    return PolicyTable(results, np.array(weights), names, beta)


def _is_blank(value: Any) -> bool:
    return value is None or value == "" or value != value


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
        raise DataError(f"{path}: the user {twice[0]!r} occurs twice; give one line per user.")
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
        raise DataError(f"{where} must be numbers and of the same length: {error}.") from error
    if array.ndim != num_axes or not array.size or not np.isfinite(array).all():
        raise DataError(f"{where} must be finite numbers with {num_axes} axes, got shape {array.shape}.")
    return array


def _records(path: Path, known: Sequence[str] | None, needed: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Each row with its place; the keys are checked."""
    rows = list(read_records(path))
    for place, row in rows:
        missing = [name for name in needed if name not in row]
        unknown = [] if known is None else [str(name) for name in row if name not in known]
        if missing or unknown:
            problem = f"lacks `{missing[0]}`" if missing else f"has the unknown entry `{unknown[0]}`"
            allowed = "" if known is None else f"; known are {', '.join(known)}"
            raise DataError(f"{place} {problem}{allowed}.")
    if not rows:
        raise DataError(f"{path} holds no rows.")
    return rows
