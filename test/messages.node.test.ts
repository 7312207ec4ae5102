// Reads the sources: every error they make says what was expected and what came. Which words, errors.test.ts and refusals.test.ts say one by one.

import { readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';

const src = fileURLToPath(new URL('../src/', import.meta.url));
const files = readdirSync(src, { recursive: true, encoding: 'utf8' }).filter(file => file.endsWith('.ts') && !file.includes('generated'));

/** Errors that are no answer to something given, by how their message begins: why. */
const others: Readonly<Record<string, string>> = {
  'lost its device': 'an event: nothing was given',
  'failed its self-test': 'a finding: the fault is told as it was found',
  'is looked for in Node': 'a reason, read in `backend.reason`',
  'free list is empty': 'a fault of this library',
  'too few raw slots': 'a fault of this library',
  'webgpu, message, cause': 'refuse() of src/webgpu/readback.ts: the words are its caller’s',
  'backend message': 'BackendError itself, which puts the name before a message'
};

/** The text from `at`, which is behind an opening parenthesis, to the closing one. */
function argumentsAt(text: string, at: number): string {
  let depth = 1;
  let end = at;
  for (; depth > 0; end++) depth += text[end] === '(' ? 1 : text[end] === ')' ? -1 : 0;
  return text.slice(at, end - 1);
}

group('messages', test => {
  const errors = files.flatMap(file => {
    const text = readFileSync(src + file, 'utf8');
    return [...text.matchAll(/new (?:Type|Range|Backend)?Error\(|super\(`/g)].map(match => ({
      where: `${file}:${text.slice(0, match.index).split('\n').length}`,
      message: argumentsAt(text, match.index + match[0].indexOf('(') + 1)
    }));
  });

  test('are found', () => {
    assert.ok(errors.length > 40, `${errors.length}`);
  });

  test('say what was expected and what came', () => {
    const met = new Set<string>();
    for (const { where, message } of errors) {
      if (/expected[\s\S]*\bgot\b/.test(message)) continue;
      const known = Object.keys(others).find(begin => message.replaceAll(/[`'"]|\$\{|\}/g, '').includes(begin));
      assert.ok(known, `${where} expected "expected … got …", got ${message}`);
      met.add(known);
    }
    assert.equal([...met].sort(), Object.keys(others).sort(), 'exceptions that are none any more');
  });

  test('leave it to kind() what came: typeof takes an array and null for objects', () => {
    for (const { where, message } of errors) assert.not.match(message, /typeof/, where);
  });
});
