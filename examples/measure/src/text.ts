// Numbers and names in words, for page and table.
import type { Browser, Gpu } from './report.ts';

export const integer = (value: number): string => value.toLocaleString('en-US');

/** Three digits, with the unit in which they are easy to read. */
export function duration(milliseconds: number): string {
  return milliseconds < 1 ? `${digits(milliseconds * 1000)} µs` : `${digits(milliseconds)} ms`;
}

/** Three digits that mean something, never an exponent. */
export function digits(value: number): string {
  return value >= 100 ? integer(Math.round(value)) : value.toPrecision(3);
}

export function percent(share: number): string {
  return share < 1e-5 ? '<0.001 %' : `${Number((100 * share).toPrecision(2))} %`;
}

/** Nanoseconds of one cached token and KV head, the benchmark's unit. */
export function nanoseconds(milliseconds: number, tokens: number, kvHeads: number): number {
  return (milliseconds * 1e6) / (tokens * kvHeads);
}

/** A GPU's names for itself, each once. */
export function gpuName({ vendor, architecture, device, description }: Gpu): string {
  const parts = [vendor, architecture, device, description];
  return parts.filter((part, n) => part !== '' && parts.indexOf(part) === n).join(' ') || 'unnamed adapter';
}

/** Browsers that claim to be others come before these. */
const BROWSERS = [
  [/Edg\w*\/(\d+)/, 'Edge'],
  [/OPR\/(\d+)/, 'Opera'],
  [/SamsungBrowser\/(\d+)/, 'Samsung Internet'],
  [/(?:Firefox|FxiOS)\/(\d+)/, 'Firefox'],
  [/(?:Chrome|CriOS)\/(\d+)/, 'Chrome'],
  [/Version\/(\d+(?:\.\d+)?).*Safari/, 'Safari']
] as const;

/** Name and version, as far as a browser tells. */
export function browserName({ userAgent }: Pick<Browser, 'userAgent'>): string {
  for (const [pattern, name] of BROWSERS) {
    const version = pattern.exec(userAgent)?.[1];
    if (version !== undefined) return `${name} ${version}`;
  }
  return 'unknown browser';
}

/** The system that a browser says it runs on, with a phone's model where it says so. */
export function systemName({ userAgent, hints }: Pick<Browser, 'userAgent' | 'hints'>): string {
  const { platform, model } = (hints ?? {}) as { platform?: string; model?: string };
  if (platform) return [platform, model].filter(Boolean).join(', ');
  return /iPhone|iPad|Android|Mac OS X|Windows|CrOS|Linux/.exec(userAgent)?.[0] ?? 'unknown system';
}

/** Without a dot at its end. */
export function sentence(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.replace(/\.$/, '');
}
