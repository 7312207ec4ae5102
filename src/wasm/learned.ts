// What sequences have learned of the keys of a layer, in a cache's memory: a record for every sequence of a layer whose keys are balanced.
//
//   orders    [kvHeads]                   as assembly/order.ts draws them: u32 channels, f32 scales, f32 inverses, [headDim] each
//   energies  f32 [kvHeads, headDim / 2]  of queries
//   balance   u8  [kvHeads, headDim / 2]

import { channelOrder, ofHead } from '../format/balance.ts';
import type { LayerShape } from '../layer.ts';
import type { CacheShape } from '../shape.ts';
import type { WasmMemory } from './memory.ts';

/** A sequence's record of a layer. */
export class Learned {
  /** Address of the order of every head. */
  readonly orders: number;
  /** f32 [kvHeads, headDim / 2] */
  readonly energies: Float32Array;
  /** u8 [kvHeads, headDim / 2] */
  readonly balance: Uint8Array;
  readonly #memory: WasmMemory;
  readonly #layer: LayerShape;

  constructor(memory: WasmMemory, shape: CacheShape, layer: number, sequence: number) {
    const heads = shape.layers[layer]!;
    const pairs = (heads.kvHeads * heads.headDim) / 2;
    this.#memory = memory;
    this.#layer = heads;
    this.orders = memory.record(layer, sequence);
    const energies = this.orders / 4 + 6 * pairs;
    this.energies = memory.f32.subarray(energies, energies + pairs);
    this.balance = memory.u8.subarray(4 * (energies + pairs), 4 * (energies + pairs) + pairs);
  }

  /** Keeps a balance, and the orders that it stands for. */
  setBalance(balance: Uint8Array): void {
    const { kvHeads, headDim, rope } = this.#layer;
    const { u32, f32 } = this.#memory;
    this.balance.set(balance);
    for (let head = 0; head < kvHeads; head++) {
      const { channels, scales } = channelOrder(ofHead(balance, head, headDim), headDim, rope);
      const at = this.orders / 4 + 3 * head * headDim;
      u32.set(channels, at);
      f32.set(scales, at + headDim);
      f32.set(
        scales.map(scale => 1 / scale),
        at + 2 * headDim
      );
    }
  }
}
