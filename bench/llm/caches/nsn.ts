// nsnquant's own cache as what programs measure: the engine's, with its bytes counted.
import { SequenceCache } from '@nsnquant/gguf';
import { codebookBytes } from '../../bytes.ts';
import type { HeldCache } from './cache.ts';

export class NsnCache extends SequenceCache implements HeldCache {
  get bytes(): number {
    return this.sequence.bytes + codebookBytes(this.cache.shape);
  }

  get codedBits(): number | null {
    const elements = this.cache.shape.layers.reduce((sum, { kvHeads, headDim, valueDim }) => sum + kvHeads * (headDim + valueDim), 0);
    const { bytes, tokens } = this.sequence.sealed;
    return tokens === 0 ? null : (8 * bytes) / (tokens * elements);
  }
}
