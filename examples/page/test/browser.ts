// A browser with the page in it, and what a person does there. Waits are bounded: a page that hangs fails its test.
import { existsSync } from 'node:fs';
import { type Browser, chromium, type Page } from 'playwright-core';
import { chromiumPath } from '../../../tools/chromium.ts';

if (!existsSync(chromiumPath)) throw new Error(`expected a Chromium at ${chromiumPath}; CHROMIUM_PATH may name another`);

/** Milliseconds for anything to happen: a software GPU compiles shaders for minutes on a machine that does much else. */
const PATIENCE_MS = 300_000;

export interface File {
  readonly name: string;
  readonly bytes: Uint8Array;
}

export function openBrowser(args: string[]): Promise<Browser> {
  return chromium.launch({ executablePath: chromiumPath, args });
}

/** A browser left open would keep the tests from ending. */
export async function withBrowser(args: string[], run: (browser: Browser) => Promise<void>): Promise<void> {
  const browser = await openBrowser(args);
  try {
    await run(browser);
  } finally {
    await browser.close();
  }
}

export class Driver {
  readonly page: Page;
  /** What nobody caught. */
  readonly errors: string[] = [];

  private constructor(page: Page) {
    this.page = page;
    page.on('pageerror', error => this.errors.push(error.message));
  }

  static async open(browser: Browser, origin: string, prepare?: (page: Page) => Promise<unknown>): Promise<Driver> {
    const page = await browser.newPage({ viewport: { width: 1360, height: 860 } });
    page.setDefaultTimeout(PATIENCE_MS);
    await prepare?.(page);
    const driver = new Driver(page);
    await page.goto(origin);
    return driver;
  }

  /** A page for one test, in which nothing may go uncaught. */
  static async use(
    browser: Browser,
    origin: string,
    run: (driver: Driver) => Promise<void>,
    prepare?: (page: Page) => Promise<unknown>
  ): Promise<void> {
    const driver = await Driver.open(browser, origin, prepare);
    try {
      await run(driver);
      if (driver.errors.length > 0) throw new Error(driver.errors.join('\n'));
    } finally {
      await driver.page.close();
    }
  }

  async choose({ name, bytes }: File): Promise<void> {
    await this.page.setInputFiles('#file', { name, mimeType: 'application/octet-stream', buffer: Buffer.from(bytes) });
  }

  /** As from a file manager. */
  async drop({ name, bytes }: File): Promise<void> {
    await this.page.evaluate(
      ([name, bytes]) => {
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([Uint8Array.from(bytes)], name));
        for (const type of ['dragenter', 'dragover', 'drop'])
          document.body.dispatchEvent(new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
      },
      [name, [...bytes]] as const
    );
  }

  /** Until the page can be asked something, or complains; resolves to its complaint. */
  async settled(): Promise<string> {
    await this.page.waitForSelector(
      "body:is([data-state='ready'], [data-state='empty'], [data-state='blocked']):has(#error:not([hidden])), body[data-state='ready']"
    );
    return this.complaint();
  }

  complaint(): Promise<string> {
    return this.page.evaluate(() => {
      const error = document.getElementById('error')!;
      return error.hidden ? '' : error.querySelector('p')!.textContent;
    });
  }

  async load(file: File): Promise<string> {
    await this.choose(file);
    return this.settled();
  }

  async set(id: 'keys' | 'values' | 'attention' | 'capacity', value: string): Promise<string> {
    await this.page.selectOption(`#${id}`, value);
    return this.settled();
  }

  /** Until the conversation is forgotten. */
  async restart(): Promise<void> {
    await this.page.click('#restart');
    await this.page.waitForFunction(() => document.querySelectorAll('#log li').length === 0);
    await this.settled();
  }

  /** Resolves to the answer, once it ended. */
  async ask(question: string, longest = 64): Promise<string> {
    await this.send(question, longest);
    await this.settled();
    return this.answer();
  }

  async send(question: string, longest = 64): Promise<void> {
    await this.page.fill('#longest', String(longest));
    await this.page.fill('#question', question);
    await this.page.press('#question', 'Enter');
  }

  answer(): Promise<string> {
    return this.text('#log li:last-child p');
  }

  async text(selector: string): Promise<string> {
    return (await this.page.textContent(selector)) ?? '';
  }

  /** Stops the next answer once it has so many letters: by the page itself, as on a busy machine it may end before this process is heard. */
  async stopNextAnswer(letters: number): Promise<void> {
    await this.page.evaluate(letters => {
      const log = document.getElementById('log')!;
      const observer = new MutationObserver(() => {
        if ((log.querySelector('li:last-child.open p')?.textContent.length ?? 0) < letters) return;
        observer.disconnect();
        document.getElementById('stop')!.click();
      });
      observer.observe(log, { childList: true, subtree: true, characterData: true });
    }, letters);
  }

  /** Lengths of the newest answer at every change from now on; stops when asked for. */
  async watchAnswer(): Promise<() => Promise<number[]>> {
    await this.page.evaluate(() => {
      const lengths: number[] = [];
      const observer = new MutationObserver(() => {
        const length = document.querySelector('#log li:last-child.open p')?.textContent.length;
        if (length !== undefined && length !== lengths.at(-1)) lengths.push(length);
      });
      observer.observe(document.getElementById('log')!, { childList: true, subtree: true, characterData: true });
      Object.assign(globalThis, { watched: { lengths, observer } });
    });
    return () =>
      this.page.evaluate(() => {
        const { lengths, observer } = (globalThis as unknown as { watched: { lengths: number[]; observer: MutationObserver } }).watched;
        observer.disconnect();
        return lengths;
      });
  }

  /** Waits until a plot shows so many measured curves. */
  async curves(id: 'bytes-plot' | 'speed-plot', count: number): Promise<void> {
    await this.page.waitForFunction(([id, count]) => document.querySelectorAll(`#${id} path[stroke-width="2.5"]`).length === count, [
      id,
      count
    ] as const);
  }
}
