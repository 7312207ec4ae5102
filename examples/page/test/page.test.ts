// The page in Chromium with a small model: what a person does, and what may be wrong with what they give.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { build } from 'esbuild';
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { tinyGguf } from '../../../tools/tiny-gguf.ts';
import { common } from '../build.ts';
import { serve } from '../serve.ts';
import { Driver, type File, openBrowser, withBrowser } from './browser.ts';
import { LETTERS, LONG_QUESTION, lively, QUESTIONS } from './models.ts';
import { nodeEngine } from './node-engine.ts';

const { answersInNode } = await nodeEngine();
const model = lively();
const folder = mkdtempSync(join(tmpdir(), 'nsnquant-page-'));
const offered = join(folder, model.name);
writeFileSync(offered, model.bytes);
const { origin, server } = await serve([offered], 0);
const browser = await openBrowser([]);
process.on('exit', () => rmSync(folder, { recursive: true, force: true }));

const GPU_FLAGS = ['--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader', '--enable-features=Vulkan'];

const withPage = (run: (driver: Driver) => Promise<void>, prepare?: Parameters<typeof Driver.open>[2]): Promise<void> =>
  Driver.use(browser, origin, run, prepare);

group('conversation', test => {
  test('is what the same engine says in Node, in a codec and after switching to another', () =>
    withPage(async driver => {
      const expected = await answersInNode(model, LETTERS, [
        { keys: 'nsn3', values: 'nsn3', questions: QUESTIONS.slice(0, 2) },
        { keys: 'nsn1', values: 'nsn1', questions: QUESTIONS.slice(2) }
      ]);
      assert.is(await driver.load(model), '');
      assert.is(await driver.page.evaluate(() => crossOriginIsolated), false);
      assert.is(await driver.ask(QUESTIONS[0], LETTERS), expected[0]);
      assert.is(await driver.ask(QUESTIONS[1], LETTERS), expected[1]);
      assert.is(await driver.set('keys', 'nsn1'), '');
      assert.is(await driver.set('values', 'nsn1'), '');
      assert.match(await driver.text('#note'), /next question first reads the conversation, \d{3} tokens, into it/);
      assert.is(await driver.ask(QUESTIONS[2], LETTERS), expected[2]);
      assert.not.match(await driver.text('#note'), /next question/);
      await driver.curves('bytes-plot', 2);
      await driver.curves('speed-plot', 2);
      assert.match(await driver.text('#legend'), /nsn3\/nsn3, WebAssembly.*nsn1\/nsn1, WebAssembly/);
    }));
  test('comes in pieces, and stops when asked to', () =>
    withPage(async driver => {
      await driver.load(model);
      const lengths = await driver.watchAnswer();
      await driver.stopNextAnswer(5);
      await driver.send(QUESTIONS[0], 400);
      await driver.settled();
      assert.match(await driver.text('#log li:last-child small'), /stopped$/);
      const answer = await driver.answer();
      assert.ok(answer.length >= 5 && answer.length < 400, answer);
      assert.ok((await lengths()).length >= 5);
      // What was said stays said.
      await driver.ask(QUESTIONS[1], 3);
      assert.is(await driver.page.locator('#log li').count(), 4);
    }));
  test('is asked one thing at a time: what comes before the answer has ended is refused', () =>
    withPage(async driver => {
      const { outputFiles } = await build({ ...common, entryPoints: ['test/together.ts'], write: false });
      await driver.page.route('**/together.js', route =>
        route.fulfill({ contentType: 'text/javascript', body: Buffer.from(outputFiles[0]!.contents) })
      );
      const results = await driver.page.evaluate(
        async ([name, bytes]) => {
          const url = './together.js';
          return ((await import(url)) as typeof import('./together.ts')).together(name, bytes);
        },
        [model.name, [...model.bytes]] as const
      );
      const refused = 'expected one thing at a time, got another before the answer has ended';
      assert.equal(results, ['longest answer', refused, refused, refused, 'longest answer']);
    }));
  test('begins anew on request', () =>
    withPage(async driver => {
      await driver.load(model);
      const first = await driver.ask(QUESTIONS[0], 20);
      await driver.ask(QUESTIONS[1], 20);
      await driver.restart();
      assert.is(await driver.text('#tile-context'), '0');
      assert.is(await driver.ask(QUESTIONS[0], 20), first);
    }));
  test('says that an answer was cut, and what to do when the room is full', () =>
    withPage(async driver => {
      await driver.load(lively(96));
      await driver.ask(QUESTIONS[0], 10);
      assert.match(await driver.text('#log li:last-child small'), /cut: the longest answer$/);
      await driver.ask(QUESTIONS[1], 96);
      assert.match(await driver.text('#log li:last-child small'), /cut: no room for more context$/);
      assert.is(await driver.text('#tile-context'), '96');
      const long = 'abcdefgh'.repeat(100);
      await driver.ask(long);
      assert.match(
        await driver.complaint(),
        /^Expected a conversation of fewer than 96 tokens \(the cache's capacity\), got [\d,]+; shorten the question, start anew, or open a larger cache$/
      );
      assert.is(await driver.page.inputValue('#question'), long);
      assert.is(await driver.page.locator('#log li').count(), 4);
    }));
});

group('model', test => {
  test('may be dropped on the page', () =>
    withPage(async driver => {
      await driver.drop(model);
      assert.is(await driver.settled(), '');
      assert.is(await driver.text('#model-name'), 'lively');
    }));
  test('may come from the server, by ranges or whole', () =>
    withPage(async driver => {
      await driver.page.click('#offers button');
      assert.is(await driver.settled(), '');
      const answer = await driver.ask(QUESTIONS[0], 20);
      await driver.restart(); // or the same conversation would go on
      await driver.page.click('#change');
      let whole = 0;
      await driver.page.route('**/models/0', route => {
        whole++;
        return route.fulfill({ status: 200, body: Buffer.from(model.bytes) });
      });
      await driver.page.click('#offers button');
      assert.is(await driver.settled(), '');
      assert.is(await driver.ask(QUESTIONS[0], 20), answer);
      assert.is(whole, 1);
    }));
  test('that the server no longer has is refused with a sentence', () =>
    withPage(async driver => {
      await driver.page.route('**/models/0', route => route.fulfill({ status: 404 }));
      await driver.page.click('#offers button');
      assert.is(await driver.settled(), 'lively.gguf: expected the server to have it, got 404 Not Found');
      await driver.page.unroute('**/models/0');
      await driver.page.route('**/models/0', route => route.abort());
      await driver.page.click('#offers button');
      await driver.page.waitForFunction(() => document.getElementById('error')!.textContent.includes('running'));
      assert.match(await driver.settled(), /^lively\.gguf: expected an answer from the server, got .*; is it still running\?$/);
    }));
  test('that is being read can be cancelled', () =>
    withPage(async driver => {
      await driver.page.route('**/models/0', () => new Promise(() => undefined));
      await driver.page.click('#offers button');
      await driver.page.click('#cancel');
      await driver.page.waitForSelector("body[data-state='empty']");
      assert.is(await driver.load(model), '');
    }));
});

group('bad input', test => {
  const whole = tinyGguf();
  const bad: readonly (readonly [what: string, file: File, message: RegExp])[] = [
    [
      'another architecture',
      { name: 'mamba.gguf', bytes: tinyGguf({ metadata: { 'general.architecture': 'mamba' } }) },
      /expected a model of one of the architectures llama, .*, got mamba$/
    ],
    [
      'a truncated file',
      { name: 'cut.gguf', bytes: whole.subarray(0, whole.length - 1000) },
      /expected at least [\d,]+ bytes, got a file that ends after [\d,]+ bytes; it is cut short, download it again/
    ],
    ['a file cut in its header', { name: 'cut.gguf', bytes: whole.subarray(0, 333) }, /expected/],
    [
      'no GGUF',
      { name: 'notes.txt', bytes: new TextEncoder().encode('no model') },
      /expected a GGUF file, got one whose header cannot be read/
    ],
    ['an empty file', { name: 'empty.gguf', bytes: new Uint8Array() }, /expected a complete header, got a file that ends after 0 bytes/],
    [
      'a missing tensor',
      { name: 'less.gguf', bytes: tinyGguf({ without: ['blk.1.ffn_up.weight'] }) },
      /expected tensor "blk\.1\.ffn_up\.weight", got a file without it$/
    ],
    [
      'a head dimension that no codec has',
      { name: 'heads.gguf', bytes: tinyGguf({ metadata: { 'llama.attention.key_length': 16 }, shapes: odd() }) },
      /"llama\.attention\.key_length" expected multiple of 8 from 32 to 512, got 16$/
    ]
  ];
  test('is refused in a sentence, and a good file works afterwards', () =>
    withPage(async driver => {
      for (const [what, file, message] of bad) {
        const complaint = await driver.load(file);
        assert.match(complaint, message, `${what}: ${complaint}`);
        assert.is(await driver.page.getAttribute('body', 'data-state'), 'empty');
      }
      assert.is(await driver.load(model), '');
    }));
});

/** Shapes of a model with heads of 16 channels. */
function odd(): Record<string, readonly number[]> {
  return Object.fromEntries(
    [0, 1].flatMap(layer => [
      [`blk.${layer}.attn_q.weight`, [64, 32]],
      [`blk.${layer}.attn_k.weight`, [64, 16]],
      [`blk.${layer}.attn_v.weight`, [64, 16]],
      [`blk.${layer}.attn_output.weight`, [32, 64]]
    ])
  );
}

group('browser', test => {
  test('without a GPU offers WebAssembly alone, with the reason', () =>
    withPage(async driver => {
      await driver.page.waitForFunction(
        () => document.querySelector<HTMLOptionElement>('#attention option[value=webgpu]')!.text === 'WebGPU (no adapter here)'
      );
      assert.is(await driver.page.locator('#attention option[value=webgpu]').isDisabled(), true);
    }));
  test('whose worker does not load is told so', () =>
    withPage(
      async driver => {
        await driver.choose(model);
        assert.is(await driver.settled(), 'The worker failed: its script did not load');
      },
      page => page.route('**/worker.js', route => route.fulfill({ status: 500 }))
    ));
  if (process.arch === 'x64') {
    // V8 compiles SIMD only for processors with SSSE3.
    test('without WebAssembly SIMD is told what would work', () =>
      withBrowser(['--js-flags=--no-enable-ssse3'], async old => {
        const driver = await Driver.open(old, origin);
        assert.match(
          await driver.settled(),
          /^This browser's WebAssembly has no SIMD, which ONNX Runtime needs; Chrome or Edge 105, Firefox 121, Safari 16\.4 and newer will work\.$/
        );
        assert.is(await driver.page.locator('#file').isDisabled(), true);
      }));
  } else {
    test.skip('without WebAssembly SIMD is told what would work', 'Chromium can be made to lack it on x64 only');
  }
});

group('WebGPU', test => {
  /** A browser with a software GPU, and the page with `prelude` before the worker's script. */
  const withGpu = (prelude: string, run: (driver: Driver) => Promise<void>): Promise<void> =>
    withBrowser(GPU_FLAGS, async gpuBrowser => {
      const driver = await Driver.open(gpuBrowser, origin, page =>
        page.route('**/worker.js', async route => {
          const response = await route.fetch();
          await route.fulfill({ response, body: prelude + (await response.text()) });
        })
      );
      await driver.load(model);
      await driver.page.waitForFunction(
        () => document.querySelector<HTMLOptionElement>('#attention option[value=webgpu]')!.text === 'WebGPU (software, slow)'
      );
      await run(driver);
      assert.equal(driver.errors, []);
    });
  // Keeps the worker's devices, for the test to destroy.
  const keep =
    'globalThis.devices = []; GPUAdapter.prototype.requestDevice = new Proxy(GPUAdapter.prototype.requestDevice, { apply: async (f, adapter, args) => { const device = await Reflect.apply(f, adapter, args); devices.push(device); return device; } });\n';
  test('answers as WebAssembly does, and goes on after the device was lost', () =>
    withGpu(keep, async driver => {
      const answer = await driver.ask(LONG_QUESTION, 12);
      await driver.restart();
      assert.is(await driver.set('attention', 'webgpu'), '');
      assert.match(await driver.text('#note'), /WebGPU .*swiftshader/i);
      assert.is(await driver.ask(LONG_QUESTION, 12), answer);
      assert.match(await driver.text('#legend'), /nsn3\/nsn3, WebGPU/);

      await driver.page.workers()[0]!.evaluate(() => {
        (globalThis as unknown as { devices: GPUDevice[] }).devices.at(-1)!.destroy();
      });
      await driver.send(QUESTIONS[0], 4);
      assert.match(await driver.settled(), /^webgpu backend .*(lost|destroyed)/);
      assert.is(await driver.page.inputValue('#question'), QUESTIONS[0]);
      assert.is((await driver.ask(QUESTIONS[0], 4)).length, 4);
      assert.is(await driver.complaint(), '');
    }));
  // What is read back from this GPU is always zero.
  const blank =
    'GPUBuffer.prototype.getMappedRange = new Proxy(GPUBuffer.prototype.getMappedRange, { apply: (f, buffer, range) => new Uint8Array(Reflect.apply(f, buffer, range)).fill(0).buffer });\n';
  test('that computes wrongly is refused, and WebAssembly goes on', () =>
    withGpu(blank, async driver => {
      assert.match(
        await driver.set('attention', 'webgpu'),
        /^webgpu backend failed its self-test on google swiftshader: .*\. The cache before stays in use\.$/
      );
      assert.is(await driver.page.inputValue('#attention'), 'wasm');
      assert.is((await driver.ask(QUESTIONS[0], 20)).length, 20);
    }));
});

group('afterwards', test => {
  test('browser and server end', async () => {
    await browser.close();
    server.closeAllConnections();
    server.close();
  });
});
