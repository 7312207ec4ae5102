// `npm test`: every test file, one after another. The last line says how many passed.
import { readdirSync } from 'node:fs';
import { finish } from '../../../tools/group.ts';

for (const file of readdirSync(import.meta.dirname)
  .filter(name => name.endsWith('.test.ts'))
  .sort())
  await import(`./${file}`);
await finish();
