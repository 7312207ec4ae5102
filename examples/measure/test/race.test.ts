// Samples: how many, of how many walks, and in turn.
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { median, race, type Samples } from '../src/race.ts';

group('race', test => {
  test('walks each in turn, there and back, often enough for the clock', async () => {
    const order: string[] = [];
    const times: Record<string, number> = { a: 10, b: 1 };
    const results = await race(
      ['a', 'b'],
      async name => {
        order.push(name);
        return times[name]!;
      },
      { samples: 2, seconds: 10, resolutionMs: 0.1 }
    );
    // Two that warm up, then 25 ticks of a tenth of a millisecond are one walk of a, and three of b.
    assert.is(order.join(''), 'aabb' + 'abbb' + 'bbba');
    assert.equal(results.get('a'), { times: [10, 10], walks: 1 });
    assert.equal(results.get('b'), { times: [1, 1], walks: 3 });
  });
  test('goes on without who fails', async () => {
    let walks = 0;
    const results = await race(
      ['fails', 'works'],
      async name => {
        if (name === 'fails' && ++walks === 3) throw new Error('lost');
        return 5;
      },
      { samples: 7, seconds: 10, resolutionMs: 0.001 }
    );
    assert.is((results.get('fails') as Error).message, 'lost');
    assert.is((results.get('works') as Samples).times.length, 7);
  });
  test('ends after its seconds, but has five samples', async () => {
    const results = await race(['a'], async () => 1, { samples: 100, seconds: 0, resolutionMs: 0.001 });
    assert.is((results.get('a') as Samples).times.length, 5);
  });
  test('median() is the middle, or the mean of the two', () => {
    assert.is(median([3, 1, 2]), 2);
    assert.is(median([4, 1, 2, 3]), 2.5);
  });
});
