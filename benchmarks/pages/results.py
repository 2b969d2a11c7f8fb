"""Write docs/results.md, the picture, and the table in the README, from the JSON in results/.

python -m benchmarks.pages.results
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from benchmarks.lib import record
from benchmarks.lib.places import DOCS, ROOT
from benchmarks.pages import finetuned as finetuned
from benchmarks.pages import inference as inference

PICTURE = DOCS / "resnet20_cifar10.png"
TRAINED_PICTURE = DOCS / "finetuning.png"
START, END = "<!-- results: made by benchmarks/pages/results.py -->", "<!-- end of results -->"
TRAINED_START, TRAINED_END = "<!-- fine-tuned: made by the same -->", "<!-- end of fine-tuned -->"
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


def cell(rows: list[Row], method: str, asked: float) -> str:
    row = next(r for r in rows if r["method"] == method and r["asked"] == asked)
    top1 = f"{row['top1']:.2f} %"
    return f"{f'**{top1}**' if method == 'reconstructed' else top1} at {row['bytes']:,} bytes"


def picture(rows: list[Row]) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (method, name), style in zip(NAMES.items(), ("v-", "D-", "o-", "s--", "^--"), strict=True):
        points = [r for r in rows if r["method"] == method]
        axes.plot(
            [r["bytes"] / 1e3 for r in points], [r["top1"] for r in points], style, label=name
        )
    dense = next(r for r in rows if r["method"] == "fp32")
    axes.axhline(dense["top1"], color="gray", linewidth=1)
    note = f"fp32, {dense['bytes'] / 1e3:,.0f} kB: {dense['top1']:.2f} %"
    axes.annotate(
        note,
        (max(r["bytes"] for r in rows if r is not dense) / 1e3, dense["top1"] + 0.3),
        ha="right",
        color="gray",
    )
    axes.set_xlabel("kB on disk, everything included")
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_title("ResNet-20 on CIFAR-10, compressed without training", fontsize=11)
    axes.set_ylim(top=dense["top1"] + 1.5)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(PICTURE, dpi=150)


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


BASELINES = """ Baselines have files of their
own, with the same kept tensors: entropy-coded indices and codebooks of 16 bits (vector quantization
whose codebooks are trained, as in BGD and PQF; differentiable k-means), scalar quantization-aware
training with learned steps and the entropy coder of tersor, factors of weight SVD."""


def fine_tuned() -> str:
    """The part about fine-tuning, and its picture."""
    tuned = record.content("finetuning")
    finetuned.picture(TRAINED_PICTURE, tuned["rows"], record.content("post_training")["rows"])
    return f"""## Fine-tuned

`python -m benchmarks.quality.finetuning`: the dense network's own answers, or those of other
teachers (of
two the mean), are learnt on the augmented training set (order, augmentation, teacher and number
of steps the same within a line, one cosine; images augmented as when the first teacher was
trained), and the model loaded back from the file is evaluated on the 10,000 test images in a
fresh process. The last state counts; where there are several learning rates, the best is shown,
for every method. Ours starts from what there is without training; 44 + 5 epochs are 5 from the
file of a run of 44 (`--start`), which had the network's own answers, but for the 34 of 34 + 44.
Of ours only the runs of 34, 34 + 44, 24 + 20 and 24 + 8 epochs have a pull of latents to their
integers that falls with the learning rate; the others are from before.{BASELINES} On a GPU ran
the dense network only (`lib/on_gpu.py`); the last fifth of differentiable k-means of ResNet-20 at 20x
ran on a CPU. The 2-bit figure of 24 epochs is from before weights were pruned by their magnitude:
zeros were those within so many learned steps. What is blank was not measured; what is hollow in
the picture had fewer epochs than ours. One-bit weights take the bytes that they take, whatever
was asked for.

{finetuned.table(tuned["rows"])}

![accuracy against bytes, fine-tuned]({TRAINED_PICTURE.name})

{setting(tuned)}

{step_words(record.content("finetuning_step")["rows"])}

"""


def page(resnet20: dict[str, Any], minilm: dict[str, Any]) -> str:
    rates, calibration, speed = (
        record.content("rate_distortion"),
        record.content("calibration"),
        record.content("speed"),
    )
    (timed,) = speed["rows"]
    lossless, storage, trained = (
        record.content("lossless"),
        record.content("storage"),
        record.content("post_training"),
    )
    kernels, models = record.content("kernels"), record.content("kernels_models")
    wide, gpu = record.content("kernels_avx512"), record.content("kernels_gpu")
    rows, encoder = resnet20["rows"], minilm["rows"][0]
    dense = next(r for r in rows if r["method"] == "fp32")
    return f"""# Results

