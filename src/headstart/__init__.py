"""headstart: one initial model for a federation, which a few local steps make each client's own."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from headstart.data import Client, Examples, Federation, from_arrays, split_clients, split_examples
from headstart.datasets import load
from headstart.draw import on_device
from headstart.errors import UserError
from headstart.experiment import Centralized, Data, Experiment, Imported, Stage
from headstart.local import Descent
from headstart.method import ClientUpdate, Reply
from headstart.models import Model, as_model
from headstart.optimizers import Optimizer, Schedule
from headstart.personalize import Personalization, choose_length, personalize
from headstart.rounds import Algorithm, Cohort, State, centralized, federated
from headstart.run import run
from headstart.statistics import summarize
from headstart.tasks import Classification, Metric, NextCharacter, Regression, Task
from headstart.updates import FOMAML, MAML, FedAvg, FedSGD, Reptile

if TYPE_CHECKING:
    from headstart.report import write as write_report

__all__ = [
    "FOMAML",
    "MAML",
    "Algorithm",
    "Centralized",
    "Classification",
    "Client",
    "ClientUpdate",
    "Cohort",
    "Data",
    "Descent",
    "Examples",
    "Experiment",
    "FedAvg",
    "FedSGD",
    "Federation",
    "Imported",
    "Metric",
    "Model",
    "NextCharacter",
    "Optimizer",
    "Personalization",
    "Regression",
    "Reply",
    "Reptile",
    "Schedule",
    "Stage",
    "State",
    "Task",
    "UserError",
    "as_model",
    "centralized",
    "choose_length",
    "federated",
    "from_arrays",
    "load",
    "on_device",
    "personalize",
    "run",
    "split_clients",
    "split_examples",
    "summarize",
    "write_report",
]


def __getattr__(name: str) -> Any:
    # matplotlib takes longer to import than JAX, and a device that trains does not draw.
    if name != "write_report":
        raise AttributeError(f"module 'headstart' has no attribute {name!r}")
    from headstart.report import write

    return write
