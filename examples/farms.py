"""A regression federation to try things on: the yield of fields, by farm; each farm's soil answers in its own way.

Command: python examples/farms.py farms.npz
Then: headstart compare fedavg --data farms.npz --model linear
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

FARMS, MEASURES = 36, 3


def write(path: Path, *, seed: int = 0) -> None:
    """Farms of 12 to 40 fields: x is what was measured of a field, `[fields, 3]`, y its yield, `[fields]`.

    A farm's slopes lie around those of all farms, with half their size for a standard deviation.
    """
    generator = np.random.default_rng(seed)
    fields = generator.integers(12, 41, FARMS)
    slopes = 1 + 0.5 * generator.normal(size=(FARMS, MEASURES))
    x = generator.normal(size=(fields.sum(), MEASURES))
    y = (x * np.repeat(slopes, fields, axis=0)).sum(axis=1) + generator.normal(0, 0.3, len(x))
    names = np.repeat([f"farm-{number:02d}" for number in range(FARMS)], fields)
    np.savez(path, client=names, x=x.astype(np.float32), y=y.astype(np.float32))


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "farms.npz"))
