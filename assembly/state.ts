// What every four query rows keep while attend passes over pages: a record in Shape.states.

/** One lane group's record in Shape.states: f32 [GROUP] each, then out and q, f32 [headDim, GROUP], and q in integers (prompt.ts). */
export const MOST: usize = 0;
export const SUM: usize = 16;
export const LIMITS: usize = 32;
export const QUERY_SCALE: usize = 48;
export const OUT: usize = 64;

@inline export function stateBytes(headDim: usize): usize {
  return OUT + 40 * headDim;
}
