"""What an evaluation must report, by plain loops over the pairs in float64: the reference of several tests."""

import copy
import math

import torch


def naive_metrics(pairs: list[dict], groups=(), center=None) -> dict[str, float]:
    """What an evaluation must report on pairs with `chosen`, `rejected` and optional `margin`, `group`, `user`."""
    losses, correct, rewards = [], [], []
    for pair in pairs:
        difference = pair["chosen"] - pair["rejected"]
        loss = math.log1p(math.exp(-(difference - pair.get("margin", 0.0))))
        losses.append(loss + (center or 0.0) * (pair["chosen"] + pair["rejected"]) ** 2)
        correct.append(1.0 if difference > 0 else 0.5 if difference == 0 else 0.0)
        rewards += [pair["chosen"], pair["rejected"]]
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    metrics = {
        "loss": mean(losses),
        "accuracy": mean(correct),
        "margin": mean([pair["chosen"] - pair["rejected"] for pair in pairs]),
        "min_reward": min(rewards),
        "mean_reward": mean(rewards),
        "max_reward": max(rewards),
    }

    def by(column):
        members = {}
        for pair, right in zip(pairs, correct, strict=True):
            if pair.get(column):
                members.setdefault(pair[column], []).append(right)
        return members

    of_group = by("group")
    if of_group:
        for group in {*of_group, *groups}:
            metrics[f"accuracy/{group}"] = mean(of_group[group]) if group in of_group else math.nan
            metrics[f"count/{group}"] = len(of_group.get(group, []))
        accuracies = [mean(values) for values in of_group.values()]
        metrics["accuracy_group_mean"] = mean(accuracies)
        metrics["accuracy_group_min"] = min(accuracies)
        several = len(accuracies) > 1
        metrics["accuracy_difference"] = max(accuracies) - min(accuracies) if several else math.nan
        metrics["accuracy_ratio"] = min(accuracies) / max(accuracies) if several and max(accuracies) else math.nan
    users = sorted(mean(values) for values in by("user").values())
    if users:
        center_of_users = mean(users)
        place = 0.1 * (len(users) - 1)
        low, high = users[math.floor(place)], users[math.ceil(place)]
        shares = [value / center_of_users for value in users] if center_of_users else []
        metrics |= {
            "user_accuracy_mean": center_of_users,
            "user_accuracy_min": users[0],
            "user_accuracy_p10": low + (high - low) * (place - math.floor(place)),
            "user_accuracy_std": math.sqrt(mean([(value - center_of_users) ** 2 for value in users])),
            "user_accuracy_gini": mean([abs(a - b) for a in shares for b in shares]) / 2 if shares else 0.0,
            "user_accuracy_theil": mean([s * math.log(s) if s else 0.0 for s in shares]) if shares else 0.0,
        }
    return metrics


def naive_pairs(model, rows) -> list[dict]:
    """Each response of each row scored alone, in float64."""
    model = copy.deepcopy(model).double().eval()

    def reward(ids):
        with torch.no_grad():
            return model(torch.tensor([ids])).logits.item()

    return [
        {
            **{key: row[key] for key in ("margin", "group", "user") if key in row},
            "chosen": reward(row["chosen_ids"]),
            "rejected": reward(row["rejected_ids"]),
        }
        for row in rows
    ]
