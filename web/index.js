// SPDX-License-Identifier: Apache-2.0
// Decode tersor files, and start sessions of ONNX Runtime with what they hold.

const TYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3",
  "F8_E5M2", "U16", "U32", "U64", "C64"];
const MESSAGES = [, , "it does not start with the magic number",
  "it is of a version of the format that this package does not know; install a newer one",
  "it is damaged or cut off; download it again", "its compressed data is invalid",
  "its header is invalid", "its tensors take more bytes than `limit`; give a larger one",
  "its coded integers or values are invalid", "there is no such tensor"];
const SPACE = 1, PAGE = 65536, WORDS = 6 + 64;

/** An error of a file, a folder or what they are asked for. */
export class TersorError extends Error {
  name = "TersorError";
}

let compiled;

async function bytesOf(url) {
  if (url.protocol === "file:" && globalThis.process?.versions?.node)
    return (await import("node:fs/promises")).readFile(url);
  const answer = await fetch(url);
  if (!answer.ok) throw new TersorError(`${url} cannot be read: HTTP status ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}

async function instance() {
  compiled ??= bytesOf(new URL("decoder.wasm", import.meta.url)).then(WebAssembly.compile);
  compiled.catch(() => { compiled = undefined; });  // the next call tries again
  return (await WebAssembly.instantiate(await compiled, {})).exports;
}

/** Memory of one decoder: `take` gives regions one behind the other. */
class Memory {
  constructor(code) {
    this.code = code;
    this.end = code.__heap_base.value;
  }

  take(size) {
    const start = Math.ceil(this.end / 16) * 16, pages = this.code.memory.buffer.byteLength / PAGE;
    const missing = Math.ceil((start + size) / PAGE) - pages;
    try {
      if (missing > 0) this.code.memory.grow(missing);
    } catch {
      throw new TersorError(`decoding takes ${size} bytes more than WebAssembly has memory`);
    }
    this.end = start + size;
    return start;
  }

  bytes(start, size) {
    return new Uint8Array(this.code.memory.buffer, start, size);
  }

  words(start, count) {
    return Array.from(new BigUint64Array(this.code.memory.buffer, start, count), Number);
  }
}

function check(status) {
  if (status) throw new TersorError(`not a tersor file, or not one that can be read: ${MESSAGES[status]}`);
}

function opened(code, data, limit) {
  const memory = new Memory(code), source = memory.take(data.length), out = memory.take(WORDS * 8);
  memory.bytes(source, data.length).set(data);
  const start = memory.take(0);
  let status = SPACE;
  for (let size = 0; status === SPACE; [size] = memory.words(out, 1)) {
    memory.end = start;
    memory.take(size);
    status = code.open(start, size, source, data.length, limit, out);
  }
  check(status);
  return { code, memory, file: start, out };
}

function described({ code, memory, file, out }, position) {
  code.describe(file, position, out);
  const [name, nameSize, dtype, axes, nbytes, space, ...lengths] = memory.words(out, WORDS);
  const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(memory.bytes(name, nameSize));
  return { name: text, dtype: TYPES[dtype], shape: lengths.slice(0, axes), nbytes, space };
}

const hex = (bytes) => Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");

/** Decode a file. See index.d.ts. */
export async function decode(data, { limit = 2 ** 31, names } = {}) {
  if (!(data instanceof Uint8Array)) data = new Uint8Array(data);
  const most = Math.min(limit, 2 ** 32 - 1);  // of 32 bits
  const reader = opened(await instance(), data, most), { code, memory, file } = reader;
  const all = Array.from({ length: code.count(file) }, (_, i) => ({ i, ...described(reader, i) }));
  const wanted = names ? all.filter(({ name }) => names.includes(name)) : all;
  const missing = names?.filter((name) => !wanted.some((tensor) => tensor.name === name));
  if (missing?.length) throw new TersorError(`the file has no tensor ${missing.join(", ")}`);
  const space = memory.take(Math.max(0, ...wanted.map((t) => t.space)));
  const output = memory.take(Math.max(0, ...wanted.map((t) => t.nbytes)));
  const tensors = new Map();
  for (const { i, name, dtype, shape, nbytes } of wanted) {
    check(code.decode(file, i, output, nbytes, space));
    tensors.set(name, { dtype, shape, data: memory.bytes(output, nbytes).slice() });
  }
  const hash = code.hash(file);
  return { tensors, contentHash: hash ? hex(memory.bytes(hash, 32)) : null };
}

function integer(value) {
  const bytes = [];
  for (; value >= 128; value = Math.floor(value / 128)) bytes.push(value % 128 + 128);
  return [...bytes, value];
}

function inOrder(a, b) {
  const end = Math.min(a.length, b.length);
  for (let i = 0; i < end; i++) if (a[i] !== b[i]) return a[i] - b[i];
  return a.length - b.length;
}

/** SHA-256 of all tensors, as the file format defines it. See index.d.ts. */
export async function contentHash(tensors) {
  const digest = globalThis.crypto?.subtle;
  if (!digest) throw new TersorError("the file states no content hash, and this page cannot compute "
    + "it: serve it by https, or save the file with a content hash");
  const records = [];
  for (const [name, { dtype, shape, data }] of tensors) {
    const text = new TextEncoder().encode(name), type = TYPES.indexOf(dtype);
    const values = new Uint8Array(await digest.digest("SHA-256", data));
    const record = [integer(text.length), text, [type, shape.length], ...shape.map(integer), values];
    records.push({ text, record: record.flatMap((part) => Array.from(part)) });
  }
  records.sort((a, b) => inOrder(a.text, b.text));
  const all = new Uint8Array(records.flatMap(({ record }) => record));
  return hex(new Uint8Array(await digest.digest("SHA-256", all)));
}

async function folder(url) {
  const base = new URL(`${url}`.replace(/\/?$/, "/"), globalThis.location?.href ?? import.meta.url);
  const names = ["map.json", "skeleton.onnx", "model.tersor"];
  const [text, skeleton, data] = await Promise.all(names.map((name) => bytesOf(new URL(name, base))));
  let map;
  try {
    map = JSON.parse(new TextDecoder().decode(text));
  } catch {
    throw new TersorError("map.json is damaged; export the model again");
  }
  if (map?.version !== 1 || !Array.isArray(map.initializers))
    throw new TersorError("map.json is damaged or of another version; export the model again");
  return { map, skeleton, data };
}

/** Start a session of ONNX Runtime for a folder. See index.d.ts. */
export async function loadSession(url, ort, options = {}) {
  const { map, skeleton, data } = await folder(url);
  const { tensors, contentHash: stated } = await decode(data);
  if ((stated ?? await contentHash(tensors)) !== map.content_hash)
    throw new TersorError("model.tersor is not the file that map.json was exported with");
  if (!new TextDecoder("latin1").decode(skeleton).includes(map.content_hash))
    throw new TersorError("skeleton.onnx was exported with another file than the one beside it");
  const parts = map.initializers.map((name) => {
    if (!tensors.has(name)) throw new TersorError(`map.json names ${name}, which the file lacks`);
    return tensors.get(name).data;
  });
  const weights = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  parts.reduce((at, part) => (weights.set(part, at), at + part.length), 0);
  const externalData = [{ path: "weights.bin", data: weights }, ...options.externalData ?? []];
  return ort.InferenceSession.create(new Uint8Array(skeleton), { ...options, externalData });
}
