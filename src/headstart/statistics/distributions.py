"""The few distributions that are needed, by scipy's special functions: all of `scipy.stats` imports as long as JAX."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special


def t_quantile(probability: float, freedom: float) -> float:
    """The value that Student's t, of this many degrees of freedom, is below with a probability."""
    return float(special.stdtrit(freedom, probability))


def t_tail(value: float, freedom: float) -> float:
    """The probability that Student's t is above a value."""
    return float(special.stdtr(freedom, -value))


def normal_below(values: np.ndarray) -> np.ndarray:
    """The probability that a standard normal number is below each value."""
    return special.ndtr(values)


def binomial(number: np.ndarray, of: int, share: float) -> np.ndarray:
    """The probability of each number of successes among `of` trials."""
    ways = special.gammaln(of + 1) - special.gammaln(number + 1) - special.gammaln(of - number + 1)
    return np.exp(ways + special.xlogy(number, share) + special.xlog1py(of - number, -share))


def binomial_above(number: np.ndarray, of: np.ndarray, share: float) -> Any:
    """The probability of more successes than each number, among the number of trials that stands beside it."""
    return np.where(number >= of, 0.0, special.betainc(number + 1, np.maximum(of - number, 1), share))
