"""The federation of the line `shards`: a folder of Parquet files, larger than what a point may have in memory."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

import headstart as hs
from headstart.data.cache import cache_root

CLIENTS, ROWS, SHARDS = 24_000, 100, 8
# Of a tenth of the data, in bytes.
LIMIT = CLIENTS * ROWS * 28 * 28 // 10
_AT_ONCE = 100


def write(folder: Path) -> None:
    """Write shards of rows drawn from 20,000 of `glyphs`, clients in order, pictures as lists of lists of bytes."""
    import pyarrow as pa  # only here: a point's memory is measured without it
    from pyarrow import parquet

    schema = pa.schema([("client", pa.string()), ("x", pa.list_(pa.list_(pa.uint8(), 28), 28)), ("y", pa.int32())])
    folder.mkdir()
    drawn = hs.load("glyphs", writers=200, examples=100, test_fraction=0.0)
    x, y = drawn.fetch(np.arange(200))
    x, generator = np.ascontiguousarray(x).reshape(-1, 28 * 28), np.random.default_rng(0)
    for shard in range(SHARDS):
        clients = range(shard * CLIENTS // SHARDS, (shard + 1) * CLIENTS // SHARDS)
        with parquet.ParquetWriter(folder / f"part-{shard:03d}.parquet", schema, compression="zstd") as file:
            for first in range(clients.start, clients.stop, _AT_ONCE):
                ids = np.arange(first, min(first + _AT_ONCE, clients.stop))
                rows = generator.integers(0, len(x), len(ids) * ROWS)
                lines = pa.FixedSizeListArray.from_arrays(pa.array(x[rows].reshape(-1)), 28)
                pictures = pa.FixedSizeListArray.from_arrays(lines, 28)
                owners = pa.array(np.repeat([f"client{i:06d}" for i in ids], ROWS))
                file.write_table(pa.table([owners, pictures, pa.array(y[rows])], schema=schema))


def forget() -> None:
    """Have the system let go of what it keeps of the rows in memory, so that they come from the disk."""
    for path in cache_root().glob("rows/*/x.npy"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Write the shards, or read them for the first time, and print how much memory that took."""
    folder = Path(sys.argv[1])
    if folder.exists():
        federation = hs.load(folder)
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        print(json.dumps({"clients": len(federation), "bytes": federation.nbytes, "peak_bytes": peak}))
    else:
        write(folder)


if __name__ == "__main__":
    main()
