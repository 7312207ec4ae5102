// Formats, statistics, options: what the numbers are made of.

import { sample } from '@nsnquant/gguf';
import { codecs } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { random } from '../../../tools/numbers.ts';
import { NSN, OTHER, PAGE, plot } from '../../plot.ts';
import { formats, type Side } from '../caches/formats.ts';
import { methodName, parseMethod, parseMethods } from '../caches/methods.ts';
import { WindowedCache } from '../caches/windowed.ts';
import { windowChunks } from '../evaluate.ts';
import { hide } from '../haystack.ts';
import { drawFrontier, type Result } from '../quality-report.ts';
import { bootstrap, logProbability, quantile, summarize } from '../stats.ts';

/** f32 [tokens, 64], normal. */
function normalWindow(seed: number, tokens = 64): Float32Array {
  const next = random(seed);
  return Float32Array.from({ length: tokens * 64 }, () => Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next()));
}

function relativeError(name: string, side: Side = 'keys'): number {
  const format = formats.get(name)!;
  const exact = normalWindow(1, format.window);
  const x = exact.slice();
  format.roundTrip(x, 64, side);
  return x.reduce((sum, value, i) => sum + (value - exact[i]!) ** 2, 0) / exact.reduce((sum, value) => sum + value * value, 0);
}