Made by `python -m benchmarks.pages.results` from `benchmarks/results/*.json`, which the commands
below write. Sizes of tersor are bytes on disk, its accuracies are of the model loaded back from
the file in a fresh process. Baselines count the bytes of their coded streams and what our file
takes for the rest.

## ResNet-20 on CIFAR-10, without training

`python -m benchmarks.quality.resnet20_cifar10`. The dense checkpoint has {dense["bytes"]:,} bytes
and
{dense["top1"]:.2f} % top-1 accuracy on the 10,000 test images. Normalisation statistics are
matched to the dense model on {resnet20["calibration_images"]:,} training images, for every method;
calibrated, the weights are factored for the least error of the layers' outputs on the same images;
reconstructed, also anew for what reaches them in the compressed model, whose normalisation is
folded, so that its statistics take no bytes (`quality.post_training`).
Baselines get the same bytes: k-means on windows of 3x3 with a codebook of 8 bits, entropy-coded
indices and the number of columns of each layer chosen for the least total error; scalar
quantization with one step.

{resnet20_table(rows)}

![accuracy against bytes]({PICTURE.name})

{setting(resnet20)}

## Four networks, without training

`python -m benchmarks.quality.post_training`: whole files on disk, loaded back in a fresh process.
ResNets
on the CIFAR-10 test set, calibrated on 1,024 training images; MobileNetV1-0.75 on 655 labelled
images, calibrated on 256 others; MiniLM on the STS-B test split, calibrated on 4,096 training
sentences.
"Reconstructed" is calibrated, with folded normalisation, then `tersor.reconstruct`; "same bits
everywhere" is calibrated, with the same bits per weight for every layer; "scalar" has one step for
all layers and the same entropy coder; "coremltools" is its palettization (k-means on 1, 2 or 4
weights, with a table for all or for groups of 4 or 16 output channels), every layer with the
setting that a knapsack over bytes and errors gives it, where of two measures of errors (squared, or
as calibrated) the one counts whose model is closer on the calibration inputs; its bytes are those
of Core ML's weight.bin and what our file takes for the tensors that it keeps. Batch normalisation
is matched in all columns. What is blank was not measured, or does not fit; more of ResNet-20 is
above.

{post_training_table(trained["rows"])}

{setting(trained)}

{fine_tuned()}## The sentence encoder MiniLM-L6

`python -m benchmarks.quality.minilm`: {encoder["checkpoint_bytes"]:,} bytes become
{encoder["bytes"]:,}
({encoder["ratio"]:.2f} times smaller) in {encoder["seconds"]:.0f} seconds and
{encoder["peak_memory_mb"]:,.0f} MB of memory at the peak. The cosine similarities of
{minilm["pairs"]} sentence pairs differ from the dense model's by
{encoder["mean_difference"]:.4f} on average, {encoder["largest_difference"]:.4f} at most.

{setting(minilm)}

## How close to the bound

`python -m benchmarks.quality.rate_distortion`: signal-to-noise ratio at equal real bytes, codebooks
included, of every tensor above 10,000 weights; "gap" is the distance to the bound of Gaussian tiles
of one fixed size (the 3x3 window, else 32 inputs), "ahead" the mean lead over a peer where
that was run. Tiles that are far from Gaussian, as of MiniLM's position embeddings, may pass it.

{rate_table(rates["means"])}

![signal-to-noise ratio against bits](rate_distortion.png)

## Fast weights

`python -m benchmarks.quality.fast`: matrices as sums of signs, which are looked up several at a
time,
against what `tersor.factorize` makes of them in as many bytes.

{fast_table(record.content("fast"))}

## Calibration

`python -m benchmarks.quality.calibration`: at equal bytes, the error of the outputs of
{len({r["tensor"] for r in calibration["rows"]})} linear layers of MiniLM is lower, calibrated on
{calibration["sentences"]} sentences and measured on others, by {gains(calibration)} on average.

## The file: size and speed

`python -m benchmarks.speed.storage`. The coder on the latents of one layer of MiniLM, factored to
four
rates. Its probabilities adapt to their context at every decision; that is what the time goes into.
"zstd -19" and "xz -9" get the same latents without a model, bit-packed or a byte each, whichever
they make smaller. One core: processor time; two threads: a stream each, by the clock, on a machine
whose two cores had other work at the same time, so that they gain only where a core was free.

