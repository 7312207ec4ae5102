// A quantity against bits as SVG text. Text and lines are drawn in currentColor, so that one picture serves a light and a dark page.
import * as echarts from 'echarts';

/** What dots are told apart by: shape and color alike. */
export interface Kind {
  readonly name: string;
  readonly symbol: 'circle' | 'triangle';
  readonly color: string;
}

export interface Point {
  readonly name: string;
  readonly kind: Kind;
  /** Everything counted: a full dot. */
  readonly bits: number;
  /** Coded tokens alone: a hollow dot beside it. */
  readonly codedBits: number | null;
  readonly y: number;
}

export interface Frame {
  readonly width: number;
  readonly height: number;
  /** The name of the quantity. */
  readonly name: string;
  readonly type: 'value' | 'log';
}

interface Rect {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}

/** Colors at least 3:1 against the light and the dark background. */
export const NSN: Kind = { name: 'nsnquant', symbol: 'circle', color: '#2f80d8' };
export const OTHER: Kind = { name: 'other formats', symbol: 'triangle', color: '#c8690f' };
/** Ink and paper on either. */
export const PAGE = { light: { ink: '#1b1f24', page: '#ffffff' }, dark: { ink: '#e4e8ed', page: '#14171b' } } as const;

const FONT = 12;
const GRID = { left: 72, right: 24, top: 32, bottom: 52 };
const DOT = 9;
/** At least what the names of both kinds take. */
const LEGEND = { width: 200, height: 24 };
/** Letters of a wide font against those that the layout reckons with. */
const WIDER = 1.12;

export function plot(points: readonly Point[], frame: Frame): string {
  const { width, height } = frame;
  const chart = echarts.init(null, null, { renderer: 'svg', ssr: true, width, height });
  chart.setOption({
    animation: false,
    grid: GRID,
    ...axes(points, frame),
    series: points.flatMap(dots),
    legend: legend(points)
  });

  // Labels come second: only now does the chart know where the dots are.
  const rect = (bits: number, y: number): Rect => {
    const [x, top] = chart.convertToPixel('grid', [bits, y]) as [number, number];
    return { x: x - DOT / 2, y: top - DOT / 2, width: DOT, height: DOT };
  };
  const pairs = points.map(({ bits, codedBits, y }) => ({ full: rect(bits, y), hollow: rect(codedBits ?? bits, y) }));
  const taken: Rect[] = [{ x: width - GRID.right - LEGEND.width, y: 0, ...LEGEND }, ...pairs.flatMap(({ full, hollow }) => [full, hollow])];
  chart.setOption({
    series: points.flatMap(({ name }, i) => [
      {},
      {},
      {
        label: { show: true, formatter: name, color: 'currentColor', fontSize: FONT },
        labelLine: { show: true, lineStyle: { color: 'currentColor', opacity: 0.35 } },
        labelLayout({ labelRect }: { labelRect: Rect }) {
          const { full, hollow } = pairs[i]!;
          const place = free(taken, full, hollow, labelRect.width * WIDER, labelRect.height, frame);
          taken.push(place);
          return beside(full, place);
        }
      }
    ])
  });
  const svg = chart.renderToSVGString();
  chart.dispose();
  return svg;
}

/** An image that stands by itself: with a paper of its own, light or dark as the reader's system is. */
export function standalone(svg: string): string {
  const rules = ({ ink, page }: { ink: string; page: string }) => `svg { color: ${ink}; } .page { fill: ${page}; }`;
  return svg.replace(
    /^<svg[^>]*>/,
    root => `${root}
<style>${rules(PAGE.light)} @media (prefers-color-scheme: dark) { ${rules(PAGE.dark)} }</style>
<rect class="page" width="100%" height="100%"/>
`
  );
}

function legend(points: readonly Point[]): object {
  return {
    data: [...new Set(points.map(({ kind }) => kind))].map(({ name, symbol }) => ({ name, icon: symbol })),
    right: GRID.right,
    top: 0,
    selectedMode: false,
    itemGap: 24,
    itemWidth: DOT,
    itemHeight: DOT,
    textStyle: { color: 'currentColor', fontSize: FONT }
  };
}

