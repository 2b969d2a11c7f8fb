# SPDX-License-Identifier: Apache-2.0
"""Say what to do with a compressed file, in lines that can be pasted into a shell."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from tersor.cli.output import say


def next_steps(
    model: Path, output: Path, key: str | None = None, prefix: str | None = None
) -> None:
    """Print the commands that check, show and load a file or folder just written.

    Parameters
    ----------
    model
        Checkpoint that it was made from.
    output
        Compressed file, or folder of Hugging Face.
    key, prefix
        Options with which the checkpoint was read.
    """
    options = {"--dense": str(model), "--key": key, "--prefix": prefix}
    against = [part for name, value in options.items() if value for part in (name, value)]
    page = output.with_name(f"{output.stem}.html")
    say("next:")
    for command in (
        ["tersor", "verify", str(output)],
        ["tersor", "inspect", str(output)],
        ["tersor", "report", str(output), "-o", str(page), *against],
        ["python", "-c", _loading(output)],
    ):
        say(f"  {shlex.join(command)}")


def _loading(output: Path) -> str:
    """Return Python code that loads the model of a folder, or the tensors of a file.

    Its strings have double quotes, because shells need single ones around the code.
    """
    if output.is_dir():
        return (
            "import tersor.transformers; from transformers import AutoModel; "
            f"print(AutoModel.from_pretrained({json.dumps(str(output))}))"
        )
    return f"import tersor; print(*tersor.load_state_dict({json.dumps(str(output))}))"
