// The structs that the host writes for shaders/: a field's name and place are written once on either side, and
// test/shaders.node.test.ts holds the two together. A field is a word: a u32, or the bits of an f32.

export const STRUCTS = {
  WriteJob: ['keys', 'values', 'slot', 'tokens', 'firstToken', 'capacity', 'halfKeys', 'halfValues', 'tokenRows', 'headRows'],
  ExtractJob: ['begin', 'half', 'tokenPairs', 'headPairs', 'tokens', 'row', 'tokenRows', 'headRows', 'halfRows'],
  EncodeJob: ['rows', 'block', 'headWords', 'order'],
  DecodeJob: ['block', 'headWords', 'window', 'order'],
  EnergiesJob: ['energies', 'tokens', 'half', 'tokenRows', 'headRows'],
  LearnJob: ['windows', 'windowWords', 'headWords', 'energies', 'order'],
  Stage: ['segment', 'channel', 'channels', 'column', 'columns', 'width', 'book', 'halfNorms', 'scale'],
  Schedule: [
    'scale',
    'splitsAt',
    'tiles',
    'tilesAt',
    'requestsAt',
    'rawWindowsAt',
    'pagesAt',
    'windowsAt',
    'quads',
    'sinks',
    'slidingWindow',
    'kept',
    'softcap',
    'slopesAt',
    'sinkLogitsAt',
    'headsFirst',
    'halfQueries',
    'halfOutput'
  ],
  ChunkPair: ['firstSplit', 'coded', 'splits'],
  Request: ['firstToken', 'tokens', 'position', 'order'],
  Tile: ['request', 'firstRow', 'firstPart', 'parts'],
  Split: ['tile', 'firstWindow', 'endWindow', 'part'],
  RawWindow: ['place', 'tokens', 'position'],
  Params: ['chunkPair']
} as const;

/** An f32 as a field has it. */
export function floatBits(x: number): number {
  return new Uint32Array(Float32Array.of(x).buffer)[0]!;
}

type StructName = keyof typeof STRUCTS;
export type Struct<Name extends StructName> = Readonly<Record<(typeof STRUCTS)[Name][number], number>>;

/** The names of a struct's fields, in their order. */
export function fieldsOf(name: StructName): readonly string[] {
  return STRUCTS[name];
}

/** Writes a struct into words, from word `at` on. */
export function putStruct<Name extends StructName>(words: Uint32Array, at: number, name: Name, fields: Struct<Name>): void {
  const names: readonly string[] = STRUCTS[name];
  const values: Readonly<Record<string, number>> = fields;
  for (let n = 0; n < names.length; n++) words[at + n] = values[names[n]!]!;
}

/** Structs one after another. */
export function structWords<Name extends StructName>(name: Name, structs: readonly Struct<Name>[]): Uint32Array<ArrayBuffer> {
  const size = STRUCTS[name].length;
  const words = new Uint32Array(size * structs.length);
  structs.forEach((fields, n) => {
    putStruct(words, n * size, name, fields);
  });
  return words;
}
