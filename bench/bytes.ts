// The bytes that reading a cache takes and that no sequence counts.
import type { CacheShape } from 'nsnquant';

/** Bytes of the codebooks that a cache's layers read, f16 [256, channels] each. */
export function codebookBytes({ layers }: CacheShape): number {
  const stages = layers.flatMap(({ page: { keys, values } }) =>
    [keys, values].flatMap(({ segments }) => segments.flatMap(segment => segment.stages))
  );
  const codebooks = new Set(stages.map(({ codebook }) => codebook));
  return [...codebooks].reduce((bytes, { codewords }) => bytes + 2 * codewords.length, 0);
}
