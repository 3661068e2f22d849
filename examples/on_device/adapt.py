"""Adapt a model on a device, from what `headstart export` wrote and the device's own examples; needs no headstart.

    pip install jax numpy flatbuffers safetensors
    python adapt.py artifact data.npz --client tablet-7 --out adapted

`data.npz` holds the device's examples as arrays `x` and `y`. A model of a table takes its columns as they were before
training, by name: arrays of an .npz file, or a .csv file with a header. A part of the examples is held back: the
adapted model is kept only if it is better there than the initial one (`--no-gate` adapts to all of them and keeps the
result). The folder
`adapted` then holds the model that was kept (`parameters.safetensors`), its predictions for `x`, or for the x of
`--predict` (`predictions.npz`), and the decision with its figures (`decision.json`).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

try:
    import flatbuffers  # noqa: F401 (JAX reads exported programs with it)
    import jax
    import numpy as np
    from jax import export
    from safetensors.numpy import load, save
except ImportError as missing:
    print(f"adapt.py: {missing}; pip install jax numpy flatbuffers safetensors", file=sys.stderr)
    sys.exit(2)

# 2 is of a table, whose columns the artifact says how to make features of.
FORMATS = (1, 2)
PROGRAMS = ("adapt", "measure", "predict")


# A number farther from its center, in scales, counts as this far, as in training; and what stands for no value.
LIMIT, ROBUST_LIMIT = 10.0, 5.0
GAPS = frozenset(("", "na", "n/a", "nan", "null", "none", "nil", "?", "-", "--", ".", "missing", "unknown", "#n/a"))


class MistakeError(Exception):
    """A mistake that the user can mend, in one sentence."""


class Data(NamedTuple):
    """Examples: x `[examples, ...]`, y `[examples, ...]`."""

    x: np.ndarray
    y: np.ndarray

    def rows(self, chosen: np.ndarray) -> Data:
        """The examples in these rows."""
        return Data(self.x[chosen], self.y[chosen])


@dataclass(frozen=True)
class Decision:
    """The decision between the two models, and its figures.

    kept: "adapted" or "initial". length: epochs (or steps). initial, adapted: the metric of each model on the examples
    held back; None where there are none. held_back: their rows.
    """

    kept: str
    sentence: str
    client: str
    length: int
    initial: float | None = None
    adapted: float | None = None
    held_back: tuple[int, ...] = ()


@dataclass(frozen=True)
class Artifact:
    """An artifact that was read and checked.

    about: its `artifact.json`. parameters: the initial model, in the order the programs take. programs: compiled.
    """

    about: dict[str, Any]
    parameters: list[np.ndarray]
    programs: dict[str, Callable[..., Any]]

    def adapt(self, data: Data, client: str, epochs: int) -> list[np.ndarray]:
        """The client's own parameters, after some epochs (or steps) on its examples."""
        x, y, size = self._padded(data.x, data.y)
        key = np.array(self.about["key"]["data"], np.uint32)
        leaves = self.programs["adapt"](self.parameters, x, y, size, key, client_key_data(client), np.int32(epochs))
        return [np.asarray(leaf) for leaf in leaves]

    def measure(self, parameters: list[np.ndarray], data: Data) -> float:
        """The task's metric over the examples."""
        return float(self.programs["measure"](parameters, *self._padded(data.x, data.y))[0])

    def predict(self, parameters: list[np.ndarray], x: np.ndarray) -> dict[str, np.ndarray]:
        """The model's output; if it classifies, the number `y` of the predicted class and its `label`."""
        output = np.asarray(self.programs["predict"](parameters, *self._padded(x)))[: len(x)]
        if self.about["output"] != "classes":
            return {"output": in_own_units(output, self.about["facts"])}
        y, labels = output.argmax(axis=-1), [str(label) for label in self.about["facts"].get("labels") or ()]
        named = {"label": np.array(labels)[y]} if len(labels) == output.shape[-1] else {}
        return {"output": output, "y": y, **named}

    def _padded(self, *arrays: np.ndarray) -> tuple[Any, ...]:
        """The arrays padded to a capacity, and the number of valid rows: few sizes mean few compiled programs."""
        size = len(arrays[0])
        capacity = next((rows for rows in self.about["capacities"] if rows >= size), None)
        if capacity is None:
            raise MistakeError(f"{size} examples are more than {self.about['capacities'][-1]}; give fewer")
        padded = [np.concatenate([a, np.zeros((capacity - size, *a.shape[1:]), a.dtype)]) for a in arrays]
        return *padded, np.int32(size)


