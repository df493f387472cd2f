"""Benchmarks: workloads by name, each checked against fp64 before it is timed, and what measures them.

`workloads.WORKLOADS` lists them. A workload is made for a provider (one of our backends, one of torch's ways, a peer
that is installed) on a device; `measure.measure` checks and times several providers in turn. ``benchmarks/ratios.py``,
``python -m fusedtrain.bench`` and ``python -m fusedtrain.gpu_check`` print and record what it finds.
"""
