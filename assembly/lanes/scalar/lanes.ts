// One lane at a time: for engines without SIMD, and the check that the SIMD build adds nothing of its own.
// Every operation rounds as one lane of ../simd/lanes.ts does.

export type Lanes = f32;
export type IntLanes = i32;
export type Mask = bool;

/** Bytes that one `Lanes` covers in an f32 array. */
export const VECTOR_BYTES: usize = 4;

@inline export function vsplat(x: f32): Lanes { return x; }
@inline export function vsplatAt(p: usize): Lanes { return load<f32>(p); }
@inline export function vsplatAt4(p: usize): Lanes { return load<f32>(p, 4); }
@inline export function vsplatAt8(p: usize): Lanes { return load<f32>(p, 8); }
@inline export function vsplatAt12(p: usize): Lanes { return load<f32>(p, 12); }
@inline export function vadd(a: Lanes, b: Lanes): Lanes { return a + b; }
@inline export function vsub(a: Lanes, b: Lanes): Lanes { return a - b; }
@inline export function vmul(a: Lanes, b: Lanes): Lanes { return a * b; }
@inline export function vdiv(a: Lanes, b: Lanes): Lanes { return a / b; }
@inline export function vsqrt(a: Lanes): Lanes { return sqrt<f32>(a); }
@inline export function vabs(a: Lanes): Lanes { return abs<f32>(a); }
@inline export function vneg(a: Lanes): Lanes { return -a; }
@inline export function vfloor(a: Lanes): Lanes { return floor<f32>(a); }
/** a < b ? b : a. */
@inline export function vmax(a: Lanes, b: Lanes): Lanes { return a < b ? b : a; }
/** b < a ? b : a. */
@inline export function vmin(a: Lanes, b: Lanes): Lanes { return b < a ? b : a; }
/** a · b + c, rounded twice. */
@inline export function vmadd(a: Lanes, b: Lanes, c: Lanes): Lanes { return a * b + c; }
@inline export function vgt(a: Lanes, b: Lanes): Mask { return a > b; }
@inline export function vselect(yes: Lanes, no: Lanes, when: Mask): Lanes { return when ? yes : no; }

@inline export function vhalfBits(): IntLanes { return 0x8fffe000; }
@inline export function vhalfScale(): Lanes { return 5192296858534827628530496329220096.0; } // 2^112
@inline export function vnibbleBits(): IntLanes { return 15; }

/** One f16 value as f32. Exact: the exponent is rebased by one multiplication, which mends subnormals too. */
@inline export function vloadHalf(p: usize, bits: IntLanes, scale: Lanes): Lanes {
  return reinterpret<f32>((<i32>load<i16>(p) << 13) & bits) * scale;
}

/** Two i16 pairs multiplied and added. */
@inline export function vdotPairs(a: IntLanes, b: IntLanes): IntLanes {
  return <i32><i16>a * <i32><i16>b + (a >> 16) * (b >> 16);
}
@inline export function vpairSplatAt(p: usize): IntLanes { return load<i32>(p); }
@inline export function vpairSplatAt4(p: usize): IntLanes { return load<i32>(p, 4); }
@inline export function vpairSplatAt8(p: usize): IntLanes { return load<i32>(p, 8); }
@inline export function vpairSplatAt12(p: usize): IntLanes { return load<i32>(p, 12); }
@inline export function vintSplat(x: i32): IntLanes { return x; }
@inline export function vintAdd(a: IntLanes, b: IntLanes): IntLanes { return a + b; }
@inline export function vintSub(a: IntLanes, b: IntLanes): IntLanes { return a - b; }
@inline export function vintAbs(a: IntLanes): IntLanes { return abs<i32>(a); }
@inline export function vintMax(a: IntLanes, b: IntLanes): IntLanes { return max<i32>(a, b); }
/** The largest lane. */
@inline export function vintLargest(a: IntLanes): i32 { return a; }
@inline export function vfromInt(a: IntLanes): Lanes { return <f32>a; }
/** The bits of an f32 as an integer, and back. */
@inline export function vbits(a: Lanes): IntLanes { return reinterpret<i32>(a); }
@inline export function vfromBits(a: IntLanes): Lanes { return reinterpret<f32>(a); }
@inline export function vintShl(a: IntLanes, by: i32): IntLanes { return a << by; }
/** The low halves of `low` and `high` as two i16. */
@inline export function vpair(low: IntLanes, high: IntLanes): IntLanes { return (low & 0xffff) | (high << 16); }

/** One 4-bit code times its scale: element i of packed nibbles at p. */
@inline export function vloadNibbles(p: usize, i: usize, bits: IntLanes, scale: Lanes): Lanes {
  return <f32>((<i32>load<u8>(p + (i >> 1)) >> <i32>((i & 1) << 2)) & bits) * scale;
}
@inline export function vnibbleScale(scale: f32): Lanes { return scale; }
/** One 8-bit code as an integer. */
@inline export function vloadBytes(p: usize): IntLanes { return <i32>load<u8>(p); }
