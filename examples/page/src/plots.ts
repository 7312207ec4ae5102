// Two live plots against context: bytes of the cache, and tokens a second. Text and lines are drawn in currentColor, so that
// they follow a light and a dark page.
import { LineChart, ScatterChart } from 'echarts/charts';
import { GridComponent, TooltipComponent } from 'echarts/components';
import { init, use } from 'echarts/core';
import { SVGRenderer } from 'echarts/renderers';
import type { Held } from './chat-model.ts';
import { count, mebibytes } from './text.ts';

use([LineChart, ScatterChart, GridComponent, TooltipComponent, SVGRenderer]);

/** At least 3:1 against the light and the dark page, and told apart by color-blind eyes. */
const COLORS = ['#2f80d8', '#d9730d', '#0f9d76', '#c2479b', '#8a6df0', '#7c8a12'];
const FEWEST_TOKENS = 512;
const REDRAW_MS = 150;
/** Tokens over which speed is smoothed: their median. */
const SMOOTH = 25;

/** What was measured with one pair of codecs on one backend. */
interface Run {
  readonly name: string;
  readonly color: string;
  readonly bytesPerToken: number;
  readonly held: Held[];
  readonly speed: { readonly tokens: number; readonly perSecond: number }[];
}

export class Plots {
  readonly #bytes;
  readonly #speed;
  readonly #legend: HTMLElement;
  #runs: Run[] = [];
  #current: Run | undefined;
  #f16BytesPerToken = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(bytes: HTMLElement, speed: HTMLElement, legend: HTMLElement) {
    this.#legend = legend;
    // Hidden at first, without a size of their own.
    const [size, whole] = [
      { width: 1, height: 1 },
      { width: 'auto', height: 'auto' }
    ] as const;
    this.#bytes = init(bytes, null, { renderer: 'svg', ...size });
    this.#speed = init(speed, null, { renderer: 'svg', ...size });
    const observer = new ResizeObserver(() => {
      if (bytes.clientWidth === 0) return;
      this.#bytes.resize(whole);
      this.#speed.resize(whole);
    });
    observer.observe(bytes);
    this.#draw();
  }

  /** For another model. */
  clear(): void {
    this.#runs = [];
    this.#current = undefined;
    this.#f16BytesPerToken = 0;
    this.#draw();
  }

  /** What comes from now on is measured so; a run of the same name goes on. */
  begin(name: string, bytesPerToken: number, f16BytesPerToken: number): void {
    this.#f16BytesPerToken = f16BytesPerToken;
    this.#current = this.#runs.find(run => run.name === name);
    if (!this.#current) {
      this.#current = { name, color: COLORS[this.#runs.length % COLORS.length]!, bytesPerToken, held: [], speed: [] };
      this.#runs.push(this.#current);
    }
    this.#later();
  }

  /** `ms` a token if it was generated. A context that was left for a shorter one is forgotten: curves are functions. */
  add(held: Held, ms?: number): void {
    const run = this.#current!;
    while (run.held.length > 0 && run.held.at(-1)!.tokens >= held.tokens) run.held.pop();
    while (run.speed.length > 0 && run.speed.at(-1)!.tokens >= held.tokens) run.speed.pop();
    run.held.push(held);
    if (ms !== undefined) run.speed.push({ tokens: held.tokens, perSecond: 1000 / ms });
    this.#later();
  }

  /** However many tokens come: drawing must not take their time. */
  #later(): void {
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      this.#draw();
    }, REDRAW_MS);
  }

  #draw(): void {
    const runs = this.#runs.filter(run => run.held.length > 0);
    const longest = Math.max(0, ...runs.map(run => run.held.at(-1)!.tokens));
    const end = FEWEST_TOKENS * 2 ** Math.max(0, Math.ceil(Math.log2((longest * 1.1) / FEWEST_TOKENS)));
    const toMebi = ({ tokens, bytes }: Held): [number, number] => [tokens, bytes / 2 ** 20];
    const line = { type: 'line', symbol: 'none', animation: false, emphasis: { disabled: true } } as const;

    this.#bytes.setOption(
      {
        ...frame(end, value => mebibytes(value * 2 ** 20)),
        series: [
          {
            ...line,
            name: 'f16',
            lineStyle: { color: 'currentColor', width: 2, type: 'dashed' },
            itemStyle: { color: '#8a94a0' },
            data: grid(end, this.#f16BytesPerToken)
          },
          ...runs.map(({ color, held, bytesPerToken }) => ({
            ...line,
            silent: true,
            tooltip: { show: false },
            lineStyle: { color, width: 1.5, type: 'dotted' as const },
            data: goingOn(held, end, bytesPerToken).map(toMebi)
          })),
          ...runs.map(({ name, color, held }) => ({
            ...line,
            name,
            lineStyle: { color, width: 2.5 },
            itemStyle: { color },
            data: held.map(toMebi)
          }))
        ]
      },
      { notMerge: true }
    );

    this.#speed.setOption(
      {
        ...frame(
          end,
          value => `${value.toFixed(1)}/s`,
          runs.every(run => run.speed.length === 0)
        ),
        series: runs.flatMap(({ name, color, speed }) => [
          {
            type: 'scatter' as const,
            silent: true,
            tooltip: { show: false },
            animation: false,
            symbolSize: 4,
            itemStyle: { color, opacity: 0.3 },
            data: speed.map(({ tokens, perSecond }) => [tokens, perSecond])
          },
          {
            ...line,
            name,
            lineStyle: { color, width: 2.5 },
            itemStyle: { color },
            data: smooth(speed).map(({ tokens, perSecond }) => [tokens, perSecond])
          }
        ])
      },
      { notMerge: true }
    );

    const item = (kind: string, color: string, text: string): HTMLElement => {
      const element = document.createElement('li');
      const swatch = document.createElement('i');
      element.className = kind;
      swatch.style.color = color;
      element.append(swatch, text);
      return element;
    };
    this.#legend.replaceChildren(
      ...runs.map(({ name, color }) => item('', color, name)),
      ...(runs.length > 0 ? [item('dotted', 'currentColor', 'if it goes on'), item('dashed', 'currentColor', 'f16')] : [])
    );
  }
}

