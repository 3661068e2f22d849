"""An experiment on devices, as a Flower ClientApp and ServerApp (extra: headstart[flower]).

The same client update and the same server step as in a run of one machine, with the network between them: a round is
`rounds.aggregate_clients` on the devices and `rounds.server_step` on the server. Personalization stays on the device.
"""

try:
    import flwr as _flwr  # noqa: F401
except ImportError as error:
    raise ImportError("headstart.flower needs Flower; install headstart[flower]") from error

from headstart.flower.device import Loader, client_app, from_node
from headstart.flower.server import print_record, serve, server_app
from headstart.flower.service import ServerConfig

__all__ = ["Loader", "ServerConfig", "client_app", "from_node", "print_record", "serve", "server_app"]
