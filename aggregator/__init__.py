"""The aggregator: judges updates, folds them into the global model, publishes it.

Three steps, always in this order: `engine.Engine.offer` decides, `store.Store` makes the decision durable,
`Engine.commit` folds and says what to send. `service.Service` is the only part with a clock, a file and a
socket. Neither torch nor training data are needed here.
"""