/** Axes from 0 and what is said where the pointer is. */
function frame(end: number, format: (value: number) => string, empty = false) {
  const label = { color: 'currentColor', fontSize: 11 };
  const rule = { lineStyle: { color: 'currentColor', opacity: 0.15 } };
  return {
    animation: false,
    grid: { left: 4, right: 14, top: 10, bottom: 4, outerBoundsMode: 'same' as const, outerBoundsContain: 'axisLabel' as const },
    tooltip: {
      trigger: 'axis' as const,
      confine: true,
      transitionDuration: 0,
      textStyle: { fontSize: 12 },
      axisPointer: { lineStyle: { color: 'currentColor', opacity: 0.5 } },
      // Each curve has its own nearest point.
      formatter: (points: { seriesName?: string; marker?: unknown; value: unknown }[]) =>
        points
          .map(({ seriesName, marker, value }) => {
            const [tokens, y] = value as [number, number];
            return `${String(marker)}${seriesName}: ${format(y)} at ${count(Math.round(tokens))}`;
          })
          .join('<br>')
    },
    xAxis: {
      type: 'value' as const,
      min: 0,
      max: end,
      splitNumber: 4,
      axisLabel: { ...label, formatter: (value: number) => count(value) },
      axisLine: { show: true, lineStyle: { color: 'currentColor', opacity: 0.4 } },
      splitLine: { show: false }
    },
    yAxis: {
      type: 'value' as const,
      min: 0,
      ...(empty && { max: 20 }),
      splitNumber: 4,
      axisLabel: label,
      splitLine: { show: true, ...rule }
    }
  };
}

/** f16's line with points close enough together for the pointer to find one. */
function grid(end: number, bytesPerToken: number): [number, number][] {
  return Array.from({ length: 65 }, (_, i) => [(end * i) / 64, (((end * i) / 64) * bytesPerToken) / 2 ** 20]);
}

/** From the end of a curve: what coded tokens add, above what the newest window's raw tokens take. */
function goingOn(held: readonly Held[], end: number, bytesPerToken: number): Held[] {
  const { tokens } = held.at(-1)!;
  const bytes = Math.max(...held.filter(each => each.tokens > tokens - 64).map(each => each.bytes));
  return [
    { tokens, bytes },
    { tokens: end, bytes: bytes + bytesPerToken * (end - tokens) }
  ];
}

function smooth(speed: Run['speed']): Run['speed'] {
  return speed.map(({ tokens }, i) => {
    const near = speed
      .slice(Math.max(0, i - (SMOOTH >> 1)), i + (SMOOTH >> 1) + 1)
      .map(({ perSecond }) => perSecond)
      .sort((a, b) => a - b);
    return { tokens, perSecond: near[near.length >> 1]! };
  });
}
