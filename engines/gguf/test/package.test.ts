// The package as npm would install it.
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';

group('package', test => {
  test('its name leads to what is built', async () => {
    assert.ok(Object.keys(await import('@nsnquant/gguf')).length > 0);
  });
});
