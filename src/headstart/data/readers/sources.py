"""Which files make up a data set, and what format they have, by what is in them."""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast
from urllib.parse import quote

from headstart.data.cache import cache_root
from headstart.data.readers.limits import NUMBERS, allowance, limited, refuse_larger
from headstart.data.readers.picture_folder import pictures_in
from headstart.errors import UserError
from headstart.files import TEMPORARY

Format = Literal["sqlite", "h5", "json", "npz", "parquet", "csv", "pictures"]

_ACCEPTED = "TFF sqlite (.lzma) or h5, FedJAX sqlite, LEAF JSON (.gz), npz, Parquet or CSV"
_FOLDERS = (
    "give the path of a file, or a folder with Parquet, CSV or npz files of the same columns, or with pictures in"
    " client/class/"
)
_SUFFIXES = (".sqlite", ".db", ".h5", ".hdf5", ".json", ".npz", ".parquet", ".csv", ".tsv", ".lzma", ".xz", ".gz")
_PART = re.compile(r"(train|test)(?!.*(train|test))")
PART_WORD = re.compile(r"(?<![A-Za-z])(train|test)(?![A-Za-z])")


class Sources(NamedTuple):
    """The files of a data set.

    path: the one that messages name, and the only one that TFF's sqlite reads.
    train, test: a pair, or several; one of them empty if the other part has no file.
    folder: where they lie, if it is the folder that is the data set, whatever the files in it are called.
    """

    path: Path
    train: tuple[Path, ...]
    test: tuple[Path, ...]
    folder: Path | None = None

    @property
    def files(self) -> list[Path]:
        """All of them."""
        return [*self.train, *self.test]


def find(path: Path) -> Sources:
    """The file with the other part of its pair, if there is one; or the pairs in a folder.

    Raises:
        UserError: if there is nothing, or a folder holds several data sets.
    """
    if not path.exists():
        raise UserError(f"{path} is neither a file nor a data set's name; the names are glyphs, emnist and shakespeare")
    if path.is_dir():
        return _find_in_folder(path)
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty; get or write it again")
    return _sources(path, sorted({path, *_partner(path)}))


def _sources(path: Path, files: list[Path]) -> Sources:
    test = tuple(file for file in files if _part(file) == "test")
    return Sources(path, tuple(file for file in files if file not in test), test)


def _part(path: Path) -> str | None:
    match = _PART.search(path.name)
    return match.group() if match else None


def _partner(path: Path) -> list[Path]:
    """The file of the same name but for `train` and `test`: beside, or in LEAF's folders `train` and `test`."""
    part = _part(path)
    if not part:
        return []
    other = "test" if part == "train" else "train"
    name = _PART.sub(other, path.name)
    # Absolute, for a path may begin inside LEAF's folder `train`.
    candidates = [path.with_name(name), path.absolute().parent.parent / other / name]
    return [candidate for candidate in candidates if candidate.is_file()][:1]


def _find_in_folder(folder: Path) -> Sources:
    folders = [folder, folder / "train", folder / "test"]
    files = sorted(f for each in folders if each.is_dir() for f in each.iterdir() if _is_data(f))
    # LEAF numbers the files of one data set.
    names = {re.sub(r"\d+", "#", _PART.sub("", file.name)) for file in files}
    one = len(names) == 1 and (len(files) == 1 or all(_part(file) for file in files))
    pair = one and len({_part(file) for file in files}) == len(files)
    if not pair and (shards := _shards(folder, files)):
        return shards
    if one:
        return _sources(files[0], files)
    if pictures := pictures_in(folder):
        return Sources(folder, tuple(pictures), (), folder)
    below = sorted(f for each in folder.iterdir() if each.is_dir() for f in each.iterdir() if _is_data(f))
    if not files and (shards := _shards(folder, below)):
        return shards
    found = "no data file" if not files else f"{len(files)} files that are not one data set"
    raise UserError(f"{folder} is a folder with {found}; {_FOLDERS} ({_ACCEPTED})")


def _shards(folder: Path, files: list[Path]) -> Sources | None:
    """Tables of one format, which are one data set because they lie in one folder.

    None if they are none, or some are of a part, and others of none.
    """
    if {_table_ending(file) for file in files} not in ({".npz"}, {".parquet"}, {".csv"}):
        return None
    parts = {file: PART_WORD.findall(str(file.relative_to(folder)))[-1:] for file in files}
    if not all(parts.values()) and any(parts.values()):
        return None
    test = tuple(file for file in files if parts[file] == ["test"])
    return Sources(files[0], tuple(file for file in files if file not in test), test, folder)


