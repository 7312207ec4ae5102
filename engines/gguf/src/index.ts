/**
 * GGUF models in JavaScript, over nsnquant's KV cache or any other: everything but attention runs in ONNX Runtime, attention in the
 * cache that the model is handed.
 *
 * @module @nsnquant/gguf
 */

export { SequenceCache, type SequenceCacheOptions } from './cache.ts';
export { type AskOptions, Chat, type ChatOptions, type Ending, type OpenChatOptions } from './chat.ts';
export type { Attention, Config } from './config.ts';
export { fingerprint } from './fingerprint.ts';
export type { HostOptions, OnnxRuntime } from './host.ts';
export type { Cache, Model } from './model.ts';
export { type OpenOptions, openGguf } from './open.ts';
export { argmax, type SampleOptions, sample } from './sample.ts';
export { blobSource, InputError, type Source } from './source.ts';
export { type GgufFile, remoteSource, type SourceOptions } from './sources.ts';
export type { Vocabulary } from './tokenizer.ts';
export { type Message, type ModelMark, readTranscript, type Transcript, toMetadata } from './transcript.ts';
