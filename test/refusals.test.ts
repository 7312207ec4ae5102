// Every refusal by a cache and of a file, word for word with its class, on every backend; and what it leaves behind: nothing.

import { type CacheOptions, KVCache } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { sameAttention } from './attention.ts';
import { backends } from './backends.ts';
import { refuses, sameBits } from './compare.ts';
import { checksumOf, dataOf, fileOf, withChecksum, withHeader } from './pages.ts';
import {
  appendTo,
  beyond,
  cacheOn,
  filled,
  options,
  queries,
  type Refusals,
  refusesAll,
  refusesAndKeeps,
  rope,
  rows,
  TOKEN,
  withAt
} from './refusing.ts';

/** Arrays that share a buffer of so many numbers. */
const roomOf = (numbers: number) => {
  const buffer = new ArrayBuffer(4 * numbers);
  return (from: number, length: number) => new Float32Array(buffer, 4 * from, length);
};

for (const tested of backends) {
  group(`refusals by a cache on ${tested.name}`, test => {
    test('append refuses data of the wrong kind or length and changes nothing', () =>
      refusesAndKeeps(tested, (_, s) => [
        ...(
          [
            [[1, 2], 'Array'],
            [null, 'null'],
            [undefined, 'undefined'],
            [new Float64Array(TOKEN), 'Float64Array'],
            [new ArrayBuffer(8), 'ArrayBuffer'],
            ['x', 'string']
          ] as const
        ).flatMap(
          ([data, kind]): Refusals => [
            [
              () => s.append(0, data as never, rows(1)),
              TypeError,
              `"keys" expected Float32Array, Uint16Array or Float16Array, got ${kind}`
            ],
            [
              () => s.append(0, rows(1), data as never),
              TypeError,
              `"values" expected Float32Array, Uint16Array or Float16Array, got ${kind}`
            ]
          ]
        ),
        ...[0, 1, TOKEN - 1, TOKEN + 1].map((length): Refusals[number] => [
          () => s.append(0, new Float32Array(length), rows(1)),
          RangeError,
          `"keys" expected length a multiple of 32 (1 head × 32), got ${length}`
        ]),
        [() => s.append(0, rows(2), rows(1)), RangeError, '"values" expected length 64 (2 tokens × 1 head × 32), got 32'],
        [() => s.append(1, rows(1), new Uint16Array(TOKEN - 1)), RangeError, '"values" expected length 32 (1 token × 1 head × 32), got 31'],
        [() => s.append(1, rows(1), rows(2)), RangeError, '"values" expected length 32 (1 token × 1 head × 32), got 64']
      ]));

    test('append refuses what is not finite or beyond f16, tells where, and changes nothing', () =>
      refusesAndKeeps(tested, (_, s) => [
        ...beyond.flatMap(
          (value): Refusals =>
            [0, 37, 2 * TOKEN - 1].flatMap(
              (at): Refusals => [
                [
                  () => s.append(0, withAt(rows(2), at, value), rows(2)),
                  RangeError,
                  `"keys[${at}]" expected number from −65504 to 65504, got ${value}`
                ],
                [
                  () => s.append(1, rows(2), withAt(rows(2), at, value)),
                  RangeError,
                  `"values[${at}]" expected number from −65504 to 65504, got ${value}`
                ]
              ]
            )
        ),
        ...(
          [
            [0x7c00, 'infinity'],
            [0xfc00, 'infinity'],
            [0x7c01, 'NaN'],
            [0x7e00, 'NaN'],
            [0xffff, 'NaN']
          ] as const
        ).flatMap(
          ([bits, kind]): Refusals => [
            [
              () => s.append(0, withAt(new Uint16Array(TOKEN), 31, bits), rows(1)),
              RangeError,
              `"keys[31]" expected finite f16, got ${kind}`
            ],
            [
              () => s.append(0, rows(1), withAt(new Uint16Array(TOKEN), 5, bits)),
              RangeError,
              `"values[5]" expected finite f16, got ${kind}`
            ]
          ]
        )
      ]));

    const Half = (globalThis as unknown as { Float16Array?: new (length: number) => { fill(value: number): never } }).Float16Array;
    if (Half) {
      test('append refuses a Float16Array that is not finite and changes nothing', () =>
        refusesAndKeeps(tested, (_, s) =>
          beyond.slice(0, 3).flatMap(
            (value): Refusals => [
              [
                () => s.append(0, new Half(TOKEN).fill(value), rows(1)),
                RangeError,
                `"keys[0]" expected number from −65504 to 65504, got ${value}`
              ],
              [
                () => s.append(0, rows(1), new Half(TOKEN).fill(value)),
                RangeError,
                `"values[0]" expected number from −65504 to 65504, got ${value}`
              ]
            ]
          )
        ));
    } else {
      test.skip('append refuses a Float16Array that is not finite and changes nothing', 'this engine has no Float16Array');
    }

    test('an unknown layer is refused by every method that takes one, and nothing changes', () =>
      refusesAndKeeps(tested, (cache, s) =>
        (
          [
            [-1, RangeError, 'integer from 0 to 1, got -1'],
            [2, RangeError, 'integer from 0 to 1, got 2'],
            [1.5, RangeError, 'integer from 0 to 1, got 1.5'],
            [NaN, RangeError, 'integer from 0 to 1, got NaN'],
            ['x', TypeError, 'integer, got string'],
            [undefined, TypeError, 'integer, got undefined']
          ] as const
        ).flatMap(
          ([layer, type, message]): Refusals => [
            [() => s.append(layer as never, rows(1), rows(1)), type, `"layer" expected ${message}`],
            [() => s.attend(layer as never, queries(1)), type, `"layer" expected ${message}`],
            [() => cache.attend([s], layer as never, [queries(1)]), type, `"layer" expected ${message}`],
            [() => s.decode(layer as never), type, `"layer" expected ${message}`]
          ]
        )
      ));

    test('append refuses more than the capacity or maxAppend and changes nothing', async () => {
      await refusesAndKeeps(tested, (_, s) => [
        [() => s.append(0, rows(61), rows(61)), RangeError, '"capacity" expected at most 200 tokens, got 201 (140 held + 61 more)'],
        [() => s.append(1, rows(200), rows(200)), RangeError, '"capacity" expected at most 200 tokens, got 340 (140 held + 200 more)'],
        [() => s.append(0, rows(201), rows(201)), RangeError, '"keys" expected at most 200 tokens a call (option "maxAppend"), got 201']
      ]);
      const small = cacheOn(tested, { maxAppend: 1 }).sequence();
      await refuses(
        () => small.append(0, rows(2), rows(2)),
        RangeError,
        '"keys" expected at most 1 token a call (option "maxAppend"), got 2'
      );
      assert.is((await small.decode(0)).keys.length, 0);
    });

    test('decode refuses positions that are not there and places of the wrong kind or length, and writes nothing', () =>
      refusesAndKeeps(tested, (_, s) => {
        const out = { keys: new Float32Array(TOKEN).fill(7), values: new Float32Array(TOKEN).fill(7) };
        const one = { from: 3, to: 4 };
        const room = roomOf(2 * TOKEN);
        return [
          [() => s.decode(0, { from: -1 }), RangeError, '"from" expected integer from 0 to 140, got -1'],
          [() => s.decode(0, { from: 141 }), RangeError, '"from" expected integer from 0 to 140, got 141'],
          [() => s.decode(0, { from: '0' as never }), TypeError, '"from" expected integer, got string'],
          [() => s.decode(0, { from: 9, to: 8 }), RangeError, '"to" expected integer from 9 to 140, got 8'],
          [() => s.decode(0, { to: 141 }), RangeError, '"to" expected integer from 0 to 140, got 141'],
          [() => s.decode(0, { ...one, layout: 'rows' as never }), RangeError, '"layout" expected tokens-first or heads-first, got rows'],
          [() => s.decode(0, null as never), TypeError, '"options" expected object, got null'],
          [() => s.decode(0, { length: 1 } as never), TypeError, '"options" expected only from, to, out and layout, got length'],
          [() => s.decode(0, { ...one, out: [] as never }), TypeError, '"out" expected object, got Array'],
          [
            () => s.decode(0, { ...one, out: { ...out, tokens: 1 } as never }),
            TypeError,
            '"out" expected only keys and values, got tokens'
          ],
          [
            () => s.decode(0, { ...one, out: { keys: out.keys } as never }),
            TypeError,
            '"out.values" expected Float32Array, Uint16Array or Float16Array, got undefined'
          ],
          [
            () => s.decode(0, { ...one, out: { ...out, keys: new Float64Array(TOKEN) as never } }),
            TypeError,
            '"out.keys" expected Float32Array, Uint16Array or Float16Array, got Float64Array'
          ],
          [
            () => s.decode(0, { from: 3, to: 5, out }),
            RangeError,
            `"out.keys" expected length ${2 * TOKEN} (2 tokens × 1 head × ${TOKEN}), got ${TOKEN}`
          ],
          [
            () => s.decode(0, { ...one, out: { ...out, values: new Uint16Array(TOKEN + 1) } }),
            RangeError,
            `"out.values" expected length ${TOKEN} (1 token × 1 head × ${TOKEN}), got ${TOKEN + 1}`
          ],
          [
            () => s.decode(0, { ...one, out: { keys: room(0, TOKEN), values: room(TOKEN - 1, TOKEN) } }),
            RangeError,
            '"out.values" expected none of the bytes of "out.keys", got some of them'
          ]
        ];
      }));

    test('attend refuses results over what is to be read or over each other, and takes them side by side', async () => {
      const { cache, sequence } = filled(tested);
      const twin = sequence.fork();
      const [one, both] = [queries(5), [queries(3), queries(5)]];
      const { length } = one;
      const place = (name: string) =>
        `"out" expected the place of "${name}", rows of as many bytes, or none of its bytes, got some of them`;
      const apart = (name: string) => `"lse" expected none of the bytes of "${name}", got some of them`;
      const room = roomOf(3 * length);
      await refusesAll([
        [() => sequence.attend(0, room(0, length), { out: room(1, length) }), RangeError, place('query')],
        [() => sequence.attend(0, room(length, length), { out: room(1, length) }), RangeError, place('query')],
        [() => sequence.attend(0, room(0, length), { out: new Uint16Array(room(0, 1).buffer, 0, length) }), RangeError, place('query')],
        [
          () => cache.attend([sequence, twin], 0, [room(0, length), room(0, length)], { out: room(0, 2 * length) }),
          RangeError,
          place('queries[1]')
        ],
        [() => sequence.attend(0, room(0, length), { lse: room(length - 1, 10) }), RangeError, apart('query')],
        [() => sequence.attend(0, room(9, length), { lse: room(0, 10) }), RangeError, apart('query')],
        [() => cache.attend([sequence, twin], 0, [queries(3), room(0, length)], { lse: room(0, 16) }), RangeError, apart('queries[1]')],
        [() => sequence.attend(0, one, { out: room(0, length), lse: room(length - 1, 10) }), RangeError, apart('out')],
        [() => sequence.attend(0, one, { out: room(9, length), lse: room(0, 10) }), RangeError, apart('out')]
      ]);
      const lse = new Float32Array(16);
      const expected = (await cache.attend([sequence, twin], 0, both, { lse }).read()).slice();
      const [first, second] = [room(0, both[0]!.length), room(both[0]!.length, length)];
      both.forEach((query, n) => [first, second][n]!.set(query));
      const out = room(0, first.length + length);
      const logs = room(out.length, 16);
      await cache.attend([sequence, twin], 0, [first, second], { out, lse: logs }).read();
      sameBits('results in the place of queries', out, expected);
      sameBits('log-sum-exps behind them', logs, lse);
    });

    test('attend refuses queries of the wrong kind, length or content and changes nothing', () =>
      refusesAndKeeps(tested, (_, s) => [
        [() => s.attend(0, [1] as never), TypeError, '"query" expected Float32Array, Uint16Array or Float16Array, got Array'],
        [() => s.attend(0, undefined as never), TypeError, '"query" expected Float32Array, Uint16Array or Float16Array, got undefined'],
        [
          () => s.attend(0, new Float64Array(2 * TOKEN) as never),
          TypeError,
          '"query" expected Float32Array, Uint16Array or Float16Array, got Float64Array'
        ],
        [() => s.attend(0, new Uint16Array(65)), RangeError, '"query" expected length a multiple of 64 (2 heads × 32), got 65'],
        [() => s.attend(0, withAt(new Uint16Array(64), 7, 0xfc00)), RangeError, '"query[7]" expected finite f16, got infinity'],
        [() => s.attend(0, withAt(new Uint16Array(64), 7, 0x7e00)), RangeError, '"query[7]" expected finite f16, got NaN'],
        [() => s.attend(0, queries(1), { layout: 1 as never }), TypeError, '"layout" expected string, got number'],
        [
          () => s.attend(0, queries(1), { layout: 'channels-first' as never }),
          RangeError,
          '"layout" expected tokens-first or heads-first, got channels-first'
        ],
        ...[0, 63, 65].map((length): Refusals[number] => [
          () => s.attend(0, new Float32Array(length)),
          RangeError,
          `"query" expected length a multiple of 64 (2 heads × 32), got ${length}`
        ]),
        [() => s.attend(1, queries(141)), RangeError, '"query" expected at most 140 tokens (all that layer 1 holds), got 141'],
        ...beyond.map((value): Refusals[number] => [
          () => s.attend(0, withAt(queries(2), 101, value)),
          RangeError,
          `"query[101]" expected number from −65504 to 65504, got ${value}`
        ]),
        ...[0, -0, -1, NaN, Infinity, 1e300, 2 ** 32 + 1].map((scale): Refusals[number] => [
          () => s.attend(0, queries(1), { scale }),
          RangeError,
          `"scale" expected number above 0 and at most 4294967296, got ${scale}`
        ]),
        [() => s.attend(0, queries(1), { scale: '1' as never }), TypeError, '"scale" expected number, got string'],
        [() => s.attend(0, queries(1), { scale: null as never }), TypeError, '"scale" expected number, got null'],
        [() => s.attend(0, queries(1), { scale: 1n as never }), TypeError, '"scale" expected number, got bigint'],
        [
          () => s.attend(0, queries(1), { out: [] as never }),
          TypeError,
          '"out" expected Float32Array, Uint16Array or Float16Array, got Array'
        ],
        [
          () => s.attend(0, queries(1), { out: null as never }),
          TypeError,
          '"out" expected Float32Array, Uint16Array or Float16Array, got null'
        ],
        [
          () => s.attend(0, queries(1), { out: new Float64Array(64) as never }),
          TypeError,
          '"out" expected Float32Array, Uint16Array or Float16Array, got Float64Array'
        ],
        [
          () => s.attend(0, queries(2), { out: new Float32Array(127) }),
          RangeError,
          '"out" expected length 128 (that of the queries), got 127'
        ],
        [
          () => s.attend(0, queries(2), { out: new Uint16Array(129) }),
          RangeError,
          '"out" expected length 128 (that of the queries), got 129'
        ],
        [() => s.attend(0, queries(1), { lse: 1 as never }), TypeError, '"lse" expected Float32Array, got number'],
        [() => s.attend(0, queries(1), { lse: new Uint16Array(2) as never }), TypeError, '"lse" expected Float32Array, got Uint16Array'],
        [
          () => s.attend(0, queries(2), { lse: new Float32Array(64) }),
          RangeError,
          '"lse" expected length 4 (a number for every query head of every token), got 64'
        ]
      ]));

    test('a getter that throws is met before anything changes', () =>
      refusesAndKeeps(tested, (cache, s) => {
        const trap = () => {
          throw new EvalError('a trap');
        };
        const trapped = <T extends object>(of: T, name: string): T =>
          Object.defineProperty({ ...of }, name, { get: trap, enumerable: true });
        const list = Object.defineProperty([rows(1)], 0, { get: trap });
        const tokens = { buffer: {} as never, tokens: 1, offset: 0, format: 'f16' } as const;
        return [
          [() => s.attend(0, queries(1), trapped({}, 'scale')), EvalError, 'a trap'],
          [() => s.attend(0, queries(1), trapped({}, 'out')), EvalError, 'a trap'],
          [() => cache.attend([s], 0, list), EvalError, 'a trap'],
          [() => cache.append([s], 0, list, [rows(1)]), EvalError, 'a trap'],
          [() => cache.append([s], 0, [rows(1)], list), EvalError, 'a trap'],
          ...(['buffer', 'tokens', 'format', 'offset'] as const).map((name): Refusals[number] => [
            () => s.append(0, rows(1), trapped(tokens, name)),
            EvalError,
            'a trap'
          ]),
          [() => new KVCache(tested.backend, trapped(options, 'capacity')), EvalError, 'a trap']
        ];
      }));

    test('attend refuses every query of a layer that holds no tokens', async () => {
      const cache = cacheOn(tested);
      await refuses(
        () => cache.sequence().attend(1, queries(1)),
        RangeError,
        '"query" expected at most 0 tokens (all that layer 1 holds), got 1'
      );
    });

    test('a refused attention leaves "out" as it was', async () => {
      const { sequence } = filled(tested, 10);
      const out = new Float32Array(64).fill(7);
      await refuses(
        () => sequence.attend(0, withAt(queries(1), 0, NaN), { out }),
        RangeError,
        '"query[0]" expected number from −65504 to 65504, got NaN'
      );
      sameBits('out', out, new Float32Array(64).fill(7));
    });

    test('a batch refuses what is no list of distinct sequences of its cache, or does not fit, and changes nothing', () =>
      refusesAndKeeps(tested, (cache, s) => {
        const other = cache.sequence();
        const foreign = filled(tested, 10).sequence;
        const result: Refusals = [
          [() => cache.attend('x' as never, 0, []), TypeError, '"sequences" expected array, got string'],
          [() => cache.attend(s as never, 0, [queries(1)]), TypeError, '"sequences" expected array, got Sequence'],
          [() => cache.attend([], 99, []), RangeError, '"layer" expected integer from 0 to 1, got 99'],
          [() => cache.append([], 99, [], []), RangeError, '"layer" expected integer from 0 to 1, got 99'],
          [
            () => cache.attend(Object.assign(new Array(2), { 1: s }), 0, [queries(1), queries(1)]),
            TypeError,
            '"sequences[0]" expected Sequence, got undefined'
          ],
          [
            () => cache.attend([s], 0, new Array(1)),
            TypeError,
            '"queries[0]" expected Float32Array, Uint16Array or Float16Array, got undefined'
          ],
          // A list of one is a list: what is refused is one of it.
          [
            () => cache.attend([s], 0, [queries(141)]),
            RangeError,
            '"queries[0]" expected at most 140 tokens (all that layer 0 holds), got 141'
          ],
          [
            () => cache.attend([s], 0, [withAt(queries(1), 3, NaN)]),
            RangeError,
            '"queries[0][3]" expected number from −65504 to 65504, got NaN'
          ],
          [
            () => cache.append([s], 0, [[1] as never], [rows(1)]),
            TypeError,
            '"keys[0]" expected Float32Array, Uint16Array or Float16Array, got Array'
          ],
          [
            () => cache.append([s], 0, [withAt(rows(1), 3, NaN)], [rows(1)]),
            RangeError,
            '"keys[0][3]" expected number from −65504 to 65504, got NaN'
          ],
          [
            () => cache.append([s], 0, [rows(201)], [rows(201)]),
            RangeError,
            '"keys[0]" expected at most 200 tokens a call (option "maxAppend"), got 201'
          ],
          [() => cache.append([s], 0, [rows(2)], [rows(1)]), RangeError, '"values[0]" expected length 64 (2 tokens × 1 head × 32), got 32'],
          [
            () => cache.append([s], 0, [rows(1)], [withAt(rows(1), 5, 1e6)]),
            RangeError,
            '"values[0][5]" expected number from −65504 to 65504, got 1000000'
          ],
          [() => cache.attend([s], 0, queries(1) as never), TypeError, '"queries" expected array, got Float32Array'],
          [() => cache.attend([s], 0, undefined as never), TypeError, '"queries" expected array, got undefined'],
          [() => cache.attend([s], 0, []), RangeError, '"queries" expected length 1 (one for each sequence), got 0'],
          [() => cache.attend([s, other], 0, [queries(1)]), RangeError, '"queries" expected length 2 (one for each sequence), got 1'],
          [
            () => cache.attend([foreign], 0, [queries(1)]),
            RangeError,
            '"sequences[0]" expected sequence of this cache, got one of another'
          ],
          [
            () => cache.attend([s, foreign], 0, [queries(1), queries(1)]),
            RangeError,
            '"sequences[1]" expected sequence of this cache, got one of another'
          ],
          [() => cache.attend([s, {} as never], 0, [queries(1), queries(1)]), TypeError, '"sequences[1]" expected Sequence, got Object'],
          [() => cache.attend([null as never], 0, [queries(1)]), TypeError, '"sequences[0]" expected Sequence, got null'],
          [
            () => cache.attend([s, s], 0, [queries(1), queries(1)]),
            RangeError,
            '"sequences[1]" expected a distinct sequence, got "sequences[0]" again'
          ],
          [
            () => cache.attend([s, other], 0, [queries(1), queries(1)]),
            RangeError,
            '"queries[1]" expected at most 0 tokens (all that layer 0 holds), got 1'
          ],
          [
            () => cache.attend([s, other], 0, [[] as never, queries(1)]),
            TypeError,
            '"queries[0]" expected Float32Array, Uint16Array or Float16Array, got Array'
          ],
          [
            () => cache.attend([s, other], 0, [new Float32Array(65), queries(1)]),
            RangeError,
            '"queries[0]" expected length a multiple of 64 (2 heads × 32), got 65'
          ],
          [
            () => cache.attend([s, other], 0, [withAt(queries(1), 3, Infinity), queries(1)]),
            RangeError,
            '"queries[0][3]" expected number from −65504 to 65504, got Infinity'
          ],
          [
            () => {
              other.dispose();
              return cache.attend([s, other], 0, [queries(1), queries(1)]);
            },
            TypeError,
            'sequence expected open, got disposed'
          ]
        ];
        return result;
      }));

    test('one sequence too many is refused, however it is made, and nothing changes', async () => {
      const message = '"sequences" expected at most 3 open at once (option "sequences"), got one more';
      const { cache, sequence } = filled(tested, 40);
      const others = [cache.sequence(), cache.sequence()];
      const before = await sequence.attend(1, queries(2)).read();
      const file = await sequence.save();
      await refusesAll([
        [() => cache.sequence(), RangeError, message],
        [() => cache.restore(file), RangeError, message],
        [() => sequence.fork(), RangeError, message]
      ]);
      sameAttention(tested, 'attention', await sequence.attend(1, queries(2)).read(), before);
      sameBits('saved bytes', await sequence.save(), file);
      others[0]!.dispose();
      sameBits('a restored sequence', await cache.restore(file).save(), file);
      await refuses(() => cache.sequence(), RangeError, message);
    });

    test('crop refuses a length that is none or beyond the sequence, and changes nothing', () =>
      refusesAndKeeps(tested, (_, s) => [
        ...[-1, 141, 1.5, NaN, Infinity].map((length): Refusals[number] => [
          () => s.crop(length),
          RangeError,
          `"length" expected integer from 0 to 140, got ${length}`
        ]),
        [() => s.crop('1' as never), TypeError, '"length" expected integer, got string'],
        [() => s.crop(undefined as never), TypeError, '"length" expected integer, got undefined']
      ]));

    test('what a fork would copy beyond the capacity is refused and nothing changes', async () => {
      const { cache, sequence } = filled(tested, 132 + 20, { capacity: 160 });
      sequence.seal();
      const file = await sequence.save();
      const before = await sequence.attend(0, queries(2)).read();
      // 2 pages and 24 raw tokens, of which a fork has copies.
      await refuses(() => sequence.fork(), RangeError, '"capacity" expected at most 160 tokens, got 176 (152 held + 24 more)');
      sameBits('saved bytes', await sequence.save(), file);
      sameAttention(tested, 'attention', await sequence.attend(0, queries(2)).read(), before);
      appendTo(sequence, 8);
      assert.is(sequence.length, 160);
      assert.ok(cache.sequence());
    });

    test('a crop through a page that a fork needs is refused beyond the capacity, and nothing changes', async () => {
      const { sequence } = filled(tested, 132, { capacity: 140 });
      const fork = sequence.fork();
      const [file, forked] = [await sequence.save(), await fork.save()];
      const before = await sequence.attend(0, queries(2)).read();
      await refuses(() => fork.crop(120), RangeError, '"capacity" expected at most 140 tokens, got 188 (136 held + 52 more)');
      assert.is(fork.length, 132);
      sameBits('saved bytes', await sequence.save(), file);
      sameBits('saved bytes of the fork', await fork.save(), forked);
      sameAttention(tested, 'attention', await fork.attend(0, queries(2)).read(), before);
    });

    test('a crop that gives back more than it takes is not refused', async () => {
      const { sequence } = filled(tested, 68, { capacity: 150, balance: 'off' });
      const fork = sequence.fork();
      appendTo(fork, 64, 5);
      // 68 + 68 tokens are held; then 68 + 60.
      fork.crop(60);
      assert.is(fork.length, 60);
      assert.is((await fork.decode(1)).keys.length, 60 * TOKEN);
    });

    test('a refused crop codes nothing that waits to be coded', async () => {
      const { cache, sequence } = filled(tested, 132);
      const fork = sequence.fork();
      fork.append(1, rows(64, 5), rows(64, 6));
      const third = cache.sequence();
      third.append(0, rows(20), rows(20));
      const before = await fork.attend(1, queries(2)).read();
      await refuses(() => fork.crop(120), RangeError, '"capacity" expected at most 200 tokens, got 208 (156 held + 52 more)');
      sameAttention(tested, 'attention', await fork.attend(1, queries(2)).read(), before);
    });

    test('a refused fork codes nothing that waits to be coded', async () => {
      const { cache, sequence } = filled(tested, 70, { sequences: 1 });
      const before = await sequence.attend(1, queries(2)).read();
      await refuses(() => sequence.fork(), RangeError, '"sequences" expected at most 1 open at once (option "sequences"), got one more');
      sameAttention(tested, 'attention', await sequence.attend(1, queries(2)).read(), before);
      cache.dispose();
    });

    test('a refused save codes nothing that waits to be coded', async () => {
      const { sequence } = filled(tested, 5);
      sequence.append(1, rows(130), rows(130, 2));
      const before = await sequence.attend(1, queries(2)).read();
      await refuses(() => sequence.save(), RangeError, 'layer 1 expected 5 tokens, as the shortest has, got 135');
      assert.is(sequence.sealed.bytes, 0);
      sameAttention(tested, 'attention', await sequence.attend(1, queries(2)).read(), before);
    });

    test('save refuses layers of different lengths', async () => {
      const { sequence } = filled(tested, 5);
      sequence.append(1, rows(2), rows(2));
      await refuses(() => sequence.save(), RangeError, 'layer 1 expected 5 tokens, as the shortest has, got 7');
      sequence.append(0, rows(3), rows(3));
      await refuses(() => sequence.save(), RangeError, 'layer 0 expected 7 tokens, as the shortest has, got 8');
      sequence.crop(5);
      sameBits('saved bytes', await sequence.save(), await filled(tested, 5).sequence.save());
    });

    test('a disposed sequence refuses every method, and may be disposed again', async () => {
      const { cache, sequence } = filled(tested, 70);
      sequence.dispose();
      const message = 'sequence expected open, got disposed';
      await refusesAll([
        [() => sequence.append(0, rows(1), rows(1)), TypeError, message],
        [() => sequence.attend(0, queries(1)), TypeError, message],
        [() => cache.attend([sequence], 0, [queries(1)]), TypeError, message],
        [() => sequence.seal(), TypeError, message],
        [() => sequence.decode(0), TypeError, message],
        [() => sequence.balance(), TypeError, message],
        [() => sequence.fork(), TypeError, message],
        [() => sequence.crop(0), TypeError, message],
        [() => sequence.save(), TypeError, message]
      ]);
      sequence.dispose();
      appendTo(cache.sequence(), 200);
      for (let n = 1; n < 3; n++) cache.sequence();
      await refuses(() => cache.sequence(), RangeError, '"sequences" expected at most 3 open at once (option "sequences"), got one more');
    });

    test('a disposed cache and its sequences refuse every method, and may be disposed again', async () => {
      const { cache, sequence } = filled(tested, 70);
      const file = await sequence.save();
      cache.dispose();
      const message = 'cache expected open, got disposed';
      await refusesAll([
        [() => cache.bytes, TypeError, message],
        [() => cache.sequence(), TypeError, message],
        [() => cache.restore(file), TypeError, message],
        [() => cache.attend([sequence], 0, [queries(1)]), TypeError, message],
        [() => sequence.append(0, rows(1), rows(1)), TypeError, message],
        [() => sequence.attend(0, queries(1)), TypeError, message],
        [() => sequence.seal(), TypeError, message],
        [() => sequence.decode(0), TypeError, message],
        [() => sequence.balance(), TypeError, message],
        [() => sequence.fork(), TypeError, message],
        [() => sequence.crop(0), TypeError, message],
        [() => sequence.save(), TypeError, message]
      ]);
      sequence.dispose();
      cache.dispose();
    });
  });
}

