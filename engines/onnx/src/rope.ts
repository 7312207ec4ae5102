// The frequencies of a rotation, read off the tables of cosines and sines that a graph has.

/** A table, f32 [positions, pairs]. */
export interface Table {
  readonly data: ArrayLike<number>;
  readonly positions: number;
  readonly pairs: number;
}

/** Tables of f16 are off by 2⁻¹¹ of a cosine at most, and their angles by some of that. */
const NEAR = 4e-3;

/**
 * Radians per token of every pair. An angle in the table is known up to whole turns, so each position tells which turn the one twice as
 * far is in, and the farther the finer.
 *
 * @returns undefined where the tables are of no rotation at a constant speed
 */
export function frequencies(cos: Table, sin: Table): number[] | undefined {
  const { positions, pairs } = cos;
  if (positions < 2 || sin.positions !== positions || sin.pairs !== pairs) return undefined;
  const angle = (position: number, pair: number): number => {
    const at = position * pairs + pair;
    return Math.atan2(sin.data[at]!, cos.data[at]!);
  };
  /** From −π to π. */
  const turn = (radians: number): number => radians - 2 * Math.PI * Math.round(radians / (2 * Math.PI));
  const speeds: number[] = [];
  for (let pair = 0; pair < pairs; pair++) {
    let speed = angle(1, pair);
    for (let position = 2; position < positions; position *= 2) speed += turn(angle(position, pair) - position * speed) / position;
    for (let position = 0; position < positions; position += Math.max(1, positions >> 6)) {
      if (Math.abs(turn(angle(position, pair) - position * speed)) > NEAR) return undefined;
    }
    speeds.push(speed);
  }
  return speeds;
}
