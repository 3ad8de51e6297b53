"""What `trl-pafo portfolio` does, command by command: flags in, text for people and JSON values out."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from trl_pafo.errors import ConfigError, DataError, RunFolderError
from trl_pafo.metrics.verdict import is_known
from trl_pafo.palm.baselines import compare_sizes, comparison_table
from trl_pafo.palm.build import build_portfolio
from trl_pafo.palm.core import FloatArray
from trl_pafo.palm.files.export import export_members
from trl_pafo.palm.files.inputs import PolicyTable, read_answers, read_candidates, read_history, read_table, read_users
from trl_pafo.palm.oracles.candidates import SCALE_FILE, CandidateOracle, RewardScale
from trl_pafo.palm.portfolio import PORTFOLIO_FILE, Portfolio, promise_of
from trl_pafo.palm.solver.bounds import Optimum, Pool, Reference
from trl_pafo.palm.solver.certificate import certify as certify_values
from trl_pafo.palm.solver.simplex import random_weights
from trl_pafo.palm.users.elicitation import Interview
from trl_pafo.palm.users.for_users import build_for_users
from trl_pafo.palm.users.posterior import WeightPosterior, history_differences
from trl_pafo.palm.users.serving import serve
from trl_pafo.storage.files import json_ready, write_text

Result = tuple[str, dict[str, Any]]


def build(args: Any) -> Result:
    """`trl-pafo portfolio build`."""
    if args.users:
        _refuse_unused(args, ["num_members", "search"], "no effect with --users, whose weights the fewest members cover")
    if args.output_dir and (Path(args.output_dir) / PORTFOLIO_FILE).exists():
        raise RunFolderError(
            f"{args.output_dir} holds a finished portfolio. Choose another --output_dir; nothing is overwritten."
        )
    oracle, names, warm, scale = _oracle(args)
    options: dict[str, Any] = {"beta": args.beta, "reward_names": names, "warm_start": warm, "max_calls": args.max_calls}
    options["folder"] = args.output_dir
    if args.users:
        weights, groups, _ = read_users(args.users, names)
        users = build_for_users(oracle, weights, args.epsilon, args.delta, **options)
        text = f"{users}\n\n{serve(users.portfolio, weights, groups)}"
    else:
        options |= {"num_members": args.num_members, "search": args.search, "progress": False}
        portfolio = build_portfolio(oracle, len(names), args.epsilon, args.delta, **options)
        text = _of_table(portfolio, oracle) if isinstance(oracle, PolicyTable) else f"{portfolio}\n\n{portfolio.promise}"
    if args.output_dir:
        if scale is not None:
            scale.save(Path(args.output_dir) / SCALE_FILE)
        text += f"\n\nPortfolio: {args.output_dir}"
    return text, {}


def certify(args: Any) -> Result:
    """`trl-pafo portfolio certify`."""
    if (args.portfolio is None) == (args.policies is None):
        raise ConfigError("Give --portfolio (a folder) or --policies (a table), one of them.")
    if args.policies:
        _refuse_unused(args, ["num_resamples"], "for --portfolio alone, whose values are known by prompt")
        return _certify_table(args)
    _refuse_unused(args, ["members", "reward_names", "reward_range", "beta"], "for --policies alone; a portfolio has its own")
    portfolio = Portfolio.load(args.portfolio)
    text, result = f"{len(portfolio)} members: {portfolio.certificate}", portfolio.certificate.to_json()
    if args.num_resamples and all(call.result.prompt_values is not None for call in portfolio.calls):
        low, high = portfolio.gap_interval(args.num_resamples)
        known = f"[{low:.4f}, {high:.4f}]" if is_known(low) else "unknown, of too few prompts"
        text += f"\n95 % interval of the {portfolio.measure.name} over prompts: {known}"
        result["interval"] = json_ready([low, high])
    return text, result


def choose(args: Any) -> Result:
    """`trl-pafo portfolio choose`."""
    portfolio, folder = _load(args.portfolio)
    given = [name for name in ("weights", "answers", "history", "users") if getattr(args, name) is not None]
    if len(given) != 1:
        raise ConfigError(f"Give one of --weights, --answers, --history, --users; got {', '.join(given) or 'none'}.")
    if not args.history:
        _refuse_unused(args, ["reward_models"], "for --history")
    if not args.answers or args.sharpness is not None:
        _refuse_unused(args, ["tolerance"], "for --answers that are never wrong, without --sharpness")
    if not args.answers and not args.history:
        _refuse_unused(args, ["sharpness"], "for --answers and --history")
    if args.weights is not None:
        member = portfolio.choose(args.weights)
        return _chosen(portfolio, member), {"member": member, "policy": portfolio.policies[member]}
    if args.answers:
        return _choose_by_answers(args, portfolio)
    if args.history:
        return _choose_by_history(args, portfolio, folder)
    weights, groups, users = read_users(args.users, portfolio.reward_names)
    service = serve(portfolio, weights, groups)
    result = service.to_json() | {"members": dict(zip(users, service.members.tolist(), strict=True))}
    return str(service), result


def plot(args: Any) -> Result:
    """`trl-pafo portfolio plot`."""
    from trl_pafo.metrics.plotting import write_png
    from trl_pafo.palm.files.pictures import draw_cells, draw_gap, draw_usage

    portfolio, folder = _load(args.portfolio)
    num_rewards = portfolio.values.shape[1]
    weights, groups = random_weights(num_rewards, 1000), None
    if args.users:
        weights, groups, _ = read_users(args.users, portfolio.reward_names)
    folder = Path(args.output_dir or folder)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"gap.png": draw_gap(portfolio), "usage.png": draw_usage(serve(portfolio, weights, groups))}
    if num_rewards <= 3:
        figures["cells.png"] = draw_cells(portfolio, weights if args.users else None, groups)
    for name, figure in figures.items():
        write_png(figure, folder / name)
    left_out = f" (cells are drawn for 2 or 3 rewards, not for {num_rewards})" if num_rewards > 3 else ""
    return f"Pictures: {', '.join(str(folder / name) for name in sorted(figures))}{left_out}", {}


def compare(args: Any) -> Result:
    """`trl-pafo portfolio compare`."""
    from trl_pafo.metrics.plotting import write_png
    from trl_pafo.palm.files.pictures import draw_sizes

    if args.candidates:
        _refuse_unused(args, ["policies"], "no effect beside --candidates, whose best is known for all weights")
    portfolio, _ = _load(args.portfolio)
    args.beta = portfolio.beta if args.beta is None else args.beta
    args.reward_names = args.reward_names or list(portfolio.reward_names)
    oracle, names, _, _ = _oracle(args)
    if tuple(names) != portfolio.reward_names or args.beta != portfolio.beta:
        raise ConfigError(
            f"The portfolio has the rewards {', '.join(portfolio.reward_names)} and beta={portfolio.beta:g}, the oracle "
            f"{', '.join(names)} and beta={args.beta:g}. Give what the portfolio was built from."
        )
    _check_built_from(portfolio, oracle)
    if isinstance(oracle, CandidateOracle):
        reference: Reference = Optimum(lambda weights: np.array([oracle.optimum(row / row.sum()) for row in weights]))
    else:
        reference = Pool(oracle.values, portfolio.beta * oracle.kl)
    rows = compare_sizes(portfolio, oracle, args.max_size, reference=reference, num_seeds=args.num_seeds)
    text = f"Objective {portfolio.objective}, against the {reference.name}:\n\n{comparison_table(rows, portfolio.measure)}"
    if args.output_dir:
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "comparison.json", json.dumps(rows, indent=2) + "\n")
        write_png(draw_sizes(rows, portfolio.measure.name), folder / "gap_by_size.png")
        text += f"\n\nPicture: {folder / 'gap_by_size.png'}"
    return text, {}


def _check_built_from(portfolio: Portfolio, oracle: CandidateOracle | PolicyTable) -> None:
    """Raise [`ConfigError`] where an answer of the portfolio's oracle is worth another number under this one: its gaps would be of two
    scales, or of other data."""
    for call in portfolio.calls:
        if call.warm:
            continue
        known, found = (
            float(call.weights @ np.asarray(result.values) - portfolio.beta * (result.kl or 0.0))
            for result in (call.result, oracle(call.weights))
        )
        if abs(known - found) > 1e-6:
            raise ConfigError(
                f"For the weights {_row(call.weights)} the best of the portfolio's build was {known:.6g}, and here it is {found:.6g}. Give what the "
                "portfolio was built from, with the same --normalize or --reward_range."
            )


def export(args: Any) -> Result:
    """`trl-pafo portfolio export`."""
    if not args.output_dir:
        raise ConfigError("Give --output_dir, a new folder.")
    portfolio, _ = _load(args.portfolio)
    out = export_members(portfolio, args.output_dir, base_model=args.base_model)
    return f"{len(portfolio)} members and their card: {out}", {}


def _oracle(args: Any) -> tuple[CandidateOracle | PolicyTable, list[str], list[Any], RewardScale | None]:
    """The oracle of the flags, names of the rewards, policies known beforehand, and the scale of raw rewards."""
    if not args.candidates and not args.policies:
        raise ConfigError("Give --candidates or --policies. `trl-pafo portfolio train` trains members by GRPO for reward models.")
    if not args.candidates:
        _refuse_unused(args, ["normalize"], "for --candidates; say what the rewards of a table can be with --reward_range")
        table = read_table(args.policies, args.reward_names, args.beta, _range_of(args))
        return table, list(table.names), [], _scale_of(args, len(table.names))
    rewards, reference, found = read_candidates(args.candidates)
    num_rewards = rewards.shape[-1]
    names = list(args.reward_names or found or [f"reward_{place}" for place in range(num_rewards)])
    if len(names) != num_rewards or (found and sorted(found) != sorted(names)):
        raise ConfigError(
            f"{args.candidates} has {num_rewards} rewards ({', '.join(found or [])}), --reward_names {', '.join(names)}."
        )
    if found:
        rewards = rewards[..., [found.index(name) for name in names]]
    scale = _scale_of(args, num_rewards)
    if scale is not None:
        if args.normalize != "none":
            raise ConfigError("--normalize and --reward_range both say what becomes 0 and 1. Give one of them.")
        low, high = args.reward_range
        if np.nanmin(rewards) < low or np.nanmax(rewards) > high:
            raise DataError(f"{args.candidates} has rewards outside --reward_range {low:g} {high:g}. Widen it.")
        rewards = scale(rewards)
    elif args.normalize != "none":
        scale = RewardScale.fit(rewards[reference > 0], args.normalize)
        rewards = scale(rewards)
    warm = read_table(args.policies, names, args.beta, _range_of(args)).warm_start() if args.policies else []
    return CandidateOracle(rewards, args.beta, reference), names, warm, scale


def _range_of(args: Any) -> list[float] | None:
    """`reward_range`, checked."""
    given: list[float] | None = args.reward_range
    if given is not None and (len(given) != 2 or not given[0] < given[1]):
        raise ConfigError(f"--reward_range takes the least and the greatest value of a reward, such as 1 5; got {given}.")
    return given


def _scale_of(args: Any, num_rewards: int) -> RewardScale | None:
    if (given := _range_of(args)) is None:
        return None
    return RewardScale("min_max", np.full(num_rewards, given[0]), np.full(num_rewards, given[1] - given[0]))


def _of_table(portfolio: Portfolio, table: PolicyTable) -> str:
    """Which policies of a table serve all weights, and how well, compared with the whole table."""
    names = [str(policy) for policy in portfolio.policies]
    certificate = certify_values(
        portfolio.values, table.values, kl=portfolio.kl, reference_kl=table.kl, beta=portfolio.beta, delta=portfolio.delta
    )
    serve = "serves" if len(names) == 1 else "serve"
    return (
        f"{len(names)} of the {len(table.results)} policies {serve} all weights: {', '.join(names)}.\n"
        f"{promise_of(certificate, portfolio.epsilon, portfolio.delta)}\n{certificate}\n\n{portfolio.table()}"
    )


def _refuse_unused(args: Any, names: list[str], why: str) -> None:
    """Raise [`ConfigError`] if an option has another value than its default."""
    given = [f"--{name}" for name in names if getattr(args, name) != type(args).__dataclass_fields__[name].default]
    if given:
        raise ConfigError(f"{', '.join(given)}: {why}. Leave it out.")


def _certify_table(args: Any) -> Result:
    table = read_table(args.policies, args.reward_names, args.beta, _range_of(args))
    place_of = {str(row): row for row in range(len(table.results))} | {name: row for row, name in enumerate(table.policies)}
    unknown = [name for name in args.members or () if name not in place_of]
    if unknown or not args.members:
        raise ConfigError(
            f"Give --members, the policies that are served, by name ({', '.join(table.policies)}) or row of the table, 0 to "
            f"{len(table.results) - 1}; got {', '.join(unknown) or 'none'}."
        )
    rows = [place_of[name] for name in args.members]
    certificate = certify_values(table.values[rows], table.values, kl=table.kl[rows], reference_kl=table.kl, beta=args.beta)
    return f"{', '.join(table.policies[row] for row in rows)}: {certificate}", certificate.to_json()


def _choose_by_answers(args: Any, portfolio: Portfolio) -> Result:
    differences = read_answers(args.answers, portfolio.reward_names)
    result: dict[str, Any] = {"answers": len(differences)}
    if args.sharpness is None:
        interview = Interview(portfolio, differences, tolerance=args.tolerance)
        for difference in differences:
            interview.tell(difference)
        best = interview.recommend()
        text = f"{len(differences)} answers, taken as exact: at most {best.gap:.4f} {portfolio.measure.name} with this member."
        result["corners"] = interview.consistent.points.tolist()
    else:
        posterior = WeightPosterior(len(portfolio.reward_names), args.sharpness)
        posterior.update(differences)
        best = posterior.recommend(portfolio)
        text = (
            f"{len(differences)} answers, some perhaps wrong (sharpness {args.sharpness:g}): mean weights {_row(posterior.mean)}; "
            f"with probability 90 % at most {best.gap:.4f} {portfolio.measure.name}."
        )
        result["weights"] = posterior.mean.tolist()
    result |= {"member": best.member, "gap": best.gap, "policy": portfolio.policies[best.member]}
    return f"{text}\n{_chosen(portfolio, best.member)}", result


def _choose_by_history(args: Any, portfolio: Portfolio, folder: Path) -> Result:
    from trl_pafo.models.scoring import RewardScorer

    rows, names = read_history(args.history), portfolio.reward_names
    if len(args.reward_models or []) != len(names):
        raise ConfigError(
            f"Give --reward_models, one for each of {', '.join(names)}, in this order; got {len(args.reward_models or [])}."
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
    kept = folder / SCALE_FILE
    scale = RewardScale.load(kept, len(names)) if kept.exists() else None
    differences = history_differences(rows, [RewardScorer.from_pretrained(source) for source in args.reward_models], scale)
    weights = []
    for places in users.values():
        posterior = WeightPosterior(len(names), 10.0 if args.sharpness is None else args.sharpness)
        posterior.update(differences[places])
        weights.append(posterior.mean)
    service = serve(portfolio, np.array(weights), groups or None)
    found = {
        user: {"weights": w.tolist(), "member": int(member), "pairs": len(places)}
        for (user, places), w, member in zip(users.items(), weights, service.members, strict=True)
    }
    text = str(service)
    if len(users) == 1:
        text = f"{len(rows)} past pairs: mean weights {_row(weights[0])}.\n{_chosen(portfolio, int(service.members[0]))}"
    return text, service.to_json() | {"members": found}


def _load(folder: str | None) -> tuple[Portfolio, Path]:
    """A portfolio and its folder."""
    if not folder:
        raise ConfigError("Give --portfolio, the folder that `trl-pafo portfolio build` wrote.")
    path = Path(folder)
    return Portfolio.load(path), path if path.is_dir() else path.parent


def _chosen(portfolio: Portfolio, member: int) -> str:
    values = ", ".join(
        f"{name} {value:.4f}" for name, value in zip(portfolio.reward_names, portfolio.values[member], strict=True)
    )
    kl = f"KL {portfolio.kl[member]:.3f}" if any(call.result.kl for call in portfolio.calls) else "KL unknown"
    policy = portfolio.policies[member]
    who = f"Policy {policy} (member {member})" if isinstance(policy, str) else f"Member {member}"
    return f"{who}: {values}, {kl}" + ("" if isinstance(policy, str) else f"; policy {json.dumps(policy)}")


def _row(weights: FloatArray) -> str:
    return "(" + ", ".join(f"{weight:.3f}" for weight in weights) + ")"
