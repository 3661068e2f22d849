"""The commands that start many runs: reproduce | compare."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from headstart.cli.options import (
    ClientColumn,
    DataOptions,
    Exclude,
    Features,
    Group,
    Imports,
    ModelName,
    Processes,
    Settings,
    Source,
    TargetColumn,
    Time,
    data_options,
    learning_rates_given,
    modules_named,
    named_experiment,
    overrides,
)
from headstart.cli.output import output_of

app = typer.Typer()


@app.command(
    epilog="Examples: [bold]headstart reproduce --scale smoke[/bold] · "
    "[bold]headstart reproduce table1 finetune --scale small --data glyphs --data handwriting62.sqlite.lzma[/bold] · "
    "[bold]headstart reproduce --scale full --data emnist[/bold]"
)
def reproduce(
    context: typer.Context,
    studies: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STUDY]...",
            help="identity, table1, finetune, curve, datacenter, updates, server, cnn; default: all.",
        ),
    ] = None,
    scale: Annotated[
        str, typer.Option(help="smoke (minutes), small (hours on two cores), medium (days) or full (a GPU).")
    ] = "small",
    data: Annotated[
        list[str] | None, typer.Option("--data", metavar="PATH|NAME", help="A federation; may be repeated.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder of runs, results and report.")] = Path(
        "reproduction"
    ),
    seeds: Annotated[
        int | None,
        typer.Option(
            min=2, help="Of every comparison; default: as many as the scale has. With fewer than 5 nothing is decided."
        ),
    ] = None,
    processes: Processes = None,
) -> None:
    """Test the paper's claims, each with a verdict by a rule fixed beforehand. Ctrl-C saves; repeat it to resume."""
    from headstart.studies.paper.reproduce import reproduce as run_studies
    from headstart.studies.pool import free_cores
    from headstart.training.compilation_cache import prepare_devices

    output = output_of(context)
    prepare_devices(None)
    with output.measured():
        page = run_studies(
            studies or (),
            scale=scale,
            data=data or ("glyphs",),
            out=out,
            processes=processes or free_cores(),
            seeds=seeds,
            log=output.note,
        )
    output.result(f"The report: {page}")


@app.command(
    epilog="Examples: [bold]headstart compare fedavg --data glyphs --model mlp[/bold] · "
    "[bold]headstart compare fedavg --data mine.npz --methods fedavg+ft,ditto,fedrep --budget 100[/bold] · "
    "[bold]headstart compare fedavg --methods my_method:Mine[/bold]"
)
def compare(
    context: typer.Context,
    experiment: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE", help="The experiment with data, model, task and cohort: as for [bold]run[/bold]."
        ),
    ],
    data: Source = None,
    client: ClientColumn = None,
    target: TargetColumn = None,
    features: Features = None,
    exclude: Exclude = None,
    time: Time = None,
    group: Group = None,
    data_option: DataOptions = None,
    settings: Settings = None,
    model: ModelName = None,
    methods: Annotated[
        str, typer.Option(metavar="A,B", help="Built-in methods, and module:Class for custom ones: all,mine:Mine.")
    ] = "all",
    budget: Annotated[
        int, typer.Option(min=1, help="Client compute of every run, in rounds of FedAvg with one epoch.")
    ] = 200,
    tries: Annotated[
        int, typer.Option(min=1, help="Settings of each method that are tried on validation clients.")
    ] = 12,
    tuning_seeds: Annotated[
        int, typer.Option(min=1, help="Seeds of the settings that are left at the end of successive halving.")
    ] = 3,
    learning_rates: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Clients' learning rates; default: 0.01,0.03,0.1; for text 0.3,1,3."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of personalization, at most.")] = 10,
    seeds: Annotated[
        int, typer.Option(min=1, help="Seeds of the reported runs; with fewer than 5 nothing is decided.")
    ] = 5,
    by_examples: Annotated[
        int, typer.Option(min=0, help="How many of the best methods are measured with fewer local examples, too.")
    ] = 3,
    participants: Annotated[
        int, typer.Option(min=0, help="Training clients, at most, that are measured too, with what they kept; 0: none.")
    ] = 200,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder of runs and report.")] = Path("compared"),
    processes: Processes = None,
    imports: Imports = None,
) -> None:
    """Compare methods on your federation at equal client compute: how much is just fine-tuning? Ctrl-C saves."""
    from headstart.studies.compare.command import compare_methods
    from headstart.studies.compare.protocol import Protocol
    from headstart.studies.compare.report import print_board
    from headstart.studies.pool import free_cores
    from headstart.training.compilation_cache import prepare_devices

    prepare_devices(None)
    allowed_modules = modules_named(imports, model)
    options_of_data = data_options(client, target, features, data_option, exclude=exclude, time=time, group=group)
    named = named_experiment(experiment, data, options_of_data, overrides(settings, None, model), allowed_modules)
    # A comparison searches its settings itself.
    base = replace(named, trial=None)
    output = output_of(context)
    with output.measured():
        page, board, sentences = compare_methods(
            Protocol(
                base,
                budget,
                tries,
                seeds,
                tuning_seeds,
                epochs,
                learning_rates_given(learning_rates),
                by_examples,
                participants,
            ),
            methods=methods.split(","),
            out=out,
            processes=processes or free_cores(),
            log=output.note,
            allowed_modules=allowed_modules,
            command=shlex.join(["headstart", *sys.argv[1:]]),
        )
    print_board(output.console, board)
    for sentence in sentences:
        output.result(sentence)
    output.result(f"The report: {page}")
