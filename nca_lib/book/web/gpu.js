// The Diff-NCA of engine.js as a WebGPU program: one invocation for each cell and step. No DOM.

import { CounterNoise, START } from "./noise.js";

const GROUP = 64, TRIAL = 8; // TRIAL: side of the image on which the GPU must agree with the processor

// `seen` holds the cell and its perception; the hidden layer is never stored: the norm's division waits for the end.
const PROGRAM = ({ channels, hidden, images, probability }) => `
const C = ${channels}u; const H = ${hidden}u; const IMAGES = ${images}u; const WRITTEN = ${channels - images}u;
@group(0) @binding(0) var<uniform> size: vec2<i32>;
@group(0) @binding(1) var<storage, read> now: array<f32>;
@group(0) @binding(2) var<storage, read_write> next: array<f32>;
@group(0) @binding(3) var<storage, read> perception: array<f32>;
@group(0) @binding(4) var<storage, read> folded: array<f32>;
@group(0) @binding(5) var<storage, read> fires: array<f32>;

fn reflected(i: i32, count: i32) -> i32 {
  return select(select(i, 2 * count - 2 - i, i >= count), -i, i < 0);
}

@compute @workgroup_size(${GROUP}) fn step(@builtin(global_invocation_id) id: vec3<u32>) {
  let cell = i32(id.x);
  if (cell >= size.x * size.y) { return; }
  let y = cell / size.y; let x = cell % size.y; let here = u32(cell) * C;
  for (var c = 0u; c < C; c++) { next[here + c] = now[here + c]; }
  if (${probability < 1} && fires[cell] == 0.0) { return; }
  var seen: array<f32, ${2 * channels}>;
  for (var c = 0u; c < C; c++) {
    seen[c] = now[here + c];
    seen[C + c] = folded[c];
  }
  for (var place = 0; place < 9; place++) {
    let there = u32(reflected(y + place / 3 - 1, size.x) * size.y + reflected(x + place % 3 - 1, size.y)) * C;
    for (var c = 0u; c < C; c++) {
      let value = now[there + c]; let weights = (u32(place) * C + c) * C;
      for (var o = 0u; o < C; o++) { seen[C + o] += value * perception[weights + o]; }
    }
  }
  var written: array<f32, ${channels - images}>;
  var square = 0.0;
  for (var unit = 0u; unit < H; unit++) {
    let weights = C + unit * (1u + 2u * C + WRITTEN);
    var h = folded[weights];
    for (var i = 0u; i < 2u * C; i++) { h += folded[weights + 1u + i] * seen[i]; }
    square += h * h;
    h = select(h, 0.01 * h, h < 0.0);
    for (var o = 0u; o < WRITTEN; o++) { written[o] += folded[weights + 1u + 2u * C + o] * h; }
  }
  let scale = inverseSqrt(square / f32(H) + 1e-5); let biases = C + H * (1u + 2u * C + WRITTEN);
  for (var o = 0u; o < WRITTEN; o++) { next[here + IMAGES + o] += scale * written[o] + folded[biases + o]; }
}`;

const aligned = (count) => Math.ceil(count / 64) * 64; // a binding begins at a multiple of 256 bytes

class GpuDiffNCA {
  // For a DiffNCA of engine.js; null where there is no WebGPU, or one that computes something else.
  static async of(network) {
    const adapter = await globalThis.navigator?.gpu?.requestAdapter();
    if (!adapter) return null;
    const gpu = new GpuDiffNCA(network, await adapter.requestDevice()), noise = new CounterNoise(0);
    const told = [noise.normal(TRIAL, TRIAL, network.images, START, 0), TRIAL, TRIAL, 0.5, noise];
    const expected = network.forward(...told), found = await gpu.forward(...told);
    return expected.every((value, i) => Math.abs(value - found[i]) < 1e-3) ? gpu : null;
  }

