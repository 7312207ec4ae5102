// Four lanes at once (simd128). The relaxed binary is this file with `vmadd` fused; its scalar twin is ../scalar/lanes.ts.
// Every operation here is vertical: lane i of a result depends on lane i of its operands alone, which is why the two
// builds agree bit for bit. Memory is read and written with the builtins load<Lanes> and store<Lanes>.

export type Lanes = v128;      // f32 × 4
export type IntLanes = v128;   // i32 × 4, or 4 pairs of i16
export type Mask = v128;

/** Bytes that one `Lanes` covers in an f32 array. */
export const VECTOR_BYTES: usize = 16;

@inline export function vsplat(x: f32): Lanes { return f32x4.splat(x); }
/** The f32 at p, or some bytes after it: that is part of the load, which binaryen does not make of a sum. */
@inline export function vsplatAt(p: usize): Lanes { return v128.load32_splat(p); }
@inline export function vsplatAt4(p: usize): Lanes { return v128.load32_splat(p, 4); }
@inline export function vsplatAt8(p: usize): Lanes { return v128.load32_splat(p, 8); }
@inline export function vsplatAt12(p: usize): Lanes { return v128.load32_splat(p, 12); }
@inline export function vadd(a: Lanes, b: Lanes): Lanes { return f32x4.add(a, b); }
@inline export function vsub(a: Lanes, b: Lanes): Lanes { return f32x4.sub(a, b); }
@inline export function vmul(a: Lanes, b: Lanes): Lanes { return f32x4.mul(a, b); }
@inline export function vdiv(a: Lanes, b: Lanes): Lanes { return f32x4.div(a, b); }
@inline export function vsqrt(a: Lanes): Lanes { return f32x4.sqrt(a); }
@inline export function vabs(a: Lanes): Lanes { return f32x4.abs(a); }
@inline export function vneg(a: Lanes): Lanes { return f32x4.neg(a); }
@inline export function vfloor(a: Lanes): Lanes { return f32x4.floor(a); }
/** a < b ? b : a. One instruction on x86, where f32x4.max is five. */
@inline export function vmax(a: Lanes, b: Lanes): Lanes { return f32x4.pmax(a, b); }
/** b < a ? b : a. */
@inline export function vmin(a: Lanes, b: Lanes): Lanes { return f32x4.pmin(a, b); }
/** a · b + c: rounded twice, or once in the relaxed build. Never used where bytes are made. */
@inline export function vmadd(a: Lanes, b: Lanes, c: Lanes): Lanes {
  return ASC_FEATURE_RELAXED_SIMD ? f32x4.relaxed_madd(a, b, c) : f32x4.add(f32x4.mul(a, b), c);
}
@inline export function vgt(a: Lanes, b: Lanes): Mask { return f32x4.gt(a, b); }
@inline export function vselect(yes: Lanes, no: Lanes, when: Mask): Lanes { return v128.bitselect(yes, no, when); }

/**
 * What unpacking needs, to be loaded into locals before a loop, inside which V8 rebuilds constants (2 % of attend at one bit
 * and headDim 64): the bits of a sign-extended f16 shifted by 13 that an f32 keeps, 2^112 in bits, and the places of four nibbles.
 */
const UNPACK: usize = memory.data<u32>([0x8fffe000, 0x77800000, 0, 0, 0xf, 0xf0, 0xf00, 0xf000], 16);
@inline export function vhalfBits(): IntLanes { return v128.load32_splat(UNPACK); }
@inline export function vhalfScale(): Lanes { return v128.load32_splat(UNPACK, 4); }
@inline export function vnibbleBits(): IntLanes { return v128.load(UNPACK, 16); }

/**
 * VECTOR_BYTES / 4 f16 values as f32; `bits` and `scale` come from vhalfBits and vhalfScale. Exact: the exponent is rebased by one
 * multiplication, which mends subnormals too.
 */
@inline export function vloadHalf(p: usize, bits: IntLanes, scale: Lanes): Lanes {
  return f32x4.mul(v128.and(i32x4.shl(v128.load16x4_s(p), 13), bits), scale);
}

/** Adjacent i16 pairs multiplied and added: lane i = a[2i]·b[2i] + a[2i+1]·b[2i+1]. */
@inline export function vdotPairs(a: IntLanes, b: IntLanes): IntLanes { return i32x4.dot_i16x8_s(a, b); }
@inline export function vpairSplatAt(p: usize): IntLanes { return v128.load32_splat(p); }
@inline export function vpairSplatAt4(p: usize): IntLanes { return v128.load32_splat(p, 4); }
@inline export function vpairSplatAt8(p: usize): IntLanes { return v128.load32_splat(p, 8); }
@inline export function vpairSplatAt12(p: usize): IntLanes { return v128.load32_splat(p, 12); }
@inline export function vintSplat(x: i32): IntLanes { return i32x4.splat(x); }
@inline export function vintAdd(a: IntLanes, b: IntLanes): IntLanes { return i32x4.add(a, b); }
@inline export function vintSub(a: IntLanes, b: IntLanes): IntLanes { return i32x4.sub(a, b); }
@inline export function vintAbs(a: IntLanes): IntLanes { return i32x4.abs(a); }
@inline export function vintMax(a: IntLanes, b: IntLanes): IntLanes { return i32x4.max_s(a, b); }
/** The largest lane: not vertical, but a maximum knows no order. */
@inline export function vintLargest(a: IntLanes): i32 {
  const pairs = i32x4.max_s(a, i32x4.shuffle(a, a, 2, 3, 0, 1));
  return max(i32x4.extract_lane(pairs, 0), i32x4.extract_lane(pairs, 1));
}
@inline export function vfromInt(a: IntLanes): Lanes { return f32x4.convert_i32x4_s(a); }
/** The bits of f32 lanes as integers, and back: free. */
@inline export function vbits(a: Lanes): IntLanes { return a; }
@inline export function vfromBits(a: IntLanes): Lanes { return a; }
@inline export function vintShl(a: IntLanes, by: i32): IntLanes { return i32x4.shl(a, by); }
/** The low halves of `low` and `high` as one lane of two i16. */
@inline export function vpair(low: IntLanes, high: IntLanes): IntLanes {
  return v128.or(v128.and(low, i32x4.splat(0xffff)), i32x4.shl(high, 16));
}

/**
 * Four 4-bit codes times their scale: elements i to i + 3 of packed nibbles at p. `bits` and `scale` come from vnibbleBits and
 * vnibbleScale.
 * The codes stay where they are in their 16 bits; the powers of two are taken back by the scale, exactly.
 */
@inline export function vloadNibbles(p: usize, i: usize, bits: IntLanes, scale: Lanes): Lanes {
  const codes = v128.and(i32x4.extend_low_i16x8_u(v128.load16_splat(p + (i >> 1))), bits);
  return f32x4.mul(f32x4.convert_i32x4_s(codes), scale);
}
@inline export function vnibbleScale(scale: f32): Lanes {
  return f32x4.mul(f32x4.splat(scale), f32x4(1.0, 0.0625, 0.00390625, 0.000244140625));
}
/** VECTOR_BYTES / 4 8-bit codes as integers. */
@inline export function vloadBytes(p: usize): IntLanes {
  return i32x4.extend_low_i16x8_u(i16x8.extend_low_i8x16_u(v128.load32_zero(p)));
}
