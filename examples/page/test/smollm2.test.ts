// The page in Chromium with a real language model, where one is beside the repository.
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { modelsAtHand, serve } from '../serve.ts';
import { Driver, withBrowser } from './browser.ts';

const models = modelsAtHand();
const required = /\b(model|all)\b/.test(process.env['NSN_REQUIRE'] ?? '');
const title = 'answers what it is asked, in pieces, and goes on in another codec';

group('SmolLM2', test => {
  if (models.length === 0 && !required) return test.skip(title, 'no model beside the repository');
  test(title, () =>
    withBrowser([], async browser => {
      const { origin, server } = await serve(models, 0);
      server.unref();
      const driver = await Driver.open(browser, origin);
      // Every text, however short it stands there.
      await driver.page.evaluate(() => {
        const loading = document.getElementById('loading-text')!;
        const texts: string[] = [];
        new MutationObserver(() => texts.push(loading.textContent)).observe(loading, {
          childList: true,
          subtree: true,
          characterData: true
        });
        Object.assign(globalThis, { texts });
      });
      await driver.page.click('#offers button');
      assert.is(await driver.settled(), '');
      const texts = await driver.page.evaluate(() => (globalThis as unknown as { texts: string[] }).texts);
      assert.ok(
        texts.some(text => /^Preparing the weights, [1-9]\d* %$/.test(text)),
        texts.join()
      );

      const lengths = await driver.watchAnswer();
      assert.match(await driver.ask('What is the capital of France?'), /Paris/);
      assert.ok((await lengths()).length >= 3, 'expected the answer in pieces');
      const tokens = Number(await driver.text('#tile-context'));
      assert.is(await driver.text('#sub-cache'), `f16: ${((tokens * 2 * 30 * 3 * 64 * 2) / 2 ** 20).toFixed(2)} MiB`);

      assert.is(await driver.set('keys', 'nsn2'), '');
      assert.match(await driver.ask('And the capital of Italy?'), /Rome/);
      await driver.curves('bytes-plot', 2);
      await driver.curves('speed-plot', 2);
      assert.match(await driver.text('#legend'), /nsn3\/nsn3, WebAssembly.*nsn2\/nsn3, WebAssembly/);
      await driver.page.screenshot({ path: join(import.meta.dirname, '../.test/page.png') });
      assert.equal(driver.errors, []);
    })
  );
});
