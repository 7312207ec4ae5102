// What is wrong with what a person gave: an InputError of whichever package, whose sentence is the test's matter.
import * as assert from 'uvu/assert';

export async function refuses(run: () => Promise<unknown>, message: RegExp | string): Promise<void> {
  try {
    await run();
  } catch (error) {
    assert.is((error as Error).name, 'InputError', (error as Error).stack);
    if (typeof message === 'string') assert.is((error as Error).message, message);
    else assert.match((error as Error).message, message);
    return;
  }
  assert.unreachable('expected an error');
}
