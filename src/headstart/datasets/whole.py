"""What HDF5, FedJAX and LEAF files share: whole clients, train and test examples in files of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from headstart.datasets import images, text
from headstart.datasets.rows import Chunk, Rows, reading, refuse_empty

# A client's id and its fields: `pixels` and `label`, or `snippets`, or `x` and `y` (80 characters and the next one).
Clients = Iterator[tuple[str, Mapping[str, Any]]]


def read_whole(open_clients: Callable[[Path], Clients], train: Sequence[Path], test: Sequence[Path], what: str) -> Rows:
    """Rows from files of clients. With no files of one sort, there is no split, and all examples are of the other."""
    path = [*train, *test][0]
    own_split = bool(train and test)
    files = [(file, False) for file in train] + [(file, own_split) for file in test]
    clients = _all_clients(open_clients, files)
    first = next(clients, None)
    keep = {"source": f"{what} {path.name}", "own_split": own_split}
    chunks = (_chunk(*client) for client in chain([first] if first else [], clients))
    if first and "pixels" not in first[2]:
        return text.passage(chunks, **keep)
    return images.handwriting(chunks, path, **keep)


def _all_clients(
    open_clients: Callable[[Path], Clients], files: Sequence[tuple[Path, bool]]
) -> Iterator[tuple[str, bool, Mapping[str, Any]]]:
    counts = Counter()
    for path, test in files:
        with reading(path):
            for client, fields in open_clients(path):
                lengths = {len(values) for values in fields.values()}
                if len(lengths) != 1:
                    raise ValueError(f"client {client} has fields of different lengths")
                counts[client] += lengths.pop()
                yield client, test, fields
    refuse_empty(files[0][0], counts)


def _chunk(client: str, test: bool, fields: Mapping[str, Any]) -> Chunk:
    if "snippets" in fields:
        texts = [t.encode() if isinstance(t, str) else bytes(t) for t in fields["snippets"]]
        return text.snippets([client] * len(texts), [test] * len(texts), texts)
    if "x" in fields:
        return text.windows(client, test, fields["x"], fields["y"])
    owners = [client] * len(fields["label"])
    return images.chunk(owners, test, fields["pixels"], fields["label"], len(images.LABELS))
