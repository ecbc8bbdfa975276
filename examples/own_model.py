"""Federate a model of your own: any module, loss and data.

Run on each device: `fedmq agent --client pi-1 --trainer-factory own_model:make_trainer`.
"""

import torch
from fedmq.edge_agent.torch_trainer import TorchTrainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """A small convolutional network; its BatchNorm statistics travel too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4))
        self.head = nn.Linear(8 * 16, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores; the loss takes the softmax."""
        return self.head(self.body(images).flatten(1))


def make_trainer(settings: dict[str, object], device_seed: int = 0) -> TorchTrainer:
    """`settings` come from the aggregator's plan, everything else from this device."""
    generator = torch.Generator().manual_seed(device_seed)
    images = torch.rand(200, 1, 12, 12, generator=generator)
    data = TensorDataset(images, (images.mean((1, 2, 3)) > 0.5).long())
    torch.manual_seed(0)  # the same first model wherever it is made
    return TorchTrainer(Net(), nn.CrossEntropyLoss(), DataLoader(data, batch_size=20, shuffle=True))