group('formats', test => {
  test('what is raw may be cropped anywhere, what is coded only behind it', () => {
    const heads = { kvHeads: 1, queryHeads: 1, headDim: 64 };
    const filled = (name: string, window = Infinity) => {
      const config = { layers: 1, ...heads, attention: [{ ...heads, window }] };
      const format = formats.get(name)!;
      const cache = new WindowedCache(config as never, undefined as never, { capacity: 240, keys: format, values: format, sinks: 0 });
      for (let n = 0; n < 3; n++) cache.append(0, normalWindow(n).subarray(0, 60 * 64), normalWindow(n).subarray(0, 60 * 64));
      return cache;
    };
    const raw = filled('raw');
    const before = raw.held(0).keys.slice(0, 50 * 64);
    raw.crop(50);
    assert.is(raw.length, 50);
    assert.equal(raw.held(0).keys, before);
    raw.append(0, normalWindow(3), normalWindow(3));
    assert.is(raw.length, 114);
    assert.throws(() => filled('q8_0').crop(50), /^"length" expected integer from 64 to 180, got 50$/);
    const long = filled('kvarn2_g128');
    long.append(0, normalWindow(3).subarray(0, 60 * 64), normalWindow(3).subarray(0, 60 * 64));
    assert.throws(() => long.crop(127), /^"length" expected integer from 128 to 240, got 127$/);
    // 128 tokens coded, 112 in f16.
    assert.is(long.codedBits, (2.5 + 2.625) / 2);
    assert.is(long.bytes, (128 * 64 * (2.5 + 2.625)) / 8 + 112 * 64 * 2 * 2);
    // Of 180 tokens a query at position 180 sees those from 117 on: the first window of 64 is given back.
    assert.is(filled('q8_0').bytes - filled('q8_0', 64).bytes, 2 * formats.get('q8_0')!.windowBytes(64, 'keys'));
  });

  test('bits with metadata are what the formats are known for', () => {
    const bits = (name: string, side: Side = 'keys'): number => {
      const format = formats.get(name)!;
      return (format.windowBytes(64, side) * 8) / (format.window * 64);
    };
    assert.equal(
      ['q8_0', 'q4_0', 'kivi2', 'turbo2', 'turbo3', 'turbo4', 'trellis2', 'kvarn2', 'kvarn4'].map(name => bits(name)),
      [8.5, 4.5, 3, 2.25, 3.25, 4.25, 2.25, 2.75, 4.75]
    );
    // One scale and one minimum a channel of keys or token of values, one scale for the others.
    assert.equal([bits('kvarn2_g128', 'keys'), bits('kvarn2_g128', 'values')], [2.5, 2.625]);
  });
  test('turbo reaches the mean squared errors of Max 1960, table I', () => {
    for (const [name, expected] of [
      ['turbo2', 0.1175],
      ['turbo3', 0.03454],
      ['turbo4', 0.009497]
    ] as const) {
      const error = relativeError(name);
      assert.ok(Math.abs(error / expected - 1) < 0.08, `${name}: ${error} for ${expected}`);
    }
  });
  test('trellis2 is nearer than any code of single channels, and no nearer than 2 bits can be', () => {
    for (const side of ['keys', 'values'] as const) {
      const error = relativeError('trellis2', side);
      assert.ok(error > 2 ** -4 && error < 0.08, `${error}`);
    }
  });
  test('kvarn2 has steps five times as long as kvarn4', () => {
    for (const [two, four] of [
      ['kvarn2', 'kvarn4'],
      ['kvarn2_g128', 'kvarn4_g128']
    ] as const) {
      for (const side of ['keys', 'values'] as const) {
        const ratio = relativeError(two, side) / relativeError(four, side);
        assert.ok(Math.abs(ratio / 25 - 1) < 0.08, `${two}, ${side}: ${ratio}`);
      }
    }
  });
  test('kvarn2 codes large and small tokens of a window equally well', () => {
    for (const side of ['keys', 'values'] as const) {
      const even = relativeError('kvarn2', side);
      const exact = normalWindow(1).map((value, i) => value * 2 ** (Math.floor(i / 64) % 8));
      const x = exact.slice();
      formats.get('kvarn2')!.roundTrip(x, 64, side);
      // Of the smallest: every eighth token.
      const share = (of: (i: number) => number): number =>
        exact.reduce((sum, _, i) => sum + (Math.floor(i / 64) % 8 === 0 ? of(i) ** 2 : 0), 0);
      const error = share(i => x[i]! - exact[i]!) / share(i => exact[i]!);
      assert.ok(Math.abs(error / even - 1) < 0.15, `${side}: ${error} for ${even}`);
    }
  });
  test('what a format makes of a window depends on nothing else', () => {
    for (const format of formats.values()) {
      for (const side of ['keys', 'values'] as const) {
        const decoded = (seed: number): Float32Array => {
          const x = normalWindow(seed, format.window);
          format.roundTrip(x, 64, side);
          return x;
        };
        const first = decoded(1);
        decoded(2);
        assert.equal(decoded(1), first, format.name);
      }
    }
  });
  test('kivi2 keeps the ends of every group', () => {
    const x = Float32Array.from({ length: 64 * 64 }, (_, i) => (Math.floor(i / 64) % 4) + (i % 64));
    const exact = x.slice();
    formats.get('kivi2')!.roundTrip(x, 64, 'keys');
    assert.equal(x, exact);
  });
  test('errors fall from format to format', () => {
    const errors = ['kivi2', 'turbo2', 'trellis2', 'turbo3', 'turbo4', 'q8_0'].map(name => relativeError(name));
    assert.equal(
      errors,
      [...errors].sort((a, b) => b - a)
    );
  });
  test('a window of zeros stays zero', () => {
    for (const format of formats.values()) {
      const x = new Float32Array(format.window * 64);
      format.roundTrip(x, 64, 'values');
      assert.ok(
        x.every(value => value === 0),
        format.name
      );
    }
  });
});

group('methods', test => {
  test('names are read as they are written', () => {
    for (const name of [
      'raw',
      'nsn4/nsn2',
      'nsn2@sinks=0',
      'nsn2@sinks=0,rope=off',
      'nsn3/nsn2@balance=off',
      'nsn1@recent=2',
      'nsn3/nsn2@recent=1,balance=off',
      'q4_0+hadamard@sinks=4',
      'kivi2',
      'kvarn4_g128/kvarn2_g128@sinks=128',
      'paper2@sinks=0'
    ]) {
      assert.is(methodName(parseMethod(name)), name);
    }
    assert.equal(parseMethods('nsn2@sinks=0,rope=off,nsn4').map(methodName), ['nsn2@sinks=0,rope=off', 'nsn4']);
  });
  test('what is unknown is named', () => {
    assert.throws(() => parseMethod('nsn5'), new RegExp(`expected one of ${Object.keys(codecs).join(', ')}, .*, got nsn5`));
    assert.throws(() => parseMethod('nsn4/q8_0'), /expected keys and values of one kind, got nsn4\/q8_0/);
    assert.throws(() => parseMethod('kvarn4_g128/kvarn2'), /expected keys and values of one kind, got kvarn4_g128\/kvarn2$/);
    assert.throws(() => parseMethod('kivi2@rope=on'), /expected options sinks=N/);
    assert.throws(() => parseMethod('paper2@balance=on'), /expected options sinks=N/);
  });
  test('calls end where windows do', () => {
    assert.equal(
      [...windowChunks(200, 4)],
      [
        [0, 132],
        [132, 196],
        [196, 200]
      ]
    );
    assert.equal(
      [...windowChunks(192, 0)],
      [
        [0, 128],
        [128, 192]
      ]
    );
  });
});

