// What is wrong with what a person gave is an InputError, whose sentence is the test's matter.
import * as assert from 'uvu/assert';
import { InputError } from '../engine/source.ts';

export async function refuses(run: () => Promise<unknown>, message: RegExp | string): Promise<void> {
  try {
    await run();
  } catch (error) {
    assert.instance(error, InputError, String(error));
    if (typeof message === 'string') assert.is((error as Error).message, message);
    else assert.match((error as Error).message, message);
    return;
  }
  assert.unreachable('expected an error');
}
