// Tables by which kernels turn a window's mean without rotating a key: angles of every token about the window's center, and
// the basis that ⟨q, RoPEᵤ(o)⟩ is summed in (assembly/rope.ts). One set for the whole cache.

import { type Rope, WINDOW } from './format/layout.ts';

export interface RopeTables {
  readonly pairs: number;
  /** f32 [pairs, 64]: of ω·(t − 31.5). */
  readonly cos: Float32Array;
  readonly sin: Float32Array;
  /** Pairs before this one have basis functions of their own; the rest share powers of u. */
  readonly trigPairs: number;
  /** First pair that 2 + 2 powers serve, and first that 1 + 1 do. */
  readonly tier2: number;
  readonly tier3: number;
  /** f32 [pairs, 8]: cos ωu in 1, v², v⁴, v⁶ and sin ωu in v, v³, v⁵, v⁷, v = u / 31.5. */
  readonly powers: Float32Array;
  readonly basisPairs: number;
  /** i16 [8, 2 (even, odd), basisPairs, 4 tokens, 2]: functions of u = 0.5 … 31.5, times 32767. */
  readonly basis: Int16Array;
}

const HALF = WINDOW / 2;
const REACH = (WINDOW - 1) / 2;
const POWERS = 4;
/** Largest angle ω·31.5 that 4, 2 and 1 powers fit with an error below 1e-4, near that of the i16 basis. */
const ANGLES = { 4: 2, 2: 0.35, 1: 0.01 } as const;

/** A rotation as JSON, by which equal ones are known: `null` for none. */
export function ropeText(rope: Rope | undefined): string {
  return rope ? JSON.stringify({ invFreq: Array.from(rope.invFreq), interleaved: rope.interleaved }) : 'null';
}

export function ropeTables(rope: Rope | undefined): RopeTables {
  const invFreq = Float64Array.from(rope?.invFreq ?? []);
  const pairs = invFreq.length;
  const beyond = (angle: number): number => invFreq.findLastIndex(w => Math.abs(w) * REACH > angle) + 1;
  const trigPairs = beyond(ANGLES[4]);
  const tier2 = beyond(ANGLES[2]);
  const tier3 = beyond(ANGLES[1]);
  const cos = new Float32Array(pairs * WINDOW);
  const sin = new Float32Array(pairs * WINDOW);
  const powers = new Float32Array(pairs * 2 * POWERS);
  invFreq.forEach((w, pair) => {
    for (let t = 0; t < WINDOW; t++) {
      cos[pair * WINDOW + t] = Math.cos(w * (t - REACH));
      sin[pair * WINDOW + t] = Math.sin(w * (t - REACH));
    }
    if (pair < trigPairs) return;
    const terms = pair < tier2 ? POWERS : pair < tier3 ? 2 : 1;
    powers.set(
      fit(v => Math.cos(w * REACH * v), 0, terms),
      pair * 2 * POWERS
    );
    powers.set(
      fit(v => Math.sin(w * REACH * v), 1, terms),
      pair * 2 * POWERS + POWERS
    );
  });

  const functions = trigPairs + POWERS;
  const basisPairs = Math.ceil(functions / 2);
  const basis = new Int16Array(8 * 2 * basisPairs * 4 * 2);
  for (let f = 0; f < functions; f++) {
    for (let i = 0; i < HALF; i++) {
      const u = i + 0.5;
      const [even, odd] =
        f < trigPairs
          ? [Math.cos(invFreq[f]! * u), Math.sin(invFreq[f]! * u)]
          : [(u / REACH) ** (2 * (f - trigPairs)), (u / REACH) ** (2 * (f - trigPairs) + 1)];
      const at = (half: number): number => ((((i >> 2) * 2 + half) * basisPairs + (f >> 1)) * 4 + (i & 3)) * 2 + (f & 1);
      basis[at(0)] = Math.round(even * 32767);
      basis[at(1)] = Math.round(odd * 32767);
    }
  }
  return { pairs, cos, sin, trigPairs, tier2, tier3, powers, basisPairs, basis };
}

/** Least squares of f in v^parity, v^(parity+2) …, over the window's own 32 places, by normal equations. */
function fit(f: (v: number) => number, parity: number, terms: number): number[] {
  const rows = Array.from({ length: terms }, () => new Float64Array(terms + 1));
  for (let i = 0; i < HALF; i++) {
    const v = (i + 0.5) / REACH;
    for (let a = 0; a < terms; a++) {
      for (let b = 0; b < terms; b++) rows[a]![b]! += v ** (2 * (a + b + parity));
      rows[a]![terms]! += v ** (2 * a + parity) * f(v);
    }
  }
  // Gauss–Jordan without pivoting: the matrix is positive definite.
  for (let a = 0; a < terms; a++) {
    for (let b = 0; b < terms; b++) {
      if (a === b) continue;
      const factor = rows[b]![a]! / rows[a]![a]!;
      for (let c = a; c <= terms; c++) rows[b]![c]! -= factor * rows[a]![c]!;
    }
  }
  return rows.map((row, a) => row[terms]! / row[a]!);
}
