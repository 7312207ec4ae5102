// The text of the baselines' shaders, by name. Where no files can be read, a bundler puts their text in the place of this module.

import { readFileSync } from 'node:fs';

const text = (name: string): string => readFileSync(new URL(`${name}.wgsl`, import.meta.url), 'utf8');

export const shaders = { dense: text('dense'), densemerge: text('densemerge'), bandwidth: text('bandwidth') };
