"""A reader of `tf.train.Example`, the protocol buffer in TensorFlow Federated's files.

    Example   { Features features = 1; }
    Features  { map<string, Feature> feature = 1; }
    Feature   { oneof { BytesList bytes_list = 1; FloatList float_list = 2; Int64List int64_list = 3; } }
    *List     { repeated value = 1; }

All malformed input raises `ValueError`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Span(NamedTuple):
    """Where a field's value lies in the message."""

    start: int
    stop: int


def features(message: bytes) -> dict[str, list[Span]]:
    """Where the values of each feature are.

    The values of a list may be packed into one span or have one each; joined, the bytes are the same.
    """
    found = {}
    for _, example in _fields(message, Span(0, len(message)), 1):
        for _, entry in _fields(message, example, 1):
            pair = dict(_fields(message, entry, 1, 2))
            if len(pair) != 2:
                raise ValueError("a feature without a name or a value")
            lists = (item for _, item in _fields(message, pair[2], 1, 2, 3))
            name = message[slice(*pair[1])].decode()
            found[name] = [value for item in lists for _, value in _fields(message, item, 1)]
    return found


def byte_strings(message: bytes, name: str) -> list[bytes]:
    """The byte strings of one feature."""
    return [message[slice(*span)] for span in _named(message, name)]


def images(messages: Sequence[bytes], *, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The features `pixels` and `label` of many messages: float32 `[n, size]`, int64 `[n]`.

    Messages of one length mostly have the same bytes but for the values, so one of them is parsed and its
    layout is applied to all that share it.
    """
    pixels = np.empty((len(messages), size), np.float32)
    labels = np.empty(len(messages), np.int64)
    lengths = defaultdict(list)
    for i, message in enumerate(messages):
        lengths[len(message)].append(i)
    for length, rows in lengths.items():
        left = np.array(rows)
        table = np.frombuffer(b"".join([messages[i] for i in rows]), np.uint8).reshape(-1, length)
        while len(left):
            alike = _alike(table, size)
            # Where hardly any share a layout, looking for those that do would take the square of their number.
            if alike is None or 64 * int(alike[0].sum()) < len(left):
                alike = np.ones(len(left), bool), _one_by_one(table, size)
            same, found = alike
            pixels[left[same]], labels[left[same]] = found
            left, table = left[~same], table[~same]
    return pixels, labels


def _alike(table: np.ndarray, size: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]] | None:
    """Which messages (uint8 `[n, length]`) share the first one's layout, and their pixels and labels.

    None if the layout is not the usual one: all pixels in one span, a label of one byte.
    """
    image, label = _image_spans(table[0].tobytes())
    if len(image) != 1 or len(label) != 1 or label[0].stop - label[0].start != 1:
        return None
    fixed = np.ones(table.shape[1], bool)
    fixed[slice(*image[0])] = fixed[slice(*label[0])] = False
    labels = table[:, label[0].start]
    same = (table[:, fixed] == table[0, fixed]).all(axis=1)
    data = np.ascontiguousarray(table[same, slice(*image[0])])
    if data.shape[1] != 4 * size:
        raise ValueError(f"an image of {data.shape[1] / 4:g} pixels, not {size}")
    if (labels[same] >= 128).any():
        raise ValueError("a number that does not end")
    return same, (data.view("<f4"), labels[same])


def _one_by_one(table: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = [], []
    for message in (row.tobytes() for row in table):
        image, label = _image_spans(message)
        pixels.append(np.frombuffer(b"".join(message[slice(*span)] for span in image), "<f4"))
        labels.append(_integer(b"".join(message[slice(*span)] for span in label)))
        if len(pixels[-1]) != size:
            raise ValueError(f"an image of {len(pixels[-1])} pixels, not {size}")
    return np.stack(pixels), np.array(labels)


def _integer(data: bytes) -> int:
    value, after = _varint(data, 0)
    value &= (1 << 64) - 1
    if after != len(data):
        raise ValueError("an example with several labels")
    return value - (1 << 64) if value >= 1 << 63 else value


def _image_spans(message: bytes) -> tuple[list[Span], list[Span]]:
    return _named(message, "pixels"), _named(message, "label")


def _named(message: bytes, name: str) -> list[Span]:
    found = features(message)
    if name not in found:
        raise ValueError(f"an example without the feature {name!r}")
    return found[name]


def _fields(message: bytes, span: Span, *numbers: int) -> Iterator[tuple[int, Span]]:
    """The fields with these numbers; of the others, nothing."""
    at = span.start
    while at < span.stop:
        tag, at = _varint(message, at)
        value = _value(message, at, tag & 7)
        if value.stop > span.stop:
            raise ValueError("a field that is longer than its message")
        if tag >> 3 in numbers:
            yield tag >> 3, value
        at = value.stop


def _value(message: bytes, at: int, wire: int) -> Span:
    if wire == _BYTES:
        length, at = _varint(message, at)
        return Span(at, at + length)
    if wire == _VARINT:
        return Span(at, _varint(message, at)[1])
    if wire in (_FIXED32, _FIXED64):
        return Span(at, at + (4 if wire == _FIXED32 else 8))
    raise ValueError(f"a field of unknown wire type {wire}")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number that does not end")
