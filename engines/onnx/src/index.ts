// @nsnquant/onnx: every public name.

export type { ForwardOptions, KeyValues, ModelCacheOptions, OnnxConfig, OnnxModel } from './model.ts';
export { type OnnxOptions, openOnnx } from './open.ts';
export type { Device, OnnxRuntime } from './runtime.ts';
export type { ExternalData, Source } from './source.ts';
