// The demo's results and the tables that show them, once for the terminal and the report.
import { WINDOW } from '../../src/format/layout.ts';
import { LEARNED_WINDOWS } from '../../src/shape.ts';
import { short, type Table } from '../table.ts';
import type { Recording } from './recording.ts';
import type { Balance } from './row.ts';

/** Word for rows whose keys are not balanced. */
const PLAIN = 'plain';

/** A row of the table, as --json writes it. */
export interface Result {
  keys: string;
  values: string;
  balance: Balance | null;
  bitsPerElement: number;
  bytes: number;
  outputError: number;
  outputErrorByLayer: number[];
  attentionKL: number;
  attendNs: number | null;
  encodeNs: number | null;
}

/** What the table shows beside it. */
export interface Measured extends Result {
  /** Bits per element of coded tokens alone. */
  codedBits: number | null;
}

/** A baseline's error when other tokens stay raw than in its row of the table. */
export interface ProtocolErrors {
  name: string;
  everyToken: number;
  window: number;
  windowAndSinks: number;
}

/** A codec's KL by what its keys are balanced by. */
export type BalanceDivergences = { name: string } & Readonly<Record<Balance, number>>;

/** A table under its title. */
export interface TitledTable extends Table {
  readonly title: string;
}

export function resultTable(results: readonly Measured[]): TitledTable {
  return {
    title: 'Keys and values held in each format',
    textColumns: 2,
    headers: ['keys', 'values', 'bits', 'coded bits', 'bytes', 'output error', 'KL, nats', 'attend ns', 'encode ns'],
    rows: results.map(result => [
      result.balance === 'off' ? `${result.keys} ${PLAIN}` : result.keys,
      result.values,
      result.bitsPerElement.toFixed(2),
      result.codedBits?.toFixed(2) ?? '–',
      result.bytes.toLocaleString('en-US'),
      short(result.outputError),
      short(result.attentionKL),
      result.attendNs?.toFixed(1) ?? '–',
      result.encodeNs?.toFixed(0) ?? '–'
    ])
  };
}

/** Without plain rows: more columns than a terminal has. */
export function layerTable(recording: Recording, results: readonly Measured[]): TitledTable {
  const shown = results.filter(({ balance }) => balance !== 'off');
  return {
    title: 'Output error by layer',
    textColumns: 0,
    headers: ['layer', ...shown.map(nameOf)],
    rows: recording.layers.map(({ index }, layer) => [`${index}`, ...shown.map(result => short(result.outputErrorByLayer[layer]!))])
  };
}

export function protocolTable(protocols: readonly ProtocolErrors[], sinks: number): TitledTable {
  return {
    title: 'Output error of the baselines, by what stays raw',
    textColumns: 1,
    headers: ['keys and values', 'nothing', 'newest window (as above)', `newest window and ${sinks} sinks`],
    rows: protocols.map(({ name, everyToken, window, windowAndSinks }) => [name, short(everyToken), short(window), short(windowAndSinks)])
  };
}

export function balanceTable(balances: readonly BalanceDivergences[]): TitledTable {
  return {
    title: 'KL by what keys are balanced by',
    textColumns: 1,
    headers: ['keys and values', `nothing (${PLAIN})`, 'keys alone', 'keys and queries'],
    rows: balances.map(({ name, off, keys, queries }) => [name, short(off), short(keys), short(queries)])
  };
}

/** What the columns mean, exactly. */
export function notes(recording: Recording, sinks: number, passes: number): string[] {
  const { tokens, queryTokens } = recording;
  const count = (n: number): string => n.toLocaleString('en-US');
  return [
    `bits: bits per element of keys and values with everything counted after ${count(tokens)} tokens: pages with their metadata, sinks, the raw tail (f16), the page table, what was learned, the codebooks. coded bits: coded tokens alone, metadata included, which is what a long context comes to.`,
    `output error: √(Σ‖out − exact‖² / Σ‖exact‖²) against attention in f64 over the recorded keys and values, over the last ${count(queryTokens)} positions, all heads and layers. KL: KL(exact ‖ format) of the attention probabilities, mean over the same.`,
    `nsn rows keep the first ${sinks} tokens raw, and the newest 64-token window until the call after it is full. Baselines are given the same window, without sinks.`,
    taught(recording, sinks),
    `attend ns: time of all attend calls ÷ Σ over calls of (cached tokens × KV heads). encode ns: time of the append calls that seal windows ÷ (sealed tokens × KV heads), keys and values together. One thread, one query position a call, fastest of up to ${passes} passes; –: not measured.`,
    'f32 and q8_0 are timed with the tuned dense kernels of bench/baselines/dense, f32 and int8 (one scale per token, where q8_0 has one per 32 channels), at the mean length; their fastest form. There is none for q4_0, for scalar WebAssembly, or for head dimensions that 32 does not divide.'
  ];
}

/** What nsn rows learn from. */
function taught({ tokens, queryTokens }: Recording, sinks: number): string {
  const learned = sinks + LEARNED_WINDOWS * WINDOW;
  const standIns = Math.min(learned, tokens - queryTokens);
  const queries =
    standIns === 0
      ? `their queries`
      : `as many queries; those of the first ${standIns} positions are not in the recording, so that queries of the last ${queryTokens} stand in for them, which are also those that the error is measured on`;
  return `nsn rows balance keys by what they learn from their first ${learned} tokens and ${queries}. Keys alone: no query is seen before what is learned is used. ${PLAIN}: balance off, the paper's recipe.`;
}

/** "nsn4", "nsn4 plain", or "keys nsn4, values nsn2". */
export function nameOf({ keys, values, balance }: { keys: string; values: string; balance: Balance | null }): string {
  const name = keys === values ? keys : `keys ${keys}, values ${values}`;
  return balance === 'off' ? `${name} ${PLAIN}` : name;
}
