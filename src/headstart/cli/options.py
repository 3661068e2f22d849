"""Options that several commands share, and their values as Python has them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from headstart.errors import UserError

Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one setting, e.g. stages.0.update.epochs=5.")
]
Source = Annotated[
    str | None,
    typer.Option("--data", metavar="PATH|NAME", help="A file, or a built-in name: glyphs, emnist, shakespeare."),
]
ClientColumn = Annotated[
    str | None, typer.Option("--client", metavar="COLUMN", help="The column with the client's id.")
]
TargetColumn = Annotated[str | None, typer.Option("--target", metavar="COLUMN", help="The column to predict.")]
Features = Annotated[
    str | None, typer.Option("--features", metavar="A,B", help="The input columns; default: the rest.")
]
Exclude = Annotated[str | None, typer.Option("--exclude", metavar="A,B", help="Columns that are no inputs.")]
Time = Annotated[
    str | None,
    typer.Option("--time", metavar="COLUMN", help="Test on the last 20 % of each client's rows by this column."),
]
Group = Annotated[
    str | None,
    typer.Option("--group", metavar="COLUMN", help="Keep rows of one recording, visit or the like on one side."),
]
DataOptions = Annotated[
    list[str] | None,
    typer.Option("--data-option", metavar="KEY=VALUE", help="An option of the reader or generator, e.g. writers=500."),
]
Imports = Annotated[
    list[str] | None,
    typer.Option("--import", metavar="MODULE", help="Allow a saved experiment to use code of this module."),
]
Lanes = Annotated[int, typer.Option(min=1, help="Clients vectorized on each device; 1 is best on a CPU.")]
Devices = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Devices that share the work; default: all cores of a CPU, or all GPUs."),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME|MODULE:NAME", help="cnn, cnn_lean, char_lstm, logistic, linear, mlp, or a custom one."
    ),
]
By = Annotated[
    str | None, typer.Option("--by", metavar="COLUMN", help="Show results by the values of a column of the data, too.")
]
HideIds = Annotated[bool, typer.Option("--hide-ids", help="Write pseudonyms in place of the clients' ids.")]
Rewrite = Annotated[
    bool,
    typer.Option(
        "--rewrite/--no-rewrite",
        help="Compute a model's convolutions and recurrent layers by other matrix products on a CPU.",
    ),
]
Processes = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Runs in parallel; default: one per core, 1 on a GPU.")
]
Number = TypeVar("Number", int, float)


def numbers(text: str | None) -> list[int] | None:
    """The numbers of `--lanes 1,2,4`."""
    return None if text is None else _listed("--lanes", text, int, "1,2,4")


def learning_rates_given(text: str | None) -> tuple[float, ...]:
    """The learning rates of `--learning-rates 0.01,0.1`."""
    learning_rates = () if text is None else tuple(_listed("--learning-rates", text, float, "0.01,0.1"))
    if any(not 0 < learning_rate < float("inf") for learning_rate in learning_rates):
        raise UserError(f"--learning-rates {text} has a rate that is not positive; rates are numbers above 0")
    return learning_rates


def _listed(option: str, text: str, kind: type[Number], example: str) -> list[Number]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text!r} is no list of numbers; write it as {example}") from None


def overrides(settings: list[str] | None, seed: int | None, model: str | None) -> list[str]:
    """The settings, those with an option of their own first, so that --set can refine them."""
    first = [] if seed is None else [f"seed={seed}"]
    if model is not None:
        first.append("model=" + json.dumps({"type": "headstart.ModelSpec", "path": model, "options": {}}))
    return [*first, *(settings or [])]


def named_experiment(
    name: str, data: str | None, data_options: dict[str, Any], settings: list[str], allowed_modules: set[str]
) -> Any:
    """The experiment that a command names, changed as it says; a custom file is an allowed module from then on."""
    from headstart.experiment.loading import load

    experiment = load(name, data=data, data_options=data_options, settings=settings, allowed_modules=allowed_modules)
    if name.endswith(".py"):
        allowed_modules.add(Path(name).stem)
    return experiment


def modules_named(imports: list[str] | None, model: str | None) -> set[str]:
    """The allowed modules that a command names; they are looked for in the current folder too."""
    sys.path.append(os.getcwd())
    return {*(imports or []), *([model.partition(":")[0]] if model and ":" in model else [])}


def data_options(
    client: str | None,
    target: str | None,
    features: str | None,
    more: list[str] | None,
    *,
    exclude: str | None = None,
    time: str | None = None,
    group: str | None = None,
) -> dict[str, Any]:
    """The options for the data's reader or generator."""
    from headstart.experiment.serialization import parse

    lists = {"features": features, "exclude": exclude}
    options = {"client": client, "target": target, "time": time, "group": group}
    options |= {name: names.split(",") if names else None for name, names in lists.items()}
    for setting in more or []:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--data-option {setting!r} has no value; write it as key=value, for instance writers=500")
        options[key] = parse(text)
    return {key: value for key, value in options.items() if value is not None}
