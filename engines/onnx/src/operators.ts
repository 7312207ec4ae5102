// The attentions that graphs have: GroupQueryAttention and MultiHeadAttention of ONNX Runtime, and Attention of the standard.

import {
  type Attention,
  checkKnown,
  namesOf,
  numberOf,
  type Operator,
  pastSizes,
  rotaryOf,
  type Surroundings,
  sourceOf,
  title
} from './attention.ts';
import { tableOf } from './chosen.ts';
import { makeIntegers, makeNode, type Node, type Tensor } from './graph.ts';
import { rotation } from './sharing.ts';

/** Operators that mix tokens, and keep nothing of them that a cache could. */
const MIXING = /Attention|^(\w*Conv\w*|LSTM|GRU|RNN)$/;

/** The attention that a node is; undefined for a node that takes every token for itself. */
export function readAttention(node: Node, around: Surroundings): Attention | undefined {
  const operator = operators[`${node.domain}:${node.op}`];
  if (!operator) {
    const nested = node.nested.find(op => MIXING.test(op));
    if (nested) throw new RangeError(`"${title(node)}" expected ${nested} beside it, got it in a nested graph`);
    if (!MIXING.test(node.op)) return undefined;
    throw new RangeError(`"${title(node)}" expected ${KNOWN.join(', ')} where tokens are mixed, got another operator`);
  }
  checkKnown(node, operator);
  return operator.read(node, around);
}

// https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
const groupQuery: Operator = {
  inputs: [
    'query',
    'key',
    'value',
    'past_key',
    'past_value',
    'seqlens_k',
    'total_sequence_length',
    'cos_cache',
    'sin_cache',
    'position_ids',
    'attention_bias',
    'head_sink'
  ],
  attributes: {
    num_heads: null,
    kv_num_heads: null,
    scale: null,
    softcap: null,
    local_window_size: null,
    do_rotary: null,
    rotary_interleaved: null,
    smooth_softmax: null,
    causal: 1,
    qk_output: 0,
    sliding_window_cache: 0,
    kv_cache_bit_width: 0,
    k_quant_type: 'NONE',
    v_quant_type: 'NONE'
  },
  read(node, around) {
    const [
      query = '',
      key = '',
      value = '',
      pastKey = '',
      pastValue = '',
      ,
      ,
      cos = '',
      sin = '',
      positions = '',
      mask = '',
      headSink = ''
    ] = node.inputs;
    const queryHeads = numberOf(node, 'num_heads');
    const kvHeads = numberOf(node, 'kv_num_heads');
    const { channels: headDim } = pastSizes(node, around, 'past_key', pastKey);
    const window = numberOf(node, 'local_window_size', -1);
    const name = namesOf(node);
    const before: Node[] = [];
    const tensors: Tensor[] = [];
    let parts: readonly [string, string, string] = [query, key, value];
    if (key === '') {
      tensors.push(makeIntegers(name('sizes'), [queryHeads * headDim, kvHeads * headDim, kvHeads * headDim]));
      parts = [name('query'), name('key'), name('value')];
      before.push(makeNode('Split', [query, name('sizes')], parts, { axis: -1 }));
    }
    let rotary = rotaryOf(key, around);
    if (numberOf(node, 'do_rotary', 0) === 1) {
      const interleaved = numberOf(node, 'rotary_interleaved', 0);
      if (positions !== '' && sourceOf(positions, around) !== 'position_ids') {
        throw new RangeError(`"${title(node)}" expected position_ids of the graph as position_ids, got ${positions}`);
      }
      const [cosines] = [cos, sin].map(table => tableOf(node, table, around));
      const pairs = cosines?.shape[1];
      if (pairs === undefined) {
        throw new RangeError(`"${title(node)}" expected a constant as cos_cache, got ${around.producers.get(cos)?.op ?? (cos || 'none')}`);
      }
      const partial = 2 * pairs < headDim ? { rotary_embedding_dim: 2 * pairs } : {};
      const rotate = (input: string, to: string, heads: number): string => {
        before.push(...rotation(input, to, [cos, sin], { interleaved, num_heads: heads, ...partial }, around.chosen));
        return to;
      };
      parts = [rotate(parts[0], name('rotated query'), queryHeads), rotate(parts[1], name('rotated key'), kvHeads), parts[2]];
      rotary = { cos, sin, interleaved: interleaved === 1 };
    }
    return {
      title: title(node),
      query: parts[0],
      key: parts[1],
      value: parts[2],
      output: node.outputs[0]!,
      kvHeads,
      queryHeads,
      headDim,
      valueDim: headDim,
      apart: false,
      scale: numberOf(node, 'scale', 0) || undefined,
      window: window > 0 ? window : undefined,
      softcap: numberOf(node, 'softcap', 0) || undefined,
      sinks: headSink ? { name: headSink } : numberOf(node, 'smooth_softmax', 0) === 1 ? 'zero' : undefined,
      rotary,
      causal: true,
      mask: mask || undefined,
      pasts: [pastKey, pastValue],
      before,
      after: [],
      tensors
    };
  }
};

