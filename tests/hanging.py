"""A model whose process falls asleep at a signal and still answers the cluster's heartbeat."""

import signal
import time

import tiny

SOFTMAX = tiny.SOFTMAX

signal.signal(signal.SIGUSR1, lambda number, frame: time.sleep(1000))
