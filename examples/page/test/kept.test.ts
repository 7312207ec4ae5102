// What the page keeps of a conversation, and a document that one begins with, in Chromium with a small model.
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { serve } from '../serve.ts';
import { Driver, type File, openBrowser } from './browser.ts';
import { LETTERS, LONG_QUESTION, lively, QUESTIONS } from './models.ts';

const model = lively();
const { origin, server } = await serve([], 0);
const browser = await openBrowser([]);
const withPage = (run: (driver: Driver) => Promise<void>): Promise<void> => Driver.use(browser, origin, run);

group('conversation that is kept', test => {
  test('goes on after a reload as it would without one, reads nothing anew, and is forgotten on request', () =>
    withPage(async driver => {
      const begin = async (): Promise<void> => {
        await driver.ask(LONG_QUESTION, LETTERS);
        assert.match(await driver.text('#status'), /^Ready; the conversation is kept in this browser, [\d.]+ MiB$/);
      };
      const goOn = async (): Promise<string[]> => [
        await driver.ask(QUESTIONS[1], LETTERS),
        (await driver.text('#log li:last-child small')).split(' · ')[0]!
      ];
      await driver.load(model);
      await driver.set('values', 'nsn4');
      await begin();
      const expected = await goOn();
      await driver.restart();
      await begin();
      const log = await driver.page.locator('#log p').allTextContents();
      const tokens = await driver.text('#tile-context');

      await driver.page.reload();
      assert.is(await driver.load(model), '');
      assert.equal(await driver.page.locator('#log p').allTextContents(), log);
      assert.is(await driver.text('#tile-context'), tokens);
      assert.is(await driver.page.inputValue('#values'), 'nsn4');
      assert.match(
        await driver.text('#status'),
        new RegExp(`^Goes on with ${tokens} tokens: read anew in some [\\d.]+ m?s → loaded in [\\d.]+ m?s, once the model was`)
      );
      assert.equal(await goOn(), expected);
      assert.ok(Number.parseInt(expected[1]!, 10) < Number(tokens), expected[1]);

      await driver.restart();
      await driver.page.reload();
      assert.is(await driver.load(model), '');
      assert.is(await driver.text('#status'), 'Ready');
    }));
  test('is refused under another model, or where it is damaged, and the page begins anew', () =>
    withPage(async driver => {
      const other = { name: 'other.gguf', bytes: model.bytes.slice() };
      other.bytes[other.bytes.length - 1]! ^= 1;
      await driver.load(model);
      const answer = await driver.ask(QUESTIONS[0], 20);
      const refused = async (file: File, message: RegExp): Promise<void> => {
        await driver.page.reload();
        assert.match(await driver.load(file), message);
        assert.is(await driver.text('#tile-context'), '0');
        assert.is(await driver.page.locator('#log li').count(), 0);
      };
      const ending = 'The conversation that was kept does not go on; a new one begins\\.$';
      await refused(other, new RegExp(`^Expected a conversation with tiny \\(.*\\), got one with tiny \\(.*\\)\\. ${ending}`));
      await driver.page.evaluate(damageKept);
      await refused(model, new RegExp(`expected .*, got .*\\. ${ending}`));
      assert.is(await driver.ask(QUESTIONS[0], 20), answer);
    }));
});

group('document', test => {
  const text = (letters: number): File => ({ name: 'notes.txt', bytes: new TextEncoder().encode('abcdefgh'.repeat(letters / 8)) });
  test('is read once, with its memory beside what f16 takes, and what is asked then begins with it', () =>
    withPage(async driver => {
      await driver.load(model);
      const without = await driver.ask(QUESTIONS[1], 20);
      await driver.drop(text(320));
      await driver.page.waitForSelector('#log li.document');
      assert.is(await driver.settled(), '');
      assert.equal(await driver.page.locator('#log p').allTextContents(), ['notes.txt']);
      const tokens = Number(await driver.text('#tile-context'));
      assert.ok(tokens >= 320, `${tokens}`);
      const [cache, f16] = [await driver.text('#tile-cache'), (await driver.text('#sub-cache')).replace('f16: ', '')];
      assert.match(
        await driver.text('#log small'),
        new RegExp(`^3\\d\\d tokens read in [\\d.]+ m?s · ${cache} of cache, where f16 takes ${f16}$`)
      );

      const answer = await driver.ask(QUESTIONS[1], 20);
      assert.is.not(answer, without);
      assert.ok(Number.parseInt(await driver.text('#log li:last-child small'), 10) < 64);
      await driver.page.reload();
      await driver.load(model);
      assert.equal(await driver.page.locator('#log p').allTextContents(), ['notes.txt', QUESTIONS[1], answer]);
    }));
  test('that is no text, or longer than the room, is refused, and the conversation stays', () =>
    withPage(async driver => {
      await driver.load(model);
      await driver.ask(QUESTIONS[0], 20);
      for (const [file, message] of [
        [
          { name: 'picture.png', bytes: Uint8Array.of(0xff, 0xd8) },
          /^picture\.png: expected a GGUF file or a text in UTF-8, got other bytes$/
        ],
        [text(800), /^Expected a conversation of fewer than 512 tokens/]
      ] as const) {
        await driver.page.evaluate(() => document.querySelector<HTMLElement>('#error button')!.click());
        await driver.drop(file);
        await driver.page.waitForSelector('#error:not([hidden])');
        assert.match(await driver.settled(), message);
        assert.is(await driver.page.locator('#log li').count(), 2);
      }
      await driver.ask(QUESTIONS[1], 20);
      assert.ok(Number.parseInt(await driver.text('#log li:last-child small'), 10) < 20);
    }));
});

/** In the page: changes a byte of what the browser keeps. */
function damageKept(): Promise<void> {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open('keyval-store');
    opening.onerror = reject;
    opening.onsuccess = () => {
      const transaction = opening.result.transaction('keyval', 'readwrite');
      const store = transaction.objectStore('keyval');
      const reading = store.get('conversation');
      reading.onsuccess = () => {
        const kept = reading.result as { file: Uint8Array };
        kept.file[kept.file.length >> 1]! ^= 1;
        store.put(kept, 'conversation');
      };
      transaction.oncomplete = () => resolve();
      transaction.onerror = reject;
    };
  });
}

group('afterwards', test => {
  test('browser and server end', async () => {
    await browser.close();
    server.closeAllConnections();
    server.close();
  });
});
