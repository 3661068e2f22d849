"""What HDF5, FedJAX and LEAF files share: whole clients, train and test examples in files of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.readers import images, text
from headstart.data.readers.rows import Chunk, Rows, assemble, joined_unless_split, listed, reading, refuse_empty
from headstart.errors import UserError

_KNOWN = ({"pixels", "label"}, {"snippets"}, {"windows"}, {"features", "target"})
# A client's id and its fields: `pixels` and `label`, or `snippets`, or `windows` (81 characters each), or
# `features` and `target` with perhaps a `note`, of a reader that checks the targets itself.
Clients = Iterator[tuple[str, Mapping[str, Any]]]


def read_whole(open_clients: Callable[[Path], Clients], train: Sequence[Path], test: Sequence[Path], what: str) -> Rows:
    """Rows from files of clients. With no files of one sort, there is no split, and all examples are of the other."""
    path = [*train, *test][0]
    has_predefined_split = bool(train and test)
    files = [(file, False) for file in train] + [(file, has_predefined_split) for file in test]
    clients = _all_clients(open_clients, files)
    first = next(clients, None)
    source = f"{what} {path.name}"
    chunks = (_chunk(*client) for client in chain([first] if first else [], clients))
    if first and "features" in first[2]:
        metadata = {"kind": "features", "source": source}
        metadata |= {"notes": [first[2]["note"]]} if "note" in first[2] else {}
        return joined_unless_split(assemble(chunks, metadata, has_predefined_split=has_predefined_split))
    if first and "pixels" not in first[2]:
        return joined_unless_split(text.passage(chunks, source=source, has_predefined_split=has_predefined_split))
    return joined_unless_split(
        images.handwriting(chunks, path, source=source, has_predefined_split=has_predefined_split)
    )


def _all_clients(
    open_clients: Callable[[Path], Clients], files: Sequence[tuple[Path, bool]]
) -> Iterator[tuple[str, bool, Mapping[str, Any]]]:
    counts = Counter()
    for path, test in files:
        seen: set[str] = set()
        with reading(path):
            for client, fields in open_clients(path):
                if client in seen:
                    raise ValueError(f"client {client} occurs twice")
                seen.add(client)
                _check_fields(path, fields)
                lengths = {len(values) for name, values in fields.items() if name != "note"}
                if len(lengths) != 1:
                    raise ValueError(f"client {client} has fields of different lengths")
                counts[client] += lengths.pop()
                yield client, test, fields
    refuse_empty(files[0][0], counts)


def _check_fields(path: Path, fields: Mapping[str, Any]) -> None:
    if not any(known <= fields.keys() for known in _KNOWN):
        raise UserError(
            f"{path} is another data set: its clients have the fields {listed(sorted(fields))}, not pixels and"
            " label, or snippets; write it as npz, Parquet or CSV"
        )
    if any(not hasattr(values, "__len__") or getattr(values, "ndim", 1) == 0 for values in fields.values()):
        raise ValueError("a field that is no list")


def _chunk(client: str, test: bool, fields: Mapping[str, Any]) -> Chunk:
    if "snippets" in fields:
        texts = [t.encode() if isinstance(t, str) else bytes(t) for t in fields["snippets"]]
        return text.snippets([client] * len(texts), [test] * len(texts), texts)
    if "windows" in fields:
        return text.windows(client, test, fields["windows"])
    if "features" in fields:
        return _vectors(client, test, fields["features"], fields["target"])
    labels, pixels = np.asarray(fields["label"]), np.asarray(fields["pixels"])
    if labels.shape != (len(pixels),) or pixels.size != len(pixels) * images.SIDE**2:
        raise ValueError(f"client {client} has examples that are not {images.SIDE} by {images.SIDE} pixels and a label")
    return images.chunk([client] * len(labels), test, pixels, labels, len(images.LABELS))


def _vectors(client: str, test: bool, x: np.ndarray, y: np.ndarray) -> Chunk:
    if x.ndim != 2 or y.ndim not in (1, 2):
        raise ValueError(f"client {client} has examples that are no lists of as many numbers")
    wrong = ~np.isfinite(x).all(axis=1)
    if wrong.any():
        raise UserError(
            f"client {client} has a number that is missing or infinite in example {int(np.argmax(wrong)) + 1}; mend or"
            " leave out this example"
        )
    return Chunk([client] * len(x), test, x, y)
