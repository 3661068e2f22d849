"""The command `headstart`: run | personalize | report | data | bench | reproduce | compare."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from headstart._version import __version__
from headstart.cli.options import (
    By,
    ClientColumn,
    DataOptions,
    Devices,
    Exclude,
    Features,
    Group,
    HideIds,
    Imports,
    Lanes,
    ModelName,
    Rewrite,
    Settings,
    Source,
    TargetColumn,
    Time,
    data_options,
    modules_named,
    named_experiment,
    numbers,
    overrides,
)
from headstart.cli.output import Level, Output, files_in, output_of
from headstart.cli.run import join_cluster, measure_on_console, run_on_console
from headstart.cli.studies import app as studies
from headstart.console import echo, printable
from headstart.errors import UserError

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headstart {__version__}")
        raise typer.Exit


@app.callback(
    epilog="Examples: [bold]headstart --quiet run fedavg[/bold] · "
    "[bold]headstart --verbose personalize runs/fedavg --data mine.npz[/bold] · "
    "[bold]headstart --version[/bold]"
)
def headstart(
    context: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only results and errors.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print file paths, compiled programs and timing, too.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train one initial model across a federation, personalize it for each client, and measure how well that works.

    Start with [bold]headstart run personalized_fedavg[/bold]; then
    [bold]headstart report runs/personalized_fedavg[/bold].
    """
    if quiet and verbose:
        raise UserError("--quiet and --verbose contradict each other; give one of them")
    context.obj = Output(Level.QUIET if quiet else Level.VERBOSE if verbose else Level.NORMAL)


@app.command(
    epilog="Examples: [bold]headstart run fedavg --seeds 5[/bold] · "
    "[bold]headstart run personalized_fedavg --set stages.0.rounds=200 --out runs/long[/bold] · "
    "[bold]headstart run fedavg --data visits.csv --client hospital --target days --model linear[/bold] · "
    "[bold]headstart run fedavg --data emnist --model mymodels:Net[/bold]"
)
def run(
    context: typer.Context,
    experiment: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="An experiment's name, or its .py or .json file.")
    ],
    settings: Settings = None,
    data: Source = None,
    client: ClientColumn = None,
    target: TargetColumn = None,
    features: Features = None,
    exclude: Exclude = None,
    time: Time = None,
    group: Group = None,
    data_option: DataOptions = None,
    model: ModelName = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The run folder; default runs/NAME.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The first seed.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, one run each.")] = 1,
    lanes: Lanes = 1,
    devices: Devices = None,
    checkpoint_seconds: Annotated[float, typer.Option(min=0, help="The least time between saved states.")] = 30.0,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events too.")] = False,
    baselines: Annotated[
        bool | None,
        typer.Option(help="Measure every client alone, pooled examples and constants too; default: of tables."),
    ] = None,
    examples: Annotated[bool, typer.Option("--examples", help="Keep a few clients' examples for the report.")] = False,
    hide_ids: HideIds = False,
    rewrite: Rewrite = True,
    imports: Imports = None,
    coordinator: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Join a cluster: where its process 0 listens.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of processes of the cluster.")
    ] = None,
    process_id: Annotated[int | None, typer.Option(min=0, metavar="I", help="Which of them this is, from 0.")] = None,
    patience: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="How long a cluster waits for a process that hangs.")
    ] = 40.0,
) -> None:
    """Run an experiment into a folder. Ctrl-C saves; the same command resumes where it stopped.

    Started by SLURM, Open MPI or Kubernetes as several processes, or with --coordinator, these share the clients.
    """
    from headstart.training.run import default_folder
    from headstart.training.seed_run import Options

    join_cluster(coordinator, processes, process_id)
    _prepare(devices)
    allowed_modules = modules_named(imports, model)
    options_of_data = data_options(client, target, features, data_option, exclude=exclude, time=time, group=group)
    loaded = named_experiment(experiment, data, options_of_data, overrides(settings, seed, model), allowed_modules)
    folder = out or default_folder(loaded)
    options = Options(
        lanes, devices, checkpoint_seconds, baselines=baselines, examples=examples, hide_ids=hide_ids, rewrite=rewrite
    )
    output = output_of(context)
    with output.measured():
        run_on_console(output, loaded, folder, seeds, options, tensorboard, allowed_modules, patience)
    output.detail(files_in(folder))


def _prepare(devices: int | None) -> None:
    from headstart.training.compilation_cache import prepare_devices

    prepare_devices(devices)


