// The second half of dense.wgsl: partial results of a KV head's spans into its output rows. One workgroup per KV head and sequence,
// a thread for every four channels of a query head.
//
//   partials  f32 × 4 [sequences, KV_HEADS, spans, 2 + HEAD_DIM]
//   output    f32 [sequences, KV_HEADS · GROUP, HEAD_DIM]

override HEAD_DIM: u32;
override KV_HEADS: u32;
override GROUP: u32;
override WG: u32;        // GROUP · HEAD_DIM / 4

@group(0) @binding(0) var<storage, read> partials: array<vec4f>;
@group(0) @binding(1) var<storage, read_write> output: array<vec4f>;
@group(0) @binding(2) var<uniform> params: vec4u;   // spans

@compute @workgroup_size(WG)
fn densemerge(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  let spans = params.x;
  let first = (group.y * KV_HEADS + group.x) * spans * (2 + HEAD_DIM);
  let end = first + spans * (2 + HEAD_DIM);
  let h = thread / (HEAD_DIM / 4);
  var largest = -3e38;
  for (var at = first; at < end; at += 2 + HEAD_DIM) { largest = max(largest, partials[at][h]); }
  var total = 0.0;
  var sum = vec4f();
  for (var at = first; at < end; at += 2 + HEAD_DIM) {
    let weight = exp2(partials[at][h] - largest);
    total += partials[at + 1][h] * weight;
    sum += partials[at + 2 + thread] * weight;
  }
  output[(group.y * KV_HEADS + group.x) * WG + thread] = sum / total;
}
