"""A folder of pictures: `client/class/*.png`, and `train` and `test` above or below the client where there are both."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from headstart.data.readers import images
from headstart.data.readers.limits import total_allowance
from headstart.data.readers.picture_files import pixels_of, stacked
from headstart.data.readers.pictures import is_character
from headstart.data.readers.rows import Rows, accept, arrange, joined_unless_split, listed
from headstart.data.readers.targets import decided_classes, target_classes
from headstart.errors import UserError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".pgm", ".ppm")
_PARTS = {"train", "test"}
# Folders that other tools leave, and what data sets call parts that are no clients.
_NOT_DATA, _NO_CLIENTS = {"__MACOSX"}, {"train", "test", "val", "valid", "validation"}


class _Layout(NamedTuple):
    """What the folders of a picture say: the position of each in its path below the data set's folder."""

    client: int
    label: int
    part: int | None


def pictures_in(folder: Path) -> list[Path]:
    """The pictures two folders or more below this one, in order."""
    below = ((file, depth) for depth, files in _files_below(folder, 4) for file in files)
    return sorted(file for file, depth in below if depth >= 2 and file.suffix.lower() in ENDINGS)


def _files_below(folder: Path, most: int, depth: int = 0) -> Iterator[tuple[int, list[Path]]]:
    """The files of a folder and of those in it, with the depth they lie at; hidden ones are none."""
    with os.scandir(folder) as entries:
        seen = sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
    yield depth, [Path(entry.path) for entry in seen if entry.is_file()]
    for entry in seen:
        if depth < most and entry.is_dir(follow_symlinks=False) and entry.name not in _NOT_DATA:
            yield from _files_below(Path(entry.path), most, depth + 1)


def read_pictures(
    folder: Path,
    files: Sequence[Path],
    options: Mapping[str, Any],
    decided: Mapping[str, Any] = MappingProxyType({}),
) -> Rows:
    """Rows of pictures, uint8 `[rows, height, width, 1 or 3]`, as bright or dark as they are; classes are named.

    Option `labels=a,b` gives the order of the classes. decided: what training decided; see `decided.decisions`.

    Raises:
        UserError: for folders of another layout, and for pictures of different sizes, damaged, or of more than 8 bits.
    """
    accept(options, ["labels"], f"{folder} (pictures)")
    paths = [file.relative_to(folder).parts[:-1] for file in files]
    layout = _layout(folder, files, paths)
    owners = [path[layout.client] for path in paths]
    names = np.array([path[layout.label] for path in paths], object)
    test = np.array([layout.part is not None and path[layout.part] == "test" for path in paths])
    x, notes = _decoded(folder, files)
    known = {name: decided[name] for name in ("classes", "labels") if name in decided}
    where = "the names of its innermost folders"
    if known:
        y, metadata = decided_classes(str(folder), where, names, known, owners)
    else:
        y, metadata = target_classes(str(folder), where, names, options, owners)
    metadata |= {"kind": "image", "source": f"pictures {folder.resolve().name}"}
    if is_character(x) and not 64 <= (level := images.background(x)) < 192:
        metadata["background"] = level
    if notes:
        metadata["notes"] = notes
    numbers = {name: number for number, name in enumerate(dict.fromkeys(owners))}
    codes = np.array([numbers[owner] for owner in owners], np.int64)
    split = bool(0 < test.sum() < len(test))
    return joined_unless_split(
        arrange(list(numbers), codes, test & split, x, y, metadata=metadata, has_predefined_split=split)
    )


def _layout(folder: Path, files: Sequence[Path], paths: Sequence[tuple[str, ...]]) -> _Layout:
    depths = {len(path) for path in paths}
    advice = "put each picture into client/class/, or into train/client/class/ and test/client/class/"
    if len(depths) > 1:
        odd = next(file for file, path in zip(files, paths, strict=True) if len(path) != min(depths))
        raise UserError(f"{folder} has pictures in folders of different depths, such as {odd} and {files[0]}; {advice}")
    names = [set(level) for level in zip(*paths, strict=True)]
    parts = [level for level, found in enumerate(names) if found <= _PARTS]
    if len(names) == 3 and parts in ([0], [1], [2]):
        client, label = (level for level in range(3) if level != parts[0])
        return _Layout(client, label, parts[0])
    wrong = next((found for found in names if found <= _NO_CLIENTS), None)
    if len(names) != 2 or wrong:
        what = f"where {listed(sorted(wrong))} are no clients or classes" if wrong else "three folders deep"
        raise UserError(f"{folder} has pictures such as {files[0].relative_to(folder)}, {what}; {advice}")
    return _Layout(0, 1, None)


def _decoded(folder: Path, files: Sequence[Path]) -> tuple[np.ndarray, list[str]]:
    """The pictures as one array, and what was changed."""
    most = total_allowance(files)
    pictures = ((str(file), pixels_of(file, file)) for file in files)
    x, mixed = stacked(len(files), pictures, most, files[0])
    notes = ["some pictures are grey and some in colour, and all are read as colour"] if mixed else []
    other = [f for depth, found in _files_below(folder, 4) for f in found if depth and f.suffix.lower() not in ENDINGS]
    if other:
        notes.append(f"files that are no pictures are left out ({len(other)}, such as {other[0].name})")
    return x, notes
