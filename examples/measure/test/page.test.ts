// The page in Chromium, with few tokens: what a person does, what a device may lack, and results that are wrong.
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { serve } from '../serve.ts';
import { methods } from '../src/methods.ts';
import { readReport, tableOf } from '../table.ts';
import { Driver, GPU_FLAGS, openBrowser, resultOf } from './browser.ts';

const { origin, server } = await serve(0);
const browser = await openBrowser();

/** Two windows are coded of 192 tokens, and the last is raw. */
const SMALL = `${origin}?tokens=192&samples=3`;
const ON_WASM = `${SMALL}&places=wasm`;

async function withPage(url: string, run: (driver: Driver) => Promise<void>, prepare?: Parameters<typeof Driver.open>[2]): Promise<void> {
  const driver = await Driver.open(browser, url, prepare);
  try {
    await run(driver);
    assert.equal(driver.errors, []);
  } finally {
    await driver.page.close();
  }
}

group('measurement', test => {
  test('shows and hands over a time of every method at every context, and why there is none on WebGPU', () =>
    withPage(`${origin}?tokens=192,320&samples=3`, async driver => {
      assert.is(await driver.page.evaluate(() => crossOriginIsolated), true);
      const report = await driver.measure();
      assert.is(report.cells.length, 2 * 2 * methods.length);
      for (const { name } of methods) {
        for (const tokens of [192, 320]) {
          const result = resultOf(report, 'wasm', name, tokens);
          assert.is(result.kind, 'measured', `${name}: ${JSON.stringify(result)}`);
          assert.equal(resultOf(report, 'webgpu', name, tokens), { kind: 'missing', reason: 'there is no adapter' });
        }
      }
      assert.is(report.stopped, false);
      assert.is(await driver.page.locator('td b').count(), 2 * methods.length);
      assert.is(await driver.page.locator('.plot svg').count(), 1);
      assert.match(await driver.text('#results'), /WebGPUNot measured: there is no adapter$/);
      assert.match(await driver.text('#facts'), /WebAssembly(relaxed )?SIMD/);
      // From the file to BENCHMARKS.md.
      await driver.page.fill('#device', 'A | <b>phone</b>');
      const rows = tableOf([readReport('a.json', JSON.stringify(await driver.report()))]).split('\n');
      assert.is(rows.length, 2 + 2);
      assert.match(rows[2]!, /^\| A b phone \/b , Linux +\| Chrome \d+ \| WebAssembly \w+ \| Llama 3\.2 1B \|/);
    }));

  test('fits a phone, sends nothing and keeps nothing', () =>
    withPage(`${origin}?tokens=128,192,256&samples=3&places=wasm&methods=f16,nsn3 / nsn2`, async driver => {
      await driver.page.setViewportSize({ width: 360, height: 740 });
      await driver.measure();
      const wide = await driver.page.evaluate(() =>
        [document.documentElement, ...document.querySelectorAll('.card')]
          .filter(element => element.scrollWidth > element.clientWidth)
          .map(element => element.textContent)
      );
      assert.equal(wide, []);
      for (const url of driver.requests) assert.ok(url.startsWith(origin) || /^(data|blob):/.test(url), url);
      const kept = await driver.page.evaluate(async () => [
        localStorage.length,
        sessionStorage.length,
        document.cookie,
        (await indexedDB.databases()).length,
        (await caches.keys()).length
      ]);
      assert.equal(kept, [0, 0, '', 0, 0]);
    }));

  test('can be stopped, and begun again', () =>
    withPage(`${origin}?places=wasm&methods=nsn3&samples=1000`, async driver => {
      // By the page itself, before a context can have been measured.
      await driver.page.evaluate(() => {
        const status = document.getElementById('status')!;
        const observer = new MutationObserver(() => {
          if (!status.textContent.includes('WebAssembly')) return;
          observer.disconnect();
          document.getElementById('stop')!.click();
        });
        observer.observe(status, { childList: true, subtree: true, characterData: true });
      });
      await driver.page.click('#start');
      await driver.page.waitForSelector("body[data-state='done']");
      const report = await driver.report();
      assert.is(report.stopped, true);
      assert.equal(report.cells, []);
      await driver.page.click('#start');
      await driver.page.waitForSelector("body[data-state='busy']");
    }));
});

group('wrong results', test => {
  test('of a codec are no times', () =>
    withPage(
      `${ON_WASM}&methods=f16,nsn2`,
      async driver => {
        const result = resultOf(await driver.measure(), 'wasm', 'nsn2');
        const text = JSON.stringify(result);
        assert.match(text, /^\{"kind":"failed","reason":"attention expected .* ± .*, got .* at 7"\}$/, text);
        assert.match(await driver.text('#results'), /wrong.*Wrong: attention expected .* \(nsn2 at 192\)$/);
      },
      // One number of the outputs, [8 · 4, 64], by what no eye would see.
      Driver.before(
        'const { slice } = Float32Array.prototype; Float32Array.prototype.slice = function (...range) { const x = slice.apply(this, range); if (x.length === 2048) x[7] += 0.01; return x; };'
      )
    ));
  test('of another KV head are none either', () =>
    withPage(
      `${ON_WASM}&methods=nsn1`,
      async driver => {
        const { reason } = resultOf(await driver.measure(), 'wasm', 'nsn1') as { reason: string };
        assert.match(reason, /^difference of KV heads at 1999 expected at most .*, got /);
      },
      Driver.before(
        'const { slice } = Float32Array.prototype; Float32Array.prototype.slice = function (...range) { const x = slice.apply(this, range); if (x.length === 2048) x[1999] += 0.001; return x; };'
      )
    ));
});

