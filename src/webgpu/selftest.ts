// Holds a backend to another, the specification, before anyone relies on it: a few pages learned, encoded, decoded and attended. Wrong
// results have been met in the field (subgroups of 64, zeroed f16), always without an error.

import { type Backend, type Dump, type PageTable, piecesOf, type Store, type Tokens } from '../backend.ts';
import { clampedHalf, floatsOf } from '../format/half.ts';
import { blockOffset, type PageLayout, WINDOW } from '../format/layout.ts';
import type { LayerOptions } from '../layer.ts';
import { type CacheShape, cacheShape } from '../shape.ts';
import { noise } from '../timing.ts';

/** Of the largest output, in f32 against f64 over the same pages. */
const OUTPUT_TOLERANCE = 1e-3;
/** The same in f16: an element may be rounded to its other neighbor, of subnormal halves far away. */
const HALF_TOLERANCE = 0.05;
/** Codes that rounding may decide otherwise: near ties of s1, of o, and of codewords. */
const CODES_TOLERANCE = 0.02;
/** Bytes of a balance whose levels lie near the edge of another. */
const BALANCE_TOLERANCE = 0.05;
/** Makes of noise, which is at most 2, halves below 2⁻¹⁴: all of them are subnormal, which a GPU may take for 0. */
const SUBNORMAL = 2 ** -16;

/** What differs from the reference, in words; undefined if nothing does. */
export async function selfTest(backend: Backend, reference: Backend): Promise<string | undefined> {
  const invFreq = Array.from({ length: 16 }, (_, i) => 10000 ** (-i / 16));
  const perHead = [1, 0.5, 0.25, 0.125, 0, 2];
  const layers: readonly LayerOptions[] = [
    // Three segments, two stages, and all that models do to logits. Sinks are seen, and half of the second page.
    { keys: 'nsn2', values: 'nsn3', valueDim: 40, window: 50, keepSinks: true, softcap: 2, slopes: perHead, sinkLogits: perHead },
    { keys: 'nsn4', values: 'nsn2' }
  ];
  for (const layer of layers) {
    const shape = cacheShape({
      layers: [layer],
      kvHeads: 2,
      queryHeads: 6,
      headDim: 32,
      capacity: 4 * WINDOW,
      sequences: 1,
      reserve: true,
      rope: { invFreq, interleaved: false }
    });
    await backend.prepare?.(shape);
    const tested = backend.createStore(shape);
    const expected = reference.createStore(shape);
    try {
      const fault = (await difference(shape, tested, expected, 1)) ?? (await difference(shape, tested, expected, SUBNORMAL));
      if (fault !== undefined) return fault;
    } finally {
      tested.dispose();
      expected.dispose();
    }
  }
  return undefined;
}

/** What differs over tokens of noise times `size`: sinks, two pages and a raw window. */
async function difference(shape: CacheShape, tested: Store, expected: Store, size: number): Promise<string | undefined> {
  const { kvHeads, queryHeads, headDim, valueDim } = shape.layers[0]!;
  const subnormal = size === SUBNORMAL;
  const of = subnormal ? ' of subnormal halves' : '';
  const table: PageTable = {
    length: shape.sinks + 2 * WINDOW + 17,
    sequence: 0,
    sinkSlot: shape.rawSlots,
    pages: Uint32Array.of(1, 0),
    windows: Uint32Array.of(0, 1),
    pageCount: 2,
    coded: 2,
    raws: Uint32Array.of(0),
    rawCount: 1
  };
  const dumps = (): Promise<[Dump, Dump]> => Promise.all([tested.dump(0, table), expected.dump(0, table)]);
  for (const store of [tested, expected]) learn(store, shape, table, size);
  const [learned, taught] = await dumps();
  const differing = differingBytes([learned.balance!], [taught.balance!]);
  if (differing > BALANCE_TOLERANCE) return `learn${of} differs from the reference in ${(100 * differing).toFixed(1)} % of bytes`;

  // By the order that was learned: only the reference is told what it was.
  expected.setBalance(0, table.sequence, learned.balance!);
  for (const store of [tested, expected]) fill(store, shape, table, size);
  const [got, want] = await dumps();
  const share = differingBytes(got.pages, want.pages);
  if (share > CODES_TOLERANCE) return `encode${of} differs from the reference in ${(100 * share).toFixed(1)} % of bytes`;

  // Attention is compared over the same bytes.
  got.pages.forEach((page, n) => {
    const bytes = subnormal && n === 1 ? withSubnormals(page, shape.layers[0]!.page) : page;
    for (const store of [tested, expected]) store.setPage(0, table.pages[n]!, bytes);
  });
  // One token, as in decoding, and a prompt's ten, which make two of the largest row tiles: a GPU has a pipeline for each. Then these
  // as f16.
  for (const [count, layout, half] of [
    [1, 'tokens-first', false],
    [10, 'tokens-first', false],
    [10, 'heads-first', true]
  ] as const) {
    const floats = noise(count * queryHeads * headDim).map(q => q / (2 * size));
    const query = half ? Uint16Array.from(floats, clampedHalf) : floats;
    const attend = async (store: Store): Promise<readonly [out: Float32Array, lse: Float32Array]> => {
      const lse = new Float32Array(count * queryHeads);
      const length = count * queryHeads * valueDim;
      const out = half ? new Uint16Array(length) : new Float32Array(length);
      return [floatsOf(await store.attend(0, [table], [query], layout, 1 / Math.sqrt(headDim), out, lse).read()), lse];
    };
    const [[got, gotLse], [want, wantLse]] = await Promise.all([attend(tested), attend(expected)]);
    const error = Math.max(relativeError(got, want), relativeError(gotLse, wantLse));
    const what = half ? ' in f16, heads first,' : '';
    if (!(error <= (half ? HALF_TOLERANCE : OUTPUT_TOLERANCE))) {
      return `attend${of}${what} differs from the reference by ${error.toPrecision(2)}`;
    }
  }
  const pieces = piecesOf(table, shape.sinks, 0, table.length);
  for (const [layout, half] of [
    ['tokens-first', false],
    ['heads-first', true]
  ] as const) {
    const decode = async (store: Store): Promise<Tokens> => {
      const array = (channels: number): Float32Array | Uint16Array => {
        const length = table.length * kvHeads * channels;
        return half ? new Uint16Array(length) : new Float32Array(length);
      };
      const out = { keys: array(headDim), values: array(valueDim) };
      await store.read(0, table.sequence, pieces, out, layout);
      return { keys: floatsOf(out.keys), values: floatsOf(out.values) };
    };
    const [decoded, exact] = await Promise.all([decode(tested), decode(expected)]);
    const error = Math.max(relativeError(decoded.keys, exact.keys), relativeError(decoded.values, exact.values));
    if (!(error <= (half ? HALF_TOLERANCE : OUTPUT_TOLERANCE))) {
      return `decode${of}${half ? ' in f16, heads first,' : ''} differs from the reference by ${error.toPrecision(2)}`;
    }
  }
  return undefined;
}

