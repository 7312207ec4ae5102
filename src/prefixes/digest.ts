// SHA-256 by the engine's own WebCrypto, and the chain of digests that names a prefix.

import { fromHex, toHex } from '../format/hex.ts';
import { FORMAT, type Rope } from '../format/layout.ts';
import { fieldsOf } from '../header.ts';
import type { CacheShape } from '../shape.ts';

/** Hexadecimal digits of a digest. */
export const DIGITS = 64;
/** The digest of nothing that is there. */
export const NONE = '0'.repeat(DIGITS);
/**
 * Digits of a rotation's frequencies: engines differ in the last bits of Math.pow, and other scalings of RoPE by a hundredth and more.
 */
const FREQUENCY_DIGITS = 4;

export async function sha256(bytes: Uint8Array): Promise<string> {
  return toHex(new Uint8Array(await crypto.subtle.digest('SHA-256', bytes as Uint8Array<ArrayBuffer>)));
}

/** The parent of every first key: all that gives pages their meaning but tokens. A profile is part of it, what is learned is not. */
export async function rootOf(model: string, shape: CacheShape): Promise<string> {
  const { balance, sinks } = shape;
  const layers = shape.layers.map(layer => ({ ...layer, rope: rounded(layer.rope) }));
  const words = {
    model,
    format: FORMAT,
    ...fieldsOf({ layers, sinks }),
    sight: shape.layers.map(({ keepSinks, softcap }) => [keepSinks, softcap]), // of what later layers' keys are made
    balance: typeof balance === 'string' ? balance : await sha256(balance)
  };
  return sha256(new TextEncoder().encode(JSON.stringify(words)));
}

function rounded(rope: Rope | undefined): Rope | undefined {
  return rope && { ...rope, invFreq: Float64Array.from(rope.invFreq, angle => Number(angle.toPrecision(FREQUENCY_DIGITS))) };
}

/** For every end, the key of the tokens up to there: the digest of the key before it and of the tokens between both. */
export async function chainOf(root: string, tokens: Uint32Array, ends: readonly number[]): Promise<string[]> {
  const keys: string[] = [];
  for (const [n, end] of ends.entries()) {
    const own = tokens.slice(ends[n - 1] ?? 0, end);
    const link = new Uint8Array(DIGITS / 2 + 4 * own.length);
    link.set(fromHex(keys[n - 1] ?? root));
    link.set(new Uint8Array(own.buffer), DIGITS / 2);
    keys.push(await sha256(link));
  }
  return keys;
}
