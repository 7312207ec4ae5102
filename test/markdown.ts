// Markdown as tests read it: words, code, links and anchors. Must not know which page it reads.
import GithubSlugger from 'github-slugger';
import { lexer, type Token, type Tokens, walkTokens } from 'marked';

export interface Code {
  readonly language: string;
  readonly text: string;
  /** The nearest heading of the second level above it. */
  readonly section: string;
}

export interface Row {
  readonly cells: readonly string[];
  /** As a code's. */
  readonly section: string;
}

export interface Page {
  /** Headings of the second level, in order. */
  readonly sections: readonly string[];
  readonly codes: readonly Code[];
  /** Targets of links and images, as written. */
  readonly links: readonly string[];
  /** Cells of tables, without the heads. */
  readonly rows: readonly Row[];
  /** What `#…` may name, as GitHub makes it from headings. */
  readonly anchors: ReadonlySet<string>;
  /** Words that a reader sees: of prose, tables and code. What holds no letter and no digit is none. */
  readonly words: number;
}

export function readPage(markdown: string): Page {
  const sections: string[] = [];
  const codes: Code[] = [];
  const links: string[] = [];
  const rows: Row[] = [];
  const anchors = new Set<string>();
  const texts: string[] = [];
  const slugger = new GithubSlugger(); // remembers: a second heading of the same text gets -1
  walkTokens(lexer(markdown), token => {
    if (token.type === 'heading') {
      const heading = plainText(token.tokens!);
      anchors.add(slugger.slug(heading));
      if (token.depth === 2) sections.push(heading);
    }
    if (token.type === 'code') codes.push({ language: token.lang ?? '', text: token.text, section: sections.at(-1) ?? '' });
    if (token.type === 'table') {
      for (const row of token.rows)
        rows.push({ cells: row.map((cell: Tokens.TableCell) => plainText(cell.tokens)), section: sections.at(-1) ?? '' });
    }
    if (token.type === 'link' || token.type === 'image') links.push(token.href);
    if (isText(token)) texts.push(token.text);
  });
  const words = texts.flatMap(text => text.split(/\s+/)).filter(word => /[\p{L}\p{N}]/u.test(word));
  return { sections, codes, links, rows, anchors, words: words.length };
}

/** Whether a token is text itself, and not only what holds tokens that are. */
function isText(token: Token): token is Tokens.Text {
  const inside = 'tokens' in token ? token.tokens : undefined;
  return ['text', 'code', 'codespan', 'escape'].includes(token.type) && inside === undefined;
}

function plainText(tokens: readonly Token[]): string {
  return tokens.map(token => ('tokens' in token && token.tokens ? plainText(token.tokens) : 'text' in token ? token.text : '')).join('');
}
