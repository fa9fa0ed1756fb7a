"""What a mean over answers can say: 95 % intervals of shares, of other means, and of differences between the two.

Shares of yes and no have Wilson's interval, which stays honest at 0 of 60 and 60 of 60; the difference of two shares
over the same prompts has Newcombe's, which is built from it. Everything else has Student's: on real answers it held the
true mean at least as often as the bootstrap's percentiles did (figures in docs/style.md).

- E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927), 209-212.
- R. G. Newcombe, Improved confidence intervals for the difference between binomial proportions based on paired data,
  Statistics in Medicine 17 (1998), 2635-2650, method 10.
"""

import math

import numpy as np

Z = 1.959963984540054
"""97.5 % of a standard normal distribution lie below."""

MIN_VALUES = 5
"""Below so many values nothing is said about their spread."""

Interval = tuple[float, float]


def wilson(successes: float, n: int) -> Interval:
    """95 % interval of a share of `n` > 0 answers."""
    share = successes / n
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    # Rounding must not push the ends past the share itself where it is 0 or 1.
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def newcombe(before: np.ndarray, after: np.ndarray) -> Interval:
    """95 % interval of the difference of two shares, after minus before.

    Args:
        before, after: (prompts,) of 0 and 1, the same prompts in the same order.
    """
    n = len(before)
    both, only_after = float((after * before).sum()), float((after * (1 - before)).sum())
    only_before, neither = float(((1 - after) * before).sum()), float(((1 - after) * (1 - before)).sum())
    margins = (both + only_after) * (only_before + neither) * (both + only_before) * (only_after + neither)
    covariance = both * neither - only_after * only_before
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)
    correlation = covariance / math.sqrt(margins) if margins else 0.0
    after_share, before_share = float(after.mean()), float(before.mean())
    after_low, after_high = wilson(float(after.sum()), n)
    before_low, before_high = wilson(float(before.sum()), n)

    def distance(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a**2 - 2 * correlation * a * b + b**2))

    difference = after_share - before_share
    low = difference - distance(after_share - after_low, before_high - before_share)
    high = difference + distance(after_high - after_share, before_share - before_low)
    return low, high


def student(values: np.ndarray) -> Interval | None:
    """95 % interval of a mean; None below five values, or where all are alike and say nothing about their spread."""
    if len(values) < MIN_VALUES or np.ptp(values) == 0:
        return None
    half = student_quantile(len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def student_quantile(freedom: int) -> float:
    """97.5 % of Student's distribution lie below; off by 0.3 % at 4 degrees of freedom, by less above.

    Abramowitz, Stegun, Handbook of Mathematical Functions (1964), 26.7.5.
    """
    return (
        Z
        + (Z**3 + Z) / (4 * freedom)
        + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * freedom**2)
        + (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / (384 * freedom**3)
    )
