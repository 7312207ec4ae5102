// Reads a file of test/fixtures in every runtime. test/run.ts lays the folder beside the bundled tests, so the URL holds there too.

/** The bytes of test/fixtures/`name`. */
export async function loadFixture(name: string): Promise<Uint8Array> {
  const url = new URL(`./fixtures/${name}`, import.meta.url);
  if (url.protocol === 'file:') {
    const { readFile } = await import('node:fs/promises');
    return new Uint8Array(await readFile(url)); // a copy: Node's Buffer may share its ArrayBuffer with others
  }
  const response = await fetch(url);
  if (!response.ok) throw new Error(`fixture ${name} expected status 200, got ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}
