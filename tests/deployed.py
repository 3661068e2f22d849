"""The Flower app that the tests deploy: headstart's own, in 32 or 64 bits, with nodes that can be made to fail."""

import time
from pathlib import Path

import jax
import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp import Grid, ServerApp

from headstart.experiment.loading import load
from headstart.flower import ServerConfig, client_app, serve, wire


def fail(message: Message, context: Context, answer: ClientAppCallable) -> Message:
    """Leave a mark that a round has come; in the experiment "faults", fail as the node's config says.

    "slow" and "doomed" keep the second round waiting; "spoiled" sends NaN then, and another shape in the third.
    """
    if message.metadata.message_type != MessageType.TRAIN:
        return answer(message, context)
    request, fault = wire.read_request(message.content), context.node_config.get("fault", "")
    Path(str(context.node_config["data"])).with_suffix(f".round-{request.round}").touch()
    if request.experiment["name"] != "faults" or request.round not in (2, 3):
        return answer(message, context)
    if request.round == 2 and fault in ("slow", "doomed"):
        time.sleep(float(context.node_config.get("seconds", 900)))
    reply = answer(message, context)
    if fault == "spoiled":
        delta = reply.content.array_records[wire.DELTA]
        reply.content[wire.DELTA] = ArrayRecord(
            {name: Array(spoiled(a.numpy(), request.round)) for name, a in delta.items()}
        )
    return reply


def spoiled(array: np.ndarray, number: int) -> np.ndarray:
    return np.full_like(array, np.nan) if number == 2 else np.ones(1, array.dtype)


client = client_app(allowed_modules=("tiny",), mods=[fail])
server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    config = ServerConfig(nodes=int(config["nodes"]), deadline=float(config["deadline"]), patience=900.0)
    with jax.enable_x64(bool(config["x64"])):
        experiment = load(str(config["experiment"]), allowed_modules=("tiny",))
        serve(grid, experiment, str(config["out"]), config=config, allowed_modules=("tiny",))
