"""Personalized FedAvg (PAPER, Algorithm 2): FedAvg(E) with server momentum, then Reptile(K) with server Adam.

Command: headstart run personalized_fedavg
"""

from dataclasses import replace

from headstart.experiment.experiment import Stage
from headstart.experiments import fedavg
from headstart.learning.optimizers import Optimizer
from headstart.methods.paper import Reptile

EXPERIMENT = replace(
    fedavg.EXPERIMENT,
    name="personalized_fedavg",
    stages=(
        replace(fedavg.EXPERIMENT.stages[0], rounds=70),
        Stage(
            "Reptile",
            Reptile(steps=10, learning_rate=0.02, batch_size=20),
            Optimizer("adam", 1e-3),
            rounds=30,
            weighting="uniform",
        ),
    ),
)
