// What a model that keeps its own attention remembers, compressed between turns. Never touches the model but to read what its cache is
// called and how large it is.

import { DynamicCache, type PreTrainedModel, Tensor } from '@huggingface/transformers';
import { type Backend, type CacheOptions, type Data, KVCache, type Sequence, type Target } from 'nsnquant';

/** What a `PastStore` may be told: how nsnquant keeps tokens. Layers, heads and channels are the model's. */
export type PastOptions = Omit<CacheOptions, 'layers' | 'kvHeads' | 'queryHeads' | 'headDim' | 'valueDim' | 'window' | 'keepSinks'>;

/** The types of tensors that a `DynamicCache` may be made of. */
export type PastType = 'float32' | 'float16';

/** One input of a session, as ONNX Runtime describes it. */
interface Input {
  readonly name: string;
  readonly type: string;
  readonly shape: readonly (number | string)[];
}

/** A layer's part of the past: the names of its tensors, and what `new KVCache` is told. */
interface PastLayer {
  readonly key: string;
  readonly value: string;
  readonly heads: number;
  readonly keyDim: number;
  readonly valueDim: number;
}

/**
 * Compresses the `past_key_values` of a transformers.js model between turns and expands them again, for a model that keeps its own
 * attention: what waits for the next turn takes a fourth to a tenth of f16. Sequences are nsnquant's own, so they are forked, cropped,
 * saved and restored by `sequence.fork()`, `crop()`, `save()` and `store.cache.restore()`.
 *
 * @throws {TypeError | RangeError} for options of the wrong kind or value, or a model whose past is not keys and values of a decoder alone
 *
 * @example
 * const store = new PastStore(model, await openBackend(), { capacity: 8192 });
 * const { past_key_values } = await model.generate({ ...inputs, return_dict_in_generate: true });
 * const chat = await store.compress(past_key_values);
 * const past = await store.expand(chat); // for the next generate({ …, past_key_values: past })
 */
export class PastStore {
  /** Where the compressed tokens are: gives new sequences, restores saved ones. */
  readonly cache: KVCache;
  readonly #layers: readonly PastLayer[];
  readonly #type: PastType;

  constructor(model: PreTrainedModel, backend: Backend, options: PastOptions) {
    const inputs = pastInputs(model);
    this.#layers = pastLayers(inputs);
    this.#type = inputs[0]!.type as PastType;
    // Nothing is attended to here, so that queries have as many heads as keys.
    const layers = this.#layers.map(({ heads, keyDim, valueDim }) => ({ kvHeads: heads, queryHeads: heads, headDim: keyDim, valueDim }));
    this.cache = new KVCache(backend, { ...options, layers });
  }

  /**
   * Compresses what a sequence does not have yet of a model's past. The past stays the caller's: `await past.dispose()` frees it.
   *
   * Positions that the sequence has are not looked at: they must be those that it was made from. What tensors hold on a GPU is downloaded.
   *
   * @param past      f32 or f16 [1, kvHeads, tokens, headDim] of every layer, keys after RoPE
   * @param sequence  of this store; by default a new one
   * @returns         the sequence, with as many positions as the past
   * @throws {TypeError | RangeError} if the past is of another model, of several rows, or shorter than the sequence, or is not finite, or
   *                                  exceeds `capacity`; the sequence is as it was then
   *
   * @example
   * const chat = await store.compress(first.past_key_values);
   * await store.compress(second.past_key_values, chat); // appends what is new
   */
  async compress(past: DynamicCache, sequence?: Sequence): Promise<Sequence> {
    const tokens = this.#tokens(past);
    const entries: { keys: Data; values: Data }[] = [];
    for (const { key, value } of this.#layers) entries.push({ keys: await read(past[key]!), values: await read(past[value]!) });

    const target = sequence ?? this.cache.sequence();
    const { length } = target;
    try {
      if (tokens < length) {
        throw new RangeError(`"past" expected at least ${length} tokens (those of the sequence), got ${tokens}`);
      }
      if (tokens > length) {
        for (const [layer, { keys, values }] of entries.entries()) {
          const { heads, keyDim, valueDim } = this.#layers[layer]!;
          target.append(layer, newest(keys, heads, keyDim, length), newest(values, heads, valueDim, length), { layout: 'heads-first' });
        }
        target.seal();
      }
      return target;
    } catch (error) {
      if (!sequence) target.dispose();
      else if (tokens > length) sequence.crop(length);
      throw error;
    }
  }

  /**
   * What a model is given as `past_key_values` to go on from a sequence.
   *
   * @param sequence  of this store, with every position that came
   * @param type      of the tensors; by default what the model takes
   * @returns         f32 or f16 [1, kvHeads, tokens, headDim] of every layer
   * @throws {TypeError | RangeError} if the type is another, or tokens of the sequence were evicted
   *
   * @example
   * const past = await store.expand(chat.fork(), 'float16');
   */
  async expand(sequence: Sequence, type: PastType = this.#type): Promise<DynamicCache> {
    if (type !== 'float32' && type !== 'float16') throw new RangeError(`"type" expected float32 or float16, got ${type}`);
    const { length } = sequence;
    if (sequence.tokens(0) !== length) {
      throw new RangeError(`"sequence" expected all of its ${length} positions, got ${sequence.tokens(0)} (others were evicted)`);
    }
    const Elements = type === 'float32' ? Float32Array : Uint16Array;
    const past: Record<string, Tensor> = {};
    for (const [layer, { key, value, heads, keyDim, valueDim }] of this.#layers.entries()) {
      const out = { keys: new Elements(heads * length * keyDim), values: new Elements(heads * length * valueDim) };
      await sequence.decode<Target, Target>(layer, { out, layout: 'heads-first' });
      past[key] = new Tensor(type, out.keys, [1, heads, length, keyDim]);
      past[value] = new Tensor(type, out.values, [1, heads, length, valueDim]);
    }
    return new DynamicCache(past);
  }

  /** How many tokens a past has, which must be of this model and of one row. */
  #tokens(past: DynamicCache): number {
    const names = this.#layers.flatMap(({ key, value }) => [key, value]);
    for (const name of Object.keys(past)) {
      if (!names.includes(name)) throw new RangeError(`"past" expected only ${names[0]} to ${names.at(-1)}, got ${name}`);
    }
    const tokens = past[names[0]!]?.dims.at(-2);
    for (const { key, value, heads, keyDim, valueDim } of this.#layers) {
      for (const [name, dim] of [
        [key, keyDim],
        [value, valueDim]
      ] as const) {
        const entry = past[name];
        if (!(entry instanceof Tensor)) throw new TypeError(`"past" expected a Tensor ${name}, got ${typeof entry}`);
        const expected = [1, heads, tokens, dim];
        if (entry.dims.join() !== expected.join()) throw new RangeError(`"${name}" expected dims ${expected}, got ${entry.dims}`);
      }
    }
    return tokens!;
  }
}

