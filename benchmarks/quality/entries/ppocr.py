# SPDX-License-Identifier: Apache-2.0
"""PP-OCRv4's text detector: depthwise convolutions, a feature pyramid, transposed convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.lib.zoo import graph, store, text
from benchmarks.quality.entries import Entry, Figures, craft

PACKAGE = "rapidocr-onnxruntime==1.4.4"
FILE = "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"


RUNTIME = ("flatbuffers==25.2.10", "onnxruntime==1.32.0")


def original(pages: Tensor) -> Tensor:
    """The package's file, run by onnxruntime."""
    store.module(RUNTIME[0], "flatbuffers")
    runtime = store.module(RUNTIME[1], "onnxruntime")
    path = str(store.folder(PACKAGE) / FILE)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": pages.numpy()})[0])


def build() -> nn.Module:
    return graph.Graph(store.folder(PACKAGE) / FILE).eval()


@torch.inference_mode()
def quality(model: nn.Module) -> Figures:
    found = []
    for page in craft.images("held out", 50):
        mask = model(page[None])[0, 0].numpy() > 0.3
        found.append(text.components(mask, 1.0, 0.4))
    return {"words found, F1, %": text.harmonic_mean(found, text.pages("held out", 50)[1])}


ENTRY = Entry(
    purpose="text detection",
    packages=(PACKAGE, *graph.PACKAGES, *RUNTIME),
    licence="Apache-2.0",
    measure="words found, F1 in %, 200 words on photographs",
    build=build,
    batches=craft.batches,
    quality=quality,
    original=original,
)
