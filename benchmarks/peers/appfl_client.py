"""APPFL's client over gRPC: the loop of its example `examples/grpc/run_client.py`, with its own trainer."""

import gc
import time

import appfl_import  # noqa: F401 - before APPFL
import torch
from appfl.agent import ClientAgent
from appfl.comm.grpc import GRPCClientCommunicator
from job import Job, read_job
from learner import load_shard, order, warm_up
from omegaconf import OmegaConf
from torch import Tensor


class Shard(torch.utils.data.Dataset):
    """A client's examples in the order of the present epoch.

    Args:
        job: the race's.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._epoch = job, 0
        self._images, self._labels = load_shard(job.shards[job.client])
        self.shuffle()

    def shuffle(self) -> None:
        """Go to the next epoch's order."""
        self._order = order(self._job, self._epoch, len(self._labels)).tolist()
        self._epoch += 1

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        chosen = self._order[index]
        return self._images[chosen], self._labels[chosen]


def make_agent(job: Job, memory: dict[str, bool]) -> ClientAgent:
    """APPFL's agent with the race's data."""

    class Agent(ClientAgent):
        def _load_data(self) -> None:
            self.train_dataset, self.val_dataset = Shard(job), None

    settings = {"client_id": f"client-{job.client}", "train_configs": {"device": "cpu"}}
    return Agent(client_agent_config=OmegaConf.create(settings | memory))


def main() -> None:
    """Work until killed."""
    job = read_job()
    warm_up()
    memory = {"optimize_memory": False} if job.options["tuned"] else {}
    agent = make_agent(job, memory)
    communicator = GRPCClientCommunicator(
        client_id=agent.get_id(),
        logger=agent.logger,
        server_uri=f"127.0.0.1:{job.ports[job.client]}",
        max_message_size=1 << 20,
        use_ssl=False,
        **memory,
    )
    agent.load_config(communicator.get_configuration())
    job.wait_for_all("configured")  # FedCompass times its clients from the first request of a model
    agent.load_parameters(communicator.get_global_model(init_model=True))
    communicator.invoke_custom_action(action="set_sample_size", sample_size=agent.get_sample_size())
    if job.options["tuned"]:
        gc.collect()
        gc.freeze()
    job.wait_for_start()
    work(job, agent, communicator)


def work(job: Job, agent: ClientAgent, communicator: GRPCClientCommunicator) -> None:
    """Train and exchange, round and round."""
    whole_epoch = -(-agent.get_sample_size() // job.batch_size)
    while True:
        agent.train()
        agent.train_dataset.shuffle()
        model, metadata = agent.get_parameters()
        time.sleep(job.pauses[job.client] * metadata["current_local_steps"] / whole_epoch)
        model, metadata = communicator.update_global_model(model, **metadata)
        if metadata["status"] == "DONE":
            return
        if "local_steps" in metadata:
            agent.trainer.train_configs.num_local_steps = metadata["local_steps"]
        agent.load_parameters(model)


if __name__ == "__main__":
    main()
