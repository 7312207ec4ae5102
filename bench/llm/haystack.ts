// Numbers hidden in a book, and the questions that ask for them. Says nothing of caches.

import { InputError, type Model } from '@nsnquant/gguf';
import { random } from '../../tools/numbers.ts';

export interface Needle {
  /** Percent of the text before it. */
  readonly depth: number;
  readonly question: readonly number[];
  readonly answer: readonly number[];
}

export interface Haystack {
  readonly tokens: readonly number[];
  readonly needles: readonly Needle[];
}

const TOWNS = [
  'Aldermoor',
  'Brightwater',
  'Castlebrook',
  'Dunhaven',
  'Eastmere',
  'Foxbury',
  'Greywick',
  'Hollowfield',
  'Ironbridge',
  'Juniper'
];
export const MAX_NEEDLES = TOWNS.length;

/** A book of `length` tokens with a number of `digits` digits at every depth, ascending. Every `trial` hides others. */
export function hide(
  model: Pick<Model, 'encode'>,
  book: readonly number[],
  length: number,
  depths: readonly number[],
  digits: number,
  trial: number
): Haystack {
  const next = random(trial + 1);
  const hidden = depths.map((depth, i) => {
    const number = Array.from({ length: digits }, () => Math.floor(next() * 10)).join('');
    // Towns change places from trial to trial: none may always lie where numbers are easy to find.
    const sentence = `The secret number of ${TOWNS[(i + 3 * trial) % TOWNS.length]} is`;
    return {
      depth,
      // Said twice: said once, a small model finds few of them in 8,000 tokens even with the raw cache.
      text: model.encode(`\n\n${sentence} ${number}. Again, ${sentence.replace('The', 'the')} ${number}.\n\n`),
      question: model.encode(`\n\nRemember the secret numbers that were mentioned above. ${sentence}`),
      answer: model.encode(` ${number}`)
    };
  });
  const rest = length - hidden.reduce((sum, { text }) => sum + text.length, 0);
  if (rest <= 0 || book.length < rest)
    throw new InputError(`"--lengths" expected more tokens than the numbers take and fewer than the book has, got ${length}`);
  const tokens: number[] = [];
  let from = 0;
  for (const { depth, text } of hidden) {
    const to = Math.floor((rest * depth) / 100);
    tokens.push(...book.slice(from, to), ...text);
    from = to;
  }
  tokens.push(...book.slice(from, rest));
  return { tokens, needles: hidden };
}
