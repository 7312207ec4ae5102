// One token out of a row of logits.

export interface SampleOptions {
  /** 0: always the likeliest. */
  readonly temperature: number;
  /** The likeliest tokens that together reach this probability are drawn from. */
  readonly topP: number;
  /** Uniform in [0, 1). */
  readonly random: () => number;
}

export function sample(logits: Float32Array, { temperature, topP, random }: SampleOptions): number {
  const best = argmax(logits);
  if (temperature === 0) return best;
  const max = logits[best]!;
  // What is e⁻²⁰ times less likely than the best is never drawn: leaving it out spares sorting the vocabulary.
  const candidates: { token: number; weight: number }[] = [];
  let sum = 0;
  logits.forEach((logit, token) => {
    const weight = Math.exp((logit - max) / temperature);
    if (weight < 2e-9) return;
    candidates.push({ token, weight });
    sum += weight;
  });
  candidates.sort((a, b) => b.weight - a.weight);
  let kept = 0;
  let last = 0;
  while (last < candidates.length && kept < topP * sum) kept += candidates[last++]!.weight;
  let rest = random() * kept;
  for (const { token, weight } of candidates.slice(0, last)) {
    rest -= weight;
    if (rest < 0) return token;
  }
  return best;
}

export function argmax(values: Float32Array): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i]! > values[best]!) best = i;
  return best;
}
