// `npm test`: every test file, or those named, one after another. The last line says how many passed.
import { readdirSync } from 'node:fs';
import { finish } from '../../../tools/group.ts';

const named = process.argv.slice(2);

for (const file of readdirSync(import.meta.dirname)
  .filter(name => name.endsWith('.test.ts') && (named.length === 0 || named.includes(name.replace('.test.ts', ''))))
  .sort())
  await import(`./${file}`);
await finish();
