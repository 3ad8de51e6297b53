"""The audit in sentences. Every claim is one that an interval shows; what is not shown is said to be open."""

from typing import Any

from trl_pafo.metrics.verdict import format_interval, format_number, is_known

# A gain that intervals this wide cannot exclude leaves the question open, however small its estimate.
_WIDE = 5


def interval(number: dict[str, Any], signed: bool = False) -> str:
    """`.644 [.537, .750]`, `.644 [unknown]`, or `unknown`."""
    return (
        f"{format_number(number['value'], signed)} {format_interval(number, signed)}" if is_known(number["value"]) else "unknown"
    )


def verdict_sentence(result: dict[str, Any], min_gain: float) -> str:
    """Whether PAFO can help, in one sentence.

    - A group *can be helped* if the interval of its headroom lies above 0 and the estimate is at least `min_gain`.
    - *Nothing to distill*, if every estimate is below `min_gain` and no interval reaches 5 times as far.
    - *Open*, otherwise.
    """
    if result["headroom"] is None:
        return "Whether PAFO can help is not known: no probes were fitted (headroom is off)."
    groups = result["headroom"]["groups"]
    gains = {name: group["gain"] for name, group in groups.items()}
    helped = [name for name, gain in gains.items() if gain["low"] > 0 and gain["value"] >= min_gain]
    if helped:
        parts = [
            f"{name} by {interval(gains[name], True)} (from {format_number(groups[name]['shared'])} to "
            f"{format_number(groups[name]['teacher'])})"
            for name in helped
        ]
        rest = [f"{name} {interval(gains[name], True)}" for name in gains if name not in helped]
        tail = f"; no gain worth a teacher is shown for {', '.join(rest)}" if rest else ""
        return (
            f"PAFO can help: a teacher of its own beats the shared personalized probe for {', '.join(parts)}{tail} (gains of "
            "accuracy, simultaneous 95 % intervals over users)."
        )
    listed = ", ".join(f"{name} {interval(gain, True)}" for name, gain in gains.items())
    highest = max(gain["high"] for gain in gains.values())
    if all(gain["value"] < min_gain for gain in gains.values()) and highest < _WIDE * min_gain:
        return (
            f"Nothing to distill: no group gains from a teacher of its own over the shared personalized probe ({listed}; gains above "
            f"{format_number(highest)} are excluded at 95 %)."
        )
    return (
        f"Open: no gain of a teacher of its own over the shared personalized probe is shown ({listed}), but gains of up to "
        f"{format_number(highest)} are not excluded; audit more users."
    )


def findings(result: dict[str, Any]) -> list[str]:
    """What else was found, a sentence each: bias, noise, length."""
    found = []
    if result["accuracy"] is not None:
        found += _bias(result["accuracy"])
    found += _noise(result)
    dropped = {name: group for name, group in result["length"]["groups"].items() if group["dropped"]}
    if dropped:
        parts = [f"{name} {100 * g['share']:.1f} % ({g['dropped']} of {g['pairs']})" for name, g in dropped.items()]
        found.append(f"Length: at {result['length']['max_length']} tokens, training would drop pairs of {', '.join(parts)}.")
    else:
        found.append(f"Length: no training pair is longer than {result['length']['max_length']} tokens.")
    return found


def _bias(accuracy: dict[str, Any]) -> list[str]:
    trend = accuracy["trend"]["spearman"]
    judge = accuracy["judge"]
    if not is_known(trend["value"]):
        return [f"Bias: accuracy ({judge}) or support does not vary over users, so that there is no trend."]
    if not is_known(trend["low"]):
        return [
            f"Bias: too few users to tell whether user accuracy ({judge}) rises with support, Spearman {interval(trend, True)}."
        ]
    word = "rises" if trend["low"] > 0 else "falls" if trend["high"] < 0 else "shows no trend"
    sentence = f"Bias: user accuracy ({judge}) {word} with support, Spearman {interval(trend, True)}"
    apart = accuracy["trend_apart"]
    if apart is None:
        return [sentence + "."]
    left = "a trend is left" if apart["low"] > 0 else "nothing is left that could be told from chance"
    left = left if is_known(apart["low"]) else "too few users to tell what is left"
    return [
        f"{sentence}; but support is agreement here, and one stray label lowers both: with the two measured on different pairs, {left} "
        f"({interval(apart, True)})."
    ]


def _noise(result: dict[str, Any]) -> list[str]:
    noise = result["noise"]
    if "known" in noise:
        return [f"Noise: labels are made by rule, so the ceiling is known: {format_number(noise['known'])}."]
    if "leave_one_out" not in noise:
        return [f"Noise: {noise['reason']}"]
    low, high = noise["best_shared_bounds"]
    sentence = (
        f"Noise: the majority of the others predicts {interval(noise['leave_one_out'])} of labels on common pairs "
        f"({noise['votes_a_pair']:.1f} votes a pair); a judge that does not see the user can reach between {format_number(low)} and "
        f"{format_number(high)}"
    )
    common = (result["accuracy"] or {}).get("common_pairs")
    if common:
        sentence += (
            f". On {common['pairs']} common pairs the accuracy is {format_number(common['accuracy'])}, the ceiling "
            f"{format_number(common['ceiling'])}"
        )
    found = [sentence + "."]
    taste = noise["taste_or_noise"]
    if "shared_taste" in taste:
        difference = taste["shared_taste"]
        if difference["low"] > 0:
            word = "low-support users share a taste of their own"
        elif difference["high"] < 0:
            word = "low-support users are the noisier ones, not people of another taste"
        else:
            word = "no taste of their own is shown for low-support users"
        found.append(
            f"Taste or noise: {word}: they agree with each other {interval(taste['minority_with_minority'])}, with the majority "
            f"{interval(taste['minority_with_majority'])} (the majority with itself {interval(taste['majority_with_majority'])}); "
            f"difference on the same votes {interval(difference, True)}."
        )
    if taste.get("reliability"):
        found.append(
            f"Support rates are {'hardly ' if taste['reliability']['value'] < 0.3 else ''}a trait of the person: measured on two halves of "
            f"the pairs they correlate with {interval(taste['reliability'], True)}."
        )
    return found