def client_key_data(client: str) -> np.ndarray:
    """uint32 `[2]`: the hash of a client's id, from which its randomness derives."""
    return np.frombuffer(hashlib.sha256(client.encode()).digest()[:8], "<u4").astype(np.uint32)


def read_artifact(folder: Path) -> Artifact:
    """The artifact in a folder.

    Raises:
        MistakeError: if a file is missing or damaged, or the programs do not run on this device.
    """
    about = read_description(folder / "artifact.json")
    files = {name: read_checked(folder / name, entry["sha256"]) for name, entry in about["files"].items()}
    try:
        platform = export.default_export_platform().lower()
    except RuntimeError as error:
        raise MistakeError(f"JAX finds no device: {first_line(error)}; set JAX_PLATFORMS=cpu") from error
    if platform not in about["platforms"]:
        accepted = ", ".join(about["platforms"])
        raise MistakeError(f"the artifact is for {accepted}, but JAX computes on {platform} here; set JAX_PLATFORMS")
    arrays = load(files["parameters.safetensors"])
    parameters = [arrays[entry["name"]] for entry in about["parameters"]]
    return Artifact(about, parameters, {name: program(files, name, about) for name in PROGRAMS})


def read_description(path: Path) -> dict[str, Any]:
    """`artifact.json`, whose last entry is the checksum of the others."""
    try:
        about = json.loads(path.read_bytes())
        expected = about.pop("sha256")
    except OSError as error:
        raise MistakeError(f"cannot read {path} ({error.strerror}); give a folder of `headstart export`") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise MistakeError(f"{path} is damaged ({first_line(error)}); copy the artifact again") from error
    if hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest() != expected:
        raise MistakeError(f"{path} is damaged: it does not match its checksum; copy the artifact again")
    if about["format"] not in FORMATS:
        known = " and ".join(map(str, FORMATS))
        raise MistakeError(f"{path} has format {about['format']}, this program reads {known}; use the one that fits")
    return about


