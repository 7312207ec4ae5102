// The second half of attend: partial results of a block's spans into its output rows. One workgroup per block and KV head.
//
//   work      as attend.wgsl reads it
//   partials  f32 × 4 rows [spans, groups, KV_HEADS, 2 + HEAD_DIM]: largest logit, sum of p, Σ p·v
//   output    f32 [tokens, KV_HEADS · GROUP, HEAD_DIM]

override HEAD_DIM: u32;
override KV_HEADS: u32;
override GROUP: u32;         // query heads that share a KV head
override CHUNK_GROUPS: u32;  // dispatches of attend, each with its own partial results

@group(0) @binding(0) var<storage, read> work: array<vec4u>;
@group(0) @binding(1) var<storage, read> partials: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> output: array<f32>;

const WG = 64u;
override SLOT: u32 = 2 + HEAD_DIM;

@compute @workgroup_size(WG)
fn merge(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) thread: u32
) {
  let blockIndex = group.x + group.y * groups.x;
  if (blockIndex >= work[1].x) { return; }
  let head = group.z;
  let block = work[work[1].y + blockIndex];          // item, first row, first span, spans
  let item = work[work[0].w + block.x];
  let begin = block.z * CHUNK_GROUPS;
  let end = begin + block.w * CHUNK_GROUPS;

  var largest = vec4f(-3e38);
  for (var slot = begin; slot < end; slot++) { largest = max(largest, partials[(slot * KV_HEADS + head) * SLOT]); }
  var total = vec4f();
  for (var slot = begin; slot < end; slot++) {
    let at = (slot * KV_HEADS + head) * SLOT;
    total += partials[at + 1] * exp2(partials[at] - largest);
  }
  let rows = min(item.y * GROUP - block.y, 4);
  for (var i = thread; i < HEAD_DIM; i += WG) {
    var sum = vec4f();
    for (var slot = begin; slot < end; slot++) {
      let at = (slot * KV_HEADS + head) * SLOT;
      sum += partials[at + 2 + i] * exp2(partials[at] - largest);
    }
    let mixed = sum / total;
    for (var r = 0u; r < rows; r++) {
      let row = block.y + r;
      output[(((item.x + row / GROUP) * KV_HEADS + head) * GROUP + row % GROUP) * HEAD_DIM + i] = mixed[r];
    }
  }
}
