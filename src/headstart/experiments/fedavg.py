"""FedAvg(E) with server momentum, then local fine-tuning: the baseline that everything else must beat.

Command: headstart run fedavg
"""

from headstart.experiment.experiment import Data, Experiment, ModelSpec, Stage
from headstart.learning.optimizers import Optimizer
from headstart.learning.personalization import Personalization
from headstart.methods.paper import FedAvg

EXPERIMENT = Experiment(
    name="fedavg",
    data=Data("glyphs", {"writers": 200}, train=0.7, validation=0.1),
    model=ModelSpec("cnn_lean"),
    stages=(
        Stage(
            "FedAvg",
            FedAvg(epochs=2, learning_rate=0.02, batch_size=20),
            Optimizer("sgd", 1.0, {"momentum": 0.9}),
            rounds=100,
        ),
    ),
    personalization=Personalization(Optimizer("sgd", 0.02), batch_size=20, epochs=5),
)
