"""`headstart`, killed from within, after some of its lines and then some seconds, however busy the machine is.

python killed.py LINES SECONDS run ...
"""

import io
import os
import signal
import sys
import threading
import time

from headstart.cli.main import main


class Doomed(io.TextIOWrapper):
    """An output that counts its lines, and has the process killed some seconds after the last."""

    lines, seconds = 0, 0.0

    def write(self, text: str) -> int:
        written = super().write(text)
        self.flush()
        if self.lines > 0 >= self.lines - text.count("\n"):
            threading.Thread(target=self.kill, daemon=True).start()
        self.lines -= text.count("\n")
        return written

    def kill(self) -> None:
        time.sleep(self.seconds)
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    output = Doomed(sys.stdout.buffer, encoding="utf-8")
    output.lines, output.seconds = int(sys.argv[1]), float(sys.argv[2])
    sys.stdout, sys.argv[1:] = output, sys.argv[3:]
    main()
