"""The sample table: hospitals that differ somewhat, the same for the same seed."""

import csv

import numpy as np

from headstart.data.load import load
from headstart.data.sample import write_sample


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_sample_is_a_table_as_hospitals_have_it(command, tmp_path):
    code, out, _ = command("sample", "hospitals.csv")
    rows = _rows(tmp_path / "hospitals.csv")
    assert code == 0 and f"{len(rows):,} rows of 60 hospitals" in out and 6_000 < len(rows) < 7_500
    assert len({row["hospital"] for row in rows}) == 60 and len({row["outcome"] for row in rows}) == 3
    assert {len({row[name] for row in rows if row["visit"] == "v000000"}) for name in ("hospital", "ward")} == {1}
    numbers = [name for name in rows[0] if name not in ("hospital", "visit", "admitted", "ward", "outcome", "days")]
    values = np.array([[float(row[name] or "nan") for name in numbers] for row in rows])
    spreads = np.nanstd(values, axis=0)
    assert len(numbers) == 19 and spreads.min() < 0.05 and spreads.max() > 1e4
    assert 0.008 < np.isnan(values).mean() < 0.012
    days = np.array([float(row["days"]) for row in rows])
    assert days.min() >= 0.5 and 4 < days.std() < 8
    before = (tmp_path / "hospitals.csv").read_bytes()
    code, _, err = command("sample", "hospitals.csv", "--seed", "1")
    assert code == 2 and "is there already" in err and (tmp_path / "hospitals.csv").read_bytes() == before


def test_the_sample_derives_from_its_seed_and_is_as_large_as_asked(tmp_path):
    options = {"clients": 5, "rows": 30, "missing": 0.0}
    sizes = [write_sample(tmp_path / f"{n}.csv", seed=seed, **options) for n, seed in enumerate((7, 7, 8))]
    one, same, other = ((tmp_path / f"{n}.csv").read_bytes() for n in range(3))
    assert one == same and one != other and sizes[0] == len(_rows(tmp_path / "0.csv"))
    federation = load(tmp_path / "0.csv", client="hospital", target="outcome", features=["age", "crp"])
    assert len(federation) == 5 and federation.metadata["labels"] == ["readmitted", "recovered", "transferred"]
