"""Digests of the user's own code that an experiment uses: a result must not outlive the code that it came from.

Of a module its source counts, and that of the user's modules that it imports; comments between statements do not, nor
does the statement that assigns EXPERIMENT, which is compared value by value. Of a class in the script that is run
count the statements of the script that it needs, directly or not: functions, classes and values by their names; the
rest, such as how often it is run, does not. Of a model in memory it counts what it computes.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from headstart.data.federation import Federation, input_shapes
from headstart.experiment.experiment import Experiment
from headstart.experiment.setup import in_memory
from headstart.models.zoo import ALIASES, Model


def code_digests(experiment: Experiment) -> dict[str, str]:
    """The digest of every module that the experiment's model, task and methods come from, beside headstart's own."""
    found: dict[str, str] = {}
    for kind in _classes(experiment):
        if kind.__module__ == "__main__":
            found |= _in_script(kind)
        else:
            found |= _with_imports(kind.__module__)
    if experiment.model is not None and not in_memory(experiment.model) and experiment.model.path not in ALIASES:
        path = experiment.model.path
        found |= _with_imports(path.rpartition(":" if ":" in path else ".")[0])
    return dict(sorted(found.items()))


def model_digest(model: Model, federation: Federation) -> dict[str, str]:
    """The digest of what a model computes for a federation's examples, and the JAX whose words it is put in."""
    x, _ = federation.example()
    x = input_shapes(jax.tree.map(lambda leaf: leaf[:1], x))
    key = jax.random.key(0)
    params = jax.eval_shape(model.init, key)
    texts = [_traced(model.init, key), _traced(lambda params, x: model.apply(params, x), params, x)]
    try:
        texts.append(_traced(lambda params, x, key: model.apply(params, x, key=key), params, x, key))
    except Exception:  # whatever a user's own model raises; training will say it
        texts.append("no training")
    return {"jax": jax.__version__, "sha256": _digest("\n".join(texts))}


def _traced(function: Any, *arguments: Any) -> str:
    """A function's operations as text, with a digest of every constant in them."""
    closed = jax.make_jaxpr(function)(*arguments)
    constants = [_digest(np.asarray(leaf).tobytes()) for leaf in map(_numbers, closed.consts)]
    return "\n".join([re.sub(r" at 0x[0-9a-f]+", "", str(closed.jaxpr)), *constants])


def _numbers(constant: Any) -> Any:
    is_key = hasattr(constant, "dtype") and jnp.issubdtype(constant.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(constant) if is_key else constant


def _classes(value: Any) -> set[type]:
    """The user's own classes among the values of an experiment."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = [getattr(value, field.name) for field in dataclasses.fields(value)]
        own = set() if type(value).__module__.split(".")[0] == "headstart" else {type(value)}
        return own.union(*map(_classes, inner))
    if isinstance(value, Mapping):
        return set().union(*map(_classes, value.values()))
    return set().union(*map(_classes, value)) if isinstance(value, list | tuple) else set()


def _in_script(kind: type) -> dict[str, str]:
    """The digests of a class of the script that is run, with what it needs there, and of the modules it imports."""
    path = _file_of("__main__")
    if path is None:
        return {kind.__qualname__: _digest(_source_of(kind))}
    source = path.read_text(encoding="utf-8", errors="replace")
    tree = ast.parse(source)
    found = {kind.__qualname__: _digest("\n".join(_needed(source, tree, kind.__qualname__.split(".")[0])))}
    for module in _imports("__main__", tree):
        file = _file_of(module)
        if file is not None and _is_own(file):
            found |= _with_imports(module)
    return found


def _needed(source: str, tree: ast.Module, name: str) -> Iterator[str]:
    """The text of the statements that make what has a name in a module, and of those that they need, in order."""
    reached: set[int] = set()
    waiting, known = [name], set()
    while waiting:
        current = waiting.pop()
        known.add(current)
        for number, node in enumerate(tree.body):
            if number not in reached and current in _made_by(node):
                reached.add(number)
                waiting += _used_by(node) - known
    yield from (_text(source.splitlines(), tree.body[number]) for number in sorted(reached))


_DEFINITION = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _made_by(node: ast.stmt) -> set[str]:
    """The names that a statement of a module gives a value."""
    if isinstance(node, _DEFINITION):
        return {node.name}
    inner = list(ast.walk(node))
    names = {each.id for each in inner if isinstance(each, ast.Name) and not isinstance(each.ctx, ast.Load)}
    return names | {each.name for each in inner if isinstance(each, _DEFINITION)}


def _used_by(node: ast.stmt) -> set[str]:
    """The names that a statement takes from elsewhere, not those of its own parts."""
    inner = list(ast.walk(node))
    names = [each for each in inner if isinstance(each, ast.Name)]
    own = {each.id for each in names if not isinstance(each.ctx, ast.Load)}
    own |= {each.arg for each in inner if isinstance(each, ast.arg)}
    return {each.id for each in names} - own


def _with_imports(name: str) -> dict[str, str]:
    """The digests of a module and of the user's modules that it imports, by name."""
    found: dict[str, str] = {}
    waiting, root = [name], name.split(".")[0]
    while waiting:
        current = waiting.pop()
        path = _file_of(current)
        if current in found or path is None or not (current.split(".")[0] == root or _is_own(path)):
            continue
        source = path.read_text(encoding="utf-8", errors="replace")
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            found[current] = _digest(source)
            continue
        found[current] = _digest("\n".join(_statements(source, tree)))
        waiting += _imports(current, tree)
    return found


def _file_of(module: str) -> Path | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file) if file and file.endswith(".py") and Path(file).is_file() else None


def _is_own(path: Path) -> bool:
    """Whether a file is the user's, and not of Python or of a package that is installed."""
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    own = Path(__file__).parents[1].resolve()
    return not any(folder in path.resolve().parents for folder in (*installed, own))


def _statements(source: str, tree: ast.Module) -> Iterator[str]:
    """The text of a module's statements, without comments between them and without its EXPERIMENT."""
    lines = source.splitlines()
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "EXPERIMENT" for target in targets):
            continue
        yield _text(lines, node)


def _text(lines: Sequence[str], node: ast.stmt) -> str:
    first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
    return "\n".join(line.rstrip() for line in lines[first - 1 : node.end_lineno])


def _imports(module: str, tree: ast.Module) -> Iterator[str]:
    """The names of the modules that a module imports."""
    package = getattr(sys.modules[module], "__package__", None) or ""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = resolve_name(relative, package) if node.level and package else node.module or ""
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _source_of(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # typed into an interpreter
        return ""


def _digest(text: str | bytes) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass") if isinstance(text, str) else text).hexdigest()
