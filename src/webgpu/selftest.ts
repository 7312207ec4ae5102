// Holds a backend to the reference before anyone relies on it: a few pages encoded, decoded and attended. Wrong results have
// been met in the field (subgroups of 64, zeroed f16), always without an error.

import type { Backend, PageTable, Store } from '../backend.ts';
import { WINDOW } from '../format/layout.ts';
import { openReference } from '../reference/store.ts';
import { cacheShape } from '../shape.ts';
import { noise } from '../timing.ts';

/** Of attention outputs of magnitude 1, in f32 against f64 over the same pages. */
const OUTPUT_TOLERANCE = 1e-3;
/** Codes that rounding may decide otherwise: near ties of s1, of o, and of codewords. */
const CODES_TOLERANCE = 0.02;

/** What differs from the reference, in words; undefined if nothing does. */
export async function selfTest(backend: Backend): Promise<string | undefined> {
  const invFreq = Array.from({ length: 16 }, (_, i) => 10000 ** (-i / 16));
  for (const [keys, values] of [
    ['nsn4', 'nsn2'],
    ['nsn2', 'nsn1']
  ] as const) {
    const shape = cacheShape({
      layers: 1,
      kvHeads: 2,
      queryHeads: 6,
      headDim: 32,
      capacity: 4 * WINDOW,
      keys,
      values,
      sequences: 1,
      rope: { invFreq, interleaved: false }
    });
    await backend.prepare?.(shape);
    const tested = backend.createStore(shape);
    const expected = openReference().createStore(shape);
    try {
      const perToken = shape.kvHeads * shape.headDim;
      const x = noise(2 * (shape.sinks + 3 * WINDOW) * perToken);
      const table: PageTable = {
        length: shape.sinks + 2 * WINDOW + 17,
        sinkSlot: shape.rawPages,
        pages: Uint32Array.of(1, 0),
        pageCount: 2,
        raws: Uint32Array.of(0),
        rawCount: 1
      };
      const fill = (store: Store): void => {
        const [k, v] = [x.subarray(0, x.length / 2), x.subarray(x.length / 2)];
        const write = (slot: number, from: number, tokens: number): void =>
          store.write([{ keys: k, values: v, runs: [{ slot, at: 0, from, tokens }] }]);
        write(table.sinkSlot, 0, shape.sinks);
        for (let n = 0; n < 2; n++) {
          write(0, shape.sinks + n * WINDOW, WINDOW);
          store.encode(0, [0], [table.pages[n]!]);
        }
        write(0, shape.sinks + 2 * WINDOW, 17);
      };
      fill(tested);
      fill(expected);

      const [got, want] = await Promise.all([tested.dump(0, table), expected.dump(0, table)]);
      let differing = 0;
      got.pages.forEach((page, n) =>
        page.forEach((byte, i) => {
          differing += Number(byte !== want.pages[n]![i]);
        })
      );
      const share = differing / (2 * got.pages[0]!.length);
      if (share > CODES_TOLERANCE) return `encode differs from the reference in ${(100 * share).toFixed(1)} % of bytes`;

      // Attention is compared over the same bytes.
      got.pages.forEach((page, n) => expected.setPage(0, table.pages[n]!, page));
      // One token, as in decoding, and a prompt's several: a GPU has a pipeline for each.
      for (const count of [1, 7]) {
        const query = noise(count * shape.queryHeads * shape.headDim).map(q => q / 2);
        const outputs = await Promise.all(
          [tested, expected].map(store =>
            store.attend(0, [table], [query], 1 / Math.sqrt(shape.headDim), new Float32Array(query.length)).read()
          )
        );
        const error = largestDifference(outputs[0]!, outputs[1]!);
        if (!(error <= OUTPUT_TOLERANCE)) return `attend differs from the reference by ${error.toPrecision(2)}`;
      }
      const tokens = await Promise.all([tested.read(0, table), expected.read(0, table)]);
      const decoded = Math.max(largestDifference(tokens[0].keys, tokens[1].keys), largestDifference(tokens[0].values, tokens[1].values));
      if (!(decoded <= OUTPUT_TOLERANCE)) return `decode differs from the reference by ${decoded.toPrecision(2)}`;
    } finally {
      tested.dispose();
      expected.dispose();
    }
  }
  return undefined;
}

function largestDifference(a: Float32Array, b: Float32Array): number {
  let largest = a.length === b.length ? 0 : Infinity;
  for (let i = 0; i < a.length; i++) {
    const difference = Math.abs(a[i]! - b[i]!);
    if (!(difference <= largest)) largest = difference; // NaN too
  }
  return largest;
}
