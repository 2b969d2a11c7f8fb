// SPDX-License-Identifier: Apache-2.0
// Run by `node --test` with EXPORTED, the address of a folder that `tersor export onnx` wrote.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { pathToFileURL } from "node:url";

import { contentHash, decode, loadSession, TersorError } from "./index.js";

const golden = new URL("../tests/golden/", import.meta.url);
const expected = JSON.parse(await readFile(new URL("expected.json", golden)));
const sha256 = (data) => createHash("sha256").update(data).digest("hex");

for (const [name, wanted] of Object.entries(expected)) {
  const data = await readFile(new URL(`${name}.tersor`, golden));

  test(`${name} is decoded bit for bit`, async () => {
    const { tensors, contentHash: stated } = await decode(data);
    assert.deepEqual([...tensors.keys()].sort(), Object.keys(wanted.tensors).sort());
    for (const [key, { dtype, shape, data: values }] of tensors) {
      const { type, shape: lengths, sha256: hash } = wanted.tensors[key];
      assert.deepEqual([dtype, shape, sha256(values)], [type, lengths, hash], key);
    }
    if (stated) assert.equal(stated, wanted.content_hash);
    if (wanted.content_hash) assert.equal(await contentHash(tensors), wanted.content_hash);
  });

  test(`${name} is refused if it is cut off or damaged`, async () => {
    for (const end of [0, 8, 20, data.length >> 1, data.length - 1])
      await assert.rejects(decode(data.subarray(0, end)), TersorError);
    const changed = Uint8Array.from(data);
    changed[data.length >> 1] ^= 1;
    await assert.rejects(decode(changed), /damaged or cut off/);
  });
}

test("only the tensors that were asked for are decoded", async () => {
  const data = await readFile(new URL("compressed.tersor", golden));
  const { tensors } = await decode(data, { names: ["conv.weight"] });
  assert.deepEqual([...tensors.keys()], ["conv.weight"]);
  await assert.rejects(decode(data, { names: ["other"] }), /has no tensor other/);
  await assert.rejects(decode(data, { limit: 100 }), /more bytes than `limit`/);
});

const exported = process.env.EXPORTED;
const fake = { InferenceSession: { create: async (model, options) => ({ model, options }) } };

async function changed(change) {
  const copy = await mkdtemp(join(tmpdir(), "tersor-"));
  try {
    await cp(exported, copy, { recursive: true });
    await change(copy);
    return await loadSession(pathToFileURL(copy), fake);
  } finally {
    await rm(copy, { recursive: true });
  }
}

test("a session is given the graph and the weights, in the order of the map", async () => {
  const options = { executionProviders: ["wasm"] };
  const { model, options: given } = await loadSession(pathToFileURL(exported), fake, options);
  assert.deepEqual(Buffer.from(model), await readFile(join(exported, "skeleton.onnx")));
  assert.deepEqual(given.executionProviders, ["wasm"]);
  assert.equal(given.externalData[0].path, "weights.bin");
  const { data } = given.externalData[0];
  assert.deepEqual(Buffer.from(data), await readFile(join(exported, "..", "weights.bin")));
});

test("files of different exports are refused", async () => {
  const other = new URL("compressed.tersor", golden);
  await assert.rejects(changed((to) => cp(other, join(to, "model.tersor"))), /not the file that map/);
  const edit = (name, from, into) => async (to) => {
    const text = await readFile(join(to, name), "latin1");
    await writeFile(join(to, name), text.replace(from, into), "latin1");
  };
  const { content_hash: hash } = JSON.parse(await readFile(join(exported, "map.json")));
  await assert.rejects(changed(edit("skeleton.onnx", hash, "0".repeat(64))), /another file/);
  await assert.rejects(changed(edit("map.json", "0.weight", "9.weight")), /names 9.weight/);
  await assert.rejects(changed(edit("map.json", "{", "")), /map.json is damaged/);
});
