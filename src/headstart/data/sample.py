"""A sample table: hospitals whose patients are measured alike, differ somewhat, and end in one of three ways."""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headstart.errors import UserError
from headstart.files import write_bytes

OUTCOMES = ("recovered", "readmitted", "transferred")
WARDS = ("medicine", "surgery", "emergency", "geriatrics", "burns")
_WARD_SHARES = (0.4, 0.28, 0.2, 0.11, 0.01)
# Of how many rows the smallest hospital has at least; the largest has at most 4 times the mean.
_FEWEST = 20
# The seed of what hospitals have in common.
_SHARED = 2019
_FIRST_DAY, _DAYS = datetime.date(2023, 1, 1), 730


class _Measurement(NamedTuple):
    """A numeric column: normal around `middle` with a standard deviation `spread`; or, `heavy`, log-normal."""

    middle: float
    spread: float
    heavy: bool = False


_MEASUREMENTS: Mapping[str, _Measurement] = {
    "age": _Measurement(61, 17),
    "systolic": _Measurement(132, 22),
    "diastolic": _Measurement(78, 13),
    "pulse": _Measurement(84, 17),
    "temperature": _Measurement(37.1, 0.8),
    "respiration": _Measurement(17, 4),
    "saturation": _Measurement(0.95, 0.02),
    "weight": _Measurement(77, 16),
    "sodium": _Measurement(139, 4),
    "potassium": _Measurement(4.2, 0.5),
    "albumin": _Measurement(0.039, 0.006),
    "haemoglobin": _Measurement(131, 19),
    "platelets": _Measurement(245_000, 70_000),
    "creatinine": _Measurement(85, 0.5, heavy=True),
    "crp": _Measurement(14, 1.3, heavy=True),
    "lactate": _Measurement(1.4, 0.6, heavy=True),
    "ferritin": _Measurement(160, 1.1, heavy=True),
    "troponin": _Measurement(0.02, 1.4, heavy=True),
    "distance": _Measurement(9_000, 0.9, heavy=True),
}
_COLUMNS = ("hospital", "visit", "admitted", "ward", *_MEASUREMENTS, "outcome", "days")


class _Effects(NamedTuple):
    """What decides the end of a stay: weights of standardized measurements and wards, for outcomes and for days."""

    outcome: np.ndarray  # [measurements + wards, outcomes]
    days: np.ndarray  # [measurements + wards]


def write_sample(
    path: Path, *, seed: int = 0, clients: int = 60, rows: int = 115, missing: float = 0.01, alike: float = 0.6
) -> int:
    """Write the sample table as CSV, atomically; returns its number of rows.

    rows: of a hospital, in the mean. missing: the share of measurements that are not there.
    seed: other seeds give other hospitals, for which the same measurements matter, as far as they are alike.
    alike: the share of what decides an outcome that all hospitals have in common; in the rest each differs.

    Raises:
        UserError: if the file is there already or cannot be written, or an argument is out of range.
    """
    if path.suffix.lower() != ".csv":
        raise UserError(f"{path} does not end with .csv, and a sample is written as CSV; choose such a name")
    if path.exists():
        raise UserError(f"{path} is there already, and is not overwritten; choose another name")
    for name, share in {"missing": missing, "alike": alike}.items():
        if not 0 <= share <= 1:
            raise UserError(f"--{name} {share} is no share; give a number from 0 to 1")
    if clients < 1 or rows < 1 or seed < 0:
        raise UserError("a sample has at least one client and one row of each, and its seed is at least 0")
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    written = 0
    for row in _table(seed, clients, rows, missing, alike):
        writer.writerow(row)
        written += 1
    write_bytes(path, text.getvalue().encode())
    return written


def _table(seed: int, clients: int, rows: int, missing: float, alike: float) -> Iterator[list[str]]:
    """The rows of all hospitals, one hospital after another, as text; tables of other seeds have others."""
    generator, shared = np.random.default_rng(seed), _effects(np.random.default_rng(_SHARED))
    sizes = np.clip(rows * generator.lognormal(-0.18, 0.6, clients), min(_FEWEST, rows), 4 * rows).astype(int)
    first = 1 + seed * max(1000, clients)
    digits, visit = len(str(first + clients - 1)), 0
    for number, size in enumerate(sizes.tolist(), first):
        own = _effects(generator)
        effects = _Effects(*(np.sqrt(alike) * a + np.sqrt(1 - alike) * b for a, b in zip(shared, own, strict=True)))
        for row in _hospital(generator, effects, size, missing, visit):
            yield [f"hospital {number:0{digits}d}", *row]
        visit += size


def _effects(generator: np.random.Generator) -> _Effects:
    """Effects drawn anew: a few measurements count for much, the rest for little."""
    count = len(_MEASUREMENTS)
    weights = (
        generator.normal(size=(count, len(OUTCOMES))) * generator.permutation(np.geomspace(2, 0.1, count))[:, None]
    )
    wards = 0.7 * generator.normal(size=(len(WARDS), len(OUTCOMES)))
    days = generator.normal(size=count) * generator.permutation(np.geomspace(2, 0.1, count))
    return _Effects(np.concatenate([weights, wards]), np.concatenate([days, generator.normal(size=len(WARDS))]))


def _hospital(
    generator: np.random.Generator, effects: _Effects, size: int, missing: float, first_visit: int
) -> Iterator[list[str]]:
    """The rows of one hospital: `size` of them, in visits of one to three, which share a patient, a ward and a day."""
    visits = np.repeat(np.arange(size), generator.integers(1, 4, size))[:size]
    wards = generator.choice(len(WARDS), size, p=_WARD_SHARES)[visits]
    days = generator.integers(0, _DAYS, size)[visits]
    count = len(_MEASUREMENTS)
    patients, readings = generator.normal(size=(size, count))[visits], generator.normal(size=(size, count))
    measured = 0.4 * generator.normal(size=count) + np.sqrt(0.5) * (patients + readings)
    inputs = np.concatenate([measured, np.eye(len(WARDS))[wards]], axis=1)
    outcomes = (inputs @ effects.outcome + generator.gumbel(size=(size, len(OUTCOMES)))).argmax(axis=1)
    lengths = np.maximum(12 + 1.5 * inputs @ effects.days + 1.5 * generator.normal(size=size), 0.5)
    gaps = generator.random((size, count)) < missing
    for row in range(size):
        texts = [
            "" if gap else f"{_value(measurement, value):.5g}"
            for measurement, value, gap in zip(_MEASUREMENTS.values(), measured[row], gaps[row], strict=True)
        ]
        day = _FIRST_DAY + datetime.timedelta(days=int(days[row]))
        start = [f"v{first_visit + int(visits[row]):06d}", day.isoformat(), WARDS[wards[row]]]
        yield [*start, *texts, OUTCOMES[outcomes[row]], f"{lengths[row]:.1f}"]


def _value(measurement: _Measurement, standardized: float) -> float:
    """A measurement in its own unit."""
    if measurement.heavy:
        return measurement.middle * float(np.exp(measurement.spread * standardized))
    return measurement.middle + measurement.spread * standardized
