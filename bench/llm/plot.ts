// KL divergence against bits as SVG text. Text and lines are drawn in currentColor, so that one picture serves a light and a dark page.
import * as echarts from 'echarts';

export interface Point {
  readonly name: string;
  readonly color: string;
  /** Everything counted: a full dot. */
  readonly bits: number;
  /** Coded tokens alone: a hollow dot beside it. */
  readonly codedBits: number | null;
  readonly kld: number;
}

interface Rect {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}

const WIDTH = 960;
const HEIGHT = 720;
const FONT = 12;
const GRID = { left: 72, right: 24, top: 16, bottom: 52 };
const DOT = 9;
/** Letters of a wide font against those that the layout reckons with. */
const WIDER = 1.12;

export function plot(points: readonly Point[]): string {
  const chart = echarts.init(null, null, { renderer: 'svg', ssr: true, width: WIDTH, height: HEIGHT });
  const line = { lineStyle: { color: 'currentColor', opacity: 0.4 } };
  const axis = {
    type: 'log' as const,
    nameLocation: 'middle' as const,
    nameTextStyle: { color: 'currentColor', fontSize: FONT },
    axisLine: { show: true, ...line },
    axisTick: { show: true, ...line },
    splitLine: { show: true, lineStyle: { color: 'currentColor', opacity: 0.12 } }
  };
  const label = { color: 'currentColor', fontSize: FONT };
  const klds = points.map(({ kld }) => Math.log10(kld));
  const bits = points.flatMap(point => [point.bits, point.codedBits ?? point.bits]);
  const x = { min: 2 ** Math.floor(Math.log2(Math.min(...bits))), max: 2 ** Math.ceil(Math.log2(Math.max(...bits))) };
  const y = { min: 10 ** Math.floor(Math.min(...klds)), max: 10 ** Math.ceil(Math.max(...klds)) };
  const share = (value: number, { min, max }: typeof x): number => Math.log(value / min) / Math.log(max / min);
  const pixels = (value: number, kld: number): Rect => ({
    x: GRID.left + share(value, x) * (WIDTH - GRID.left - GRID.right) - DOT / 2,
    y: HEIGHT - GRID.bottom - share(kld, y) * (HEIGHT - GRID.top - GRID.bottom) - DOT / 2,
    width: DOT,
    height: DOT
  });
  const taken = points.flatMap(point => [pixels(point.bits, point.kld), pixels(point.codedBits ?? point.bits, point.kld)]);
  chart.setOption({
    animation: false,
    grid: GRID,
    xAxis: { ...axis, ...x, axisLabel: label, logBase: 2, name: 'bits per element', nameGap: 30 },
    yAxis: {
      ...axis,
      ...y,
      axisLabel: { ...label, formatter: (value: number) => `${Number(value.toPrecision(1))}` },
      name: 'mean KLD, nats',
      nameGap: 52
    },
    series: points.flatMap(({ name, color, bits, codedBits, kld }) => [
      {
        type: 'line',
        silent: true,
        symbol: 'none',
        lineStyle: { color, width: 1, type: 'dotted' },
        data: [
          [codedBits ?? bits, kld],
          [bits, kld]
        ]
      },
      {
        type: 'scatter',
        silent: true,
        symbolSize: 7,
        itemStyle: { color: 'transparent', borderColor: color, borderWidth: 1.5 },
        data: codedBits === null ? [] : [[codedBits, kld]]
      },
      {
        type: 'scatter',
        silent: true,
        symbolSize: 8,
        itemStyle: { color },
        data: [[bits, kld]],
        label: { show: true, formatter: name, ...label },
        labelLine: { show: true, lineStyle: { color: 'currentColor', opacity: 0.35 } },
        labelLayout: ({ labelRect: { width, height } }: { labelRect: Rect }) => {
          const dot = pixels(bits, kld);
          const place = free(taken, dot, pixels(codedBits ?? bits, kld), width * WIDER, height);
          taken.push(place);
          const middle = place.y + place.height / 2;
          const edge = place.x > dot.x ? place.x - 2 : place.x + place.width + 2;
          const far = Math.abs(middle - dot.y - DOT / 2) > height;
          return {
            x: place.x > dot.x ? place.x : place.x + place.width,
            y: middle,
            align: place.x > dot.x ? 'left' : 'right',
            verticalAlign: 'middle',
            ...(far && {
              labelLinePoints: [
                [dot.x + DOT / 2, dot.y + DOT / 2],
                [dot.x + DOT / 2, dot.y + DOT / 2],
                [edge, middle]
              ]
            })
          };
        }
      }
    ])
  });
  const svg = chart.renderToSVGString();
  chart.dispose();
  return svg;
}

/** The nearest place beside a pair of dots where a label covers nothing that lies there already; failing that, the one that covers least. */
function free(taken: readonly Rect[], right: Rect, left: Rect, width: number, height: number): Rect {
  const gap = 4;
  const middle = right.y + (right.height - height) / 2;
  const places: Rect[] = [];
  for (let shift = 0; shift <= 16; shift++) {
    for (const y of shift === 0 ? [middle] : [middle - (shift * height) / 2, middle + (shift * height) / 2]) {
      const away = gap + 3 * shift;
      places.push({ x: right.x + right.width + away, y, width, height }, { x: left.x - away - width, y, width, height });
    }
  }
  const covered = ({ x, y, width, height }: Rect): number =>
    taken.reduce(
      (sum, other) =>
        sum +
        Math.max(0, Math.min(x + width, other.x + other.width) - Math.max(x, other.x)) *
          Math.max(0, Math.min(y + height, other.y + other.height) - Math.max(y, other.y)),
      0
    ) + (x < GRID.left || x + width > WIDTH || y < 0 || y + height > HEIGHT - GRID.bottom ? width * height : 0);
  return places.find(place => covered(place) === 0) ?? places.reduce((best, place) => (covered(place) < covered(best) ? place : best));
}
