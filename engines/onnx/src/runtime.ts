// ONNX Runtime, in the flavor that the caller gives: one session for every segment.

import type { GpuDevice } from 'nsnquant';
import type { InferenceSession, Tensor, TensorConstructor } from 'onnxruntime-common';
import {
  encodeModel,
  FLOAT,
  FLOAT16,
  INT8,
  INT32,
  INT64,
  type Model,
  type Port,
  type Read,
  UINT8,
  type Tensor as Weight
} from './graph.ts';

/** What onnxruntime-node and onnxruntime-web have in common. */
export interface OnnxRuntime {
  readonly InferenceSession: { create(model: Uint8Array, options?: InferenceSession.SessionOptions): Promise<InferenceSession> };
  readonly Tensor: TensorConstructor;
  /** Of onnxruntime-web, where it runs on a GPU. */
  readonly env?: { readonly webgpu?: { readonly device?: unknown } };
}

/** A GPUDevice, by what is asked of it here: nobody needs the types of browsers. */
export interface Device extends GpuDevice {
  createBuffer(descriptor: { readonly size: number; readonly usage: number }): GpuBuffer;
}

interface GpuBuffer {
  readonly size: number;
  readonly usage: number;
  destroy(): void;
}

/** A segment that runs. */
export interface Session {
  readonly outputs: ReadonlyMap<string, Port>;
  run(inputs: Readonly<Record<string, Tensor>>): Promise<Readonly<Record<string, Tensor>>>;
  release(): Promise<void>;
}

export interface SessionParts {
  readonly nodes: Model['nodes'];
  readonly tensors: readonly Weight[];
  readonly inputs: readonly Port[];
  readonly outputs: readonly string[];
}

/** Numbers of TensorProto.DataType by the names of ONNX Runtime. */
export const types: Readonly<Record<string, number>> = {
  float32: FLOAT,
  uint8: UINT8,
  int8: INT8,
  int32: INT32,
  int64: INT64,
  bool: 9,
  float16: FLOAT16,
  float64: 11
};

/**
 * A session of these nodes. Its weights are read and handed over as external data, one by one: none is copied into the message, and no
 * message comes near protobuf's limit of 2 GiB.
 */
export async function openSession(
  runtime: OnnxRuntime,
  model: Model,
  { nodes, tensors, inputs, outputs }: SessionParts,
  read: Read,
  options: InferenceSession.SessionOptions
): Promise<Session> {
  const large = tensors.filter(({ bytes }) => bytes === undefined);
  const externalData = await Promise.all(large.map(async (weight, n) => ({ path: `weight${n}`, data: await read(weight) })));
  const locations = new Map(large.map(({ name }, n) => [name, `weight${n}`]));
  const bytes = encodeModel(
    model,
    { nodes, tensors, inputs, outputs: outputs.map(name => ({ name, type: 0, shape: undefined })) },
    locations
  );
  const session = await runtime.InferenceSession.create(bytes, { ...options, externalData });
  const ports = session.outputMetadata.map(metadata => {
    const type = metadata.isTensor ? types[metadata.type] : undefined;
    if (type === undefined || !metadata.isTensor) {
      throw new RangeError(`"${metadata.name}" expected a tensor of ${Object.keys(types).join(', ')}, got another type`);
    }
    // A shape that is not known reads as that of a scalar; neither says anything that the next session would need.
    return { name: metadata.name, type, shape: metadata.shape.length > 0 ? metadata.shape : undefined };
  });
  return {
    outputs: new Map(ports.map(port => [port.name, port])),
    run: async feeds => (await session.run(feeds)) as Record<string, Tensor>, // outputs were found to be tensors
    release: () => session.release()
  };
}
