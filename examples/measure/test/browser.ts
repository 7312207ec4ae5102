// A browser with the page in it, and what a person does there. Waits are bounded: a page that hangs fails its test.
import { existsSync, readFileSync } from 'node:fs';
import { type Browser, chromium, type Page } from 'playwright-core';
import { chromiumPath } from '../../../tools/chromium.ts';
import type { Cell, Report } from '../src/report.ts';

if (!existsSync(chromiumPath)) throw new Error(`expected a Chromium at ${chromiumPath}; CHROMIUM_PATH may name another`);

/** Milliseconds for anything to happen: a software GPU compiles shaders for minutes on a machine that does much else. */
const PATIENCE_MS = 300_000;
export const GPU_FLAGS = ['--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader', '--enable-features=Vulkan'];

export function openBrowser(args: string[] = []): Promise<Browser> {
  return chromium.launch({ executablePath: chromiumPath, args });
}

export class Driver {
  readonly page: Page;
  /** What nobody caught. */
  readonly errors: string[] = [];
  /** Where the page and its workers asked for something. */
  readonly requests: string[] = [];

  private constructor(page: Page) {
    this.page = page;
    page.on('pageerror', error => this.errors.push(error.message));
    page.on('request', request => this.requests.push(request.url()));
  }

  /** Resolves when the page can measure, or complains. */
  static async open(browser: Browser, url: string, prepare?: (page: Page) => Promise<unknown>): Promise<Driver> {
    const page = await browser.newPage({ viewport: { width: 1280, height: 860 } });
    page.setDefaultTimeout(PATIENCE_MS);
    await prepare?.(page);
    const driver = new Driver(page);
    await page.goto(url);
    await page.waitForSelector("body[data-state='ready'], #error:not([hidden])");
    return driver;
  }

  /** Puts `prelude` before the script of every worker. */
  static before(prelude: string): (page: Page) => Promise<unknown> {
    return page =>
      page.route('**/worker.js', async route => {
        const response = await route.fetch();
        await route.fulfill({ response, body: prelude + (await response.text()) });
      });
  }

  async measure(): Promise<Report> {
    await this.page.click('#start');
    await this.page.waitForSelector("body[data-state='done']");
    return this.report();
  }

  /** The file that is downloaded. */
  async report(): Promise<Report> {
    const [download] = await Promise.all([this.page.waitForEvent('download'), this.page.click('#download')]);
    return JSON.parse(readFileSync(await download.path(), 'utf8'));
  }

  async text(selector: string): Promise<string> {
    return (await this.page.textContent(selector)) ?? '';
  }
}

/** What became of a method in a place, at the only context with it. */
export function resultOf({ cells }: Report, place: Cell['place'], method: string, tokens = cells[0]!.tokens): Cell['result'] {
  const found = cells.filter(cell => cell.place === place && cell.method === method && cell.tokens === tokens);
  if (found.length !== 1) throw new Error(`expected one cell of ${place} ${method}, got ${found.length}`);
  return found[0]!.result;
}
