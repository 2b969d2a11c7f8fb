# SPDX-License-Identifier: Apache-2.0
"""The npm package in web/ decodes what Python decodes, in node and in a browser."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import onnx_models
import pytest
import torch
from browser import CHROMIUM, Browser
from c_decoder import require_tool

import tersor

ROOT = Path(__file__).parents[2]
WEB = ROOT / "web"
LIBRARY = Path("/usr/lib/wasm32-wasi/libc.a")
BUILT_BY = "Debian clang version 14.0.6"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder, and beside it the bytes that its graph expects in `weights.bin`."""
    pytest.importorskip("onnxscript", reason="pip install 'tersor[onnx]'")
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("web") / "out"
    model = onnx_models.compressed(onnx_models.mlp())
    tersor.export.onnx(model, torch.randn(2, 64), folder, check=False)
    (folder.parent / "weights.bin").write_bytes(expected_weights(folder))
    return folder


def expected_weights(folder):
    """What the offsets and lengths in the graph say."""
    import onnx

    graph = onnx.load(folder / "skeleton.onnx", load_external_data=False).graph
    tensors = tersor.load_state_dict(folder / "model.tersor")
    pieces = []
    for weight in graph.initializer:
        place = {entry.key: entry.value for entry in weight.external_data}
        if place:
            data = tensors[weight.name].numpy().tobytes()
            assert len(data) == int(place["length"])
            pieces.append((int(place["offset"]), data))
    weights = bytearray(max(offset + len(data) for offset, data in pieces))
    for offset, data in pieces:
        weights[offset : offset + len(data)] = data
    return bytes(weights)


def test_in_node(exported):
    require_tool("node")
    command = ["node", "--test", "decoder.test.mjs"]
    environment = os.environ | {"EXPORTED": str(exported)}
    done = subprocess.run(command, cwd=WEB, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_decoder_is_built_from_the_sources(tmp_path):
    require_tool("clang")
    version = subprocess.run(["clang", "--version"], capture_output=True, text=True).stdout
    if not version.startswith(BUILT_BY) or not LIBRARY.exists() or not shutil.which("wasm-ld"):
        pytest.skip(f"needs {BUILT_BY}, lld, wasi-libc and libclang-rt-14-dev-wasm32")
    subprocess.run([WEB / "build.sh", tmp_path / "decoder.wasm"], check=True)
    assert (tmp_path / "decoder.wasm").read_bytes() == (WEB / "decoder.wasm").read_bytes()


def test_the_decoder_is_small():
    assert len(gzip.compress((WEB / "decoder.wasm").read_bytes())) <= 12_000


@contextlib.contextmanager
def served(folder):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def guess_type(self, path):
            types = {".js": "text/javascript", ".wasm": "application/wasm"}
            return types.get(Path(path).suffix, "text/html")

        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


SCRIPT = """(async () => {
  const { loadSession } = await import("/index.js");
  const create = async (model, { externalData: [{ data }] }) => data;
  const data = await loadSession("out", { InferenceSession: { create } });
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  return Array.from(hash, (b) => b.toString(16).padStart(2, "0")).join("");
})()"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs the browser chromium (a Debian package)")
def test_in_a_browser(exported, tmp_path):
    for name in json.loads((WEB / "package.json").read_text())["files"]:
        shutil.copy(WEB / name, tmp_path)
    (tmp_path / "index.html").write_text("<!doctype html><title>tersor</title>")
    shutil.copytree(exported, tmp_path / "out")
    with served(tmp_path) as address, Browser() as browser:
        browser.call("Page.navigate", url=f"{address}/index.html")
        while browser.evaluate("document.title") != "tersor":
            pass
        answer = browser.call(
            "Runtime.evaluate", expression=SCRIPT, awaitPromise=True, returnByValue=True
        )
    assert "exceptionDetails" not in answer, answer
    wanted = hashlib.sha256((exported.parent / "weights.bin").read_bytes()).hexdigest()
    assert answer["result"]["value"] == wanted
