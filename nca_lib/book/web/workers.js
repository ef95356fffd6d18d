// Where the engine runs: a worker for each computation, ended when it is no longer needed.

const NO_WORKER = "This page may not compute: its browser or server refuses workers.";

// Where workers find the engine, a text without imports and exports.
function addressOf(engine) {
  return URL.createObjectURL(new Blob([engine], { type: "text/javascript" }));
}

function startWorker(address, model, answer, failed) {
  const worker = new Worker(address);
  worker.onmessage = ({ data }) => answer(data);
  worker.onerror = failed;
  worker.postMessage({ load: model });
  return worker;
}

// What computes faster here: "GPU", "software" (which only claims to be a GPU, and is slower than the engine), or nothing.
async function graphics() {
  const adapter = await navigator.gpu?.requestAdapter();
  if (!adapter) return null;
  return adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter ? "software" : "GPU";
}

export { NO_WORKER, addressOf, graphics, startWorker };
