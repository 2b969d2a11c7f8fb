# SPDX-License-Identifier: Apache-2.0
"""Write docs/report.png: the report about ResNet-20 at 20 times, in three windows side by side.

Needs the browser of Debian's package chromium.

python -m benchmarks.pages.report_picture
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks.lib.places import DOCS, data_folder
from tersor.compression.driver import compress_source
from tersor.report import html
from tersor.report.facts import gather
from tersor.storage import container
from tersor.storage.checkpoint import open_checkpoint

PICTURE = DOCS / "report.png"
WINDOWS = ("", "#bits-per-weight-layer-by-layer", "#inside-the-layers")
WIDTH, HEIGHT, GAP = 372, 690, 10


def main() -> None:
    browser = shutil.which("chromium")
    if browser is None:
        raise SystemExit("the browser chromium is needed: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        views = write_views(Path(folder))
        size = f"{len(WINDOWS) * (WIDTH + GAP) - GAP},{HEIGHT}"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--disable-lcd-text"]  # grey smoothing: half the bytes
        command += [f"--user-data-dir={folder}/profile", f"--window-size={size}"]
        command += [f"--screenshot={PICTURE}", "--virtual-time-budget=2000", views.as_uri()]
        subprocess.run(command, check=True, capture_output=True)
    print(f"wrote {PICTURE}: {PICTURE.stat().st_size} bytes")


def write_views(folder: Path) -> Path:
    """Compress, write the report, and a page that shows it in windows."""
    checkpoint = data_folder() / "resnet20_cifar10.safetensors"
    archive = compress_source(open_checkpoint(checkpoint), ratio=20)
    container.write(folder / "resnet20.tersor", archive)
    html.write(folder / "report.html", gather(folder / "resnet20.tersor", checkpoint))
    style = f"border: 0; width: {WIDTH}px; height: {HEIGHT}px; margin-right: {GAP}px"
    frames = "".join(f'<iframe src="report.html{at}" style="{style}"></iframe>' for at in WINDOWS)
    body = "margin: 0; background: #c9ced4; white-space: nowrap; font-size: 0; overflow: hidden"
    (folder / "views.html").write_text(f'<body style="{body}">{frames}</body>')
    return folder / "views.html"


if __name__ == "__main__":
    main()