group('statistics', test => {
  const next = random(3);
  const series = (f: () => number): Float64Array => Float64Array.from({ length: 4096 }, f);
  const stats = {
    nll: series(() => 3 + next()),
    rawNll: series(() => 3 + next()),
    kld: series(() => -Math.log(1 - next())),
    same: series(() => Number(next() < 0.9))
  };
  test('quantiles lie between order statistics', () =>
    assert.equal(
      [0, 0.5, 0.99, 1].map(q => quantile(Float64Array.of(4, 1, 3, 2), q)),
      [1, 2.5, 3.9699999999999998, 4]
    ));
  test('the intervals hold the summary and have the width that theory gives', () => {
    const summary = summarize(stats);
    const ci = bootstrap(stats, { draws: 500 });
    for (const key of ['ppl', 'pplRatio', 'kld', 'kldP99', 'top1'] as const)
      assert.ok(ci[key][0] <= summary[key] && summary[key] <= ci[key][1], key);
    // An exponential's mean of 4,096: 2 · 1.96 / 64.
    const width = ci.kld[1] - ci.kld[0];
    assert.ok(width > 0.045 && width < 0.08, `${width}`);
  });
  test('ln p is that of a softmax, whatever is added to the logits', () => {
    for (const shift of [0, 1000])
      assert.ok(Math.abs(logProbability(Float32Array.of(shift, shift + Math.log(3)), 1) - Math.log(0.75)) < 1e-4);
  });
  test('the same seed gives the same intervals', () => assert.equal(bootstrap(stats, { draws: 50 }), bootstrap(stats, { draws: 50 })));
});

group('haystack', test => {
  // One token a letter.
  const letters = { encode: (text: string) => [...text].map(letter => letter.codePointAt(0)!) };
  const text = (tokens: readonly number[]): string => String.fromCodePoint(...tokens);
  const book = letters.encode('abcdefghij'.repeat(200));
  const { tokens, needles } = hide(letters, book, 1500, [5, 50, 95], 4, 0);
  test('has the length that was asked for, and the book around its numbers', () => {
    assert.is(tokens.length, 1500);
    assert.is(
      text(tokens).replace(/\n\nThe secret[^\n]*\n\n/g, ''),
      text(book).slice(
        0,
        1500 -
          text(tokens)
            .match(/\n\nThe secret[^\n]*\n\n/g)!
            .join('').length
      )
    );
  });
  test('hides every number at its depth, and asks for it as it was said', () => {
    for (const { depth, question, answer } of needles) {
      const number = text(answer).trim();
      assert.match(number, /^\d{4}$/);
      const said = `${text(question).split('. ')[1]} ${number}.`;
      assert.ok(text(tokens).includes(said), said);
      // Other numbers lie around it, too.
      assert.ok(Math.abs(text(tokens).indexOf(said) / 1500 - depth / 100) < 0.13, `${text(tokens).indexOf(said)} for ${depth} %`);
    }
  });
  test('other trials hide other numbers, of other towns', () => {
    const other = hide(letters, book, 1500, [5, 50, 95], 4, 1);
    assert.not.equal(
      other.needles.map(({ answer }) => answer),
      needles.map(({ answer }) => answer)
    );
    assert.not.equal(other.needles[0]!.question, needles[0]!.question);
  });
  test('a book that is too short is refused', () =>
    assert.throws(() => hide(letters, book.slice(0, 100), 1500, [5], 4, 0), /"--lengths" expected more tokens/));
});

