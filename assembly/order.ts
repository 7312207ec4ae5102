// The order and the scales of balanced channels, which a sequence has learned for each of its heads: keys are scaled, y = scales · z, and
// queries by the inverse. Rows of any matrix whose lanes are independent: tokens of a tile, or heads of a query.
//
// An order, one a head; src/wasm/learned.ts writes it:
//
//   channels  u32 [headDim]   the channels of keys in the order in which they are coded
//   scales    f32 [headDim]   what they are multiplied by, in that order
//   inverses  f32 [headDim]   1 / scales

import { Lanes, VECTOR_BYTES, vmul, vsplatAt } from "lanes";

@inline export function orderBytes(headDim: usize): usize { return 12 * headDim; }
@inline export function scalesOf(order: usize, headDim: usize): usize { return order + (headDim << 2); }
@inline export function inversesOf(order: usize, headDim: usize): usize { return order + (headDim << 3); }

/** y[i] = factors[i] · x[channels[i]]: f32 [headDim, rowBytes / 4]; factors are the scales, or the inverses. */
export function inOrder(x: usize, order: usize, factors: usize, headDim: usize, rowBytes: usize, y: usize): void {
  for (const end = order + (headDim << 2); order < end; order += 4, factors += 4) {
    const factor = vsplatAt(factors);
    let from = x + <usize>load<u32>(order) * rowBytes;
    for (const last = from + rowBytes; from < last; from += VECTOR_BYTES, y += VECTOR_BYTES) {
      store<Lanes>(y, vmul(load<Lanes>(from), factor));
    }
  }
}

/** x[channels[i]] = inverses[i] · y[i]: what was scaled, as it was. */
export function outOfOrder(y: usize, order: usize, headDim: usize, rowBytes: usize, x: usize): void {
  let inverses = inversesOf(order, headDim);
  for (const end = order + (headDim << 2); order < end; order += 4, inverses += 4) {
    const inverse = vsplatAt(inverses);
    let to = x + <usize>load<u32>(order) * rowBytes;
    for (const last = to + rowBytes; to < last; to += VECTOR_BYTES, y += VECTOR_BYTES) {
      store<Lanes>(to, vmul(load<Lanes>(y), inverse));
    }
  }
}
