# SPDX-License-Identifier: Apache-2.0
"""MobileNetV1 on ImageNet in 0.72 MiB, the size of DKM's (63.9 % top-1, of width 1).

The network is of width 0.75, with the weights of TensorFlow's MobileNetV1 0.75 224 under the names
below (dense 68.4 %, 9.9 MiB).

    torchrun --nproc-per-node 1 examples/imagenet_mobilenetv1.py /data/imagenet \\
        --weights mobilenetv1_075_224_imagenet.safetensors --output mobilenetv1.tersor
    torchrun --nproc-per-node 8 examples/imagenet_mobilenetv1.py /data/imagenet \\
        --weights mobilenetv1_075_224_imagenet.safetensors --output mobilenetv1.tersor \\
        --mixed-precision bf16
    accelerate launch --multi_gpu --num_processes 8 examples/imagenet_mobilenetv1.py ...

The batch is that of all processes together, so that results do not depend on their number. A run
that was stopped goes on where it was.
"""

from __future__ import annotations

import imagenet
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (24, 48, 96, 96, 192, 192, 384, 384, 384, 384, 384, 384, 768, 768)
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)


def same_padding(x: Tensor) -> Tensor:
    """What TensorFlow pads before a 3x3 convolution of stride 2 on even sizes: right and bottom."""
    return F.pad(x, (0, 1, 0, 1))


class MobileNetV1(nn.Module):
    """MobileNetV1 (Howard et al., 2017) of width 0.75, 2.6 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        pairs = list(zip(WIDTHS, WIDTHS[1:], STRIDES, strict=False))
        self.conv1, self.bn1 = nn.Conv2d(3, 24, 3, 2, bias=False), norm(24)
        self.dw = nn.ModuleList(
            nn.Conv2d(i, i, 3, s, padding=2 - s, groups=i, bias=False) for i, _, s in pairs
        )
        self.dwbn = nn.ModuleList(norm(i) for i, _, _ in pairs)
        self.pw = nn.ModuleList(nn.Conv2d(i, o, 1, bias=False) for i, o, _ in pairs)
        self.pwbn = nn.ModuleList(norm(o) for _, o, _ in pairs)
        self.fc = nn.Conv2d(WIDTHS[-1], 1000, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (n, 1000) of images (n, 3, 224, 224)."""
        x = F.relu6(self.bn1(self.conv1(same_padding(x))))
        layers = zip(self.dw, self.dwbn, self.pw, self.pwbn, STRIDES, strict=True)
        for dw, dwbn, pw, pwbn, stride in layers:
            x = F.relu6(dwbn(dw(same_padding(x) if stride > 1 else x)))
            x = F.relu6(pwbn(pw(x)))
        return self.fc(x.mean((2, 3), keepdim=True)).flatten(1)


def norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation as TensorFlow's."""
    return nn.BatchNorm2d(channels, eps=1e-3)


RECIPE = imagenet.Recipe(MobileNetV1, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), size="0.72MiB")

if __name__ == "__main__":
    imagenet.main(RECIPE, __doc__)
