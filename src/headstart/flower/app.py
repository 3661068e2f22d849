"""The two components of a Flower app without code of its own: pyproject.toml names them, the run's config the rest.

client: takes part in any experiment of headstart's own values, with the file that its node's config names as `data`.
server: config `experiment` (a name or a file), `out` (the run folder), and optionally `set` (settings such as
    "seed=1 stages.0.rounds=5") and the fields of `ServerConfig`: `nodes`, `replies`, `deadline`, `patience`.
"""

from __future__ import annotations

from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from headstart.errors import UserError
from headstart.experiment.loading import load
from headstart.flower.device import client_app
from headstart.flower.server import serve
from headstart.flower.service import ServerConfig

client = client_app()
server = ServerApp()

_ACCEPTED = ("experiment", "out", "set", *ServerConfig.__dataclass_fields__)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run's config names."""
    settings = dict(context.run_config)
    unknown = [name for name in settings if name not in _ACCEPTED]
    if unknown or not settings.get("experiment") or not settings.get("out"):
        problem = f"has an unknown setting {unknown[0]!r}" if unknown else "names no experiment or no folder `out`"
        raise UserError(f"the run's config {problem}; it accepts {', '.join(_ACCEPTED)}")
    fields: dict[str, Any] = {name: settings[name] for name in ServerConfig.__dataclass_fields__ if name in settings}
    config = ServerConfig(**fields)
    experiment = load(str(settings["experiment"]), settings=str(settings.get("set", "")).split())
    serve(grid, experiment, str(settings["out"]), config=config)
