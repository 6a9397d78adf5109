"""The network that the others change in one place."""

from torch import Tensor, nn

CHANNELS = 4
SHAPE = (3, 8, 8)


class Net(nn.Module):
    """conv-bn-relu-conv-bn-relu-pool-linear, with its joints open to change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(SHAPE[0], CHANNELS, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(CHANNELS)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(CHANNELS)
        self.relu = nn.ReLU()
        self.inplace = nn.ReLU(inplace=True)
        self.fc = nn.Linear(CHANNELS, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)))

    def stem(self, x: Tensor) -> Tensor:
        return self.relu(self.bn1(self.conv1(x)))

    def body(self, x: Tensor) -> Tensor:
        return self.relu(self.bn2(self.conv2(x)))

    def head(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))