@app.command(
    epilog="Example: [bold]headstart personalize runs/personalized_fedavg --data mine.npz --out personalized[/bold]"
)
def personalize(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    data: Annotated[str, typer.Option("--data", metavar="PATH|NAME", help="Your clients.")],
    client: ClientColumn = None,
    target: TargetColumn = None,
    features: Features = None,
    exclude: Exclude = None,
    time: Time = None,
    group: Group = None,
    data_option: DataOptions = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where results and personalized parameters go.")] = Path(
        "personalized"
    ),
    epochs: Annotated[
        int | None, typer.Option(min=0, help="Epochs of personalization; default: the run's choice.")
    ] = None,
    lanes: Lanes = 1,
    devices: Devices = None,
    hide_ids: HideIds = False,
    by: By = None,
    imports: Imports = None,
) -> None:
    """Personalize a run's initial model on your own clients: per-client results and personalized parameters."""
    from headstart.deploy.adapt import personalize_run
    from headstart.learning.metrics import evaluated_metrics
    from headstart.reports.tables import print_summary

    _prepare(devices)
    output = output_of(context)
    options = data_options(client, target, features, data_option, exclude=exclude, time=time, group=group)
    with output.measured(), output.status("personalizing") as update:
        summary, task = personalize_run(
            run,
            data,
            out,
            options=options,
            epochs=epochs,
            lanes=lanes,
            devices=devices,
            hide_ids=hide_ids,
            by=by,
            allowed_modules=modules_named(imports, None),
            progress=lambda done, of: update(f"personalizing clients, {of} in all"),
        )
    print_summary(output.console, summary, evaluated_metrics(task))
    output.result(f"{out}/clients.csv and {out}/parameters written")
    output.detail(files_in(out))


@app.command(
    epilog="Examples: [bold]headstart predict runs/fedavg --data new.csv --out predictions.csv[/bold] · "
    "[bold]headstart predict runs/fedavg --data new.csv --client hospital --personalized personalized[/bold]"
)
def predict(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    data: Annotated[str, typer.Option("--data", metavar="PATH|NAME", help="Rows to predict; without targets, too.")],
    client: ClientColumn = None,
    target: TargetColumn = None,
    features: Features = None,
    data_option: DataOptions = None,
    personalized: Annotated[
        Path | None, typer.Option(metavar="DIR", help="What `headstart personalize` wrote: clients' own parameters.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="A new CSV file, a line per row.")] = Path(
        "predictions.csv"
    ),
    imports: Imports = None,
) -> None:
    """Predict the rows of a file: classes with their probabilities, or quantities in their own units."""
    from headstart.deploy.predict import predict_run

    _prepare(None)
    found = predict_run(
        run,
        data,
        out,
        options=data_options(client, target, features, data_option),
        personalized=personalized,
        allowed_modules=modules_named(imports, None),
    )
    by = f", {found.personalized:,} of them by their client's own parameters" if personalized is not None else ""
    output_of(context).result("\n".join([f"{out}: predictions for {found.rows:,} rows{by}", *found.notes]))


@app.command(
    epilog="Examples: [bold]headstart export runs/personalized_fedavg --out artifact[/bold] · "
    "[bold]headstart export runs/mine --out artifact --platforms cpu,cuda --import mymodels[/bold]"
)
def export(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder for the artifact.")] = Path("artifact"),
    platforms: Annotated[str, typer.Option(metavar="A,B", help="What its programs can run on.")] = "cpu,cuda,rocm,tpu",
    imports: Imports = None,
) -> None:
    """Write what a device needs to adapt and predict by itself, with JAX and without headstart."""
    from headstart.deploy.export import export_run

    chosen = [name.strip() for name in platforms.split(",") if name.strip()]
    sizes = export_run(run, out, platforms=chosen, allowed_modules=modules_named(imports, None))
    lines = [f"{out}/{name}: {size:,} bytes" for name, size in sizes.items()]
    output_of(context).result("\n".join(lines))


@app.command(epilog="Example: [bold]headstart report runs/fedavg runs/personalized_fedavg --out report.html[/bold]")
def report(
    context: typer.Context,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, to be compared.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The page; default RUN/report.html.")] = None,
    by: By = None,
    data: Annotated[str | None, typer.Option("--data", metavar="PATH", help="Where the data of --by are now.")] = None,
    by_examples: Annotated[
        bool,
        typer.Option("--by-examples", help="Measure finished runs with fewer local examples, too; nothing is trained."),
    ] = False,
    imports: Imports = None,
) -> None:
    """Make one self-contained page, and figures, from run folders."""
    from headstart.reports.by_column import print_by_column, results_by_column
    from headstart.reports.by_examples import print_by_examples
    from headstart.reports.page import write
    from headstart.reports.tables import print_runs
    from headstart.runs.reading import open_runs

    if by_examples:
        _prepare(None)
    output = output_of(context)
    allowed_modules = modules_named(imports, None)
    opened = open_runs(runs, allowed_modules=allowed_modules)
    by_column = [] if by is None else [results_by_column(run, by, data) for run in opened]
    if by_examples:
        measure_on_console(output, opened, allowed_modules)
    with output.measured():
        page = write(opened, out, allowed_modules=allowed_modules, by=by_column)
    print_runs(output.console, opened, allowed_modules=allowed_modules)
    for results in by_column:
        print_by_column(output.console, results)
    print_by_examples(output.console, opened)
    output.result(f"The report: {page}")
    output.detail(files_in(page.parent / "figures"))


@app.command(
    epilog="Examples: [bold]headstart data glyphs[/bold] · "
    "[bold]headstart data visits.csv --client hospital --target days --picture visits.png[/bold]"
)
def data(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="PATH|NAME", help="A file, or a built-in name: glyphs, emnist, shakespeare.")
    ],
    client: ClientColumn = None,
    target: TargetColumn = None,
    features: Features = None,
    exclude: Exclude = None,
    time: Time = None,
    group: Group = None,
    data_option: DataOptions = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Where the picture goes.")] = None,
) -> None:
    """Show a federation: clients, sizes, classes, a picture; of a table, what becomes of each column."""
    from headstart.cli.overview import draw, print_overview, print_plan
    from headstart.data.load import load
    from headstart.data.preprocessing import is_raw

    output = output_of(context)
    federation = load(
        source, **data_options(client, target, features, data_option, exclude=exclude, time=time, group=group)
    )
    print_overview(output.console, federation)
    if is_raw(federation):
        print_plan(output.console, federation)
    path = draw(federation, picture or Path(f"{Path(federation.name).name}.png"))
    output.result(f"A picture: {path}")


