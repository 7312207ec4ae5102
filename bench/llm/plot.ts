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

const WIDTH = 960;
const HEIGHT = 640;
const FONT = 12;

export function plot(points: readonly Point[]): string {
  const chart = echarts.init(null, null, { renderer: 'svg', ssr: true, width: WIDTH, height: HEIGHT });
  const line = { lineStyle: { color: 'currentColor', opacity: 0.4 } };
  const axis = {
    type: 'log' as const, nameLocation: 'middle' as const, nameTextStyle: { color: 'currentColor', fontSize: FONT },
    axisLine: { show: true, ...line }, axisTick: { show: true, ...line },
    splitLine: { show: true, lineStyle: { color: 'currentColor', opacity: 0.12 } }
  };
  const label = { color: 'currentColor', fontSize: FONT };
  const klds = points.map(({ kld }) => Math.log10(kld));
  chart.setOption({
    animation: false,
    grid: { left: 72, right: 24, top: 16, bottom: 52 },
    xAxis: { ...axis, axisLabel: label, logBase: 2, name: 'bits per element', nameGap: 30, min: 1, max: 2 ** Math.ceil(Math.log2(Math.max(...points.map(({ bits }) => bits)))) },
    yAxis: {
      ...axis, name: 'mean KLD, nats', nameGap: 52,
      axisLabel: { ...label, formatter: (value: number) => `${Number(value.toPrecision(1))}` },
      min: 10 ** Math.floor(Math.min(...klds)), max: 10 ** Math.ceil(Math.max(...klds))
    },
    series: points.flatMap(({ name, color, bits, codedBits, kld }) => [
      { type: 'line', silent: true, symbol: 'none', lineStyle: { color, width: 1, type: 'dotted' }, data: [[codedBits ?? bits, kld], [bits, kld]] },
      { type: 'scatter', silent: true, symbolSize: 7, itemStyle: { color: 'transparent', borderColor: color, borderWidth: 1.5 }, data: codedBits === null ? [] : [[codedBits, kld]] },
      {
        type: 'scatter', silent: true, symbolSize: 8, itemStyle: { color }, data: [[bits, kld]],
        label: { show: true, formatter: name, position: 'right', ...label },
        labelLayout: { moveOverlap: 'shiftY' },
        labelLine: { show: true, length2: 4, lineStyle: { color, opacity: 0.6 } }
      }
    ])
  });
  const svg = chart.renderToSVGString();
  chart.dispose();
  return svg;
}