def read_checked(path: Path, sha256: str) -> bytes:
    """A file's content, if it matches the checksum of the description."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MistakeError(f"cannot read {path} ({error.strerror}); copy the artifact again") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise MistakeError(f"{path} is damaged: it does not match its checksum; copy the artifact again")
    return content


def program(files: dict[str, bytes], name: str, about: dict[str, Any]) -> Callable[..., Any]:
    """The program of this name; it is compiled at its first call."""
    try:
        return jax.jit(export.deserialize(bytearray(files[f"{name}.jaxexport"])).call)
    except Exception as error:  # whatever another version of JAX raises
        made_with = about["made_with"]["jax"]
        raise MistakeError(
            f"JAX {jax.__version__} cannot read the program {name}, made with JAX {made_with} ({first_line(error)});"
            f" install JAX {made_with} or up to six months newer"
        ) from error


def read_data(path: Path, about: dict[str, Any], names: tuple[str, ...]) -> list[np.ndarray]:
    """The arrays of these names in an .npz file, in the types that the programs take; of a table, from its columns.

    Raises:
        MistakeError: if the file is missing or damaged, or an array has the wrong shape, type or values.
    """
    if "preprocessing" in about["facts"]:
        return read_table(path, about, names)
    with reading(path, "an .npz file of x and y"), npz_file(path) as file:
        absent = [name for name in names if name not in file.files]
        if absent:
            raise MistakeError(f"{path} has no array {absent[0]!r}; it holds {', '.join(file.files) or 'nothing'}")
        arrays = [
            accepted(f"{name} in {path}", as_trained(f"{name} in {path}", name, file[name], about), about[name])
            for name in names
        ]
    if len({len(array) for array in arrays}) > 1:
        raise MistakeError(f"{path} has {len(arrays[0])} rows of x and {len(arrays[1])} of y; give as many of both")
    return arrays


@contextmanager
def reading(path: Path, instead: str) -> Iterator[None]:
    """What goes wrong with a file, in one sentence that says what to give instead."""
    try:
        yield
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise MistakeError(f"cannot read {path} ({first_line(error)}); give {instead}") from error


@contextmanager
def npz_file(path: Path) -> Iterator[Any]:
    """The arrays of an .npz file, of which none is unpickled."""
    # numpy leaves a file open that it opened itself and could not read.
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        yield file


def read_table(path: Path, about: dict[str, Any], names: tuple[str, ...]) -> list[np.ndarray]:
    """The features x, and the targets y, of a table in an .npz or .csv file with a column by name.

    Raises:
        MistakeError: if the file is missing or damaged, or a column is, or holds what it did not in training.
    """
    facts = about["facts"]
    columns = read_columns(path)
    arrays = []
    for name in names:
        column = facts.get("target", "y") if name == "y" else None
        if column is not None and column not in columns:
            raise MistakeError(f"{path} has no column {column!r}; it holds {', '.join(columns) or 'nothing'}")
        array = features(path, columns, facts["preprocessing"]["columns"]) if column is None else columns[column]
        arrays.append(accepted(f"{name} in {path}", as_trained(f"{name} in {path}", name, array, about), about[name]))
    return arrays


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of an .npz or .csv file by name; those of a .csv file as text.

    Raises:
        MistakeError: if there is none, or its columns have different lengths.
    """
    with reading(path, "an .npz or .csv file of columns"):
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                header, *rows = csv.reader(file)
            if any(len(row) != len(header) for row in rows):
                raise ValueError("rows with more or fewer cells than the header")
            return {name: np.array([row[i] for row in rows], object) for i, name in enumerate(header)}
        with npz_file(path) as arrays:
            columns = {part: values for name in arrays.files for part, values in parts(name, arrays[name]).items()}
    if len({array.shape[:1] for array in columns.values()}) > 1:
        raise MistakeError(f"{path} has columns of different lengths; give a row per example in each")
    return columns


