// Damages a saved file, at random and as a hostile one would: bits, lengths, every field of the header, every scale of a page.

import { below } from './inputs.ts';
import { dataOf, fileOf, withHeader } from './pages.ts';

/** What a header's field may be made instead: numbers that overflow, other kinds, text that counts as a number. */
const odd: readonly unknown[] = [
  -1,
  0,
  1,
  7,
  64,
  0.5,
  -0.5,
  2 ** 31,
  2 ** 32,
  2 ** 53,
  1e300,
  null,
  true,
  '',
  '0',
  '1',
  '64',
  '-1',
  '1e3',
  'NaN',
  'U8',
  'F16',
  [],
  [0],
  [0, 0],
  [1, 2, 3],
  ['0', '64'],
  {},
  { toString: 1, valueOf: 1 },
  { constructor: { name: 1 } }
];

/** The same file damaged, and in words how. Where a header was made anew, its checksum is right. */
export function damaged(file: Uint8Array, next: () => number): { readonly bytes: Uint8Array; readonly how: string } {
  const pick = <T>(list: readonly T[]): T => list[below(next, list.length)]!;
  const end = dataOf(file);
  const ways: Readonly<Record<string, () => Uint8Array>> = {
    'bits flipped': () => flipped(file, next, 0, file.length),
    'bits of the header flipped': () => flipped(file, next, 0, end),
    'bits of tensors flipped': () => flipped(file, next, end, file.length),
    'cut off': () => file.slice(0, below(next, file.length)),
    longer: () => {
      const copy = new Uint8Array(file.length + 1 + below(next, 100)).fill(below(next, 256));
      copy.set(file);
      return copy;
    },
    'another length of the header': () => {
      const copy = file.slice();
      const view = new DataView(copy.buffer);
      const lengths = [0n, 1n, 2n, BigInt(end - 9), BigInt(end - 7), BigInt(file.length - 8), BigInt(file.length), 2n ** 32n, 2n ** 63n];
      view.setBigUint64(0, pick(lengths), true);
      return copy;
    },
    'a stretch copied over another': () => {
      const copy = file.slice();
      const from = below(next, file.length);
      return copy.copyWithin(below(next, file.length), from, from + below(next, 300));
    },
    'a field of the header': () => fileOf(edited(file.subarray(8, end), next), file.subarray(end)),
    'another length': () =>
      withHeader(file, ({ __metadata__: metadata }) => {
        metadata.length = String(Number(metadata.length) + pick([-65, -64, -63, -2, -1, 1, 2, 63, 64, 65]));
      }),
    'rows less or more, length and all': () =>
      withHeader(file, header => {
        const kind = pick(['pages', 'raw', 'sinks']);
        const more = pick([-2, -1, 1]);
        let moved = 0;
        for (const [name, { dtype, shape, data_offsets }] of Object.entries<any>(header)) {
          if (name === '__metadata__') continue;
          data_offsets[0] += moved;
          if (name.endsWith(kind)) {
            shape[0] += more;
            moved += more * shape.slice(1).reduce((a: number, b: number) => a * b, dtype === 'U8' ? 1 : 2);
          }
          data_offsets[1] += moved;
        }
        header.__metadata__.length = String(Number(header.__metadata__.length) + 64 * more + pick([0, 0, -1, 1]));
      }),
    'tensors swapped': () =>
      withHeader(file, header => {
        const [one, other] = [pick(Object.keys(header).slice(1)), pick(Object.keys(header).slice(1))];
        [header[one], header[other]] = [header[other], header[one]];
      }),
    'offsets as text, which adds up to longer text': () =>
      withHeader(file, header => {
        const tensor = header[pick(Object.keys(header).slice(1))];
        tensor.data_offsets = tensor.data_offsets.map(String);
      }),
    'any halves': () => {
      const copy = file.slice();
      // Any bits, as a scale may be: subnormal, negative, huge, infinite.
      for (let n = below(next, 40); n >= 0; n--) copy[end + below(next, file.length - end)] = pick([0, 0x7b, 0xfb, 0x7c, 0xff, 0x80, 1]);
      return copy;
    }
  };
  const how = pick(Object.keys(ways));
  return { bytes: ways[how]!(), how };
}

function flipped(file: Uint8Array, next: () => number, from: number, to: number): Uint8Array {
  const copy = file.slice();
  for (let n = below(next, 4); n >= 0; n--) copy[from + below(next, to - from)]! ^= 1 << below(next, 8);
  return copy;
}

/** The header with one field changed, missing, moved or there twice. */
function edited(bytes: Uint8Array, next: () => number): string {
  const pick = <T>(list: readonly T[]): T => list[below(next, list.length)]!;
  const header = JSON.parse(new TextDecoder().decode(bytes));
  // The object, and the key in it, of a field at any depth.
  let [object, key]: [any, string] = [header, pick(Object.keys(header))];
  while (typeof object[key] === 'object' && object[key] !== null && Object.keys(object[key]).length > 0 && next() < 0.8) {
    object = object[key];
    key = pick(Object.keys(object));
  }
  const value = object[key];
  const action = below(next, 6);
  if (action === 0) delete object[key];
  else if (action === 1) object[key] = pick(odd);
  else if (action === 2) {
    const other = pick(Object.keys(object));
    [object[key], object[other]] = [object[other], value];
  } else if (action === 3)
    return JSON.stringify(header).replace(/}$/, `,${JSON.stringify(pick(Object.keys(header)))}:${JSON.stringify(pick(odd))}}`);
  else if (action === 4) object[`${key}${pick(['', ' ', '0', '.x'])}`] = pick([value, ...odd]);
  else if (typeof value === 'number') object[key] = value + pick([-64, -16, -8, -1, 1, 8, 16, 64, 1072, -1072]);
  else if (typeof value === 'string' && value !== '' && !Number.isNaN(Number(value)))
    object[key] = String(Number(value) + pick([-64, -1, 1, 64]));
  else object[key] = pick(odd);
  return JSON.stringify(header);
}