def _table_ending(path: Path) -> str:
    """The last ending that is none of a packer's; text with tabs is CSV, too."""
    ending = next((ending for ending in reversed(path.suffixes) if ending not in (".gz", ".xz", ".lzma")), "")
    return ".csv" if ending == ".tsv" else ending


def _is_data(path: Path) -> bool:
    return path.is_file() and path.suffix in _SUFFIXES and not path.name.startswith(".")


def recognise(path: Path) -> Format:
    """The format, from the first bytes, unpacked; a folder is one of pictures.

    Raises:
        UserError: if it is none of the known ones.
    """
    if path.is_dir():
        return "pictures"
    with unpacked(path) as file:
        head = file.read(65536)
    for magic, found in _MAGIC.items():
        if head.startswith(magic):
            return found
    if head.lstrip().startswith(b"{"):
        return "json"
    if delimiter(head):
        return "csv"
    raise UserError(f"{path} is of no format that headstart knows; give {_ACCEPTED}")


_MAGIC: dict[bytes, Format] = {
    b"SQLite format 3\0": "sqlite",
    b"\x89HDF\r\n\x1a\n": "h5",
    b"PK\x03\x04": "npz",
    b"PAR1": "parquet",
}


def delimiter(head: bytes) -> str | None:
    """What separates the columns of a text's first line; None if this is no such text."""
    try:
        line = head.split(b"\n")[0].decode()
    except UnicodeDecodeError:
        return None
    found = max(",;\t", key=line.count)
    return found if found in line and b"\0" not in head else None


def unpacked(path: Path, least: int = NUMBERS) -> IO[bytes]:
    """Open a file; what lzma, xz or gzip packed is unpacked on the way, up to its allowance.

    least: as in `limits.allowance`.
    """
    opener = _unpacker(path)
    if not opener:
        return path.open("rb")
    most = allowance(path, least)
    return limited(cast(IO[bytes], opener(path, "rb")), path, most)


def is_packed(path: Path) -> bool:
    """Whether lzma, xz or gzip packed this file."""
    return _unpacker(path) is not None


def _unpacker(path: Path) -> Callable[..., gzip.GzipFile | lzma.LZMAFile] | None:
    with path.open("rb") as file:
        head = file.read(6)
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile
    return lzma.LZMAFile if head.startswith((b"]\0\0", b"\xfd7zXZ\0")) else None


@contextmanager
def open_database(path: Path) -> Iterator[sqlite3.Connection]:
    """A SQLite file to read from; a packed one is unpacked for as long.

    Of a hostile one, no query takes longer than one that reads every byte of it several times.
    """
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=roomy_folder(), ignore_cleanup_errors=True) as folder:
        plain = path
        if is_packed(path):
            plain = Path(folder) / "data.sqlite"
            with unpacked(path) as file, plain.open("wb") as copy:
                shutil.copyfileobj(file, copy, 1 << 20)
        address = f"file:{quote(str(plain.resolve()))}?mode=ro&immutable=1"
        with closing(sqlite3.connect(address, uri=True)) as database:
            _bound(database, plain.stat().st_size)
            yield database


def _bound(database: sqlite3.Connection, size: int) -> None:
    """End queries that take more steps, and values that are larger, than a file of this size (bytes) has in it."""
    calls = iter(range(max(200, size // 250_000)))
    database.set_progress_handler(lambda: next(calls, None) is None, 1_000_000)
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, min(max(size, 1 << 20), 10**9))
    database.execute("PRAGMA trusted_schema = OFF")


def typed(
    path: Path, database: sqlite3.Connection, query: str, *kinds: Any, given: Sequence[Any] = ()
) -> Iterator[Any]:
    """The rows of a query, whose columns are of these types, and which hold no more than the database's file can.

    given: the query's parameters. path: for messages.

    Raises:
        UserError: for more than there can be. ValueError: for a value of another type.
    """
    most, total = 4 * _size(database) + (1 << 20), 0
    rows = database.execute(query, given)
    for row in rows:
        for value, kind, (column, *_) in zip(row, kinds, rows.description, strict=True):
            if not isinstance(value, kind):
                raise ValueError(f"a {column} of type {type(value).__name__}, not {getattr(kind, '__name__', kind)}")
        total += 8 + sum(len(value) for value in row if isinstance(value, str | bytes))
        refuse_larger(path, total, most)
        yield row


def _size(database: sqlite3.Connection) -> int:
    """The bytes of an open database's file."""
    (pages,), (each,) = (database.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
    return pages * each


def roomy_folder() -> Path | None:
    """Unpacked files are large: rather beside the cache than in a temporary folder, which may be in memory."""
    folder = cache_root() / "rows"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None
