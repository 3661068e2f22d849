"""Numbers as text, the same on pages, in figures, in sentences and on a terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from headstart.learning.tasks import Metric
from headstart.runs.results import Estimate

if TYPE_CHECKING:
    # It imports scipy.stats, which takes longer than a figure.
    from headstart.statistics.two_way import TwoWay


def format_value(metric: Metric, value: float) -> str:
    """A value of a metric: a share as per cent, anything else with four digits; "-" if there is none."""
    if math.isnan(value):
        return "-"
    return f"{100 * value:z.1f} %" if metric.unit == "share" else f"{value:z.4g}"


def format_change(metric: Metric, value: float) -> str:
    """A difference with its sign, of shares in percentage points: `+1.3 points`."""
    unit = " points" if metric.unit == "share" and not math.isnan(value) else ""
    return f"{_signed(metric, value)}{unit}"


def _signed(metric: Metric, value: float) -> str:
    if math.isnan(value):
        return "-"
    return (f"{100 * value:+z.1f}" if metric.unit == "share" else f"{value:+z.4g}").replace("inf", "∞")


def format_interval(metric: Metric, value: Estimate, *, change: bool = False) -> str:
    """The interval of an estimate, `[low, high]`, in the unit of its mean; empty if there is none."""
    if math.isnan(value.low):
        return ""
    if change:
        return f"[{_signed(metric, value.low)}, {_signed(metric, value.high)}]"
    low, high = (format_value(metric, end).removesuffix(" %").replace("inf", "∞") for end in value[1:])
    return f"[{low}, {high}]"


def format_mean(metric: Metric, value: Estimate, *, change: bool = False) -> str:
    """A mean and its interval."""
    mean = format_change(metric, value.mean) if change else format_value(metric, value.mean)
    return f"{mean} {format_interval(metric, value, change=change)}".rstrip()


def format_share(value: float) -> str:
    """A share as per cent: `71.3 %`."""
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def format_points(value: float, digits: int = 2) -> str:
    """A difference of shares in percentage points, with its sign: `+1.32`."""
    return f"{100 * value:+.{digits}f}"


def format_epochs(epochs: Sequence[int], unit: str, pulls: Sequence[float] = ()) -> str:
    """The epochs of personalization that the seeds chose: `3 to 5 epochs`; of pulls: `a pull of 0.3`."""
    numbers = format_numbers(epochs, pulls)
    if pulls:
        return f"a pull of {numbers}"
    return f"{numbers} {unit.removesuffix('s') if set(epochs) == {1} else unit}"


def format_numbers(epochs: Sequence[int], pulls: Sequence[float] = ()) -> str:
    """The same without the unit; an infinite pull leaves the initial model as it is."""
    unique = sorted({pulls[count] for count in epochs} if pulls else set(epochs))
    least, most = (format_pull(each) for each in (unique[0], unique[-1]))
    return f"{least} to {most}" if len(unique) > 1 else least


def format_pull(pull: float) -> str:
    """A pull to the initial model: `0.3`, `∞`."""
    return f"{pull:g}".replace("inf", "∞")


def format_worse(metric: Metric) -> str:
    """The direction that harms, in the metric's own name: `lower accuracy`, `higher loss`."""
    return f"{'lower' if metric.higher_is_better else 'higher'} {metric.name}"


def format_count(count: int, noun: str) -> str:
    """A number and its noun: `1 seed`, `5 seeds`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def typeset(text: str) -> str:
    """Text with true minus signs, and without line breaks in its intervals; a lone "-" is a dash."""
    if text == "-":
        return "–"
    text = re.sub(r"(?<![\w.])-(?=[\d∞])", "−", text)
    return re.sub(r"\[[^\[\]]*\]", lambda interval: interval[0].replace(" ", "\u00a0"), text)


class GainFormat:
    """Formats of gains: positive is better, whatever the metric's direction, and text has the metric's own sign."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric

    @property
    def unit(self) -> str:
        """The unit of a difference: percentage points of a share, else the metric itself."""
        return "points" if self.metric.unit == "share" else self.metric.name

    def change(self, gain: float) -> str:
        """The change of the metric without its unit: `+1.3`."""
        return _signed(self.metric, self.metric.sign * gain)

    def amount(self, gain: float) -> str:
        """The size of a gain, without a sign: `1.3 points`."""
        return f"{100 * gain:.1f} points" if self.metric.unit == "share" else f"{gain:.4g}"

    def interval(self, low: float, high: float) -> str:
        """The interval of a change: `[+1.2, +3.4]`; with more digits where it excludes zero and would not seem to."""
        ends = (low, high) if self.metric.sign > 0 else (high, low)
        if self.metric.unit == "share" and low * high > 0:
            scaled = [100 * self.metric.sign * end for end in ends]
            digits = next((each for each in (1, 2) if all(round(end, each) for end in scaled)), 3)
            return f"[{', '.join(f'{end:+z.{digits}f}' for end in scaled)}]".replace("inf", "∞")
        return f"[{', '.join(map(self.change, ends))}]"

    def difference(self, found: TwoWay) -> str:
        """A change with its unit and its interval."""
        return f"{self.change(found.mean)} {self.unit} {self.interval(*found.interval())}"
