// Opens a workflow with the npm package, does what it is told, and prints what came of each operation as a line of JSON.
//
// node operations.mjs ROOT WORKFLOW_ID MODE OPERATIONS
//   MODE        "run" (runWorkflow) or "open" (openWorkflow)
//   OPERATIONS  a JSON list of [name, ...arguments], the names those of `does` below
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const entry = pathToFileURL(join(process.env.ISO_ORCHESTRATOR_NPM, "dist", "index.js"));
const { openWorkflow, runWorkflow } = await import(entry);
const [dir, workflowId, mode, operations] = process.argv.slice(2);

const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
const hold = () => {
  say("holding");
  return new Promise(() => setInterval(() => {}, 60_000)); // until somebody kills this process
};

let holdsTheRecord = false;
const now = () => {
  if (holdsTheRecord) {
    say("holding");
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0); // asleep inside of the record's lock
  }
  return new Date();
};

const does = {
  step: async (workflow, name, result, options) => {
    let ran = false;
    const body = async () => {
      ran = true;
      return result;
    };
    const value = await workflow.step(name, body, options);
    return { ran, value };
  },
  failingStep: (workflow, name, message) =>
    workflow.step(name, async () => {
      throw Object.assign(new Error(message, { cause: new Error("why") }), { code: "E_TRIED" });
    }),
  holdInStep: (workflow, name) => workflow.step(name, hold),
  holdInMutex: (workflow, key) => workflow.withMutex(key, hold),
  holdInRecordLock: (workflow) => {
    holdsTheRecord = true;
    return workflow.appendEvent({ type: "never written" });
  },
  add: (workflow, key, amount) => workflow.updateState((state) => ({ ...state, [key]: (state[key] ?? 0) + amount })),
  event: (workflow, event) => workflow.appendEvent(event),
  heartbeat: (workflow, key, detail) => workflow.heartbeat(key, detail),
  touchLease: (workflow, key, input) => workflow.touchLease(key, input),
  releaseLease: (workflow, key, holder) => workflow.releaseLease(key, holder),
  record: (workflow) => workflow.getRecord(),
  path: (workflow) => workflow.recordPath,
  fail: (workflow, message) => {
    throw new Error(message);
  },
};

const doAll = async (workflow) => {
  for (const [name, ...rest] of JSON.parse(operations)) {
    try {
      say((await does[name](workflow, ...rest)) ?? null);
    } catch (error) {
      if (name === "fail") throw error;
      say({ error: error.code ?? error.message });
    }
  }
};

const options = { workflowId, dir, initialState: { begun: "node" }, now };
if (mode === "run") {
  await runWorkflow(options, doAll).catch((error) => say({ failed: error.message }));
} else {
  await doAll(await openWorkflow(options));
}