group('a device that lacks', test => {
  test('memory for one method does the others', () =>
    withPage(
      `${ON_WASM}&methods=f32,nsn1`,
      async driver => {
        const report = await driver.measure();
        assert.equal(resultOf(report, 'wasm', 'f32'), { kind: 'missing', reason: 'WebAssembly.Memory(): could not allocate memory' });
        assert.is(resultOf(report, 'wasm', 'nsn1').kind, 'measured');
        assert.match(await driver.text('#results'), /not measured.*could not allocate memory \(f32 at 192\)$/);
      },
      // nsnquant's own memory begins smaller.
      Driver.before(
        'WebAssembly.Memory = new Proxy(WebAssembly.Memory, { construct(Memory, [options]) { if (options.initial > 150) throw new RangeError("WebAssembly.Memory(): could not allocate memory"); return new Memory(options); } });'
      )
    ));
  test('relaxed SIMD is told so, and measured with the dense kernels without it', () => {
    const relaxed = readFileSync(fileURLToPath(import.meta.resolve('nsnquant/relaxed.wasm'))).length;
    return withPage(
      `${ON_WASM}&methods=f16,nsn2`,
      async driver => {
        assert.match(await driver.text('#facts'), /WebAssemblySIMD, without relaxed SIMD, which this browser lacks/);
        const report = await driver.measure();
        assert.equal(report.facts.wasm, { variant: 'simd128' });
        for (const method of ['f16', 'nsn2']) assert.is(resultOf(report, 'wasm', method).kind, 'measured');
      },
      Driver.before(`const { validate } = WebAssembly; WebAssembly.validate = bytes => bytes.byteLength !== ${relaxed} && validate(bytes);`)
    );
  });
  test('the life of a worker goes on with the next context', () => {
    let workers = 0;
    return withPage(
      `${origin}?tokens=192,256&samples=3&places=wasm&methods=nsn2`,
      async driver => {
        const report = await driver.measure();
        const dead = { kind: 'missing', reason: 'the worker failed: Uncaught Error: out of memory' };
        assert.equal(resultOf(report, 'wasm', 'nsn2', 192), dead);
        assert.is(resultOf(report, 'wasm', 'nsn2', 256).kind, 'measured');
      },
      // The first describes the browser, the second measures.
      page =>
        page.route('**/worker.js', async route => {
          if (++workers !== 2) return route.continue();
          await route.fulfill({ response: await route.fetch(), body: 'throw new Error("out of memory")' });
        })
    );
  });
  test('a worker at all is told so', () =>
    withPage(
      SMALL,
      async driver => {
        assert.is(await driver.text('#error'), 'the worker failed: its script did not load');
        assert.is(await driver.page.locator('#start').isDisabled(), true);
      },
      page => page.route('**/worker.js', route => route.fulfill({ status: 500 }))
    ));
});

group("the address's query", test => {
  for (const [query, message] of [
    ['tokens=192,10', '"tokens" in the address expected integers from 64 to 131072, got "10"'],
    ['methods=f16,nsn5', '"methods" in the address expected f16, f32, nsn4, nsn3, nsn3 / nsn2, nsn2, nsn1, got "nsn5"'],
    ['places=cpu', '"places" in the address expected wasm, webgpu, got "cpu"'],
    ['samples=', '"samples" in the address expected integers from 1 to 1000, got ""'],
    ['token=192', 'The address\'s query expected tokens, methods, places, samples, got "token"']
  ] as const) {
    test(`${query} is refused in a sentence`, () =>
      withPage(`${origin}?${query}`, async driver => {
        await driver.page.click('#start');
        assert.is(await driver.text('#error'), message);
        assert.is(await driver.page.getAttribute('body', 'data-state'), 'ready');
      }));
  }
});

group('WebGPU', test => {
  test('on a software adapter is measured only when asked for by name, and is right', async () => {
    const withGpu = await openBrowser(GPU_FLAGS);
    try {
      const unasked = await Driver.open(withGpu, `${SMALL}&methods=nsn2`);
      const { reason } = resultOf(await unasked.measure(), 'webgpu', 'nsn2') as { reason: string };
      assert.is(reason, 'google swiftshader is a CPU that acts as a GPU: its times would say nothing about GPUs');
      await unasked.page.close();

      const asked = await Driver.open(withGpu, `${SMALL}&places=webgpu&methods=f16,nsn2`);
      const report = await asked.measure();
      for (const method of ['f16', 'nsn2']) {
        const result = resultOf(report, 'webgpu', method);
        assert.is(result.kind, 'measured', JSON.stringify(result));
      }
      assert.equal(report.facts.gpu, {
        vendor: 'google',
        architecture: 'swiftshader',
        device: '',
        description: '',
        software: true,
        clock: 'timestamp-query'
      });
      assert.is(await asked.page.locator('.plot svg').count(), 1);
    } finally {
      await withGpu.close();
    }
  });
});

group('afterwards', test => {
  test('browser and server end', async () => {
    await browser.close();
    server.closeAllConnections();
    server.close();
  });
});
