"""Methods beside the paper's: each a client update with its own ways of sharing, remembering and personalizing.

Every module here is one method. Those of the paper are in `headstart.updates`.
"""

from headstart.methods.anil import ANIL
from headstart.methods.ditto import Ditto
from headstart.methods.fedbabu import FedBABU
from headstart.methods.fedper import FedPer
from headstart.methods.fedprox import FedProx
from headstart.methods.fedrep import FedRep
from headstart.methods.ifca import IFCA
from headstart.methods.local_only import LocalOnly
from headstart.methods.per_fedavg import PerFedAvg
from headstart.methods.pfedme import PFedMe
from headstart.methods.scaffold import Scaffold

__all__ = [
    "ANIL",
    "IFCA",
    "Ditto",
    "FedBABU",
    "FedPer",
    "FedProx",
    "FedRep",
    "LocalOnly",
    "PFedMe",
    "PerFedAvg",
    "Scaffold",
]
