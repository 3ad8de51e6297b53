"""What `trl-pafo portfolio` does, command by command: flags in, text for people and JSON values out."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from trl_pafo.errors import ConfigError, DataError, RunFolderError
from trl_pafo.metrics.verdict import is_known
from trl_pafo.palm.baselines import compare_sizes, comparison_table
from trl_pafo.palm.build import CALLS_FILE, build_portfolio
from trl_pafo.palm.core import FloatArray
from trl_pafo.palm.files.export import export_members
from trl_pafo.palm.files.inputs import PolicyTable, read_answers, read_candidates, read_history, read_table, read_users
from trl_pafo.palm.oracles.candidates import CandidateOracle, RewardScale
from trl_pafo.palm.portfolio import PORTFOLIO_FILE, Portfolio
from trl_pafo.palm.solver.bounds import Optimum, Pool, Reference
from trl_pafo.palm.solver.certificate import certify as certify_values
from trl_pafo.palm.solver.simplex import random_weights
from trl_pafo.palm.users.elicitation import Interview
from trl_pafo.palm.users.for_users import build_for_users
from trl_pafo.palm.users.posterior import NoisyInterview, WeightPosterior, history_differences
from trl_pafo.palm.users.serving import serve
from trl_pafo.storage.files import LOCK, alone, json_ready, writing
from trl_pafo.storage.run_folder import write_text

SCALE_FILE = "scale.json"
CELLS, GAP, USAGE, SIZES = "cells.png", "gap.png", "usage.png", "gap_by_size.png"

Result = tuple[str, dict[str, Any]]


def build(args: Any) -> Result:
    """`trl-pafo portfolio build`."""
    if args.hull and not args.users:
        raise ConfigError("--hull is for --users: all weights between theirs.")
    if args.users and (args.num_members or args.search != "corners"):
        raise ConfigError(
            "--users takes neither --num_members nor --search: it covers the users' weights with the fewest members."
        )
    _build_folder(args.output_dir)
    search = _oracle(args)
    with _alone_in(args.output_dir) as folder:
        return _build(args, search, folder)


def _build(args: Any, search: tuple[Any, list[str], list[Any], RewardScale | None], folder: Path | None) -> Result:
    oracle, names, warm, scale = search
    options: dict[str, Any] = {"beta": args.beta, "reward_names": names, "warm_start": warm, "max_calls": args.max_calls}
    options["folder"] = folder
    if args.users:
        weights, groups, _ = read_users(args.users, names)
        users = build_for_users(oracle, weights, args.epsilon, args.delta, hull=args.hull, **options)
        portfolio, text = users.portfolio, str(users)
        text += f"\n\n{serve(portfolio, weights, groups)}"
    else:
        portfolio = build_portfolio(
            oracle,
            len(names),
            args.epsilon,
            args.delta,
            num_members=args.num_members,
            search=args.search,
            progress=False,
            **options,
        )
        text = str(portfolio)
    if folder is not None:
        if scale is not None:
            about = {"kind": scale.kind, "origin": scale.origin.tolist(), "unit": scale.unit.tolist()}
            write_text(folder / SCALE_FILE, json.dumps(about) + "\n")
        text += f"\n\nPortfolio: {folder}"
    return text, {}


def certify(args: Any) -> Result:
    """`trl-pafo portfolio certify`."""
    _refuse_existing(args.output)
    if (args.portfolio is None) == (args.policies is None):
        raise ConfigError("Give --portfolio (a folder) or --policies (a table), one of them.")
    if args.policies:
        _refuse_unused(args, ["num_resamples"], "for --portfolio alone, whose values are known by prompt")
        return _certify_table(args)
    own = "for --policies alone; a portfolio has its own"
    _refuse_unused(args, ["members", "reward_names", "beta", "epsilon", "delta"], own)
    if args.reference:
        _refuse_unused(args, ["num_resamples"], "no interval is known against a --reference")
    portfolio = Portfolio.load(args.portfolio)
    reference: Reference = portfolio.upper_bound
    if args.reference:
        table = read_table(args.reference, portfolio.reward_names, portfolio.beta)
        reference = Pool(table.values, portfolio.beta * table.kl)
    certificate = certify_values(
        portfolio.values, reference, kl=portfolio.kl, beta=portfolio.beta, epsilon=portfolio.epsilon, delta=portfolio.delta
    )
    text, result = f"{len(portfolio)} members: {certificate}", certificate.to_json()
    has_prompts = all(call.result.prompt_values is not None for call in portfolio.calls)
    if args.num_resamples and has_prompts and not args.reference:
        low, high = portfolio.gap_interval(args.num_resamples)
        known = f"[{low:.4f}, {high:.4f}]" if is_known(low) else "unknown, of too few prompts"
        text += f"\n95 % interval of the {portfolio.measure.name} over prompts: {known}"
        result["interval"] = json_ready([low, high])
    return text, result


def choose(args: Any) -> Result:
    """`trl-pafo portfolio choose`."""
    _refuse_existing(args.output)
    portfolio = _load(args.portfolio)
    given = [name for name in ("weights", "answers", "history", "users") if getattr(args, name) is not None]
    if len(given) != 1:
        raise ConfigError(f"Give one of --weights, --answers, --history, --users; got {', '.join(given) or 'none'}.")
    if args.reward_models and not args.history:
        raise ConfigError("--reward_models is for --history.")
    if args.answers is None or args.sharpness is not None:
        _refuse_unused(args, ["tolerance"], "for --answers that are never wrong, without --sharpness")
    if args.answers is None and args.history is None:
        _refuse_unused(args, ["sharpness"], "for --answers and --history")
    if args.weights is not None:
        member = portfolio.choose(args.weights)
        return _chosen(portfolio, member), {"member": member, "policy": portfolio.policies[member]}
    if args.answers:
        return _choose_by_answers(args, portfolio)
    if args.history:
        return _choose_by_history(args, portfolio)
    weights, groups, users = read_users(args.users, portfolio.reward_names)
    service = serve(portfolio, weights, groups)
    result = service.to_json() | {"members": dict(zip(users, service.members.tolist(), strict=True))}
    return str(service), result


def plot(args: Any) -> Result:
    """`trl-pafo portfolio plot`."""
    from trl_pafo.palm.files.pictures import draw_cells, draw_gap, draw_usage
    from trl_pafo.plotting import write_png

    portfolio = _load(args.portfolio)
    num_rewards = portfolio.values.shape[1]
    weights, groups = random_weights(num_rewards, 1000), None
    if args.users:
        weights, groups, _ = read_users(args.users, portfolio.reward_names)
    source = Path(args.portfolio)
    folder = Path(args.output_dir) if args.output_dir else (source if source.is_dir() else source.parent)
    _make_folder(folder)
    figures = {GAP: draw_gap(portfolio), USAGE: draw_usage(serve(portfolio, weights, groups))}
    if num_rewards <= 3:
        figures[CELLS] = draw_cells(portfolio, weights if args.users else None, groups)
    for name, figure in figures.items():
        write_png(figure, folder / name)
    left_out = f" (cells are drawn for 2 or 3 rewards, not for {num_rewards})" if num_rewards > 3 else ""
    return f"Pictures: {', '.join(str(folder / name) for name in sorted(figures))}{left_out}", {}


def compare(args: Any) -> Result:
    """`trl-pafo portfolio compare`."""
    from trl_pafo.palm.files.pictures import draw_sizes
    from trl_pafo.plotting import write_png

    if args.candidates and args.policies:
        raise ConfigError("--policies: no effect beside --candidates, whose best is known for all weights. Leave it out.")
    portfolio = _load(args.portfolio)
    args.beta = args.beta or portfolio.beta
    args.reward_names = args.reward_names or list(portfolio.reward_names)
    oracle, names, _, _ = _oracle(args)
    if tuple(names) != portfolio.reward_names or args.beta != portfolio.beta:
        raise ConfigError(
            f"The portfolio has the rewards {', '.join(portfolio.reward_names)} and beta={portfolio.beta:g}, the oracle "
            f"{', '.join(names)} and beta={args.beta:g}. Give what the portfolio was built from."
        )
    reference: Reference
    if isinstance(oracle, CandidateOracle):
        reference = Optimum(lambda weights: np.array([oracle.optimum(_on_simplex(row)) for row in weights]))
    else:
        reference = Pool(oracle.values, portfolio.beta * oracle.kl)
    rows = compare_sizes(portfolio, oracle, args.max_size, reference=reference, num_seeds=args.num_seeds)
    text = f"Objective {portfolio.objective}, against the {reference.name}:\n\n{comparison_table(rows, portfolio.measure)}"
    if args.output_dir:
        folder = Path(args.output_dir)
        _make_folder(folder)
        write_text(folder / "comparison.json", json.dumps(rows, indent=2) + "\n")
        write_png(draw_sizes(rows, portfolio.measure.name), folder / SIZES)
        text += f"\n\nPicture: {folder / SIZES}"
    return text, {}


def export(args: Any) -> Result:
    """`trl-pafo portfolio export`."""
    if not args.output_dir:
        raise ConfigError("Give --output_dir, a new folder.")
    portfolio = _load(args.portfolio)
    out = export_members(portfolio, args.output_dir, base_model=args.base_model, copy_base=args.copy_base, title=args.title)
    return f"{len(portfolio)} members and their card: {out}", {}


def write_result(path: str, text: str) -> None:
    """Write a result; [`RunFolderError`] if the file exists or cannot be written."""
    _refuse_existing(path)
    try:
        write_text(Path(path), text)
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error}.") from error


def _oracle(args: Any) -> tuple[CandidateOracle | PolicyTable, list[str], list[Any], RewardScale | None]:
    """The oracle of the flags, names of the rewards, policies known beforehand, and the scale of raw rewards."""
    if not args.candidates and not args.policies:
        raise ConfigError(
            "Give --candidates or --policies. Members are trained by GRPO in Python: see examples/portfolio_grpo.py and "
            "docs/portfolio_oracles.md."
        )
    if args.normalize not in ("none", "min_max", "sigmoid"):
        raise ConfigError(f"--normalize must be none, min_max or sigmoid, got {args.normalize!r}.")
    if not args.candidates:
        if args.normalize != "none":
            raise ConfigError("--normalize is for --candidates; the values of a table must be in [0, 1] already.")
        table = read_table(args.policies, args.reward_names, args.beta)
        return table, list(table.names), [], None
    rewards, reference, found = read_candidates(args.candidates)
    num_rewards = rewards.shape[-1]
    names = list(args.reward_names or found or [f"reward_{place}" for place in range(num_rewards)])
    if len(names) != num_rewards or (found and sorted(found) != sorted(names)):
        raise ConfigError(
            f"{args.candidates} has {num_rewards} rewards ({', '.join(found or [])}), --reward_names {', '.join(names)}."
        )
    if found:
        rewards = rewards[..., [found.index(name) for name in names]]
    scale = None
    if args.normalize != "none":
        scale = RewardScale.fit(rewards[reference > 0], args.normalize)
        rewards = scale(rewards)
    warm = read_table(args.policies, names, args.beta).warm_start() if args.policies else []
    return CandidateOracle(rewards, args.beta, reference), names, warm, scale


def _build_folder(output_dir: str | None) -> Path | None:
    if output_dir is None:
        return None
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file. Choose another --output_dir.")
    if (folder / PORTFOLIO_FILE).exists():
        raise RunFolderError(f"{folder} holds a finished portfolio. Choose another --output_dir; nothing is overwritten.")
    if folder.exists() and {path.name for path in folder.iterdir()} - {LOCK} and not (folder / CALLS_FILE).exists():
        raise RunFolderError(f"{folder} is not empty and holds no build that could go on. Choose another --output_dir.")
    return folder


@contextmanager
def _alone_in(output_dir: str | None) -> Iterator[Path | None]:
    """The folder of a build, with no other build in it meanwhile: two would mix their answers."""
    if output_dir is None:
        yield None
        return
    folder = Path(output_dir)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder, f"Another build is at work in {folder}. Wait until it ends, or choose another --output_dir."):
            _build_folder(output_dir)  # another build may have ended meanwhile
            yield folder


def _refuse_unused(args: Any, names: list[str], why: str) -> None:
    """Raise [`ConfigError`] if an option has another value than its default."""
    given = [f"--{name}" for name in names if getattr(args, name) != type(args).__dataclass_fields__[name].default]
    if given:
        raise ConfigError(f"{', '.join(given)}: {why}. Leave it out.")


def _certify_table(args: Any) -> Result:
    if args.reference and Path(args.reference).resolve() == Path(args.policies).resolve():
        raise ConfigError("--reference is the table of --policies itself, which is the default. Name another, or leave it out.")
    table = read_table(args.policies, args.reward_names, args.beta)
    rows = list(range(len(table.results))) if args.members is None else args.members
    if not rows or min(rows) < 0 or max(rows) >= len(table.results):
        raise ConfigError(f"--members must be rows of the table, 0 to {len(table.results) - 1}; got {rows}.")
    if args.members is None and not args.reference:
        raise ConfigError("Give --members (which rows are served) or --reference: all of a table against itself misses nothing.")
    pool = read_table(args.reference, table.names, args.beta) if args.reference else table
    certificate = certify_values(
        table.values[rows],
        pool.values,
        kl=table.kl[rows],
        reference_kl=pool.kl,
        beta=args.beta,
        epsilon=args.epsilon,
        delta=args.delta,
    )
    return f"{len(rows)} members: {certificate}", certificate.to_json()


def _choose_by_answers(args: Any, portfolio: Portfolio) -> Result:
    differences = read_answers(args.answers, portfolio.reward_names)
    result: dict[str, Any] = {"answers": len(differences)}
    if args.sharpness is None:
        interview = Interview(portfolio, differences, tolerance=args.tolerance)
        for difference in differences:
            interview.tell(difference)
        best = interview.recommend()
        text = (
            f"{len(differences)} answers, taken at their word: at most {best.gap:.4f} {portfolio.measure.name} with this member."
        )
        result["corners"] = interview.consistent.points.tolist()
    else:
        noisy = NoisyInterview(portfolio, differences, sharpness=args.sharpness)
        noisy.posterior.update(differences)
        best = noisy.recommend()
        text = (
            f"{len(differences)} answers, some perhaps wrong (sharpness {args.sharpness:g}): weights {_row(noisy.posterior.mean)} in the "
            f"mean; with chance {noisy.level:.0%} at most {best.gap:.4f} {portfolio.measure.name}."
        )
        result["weights"] = noisy.posterior.mean.tolist()
    result |= {"member": best.member, "gap": best.gap, "policy": portfolio.policies[best.member]}
    return f"{text}\n{_chosen(portfolio, best.member)}", result


def _choose_by_history(args: Any, portfolio: Portfolio) -> Result:
    rows = read_history(args.history)
    if len(args.reward_models or []) != len(portfolio.reward_names):
        raise ConfigError(
            f"Give --reward_models, one for each of {', '.join(portfolio.reward_names)}, in this order; got {len(args.reward_models or [])}."
        )
    users: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        users.setdefault(row["user"] or "the user", []).append(place)
    groups: list[str] = []
    for user, places in users.items():
        own = {rows[place]["group"] for place in places}
        if len(own) > 1:
            raise DataError(
                f"{args.history}: the user {user!r} has pairs in several groups ({', '.join(sorted(own))}); give it one."
            )
        groups += own - {None}
    from trl_pafo.palm.oracles.texts import RewardModel

    models = [RewardModel(source) for source in args.reward_models]
    differences = history_differences(rows, models, _scale(Path(args.portfolio)))
    weights = []
    for places in users.values():
        posterior = WeightPosterior(len(portfolio.reward_names), args.sharpness or 10.0)
        posterior.update(differences[places])
        weights.append(posterior.mean)
    service = serve(portfolio, np.array(weights), groups or None)
    found = {
        user: {"weights": w.tolist(), "member": int(member), "pairs": len(places)}
        for (user, places), w, member in zip(users.items(), weights, service.members, strict=True)
    }
    if len(users) == 1:
        member = int(service.members[0])
        text = f"{len(rows)} past pairs: weights {_row(weights[0])} in the mean.\n{_chosen(portfolio, member)}"
    else:
        text = str(service)
    return text, service.to_json() | {"members": found}


def _scale(portfolio: Path) -> RewardScale | None:
    path = (portfolio if portfolio.is_dir() else portfolio.parent) / SCALE_FILE
    if not path.exists():
        return None
    about = json.loads(path.read_text(encoding="utf-8"))
    return RewardScale(about["kind"], np.array(about["origin"]), np.array(about["unit"]))


def _load(folder: str | None) -> Portfolio:
    if not folder:
        raise ConfigError("Give --portfolio, the folder that `trl-pafo portfolio build` wrote.")
    return Portfolio.load(folder)


def _chosen(portfolio: Portfolio, member: int) -> str:
    values = ", ".join(
        f"{name} {value:.4f}" for name, value in zip(portfolio.reward_names, portfolio.values[member], strict=True)
    )
    return f"Member {member}: {values}, KL {portfolio.kl[member]:.3f}; policy {json.dumps(portfolio.policies[member])}"


def _row(weights: FloatArray) -> str:
    return "(" + ", ".join(f"{weight:.3f}" for weight in weights) + ")"


def _on_simplex(weights: FloatArray) -> FloatArray:
    weights = np.maximum(weights, 0.0)
    return weights / weights.sum()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be made: {error}. Choose another --output_dir.") from error


def _refuse_existing(path: str | None) -> None:
    if path and Path(path).exists():
        raise RunFolderError(f"{path} exists already. Choose another --output; nothing is overwritten.")