function axes(points: readonly Point[], { name, type }: Frame): object {
  const line = { lineStyle: { color: 'currentColor', opacity: 0.4 } };
  const axis = {
    nameLocation: 'middle' as const,
    nameTextStyle: { color: 'currentColor', fontSize: FONT },
    axisLine: { show: true, ...line },
    axisTick: { show: true, ...line },
    splitLine: { show: true, lineStyle: { color: 'currentColor', opacity: 0.12 } }
  };
  const axisLabel = { color: 'currentColor', fontSize: FONT };
  const bits = points.flatMap(point => [point.bits, point.codedBits ?? point.bits]);
  return {
    xAxis: { ...axis, type: 'log', logBase: 2, ...decades(bits, 2), axisLabel, name: 'bits per element', nameGap: 30 },
    yAxis:
      type === 'value'
        ? { ...axis, type, axisLabel, name, nameGap: 52, boundaryGap: [0, '10%'] }
        : {
            ...axis,
            type,
            ...decades(
              points.map(({ y }) => y),
              10
            ),
            axisLabel: { ...axisLabel, formatter: (value: number) => `${Number(value.toPrecision(1))}` },
            name,
            nameGap: 52
          }
  };
}

/** Whole powers of the base around the values. */
function decades(values: readonly number[], base: number): { min: number; max: number } {
  const powers = values.map(value => Math.log(value) / Math.log(base));
  // Less a rounding error of the logarithm: 1000 is a power of 10.
  return { min: base ** Math.floor(Math.min(...powers) + 1e-9), max: base ** Math.ceil(Math.max(...powers) - 1e-9) };
}

/** A dotted line, a hollow dot and a full one. */
function dots({ kind: { name, symbol, color }, bits, codedBits, y }: Point): object[] {
  const pair = [
    [codedBits ?? bits, y],
    [bits, y]
  ];
  return [
    { type: 'line', silent: true, symbol: 'none', lineStyle: { color, width: 1, type: 'dotted' }, data: pair },
    {
      type: 'scatter',
      silent: true,
      symbol,
      symbolSize: 7,
      itemStyle: { color: 'transparent', borderColor: color, borderWidth: 1.5, opacity: 1 },
      data: codedBits === null ? [] : [[codedBits, y]]
    },
    { type: 'scatter', name, silent: true, symbol, symbolSize: 8, itemStyle: { color, opacity: 1 }, data: [[bits, y]] }
  ];
}

/** How ECharts is told where a label goes; one that is far from its dot is joined to it by a line. */
function beside(dot: Rect, place: Rect): object {
  const isRight = place.x > dot.x;
  const middle = place.y + place.height / 2;
  const center = [dot.x + DOT / 2, dot.y + DOT / 2];
  const edge = isRight ? place.x - 2 : place.x + place.width + 2;
  const isFar = Math.abs(middle - center[1]!) > place.height;
  return {
    x: isRight ? place.x : place.x + place.width,
    y: middle,
    align: isRight ? 'left' : 'right',
    verticalAlign: 'middle',
    ...(isFar && { labelLinePoints: [center, center, [edge, middle]] })
  };
}

/** The nearest place beside a pair of dots where a label covers nothing that lies there already; failing that, the one that covers least. */
function free(taken: readonly Rect[], right: Rect, left: Rect, width: number, height: number, frame: Frame): Rect {
  const gap = 4;
  const middle = right.y + (right.height - height) / 2;
  const places: Rect[] = [];
  for (let shift = 0; shift <= 16; shift++) {
    for (const y of shift === 0 ? [middle] : [middle - (shift * height) / 2, middle + (shift * height) / 2]) {
      const away = gap + 3 * shift;
      places.push({ x: right.x + right.width + away, y, width, height }, { x: left.x - away - width, y, width, height });
    }
  }
  const covered = ({ x, y }: Rect): number =>
    taken.reduce(
      (sum, other) =>
        sum +
        Math.max(0, Math.min(x + width, other.x + other.width) - Math.max(x, other.x)) *
          Math.max(0, Math.min(y + height, other.y + other.height) - Math.max(y, other.y)),
      0
    ) + (x < GRID.left || x + width > frame.width || y < 0 || y + height > frame.height - GRID.bottom ? width * height : 0);
  return places.find(place => covered(place) === 0) ?? places.reduce((best, place) => (covered(place) < covered(best) ? place : best));
}
