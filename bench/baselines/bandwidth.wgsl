// Reads a large buffer and keeps nothing but a sum, so that no load can be left out: the bandwidth that attention cannot exceed.
//
//   input   u32 × 4 [a multiple of 4 · threads]
//   output  u32 × 4 [threads]

override WG: u32 = 256;

@group(0) @binding(0) var<storage, read> input: array<vec4u>;
@group(0) @binding(1) var<storage, read_write> output: array<vec4u>;

@compute @workgroup_size(WG)
fn bandwidth(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let threads = groups.x * WG;
  var sum = vec4u();
  for (var i = id.x; i < arrayLength(&input); i += 4 * threads) {
    sum += input[i] + input[i + threads] + input[i + 2 * threads] + input[i + 3 * threads];
  }
  output[id.x] = sum;
}