  constructor(network, device) {
    Object.assign(this, { network, device, buffers: {} });
    const { channels, weights } = network, around = channels + 4;
    const module = device.createShaderModule({ code: PROGRAM(network) });
    this.pipeline = device.createComputePipeline({ layout: "auto", compute: { module, entryPoint: "step" } });
    const perception = new Float32Array(9 * channels * channels);
    perception.forEach((_, i) => {
      const o = i % channels, c = Math.floor(i / channels) % channels, place = Math.floor(i / channels ** 2);
      perception[i] = weights["perception.weight"][(o * around + c) * 9 + place];
    });
    this.write("perception", perception);
  }

  buffer(name, bytes) {
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC;
    if (this.buffers[name]?.size !== bytes) {
      this.buffers[name]?.destroy();
      this.buffers[name] = this.device.createBuffer({ size: bytes, usage });
    }
    return this.buffers[name];
  }
  write(name, values) {
    this.device.queue.writeBuffer(this.buffer(name, values.byteLength), 0, values);
  }

  // The folded weights of all steps, each unit's together in the order in which the program reads them.
  weightsOf(time) {
    const { channels, hidden, images, steps, weights } = this.network, row = 1 + 3 * channels - images;
    const block = aligned(channels + hidden * row + channels - images), all = new Float32Array(steps * block);
    for (let k = 0; k < steps; k++) {
      const { perceptionBias, widenBias, widened, narrowed } = this.network.folded(time, k / steps);
      all.set(perceptionBias, k * block);
      for (let unit = 0; unit < hidden; unit++) {
        const from = k * block + channels + unit * row;
        all[from] = widenBias[unit];
        for (let i = 0; i < 2 * channels; i++) all[from + 1 + i] = widened(unit, i);
        for (let o = 0; o < channels - images; o++) all[from + 1 + 2 * channels + o] = narrowed(o, unit);
      }
      all.set(weights["narrow.bias"].subarray(images), k * block + channels + hidden * row);
    }
    return { all, block };
  }

  // As the network's forward, but it comes later.
  async forward(noisy, height, width, time, noise) {
    const { network, device, pipeline } = this, { channels, images, steps } = network, cells = height * width;
    const start = network.seed(noisy, height, width), fires = new Float32Array(steps * aligned(cells)), { all, block } = this.weightsOf(time);
    if (network.probability < 1) {
      for (let i = 0; i < steps * cells; i++) {
        const k = Math.floor(i / cells), cell = i % cells;
        fires[k * aligned(cells) + cell] = network.fires(Math.floor(cell / width), cell % width, time, k, noise) ? 1 : 0;
      }
    }
    this.write("size", new Int32Array([height, width]));
    this.write("even", start);
    this.write("folded", all);
    this.write("fires", fires);
    this.buffer("odd", start.byteLength);
    const encoder = device.createCommandEncoder(), pass = encoder.beginComputePass(), { buffers } = this;
    pass.setPipeline(pipeline);
    for (let k = 0; k < steps; k++) {
      const [now, next] = k % 2 ? [buffers.odd, buffers.even] : [buffers.even, buffers.odd];
      const part = (buffer, count) => ({ buffer, offset: 4 * k * count, size: 4 * count });
      const bound = [{ buffer: buffers.size }, { buffer: now }, { buffer: next }, { buffer: buffers.perception },
        part(buffers.folded, block), part(buffers.fires, aligned(cells))];
      const entries = bound.map((resource, binding) => ({ binding, resource }));
      pass.setBindGroup(0, device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries }));
      pass.dispatchWorkgroups(Math.ceil(cells / GROUP));
    }
    pass.end();
    const answer = device.createBuffer({ size: start.byteLength, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
    encoder.copyBufferToBuffer(steps % 2 ? buffers.odd : buffers.even, 0, answer, 0, start.byteLength);
    device.queue.submit([encoder.finish()]);
    await answer.mapAsync(GPUMapMode.READ);
    const state = new Float32Array(answer.getMappedRange());
    const output = noisy.map((_, i) => state[Math.floor(i / images) * channels + images + (i % images)]);
    answer.destroy();
    return output;
  }
}

export { GpuDiffNCA };