const textOf = (file: Uint8Array) => new TextDecoder().decode(file.subarray(8, dataOf(file)));

/** A copy with bytes of layer 1's second page changed, from `at` on in the page. */
function withPage(file: Uint8Array, at: number, ...bytes: number[]): Uint8Array {
  const {
    data_offsets: [begin],
    shape: [, pageBytes]
  } = JSON.parse(textOf(file))['layers.1.pages'];
  const copy = file.slice();
  copy.set(bytes, dataOf(file) + begin + pageBytes + at);
  return withChecksum(copy);
}

for (const tested of backends) {
  const { cache: full, sequence: saved } = filled(tested);
  const file = await saved.save();
  full.dispose();
  const pageBytes: number = JSON.parse(textOf(file))['layers.0.pages'].shape[1];
  const keeps = (
    files: readonly (readonly [file: unknown, type: new (...args: any[]) => Error, message: string])[],
    more: Partial<CacheOptions> = {}
  ) =>
    refusesAndKeeps(
      tested,
      cache => files.map(([file, type, message]) => [() => cache.restore(file as never), type, message] as const),
      more
    );
  const NONE = 'file expected a safetensors header, got none';
  const ONE = 'file expected format 2, got 1, which nsnquant 0.1 wrote: it must be made again';

  group(`refusals of files on ${tested.name}`, test => {
    test('what is no file is refused and changes nothing', () =>
      keeps([
        [undefined, TypeError, '"bytes" expected Uint8Array, got undefined'],
        ['file', TypeError, '"bytes" expected Uint8Array, got string'],
        [new Uint8Array(0), RangeError, NONE],
        [file.slice(0, 7), RangeError, NONE],
        [file.slice(0, 8), RangeError, NONE],
        [file.slice(0, dataOf(file) - 1), RangeError, NONE],
        [new Uint8Array(64), RangeError, NONE],
        [new Uint8Array(64).fill(255), RangeError, NONE],
        [fileOf('no JSON', new Uint8Array(0)), RangeError, 'file expected a safetensors header, got no JSON'],
        [fileOf('null', new Uint8Array(8)), RangeError, 'file expected a safetensors header, got no JSON object'],
        [fileOf('{}', new Uint8Array(0)), RangeError, 'file expected format 2, got none'],
        [fileOf('{"__metadata__":{"format":"1","layers":"2"}}', new Uint8Array(0)), RangeError, ONE]
      ]));

    test('damaged files are refused, and nothing changes', () => {
      const page = file.slice();
      page[dataOf(file) + 3000]! ^= 4;
      const damaged = [page, file.slice(0, -1), file.slice(0, dataOf(file)), new Uint8Array([...file, 0])];
      const had = checksumOf(file);
      return keeps(
        damaged.map(bytes => [
          bytes,
          RangeError,
          `file expected checksum ${checksumOf(bytes)} (of all its bytes), got ${had}: it is damaged or cut off`
        ])
      );
    });

    test('a file of a cache of another shape is refused, whichever of the two it differs in', async () => {
      const unlike: readonly (readonly [more: Partial<CacheOptions>, message: string])[] = [
        [{ layers: 3 }, 'file expected layers 3, got 2'],
        [{ kvHeads: 2 }, 'file expected heads 2×32/32 2×32/32, got 1×32/32 1×32/32'],
        [{ headDim: 64 }, 'file expected heads 1×64/64 1×64/64, got 1×32/32 1×32/32'],
        [{ sinks: 0 }, 'file expected sinks 0, got 4'],
        [{ keys: 'nsn1' }, 'file expected codecs nsn1/nsn3 nsn1/nsn3, got nsn3/nsn3 nsn3/nsn3'],
        [{ values: 'nsn4' }, 'file expected codecs nsn3/nsn4 nsn3/nsn4, got nsn3/nsn3 nsn3/nsn3'],
        [{ layers: [{}, { keys: 'nsn2' }] }, 'file expected codecs nsn3/nsn3 nsn2/nsn3, got nsn3/nsn3 nsn3/nsn3'],
        [{ balance: 'off' }, 'file expected balance off, got on'],
        [{ rope }, 'file expected rope of layer 0 known, got unknown'],
        [{ capacity: 139 }, '"capacity" expected at most 139 tokens, got 140 (0 held + 140 more)']
      ];
      for (const [more, message] of unlike) {
        const cache = cacheOn(tested, more);
        await refuses(() => cache.restore(file), RangeError, message);
        for (let n = 0; n < 3; n++) assert.is(cache.sequence().length, 0);
      }
      const turned = await filled(tested, 70, { rope }).sequence.save();
      await refuses(() => cacheOn(tested).restore(turned), RangeError, 'file expected rope of layer 0 unknown, got known');
    });

    test('a file that contradicts itself is refused though its checksum is right, and nothing changes', () =>
      keeps([
        [
          withHeader(file, header => {
            header.__metadata__.length = '200';
          }),
          RangeError,
          `file expected layers.0.raw {"dtype":"F16","shape":[2,1,4096],"data_offsets":[${512 + 2 * pageBytes},${512 + 2 * pageBytes + 16384}]}, got {"dtype":"F16","shape":[1,1,4096],"data_offsets":[${512 + 2 * pageBytes},${512 + 2 * pageBytes + 8192}]}`
        ],
        [
          withHeader(file, header => {
            header.__metadata__.length = '131';
          }),
          RangeError,
          'file expected coded 2 integers from 0 to 1, got 2 2'
        ],
        [
          withHeader(file, header => {
            header['layers.1.pages'].data_offsets = header['layers.0.pages'].data_offsets;
          }),
          RangeError,
          `file expected layers.1.pages {"dtype":"U8","shape":[2,${pageBytes}],"data_offsets":[${1024 + 2 * pageBytes + 8192 + 16},${1024 + 4 * pageBytes + 8192 + 16}]}, got {"dtype":"U8","shape":[2,${pageBytes}],"data_offsets":[512,${512 + 2 * pageBytes}]}`
        ]
      ]));

    test('more complete raw windows than "recent" keeps are refused, and nothing changes', async () => {
      const message = (most: string, got: number) => `file expected at most ${most} in layer 0 (option "recent"), got ${got}`;
      for (const balance of ['learn', 'off'] as const) {
        const recent = await filled(tested, 140, { recent: 2, balance }).sequence.save();
        // A window that is still to be learned from may be raw in any cache.
        await keeps([[recent, RangeError, message(balance === 'learn' ? '1 complete raw window' : '0 complete raw windows', 2)]], {
          balance
        });
        await keeps([[recent, RangeError, message('1 complete raw window', 2)]], { balance, recent: 1 });
        sameBits('a restored sequence', await cacheOn(tested, { balance, recent: 2 }).restore(recent).save(), recent);
      }
      const learned = await filled(tested, 140, { recent: 1 }).sequence.save();
      await keeps([[learned, RangeError, message('0 complete raw windows', 1)]]);
    });

    test('a raw window is refused that would be coded here, though no more of them are raw than a tail has', async () => {
      // 4 + 64 tokens: one raw window, complete. A fork would count it as coded, and hold more than the capacity.
      const recent = await filled(tested, 68, { recent: 1, balance: 'off' }).sequence.save();
      const message = 'file expected at most 0 complete raw windows in layer 0 (option "recent"), got 1';
      await keeps([[recent, RangeError, message]], { balance: 'off' });
    });

    test('a page that stands for more tokens than there are is refused, and nothing changes', async () => {
      // Its 64 tokens would end beyond the sequence, and the next append would write before the first raw window.
      const whole = await filled(tested, 68, { balance: 'off' }).sequence.save();
      const short = (length: string) =>
        withHeader(whole, header => {
          header.__metadata__.length = length;
        });
      await keeps(
        ['67', '5', '4', '0'].map(length => [short(length), RangeError, 'file expected coded 2 integers from 0 to 0, got 1 1']),
        { balance: 'off' }
      );
    });

    test('a page whose scales are infinite or no number is refused, and nothing changes', () => {
      const { keys, values } = cacheOn(tested).shape.layers[1]!.page;
      const half = (at: number, bits: number) => withPage(file, at, bits & 255, bits >> 8);
      const scales = (of: string) => `page expected finite scales of ${of} of head 0, got infinity or NaN`;
      const exponents = (of: string, got: number) => `page expected exponents of ${of} of head 0 up to 140, got ${got}`;
      return keeps([
        [half(keys.scales, 0x7e00), RangeError, scales('keys')],
        [half(keys.scales + 6, 0xffff), RangeError, scales('keys')],
        [half(keys.bytes + values.scales + 2, 0x7fff), RangeError, scales('values')],
        [half(keys.bytes + values.scales + 4, 0xfc00), RangeError, scales('values')],
        [withPage(file, keys.exponents, 141), RangeError, exponents('keys', 141)],
        [withPage(file, keys.bytes + values.exponents, 255), RangeError, exponents('values', 255)]
      ]);
    });

    test('a file that does not fit beside what is held is refused, and nothing changes', () =>
      keeps([[file, RangeError, '"capacity" expected at most 200 tokens, got 280 (140 held + 140 more)']]));
  });
}
