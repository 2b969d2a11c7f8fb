# SPDX-License-Identifier: Apache-2.0
"""Models that tests export to ONNX, and what computes with both."""

import numpy as np
import torch
from torch import nn

import tersor


def compressed(model, ratio=4):
    """A model that holds factors, with statistics of batch normalisation that matter."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    tersor.compress(model, ratio=ratio)
    return model


def mlp():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))


class Wrapped(nn.Module):
    """A linear layer, and a function after it."""

    def __init__(self, after):
        super().__init__()
        self.linear, self.after = nn.Linear(64, 64), after

    def forward(self, x):
        return self.after(self.linear(x))


def run(folder, feeds):
    session = tersor.export.onnx_session(folder)
    found = session.run(None, {name: x.numpy() for name, x in feeds.items()})
    return dict(zip([o.name for o in session.get_outputs()], found, strict=True))


def reference(model, *args, **kwargs):
    with torch.no_grad():
        return model.eval()(*args, **kwargs)


def close(found, wanted, tolerance=1e-4):
    scale = wanted.abs().max().item()
    return np.abs(found - wanted.numpy()).max() <= tolerance * scale


class Tied(nn.Module):
    """Token numbers and vectors in, two outputs by name, one weight at two places."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(100, 64), nn.Linear(64, 100, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens, *, offset):
        hidden = self.embedding(tokens) + offset
        return {"logits": self.head(hidden), "hidden": hidden}
