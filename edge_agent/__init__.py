"""The edge agent: trains on local data, publishes updates, forgets nothing until it has a receipt.

`session.EdgeSession` decides what to do next and is pure; `agent.Agent` is the shell with the clock, the disk and the
socket. A `trainer.Trainer` does the learning: `numpy_trainer` needs nothing more than this package, `torch_trainer`
needs the torch extra and is the only module that imports it.
"""
