// What is shown in the README and in docstrings runs: over the package as it is built, with a tiny model.
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { transform } from 'esbuild';
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { tinyGguf } from '../../../tools/tiny-gguf.ts';

const root = join(import.meta.dirname, '..');
mkdirSync(join(root, '.test'), { recursive: true });
const folder = mkdtempSync(join(root, '.test', 'examples-'));
process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
const model = join(folder, 'model.gguf');
writeFileSync(model, tinyGguf({ metadata: { 'llama.context_length': 1024 } }));

const given = `import * as runtime from 'onnxruntime-node';
import { blobSource, Chat, fingerprint, openGguf, readTranscript, toMetadata } from '@nsnquant/gguf';
const file = ${JSON.stringify(model)};
`;
const docstrings = readdirSync(join(root, 'src')).flatMap(name =>
  [...readFileSync(join(root, 'src', name), 'utf8').matchAll(/@example\n([\s\S]*?)(?=\*\/|\* @)/g)].map(([, text], n) => {
    const code = text!.replace(/^ *\* ?/gm, '');
    return {
      name: `${name} ${n + 1}`,
      code:
        /\bmodel\b(?=[,.])/.test(code) && !code.includes('const model') ? `const model = await openGguf(file, { runtime });\n${code}` : code
    };
  })
);
const readme = [...readFileSync(join(root, 'README.md'), 'utf8').matchAll(/^```js\n([\s\S]*?)^```/gm)].map(([, code], n) => ({
  name: `README ${n + 1}`,
  code: code!
}));

group('examples', test => {
  test('there are some of both', () => assert.ok(docstrings.length >= 4 && readme.length === 2));
  for (const { name, code } of [...readme, ...docstrings]) {
    test(`${name} runs`, async () => {
      const module = join(folder, `${name.replace(/\W+/g, '-')}.mjs`);
      const own = code
        .replaceAll("'model.gguf'", JSON.stringify(model))
        .replaceAll("'conversation.nsn'", JSON.stringify(join(folder, 'conversation.nsn')));
      const text = own.includes('import ') ? own : `${given}{\n${own}}\n`;
      writeFileSync(module, (await transform(text, { loader: 'ts', target: 'es2023' })).code);
      const { write } = process.stdout;
      const { log } = console;
      // What a tiny model says is noise.
      process.stdout.write = () => true;
      console.log = () => undefined;
      try {
        await import(pathToFileURL(module).href);
      } finally {
        process.stdout.write = write;
        console.log = log;
      }
    });
  }
});
