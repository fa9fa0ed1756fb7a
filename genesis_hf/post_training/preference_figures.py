"""How well a model ranks held-out answers, and how far their lengths alone would get."""

import math
from typing import Any

import numpy as np
from datasets import Dataset

from genesis_hf.uncertainty import standard_error


def answer_lengths(dataset: Dataset, columns: tuple[str, ...]) -> np.ndarray:
    """(examples, columns) tokens of answers, the stop token counted."""
    return np.array([[len(ids) for ids in dataset[name]] for name in columns], dtype=np.int64).T


def length_bias(tokens: np.ndarray) -> dict[str, Any]:
    """What pairs, (pairs, 2) tokens of chosen and rejected, say about length.

    `chosen_is_longer`: the share of pairs, equal lengths as half a one; it is what "the longer one wins" would score.
    """
    difference = tokens[:, 0] - tokens[:, 1]
    return {
        "pairs": len(tokens),
        "mean_tokens": {"chosen": float(tokens[:, 0].mean()), "rejected": float(tokens[:, 1].mean())},
        "chosen_is_longer": share((np.sign(difference) + 1) / 2),
    }


def compare_pairs(reference: np.ndarray, policy: np.ndarray, tokens: np.ndarray, beta: float) -> dict[str, Any]:
    """Held-out pairs before (the reference) and after (the policy).

    Args:
        reference, policy: (pairs, 2) log-probabilities of the chosen and the rejected answer in nats.
        tokens: (pairs, 2) their lengths.

    Returns:
        `before` and `after` as in `ranking`; `implicit_reward`, the share of pairs whose chosen answer gained more
        over the reference than the rejected one (Rafailov et al. 2023, section 4), also of those alone whose chosen
        answer is longer, or not; `reward_margin` and its correlation with the difference in length.
    """
    reference, policy = reference.astype(np.float64), policy.astype(np.float64)
    gains = policy - reference
    margins = beta * (gains[:, 0] - gains[:, 1])
    longer = tokens[:, 0] > tokens[:, 1]
    return {
        **length_bias(tokens),
        "before": ranking(reference, tokens),
        "after": ranking(policy, tokens),
        "implicit_reward": share(margins > 0),
        "implicit_reward_chosen_longer": share(margins[longer] > 0),
        "implicit_reward_chosen_not_longer": share(margins[~longer] > 0),
        "reward_margin": float(margins.mean()),
        "reward_margin_length_correlation": correlation(margins, tokens[:, 0] - tokens[:, 1]),
        "chosen_log_probability_change": {"value": float(gains[:, 0].mean()), "stderr": standard_error(gains[:, 0])},
    }


def ranking(log_probabilities: np.ndarray, tokens: np.ndarray) -> dict[str, Any]:
    """How a model ranks pairs by log-probability, (pairs, 2), in all and per token.

    `length_correlation` is that of the difference in log-probability with the difference in length.
    """
    means = log_probabilities / tokens
    differences = [column[:, 0] - column[:, 1] for column in (log_probabilities, tokens)]
    return {
        "ranked": share(log_probabilities[:, 0] > log_probabilities[:, 1]),
        "ranked_per_token": share(means[:, 0] > means[:, 1]),
        "log_probability_chosen": float(log_probabilities[:, 0].mean()),
        "log_probability_rejected": float(log_probabilities[:, 1].mean()),
        "length_correlation": correlation(*differences),
    }


def compare_labelled(
    reference: np.ndarray, policy: np.ndarray, desirable: np.ndarray, tokens: np.ndarray, beta: float
) -> dict[str, Any]:
    """Held-out labelled answers: the implicit reward against the label.

    Args:
        reference, policy: (answers,) log-probabilities in nats.
        desirable: (answers,) bool.
        tokens: (answers,) lengths.

    Returns:
        `sign`, the share of answers whose reward β · (policy - reference) is positive if and only if they are
        desirable; `auc`, how often a desirable one's reward is above an undesirable one's, of the reward, of the
        reward a token and of length alone; mean rewards, log-probabilities and lengths of both kinds.
    """
    rewards = beta * (policy.astype(np.float64) - reference.astype(np.float64))
    result: dict[str, Any] = {
        "answers": len(rewards),
        "sign": share((rewards > 0) == desirable),
        "auc": area_under_curve(rewards, desirable),
        "auc_per_token": area_under_curve(rewards / tokens, desirable),
        "auc_of_length": area_under_curve(tokens.astype(np.float64), desirable),
        "reward_length_correlation": correlation(rewards, tokens),
    }
    for name, of in (("desirable", desirable), ("undesirable", ~desirable)):
        result[name] = {
            "answers": int(of.sum()),
            "mean_tokens": mean(tokens[of]),
            "reward": mean(rewards[of]),
            "log_probability_before": mean(reference[of]),
            "log_probability_after": mean(policy[of]),
        }
    return result


# ---------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------


def share(hits: np.ndarray) -> dict[str, Any]:
    """A share, its standard error, and of how many; None for a share of nothing."""
    return {"value": mean(hits), "stderr": standard_error(hits.astype(np.float64)), "n": len(hits)}


def mean(values: np.ndarray) -> float | None:
    """None of nothing."""
    return float(values.mean()) if len(values) else None


