// Methods by name: what a command line can ask for, and the cache that comes of it.
//
//   METHOD  =  KEYS[/VALUES][@OPTION,OPTION…]      nsn4/nsn2   nsn2@sinks=0,rope=off   q4_0+hadamard@sinks=4   raw

import { type Config, InputError } from '@nsnquant/gguf';
import { type Backend, type CodecName, codecs } from 'nsnquant';
import type { HeldCache } from './cache.ts';
import type { DenseAttention } from './dense.ts';
import { formats } from './formats.ts';
import { NsnCache } from './nsn.ts';
import { paper2 } from './paper2.ts';
import { WindowedCache } from './windowed.ts';

export interface MethodOptions {
  /** First tokens that stay raw. */
  readonly sinks: number;
  /** Newest complete windows that stay raw. */
  readonly recent: number;
  /** Whether the mean of keys is taken before RoPE. Only nsn codecs know the difference. */
  readonly rope: boolean;
  /** Whether keys are balanced. Only nsnquant's own codecs can be. */
  readonly balance: boolean;
}

export interface Method {
  readonly keys: string;
  readonly values: string;
  readonly options: MethodOptions;
}

export interface Resources {
  readonly config: Config;
  readonly backend: Backend;
  readonly dense: DenseAttention;
  /** What keys are balanced by; without, every sequence learns it. */
  readonly profile?: Uint8Array | undefined;
}

const codecNames = Object.keys(codecs);
const PAPER2 = 'paper2';
export const raw: Method = { keys: 'raw', values: 'raw', options: { sinks: 0, recent: 0, rope: false, balance: false } };

export function parseMethod(text: string): Method {
  const [pair, settings = ''] = text.trim().split('@', 2) as [string, string?];
  const [keys, values = keys] = pair.split('/', 2) as [string, string?];
  const names = [...codecNames, PAPER2, ...formats.keys()];
  for (const name of [keys, values]) {
    if (!names.includes(name)) throw new InputError(`"--methods" expected one of ${names.join(', ')}, got ${name}`);
  }
  const nsn = codecNames.includes(keys);
  const withMean = isNsn({ keys });
  if (
    nsn !== codecNames.includes(values) ||
    (keys === 'raw') !== (values === 'raw') ||
    (keys === PAPER2) !== (values === PAPER2) ||
    formats.get(keys)?.window !== formats.get(values)?.window
  ) {
    throw new InputError(`"--methods" expected keys and values of one kind, got ${pair}`);
  }
  const options = { sinks: withMean ? 4 : 0, recent: 0, rope: withMean, balance: nsn };
  for (const setting of settings === '' ? [] : settings.split(',')) {
    const [name, value = ''] = setting.split('=', 2) as [string, string?];
    if (((name === 'sinks' && keys !== 'raw') || (name === 'recent' && nsn)) && /^\d+$/.test(value))
      options[name as 'sinks' | 'recent'] = Number(value);
    else if (((name === 'rope' && withMean) || (name === 'balance' && nsn)) && (value === 'on' || value === 'off'))
      options[name as 'rope' | 'balance'] = value === 'on';
    else
      throw new InputError(
        `"--methods" expected options sinks=N, and for codecs of nsnquant recent=N, rope=on or rope=off, balance=on or balance=off, got ${text}`
      );
  }
  return { keys, values, options };
}

export function parseMethods(text: string): Method[] {
  // A comma divides methods and options alike: what has a "=" before any "@" belongs to the method before it.
  const methods: string[] = [];
  for (const part of text.split(',')) {
    if (/^[a-z]+=/.test(part) && methods.length > 0) methods.push(`${methods.pop()},${part}`);
    else methods.push(part);
  }
  return methods.map(parseMethod);
}

/** The method as parseMethod takes it, without what is the default. */
export function methodName({ keys, values, options }: Method): string {
  const withMean = isNsn({ keys });
  const settings = [
    ...(options.sinks !== (withMean ? 4 : 0) ? [`sinks=${options.sinks}`] : []),
    ...(options.recent > 0 ? [`recent=${options.recent}`] : []),
    ...(withMean && !options.rope ? ['rope=off'] : []),
    ...(codecNames.includes(keys) && !options.balance ? ['balance=off'] : [])
  ];
  return `${keys === values ? keys : `${keys}/${values}`}${settings.length > 0 ? `@${settings.join(',')}` : ''}`;
}

/** One of nsnquant's codecs, or the paper's: what sinks and RoPE mean something to. */
export function isNsn({ keys }: Pick<Method, 'keys'>): boolean {
  return keys === PAPER2 || codecNames.includes(keys);
}

/** An empty cache. `maxAppend`: tokens of the longest call. */
export function openCache(
  { keys, values, options }: Method,
  { config, backend, dense, profile }: Resources,
  capacity: number,
  maxAppend: number
): HeldCache {
  if (keys === PAPER2) {
    const { rope } = config.attention[0]!;
    if (config.attention.some(layer => layer.rope !== rope))
      throw new InputError(`"${PAPER2}" expected a model whose layers rotate alike, got one of several kinds`);
    const format = paper2(options.rope && rope !== 'none' ? rope : undefined);
    return new WindowedCache(config, dense, { capacity, keys: format, values: format, sinks: options.sinks });
  }
  const keyFormat = formats.get(keys);
  const valueFormat = formats.get(values);
  if (!keyFormat || !valueFormat) {
    return new NsnCache(backend, config, {
      keys: keys as CodecName,
      values: values as CodecName,
      capacity,
      maxAppend: Math.min(maxAppend, capacity),
      ...options,
      balance: options.balance ? (profile ?? 'learn') : 'off'
    });
  }
  return new WindowedCache(config, dense, { capacity, keys: keyFormat, values: valueFormat, sinks: options.sinks });
}
