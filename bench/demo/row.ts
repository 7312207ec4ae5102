// One way of holding a cache: a row of the demo's table. Baselines and the library stand behind the same few calls.

/** What a row's keys are balanced by: what it has seen of keys and queries, of keys alone, or nothing: plain coding. */
export type Balance = 'queries' | 'keys' | 'off';

export interface Row {
  /** Names of what keys and values are held in. */
  readonly keys: string;
  readonly values: string;
  /** Null where keys cannot be balanced. */
  readonly balance: Balance | null;
  /** Add one token: f32 [kvHeads, headDim] each. */
  append(layer: number, keys: Float32Array, values: Float32Array): void;
  /**
   * Attention of the newest position: [queryHeads, headDim].
   *
   * @param query  f32 [queryHeads, headDim]
   * @param logP   f64 [queryHeads, length], of heldKeys(): for a row that has no attention of its own
   */
  attend(layer: number, query: Float32Array, logP: Float64Array): Promise<ArrayLike<number>>;
  /** The keys as attention sees them, decoded: f32 [at least the layer's length, kvHeads, headDim]. Valid until the next append. */
  heldKeys(layer: number): Promise<Float32Array>;
  /** Bytes held now, everything counted. */
  readonly bytes: number;
  /** Bits per element of coded tokens alone, their metadata included; null while there are none. */
  readonly codedBits: number | null;
  dispose(): void;
}