/** Learns from two windows and a few queries whose channels have energies of their own. */
function learn(store: Store, { layers, sinks }: CacheShape, { sequence, length }: PageTable, size: number): void {
  const { queryHeads, headDim, valueDim, kvHeads } = layers[0]!;
  const uneven = (x: Float32Array): Float32Array => x.map((element, i) => element / (1 + ((i >> 1) % 4)));
  const keys = uneven(noise(length * kvHeads * headDim)).map(element => element * size);
  const values = new Float32Array(length * kvHeads * valueDim);
  const queries = uneven(noise(7 * queryHeads * headDim));
  store.setEnergies(0, sequence);
  for (const [first, count] of [
    [0, 3],
    [3, 4]
  ] as const)
    store.addEnergies(0, sequence, queries, 'tokens-first', first, count);
  for (const slot of [0, 1])
    store.write(0, [{ keys, values, layout: 'tokens-first', runs: [{ slot, at: 0, from: sinks + slot * WINDOW, tokens: WINDOW }] }]);
  store.learn(0, sequence, [0, 1]);
}

/** Writes the tokens that a table tells of, and encodes its pages. */
function fill(store: Store, { layers, sinks }: CacheShape, table: PageTable, size: number): void {
  const { kvHeads, headDim, valueDim } = layers[0]!;
  const [keyCount, valueCount] = [table.length * kvHeads * headDim, table.length * kvHeads * valueDim];
  const x = noise(keyCount + valueCount).map(element => element * size);
  const [keys, values] = [x.subarray(0, keyCount), x.subarray(keyCount)];
  const write = (slot: number, from: number, tokens: number): void =>
    store.write(0, [{ keys, values, layout: 'tokens-first', runs: [{ slot, at: 0, from, tokens }] }]);
  write(table.sinkSlot, 0, sinks);
  for (let n = 0; n < table.pageCount; n++) {
    write(0, sinks + n * WINDOW, WINDOW);
    store.encode(0, [0], [table.pages[n]!], [table.sequence]);
  }
  write(0, sinks + 2 * WINDOW, table.length - sinks - 2 * WINDOW);
}

/**
 * A page whose scales and minima of o are subnormal, and whose s2 are as small. Its s1 is made about 1/16, so that its tokens weigh
 * about as much as those that are subnormal themselves.
 */
function withSubnormals(page: Uint8Array, layout: PageLayout): Uint8Array {
  const bytes = page.slice();
  const view = new DataView(bytes.buffer);
  for (let head = 0; head < layout.kvHeads; head++) {
    for (const side of ['keys', 'values'] as const) {
      const { segments, scales, exponents } = layout[side];
      const at = blockOffset(layout, head, side);
      for (let i = at + scales; i < at + exponents; i += 2) view.setUint16(i, view.getUint16(i, true) & 0x83ff, true);
      segments.forEach((_, n) => {
        bytes[at + exponents + n]! -= 12; // octaves
      });
      view.setUint16(at + scales, 0x1c00, true); // 1/256
      view.setUint16(at + scales + 2, 0x2c00, true); // 1/16
    }
  }
  return bytes;
}

/** The share of bytes that differ. */
function differingBytes(got: readonly Uint8Array[], want: readonly Uint8Array[]): number {
  let differing = 0;
  let bytes = 0;
  got.forEach((page, n) => {
    bytes += page.length;
    page.forEach((byte, i) => {
      differing += Number(byte !== want[n]![i]);
    });
  });
  return differing / bytes;
}

/** The largest difference, relative to the largest element that is wanted; NaN if one is met. */
function relativeError(got: Float32Array, want: Float32Array): number {
  let error = 0;
  let largest = 0;
  for (let i = 0; i < want.length; i++) {
    error = Math.max(error, Math.abs(got[i]! - want[i]!));
    largest = Math.max(largest, Math.abs(want[i]!));
  }
  return error / largest;
}
