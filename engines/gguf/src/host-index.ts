/**
 * The host engine for what stands beside a model: graphs by hand, and sessions that run them as the model's own do.
 *
 * @module @nsnquant/gguf/host
 */

export { type HostOptions, type Matrix, type OnnxRuntime, Session } from './host.ts';
export { type Attribute, type Constant, encodeModel, type Graph, type Node, type Port } from './onnx.ts';
