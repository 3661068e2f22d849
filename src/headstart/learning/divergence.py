"""Divergence: when a metric says that a model is of no use any more, though all its parameters may be finite.

A value is judged beside that of the model which training, or personalization, started from, on the same examples.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from headstart.learning.tasks import Metric, Task

# A thousand times worse than at the start, or than 1, is of no use: no sound training comes near it.
LIMIT = 1e3


def judged_metrics(task: Task) -> list[Metric]:
    """The task's metrics, of those that report the same items the first: a perplexity overflows before its loss."""
    metrics = task.metrics
    return [
        metric
        for index, metric in enumerate(metrics)
        if not any(metric.items == earlier.items for earlier in metrics[:index])
    ]


@np.errstate(invalid="ignore", over="ignore")
def beyond_use(metric: Metric, value: Any, start: Any) -> Any:
    """Whether a value (a number or an array) is not finite, or more than `LIMIT` times worse than at the start.

    start: the value at the start; where it is not finite itself, nothing is judged.
    """
    value, start = np.asarray(value, np.float64), np.asarray(start, np.float64)
    worse = -metric.sign * value > LIMIT * np.maximum(1, np.abs(start))
    return np.isfinite(start) & (~np.isfinite(value) | worse)