def parts(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """A column by its name; one of several numbers a row also as that many columns, of which the first is `name[0]`."""
    if values.ndim < 2:
        return {name: values}
    flat = values.reshape(len(values), -1)
    return {name: values} | {f"{name}[{i}]": flat[:, i] for i in range(flat.shape[1])}


def features(path: Path, columns: dict[str, np.ndarray], plans: list[dict[str, Any]]) -> np.ndarray:
    """float32 `[rows, features]`, made of columns as in training."""
    made = []
    for plan in plans:
        if "dropped" in plan:
            continue
        if plan["name"] not in columns:
            raise MistakeError(f"{path} has no column {plan['name']!r}; it holds {', '.join(columns) or 'nothing'}")
        made.append(column_features(f"{plan['name']!r} in {path}", columns[plan["name"]], plan))
    return np.concatenate(made, axis=1)


def column_features(name: str, column: np.ndarray, plan: dict[str, Any]) -> np.ndarray:
    """float32 `[rows, features]` of one column; a gap is its center, and where training had some, a feature more."""
    values = [present(value) for value in column.tolist()]
    if column.dtype.kind == "M":
        values = [None if text == "NaT" else text for text in column.astype("M8[us]").astype(str).tolist()]
    gaps = np.array([value is None for value in values])
    if plan["kind"] == "category":
        labels = [None if value is None else category(value) for value in values]
        known, other = plan["categories"], plan.get("other", False)
        codes = np.array(
            [known.index(t) if t in known else len(known) if other and t is not None else -1 for t in labels]
        )
        made = (codes[:, None] == np.arange(len(known) + other)).astype(np.float32)
    else:
        center, scale = plan.get("center", 0.0), plan.get("scale", 1.0)
        numbers = np.array([center if value is None else as_number(name, value, plan["kind"]) for value in values])
        limit = ROBUST_LIMIT if plan.get("robust") else LIMIT
        made = np.clip((numbers - center) / scale, -limit, limit).astype(np.float32)[:, None]
    return np.concatenate([made, gaps[:, None].astype(np.float32)], axis=1) if plan.get("indicator") else made


def present(value: Any) -> Any:
    """A value of a column; None for a gap."""
    value = value.decode() if isinstance(value, bytes) else value
    if isinstance(value, str):
        return None if value.strip().lower() in GAPS else value.strip()
    return None if value is None or value != value else value


def category(value: Any) -> str:
    """The label of a category; a whole number is the same whether it is written as 3 or as 3.0."""
    return str(int(value) if isinstance(value, float) and value == int(value) else value)


def as_number(name: str, value: Any, kind: str) -> float:
    """A number, a yes or no, or a date as days since 2000-01-01.

    Raises:
        MistakeError: if it is none.
    """
    try:
        if kind == "boolean":
            return {"true": 1.0, "yes": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "no": 0.0, "0": 0.0, "0.0": 0.0}[
                str(value).lower()
            ]
        if kind == "date":
            text = str(value)
            for zone in ("Z", "+00:00", "-00:00", "+0000", "-0000"):
                text = text.removesuffix(zone)
            microseconds = (np.datetime64(text, "us") - np.datetime64("2000-01-01", "us")) / np.timedelta64(1, "us")
            return float(microseconds / 86_400_000_000.0)
        number = float(value)
        if not np.isfinite(number):
            raise ValueError(number)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MistakeError(
            f"column {name} holds {str(value)!r}, which is no {kind}; mend or leave out the row"
        ) from error
    return number


def in_own_units(output: np.ndarray, facts: dict[str, Any]) -> np.ndarray:
    """Predicted quantities in the units of the targets, which a table's model has learned standardized."""
    target = facts.get("preprocessing", {}).get("target")
    if target is None:
        return output
    return (output * np.array(target["scale"]) + np.array(target["center"])).astype(np.float32).reshape(output.shape)


def as_trained(name: str, part: str, array: np.ndarray, about: dict[str, Any]) -> np.ndarray:
    """The array as the model was trained: labels become the numbers of their classes.

    Raises:
        MistakeError: for a label that training did not know, or pictures that are the negatives of those trained on.
    """
    facts = about["facts"]
    if part == "y" and facts.get("labels"):
        return class_numbers(name, array, facts)
    if part == "y" and (target := facts.get("preprocessing", {}).get("target")):
        numbers = np.array([as_number(name, value, "number") for value in array.ravel().tolist()], np.float32)
        each = numbers.reshape(len(array), -1)
        return ((each - np.array(target["center"])) / np.array(target["scale"])).reshape(array.shape)
    if part == "x" and "background" in facts and array.dtype == np.uint8 and array.ndim == 4 and array.size:
        edge = np.concatenate([array[:, [0, -1]].ravel(), array[:, :, [0, -1]].ravel()])
        level, trained = float(np.median(edge)), facts["background"]
        if abs(level - trained) > abs(level - (255 - trained)):
            raise MistakeError(
                f"{name} has pictures with a background of {level:g}, the negatives of those that the model was trained"
                f" on, with one of {trained}; give 255 less each pixel"
            )
    return array


def class_numbers(name: str, y: np.ndarray, facts: dict[str, Any]) -> np.ndarray:
    """The number of the class that each label names.

    A label is the same as text and as a number; where labels are names, a number is the number of a class.

    Raises:
        MistakeError: for a label that training did not know.
    """
    labels, given_as_text = [str(label) for label in facts["labels"]], y.dtype.kind in "USO"
    tokens = facts.get("kind") == "text" and y.dtype.kind in "iu"  # some of which are called by a digit
    if not given_as_text and (tokens or labels == [str(number) for number in range(len(labels))]):
        return y
    texts = label_texts(y)
    unknown = [text for text in texts if text not in labels]
    named_by_numbers = all(label.lstrip("-").isdecimal() for label in labels)
    if unknown and not given_as_text and not named_by_numbers:
        return y
    if unknown:
        raise MistakeError(f"{name} has the label {unknown[0]!r}, and the model knows {', '.join(labels)}")
    return np.array([labels.index(text) for text in texts], np.int32).reshape(y.shape)


def label_texts(y: np.ndarray) -> list[str]:
    """The labels as text; a whole number is written as one."""
    values = y.ravel().tolist()
    if y.dtype.kind == "f":
        return [str(int(value)) if value.is_integer() else str(value) for value in values]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def accepted(name: str, array: np.ndarray, expected: dict[str, Any]) -> np.ndarray:
    """The array in the type that the programs take, if that keeps its numbers (floats may be rounded).

    Raises:
        MistakeError: if it does not, or the shape is wrong.
    """
    shape, dtype = tuple(expected["shape"][1:]), np.dtype(expected["dtype"])
    if array.ndim != len(shape) + 1 or array.shape[1:] != shape:
        wanted = ", ".join(map(str, ("examples", *shape)))
        raise MistakeError(f"{name} has the shape {list(array.shape)}, but must be [{wanted}]")
    kinds = "iu" if dtype.kind in "iu" else dtype.kind
    if array.dtype.kind not in kinds:
        raise MistakeError(f"{name} is {array.dtype}, but must be {dtype}")
    given = array.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(given, array):
        raise MistakeError(f"{name} has numbers that are no {dtype}, from {array.min()} to {array.max()}")
    if dtype.kind == "f" and not np.isfinite(given).all():
        raise MistakeError(f"{name} has values that are not finite numbers; leave these examples out")
    if "below" in expected and given.size and not 0 <= given.min() <= given.max() < expected["below"]:
        most = expected["below"] - 1
        raise MistakeError(f"{name} goes from {given.min()} to {given.max()}, but must be from 0 to {most}")
    return given


def gated(
    artifact: Artifact, data: Data, client: str, epochs: int, fraction: float
) -> tuple[list[np.ndarray], Decision]:
    """Adapt to most examples, and keep the result if it is better on the others."""
    size = len(data.x)
    if size < 2:
        sentence = "kept the initial model: of fewer than 2 examples none can be held back to see if adapting helps"
        return artifact.parameters, Decision("initial", sentence, client, epochs)
    count = min(max(round(fraction * size), 1), size - 1)
    # Drawn from the client's id, so that the same data always give the same decision.
    order = np.random.default_rng(client_key_data(client)).permutation(size)
    held_back, others = np.sort(order[:count]), np.sort(order[count:])
    parameters = artifact.adapt(data.rows(others), client, epochs)
    before, after = (artifact.measure(p, data.rows(held_back)) for p in (artifact.parameters, parameters))
    metric = artifact.about["metric"]
    # NaN is never better.
    better = after > before if metric["higher_is_better"] else after < before
    kept = "adapted" if better else "initial"
    sentence = (
        f"kept the {kept} model: {metric['name']} {after:.4g} after adapting to {len(others)} examples for"
        f" {format_epochs(artifact, epochs)}, {before:.4g} before, on {count} examples held back"
    )
    initial, adapted = (figure if np.isfinite(figure) else None for figure in (before, after))
    rows = tuple(int(row) for row in held_back)
    decision = Decision(kept, sentence, client, epochs, initial, adapted, rows)
    return (parameters if better else artifact.parameters), decision


def ungated(artifact: Artifact, data: Data, client: str, epochs: int) -> tuple[list[np.ndarray], Decision]:
    """Adapt to all examples, and keep the result."""
    amount = f"{len(data.x)} examples for {format_epochs(artifact, epochs)}"
    sentence = f"kept the adapted model unseen: adapted to {amount}, with no examples held back"
    return artifact.adapt(data, client, epochs), Decision("adapted", sentence, client, epochs)


def format_epochs(artifact: Artifact, epochs: int) -> str:
    """A number of epochs (or steps) with its unit."""
    unit = artifact.about["recipe"]["unit"]
    return f"{epochs} {unit.removesuffix('s') if epochs == 1 else unit}"


def write_all(out: Path, contents: dict[str, bytes]) -> None:
    """Write these files in this order, each whole or not at all."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            temporary = out / f".{name}.{os.getpid()}"
            try:
                temporary.write_bytes(content)
                os.replace(temporary, out / name)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise MistakeError(f"cannot write {error.filename or out}: {error.strerror}; give another --out") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def arguments() -> argparse.Namespace:
    """The arguments of the command line."""
    about, *details = (__doc__ or "").split("\n\n")
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=about, epilog="\n\n".join(details), formatter_class=raw)
    parser.add_argument("artifact", type=Path, help="the folder that `headstart export` wrote")
    parser.add_argument("data", type=Path, help="an .npz file of the device's own examples; of a table, or .csv")
    parser.add_argument("--client", default="device", help="this device's id, which its randomness derives from")
    parser.add_argument("--out", type=Path, default=Path("adapted"), help="a folder for the results")
    parser.add_argument("--predict", type=Path, metavar="FILE", help="a file of inputs to predict for")
    parser.add_argument("--epochs", type=int, help="epochs (or steps); default: as the run chose")
    parser.add_argument(
        "--held-back", type=float, default=0.2, metavar="FRACTION", help="of the examples, for the gate"
    )
    parser.add_argument("--no-gate", action="store_true", help="adapt to all examples and keep the result")
    given = parser.parse_args()
    if not 0 < given.held_back < 1:
        raise MistakeError(f"--held-back is {given.held_back}, but must lie between 0 and 1")
    if given.epochs is not None and given.epochs < 0:
        raise MistakeError(f"--epochs is {given.epochs}, but must be at least 0")
    return given


def adapt(given: argparse.Namespace) -> str:
    """Read, adapt, decide, predict, write; returns the sentence."""
    artifact = read_artifact(given.artifact)
    data = Data(*read_data(given.data, artifact.about, ("x", "y")))
    (inputs,) = [data.x] if given.predict is None else read_data(given.predict, artifact.about, ("x",))
    epochs = artifact.about["recipe"]["length"] if given.epochs is None else given.epochs
    if given.no_gate:
        parameters, decision = ungated(artifact, data, given.client, epochs)
    else:
        parameters, decision = gated(artifact, data, given.client, epochs, given.held_back)
    names = [entry["name"] for entry in artifact.about["parameters"]]
    contents = {
        "predictions.npz": npz(artifact.predict(parameters, inputs)),
        "parameters.safetensors": save(dict(zip(names, parameters, strict=True)), {"client": given.client}),
        "decision.json": (json.dumps(asdict(decision), indent=2) + "\n").encode(),
    }
    write_all(given.out, contents)
    return decision.sentence


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    """The content of an .npz file."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # pyright: ignore[reportArgumentType]
    return content.getvalue()


def main() -> None:
    """Run the command; a mistake is one sentence and exit code 2."""
    try:
        print(adapt(arguments()))
    except MistakeError as mistake:
        print(f"adapt.py: {mistake}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
