// How fast the browser's engine is, in Node:  node benchmarks/web.mjs
// (Playwright brings a Node: .venv/lib/python*/site-packages/playwright/driver/node)

import { readFileSync } from "node:fs";
import { CounterNoise, load } from "../nca_lib/book/web/sampling.js";

const read = (name) => load(JSON.parse(readFileSync(new URL(`../nca_lib/book/web/${name}.json`, import.meta.url), "utf8")));
const seconds = (work) => {
  const before = performance.now();
  work();
  return (performance.now() - before) / 1000;
};
const best = (times, work) => Math.min(...Array.from({ length: times }, () => seconds(work)));

for (const name of ["growing-regenerate", "growing-grow"]) {
  const automaton = read(name), noise = new CounterNoise(0);
  const state = automaton.seed(48, 48);
  automaton.run(state, 48, 48, 100, noise);
  const taken = best(3, () => automaton.run(state.slice(), 48, 48, 100, noise, 100));
  console.log(`${name}, 48x48, grown for 100 steps: ${Math.round(100 / taken)} steps/s`);
}
const denoiser = read("web-tissue");
for (const side of [32, 40]) {
  const settings = { height: side, width: side, seed: 0, steps: 20 };
  const taken = best(3, () => [...denoiser.sample(settings)]);
  const products = 20 * 8 * 11_808 * side * side;
  const rate = (products / taken / 1e9).toFixed(2);
  console.log(`web-tissue, ${side}x${side}, 20 calls: ${taken.toFixed(2)} s, ${rate} GMAC/s`);
}
