# SPDX-License-Identifier: Apache-2.0
"""ResNet-18 on ImageNet in 1.54 or 1.03 MiB, the sizes of BGD and PQF.

Published: BGD 65.81 / 61.18 %, PQF 66.74 / 63.33 % top-1; dense 69.76 %, 44.7 MiB. Sizes there are
computed, here they are of the file. Weights are torchvision's:
https://download.pytorch.org/models/resnet18-f37072fd.pth

    torchrun --nproc-per-node 1 examples/imagenet_resnet18.py /data/imagenet \\
        --weights resnet18-f37072fd.pth --size 1.54MiB --output resnet18_1.54.tersor
    torchrun --nproc-per-node 8 examples/imagenet_resnet18.py /data/imagenet \\
        --weights resnet18-f37072fd.pth --size 1.03MiB --output resnet18_1.03.tersor \\
        --mixed-precision bf16
    accelerate launch --multi_gpu --num_processes 8 examples/imagenet_resnet18.py ...

The batch is that of all processes together, so that results do not depend on their number. A run
that was stopped goes on where it was.
"""

from __future__ import annotations

import imagenet
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; names as in torchvision."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (n, c, h, w)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """ResNet-18 (He et al., 2016), 11.7 million parameters; names as in torchvision."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        widths = [64, 64, 128, 256, 512]
        for number in range(1, 5):
            inputs, outputs = widths[number - 1 : number + 1]
            blocks = Block(inputs, outputs, 1 if number == 1 else 2), Block(outputs, outputs, 1)
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.fc = nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (n, 1000) of images (n, 3, 224, 224)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(x.mean((2, 3)), 1))


RECIPE = imagenet.Recipe(
    ResNet18, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size="1.54MiB"
)

if __name__ == "__main__":
    imagenet.main(RECIPE, __doc__)