@app.command(
    epilog="Examples: [bold]headstart sample hospitals.csv[/bold] · "
    "[bold]headstart sample small.csv --clients 20 --rows 40 --missing 0.1 --seed 7[/bold]"
)
def sample(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A new file, which ends with .csv.")],
    clients: Annotated[int, typer.Option(min=1, help="Hospitals.")] = 60,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a hospital, in the mean.")] = 115,
    missing: Annotated[float, typer.Option(min=0, max=1, help="The share of measurements that are missing.")] = 0.01,
    alike: Annotated[float, typer.Option(min=0, max=1, help="How much hospitals have in common, from 0 to 1.")] = 0.6,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other hospitals.")] = 0,
) -> None:
    """Write a generated table as hospitals have it, to try everything on: columns hospital, outcome, days and more."""
    from headstart.data.sample import write_sample

    written = write_sample(path, clients=clients, rows=rows, missing=missing, alike=alike, seed=seed)
    output = output_of(context)
    output.result(f"{path}: {written:,} rows of {clients:,} hospitals")
    output.note(f"What is in it: headstart data {path} --client hospital --target outcome")


@app.command(
    epilog="Examples: [bold]headstart bench[/bold] · "
    "[bold]headstart bench --models cnn --lanes 1,2,4 --seconds 120[/bold] · "
    "[bold]headstart bench --models mlp,logistic --devices 1 --json bench.json[/bold]"
)
def bench(
    context: typer.Context,
    models: Annotated[
        str, typer.Option(metavar="A,B", help="The models to measure.")
    ] = "cnn,cnn_lean,char_lstm,mlp,logistic",
    cohort: Annotated[int, typer.Option(help="Clients per round.")] = 20,
    lanes: Annotated[
        str | None, typer.Option(metavar="1,2,4", help="Numbers of lanes to try; default: a few that make sense here.")
    ] = None,
    devices: Devices = None,
    seconds: Annotated[float, typer.Option(help="About how long to measure, in all.")] = 60.0,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write everything measured there.")
    ] = None,
) -> None:
    """Measure this machine: how fast it trains each model, what is lost where, and how many lanes are best."""
    from headstart.bench.measure import as_document, check
    from headstart.bench.measure import bench as measure
    from headstart.bench.table import print_report
    from headstart.files import write_json

    names, lane_counts = [name.strip() for name in models.split(",")], numbers(lanes)
    check(names, cohort, lane_counts, seconds)
    _prepare(devices)
    output = output_of(context)
    if json is not None and not json.exists():
        write_json(json, {})  # better now than after a minute, if it cannot be written
    with output.measured(), output.status("measuring") as update:
        report = measure(names, cohort=cohort, lanes=lane_counts, devices=devices, seconds=seconds, log=update)
    print_report(output.console, report)
    if json is not None:
        write_json(json, as_document(report))
        output.result(f"All numbers: {json}")


app.add_typer(studies)


def main() -> None:
    """Run the command; a user's mistake is one sentence and exit code 2."""
    try:
        app()
    except UserError as error:
        echo(Console(stderr=True), f"headstart: {printable(str(error), most=10_000, keep=chr(10))}", style="bold red")
        _leave(2)
    except KeyboardInterrupt:
        _leave(130)
    except Exception:  # of a member of a cluster, which must say what went wrong before it waits for the others
        if "headstart.training.supervisor" not in sys.modules:
            raise
        from headstart.training.supervisor import is_child

        if not is_child():
            raise
        traceback.print_exc()
        _leave(1)


def _leave(status: int) -> NoReturn:
    """End this process, as a member of a cluster does where it may be one; JAX is not imported for the end alone."""
    if "headstart.training.supervisor" in sys.modules:
        from headstart.training.supervisor import leave

        leave(status)
    sys.exit(status)
