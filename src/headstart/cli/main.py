"""The command `headstart`: run | personalize | report | data | bench | reproduce | compare."""

from __future__ import annotations

import sys
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from headstart.cli.options import (
    ClientColumn,
    DataOptions,
    Devices,
    Features,
    Imports,
    Lanes,
    ModelName,
    Settings,
    Source,
    TargetColumn,
    data_options,
    modules_named,
    named_experiment,
    numbers,
    overrides,
)
from headstart.cli.studies import app as studies
from headstart.console import echo
from headstart.errors import UserError

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def headstart() -> None:
    """Train one initial model across a federation, make it each client's own, and measure how well that works.

    Start with [bold]headstart run personalized_fedavg[/bold]; then
    [bold]headstart report runs/personalized_fedavg[/bold].
    """


@app.command(
    epilog="Examples: [bold]headstart run fedavg --seeds 5[/bold] · "
    "[bold]headstart run personalized_fedavg --set stages.0.rounds=200 --out runs/long[/bold] · "
    "[bold]headstart run fedavg --data visits.csv --client hospital --target days --model linear[/bold] · "
    "[bold]headstart run fedavg --data emnist --model mymodels:Net[/bold]"
)
def run(
    experiment: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="An experiment's name, or its .py or .json file.")
    ],
    settings: Settings = None,
    data: Source = None,
    client: ClientColumn = None,
    target: TargetColumn = None,
    features: Features = None,
    data_option: DataOptions = None,
    model: ModelName = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The run folder; default runs/NAME.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The first seed.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, one run each.")] = 1,
    lanes: Lanes = 1,
    devices: Devices = None,
    checkpoint_seconds: Annotated[float, typer.Option(min=0, help="The least time between saved states.")] = 30.0,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events too.")] = False,
    imports: Imports = None,
    coordinator: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Join a cluster: where its process 0 listens.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many processes the cluster has.")
    ] = None,
    process_id: Annotated[int | None, typer.Option(min=0, metavar="I", help="Which of them this is, from 0.")] = None,
    patience: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="How long a cluster waits for a process that hangs.")
    ] = 40.0,
) -> None:
    """Run an experiment into a folder. Ctrl-C saves; the same command goes on where it stopped.

    Started by SLURM, Open MPI or Kubernetes as several processes, or with --coordinator, these share the clients.
    """
    from headstart.training.seed_run import Options

    _join(coordinator, processes, process_id)
    _prepare(devices)
    allowed_modules = modules_named(imports, model)
    options_of_data = data_options(client, target, features, data_option)
    loaded = named_experiment(experiment, data, options_of_data, overrides(settings, seed, model), allowed_modules)
    folder = out or Path("runs") / loaded.name
    options = Options(lanes=lanes, devices=devices, checkpoint_seconds=checkpoint_seconds)
    _run(loaded, folder, seeds, options, tensorboard, allowed_modules, patience)


def _prepare(devices: int | None) -> None:
    from headstart.training.compilation_cache import prepare_devices

    prepare_devices(devices)


def _join(coordinator: str | None, processes: int | None, process_id: int | None) -> None:
    """Become a member of a cluster, if this process is to be one; its work is done by a child."""
    from headstart.training import cluster
    from headstart.training import supervisor as supervise

    member = cluster.membership(coordinator, processes, process_id)
    if member is None:
        return
    if not supervise.is_child():
        raise typer.Exit(supervise.supervise(sys.argv[1:]))
    supervise.follow_parent()
    cluster.join(member)


def _run(
    experiment: Any, out: Path, seeds: int, options: Any, tensorboard: bool, allowed_modules: set[str], patience: float
) -> None:
    from headstart.cli.tensorboard import also_events
    from headstart.reports.tables import print_rows, rows
    from headstart.training import cluster
    from headstart.training.display import Follower, live_display
    from headstart.training.run import run_into, to_all

    console = Console()
    follower = Follower(rounds=sum(s.rounds for s in experiment.stages), seeds=seeds, first_seed=experiment.seed)
    with ExitStack() as stack:
        listeners = [stack.enter_context(cluster.as_one(patience))]
        if cluster.is_first():
            show = stack.enter_context(live_display(console, follower, f"{experiment.name} → {out}"))
            listeners.append(stack.enter_context(also_events(show, out)) if tensorboard else show)
        on_event = to_all(listeners)
        finished = run_into(
            experiment, out, seeds=seeds, options=options, on_event=on_event, allowed_modules=allowed_modules
        )
    if not cluster.is_first():
        raise typer.Exit(0 if finished else 130)
    if not finished:
        console.print(f"Stopped; everything is saved in {out}. Repeat the same command to go on.", markup=False)
        raise typer.Exit(130)
    print_rows(console, rows([out], allowed_modules=allowed_modules))
    echo(console, f"For figures and a page: headstart report {out}")


