"""Flower's server: synchronous FedAvg over all clients, by `start_server`."""

import numpy as np
from flwr.common import ndarrays_to_parameters
from flwr.server import Server, ServerConfig, SimpleClientManager, start_server
from flwr.server.strategy import FedAvg
from job import Snapshots, read_job


def main() -> None:
    """Serve until killed."""
    job = read_job()
    snapshots, clients = Snapshots(job), len(job.ports)

    def note(server_round: int, arrays: list[np.ndarray], _config: object) -> None:
        snapshots.offer(server_round * clients, lambda: arrays)

    strategy = FedAvg(
        fraction_evaluate=0.0,
        min_fit_clients=clients,
        min_available_clients=clients,
        initial_parameters=ndarrays_to_parameters(job.initial()),
        evaluate_fn=note,
    )
    server = Server(client_manager=SimpleClientManager(), strategy=strategy)
    server.set_max_workers(
        clients
    )  # by default, only so many clients work at a time as there are cores and four
    config = ServerConfig(num_rounds=1_000_000)
    start_server(server_address=f"127.0.0.1:{job.port}", server=server, config=config)


if __name__ == "__main__":
    main()
