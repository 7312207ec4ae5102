// @nsnquant/onnx/transformers: every public name of the part that loads transformers.js.

export { type CompressedModel, type CompressOptions, compress } from './compress.ts';
export { type PastOptions, PastStore, type PastType } from './past.ts';
