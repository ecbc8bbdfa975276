"""Federated learning over a message queue.

The core: what the roles share. Numbers (`types`, `layout`, `codecs`), bytes (`wire`, `chunks`, `topics`,
`plan`) and the port to the broker (`transport`). The roles themselves are `fedmq.edge_agent` and
`fedmq.aggregator`, which never import each other; `fedmq.broker` knows nothing of federated learning;
`fedmq.app` is the front door that starts them all.
"""

__version__ = "0.1.0"
