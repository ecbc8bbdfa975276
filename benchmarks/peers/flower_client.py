"""Flower's client, by `start_client`."""

import numpy as np
from flwr.client import NumPyClient, start_client
from job import read_job
from learner import Learner


class Client(NumPyClient):
    """Hands what comes to the learner."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def fit(
        self, parameters: list[np.ndarray], config: object
    ) -> tuple[list[np.ndarray], int, dict[str, float]]:
        """One local epoch."""
        return self._learner.fit(parameters), len(self._learner), {}


def main() -> None:
    """Work until killed."""
    job = read_job()
    start_client(server_address=f"127.0.0.1:{job.ports[job.client]}", client=Client(Learner(job)).to_client())


if __name__ == "__main__":
    main()
