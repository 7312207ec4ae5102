// `npm test`: builds the page and runs the tests against it in Chromium. The last line says how many passed.
import { readdirSync } from 'node:fs';
import { finish } from '../../../tools/group.ts';
import { buildPage } from '../build.ts';
import { models } from '../src/methods.ts';

await buildPage([models['Llama 3.2 1B']]);
for (const name of readdirSync(import.meta.dirname)
  .filter(name => name.endsWith('.test.ts'))
  .sort())
  await import(`./${name}`);
await finish();
