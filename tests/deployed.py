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
from hostile import DEPLOYED, MANIFESTS, REPLIES, with_curves


def fail(message: Message, context: Context, answer: ClientAppCallable) -> Message:
    """Leave a mark that a round has come; in the experiment "faults", fail as the node's config says.

    "slow" and "doomed" keep the second round waiting; "spoiled" sends NaN then, and another shape in the third. In the
    experiment "hostile" it sends everything that `hostile` has, a reply a round.
    """
    if context.node_config.get("fault") == "spoiled" and (reply := hostile_reply(message, context, answer)):
        return reply
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


def hostile_reply(message: Message, context: Context, answer: ClientAppCallable) -> Message | None:
    """The reply of a hostile node in the experiment "hostile"; None in any other."""
    request, kind = wire.read_request(message.content), message.metadata.message_type
    if request.experiment["name"] != "hostile":
        return None
    reply = answer(message, context)
    if kind == MessageType.EVALUATE:
        return with_curves(lambda name, array: np.full_like(array, np.nan))(reply)
    if kind == MessageType.TRAIN:
        return REPLIES[DEPLOYED[request.round - 1]][0](reply)
    asked = Path(str(context.node_config["data"])).with_suffix(".asked")
    times = asked.stat().st_size if asked.exists() else 0
    asked.write_bytes(b"x" * (times + 1))
    return MANIFESTS[times][0](reply) if times < len(MANIFESTS) else reply


def spoiled(array: np.ndarray, number: int) -> np.ndarray:
    return np.full_like(array, np.nan) if number == 2 else np.ones(1, array.dtype)


client = client_app(allowed_modules=("tiny",), mods=[fail])
server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    settings = context.run_config
    config = ServerConfig(nodes=int(settings["nodes"]), deadline=float(settings["deadline"]), patience=900.0)
    with jax.enable_x64(bool(settings["x64"])):
        experiment = load(str(settings["experiment"]), allowed_modules=("tiny",))
        serve(grid, experiment, str(settings["out"]), config=config, allowed_modules=("tiny",))
