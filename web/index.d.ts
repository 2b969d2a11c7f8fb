// SPDX-License-Identifier: Apache-2.0

/** Data types, by their names in safetensors. */
export type DataType = "F64" | "F32" | "F16" | "BF16" | "I64" | "I32" | "I16" | "I8" | "U8" | "BOOL"
  | "F8_E4M3" | "F8_E5M2" | "U16" | "U32" | "U64" | "C64";

/** One tensor: its elements, row-major and little-endian, as in safetensors. */
export interface Tensor {
  dtype: DataType;
  shape: number[];
  data: Uint8Array;
}

/** What a file holds: tensors by name, and the content hash that it states, in hexadecimal digits. */
export interface Decoded {
  tensors: Map<string, Tensor>;
  contentHash: string | null;
}

/** An error of a file, a folder or what they are asked for; the message says which. */
export class TersorError extends Error {}

/**
 * Decode a file.
 * @param data The bytes of a `.tersor` file.
 * @param options `limit`: most bytes that all decoded tensors and factors may take, 2^31 by default.
 * `names`: the tensors to decode, all by default.
 * @throws TersorError if the file is damaged, or has no tensor of such a name.
 */
export function decode(
  data: Uint8Array | ArrayBuffer, options?: { limit?: number; names?: string[] },
): Promise<Decoded>;

/** SHA-256 of all tensors of a file, in hexadecimal digits, as the file format defines it. */
export function contentHash(tensors: Map<string, Tensor>): Promise<string>;

/**
 * Start a session of ONNX Runtime for a folder that `tersor export onnx` wrote.
 * @param url Address of the folder, relative to the page if there is one.
 * @param ort The package `onnxruntime-web` or `onnxruntime-node`.
 * @param options Options of `InferenceSession.create`.
 * @throws TersorError if a file is missing or damaged, or is not of the same export as the others.
 */
export function loadSession<Session>(
  url: string | URL,
  ort: { InferenceSession: { create(model: Uint8Array, options: any): Promise<Session> } },
  options?: Record<string, unknown>,
): Promise<Session>;
