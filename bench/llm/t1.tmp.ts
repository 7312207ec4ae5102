import { openModel, readText, runtime } from './node.ts';
import { DenseAttention } from './caches/dense.ts';
let t = performance.now(); const lap = (s: string) => { console.log(s, (performance.now() - t).toFixed(0), 'ms'); t = performance.now(); };
const model = await openModel(undefined, { threads: 1 }); lap('open');
const text = await readText('wikitext'); const ids = model.encode(text); lap('tokenize'); console.log(ids.length, ids.slice(0, 20), process.memoryUsage().rss / 1e6);
const { kvHeads, headDim, layers } = model.config;
const dense = await DenseAttention.open(runtime, model.config);
const K = Array.from({ length: layers }, () => new Float32Array(2048 * kvHeads * headDim)), V = K.map(k => k.slice());
const row = kvHeads * headDim;
const len = new Array(layers).fill(0);
let at = 0;
const cache = { get length() { return Math.min(...len); }, append(l: number, k: Float32Array, v: Float32Array) { K[l].set(k, len[l] * row); V[l].set(v, len[l] * row); len[l] += k.length / row; },
  async attend(l: number, q: Float32Array) { const t0 = performance.now(); const o = await dense.attend(q, K[l].subarray(0, len[l] * row), V[l].subarray(0, len[l] * row)); at += performance.now() - t0; return o; } };
let nll = 0, n = 0, nll2 = 0, n2 = 0, head = 0;
for (let from = 0; from < 2048; from += 64) {
  const h = await model.forward(ids.slice(from, from + 64), cache);
  const t0 = performance.now();
  const logits = await model.logits(h); head += performance.now() - t0;
  const V = model.config.vocabulary;
  for (let i = 0; i < 64; i++) {
    if (from + i === 2047) continue;
    const r = logits.subarray(i * V, (i + 1) * V); let m = -Infinity; for (const x of r) if (x > m) m = x; let s = 0; for (const x of r) s += Math.exp(x - m);
    const l = m + Math.log(s) - r[ids[from + i + 1]]; nll += l; n++; if (from + i >= 1023) { nll2 += l; n2++; }
  }
}
lap('run'); console.log(Math.exp(nll / n), n, Math.exp(nll2 / n2), n2, { at, head }, process.memoryUsage().rss / 1e6);
