# SPDX-License-Identifier: Apache-2.0
"""Tables of docs/results.md, as Markdown; see `results`."""

from __future__ import annotations

from typing import Any

from benchmarks.lib import record
from benchmarks.pages import finetuned

NAMES = {
    "reconstructed": "tersor, reconstructed",
    "calibrated": "tersor, calibrated",
    "tersor": "tersor, data-free",
    "vector_quantization": "k-means vector quantization",
    "scalar": "scalar quantization, same entropy coder",
}

Row = dict[str, Any]


def resnet20_table(rows: list[Row]) -> str:
    """One line per asked ratio, one column per method."""
    lines = [
        "| asked | " + " | ".join(NAMES.values()) + " |",
        "| ---: |" + " ---: |" * len(NAMES),
    ]
    for asked in sorted({r["asked"] for r in rows if r["asked"] > 1}):
        cells = [cell(rows, method, asked) for method in NAMES]
        lines.append(f"| {asked:g}x smaller | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def front_table(dense: Row, ours: list[Row], peers: list[Row]) -> str:
    """The README's table: one call of ours against scalar quantization, one line per size.

    Parameters
    ----------
    dense
        Row of the network as it was trained.
    ours
        Rows of `one_call.py`.
    peers
        Rows of `resnet20_cifar10.py`.
    """
    trained = f"{dense['top1']:.2f} %"
    lines = [
        "| size of the file | accuracy with tersor | accuracy with rounded weights, same size |",
        "| --- | ---: | ---: |",
        f"| {dense['bytes'] / 1e3:,.0f} kB, as trained | {trained} | {trained} |",
    ]
    scalar = {r["asked"]: r["top1"] for r in peers if r["method"] == "scalar"}
    for row in one_calls(ours):
        size = f"{row['bytes'] / 1e3:.0f} kB, {row['asked']:g} times smaller"
        accuracies = f"**{row['quality']:.2f} %** | {scalar[row['asked']]:.2f} %"
        lines.append(f"| {size} | {accuracies} |")
    return "\n".join(lines)


def one_calls(rows: list[Row]) -> list[Row]:
    """Rows of `one_call.py` with the default effort, by size."""
    return sorted((r for r in rows if r["effort"] == "balanced"), key=lambda r: float(r["asked"]))


def effort_table(rows: list[Row]) -> str:
    """One line per effort: what it gives, and what it takes."""
    lines = [
        "| effort | accuracy | bytes of the file | error of the outputs | processor time |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for effort in ("fast", "balanced", "best"):
        for row in (r for r in rows if (r["asked"], r["effort"]) == (20, effort)):
            cells = f"{row['quality']:.2f} % | {row['bytes']:,} | {row['output_error']:.3f}"
            lines.append(f"| `{effort}` | {cells} | {row['processor_seconds']:.0f} s |")
    return "\n".join(lines)


LOW_RANK = {
    "tersor": "`lowrank.decompose`",
    "svd": "plain SVD, equal energy",
    "tucker": "Tucker-2, ranks by variational Bayes",
}


def low_rank_table(rows: list[Row]) -> str:
    """One line per share of the operations, one column per method: accuracies."""
    found = {(r["asked"], r["method"]): f"{r['accuracy']:.2f} %" for r in rows}
    lines = [
        f"| operations left | {' | '.join(LOW_RANK.values())} |",
        "| ---: | ---: | ---: | ---: |",
    ]
    lines.append("| 100 % | " + " | ".join([found[1.0, "dense"]] * len(LOW_RANK)) + " |")
    for asked in sorted({r["asked"] for r in rows} - {1.0}, reverse=True):
        cells = [found.get((asked, method), "") for method in LOW_RANK]
        lines.append(f"| {100 * asked:.0f} % | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(rows: list[Row], method: str, asked: float) -> str:
    row = next(r for r in rows if r["method"] == method and r["asked"] == asked)
    top1 = f"{row['top1']:.2f} %"
    return f"{f'**{top1}**' if method == 'reconstructed' else top1} at {row['bytes']:,} bytes"


def setting(content: dict[str, Any]) -> str:
    versions, machine = content["versions"], content["machine"]
    return (
        f"tersor {versions['tersor']}, torch {versions['torch']}, {versions['threads']} threads on "
        f"{machine['processor']}."
    )


PEERS = {
    "kmeans": "k-means",
    "scalar": "scalar",
    "additive": "additive VQ",
    "nncodec": "NNCodec, best setting",
    "nncodec_default": "NNCodec, default",
}


def rate_table(means: list[Row]) -> str:
    """One line per source and rate: mean gap to the bound, and mean lead over each peer."""
    heads = ["weights", "bits", "tensors", "gap, dB", *(f"ahead of {n}" for n in PEERS.values())]
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for row in means:
        leads = [f"{row['ahead'][p]:.2f}" if p in row["ahead"] else "" for p in PEERS]
        cells = [row["source"], f"{row['asked']:g}", str(row["tensors"]), f"{row['gap']:.2f}"]
        lines.append("| " + " | ".join(cells + leads) + " |")
    return "\n".join(lines)


def gains(calibration: dict[str, Any]) -> str:
    """Mean reduction of the output error for each rate."""
    rows, parts = calibration["rows"], []
    for bits in sorted({r["bits"] for r in rows}):
        drops = [r["plain_db"] - r["calibrated_db"] for r in rows if r["bits"] == bits]
        parts.append(f"{sum(drops) / len(drops):.1f} dB at {bits:g} bits per weight")
    return " and ".join(parts)


NETWORKS = {
    "resnet20": "ResNet-20, top-1 %",
    "resnet8": "ResNet-8, top-1 %",
    "mobilenet": "MobileNetV1-0.75, top-1 %",
    "minilm": "MiniLM-L6, 100 Spearman",
}
ALLOCATIONS = {
    "tersor": "reconstructed",
    "calibrated": "calibrated",
    "uniform": "same bits everywhere",
    "scalar": "scalar",
    "coremltools": "coremltools",
}


def post_training_table(rows: list[Row]) -> str:
    """One line per network and size: quality of each method, and bytes of the best of ours."""
    lines = [
        "| network | dense | asked | " + " | ".join(ALLOCATIONS.values()) + " |",
        "| --- |" + " ---: |" * (2 + len(ALLOCATIONS)),
    ]
    found = {(r["network"], r["method"], r["asked"]): r for r in rows}
    pairs = sorted({(list(NETWORKS).index(r["network"]), r["asked"]) for r in rows})
    for place, asked in pairs:
        network, title = list(NETWORKS.items())[place]
        if asked > 1:
            dense = found[network, "dense", 1]["quality"]
            results = [found.get((network, method, asked)) for method in ALLOCATIONS]
            cells = [f"{r['quality']:.2f} ({r['bytes']:,} B)" if r else "" for r in results]
            heads = [title, f"{dense:.2f}", f"{asked:g}x"]
            lines.append("| " + " | ".join(heads + cells) + " |")
    return "\n".join(lines)


def lossless_table(rows: list[Row]) -> str:
    """One line per model and type: bytes and speeds of both."""
    lines = [
        "| model | type | bytes of the tensors | tersor, whole file | ZipNN "
        "| tersor: encode, decode, MB/s | ZipNN: encode, decode, MB/s |",
        "| --- | --- |" + " ---: |" * 5,
    ]
    for row in rows:
        sizes = [f"{row[name]:,}" for name in ("tensor_bytes", "tersor_bytes", "zipnn_bytes")]
        speeds = [
            ", ".join(f"{row[f'{method}_{part}_mb_per_s']:,.0f}" for part in ("encode", "decode"))
            for method in ("tersor", "zipnn")
        ]
        lines.append("| " + " | ".join([row["model"], row["type"], *sizes, *speeds]) + " |")
    return "\n".join(lines)


def coder_table(rows: list[Row]) -> str:
    """One line per rate: sizes relative to the entropy under the model, speeds."""
    lines = [
        "| bits per latent | above the entropy under the model | zstd -19 | xz -9 "
        "| encode, decode: million latents/s, one core | two threads |",
        "|" + " ---: |" * 6,
    ]
    for row in rows:
        size = row["bytes"]
        excess = 100 * (size / row["entropy_bytes"] - 1)
        cells = [f"{8 * size / row['latents']:.2f}", f"{excess:.3f} %"]
        cells += [f"{row[f'{peer}_bytes'] / size:.2f} times larger" for peer in ("zstd", "xz")]
        for how in ("per_core", "two_threads"):
            speeds = (row[f"{part}_{how}"] / 1e6 for part in ("encode", "decode"))
            cells.append(", ".join(f"{speed:.0f}" for speed in speeds))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def overheads(rows: list[Row]) -> str:
    """Share of the header in each file, in words."""
    parts = [
        f"{r['header_bytes']} of the {r['bytes']:,} bytes of a {r['model']} of {r['tensors']} "
        f"tensors ({100 * r['header_bytes'] / r['bytes']:.2f} %)"
        for r in rows
    ]
    return " and ".join(parts)


def opening_table(rows: list[Row]) -> str:
    """One line per thing to read: best seconds, cold and warm, on one and two threads."""
    lines = [
        "| what | one thread: cold, warm, s | two threads: cold, warm, s |",
        "| --- | ---: | ---: |",
    ]
    for name in dict.fromkeys(r["what"] for r in rows):
        cells = [f"{r['cold_best']:.3f}, {r['warm_best']:.3f}" for r in rows if r["what"] == name]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def fast_table(fast: dict[str, Any]) -> str:
    heads = ["weights", "bits", "matrices", "cost, dB", "largest"]
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for mean in fast["means"]:
        group = mean["source"], mean["asked"]
        costs = [r["cost"] for r in fast["rows"] if (r["source"], r["asked"]) == group]
        cells = [*group, mean["tensors"], f"{mean['cost']:.2f}", f"{max(costs):.2f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def step_words(rows: list[Row]) -> str:
    """What a step of the factored model takes, in words."""
    parts = [
        f"{r['overhead']:.2f} of {finetuned.NETWORKS[r['network']]} on {r['threads']}"
        for r in sorted(rows, key=lambda r: (r["network"], r["threads"]))
    ]
    return (
        "`--overhead`: a training step of the factored model takes as many times that of the dense "
        f"one, measured in turn, with batches of {rows[0]['batch']}: {', '.join(parts)} threads."
    )


def break_even(storage: dict[str, Any]) -> float:
    """MB/s of a disk or network below which our file is there sooner than the dense one."""
    seconds = {r["what"]: r["warm_best"] for r in storage["opening"] if r["threads"] == 1}
    saved = storage["minilm_dense_bytes"] - storage["minilm_bytes"]
    return saved / 1e6 / (seconds["tersor, dense tensors"] - seconds["safetensors, dense"])


def memory_words(rows: list[Row]) -> str:
    """Peaks, in words."""
    words = {"load": "loading into a model", "save": "saving it", "decompress": "decompressing"}
    return ", ".join(f"{words[r['what']]} {r['risen_bytes'] / 1e6:.0f} MB" for r in rows)


def ages_table(results: dict[str, dict[str, Any]]) -> str:
    """One line per file of results: the code that it measures, and whether that has changed."""
    lines = ["| results | code | figures |", "| --- | --- | --- |"]
    for name, content in results.items():
        measured = ", ".join(f"`{part}`" for part in content.get("measures", ()))
        lines.append(f"| `{name}.json` | {measured} | {record.age(content)} |")
    return "\n".join(lines)
