// Checks what a cache attends to against f64 attention over the tokens it says it holds.

import type { Sequence, Tokens } from 'nsnquant';
import * as brute from './brute.ts';
import type { AttentionShape } from './brute-attention.ts';
import { atMost, sameBits, withinFloatRule } from './compare.ts';
import { blockOf, meanOf, normsOf, readBlock, readSaved, sidesOf } from './pages.ts';
import { CANCELLED, DECODED_ROWS, INTEGER_SHARE, LOGIT_ADDED_UP, meanTermShare, REORDERED } from './tolerance.ts';
import type { Tested } from './verbs.ts';

/** What attends: a sequence, or what is like one of that shape on that backend. */
export type Attending = Pick<Sequence, 'backend' | 'shape'>;

interface Expectation {
  readonly exact: Float64Array;
  readonly naive: Float64Array;
  /** What integers of 16 bits, in the mean's part of logits and in prompts, may move an element by. */
  readonly extra: Float64Array;
}

export interface Expected extends Expectation {
  /** Of the softmax's log-sum-exp, [tokens, queryHeads]. */
  readonly lse: Expectation;
}

/**
 * Attention by brute force over `decode(layer)`. Seals the sequence: call it after `attend`.
 *
 * @param pages  coded pages that the layer had when it was attended to
 */
export async function expectedAttention(
  sequence: Sequence,
  layer: number,
  query: Float32Array,
  pages: number,
  scale = 1 / Math.sqrt(sequence.shape.layers[layer]!.headDim)
): Promise<Expected> {
  const [held, positions] = [await sequence.decode(layer), positionsOf(sequence, layer)];
  const saved = savedPages(await sequence.save(), layer).slice(0, pages);
  return expectedOver(sequence, layer, query, { ...held, positions }, saved, scale);
}

/** The coded pages of a layer of what `save()` wrote. */
export function savedPages(saved: Uint8Array, layer: number): readonly Uint8Array[] {
  return readSaved(saved).layers[layer]!.pages;
}

/** The positions that a layer holds. */
export function positionsOf(sequence: Sequence, layer: number): number[] {
  return sequence.ranges(layer).flatMap(({ from, to }) => Array.from({ length: to - from }, (_, n) => from + n));
}

/**
 * Attention by brute force over tokens that a layer was found to hold: those of the first positions, or of others.
 *
 * @param pages    the bytes of its coded pages
 * @param evicted  positions that it has lost since
 */
export function expectedOver(
  sequence: Attending,
  layer: number,
  query: Float32Array,
  { keys, values, positions }: Tokens & { readonly positions?: readonly number[] },
  pages: readonly Uint8Array[],
  scale = 1 / Math.sqrt(sequence.shape.layers[layer]!.headDim),
  evicted?: AttentionShape['evicted']
): Expected {
  const { backend, shape } = sequence;
  const mean = meanSlack(sequence, pages, layer, query, scale);
  const means = backend.name === 'webgpu' && {
    means: { first: shape.sinks, windows: meansOf(sequence, pages, layer, 1), share: CANCELLED }
  };
  const products = productsOf(sequence, layer, query, keys, scale);
  const integers = integerSlack(sequence, layer, pages.length, query, products);
  const logit = (row: number, token: number) => mean(row, token) + LOGIT_ADDED_UP * products(row, token);
  const slack =
    integers === undefined
      ? { logit, ...means }
      : {
          ...means,
          logit: (row: number, token: number) => logit(row, token) + integers(row, token),
          windows: { first: shape.sinks, count: pages.length, share: INTEGER_SHARE }
        };
  const { keepSinks, ...heads } = shape.layers[layer]!;
  const told = { ...heads, keptSinks: keepSinks ? shape.sinks : 0, evicted, positions };
  const { out: exact, lse, moved: extra, lseMoved } = brute.attention(query, keys, values, told, scale, brute.f64, slack);
  const naive = brute.attention(query, keys, values, told, scale, brute.f32);
  return { exact, extra, naive: naive.out, lse: { exact: lse, naive: naive.lse, extra: lseMoved } };
}

/** The norms and the mean of every page and KV head. */
function meansOf(sequence: Attending, pages: readonly Uint8Array[], layer: number, side: 0 | 1) {
  const { kvHeads } = sequence.shape.layers[layer]!;
  const sides = sidesOf(sequence, layer);
  return pages.map(page =>
    Array.from({ length: kvHeads }, (_, head) => {
      const block = readBlock(blockOf(page, head, side, sides), sides[side]);
      return { s1: normsOf(block), o: meanOf(block) };
    })
  );
}

