"""The datacenter baseline: the training clients' examples pooled; the same model, personalized the same way.

Command: headstart run centralized
"""

from dataclasses import replace

from headstart.experiment.experiment import Centralized
from headstart.experiments import fedavg
from headstart.learning.optimizers import Optimizer

EXPERIMENT = replace(
    fedavg.EXPERIMENT,
    name="centralized",
    stages=(
        Centralized("datacenter", Optimizer("sgd", 0.02, {"momentum": 0.9}), rounds=100, steps=100, batch_size=20),
    ),
)