def correlation(one: np.ndarray, other: np.ndarray) -> dict[str, float | None]:
    """Pearson's r and its standard error, (1 - r²) / √(n - 1) in large samples; None where one of them is constant."""
    if len(one) < 3 or not np.ptp(one) or not np.ptp(other):
        return {"value": None, "stderr": None}
    r = float(np.corrcoef(one, other)[0, 1])
    return {"value": r, "stderr": (1 - r * r) / math.sqrt(len(one) - 1)}


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> dict[str, float | None]:
    """The chance that a positive item scores above a negative one, ties as half, with its standard error.

    Both from the items' placements (DeLong, DeLong and Clarke-Pearson 1988). None where one kind is missing.
    """
    above, below = np.sort(scores[positive]), np.sort(scores[~positive])
    if not len(above) or not len(below):
        return {"value": None, "stderr": None}
    beaten = (np.searchsorted(below, above, "left") + np.searchsorted(below, above, "right")) / 2 / len(below)
    beating = 1 - (np.searchsorted(above, below, "left") + np.searchsorted(above, below, "right")) / 2 / len(above)
    errors = [standard_error(placements) for placements in (beaten, beating)]
    return {"value": float(beaten.mean()), "stderr": None if None in errors else math.hypot(*errors)}


# ---------------------------------------------------------------------------------------------------------
# In words
# ---------------------------------------------------------------------------------------------------------


def pairs_table(summary: dict[str, Any]) -> str:
    """What a DPO run's summary says of its data and its held-out pairs."""
    lines = []
    for which, words in (("all", "all pairs"), ("kept", "those trained on")):
        bias = summary["lengths"][which]
        lines.append(
            f"{words:28} {bias['pairs']:9,}  mean tokens: chosen {bias['mean_tokens']['chosen']:.1f}, rejected "
            f"{bias['mean_tokens']['rejected']:.1f}; the chosen one is longer in {in_percent(bias['chosen_is_longer'])}"
        )
    change = summary["displacement"]["train"]
    if change:
        lines.append(
            f"chosen answers, training batches: log-probability {change['last']:+.2f} nats against the start, "
            f"lowest {change['lowest']:+.2f} at step {change['lowest_at_step']:,}"
        )
    lines += sampled_lines(summary["sampled"])
    held_out = summary["held_out"]
    if not held_out:
        return "\n".join(lines)
    before, after = held_out["before"], held_out["after"]
    lines.append(f"{held_out['pairs']:,} held-out pairs".ljust(36) + f"{'before':>18}{'after':>18}")
    for name, words in (("ranked", "ranked right"), ("ranked_per_token", "ranked right, per token")):
        lines.append(f"  {words:34}{in_percent(before[name]):>18}{in_percent(after[name]):>18}")
    for name, words in (
        ("implicit_reward", "implicit reward ranks right"),
        ("implicit_reward_chosen_longer", "  where the chosen one is longer"),
        ("implicit_reward_chosen_not_longer", "  where it is not"),
        ("chosen_is_longer", "the longer one wins, by comparison"),
    ):
        lines.append(f"  {words:34}{'':18}{in_percent(held_out[name]):>18}")
    for name in ("log_probability_chosen", "log_probability_rejected"):
        words = name.replace("log_probability_", "log-probability of ")
        lines.append(f"  {words:34}{before[name]:13.2f} nats{after[name]:13.2f} nats")
    correlations = [in_figures(model["length_correlation"]) for model in (before, after)]
    lines.append(f"  {'correlation with length':34}{correlations[0]:>18}{correlations[1]:>18}")
    lines.append(f"  {'of the reward margin':34}{'':18}{in_figures(held_out['reward_margin_length_correlation']):>18}")
    return "\n".join(lines)


def labelled_table(summary: dict[str, Any]) -> str:
    """What a KTO run's summary says of its data and its held-out answers."""
    counts = summary["balance"]
    lines = [
        f"{counts['desirable']:,} desirable and {counts['undesirable']:,} undesirable answers, weighing "
        f"{counts['weighted_ratio']:.2f} : 1"
    ]
    lines += sampled_lines(summary["sampled"])
    held_out = summary["held_out"]
    if not held_out:
        return "\n".join(lines)
    lines += [
        f"{held_out['answers']:,} held-out answers",
        f"  {'implicit reward has the right sign':42}{in_percent(held_out['sign']):>18}",
    ]
    for name, words in (
        ("auc", "good above bad (AUC)"),
        ("auc_per_token", "good above bad, per token"),
        ("auc_of_length", "the longer one is good, by comparison"),
    ):
        lines.append(f"  {words:42}{in_percent(held_out[name]):>18}")
    for name in ("desirable", "undesirable"):
        kind = held_out[name]
        if kind["answers"]:
            lines.append(
                f"  {name:12} {kind['answers']:7,}  mean tokens {kind['mean_tokens']:.1f}, log-probability "
                f"{kind['log_probability_before']:.2f} → {kind['log_probability_after']:.2f} nats"
            )
    return "\n".join(lines)


def sampled_lines(sampled: dict[str, Any] | None) -> list[str]:
    """How long the model's answers were before and after; none where none were written."""
    if not sampled:
        return []
    words = []
    for moment in (sampled["before"], sampled["after"]):
        tokens = {"value": moment["answer_tokens"], "stderr": moment["answer_tokens_stderr"] or 0.0}
        words.append(f"{in_figures(tokens)} tokens, {moment['stop_rate']:.0%} stop")
    return [f"answers to {sampled['prompts']} prompts: {' → '.join(words)}"]


def in_percent(figure: dict[str, Any]) -> str:
    """`61.2 % ± 1.5 %`, or a dash for what can't be known."""
    if figure["value"] is None:
        return "–"
    return f"{figure['value']:.1%}" + ("" if figure["stderr"] is None else f" ± {figure['stderr']:.1%}")


def in_figures(figure: dict[str, float | None]) -> str:
    """`0.31 ± 0.03`, or a dash for what can't be known."""
    return "–" if figure["value"] is None else f"{figure['value']:.2f} ± {figure['stderr']:.2f}"
