// The page in Chromium with a transformers.js model folder: chosen, offered, kept, and refused where something is missing.
import { cp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { writeFolder } from '../../../engines/onnx/test/folder.ts';
import { group } from '../../../tools/group.ts';
import { serve } from '../serve.ts';
import { Driver, openBrowser } from './browser.ts';
import { QUESTIONS } from './models.ts';

const folder = await writeFolder({ external: 'model.onnx_data' });
const { origin, server } = await serve([folder.id], 0);
const browser = await openBrowser([]);
const withPage = (run: (driver: Driver) => Promise<void>): Promise<void> => Driver.use(browser, origin, run);

async function load(driver: Driver, path = folder.id): Promise<string> {
  await driver.page.setInputFiles('#folder', path);
  return driver.settled();
}

group('model folder', test => {
  test('chats in pieces, in another codec, and stops when asked to', () =>
    withPage(async driver => {
      assert.is(await load(driver), '');
      assert.is(await driver.text('#model-name'), 'tiny');
      assert.is(await driver.text('#model-facts'), '3 layers · 4 query heads on 2 × 32 · onnx/model.onnx');
      const lengths = await driver.watchAnswer();
      const answer = await driver.ask(QUESTIONS[0], 20);
      assert.ok(answer.length >= 10, answer);
      assert.ok((await lengths()).length >= 10);
      const tokens = Number(await driver.text('#tile-context'));
      assert.match(
        await driver.text('#log li:last-child small'),
        /^\d+ tokens read · 20 tokens, [\d.]+ a second · nsn3\/nsn3, WebAssembly/
      );

      await driver.stopNextAnswer(5);
      await driver.send(QUESTIONS[1], 300);
      await driver.settled();
      const facts = await driver.text('#log li:last-child small');
      assert.match(facts, /stopped$/);
      assert.ok(Number.parseInt(facts, 10) < tokens, facts); // the first question was not read again

      assert.is(await driver.set('keys', 'nsn1'), '');
      assert.match(await driver.text('#note'), /next question first reads the conversation/);
      await driver.ask(QUESTIONS[2], 3);
      await driver.curves('bytes-plot', 2);
      await driver.page.screenshot({ path: join(import.meta.dirname, '../.test/folder.png') });
    }));
  test('that the server offers goes on after a reload as it would without one, and reads nothing anew', () =>
    withPage(async driver => {
      const offered = async (): Promise<void> => {
        await driver.page.click('#offers button');
        assert.is(await driver.settled(), '');
      };
      const goOn = async (): Promise<string[]> => [
        await driver.ask(QUESTIONS[1], 12),
        (await driver.text('#log li:last-child small')).split(' · ')[0]!
      ];
      await offered();
      await driver.ask(QUESTIONS[0].repeat(9), 12);
      const expected = await goOn();
      await driver.restart();
      await driver.ask(QUESTIONS[0].repeat(9), 12);
      const tokens = await driver.text('#tile-context');
      await driver.page.reload();
      await offered();
      assert.match(await driver.text('#status'), new RegExp(`^Goes on with ${tokens} tokens: `));
      assert.equal(await goOn(), expected);
      assert.ok(Number.parseInt(expected[1]!, 10) < Number(tokens), expected[1]);
      await driver.restart();
    }));
  test('may be dropped, and then reads a text that is dropped as its context', () =>
    withPage(async driver => {
      // The compiler of these tests notes the names of functions by a helper that the page lacks.
      await driver.page.evaluate('globalThis.__name = value => value');
      await driver.page.evaluate(dropEntries);
      await driver.drop({ name: 'tiny', bytes: new Uint8Array() });
      await driver.page.waitForFunction(() => document.body.dataset['state'] === 'ready');
      assert.is(await driver.text('#model-name'), 'tiny');
      await driver.page.evaluate(() => Object.assign(DataTransferItem.prototype, { webkitGetAsEntry: () => null }));
      await driver.drop({ name: 'notes.txt', bytes: new TextEncoder().encode('abcdefgh'.repeat(25)) });
      await driver.page.waitForSelector('#log li.document');
      assert.is(await driver.settled(), '');
      assert.match(await driver.text('#log small'), /^2\d\d tokens read in .* of cache, where f16 takes /);
      await driver.ask(QUESTIONS[0], 3);
      assert.ok(Number.parseInt(await driver.text('#log li:last-child small'), 10) < 64);
    }));
  test('that lacks something is refused in a sentence, and of several weights one is named', () =>
    withPage(async driver => {
      const onnx = join(folder.id, 'onnx');
      await cp(join(onnx, 'model.onnx'), join(onnx, 'model_quantized.onnx'));
      assert.is(await load(driver), '');
      assert.match(await driver.text('#model-facts'), / · onnx\/model\.onnx, of 2 in the folder$/);
      await rm(join(onnx, 'model.onnx'));
      const known = 'tiny: expected one of model_q4.onnx, model_q4f16.onnx, model_fp16.onnx, model.onnx in its folder onnx, got ';
      assert.is(await load(driver), `${known}model_quantized.onnx`);
      await rm(onnx, { recursive: true });
      assert.is(await load(driver), `${known}none`);
      await rm(join(folder.id, 'tokenizer.json'));
      const needed = 'config.json, tokenizer.json, tokenizer_config.json';
      assert.is(await load(driver), `tiny: expected a folder of a model with ${needed}, got one without tokenizer.json`);
    }));
});

/** In the page: what is dropped from now on is the folder that the server offers. No script can put a real one into a drop. */
async function dropEntries(): Promise<void> {
  const [{ url, files }] = (await (await fetch('models.json')).json()) as [{ url: string; files: string[] }];
  const entries = {
    file(path: string) {
      const name = path.replace(/.*\//, '');
      return {
        isDirectory: false,
        name,
        file: async (give: (file: File) => void) => give(new File([await (await fetch(`${url}/${path}`)).blob()], name))
      };
    },
    directory(name: string, inside: readonly object[]) {
      return {
        isDirectory: true,
        name,
        createReader: () => {
          const batches = [inside, []];
          return { readEntries: (give: (entries?: readonly object[]) => void) => give(batches.shift()) };
        }
      };
    }
  };
  const [inner, outer] = [files.filter(path => path.includes('/')), files.filter(path => !path.includes('/'))];
  const root = entries.directory('tiny', [...outer.map(entries.file), entries.directory('onnx', inner.map(entries.file))]);
  Object.assign(DataTransferItem.prototype, { webkitGetAsEntry: () => root });
}

group('afterwards', test => {
  test('browser and server end', async () => {
    await browser.close();
    server.closeAllConnections();
    server.close();
    await folder.remove();
  });
});
