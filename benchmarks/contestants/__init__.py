"""Contestants of `benchmarks/peers.py`: the same work, each with its own framework in a process of its own.

`with_….py` are the contestants; `protocol.py` is what they obey, `workload.py` what they are given.
"""