{coder_table(storage["rows"])}

The header, with all names, shapes and checksums, takes {overheads(storage["overhead"])}.

Opening MiniLM at 10 times smaller ({storage["minilm_bytes"]:,} bytes) and decoding all of it,
against safetensors reading all elements of the dense file
({storage["minilm_dense_bytes"]:,} bytes); best of {storage["runs"]} runs in turn. Cold: the file's
pages were dropped from the system's cache (posix_fadvise) and are read from the disk again.

{opening_table(storage["opening"])}

On this disk the dense file is read sooner; ours is ahead where files come at less than
{break_even(storage):.0f} MB/s, as over most networks. A single layer is there at once, since the
rest is not read.

Peak memory above what was in use before, for the same file of
{storage["minilm_bytes"] / 1e6:.1f} MB and its {storage["memory"][0]["dense_bytes"] / 1e6:.1f} MB of
dense tensors: {memory_words(storage["memory"])}.

{setting(storage)}

## Lossless

`python -m benchmarks.speed.lossless`: `--lossless` and ZipNN {lossless["zipnn"]} on the same
tensors,
with as many threads, measured in turn (best of {lossless["turns"]} turns; MB are 1,000,000 bytes of
dense tensors). Ours reads and writes files; ZipNN works in memory.

{lossless_table(lossless["rows"])}

{setting(lossless)}

## Inference

`python -m benchmarks.speed.kernels`: layers from their factors, never multiplied out. How many
times
faster than torch in fp32, and than the fastest of its peers at any number of bits
({inference.peers_of(kernels["rows"])}),
every time with weights that are not in the cache. On several threads each turn lets those of others
fall asleep and its own wake up (`lib/turns.py`). {inference.one_vector(kernels["rows"])}

{inference.table(kernels["rows"])}

{setting(kernels)}

`python -m benchmarks.speed.kernels --threads 1 --no-peers --name kernels_avx512`, on a processor
with
AVX-512 and its 8-bit products, where torch is faster, too:

{inference.table(wide["rows"])}

{setting(wide)}

`python -m benchmarks.speed.gpu_kernels`: Triton kernels, inputs of 16 bits: time, and how many
times
faster than dense bf16 (cuBLAS) and than torchao's int4 weights, all as CUDA graphs over weights
that are not in the cache. At this size they are slower than dense weights: each takes two or three
programs, where one vector times a dense matrix takes one of a few microseconds.

{inference.gpu_table(gpu["rows"])}

{gpu["rows"][0]["device"]}; {setting(gpu)}

`python -m benchmarks.speed.whole_models`: whole models from the file after `tersor.optimize`, one
input
at a time: how many times faster than each other way to run the dense model, memory of the weights
as a share of the dense ones, and relative error of the output. "In 1/5" is with that limit of
memory. Below 1 is slower.

{inference.models_table(models["rows"])}

{setting(models)}

## Speed

`python -m benchmarks.speed.solver`: `tersor compress` of MobileNetV1-0.75 ({timed["weights"]:,}
weights,
start of Python included) takes {timed["tersor_seconds"]:.1f} s; scikit-learn's k-means
with 256 columns and 25 iterations on the same weights {timed["kmeans_seconds"]:.1f} s,
measured in turn.

{setting(speed)}
"""


def reconstructed(rows: list[Row]) -> list[Row]:
    """The rows of `post_training.py` that belong into the table and picture of ResNet-20."""
    found = [r for r in rows if (r["network"], r["method"]) == ("resnet20", "tersor")]
    return [r | {"method": "reconstructed", "top1": r["quality"]} for r in found]


def between(start: str, end: str, table: str, text: str) -> str:
    """The text with this table between two marks."""
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n{table}\n{end}{after}"


def main() -> None:
    resnet20, minilm = record.content("resnet20_cifar10"), record.content("minilm")
    resnet20["rows"] += reconstructed(record.content("post_training")["rows"])
    picture(resnet20["rows"])
    (DOCS / "results.md").write_text(page(resnet20, minilm))
    readme, rows = ROOT / "README.md", record.content("finetuning")["rows"]
    trained = finetuned.headline(rows, record.content("post_training")["rows"])
    text = between(START, END, resnet20_table(resnet20["rows"]), readme.read_text())
    readme.write_text(between(TRAINED_START, TRAINED_END, trained, text))
    print("wrote docs/results.md, its pictures and the tables in README.md")


if __name__ == "__main__":
    main()
