"""What was measured, as text."""

from __future__ import annotations

from statistics import median

from .match import Row

_HEADS = ("workload", "cohort", "contestant", "examples/s", "rounds/s", "headstart is × [min, max]", "MB", "accuracy")


def table(rows: list[Row]) -> str:
    """A line for each row."""
    lines = ["{:12} {:>6}  {:16} {:>10} {:>9} {:>26} {:>6} {:>8}".format(*_HEADS)]
    for row in rows:
        start = f"{row['workload']:12} {row['cohort']:6}  {row['contestant']:16} "
        lines.append(start + (f"failed: {row['failed']}" if "failed" in row else _measured(row)))
    return "\n".join(lines)


def _measured(row: Row) -> str:
    examples, rounds, ratios = row["examples_per_second"], row["rounds_per_second"], row["ratios"]
    spread = f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]" if ratios else ""
    accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.3f}"
    numbers = f"{median(examples):10.0f} {median(rounds):9.2f} {spread:>26} {row['peak_bytes'] / 1e6:6.0f}"
    return f"{numbers} {accuracy:>8}  {row['complaint']}".rstrip()
