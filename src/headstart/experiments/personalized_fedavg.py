"""Personalized FedAvg: FedAvg(E) under server momentum, then Reptile(K) under Adam (arXiv:1909.12488, Algorithm 2).

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
        ),
    ),
)
