"""Flower's clients: a module of its own, so that Ray's processes import it and keep what they have loaded."""

# pyright: reportMissingImports=false

from __future__ import annotations

import functools

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from . import workload
from .with_torch import Loop

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on the client that the message names, from the parameters that it brings."""
    config = message.content.config_records["config"]
    loop, client = _loop(str(config["workload"])), int(str(config["client"]))
    for parameter, value in zip(
        loop.parameters, message.content.array_records["arrays"].to_numpy_ndarrays(), strict=True
    ):
        parameter.copy_(torch.from_numpy(value))
    loop.train(client)
    arrays = ArrayRecord([parameter.numpy() for parameter in loop.parameters])
    metrics = MetricRecord({"examples": int(loop.given.sizes[client])})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def message_to(node: int, client: int, path: str, arrays: ArrayRecord) -> Message:
    """What the server sends."""
    config = ConfigRecord({"client": client, "workload": path})
    return Message(RecordDict({"arrays": arrays, "config": config}), dst_node_id=node, message_type="train")


@functools.cache
def _loop(path: str) -> Loop:
    torch.set_num_threads(1)
    return Loop(workload.read(path))