/** How far a query row's logit of a token may be off where codes are looked up: nothing but for coded tokens, whose mean is summed in i16. */
function meanSlack(sequence: Attending, pages: readonly Uint8Array[], layer: number, query: Float32Array, scale: number) {
  const { sinks, layers } = sequence.shape;
  const { kvHeads, queryHeads, headDim, rope } = layers[layer]!;
  const blocks = meansOf(sequence, pages, layer, 0);
  const share = scale * meanTermShare(headDim);
  const terms = new Map<number, number>();
  return (row: number, token: number): number => {
    const page = Math.floor((token - sinks) / 64);
    const head = Math.floor((row % queryHeads) / (queryHeads / kvHeads));
    const block = blocks[page]?.[head];
    if (!block) return 0;
    const key = row * blocks.length + page;
    if (!terms.has(key)) terms.set(key, brute.meanTerm(query, row * headDim, block.o, headDim, rope));
    return share * block.s1[(token - sinks) % 64]! * terms.get(key)!;
  };
}

/** The same where pages are decoded for many rows: keys and queries are rounded to integers. */
function integerSlack(sequence: Attending, layer: number, pages: number, query: Float32Array, products: Products) {
  const { sinks } = sequence.shape;
  if (!decodesPages(sequence, layer, query)) return undefined;
  return (row: number, token: number): number => {
    if (token < sinks || token >= sinks + 64 * pages) return 0;
    return INTEGER_SHARE * products(row, token);
  };
}

/** How large a query row's logit of a token could be: the product of their lengths, scaled. */
type Products = (row: number, token: number) => number;

function productsOf(sequence: Attending, layer: number, query: Float32Array, keys: Float32Array, scale: number): Products {
  const { kvHeads, queryHeads, headDim } = sequence.shape.layers[layer]!;
  const groups = queryHeads / kvHeads;
  const norms = (x: Float32Array) => brute.norms(x, headDim, brute.f64).map(norm => norm * Math.sqrt(headDim));
  const [queryNorms, keyNorms] = [norms(query), norms(keys)];
  return (row, token) => scale * queryNorms[row]! * keyNorms[token * kvHeads + Math.floor((row % queryHeads) / groups)]!;
}

/** Whether pages are decoded for these rows: by the SIMD binaries, for many of them, and not where both codecs are nsn1. */
function decodesPages({ backend, shape }: Attending, layer: number, query: Float32Array): boolean {
  const simd = backend.name === 'wasm' && backend.variant !== 'scalar';
  const { kvHeads, headDim, page } = shape.layers[layer]!;
  const { keys, values } = page;
  const nsn1 = [keys, values].every(({ codec }) => codec.name === 'nsn1');
  return simd && !nsn1 && query.length / (kvHeads * headDim) >= DECODED_ROWS;
}

/** Attends and holds the output to the float rule. The sequence is sealed afterwards. */
export async function attendWithinRule(
  what: string,
  sequence: Sequence,
  query: Float32Array,
  { layer = 0, scale }: { layer?: number; scale?: number } = {}
): Promise<Float32Array> {
  const pages = sequence.sealed.tokens / 64;
  const out = await sequence.attend(layer, query, scale === undefined ? {} : { scale }).read();
  const { exact, naive, extra } = await expectedAttention(sequence, layer, query, pages, scale);
  withinFloatRule(what, out, exact, naive, sequence.shape.layers[layer]!.valueDim, extra);
  return out;
}

/**
 * Attends to the second layer of two that were given the same tokens, and holds the output and its log-sum-exp to the float rule over what
 * the first holds, which has no window: what a mask hides, and no more, may be gone. The sequence is sealed afterwards.
 *
 * @param evicted  positions that the second has lost
 */
export async function attendBesidePlain(
  what: string,
  sequence: Sequence,
  query: Float32Array,
  evicted?: AttentionShape['evicted']
): Promise<Float32Array> {
  const { queryHeads, headDim, valueDim } = sequence.shape.layers[1]!;
  // `sealed` is the mean of both layers.
  const pages = (2 * sequence.sealed.tokens + sequence.tokens(0) - sequence.tokens(1)) / 128;
  const lse = new Float32Array(query.length / headDim);
  const out = await sequence.attend(1, query, { lse }).read();
  const held = await sequence.decode(0);
  const saved = savedPages(await sequence.save(), 0).slice(0, pages);
  const expected = expectedOver(sequence, 1, query, held, saved, undefined, evicted);
  withinFloatRule(what, out, expected.exact, expected.naive, valueDim, expected.extra);
  withinFloatRule(`${what}: log-sum-exp`, lse, expected.lse.exact, expected.lse.naive, queryHeads, expected.lse.extra);
  return out;
}

/**
 * Outputs of the same attention, asked for in other ways: the same bits, but on a GPU, which splits a context by what else is in
 * the call, and adds up what it has split.
 */
export function sameAttention({ gpu }: Pick<Tested, 'gpu'>, what: string, actual: Float32Array, expected: Float32Array): void {
  if (!gpu) {
    sameBits(what, actual, expected);
    return;
  }
  if (actual.length !== expected.length) throw new Error(`${what} expected ${expected.length} numbers, got ${actual.length}`);
  const largest = expected.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  expected.forEach((value, i) => atMost(`${what}: difference at ${i}`, Math.abs(actual[i]! - value), REORDERED * largest));
}
