"""APPFL's server over gRPC, with one of its aggregators.

The settings are those of APPFL's own examples (`examples/resources/configs/mnist/server_*.yaml`), but for the task,
which is the race's, and for what `_algorithm` explains. `tuned` switches off `optimize_memory`, which collects
garbage several times for each update, and freezes what was allocated before, so that the collections that remain are
short.
"""

import gc
from pathlib import Path

import appfl_import  # noqa: F401 - before APPFL
import torch
from appfl.agent import ServerAgent
from appfl.comm.grpc import GRPCServerCommunicator, serve
from job import Job, Snapshots, read_job
from omegaconf import DictConfig, OmegaConf

torch.set_num_threads(1)

_MODEL = str(Path(__file__).with_name("mlp.py"))
_POLYNOMIAL = {"staleness_fn": "polynomial", "staleness_fn_kwargs": {"a": 0.5}}


def _algorithm(
    name: str, clients: int, steps: int
) -> tuple[str, dict[str, object], dict[str, object], bool, str]:
    """Scheduler with its settings, aggregator's settings, whether clients send differences, and the training mode.

    APPFL multiplies each asynchronous contribution by alpha / clients. The examples have two clients and alpha 0.9.
    With ten, that alpha needs two to three times the updates of those below; 0.9 undivided needs four times as many.
    So alpha is such that the weight of a fresh update is what the papers give it: 0.6 for FedAsync (Xie et al.,
    arXiv:1903.03934), 1/K for FedBuff (Nguyen et al., AISTATS 2022, Algorithm 1). FedCompass keeps 0.9: it folds a
    whole group of clients at a time. The option `alpha` is taken as it is.
    """
    fedavg = {"client_weights_mode": "equal"}
    buffered = 5
    # FedCompass gives a client between a fifth and the whole of the largest number of steps, here an epoch's.
    compass = {"max_local_steps": steps, "min_local_steps": max(steps // 5, 1), "speed_momentum": 0.9,
               "latest_time_factor": 1.5}  # fmt: skip
    return {
        "FedAvg": ("SyncScheduler", {}, fedavg, False, "epoch"),
        "FedAsync": ("AsyncScheduler", {}, _POLYNOMIAL | {"alpha": 0.6 * clients}, True, "epoch"),
        "FedBuff": ("AsyncScheduler", {}, _POLYNOMIAL | {"alpha": clients / buffered, "K": buffered}, True, "epoch"),
        "FedCompass": ("CompassScheduler", compass, _POLYNOMIAL | {"alpha": 0.9}, True, "step"),
    }[name]  # fmt: skip


def _settings(job: Job) -> DictConfig:
    clients, name = len(job.ports), job.options["algorithm"]
    steps = -(-job.examples // job.batch_size)
    scheduler, scheduling, aggregating, differences, mode = _algorithm(name, clients, steps)
    if "alpha" in job.options:
        aggregating = aggregating | {"alpha": job.options["alpha"]}
    memory = {"optimize_memory": False} if job.options["tuned"] else {}
    train = {
        "trainer": "VanillaTrainer",
        "mode": mode,
        "num_local_epochs": 1,
        "num_local_steps": steps,
        "optim": "SGD",
        "optim_args": {"lr": job.learning_rate},
        "loss_fn": "CrossEntropyLoss",
        "metric_path": _MODEL,
        "metric_name": "accuracy",
        "do_validation": False,
        "train_batch_size": job.batch_size,
        "train_data_shuffle": False,  # the client's data set comes in the race's order
    }
    if differences:
        train["send_gradient"] = True
    return OmegaConf.create(
        {
            "client_configs": {
                "train_configs": train | memory,
                "model_configs": {"model_path": _MODEL, "model_name": "Mlp", "model_kwargs": job.network},
                "comm_configs": {"compressor_configs": {"enable_compression": False}},
            },
            "server_configs": {
                "num_clients": clients,
                "scheduler": scheduler,
                "scheduler_kwargs": {"same_init_model": True} | scheduling | memory,
                "aggregator": f"{name}Aggregator",
                "aggregator_kwargs": aggregating | memory,
                "device": "cpu",
                "num_global_epochs": 1_000_000_000,
                "comm_configs": {
                    "grpc_configs": {
                        "server_uri": f"127.0.0.1:{job.port}",
                        "max_message_size": 1 << 20,
                        "use_ssl": False,
                    }
                    | memory
                },
            }
            | memory,
        }
    )


def _watch(agent: ServerAgent, job: Job) -> None:
    """Have the aggregator's results written for the judge."""
    aggregator, snapshots, updates = agent.aggregator, Snapshots(job), 0
    original = aggregator.aggregate

    def aggregate(*args: object, **kwargs: object) -> dict[str, torch.Tensor]:
        nonlocal updates
        result = original(*args, **kwargs)
        many = kwargs.get("local_models") or next((a for a in args if isinstance(a, dict)), {})
        updates += 1 if "hidden.weight" in many or not many else len(many)
        snapshots.offer(updates, lambda: [result[name].numpy() for name in job.names])
        return result

    aggregator.aggregate = aggregate


def main() -> None:
    """Serve until killed."""
    job = read_job()
    settings = _settings(job)
    agent = ServerAgent(server_agent_config=settings)
    initial = dict(zip(job.names, map(torch.from_numpy, job.initial()), strict=True))
    agent.model.load_state_dict(initial)
    _watch(agent, job)
    transport = settings.server_configs.comm_configs.grpc_configs
    memory = {} if not job.options["tuned"] else {"optimize_memory": False}
    communicator = GRPCServerCommunicator(
        agent, max_message_size=transport.max_message_size, logger=agent.logger, **memory
    )
    if job.options["tuned"]:
        gc.collect()
        gc.freeze()
    serve(communicator, **transport)


if __name__ == "__main__":
    main()
