// A plot for each place: nanoseconds of a cached token by method, a bar for each context. Text and lines are drawn in currentColor, so
// that they follow a light and a dark page.
import { BarChart } from 'echarts/charts';
import { GridComponent, LegendComponent, TooltipComponent } from 'echarts/components';
import { type EChartsCoreOption, type EChartsType, init, use } from 'echarts/core';
import { SVGRenderer } from 'echarts/renderers';
import type { Plan } from './measurement.ts';
import { models, type Place, places } from './methods.ts';
import type { Cell } from './report.ts';
import { digits, integer, nanoseconds } from './text.ts';

use([BarChart, GridComponent, LegendComponent, TooltipComponent, SVGRenderer]);

/** At least 3:1 against the light and the dark page; from the shortest context to the longest. */
const CODED = ['#2f80d8', '#d9730d', '#0f9d76'];
const DENSE = ['#66717d', '#7d8793', '#929ba6'];

export class Plots {
  readonly #element: HTMLElement;
  readonly #charts = new Map<Place, EChartsType>();
  /** A second plot beside it makes one narrower. */
  readonly #resized = new ResizeObserver(() => {
    for (const chart of this.#charts.values()) chart.resize();
  });

  constructor(element: HTMLElement) {
    this.#element = element;
  }

  show(plan: Plan, cells: readonly Cell[]): void {
    for (const place of Object.keys(places) as Place[]) {
      const measured = cells.filter(cell => cell.place === place && cell.result.kind === 'measured');
      if (measured.length === 0) this.#remove(place);
      else this.#chartOf(place).setOption(option(plan, measured), { notMerge: true });
    }
  }

  #remove(place: Place): void {
    const chart = this.#charts.get(place);
    if (!chart) return;
    this.#resized.unobserve(chart.getDom());
    chart.getDom().parentElement!.remove();
    chart.dispose();
    this.#charts.delete(place);
  }

  #chartOf(place: Place): EChartsType {
    const chart = this.#charts.get(place);
    if (chart) return chart;
    const figure = document.createElement('figure');
    const caption = document.createElement('figcaption');
    const unit = document.createElement('span');
    const plot = document.createElement('div');
    unit.textContent = 'nanoseconds a cached token and KV head';
    figure.className = 'card';
    figure.style.order = String(2 * Object.keys(places).indexOf(place) + 1); // after its table
    plot.className = 'plot';
    plot.role = 'img';
    plot.ariaLabel = `${places[place]}: nanoseconds a cached token and KV head, by method`;
    caption.append(places[place], ', ', unit);
    figure.append(caption, plot);
    this.#element.append(figure);
    const made = init(plot, null, { renderer: 'svg' });
    this.#resized.observe(plot);
    this.#charts.set(place, made);
    return made;
  }
}

function option({ model, methods, budget }: Plan, cells: readonly Cell[]): EChartsCoreOption {
  const { kvHeads } = models[model];
  const label = { color: 'currentColor', fontSize: 12 };
  const value = (tokens: number, method: string): number | undefined => {
    const result = cells.find(cell => cell.tokens === tokens && cell.method === method)?.result;
    return result?.kind === 'measured' ? nanoseconds(result.milliseconds, tokens, kvHeads) : undefined;
  };
  return {
    animation: false,
    grid: {
      left: 4,
      right: 44,
      top: budget.tokens.length > 1 ? 34 : 8,
      bottom: 4,
      outerBoundsMode: 'same',
      outerBoundsContain: 'axisLabel'
    },
    legend: {
      show: budget.tokens.length > 1,
      left: 0,
      top: 0,
      itemWidth: 12,
      itemHeight: 12,
      icon: 'roundRect',
      selectedMode: false,
      textStyle: label
    },
    tooltip: {
      trigger: 'axis',
      confine: true,
      axisPointer: { type: 'none' },
      transitionDuration: 0,
      valueFormatter: (ns?: number) => (ns === undefined ? '–' : `${digits(ns)} ns`)
    },
    xAxis: {
      type: 'value',
      min: 0,
      splitNumber: 4,
      axisLabel: { ...label, hideOverlap: true },
      splitLine: { lineStyle: { color: 'currentColor', opacity: 0.15 } }
    },
    yAxis: {
      type: 'category',
      inverse: true,
      data: methods.map(({ name }) => name),
      axisTick: { show: false },
      axisLabel: { ...label, interval: 0 },
      axisLine: { lineStyle: { color: 'currentColor', opacity: 0.4 } }
    },
    series: budget.tokens.map((tokens, n) => ({
      type: 'bar',
      name: `${integer(tokens)} tokens`,
      barMaxWidth: 18,
      barCategoryGap: '28%',
      barGap: '15%',
      itemStyle: { color: CODED[n % CODED.length], borderRadius: [0, 3, 3, 0] },
      label: {
        show: true,
        position: 'right',
        ...label,
        fontSize: 11,
        formatter: ({ value: ns }: { value?: number }) => (ns === undefined ? '' : digits(ns))
      },
      data: methods.map(({ name, kept }) => ({
        value: value(tokens, name),
        ...(typeof kept === 'string' && { itemStyle: { color: DENSE[n % DENSE.length] } })
      }))
    }))
  };
}
