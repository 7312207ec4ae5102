// The report's two plots as SVG text. Text and lines are drawn in currentColor, so that one picture serves a light and a dark page.
import * as echarts from 'echarts';

export interface Point {
  name: string;
  color: string;
  y: number;
  /** Bits with everything counted: a full dot. */
  bits: number;
  /** Bits of coded tokens alone: a hollow dot beside it. */
  codedBits: number | null;
}

export interface Axis {
  name: string;
  type: 'value' | 'log';
}

const WIDTH = 560;
const HEIGHT = 400;
const GRID = { left: 64, right: 20, top: 20, bottom: 56 };
const FONT = 13;
const DOT = 11; // diameter in pixels

export function plot(points: readonly Point[], yAxis: Axis): string {
  const chart = echarts.init(null, null, { renderer: 'svg', ssr: true, width: WIDTH, height: HEIGHT });
  const xs = points.flatMap(({ bits, codedBits }) => [bits, codedBits ?? bits]);
  const ys = points.map(({ y }) => y);
  const line = { lineStyle: { color: 'currentColor', opacity: 0.45 } };
  const shared = {
    axisLabel: { color: 'currentColor', fontSize: FONT },
    axisLine: { show: true, ...line },
    axisTick: { show: true, ...line },
    splitLine: { show: true, lineStyle: { color: 'currentColor', opacity: 0.12 } },
    nameLocation: 'middle' as const,
    nameTextStyle: { color: 'currentColor', fontSize: FONT }
  };
  chart.setOption({
    animation: false,
    grid: GRID,
    xAxis: {
      ...shared,
      type: 'log',
      logBase: 2,
      name: 'bits per element',
      nameGap: 32,
      min: 2 ** Math.floor(Math.log2(Math.min(...xs))),
      max: 2 ** Math.ceil(Math.log2(Math.max(...xs)))
    },
    yAxis: {
      ...shared,
      type: yAxis.type,
      name: yAxis.name,
      nameGap: 46,
      // A tenth of room above for the labels.
      boundaryGap: [0, '10%'],
      ...(yAxis.type === 'log' && { min: 10 ** Math.floor(Math.log10(Math.min(...ys))), max: 10 ** Math.ceil(Math.log10(Math.max(...ys))) })
    },
    series: points.flatMap(({ color, y, bits, codedBits }) => [
      {
        type: 'line',
        silent: true,
        symbol: 'none',
        lineStyle: { color, width: 1.5, type: 'dotted' },
        data: [
          [codedBits ?? bits, y],
          [bits, y]
        ]
      },
      {
        type: 'scatter',
        symbolSize: DOT - 2,
        silent: true,
        data: codedBits === null ? [] : [[codedBits, y]],
        itemStyle: { color: 'transparent', borderColor: color, borderWidth: 2, opacity: 1 }
      },
      { type: 'scatter', symbolSize: DOT, itemStyle: { color, opacity: 1 }, data: [[bits, y]] }
    ])
  });

  // Labels come second: only now does the chart know where the dots are.
  const at = (x: number, y: number): [number, number] => chart.convertToPixel('grid', [x, y]) as [number, number];
  const places = placeLabels(points.map(({ name, bits, codedBits, y }) => ({ text: name, dots: [at(bits, y), at(codedBits ?? bits, y)] })));
  chart.setOption({
    series: points.flatMap(({ name }, i) => [
      {},
      {},
      {
        label: { show: true, formatter: name, color: 'currentColor', fontSize: FONT, opacity: 1, ...places[i]! }
      }
    ])
  });
  const svg = chart.renderToSVGString();
  chart.dispose();
  return svg;
}

interface Box {
  left: number;
  right: number;
  top: number;
  bottom: number;
}

/**
 * Where each label goes: the first of several places around its full dot that stays inside the grid and is clear of every
 * dot and of the labels placed before; above the dot where there is none.
 */
function placeLabels(
  items: readonly { text: string; dots: [x: number, y: number][] }[]
): { position: 'left'; align: 'left'; offset: [number, number] }[] {
  const frame: Box = { left: GRID.left, right: WIDTH - GRID.right, top: GRID.top, bottom: HEIGHT - GRID.bottom };
  // The dotted line between an item's two dots counts as taken too.
  const taken: Box[] = items.map(({ dots }) => ({
    left: Math.min(...dots.map(([x]) => x)) - DOT / 2,
    right: Math.max(...dots.map(([x]) => x)) + DOT / 2,
    top: dots[0]![1] - DOT / 2,
    bottom: dots[0]![1] + DOT / 2
  }));
  const gap = DOT / 2 + 4;
  return items.map(({ text, dots: [[x, y]] }) => {
    const width = text.length * FONT * 0.56,
      height = FONT * 1.2; // sans-serif, generous
    const candidates: [left: number, top: number][] = [
      [x + gap, y - height / 2],
      [x - gap - width, y - height / 2],
      [x - width / 2, y - gap - height],
      [x - width / 2, y + gap],
      [x - width, y - gap - height],
      [x - width, y + gap],
      [x, y - gap - height],
      [x, y + gap],
      ...[2, 3, 4].flatMap((row): [number, number][] => [
        [x - width / 2, y - gap - row * height],
        [x - width / 2, y + gap + (row - 1) * height]
      ])
    ];
    const box = ([left, top]: [number, number]): Box => ({ left, right: left + width, top, bottom: top + height });
    const free = candidates
      .map(box)
      .find(
        b =>
          b.left >= frame.left &&
          b.right <= frame.right &&
          b.top >= frame.top &&
          b.bottom <= frame.bottom &&
          !taken.some(other => b.left < other.right && other.left < b.right && b.top < other.bottom && other.top < b.bottom)
      );
    const chosen = free ?? box(candidates[2]!);
    taken.push(chosen);
    // ECharts puts a 'left' label's right edge at the dot; aligned left it starts there, and the offset does the rest.
    return { position: 'left', align: 'left', offset: [chosen.left - x + DOT / 2 + 5, (chosen.top + chosen.bottom) / 2 - y] };
  });
}