@app.command(
    epilog="Example: [bold]headstart personalize runs/personalized_fedavg --data mine.npz --out personalized[/bold]"
)
def personalize(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    data: Annotated[str, typer.Option("--data", metavar="PATH|NAME", help="Your clients.")],
    client: ClientColumn = None,
    target: TargetColumn = None,
    features: Features = None,
    data_option: DataOptions = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where results and adapted parameters go.")] = Path(
        "personalized"
    ),
    epochs: Annotated[
        int | None, typer.Option(min=0, help="Epochs of personalization; default: the run's choice.")
    ] = None,
    lanes: Lanes = 1,
    devices: Devices = None,
    imports: Imports = None,
) -> None:
    """Personalize a run's initial model on your own clients: per-client results and adapted parameters."""
    from headstart.deploy.adapt import personalize_run
    from headstart.reports.tables import print_summary

    _prepare(devices)
    console = Console()
    options = data_options(client, target, features, data_option)
    with console.status("personalizing") as status:
        summary, task = personalize_run(
            run,
            data,
            out,
            options=options,
            epochs=epochs,
            lanes=lanes,
            devices=devices,
            allowed_modules=modules_named(imports, None),
            progress=lambda done, of: status.update(f"personalizing clients, {of} in all"),
        )
    print_summary(console, summary, task.metrics)
    echo(console, f"{out}/clients.csv and {out}/parameters written")


@app.command(
    epilog="Examples: [bold]headstart export runs/personalized_fedavg --out artifact[/bold] · "
    "[bold]headstart export runs/mine --out artifact --platforms cpu,cuda --import mymodels[/bold]"
)
def export(
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
    echo(Console(), "\n".join(lines))


@app.command(epilog="Example: [bold]headstart report runs/fedavg runs/personalized_fedavg --out report.html[/bold]")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, to be compared.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The page; default RUN/report.html.")] = None,
    imports: Imports = None,
) -> None:
    """Make one self-contained page, and figures, from run folders."""
    from headstart.reports.page import write
    from headstart.reports.tables import print_rows, rows

    console = Console()
    allowed_modules = modules_named(imports, None)
    page = write(runs, out, allowed_modules=allowed_modules)
    print_rows(console, rows(runs, allowed_modules=allowed_modules))
    echo(console, f"The report: {page}")


@app.command(
    epilog="Examples: [bold]headstart data glyphs[/bold] · "
    "[bold]headstart data visits.csv --client hospital --target days --picture visits.png[/bold]"
)
def data(
    source: Annotated[str, typer.Argument(metavar="PATH|NAME", help="A file, or glyphs, emnist, shakespeare.")],
    client: ClientColumn = None,
    target: TargetColumn = None,
    features: Features = None,
    data_option: DataOptions = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Where the picture goes.")] = None,
) -> None:
    """Show a federation: clients, sizes, classes, a picture."""
    from headstart.cli.overview import draw, print_overview
    from headstart.data.load import load

    console = Console()
    federation = load(source, **data_options(client, target, features, data_option))
    print_overview(console, federation)
    path = draw(federation, picture or Path(f"{Path(federation.name).name}.png"))
    echo(console, f"A picture: {path}")


@app.command(
    epilog="Examples: [bold]headstart bench[/bold] · "
    "[bold]headstart bench --models cnn --lanes 1,2,4 --seconds 120[/bold] · "
    "[bold]headstart bench --models mlp,logistic --devices 1 --json bench.json[/bold]"
)
def bench(
    models: Annotated[str, typer.Option(metavar="A,B", help="The models to measure.")] = "cnn,char_lstm,mlp,logistic",
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

    names, tried = [name.strip() for name in models.split(",")], numbers(lanes)
    check(names, cohort, tried, seconds)
    _prepare(devices)
    console = Console()
    if json is not None and not json.exists():
        write_json(json, {})  # better now than after a minute, if it cannot be written
    with console.status("measuring") as status:
        report = measure(
            names, cohort=cohort, lanes=tried, devices=devices, seconds=seconds, log=lambda text: status.update(text)
        )
    print_report(console, report)
    if json is not None:
        write_json(json, as_document(report))
        echo(console, f"All numbers: {json}")


app.add_typer(studies)


def main() -> None:
    """Run the command; a user's mistake is one sentence and exit code 2."""
    from headstart.training.supervisor import is_child, leave

    try:
        app()
    except UserError as error:
        echo(Console(stderr=True), f"headstart: {error}", style="bold red")
        leave(2)
    except KeyboardInterrupt:
        leave(130)
    except Exception:  # of a member of a cluster, which must say what went wrong before it waits for the others
        if not is_child():
            raise
        traceback.print_exc()
        leave(1)