/** Inputs of a model's decoder that hold its past. */
export function pastInputs(model: PreTrainedModel): readonly Input[] {
  const sessions = model.sessions as Record<string, { readonly inputMetadata?: readonly Input[] } | undefined>;
  const inputs = (sessions['decoder_model_merged'] ?? sessions['model'])?.inputMetadata?.filter(({ name }) => name.startsWith('past'));
  if (!inputs?.length) throw new TypeError('"model" expected a decoder with past_key_values among its inputs, got none');
  return inputs;
}

/** Layers in ascending order, as their inputs name them. Convolutions, states and encoders have names of their own, and are refused. */
export function pastLayers(inputs: readonly Input[]): PastLayer[] {
  const sides = new Map<string, readonly [heads: number, dim: number]>();
  const numbers = new Set<number>();
  for (const { name, type, shape } of inputs) {
    const [, layer] = /^past_key_values\.(\d+)\.(?:key|value)$/.exec(name) ?? [];
    if (layer === undefined) throw new RangeError(`"model" expected only keys and values of attention as its past, got ${name}`);
    if (type !== 'float32' && type !== 'float16') throw new RangeError(`"${name}" expected float32 or float16, got ${type}`);
    const [, heads, , dim] = shape;
    if (shape.length !== 4 || typeof heads !== 'number' || typeof dim !== 'number') {
      throw new RangeError(`"${name}" expected shape [batch, heads, tokens, channels] with both heads and channels known, got [${shape}]`);
    }
    sides.set(name, [heads, dim]);
    numbers.add(Number(layer));
  }
  return [...numbers]
    .sort((a, b) => a - b)
    .map(layer => {
      const [key, value] = [`past_key_values.${layer}.key`, `past_key_values.${layer}.value`];
      const [keys, values] = [sides.get(key), sides.get(value)];
      if (!keys || !values || keys[0] !== values[0]) throw new RangeError(`"model" expected ${key} and ${value} of as many heads`);
      return { key, value, heads: keys[0], keyDim: keys[1], valueDim: values[1] };
    });
}

/** A tensor's elements, wherever they are; downloaded where that is a GPU. */
async function read(tensor: Tensor): Promise<Data> {
  return (tensor as unknown as { readonly ort_tensor: { getData(): Promise<Data> } }).ort_tensor.getData();
}

/** The tokens from `from` on, of [heads, tokens, dim]. */
function newest(data: Data, heads: number, dim: number, from: number): Data {
  if (from === 0) return data;
  // f16 is copied as bits, whatever array they came in.
  const all = data instanceof Float32Array ? data : new Uint16Array(data.buffer, data.byteOffset, data.length);
  const stride = all.length / heads;
  const rows = new (all.constructor as typeof Float32Array)(all.length - heads * from * dim);
  for (let head = 0; head < heads; head++) {
    rows.set(all.subarray(head * stride + from * dim, (head + 1) * stride) as Float32Array, head * (stride - from * dim));
  }
  return rows;
}
