// Trains the universal codebooks and writes src/format/codebook.ts and bench/llm/caches/paper2-codebook.ts; `--check` trains again and compares.
// Never uses Math.log, Math.cos or Math.pow, whose last bits differ between engines: every engine writes the same file.
//
//   npx tsx bench/codebooks.ts [--check]
//
// Codebooks of 256 codewords of 8, 4 or 2 channels for draws of N(0, I), Euclidean nearest codeword. Codeword c + 128 is
// the negation of codeword c, which halves the products of a look-up table. The paper's 2-bit codebook (256 codewords of 8 channels
// for magnitudes, signs kept apart) is trained the same way. MSE per channel on the same 1,000,000 fresh draws:
//
//   symmetric, 128 trained codewords   0.31649 (8 channels)   0.09636 (4)   0.00776 (2)
//   free, 256, the same training       0.32087                0.09625       0.00779
//
// Unrealized refinement: codewords as weighted centroids that maximize ⟨y, ŷ⟩/‖ŷ‖ over whole 128-vectors. Eight rounds raise the
// mean cosine by 1e-6 ± 1e-6 (8 channels), 3e-6 (4) and 3e-6 (2); eight of Lloyd's iterations on those vectors by 0, 6e-6 and 5e-6.

import { readFileSync, writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { fromHalf, toHalf } from '../src/format/half.ts';

const codebooks = [8, 4, 2];
/** Codewords that are trained: half of a symmetric codebook, or all of the paper's for magnitudes. */
const pairs = 128;
const magnitudes = 256;
const trainingVectors = 2_000_000;
const annealingSteps = 1000;
const annealingVectors = 40_000; // vectors per annealing step, from successive parts of the training draws
const annealingNoise = 0.05; // standard deviation of the noise of the first step, per channel
const polishingSteps = 10; // Lloyd's iterations over all training vectors
const freshVectors = 1_000_000;
const cosineChannels = 128;
const trainingSeed = 1;
const noiseSeed = 2;
const freshSeed = 3;

/** sfc32: uniform integers from 0 to 2³² − 1. */
function random(seed: number): () => number {
  let a = seed | 0,
    b = 0x9e3779b9 | 0,
    c = 0x243f6a88,
    counter = 1;
  const next = (): number => {
    const t = (a + b + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (((c << 21) | (c >>> 11)) + t) | 0;
    return t >>> 0;
  };
  for (let i = 0; i < 16; i++) next();
  return next;
}

/** Natural logarithm of 0 < x < 1: x = m·2ᵉ with m from √½ to √2, then 2·atanh((m − 1)/(m + 1)). */
function log(x: number): number {
  let e = 0;
  for (; x < Math.SQRT1_2; e--) x *= 2;
  const t = (x - 1) / (x + 1);
  let series = 0;
  for (let n = 21; n > 0; n -= 2) series = series * t * t + 1 / n;
  return 2 * t * series + e * Math.LN2;
}

/** f32 draws of N(0, 1), by Marsaglia's polar method. `count` is even. */
function normals(count: number, seed: number): Float32Array {
  const next = random(seed);
  const uniform = (): number => (next() + 0.5) / 2147483648 - 1;
  const out = new Float32Array(count);
  for (let i = 0; i < count; ) {
    const u = uniform(),
      v = uniform(),
      s = u * u + v * v;
    if (s >= 1) continue;
    const scale = Math.sqrt((-2 * log(s)) / s);
    out[i++] = u * scale;
    out[i++] = v * scale;
  }
  return out;
}

/** What a codebook is trained on: normal draws, or their magnitudes. */
function draws(channels: number, count: number, vectors: number, seed: number): Float32Array {
  const x = normals(vectors * channels, seed);
  return count === magnitudes ? x.map(Math.abs) : x;
}

/**
 * Nearest codeword of every vector, argmax(x·C − ‖C‖²/2). Codeword k + 128 is the negation of codeword k, so 128 products are
 * enough: the larger |x·C| decides, its sign says which of the two. Magnitudes and their codewords are positive: the sign is +.
 *
 *   x      f32 [vectors, channels]
 *   half   f64 [count, channels]
 *   visit  called with each vector's index, its nearest codeword of `half` and the sign
 *
 * Returns the mean squared error per channel.
 */
function nearest(
  x: Float32Array,
  half: Float64Array,
  channels: number,
  visit: (vector: number, codeword: number, sign: number) => void
): number {
  const count = half.length / channels;
  const halfNorms = new Float64Array(count);
  for (let i = 0; i < half.length; i++) halfNorms[Math.floor(i / channels)]! += (half[i]! * half[i]!) / 2;
  const v = new Float64Array(channels);
  let error = 0;
  for (let start = 0, vector = 0; start < x.length; start += channels, vector++) {
    let norm = 0;
    for (let j = 0; j < channels; j++) {
      v[j] = x[start + j]!;
      norm += v[j]! * v[j]!;
    }
    let best = -Infinity,
      codeword = 0,
      sign = 1;
    for (let k = 0, p = 0; k < count; k++) {
      let product = 0;
      for (let j = 0; j < channels; j++) product += v[j]! * half[p++]!;
      const score = Math.abs(product) - halfNorms[k]!;
      if (score > best) {
        best = score;
        codeword = k;
        sign = product < 0 ? -1 : 1;
      }
    }
    error += norm - 2 * best;
    visit(vector, codeword, sign);
  }
  return error / x.length;
}

/** One of Lloyd's iterations, folded: a vector nearest to −c pulls c by its negation. An empty cell keeps its codeword. */
function lloyd(x: Float32Array, half: Float64Array, channels: number): void {
  const sums = new Float64Array(half.length),
    counts = new Float64Array(half.length / channels);
  nearest(x, half, channels, (vector, codeword, sign) => {
    counts[codeword]!++;
    for (let j = 0; j < channels; j++) sums[codeword * channels + j]! += sign * x[vector * channels + j]!;
  });
  for (let i = 0; i < half.length; i++) {
    const count = counts[Math.floor(i / channels)]!;
    if (count > 0) half[i] = sums[i]! / count;
  }
}

/**
 * k-means with stochastic relaxation (Zeger, Vaisey, Gersho 1992): noise that fades with (1 − step/steps)^1.5 is added to the
 * codewords after each step, so that they leave poor local minima. Returns f64 [count, channels].
 */
function train(channels: number, count: number): Float64Array {
  const x = draws(channels, count, trainingVectors, trainingSeed);
  const half = Float64Array.from(x.subarray(0, count * channels));
  const noise = normals(annealingSteps * half.length, noiseSeed);
  for (let step = 0; step < annealingSteps; step++) {
    const start = (step * annealingVectors) % trainingVectors;
    lloyd(x.subarray(start * channels, (start + annealingVectors) * channels), half, channels);
    const left = 1 - step / annealingSteps;
    const deviation = annealingNoise * left * Math.sqrt(left);
    for (let i = 0; i < half.length; i++) half[i]! += deviation * noise[step * half.length + i]!;
  }
  for (let step = 0; step < polishingSteps; step++) lloyd(x, half, channels);
  return half;
}

/** f16 bits [256, channels]: codewords whose first channel is positive, in ascending order, then, where symmetric, their negations. */
function finish(half: Float64Array, channels: number): Uint16Array {
  const rows: number[][] = [];
  for (let k = 0; k < half.length / channels; k++) {
    const row = Array.from(half.subarray(k * channels, (k + 1) * channels), toHalf);
    rows.push(row[0]! & 0x8000 ? row.map(bits => bits ^ 0x8000) : row);
  }
  rows.sort((a, b) => {
    const j = a.findIndex((bits, i) => bits !== b[i]);
    return j < 0 ? 0 : fromHalf(a[j]!) - fromHalf(b[j]!);
  });
  const codebook = Uint16Array.from(rows.flat());
  if (rows.length === magnitudes) return codebook;
  return Uint16Array.from([...codebook, ...codebook.map(bits => bits ^ 0x8000)]);
}

/** Mean squared error per channel of N(0, I), and mean cosine of whole vectors of norm √128 as the encoder makes them. */
function measure(codebook: Uint16Array, channels: number, count: number): { mse: number; cosine: number } {
  const x = draws(channels, count, freshVectors, freshSeed);
  const half = Float64Array.from(codebook.subarray(0, count * channels), fromHalf);
  const mse = nearest(x, half, channels, () => {});

  const rows = Math.floor(x.length / cosineChannels);
  for (let row = 0; row < rows; row++) {
    const y = x.subarray(row * cosineChannels, (row + 1) * cosineChannels);
    const scale = Math.sqrt(cosineChannels / y.reduce((sum, value) => sum + value * value, 0));
    y.forEach((value, i) => {
      y[i] = value * scale;
    });
  }
  const products = new Float64Array(rows),
    norms = new Float64Array(rows),
    decodedNorms = new Float64Array(rows);
  nearest(x.subarray(0, rows * cosineChannels), half, channels, (vector, codeword, sign) => {
    const row = Math.floor((vector * channels) / cosineChannels);
    for (let j = 0; j < channels; j++) {
      const value = x[vector * channels + j]!,
        decoded = sign * half[codeword * channels + j]!;
      products[row]! += value * decoded;
      norms[row]! += value * value;
      decodedNorms[row]! += decoded * decoded;
    }
  });
  const cosine = products.reduce((sum, product, row) => sum + product / Math.sqrt(norms[row]! * decodedNorms[row]!), 0) / rows;
  return { mse, cosine };
}

/** FNV-1a, 32 bits. */
function fnv1a(bytes: Uint8Array): number {
  return bytes.reduce((hash, byte) => Math.imul(hash ^ byte, 0x01000193), 0x811c9dc5 | 0) >>> 0;
}

const { check } = parseArgs({ options: { check: { type: 'boolean', default: false } } }).values;
const hex = (checksum: number): string => `0x${checksum.toString(16).padStart(8, '0')}`;

/** Trains one codebook, prints its row of the table, and returns its entry in a source file. */
function entry(name: string, channels: number, count: number): string {
  const codebook = finish(train(channels, count), channels);
  const bytes = new Uint8Array(codebook.length * 2);
  const view = new DataView(bytes.buffer);
  for (const [i, bits] of codebook.entries()) view.setUint16(i * 2, bits, true);
  const checksum = hex(fnv1a(bytes));
  const lines = Buffer.from(bytes)
    .toString('base64')
    .match(/.{1,120}/g)!
    .map(line => `      '${line}'`);
  const { mse, cosine } = measure(codebook, channels, count);
  console.log(`| ${name} | ${mse.toFixed(6)} | ${cosine.toFixed(6)} | ${checksum} |`);
  return `{\n    checksum: ${checksum},\n    base64:\n${lines.join(' +\n')},\n  }`;
}

console.log('| codebook | Gaussian MSE | mean cosine, 128 channels | checksum |\n|---|---|---|---|');
const sources = {
  'src/format/codebook.ts': `// The universal codebooks, data only. Made by \`npx tsx bench/codebooks.ts\`; never edited by hand.
//
//   base64    f16 [256, channels], little-endian; the codeword of code c is row c
//   checksum  FNV-1a, 32 bits, of those bytes; part of the format: coded bytes mean nothing under another codebook
//
// Row c + 128 is the exact negation of row c. Rows 0 to 127 have a positive first channel and ascend.

interface CodebookData {
  readonly checksum: number;
  readonly base64: string;
}

export const codebooks: Readonly<Record<8 | 4 | 2, CodebookData>> = {
${codebooks.map(channels => `  ${channels}: ${entry(`${channels} channels`, channels, pairs)},\n`).join('')}};
`,
  'bench/llm/caches/paper2-codebook.ts': `// The paper's 2-bit codebook for magnitudes, data only, in the form of codebook.ts. Made by \`npx tsx bench/codebooks.ts\`.

export const paper2Codebook = ${entry('paper2', 8, magnitudes).replace(/^( {2,})/gm, spaces => spaces.slice(2))};
`
};

for (const [file, source] of Object.entries(sources)) {
  const target = new URL(`../${file}`, import.meta.url);
  if (!check) {
    writeFileSync(target, source);
  } else if (readFileSync(target, 'utf8') !== source) {
    console.error(`${file} differs from what bench/codebooks.ts makes`);
    process.exitCode = 1;
  }
}
