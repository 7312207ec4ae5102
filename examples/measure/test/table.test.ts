// Rows for BENCHMARKS.md, and files that are none.
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { FORMAT, type Report } from '../src/report.ts';
import { readReport, tableOf } from '../table.ts';

const measured = (milliseconds: number) =>
  ({ kind: 'measured', milliseconds, leastMilliseconds: milliseconds, samples: 5, layers: 1, walks: 1, bytes: 1, error: 0.01 }) as const;

const report: Report = {
  format: FORMAT,
  version: '0.1.0',
  commit: 'abc1234',
  date: '2026-01-01T00:00:00.000Z',
  seconds: 1,
  stopped: false,
  hidden: false,
  model: 'Llama 3.2 1B',
  device: 'a phone',
  browser: { userAgent: 'Mozilla/5.0 (Android 16) Gecko Firefox/150.0', cores: 8, isolated: true },
  facts: {
    wasm: { variant: 'simd128' },
    gpu: { vendor: 'arm', architecture: 'valhall', device: '', description: 'arm', software: false, clock: 'wall clock' }
  },
  cells: [
    { place: 'webgpu', tokens: 4096, method: 'f16', result: measured(2) },
    { place: 'webgpu', tokens: 4096, method: 'nsn2', result: measured(0.5) },
    { place: 'webgpu', tokens: 4096, method: 'nsn1', result: { kind: 'failed', reason: 'off' } },
    { place: 'webgpu', tokens: 16_384, method: 'f16', result: { kind: 'missing', reason: 'memory' } },
    { place: 'wasm', tokens: 4096, method: 'nsn1', result: measured(0.01234) }
  ]
};

group('table', test => {
  test('has a row for every place and context with a time, in microseconds and against f16', () => {
    const rows = tableOf([report])
      .split('\n')
      .slice(2)
      .map(row => row.replace(/ +/g, ' '));
    assert.equal(rows, [
      `| a phone, Android | Firefox 150 | WebAssembly simd128 | Llama 3.2 1B | abc1234 | 4,096 |${' – |'.repeat(11)} 12.3 | – |`,
      `| a phone, Android | Firefox 150 | WebGPU: arm valhall, wall clock | Llama 3.2 1B | abc1234 | 4,096 | 2,000 |${' – |'.repeat(8)} 500 | 4.00 | wrong | – |`
    ]);
  });

  test('is not made of files that are no such report', () => {
    const change = (changes: object): string => JSON.stringify({ ...report, ...changes });
    for (const [text, message] of [
      ['{', /^"a\.json" expected JSON, got /],
      ['null', /^"a\.json" expected format nsnquant-measure-1, got undefined$/],
      [change({ format: 'x' }), /expected format nsnquant-measure-1, got x$/],
      [change({ device: 7 }), /expected device as text, got number$/],
      [change({ model: 'toString' }), /expected model Llama 3\.2 1B or Llama 3\.1 8B, got toString$/],
      [change({ browser: null }), /expected browser\.userAgent as text, got undefined$/],
      [change({ facts: { wasm: null, gpu: null } }), /expected facts\.wasm\.variant as text, got null$/],
      [change({ facts: { ...report.facts, gpu: { vendor: 1 } } }), /expected facts\.gpu as texts, got/],
      [change({ cells: {} }), /expected a list of cells, got object$/],
      [change({ cells: [{ ...report.cells[0], place: 'constructor' }] }), /cells\[0\]\.place wasm or webgpu, got constructor$/],
      [change({ cells: [{ ...report.cells[0], tokens: 0 }] }), /cells\[0\]\.tokens of at least 1, got 0$/],
      [change({ cells: [{ ...report.cells[0], method: '| x' }] }), /cells\[0\]\.method f16, .*, got x$/],
      [
        change({ cells: [{ ...report.cells[0], result: { kind: 'measured', milliseconds: '1' } }] }),
        /milliseconds as a number above 0, got 1$/
      ],
      [change({ cells: [{ ...report.cells[0], result: null }] }), /result\.kind measured, failed or missing, got undefined$/]
    ] as const) {
      assert.throws(
        () => readReport('a.json', text),
        (error: Error) => message.test(error.message) || assert.match(error.message, message)
      );
    }
  });
});