group('plot', test => {
  test('no label covers another', () => {
    // Ten methods in nearly one place.
    const svg = plot(
      Array.from({ length: 10 }, (_, i) => ({
        name: `method ${i}`,
        kind: OTHER,
        bits: 3 + i / 100,
        codedBits: 2.9,
        y: 0.01 + i / 1e5
      })),
      { width: 960, height: 720, name: 'mean KLD, nats', type: 'log' }
    );
    const labels = [
      ...svg.matchAll(
        /<text[^>]*?(?: x="([-\d.]+)")?[^>]*?(?: y="([-\d.]+)")?[^>]*?transform="translate\(([-\d.]+) ([-\d.]+)\)"[^>]*>method \d<\/text>/g
      )
    ].map(([, x = '0', y = '0', left, top]) => [Number(x) + Number(left), Number(y) + Number(top)] as const);
    assert.is(labels.length, 10);
    for (const [i, [x, y]] of labels.entries()) {
      for (const [otherX, otherY] of labels.slice(i + 1)) {
        assert.ok(Math.abs(y - otherY) > 10 || Math.abs(x - otherX) > 50, `${x} ${y} and ${otherX} ${otherY}`);
      }
    }
  });
});

group('frontier', test => {
  const result = (name: string, text: string, kld: number): Result => ({
    ...parseMethod(name),
    text,
    kld,
    codedBits: name === 'raw' ? 32 : 2,
    bitsPerElement: 3,
    ...({} as Pick<Result, 'ppl' | 'pplRatio' | 'kldP99' | 'top1' | 'ci'>)
  });
  const svg = drawFrontier([result('raw', 'a', 0), result('nsn2', 'a', 0.02), result('turbo2', 'a', 0.1), result('nsn2', 'b', 0.04)]);
  const shapes = (color: string): Set<string> =>
    new Set(
      [...svg.matchAll(/<path [^>]*>/g)]
        .filter(([path]) => path.includes(`fill="${color}"`))
        .map(([path]) => / d="([^"]*)"/.exec(path)![1]!)
    );
  test('has every method that differs from raw once, and says which are ours', () => {
    const texts = [...svg.matchAll(/<text[^>]*>([^<]*)<\/text>/g)].map(([, text]) => text);
    for (const text of ['nsn2', 'turbo2', NSN.name, OTHER.name]) assert.is(texts.filter(other => other === text).length, 1, text);
    assert.not.ok(texts.includes('raw'));
  });
  test('tells ours from others without their colors', () => {
    assert.ok(shapes(NSN.color).size > 0 && shapes(OTHER.color).size > 0);
    assert.equal(
      [...shapes(NSN.color)].filter(shape => shapes(OTHER.color).has(shape)),
      []
    );
  });
  test('has ink and paper for light and for dark pages', () => {
    const { light, dark } = PAGE;
    const style = /<style>(.*)<\/style>/.exec(svg)![1]!;
    const [before, after] = style.split('@media (prefers-color-scheme: dark)') as [string, string];
    assert.ok(before.includes(light.ink) && before.includes(light.page) && after.includes(dark.ink) && after.includes(dark.page), style);
  });
  test('is refused where there is nothing to draw', () =>
    assert.throws(() => drawFrontier([result('raw', 'a', 0)]), /^"--plot" expected a method/));
});

group('sample', test => {
  const logits = Float32Array.of(1, 3, 2, 0);
  test('temperature 0 takes the likeliest', () => assert.is(sample(logits, { temperature: 0, topP: 1, random: () => 0.99 }), 1));
  test('top-p leaves out the unlikely', () => {
    const seen = new Set([0, 0.3, 0.6, 0.999].map(x => sample(logits, { temperature: 1, topP: 0.7, random: () => x })));
    assert.equal([...seen].sort(), [1, 2]);
  });
  test('tokens are drawn as often as they are likely', () => {
    const next = random(1);
    let twos = 0;
    for (let i = 0; i < 10000; i++) twos += Number(sample(logits, { temperature: 1, topP: 1, random: next }) === 2);
    const expected = Math.exp(2) / [...logits].reduce((sum, logit) => sum + Math.exp(logit), 0);
    assert.ok(Math.abs(twos / 10000 - expected) < 0.015, `${twos / 10000} for ${expected}`);
  });
});
