"""headstart: one initial model for a federation, which a few local steps make each client's own.

The public names are listed in `__init__.pyi`; each is imported when it is first asked for.
"""

import lazy_loader

from headstart._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
