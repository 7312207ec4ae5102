// A model that runs: tokens in, logits out, attention left to a cache that it is handed. Runs in a browser.
import type { Rope } from 'nsnquant';
import type { Config } from './config.ts';
import { dequantize, type TensorType, tensorBytes } from './dequantize.ts';
import type { Gguf } from './gguf.ts';
import type { Matrix, Session } from './host.ts';
import { InputError } from './source.ts';
import type { Vocabulary } from './tokenizer.ts';

/** What the model asks of a cache: one conversation, tokens in order, and in every layer the attention of `config.attention`. */
export interface Cache {
  /** Tokens that all layers hold. */
  readonly length: number;
  /** f32 [tokens, kvHeads, headDim], keys after RoPE. */
  append(layer: number, keys: Float32Array, values: Float32Array): void;
  /** f32 [tokens, queryHeads, headDim] of the newest tokens; causal, within the layer's window and with its softcap. */
  attend(layer: number, query: Float32Array): Promise<Float32Array>;
  /** Tokens that layers still hold, where some were forgotten: those that the model's context bounds. Default: `length`. */
  readonly heldTokens?: number;
}

/** A model that runs: tokens in, hidden states and logits out. */
export class Model {
  readonly config: Config;
  readonly vocabulary: Vocabulary;
  /** Jinja, if the file has one. */
  readonly chatTemplate: string | undefined;
  readonly #gguf: Gguf;
  readonly #segments: readonly Session[];
  readonly #head: Session;
  readonly #embeddings: { type: TensorType; data: Uint8Array };

  /** @internal `openGguf` makes models. */
  constructor(gguf: Gguf, vocabulary: Vocabulary, sessions: readonly Session[], embeddings: { type: TensorType; data: Uint8Array }) {
    this.#gguf = gguf;
    this.config = gguf.config;
    this.vocabulary = vocabulary;
    this.chatTemplate = gguf.metadata['tokenizer.chat_template'] as string | undefined;
    this.#head = sessions[0]!;
    this.#segments = sessions.slice(1);
    this.#embeddings = embeddings;
  }

  /** Text as it is, control tokens included: `vocabulary.literal` makes text of a person's words. */
  encode(text: string): number[] {
    return this.vocabulary.tokenizer.encode(text, { add_special_tokens: false }).ids;
  }

  /**
   * Runs tokens that follow those in the cache.
   *
   * @returns hidden states f32 [tokens, width]; `logits` turns them into scores
   */
  async forward(tokens: readonly number[], cache: Cache): Promise<Float32Array> {
    const { layers, width, queryHeads, headDim, attention: kinds, context } = this.config;
    const start = cache.length;
    const held = (cache.heldTokens ?? start) + tokens.length;
    if (held > context) throw new InputError(`expected at most ${context} tokens (the model's context), got ${held}`);
    const count = tokens.length;
    // Layers that rotate alike share their angles.
    const angles = new Map<Rope | 'none', object>([['none', {}]]);

    let x = this.#embed(tokens);
    let attention: Float32Array | undefined;
    for (let layer = 0; layer <= layers; layer++) {
      const rope = kinds[layer]?.rope ?? 'none';
      if (rope !== 'none' && !angles.has(rope)) angles.set(rope, this.#angles(rope, start, count));
      const result = await this.#segments[layer]!.run({
        x: { data: x, shape: [count, width] },
        ...(attention && { attention: { data: attention, shape: [count, queryHeads * headDim] } }),
        ...angles.get(rope)
      });
      if (layer === layers) return result['hidden']!;
      if (result['x']) x = result['x'];
      cache.append(layer, result['k']!, result['v']!);
      attention = await cache.attend(layer, result['q']!);
    }
    throw new Error('expected the last segment to end the loop');
  }

  /** f32 [rows, vocabulary] of hidden states f32 [rows, width]. */
  async logits(hidden: Float32Array): Promise<Float32Array> {
    const { width } = this.config;
    return (await this.#head.run({ hidden: { data: hidden, shape: [hidden.length / width, width] } }))['logits']!;
  }

  /** What tells these weights from all others, hexadecimal: a checksum of every byte of the file, which it reads when first asked. */
  fingerprint(): Promise<string> {
    return this.#gguf.fingerprint();
  }

  async release(): Promise<void> {
    for (const session of [...this.#segments, this.#head]) await session.release();
  }

  /** Cosines and sines f32 [tokens, pairs] of positions from `start` on. */
  #angles({ invFreq }: Rope, start: number, count: number): Record<'cos' | 'sin', Matrix> {
    const pairs = invFreq.length;
    const of = (f: (x: number) => number): Matrix => ({
      data: Float32Array.from(
        { length: count * pairs },
        (_, i) => this.config.ropeScale * f((start + Math.floor(i / pairs)) * invFreq[i % pairs]!)
      ),
      shape: [count, pairs]
    });
    return { cos: of(Math.cos), sin: of(Math.sin) };
  }

  /** Rows of the embedding matrix, which stays as the file has it: an f32 copy would be the largest array of a small model. */
  #embed(tokens: readonly number[]): Float32Array {
    const { width, vocabulary, embeddingScale } = this.config;
    const { type, data } = this.#embeddings;
    const rowBytes = tensorBytes(type, width);
    const out = new Float32Array(tokens.length * width);
    tokens.forEach((token, i) => {
      if (!(token >= 0 && token < vocabulary))
        throw new RangeError(`"tokens[${i}]" expected integer from 0 to ${vocabulary - 1}, got ${token}`);
      out.set(dequantize(type, data, width, token * rowBytes), i * width);
    });
    if (embeddingScale !== 1) for (let i = 0; i < out.length; i++) out[i]! *= embeddingScale;
    return out;
  }
}