// https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
const multiHead: Operator = {
  inputs: ['query', 'key', 'value', 'bias', '[key_padding_mask]', 'attention_bias', 'past_key', 'past_value'],
  attributes: { num_heads: null, scale: null, unidirectional: null, mask_filter_value: null },
  read(node, around) {
    const [query = '', key = '', value = '', bias = '', , mask = '', pastKey = '', pastValue = ''] = node.inputs;
    if (key === '' || value === '') throw new RangeError(`"${title(node)}" expected queries, keys and values apart, got them packed`);
    const heads = numberOf(node, 'num_heads');
    const { channels: headDim } = pastSizes(node, around, 'past_key', pastKey);
    const { channels: valueDim } = pastSizes(node, around, 'past_value', pastValue);
    const name = namesOf(node);
    const before: Node[] = [];
    const tensors: Tensor[] = [];
    let parts: readonly string[] = [query, key, value];
    if (bias !== '') {
      const biases = [name('query bias'), name('key bias'), name('value bias')];
      tensors.push(makeIntegers(name('sizes'), [heads * headDim, heads * headDim, heads * valueDim]));
      before.push(makeNode('Split', [bias, name('sizes')], biases, { axis: 0 }));
      parts = parts.map((input, n) => {
        before.push(makeNode('Add', [input, biases[n]!], [`${biases[n]} added`]));
        return `${biases[n]} added`;
      });
    }
    return {
      title: title(node),
      query: parts[0]!,
      key: parts[1]!,
      value: parts[2]!,
      output: node.outputs[0]!,
      kvHeads: heads,
      queryHeads: heads,
      headDim,
      valueDim,
      apart: false,
      scale: numberOf(node, 'scale', 0) || undefined,
      window: undefined,
      softcap: undefined,
      sinks: undefined,
      rotary: bias === '' ? rotaryOf(key, around) : undefined, // what is added afterwards does not turn
      causal: numberOf(node, 'unidirectional', 0) === 1,
      mask: mask || undefined,
      pasts: [pastKey, pastValue],
      before,
      after: [],
      tensors
    };
  }
};

// https://onnx.ai/onnx/operators/onnx__Attention.html
const standard: Operator = {
  inputs: ['Q', 'K', 'V', 'attn_mask', 'past_key', 'past_value', '[nonpad_kv_seqlen]'],
  attributes: {
    is_causal: null,
    kv_num_heads: null,
    q_num_heads: null,
    qk_matmul_output_mode: null,
    scale: null,
    softcap: null,
    softmax_precision: null
  },
  read(node, around) {
    const [query = '', key = '', value = '', mask = '', pastKey = '', pastValue = ''] = node.inputs;
    const keys = pastKey === '' ? appended(key, around) : { past: pastKey, added: key };
    const values = pastValue === '' ? appended(value, around) : { past: pastValue, added: value };
    const { heads: kvHeads, channels: headDim } = pastSizes(node, around, 'past_key', keys.past);
    const { channels: valueDim } = pastSizes(node, around, 'past_value', values.past);
    const queryHeads = numberOf(node, 'q_num_heads', 0);
    const [output] = node.outputs;
    const common = {
      title: title(node),
      kvHeads,
      queryHeads,
      headDim,
      valueDim,
      apart: queryHeads === 0,
      scale: numberOf(node, 'scale', 0) || undefined,
      window: undefined,
      softcap: numberOf(node, 'softcap', 0) || undefined,
      sinks: undefined,
      rotary: rotaryOf(keys.added, around),
      causal: numberOf(node, 'is_causal', 0) === 1,
      mask: mask || undefined,
      pasts: [keys.past, values.past],
      tensors: []
    };
    if (queryHeads > 0) return { ...common, query, key: keys.added, value: values.added, output: output!, before: [], after: [] };
    // Heads come first, [1, heads, tokens, channels], and so they go.
    const name = namesOf(node);
    const swap = (from: string, to: string): Node => makeNode('Transpose', [from], [to], { perm: [0, 2, 1, 3] });
    const parts = { query: name('query'), key: name('key'), value: name('value'), output: name('output') };
    const before = [swap(query, parts.query), swap(keys.added, parts.key), swap(values.added, parts.value)];
    return { ...common, ...parts, before, after: [swap(parts.output, output!)] };
  }
};

/** Of a past with new tokens behind it, put together by a node of its own, what is new. */
function appended(value: string, { producers, ports }: Surroundings): { readonly past: string; readonly added: string } {
  const node = producers.get(value);
  const [past = '', added = ''] = node?.inputs ?? [];
  const axis = node?.op === 'Concat' && node.inputs.length === 2 ? numberOf(node, 'axis') : 0;
  return ports.has(past) && (axis === 2 || axis === -2) ? { past, added } : { past: '', added: value };
}

const operators: Readonly<Record<string, Operator>> = {
  'com.microsoft:GroupQueryAttention': groupQuery,
  'com.microsoft:MultiHeadAttention': multiHead,
  ':Attention': standard
};

const KNOWN = Object.keys(operators).map(name => name.slice(name.indexOf(':') + 1));
