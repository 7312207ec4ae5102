// GGML's tensor types to f32. One function a type, each a transcription of its struct in ggml-common.h; small.ts alone knows blocks, too.
// One function for those of 4 and 5 bits, with and without a minimum, gives the same bits but takes longer: 1.2 to 1.4 times for blocks of
// 32, 1.6 to 1.8 times for blocks of 256.

export interface TensorType {
  readonly name: string;
  /** Elements of a block. */
  readonly block: number;
  /** Bytes of a block. */
  readonly bytes: number;
  /** out ← the block at `at`. */
  decode(view: DataView, at: number, out: Float32Array, to: number): void;
}

function single(name: string, bytes: number, read: (view: DataView, at: number) => number): TensorType {
  return {
    name,
    block: 1,
    bytes,
    decode(view, at, out, to) {
      out[to] = read(view, at);
    }
  };
}

const bits = new Uint32Array(1);
const float = new Float32Array(bits.buffer);

/** An f16: its exponent and fraction moved to where f32 has them, and the bias multiplied away. */
export function half(view: DataView, at: number): number {
  const code = view.getUint16(at, true);
  bits[0] = ((code & 0x8000) << 16) | ((code & 0x7fff) << 13);
  return float[0]! * 2 ** 112;
}

/** 6-bit scale and minimum of each 32 elements: groups 4 to 7 keep their upper two bits with groups 0 to 3. */
export function sixBits(view: DataView, at: number, group: number): { scale: number; min: number } {
  const byte = (i: number): number => view.getUint8(at + i);
  if (group < 4) return { scale: byte(group) & 63, min: byte(group + 4) & 63 };
  return {
    scale: (byte(group + 4) & 15) | ((byte(group - 4) >> 6) << 4),
    min: (byte(group + 4) >> 4) | ((byte(group) >> 6) << 4)
  };
}

/** What IQ4_NL's codes stand for. */
const levels = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/** By GGML's number. */
export const tensorTypes: Readonly<Record<number, TensorType>> = {
  0: single('F32', 4, (view, at) => view.getFloat32(at, true)),
  1: single('F16', 2, half),
  30: single('BF16', 2, (view, at) => {
    bits[0] = view.getUint16(at, true) << 16;
    return float[0]!;
  }),
  2: {
    name: 'Q4_0',
    block: 32,
    bytes: 18,
    decode(view, at, out, to) {
      const d = half(view, at);
      for (let i = 0; i < 16; i++) {
        const codes = view.getUint8(at + 2 + i);
        out[to + i] = d * ((codes & 15) - 8);
        out[to + i + 16] = d * ((codes >> 4) - 8);
      }
    }
  },
  3: {
    name: 'Q4_1',
    block: 32,
    bytes: 20,
    decode(view, at, out, to) {
      const d = half(view, at);
      const m = half(view, at + 2);
      for (let i = 0; i < 16; i++) {
        const codes = view.getUint8(at + 4 + i);
        out[to + i] = d * (codes & 15) + m;
        out[to + i + 16] = d * (codes >> 4) + m;
      }
    }
  },
  6: {
    name: 'Q5_0',
    block: 32,
    bytes: 22,
    decode(view, at, out, to) {
      const d = half(view, at);
      const high = view.getUint32(at + 2, true);
      for (let i = 0; i < 16; i++) {
        const codes = view.getUint8(at + 6 + i);
        out[to + i] = d * (((codes & 15) | (((high >>> i) & 1) << 4)) - 16);
        out[to + i + 16] = d * (((codes >> 4) | (((high >>> (i + 16)) & 1) << 4)) - 16);
      }
    }
  },
  7: {
    name: 'Q5_1',
    block: 32,
    bytes: 24,
    decode(view, at, out, to) {
      const d = half(view, at);
      const m = half(view, at + 2);
      const high = view.getUint32(at + 4, true);
      for (let i = 0; i < 16; i++) {
        const codes = view.getUint8(at + 8 + i);
        out[to + i] = d * ((codes & 15) | (((high >>> i) & 1) << 4)) + m;
        out[to + i + 16] = d * ((codes >> 4) | (((high >>> (i + 16)) & 1) << 4)) + m;
      }
    }
  },
  8: {
    name: 'Q8_0',
    block: 32,
    bytes: 34,
    decode(view, at, out, to) {
      const d = half(view, at);
      for (let i = 0; i < 32; i++) out[to + i] = d * view.getInt8(at + 2 + i);
    }
  },
  12: {
    name: 'Q4_K',
    block: 256,
    bytes: 144,
    decode(view, at, out, to) {
      const d = half(view, at);
      const m = half(view, at + 2);
      for (let group = 0; group < 8; group++) {
        const { scale, min } = sixBits(view, at + 4, group);
        for (let i = 0; i < 32; i++) {
          const codes = view.getUint8(at + 16 + (group >> 1) * 32 + i);
          out[to + group * 32 + i] = d * scale * (group & 1 ? codes >> 4 : codes & 15) - m * min;
        }
      }
    }
  },
  13: {
    name: 'Q5_K',
    block: 256,
    bytes: 176,
    decode(view, at, out, to) {
      const d = half(view, at);
      const m = half(view, at + 2);
      for (let group = 0; group < 8; group++) {
        const { scale, min } = sixBits(view, at + 4, group);
        for (let i = 0; i < 32; i++) {
          const codes = view.getUint8(at + 48 + (group >> 1) * 32 + i);
          const high = (view.getUint8(at + 16 + i) >> group) & 1;
          out[to + group * 32 + i] = d * scale * ((group & 1 ? codes >> 4 : codes & 15) | (high << 4)) - m * min;
        }
      }
    }
  },
  14: {
    name: 'Q6_K',
    block: 256,
    bytes: 210,
    decode(view, at, out, to) {
      const d = half(view, at + 208);
      for (let i = 0; i < 256; i++) {
        // Halves of 128; in each, quarters of 32 share bytes: nibbles of the low part, two bits of the high part.
        const part = i >> 7;
        const quarter = (i >> 5) & 3;
        const low = view.getUint8(at + part * 64 + (quarter & 1) * 32 + (i & 31)) >> (quarter & 2 ? 4 : 0);
        const high = view.getUint8(at + 128 + part * 32 + (i & 31)) >> (quarter * 2);
        out[to + i] = d * view.getInt8(at + 192 + (i >> 4)) * (((low & 15) | ((high & 3) << 4)) - 32);
      }
    }
  },
  20: {
    name: 'IQ4_NL',
    block: 32,
    bytes: 18,
    decode(view, at, out, to) {
      const d = half(view, at);
      for (let i = 0; i < 16; i++) {
        const codes = view.getUint8(at + 2 + i);
        out[to + i] = d * levels[codes & 15]!;
        out[to + i + 16] = d * levels[codes >> 4]!;
      }
    }
  }
};

/** Bytes of `elements` elements, which must be whole blocks. */
export function tensorBytes({ block, bytes }: TensorType, elements: number): number {
  return (elements / block) * bytes;
}

/** f32 [elements] of what begins at `at`. */
export function dequantize(type: TensorType, data: Uint8Array, elements: number, at = 0): Float32Array {
  const view = new DataView(data.buffer, data.byteOffset + at, tensorBytes(type, elements));
  const out = new Float32Array(elements);
  for (let to = 0, from = 0; to < elements; to += type.block, from += type.bytes) type.decode(view, from, out, to);
  return out;
}
