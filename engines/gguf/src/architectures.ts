// What sets the architectures apart that GGUF files name and this engine runs. Tensors are listed: one that is not is refused.

/** What is Llama's where nothing is said. */
export interface Architecture {
  /** Which channels rotate together: (2i, 2i + 1), else (i, i + half of them). */
  readonly interleaved: boolean;
  /** Tensors of every layer, and those that may be there. */
  readonly tensors: readonly string[];
  readonly optional?: readonly string[];
  /** The feed-forward network gates by GELU, in its form with tanh, not by SiLU. */
  readonly gelu?: true;
  /** Embeddings are multiplied by √width. */
  readonly scaledEmbeddings?: true;
  /**
   * Where a file may speak of a sliding window: of `every` layers the last sees all positions, and `otherwise` is the window of a file
   * that does not say.
   */
  readonly window?: { readonly every: number; readonly otherwise?: number };
  /** RoPE of layers with a window has another base, this one where the file does not say, and is never stretched. */
  readonly localBase?: number;
  /** Every how manieth layer has no RoPE. */
  readonly unrotated?: number;
  /** RoPE's frequencies are divided by factors, others beyond the context that the model was first trained for. */
  readonly longRope?: true;
  /** What caps attention's logits, and the model's, where the file does not say. */
  readonly softcap?: { readonly attention?: number; readonly final: number };
  /** The one size, in layers, of which queries are divided by √(width / heads) instead of √headDim: Gemma's of 27 billion weights. */
  readonly wideQueries?: number;
}

const ATTENTION = ['attn_norm.weight', 'attn_q.weight', 'attn_k.weight', 'attn_v.weight', 'attn_output.weight'];
const FEED_FORWARD = ['ffn_norm.weight', 'ffn_gate.weight', 'ffn_up.weight', 'ffn_down.weight'];
const LLAMA = [...ATTENTION, ...FEED_FORWARD];
const BIASES = ['attn_q.bias', 'attn_k.bias', 'attn_v.bias'];
const HEAD_NORMS = ['attn_q_norm.weight', 'attn_k_norm.weight'];
const POST_NORMS = ['post_attention_norm.weight', 'post_ffw_norm.weight'];
const PACKED = ['attn_norm.weight', 'attn_qkv.weight', 'attn_output.weight', 'ffn_norm.weight', 'ffn_up.weight', 'ffn_down.weight'];
const ALL_LAYERS = { every: Infinity, otherwise: 0 };

/** By the names that files give them. Mistral's are Llamas, with a window in its first version. */
export const architectures: Readonly<Record<string, Architecture>> = {
  llama: { interleaved: true, tensors: LLAMA, optional: [...BIASES, 'attn_output.bias'], window: ALL_LAYERS },
  qwen2: { interleaved: false, tensors: [...LLAMA, ...BIASES] },
  qwen3: { interleaved: false, tensors: [...LLAMA, ...HEAD_NORMS] },
  smollm3: { interleaved: true, tensors: LLAMA, unrotated: 4 },
  phi3: { interleaved: false, tensors: PACKED, window: ALL_LAYERS, longRope: true },
  gemma2: {
    interleaved: false,
    tensors: [...LLAMA, ...POST_NORMS],
    gelu: true,
    scaledEmbeddings: true,
    window: { every: 2, otherwise: 4096 },
    softcap: { attention: 50, final: 30 },
    wideQueries: 46
  },
  gemma3: {
    interleaved: false,
    tensors: [...LLAMA, ...POST_NORMS, ...HEAD_NORMS],
    gelu: true,
    scaledEmbeddings: true,
    window: { every: 6 },
    localBase: 10000,
    softcap: { final: 0 },
    wideQueries: 62
  }
};
